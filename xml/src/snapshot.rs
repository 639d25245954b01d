//! `<domainsnapshot>`: what is asked ([`Request`]) and what is recorded ([`Definition`]).
//!
//! A request is read by libvirt's rules for what a user writes, a definition by its rules for
//! REDEFINE and for its own files; both refuse with libvirt's class of error ([`ErrorKind`]).
//!
//! Invariants: `Definition::parse(&d.to_element()) == d`, and printed as libvirt prints: its
//! elements in its order, then what we do not know, as it was read.
//!
//! - `read`: from XML
//! - `write`: to XML

mod read;
mod write;

use crate::domain;
use crate::element::Element;

/// `snapshot=` of a disk or of `<memory>`. "Not said" is `Option::None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Location {
    No,
    Internal,
    External,
    Manual,
}

impl Location {
    pub fn as_str(self) -> &'static str {
        match self {
            Location::No => "no",
            Location::Internal => "internal",
            Location::External => "external",
            Location::Manual => "manual",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Location::No, Location::Internal, Location::External, Location::Manual]
            .into_iter()
            .find(|location| location.as_str() == name)
    }
}

/// `<on_delete keep=>`: which of the two files of an external snapshot is left when it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Survivor {
    /// The file the snapshot froze: what was written since goes down into it.
    Base,
    /// The file written to since: what it stands on is copied up into it.
    Overlay,
}

impl Survivor {
    pub fn as_str(self) -> &'static str {
        match self {
            Survivor::Base => "base",
            Survivor::Overlay => "overlay",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Survivor::Base, Survivor::Overlay].into_iter().find(|kept| kept.as_str() == name)
    }
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

impl State {
    const ALL: [State; 8] = [
        State::Running,
        State::Blocked,
        State::Paused,
        State::Shutdown,
        State::ShutOff,
        State::Crashed,
        State::PmSuspended,
        State::DiskSnapshot,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Blocked => "blocked",
            State::Paused => "paused",
            State::Shutdown => "shutdown",
            State::ShutOff => "shutoff",
            State::Crashed => "crashed",
            State::PmSuspended => "pmsuspended",
            State::DiskSnapshot => "disk-snapshot",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// No memory belongs to a moment of this state.
    pub fn is_offline(self) -> bool {
        matches!(self, State::ShutOff | State::DiskSnapshot)
    }
}

/// What the user wrote. Nothing is filled in, but that a disk with a source or a format, and
/// a memory with a file, is external.
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
    /// `<driver>`, if it says more than the format: then only `<metadata_cache>` with `<max_size>`
    /// in bytes, as libvirt keeps no more of it.
    pub driver: Option<Element>,
    /// Ours: libvirt has no such element.
    pub on_delete: Option<Survivor>,
    /// Elements inside `<disk>` that libvirt does not know, as read.
    pub extra: Vec<Element>,
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
    /// `<inactiveDomain>`: the persistent definition at that moment, if it differed in kind. Held
    /// as the `<domain>` that it is.
    pub inactive_domain: Option<Element>,
    /// `<revertDisks>`: overlays in use since a revert to this snapshot.
    pub revert_disks: Vec<Disk>,
    pub cookie: Option<Element>,
    /// `<nvram>`: the firmware's variables. Not there: nothing is known of them. Ours: libvirt has
    /// no such element.
    pub nvram: Option<KeptState>,
    /// `<tpm>`: what an emulated TPM keeps. As `nvram`.
    pub tpm: Option<KeptState>,
    /// `<snapshotDeleteInProgress/>` of the whole: its deletion began, and it can only be deleted.
    /// Ours: libvirt has the word for single disks.
    pub delete_in_progress: bool,
    /// Elements that we do not know, kept and printed as read.
    pub extra: Vec<Element>,
}

/// How a moment keeps a file in which the machine has state outside of its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeptState {
    /// There was no such file yet.
    No,
    /// As an internal snapshot of the file, which is qcow2, under the snapshot's name.
    Internal,
    /// As a copy.
    External { file: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Memory {
    No,
    /// As `No`, but not printed, and so read as `No` again: libvirt's driver says nothing of memory
    /// when it takes a shut-off domain externally without being told that it is about disks only.
    Unsaid,
    /// In the internal snapshots of the disks; or, where no disk has one, in a qcow2 image of its
    /// own (ours: libvirt prints no `file=` here).
    Internal {
        image: Option<String>,
    },
    /// In a save image.
    External {
        file: String,
    },
}

impl Memory {
    /// Memory belongs to the moment.
    pub fn is_saved(&self) -> bool {
        !matches!(self, Memory::No | Memory::Unsaid)
    }
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
    /// As [`DiskRequest::driver`].
    pub driver: Option<Element>,
    /// Internal: the tag, when it is not the snapshot's name. Ours: libvirt has no such attribute.
    pub tag: Option<String>,
    /// External only. Ours: libvirt has no such element.
    pub on_delete: Option<Survivor>,
    /// `<snapshotDeleteInProgress/>`: a merge of this disk did not end.
    pub delete_in_progress: bool,
    /// Elements inside `<disk>` that libvirt does not know, as read.
    pub extra: Vec<Element>,
}

impl Disk {
    /// A disk with nothing said but where its snapshot is.
    pub fn new(name: impl Into<String>, snapshot: Location) -> Self {
        Self {
            name: name.into(),
            snapshot,
            source_type: None,
            source: None,
            format: None,
            driver: None,
            tag: None,
            on_delete: None,
            delete_in_progress: false,
            extra: Vec::new(),
        }
    }

    /// An external snapshot in an overlay file.
    pub fn overlay(
        name: impl Into<String>,
        file: impl Into<String>,
        format: impl Into<String>,
    ) -> Self {
        Self {
            source_type: Some("file".to_owned()),
            source: Some(Element::new("source").with_attr("file", file)),
            format: Some(format.into()),
            ..Self::new(name, Location::External)
        }
    }

    /// The overlay's path, where it is a file or a block device.
    pub fn path(&self) -> Option<&str> {
        source_path(self.source_type.as_deref(), self.source.as_ref())
    }
}

impl DiskRequest {
    /// The wanted overlay's path, where it is a file or a block device.
    pub fn path(&self) -> Option<&str> {
        source_path(self.source_type.as_deref(), self.source.as_ref())
    }
}

impl Definition {
    /// Of a domain without memory, without disks, in no tree.
    pub fn new(name: impl Into<String>, state: State, creation_time: i64) -> Self {
        Self {
            name: name.into(),
            description: None,
            state,
            parent: None,
            creation_time,
            memory: Memory::No,
            disks: Vec::new(),
            domain: None,
            inactive_domain: None,
            revert_disks: Vec::new(),
            cookie: None,
            nvram: None,
            tpm: None,
            delete_in_progress: false,
            extra: Vec::new(),
        }
    }

    /// As a client without the right to secrets sees it.
    #[must_use]
    pub fn without_secrets(mut self) -> Self {
        self.domain = self.domain.map(domain::without_secrets);
        self.inactive_domain = self.inactive_domain.map(domain::without_secrets);
        self
    }

    /// Some part of it lies in a file of its own.
    pub fn is_external(&self) -> bool {
        matches!(self.memory, Memory::External { .. } | Memory::Internal { image: Some(_) })
            || self.disks.iter().any(|disk| disk.snapshot == Location::External)
    }
}

/// `<source file=>` or `<source dev=>` by the type; a disk of no type is a file.
fn source_path<'a>(source_type: Option<&str>, source: Option<&'a Element>) -> Option<&'a str> {
    match source_type.unwrap_or("file") {
        "file" => source?.attr("file"),
        "block" => source?.attr("dev"),
        _ => None,
    }
}

/// What libvirt would answer with: the daemon maps it to a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// VIR_ERR_XML_ERROR
    Xml,
    /// VIR_ERR_XML_ERROR of the XML parser (VIR_FROM_XML): another document altogether.
    WrongRoot,
    /// VIR_ERR_XML_ERROR of the XML parser (VIR_FROM_XML): a value that its attribute cannot have.
    XmlValue,
    /// VIR_ERR_XML_DETAIL: a name that cannot be; libvirt's driver says so.
    XmlDetail,
    /// VIR_ERR_CONFIG_UNSUPPORTED
    ConfigUnsupported,
    /// VIR_ERR_INTERNAL_ERROR
    Internal,
}

/// A `<domainsnapshot>` that is refused. Its libvirt domain is VIR_FROM_DOMAIN_SNAPSHOT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SnapshotXmlError {
    pub kind: ErrorKind,
    pub message: String,
}

/// libvirt's rule for names: its files are named after them.
pub fn check_name(name: &str) -> Result<(), SnapshotXmlError> {
    let wrong = if name.contains('/') {
        "must not contain '/'"
    } else if name.starts_with('.') {
        "must not start with '.'"
    } else {
        return Ok(());
    };
    let message = format!("snapshot name '{name}' {wrong}: choose another name");
    Err(SnapshotXmlError { kind: ErrorKind::XmlDetail, message })
}

#[cfg(test)]
mod tests;
