//! What an administrator decides for one domain beyond libvirt's contract: our own element in the
//! domain's `<metadata>`, so that any libvirt tool can carry, show and set it.
//!
//! ```xml
//! <virtsnap:policy xmlns:virtsnap='urn:virtsnap:policy:1'>
//!   <virtsnap:create disks='external' memory='external'/>
//!   <virtsnap:revert confirm='restart'/>
//!   <virtsnap:delete keep='overlay'/>
//! </virtsnap:policy>
//! ```
//!
//! What a call or a snapshot says itself goes before it. A word that is not known is refused:
//! a policy that is silently not followed is worse than none.

use crate::domain;
use crate::element::Element;
use crate::snapshot::{Location, Survivor};

/// The namespace, and with it the version, of the element.
pub const NAMESPACE: &str = "urn:virtsnap:policy:1";

/// All that is not said is as libvirt does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// `<create disks=>`: where a disk goes of which neither the call nor the `<disk>` says.
    pub disks: Option<Location>,
    /// `<create memory=>`: where the memory of a full snapshot goes.
    pub memory: Option<Location>,
    pub confirm: Confirm,
    /// `<delete keep=>`: which of two files is left; none: what is quicker.
    pub keep: Option<Survivor>,
}

/// `<revert confirm=>`: when a revert asks to be forced, because the guest's running state is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Confirm {
    /// As libvirt.
    #[default]
    Never,
    /// Where the running hypervisor process would end.
    Restart,
    /// Whenever the domain is active.
    Always,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("<{element}> of the virtsnap policy cannot have {attribute}='{value}'; {known}")]
    Value { element: String, attribute: String, value: String, known: &'static str },
    #[error("the virtsnap policy does not know {attribute}= in <{element}>")]
    Attribute { element: String, attribute: String },
    #[error("the virtsnap policy does not know <{0}>; it has <create>, <revert> and <delete>")]
    Element(String),
    #[error("the virtsnap policy is an element <policy>, not <{0}>")]
    Root(String),
    #[error("the virtsnap policy has <{0}> twice")]
    Twice(String),
}

impl Policy {
    /// The policy in a domain's `<metadata>`; without one, libvirt's ways.
    ///
    /// # Errors
    /// Whatever in it is not known.
    pub fn of(domain: &Element) -> Result<Self, PolicyError> {
        match domain::metadata(domain, NAMESPACE) {
            Some(element) => Self::parse(&element),
            None => Ok(Self::default()),
        }
    }

    /// The element as a client writes it, without the namespace.
    fn parse(root: &Element) -> Result<Self, PolicyError> {
        if root.name() != "policy" {
            return Err(PolicyError::Root(root.name().to_owned()));
        }
        let mut policy = Self::default();
        let mut seen = Vec::new();
        only(root, &[])?;
        for element in root.elements() {
            if seen.contains(&element.name()) {
                return Err(PolicyError::Twice(element.name().to_owned()));
            }
            seen.push(element.name());
            policy.read(element)?;
            if let Some(inside) = element.elements().next() {
                return Err(PolicyError::Element(inside.name().to_owned()));
            }
        }
        Ok(policy)
    }

    fn read(&mut self, element: &Element) -> Result<(), PolicyError> {
        let location = |name: &str| match Location::from_name(name) {
            Some(found @ (Location::Internal | Location::External)) => Some(found),
            _ => None,
        };
        match element.name() {
            "create" => {
                only(element, &["disks", "memory"])?;
                let known = "it is 'internal' or 'external'";
                self.disks = value(element, "disks", known, location)?;
                self.memory = value(element, "memory", known, location)?;
            }
            "revert" => {
                only(element, &["confirm"])?;
                let known = "it is 'never', 'restart' or 'always'";
                let confirm = |name: &str| match name {
                    "never" => Some(Confirm::Never),
                    "restart" => Some(Confirm::Restart),
                    "always" => Some(Confirm::Always),
                    _ => None,
                };
                self.confirm = value(element, "confirm", known, confirm)?.unwrap_or_default();
            }
            "delete" => {
                only(element, &["keep"])?;
                let keep = |name: &str| match name {
                    "quickest" => Some(None),
                    name => Survivor::from_name(name).map(Some),
                };
                let known = "it is 'quickest', 'base' or 'overlay'";
                self.keep = value(element, "keep", known, keep)?.flatten();
            }
            other => return Err(PolicyError::Element(other.to_owned())),
        }
        Ok(())
    }
}

/// Takes over the policy of `from`, or takes away the one that is there.
pub fn carry(from: &Element, to: &mut Element) {
    let text = domain::metadata(from, NAMESPACE).map(|element| element.to_string());
    if text.is_none() && domain::metadata(to, NAMESPACE).is_none() {
        return;
    }
    // What was read from a tree can be written into one.
    drop(domain::set_metadata(to, text.as_deref(), "virtsnap", NAMESPACE));
}

fn only(element: &Element, known: &[&str]) -> Result<(), PolicyError> {
    let mut attributes = element.attributes().map(|(key, _)| key);
    let stranger = attributes.find(|key| !known.contains(key) && !key.starts_with("xmlns"));
    stranger.map_or(Ok(()), |stranger| {
        Err(PolicyError::Attribute {
            element: element.name().to_owned(),
            attribute: stranger.to_owned(),
        })
    })
}

fn value<T>(
    element: &Element,
    attribute: &str,
    known: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, PolicyError> {
    let Some(value) = element.attr(attribute) else { return Ok(None) };
    read(value).map(Some).ok_or_else(|| PolicyError::Value {
        element: element.name().to_owned(),
        attribute: attribute.to_owned(),
        value: value.to_owned(),
        known,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(policy: &str) -> Element {
        let mut domain = Element::parse("<domain type='qemu'><name>vm</name></domain>").unwrap();
        domain::set_metadata(&mut domain, Some(policy), "virtsnap", NAMESPACE).unwrap();
        domain
    }

    fn read(policy: &str) -> Result<Policy, PolicyError> {
        Policy::of(&domain(policy))
    }

    #[test]
    fn without_one_all_is_as_libvirt_does_it() {
        assert_eq!(Policy::of(&Element::new("domain")).unwrap(), Policy::default());
        assert_eq!(read("<policy/>").unwrap(), Policy::default());
        let plain = "<policy><revert confirm='never'/><delete keep='quickest'/></policy>";
        assert_eq!(read(plain).unwrap(), Policy::default());
    }

    #[test]
    fn each_word_is_read_whatever_the_prefix() {
        let all = "<policy><create disks='external' memory='internal'/>\
                   <revert confirm='restart'/><delete keep='overlay'/></policy>";
        let expected = Policy {
            disks: Some(Location::External),
            memory: Some(Location::Internal),
            confirm: Confirm::Restart,
            keep: Some(Survivor::Overlay),
        };
        assert_eq!(read(all).unwrap(), expected);
        let own = format!(
            "<domain><metadata><p:policy xmlns:p='{NAMESPACE}'><p:delete keep='base'/></p:policy>\
             </metadata></domain>"
        );
        let own = Policy::of(&Element::parse(&own).unwrap()).unwrap();
        assert_eq!(own.keep, Some(Survivor::Base));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for wrong in [
            "<other/>",
            "<policy x='1'/>",
            "<policy><protect/></policy>",
            "<policy><delete keep='both'/></policy>",
            "<policy><delete keep=''/></policy>",
            "<policy><create disks='no'/></policy>",
            "<policy><create file='/x'/></policy>",
            "<policy><revert confirm='sometimes'/></policy>",
            "<policy><delete/><delete/></policy>",
            "<policy><delete><why/></delete></policy>",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_policy_is_carried_over_and_so_is_its_absence() {
        let strict = domain("<policy><revert confirm='always'/></policy>");
        let mut other = domain("<policy><revert confirm='restart'/></policy>");
        carry(&strict, &mut other);
        assert_eq!(Policy::of(&other), Policy::of(&strict));
        let bare = Element::parse("<domain type='qemu'><name>vm</name></domain>").unwrap();
        carry(&bare, &mut other);
        assert_eq!(other, bare);
    }
}
