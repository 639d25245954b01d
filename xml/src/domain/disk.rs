//! `<disk>` of a domain, and the change of its image.

use super::nbd::Nbd;
use super::some_text;
use crate::element::Element;
use crate::snapshot::Location;

/// What comes after `<source>` in a `<disk>`, as libvirt prints it.
const AFTER_SOURCE: [&str; 4] = ["backingStore", "mirror", "backenddomain", "target"];

/// One `<disk>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskView<'a> {
    pub element: &'a Element,
}

/// The disks in document order; one without a target is left out.
pub fn disks(domain: &Element) -> impl Iterator<Item = DiskView<'_>> {
    let devices = domain.child("devices").into_iter();
    devices
        .flat_map(|devices| devices.children("disk"))
        .map(|element| DiskView { element })
        .filter(|disk| !disk.target().is_empty())
}

/// The disk of that target.
pub fn disk<'a>(domain: &'a Element, target: &str) -> Option<DiskView<'a>> {
    disks(domain).find(|disk| disk.target() == target)
}

pub fn disk_mut<'a>(domain: &'a mut Element, target: &str) -> Option<&'a mut Element> {
    let devices = domain.child_mut("devices")?;
    devices.children_mut("disk").find(|element| DiskView { element }.target() == target)
}

impl<'a> DiskView<'a> {
    /// `vda`; empty if not said.
    pub fn target(&self) -> &'a str {
        self.element.child("target").and_then(|target| target.attr("dev")).unwrap_or_default()
    }

    pub fn bus(&self) -> Option<&'a str> {
        self.element.child("target")?.attr("bus")
    }

    /// disk, cdrom, floppy or lun.
    pub fn device(&self) -> &'a str {
        self.element.attr("device").unwrap_or("disk")
    }

    /// file, block, network, volume, …
    pub fn source_type(&self) -> &'a str {
        self.element.attr("type").unwrap_or("file")
    }

    pub fn source(&self) -> Option<&'a Element> {
        self.element.child("source")
    }

    /// The image's path, where it is a file, a block device or a directory.
    pub fn path(&self) -> Option<&'a str> {
        let key = match self.source_type() {
            "file" => "file",
            "block" => "dev",
            "dir" => "dir",
            _ => return None,
        };
        self.source()?.attr(key).filter(|path| !path.is_empty())
    }

    /// What the image is called: its path, or the URI of an export of an NBD server.
    pub fn image(&self) -> Option<String> {
        match self.source_type() {
            "network" => Nbd::from_source(self.source()?).map(|nbd| nbd.to_string()),
            _ => self.path().map(str::to_owned),
        }
    }

    /// No medium in the drive.
    pub fn is_empty(&self) -> bool {
        match self.source_type() {
            "file" | "block" | "dir" => self.path().is_none(),
            _ => self.source().is_none(),
        }
    }

    pub fn driver(&self) -> Option<&'a Element> {
        self.element.child("driver")
    }

    /// `<driver type=>`: the image's format.
    pub fn format(&self) -> Option<&'a str> {
        self.driver()?.attr("type")
    }

    pub fn is_readonly(&self) -> bool {
        self.device() == "cdrom" || self.element.child("readonly").is_some()
    }

    pub fn is_shareable(&self) -> bool {
        self.element.child("shareable").is_some()
    }

    pub fn is_transient(&self) -> bool {
        self.element.child("transient").is_some()
    }

    /// `snapshot=`, if it is said and one of libvirt's words.
    pub fn snapshot(&self) -> Option<Location> {
        Location::from_name(self.element.attr("snapshot")?)
    }

    pub fn serial(&self) -> Option<String> {
        some_text(self.element, "serial")
    }

    pub fn boot_order(&self) -> Option<u32> {
        self.element.child("boot")?.attr("order")?.parse().ok()
    }

    pub fn alias(&self) -> Option<&'a str> {
        self.element.child("alias")?.attr("name")
    }

    /// The first `<backingStore>`; an empty one ends a chain.
    pub fn backing_store(&self) -> Option<&'a Element> {
        self.element.child("backingStore")
    }

    /// Paths of the backing chain as written, from the active layer's backing file down.
    pub fn backing_paths(&self) -> Vec<&'a str> {
        let mut paths = Vec::new();
        let mut layer = self.backing_store();
        while let Some(store) = layer {
            let source = store.child("source");
            let path = source.and_then(|source| source.attr("file").or_else(|| source.attr("dev")));
            paths.extend(path);
            layer = store.child("backingStore");
        }
        paths
    }
}

/// Makes `path` the disk's image: a file or, with `source_type` `block`, a device, or, with
/// `network`, the export of that URI. Labels that
/// the old source asks for are kept; its backing chain is forgotten. False: there is no such disk.
pub fn set_image(
    domain: &mut Element,
    target: &str,
    source_type: &str,
    path: &str,
    format: &str,
) -> bool {
    let Some(disk) = disk_mut(domain, target) else { return false };
    let key = if source_type == "block" { "dev" } else { "file" };
    let network = Nbd::from_uri(path).filter(|_| source_type == "network");
    let mut source = match network {
        Some(nbd) => nbd.to_source(),
        None => Element::new("source").with_attr(key, path),
    };
    for label in disk.child("source").into_iter().flat_map(|old| old.children("seclabel")) {
        source.push(label.clone());
    }
    disk.set_attr("type", source_type);
    put_source(disk, source);
    put_format(disk, format);
    disk.remove_children("backingStore");
    disk.remove_children("mirror");
    true
}

/// Replaces the disk's `<backingStore>`, or removes it. False: there is no such disk.
pub fn set_backing(domain: &mut Element, target: &str, backing: Option<Element>) -> bool {
    let Some(disk) = disk_mut(domain, target) else { return false };
    disk.remove_children("backingStore");
    if let Some(backing) = backing {
        disk.insert_before(&AFTER_SOURCE, backing.renamed("backingStore"));
    }
    true
}

/// Makes `overlay`, a file or a `block` device, the active layer; what was it becomes its backing
/// store, as libvirt shows a live disk after a snapshot. False: there is no such disk.
pub fn push_overlay(
    domain: &mut Element,
    target: &str,
    source_type: &str,
    overlay: &str,
    format: &str,
) -> bool {
    let Some(disk) = disk_mut(domain, target) else { return false };
    let view = DiskView { element: disk };
    let mut backing = Element::new("backingStore").with_attr("type", view.source_type());
    if let Some(format) = view.format() {
        backing.push(Element::new("format").with_attr("type", format));
    }
    if let Some(source) = view.source() {
        backing.push(source.clone());
    }
    let below = disk.take_child("backingStore");
    backing.push(below.unwrap_or_else(|| Element::new("backingStore")));
    set_image(domain, target, source_type, overlay, format)
        && set_backing(domain, target, Some(backing))
}

fn put_source(disk: &mut Element, source: Element) {
    if disk.child("source").is_some() {
        disk.replace_child(source);
    } else {
        disk.insert_before(&AFTER_SOURCE, source);
    }
}

/// Xen's kernel, which may serve what names no driver, has raw images only; QEMU has all.
fn put_format(disk: &mut Element, format: &str) {
    match disk.child_mut("driver") {
        Some(driver) => {
            let may_be_kernels = matches!(driver.attr("name"), None | Some("phy" | "file"));
            if may_be_kernels && format != "raw" {
                driver.set_attr("name", "qemu");
            }
            driver.set_attr("type", format);
        }
        None => {
            let driver = Element::new("driver").with_attr("name", "qemu").with_attr("type", format);
            disk.insert_before(&["auth", "source", "backingStore", "mirror", "target"], driver);
        }
    }
}
