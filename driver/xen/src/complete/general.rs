//! Defaults of everything that is not a device: identity, memory, vcpus, boot, features, clock.

use std::num::NonZeroU16;

use virtsnap_engine::definition::{self, bad, set_default, unsupported};
use virtsnap_engine::error::Result;
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use crate::guest::Guest;

/// What Xen counts vcpus and sizes by is narrower than what XML can say.
pub(crate) const MOST_VCPUS: u32 = 4096;
const MOST_KIB: u64 = 1 << 40;

pub(super) fn complete(root: &mut Element) -> Result<Guest> {
    root.remove_attr("id");
    root.set_attr("type", "xen");
    definition::identity(root)?;
    memory(root)?;
    vcpus(root)?;
    let guest = machine(root)?;
    features(root, guest);
    clock(root, guest)?;
    lifecycle(root)?;
    namespaces(root);
    Ok(guest)
}

fn memory(root: &mut Element) -> Result<()> {
    if root.child("memory").is_none() {
        return Err(bad("the domain has no <memory>"));
    }
    let size = domain::memory_kib(root).filter(|size| (1..=MOST_KIB).contains(size));
    let size = size.ok_or_else(|| bad("the domain's <memory> is not a size it can have"))?;
    let current = match root.child("currentMemory") {
        Some(current) if domain::scaled_bytes(current, 1024).is_none() => {
            return Err(bad("the domain's <currentMemory> is not a size"));
        }
        _ => domain::current_memory_kib(root).unwrap_or(size),
    };
    for (name, kib) in [("memory", size), ("currentMemory", current)] {
        let element = root.child_or_insert(name);
        element.set_attr("unit", "KiB");
        element.set_text(kib.to_string());
    }
    Ok(())
}

fn vcpus(root: &mut Element) -> Result<()> {
    let count = definition::vcpus(root.child_or_insert("vcpu"))?;
    if count > MOST_VCPUS {
        return Err(bad(format!("a guest cannot have {count} vcpus")));
    }
    if let Some(shares) = root.at(&["cputune", "shares"]) {
        let text = shares.text();
        text.trim().parse::<NonZeroU16>().map_err(|_| {
            bad(format!("<shares> is '{text}'; Xen's scheduler takes a weight of 1 to 65535"))
        })?;
    }
    Ok(())
}

fn machine(root: &mut Element) -> Result<Guest> {
    let has_bootloader = root.child("bootloader").is_some();
    let kind = root.child_or_insert("os").child_or_insert("type");
    // What names a bootloader is paravirtual, says libvirt.
    if kind.text().trim().is_empty() && has_bootloader {
        kind.set_text(Guest::Pv.os_type());
    }
    let asked = kind.text().trim().to_owned();
    let guest = Guest::of(root).ok_or_else(|| match asked.as_str() {
        "" => bad("<os> has no <type>"),
        _ => unsupported(format!("Xen has no OS type '{asked}': use linux, xenpvh or hvm")),
    })?;
    let os = root.child_or_insert("os");
    let kind = os.child_or_insert("type");
    kind.set_text(guest.os_type());
    set_default(kind, "arch", "x86_64");
    set_default(kind, "machine", guest.machine());
    if kind.attr("machine") != Some(guest.machine()) {
        let machine = kind.attr("machine").unwrap_or_default();
        return Err(unsupported(format!(
            "the OS type '{}' goes with the machine '{}', not with '{machine}'",
            guest.os_type(),
            guest.machine()
        )));
    }
    boot(root, guest)?;
    Ok(guest)
}

fn boot(root: &mut Element, guest: Guest) -> Result<()> {
    let os = root.child_or_insert("os");
    if let Some(loader) = os.child_mut("loader") {
        if !guest.is_hvm() {
            return Err(unsupported("<loader>: only a guest of OS type 'hvm' has firmware"));
        }
        set_default(loader, "type", "rom");
    }
    if guest.is_hvm() {
        if os.child("boot").is_none() {
            os.push(Element::new("boot").with_attr("dev", "hd"));
        }
        if let Some(part) = ["initrd", "cmdline"].iter().find(|part| os.child(part).is_some())
            && os.child("kernel").is_none()
        {
            return Err(unsupported(format!("<{part}> without a <kernel> is of no use")));
        }
        if root.child("bootloader").is_some() {
            return Err(unsupported(
                "<bootloader>: a guest of OS type 'hvm' boots by its firmware",
            ));
        }
    }
    let os = root.child_or_insert("os");
    if guest == Guest::Pvh && os.child("kernel").is_none() && root.child("bootloader").is_none() {
        return Err(unsupported("a guest of OS type 'xenpvh' needs a <kernel> or a <bootloader>"));
    }
    Ok(())
}

fn features(root: &mut Element, guest: Guest) {
    let is_64_bit = domain::arch(root) == Some("x86_64");
    if guest.is_hvm() && is_64_bit {
        root.child_or_insert("features").child_or_insert("pae");
    }
    let Some(features) = root.child_mut("features") else { return };
    for feature in features.elements_mut() {
        match feature.name() {
            "hap" => set_default(feature, "state", "on"),
            "xen" => {
                for inner in feature.elements_mut() {
                    set_default(inner, "state", "on");
                }
            }
            _ => {}
        }
    }
}

fn clock(root: &mut Element, guest: Guest) -> Result<()> {
    let clock = root.child_or_insert("clock");
    domain::complete_clock(clock);
    if clock.attr("offset") == Some("variable") {
        let text = clock.attr("adjustment").unwrap_or_default();
        if text.parse::<i32>().is_err() {
            return Err(bad(format!("the clock's adjustment '{text}' is not a number of seconds")));
        }
    }
    for timer in clock.children("timer") {
        match timer.attr("name") {
            Some("tsc") => {}
            Some("hpet") if guest.is_hvm() => {}
            Some(name) => {
                return Err(unsupported(format!(
                    "a guest of OS type '{}' has no timer '{name}'",
                    guest.os_type()
                )));
            }
            None => return Err(bad("a <timer> has no name")),
        }
    }
    Ok(())
}

fn lifecycle(root: &mut Element) -> Result<()> {
    for (event, default) in
        [("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")]
    {
        let element = root.child_or_insert(event);
        let action = element.text();
        match action.trim() {
            "" => element.set_text(default),
            known if crate::config::action_of(known).is_some() => {
                let known = known.to_owned();
                element.set_text(known);
            }
            other => return Err(unsupported(format!("<{event}> is '{other}', which is unknown"))),
        }
    }
    Ok(())
}

/// Namespaces stay where they are used: in the metadata.
fn namespaces(root: &mut Element) {
    let spaces: Vec<(String, String)> = root
        .attributes()
        .filter(|(key, _)| key.starts_with("xmlns"))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    for (key, value) in spaces {
        root.remove_attr(&key);
        if let Some(metadata) = root.child_mut("metadata")
            && key.starts_with("xmlns:")
        {
            set_default(metadata, &key, &value);
        }
    }
}
