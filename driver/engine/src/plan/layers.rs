//! Who reads what: the images of one domain as a graph, and what a plan does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use virtsnap_xml::domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Definition, Location, Memory};

use super::definition;
use crate::facts::{DomainFacts, Format};
use crate::moment::MomentList;

/// Image → its backing file.
#[derive(Debug, Clone)]
pub(super) struct Layers {
    backing: BTreeMap<PathBuf, Option<PathBuf>>,
}

impl Layers {
    pub(super) fn of(facts: &DomainFacts) -> Self {
        let backing =
            facts.images.iter().map(|(path, image)| (path.clone(), image.backing.clone()));
        Self { backing: backing.collect() }
    }

    /// The images that have `image` as their backing file.
    pub(super) fn readers(&self, image: &Path) -> Vec<PathBuf> {
        let reads = |backing: &Option<PathBuf>| backing.as_deref() == Some(image);
        self.backing.iter().filter(|(_, b)| reads(b)).map(|(path, _)| path.clone()).collect()
    }

    pub(super) fn add(&mut self, image: &Path, backing: Option<&Path>) {
        self.backing.insert(image.to_owned(), backing.map(Path::to_owned));
    }

    pub(super) fn remove(&mut self, image: &Path) {
        self.backing.remove(image);
    }

    pub(super) fn len(&self) -> usize {
        self.backing.len()
    }

    /// `top`, and what it stands on.
    pub(super) fn chain<'a>(&'a self, top: &'a Path) -> impl Iterator<Item = &'a Path> {
        let below = |image: &&'a Path| self.backing(image).map(PathBuf::as_path);
        std::iter::successors(Some(top), below).take(self.len() + 1)
    }

    /// How many images stand on each other, `top` included.
    pub(super) fn depth(&self, top: &Path) -> usize {
        self.chain(top).count()
    }

    pub(super) fn backing(&self, image: &Path) -> Option<&PathBuf> {
        self.backing.get(image)?.as_ref()
    }

    /// All that `top` holds over `base` now stands in `base`; readers of `top` read `base`.
    pub(super) fn commit(&mut self, top: &Path, base: &Path) {
        for reader in self.readers(top) {
            self.backing.insert(reader, Some(base.to_owned()));
        }
        self.backing.insert(top.to_owned(), None);
    }

    /// Of the files in `owned`, those that none of `roots` reaches. None: it cannot be told, since
    /// an image on the way is not there, and what it stands on is not known, or since not all roots
    /// are.
    pub(super) fn garbage(&self, owned: &BTreeSet<PathBuf>, roots: &Roots) -> Option<Vec<PathBuf>> {
        if !roots.are_known {
            return None;
        }
        let mut reached: BTreeSet<&PathBuf> = roots.files.iter().collect();
        let mut open: Vec<&PathBuf> = roots.images.iter().collect();
        while let Some(image) = open.pop() {
            if reached.insert(image) {
                open.extend(self.backing.get(image)?);
            }
        }
        Some(owned.iter().filter(|image| !reached.contains(image)).cloned().collect())
    }
}

/// The image a moment's disk is in: the frozen layer of an external one, the image that holds the
/// tag of an internal one. None for a disk that did not take part.
pub fn image_of(moment: &Definition, target: &str) -> Option<PathBuf> {
    let disk = moment.disks.iter().find(|disk| disk.name == target)?;
    match disk.snapshot {
        Location::Internal | Location::External => {
            definition::image(moment.domain.as_ref()?, target)
        }
        Location::No | Location::Manual => None,
    }
}

/// The save image of a moment with external memory.
pub(super) fn memory_file(moment: &Definition) -> Option<PathBuf> {
    match &moment.memory {
        Memory::External { file } => Some(PathBuf::from(file)),
        Memory::No | Memory::Unsaid | Memory::Internal { .. } => None,
    }
}

/// The image that holds nothing but the memory of a moment.
pub(super) fn vmstate_image(moment: &Definition) -> Option<PathBuf> {
    match &moment.memory {
        Memory::Internal { image } => image.as_ref().map(PathBuf::from),
        Memory::No | Memory::Unsaid | Memory::External { .. } => None,
    }
}

/// Every save image that the domain's moments name, to be looked at for facts.
pub fn memory_files_of(moments: &MomentList) -> BTreeSet<PathBuf> {
    moments.iter().filter_map(memory_file).collect()
}

/// What must stay.
#[derive(Debug)]
pub(super) struct Roots {
    /// With all that they stand on.
    pub(super) images: BTreeSet<PathBuf>,
    /// Memory and the state of devices, which stand alone.
    files: BTreeSet<PathBuf>,
    /// Every moment could be read.
    are_known: bool,
}

/// Every file that must stay: images and memory of the moments in `kept`, images of the
/// definitions, and those that somebody else reads.
pub(super) fn roots<'a>(
    kept: impl Iterator<Item = &'a Definition>,
    definitions: impl Iterator<Item = &'a Element>,
    facts: &DomainFacts,
) -> Roots {
    let mut images: BTreeSet<PathBuf> = facts.foreign_readers.keys().cloned().collect();
    // A file that was handed over to the user, or is theirs, keeps what it stands on.
    let of_user = facts.images.iter().filter(|(path, image)| {
        let stands_on_ours = |below: &PathBuf| facts.owned.contains(below);
        !facts.owned.contains(*path) && image.backing.as_ref().is_some_and(stands_on_ours)
    });
    images.extend(of_user.map(|(path, _)| path.clone()));
    let mut files = BTreeSet::new();
    for moment in kept {
        images.extend(moment.disks.iter().filter_map(|disk| image_of(moment, &disk.name)));
        images.extend(vmstate_image(moment));
        files.extend(memory_file(moment));
        files.extend(super::state_files::copies(moment));
    }
    for domain in definitions {
        for disk in domain::disks(domain) {
            let Some(path) = disk.image().map(PathBuf::from) else { continue };
            // A medium that has been thrown away stood on nothing of ours.
            let is_medium = matches!(disk.device(), "cdrom" | "floppy");
            let is_there = facts.images.contains_key(&path) || facts.owned.contains(&path);
            if is_there || !is_medium {
                images.insert(path);
            }
        }
    }
    Roots { images, files, are_known: !facts.has_unreadable_moments }
}

/// Every image that the domain's moments name, to be looked at for facts, with its format.
pub fn images_of(moments: &MomentList) -> BTreeMap<PathBuf, Format> {
    let mut images = BTreeMap::new();
    for moment in moments.iter() {
        for overlay in moment.disks.iter().chain(&moment.revert_disks) {
            if let Some(path) = super::align::overlay_path(overlay) {
                images.insert(path, overlay.format.as_deref().map_or(Format::Qcow2, Format::from));
            }
        }
        images.extend(vmstate_image(moment).map(|path| (path, Format::Qcow2)));
        let store = moment.domain.as_ref().and_then(super::state_files::qcow2_store);
        images.extend(store.map(|path| (path, Format::Qcow2)));
    }
    for moment in moments.iter() {
        for disk in &moment.disks {
            let recorded = moment.domain.as_ref().and_then(|d| domain::disk(d, &disk.name));
            if let Some(path) = image_of(moment, &disk.name) {
                let format = recorded.and_then(|disk| disk.format()).unwrap_or("raw");
                images.insert(path, Format::from(format));
            }
        }
    }
    images
}
