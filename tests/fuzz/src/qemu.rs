//! What QEMU and qemu-img say. A guest may have taken QEMU over.

use std::sync::LazyLock;

use virtsnap_qemu::fuzzing;
use virtsnap_xml::element::Element;

/// Every kind of device that events tell of.
const LIVE: &str = "<domain type='qemu' id='1'><name>vm</name>\
    <uuid>11111111-2222-3333-4444-555555555555</uuid><memory>65536</memory>\
    <currentMemory>65536</currentMemory><on_poweroff>destroy</on_poweroff>\
    <on_reboot>restart</on_reboot><on_crash>preserve</on_crash>\
    <clock offset='variable' adjustment='10'/><devices>\
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
    <source file='/images/vm.qcow2'/><target dev='sda' bus='sata'/><alias name='sata0-0-0'/></disk>\
    <disk type='file' device='cdrom'><target dev='sdb' bus='sata'/><alias name='sata0-0-1'/></disk>\
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/>\
    <alias name='channel0'/></channel><watchdog model='itco' action='reset'>\
    <alias name='watchdog0'/></watchdog></devices></domain>";

pub(crate) fn monitor(input: &[u8]) -> bool {
    static TREE: LazyLock<Element> = LazyLock::new(|| Element::parse(LIVE).expect("it is XML"));
    fuzzing::monitor(&TREE, input)
}

pub(crate) fn image_tool(input: &[u8]) -> bool {
    fuzzing::image_tool(input)
}
