//! The words for what a domain is and does: states, reasons, events. libvirt's, as types.

use std::path::PathBuf;

use uuid::Uuid;
use virtsnap_xml::element::Element;

use crate::facts::Target;

/// virDomainState with its reason. The numbers live in the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    Running(RunningReason),
    Paused(PausedReason),
    /// The guest is shutting down.
    Shutdown,
    ShutOff(ShutOffReason),
    Crashed,
    PmSuspended,
    /// It is up, and more of it cannot be told.
    Unknown,
}

impl State {
    pub fn is_active(self) -> bool {
        !matches!(self, State::ShutOff(_))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunningReason {
    Unknown,
    Booted,
    Migrated,
    Restored,
    FromSnapshot,
    Unpaused,
    SaveCanceled,
    Wakeup,
    Crashed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PausedReason {
    Unknown,
    User,
    Migration,
    Save,
    Dump,
    IoError,
    Watchdog,
    FromSnapshot,
    ShuttingDown,
    Snapshot,
    Crashed,
    StartingUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShutOffReason {
    Unknown,
    Shutdown,
    Destroyed,
    Crashed,
    Migrated,
    Saved,
    Failed,
    FromSnapshot,
    /// The guest was gone when the daemon came back.
    Daemon,
}

/// An active domain as its hypervisor sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Active {
    pub uuid: Uuid,
    pub name: String,
    /// Positive, new for each start, never reused while the daemon's state directory lives.
    pub id: i32,
    pub state: State,
    /// The live definition: aliases, assigned paths and ports, current disk sources.
    pub live: Element,
}

/// How a domain is brought up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Leave the vCPUs stopped.
    pub paused: bool,
    pub from: StartFrom,
}

impl Start {
    /// No memory is loaded.
    pub fn boots(&self) -> bool {
        matches!(self.from, StartFrom::Boot | StartFrom::BootSnapshot)
    }

    /// Why it is paused, where its vCPUs are left stopped.
    pub fn paused_by(&self) -> PausedReason {
        if self.boots() { PausedReason::User } else { PausedReason::FromSnapshot }
    }

    /// What is told of it. A guest that boots on the disks of a snapshot is one that boots, to all
    /// but these.
    pub fn started(&self) -> Started {
        if self.from == StartFrom::Boot { Started::Booted } else { Started::FromSnapshot }
    }

    /// What is told of the vCPUs' being left stopped.
    pub fn suspended(&self) -> Suspended {
        if self.from == StartFrom::Boot { Suspended::Paused } else { Suspended::FromSnapshot }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartFrom {
    /// Cold boot on a user's request (event detail "booted").
    Boot,
    /// Cold boot of disks a snapshot was reverted to (event detail "from snapshot").
    BootSnapshot,
    /// Memory and device state from the internal snapshot `tag`, which all of `disks` carry too:
    /// their content is loaded with it.
    VmState { tag: String, vmstate: VmStateIn, disks: Vec<Target> },
    /// Memory and device state from a save image.
    Memory { file: PathBuf },
}

/// Where the memory of an internal snapshot is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmStateIn {
    /// In the qcow2 image of a disk.
    Disk(Target),
    /// In a qcow2 image of its own, which no device of the guest uses.
    Image(PathBuf),
}

/// A guest that is to end with its memory in a save image.
#[derive(Debug, Clone, PartialEq)]
pub struct Save {
    /// Overwritten, if it is there.
    pub file: PathBuf,
    /// What stands in the image: the same guest for whoever restores it.
    pub definition: Element,
    /// It is to run when it is restored; none: if it runs now.
    pub running: Option<bool>,
    /// `raw`, or a compression that libvirt knows.
    pub format: String,
}

/// What a file holds that should be a save image.
#[derive(Debug, Clone, PartialEq)]
pub enum SaveImage {
    Whole {
        definition: Element,
        running: bool,
    },
    /// Nobody finished writing it, or it is something else.
    Torn(String),
}

/// How a saved guest comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    pub file: PathBuf,
    /// The image goes, durably, before the guest runs: its memory must not meet these disks again.
    pub discard: bool,
    /// Left paused, and what is told of it; none: it runs.
    pub suspended: Option<Suspended>,
}

/// What happened to a domain. The daemon turns it into libvirt's event messages.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Defined(Defined),
    Undefined,
    Started(Started),
    Suspended(Suspended),
    Resumed(Resumed),
    /// The guest shut down, or was told to, by guest or host.
    Shutdown(ShutdownBy),
    Stopped(ShutOffReason),
    PmSuspended,
    Crashed,
    Reboot,
    RtcChange {
        offset: i64,
    },
    Watchdog {
        action: String,
    },
    IoError {
        source: String,
        alias: String,
        action: IoErrorAction,
        reason: String,
    },
    BlockJob {
        target: String,
        source: String,
        kind: BlockJobKind,
        status: BlockJobStatus,
    },
    TrayChange {
        alias: String,
        opened: bool,
    },
    /// Balloon size in KiB.
    BalloonChange {
        actual: u64,
    },
    DeviceAdded {
        alias: String,
    },
    DeviceRemoved {
        alias: String,
    },
    AgentLifecycle {
        connected: bool,
    },
    MetadataChange {
        kind: i32,
        uri: Option<String>,
    },
    MigrationIteration(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defined {
    Added,
    Updated,
    Renamed,
    FromSnapshot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    Booted,
    Restored,
    FromSnapshot,
    Wakeup,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspended {
    Paused,
    IoError,
    Watchdog,
    Restored,
    FromSnapshot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumed {
    Unpaused,
    FromSnapshot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownBy {
    Unknown,
    Guest,
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoErrorAction {
    None,
    Pause,
    Report,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockJobKind {
    Pull,
    Copy,
    Commit,
    ActiveCommit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockJobStatus {
    Completed,
    Failed,
    Canceled,
    Ready,
}
