//! `<domainsnapshot>`: what is asked ([`Request`]) and what is recorded ([`Definition`]).
//!
//! Invariant: `Definition::parse(&d.to_element()) == d`.

use crate::element::Element;

/// `snapshot=` of a disk or of `<memory>`. "Not said" is `Option::None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Location {
    No,
    Internal,
    External,
    Manual,
}

/// `<state>`: the domain's state at the moment of the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    Running,
    Blocked,
    Paused,
    Shutdown,
    ShutOff,
    Crashed,
    PmSuspended,
    /// Disks only, of a domain that was running or paused.
    DiskSnapshot,
}

/// What the user wrote. Nothing is filled in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    pub name: Option<String>,
    pub description: Option<String>,
    pub memory: Option<MemoryRequest>,
    pub disks: Vec<DiskRequest>,
    /// Of `<state>`, `<parent>`, `<creationTime>`, `<domain>`, … only REDEFINE takes notice, and
    /// it reads a whole [`Definition`].
    pub cookie: Option<Element>,
}

/// `<memory snapshot= file=>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryRequest {
    No,
    Internal,
    /// `file` may be left out: a default name is given (libvirt refuses).
    External {
        file: Option<String>,
    },
}

/// One `<disk>` of a request. `name` is a target (`vda`) or an unambiguous source path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRequest {
    pub name: String,
    pub snapshot: Option<Location>,
    /// `type=`: file, block, network, …
    pub source_type: Option<String>,
    /// The `<source>` element as written, if any.
    pub source: Option<Element>,
    /// `<driver type=>`.
    pub format: Option<String>,
    /// The whole `<driver>` element as written (metadata_cache and the like).
    pub driver: Option<Element>,
}

/// What is recorded of one moment: complete, every disk listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    pub name: String,
    pub description: Option<String>,
    pub state: State,
    pub parent: Option<String>,
    /// Seconds since the epoch.
    pub creation_time: i64,
    pub memory: Memory,
    pub disks: Vec<Disk>,
    /// `<domain>`: what the domain was at the moment (live form for a running one).
    pub domain: Option<Element>,
    /// `<inactiveDomain>`: the persistent definition at that moment, if it differed in kind.
    pub inactive_domain: Option<Element>,
    /// `<revertDisks>`: overlays in use since a revert to this snapshot.
    pub revert_disks: Vec<Disk>,
    pub cookie: Option<Element>,
    /// Elements that we do not know, kept and printed as read.
    pub extra: Vec<Element>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Memory {
    No,
    Internal,
    External { file: String },
}

/// One `<disk>` of a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Target name, `vda`.
    pub name: String,
    pub snapshot: Location,
    /// For external: `type=` (file, block, network) of `source`.
    pub source_type: Option<String>,
    /// For external: the `<source>` of the overlay that was created.
    pub source: Option<Element>,
    /// For external: format of the overlay.
    pub format: Option<String>,
    pub driver: Option<Element>,
    /// Internal: the tag, when it is not the snapshot's name.
    pub tag: Option<String>,
}
