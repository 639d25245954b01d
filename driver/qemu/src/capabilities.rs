//! `<capabilities>`: what a client may expect of this host and its QEMU.

use std::fs;
use std::path::Path;

use virtsnap_xml::element::Element;

use crate::probe::Probed;

/// virConnectGetCapabilities.
pub(crate) fn of_host(probed: &Probed) -> Element {
    let text = |name: &str, text: &str| Element::new(name).with_text(text);
    let mut cpu = Element::new("cpu").with_child(text("arch", &probed.arch));
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |key: &str| {
        info.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(found, _)| found.trim() == key)
            .map(|(_, value)| value.trim().to_owned())
    };
    cpu.push(text("model", "qemu64"));
    cpu.push(text("vendor", vendor(value("vendor_id").as_deref())));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    cpu.push(
        Element::new("topology")
            .with_attr("sockets", "1")
            .with_attr("dies", "1")
            .with_attr("cores", &*threads)
            .with_attr("threads", "1"),
    );
    let uuid = fs::read_to_string("/sys/class/dmi/id/product_uuid").unwrap_or_default();
    let mut host = Element::new("host");
    if !uuid.trim().is_empty() {
        host.push(text("uuid", uuid.trim()));
    }
    host.push(cpu);
    Element::new("capabilities").with_child(host).with_child(guest(probed))
}

fn vendor(id: Option<&str>) -> &'static str {
    match id {
        Some("GenuineIntel") => "Intel",
        Some("AuthenticAMD") => "AMD",
        _ => "unknown",
    }
}

fn guest(probed: &Probed) -> Element {
    let text = |name: &str, text: &str| Element::new(name).with_text(text);
    let mut arch = Element::new("arch")
        .with_attr("name", &*probed.arch)
        .with_child(text("wordsize", "64"))
        .with_child(text("emulator", &probed.emulator.to_string_lossy()));
    for machine in &probed.machines {
        let max_cpus = machine.max_cpus.to_string();
        let entry =
            |name: &str| Element::new("machine").with_attr("maxCpus", &*max_cpus).with_text(name);
        if let Some(alias) = &machine.alias {
            arch.push(entry(alias).with_attr("canonical", &*machine.name));
        }
        arch.push(entry(&machine.name));
    }
    arch.push(Element::new("domain").with_attr("type", "qemu"));
    // Only looked at: opening it may wait for a long time.
    if Path::new("/dev/kvm").exists() {
        arch.push(Element::new("domain").with_attr("type", "kvm"));
    }
    let toggle = |name: &str, default: &str, toggle: &str| {
        Element::new(name).with_attr("default", default).with_attr("toggle", toggle)
    };
    let features = Element::new("features")
        .with_child(toggle("acpi", "on", "yes"))
        .with_child(toggle("apic", "on", "no"))
        .with_child(Element::new("cpuselection"))
        .with_child(Element::new("deviceboot"))
        .with_child(toggle("disksnapshot", "on", "no"))
        .with_child(Element::new("externalSnapshot"));
    Element::new("guest").with_child(text("os_type", "hvm")).with_child(arch).with_child(features)
}
