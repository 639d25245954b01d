//! `<capabilities>`: which guests the hypervisor takes.

use virtsnap_xml::element::Element;

use crate::context::HostInfo;
use crate::guest::Guest;

/// What libvirt's Xen driver tells, as far as it is so here.
pub(crate) fn of(host: &HostInfo) -> Element {
    let arch = || Element::new("arch").with_text("x86_64");
    let features = Element::new("migration_features");
    let mut capabilities = Element::new("capabilities").with_child(
        Element::new("host")
            .with_child(Element::new("cpu").with_child(arch()))
            .with_child(features),
    );
    let kinds = [
        (Guest::Pv, "xen", host.can_pv),
        (Guest::Pvh, "xenpvh", host.can_hvm),
        (Guest::Hvm, "hvm", host.can_hvm),
    ];
    for (guest, os_type, _) in kinds.into_iter().filter(|(.., can)| *can) {
        let arch = Element::new("arch")
            .with_attr("name", "x86_64")
            .with_child(Element::new("wordsize").with_text("64"))
            .with_child(Element::new("machine").with_text(guest.machine()))
            .with_child(Element::new("domain").with_attr("type", "xen"));
        let mut element = Element::new("guest")
            .with_child(Element::new("os_type").with_text(os_type))
            .with_child(arch);
        let feature = |name: &str, default: &str, toggle: &str| {
            Element::new(name).with_attr("default", default).with_attr("toggle", toggle)
        };
        let mut features = Element::new("features");
        if guest.is_hvm() {
            let hap = if host.can_hap { "on" } else { "off" };
            features.push(Element::new("pae"));
            features.push(feature("acpi", "on", "yes"));
            features.push(feature("apic", "on", "no"));
            features.push(feature("hap", hap, "yes"));
        }
        // Clients look for these before they offer snapshots; libvirt's Xen driver has neither.
        features.push(feature("disksnapshot", "on", "no"));
        features.push(Element::new("externalSnapshot"));
        element.push(features);
        capabilities.push(element);
    }
    capabilities
}

#[cfg(test)]
mod tests {
    use virtsnap_engine::inspect::Node;

    use super::*;

    #[test]
    fn a_host_without_virtualisation_takes_paravirtual_guests_only() {
        let told = |can_hvm| {
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
            of(&HostInfo { version, can_pv: true, can_hvm, can_hap: false, node }).to_string()
        };
        assert!(told(false).contains("<machine>xenpv</machine>"));
        assert!(!told(false).contains("xenfv"));
        assert!(told(false).contains("<externalSnapshot/>"));
        assert!(told(true).contains("xenfv") && told(true).contains("xenpvh"));
    }
}
