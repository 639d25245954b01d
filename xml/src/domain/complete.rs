//! What libvirt's drivers fill in alike when a domain is defined.

use super::disk_index;
use crate::element::Element;

/// Sorted by number among those of one bus; a bus stands where its first disk stood.
pub fn disks_in_order<'a>(disks: impl Iterator<Item = &'a Element>) -> Vec<Element> {
    let key = |disk: &Element| {
        let target = disk.child("target");
        let said = |name| target.and_then(|target| target.attr(name)).unwrap_or_default();
        (said("bus").to_owned(), disk_index(said("dev")))
    };
    let mut sorted: Vec<Element> = Vec::new();
    for disk in disks {
        let (bus, index) = key(disk);
        let mut at = None;
        for (position, other) in sorted.iter().enumerate().rev() {
            let (other_bus, other_index) = key(other);
            if other_bus != bus {
                continue;
            }
            if other_index > index {
                at = Some(position);
            } else if at.is_none() {
                at = Some(position + 1);
            }
        }
        sorted.insert(at.unwrap_or(sorted.len()), disk.clone());
    }
    sorted
}

/// Takes from a disk what only a running guest's chain shows: it is found again at the next start.
pub fn forget_chain(disk: &mut Element) {
    disk.remove_children("mirror");
    let Some(source) = disk.child_mut("source") else { return };
    if source.attr("index").is_some() {
        source.remove_attr("index");
        disk.remove_children("backingStore");
    }
}

/// `file` or `dev`, as the `type=` of a disk wants it, is said by its `<source>`; an empty one is
/// taken away. Else the attribute that is missing.
pub fn settle_source(disk: &mut Element) -> Result<(), &'static str> {
    let attribute = if disk.attr("type") == Some("block") { "dev" } else { "file" };
    let Some(source) = disk.child_mut("source") else { return Err(attribute) };
    if source.attr(attribute) == Some("") {
        source.remove_attr(attribute);
    }
    source.attr(attribute).map(drop).ok_or(attribute)
}

/// A clock with an adjustment is a variable one.
pub fn complete_clock(clock: &mut Element) {
    let default = |clock: &mut Element, name: &str, value: &str| {
        if clock.attr(name).is_none() {
            clock.set_attr(name, value);
        }
    };
    default(clock, "offset", "utc");
    let adjustment = clock.attr("adjustment").map(str::to_owned);
    match (clock.attr("offset").unwrap_or_default(), adjustment.as_deref()) {
        (basis @ ("utc" | "localtime"), Some(seconds)) if seconds != "reset" => {
            let basis = basis.to_owned();
            clock.set_attr("offset", "variable");
            clock.set_attr("basis", basis);
        }
        ("variable", None) => clock.set_attr("adjustment", "0"),
        _ => {}
    }
    if clock.attr("offset") == Some("variable") {
        default(clock, "basis", "utc");
    }
}
