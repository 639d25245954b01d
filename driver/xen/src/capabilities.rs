//! `<capabilities>` and `<domainCapabilities>`: which guests the hypervisor takes, and with what.
//!
//! The form is that of libvirt's Xen driver. What differs is what is so here: no devices of the host,
//! no SDL; what a device model does not have is not told; emulated buses are of guests that have
//! one; paths are of files that are there.

use std::path::Path;

use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::inspect::Platform;
use virtsnap_xml::element::Element;

use crate::complete::MOST_VCPUS;
use crate::context::HostInfo;
use crate::device_model::DeviceModel;
use crate::guest::Guest;

/// HVM_MAX_VCPUS, which PVH guests have as well.
const HVM_VCPUS: u32 = 128;

/// The firmware that libxl loads into HVM guests, where this Xen has it.
const HVMLOADER: [&str; 3] = [
    "/usr/lib/xen-4.17/boot/hvmloader",
    "/usr/lib/xen/boot/hvmloader",
    "/usr/local/lib/xen/boot/hvmloader",
];
const OVMF: [&str; 3] =
    ["/usr/share/ovmf/OVMF.fd", "/usr/lib/xen-4.17/boot/ovmf.bin", "/usr/lib/xen/boot/ovmf.bin"];

/// What guests may have here.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) host: HostInfo,
    pub(crate) model: Option<DeviceModel>,
    hvmloader: Option<&'static str>,
    ovmf: Option<&'static str>,
}

impl Offer {
    pub(crate) fn new(host: HostInfo, model: Option<DeviceModel>) -> Self {
        let first = |paths: [&'static str; 3]| paths.into_iter().find(|p| Path::new(p).is_file());
        Self { host, model, hvmloader: first(HVMLOADER), ovmf: first(OVMF) }
    }

    fn takes(&self, guest: Guest) -> bool {
        if guest == Guest::Pv { self.host.can_pv } else { self.host.can_hvm }
    }

    pub(crate) fn capabilities(&self) -> Element {
        let features = Element::new("migration_features");
        let cpu = Element::new("cpu").with_child(text("arch", "x86_64"));
        let host = Element::new("host").with_child(cpu).with_child(features);
        let guests = Guest::ALL.into_iter().filter(|guest| self.takes(*guest));
        guests.fold(Element::new("capabilities").with_child(host), |capabilities, guest| {
            capabilities.with_child(self.guest(guest))
        })
    }

    fn guest(&self, guest: Guest) -> Element {
        let os_type = if guest == Guest::Pv { "xen" } else { guest.os_type() };
        let mut arch =
            Element::new("arch").with_attr("name", "x86_64").with_child(text("wordsize", "64"));
        if let Some(model) = &self.model {
            arch.push(text("emulator", &model.path.to_string_lossy()));
        }
        if let Some(loader) = self.hvmloader.filter(|_| guest.is_hvm()) {
            arch.push(text("loader", loader));
        }
        let most = most_vcpus(guest).to_string();
        arch.push(text("machine", guest.machine()).with_attr("maxCpus", most));
        arch.push(Element::new("domain").with_attr("type", "xen"));
        let feature = |name: &str, default: bool, toggle: bool| {
            let default = if default { "on" } else { "off" };
            Element::new(name).with_attr("default", default).with_attr("toggle", yes(toggle))
        };
        let mut features = Element::new("features");
        if guest.is_hvm() {
            let without_acpi = self.model.as_ref().is_none_or(DeviceModel::can_do_without_acpi);
            features.push(Element::new("pae"));
            features.push(feature("acpi", true, without_acpi));
            features.push(feature("apic", true, false));
        }
        if guest != Guest::Pv {
            features.push(feature("hap", self.host.can_hap, self.host.can_hap));
        }
        // Clients look for these before they offer snapshots; libvirt's Xen driver has neither.
        features.push(feature("disksnapshot", true, false));
        features.push(Element::new("externalSnapshot"));
        let guest = Element::new("guest").with_child(text("os_type", os_type));
        guest.with_child(arch).with_child(features)
    }

    pub(crate) fn domain_capabilities(&self, platform: &Platform) -> Result<Element> {
        let wrong = |what: String| Err(Error::new(Condition::InvalidArgument, what));
        if let Some(other) = platform.virt_type.as_deref().filter(|kind| *kind != "xen") {
            return wrong(format!("domains of type '{other}' cannot run on this host"));
        }
        if let Some(other) = platform.arch.as_deref().filter(|arch| *arch != "x86_64") {
            return wrong(format!("Xen has no guests of architecture '{other}' here"));
        }
        let guest = match platform.machine.as_deref() {
            None => Guest::Pv,
            Some(name) => match Guest::ALL.into_iter().find(|guest| guest.machine() == name) {
                Some(guest) => guest,
                None => return wrong(format!("Xen has xenpv, xenpvh and xenfv, no '{name}'")),
            },
        };
        if !self.takes(guest) {
            let machine = guest.machine();
            return wrong(format!("this host has no virtualisation for '{machine}' guests"));
        }
        // Of one that a client names no more is known than its name: it may be any program.
        let model = self.model.as_ref().filter(|model| {
            let named = platform.emulator.as_deref().map(Path::new);
            named.is_none_or(|named| named == model.path)
        });
        let path = match (&platform.emulator, model) {
            (Some(named), _) => Some(named.clone()),
            (None, model) => model.map(|model| model.path.to_string_lossy().into_owned()),
        };
        let mut root = Element::new("domainCapabilities");
        if let Some(path) = path {
            root.push(text("path", &path));
        }
        root.push(text("domain", "xen"));
        root.push(text("machine", guest.machine()));
        root.push(text("arch", "x86_64"));
        root.push(Element::new("vcpu").with_attr("max", most_vcpus(guest).to_string()));
        root.push(supported("iothreads", false));
        root.push(supported("os", true).with_child(self.loader(guest)));
        root.push(cpu(guest));
        root.push(devices(guest, model));
        let features = ["gic", "vmcoreinfo", "genid", "sev", "sgx"];
        root.push(features.into_iter().fold(Element::new("features"), |features, name| {
            features.with_child(supported(name, false))
        }));
        Ok(root)
    }

    fn loader(&self, guest: Guest) -> Element {
        if !guest.is_hvm() {
            return supported("loader", false);
        }
        let mut loader = supported("loader", true);
        for path in [self.hvmloader, self.ovmf].into_iter().flatten() {
            loader.push(text("value", path));
        }
        loader
            .with_child(choices("type", &["rom", "pflash"]))
            .with_child(choices("readonly", &["yes"]))
    }
}

/// A guest has the host's processor, less what Xen keeps from it; no other is made up for it.
fn cpu(guest: Guest) -> Element {
    let modes = [
        ("host-passthrough", guest != Guest::Pv),
        ("maximum", false),
        ("host-model", false),
        ("custom", false),
    ];
    modes.into_iter().fold(Element::new("cpu"), |cpu, (name, is_there)| {
        let mode = Element::new("mode").with_attr("name", name);
        cpu.with_child(mode.with_attr("supported", yes(is_there)))
    })
}

fn devices(guest: Guest, model: Option<&DeviceModel>) -> Element {
    let has = |option: &str| model.is_some_and(|model| model.has(option));
    let buses: &[&str] = if guest.is_hvm() { &["ide", "scsi", "xen"] } else { &["xen"] };
    let disk = supported("disk", true)
        .with_child(choices("diskDevice", &["disk", "cdrom"]))
        .with_child(choices("bus", buses))
        .with_child(choices("model", &[]));
    let mut displays = vec!["vnc"];
    let mut videos = if guest.is_hvm() { vec!["vga", "cirrus"] } else { vec!["xen"] };
    if guest.is_hvm() && has("spice") {
        displays.push("spice");
        videos.push("qxl");
    }
    Element::new("devices")
        .with_child(disk)
        .with_child(supported("graphics", true).with_child(choices("type", &displays)))
        .with_child(supported("video", true).with_child(choices("modelType", &videos)))
        .with_child(supported("hostdev", false))
}

fn most_vcpus(guest: Guest) -> u32 {
    if guest == Guest::Pv { MOST_VCPUS } else { HVM_VCPUS }
}

fn text(name: &str, text: &str) -> Element {
    Element::new(name).with_text(text)
}

fn yes(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

fn supported(name: &str, is_so: bool) -> Element {
    Element::new(name).with_attr("supported", yes(is_so))
}

fn choices(name: &str, values: &[&str]) -> Element {
    let list = Element::new("enum").with_attr("name", name);
    values.iter().fold(list, |list, value| list.with_child(text("value", value)))
}

#[cfg(test)]
mod tests {
    use virtsnap_engine::inspect::Node;

    use super::*;

    fn offer(can_hvm: bool, help: &str) -> Offer {
        let node = Node {
            memory_kib: 1,
            free_kib: 1,
            cpus: 1,
            mhz: 1,
            nodes: 1,
            cores_per_socket: 1,
            threads_per_core: 1,
            max_vcpus: 1,
        };
        let version = (4, 17);
        let host = HostInfo { version, can_pv: true, can_hvm, can_hap: false, node };
        Offer {
            host,
            model: Some(DeviceModel::told("/dm".into(), help)),
            hvmloader: Some("/hvmloader"),
            ovmf: None,
        }
    }

    fn of(machine: &str) -> Platform {
        Platform { machine: Some(machine.to_owned()), ..Platform::default() }
    }

    #[test]
    fn a_host_without_virtualisation_takes_paravirtual_guests_only() {
        let told = |can_hvm| offer(can_hvm, "").capabilities().to_string();
        assert!(told(false).contains(">xenpv</machine>"));
        assert!(!told(false).contains("xenfv"));
        assert!(told(false).contains("<externalSnapshot/>"));
        assert!(told(true).contains("xenfv") && told(true).contains("xenpvh"));
        assert!(offer(false, "").domain_capabilities(&of("xenfv")).is_err());
        assert!(offer(false, "").domain_capabilities(&of("xenpv")).is_ok());
    }

    #[test]
    fn what_the_device_model_has_not_is_not_offered() {
        let told = |help, machine| {
            offer(true, help).domain_capabilities(&of(machine)).unwrap().to_string()
        };
        let [bare, whole] = ["", "-spice [port]\n"].map(|help| told(help, "xenfv"));
        assert!(whole.contains("spice") && whole.contains("qxl") && !bare.contains("spice"));
        assert!(bare.contains("<value>/hvmloader</value>") && bare.contains("<path>/dm</path>"));
        assert!(bare.contains("<value>ide</value>"), "{bare}");
        let pv = told("-spice [port]\n", "xenpv");
        assert!(
            !pv.contains(">ide<") && !pv.contains("spice") && !pv.contains("hvmloader"),
            "{pv}"
        );
        let acpi = |help| offer(true, help).capabilities().to_string();
        assert!(acpi("").contains("<acpi default='on' toggle='no'/>"));
        assert!(acpi("-no-acpi  disable\n").contains("<acpi default='on' toggle='yes'/>"));
    }

    #[test]
    fn nothing_is_told_of_what_is_not_there() {
        for platform in [
            of("pc"),
            Platform { arch: Some("aarch64".to_owned()), ..Platform::default() },
            Platform { virt_type: Some("kvm".to_owned()), ..Platform::default() },
        ] {
            let refused = offer(true, "").domain_capabilities(&platform).unwrap_err();
            assert_eq!(refused.condition, Condition::InvalidArgument);
        }
        let emulator = Some("/other".to_owned());
        let other = Platform { emulator, ..of("xenfv") };
        let told = offer(true, "-spice [port]\n").domain_capabilities(&other).unwrap().to_string();
        assert!(told.contains("<path>/other</path>") && !told.contains("spice"), "{told}");
    }
}
