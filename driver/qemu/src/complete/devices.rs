//! Defaults of each device by itself: models, kinds, and the devices a PC always has.

use uuid::Uuid;
use virtsnap_engine::definition::{self, bad, checked_number, set_default, unsupported};
use virtsnap_engine::error::Result;
use virtsnap_xml::domain::scaled_bytes;
use virtsnap_xml::element::{Element, Node};

use super::draft::{Draft, number_of};
use super::{disks, displays, memory};

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
    disks::sort(draft)?;
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
        let value = memory::kib(size)?;
        memory::set_kib(size, value);
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
            "disk" => disks::complete(device, q35)?,
            "controller" => controller(device, host.devices.lsi),
            "interface" => interface(device, host.devices.rtl8139)?,
            "input" => input(device)?,
            "graphics" => displays::graphics(device)?,
            "video" => displays::video(device, host.devices.cirrus)?,
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
            "shmem" => shmem(device)?,
            "vsock" => vsock(device),
            "hub" if device.attr("type").is_none() => return Err(bad("a <hub> has no type")),
            _ => {}
        }
    }
    check_panics(draft)
}

fn controller(controller: &mut Element, lsi: bool) {
    match controller.attr("type") {
        Some("usb") => set_default(controller, "model", "piix3-uhci"),
        Some("scsi") if controller.attr("model").is_none_or(|model| model == "auto") => {
            controller.set_attr("model", disks::scsi_model(lsi));
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
    definition::mac(interface, generated_mac)?;
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

const MIB: u64 = 1 << 20;

fn shmem(shmem: &mut Element) -> Result<()> {
    let name = shmem.attr("name").unwrap_or_default().to_owned();
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(bad(format!("'{name}' cannot name a shared memory: it is a file's name")));
    }
    if shmem.child("model").and_then(|model| model.attr("type")).is_none() {
        return Err(unsupported(format!("shared memory '{name}' is not ivshmem-plain")));
    }
    let Some(size) = shmem.child_mut("size") else { return Ok(()) };
    let bytes = scaled_bytes(size, 1).filter(|bytes| bytes.is_power_of_two() && *bytes >= MIB);
    let Some(bytes) = bytes else {
        return Err(unsupported(format!(
            "the size of shared memory '{name}' is not a power of two of at least 1 MiB"
        )));
    };
    size.set_attr("unit", "M");
    size.set_text((bytes / MIB).to_string());
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
