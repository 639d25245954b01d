//! What a backend reports of a domain before a plan is made. Plain data, gathered once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use uuid::Uuid;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::Location;

use crate::domain::State;

/// A disk's target name, `vda`: how plans, moments and clients speak of a disk.
pub type Target = String;

#[derive(Debug, Clone, PartialEq)]
pub struct DomainFacts {
    pub uuid: Uuid,
    pub name: String,
    pub state: State,
    /// The persistent definition; none for a transient domain.
    pub config: Option<Element>,
    /// The live definition; none when shut off.
    pub live: Option<Element>,
    /// The disks of the live definition, or of the persistent one when shut off.
    pub disks: Vec<DiskFacts>,
    /// Every image that the disks and the domain's moments reach, backing files included; the
    /// images that hold nothing but memory are among them. By name: an absolute path, or the URI of
    /// an export of an NBD server, which is none.
    pub images: BTreeMap<PathBuf, ImageFacts>,
    /// The save images that the domain's moments name, and its managed save, without those that
    /// are missing.
    pub memory_files: BTreeMap<PathBuf, MemoryFile>,
    /// Files that virtsnap created: the only ones it may remove.
    pub owned: BTreeSet<PathBuf>,
    /// Images that something outside this domain refers to (other domains, their moments,
    /// neighbouring images), each with a word on who does.
    pub foreign_readers: BTreeMap<PathBuf, String>,
    /// Images that the running guest's hypervisor has open so that no internal snapshot can be deleted
    /// in them before the guest is off.
    pub sealed: BTreeSet<PathBuf>,
    /// Of the definition that the operation is about: the present one, or that of the moment to
    /// which the domain goes back.
    pub state_files: Vec<StateFacts>,
    pub agent: AgentState,
    /// Why the hypervisor would not save the memory of the running guest, in its words; none if it
    /// would.
    pub memory_blockers: Vec<String>,
    /// Internal snapshots of images can hold memory. Where they cannot, memory is in files of its
    /// own, and a guest goes back to one by a new start.
    pub memory_inside: bool,
    /// The guest takes part when its memory is saved to a file: it has to run until then, and the
    /// save stops it. Where it does not, one that stands still is saved as well.
    pub saved_by_guest: bool,
    /// Once its memory was saved to a file, the disks of a guest that stands still can take
    /// internal snapshots.
    pub internal_after_memory: bool,
    /// Where files go that were given no name, of a domain no disk of which is in a file; made when
    /// the first one is. None: they have to be given names.
    pub files_dir: Option<PathBuf>,
    /// The save image that the domain's next start is to go on from.
    pub managed_save: Option<PathBuf>,
    /// Some moment's record cannot be read: what it needs is not known.
    pub has_unreadable_moments: bool,
    /// Seconds since the epoch: the time of planning.
    pub now: i64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct DiskFacts {
    pub target: Target,
    pub device: DiskDevice,
    /// None for an empty drive.
    pub source: Option<DiskSource>,
    pub format: Format,
    pub readonly: bool,
    pub shareable: bool,
    pub transient: bool,
    /// `snapshot=` of the `<disk>` in the domain, if said.
    pub snapshot: Option<Location>,
    /// A block job runs on it.
    pub block_job: bool,
    /// Of a running guest: the backend (`phy`) that serves the disk past the hypervisor's block
    /// layer, which so can take no snapshot of it until the guest is off.
    pub bypass: Option<String>,
}

impl DiskFacts {
    /// The active layer, where it is one that snapshots can reach.
    pub fn image(&self) -> Option<&PathBuf> {
        match &self.source {
            Some(DiskSource::File(path) | DiskSource::Block(path)) => Some(path),
            Some(DiskSource::Network(image)) => image.as_ref(),
            Some(DiskSource::Other(_)) | None => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskDevice {
    Disk,
    Cdrom,
    Floppy,
    Lun,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    File(PathBuf),
    Block(PathBuf),
    /// The URI, where the protocol is one that snapshots can reach.
    Network(Option<PathBuf>),
    /// `type=` of a source that snapshots cannot reach (nvme, vhostuser, vdpa, …).
    Other(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    Raw,
    Qcow2,
    Qed,
    Other(String),
}

impl Format {
    pub fn as_str(&self) -> &str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Qed => "qed",
            Format::Other(name) => name,
        }
    }
}

impl From<&str> for Format {
    fn from(name: &str) -> Self {
        match name {
            "raw" => Format::Raw,
            "qcow2" => Format::Qcow2,
            "qed" => Format::Qed,
            other => Format::Other(other.to_owned()),
        }
    }
}

/// One image file or block device, as `qemu-img info` or the running QEMU tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    pub format: Format,
    /// Guest-visible size in bytes.
    pub virtual_size: u64,
    /// Bytes allocated on the host.
    pub actual_size: u64,
    /// Absolute path of the backing file, if any.
    pub backing: Option<PathBuf>,
    pub backing_format: Option<Format>,
    pub snapshots: Vec<InternalSnapshot>,
    pub is_block_device: bool,
}

/// One internal snapshot of a qcow2 image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalSnapshot {
    pub id: String,
    pub tag: String,
    /// Bytes of memory and device state; 0 for a disk-only one.
    pub vm_state_size: u64,
    /// Seconds since the epoch.
    pub date: i64,
    /// Nanoseconds of guest run time.
    pub vm_clock: u64,
}

/// A save image: memory and device state in a file of their own.
#[derive(Debug, Clone, PartialEq)]
pub enum MemoryFile {
    /// It can be loaded; `definition` is the live one of the guest that was saved, and `running`
    /// whether it is to run.
    Whole { definition: Element, running: bool },
    /// It cannot, and why.
    Damaged(String),
}

/// A file in which a machine keeps state outside of its disks. Whoever reads the same twice from it
/// while the guest runs has read what it held in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFile {
    pub kind: StateKind,
    /// Where the hypervisor has it.
    pub path: PathBuf,
    pub format: Format,
    pub exists: bool,
    /// A new one begins as a copy of this.
    pub template: Option<PathBuf>,
    /// The copies for moments are beside this, and begin with its name.
    pub copies: PathBuf,
}

/// A state file, and what an operation has to know of copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFacts {
    pub file: StateFile,
    /// A path where nothing is, for the copy that the operation makes.
    pub free: Option<PathBuf>,
    /// Of a revert: the copy of which the moment tells is there, and whole.
    pub has_copy: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateKind {
    /// The variables of UEFI firmware.
    Nvram,
    /// What an emulated TPM keeps.
    Tpm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    NotConfigured,
    NotConnected,
    Connected,
}

/// What is where an overlay is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub kind: PathKind,
    /// Somebody uses what is there already, with a word on who.
    pub used_by: Option<String>,
    /// The image that is there, if it can be an overlay. Its backing file has the name that the
    /// image below is known by, if it is that file, however the header writes it.
    pub image: Option<ImageFacts>,
    /// That image holds no data of its own.
    pub is_blank: bool,
}

impl From<PathKind> for Place {
    fn from(kind: PathKind) -> Self {
        Self { kind, used_by: None, image: None, is_blank: false }
    }
}

/// What a directory has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Directories of one file system share its room.
    pub file_system: u64,
    /// In bytes.
    pub free: u64,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    Missing,
    /// A regular file and its length in bytes.
    Regular(u64),
    BlockDevice,
    Other,
}
