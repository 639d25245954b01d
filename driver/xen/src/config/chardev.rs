//! The other end of a serial port, in the form of QEMU's `-serial`, which `u.hvm.serial` is.

use virtsnap_engine::error::Result;
use virtsnap_xml::element::Element;

use super::unsupported;

const SERVER: &str = ",server,nowait";

pub(super) fn print(device: &Element) -> Result<String> {
    let kind = device.attr("type").unwrap_or_default();
    let source = |name: &str| -> Result<&str> {
        let text = device.child("source").and_then(|source| source.attr(name));
        let text =
            text.ok_or_else(|| unsupported(format!("a serial port has no source {name}")))?;
        // What follows a comma would be an option to QEMU.
        if text.contains(',') {
            return Err(unsupported(format!("a serial port's {name} '{text}' contains a comma")));
        }
        Ok(text)
    };
    let mode = device.child("source").and_then(|source| source.attr("mode"));
    let server = if mode == Some("bind") { SERVER } else { "" };
    Ok(match kind {
        "null" | "stdio" | "vc" | "pty" => kind.to_owned(),
        "file" | "pipe" => format!("{kind}:{}", source("path")?),
        "dev" => source("path")?.to_owned(),
        "unix" => format!("unix:{}{server}", source("path")?),
        "tcp" => {
            let protocol = device.child("protocol").and_then(|protocol| protocol.attr("type"));
            let scheme = if protocol == Some("telnet") { "telnet" } else { "tcp" };
            let host = device.child("source").and_then(|source| source.attr("host"));
            let host = if host.is_some() { source("host")? } else { "" };
            format!("{scheme}:{host}:{}{server}", source("service")?)
        }
        other => return Err(unsupported(format!("a serial port cannot be of type {other}"))),
    })
}

/// The element that [`print`] would print so; none for what we have no element for.
pub(super) fn parse(text: &str) -> Option<Element> {
    let serial = |kind: &str| Element::new("serial").with_attr("type", kind);
    let at = |kind: &str, path: &str, mode: Option<&str>| {
        let mut source = Element::new("source");
        if let Some(mode) = mode {
            source.set_attr("mode", mode);
        }
        source.set_attr("path", path);
        serial(kind).with_child(source)
    };
    if matches!(text, "null" | "stdio" | "vc" | "pty") {
        return Some(serial(text));
    }
    let (target, mode) = match text.strip_suffix(SERVER) {
        Some(target) => (target, "bind"),
        None => (text, "connect"),
    };
    if target.is_empty() || target.contains(',') {
        return None;
    }
    if target.starts_with('/') {
        return Some(at("dev", target, None));
    }
    let (scheme, rest) = target.split_once(':').filter(|(_, rest)| !rest.is_empty())?;
    match scheme {
        "file" | "pipe" => Some(at(scheme, rest, None)),
        "unix" => Some(at("unix", rest, Some(mode))),
        "tcp" | "telnet" => {
            let (host, service) = rest.rsplit_once(':')?;
            let mut source = Element::new("source").with_attr("mode", mode);
            if !host.is_empty() {
                source.set_attr("host", host);
            }
            source.set_attr("service", service);
            let protocol = if scheme == "telnet" { "telnet" } else { "raw" };
            let protocol = Element::new("protocol").with_attr("type", protocol);
            Some(serial("tcp").with_child(source).with_child(protocol))
        }
        _ => None,
    }
}
