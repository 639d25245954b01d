//! Serial and parallel ports, consoles, channels: their defaults, and a console's double life.
//!
//! The first console of a guest is, in libvirt, another name for its first serial port. It is
//! written out as a copy of it.

use virtsnap_engine::definition::{bad, checked_number, set_default, unsupported};
use virtsnap_engine::error::Result;
use virtsnap_xml::domain::parse_number;
use virtsnap_xml::element::Element;

use super::draft::{Draft, number_of};

/// ISA has room for that many serial ports.
const ISA_PORTS: u32 = 4;

/// Targets, ports and sources of all character devices.
pub(super) fn complete(draft: &mut Draft<'_>) -> Result<()> {
    let dirs: Vec<String> =
        draft.host.channel_dirs.iter().map(|dir| dir.to_string_lossy().into_owned()).collect();
    for class in ["serial", "parallel", "console", "channel"] {
        for device in draft.of_mut(class) {
            source(device, &dirs)?;
        }
    }
    for device in draft.of_mut("redirdev") {
        set_default(device, "bus", "usb");
        source(device, &dirs)?;
    }
    // Only ports that are called isa-serial: where nothing is said, the next number is taken.
    isa_ports(draft)?;
    for smartcard in draft.of_mut("smartcard") {
        match smartcard.attr("mode") {
            Some("passthrough") => source(smartcard, &dirs)?,
            Some(_) => {}
            None => return Err(bad("a <smartcard> has no mode")),
        }
    }
    for serial in draft.of_mut("serial") {
        serial_target(serial)?;
    }
    for class in ["serial", "parallel"] {
        next_ports(draft, class)?;
    }
    // They are all called something now. libvirt takes a definition here that it refuses when it
    // reads it again.
    isa_ports(draft)?;
    consoles(draft)?;
    for channel in draft.of_mut("channel") {
        let target =
            channel.child_mut("target").ok_or_else(|| bad("a <channel> has no <target>"))?;
        set_default(target, "type", "virtio");
        target.remove_attr("state");
        if channel.attr("type") == Some("spicevmc") {
            let target = channel.child_or_insert("target");
            set_default(target, "name", "com.redhat.spice.0");
        }
    }
    Ok(())
}

fn source(device: &mut Element, generated: &[String]) -> Result<()> {
    let class = device.name().to_owned();
    let Some(kind) = device.attr("type").map(str::to_owned) else {
        return Err(bad(format!("a <{class}> has no type")));
    };
    device.remove_attr("tty");
    match kind.as_str() {
        "null" | "vc" | "stdio" | "spicevmc" | "pty" => device.remove_children("source"),
        "unix" => {
            let path = device.child("source").and_then(|source| source.attr("path"));
            let own = path.is_none_or(|path| is_generated(path, generated));
            match device.child_mut("source") {
                Some(_) if own => device.remove_children("source"),
                Some(source) => set_default(source, "mode", "connect"),
                None if class == "channel" || class == "redirdev" => {}
                None => {}
            }
        }
        "tcp" => {
            let source = device
                .child_mut("source")
                .filter(|source| source.attr("service").is_some())
                .ok_or_else(|| bad(format!("a <{class}> of type tcp needs a source service")))?;
            set_default(source, "mode", "connect");
            set_default(device.child_or_insert("protocol"), "type", "raw");
        }
        "file" | "dev" | "spiceport" => {
            let needed = if kind == "spiceport" { "channel" } else { "path" };
            if device.child("source").and_then(|source| source.attr(needed)).is_none() {
                return Err(bad(format!("a <{class}> of type {kind} needs a source {needed}")));
            }
        }
        _ => {}
    }
    Ok(())
}

/// The socket was named by us or by libvirt for one run of the guest.
fn is_generated(path: &str, dirs: &[String]) -> bool {
    path.starts_with("/var/lib/libvirt/qemu/channel/target/")
        || dirs.iter().any(|dir| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/')))
}

fn serial_target(serial: &mut Element) -> Result<()> {
    let target = serial.child_or_insert("target");
    set_default(target, "type", "isa-serial");
    let model = match target.attr("type").unwrap_or_default() {
        "isa-serial" => "isa-serial",
        "usb-serial" => "usb-serial",
        "pci-serial" => "pci-serial",
        "isa-debug" => "isa-debugcon",
        other => return Err(unsupported(format!("a serial port cannot be of type '{other}'"))),
    };
    let asked = target.child_or_insert("model");
    set_default(asked, "name", model);
    if asked.attr("name") != Some(model) {
        return Err(unsupported(format!("a serial port of this type has the model '{model}'")));
    }
    Ok(())
}

fn isa_ports(draft: &mut Draft<'_>) -> Result<()> {
    let is_isa = |serial: &Element| {
        serial.child("target").and_then(|target| target.attr("type")) == Some("isa-serial")
    };
    let mut used = std::collections::BTreeSet::new();
    let mut count = 0;
    for serial in draft.of("serial").filter(|serial| is_isa(serial)) {
        count += 1;
        if let Some(port) = port(serial)? {
            if port >= ISA_PORTS {
                return Err(unsupported(format!("an ISA machine has {ISA_PORTS} serial ports")));
            }
            if !used.insert(port) {
                return Err(unsupported(format!("serial port {port} is used twice")));
            }
        }
    }
    if count > ISA_PORTS {
        return Err(unsupported(format!("an ISA machine has {ISA_PORTS} serial ports")));
    }
    for serial in draft.of_mut("serial").filter(|serial| is_isa(serial)) {
        if port(serial)?.is_none() {
            let free = (0..ISA_PORTS).find(|port| used.insert(*port)).unwrap_or_default();
            serial.child_or_insert("target").set_attr("port", free.to_string());
        }
    }
    Ok(())
}

fn port(device: &Element) -> Result<Option<u32>> {
    device.child("target").map_or(Ok(None), |target| checked_number(target, "port"))
}

fn next_ports(draft: &mut Draft<'_>, class: &str) -> Result<()> {
    for at in draft.positions(class) {
        let Some(device) = draft.devices.get(at) else { continue };
        if port(device)?.is_some() {
            continue;
        }
        let highest = draft
            .of(class)
            .filter_map(|device| device.child("target").and_then(|t| number_of(t, "port")))
            .max();
        let next = highest.map_or(0, |highest| highest.saturating_add(1));
        if let Some(device) = draft.devices.get_mut(at) {
            device.child_or_insert("target").set_attr("port", next.to_string());
        }
    }
    Ok(())
}

fn consoles(draft: &mut Draft<'_>) -> Result<()> {
    for console in draft.of_mut("console") {
        set_default(console.child_or_insert("target"), "type", "serial");
    }
    let is_serial = |console: &Element| {
        console.child("target").and_then(|target| target.attr("type")) == Some("serial")
    };
    if draft.of("console").skip(1).any(is_serial) {
        return Err(unsupported("only the first console can be a serial port"));
    }
    let first_serial = draft.of("console").next().is_some_and(is_serial);
    if first_serial && !draft.has("serial") {
        let mut serial = rename(draft.of("console").next(), "serial");
        serial.remove_children("target");
        serial.push(Element::new("target").with_attr("port", "0"));
        serial_target(&mut serial)?;
        draft.devices.push(serial);
    }
    let mirrors = |serial: &Element| {
        let kind = serial.child("target").and_then(|target| target.attr("type"));
        kind == Some("isa-serial")
    };
    let mirrored = draft.of("serial").next().is_some_and(mirrors);
    if first_serial || mirrored {
        let mut console = rename(draft.of("serial").next(), "console");
        let port = console.child("target").and_then(|t| t.attr("port")).unwrap_or("0").to_owned();
        console.remove_children("target");
        console.push(Element::new("target").with_attr("type", "serial").with_attr("port", port));
        let at = draft.positions("console").first().copied();
        match at.filter(|_| first_serial) {
            Some(at) => {
                if let Some(old) = draft.devices.get_mut(at) {
                    *old = console;
                }
            }
            None => draft.devices.insert(at.unwrap_or(draft.devices.len()), console),
        }
    }
    for (index, console) in draft.of_mut("console").enumerate() {
        if !is_serial(console) {
            console.child_or_insert("target").set_attr("port", index.to_string());
        }
    }
    Ok(())
}

fn rename(device: Option<&Element>, name: &str) -> Element {
    let mut renamed = Element::new(name);
    if let Some(device) = device {
        for (key, value) in device.attributes() {
            renamed.set_attr(key, value);
        }
        *renamed.nodes_mut() = device.nodes().to_vec();
    }
    renamed
}

/// A slot in a card reader for each smart card, and the readers.
pub(super) fn card_readers(draft: &mut Draft<'_>) {
    for nth in 0..draft.positions("smartcard").len() {
        let address = |card: &Element| {
            let address = card.child("address")?;
            Some((number_of(address, "controller").unwrap_or(0), number_of(address, "slot")?))
        };
        let given = draft.of("smartcard").nth(nth).and_then(address);
        let in_first = draft.of("smartcard").filter_map(address).filter(|(index, _)| *index == 0);
        let next = in_first.map(|(_, slot)| slot.saturating_add(1)).max().unwrap_or(0);
        let (controller, slot) = given.unwrap_or((0, next));
        if let Some(card) = draft.of_mut("smartcard").nth(nth) {
            card.remove_children("address");
            card.push(
                Element::new("address")
                    .with_attr("type", "ccid")
                    .with_attr("controller", controller.to_string())
                    .with_attr("slot", slot.to_string()),
            );
        }
        draft.ensure_controller("ccid", controller, None);
    }
}

/// How many ports a virtio-serial controller has where its definition says nothing.
const DEFAULT_PORTS: u32 = 31;

/// The virtio-serial controllers that consoles and channels name, or the first.
pub(super) fn ensure_controllers(draft: &mut Draft<'_>) {
    for class in ["channel", "console"] {
        let named: Vec<u32> = draft
            .of(class)
            .filter(|device| is_virtio(device))
            .map(|d| d.child("address").and_then(|a| number_of(a, "controller")).unwrap_or(0))
            .collect();
        for index in named {
            draft.ensure_controller("virtio-serial", index, None);
        }
    }
}

/// The ports of one virtio-serial controller.
#[derive(Debug)]
struct Ports {
    controller: u32,
    count: u32,
    used: std::collections::BTreeSet<u32>,
}

/// A port on a virtio-serial controller for every channel that lacks one.
///
/// Virtio consoles get none: QEMU places them at the port 0 that is theirs, or after.
pub(super) fn assign_ports(draft: &mut Draft<'_>) -> Result<()> {
    let mut sets = reserved_ports(draft)?;
    for nth in 0..draft.positions("channel").len() {
        let Some(device) = draft.of("channel").nth(nth) else { continue };
        if !is_virtio(device) || complete_address(device).is_some() {
            continue;
        }
        let wanted = device.child("address").and_then(|a| number_of(a, "controller"));
        let (controller, port) = match free_port(&mut sets, wanted) {
            Some(found) => found,
            None if wanted.is_some() => {
                return Err(bad("no port is free on the virtio-serial controller named"));
            }
            None => {
                let unused = |i: &u32| draft.controller("virtio-serial", *i).is_none();
                let controller = (0..).find(unused).unwrap_or_default();
                draft.ensure_controller("virtio-serial", controller, None);
                sets.push(Ports { controller, count: DEFAULT_PORTS, used: [1].into() });
                (controller, 1)
            }
        };
        if let Some(device) = draft.of_mut("channel").nth(nth) {
            device.remove_children("address");
            device.push(
                Element::new("address")
                    .with_attr("type", "virtio-serial")
                    .with_attr("controller", controller.to_string())
                    .with_attr("bus", "0")
                    .with_attr("port", port.to_string()),
            );
        }
    }
    Ok(())
}

fn reserved_ports(draft: &Draft<'_>) -> Result<Vec<Ports>> {
    let mut sets: Vec<Ports> = draft
        .controllers("virtio-serial")
        .map(|controller| Ports {
            controller: number_of(controller, "index").unwrap_or_default(),
            count: number_of(controller, "ports").unwrap_or(DEFAULT_PORTS),
            used: [].into(),
        })
        .collect();
    for (controller, port) in draft.devices.iter().filter_map(complete_address) {
        let name = format!("the virtio-serial controller {controller}");
        let set = sets.iter_mut().find(|set| set.controller == controller);
        let set = set.ok_or_else(|| bad(format!("{name} is missing")))?;
        if port >= set.count {
            return Err(bad(format!("{name} has no port {port}")));
        }
        if !set.used.insert(port) {
            return Err(bad(format!("port {port} of {name} is used twice")));
        }
    }
    Ok(sets)
}

fn free_port(sets: &mut [Ports], wanted: Option<u32>) -> Option<(u32, u32)> {
    let mut sets = sets.iter_mut().filter(|set| wanted.is_none_or(|i| i == set.controller));
    sets.find_map(|set| {
        let port = (1..set.count).find(|port| !set.used.contains(port))?;
        set.used.insert(port);
        Some((set.controller, port))
    })
}

fn is_virtio(device: &Element) -> bool {
    matches!(device.name(), "channel" | "console")
        && device.child("target").and_then(|target| target.attr("type")) == Some("virtio")
}

fn complete_address(device: &Element) -> Option<(u32, u32)> {
    let address = device.child("address")?;
    if address.attr("type") != Some("virtio-serial") {
        return None;
    }
    let port = number_of(address, "port").filter(|port| *port != 0)?;
    Some((address.attr("controller").and_then(parse_number).unwrap_or(0), port))
}
