//! The client's jobs as the status file has them, and the `<mirror>` that the live definition shows
//! of one that pivots.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use virtsnap_engine::domain::BlockJobKind;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use crate::backing;
use crate::blocks::Layer;
use crate::instance::Instance;

/// A job as the status file has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClientJob {
    pub(super) kind: Kind,
    /// The active layer when it was started.
    pub(super) from: Layer,
    /// What a pivot leads to, with what is added to the chain for it.
    #[serde(default)]
    pub(super) to: Vec<Layer>,
    #[serde(default)]
    pub(super) delete: bool,
    #[serde(default)]
    pub(super) ready: bool,
    #[serde(default)]
    pub(super) ending: Option<End>,
    /// The backing chain of a shallow copy's destination is opened when it pivots.
    #[serde(default)]
    pub(super) late_backing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    Pull,
    Commit,
    ActiveCommit,
    Copy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum End {
    Pivot,
    Cancel,
}

/// A file whose data went into its backing file, and that was not removed. Its header still names
/// what it stood on, but it is no reader to be minded: it was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Merged {
    device: u64,
    inode: u64,
    /// So that a later file with the same inode is not taken for it.
    size: u64,
    modified: (i64, i64),
}

impl Merged {
    pub(crate) fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        }
    }
}

impl ClientJob {
    pub(super) fn new(kind: Kind, from: Layer, to: Vec<Layer>) -> Self {
        Self { kind, from, to, delete: false, ready: false, ending: None, late_backing: false }
    }

    /// Layers that are QEMU's for the job's sake alone.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.to.iter()
    }

    pub(crate) fn kind(&self) -> BlockJobKind {
        match self.kind {
            Kind::Pull => BlockJobKind::Pull,
            Kind::Commit => BlockJobKind::Commit,
            Kind::ActiveCommit => BlockJobKind::ActiveCommit,
            Kind::Copy => BlockJobKind::Copy,
        }
    }

    pub(super) fn words(&self) -> &'static str {
        match self.kind {
            Kind::Pull => "block pull",
            Kind::Commit => "block commit",
            Kind::ActiveCommit => "active block commit",
            Kind::Copy => "block copy",
        }
    }

    pub(super) fn pivots(&self) -> bool {
        matches!(self.kind, Kind::ActiveCommit | Kind::Copy)
    }
}

pub(super) fn expect(instance: &Instance, target: &str) -> Result<ClientJob> {
    instance.lock().jobs.get(target).cloned().ok_or_else(|| {
        let message = format!(
            "disk {target} does not have an active block job to change or to end; it may have \
             ended by itself a moment ago"
        );
        Error::new(Condition::InvalidArgument, message)
    })
}

pub(super) fn record(instance: &Instance, target: &str, job: ClientJob) -> Result<()> {
    let mut inner = instance.lock();
    let inner = &mut *inner;
    show_mirror(&mut inner.live, target, &job);
    inner.jobs.insert(target.to_owned(), job);
    instance.save_locked(inner)
}

pub(super) fn forget(instance: &Instance, target: &str) -> Result<()> {
    let mut inner = instance.lock();
    let inner = &mut *inner;
    inner.jobs.remove(target);
    if let Some(disk) = domain::disk_mut(&mut inner.live, target) {
        disk.remove_children("mirror");
    }
    instance.save_locked(inner)
}

/// QEMU has closed them: they do not change any more.
pub(super) fn note_merged(instance: &Instance, images: &[PathBuf]) -> Result<()> {
    let found = images.iter().filter_map(|image| std::fs::metadata(image).ok());
    let mut inner = instance.lock();
    inner.merged.extend(found.map(|meta| Merged::of(&meta)));
    instance.save_locked(&inner)
}

pub(super) fn note_ending(instance: &Instance, target: &str, ending: Option<End>) -> Result<()> {
    let mut inner = instance.lock();
    let inner = &mut *inner;
    if let Some(job) = inner.jobs.get_mut(target) {
        job.ending = ending;
        show_mirror(&mut inner.live, target, job);
    }
    instance.save_locked(inner)
}

/// `<mirror>` of a disk whose job may pivot: how clients see that it is ready.
pub(super) fn show_mirror(live: &mut Element, target: &str, job: &ClientJob) {
    let Some(disk) = domain::disk_mut(live, target) else { return };
    disk.remove_children("mirror");
    let (Some(to), true) = (job.to.first(), job.pivots()) else { return };
    let mut mirror =
        Element::new("mirror").with_attr("type", if to.is_block_device { "block" } else { "file" });
    if job.kind == Kind::Copy && !to.is_block_device {
        mirror.set_attr("file", to.image.to_string_lossy());
        mirror.set_attr("format", to.format.clone());
    }
    mirror.set_attr("job", if job.kind == Kind::Copy { "copy" } else { "active-commit" });
    match (job.ending, job.ready) {
        (Some(End::Pivot), _) => mirror.set_attr("ready", "pivot"),
        (Some(End::Cancel), _) => mirror.set_attr("ready", "abort"),
        (None, true) => mirror.set_attr("ready", "yes"),
        (None, false) => {}
    }
    mirror.push(Element::new("format").with_attr("type", to.format.clone()));
    mirror.push(backing::source_of(to).with_attr("index", to.number.to_string()));
    if job.kind == Kind::Copy {
        mirror.push(Element::new("backingStore"));
    }
    disk.insert_before(&["backenddomain", "target"], mirror);
}
