//! Serial ports, consoles and channels: their defaults, and a console's double life.
//!
//! A paravirtual guest has one console, made by Xen. Of an emulated guest the first console is, in
//! libvirt, another name for its first serial port, and is written out as a copy of it.

use virtsnap_engine::definition::{bad, checked_number, set_default, unsupported};
use virtsnap_engine::error::Result;
use virtsnap_xml::element::Element;

use crate::guest::Guest;
use crate::host::Host;

pub(super) fn complete(devices: &mut Element, guest: Guest, host: &Host) -> Result<()> {
    for class in ["serial", "console", "channel"] {
        for device in devices.children_mut(class) {
            source(device, host)?;
        }
    }
    channels(devices)?;
    if guest.is_hvm() { emulated(devices) } else { paravirtual(devices, guest) }
}

/// libvirt's names of devices are of one run, where there are any.
fn source(device: &mut Element, host: &Host) -> Result<()> {
    let class = device.name().to_owned();
    let Some(kind) = device.attr("type").map(str::to_owned) else {
        return Err(bad(format!("a <{class}> has no type")));
    };
    device.remove_attr("tty");
    device.remove_children("alias");
    match kind.as_str() {
        "null" | "vc" | "stdio" | "pty" => device.remove_children("source"),
        "tcp" => {
            let source = device
                .child_mut("source")
                .filter(|source| source.attr("service").is_some())
                .ok_or_else(|| bad(format!("a <{class}> of type tcp needs a source service")))?;
            set_default(source, "mode", "connect");
            set_default(device.child_or_insert("protocol"), "type", "raw");
        }
        _ => {
            let path = device.child("source").and_then(|source| source.attr("path"));
            if class == "channel" && path.is_none_or(|path| host.is_generated(path)) {
                device.remove_children("source");
                return Ok(());
            }
            if path.is_none() {
                return Err(bad(format!("a <{class}> of type {kind} needs a source path")));
            }
            if kind == "unix"
                && let Some(source) = device.child_mut("source")
            {
                set_default(source, "mode", "connect");
            }
        }
    }
    Ok(())
}

fn channels(devices: &mut Element) -> Result<()> {
    for channel in devices.children_mut("channel") {
        let target =
            channel.child_mut("target").ok_or_else(|| bad("a <channel> has no <target>"))?;
        set_default(target, "type", "xen");
        target.remove_attr("state");
        if target.attr("name").is_none_or(str::is_empty) {
            return Err(bad("a <channel> to a Xen guest needs a target name"));
        }
    }
    Ok(())
}

fn paravirtual(devices: &mut Element, guest: Guest) -> Result<()> {
    if devices.child("serial").is_some() {
        return Err(unsupported(format!(
            "<serial>: a guest of OS type '{}' has a <console> of target type xen",
            guest.os_type()
        )));
    }
    if devices.children("console").count() > 1 {
        return Err(unsupported("a Xen guest has one <console>; use <channel> for more"));
    }
    let console = devices.child_or_insert("console");
    set_default(console, "type", "pty");
    let target = console.child_or_insert("target");
    set_default(target, "type", "xen");
    set_default(target, "port", "0");
    if console.attr("type") != Some("pty")
        || console.child("target").and_then(|target| target.attr("type")) != Some("xen")
    {
        return Err(unsupported("the <console> of this guest is Xen's own: a pty, of type xen"));
    }
    Ok(())
}

fn emulated(devices: &mut Element) -> Result<()> {
    let mut consoles: Vec<Element> = devices.children("console").cloned().collect();
    devices.remove_children("console");
    let is_serial = |console: &Element| {
        let kind = console.child("target").and_then(|target| target.attr("type"));
        kind.is_none_or(|kind| kind == "serial")
    };
    let mirrors = consoles.first().is_some_and(is_serial);
    if consoles.iter().skip(1).any(is_serial) {
        return Err(unsupported("only the first <console> can be a serial port"));
    }
    if mirrors {
        let console = consoles.remove(0);
        if devices.child("serial").is_none() {
            let mut serial = console.renamed("serial");
            serial.remove_children("target");
            devices.push(serial);
        }
    }
    let mut taken: Vec<u32> = Vec::new();
    for serial in devices.children_mut("serial") {
        let target = serial.child_or_insert("target");
        let port = match checked_number(target, "port")? {
            Some(port) => port,
            None => (0..).find(|port| !taken.contains(port)).unwrap_or_default(),
        };
        target.set_attr("port", port.to_string());
        taken.push(port);
    }
    if let Some(serial) = devices.child("serial") {
        let mut console = serial.clone().renamed("console");
        let port = console.child("target").and_then(|target| target.attr("port"));
        let port = port.unwrap_or("0").to_owned();
        console.remove_children("target");
        console.push(Element::new("target").with_attr("type", "serial").with_attr("port", port));
        consoles.insert(0, console);
    }
    for (nth, mut console) in consoles.into_iter().enumerate() {
        set_default(console.child_or_insert("target"), "port", &nth.to_string());
        devices.push(console);
    }
    Ok(())
}
