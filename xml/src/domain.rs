//! Typed views over a `<domain>` tree; never a re-serialisation of it.
//!
//! Functions read and change an [`Element`] in place, so what we do not know survives. Reading is
//! lenient (a missing or senseless value is `None`): checking a definition is `complete`'s task.
//!
//! - [`disk`]: disks, and the change of their images
//! - `complete`: what is filled in alike for every hypervisor
//! - `names`: of disks and cards, and numbers
//! - [`metadata`]: virDomainSetMetadata and virDomainGetMetadata
//! - `inactive`: a live definition as a persistent one; XML without secrets

mod complete;
mod disk;
mod inactive;
mod metadata;
mod names;
mod nbd;

use uuid::Uuid;

use crate::element::Element;

pub use complete::{complete_clock, disks_in_order, forget_chain, settle_source};
pub use disk::{DiskView, disk, disk_mut, disks, push_overlay, set_backing, set_image};
pub use inactive::{to_inactive, without_secrets};
pub use metadata::{MetadataError, add_metadata, metadata, set_metadata};
pub use names::{disk_index, normal_mac, parse_number};
pub use nbd::{Nbd, Server};

/// The order in which libvirt prints what comes first in a domain.
const ORDER: [&str; 9] =
    ["name", "uuid", "genid", "title", "description", "metadata", "maxMemory", "memory", "vcpu"];

pub fn name(domain: &Element) -> Option<String> {
    some_text(domain, "name")
}

pub fn set_name(domain: &mut Element, name: &str) {
    set_text(domain, "name", name);
}

/// The file of the firmware's variables, and its format.
pub fn nvram(definition: &Element) -> Option<(String, &str)> {
    let nvram = definition.at(&["os", "nvram"])?;
    let path = match nvram.child("source") {
        Some(source) => source.attr("file")?.to_owned(),
        None => nvram.text(),
    };
    Some((path, nvram.attr("format").unwrap_or("raw"))).filter(|(path, _)| path.starts_with('/'))
}

pub fn uuid(domain: &Element) -> Option<Uuid> {
    Uuid::parse_str(some_text(domain, "uuid")?.trim()).ok()
}

pub fn set_uuid(domain: &mut Element, uuid: Uuid) {
    set_text(domain, "uuid", &uuid.to_string());
}

/// `type=`: qemu, kvm, xen.
pub fn virt_type(domain: &Element) -> Option<&str> {
    domain.attr("type")
}

/// Of a live definition.
pub fn id(domain: &Element) -> Option<i32> {
    domain.attr("id")?.parse().ok()
}

pub fn title(domain: &Element) -> Option<String> {
    some_text(domain, "title")
}

/// An empty title is none.
pub fn set_title(domain: &mut Element, title: &str) {
    set_text(domain, "title", title);
}

pub fn description(domain: &Element) -> Option<String> {
    some_text(domain, "description")
}

/// An empty description is none.
pub fn set_description(domain: &mut Element, description: &str) {
    set_text(domain, "description", description);
}

/// `<memory>`: what the guest has at most at boot, in KiB.
pub fn memory_kib(domain: &Element) -> Option<u64> {
    Some(scaled_bytes(domain.child("memory")?, 1024)?.div_ceil(1024))
}

/// `<currentMemory>`, or `<memory>` where that is not said or smaller, in KiB.
pub fn current_memory_kib(domain: &Element) -> Option<u64> {
    let most = memory_kib(domain)?;
    let current = domain.child("currentMemory").and_then(|now| scaled_bytes(now, 1024));
    Some(current.map(|bytes| bytes.div_ceil(1024)).filter(|kib| *kib > 0).unwrap_or(most).min(most))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vcpus {
    pub current: u32,
    pub max: u32,
}

/// `<vcpu>`; one where nothing is said.
pub fn vcpus(domain: &Element) -> Option<Vcpus> {
    let Some(vcpu) = domain.child("vcpu") else { return Some(Vcpus { current: 1, max: 1 }) };
    let max = vcpu.text().trim().parse().ok().filter(|max| *max > 0)?;
    let current = match vcpu.attr("current") {
        Some(current) => current.parse().ok().filter(|now| (1..=max).contains(now))?,
        None => max,
    };
    Some(Vcpus { current, max })
}

/// `<os><type>`: hvm, xenpvh, …
pub fn os_type(domain: &Element) -> Option<String> {
    some_text(domain.child("os")?, "type")
}

pub fn arch(domain: &Element) -> Option<&str> {
    domain.at(&["os", "type"])?.attr("arch")
}

pub fn machine(domain: &Element) -> Option<&str> {
    domain.at(&["os", "type"])?.attr("machine")
}

pub fn emulator(domain: &Element) -> Option<String> {
    some_text(domain.child("devices")?, "emulator")
}

/// A number with libvirt's `unit=`, in bytes; `scale` holds where no unit is said.
pub fn scaled_bytes(element: &Element, scale: u64) -> Option<u64> {
    let number: u64 = element.text().trim_start().parse().ok()?;
    let unit = element.attr("unit").unwrap_or_default();
    let scale = if unit.is_empty() { scale } else { unit_bytes(unit)? };
    number.checked_mul(scale)
}

fn unit_bytes(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    if matches!(unit.as_str(), "b" | "byte" | "bytes") {
        return Some(1);
    }
    let mut letters = unit.chars();
    let power = "kmgtpe".find(letters.next()?)? as u32 + 1;
    match letters.as_str() {
        "" | "ib" => 1024_u64.checked_pow(power),
        "b" => 1000_u64.checked_pow(power),
        _ => None,
    }
}

fn some_text(parent: &Element, name: &str) -> Option<String> {
    parent.child_text(name).filter(|text| !text.is_empty())
}

/// Sets the text of one of [`ORDER`], in its place; an empty text removes the element.
fn set_text(domain: &mut Element, name: &str, text: &str) {
    if text.is_empty() {
        domain.remove_children(name);
        return;
    }
    put(domain, Element::new(name).with_text(text));
}

/// Replaces the element of that name, or adds it where libvirt would print it.
fn put(domain: &mut Element, child: Element) {
    if domain.child(child.name()).is_some() {
        domain.replace_child(child);
        return;
    }
    let at = ORDER.iter().position(|name| *name == child.name()).unwrap_or(ORDER.len());
    let mut following: Vec<&str> = ORDER.iter().skip(at).copied().collect();
    following.extend(["currentMemory", "os", "features", "cpu", "clock", "devices"]);
    domain.insert_before(&following, child);
}

#[cfg(test)]
mod tests;
