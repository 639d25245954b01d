//! The one error that crosses a port.
//!
//! A [`Condition`] is what a client can act on; the daemon maps it to libvirt's number in one
//! exhaustive match. `message` says what was refused, on which disk or file, and what to do; it
//! never repeats its source.

use std::error::Error as StdError;
use std::fmt;

use virtsnap_xml::vocabulary::Unknown;

/// What kind of condition holds. One variant for each libvirt number that we answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Condition {
    Internal,
    NoSupport,
    InvalidArgument,
    OperationFailed,
    XmlError,
    /// A value in an XML document is malformed (VIR_ERR_XML_DETAIL).
    XmlDetail,
    XmlInvalidSchema,
    OperationDenied,
    /// A system call failed; the value is errno.
    System(i32),
    NoDomain,
    DomainExists,
    NoSnapshot,
    InvalidSnapshot,
    NoMetadata,
    /// The domain is in the wrong state for this.
    OperationInvalid,
    /// This cannot be done at all.
    OperationUnsupported,
    ConfigUnsupported,
    ArgumentUnsupported,
    RevertRisky,
    Timeout,
    /// A number is larger than can be.
    Overflow,
    Aborted,
    BlockCopyActive,
    AgentUnresponsive,
    ResourceBusy,
    AccessDenied,
    DeviceMissing,
    InvalidStream,
}

/// Which part speaks; becomes libvirt's error domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The hypervisor driver (VIR_FROM_QEMU, VIR_FROM_LIBXL).
    Driver,
    Domain,
    Snapshot,
    Storage,
    Xml,
    Rpc,
    Streams,
    None,
}

#[derive(Debug)]
pub struct Error {
    pub condition: Condition,
    pub origin: Origin,
    pub message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the hypervisor driver, the usual case.
    pub fn new(condition: Condition, message: impl Into<String>) -> Self {
        Self { condition, origin: Origin::Driver, message: message.into(), source: None }
    }

    /// An error in `<domainsnapshot>` or the tree of snapshots (VIR_FROM_DOMAIN_SNAPSHOT).
    pub fn snapshot(condition: Condition, message: impl Into<String>) -> Self {
        Self { origin: Origin::Snapshot, ..Self::new(condition, message) }
    }

    #[must_use]
    pub fn from_origin(self, origin: Origin) -> Self {
        Self { origin, ..self }
    }

    #[must_use]
    pub fn caused_by(self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    /// The chain of causes in one line, outermost first: what a client is shown.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(err) = cause {
            text.push_str(": ");
            text.push_str(&err.to_string());
            cause = err.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|err| err as &(dyn StdError + 'static))
    }
}

/// Of a definition: what a driver's table of elements does not have.
impl From<Unknown> for Error {
    fn from(unknown: Unknown) -> Self {
        let message = unknown.to_string();
        match unknown {
            Unknown::Root { .. } => {
                Error::new(Condition::XmlError, message).from_origin(Origin::Domain)
            }
            Unknown::Content(_) => Error::new(Condition::ConfigUnsupported, message),
        }
    }
}
