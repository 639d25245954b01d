//! From what a client wrote to what libvirt's Xen driver would have made of it.
//!
//! [`complete`] is define time: what is not understood is refused by its path (`VOCABULARY`), then
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

use std::sync::LazyLock;

use virtsnap_engine::error::Result;
use virtsnap_xml::element::Element;
use virtsnap_xml::vocabulary::Vocabulary;

use crate::host::Host;

pub use abi::abi_difference;
pub(crate) use general::MOST_VCPUS;
pub use live::{Runtime, live, with_id};

/// What we understand of the domain XML.
static VOCABULARY: LazyLock<Vocabulary> =
    LazyLock::new(|| Vocabulary::read(include_str!("vocabulary.txt")));

/// The persistent form of a definition, as `virsh dumpxml --inactive` shows it.
pub fn complete(mut domain: Element, host: &Host) -> Result<Element> {
    VOCABULARY.check(&domain)?;
    VOCABULARY.arrange(&mut domain);
    let guest = general::complete(&mut domain)?;
    let mut devices = domain.take_child("devices").unwrap_or_else(|| Element::new("devices"));
    disks::complete(&mut devices)?;
    devices::complete(&mut devices, guest)?;
    console::complete(&mut devices, guest, host)?;
    disks::controllers(&mut devices);
    domain.push(devices);
    VOCABULARY.arrange(&mut domain);
    Ok(domain)
}
