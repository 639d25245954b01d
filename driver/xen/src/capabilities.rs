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
        if guest.is_hvm() {
            let hap = if host.can_hap { "on" } else { "off" };
            let features = Element::new("features")
                .with_child(Element::new("pae"))
                .with_child(
                    Element::new("acpi").with_attr("default", "on").with_attr("toggle", "yes"),
                )
                .with_child(
                    Element::new("apic").with_attr("default", "on").with_attr("toggle", "no"),
                )
                .with_child(
                    Element::new("hap").with_attr("default", hap).with_attr("toggle", "yes"),
                );
            element.push(features);
        }
        capabilities.push(element);
    }
    capabilities
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_virtualisation_takes_paravirtual_guests_only() {
        let told = |can_hvm| {
            of(&HostInfo { version: (4, 17), can_pv: true, can_hvm, can_hap: false }).to_string()
        };
        assert!(told(false).contains("<machine>xenpv</machine>"));
        assert!(!told(false).contains("xenfv"));
        assert!(told(true).contains("xenfv") && told(true).contains("xenpvh"));
    }
}
