//! The few places where a plan edits a `<domain>`: which image a disk uses.

use std::path::{Path, PathBuf};

use virtsnap_xml::element::Element;

use crate::facts::Format;

/// The `<disk>` with that target.
pub(super) fn disk<'a>(domain: &'a Element, target: &str) -> Option<&'a Element> {
    domain.child("devices")?.children("disk").find(|disk| is_target(disk, target))
}

/// The file or block device a disk of this definition uses.
pub(super) fn image(domain: &Element, target: &str) -> Option<PathBuf> {
    let disk = disk(domain, target)?;
    let source = disk.child("source")?;
    match disk.attr("type") {
        Some("block") => source.attr("dev"),
        Some("file") | None => source.attr("file"),
        Some(_) => None,
    }
    .map(PathBuf::from)
}

pub(super) fn format(domain: &Element, target: &str) -> Format {
    disk(domain, target)
        .and_then(|disk| disk.child("driver")?.attr("type"))
        .map_or(Format::Raw, Format::from)
}

/// Makes the disk use the file `image` from now on.
///
/// What belongs to the old source goes: its backing chain as the live form lists it, its index,
/// the slices, reservations and credentials of its own.
pub(super) fn redirect(domain: &mut Element, target: &str, image: &Path, format: &Format) {
    let Some(devices) = domain.child_mut("devices") else { return };
    let Some(disk) = devices.children_mut("disk").find(|disk| is_target(disk, target)) else {
        return;
    };
    disk.set_attr("type", "file");
    disk.remove_children("backingStore");
    let driver = disk.child_or_insert("driver");
    if driver.attr("name").is_none() {
        driver.set_attr("name", "qemu");
    }
    driver.set_attr("type", format.as_str());
    let source = disk.child_or_insert("source");
    *source = Element::new("source").with_attr("file", image.to_string_lossy());
}

fn is_target(disk: &Element, target: &str) -> bool {
    disk.child("target").and_then(|t| t.attr("dev")) == Some(target)
}
