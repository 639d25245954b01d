//! The way back: a domain that xl or another program started, as a definition.
//!
//! What was left out has libxl's default, so reading is more than printing backwards: an emulated
//! guest of which nothing is said has ACPI, a domain of which nothing is said is destroyed where
//! libvirt would restart it.

use serde_json::Value;
use virtsnap_engine::error::Result;
use virtsnap_xml::element::Element;

use super::devices::driver_of;
use super::{
    ACTIONS, BOOT, FIRST_DISPLAY, FORMATS, SOUND, TSC_MODES, VGA, chardev, unsupported, xml,
};
use crate::complete;
use crate::guest::Guest;
use crate::host::Host;

/// What a configuration tells.
#[derive(Debug)]
pub struct Found {
    /// The persistent form.
    pub domain: Element,
    /// Parts of the configuration that the definition does not have. A domain with any of them
    /// cannot be started again from its definition as it was.
    pub untold: Vec<String>,
}

/// Parts of `libxl_domain_config` that we have no elements for.
const UNTOLD: &[&str] = &[
    "pcidevs",
    "rdms",
    "dtdevs",
    "vtpms",
    "p9s",
    "pvcallsifs",
    "vdispls",
    "vsnds",
    "usbctrls",
    "usbdevs",
];

/// Parts of `libxl_domain_create_info` likewise.
const UNTOLD_CREATE: &[&str] = &["driver_domain", "pool_name", "ssid_label"];

/// Parts of `libxl_domain_build_info` likewise.
const UNTOLD_BUILD: &[&str] = &[
    "ioports",
    "irqs",
    "iomem",
    "vnuma_nodes",
    "cpuid",
    "device_tree",
    "extra",
    "extra_pv",
    "extra_hvm",
    "vcpu_hard_affinity",
    "vcpu_soft_affinity",
    "device_model_stubdomain",
];

/// The configuration of a domain as its persistent definition.
pub fn from_libxl(config: &Value, host: &Host) -> Result<Found> {
    let (create, build) = (&config["c_info"], &config["b_info"]);
    let guest = text(&create["type"]).and_then(Guest::called).ok_or_else(|| {
        unsupported("the configuration of the domain does not tell its type (pv, pvh or hvm)")
    })?;
    let mut untold = Vec::new();
    for (whole, names) in [(config, UNTOLD), (create, UNTOLD_CREATE), (build, UNTOLD_BUILD)] {
        let said = names.iter().filter(|name| is_said(&whole[**name]));
        untold.extend(said.map(|name| (*name).to_owned()));
    }
    if defbool(&build["nested_hvm"]) == Some(true) {
        untold.push("nested_hvm".to_owned());
    }
    if defbool(&build["type.pvh"]["pvshim"]) == Some(true) {
        untold.push("pvshim".to_owned());
    }
    let mut domain = Element::new("domain").with_attr("type", "xen");
    for (element, value) in [("name", &create["name"]), ("uuid", &create["uuid"])] {
        put(&mut domain, element, text(value));
    }
    general(build, guest, &mut domain);
    features(create, build, guest, &mut domain);
    clock(build, &mut domain);
    for event in ["on_poweroff", "on_reboot", "on_crash"] {
        let action = text(&config[event]).and_then(|action| xml(&ACTIONS, action));
        put(&mut domain, event, Some(action.unwrap_or("destroy")));
    }
    let mut devices = Element::new("devices");
    for disk in list(&config["disks"]) {
        devices.push(self::disk(disk, &mut untold));
    }
    if let Some(controller) = limits(build) {
        devices.push(controller);
    }
    for nic in list(&config["nics"]) {
        devices.push(interface(nic, guest, &mut untold));
    }
    for channel in list(&config["channels"]) {
        devices.push(self::channel(channel));
    }
    displays(config, guest, &mut devices);
    if guest.is_hvm() {
        emulated(build, &mut devices, &mut untold);
    }
    domain.push(devices);
    Ok(Found { domain: complete::complete(domain, host)?, untold })
}

fn general(build: &Value, guest: Guest, domain: &mut Element) {
    let size = build["max_memkb"].as_u64();
    for (name, size) in [("memory", size), ("currentMemory", build["target_memkb"].as_u64())] {
        put(domain, name, size.map(|size| size.to_string()).as_deref());
    }
    let most = build["max_vcpus"].as_u64().unwrap_or(1);
    let mut vcpu = Element::new("vcpu").with_text(most.to_string());
    let online = list(&build["avail_vcpus"]).count();
    if online > 0 && (online as u64) < most {
        vcpu.set_attr("current", online.to_string());
    }
    domain.push(vcpu);
    if let Some(weight) = build["sched_params"]["weight"].as_u64().filter(|weight| *weight > 0) {
        let shares = Element::new("shares").with_text(weight.to_string());
        domain.push(Element::new("cputune").with_child(shares));
    }
    // Where xl before 4.10 put what every type of guest has.
    let old = &build["type.pv"];
    let either = |name: &str| text(&build[name]).or_else(|| text(&old[name]));
    let mut kind = Element::new("type");
    if defbool(&build["type.hvm"]["pae"]) == Some(false) {
        // Which is there in every machine of 64 bits.
        kind.set_attr("arch", "i686");
    }
    kind.set_text(guest.os_type());
    let mut os = Element::new("os").with_child(kind);
    for (element, name) in [("kernel", "kernel"), ("initrd", "ramdisk"), ("cmdline", "cmdline")] {
        put(&mut os, element, either(name));
    }
    let hvm = &build["type.hvm"];
    if guest.is_hvm() {
        for letter in text(&hvm["boot"]).unwrap_or_default().chars() {
            if let Some(device) = xml(&BOOT, letter.encode_utf8(&mut [0; 4])) {
                os.push(Element::new("boot").with_attr("dev", device));
            }
        }
        if let (Some("ovmf"), Some(path)) = (text(&hvm["bios"]), text(&hvm["system_firmware"])) {
            let loader = Element::new("loader").with_attr("readonly", "yes");
            os.push(loader.with_attr("type", "pflash").with_text(path));
        }
    } else {
        put(domain, "bootloader", either("bootloader"));
        let words = |value| list(value).filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
        let arguments = [&build["bootloader_args"], &old["bootloader_args"]].map(words);
        let arguments = arguments.iter().find(|words| !words.is_empty());
        put(domain, "bootloader_args", arguments.map(String::as_str));
    }
    domain.push(os);
}

fn features(create: &Value, build: &Value, guest: Guest, domain: &mut Element) {
    if guest != Guest::Pv && defbool(&build["nested_hvm"]) == Some(false) {
        domain.push(Element::new("cpu").with_attr("mode", "host-passthrough"));
    }
    let mut features = Element::new("features");
    if guest.is_hvm() {
        let hvm = &build["type.hvm"];
        let either = |name: &str| defbool(&build[name]).or_else(|| defbool(&hvm[name]));
        for name in ["acpi", "apic", "pae"] {
            if either(name) != Some(false) {
                features.push(Element::new(name));
            }
        }
    }
    if let Some(hap) = defbool(&create["hap"]).filter(|_| guest != Guest::Pv) {
        features.push(Element::new("hap").with_attr("state", if hap { "on" } else { "off" }));
    }
    if let Some(host) = defbool(&build["type.pv"]["e820_host"]) {
        let state = if host { "on" } else { "off" };
        let host = Element::new("e820_host").with_attr("state", state);
        features.push(Element::new("xen").with_child(host));
    }
    domain.push(features);
}

fn clock(build: &Value, domain: &mut Element) {
    let localtime = defbool(&build["localtime"]) == Some(true);
    let basis = if localtime { "localtime" } else { "utc" };
    let mut clock = Element::new("clock").with_attr("offset", basis);
    // The number has a sign that libxl does not know of.
    let seconds = build["rtc_timeoffset"].as_u64().and_then(|n| u32::try_from(n).ok());
    if let Some(seconds) = seconds.map(u32::cast_signed).filter(|seconds| *seconds != 0) {
        clock = Element::new("clock")
            .with_attr("offset", "variable")
            .with_attr("adjustment", seconds.to_string())
            .with_attr("basis", basis);
    }
    if let Some(mode) = text(&build["tsc_mode"]).and_then(|mode| xml(&TSC_MODES, mode)) {
        let timer = Element::new("timer").with_attr("name", "tsc").with_attr("present", "yes");
        clock.push(timer.with_attr("mode", mode));
    }
    if defbool(&build["type.hvm"]["hpet"]) == Some(true) {
        clock.push(Element::new("timer").with_attr("name", "hpet").with_attr("present", "yes"));
    }
    domain.push(clock);
}

fn disk(disk: &Value, untold: &mut Vec<String>) -> Element {
    let target = text(&disk["vdev"]).unwrap_or_default();
    let path = text(&disk["pdev_path"]);
    let backend = text(&disk["backend"]).unwrap_or("unknown");
    let format = text(&disk["format"]).unwrap_or("unknown");
    let is_block = path.is_some_and(|path| path.starts_with("/dev/"));
    for name in ["script", "backend_domname", "backend_domid", "colo_enable"] {
        if is_said(&disk[name]) {
            untold.push(format!("{name} of the disk {target}"));
        }
    }
    let mut driver = Element::new("driver");
    if let Some(name) = driver_of(backend) {
        driver.set_attr("name", name);
    }
    match xml(&FORMATS, format) {
        Some(format) => driver.set_attr("type", format),
        None if format == "empty" => {}
        None => untold.push(format!("the format of the disk {target}, which is {format}")),
    }
    match defbool(&disk["discard_enable"]) {
        Some(true) => driver.set_attr("discard", "unmap"),
        Some(false) => driver.set_attr("discard", "ignore"),
        None => {}
    }
    let kind = if is_block { ("block", "dev") } else { ("file", "file") };
    let is_cdrom = is_on(&disk["is_cdrom"]);
    let mut element = Element::new("disk")
        .with_attr("type", kind.0)
        .with_attr("device", if is_cdrom { "cdrom" } else { "disk" })
        .with_child(driver);
    if let Some(path) = path {
        element.push(Element::new("source").with_attr(kind.1, path));
    }
    element.push(Element::new("target").with_attr("dev", target));
    if !is_on(&disk["readwrite"]) {
        element.push(Element::new("readonly"));
    }
    element
}

fn limits(build: &Value) -> Option<Element> {
    let mut controller = Element::new("controller").with_attr("type", "xenbus");
    controller.set_attr("index", "0");
    for (attribute, name) in
        [("maxEventChannels", "event_channels"), ("maxGrantFrames", "max_grant_frames")]
    {
        if let Some(limit) = build[name].as_u64().filter(|limit| *limit > 0) {
            controller.set_attr(attribute, limit.to_string());
        }
    }
    Some(controller).filter(|controller| controller.attributes().count() > 2)
}

fn interface(nic: &Value, guest: Guest, untold: &mut Vec<String>) -> Element {
    let bridge = text(&nic["bridge"]);
    let kind = if bridge.is_some() { "bridge" } else { "ethernet" };
    let mut element = Element::new("interface").with_attr("type", kind);
    let mut child = |name: &str, attribute: &str, value: Option<&str>| {
        if let Some(value) = value {
            element.push(Element::new(name).with_attr(attribute, value));
        }
    };
    child("mac", "address", text(&nic["mac"]));
    child("source", "bridge", bridge);
    for address in text(&nic["ip"]).unwrap_or_default().split_whitespace() {
        child("ip", "address", Some(address));
    }
    child("script", "path", text(&nic["script"]));
    child("target", "dev", text(&nic["ifname"]));
    let is_plain = text(&nic["nictype"]) == Some("vif");
    let model = if guest.is_hvm() && is_plain { Some("netfront") } else { text(&nic["model"]) };
    child("model", "type", model);
    let rate = nic["rate_bytes_per_interval"].as_u64().filter(|bytes| *bytes > 0);
    let interval = nic["rate_interval_usecs"].as_u64().filter(|interval| *interval > 0);
    if let (Some(bytes), Some(interval)) = (rate, interval) {
        let average = u128::from(bytes) * 1_000_000 / u128::from(interval) / 1024;
        let average = u32::try_from(average).unwrap_or(u32::MAX).to_string();
        let outbound = Element::new("outbound").with_attr("average", average);
        element.push(Element::new("bandwidth").with_child(outbound));
    }
    for name in ["backend_domname", "backend_domid", "gatewaydev", "mtu"] {
        if is_said(&nic[name]) {
            untold.push(format!("{name} of an interface"));
        }
    }
    element
}

fn channel(channel: &Value) -> Element {
    let socket = text(&channel["connection.socket"]["path"]);
    let mut element = Element::new("channel");
    match socket {
        Some(path) => {
            element.set_attr("type", "unix");
            let source = Element::new("source").with_attr("mode", "bind");
            element.push(source.with_attr("path", path));
        }
        None => element.set_attr("type", "pty"),
    }
    let mut target = Element::new("target").with_attr("type", "xen");
    if let Some(name) = text(&channel["name"]) {
        target.set_attr("name", name);
    }
    element.with_child(target)
}

/// xl tells of an emulated guest's display in `u.hvm` alone.
fn displays(config: &Value, guest: Guest, devices: &mut Element) {
    let hvm = &config["b_info"]["type.hvm"];
    let spice = &hvm["spice"];
    if guest.is_hvm() && defbool(&spice["enable"]) == Some(true) {
        let mut graphics = Element::new("graphics").with_attr("type", "spice");
        if let Some(port) = spice["port"].as_u64() {
            graphics.set_attr("port", port.to_string());
        }
        finish(graphics, text(&spice["host"]), &spice["passwd"], &hvm["keymap"], devices);
    }
    let is_on = |buffer: &&Value| defbool(&buffer["vnc"]["enable"]) == Some(true);
    let mut buffers: Vec<&Value> = list(&config["vfbs"]).filter(is_on).collect();
    if buffers.is_empty() && is_on(&hvm) && guest.is_hvm() {
        buffers.push(hvm);
    }
    for buffer in buffers {
        let vnc = &buffer["vnc"];
        let mut graphics = Element::new("graphics").with_attr("type", "vnc");
        if defbool(&vnc["findunused"]) == Some(false) {
            let display = vnc["display"].as_u64().unwrap_or_default();
            let port = display.saturating_add(FIRST_DISPLAY.into());
            graphics.set_attr("port", port.to_string());
        }
        finish(graphics, text(&vnc["listen"]), &vnc["passwd"], &buffer["keymap"], devices);
    }
}

fn finish(
    mut graphics: Element,
    listen: Option<&str>,
    password: &Value,
    keymap: &Value,
    devices: &mut Element,
) {
    for (attribute, value) in
        [("listen", listen), ("passwd", text(password)), ("keymap", text(keymap))]
    {
        if let Some(value) = value {
            graphics.set_attr(attribute, value);
        }
    }
    devices.push(graphics);
}

fn emulated(build: &Value, devices: &mut Element, untold: &mut Vec<String>) {
    let hvm = &build["type.hvm"];
    put(devices, "emulator", text(&build["device_model"]));
    let ports = list(&hvm["serial_list"]).filter_map(Value::as_str).chain(text(&hvm["serial"]));
    for port in ports.filter(|port| *port != "none") {
        match chardev::parse(port) {
            Some(serial) => devices.push(serial),
            None => untold.push(format!("the serial port {port}")),
        }
    }
    let usb = list(&hvm["usbdevice_list"]).filter_map(Value::as_str);
    for kind in usb.chain(text(&hvm["usbdevice"])) {
        if matches!(kind, "mouse" | "tablet") {
            devices.push(Element::new("input").with_attr("type", kind).with_attr("bus", "usb"));
        } else {
            untold.push(format!("the USB device {kind}"));
        }
    }
    if let Some(card) = text(&hvm["soundhw"]) {
        match xml(&SOUND, card) {
            Some(model) => devices.push(Element::new("sound").with_attr("model", model)),
            None => untold.push(format!("the sound card {card}")),
        }
    }
    let kind = text(&hvm["vga"]["kind"]).unwrap_or("cirrus");
    if let Some(kind) = xml(&VGA, kind) {
        let mut model = Element::new("model").with_attr("type", kind);
        if let Some(memory) = build["video_memkb"].as_u64() {
            model.set_attr("vram", memory.to_string());
        }
        devices.push(Element::new("video").with_child(model));
    }
}

fn put(parent: &mut Element, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        parent.push(Element::new(name).with_text(value));
    }
}

fn text(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| !text.is_empty())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn defbool(value: &Value) -> Option<bool> {
    match value.as_str()? {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

fn is_on(value: &Value) -> bool {
    value.as_u64().is_some_and(|number| number != 0)
}

/// Something else than a default.
fn is_said(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_u64() != Some(0),
        Value::String(text) => !matches!(text.as_str(), "" | "False" | "<default>"),
        Value::Array(list) => !list.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}
