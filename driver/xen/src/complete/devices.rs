//! Devices other than disks and consoles: interfaces, input, displays, and what every guest has.

use std::collections::BTreeSet;

use uuid::Uuid;
use virtsnap_engine::definition::{self, bad, checked_number, set_default, unsupported};
use virtsnap_engine::error::Result;
use virtsnap_xml::element::Element;

use crate::guest::Guest;

/// What libvirt gives a display, in KiB.
const PV_VIDEO: &str = "4096";
const VGA_VIDEO: u32 = 16384;
const CIRRUS_VIDEO: u32 = 8192;
const QXL_VIDEO: u32 = 131_072;

pub(super) fn complete(devices: &mut Element, guest: Guest) -> Result<()> {
    controllers(devices)?;
    ensure_controller(devices, "xenbus", 0);
    for device in devices.children_mut("interface") {
        interface(device, guest)?;
    }
    for device in devices.children_mut("input") {
        input(device, guest)?;
    }
    for kind in ["mouse", "keyboard"] {
        ensure_input(devices, kind, if guest.is_hvm() { "ps2" } else { "xen" });
    }
    for device in devices.children_mut("graphics") {
        graphics(device, guest)?;
    }
    videos(devices, guest)?;
    if !guest.is_hvm() && devices.child("sound").is_some() {
        return Err(unsupported("<sound>: only a guest of OS type 'hvm' has a sound card"));
    }
    if devices.children("sound").any(|sound| sound.attr("model").is_none()) {
        return Err(bad("a <sound> has no model"));
    }
    if devices.children("memballoon").count() > 1 {
        return Err(bad("there is more than one <memballoon>"));
    }
    set_default(devices.child_or_insert("memballoon"), "model", "xen");
    Ok(())
}

fn controllers(devices: &mut Element) -> Result<()> {
    let mut seen = BTreeSet::new();
    for controller in devices.children_mut("controller") {
        let kind = controller.attr("type").unwrap_or_default().to_owned();
        if kind.is_empty() {
            return Err(bad("a <controller> has no type"));
        }
        let index = match checked_number(controller, "index")? {
            Some(index) => index,
            None => (0..).find(|index| !seen.contains(&(kind.clone(), *index))).unwrap_or_default(),
        };
        controller.set_attr("index", index.to_string());
        for limit in ["maxEventChannels", "maxGrantFrames"] {
            let Some(most) = checked_number(controller, limit)? else { continue };
            if kind != "xenbus" {
                return Err(bad(format!("{limit} is of the controller 'xenbus', not of '{kind}'")));
            }
            controller.set_attr(limit, most.to_string());
        }
        if !seen.insert((kind.clone(), index)) {
            return Err(bad(format!("there are two {kind} controllers with index {index}")));
        }
    }
    Ok(())
}

pub(super) fn ensure_controller(devices: &mut Element, kind: &str, index: u32) {
    let index = index.to_string();
    let has = devices
        .children("controller")
        .any(|c| c.attr("type") == Some(kind) && c.attr("index") == Some(&index));
    if !has {
        devices.push(Element::new("controller").with_attr("type", kind).with_attr("index", index));
    }
}

fn interface(interface: &mut Element, guest: Guest) -> Result<()> {
    let kind = interface.attr("type").unwrap_or_default().to_owned();
    let needed = match kind.as_str() {
        "bridge" => Some("bridge"),
        "network" => Some("network"),
        "ethernet" => None,
        _ => return Err(bad("an <interface> has no type")),
    };
    if let Some(needed) = needed
        && interface.child("source").and_then(|source| source.attr(needed)).is_none()
    {
        return Err(bad(format!("an <interface> of type {kind} needs a source {needed}")));
    }
    definition::mac(interface, generated_mac)?;
    if kind == "network" && interface.child("script").is_some() {
        return Err(unsupported(
            "an <interface> of type network has no <script>: use the types bridge or ethernet",
        ));
    }
    for target in interface.children_mut("target") {
        // Such names are given at each start.
        if target.attr("dev").is_some_and(|dev| dev.starts_with("vif")) {
            target.remove_attr("dev");
        }
    }
    for ip in interface.children_mut("ip") {
        let text = ip.attr("address").unwrap_or_default().to_owned();
        let address: std::net::IpAddr =
            text.parse().map_err(|_| bad(format!("'{text}' is not an IP address")))?;
        ip.set_attr("family", if address.is_ipv4() { "ipv4" } else { "ipv6" });
    }
    for limit in interface.children_mut("bandwidth").flat_map(Element::elements_mut) {
        if let Some(average) = checked_number(limit, "average")? {
            limit.set_attr("average", average.to_string());
        }
    }
    match interface.child("model").map(|model| model.attr("type").unwrap_or_default()) {
        Some("") => Err(bad("an interface's <model> has no type")),
        Some(model) if model != "netfront" && !guest.is_hvm() => Err(unsupported(format!(
            "the interface model '{model}' is emulated, and a guest of OS type '{}' has none but \
             netfront",
            guest.os_type()
        ))),
        _ => Ok(()),
    }
}

/// In the range that is Xen's.
fn generated_mac() -> String {
    let [a, b, c, ..] = *Uuid::new_v4().as_bytes();
    format!("00:16:3e:{:02x}:{b:02x}:{c:02x}", a & 0x7f)
}

fn input(input: &mut Element, guest: Guest) -> Result<()> {
    let kind = match input.attr("type") {
        Some(kind) => kind.to_owned(),
        None => return Err(bad("an <input> has no type")),
    };
    let default = match kind.as_str() {
        _ if !guest.is_hvm() => "xen",
        "tablet" => "usb",
        _ => "ps2",
    };
    set_default(input, "bus", default);
    let bus = input.attr("bus").unwrap_or_default();
    let fits = match guest {
        Guest::Hvm if bus == "usb" => matches!(kind.as_str(), "mouse" | "tablet"),
        Guest::Hvm => bus == "ps2" && kind != "tablet",
        Guest::Pv | Guest::Pvh => bus == "xen" && kind != "tablet",
    };
    if fits {
        return Ok(());
    }
    let os_type = guest.os_type();
    Err(unsupported(format!("a guest of OS type '{os_type}' has no {kind} on the bus {bus}")))
}

fn ensure_input(devices: &mut Element, kind: &str, bus: &str) {
    let has = devices
        .children("input")
        .any(|input| input.attr("type") == Some(kind) && input.attr("bus") == Some(bus));
    if !has {
        devices.push(Element::new("input").with_attr("type", kind).with_attr("bus", bus));
    }
}

fn graphics(graphics: &mut Element, guest: Guest) -> Result<()> {
    match graphics.attr("type") {
        Some("vnc") => {}
        Some("spice") if guest.is_hvm() => {}
        Some(kind) => {
            let os_type = guest.os_type();
            return Err(unsupported(format!(
                "a guest of OS type '{os_type}' has no {kind} display"
            )));
        }
        None => return Err(bad("a <graphics> has no type")),
    }
    let attribute = graphics.remove_attr("listen");
    if graphics.children("listen").count() > 1 {
        return Err(unsupported("graphics with more than one <listen> are not supported"));
    }
    let listen = graphics.child_or_insert("listen");
    set_default(listen, "type", "address");
    match (listen.attr("address").map(str::to_owned), attribute) {
        (Some(element), Some(attribute)) if element != attribute => {
            return Err(bad(format!(
                "graphics listen on '{attribute}' by attribute and on '{element}' by element"
            )));
        }
        (Some(address), _) => graphics.set_attr("listen", address),
        (None, Some(address)) => {
            listen.set_attr("address", address.clone());
            graphics.set_attr("listen", address);
        }
        (None, None) => {}
    }
    let number: i64 = match graphics.attr("port") {
        None => -1,
        Some(text) => text
            .parse()
            .ok()
            .filter(|port| (-1..=65535).contains(port))
            .ok_or_else(|| bad(format!("'{text}' is not a port for graphics")))?,
    };
    let auto = graphics.attr("autoport") == Some("yes") || number <= 0;
    if !auto && number < i64::from(crate::config::FIRST_DISPLAY) {
        return Err(unsupported(format!(
            "graphics on port {number}: Xen counts displays from {}",
            crate::config::FIRST_DISPLAY
        )));
    }
    if auto {
        graphics.set_attr("port", "-1");
    }
    graphics.set_attr("autoport", if auto { "yes" } else { "no" });
    Ok(())
}

fn videos(devices: &mut Element, guest: Guest) -> Result<()> {
    if devices.child("graphics").is_some() && devices.child("video").is_none() {
        devices.push(Element::new("video"));
    }
    if devices.children("video").count() > 1 {
        return Err(unsupported("a Xen guest has one <video> at most"));
    }
    let Some(model) = devices.child_mut("video").map(|video| video.child_or_insert("model")) else {
        return Ok(());
    };
    // libvirt's, of a guest that has no emulated card at all.
    let default = if guest == Guest::Pv { "xen" } else { "cirrus" };
    set_default(model, "type", default);
    let least = match model.attr("type").unwrap_or_default() {
        "cirrus" => CIRRUS_VIDEO,
        "qxl" => QXL_VIDEO,
        _ => VGA_VIDEO,
    };
    if guest.is_hvm() {
        let kind = model.attr("type").unwrap_or_default().to_owned();
        let vram = checked_number(model, "vram")?.filter(|vram| *vram != 0).unwrap_or(least);
        if vram < least {
            return Err(unsupported(format!("a video of type {kind} needs {least} KiB at least")));
        }
        model.set_attr("vram", vram.to_string());
    } else {
        let vram = if guest == Guest::Pv { PV_VIDEO } else { "16384" };
        set_default(model, "vram", vram);
    }
    set_default(model, "heads", "1");
    set_default(model, "primary", "yes");
    Ok(())
}
