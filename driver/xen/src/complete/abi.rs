//! Whether two definitions are the same machine to a guest.
//!
//! A saved domain only continues as the machine it was: its kernel holds on to disks and cards by
//! their names (`vdev`, the number of a card), and finds them again at once. Images, backends,
//! bridges, names and tunables may differ, and so may what the balloon holds.

use virtsnap_xml::domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::visible::{Visible, compare};

use super::live::MEMORY_GRAIN;
use crate::guest::Guest;

const VISIBLE: Visible = Visible {
    whole: &["features"],
    devices: &[
        ("disk", &["device"], &["target@bus", "target@dev", "readonly"]),
        ("controller", &["type", "index", "maxEventChannels", "maxGrantFrames"], &[]),
        ("interface", &[], &["mac", "model"]),
        ("serial", &[], &["target@port"]),
        ("console", &[], &["target@type", "target@port"]),
        ("channel", &[], &["target@type", "target@name"]),
        ("input", &["type", "bus"], &[]),
        ("sound", &["model"], &[]),
        ("video", &[], &["model"]),
        ("memballoon", &["model"], &[]),
    ],
};

/// The first difference that a guest would see, or none. Both are completed.
pub fn abi_difference(a: &Element, b: &Element) -> Option<String> {
    let kind = |domain: &Element| {
        Guest::of(domain).map(|guest| guest.os_type().to_owned()).unwrap_or_default()
    };
    let arch = |domain: &Element| domain::arch(domain).unwrap_or_default().to_owned();
    let uuid = |domain: &Element| domain.child_text("uuid").unwrap_or_default();
    let vcpus = |domain: &Element| {
        domain::vcpus(domain).map(|vcpus| (vcpus.max.to_string(), vcpus.current.to_string()))
    };
    // As Xen gives it: a live definition tells that already.
    let memory = |domain: &Element| {
        let size = domain::memory_kib(domain).unwrap_or_default();
        format!("{} KiB", size.checked_next_multiple_of(MEMORY_GRAIN).unwrap_or(size))
    };
    // A paravirtual guest has a frame buffer for each.
    let displays = |domain: &Element| match Guest::of(domain) {
        Some(Guest::Pv | Guest::Pvh) => {
            let devices = domain.child("devices");
            devices.map_or(0, |devices| devices.children("graphics").count()).to_string()
        }
        Some(Guest::Hvm) | None => String::new(),
    };
    let (a_vcpus, b_vcpus) = (vcpus(a).unwrap_or_default(), vcpus(b).unwrap_or_default());
    compare("the OS type", &kind(a), &kind(b))
        .or_else(|| compare("the architecture", &arch(a), &arch(b)))
        .or_else(|| compare("the uuid", &uuid(a), &uuid(b)))
        .or_else(|| compare("the number of vcpus", &a_vcpus.0, &b_vcpus.0))
        .or_else(|| compare("the number of vcpus online", &a_vcpus.1, &b_vcpus.1))
        .or_else(|| compare("the memory", &memory(a), &memory(b)))
        .or_else(|| VISIBLE.difference_of_whole(a, b))
        .or_else(|| compare("the number of displays", &displays(a), &displays(b)))
        .or_else(|| VISIBLE.difference_of_devices(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, complete};

    fn changed(name: &str, from: &str, to: &str) -> Option<String> {
        let definition = complete(golden::defined(name)).unwrap();
        let text = golden::read("defined", &format!("{name}.xml")).replacen(from, to, 1);
        abi_difference(&definition, &complete(Element::parse(&text).unwrap()).unwrap())
    }

    #[test]
    fn what_a_guest_sees_is_told() {
        let cases = [
            ("<memory unit='MiB'>256", "<memory unit='MiB'>512", "the memory is '262144 KiB'"),
            ("<vcpu current='1'>2", "<vcpu current='1'>4", "the number of vcpus is '2'"),
            ("<vcpu current='1'>2", "<vcpu>2", "vcpus online is '1'"),
            ("<target dev='xvda'/>", "<target dev='xvdz'/>", "disk xvda"),
            ("<readonly/>", "", "disk xvdc"),
            ("00:16:3E:66:0a:01", "00:16:3e:66:0a:09", "interface"),
            ("name='org.example.agent'", "name='other'", "channel"),
            ("<graphics type='vnc' listen='0.0.0.0' passwd='secret' keymap='de'/>", "", "displays"),
            ("<e820_host state='on'/>", "", "<features>"),
            ("0c9a0001", "0c9a0009", "the uuid"),
        ];
        for (from, to, told) in cases {
            let difference = changed("pv-kernel", from, to).expect(from);
            assert!(difference.contains(told), "{difference}");
        }
        let other = complete(golden::defined("pvh")).unwrap();
        let pv = complete(golden::defined("pv-kernel")).unwrap();
        assert!(abi_difference(&pv, &other).unwrap().contains("the OS type is 'linux'"));
    }

    #[test]
    fn what_only_the_host_sees_may_differ() {
        let cases = [
            ("/images/root.qcow2", "/images/other.qcow2"),
            ("<driver name='qemu' type='qcow2' discard='unmap'/>", "<driver name='qemu'/>"),
            ("bridge='xenbr0'", "bridge='xenbr1'"),
            ("<name>pv<", "<name>other<"),
            ("<currentMemory unit='MiB'>128", "<currentMemory unit='MiB'>64"),
            ("passwd='secret'", "passwd='changed'"),
            ("<shares>512", "<shares>256"),
        ];
        for (from, to) in cases {
            assert_eq!(changed("pv-kernel", from, to), None, "{from}");
        }
        for name in golden::names("defined", ".xml") {
            let definition = complete(golden::defined(&name)).unwrap();
            let live = complete(golden::live(&definition)).unwrap();
            assert_eq!(abi_difference(&definition, &live), None, "{name}");
        }
    }
}
