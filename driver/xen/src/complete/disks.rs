//! Disks: their order, bus, driver and place on an emulated controller.
//!
//! Xen knows a disk by its name alone (`libxl_device_disk.vdev`), so the bus follows from the name.

use std::collections::BTreeSet;

use virtsnap_engine::definition::{bad, checked_number, set_default, unsupported};
use virtsnap_engine::error::Result;
use virtsnap_xml::domain::{disk_index, disks_in_order, forget_chain, settle_source};
use virtsnap_xml::element::Element;

/// Buses with controllers that can be named, and how many disks one controller has.
const EMULATED: [(&str, u32); 2] = [("scsi", 7), ("ide", 4)];

pub(super) fn complete(devices: &mut Element) -> Result<()> {
    let mut names = BTreeSet::new();
    for disk in devices.children_mut("disk") {
        let name = one(disk)?;
        if !names.insert(name.clone()) {
            return Err(bad(format!("the disk target '{name}' is used twice")));
        }
    }
    let sorted = disks_in_order(devices.children("disk"));
    devices.remove_children("disk");
    for disk in sorted {
        devices.push(disk);
    }
    Ok(())
}

fn one(disk: &mut Element) -> Result<String> {
    set_default(disk, "type", "file");
    set_default(disk, "device", "disk");
    let name = disk.child("target").and_then(|target| target.attr("dev")).unwrap_or_default();
    if name.is_empty() {
        return Err(bad("a disk has no target dev"));
    }
    let name = name.to_owned();
    let bus = bus_of(&name).filter(|_| disk_index(&name).is_some()).ok_or_else(|| {
        unsupported(format!("'{name}' is not a disk of a Xen guest: use xvda, hda or sda"))
    })?;
    let target = disk.child_or_insert("target");
    set_default(target, "bus", bus);
    if target.attr("bus") != Some(bus) {
        return Err(unsupported(format!(
            "disk {name}: Xen knows a disk by its name, and this name is of the bus {bus}"
        )));
    }
    source(disk, &name)?;
    driver(disk, &name)?;
    if disk.attr("device") == Some("cdrom") {
        disk.child_or_insert("readonly");
    }
    address(disk, bus, &name)?;
    Ok(name)
}

fn bus_of(name: &str) -> Option<&'static str> {
    let buses = [("xvd", "xen"), ("hd", "ide"), ("sd", "scsi")];
    buses.into_iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, bus)| bus)
}

fn source(disk: &mut Element, name: &str) -> Result<()> {
    forget_chain(disk);
    match settle_source(disk) {
        Err(missing) if disk.attr("device") != Some("cdrom") => {
            Err(bad(format!("disk {name} has no source {missing}")))
        }
        _ => Ok(()),
    }
}

/// Which of Xen's backends serves a format (`libxl_disk_backend`). `phy` is the kernel's, which
/// takes a file through a loop device; so it is what libxl chooses for a raw image that names no
/// driver.
fn driver(disk: &mut Element, name: &str) -> Result<()> {
    let driver = disk.child_or_insert("driver");
    if driver.attr("cache") == Some("default") {
        driver.remove_attr("cache");
    }
    set_default(driver, "type", "raw");
    let format = driver.attr("type").unwrap_or_default();
    match driver.attr("name") {
        Some(backend @ ("phy" | "file")) if format != "raw" => Err(unsupported(format!(
            "disk {name}: the driver '{backend}' serves raw images only: use 'qemu' for {format}"
        ))),
        None if format != "raw" => Err(unsupported(format!(
            "disk {name}: an image of format {format} needs <driver name='qemu' type='{format}'/>"
        ))),
        _ => Ok(()),
    }
}

fn address(disk: &mut Element, bus: &str, name: &str) -> Result<()> {
    let Some((_, each)) = EMULATED.into_iter().find(|(emulated, _)| *emulated == bus) else {
        disk.remove_children("address");
        return Ok(());
    };
    if let Some(address) = disk.child_mut("address") {
        for part in ["controller", "bus", "target", "unit"] {
            let value = checked_number(address, part)?.unwrap_or(0);
            address.set_attr(part, value.to_string());
        }
        return Ok(());
    }
    let index = disk_index(name).unwrap_or_default();
    let place = index % each;
    let (channel, unit) = if bus == "ide" { (place / 2, place % 2) } else { (0, place) };
    disk.push(
        Element::new("address")
            .with_attr("type", "drive")
            .with_attr("controller", (index / each).to_string())
            .with_attr("bus", channel.to_string())
            .with_attr("target", "0")
            .with_attr("unit", unit.to_string()),
    );
    Ok(())
}

/// Controllers that disks name by their addresses.
pub(super) fn controllers(devices: &mut Element) {
    for (kind, _) in EMULATED {
        let highest = devices
            .children("disk")
            .filter(|disk| disk.child("target").and_then(|t| t.attr("bus")) == Some(kind))
            .filter_map(|disk| disk.child("address")?.attr("controller")?.parse::<u32>().ok())
            .max();
        let Some(highest) = highest else { continue };
        for index in 0..=highest.min(255) {
            super::devices::ensure_controller(devices, kind, index);
        }
    }
}
