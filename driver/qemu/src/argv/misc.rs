//! The rest of `<devices>`, most of them one device each; and what is passed to QEMU as it is.

use std::path::PathBuf;

use virtsnap_engine::error::Result;

use super::props::{Props, escape_comma};
use super::read::View;
use super::{Build, Swtpm, VsockRequest, lacks, refuse};

/// Kinds of devices that some section renders.
const KNOWN: [&str; 27] = [
    "alias",
    "audio",
    "channel",
    "console",
    "controller",
    "crypto",
    "disk",
    "emulator",
    "filesystem",
    "graphics",
    "hostdev",
    "hub",
    "input",
    "interface",
    "iommu",
    "memballoon",
    "memory",
    "panic",
    "parallel",
    "redirdev",
    "redirfilter",
    "rng",
    "serial",
    "sound",
    "tpm",
    "video",
    "watchdog",
];

/// As libvirt, where a shared memory says no size.
const SHMEM_SIZE: u64 = 4 << 20;

impl Build<'_> {
    pub(super) fn unknown_devices(&self) -> Result<()> {
        for device in self.devices.elements() {
            let name = device.name();
            if !KNOWN.contains(&name) && !matches!(name, "vsock" | "smartcard" | "shmem") {
                return refuse(format!("devices of kind <{name}> are not supported"));
            }
        }
        Ok(())
    }

    pub(super) fn iommu(&mut self) -> Result<()> {
        for iommu in self.devices.children("iommu") {
            let props = match iommu.need("model")? {
                "intel" => {
                    let mut props = Props::device("intel-iommu").with("id", iommu.alias()?);
                    if let Some(driver) = iommu.child("driver") {
                        props = props
                            .on_off("intremap", driver.switch("intremap")?)
                            .some("caching-mode", driver.switch("caching_mode")?)
                            .on_off("eim", driver.switch("eim")?)
                            .some("device-iotlb", driver.switch("iotlb")?)
                            .positive("aw-bits", driver.number("aw_bits")?)
                            .some("dma-translation", driver.switch("dma_translation")?);
                    }
                    props
                }
                "virtio" => Props::device("virtio-iommu").with("id", iommu.alias()?),
                other => return refuse(format!("the IOMMU '{other}' is not supported")),
            };
            self.device(self.place(iommu, props)?);
        }
        Ok(())
    }

    pub(super) fn hubs(&mut self) -> Result<()> {
        for hub in self.devices.children("hub") {
            if hub.need("type")? != "usb" {
                return refuse("hubs other than USB hubs are not supported");
            }
            let props = Props::device("usb-hub").with("id", hub.alias()?);
            self.device(self.place(hub, props)?);
        }
        Ok(())
    }

    pub(super) fn filesystems(&mut self) -> Result<()> {
        for filesystem in self.devices.children("filesystem") {
            self.filesystem(filesystem)?;
        }
        Ok(())
    }

    fn filesystem(&mut self, filesystem: View<'_>) -> Result<()> {
        let alias = filesystem.alias()?;
        let driver = filesystem.child("driver");
        let kind = filesystem.attr("type").unwrap_or("mount");
        match (kind, driver.and_then(|driver| driver.attr("type"))) {
            ("mount", None | Some("path")) => {}
            (_, Some(other)) => {
                return refuse(format!("a filesystem by '{other}' is not supported"));
            }
            (other, None) => {
                return refuse(format!("filesystems of type '{other}' are not supported"));
            }
        }
        let source = filesystem.child("source").ok_or_else(|| lacks("<filesystem><source>"))?;
        let target = filesystem.child("target").ok_or_else(|| lacks("<filesystem><target>"))?;
        let model = match filesystem.attr("accessmode") {
            Some("mapped") => "mapped",
            Some("squash") => "none",
            Some("passthrough") | None => "passthrough",
            Some(other) => return refuse(format!("accessmode='{other}' is not supported")),
        };
        let mut option = format!("local,security_model={model}");
        match filesystem.attr("multidevs") {
            None | Some("default") => {}
            Some(policy) => option.push_str(&format!(",multidevs={policy}")),
        }
        for mode in ["fmode", "dmode"] {
            if let Some(bits) = filesystem.attr(mode) {
                option.push_str(&format!(",{mode}={bits:0>4}"));
            }
        }
        if driver.and_then(|driver| driver.attr("wrpolicy")) == Some("immediate") {
            option.push_str(",writeout=immediate");
        }
        let path = escape_comma(source.need("dir")?);
        option.push_str(&format!(",id=fsdev-{alias},path={path}"));
        if filesystem.child("readonly").is_some() {
            option.push_str(",readonly=on");
        }
        self.arg("-fsdev", option);
        let props = self
            .virtio(filesystem, "virtio-9p")?
            .with("id", alias)
            .with("fsdev", format!("fsdev-{alias}"))
            .with("mount_tag", target.need("dir")?);
        self.device(self.place(filesystem, props)?);
        Ok(())
    }

    pub(super) fn smartcards(&mut self) -> Result<()> {
        for card in self.devices.children("smartcard") {
            let alias = card.alias()?;
            match card.need("mode")? {
                "passthrough" => {
                    self.chardev(card, alias)?;
                    let props = Props::device("ccid-card-passthru")
                        .with("chardev", format!("char{alias}"))
                        .with("id", alias);
                    self.device(self.place(card, props)?);
                }
                other => return refuse(format!("a smartcard in mode '{other}' is not supported")),
            }
        }
        Ok(())
    }

    pub(super) fn tpms(&mut self) -> Result<()> {
        for tpm in self.devices.children("tpm") {
            let alias = tpm.alias()?;
            let backend = tpm.child("backend").ok_or_else(|| lacks("<tpm><backend>"))?;
            let socket = match backend.need("type")? {
                "emulator" => self.swtpm(backend, alias)?,
                "external" => {
                    let source = backend.child("source").ok_or_else(|| lacks("<tpm> source"))?;
                    source.attr("type");
                    source.attr("mode");
                    PathBuf::from(source.need("path")?)
                }
                other => return refuse(format!("a TPM by '{other}' is not supported")),
            };
            let socket = escape_comma(&socket.to_string_lossy());
            self.arg("-chardev", format!("socket,id=chrtpm,path={socket}"));
            self.arg("-tpmdev", format!("emulator,id=tpm-{alias},chardev=chrtpm"));
            let driver = tpm.attr("model").unwrap_or("tpm-tis");
            let props =
                Props::device(driver).with("tpmdev", format!("tpm-{alias}")).with("id", alias);
            self.device(self.place(tpm, props)?);
        }
        Ok(())
    }

    fn swtpm(&mut self, backend: View<'_>, alias: &str) -> Result<PathBuf> {
        let version = backend.attr("version").unwrap_or("2.0").to_owned();
        let persistent_state = backend.switch("persistent_state")? == Some(true);
        backend.attr("debug");
        let Some(socket) = self.context.tpm_sockets.get(alias) else {
            return refuse(format!("the TPM {alias} has no running swtpm"));
        };
        self.out.swtpm.push(Swtpm { alias: alias.to_owned(), version, persistent_state });
        Ok(socket.clone())
    }

    pub(super) fn inputs(&mut self) -> Result<()> {
        for input in self.devices.children("input") {
            let kind = input.need("type")?;
            let props = match (input.attr("bus").unwrap_or("ps2"), kind) {
                // Part of the machine.
                ("ps2", "mouse" | "keyboard") => {
                    input.pass_over();
                    continue;
                }
                ("usb", "mouse") => Props::device("usb-mouse"),
                ("usb", "tablet") => Props::device("usb-tablet"),
                ("usb", "keyboard") => Props::device("usb-kbd"),
                ("virtio", "mouse") => self.virtio(input, "virtio-mouse")?,
                ("virtio", "tablet") => self.virtio(input, "virtio-tablet")?,
                ("virtio", "keyboard") => self.virtio(input, "virtio-keyboard")?,
                ("virtio", "passthrough") => {
                    let source = input.child("source").ok_or_else(|| lacks("<input><source>"))?;
                    self.virtio(input, "virtio-input-host")?.with("evdev", source.need("evdev")?)
                }
                (bus, kind) => {
                    return refuse(format!(
                        "an input of type '{kind}' on '{bus}' is not supported"
                    ));
                }
            };
            let props = props.with("id", input.alias()?);
            self.device(self.place(input, props)?);
        }
        Ok(())
    }

    pub(super) fn watchdogs(&mut self) -> Result<()> {
        let mut action = None;
        let mut chipset = false;
        for watchdog in self.devices.children("watchdog") {
            action = Some(match watchdog.attr("action").unwrap_or("reset") {
                // The daemon makes the dump when QEMU tells that the watchdog fired.
                "dump" => "pause",
                other => other,
            });
            match watchdog.need("model")? {
                "itco" => chipset = true,
                model @ ("i6300esb" | "ib700" | "diag288") => {
                    let props = Props::device(model).with("id", watchdog.alias()?);
                    self.device(self.place(watchdog, props)?);
                }
                other => return refuse(format!("the watchdog '{other}' is not supported")),
            }
            if chipset {
                watchdog.child("alias").and_then(|alias| alias.attr("name"));
            }
        }
        if chipset {
            self.arg("-global", "ICH9-LPC.noreboot=off");
        }
        if let Some(action) = action {
            self.arg("-watchdog-action", action);
        }
        Ok(())
    }

    pub(super) fn redirected_devices(&mut self) -> Result<()> {
        let filter = self.devices.child("redirfilter").map(redirection_filter).transpose()?;
        for device in self.devices.children("redirdev") {
            let alias = device.alias()?;
            device.attr("bus");
            self.chardev(device, alias)?;
            let order = device.child("boot").map(|boot| boot.number("order")).transpose()?;
            let props = Props::device("usb-redir")
                .with("chardev", format!("char{alias}"))
                .with("id", alias)
                .some("filter", filter.as_deref())
                .positive("bootindex", order.flatten());
            self.device(self.place(device, props)?);
        }
        Ok(())
    }

    pub(super) fn host_devices(&mut self) -> Result<()> {
        match self.devices.child("hostdev") {
            None => Ok(()),
            Some(_) => refuse("host devices (<hostdev>) are not supported"),
        }
    }

    pub(super) fn balloon(&mut self) -> Result<()> {
        for balloon in self.devices.children("memballoon") {
            if balloon.attr("model") == Some("none") {
                balloon.pass_over();
                continue;
            }
            let props = self
                .virtio(balloon, "virtio-balloon")?
                .with("id", balloon.alias()?)
                .some("deflate-on-oom", balloon.switch("autodeflate")?)
                .some("free-page-reporting", balloon.switch("freePageReporting")?);
            self.device(self.place(balloon, props)?);
        }
        Ok(())
    }

    pub(super) fn random_generators(&mut self) -> Result<()> {
        for rng in self.devices.children("rng") {
            let alias = rng.alias()?;
            let backend = rng.child("backend").ok_or_else(|| lacks("<rng><backend>"))?;
            let id = format!("obj{alias}");
            let object = match backend.need("model")? {
                "random" => Props::object("rng-random", id).with("filename", backend.text()),
                "builtin" => Props::object("rng-builtin", id),
                "egd" => {
                    self.chardev(backend, alias)?;
                    Props::object("rng-egd", id).with("chardev", format!("char{alias}"))
                }
                other => return refuse(format!("the random number source '{other}' is not known")),
            };
            self.json("-object", object);
            let mut props = self
                .virtio(rng, "virtio-rng")?
                .with("rng", format!("obj{alias}"))
                .with("id", alias);
            if let Some(rate) = rng.child("rate") {
                let bytes = rate.number("bytes")?.filter(|bytes| *bytes > 0);
                let period = rate.number("period")?.filter(|period| *period > 0).unwrap_or(1000);
                props = props.some("max-bytes", bytes).some("period", bytes.map(|_| period));
            }
            self.device(self.place(rng, props)?);
        }
        Ok(())
    }

    pub(super) fn features_as_devices(&mut self) -> Result<()> {
        if let Some(info) = self.domain.at(&["features", "vmcoreinfo"])
            && info.switch("state")?.unwrap_or(true)
        {
            self.device(Props::device("vmcoreinfo"));
        }
        Ok(())
    }

    /// `<qemu:commandline>`. Its devices are not checked, and neither are they by libvirt.
    pub(super) fn passthrough_arguments(&mut self) -> Result<()> {
        let Some(extra) = self.domain.child("qemu:commandline") else {
            return Ok(());
        };
        for item in extra.elements() {
            match item.name() {
                "qemu:arg" => self.out.args.push(item.need("value")?.to_owned()),
                "qemu:env" => {
                    let value = item.attr("value").unwrap_or("").to_owned();
                    self.out.env.push((item.need("name")?.to_owned(), value));
                }
                other => return refuse(format!("<{other}> is not known in <qemu:commandline>")),
            }
        }
        Ok(())
    }

    pub(super) fn panics(&mut self) -> Result<()> {
        for panic in self.devices.children("panic") {
            match panic.attr("model").unwrap_or("isa") {
                // A flag of the CPU.
                "hyperv" => panic.pass_over(),
                "isa" => {
                    panic.child("alias").and_then(|alias| alias.attr("name"));
                    let address = panic.child("address");
                    address.and_then(|address| address.attr("type"));
                    let port = address.map(|address| address.number("iobase")).transpose()?;
                    self.device(Props::device("pvpanic").some("ioport", port.flatten()));
                }
                "pvpanic" => {
                    panic.child("alias").and_then(|alias| alias.attr("name"));
                    self.device(self.place(panic, Props::device("pvpanic-pci"))?);
                }
                other => return refuse(format!("the panic device '{other}' is not supported")),
            }
        }
        Ok(())
    }

    pub(super) fn shared_memory(&mut self) -> Result<()> {
        for shmem in self.devices.children("shmem") {
            let (alias, name) = (shmem.alias()?, shmem.need("name")?);
            let size = match shmem.child("size") {
                Some(size) => {
                    super::memory::bytes(&size.text(), size.attr("unit").unwrap_or("bytes"))?
                }
                None => SHMEM_SIZE,
            };
            let object = Props::object("memory-backend-file", format!("shmmem-{alias}"))
                .with("mem-path", format!("/dev/shm/{name}"))
                .with("size", size)
                .with("share", true);
            self.json("-object", object);
            let model = shmem.child("model").map(|model| model.need("type")).transpose()?;
            let device = match model {
                Some("ivshmem-plain") => Props::device("ivshmem-plain"),
                _ => return refuse(format!("the shared memory '{name}' is not ivshmem-plain")),
            };
            // QEMU lets only the master's state be saved.
            let master = (shmem.attr("role") == Some("master")).then_some(true);
            let device = device
                .with("id", alias)
                .with("memdev", format!("shmmem-{alias}"))
                .on_off("master", master);
            self.device(self.place(shmem, device)?);
        }
        Ok(())
    }

    pub(super) fn vsock(&mut self) -> Result<()> {
        let Some(vsock) = self.devices.child("vsock") else {
            return Ok(());
        };
        let cid = vsock.child("cid").ok_or_else(|| lacks("<vsock><cid>"))?;
        cid.attr("auto");
        let cid = cid.number("address")?.ok_or_else(|| lacks("the address of <vsock><cid>"))?;
        let fd = self.pass_fd();
        let props = self
            .virtio(vsock, "vhost-vsock")?
            .with("id", vsock.alias()?)
            .with("guest-cid", cid)
            .with("vhostfd", fd.to_string());
        self.device(self.place(vsock, props)?);
        self.out.vsock = Some(VsockRequest { cid, fd });
        Ok(())
    }

    pub(super) fn crypto(&mut self) -> Result<()> {
        for crypto in self.devices.children("crypto") {
            let alias = crypto.alias()?;
            if crypto.attr("type").is_some_and(|kind| kind != "qemu") {
                return refuse("a <crypto> device must be of type 'qemu'");
            }
            let backend = crypto.child("backend").ok_or_else(|| lacks("<crypto><backend>"))?;
            let kind = match backend.need("model")? {
                "builtin" => "cryptodev-backend-builtin",
                "lkcf" => "cryptodev-backend-lkcf",
                other => return refuse(format!("the crypto backend '{other}' is not known")),
            };
            let object = Props::object(kind, format!("obj{alias}"))
                .positive("queues", backend.number("queues")?);
            self.json("-object", object);
            crypto.attr("model");
            let props = self
                .virtio(crypto, "virtio-crypto")?
                .with("cryptodev", format!("obj{alias}"))
                .with("id", alias);
            self.device(self.place(crypto, props)?);
        }
        Ok(())
    }
}

fn redirection_filter(filter: View<'_>) -> Result<String> {
    let mut rules = Vec::new();
    for device in filter.children("usbdev") {
        let field = |name: &str, width: usize| -> Result<String> {
            Ok(match device.attr(name) {
                None | Some("-1") => "-1".to_owned(),
                Some(text) => {
                    let digits = text.trim_start_matches("0x");
                    format!("0x{:0>width$}", digits.to_uppercase())
                }
            })
        };
        let version = match device.attr("version") {
            None | Some("-1") => "-1".to_owned(),
            // A decimal version as USB encodes it: 1.10 is 0x0110.
            Some(text) => {
                let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
                format!("0x{major:0>2}{minor:0<2}")
            }
        };
        let allow = u8::from(device.switch("allow")? == Some(true));
        let (class, vendor) = (field("class", 2)?, field("vendor", 4)?);
        rules.push(format!("{class}:{vendor}:{}:{version}:{allow}", field("product", 4)?));
    }
    Ok(rules.join("|"))
}
