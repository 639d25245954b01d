//! Defaults of each device by itself: models, buses, formats, and the devices a PC always has.

use uuid::Uuid;
use virtsnap_engine::error::Result;
use virtsnap_xml::element::{Element, Node};

use super::draft::{Draft, bad, checked_number, disk_index, number_of, set_default, unsupported};

/// What libvirt gives an emulated VGA, in KiB.
const VIDEO_MEMORY: &str = "16384";
const QXL_MEMORY: &str = "65536";

/// Puts disks and controllers in the order in which libvirt keeps them, and drops what only a
/// running guest has.
pub(super) fn normalise(draft: &mut Draft<'_>) -> Result<()> {
    for device in &mut draft.devices {
        device.nodes_mut().retain(|node| match node {
            Node::Element(alias) if alias.name() == "alias" => {
                alias.attr("name").is_some_and(is_users_alias)
            }
            Node::Element(_) | Node::Text(_) | Node::Comment(_) => true,
        });
    }
    sort_disks(draft)?;
    sort_controllers(draft)
}

/// A name that a user gave, of the characters that libvirt lets it have: it becomes an id of QEMU's.
fn is_users_alias(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    name.starts_with("ua-") && name.chars().all(is_plain)
}

/// Memory devices get slots; gives the sum of their sizes in KiB.
pub(super) fn memory(draft: &mut Draft<'_>) -> Result<u64> {
    let mut sum = 0_u64;
    let slot = |device: &Element| number_of(device.child("address")?, "slot");
    let mut used: std::collections::BTreeSet<u32> = draft.of("memory").filter_map(slot).collect();
    for device in draft.of_mut("memory") {
        if device.attr("model").is_none() {
            return Err(bad("a <memory> device has no model"));
        }
        let target = device.child_mut("target").ok_or_else(|| bad("<memory> has no <target>"))?;
        let size = target.child_mut("size").ok_or_else(|| bad("<memory> has no <size>"))?;
        let value = super::general::kib(size)?;
        super::general::set_kib(size, value);
        sum = sum.saturating_add(value);
        set_default_text(target, "node", "0");
        if slot(device).is_none() {
            let free = (0..).find(|slot| !used.contains(slot)).unwrap_or_default();
            used.insert(free);
            device.remove_children("address");
            device.push(
                Element::new("address")
                    .with_attr("type", "dimm")
                    .with_attr("slot", free.to_string()),
            );
        }
    }
    Ok(sum)
}

fn set_default_text(parent: &mut Element, name: &str, text: &str) {
    if parent.child(name).is_none() {
        parent.child_or_insert(name).set_text(text);
    }
}

fn sort_disks(draft: &mut Draft<'_>) -> Result<()> {
    let mut sorted: Vec<Element> = Vec::new();
    let key = |disk: &Element| {
        let target = disk.child("target");
        let name = target.and_then(|target| target.attr("dev")).unwrap_or_default();
        let bus = target.and_then(|target| target.attr("bus")).unwrap_or_default();
        (bus.to_owned(), disk_index(name))
    };
    for disk in draft.of("disk") {
        let (bus, index) = key(disk);
        let name = disk.child("target").and_then(|target| target.attr("dev")).unwrap_or_default();
        if name.is_empty() {
            return Err(bad("a disk has no target dev"));
        }
        if index.is_none() {
            return Err(bad(format!("'{name}' is not a disk name such as vda, sdb or hdc")));
        }
        let mut at = None;
        for (position, other) in sorted.iter().enumerate().rev() {
            let (other_bus, other_index) = key(other);
            if other_bus != bus {
                continue;
            }
            if other_index > index {
                at = Some(position);
            } else if at.is_none() {
                at = Some(position + 1);
            }
        }
        sorted.insert(at.unwrap_or(sorted.len()), disk.clone());
    }
    for (at, disk) in draft.positions("disk").into_iter().zip(sorted) {
        draft.devices[at] = disk;
    }
    let mut names = std::collections::BTreeSet::new();
    for disk in draft.of("disk") {
        let name = disk.child("target").and_then(|target| target.attr("dev")).unwrap_or_default();
        if !names.insert(name) {
            return Err(bad(format!("the disk target '{name}' is used twice")));
        }
    }
    Ok(())
}

fn sort_controllers(draft: &mut Draft<'_>) -> Result<()> {
    let controllers: Vec<Element> = draft.of("controller").cloned().collect();
    draft.devices.retain(|device| device.name() != "controller");
    for controller in controllers {
        if controller.attr("type").is_none() {
            return Err(bad("a <controller> has no type"));
        }
        checked_number(&controller, "index")?;
        draft.insert_controller(controller);
    }
    index_controllers(draft);
    let mut seen = std::collections::BTreeSet::new();
    for controller in draft.of("controller").filter(|c| c.attr("type") != Some("usb")) {
        let kind = controller.attr("type").unwrap_or_default();
        let index = number_of(controller, "index").unwrap_or_default();
        if !seen.insert((kind, index)) {
            return Err(bad(format!("there are two {kind} controllers with index {index}")));
        }
    }
    Ok(())
}

fn is_usb2(controller: &Element) -> bool {
    controller.attr("type") == Some("usb")
        && controller.attr("model").is_some_and(|model| model.starts_with("ich9-"))
}

/// Gives the lowest free index to a controller without one; companions of one USB 2 controller
/// share theirs.
fn index_controllers(draft: &mut Draft<'_>) {
    let mut reinsert = false;
    let positions = draft.positions("controller");
    for (nth, at) in positions.iter().enumerate() {
        let Some(controller) = draft.devices.get(*at) else { continue };
        if controller.attr("index").is_some() {
            continue;
        }
        let kind = controller.attr("type").unwrap_or_default().to_owned();
        let mut index = None;
        if nth > 0 && is_usb2(controller) {
            reinsert = true;
            let model = controller.attr("model");
            let before = positions[..nth].iter().rev().filter_map(|at| draft.devices.get(*at));
            let mut usb = before.filter(|other| other.attr("type") == Some("usb"));
            let previous = usb.next().filter(|previous| is_usb2(previous));
            index = previous.and_then(|previous| number_of(previous, "index")).filter(|index| {
                !draft.controllers("usb").any(|other| {
                    number_of(other, "index") == Some(*index) && other.attr("model") == model
                })
            });
        }
        let index = index
            .or_else(|| (0..).find(|index| draft.controller(&kind, *index).is_none()))
            .unwrap_or_default();
        draft.devices[*at].set_attr("index", index.to_string());
    }
    if reinsert {
        let controllers: Vec<Element> = draft.of("controller").cloned().collect();
        draft.devices.retain(|device| device.name() != "controller");
        for controller in controllers {
            draft.insert_controller(controller);
        }
    }
}

/// Devices that a PC has whether the definition names them or not.
pub(super) fn add_implicit(draft: &mut Draft<'_>) -> Result<()> {
    if !draft.has("emulator") {
        let mut emulator = Element::new("emulator");
        emulator.set_text(draft.host.emulator.clone());
        draft.devices.push(emulator);
    }
    let ps2 = draft.root.at(&["features", "ps2"]).and_then(|ps2| ps2.attr("state"));
    if ps2 != Some("off") {
        for kind in ["mouse", "keyboard"] {
            let there = |input: &Element| {
                input.attr("type") == Some(kind) && input.attr("bus") == Some("ps2")
            };
            if !draft.of("input").any(there) {
                draft
                    .devices
                    .push(Element::new("input").with_attr("type", kind).with_attr("bus", "ps2"));
            }
        }
    }
    if draft.controller("usb", 0).is_none() {
        let model = if draft.q35 { Some("qemu-xhci") } else { None };
        draft.ensure_controller("usb", 0, model);
    }
    let root = if draft.q35 { "pcie-root" } else { "pci-root" };
    if draft.q35 {
        draft.ensure_controller("sata", 0, None);
    }
    match draft.controller("pci", 0) {
        Some(controller) if controller.attr("model") != Some(root) => {
            return Err(bad(format!(
                "the PCI controller with index 0 of this machine type is a {root}"
            )));
        }
        _ => draft.ensure_controller("pci", 0, Some(root)),
    };
    if !draft.has("memballoon") {
        draft.devices.push(Element::new("memballoon").with_attr("model", "virtio"));
    }
    if draft.q35 && !draft.of("watchdog").any(|dog| dog.attr("model") == Some("itco")) {
        let first = draft.of("watchdog").next().and_then(|dog| dog.attr("action"));
        let action = first.unwrap_or("reset").to_owned();
        draft
            .devices
            .push(Element::new("watchdog").with_attr("model", "itco").with_attr("action", action));
    }
    if !draft.has("audio") {
        let kinds = draft.of("graphics").filter_map(|g| g.attr("type"));
        let last = kinds.filter(|kind| matches!(*kind, "vnc" | "spice")).last();
        let backend = match last {
            Some("spice") => Some("spice"),
            Some(_) => Some("none"),
            None if draft.has("graphics") => None,
            None => Some("none"),
        };
        if let Some(backend) = backend {
            let audio = Element::new("audio").with_attr("id", "1").with_attr("type", backend);
            draft.devices.push(audio);
        }
    }
    Ok(())
}

/// Every device on its own.
pub(super) fn complete(draft: &mut Draft<'_>) -> Result<()> {
    let (host, q35) = (draft.host, draft.q35);
    for device in &mut draft.devices {
        match device.name() {
            "disk" => disk(device, q35)?,
            "controller" => controller(device, host.devices.lsi),
            "interface" => interface(device, host.devices.rtl8139)?,
            "input" => input(device)?,
            "graphics" => graphics(device)?,
            "video" => video(device, host.devices.cirrus)?,
            "sound" => sound(device)?,
            "tpm" => tpm(device)?,
            "watchdog" => set_default(device, "action", "reset"),
            "memballoon" => memballoon(device)?,
            "rng" => rng(device)?,
            "filesystem" => {
                set_default(device, "type", "mount");
                set_default(device, "accessmode", "passthrough");
            }
            "panic" => set_default(device, "model", "isa"),
            "vsock" => vsock(device),
            "hub" if device.attr("type").is_none() => return Err(bad("a <hub> has no type")),
            _ => {}
        }
    }
    check_panics(draft)
}

/// The first screen is the primary one, and there is one where there are graphics.
pub(super) fn primary_video(draft: &mut Draft<'_>) -> Result<()> {
    if !draft.has("video") && draft.has("graphics") {
        let mut screen = Element::new("video");
        video(&mut screen, draft.host.devices.cirrus)?;
        draft.devices.push(screen);
    }
    let primary = |screen: &Element| {
        screen.child("model").is_some_and(|model| model.attr("primary") == Some("yes"))
    };
    let positions = draft.positions("video");
    let chosen = positions.iter().find(|at| primary(&draft.devices[**at])).copied();
    if let (Some(chosen), Some(first)) = (chosen, positions.first().copied()) {
        let screen = draft.devices.remove(chosen);
        draft.devices.insert(first, screen);
    }
    for (nth, screen) in draft.of_mut("video").enumerate() {
        let model = screen.child_or_insert("model");
        model.remove_attr("primary");
        if model.attr("type") == Some("none") {
            *model = Element::new("model").with_attr("type", "none");
            screen.remove_children("address");
        } else if nth == 0 {
            model.set_attr("primary", "yes");
        }
    }
    Ok(())
}

/// Controllers that disks name by their addresses.
pub(super) fn disk_controllers(draft: &mut Draft<'_>) {
    for (kind, bus) in [("scsi", "scsi"), ("fdc", "fdc"), ("ide", "ide"), ("sata", "sata")] {
        let highest = draft
            .of("disk")
            .filter(|disk| disk.child("target").and_then(|t| t.attr("bus")) == Some(bus))
            .filter_map(|disk| disk.child("address"))
            .filter(|address| address.attr("type") == Some("drive"))
            .filter_map(|address| number_of(address, "controller"))
            .max();
        let Some(highest) = highest else { continue };
        // No machine has more; a larger number is a slip, and refused when it finds no slot.
        for index in 0..=highest.min(255) {
            let model =
                if kind == "scsi" { Some(scsi_model(draft.host.devices.lsi)) } else { None };
            draft.ensure_controller(kind, index, model);
        }
    }
}

fn scsi_model(lsi: bool) -> &'static str {
    if lsi { "lsilogic" } else { "virtio-scsi" }
}

fn disk(disk: &mut Element, q35: bool) -> Result<()> {
    set_default(disk, "type", "file");
    set_default(disk, "device", "disk");
    let device = disk.attr("device").unwrap_or_default().to_owned();
    let target = disk.child_or_insert("target");
    let name = target.attr("dev").unwrap_or_default().to_owned();
    let bus = match target.attr("bus") {
        Some(bus) => bus.to_owned(),
        None => match (device.as_str(), name.get(..2)) {
            ("floppy", _) => "fdc",
            (_, Some("sd")) => "scsi",
            (_, Some("vd")) => "virtio",
            _ => "ide",
        }
        .to_owned(),
    };
    target.set_attr("bus", bus.clone());
    target.remove_attr("tray");
    check_disk(&name, &device, &bus, q35)?;
    let driver = disk.child_or_insert("driver");
    set_default(driver, "name", "qemu");
    set_default(driver, "type", "raw");
    disk_source(disk, &name, &device)?;
    if device == "cdrom" {
        disk.child_or_insert("readonly");
    }
    if disk.child("readonly").is_some() && disk.attr("snapshot") == Some("no") {
        disk.remove_attr("snapshot");
    }
    if disk.child("address").is_none() {
        drive_address(disk, &bus, disk_index(&name).unwrap_or_default());
    } else if let Some(address) = disk.child_mut("address")
        && address.attr("type") == Some("drive")
    {
        for part in ["controller", "bus", "target", "unit"] {
            let value = checked_number(address, part)?.unwrap_or(0);
            address.set_attr(part, value.to_string());
        }
    }
    Ok(())
}

fn check_disk(name: &str, device: &str, bus: &str, q35: bool) -> Result<()> {
    let problem = match (device, bus) {
        ("floppy", "fdc") => None,
        ("floppy", _) | (_, "fdc") => Some("a floppy, and only a floppy, is on the bus fdc"),
        (_, "ide") if q35 => Some("a q35 machine has no IDE: use sata, scsi or virtio"),
        ("cdrom", "virtio") => Some("a cdrom cannot be on the bus virtio: use sata, ide or scsi"),
        ("lun", "virtio" | "scsi") => None,
        ("lun", _) => Some("device 'lun' needs the bus virtio or scsi"),
        _ => None,
    };
    match problem {
        Some(problem) => Err(unsupported(format!("disk {name}: {problem}"))),
        None => Ok(()),
    }
}

fn disk_source(disk: &mut Element, name: &str, device: &str) -> Result<()> {
    // What follows of a running guest is found again at its next start.
    disk.remove_children("mirror");
    if disk.child("source").is_some_and(|source| source.attr("index").is_some()) {
        disk.remove_children("backingStore");
    }
    let attribute = if disk.attr("type") == Some("block") { "dev" } else { "file" };
    let mut empty = true;
    if let Some(source) = disk.child_mut("source") {
        source.remove_attr("index");
        if source.attr(attribute) == Some("") {
            source.remove_attr(attribute);
        }
        empty = source.attr(attribute).is_none();
        for label in source.children_mut("seclabel") {
            label.remove_attr("type");
        }
    }
    if empty && !matches!(device, "cdrom" | "floppy") {
        return Err(bad(format!("disk {name} has no source {attribute}")));
    }
    Ok(())
}

fn drive_address(disk: &mut Element, bus: &str, index: u32) {
    let (controller, bus, unit) = match bus {
        "scsi" => (index / 7, 0, index % 7),
        "ide" => (index / 4, (index % 4) / 2, index % 2),
        "sata" => (index / 6, 0, index % 6),
        "fdc" => (index / 2, 0, index % 2),
        _ => return,
    };
    disk.push(
        Element::new("address")
            .with_attr("type", "drive")
            .with_attr("controller", controller.to_string())
            .with_attr("bus", bus.to_string())
            .with_attr("target", "0")
            .with_attr("unit", unit.to_string()),
    );
}

fn controller(controller: &mut Element, lsi: bool) {
    match controller.attr("type") {
        Some("usb") => set_default(controller, "model", "piix3-uhci"),
        Some("scsi") if controller.attr("model").is_none_or(|model| model == "auto") => {
            controller.set_attr("model", scsi_model(lsi));
        }
        _ => {}
    }
}

fn interface(interface: &mut Element, rtl8139: bool) -> Result<()> {
    let kind = interface.attr("type").ok_or_else(|| bad("an <interface> has no type"))?.to_owned();
    let source = interface.child("source");
    let needed = match kind.as_str() {
        "bridge" => Some("bridge"),
        "network" => Some("network"),
        _ => None,
    };
    match needed {
        Some(name) if source.and_then(|source| source.attr(name)).is_none_or(str::is_empty) => {
            return Err(bad(format!("an <interface> of type {kind} needs a source {name}")));
        }
        Some("network") => {
            interface.child_or_insert("source").remove_attr("portid");
            interface.child_or_insert("source").remove_attr("bridge");
        }
        Some(_) => {}
        None if matches!(kind.as_str(), "mcast" | "server" | "client" | "udp") => {
            if source.and_then(|source| source.attr("port")).is_none() {
                return Err(bad(format!("an <interface> of type {kind} needs a source port")));
            }
        }
        None => interface.remove_children("source"),
    }
    let mac = interface.child_or_insert("mac");
    let address = match mac.attr("address") {
        Some(address) => {
            normal_mac(address).ok_or_else(|| bad(format!("'{address}' is not a MAC address")))?
        }
        None => generated_mac(),
    };
    mac.set_attr("address", address);
    let default = if rtl8139 { "rtl8139" } else { "e1000" };
    let model = interface.child_or_insert("model");
    set_default(model, "type", default);
    if !model.attr("type").is_some_and(|model| model.starts_with("virtio")) {
        interface.remove_children("driver");
    }
    let generated = |target: &Element| {
        let name = target.attr("dev").unwrap_or_default();
        target.attr("managed") != Some("no")
            && ["vnet", "macvtap", "macvlan"].iter().any(|prefix| name.starts_with(prefix))
    };
    for target in interface.children_mut("target").filter(|target| generated(target)) {
        target.remove_attr("dev");
    }
    Ok(())
}

fn normal_mac(text: &str) -> Option<String> {
    let octets: Vec<u8> = text
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16).ok().filter(|_| octet.len() <= 2))
        .collect::<Option<_>>()?;
    let multicast = octets.first().is_some_and(|first| first & 1 == 1);
    if octets.len() != 6 || multicast {
        return None;
    }
    Some(octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":"))
}

fn generated_mac() -> String {
    let [a, b, c, ..] = *Uuid::new_v4().as_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

fn input(input: &mut Element) -> Result<()> {
    let default = match input.attr("type") {
        Some("mouse" | "keyboard") => "ps2",
        Some("tablet") => "usb",
        Some("passthrough") => "virtio",
        Some(_) => return Ok(()),
        None => return Err(bad("an <input> has no type")),
    };
    set_default(input, "bus", default);
    Ok(())
}

fn graphics(graphics: &mut Element) -> Result<()> {
    let kind = graphics.attr("type").unwrap_or_default().to_owned();
    if kind.is_empty() {
        return Err(bad("a <graphics> has no type"));
    }
    if kind == "egl-headless" {
        return Ok(());
    }
    let address = graphics.remove_attr("listen");
    if graphics.child("listen").is_none() {
        let mut listen = Element::new("listen").with_attr("type", "address");
        if let Some(address) = &address {
            listen.set_attr("address", address.clone());
        }
        graphics.push(listen);
    }
    if graphics.children("listen").count() > 1 {
        return Err(unsupported("graphics with more than one <listen> are not supported"));
    }
    for listen in graphics.children_mut("listen") {
        if listen.attr("type") == Some("network") {
            // The address is found again at each start.
            listen.remove_attr("address");
        }
    }
    if kind == "vnc" {
        vnc_port(graphics)?
    } else {
        spice_port(graphics)?
    };
    let listen = graphics.child("listen").cloned().unwrap_or_default();
    match listen.attr("type") {
        Some("address") => match (listen.attr("address"), address) {
            (Some(of_child), Some(attribute)) if of_child != attribute => {
                return Err(bad(format!(
                    "graphics listen on '{attribute}' by attribute and on '{of_child}' by element"
                )));
            }
            (Some(of_child), _) => graphics.set_attr("listen", of_child),
            (None, _) => {}
        },
        Some("socket" | "none") => {
            for attribute in ["port", "tlsPort", "autoport"] {
                graphics.remove_attr(attribute);
            }
            if let Some(path) = listen.attr("socket").filter(|_| kind == "vnc") {
                graphics.set_attr("socket", path);
            }
        }
        _ => {}
    }
    spice_channels(graphics);
    Ok(())
}

fn port(graphics: &Element, attribute: &str) -> Result<i64> {
    let Some(text) = graphics.attr(attribute) else { return Ok(0) };
    text.parse::<i64>()
        .ok()
        .filter(|port| (-1..=65535).contains(port))
        .ok_or_else(|| bad(format!("'{text}' is not a port for graphics")))
}

fn vnc_port(graphics: &mut Element) -> Result<()> {
    let given = graphics.attr("port").is_some();
    let number = port(graphics, "port")?;
    let auto = match graphics.attr("autoport") {
        Some(auto) => auto == "yes",
        None => !given || number == -1,
    };
    if auto || number <= 0 {
        graphics.set_attr("port", "-1");
    }
    graphics.set_attr("autoport", if auto { "yes" } else { "no" });
    Ok(())
}

fn spice_port(graphics: &mut Element) -> Result<()> {
    let ports = [("port", port(graphics, "port")?), ("tlsPort", port(graphics, "tlsPort")?)];
    if ports.iter().any(|(name, port)| *name == "tlsPort" && *port > 0) {
        return Err(unsupported(
            "graphics spice: a tlsPort needs TLS, which is not configured on this host",
        ));
    }
    let auto =
        graphics.attr("autoport") == Some("yes") || ports.iter().any(|(_, port)| *port == -1);
    for (attribute, number) in ports {
        if auto || number == 0 {
            graphics.remove_attr(attribute);
        }
    }
    graphics.set_attr("autoport", if auto { "yes" } else { "no" });
    let nowhere = graphics.attr("port").is_none() && graphics.attr("tlsPort").is_none() && !auto;
    if let Some(listen) = graphics.child_mut("listen")
        && nowhere
        && listen.attr("type") == Some("address")
    {
        *listen = Element::new("listen").with_attr("type", "none");
    }
    Ok(())
}

fn spice_channels(graphics: &mut Element) {
    const ORDER: [&str; 8] =
        ["main", "display", "inputs", "cursor", "playback", "record", "smartcard", "usbredir"];
    graphics.nodes_mut().sort_by_key(|node| match node {
        Node::Element(channel) if channel.name() == "channel" => {
            let name = channel.attr("name").unwrap_or_default();
            ORDER.iter().position(|known| *known == name)
        }
        _ => None,
    });
    graphics.nodes_mut().retain(|node| match node {
        Node::Element(channel) => {
            channel.attr("mode") != Some("any") || channel.name() != "channel"
        }
        _ => true,
    });
    if graphics.attr("defaultMode") == Some("any") {
        graphics.remove_attr("defaultMode");
    }
}

fn video(screen: &mut Element, cirrus: bool) -> Result<()> {
    let model = screen.child_or_insert("model");
    set_default(model, "type", if cirrus { "cirrus" } else { "vga" });
    set_default(model, "heads", "1");
    match model.attr("type").unwrap_or_default() {
        "vga" | "cirrus" | "vmvga" | "bochs" => set_default(model, "vram", VIDEO_MEMORY),
        "qxl" => {
            set_default(model, "ram", QXL_MEMORY);
            set_default(model, "vram", QXL_MEMORY);
            set_default(model, "vgamem", VIDEO_MEMORY);
        }
        _ => {}
    }
    for memory in ["ram", "vram"] {
        if let Some(size) = checked_number(model, memory)? {
            let size = size.checked_next_power_of_two();
            let size = size.ok_or_else(|| bad("a screen has too much memory"))?;
            model.set_attr(memory, size.to_string());
        }
    }
    Ok(())
}

fn sound(sound: &mut Element) -> Result<()> {
    match sound.attr("model") {
        None => Err(bad("a <sound> has no model")),
        Some("ich7") => Err(unsupported("QEMU has no sound card of model ich7: use ich6 or ich9")),
        Some("virtio") => {
            set_default(sound, "streams", "2");
            Ok(())
        }
        Some(_) => Ok(()),
    }
}

fn tpm(tpm: &mut Element) -> Result<()> {
    set_default(tpm, "model", "tpm-tis");
    let version = if tpm.attr("model") == Some("tpm-tis") { "1.2" } else { "2.0" };
    let backend = tpm.child_mut("backend").ok_or_else(|| bad("a <tpm> has no <backend>"))?;
    if backend.attr("type").is_none() {
        return Err(bad("the <backend> of a <tpm> has no type"));
    }
    set_default(backend, "version", version);
    if backend.attr("persistent_state") == Some("no") {
        backend.remove_attr("persistent_state");
    }
    Ok(())
}

fn memballoon(balloon: &mut Element) -> Result<()> {
    match balloon.attr("model") {
        None => return Err(bad("a <memballoon> has no model")),
        Some("none") => balloon.remove_children("address"),
        Some(_) => {}
    }
    Ok(())
}

fn rng(rng: &mut Element) -> Result<()> {
    set_default(rng, "model", "virtio");
    let backend = rng.child_mut("backend").ok_or_else(|| bad("an <rng> has no <backend>"))?;
    match backend.attr("model") {
        Some("random") if backend.text().trim().is_empty() => backend.set_text("/dev/random"),
        Some(_) => {}
        None => return Err(bad("the <backend> of an <rng> has no model")),
    }
    Ok(())
}

fn vsock(vsock: &mut Element) {
    set_default(vsock, "model", "virtio");
    let cid = vsock.child_or_insert("cid");
    if cid.attr("auto").is_none() {
        let auto = if cid.attr("address").is_some() { "no" } else { "yes" };
        cid.set_attr("auto", auto);
    }
}

fn check_panics(draft: &Draft<'_>) -> Result<()> {
    let mut models = std::collections::BTreeSet::new();
    for panic in draft.of("panic") {
        let model = panic.attr("model").unwrap_or_default();
        if !models.insert(model) {
            return Err(bad(format!("there are two panic devices of model {model}")));
        }
    }
    Ok(())
}
