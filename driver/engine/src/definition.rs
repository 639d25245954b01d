//! What every driver says, checks and fills in alike when a domain is defined. Pure, but for the
//! uuid of a domain that has none.

use uuid::Uuid;
use virtsnap_xml::domain::{normal_mac, parse_number};
use virtsnap_xml::element::Element;

use crate::error::{Condition, Error, Origin, Result};

/// A name that can be a file's, a uuid, no empty title.
pub fn identity(root: &mut Element) -> Result<()> {
    let name = root.child_text("name").unwrap_or_default();
    if name.is_empty() {
        return Err(bad("the domain has no name"));
    }
    if name.contains(['/', '\n']) {
        return Err(bad(format!("the name '{name}' of a domain cannot contain '/' or a newline")));
    }
    let uuid = match root.child_text("uuid").filter(|text| !text.trim().is_empty()) {
        Some(text) => Uuid::try_parse(text.trim())
            .map_err(|_| bad(format!("the domain's uuid '{text}' is malformed")))?,
        None => Uuid::new_v4(),
    };
    root.child_or_insert("uuid").set_text(uuid.to_string());
    for optional in ["title", "description"] {
        if root.child_text(optional).is_some_and(|text| text.is_empty()) {
            root.remove_children(optional);
        }
    }
    Ok(())
}

/// How many vcpus there can be; `current` is said where fewer are online.
pub fn vcpus(vcpu: &mut Element) -> Result<u32> {
    let text = vcpu.text();
    let count: u32 = match text.trim() {
        "" => 1,
        text => text.parse().map_err(|_| bad(format!("<vcpu> is '{text}', not a number")))?,
    };
    if count == 0 {
        return Err(bad("<vcpu> is zero"));
    }
    vcpu.set_text(count.to_string());
    set_default(vcpu, "placement", "static");
    match checked_number(vcpu, "current")? {
        Some(current) if current == 0 || current > count => {
            return Err(bad(format!("{current} of {count} vcpus cannot be online")));
        }
        Some(current) if current == count => {
            vcpu.remove_attr("current");
        }
        Some(current) => vcpu.set_attr("current", current.to_string()),
        None => {}
    }
    Ok(count)
}

/// The address of an interface, as it is written; `new` makes one.
pub fn mac(interface: &mut Element, new: fn() -> String) -> Result<()> {
    let mac = interface.child_or_insert("mac");
    let address = match mac.attr("address") {
        Some(address) => {
            normal_mac(address).ok_or_else(|| bad(format!("'{address}' is not a MAC address")))?
        }
        None => new(),
    };
    mac.set_attr("address", address);
    Ok(())
}

pub fn set_default(element: &mut Element, attribute: &str, value: &str) {
    if element.attr(attribute).is_none() {
        element.set_attr(attribute, value);
    }
}

/// The attribute as a number, which libvirt also reads in hexadecimal; what is not a number is
/// refused.
pub fn checked_number(element: &Element, attribute: &str) -> Result<Option<u32>> {
    let Some(text) = element.attr(attribute) else { return Ok(None) };
    parse_number(text).map(Some).ok_or_else(|| {
        let name = element.name();
        bad(format!("the attribute {attribute} of <{name}> is '{text}', not a number"))
    })
}

/// The definition contradicts itself or says nonsense.
pub fn bad(message: impl Into<String>) -> Error {
    Error::new(Condition::XmlError, message).from_origin(Origin::Domain)
}

/// The definition asks for what this driver or its hypervisor does not have.
pub fn unsupported(message: impl Into<String>) -> Error {
    Error::new(Condition::ConfigUnsupported, message)
}
