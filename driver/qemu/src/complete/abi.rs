//! Whether two definitions are the same machine to a guest.
//!
//! A saved state only loads into the machine it was saved from. What differs is told in words, so
//! that the one who asked can see what was changed. Names, tunables and host paths may differ.

use virtsnap_xml::element::Element;

use super::draft::{number_of, parse_number};

/// Elements under the domain that the guest sees, compared whole.
const WHOLE: [&str; 5] = ["memory", "maxMemory", "iothreads", "sysinfo", "features"];

/// Classes of devices the guest sees, with the attributes and children that make them what they
/// are to it.
const DEVICES: [(&str, &[&str], &[&str]); 23] = [
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
];

/// The first difference that a guest would see, or none.
pub fn abi_difference(a: &Element, b: &Element) -> Option<String> {
    machine(a, b)
        .or_else(|| vcpus(a, b))
        .or_else(|| {
            WHOLE.iter().find_map(|name| {
                let text = |domain: &Element| domain.child(name).map(seen).unwrap_or_default();
                compare(&format!("<{name}>"), &text(a), &text(b))
            })
        })
        .or_else(|| cpu(a, b))
        .or_else(|| firmware(a, b))
        .or_else(|| {
            DEVICES.iter().find_map(|(class, own, inside)| devices(a, b, class, own, inside))
        })
}

fn compare(what: &str, a: &str, b: &str) -> Option<String> {
    let or_none = |text: &str| match text.trim() {
        "" => "nothing".to_owned(),
        text => format!("'{text}'"),
    };
    (a != b).then(|| format!("{what} is {} in one and {} in the other", or_none(a), or_none(b)))
}

/// An element without what is of one run only.
fn seen(element: &Element) -> String {
    let mut text = element.text().trim().to_owned();
    for (key, value) in element.attributes() {
        text.push_str(&format!(" {key}={}", number(value)));
    }
    for child in element.elements() {
        text.push_str(&format!(" {}({})", child.name(), seen(child).trim()));
    }
    text.trim().to_owned()
}

/// `0x02` and `2` are the same address.
fn number(text: &str) -> String {
    match text.strip_prefix("0x") {
        Some(_) => parse_number(text).map_or_else(|| text.to_owned(), |n| n.to_string()),
        None => text.to_owned(),
    }
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

fn devices(a: &Element, b: &Element, class: &str, own: &[&str], inside: &[&str]) -> Option<String> {
    let list = |domain: &Element| {
        let devices = domain.child("devices").into_iter().flat_map(|d| d.children(class));
        let mut list: Vec<_> = devices.map(|d| (identity(d), shape(d, own, inside))).collect();
        list.sort();
        list
    };
    let (a, b) = (list(a), list(b));
    let count = |list: &[_]| list.len().to_string();
    if let Some(difference) =
        compare(&format!("the number of {class} devices"), &count(&a), &count(&b))
    {
        return Some(difference);
    }
    a.iter().zip(&b).enumerate().find_map(|(nth, ((name, a), (_, b)))| {
        let name = if name.is_empty() { (nth + 1).to_string() } else { name.clone() };
        compare(&format!("{class} {name}"), a, b)
    })
}

/// How a device is called in a message, and found again in the other definition.
fn identity(device: &Element) -> String {
    let child =
        |name: &str, attribute: &str| device.child(name)?.attr(attribute).map(str::to_owned);
    match device.name() {
        "disk" => child("target", "dev").unwrap_or_default(),
        "interface" => child("mac", "address").unwrap_or_default(),
        "controller" => {
            let kind = device.attr("type").unwrap_or_default();
            let index = number_of(device, "index").unwrap_or_default();
            format!("{kind} {index:03} {}", device.attr("model").unwrap_or_default())
        }
        _ => String::new(),
    }
}

fn shape(device: &Element, own: &[&str], inside: &[&str]) -> String {
    let mut parts: Vec<String> = own
        .iter()
        .filter_map(|name| device.attr(name).map(|value| format!("{name}={value}")))
        .collect();
    for part in inside {
        let (name, attribute) = part.split_once('@').unwrap_or((part, ""));
        for child in device.children(name) {
            let text = match attribute {
                "" => seen(child),
                attribute => child.attr(attribute).unwrap_or_default().to_owned(),
            };
            parts.push(format!("{part}: {text}"));
        }
    }
    parts.join(", ")
}
