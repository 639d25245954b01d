//! The one map from our errors to libvirt's numbers.
//!
//! Numbers: `include/libvirt/virterror.h` (virErrorNumber, virErrorDomain). A client acts on the
//! number, so both matches are exhaustive and have no catch-all: a new [`Condition`] does not
//! compile until it has one. The lead-in before a message is libvirt's, because scripts grep it.

use virtsnap_engine::error::{Condition, Error, Origin};

/// What a client is told: virError without the fields nobody fills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VirError {
    pub(crate) code: i32,
    pub(crate) domain: i32,
    pub(crate) message: String,
    pub(crate) detail: String,
    /// errno, for code 38.
    pub(crate) errno: Option<i32>,
}

impl VirError {
    /// `driver` is the error domain of the hypervisor driver (10 QEMU, 41 LIBXL).
    pub(crate) fn new(err: &Error, driver: i32) -> Self {
        let detail = err.chain();
        Self {
            code: code(err.condition),
            domain: domain(err.origin, driver),
            message: format!("{}{detail}", lead_in(err.condition)),
            detail,
            errno: match err.condition {
                Condition::System(errno) => Some(errno),
                _ => None,
            },
        }
    }
}

fn code(condition: Condition) -> i32 {
    match condition {
        Condition::Internal => 1,
        Condition::NoSupport => 3,
        Condition::InvalidArgument => 8,
        Condition::OperationFailed => 9,
        Condition::XmlError => 27,
        Condition::DomainExists => 28,
        Condition::OperationDenied => 29,
        Condition::System(_) => 38,
        Condition::XmlDetail => 35,
        Condition::NoDomain => 42,
        Condition::OperationInvalid => 55,
        Condition::ConfigUnsupported => 67,
        Condition::Overflow => 82,
        Condition::Timeout => 68,
        Condition::InvalidSnapshot => 71,
        Condition::NoSnapshot => 72,
        Condition::InvalidStream => 73,
        Condition::ArgumentUnsupported => 74,
        Condition::RevertRisky => 77,
        Condition::Aborted => 78,
        Condition::NoMetadata => 80,
        Condition::BlockCopyActive => 83,
        Condition::OperationUnsupported => 84,
        Condition::AgentUnresponsive => 86,
        Condition::ResourceBusy => 87,
        Condition::AccessDenied => 88,
        Condition::XmlInvalidSchema => 92,
        Condition::DeviceMissing => 99,
    }
}

fn domain(origin: Origin, driver: i32) -> i32 {
    match origin {
        Origin::None => 0,
        Origin::Xml => 5,
        Origin::Rpc => 7,
        Origin::Driver => driver,
        Origin::Storage => 18,
        Origin::Domain => 20,
        Origin::Snapshot => 35,
        Origin::Streams => 38,
    }
}

fn lead_in(condition: Condition) -> &'static str {
    match condition {
        Condition::Internal => "internal error: ",
        Condition::NoSupport => "this function is not supported by the connection driver: ",
        Condition::InvalidArgument => "invalid argument: ",
        Condition::OperationFailed => "operation failed: ",
        Condition::XmlError => "XML error: ",
        Condition::XmlDetail => "",
        Condition::XmlInvalidSchema => "XML document failed to validate against schema: ",
        Condition::OperationDenied => "operation forbidden: ",
        Condition::System(_) => "",
        Condition::NoDomain => "Domain not found: ",
        Condition::DomainExists => "domain exists already: ",
        Condition::NoSnapshot => "Domain snapshot not found: ",
        Condition::InvalidSnapshot => "Invalid domain snapshot: ",
        Condition::NoMetadata => "metadata not found: ",
        Condition::OperationInvalid => "Requested operation is not valid: ",
        Condition::OperationUnsupported => "Operation not supported: ",
        Condition::ConfigUnsupported => "unsupported configuration: ",
        Condition::ArgumentUnsupported => "argument unsupported: ",
        Condition::RevertRisky => "revert requires force: ",
        Condition::Overflow => "numerical overflow: ",
        Condition::Timeout => "Timed out during operation: ",
        Condition::Aborted => "operation aborted: ",
        Condition::BlockCopyActive => "block copy still active: ",
        Condition::AgentUnresponsive => "Guest agent is not responding: ",
        Condition::ResourceBusy => "resource busy: ",
        Condition::AccessDenied => "access denied: ",
        Condition::DeviceMissing => "device not found: ",
        Condition::InvalidStream => "invalid stream: ",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_sees_the_number_the_lead_in_and_all_causes() {
        let err = Error::snapshot(Condition::NoSnapshot, "no snapshot 's1' in domain 'vm'")
            .caused_by("the disk is gone");
        let told = VirError::new(&err, 10);
        assert_eq!((told.code, told.domain, told.errno), (72, 35, None));
        assert_eq!(
            told.message,
            "Domain snapshot not found: no snapshot 's1' in domain 'vm': the disk is gone"
        );
    }

    #[test]
    fn the_driver_names_itself() {
        let err = Error::new(Condition::System(13), "cannot open '/x'");
        assert_eq!(VirError::new(&err, 41).domain, 41);
        assert_eq!(VirError::new(&err, 10).errno, Some(13));
    }
}
