//! `<capabilities>` of the host and `<domainCapabilities>` of one emulator, as clients read them:
//! virt-install takes machines, firmware, CPU modes and device models from here.
//!
//! Sources: [`crate::probe`], `/proc/cpuinfo`, `/sys/devices/system`, QEMU's firmware
//! descriptions.

use std::fs;
use std::path::Path;

use uuid::Uuid;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::inspect::Platform;
use virtsnap_xml::element::Element;

use crate::complete::Firmware;
use crate::hypervisor::Qemu;
use crate::probe::{Machine, Probed};

impl Qemu {
    pub(crate) async fn host_capabilities(&self) -> Result<Element> {
        let probed = self.shared.probe_blocking(None).await?;
        Ok(Element::new("capabilities").with_child(host(&probed)).with_child(guest(&probed)))
    }

    pub(crate) async fn capabilities_for(&self, platform: &Platform) -> Result<Element> {
        let emulator = platform.emulator.as_ref().map(std::path::PathBuf::from);
        let probed = self.shared.probe_blocking(emulator).await?;
        if let Some(arch) = platform.arch.as_deref().filter(|arch| *arch != probed.arch) {
            let message = format!("'{}' has no guests of type '{arch}'", probed.emulator.display());
            return Err(Error::new(Condition::InvalidArgument, message));
        }
        let kind = match platform.virt_type.as_deref() {
            None if has_kvm() => "kvm",
            None => "qemu",
            Some("qemu") => "qemu",
            Some("kvm") if has_kvm() => "kvm",
            Some(other) => {
                let message = format!("domains of type '{other}' cannot run on this host");
                return Err(Error::new(Condition::InvalidArgument, message));
            }
        };
        let name = platform.machine.as_deref();
        let machine = name.map_or_else(|| probed.default_machine(), |name| probed.machine(name));
        let Some(machine) = machine else {
            let message = format!("there is no machine '{}'", name.unwrap_or("(default)"));
            return Err(Error::new(Condition::InvalidArgument, message));
        };
        Ok(domain_capabilities(&probed, kind, machine))
    }
}

/// Seen, never opened: opening it may take long.
fn has_kvm() -> bool {
    Path::new("/dev/kvm").exists()
}

fn text(name: &str, text: impl Into<String>) -> Element {
    Element::new(name).with_text(text)
}

fn host(probed: &Probed) -> Element {
    let mut host = Element::new("host");
    if let Some(uuid) = host_uuid() {
        host.push(text("uuid", uuid.to_string()));
    }
    let (sockets, cores, threads) = topology();
    let cpu = Element::new("cpu")
        .with_child(text("arch", probed.arch.clone()))
        .with_child(text("vendor", vendor()))
        .with_child(
            Element::new("topology")
                .with_attr("sockets", sockets.to_string())
                .with_attr("dies", "1")
                .with_attr("clusters", "1")
                .with_attr("cores", cores.to_string())
                .with_attr("threads", threads.to_string()),
        )
        .with_child(Element::new("pages").with_attr("unit", "KiB").with_attr("size", "4"));
    host.push(cpu);
    host.push(Element::new("power_management"));
    host.push(Element::new("iommu").with_attr("support", "no"));
    let transports = Element::new("uri_transports").with_child(text("uri_transport", "tcp"));
    host.push(Element::new("migration_features").with_child(transports));
    host.push(cells());
    host.push(security("none"));
    host
}

fn security(model: &str) -> Element {
    Element::new("secmodel").with_child(text("model", model)).with_child(text("doi", "0"))
}

fn guest(probed: &Probed) -> Element {
    let word_size = if probed.arch == "i386" { "32" } else { "64" };
    let mut arch = Element::new("arch").with_attr("name", probed.arch.clone());
    arch.push(text("wordsize", word_size));
    arch.push(text("emulator", probed.emulator.to_string_lossy()));
    for machine in &probed.machines {
        arch.push(machine_element(machine, None));
        if let Some(alias) = &machine.alias {
            arch.push(machine_element(machine, Some(alias)));
        }
    }
    arch.push(Element::new("domain").with_attr("type", "qemu"));
    if has_kvm() {
        arch.push(Element::new("domain").with_attr("type", "kvm"));
    }
    let features = Element::new("features")
        .with_child(Element::new("pae"))
        .with_child(Element::new("nonpae"))
        .with_child(toggle("acpi", "on", "yes"))
        .with_child(toggle("apic", "on", "no"))
        .with_child(Element::new("cpuselection"))
        .with_child(Element::new("deviceboot"))
        .with_child(toggle("disksnapshot", "on", "no"))
        .with_child(Element::new("externalSnapshot"));
    Element::new("guest").with_child(text("os_type", "hvm")).with_child(arch).with_child(features)
}

fn toggle(name: &str, default: &str, toggle: &str) -> Element {
    Element::new(name).with_attr("default", default).with_attr("toggle", toggle)
}

fn machine_element(machine: &Machine, alias: Option<&str>) -> Element {
    let mut element = Element::new("machine");
    if alias.is_some() {
        element.set_attr("canonical", machine.name.clone());
    }
    element.set_attr("maxCpus", machine.max_cpus.to_string());
    if machine.is_deprecated {
        element.set_attr("deprecated", "yes");
    }
    element.with_text(alias.unwrap_or(&machine.name))
}

fn domain_capabilities(probed: &Probed, kind: &str, machine: &Machine) -> Element {
    let mut root = Element::new("domainCapabilities");
    root.push(text("path", probed.emulator.to_string_lossy()));
    root.push(text("domain", kind));
    root.push(text("machine", machine.name.clone()));
    root.push(text("arch", probed.arch.clone()));
    root.push(Element::new("vcpu").with_attr("max", machine.max_cpus.to_string()));
    root.push(supported("iothreads"));
    root.push(os(machine));
    root.push(cpu(probed, kind));
    root.push(
        supported("memoryBacking")
            .with_child(choices("sourceType", &["file", "anonymous", "memfd"])),
    );
    root.push(devices(probed, machine));
    root.push(features(machine));
    root
}

fn supported(name: &str) -> Element {
    Element::new(name).with_attr("supported", "yes")
}

fn unsupported(name: &str) -> Element {
    Element::new(name).with_attr("supported", "no")
}

fn choices<T: AsRef<str>>(name: &str, values: &[T]) -> Element {
    values.iter().fold(Element::new("enum").with_attr("name", name), |list, value| {
        list.with_child(text("value", value.as_ref()))
    })
}

fn os(machine: &Machine) -> Element {
    let fitting: Vec<Firmware> =
        Firmware::installed().into_iter().filter(|firmware| firmware.fits(&machine.name)).collect();
    let mut loader = supported("loader");
    let mut codes: Vec<String> = Vec::new();
    for firmware in &fitting {
        let code = firmware.code.to_string_lossy().into_owned();
        if !codes.contains(&code) {
            loader.push(text("value", code.clone()));
            codes.push(code);
        }
    }
    loader.push(choices("type", &["rom", "pflash"]));
    loader.push(choices("readonly", &["yes", "no"]));
    let secure: &[&str] =
        if fitting.iter().any(|firmware| firmware.secure_boot) { &["yes", "no"] } else { &["no"] };
    loader.push(choices("secure", secure));
    let kinds: &[&str] = if fitting.is_empty() { &[] } else { &["efi"] };
    supported("os").with_child(choices("firmware", kinds)).with_child(loader)
}

fn cpu(probed: &Probed, kind: &str) -> Element {
    let mut cpu = Element::new("cpu");
    let mode = |name: &str, is_supported: bool| {
        let yes = if is_supported { "yes" } else { "no" };
        Element::new("mode").with_attr("name", name).with_attr("supported", yes)
    };
    let migratable = ["on", "off"];
    let hosts_own = mode("host-passthrough", kind == "kvm")
        .with_child(choices("hostPassthroughMigratable", &migratable));
    cpu.push(if kind == "kvm" { hosts_own } else { mode("host-passthrough", false) });
    cpu.push(mode("maximum", true).with_child(choices("maximumMigratable", &migratable)));
    cpu.push(mode("host-model", false));
    let mut custom = mode("custom", true);
    for model in &probed.cpus {
        // Names with a version belong to QEMU; libvirt's names are those without.
        if matches!(model.name.as_str(), "host" | "max" | "base") || is_versioned(&model.name) {
            continue;
        }
        let yes_or_no = |yes: bool| if yes { "yes" } else { "no" };
        custom.push(
            Element::new("model")
                .with_attr("usable", yes_or_no(model.is_usable))
                .with_attr("deprecated", yes_or_no(model.is_deprecated))
                .with_text(model.name.clone()),
        );
    }
    cpu.push(custom);
    cpu
}

/// `Skylake-Client-v1`.
fn is_versioned(name: &str) -> bool {
    let version = name.rsplit_once("-v").map(|(_, version)| version);
    version.is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit()))
}

fn devices(probed: &Probed, machine: &Machine) -> Element {
    let has = |device: &str| probed.facts.has_device(device);
    let with = |pairs: &[(&'static str, &str)]| -> Vec<&'static str> {
        pairs.iter().filter(|(_, device)| has(device)).map(|(name, _)| *name).collect()
    };
    let is_q35 = machine.name.starts_with("pc-q35") || machine.name == "q35";
    let mut buses = if is_q35 { vec!["fdc"] } else { vec!["ide", "fdc"] };
    buses.extend(["scsi", "virtio", "usb", "sata"]);
    let disk = supported("disk")
        .with_child(choices("diskDevice", &["disk", "cdrom", "floppy", "lun"]))
        .with_child(choices("bus", &buses))
        .with_child(choices(
            "model",
            &["virtio", "virtio-transitional", "virtio-non-transitional"],
        ));
    let graphics = supported("graphics")
        .with_child(choices("type", &with(&[("vnc", "VGA"), ("spice", "qxl")])));
    let videos = with(&[
        ("vga", "VGA"),
        ("cirrus", "cirrus-vga"),
        ("vmvga", "vmware-svga"),
        ("qxl", "qxl"),
        ("virtio", "virtio-gpu-pci"),
        ("bochs", "bochs-display"),
        ("ramfb", "ramfb"),
    ]);
    let mut videos = videos;
    videos.insert(videos.len().min(4), "none");
    let tpm = supported("tpm")
        .with_child(choices("model", &with(&[("tpm-tis", "tpm-tis"), ("tpm-crb", "tpm-crb")])))
        .with_child(choices("backendModel", &["emulator"]))
        .with_child(choices("backendVersion", &["1.2", "2.0"]));
    Element::new("devices")
        .with_child(disk)
        .with_child(graphics)
        .with_child(supported("video").with_child(choices("modelType", &videos)))
        .with_child(unsupported("hostdev"))
        .with_child(
            supported("rng")
                .with_child(choices(
                    "model",
                    &["virtio", "virtio-transitional", "virtio-non-transitional"],
                ))
                .with_child(choices("backendModel", &["random", "egd", "builtin"])),
        )
        .with_child(unsupported("filesystem"))
        .with_child(tpm)
        .with_child(
            supported("redirdev").with_child(choices("bus", &with(&[("usb", "usb-redir")]))),
        )
        .with_child(supported("channel").with_child(choices(
            "type",
            &with(&[("pty", "virtserialport"), ("unix", "virtserialport"), ("spicevmc", "qxl")]),
        )))
        .with_child(supported("crypto").with_child(choices("model", &["virtio"])))
        .with_child(supported("panic").with_child(choices("model", &with(&[("isa", "pvpanic")]))))
}

fn features(machine: &Machine) -> Element {
    let gic = unsupported("gic");
    let is_pc = machine.name.starts_with("pc");
    Element::new("features")
        .with_child(gic)
        .with_child(if is_pc { supported("vmcoreinfo") } else { unsupported("vmcoreinfo") })
        .with_child(supported("genid"))
        .with_child(supported("backingStoreInput"))
        .with_child(unsupported("backup"))
        .with_child(supported("async-teardown"))
        .with_child(unsupported("sev"))
        .with_child(unsupported("sgx"))
}

/// The firmware's, or one that stays the same as long as the installation does.
fn host_uuid() -> Option<Uuid> {
    let firmware = fs::read_to_string("/sys/class/dmi/id/product_uuid").ok();
    let parsed = firmware.and_then(|text| Uuid::parse_str(text.trim()).ok());
    let is_real = |uuid: &Uuid| !uuid.is_nil() && !uuid.is_max();
    parsed.filter(is_real).or_else(|| {
        let machine = fs::read_to_string("/etc/machine-id").ok()?;
        Uuid::parse_str(machine.trim()).ok().filter(is_real)
    })
}

fn vendor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let id = text.lines().find_map(|line| line.strip_prefix("vendor_id")?.split(':').nth(1));
    match id.map(str::trim) {
        Some("GenuineIntel") => "Intel".to_owned(),
        Some("AuthenticAMD") => "AMD".to_owned(),
        Some("HygonGenuine") => "Hygon".to_owned(),
        other => other.unwrap_or("unknown").to_owned(),
    }
}

/// Of each online processor: its number, socket, core, siblings.
fn processors() -> Vec<(u32, u32, u32, String)> {
    let root = Path::new("/sys/devices/system/cpu");
    let mut found: Vec<_> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let number: u32 = name.to_str()?.strip_prefix("cpu")?.parse().ok()?;
            let read = |file: &str| {
                fs::read_to_string(root.join(format!("cpu{number}/topology/{file}"))).ok()
            };
            let socket = read("physical_package_id")?.trim().parse().unwrap_or(0);
            let core = read("core_id")?.trim().parse().unwrap_or(0);
            let siblings = read("thread_siblings_list")?.trim().to_owned();
            Some((number, socket, core, siblings))
        })
        .collect();
    found.sort_unstable();
    found
}

fn topology() -> (usize, usize, usize) {
    let processors = processors();
    let count = |mut keys: Vec<(u32, u32)>| {
        keys.sort_unstable();
        keys.dedup();
        keys.len().max(1)
    };
    let sockets = count(processors.iter().map(|(_, socket, _, _)| (*socket, 0)).collect());
    let cores = count(processors.iter().map(|(_, socket, core, _)| (*socket, *core)).collect());
    let threads = processors.len().max(1) / cores;
    (sockets, cores / sockets, threads.max(1))
}

fn cells() -> Element {
    let processors = processors();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().split(' ').next())
        .unwrap_or("0")
        .to_owned();
    let mut cpus = Element::new("cpus").with_attr("num", processors.len().to_string());
    for (number, socket, core, siblings) in &processors {
        cpus.push(
            Element::new("cpu")
                .with_attr("id", number.to_string())
                .with_attr("socket_id", socket.to_string())
                .with_attr("die_id", "0")
                .with_attr("core_id", core.to_string())
                .with_attr("siblings", siblings.clone()),
        );
    }
    let cell = Element::new("cell")
        .with_attr("id", "0")
        .with_child(Element::new("memory").with_attr("unit", "KiB").with_text(memory))
        .with_child(cpus);
    let cells = Element::new("cells").with_attr("num", "1").with_child(cell);
    Element::new("topology").with_child(cells)
}
