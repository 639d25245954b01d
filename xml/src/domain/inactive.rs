//! A live definition as libvirt prints it with VIR_DOMAIN_XML_INACTIVE, and any definition as it
//! is printed without VIR_DOMAIN_XML_SECURE.
//!
//! What was assigned for one run goes: id, aliases, ports, paths of terminals and sockets, names
//! of tap devices, block node indexes, detected backing chains, running mirrors, labels.

use crate::element::Element;

/// Prefixes of network device names that libvirt generates.
const GENERATED_TAPS: [&str; 3] = ["vnet", "macvtap", "macvlan"];

/// The definition without what was assigned for one run.
#[must_use]
pub fn to_inactive(mut domain: Element) -> Element {
    domain.remove_attr("id");
    domain.nodes_mut().retain(|node| {
        !matches!(node, crate::element::Node::Element(label)
            if label.name() == "seclabel" && is_implicit_label(label))
    });
    for label in domain.children_mut("seclabel") {
        if label.attr("type").is_none_or(|kind| kind == "dynamic") {
            label.remove_children("label");
            label.remove_children("imagelabel");
        }
    }
    if let Some(devices) = domain.child_mut("devices") {
        for device in devices.elements_mut() {
            drop_assigned_alias(device);
            match device.name() {
                "disk" => disk(device),
                "interface" => interface(device),
                "graphics" => graphics(device),
                "serial" | "parallel" | "console" | "channel" | "redirdev" | "smartcard"
                | "rng" | "shmem" => character_device(device),
                "memory" => {
                    if let Some(target) = device.child_mut("target") {
                        target.remove_children("current");
                    }
                }
                _ => {}
            }
        }
    }
    domain
}

/// The definition without passwords and cookies.
#[must_use]
pub fn without_secrets(mut domain: Element) -> Element {
    if let Some(devices) = domain.child_mut("devices") {
        for graphics in devices.children_mut("graphics") {
            graphics.remove_attr("passwd");
        }
        for disk in devices.children_mut("disk") {
            drop_cookies(disk);
        }
    }
    domain
}

/// Of sources, mirrors and backing stores alike.
fn drop_cookies(layer: &mut Element) {
    for child in layer.elements_mut() {
        match child.name() {
            "source" => child.remove_children("cookies"),
            "backingStore" | "mirror" | "dataStore" => drop_cookies(child),
            _ => {}
        }
    }
}

/// Added for the run by a security driver, with nothing said by the user.
fn is_implicit_label(label: &Element) -> bool {
    label.attr("type") == Some("dynamic")
        && label.child("imagelabel").is_some()
        && label.child("baselabel").is_none()
}

/// Users' own aliases begin with `ua-` and stay.
fn drop_assigned_alias(device: &mut Element) {
    let user = device.child("alias").and_then(|alias| alias.attr("name"));
    if user.is_none_or(|name| !name.starts_with("ua-")) {
        device.remove_children("alias");
    }
}

fn disk(disk: &mut Element) {
    disk.remove_children("mirror");
    // A live chain numbers its layers, and was probed from the images. An empty one, which ends
    // the chain of a single image, was either probed or does no harm to lose.
    let live = disk.child("source").is_some_and(|source| source.attr("index").is_some());
    if live {
        disk.remove_children("backingStore");
    }
    drop_index(disk);
}

fn drop_index(layer: &mut Element) {
    layer.remove_attr("index");
    for child in layer.elements_mut() {
        if matches!(child.name(), "source" | "backingStore" | "dataStore") {
            drop_index(child);
        }
    }
}

fn interface(interface: &mut Element) {
    let generated = interface.child("target").is_some_and(|target| {
        let dev = target.attr("dev").unwrap_or_default();
        target.attr("managed") != Some("no")
            && GENERATED_TAPS.iter().any(|prefix| dev.starts_with(prefix))
    });
    if generated && let Some(target) = interface.child_mut("target") {
        target.remove_attr("dev");
        if target.attributes().next().is_none() {
            interface.remove_children("target");
        }
    }
    if let Some(mac) = interface.child_mut("mac") {
        mac.remove_attr("currentAddress");
    }
    if interface.attr("type") == Some("network")
        && let Some(source) = interface.child_mut("source")
    {
        source.remove_attr("portid");
        source.remove_attr("bridge");
    }
}

fn graphics(graphics: &mut Element) {
    graphics.remove_attr("connected");
    if graphics.attr("autoport") == Some("yes") {
        if graphics.attr("type") == Some("vnc") {
            graphics.set_attr("port", "-1");
        } else {
            graphics.remove_attr("port");
            graphics.remove_attr("tlsPort");
        }
    }
    let by_network =
        graphics.child("listen").is_some_and(|listen| listen.attr("type") == Some("network"));
    if by_network {
        graphics.remove_attr("listen");
    }
    for listen in graphics.children_mut("listen") {
        if listen.attr("type") == Some("network") {
            listen.remove_attr("address");
        }
    }
}

fn character_device(device: &mut Element) {
    device.remove_attr("tty");
    let pty = device.attr("type") == Some("pty");
    let assigned_socket = device.name() == "channel"
        && device.attr("type") == Some("unix")
        && device
            .child("source")
            .and_then(|source| source.attr("path"))
            .is_some_and(is_assigned_socket);
    if let Some(target) = device.child_mut("target") {
        target.remove_attr("state");
    }
    if assigned_socket {
        device.remove_children("source");
    } else if pty && let Some(source) = device.child_mut("source") {
        source.remove_attr("path");
        if source.attributes().next().is_none() && source.nodes().is_empty() {
            device.remove_children("source");
        }
    }
}

/// `…/1-NAME/CHANNEL`, or `…/domain-1-NAME/CHANNEL` of older libvirt.
fn is_assigned_socket(path: &str) -> bool {
    let Some(directory) = path.rsplit('/').nth(1) else { return false };
    let run = directory.strip_prefix("domain-").unwrap_or(directory);
    run.split_once('-')
        .is_some_and(|(id, _)| !id.is_empty() && id.chars().all(|c| c.is_ascii_digit()))
}
