//! The live form of a definition: what one start adds to it.
//!
//! Names of devices (aliases, QEMU's ids) are guest ABI, they stand in the saved state; so they
//! are libvirt's. Ports, socket paths and the id are of this run. Terminals, backing chains and
//! the state of channels are only known once QEMU runs: the runtime adds them.

use std::path::PathBuf;

use virtsnap_engine::definition::{set_default, unsupported};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::domain::disk_index;
use virtsnap_xml::element::Element;

use super::VOCABULARY;
use super::draft::number_of;
use super::general::is_q35;
use super::ports::{DISPLAY_PORTS, Ports, WEBSOCKET_PORTS};

/// What a start has to give to a guest.
#[derive(Debug)]
pub struct Runtime<'a> {
    /// Where sockets go of channels that name none: a directory of this run alone.
    pub channel_dir: PathBuf,
    /// Where sockets of graphics go.
    pub socket_dir: PathBuf,
    /// Where VNC and SPICE listen when nothing is said.
    pub vnc_listen: String,
    pub spice_listen: String,
    pub ports: &'a dyn Ports,
}

/// Guest memory is a multiple of that, in KiB.
const MEMORY_GRAIN: u64 = 1024;

/// `sun_path` of a UNIX socket's address, terminator included.
const SOCKET_PATH: usize = 108;

/// The definition as this run has it.
pub fn live(config: &Element, id: i32, runtime: &Runtime<'_>) -> Result<Element> {
    let mut live = config.clone();
    live.set_attr("id", id.to_string());
    align_memory(&mut live);
    host_cpu(&mut live);
    let q35 = live.at(&["os", "type"]).and_then(|kind| kind.attr("machine")).is_some_and(is_q35);
    if let Some(devices) = live.child_mut("devices") {
        aliases(devices, q35);
        for graphics in devices.children_mut("graphics") {
            listen(graphics, runtime)?;
        }
        for (nth, channel) in devices.children_mut("channel").enumerate() {
            channel_path(channel, nth, runtime);
        }
        for device in devices.elements_mut() {
            tls_off(device);
        }
        for cid in devices.children_mut("vsock").flat_map(|vsock| vsock.children_mut("cid")) {
            if cid.attr("auto") == Some("yes") {
                // 0 to 2 are reserved; ids of our guests are never used twice.
                cid.set_attr("address", (i64::from(id) + 2).to_string());
            }
        }
    }
    VOCABULARY.arrange(&mut live);
    Ok(live)
}

/// Names what has no name yet, as for a start.
pub(crate) fn name_devices(live: &mut Element) {
    let q35 = live.at(&["os", "type"]).and_then(|kind| kind.attr("machine")).is_some_and(is_q35);
    if let Some(devices) = live.child_mut("devices") {
        aliases(devices, q35);
    }
}

/// QEMU rounds memory up; so that the definition tells what is there, it is rounded here.
fn align_memory(live: &mut Element) {
    let size = |live: &Element, name: &str| {
        live.child_text(name).and_then(|text| text.trim().parse::<u64>().ok())
    };
    let mut cells = 0;
    if let Some(numa) = live.child_mut("cpu").and_then(|cpu| cpu.child_mut("numa")) {
        for cell in numa.children_mut("cell") {
            let memory = cell.attr("memory").and_then(|text| text.parse::<u64>().ok());
            if let Some(memory) = memory.and_then(|m| m.checked_next_multiple_of(MEMORY_GRAIN)) {
                cell.set_attr("memory", memory.to_string());
                cells += memory;
            }
        }
    }
    let (Some(total), current) = (size(live, "memory"), size(live, "currentMemory")) else {
        return;
    };
    let devices = live.child("devices").into_iter().flat_map(|devices| devices.children("memory"));
    let dimms: u64 = devices
        .filter_map(|dimm| dimm.at(&["target", "size"])?.text().trim().parse::<u64>().ok())
        .fold(0, u64::saturating_add);
    let sum = if cells == 0 { total } else { cells.saturating_add(dimms) };
    let Some(aligned) = sum.checked_next_multiple_of(MEMORY_GRAIN) else { return };
    if let Some(memory) = live.child_mut("memory") {
        memory.set_text(aligned.to_string());
    }
    if let Some(element) = live.child_mut("currentMemory").filter(|_| current == Some(total)) {
        element.set_text(aligned.to_string());
    }
    if let Some(max) = live.child_mut("maxMemory") {
        let text = max.text();
        let aligned =
            text.trim().parse::<u64>().ok().and_then(|m| m.checked_next_multiple_of(1024));
        if let Some(aligned) = aligned {
            max.set_text(aligned.to_string());
        }
    }
}

/// `host-model` becomes the best that this host has: the host's own cpu under KVM, QEMU's fullest
/// where it is emulated. libvirt would name a model of its list here, which is not ours.
fn host_cpu(live: &mut Element) {
    let kvm = live.attr("type") == Some("kvm");
    let Some(cpu) = live.child_mut("cpu").filter(|cpu| cpu.attr("mode") == Some("host-model"))
    else {
        return;
    };
    cpu.set_attr("mode", if kvm { "host-passthrough" } else { "maximum" });
    cpu.set_attr("check", "none");
    cpu.remove_children("model");
    cpu.remove_children("vendor");
    if kvm {
        set_default(cpu, "migratable", "on");
    }
}

fn alias_of(device: &Element) -> Option<&str> {
    device.child("alias")?.attr("name")
}

fn name(device: &mut Element, alias: String) {
    if device.child("alias").is_none() {
        device.push(Element::new("alias").with_attr("name", alias));
    }
}

fn aliases(devices: &mut Element, q35: bool) {
    let lsi: Vec<u32> = devices
        .children("controller")
        .filter(|c| c.attr("type") == Some("scsi") && c.attr("model") == Some("lsilogic"))
        .filter_map(|c| number_of(c, "index"))
        .collect();
    for disk in devices.children_mut("disk") {
        let alias = disk_alias(disk, &lsi);
        name(disk, alias);
    }
    for controller in devices.children_mut("controller") {
        let alias = controller_alias(controller, q35);
        name(controller, alias);
    }
    // These count from the highest number in use, the others by their place.
    for (class, prefix) in [("interface", "net"), ("rng", "rng"), ("filesystem", "fs")] {
        let numbers = devices
            .children(class)
            .filter_map(|device| alias_of(device)?.strip_prefix(prefix)?.parse::<u32>().ok());
        let mut next = numbers.max().map_or(0, |highest| highest.saturating_add(1));
        for device in devices.children_mut(class).filter(|device| device.child("alias").is_none()) {
            name(device, format!("{prefix}{next}"));
            next = next.saturating_add(1);
        }
    }
    let by_place = [
        ("sound", "sound"),
        ("redirdev", "redir"),
        ("video", "video"),
        ("input", "input"),
        ("parallel", "parallel"),
        ("serial", "serial"),
        ("channel", "channel"),
        ("smartcard", "smartcard"),
        ("crypto", "crypto"),
        ("hub", "hub"),
        ("watchdog", "watchdog"),
        ("tpm", "tpm"),
        ("vsock", "vsock"),
        ("shmem", "shmem"),
        ("iommu", "iommu"),
    ];
    for (class, prefix) in by_place {
        for (nth, device) in devices.children_mut(class).enumerate() {
            name(device, format!("{prefix}{nth}"));
        }
    }
    for balloon in devices.children_mut("memballoon").filter(|b| b.attr("model") != Some("none")) {
        name(balloon, "balloon0".to_owned());
    }
    for dimm in devices.children_mut("memory") {
        let slot = dimm.child("address").and_then(|address| number_of(address, "slot"));
        name(dimm, format!("dimm{}", slot.unwrap_or_default()));
    }
    consoles(devices);
}

/// The console that is a serial port bears its name.
fn consoles(devices: &mut Element) {
    let serial = devices.child("serial").and_then(alias_of).map(str::to_owned);
    for (nth, console) in devices.children_mut("console").enumerate() {
        let mirrors = console.child("target").and_then(|t| t.attr("type")) == Some("serial");
        match serial.as_ref().filter(|_| nth == 0 && mirrors) {
            Some(serial) => {
                console.remove_children("alias");
                name(console, serial.clone());
            }
            None => name(console, format!("console{nth}")),
        }
    }
}

fn disk_alias(disk: &Element, lsi: &[u32]) -> String {
    let target = disk.child("target");
    let bus = target.and_then(|target| target.attr("bus")).unwrap_or_default();
    let drive = disk.child("address").filter(|address| address.attr("type") == Some("drive"));
    let Some(address) = drive else {
        let index = target.and_then(|target| disk_index(target.attr("dev")?)).unwrap_or_default();
        return format!("{bus}-disk{index}");
    };
    let part = |part: &str| number_of(address, part).unwrap_or_default();
    let (controller, channel) = (part("controller"), part("bus"));
    if bus == "scsi" && !lsi.contains(&controller) {
        format!("{bus}{controller}-{channel}-{}-{}", part("target"), part("unit"))
    } else {
        format!("{bus}{controller}-{channel}-{}", part("unit"))
    }
}

fn controller_alias(controller: &Element, q35: bool) -> String {
    let kind = controller.attr("type").unwrap_or_default();
    let index = number_of(controller, "index").unwrap_or_default();
    match (kind, index, controller.attr("model")) {
        ("pci", _, Some("pcie-root")) => format!("pcie.{index}"),
        ("pci", ..) => format!("pci.{index}"),
        ("ide", 0, _) if !q35 => "ide".to_owned(),
        ("sata", 0, _) if q35 => "ide".to_owned(),
        ("usb", 0, _) => "usb".to_owned(),
        _ => format!("{kind}{index}"),
    }
}

fn listen(graphics: &mut Element, runtime: &Runtime<'_>) -> Result<()> {
    let (address, socket) = match graphics.attr("type") {
        Some("vnc") => (&runtime.vnc_listen, "vnc.sock"),
        Some("spice") => (&runtime.spice_listen, "spice.sock"),
        _ => return Ok(()),
    };
    let vnc = graphics.attr("type") == Some("vnc");
    let listen = graphics.child_or_insert("listen");
    match listen.attr("type") {
        Some("socket") => {
            let path = runtime.socket_dir.join(socket);
            set_default(listen, "socket", &path.to_string_lossy());
            let path = listen.attr("socket").unwrap_or_default().to_owned();
            if vnc {
                graphics.set_attr("socket", path);
            }
            return Ok(());
        }
        Some("network") => {
            return Err(unsupported(
                "graphics that listen on a network's address are not supported: name the address",
            ));
        }
        Some("address") => {
            set_default(listen, "address", address);
            let address = listen.attr("address").unwrap_or_default().to_owned();
            graphics.set_attr("listen", address);
        }
        _ => return Ok(()),
    }
    if graphics.attr("autoport") == Some("yes") {
        secure_channels(graphics)?;
        graphics.set_attr("port", take(runtime, DISPLAY_PORTS)?);
    }
    if graphics.attr("websocket") == Some("-1") {
        graphics.set_attr("websocket", take(runtime, WEBSOCKET_PORTS)?);
    }
    Ok(())
}

fn take(runtime: &Runtime<'_>, range: std::ops::RangeInclusive<u16>) -> Result<String> {
    runtime.ports.take(range).map(|port| port.to_string()).ok_or_else(|| {
        Error::new(Condition::Internal, "no TCP port is free for the guest's graphics")
    })
}

/// An automatic port is a plain one: we configure no TLS.
fn secure_channels(graphics: &Element) -> Result<()> {
    let is_secure = graphics.attr("defaultMode") == Some("secure")
        || graphics.children("channel").any(|channel| channel.attr("mode") == Some("secure"));
    if is_secure {
        return Err(unsupported(
            "graphics spice: secure channels need TLS, which is not configured on this host",
        ));
    }
    Ok(())
}

/// A socket of this run for a channel that names none; nobody has connected yet.
fn channel_path(channel: &mut Element, nth: usize, runtime: &Runtime<'_>) {
    let target = channel.child("target").and_then(|target| target.attr("name"));
    // A name can be anything; a path stays in its directory.
    let file = match target {
        Some(name) if !name.is_empty() && name != "." && name != ".." && !name.contains('/') => {
            name.to_owned()
        }
        _ => format!("channel{nth}.sock"),
    };
    let path = channel.child("source").and_then(|source| source.attr("path"));
    if channel.attr("type") == Some("unix") && path.is_none() {
        let source = channel.child_or_insert("source");
        source.set_attr("mode", "bind");
        let path = runtime.channel_dir.join(file);
        let is_long = path.as_os_str().len() >= SOCKET_PATH;
        let path = if is_long { runtime.channel_dir.join(nth.to_string()) } else { path };
        source.set_attr("path", path.to_string_lossy());
    }
    if let Some(target) = channel.child_mut("target")
        && target.attr("type") == Some("virtio")
    {
        target.set_attr("state", "disconnected");
    }
}

fn tls_off(device: &mut Element) {
    let is_character =
        matches!(device.name(), "serial" | "parallel" | "console" | "channel" | "redirdev");
    if is_character && device.attr("type") == Some("tcp") {
        for source in device.children_mut("source") {
            set_default(source, "tls", "no");
        }
    }
}
