//! Whether two definitions are the same machine to a guest.
//!
//! A saved state only loads into the machine it was saved from. What differs is told in words, so
//! that the one who asked can see what was changed. Names, tunables and host paths may differ.

use virtsnap_xml::element::Element;
use virtsnap_xml::visible::{Visible, compare, seen};

const VISIBLE: Visible = Visible {
    whole: &["memory", "maxMemory", "iothreads", "sysinfo", "features"],
    devices: &[
        ("memory", &["model"], &["target", "address"]),
        ("smartcard", &["mode"], &["address"]),
        ("crypto", &["model"], &["address"]),
        ("disk", &["device", "model"], &["target@bus", "target@dev", "serial", "wwn", "address"]),
        (
            "controller",
            &["type", "index", "model", "ports", "vectors"],
            &["model", "target", "address"],
        ),
        ("filesystem", &["model"], &["target", "address"]),
        ("interface", &[], &["mac", "model", "address"]),
        ("serial", &[], &["target", "address"]),
        ("parallel", &[], &["target", "address"]),
        ("console", &[], &["target@type", "target@port"]),
        ("channel", &[], &["target@type", "target@name", "address"]),
        ("input", &["type", "bus", "model"], &["address"]),
        ("tpm", &["model"], &["backend@version"]),
        ("sound", &["model"], &["codec", "address"]),
        ("video", &[], &["model", "address"]),
        ("redirdev", &["bus"], &["address"]),
        ("hub", &["type"], &["address"]),
        ("watchdog", &["model"], &["address"]),
        ("memballoon", &["model"], &["address"]),
        ("rng", &["model"], &["address"]),
        ("panic", &["model"], &["address"]),
        ("vsock", &["model"], &["address"]),
        ("shmem", &["name"], &["model", "size", "address"]),
    ],
};

/// The first difference that a guest would see, or none.
pub fn abi_difference(a: &Element, b: &Element) -> Option<String> {
    machine(a, b)
        .or_else(|| vcpus(a, b))
        .or_else(|| VISIBLE.difference_of_whole(a, b))
        .or_else(|| cpu(a, b))
        .or_else(|| firmware(a, b))
        .or_else(|| VISIBLE.difference_of_devices(a, b))
}

fn machine(a: &Element, b: &Element) -> Option<String> {
    let of = |domain: &Element, name: &str| {
        let kind = domain.at(&["os", "type"]);
        kind.and_then(|kind| kind.attr(name)).unwrap_or_default().to_owned()
    };
    let virt = |domain: &Element| domain.attr("type").unwrap_or_default().to_owned();
    compare("the virtualization type", &virt(a), &virt(b))
        .or_else(|| compare("the machine type", &of(a, "machine"), &of(b, "machine")))
        .or_else(|| compare("the architecture", &of(a, "arch"), &of(b, "arch")))
        .or_else(|| {
            let text = |domain: &Element, name: &str| domain.child_text(name).unwrap_or_default();
            compare("the uuid", &text(a, "uuid"), &text(b, "uuid"))
        })
}

fn vcpus(a: &Element, b: &Element) -> Option<String> {
    let most = |domain: &Element| domain.child_text("vcpu").unwrap_or_default().trim().to_owned();
    let online = |domain: &Element| {
        let vcpu = domain.child("vcpu");
        let current = vcpu.and_then(|vcpu| vcpu.attr("current")).map(str::to_owned);
        current.unwrap_or_else(|| most(domain))
    };
    compare("the number of vcpus", &most(a), &most(b))
        .or_else(|| compare("the number of vcpus online", &online(a), &online(b)))
}

/// Model and topology. `check='full'` says that the model is what QEMU made of another, and
/// `host-model` stands for whatever the host has: there only QEMU can tell.
fn cpu(a: &Element, b: &Element) -> Option<String> {
    let part = |domain: &Element, name: &str| {
        let cpu = domain.child("cpu").and_then(|cpu| cpu.child(name));
        cpu.map(|part| if name == "model" { part.text() } else { seen(part) }).unwrap_or_default()
    };
    let mode = |domain: &Element| {
        let mode = domain.child("cpu").and_then(|cpu| cpu.attr("mode")).unwrap_or("custom");
        mode.to_owned()
    };
    let expanded = [a, b].iter().any(|domain| {
        let cpu = domain.child("cpu");
        cpu.and_then(|cpu| cpu.attr("check")) == Some("full") || mode(domain) == "host-model"
    });
    if !expanded {
        let model = compare("the cpu mode", &mode(a), &mode(b))
            .or_else(|| compare("the cpu model", &part(a, "model"), &part(b, "model")));
        if model.is_some() {
            return model;
        }
    }
    ["topology", "numa"]
        .into_iter()
        .find_map(|name| compare(&format!("the cpu's {name}"), &part(a, name), &part(b, name)))
}

fn firmware(a: &Element, b: &Element) -> Option<String> {
    let loader = |domain: &Element| {
        let loader = domain.at(&["os", "loader"]);
        let kind = loader.and_then(|loader| loader.attr("type")).unwrap_or_default();
        format!("{kind} {}", loader.map(Element::text).unwrap_or_default())
    };
    compare("the firmware", &loader(a), &loader(b))
}
