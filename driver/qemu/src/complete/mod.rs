//! From what a client wrote to what libvirt would have made of it.
//!
//! [`complete`] is define time: what is not understood is refused by its path (`VOCABULARY`),
//! then defaults are filled in and addresses given out in the order in which libvirt's QEMU
//! driver does it, because that order decides the guest ABI: canonical machine, implicit devices,
//! each device's defaults, controllers that follow from disks and channels, virtio-serial ports,
//! PCI slots, USB ports. Completing a completed definition changes nothing.
//!
//! Pure: all that must be known of the host comes as [`Host`]. What is generated is a uuid and MAC
//! addresses.
//!
//! [`live`] is start time: ids of devices, ports and sockets. [`abi_difference`] tells whether two
//! definitions are the same machine to a guest.
//!
//! Expected results under `fixtures/domain/complete` were recorded from libvirtd 11.3.

mod abi;
mod chardev;
mod devices;
mod disks;
mod displays;
mod draft;
mod firmware;
mod general;
mod host;
mod live;
mod memory;
mod pci;
mod ports;
mod slots;
#[cfg(test)]
mod tests;
mod usb;

use std::sync::LazyLock;

use virtsnap_engine::error::Result;
use virtsnap_xml::element::Element;
use virtsnap_xml::vocabulary::Vocabulary;

pub use abi::abi_difference;
pub use host::{Devices, Firmware, Host};
pub(crate) use live::name_devices;
pub use live::{Runtime, live};
pub use ports::{DISPLAY_PORTS, HostPorts, Ports, WEBSOCKET_PORTS};

use draft::Draft;

/// What we understand of the domain XML.
pub(crate) static VOCABULARY: LazyLock<Vocabulary> =
    LazyLock::new(|| Vocabulary::read(include_str!("vocabulary.txt")));

/// The persistent form of a definition, as `virsh dumpxml --inactive` shows it.
pub fn complete(mut domain: Element, host: &Host) -> Result<Element> {
    VOCABULARY.check(&domain)?;
    VOCABULARY.arrange(&mut domain);
    let mut draft = Draft::new(domain, host);
    devices::normalise(&mut draft)?;
    let hotplugged = devices::memory(&mut draft)?;
    general::complete(&mut draft, hotplugged)?;
    firmware::complete(&mut draft)?;
    devices::add_implicit(&mut draft)?;
    devices::complete(&mut draft)?;
    chardev::complete(&mut draft)?;
    disks::controllers(&mut draft);
    chardev::ensure_controllers(&mut draft);
    chardev::card_readers(&mut draft);
    displays::primary_video(&mut draft)?;
    chardev::assign_ports(&mut draft)?;
    pci::assign(&mut draft)?;
    usb::assign(&mut draft)?;
    let mut domain = draft.finish();
    VOCABULARY.arrange(&mut domain);
    Ok(domain)
}
