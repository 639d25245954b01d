//! The images of the simulated world, and which files are there.
//!
//! Tests that try every fault make a world from another one a million times, and change little of
//! it: so worlds share their images until one writes to them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use virtsnap_xml::element::Element;

use super::TICK;
use crate::error::{Condition, Error, Result};

/// Cluster → value. A cluster that is not there is read from the backing file, and 0 at the end.
pub type Content = BTreeMap<u8, u64>;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Image {
    pub backing: Option<PathBuf>,
    pub data: Content,
    pub snapshots: Vec<Saved>,
    /// Not qcow2.
    pub raw: bool,
    /// Of a save image, which is no image of a disk.
    pub memory: Option<SavedMemory>,
    /// Made by a step whose plan has not ended.
    pub claimed: bool,
    /// An empty file that a user made: no image yet.
    pub is_empty: bool,
    /// A user made the file, and only its content is ours.
    pub is_users: bool,
    pub is_read_only: bool,
    pub damage: Option<Damage>,
}

/// What is wrong with a file, until it is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Its beginning is gone, or of another format: it is no image.
    NoImage,
    /// Its end is gone: it looks as ever, and cannot be read.
    Torn,
}

impl Image {
    /// An overlay needs no more of what it is laid on.
    pub(super) fn check_header(&self, path: &Path) -> Result<()> {
        if self.damage == Some(Damage::NoImage) { self.check_whole(path) } else { Ok(()) }
    }

    pub(super) fn check_whole(&self, path: &Path) -> Result<()> {
        const EIO: i32 = 5;
        match self.damage {
            None => Ok(()),
            Some(_) => {
                let message = format!("cannot read '{}': it is cut short", path.display());
                Err(Error::new(Condition::System(EIO), message))
            }
        }
    }

    fn counts(&self) -> impl Iterator<Item = u64> {
        let of_snapshots = self
            .snapshots
            .iter()
            .flat_map(|saved| saved.data.get(&TICK).copied().into_iter().chain(saved.memory));
        let of_memory = self.memory.as_ref().map(|saved| saved.memory);
        self.data.get(&TICK).copied().into_iter().chain(of_memory).chain(of_snapshots)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    pub tag: String,
    pub data: Content,
    pub memory: Option<u64>,
}

/// What a save image has in it, and who was saved.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedMemory {
    pub memory: u64,
    pub definition: Element,
    pub running: bool,
}

/// All files, by path.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Images(Arc<BTreeMap<Arc<Path>, Arc<Image>>>);

impl Images {
    pub(super) fn get(&self, path: &Path) -> Option<&Image> {
        self.0.get(path).map(Arc::as_ref)
    }

    pub(super) fn contains_key(&self, path: &Path) -> bool {
        self.0.contains_key(path)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Path, &Image)> {
        self.0.iter().map(|(path, image)| (path.as_ref(), image.as_ref()))
    }

    pub(super) fn get_mut(&mut self, path: &Path) -> Option<&mut Image> {
        self.contains_key(path)
            .then(|| Arc::make_mut(&mut self.0).get_mut(path).map(Arc::make_mut))
            .flatten()
    }

    pub(super) fn insert(&mut self, path: &Path, image: Image) {
        Arc::make_mut(&mut self.0).insert(path.into(), Arc::new(image));
    }

    pub(super) fn remove(&mut self, path: &Path) -> Option<Image> {
        self.contains_key(path)
            .then(|| Arc::make_mut(&mut self.0).remove(path).map(Arc::unwrap_or_clone))
            .flatten()
    }

    /// Whether a hypervisor gets it open, with all that it stands on.
    pub(super) fn check_open(&self, top: &Path) -> Result<()> {
        let mut at = Some(top);
        while let Some((path, image)) = at.and_then(|path| Some((path, self.get(path)?))) {
            image.check_header(path)?;
            at = image.backing.as_deref();
        }
        Ok(())
    }

    /// Whether all can be read that an image holds: not a file of its chain is cut short.
    pub(super) fn check_whole(&self, top: &Path) -> Result<()> {
        let mut at = Some(top);
        while let Some((path, image)) = at.and_then(|path| Some((path, self.get(path)?))) {
            image.check_whole(path)?;
            at = image.backing.as_deref();
        }
        Ok(())
    }

    /// What a guest that lives has counted in them.
    pub(super) fn counts(&self) -> impl Iterator<Item = u64> {
        self.iter().flat_map(|(_, image)| image.counts())
    }

    pub(super) fn count_as(&mut self, told: impl Fn(u64) -> u64) {
        let counted: Vec<Arc<Path>> = self
            .0
            .iter()
            .filter(|(_, image)| image.counts().any(|count| told(count) != count))
            .map(|(path, _)| Arc::clone(path))
            .collect();
        for path in counted {
            let Some(image) = self.get_mut(&path) else { continue };
            let of_snapshots = image.snapshots.iter_mut().flat_map(|saved| {
                saved.data.get_mut(&TICK).into_iter().chain(saved.memory.as_mut())
            });
            let of_memory = image.memory.as_mut().map(|saved| &mut saved.memory);
            let own = image.data.get_mut(&TICK);
            for count in own.into_iter().chain(of_memory).chain(of_snapshots) {
                *count = told(*count);
            }
        }
    }

    /// What is read from an image, down to the end of its chain.
    pub(super) fn read(&self, image: &Path) -> Content {
        let Some(found) = self.get(image) else { return Content::new() };
        self.over(found, &found.data)
    }

    /// `data` over what the image stands on.
    pub(super) fn over(&self, image: &Image, data: &Content) -> Content {
        let mut content = data.clone();
        let mut below = image.backing.as_deref();
        while let Some(image) = below.and_then(|path| self.get(path)) {
            for (cluster, value) in &image.data {
                content.entry(*cluster).or_insert(*value);
            }
            below = image.backing.as_deref();
        }
        content
    }

    /// One cluster of it.
    pub(super) fn read_cluster(&self, image: &Path, cluster: u8) -> u64 {
        let mut at = Some(image);
        while let Some(image) = at.and_then(|path| self.get(path)) {
            if let Some(value) = image.data.get(&cluster) {
                return *value;
            }
            at = image.backing.as_deref();
        }
        0
    }
}
