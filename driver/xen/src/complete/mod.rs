//! From what a client wrote to what libvirt's Xen driver would have made of it.
//!
//! [`complete`] is define time: what is not understood is refused by its path (`vocabulary`), then
//! defaults are filled in. There is little of the guest's machine to decide: Xen knows disks by
//! their names and has no addresses to give out. A paravirtual guest always has a console, every
//! guest a mouse, a keyboard, a balloon and the bus of Xen itself. Completing a completed
//! definition changes nothing.
//!
//! What is stricter than libvirt: a definition that libxl can only fail to start (a qcow2 image
//! behind `phy`, a serial port of a paravirtual guest) is refused when it is defined.
//!
//! Pure. What is generated is a uuid and MAC addresses.
//!
//! [`live`] is start time: ports, paths of sockets, names of interfaces. [`abi_difference`] tells whether two
//! definitions are the same machine to a guest.
//!
//! The facts are those of libvirt 11.3's libxl driver (`libxlDomainDefPostParse`,
//! `libxlDomainDeviceDefPostParse`) and of the code all its drivers share.

mod abi;
mod console;
mod devices;
mod disks;
mod general;
mod live;
#[cfg(test)]
mod tests;
mod vocabulary;

use virtsnap_engine::error::{Condition, Error, Origin, Result};
use virtsnap_xml::element::Element;

use crate::host::Host;

pub use abi::abi_difference;
pub(crate) use general::MOST_VCPUS;
pub use live::{Runtime, live, with_id};

/// The persistent form of a definition, as `virsh dumpxml --inactive` shows it.
pub fn complete(mut domain: Element, host: &Host) -> Result<Element> {
    vocabulary::check(&domain)?;
    vocabulary::arrange(&mut domain);
    let guest = general::complete(&mut domain)?;
    let mut devices = domain.take_child("devices").unwrap_or_else(|| Element::new("devices"));
    disks::complete(&mut devices)?;
    devices::complete(&mut devices, guest)?;
    console::complete(&mut devices, guest, host)?;
    disks::controllers(&mut devices);
    domain.push(devices);
    vocabulary::arrange(&mut domain);
    Ok(domain)
}

/// The definition contradicts itself or says nonsense.
fn bad(message: impl Into<String>) -> Error {
    Error::new(Condition::XmlError, message).from_origin(Origin::Domain)
}

/// The definition asks for what this driver or Xen does not have.
fn unsupported(message: impl Into<String>) -> Error {
    Error::new(Condition::ConfigUnsupported, message)
}

fn set_default(element: &mut Element, attribute: &str, value: &str) {
    if element.attr(attribute).is_none() {
        element.set_attr(attribute, value);
    }
}

/// The attribute as a number; what is not a number is refused.
fn checked_number(element: &Element, attribute: &str) -> Result<Option<u32>> {
    let Some(text) = element.attr(attribute) else { return Ok(None) };
    text.trim().parse().map(Some).map_err(|_| {
        let name = element.name();
        bad(format!("the attribute {attribute} of <{name}> is '{text}', not a number"))
    })
}
