//! What the domain's own policy (xml's [`Policy`]) says to a plan.

use std::borrow::Cow;

use virtsnap_xml::element::Element;
use virtsnap_xml::policy::{self, Confirm, Policy};
use virtsnap_xml::snapshot::{Location, MemoryRequest, Request};

use crate::error::{Condition, Error, Result};
use crate::facts::DomainFacts;
use crate::options::{New, Scope};

/// Of the definition that holds now: the live one of an active domain.
///
/// # Errors
/// `ConfigUnsupported` for one that is not understood: it may forbid what is asked.
pub(super) fn of(facts: &DomainFacts) -> Result<Policy> {
    let Some(definition) = facts.live.as_ref().or(facts.config.as_ref()) else {
        return Ok(Policy::default());
    };
    Policy::of(definition).map_err(|err| {
        let what = "the policy in the domain's metadata cannot be followed; correct it first";
        Error::new(Condition::ConfigUnsupported, what).caused_by(err)
    })
}

/// The request, with the place of memory that the policy gives a full snapshot which says none.
///
/// # Errors
/// `ConfigUnsupported` for a place that the hypervisor does not have.
pub(super) fn applied<'a>(
    policy: &Policy,
    request: &'a Request,
    options: &New,
    facts: &DomainFacts,
) -> Result<Cow<'a, Request>> {
    let full = matches!(options.scope, Scope::FullSystem { .. });
    if request.memory.is_some() || !full {
        return Ok(Cow::Borrowed(request));
    }
    let active = facts.state.is_active();
    let memory = match policy.memory {
        // Of a saved guest there is memory, too.
        Some(Location::External) if active || facts.managed_save.is_some() => {
            MemoryRequest::External { file: None }
        }
        Some(Location::Internal) if active && !facts.memory_inside => return Err(no_inside()),
        Some(Location::Internal) if active => MemoryRequest::Internal,
        Some(_) | None => return Ok(Cow::Borrowed(request)),
    };
    Ok(Cow::Owned(Request { memory: Some(memory), ..request.clone() }))
}

fn no_inside() -> Error {
    Error::new(
        Condition::ConfigUnsupported,
        "the domain's policy wants memory inside of images, where this hypervisor keeps none: say \
         <memory snapshot='external'/>, or change the policy's <create memory='internal'>",
    )
}

/// What would be begun could not be ended.
pub(super) fn dying() -> Error {
    Error::new(Condition::OperationInvalid, "the domain is shutting down; try again when it is off")
}

/// A snapshot's definition comes back, but not the policy of its time: a safety valve that a revert
/// takes away is none.
pub(super) fn carry(facts: &DomainFacts, to: &mut Element) {
    if let Some(definition) = facts.live.as_ref().or(facts.config.as_ref()) {
        policy::carry(definition, to);
    }
}

/// The safety valve. `continues`: the running hypervisor process takes the snapshot's memory;
/// `difference`: what keeps it from doing so, if that is known.
///
/// # Errors
/// `RevertRisky` where the policy wants to be asked.
pub(super) fn confirm(
    policy: &Policy,
    facts: &DomainFacts,
    continues: bool,
    difference: Option<&str>,
) -> Result<()> {
    let asks = match policy.confirm {
        Confirm::Never => false,
        Confirm::Restart => !continues,
        Confirm::Always => true,
    };
    if !asks || !facts.state.is_active() {
        return Ok(());
    }
    let lost = match (continues, difference) {
        (true, _) => "would lose the state that the domain is in now".to_owned(),
        (false, Some(why)) => {
            format!("would end the running domain, whose definition has changed since: {why}")
        }
        (false, None) => "would end the running domain".to_owned(),
    };
    Err(Error::new(
        Condition::RevertRisky,
        format!("the revert {lost}; the domain's policy wants it forced"),
    ))
}
