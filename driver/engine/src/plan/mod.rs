//! A plan: what will be done, as plain data. Pure to make, nothing left to decide when acted out.
//!
//! ```text
//!   prepare   each step has an undo; a failure here unwinds in reverse order
//!   pivot     one atomic act; before it the old world holds, after it the new
//!   finish    each is retried until done; never undone; idempotent
//!   conclude  tried once; a failure is reported, but the new world holds. What comes up stands
//!             still until the journal says so, and is never brought up a second time
//! ```

pub mod access;
mod align;
pub mod create;
mod definition;
pub mod delete;
mod given_up;
mod interrupted;
mod layers;
mod live;
mod merge;
mod overlay;
mod policy;
pub mod redefine;
pub mod revert;
pub mod room;
pub mod route;
pub mod saveable;
mod saved;
mod show;
pub mod state_files;
pub(crate) mod strays;

use std::fmt;
use std::path::PathBuf;

use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::Definition;

pub(crate) use self::align::overlay_path as disk_overlay;
pub use self::layers::{image_of as moment_image, images_of, memory_files_of};
pub use self::live::memory_path;
pub(crate) use self::strays::overlays_of;
use crate::domain::{ShutOffReason, Start, VmStateIn};
use crate::facts::{Format, Target};

#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub operation: Operation,
    pub prepare: Vec<Step>,
    pub pivot: Pivot,
    pub finish: Vec<Finish>,
    pub conclude: Vec<Conclude>,
}

/// What the plan is for: the journal's and the job statistics' word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    Create { moment: String },
    Revert { moment: String },
    Delete { moments: Vec<String> },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Create { moment } => write!(f, "the creation of snapshot '{moment}'"),
            Operation::Revert { moment } => write!(f, "the revert to snapshot '{moment}'"),
            Operation::Delete { moments } => match moments.as_slice() {
                [moment] => write!(f, "the deletion of snapshot '{moment}'"),
                all => write!(f, "the deletion of snapshots '{}'", all.join("', '")),
            },
        }
    }
}

/// One reversible effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Undo: resume.
    Pause,
    /// Through the guest agent. Undo: thaw.
    FreezeFilesystems,
    /// A new image file on a backing file, mode as the backing's but never looser than 0600
    /// plus what the backing allows, durable when done. Refused if the path exists.
    /// Undo: remove it, if it is the one this step made.
    CreateOverlay {
        overlay: PathBuf,
        format: Format,
        backing: PathBuf,
        backing_format: Format,
        virtual_size: u64,
    },
    /// As `CreateOverlay`, in a place that the user prepared: an empty file, which keeps its inode
    /// and owner, or a block device, which is overwritten.
    /// Undo: the file is empty again; a device is left as it is.
    FillOverlay {
        overlay: PathBuf,
        format: Format,
        backing: PathBuf,
        backing_format: Format,
        virtual_size: u64,
    },
    /// A byte-for-byte copy of one layer (same backing file, same internal snapshots) or of a state
    /// file, which a guest may be writing to: then of what it held at one instant. Durable when
    /// done. Undo: remove it, if it is the one this step made.
    CopyImage { from: PathBuf, to: PathBuf },
    /// Give the running hypervisor the overlay as a block node, not yet used. Undo: take it away.
    AttachOverlay { disk: Target, overlay: PathBuf, format: Format },
    /// Offline: a new internal snapshot in the image. Undo: delete that tag.
    SnapshotImage { image: PathBuf, tag: String },
    /// Memory and device state into a save image, with `definition` in its header; durable when
    /// done. The guest was stopped before, unless `live`: then it goes on until the last pages are
    /// written, or the file may not grow any more. One that takes part in its save runs in any
    /// case, and is stopped first, unless `live`. When done it is stopped, and its block nodes can
    /// be snapshot and written to.
    /// A file that is there already is refused, unless it is empty or `overwrite`.
    /// Undo: end the migration, remove the file if this step made it, and if it was the save that
    /// stopped the guest, let it run again.
    SaveMemory { file: PathBuf, live: bool, overwrite: bool, definition: Element },
    /// A new qcow2 image without content, for memory alone. Refused if the path exists. Undo:
    /// remove it, if it is the one this step made.
    CreateVmStateImage { image: PathBuf },
    /// Live, of a stopped guest: memory and `disks` into internal snapshots, in one job; `disks`
    /// may be empty. Undo: delete that tag from those images.
    SaveVmState { tag: String, vmstate: VmStateIn, disks: Vec<Target> },
}

/// The one act that makes the new world hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pivot {
    /// The journal's own entry is the act: all effects follow in `finish`.
    Record,
    /// Live: every disk's writes go to its attached overlay, in one transaction.
    SwitchToOverlays { disks: Vec<(Target, PathBuf)> },
    /// Live: in one transaction, writes of some disks go to their attached overlays and others
    /// get an internal snapshot without memory.
    SnapshotDisks { overlays: Vec<(Target, PathBuf)>, internal: Vec<Target>, tag: String },
    /// Live: memory and disks into internal snapshots, in one job.
    SaveVmState { tag: String, vmstate: VmStateIn, disks: Vec<Target> },
    /// Live, in the same process: memory and disks back from internal snapshots. The vCPUs are
    /// stopped before (a [`Step::Pause`] stands in `prepare`) and stay stopped.
    LoadVmState { tag: String, vmstate: VmStateIn, disks: Vec<Target> },
}

/// One effect after the pivot. Doing it twice is doing it once.
#[derive(Debug, Clone, PartialEq)]
pub enum Finish {
    ThawFilesystems,
    Resume(ResumeReason),
    /// Take the domain down, if it is up.
    Stop(ShutOffReason),
    /// Offline: the image's content becomes that of its internal snapshot `tag`.
    ApplySnapshot {
        image: PathBuf,
        tag: String,
    },
    /// Offline: the image's content becomes that of another one of whatever format. Its internal
    /// snapshots stay as they are.
    Overwrite {
        image: PathBuf,
        from: PathBuf,
    },
    /// Delete the internal snapshot `tag` from the image, live or offline; absent is done.
    DeleteSnapshot {
        image: PathBuf,
        tag: String,
    },
    /// Move what `top` holds over `base` down into `base`, and make every reader in the running
    /// hypervisor use `base`. `top` is left as it is. Live or offline.
    Commit {
        disk: Target,
        top: PathBuf,
        base: PathBuf,
    },
    /// Copy what lies under `top` down to (not including) `base` up into `top`; none: all of it.
    Stream {
        disk: Target,
        top: PathBuf,
        base: Option<PathBuf>,
    },
    /// Rewrite the backing file name in an image's header; its content is as before.
    Repoint {
        image: PathBuf,
        backing: PathBuf,
        backing_format: Format,
    },
    /// `file`, which a step of this plan made, takes the place of `to`, whose content is given up;
    /// also while a stopped guest has `to` open. A `file` that is not there is done.
    PutBack {
        file: PathBuf,
        to: PathBuf,
    },
    /// Replace the live definition, if the domain is up.
    SetLive(Element),
    /// Replace the persistent definition.
    SetConfig(Element),
    /// Replace the definition in the save image that the domain's next start is to go on from,
    /// whole or not at all. An image that is not there is done.
    SetSaved {
        file: PathBuf,
        definition: Element,
    },
    /// The domain's managed save goes, durably: its memory must not meet the disks any more.
    ForgetSave(PathBuf),
    /// Write, forget and mark moments, durably.
    Record(MomentChange),
    /// Remove a file that virtsnap created and that nothing refers to any more; absent is done.
    /// A block device is left as it is, and no longer counts as ours.
    RemoveImage(PathBuf),
    /// The file is now in use and stays: it counts as created by virtsnap.
    KeepImage(PathBuf),
    /// As `KeepImage`, but the file is the user's from now on, and no operation removes it or
    /// merges what lies below it.
    HandOver(PathBuf),
}

impl Plan {
    /// A deletion is a row of merges, and after each what it changed is recorded, with the marks of
    /// the moments that go. Where all is recorded, the rest need not follow: whoever deletes the
    /// marked moments again plans it anew.
    pub fn may_end_before(&self, n: usize) -> bool {
        let mut is_recorded = false;
        for finish in self.finish.iter().take(n) {
            match finish {
                Finish::Record(_) => is_recorded = true,
                Finish::Commit { .. }
                | Finish::Repoint { .. }
                | Finish::SetLive(_)
                | Finish::SetConfig(_)
                | Finish::SetSaved { .. } => is_recorded = false,
                // What these leave is as good before the record as after it.
                Finish::Stream { .. } | Finish::DeleteSnapshot { .. } | Finish::RemoveImage(_) => {}
                _ => return false,
            }
        }
        let is_merge = self.finish.get(n).is_some_and(Finish::is_merge);
        is_recorded && is_merge && matches!(self.operation, Operation::Delete { .. })
    }
}

impl Finish {
    /// Moves as much data as disks hold, and may take long.
    pub fn is_merge(&self) -> bool {
        matches!(self, Finish::Commit { .. } | Finish::Stream { .. })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResumeReason {
    Unpaused,
    FromSnapshot,
}

/// A change to the set of moments of one domain.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MomentChange {
    /// New and changed ones, whole.
    pub write: Vec<Definition>,
    pub forget: Vec<String>,
    pub current: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Conclude {
    /// Start the domain from this definition, if it is down.
    Start { definition: Element, start: Start },
}
