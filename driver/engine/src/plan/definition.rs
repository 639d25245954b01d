//! The few places where a plan reads or edits a `<domain>`: which image a disk uses.

use std::path::{Path, PathBuf};

use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use crate::facts::{DiskFacts, DomainFacts, Format, ImageFacts};

/// The file, block device or NBD export that a disk of this definition uses.
pub(super) fn image(definition: &Element, target: &str) -> Option<PathBuf> {
    domain::disk(definition, target)?.image().map(PathBuf::from)
}

/// An image as a disk's source.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    path: &'a Path,
    kind: &'static str,
    format: &'a Format,
}

impl<'a> Source<'a> {
    pub(super) fn file(path: &'a Path, format: &'a Format) -> Self {
        Self { path, kind: "file", format }
    }

    /// `kind` is a `type=` of an overlay.
    pub(super) fn of_kind(kind: &str, path: &'a Path, format: &'a Format) -> Self {
        let kind = if kind == "block" { "block" } else { "file" };
        Self { path, kind, format }
    }

    /// `kind` is a disk's `type=`.
    pub(super) fn at(kind: &str, path: &'a Path, format: &'a Format) -> Self {
        let of_kind = Self::of_kind(kind, path, format);
        if path.is_absolute() { of_kind } else { Self { kind: "network", ..of_kind } }
    }

    pub(super) fn existing(path: &'a Path, image: &'a ImageFacts) -> Self {
        let kind = match image.is_block_device {
            _ if !path.is_absolute() => "network",
            true => "block",
            false => "file",
        };
        Self { path, kind, format: &image.format }
    }
}

/// Makes the disk use `source` from now on.
pub(super) fn redirect(definition: &mut Element, target: &str, source: Source<'_>) {
    let path = source.path.to_string_lossy();
    domain::set_image(definition, target, source.kind, &path, source.format.as_str());
}

/// The image that a disk has when the guest has ended: of a transient one, that below the overlay.
pub(super) fn lasting<'a>(disk: &'a DiskFacts, facts: &'a DomainFacts) -> Option<&'a PathBuf> {
    let image = disk.image()?;
    if !(disk.transient && facts.state.is_active()) {
        return Some(image);
    }
    facts.images.get(image).and_then(|overlay| overlay.backing.as_ref())
}

/// Makes the disk use its [`lasting`] image.
pub(super) fn use_lasting(definition: &mut Element, target: &str, facts: &DomainFacts) {
    let disk = facts.disks.iter().find(|disk| disk.target == target);
    if let Some(image) = disk.and_then(|disk| lasting(disk, facts))
        && self::image(definition, target).as_ref() != Some(image)
        && let Some(image_facts) = facts.images.get(image)
    {
        redirect(definition, target, Source::existing(image, image_facts));
    }
}

/// Makes the overlay the active layer; what was it becomes its backing store.
pub(super) fn push_overlay(definition: &mut Element, target: &str, overlay: Source<'_>) {
    let path = overlay.path.to_string_lossy();
    domain::push_overlay(definition, target, overlay.kind, &path, overlay.format.as_str());
}
