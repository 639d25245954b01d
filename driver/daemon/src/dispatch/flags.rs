//! Flag words, and where a change takes effect. They end here: below dispatch there are types.

use virtsnap_engine::error::{Condition, Error};
use virtsnap_engine::inspect::Inspect;

use super::Outcome;
use crate::domains::{Domain, Domains};
use crate::service::RpcError;

const INVALID_ARG: i32 = 8;

/// Refuses bits the function does not know, in the words libvirt's own clients look for. Functions
/// of libvirt's drivers are named without the driver, those that all share as they are.
pub(super) fn only<H: Inspect>(flags: u32, known: u32, function: &str) -> Outcome<()> {
    let unknown = flags & !known;
    if unknown == 0 {
        return Ok(());
    }
    let of_driver = function.starts_with(|first: char| first.is_ascii_uppercase());
    let driver = if of_driver { H::FUNCTIONS } else { "" };
    let message = format!("unsupported flags (0x{unknown:x}) in function {driver}{function}");
    Err(RpcError::new(INVALID_ARG, H::ERROR_DOMAIN, message).into())
}

/// A flag's bit and name.
pub(super) type Flag = (u32, &'static str);

pub(super) fn exclusive(flags: u32, one: Flag, other: Flag, from: i32) -> Outcome<()> {
    if flags & one.0 != 0 && flags & other.0 != 0 {
        let message = format!("Flags '{}' and '{}' are mutually exclusive", one.1, other.1);
        return Err(RpcError::new(INVALID_ARG, from, message).into());
    }
    Ok(())
}

pub(super) fn requires(flags: u32, flag: Flag, required: Flag, from: i32) -> Outcome<()> {
    if flags & flag.0 != 0 && flags & required.0 == 0 {
        let message = format!("Flag '{}' is required by flag '{}'", required.1, flag.1);
        return Err(RpcError::new(INVALID_ARG, from, message).into());
    }
    Ok(())
}

/// Bits of ours, far above libvirt's: any client's binding can pass them, and `virtsnap` has an
/// option for each. docs/extensions.md says what they do.
pub(super) mod ours {
    use super::Flag;

    /// Of virDomainGetXMLDesc.
    pub(crate) const XML_IMAGES: Flag = (1 << 16, "VIRTSNAP_XML_IMAGES");

    pub(crate) const CREATE_NO_CURRENT: Flag = (1 << 16, "VIRTSNAP_CREATE_NO_CURRENT");

    pub(crate) const REVERT_STOP: Flag = (1 << 16, "VIRTSNAP_REVERT_STOP");
    pub(crate) const REVERT_DISCARD: Flag = (1 << 17, "VIRTSNAP_REVERT_DISCARD");
    pub(crate) const REVERT_DELETE_CHILDREN: Flag = (1 << 18, "VIRTSNAP_REVERT_DELETE_CHILDREN");

    pub(crate) const DELETE_CONSOLIDATE: Flag = (1 << 16, "VIRTSNAP_DELETE_CONSOLIDATE");
    pub(crate) const DELETE_KEEP_BASE: Flag = (1 << 17, "VIRTSNAP_DELETE_KEEP_BASE");
    pub(crate) const DELETE_KEEP_OVERLAY: Flag = (1 << 18, "VIRTSNAP_DELETE_KEEP_OVERLAY");
}

pub(super) const LIVE: u32 = 1;
pub(super) const CONFIG: u32 = 2;
/// Clients add it to every call that returns typed parameters.
pub(super) const STRING_OKAY: u32 = 4;

/// VIR_DOMAIN_AFFECT_*, resolved: with neither bit, what is current.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Affect {
    pub(super) live: bool,
    pub(super) config: bool,
}

pub(super) fn affect<H: Inspect>(
    domains: &Domains<H>,
    domain: &Domain,
    flags: u32,
) -> Outcome<Affect> {
    let active = domains.active(domain).is_some();
    let affect = match flags & (LIVE | CONFIG) {
        0 => Affect { live: active, config: !active },
        bits => Affect { live: bits & LIVE != 0, config: bits & CONFIG != 0 },
    };
    if affect.live && !active {
        return Err(Error::new(Condition::OperationInvalid, "domain is not running").into());
    }
    if affect.config && !domain.is_persistent() {
        return Err(Error::new(
            Condition::OperationInvalid,
            "transient domains do not have any persistent config",
        )
        .into());
    }
    Ok(affect)
}

/// For questions: one of the two.
pub(super) fn either<H: Inspect>(
    domains: &Domains<H>,
    domain: &Domain,
    flags: u32,
) -> Outcome<Affect> {
    let both = (LIVE, "VIR_DOMAIN_AFFECT_LIVE");
    exclusive(flags, both, (CONFIG, "VIR_DOMAIN_AFFECT_CONFIG"), 20)?;
    affect(domains, domain, flags)
}
