//! TCP ports for graphics: taken when a guest starts, given back when it ends.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use virtsnap_xml::element::Element;

/// VNC and SPICE share a range, as in libvirt.
pub const DISPLAY_PORTS: RangeInclusive<u16> = 5900..=65535;
/// VNC over websocket.
pub const WEBSOCKET_PORTS: RangeInclusive<u16> = 5700..=65535;

/// Who knows which ports are free.
pub trait Ports: std::fmt::Debug {
    /// A free port, now taken.
    fn take(&self, range: RangeInclusive<u16>) -> Option<u16>;
}

/// The ports of this host: free is what no guest of ours has and nobody listens on.
#[derive(Debug, Default)]
pub struct HostPorts {
    taken: Mutex<BTreeSet<u16>>,
}

impl Ports for HostPorts {
    fn take(&self, range: RangeInclusive<u16>) -> Option<u16> {
        let mut taken = self.lock();
        let port = range.into_iter().find(|port| !taken.contains(port) && is_free(*port))?;
        taken.insert(port);
        Some(port)
    }
}

impl HostPorts {
    /// These belong to a guest that was found running.
    pub fn hold_all(&self, live: &Element) {
        self.lock().extend(given_ports(live));
    }

    /// The guest has ended.
    pub fn release_all(&self, live: &Element) {
        let mut taken = self.lock();
        for port in given_ports(live) {
            taken.remove(&port);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ports in a live definition that were given to it, not asked for.
fn given_ports(live: &Element) -> Vec<u16> {
    let devices =
        live.child("devices").into_iter().flat_map(|devices| devices.children("graphics"));
    let mut ports = Vec::new();
    for graphics in devices {
        let number = |name: &str| graphics.attr(name).and_then(|text| text.parse::<u16>().ok());
        if graphics.attr("autoport") == Some("yes") {
            ports.extend(number("port"));
        }
        ports.extend(number("websocket"));
    }
    ports
}

/// Nobody listens on it, on either protocol. Where IPv6 is not there, IPv4 alone decides.
fn is_free(port: u16) -> bool {
    let is_used = |err: &std::io::Error| err.kind() == std::io::ErrorKind::AddrInUse;
    let v6 = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port));
    if v6.as_ref().is_err_and(is_used) {
        return false;
    }
    // Released first: on Linux the unspecified IPv6 address covers IPv4 too.
    drop(v6);
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_passed_over() {
        let used = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = used.local_addr().unwrap().port();
        assert_eq!(HostPorts::default().take(port..=port), None);
    }

    #[test]
    fn a_port_is_taken_once_until_it_is_released() {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let ports = HostPorts::default();
        assert_eq!(ports.take(port..=port), Some(port));
        assert_eq!(ports.take(port..=port), None);
        let text = format!(
            "<domain><devices><graphics type='vnc' port='{port}' autoport='yes'/></devices></domain>"
        );
        let live = Element::parse(&text).unwrap();
        ports.release_all(&live);
        ports.hold_all(&live);
        assert_eq!(ports.take(port..=port), None);
        ports.release_all(&live);
        assert_eq!(ports.take(port..=port), Some(port));
    }
}
