//! The live form of a definition: what one start adds to it.
//!
//! Xen's devices have no names beside those the guest knows, so only serial ports get an alias, as
//! libvirt's driver gives them. Terminals and the state of channels are known once the domain
//! runs; which backend libxl chose for a disk tells [`learn_backends`](crate::config).

use std::path::PathBuf;

use virtsnap_engine::definition::set_default;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use super::VOCABULARY;
use crate::guest::Guest;

/// Where libvirt and xl let displays listen when nothing is said.
const LOOPBACK: &str = "127.0.0.1";

/// Xen gives memory in steps of that, in KiB.
pub(super) const MEMORY_GRAIN: u64 = 1024;

/// `sun_path` of a UNIX socket's address, terminator included.
const SOCKET_PATH: usize = 108;

/// What a start has to give to a guest.
pub struct Runtime<'a> {
    /// Where sockets go of channels that name none: a directory of this run alone.
    pub channel_dir: PathBuf,
    /// A free port for a display.
    pub take_port: &'a dyn Fn() -> Option<u16>,
}

impl std::fmt::Debug for Runtime<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("channel_dir", &self.channel_dir).finish_non_exhaustive()
    }
}

/// The definition as this run has it. `id` is Xen's number of the domain; it is known only when
/// the domain is made, and [`with_id`](crate::complete::with_id) adds it then.
pub fn live(config: &Element, runtime: &Runtime<'_>) -> Result<Element> {
    let mut live = config.clone();
    round_memory(&mut live);
    if let Some(loader) = live.child_mut("os").and_then(|os| os.child_mut("loader")) {
        set_default(loader, "format", "raw");
    }
    if let Some(devices) = live.child_mut("devices") {
        for (nth, serial) in devices.children_mut("serial").enumerate() {
            name(serial, format!("serial{nth}"));
        }
        let first = devices.child("serial").is_some();
        if let Some(console) = devices.child_mut("console").filter(|_| first) {
            name(console, "serial0".to_owned());
        }
        for graphics in devices.children_mut("graphics") {
            listen(graphics, runtime)?;
        }
        for (nth, channel) in devices.children_mut("channel").enumerate() {
            channel_path(channel, nth, runtime);
        }
    }
    VOCABULARY.arrange(&mut live);
    Ok(live)
}

/// Adds Xen's number of the domain, and the names that libxl made from it for interfaces.
pub fn with_id(live: &mut Element, id: u32) {
    live.set_attr("id", id.to_string());
    let is_hvm = Guest::of(live).is_some_and(Guest::is_hvm);
    if let Some(devices) = live.child_mut("devices") {
        for (nth, interface) in devices.children_mut("interface").enumerate() {
            let suffix = if crate::config::is_emulated(interface, is_hvm) { "-emu" } else { "" };
            let target = interface.child_or_insert("target");
            set_default(target, "dev", &format!("vif{id}.{nth}{suffix}"));
        }
    }
    VOCABULARY.arrange(live);
}

fn name(device: &mut Element, alias: String) {
    device.remove_children("alias");
    device.push(Element::new("alias").with_attr("name", alias));
}

fn round_memory(live: &mut Element) {
    let sizes =
        [("memory", domain::memory_kib(live)), ("currentMemory", domain::current_memory_kib(live))];
    for (name, size) in sizes {
        if let Some(size) = size.and_then(|size| size.checked_next_multiple_of(MEMORY_GRAIN)) {
            live.child_or_insert(name).set_text(size.to_string());
        }
    }
}

fn listen(graphics: &mut Element, runtime: &Runtime<'_>) -> Result<()> {
    let listen = graphics.child_or_insert("listen");
    set_default(listen, "type", "address");
    set_default(listen, "address", LOOPBACK);
    let address = listen.attr("address").unwrap_or_default().to_owned();
    graphics.set_attr("listen", address);
    if graphics.attr("autoport") == Some("yes") {
        let port = (runtime.take_port)().ok_or_else(|| {
            Error::new(Condition::Internal, "no TCP port is free for the guest's graphics")
        })?;
        graphics.set_attr("port", port.to_string());
    }
    Ok(())
}

fn channel_path(channel: &mut Element, nth: usize, runtime: &Runtime<'_>) {
    let path = channel.child("source").and_then(|source| source.attr("path"));
    if channel.attr("type") != Some("unix") || path.is_some() {
        return;
    }
    // A name can be anything; a path stays in its directory.
    let named = channel.child("target").and_then(|target| target.attr("name"));
    let file = match named {
        Some(name) if !matches!(name, "" | "." | "..") && !name.contains('/') => name.to_owned(),
        _ => format!("channel{nth}.sock"),
    };
    let path = runtime.channel_dir.join(file);
    let is_long = path.as_os_str().len() >= SOCKET_PATH;
    let path = if is_long { runtime.channel_dir.join(nth.to_string()) } else { path };
    let source = channel.child_or_insert("source");
    source.set_attr("mode", "bind");
    source.set_attr("path", path.to_string_lossy());
}
