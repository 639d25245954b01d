//! Disks: their order, bus, format and place on a drive controller.

use virtsnap_engine::definition::{bad, checked_number, set_default, unsupported};
use virtsnap_engine::error::Result;
use virtsnap_xml::domain::disk_index;
use virtsnap_xml::domain::{Nbd, disks_in_order, forget_chain, settle_source};
use virtsnap_xml::element::Element;

use super::draft::{Draft, number_of};

pub(super) fn complete(disk: &mut Element, q35: bool) -> Result<()> {
    set_default(disk, "type", "file");
    set_default(disk, "device", "disk");
    let device = disk.attr("device").unwrap_or_default().to_owned();
    let target = disk.child_or_insert("target");
    let name = target.attr("dev").unwrap_or_default().to_owned();
    let bus = match target.attr("bus") {
        Some(bus) => bus.to_owned(),
        None => match (device.as_str(), name.get(..2)) {
            ("floppy", _) => "fdc",
            (_, Some("sd")) => "scsi",
            (_, Some("vd")) => "virtio",
            _ => "ide",
        }
        .to_owned(),
    };
    target.set_attr("bus", bus.clone());
    target.remove_attr("tray");
    check_disk(&name, &device, &bus, q35)?;
    let driver = disk.child_or_insert("driver");
    set_default(driver, "name", "qemu");
    set_default(driver, "type", "raw");
    disk_source(disk, &name, &device)?;
    if device == "cdrom" {
        disk.child_or_insert("readonly");
    }
    if disk.child("transient").is_some() {
        transient(disk, &name, &device)?;
    }
    if disk.child("readonly").is_some() && disk.attr("snapshot") == Some("no") {
        disk.remove_attr("snapshot");
    }
    if disk.child("address").is_none() {
        drive_address(disk, &bus, disk_index(&name).unwrap_or_default());
    } else if let Some(address) = disk.child_mut("address")
        && address.attr("type") == Some("drive")
    {
        for part in ["controller", "bus", "target", "unit"] {
            let value = checked_number(address, part)?.unwrap_or(0);
            address.set_attr(part, value.to_string());
        }
    }
    Ok(())
}

fn check_disk(name: &str, device: &str, bus: &str, q35: bool) -> Result<()> {
    let problem = match (device, bus) {
        ("floppy", "fdc") => None,
        ("floppy", _) | (_, "fdc") => Some("a floppy, and only a floppy, is on the bus fdc"),
        (_, "ide") if q35 => Some("a q35 machine has no IDE: use sata, scsi or virtio"),
        ("cdrom", "virtio") => Some("a cdrom cannot be on the bus virtio: use sata, ide or scsi"),
        ("lun", "virtio" | "scsi") => None,
        ("lun", _) => Some("device 'lun' needs the bus virtio or scsi"),
        _ => None,
    };
    match problem {
        Some(problem) => Err(unsupported(format!("disk {name}: {problem}"))),
        None => Ok(()),
    }
}

fn disk_source(disk: &mut Element, name: &str, device: &str) -> Result<()> {
    forget_chain(disk);
    if disk.attr("type") == Some("network") {
        return network_source(disk, name);
    }
    if let Some(source) = disk.child_mut("source") {
        for label in source.children_mut("seclabel") {
            label.remove_attr("type");
        }
    }
    match settle_source(disk) {
        Err(missing) if !matches!(device, "cdrom" | "floppy") => {
            Err(bad(format!("disk {name} has no source {missing}")))
        }
        _ => Ok(()),
    }
}

/// As libvirt: the overlay that goes with the guest is a file beside a file.
fn transient(disk: &Element, name: &str, device: &str) -> Result<()> {
    let problem = if disk.child("readonly").is_some() {
        "is read-only"
    } else if disk.attr("type") != Some("file") {
        "is not a file"
    } else if device != "disk" {
        "is no hard disk"
    } else {
        return Ok(());
    };
    Err(unsupported(format!("disk {name} {problem}, and cannot be <transient/>")))
}

/// Every part of what NBD needs; libvirt's other protocols are not spoken.
fn network_source(disk: &mut Element, name: &str) -> Result<()> {
    let Some(source) = disk.child_mut("source") else {
        return Err(bad(format!("disk {name} has no source")));
    };
    for label in source.children_mut("seclabel") {
        label.remove_attr("type");
    }
    for host in source.children_mut("host") {
        if host.attr("transport") == Some("unix") {
            continue;
        }
        host.remove_attr("transport");
        set_default(host, "port", "10809");
    }
    if Nbd::from_source(source).is_none() {
        return Err(unsupported(format!(
            "disk {name}: a disk on the network is an export of one NBD server: \
             <source protocol='nbd' name='…'><host name='…' port='…'/></source>"
        )));
    }
    Ok(())
}

fn drive_address(disk: &mut Element, bus: &str, index: u32) {
    let (controller, bus, unit) = match bus {
        "scsi" => (index / 7, 0, index % 7),
        "ide" => (index / 4, (index % 4) / 2, index % 2),
        "sata" => (index / 6, 0, index % 6),
        "fdc" => (index / 2, 0, index % 2),
        _ => return,
    };
    disk.push(
        Element::new("address")
            .with_attr("type", "drive")
            .with_attr("controller", controller.to_string())
            .with_attr("bus", bus.to_string())
            .with_attr("target", "0")
            .with_attr("unit", unit.to_string()),
    );
}

pub(super) fn sort(draft: &mut Draft<'_>) -> Result<()> {
    for disk in draft.of("disk") {
        let name = disk.child("target").and_then(|target| target.attr("dev")).unwrap_or_default();
        if name.is_empty() {
            return Err(bad("a disk has no target dev"));
        }
        if disk_index(name).is_none() {
            return Err(bad(format!("'{name}' is not a disk name such as vda, sdb or hdc")));
        }
    }
    let sorted = disks_in_order(draft.of("disk"));
    for (at, disk) in draft.positions("disk").into_iter().zip(sorted) {
        draft.devices[at] = disk;
    }
    let mut names = std::collections::BTreeSet::new();
    for disk in draft.of("disk") {
        let name = disk.child("target").and_then(|target| target.attr("dev")).unwrap_or_default();
        if !names.insert(name) {
            return Err(bad(format!("the disk target '{name}' is used twice")));
        }
    }
    Ok(())
}

/// Controllers that disks name by their addresses.
pub(super) fn controllers(draft: &mut Draft<'_>) {
    for (kind, bus) in [("scsi", "scsi"), ("fdc", "fdc"), ("ide", "ide"), ("sata", "sata")] {
        let highest = draft
            .of("disk")
            .filter(|disk| disk.child("target").and_then(|t| t.attr("bus")) == Some(bus))
            .filter_map(|disk| disk.child("address"))
            .filter(|address| address.attr("type") == Some("drive"))
            .filter_map(|address| number_of(address, "controller"))
            .max();
        let Some(highest) = highest else { continue };
        // No machine has more; a larger number is a slip, and refused when it finds no slot.
        for index in 0..=highest.min(255) {
            let model =
                if kind == "scsi" { Some(scsi_model(draft.host.devices.lsi)) } else { None };
            draft.ensure_controller(kind, index, model);
        }
    }
}

pub(super) fn scsi_model(lsi: bool) -> &'static str {
    if lsi { "lsilogic" } else { "virtio-scsi" }
}
