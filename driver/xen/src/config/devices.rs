//! `libxl_device_disk`, `libxl_device_nic`, `libxl_device_vfb`, `libxl_device_channel`.

use serde_json::{Value, json};
use virtsnap_engine::error::Result;
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use super::{FIRST_DISPLAY, FORMATS, Object, RATE_INTERVAL, defbool, libxl, unsupported};
use crate::guest::Guest;
use crate::host::Host;

pub(super) fn disks(devices: &Element) -> Result<Vec<Value>> {
    devices.children("disk").map(disk).collect()
}

fn disk(disk: &Element) -> Result<Value> {
    let target = disk.child("target").and_then(|target| target.attr("dev")).unwrap_or_default();
    if target.is_empty() {
        return Err(unsupported("a disk has no target dev"));
    }
    let source = disk.child("source").and_then(|s| s.attr("file").or_else(|| s.attr("dev")));
    let driver = disk.child("driver");
    let format = driver.and_then(|driver| driver.attr("type")).unwrap_or("raw");
    let backend = backend(driver.and_then(|driver| driver.attr("name")));
    let is_cdrom = disk.attr("device") == Some("cdrom");
    let is_writable = disk.child("readonly").is_none();
    let mut object = Object::default();
    object.set_some("pdev_path", source);
    object.set("vdev", target);
    object.set_some("backend", backend);
    let format = libxl(&FORMATS, format)
        .ok_or_else(|| unsupported(format!("disk {target}: Xen knows no images of {format}")))?;
    object.set("format", if is_cdrom && source.is_none() { "empty" } else { format });
    // Otherwise libxl would not change its medium. The guest does not see it.
    object.set("removable", 1);
    object.set("readwrite", i32::from(is_writable));
    if is_cdrom {
        object.set("is_cdrom", 1);
    }
    match driver.and_then(|driver| driver.attr("discard")).filter(|_| is_writable) {
        Some("unmap") => object.set("discard_enable", defbool(true)),
        Some("ignore") => object.set("discard_enable", defbool(false)),
        _ => {}
    }
    Ok(object.into())
}

/// Of a disk that names no driver, libxl chooses. It has no blktap any more: QEMU serves what
/// definitions of that time call `tap`.
fn backend(driver: Option<&str>) -> Option<&'static str> {
    match driver? {
        "qemu" | "file" | "tap" | "tap2" => Some("qdisk"),
        "phy" => Some("phy"),
        _ => None,
    }
}

/// Names the drivers that libxl chose, in the live definition: `config` is what
/// `libxl_retrieve_domain_configuration` gives of the domain once it runs.
pub fn learn_backends(live: &mut Element, config: &Value) {
    let chosen = |target: &str| {
        let disks = config["disks"].as_array()?;
        let disk = disks.iter().find(|disk| disk["vdev"].as_str() == Some(target))?;
        driver_of(disk["backend"].as_str()?)
    };
    for disk in live.child_mut("devices").into_iter().flat_map(|d| d.children_mut("disk")) {
        let target = disk.child("target").and_then(|target| target.attr("dev"));
        let name = target.and_then(chosen);
        let driver = disk.child_or_insert("driver");
        if let Some(name) = name.filter(|_| driver.attr("name").is_none()) {
            let rest: Vec<(String, String)> =
                driver.attributes().map(|(key, value)| (key.into(), value.into())).collect();
            *driver = Element::new("driver").with_attr("name", name);
            for (key, value) in rest {
                driver.set_attr(&key, value);
            }
        }
    }
}

/// The terminal of the guest's first console, in the live definition.
pub fn learn_console(live: &mut Element, terminal: &str) {
    for console in
        live.child_mut("devices").into_iter().flat_map(|d| d.children_mut("console")).take(1)
    {
        if console.attr("type") == Some("pty") {
            console.set_attr("tty", terminal);
            console.child_or_insert("source").set_attr("path", terminal);
        }
    }
}

/// The driver that stands for a backend.
pub(super) fn driver_of(backend: &str) -> Option<&'static str> {
    match backend {
        "qdisk" => Some("qemu"),
        "phy" => Some("phy"),
        "tap" => Some("tap"),
        _ => None,
    }
}

/// The guest finds a card that QEMU emulates, and Xen's own: it unplugs one.
pub fn is_emulated(interface: &Element, is_hvm: bool) -> bool {
    match interface.child("model").and_then(|model| model.attr("type")) {
        Some(model) => model != "netfront",
        None => is_hvm,
    }
}

pub(super) fn nics(devices: &Element, guest: Guest, host: &Host) -> Result<Vec<Value>> {
    let interfaces = devices.children("interface").enumerate();
    interfaces.map(|(nth, interface)| nic(interface, nth, guest, host)).collect()
}

fn nic(interface: &Element, nth: usize, guest: Guest, host: &Host) -> Result<Value> {
    let mut nic = Object::default();
    // Without a number libxl does not start a device model for it.
    nic.set("devid", nth);
    let mac = interface.child("mac").and_then(|mac| domain::normal_mac(mac.attr("address")?));
    nic.set_some("mac", mac);
    let source = |name: &str| interface.child("source").and_then(|source| source.attr(name));
    match interface.attr("type") {
        Some("bridge") => nic.set_some("bridge", source("bridge")),
        Some("network") => {
            let name = source("network").unwrap_or_default();
            let bridge = host.bridges.get(name).ok_or_else(|| {
                unsupported(format!(
                    "the network '{name}' is not known on this host: name a bridge"
                ))
            })?;
            nic.set("bridge", bridge.as_str());
        }
        _ => {}
    }
    let script = interface.child("script").and_then(|script| script.attr("path"));
    nic.set_some("script", script);
    let addresses: Vec<&str> =
        interface.children("ip").filter_map(|ip| ip.attr("address")).collect();
    nic.set_some("ip", Some(addresses.join(" ")).filter(|ip| !ip.is_empty()));
    let name = interface.child("target").and_then(|target| target.attr("dev"));
    nic.set_some("ifname", name.filter(|name| !name.starts_with("vif")));
    nic.set_some("model", interface.child("model").and_then(|model| model.attr("type")));
    let emulated = is_emulated(interface, guest.is_hvm());
    nic.set("nictype", if emulated { "vif_ioemu" } else { "vif" });
    let average = interface.at(&["bandwidth", "outbound"]).and_then(|out| out.attr("average"));
    if let Some(average) = average.and_then(|text| text.parse::<u32>().ok()).filter(|a| *a > 0) {
        let bytes = u64::from(average) * 1024 * RATE_INTERVAL / 1_000_000;
        nic.set("rate_bytes_per_interval", bytes);
        nic.set("rate_interval_usecs", RATE_INTERVAL);
    }
    Ok(nic.into())
}

/// A frame buffer for each display. A SPICE one is there without a server of its own.
pub(super) fn displays(devices: &Element) -> Result<Vec<Value>> {
    devices
        .children("graphics")
        .map(|graphics| {
            let mut buffer = Object::default();
            buffer.set("sdl", json!({ "enable": defbool(false) }));
            if graphics.attr("type") == Some("vnc") {
                buffer.set("vnc", vnc(graphics)?);
                buffer.set_some("keymap", graphics.attr("keymap"));
            } else {
                buffer.set("vnc", json!({ "enable": defbool(false) }));
            }
            Ok(buffer.into())
        })
        .collect()
}

fn vnc(graphics: &Element) -> Result<Value> {
    let mut vnc = Object::default();
    vnc.set("enable", defbool(true));
    vnc.set_some("listen", address(graphics));
    vnc.set_some("passwd", graphics.attr("passwd"));
    match port(graphics) {
        None => vnc.set("findunused", defbool(true)),
        Some(port) => {
            let display = port.checked_sub(FIRST_DISPLAY).ok_or_else(|| {
                unsupported(format!("VNC on port {port}: displays begin at {FIRST_DISPLAY}"))
            })?;
            vnc.set("display", display);
            vnc.set("findunused", defbool(false));
        }
    }
    Ok(vnc.into())
}

fn address(graphics: &Element) -> Option<&str> {
    graphics.child("listen").and_then(|listen| listen.attr("address"))
}

fn port(graphics: &Element) -> Option<u16> {
    graphics.attr("port")?.parse().ok().filter(|port| *port > 0)
}

/// The display of an emulated card: the SPICE one, or the first.
pub(super) fn emulated_display(devices: &Element, hvm: &mut Object) -> Result<()> {
    let spice = devices.children("graphics").find(|g| g.attr("type") == Some("spice"));
    let display = spice.or_else(|| devices.child("graphics"));
    hvm.set("sdl", json!({ "enable": defbool(false) }));
    let first_vnc = display.filter(|display| display.attr("type") == Some("vnc"));
    match first_vnc {
        Some(graphics) => hvm.set("vnc", vnc(graphics)?),
        None => hvm.set("vnc", json!({ "enable": defbool(false) })),
    }
    hvm.set_some("keymap", display.and_then(|display| display.attr("keymap")));
    if let Some(graphics) = spice {
        let mut spice = Object::default();
        spice.set("enable", defbool(true));
        let port = port(graphics).ok_or_else(|| {
            unsupported("a SPICE display needs a port, and none was given to this one")
        })?;
        spice.set("port", port);
        spice.set_some("host", address(graphics));
        spice.set("disable_ticketing", defbool(graphics.attr("passwd").is_none()));
        spice.set_some("passwd", graphics.attr("passwd"));
        spice.set("agent_mouse", defbool(true));
        hvm.set("spice", spice);
    }
    Ok(())
}

pub(super) fn channels(devices: &Element) -> Result<Vec<Value>> {
    devices
        .children("channel")
        .map(|channel| {
            let mut object = Object::default();
            let name = channel.child("target").and_then(|target| target.attr("name"));
            // Their numbers are libxl's: 0 is the guest's console.
            object.set_some("name", name);
            if channel.attr("type") == Some("pty") {
                object.set("connection.pty", json!({}));
            } else {
                let path = channel.child("source").and_then(|source| source.attr("path"));
                let path = path.ok_or_else(|| {
                    unsupported(format!("the channel {} has no path", name.unwrap_or_default()))
                })?;
                object.set("connection.socket", json!({ "path": path }));
            }
            Ok(object.into())
        })
        .collect()
}
