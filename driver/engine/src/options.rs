//! What a caller may choose, as types in which nonsense cannot be written. The wire's flag words
//! are decoded into these once, in the daemon.

use bitflags::bitflags;
use virtsnap_xml::snapshot::Survivor;

/// virDomainSnapshotCreateXML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateOptions {
    New(New),
    /// Put metadata back; nothing of the domain changes.
    Redefine {
        make_current: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct New {
    pub scope: Scope,
    pub metadata: Metadata,
    pub afterwards: Afterwards,
    pub overlays: Overlays,
    /// It becomes the domain's current snapshot, and so the parent of the next. If not, the
    /// domain writes to its overlays all the same.
    pub becomes_current: bool,
    /// What a running guest does while its memory goes into a file of its own.
    pub meanwhile: Meanwhile,
}

impl New {
    /// What a call without flags asks for.
    pub fn plain(scope: Scope) -> Self {
        Self {
            scope,
            metadata: Metadata::Keep,
            afterwards: Afterwards::Continue,
            overlays: Overlays::Create,
            becomes_current: true,
            meanwhile: Meanwhile::GoesOn,
        }
    }
}

/// Quiescing is for disk snapshots, `live` for full ones: it says that the guest has to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    DiskOnly { quiesce: bool },
    FullSystem { live: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metadata {
    Keep,
    /// The snapshot is made and not recorded.
    Forget,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    Continue,
    Halt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlays {
    Create,
    /// The user made them.
    Reuse,
}

/// For the administrator to say, once for all guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Meanwhile {
    /// Until the last pages are written; but one that is to be halted then has nothing to go on for.
    #[default]
    GoesOn,
    /// libvirt's way: it stands still from the beginning, unless asked for `live`.
    StandsStill,
}

/// virDomainRevertToSnapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RevertOptions {
    pub state: RevertState,
    /// Risks that were pointed out are accepted.
    pub force: bool,
    pub reset_nvram: bool,
    /// The domain goes back onto the files that the snapshot froze, which is used up by it.
    pub discard: bool,
    /// All snapshots below this one go in the same act.
    pub delete_children: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RevertState {
    #[default]
    AsSnapshot,
    Running,
    Paused,
    /// Only the disks go back, also of a snapshot with memory, and the domain is off afterwards.
    ShutOff,
}

/// virDomainSnapshotDelete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeleteOptions {
    pub scope: DeleteScope,
    /// Forget it, and touch no image.
    pub metadata_only: bool,
    pub consolidate: Consolidate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeleteScope {
    /// This one; its children go to its parent.
    #[default]
    Single,
    WithDescendants,
    DescendantsOnly,
}

/// What becomes of the two files of an external snapshot when it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Consolidate {
    /// Refuse, rather than leave a file unmerged or let another one survive than was asked for.
    pub required: bool,
    /// For all disks, whatever `<on_delete>` or the policy says.
    pub keep: Option<Survivor>,
}

bitflags! {
    /// Which moments a list holds. Each moment matches exactly one bit of a group; a group with
    /// no bit set does not filter.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct ListFilter: u32 {
        const LEAVES = 1 << 0;
        const NO_LEAVES = 1 << 1;

        const METADATA = 1 << 2;
        const NO_METADATA = 1 << 3;

        /// Of a shut-off domain.
        const INACTIVE = 1 << 4;
        /// With memory.
        const ACTIVE = 1 << 5;
        const DISK_ONLY = 1 << 6;

        const INTERNAL = 1 << 7;
        const EXTERNAL = 1 << 8;

        /// Parents before children.
        const TOPOLOGICAL = 1 << 9;
    }
}

/// From where in the tree a list is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListRoot<'a> {
    /// All of the domain's.
    All,
    /// Those without a parent.
    Roots,
    ChildrenOf(&'a str),
    DescendantsOf(&'a str),
}
