//! The guest itself: `libxl_domain_create_info` and `libxl_domain_build_info`.

use serde_json::{Value, json};
use virtsnap_engine::error::Result;
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use super::{BOOT, Object, SOUND, TSC_MODES, VGA, chardev, defbool, devices, libxl, unsupported};
use crate::guest::Guest;

/// What libxl boots a paravirtual guest with that names nothing: a kernel from its first disk.
const BOOTLOADER: &str = "pygrub";

pub(super) fn create_info(live: &Element, guest: Guest) -> Result<Value> {
    let mut info = Object::default();
    info.set("type", guest.name());
    let name = domain::name(live).ok_or_else(|| unsupported("the domain has no name"))?;
    info.set("name", name);
    let uuid = domain::uuid(live).ok_or_else(|| unsupported("the domain has no uuid"))?;
    info.set("uuid", uuid.to_string());
    if let Some(hap) = live.at(&["features", "hap"]).filter(|_| guest != Guest::Pv) {
        info.set("hap", defbool(hap.attr("state") != Some("off")));
    }
    Ok(info.into())
}

pub(super) fn build_info(live: &Element, guest: Guest) -> Result<Value> {
    let mut info = Object::default();
    let vcpus = domain::vcpus(live).ok_or_else(|| unsupported("the domain's <vcpu> is none"))?;
    info.set("max_vcpus", vcpus.max);
    info.set("avail_vcpus", (0..vcpus.current).collect::<Vec<_>>());
    let size = domain::memory_kib(live).ok_or_else(|| unsupported("the domain has no memory"))?;
    info.set("max_memkb", size);
    info.set("target_memkb", domain::current_memory_kib(live).unwrap_or(size));
    let shares = live.at(&["cputune", "shares"]).map(Element::text);
    let weight = shares.and_then(|text| text.trim().parse::<u16>().ok());
    info.set_some("sched_params", weight.map(|weight| json!({ "weight": weight })));
    clock(live, &mut info);
    limits(live, &mut info);
    boot(live, guest, &mut info);
    // libvirt's, where its own configuration does not say otherwise.
    if guest != Guest::Pv && live.child("cpu").is_some() {
        info.set("nested_hvm", defbool(false));
    }
    match guest {
        Guest::Pv => {
            let host = live.at(&["features", "xen", "e820_host"]);
            let mut pv = Object::default();
            pv.set_some("e820_host", host.map(|h| defbool(h.attr("state") != Some("off"))));
            info.set("type.pv", pv);
        }
        Guest::Pvh => info.set("type.pvh", json!({})),
        Guest::Hvm => {
            let has = |name: &str| defbool(live.at(&["features", name]).is_some());
            info.set("acpi", has("acpi"));
            info.set("apic", has("apic"));
            if let Some(emulator) = domain::emulator(live) {
                info.set("device_model_version", "qemu_xen");
                info.set("device_model", emulator);
            }
            info.set_some("video_memkb", video_memory(live));
            info.set("type.hvm", hvm(live)?);
        }
    }
    Ok(info.into())
}

fn clock(live: &Element, info: &mut Object) {
    let Some(clock) = live.child("clock") else { return };
    let basis = match clock.attr("offset") {
        Some("variable") => {
            let seconds = clock.attr("adjustment").and_then(|text| text.parse::<i32>().ok());
            // libxl has no sign here, and Xen takes it for one.
            let seconds = seconds.filter(|seconds| *seconds != 0).map(i32::cast_unsigned);
            info.set_some("rtc_timeoffset", seconds);
            clock.attr("basis")
        }
        offset => offset,
    };
    if basis == Some("localtime") {
        info.set("localtime", defbool(true));
    }
    let tsc = clock.children("timer").find(|timer| timer.attr("name") == Some("tsc"));
    let mode = tsc.and_then(|tsc| libxl(&TSC_MODES, tsc.attr("mode")?));
    info.set_some("tsc_mode", mode);
}

fn limits(live: &Element, info: &mut Object) {
    let devices = live.child("devices").into_iter().flat_map(|d| d.children("controller"));
    for controller in devices.filter(|c| c.attr("type") == Some("xenbus")) {
        let limit = |name: &str| {
            let limit = controller.attr(name).and_then(|text| text.parse::<u32>().ok());
            limit.filter(|limit| *limit > 0)
        };
        info.set_some("event_channels", limit("maxEventChannels"));
        info.set_some("max_grant_frames", limit("maxGrantFrames"));
    }
}

fn boot(live: &Element, guest: Guest, info: &mut Object) {
    let os = |name: &str| live.child("os").and_then(|os| os.child_text(name));
    let kernel = os("kernel");
    let has_kernel = kernel.is_some();
    info.set_some("kernel", kernel);
    info.set_some("ramdisk", os("initrd"));
    info.set_some("cmdline", os("cmdline"));
    if guest.is_hvm() {
        return;
    }
    match live.child_text("bootloader").filter(|path| !path.is_empty()) {
        Some(path) => info.set("bootloader", path),
        None if guest == Guest::Pv && !has_kernel => info.set("bootloader", BOOTLOADER),
        None => {}
    }
    if let Some(text) = live.child_text("bootloader_args") {
        let words = text.split_whitespace().map(Value::from).collect();
        info.set_list("bootloader_args", words);
    }
}

fn hvm(live: &Element) -> Result<Value> {
    let nothing = Element::default();
    let devices = live.child("devices").unwrap_or(&nothing);
    let mut hvm = Object::default();
    hvm.set("pae", defbool(live.at(&["features", "pae"]).is_some()));
    let hpet = live
        .child("clock")
        .into_iter()
        .flat_map(|clock| clock.children("timer"))
        .any(|t| t.attr("name") == Some("hpet") && t.attr("present") == Some("yes"));
    if hpet {
        hvm.set("hpet", defbool(true));
    }
    if let Some(loader) = live.at(&["os", "loader"]).filter(|l| l.attr("type") == Some("pflash")) {
        hvm.set("bios", "ovmf");
        hvm.set("system_firmware", loader.text());
    }
    let order: String = live
        .child("os")
        .into_iter()
        .flat_map(|os| os.children("boot"))
        .filter_map(|boot| libxl(&BOOT, boot.attr("dev")?))
        .collect();
    hvm.set("boot", if order.is_empty() { "c" } else { order.as_str() });
    serials(devices, &mut hvm)?;
    let usb = devices.children("input").filter(|input| input.attr("bus") == Some("usb"));
    let usb = usb.filter_map(|input| input.attr("type")).map(Value::from).collect();
    hvm.set_list("usbdevice_list", usb);
    let sound = devices.child("sound").and_then(|sound| libxl(&SOUND, sound.attr("model")?));
    hvm.set_some("soundhw", sound);
    let kind =
        devices.child("video").and_then(|video| libxl(&VGA, video.child("model")?.attr("type")?));
    if kind.is_none() {
        hvm.set("nographic", defbool(true));
    }
    hvm.set("vga", json!({ "kind": kind.unwrap_or("none") }));
    devices::emulated_display(devices, &mut hvm)?;
    Ok(hvm.into())
}

fn serials(devices: &Element, hvm: &mut Object) -> Result<()> {
    let mut serials = Vec::new();
    for serial in devices.children("serial") {
        serials.push(Value::from(chardev::print(serial)?));
    }
    match serials.len() {
        0 => {}
        1 => hvm.set_some("serial", serials.pop()),
        _ => hvm.set("serial_list", serials),
    }
    Ok(())
}

fn video_memory(live: &Element) -> Option<u64> {
    live.at(&["devices", "video", "model"])?.attr("vram")?.parse().ok()
}
