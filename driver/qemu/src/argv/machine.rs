//! The machine: `-name`, `-machine`, `-accel`, `-smp`, `-uuid`, power management, boot.

use std::path::PathBuf;

use virtsnap_engine::error::Result;

use super::address::Chipset;
use super::props::{Props, escape_comma, on_off};
use super::read::{View, number, word};
use super::{Build, lacks, refuse};

/// `<features>` that stand in `-machine`: element and option.
const MACHINE_FEATURES: [(&str, &str); 3] =
    [("vmport", "vmport"), ("smm", "smm"), ("ps2", "i8042")];

impl Build<'_> {
    pub(super) fn machine_part(&mut self) -> Result<()> {
        let name = self.domain.child_text("name").ok_or_else(|| lacks("<name>"))?;
        let name = escape_comma(&name);
        self.arg("-name", format!("guest={name},debug-threads=on"));
        self.out.args.push("-S".to_owned());
        let flash = self.firmware()?;
        self.machine(&flash)?;
        self.accelerator()?;
        self.cpu()?;
        self.loader()
    }

    fn machine(&mut self, flash: &[(&str, String)]) -> Result<()> {
        let mut option = format!("{},usb=off", word("type", &self.topology.machine)?);
        let features = self.domain.child("features");
        let mut set = |key: &str, value: &str| option.push_str(&format!(",{key}={value}"));
        for (element, key) in MACHINE_FEATURES {
            if let Some(feature) = features.and_then(|features| features.child(element)) {
                set(key, on_off(feature.switch("state")?.unwrap_or(true)));
            }
        }
        match features.and_then(|f| f.child("ioapic")).and_then(|ioapic| ioapic.attr("driver")) {
            None => {}
            Some("qemu") => set("kernel_irqchip", "split"),
            Some("kvm") => set("kernel_irqchip", "on"),
            Some(other) => return refuse(format!("the ioapic driver '{other}' is not supported")),
        }
        let dump = self.domain.child("memory").map(|memory| memory.switch("dumpCore"));
        set("dump-guest-core", on_off(dump.transpose()?.flatten().unwrap_or(false)));
        let backing = self.domain.child("memoryBacking");
        if backing.and_then(|backing| backing.child("nosharepages")).is_some() {
            set("mem-merge", "off");
        }
        if self.devices.children("memory").iter().any(|m| m.attr("model") == Some("nvdimm")) {
            set("nvdimm", "on");
        }
        if !self.has_numa() {
            set("memory-backend", self.ram_id());
        }
        for (key, node) in flash {
            set(key, node);
        }
        let bios = self.domain.at(&["os", "bios"]);
        if bios.map(|bios| bios.switch("useserial")).transpose()?.flatten() == Some(true) {
            set("graphics", "off");
        }
        if let Some(present) = self.timer_present("hpet")? {
            set("hpet", on_off(present));
        }
        if let Some(sound) = self.speaker() {
            set("pcspk-audiodev", &format!("audio{}", self.audio_id(sound)?));
        }
        let acpi = features.and_then(|features| features.child("acpi")).is_some();
        let says_acpi = self.context.qemu.at_least(8, 0) && self.topology.machine != "isapc";
        if says_acpi {
            set("acpi", on_off(acpi));
        }
        self.arg("-machine", option);
        Ok(())
    }

    fn accelerator(&mut self) -> Result<()> {
        let features = self.domain.child("features");
        let option = match self.domain.need("type")? {
            "qemu" => {
                let cache = features.and_then(|features| features.at(&["tcg", "tb-cache"]));
                match cache {
                    Some(size) => {
                        let unit = size.attr("unit").unwrap_or("KiB");
                        let mib = super::memory::bytes(&size.text(), unit)? >> 20;
                        format!("tcg,tb-size={mib}")
                    }
                    None => "tcg".to_owned(),
                }
            }
            "kvm" => {
                let ring = features.and_then(|features| features.at(&["kvm", "dirty-ring"]));
                let size = match ring {
                    Some(ring) if ring.switch("state")? == Some(true) => ring.number("size")?,
                    _ => None,
                };
                match size {
                    Some(size) => format!("kvm,dirty-ring-size={size}"),
                    None => "kvm".to_owned(),
                }
            }
            other => return refuse(format!("domains of type '{other}' are not supported")),
        };
        self.arg("-accel", option);
        if let Some(tseg) = self.domain.at(&["features", "smm", "tseg"]) {
            let unit = tseg.attr("unit").unwrap_or("B");
            let mib = super::memory::bytes(&tseg.text(), unit)? >> 20;
            self.arg("-global", format!("mch.extended-tseg-mbytes={mib}"));
        }
        Ok(())
    }

    pub(super) fn vcpus(&self) -> Result<(u64, u64)> {
        let vcpu = self.domain.child("vcpu").ok_or_else(|| lacks("<vcpu>"))?;
        let most = number("vcpu", &vcpu.text())?;
        Ok((vcpu.number("current")?.unwrap_or(most), most))
    }

    pub(super) fn smp(&mut self) -> Result<()> {
        let (mut online, most) = self.vcpus()?;
        if let Some(list) = self.domain.child("vcpus") {
            // Those that can be unplugged are plugged in once QEMU is up.
            online = 0;
            for vcpu in list.children("vcpu") {
                vcpu.attr("id");
                vcpu.attr("order");
                let fixed = vcpu.switch("hotpluggable")? != Some(true);
                if vcpu.switch("enabled")? == Some(true) {
                    if !fixed {
                        return refuse("hotpluggable vCPUs are not supported");
                    }
                    online += 1;
                }
            }
        }
        let mut option = online.to_string();
        if online != most {
            option.push_str(&format!(",maxcpus={most}"));
        }
        match self.domain.at(&["cpu", "topology"]) {
            Some(topology) => {
                for key in ["sockets", "dies", "clusters", "cores", "threads"] {
                    let count = topology.number(key)?.unwrap_or(1);
                    option.push_str(&format!(",{key}={count}"));
                }
            }
            None => option.push_str(&format!(",sockets={most},cores=1,threads=1")),
        }
        self.arg("-smp", option);
        Ok(())
    }

    pub(super) fn iothreads(&mut self) -> Result<()> {
        let count = self.domain.child("iothreads").map(View::text);
        let count = count.map(|text| number("iothreads", &text)).transpose()?.unwrap_or(0);
        let mut described = Vec::new();
        if let Some(ids) = self.domain.child("iothreadids") {
            for thread in ids.children("iothread") {
                let id = number("iothread", thread.need("id")?)?;
                let mut props = Props::object("iothread", format!("iothread{id}"))
                    .some("thread-pool-min", thread.number("thread_pool_min")?)
                    .some("thread-pool-max", thread.number("thread_pool_max")?);
                if let Some(poll) = thread.child("poll") {
                    props = props
                        .some("poll-max-ns", poll.number("max")?)
                        .some("poll-grow", poll.number("grow")?)
                        .some("poll-shrink", poll.number("shrink")?);
                }
                described.push(id);
                self.json("-object", props);
            }
        }
        // Those without a description of their own take the free numbers.
        let missing = count.saturating_sub(described.len() as u64);
        let free = (1..=count).filter(|id| !described.contains(id)).collect::<Vec<_>>();
        for id in free.into_iter().take(usize::try_from(missing).unwrap_or(usize::MAX)) {
            self.json("-object", Props::object("iothread", format!("iothread{id}")));
        }
        if let Some(main) = self.domain.child("defaultiothread") {
            let props = Props::object("main-loop", "main-loop")
                .some("thread-pool-min", main.number("thread_pool_min")?)
                .some("thread-pool-max", main.number("thread_pool_max")?);
            self.json("-object", props);
        }
        Ok(())
    }

    /// `-uuid`, SMBIOS, the generation id.
    pub(super) fn identity(&mut self) -> Result<()> {
        let uuid = self.domain.child_text("uuid").ok_or_else(|| lacks("<uuid>"))?;
        self.arg("-uuid", uuid);
        self.smbios()?;
        if let Some(id) = self.domain.child("genid") {
            let props = Props::device("vmgenid").with("guid", id.text()).with("id", "vmgenid0");
            self.device(props);
        }
        Ok(())
    }

    pub(super) fn power_management(&mut self) -> Result<()> {
        self.out.args.push("-no-shutdown".to_owned());
        let acpi = self.domain.at(&["features", "acpi"]).is_some();
        if !self.context.qemu.at_least(8, 0) && !acpi {
            self.out.args.push("-no-acpi".to_owned());
        }
        let chip = match self.topology.chipset {
            Chipset::Q35 => "ICH9-LPC",
            _ => "PIIX4_PM",
        };
        let Some(pm) = self.domain.child("pm") else {
            return Ok(());
        };
        for (element, state) in [("suspend-to-mem", "s3"), ("suspend-to-disk", "s4")] {
            let enabled = pm.child(element).map(|e| e.switch("enabled")).transpose()?.flatten();
            if let Some(enabled) = enabled {
                self.arg("-global", format!("{chip}.disable_{state}={}", u8::from(!enabled)));
            }
        }
        Ok(())
    }

    pub(super) fn boot(&mut self) -> Result<()> {
        let os = self.domain.child("os").ok_or_else(|| lacks("<os>"))?;
        // Boot devices become indices of the first disk or interface of their kind, if any.
        for boot in os.children("boot") {
            boot.need("dev")?;
        }
        let mut option = String::new();
        let menu = os.child("bootmenu");
        if let Some(enable) = menu.map(|menu| menu.switch("enable")).transpose()?.flatten() {
            option.push_str(&format!("menu={},", on_off(enable)));
        }
        if let Some(timeout) = os.child("bios").and_then(|bios| bios.attr("rebootTimeout")) {
            option.push_str(&format!("reboot-timeout={},", word("bios", timeout)?));
        }
        if let Some(timeout) = menu.map(|menu| menu.number("timeout")).transpose()?.flatten() {
            option.push_str(&format!("splash-time={timeout},"));
        }
        option.push_str("strict=on");
        self.arg("-boot", option);
        for (element, key) in [
            ("kernel", "-kernel"),
            ("initrd", "-initrd"),
            ("cmdline", "-append"),
            ("shim", "-shim"),
            ("dtb", "-dtb"),
        ] {
            let Some(value) = os.child_text(element) else {
                continue;
            };
            if element != "cmdline" {
                self.out.files.push(PathBuf::from(&value));
            }
            self.arg(key, value);
        }
        if let Some(acpi) = os.child("acpi") {
            for table in acpi.children("table") {
                let file = table.text();
                let signature = match table.attr("type") {
                    Some("slic") => "sig=SLIC,",
                    Some("msdm") => "sig=MSDM,",
                    Some("raw" | "rawset") | None => "",
                    Some(other) => {
                        return refuse(format!("the ACPI table type '{other}' is not supported"));
                    }
                };
                self.arg("-acpitable", format!("{signature}file={}", escape_comma(&file)));
                self.out.files.push(PathBuf::from(file));
            }
        }
        Ok(())
    }

    /// The boot index of a disk or an interface: its own, or that which `<os><boot>` gives to the
    /// first of its kind.
    pub(super) fn boot_index(&self, device: View<'_>) -> Result<Option<u64>> {
        if let Some(boot) = device.child("boot") {
            if boot.attr("loadparm").is_some() {
                return refuse("loadparm is for s390 only");
            }
            return boot.number("order");
        }
        let kind = boot_kind(device);
        let os = self.domain.child("os").ok_or_else(|| lacks("<os>"))?;
        let Some(at) = os.children("boot").iter().rposition(|b| b.attr("dev") == Some(kind)) else {
            return Ok(None);
        };
        let alias = device.alias()?;
        let all = self.devices.children(device.name());
        let first = all.into_iter().find(|other| boot_kind(*other) == kind);
        let is_first = first.map(View::alias).transpose()? == Some(alias);
        Ok(is_first.then_some(at as u64 + 1))
    }
}

fn boot_kind(device: View<'_>) -> &'static str {
    match (device.name(), device.attr("device")) {
        ("interface", _) => "network",
        (_, Some("cdrom")) => "cdrom",
        (_, Some("floppy")) => "fd",
        _ => "hd",
    }
}
