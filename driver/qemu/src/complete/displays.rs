//! Displays: VNC and SPICE servers, and the screens they show.

use virtsnap_engine::definition::{bad, checked_number, set_default, unsupported};
use virtsnap_engine::error::Result;
use virtsnap_xml::element::{Element, Node};

use super::draft::Draft;

/// What libvirt gives an emulated VGA, in KiB.
const VIDEO_MEMORY: &str = "16384";
const QXL_MEMORY: &str = "65536";

pub(super) fn graphics(graphics: &mut Element) -> Result<()> {
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

pub(super) fn video(screen: &mut Element, cirrus: bool) -> Result<()> {
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
