//! USB addresses: a port for each device, and hubs where the controllers have too few.

use virtsnap_engine::definition::{bad, checked_number, unsupported};
use virtsnap_engine::error::Result;
use virtsnap_xml::domain::parse_number;
use virtsnap_xml::element::Element;

use super::draft::{Draft, number_of};

const HUB_PORTS: usize = 8;
/// A port path has at most that many parts.
const DEPTH: usize = 4;
const MOST_BUSES: u32 = 256;

/// Classes in the order in which their devices get ports.
const ORDER: [&str; 8] =
    ["disk", "interface", "sound", "hostdev", "controller", "serial", "input", "redirdev"];

pub(super) fn assign(draft: &mut Draft<'_>) -> Result<()> {
    add_hubs(draft)?;
    let mut buses = buses(draft)?;
    for device in draft.of("hub") {
        if let Some((bus, path)) = given(device)? {
            take(&mut buses, bus, &path, true)?;
        }
    }
    for class in ORDER {
        for device in draft.of(class).filter(|device| is_usb(device)) {
            if let Some((bus, path)) = given(device)? {
                take(&mut buses, bus, &path, false)?;
            }
        }
    }
    for class in std::iter::once("hub").chain(ORDER) {
        for at in draft.positions(class) {
            let device = &draft.devices[at];
            if !is_usb(device) || given(device)?.is_some() || has_other_address(device) {
                continue;
            }
            let wanted = device.child("address").and_then(|address| number_of(address, "bus"));
            let (bus, path) = free(&buses, wanted)
                .ok_or_else(|| unsupported("no USB port is free for a device"))?;
            take(&mut buses, bus, &path, class == "hub")?;
            write(&mut draft.devices[at], bus, &path);
        }
    }
    Ok(())
}

/// A controller or a hub.
#[derive(Debug, Clone, Default)]
struct Hub {
    ports: Vec<Port>,
}

#[derive(Debug, Clone, Default)]
struct Port {
    taken: bool,
    hub: Option<Hub>,
}

impl Hub {
    fn new(ports: usize) -> Self {
        Self { ports: vec![Port::default(); ports] }
    }

    /// A free port here, else in the hubs further out.
    fn free(&self, depth: usize) -> Option<Vec<usize>> {
        if let Some(at) = self.ports.iter().position(|port| !port.taken) {
            return Some(vec![at + 1]);
        }
        if depth >= DEPTH {
            return None;
        }
        self.ports.iter().enumerate().find_map(|(at, port)| {
            let mut path = vec![at + 1];
            path.extend(port.hub.as_ref()?.free(depth + 1)?);
            Some(path)
        })
    }
}

fn is_usb(device: &Element) -> bool {
    let child = |name: &str, attribute: &str| device.child(name).and_then(|c| c.attr(attribute));
    match device.name() {
        "disk" => child("target", "bus") == Some("usb"),
        "interface" => child("model", "type") == Some("usb-net"),
        "sound" => device.attr("model") == Some("usb"),
        "serial" => child("target", "type") == Some("usb-serial"),
        "input" | "redirdev" => device.attr("bus") == Some("usb"),
        "controller" => device.attr("type") == Some("ccid"),
        "hub" => true,
        _ => false,
    }
}

fn has_other_address(device: &Element) -> bool {
    device.child("address").is_some_and(|address| address.attr("type") != Some("usb"))
}

/// Ports of a controller; the companions of a USB 2 controller have none of their own here.
fn ports(controller: &Element) -> usize {
    match controller.attr("model").unwrap_or_default() {
        "piix3-uhci" | "piix4-uhci" | "vt82c686b-uhci" => 2,
        "ehci" | "ich9-ehci1" => 6,
        "pci-ohci" => 3,
        "nec-xhci" | "qemu-xhci" => number_of(controller, "ports").unwrap_or(4) as usize,
        _ => 0,
    }
}

fn add_hubs(draft: &mut Draft<'_>) -> Result<()> {
    for controller in draft.controllers("usb") {
        let xhci = controller.attr("model").is_some_and(|model| model.ends_with("xhci"));
        if let Some(ports) = checked_number(controller, "ports")?.filter(|_| xhci)
            && (ports == 0 || ports > 15)
        {
            return Err(unsupported("an xhci controller has 1 to 15 ports"));
        }
    }
    let available: usize = draft.controllers("usb").map(ports).sum();
    let available = available + draft.of("hub").count() * HUB_PORTS;
    let devices = draft.devices.iter().filter(|device| is_usb(device)).count();
    if devices > 0 && draft.controllers("usb").all(|c| c.attr("model") == Some("none")) {
        return Err(unsupported("USB is disabled for this domain, but it has USB devices"));
    }
    let needed = match devices.checked_sub(available) {
        None | Some(0) => 0,
        Some(missing) => (missing + 1).div_ceil(HUB_PORTS - 1),
    };
    for _ in 0..needed {
        draft.devices.push(Element::new("hub").with_attr("type", "usb"));
    }
    Ok(())
}

fn buses(draft: &Draft<'_>) -> Result<Vec<Option<Hub>>> {
    let mut buses: Vec<Option<Hub>> = Vec::new();
    for controller in draft.controllers("usb") {
        let count = ports(controller);
        if count == 0 {
            continue;
        }
        let index = number_of(controller, "index").unwrap_or_default();
        if index >= MOST_BUSES {
            return Err(unsupported(format!("{index} is too high an index for a USB controller")));
        }
        let index = index as usize;
        if buses.len() <= index {
            buses.resize(index + 1, None);
        }
        match buses.get_mut(index) {
            Some(place) if place.is_none() => *place = Some(Hub::new(count)),
            _ => return Err(bad(format!("there are two USB controllers with index {index}"))),
        }
    }
    Ok(buses)
}

/// The full address that a definition gives.
fn given(device: &Element) -> Result<Option<(usize, Vec<usize>)>> {
    let Some(address) = device.child("address").filter(|a| a.attr("type") == Some("usb")) else {
        return Ok(None);
    };
    let Some(text) = address.attr("port").filter(|text| !text.is_empty()) else { return Ok(None) };
    let malformed = || bad(format!("'{text}' is not a USB port"));
    let path: Vec<usize> = text
        .split('.')
        .map(|part| parse_number(part).filter(|part| *part > 0).map(|part| part as usize))
        .collect::<Option<_>>()
        .ok_or_else(malformed)?;
    if path.len() > DEPTH {
        return Err(malformed());
    }
    let bus = checked_number(address, "bus")?.unwrap_or_default();
    Ok(Some((bus as usize, path)))
}

fn take(buses: &mut [Option<Hub>], bus: usize, path: &[usize], as_hub: bool) -> Result<()> {
    let name = path.iter().map(usize::to_string).collect::<Vec<_>>().join(".");
    let mut hub = buses
        .get_mut(bus)
        .and_then(Option::as_mut)
        .ok_or_else(|| bad(format!("there is no USB bus {bus}")))?;
    let missing = || bad(format!("there is no USB port {name} on bus {bus}"));
    let (last, parents) = path.split_last().ok_or_else(missing)?;
    for part in parents {
        let port = hub.ports.get_mut(part.wrapping_sub(1)).ok_or_else(missing)?;
        hub = port.hub.as_mut().ok_or_else(missing)?;
    }
    let port = hub.ports.get_mut(last.wrapping_sub(1)).ok_or_else(missing)?;
    if port.taken {
        return Err(bad(format!("USB port {name} on bus {bus} is used twice")));
    }
    port.taken = true;
    if as_hub {
        port.hub = Some(Hub::new(HUB_PORTS));
    }
    Ok(())
}

fn free(buses: &[Option<Hub>], wanted: Option<u32>) -> Option<(usize, Vec<usize>)> {
    buses
        .iter()
        .enumerate()
        .filter(|(bus, _)| wanted.is_none_or(|wanted| wanted as usize == *bus))
        .find_map(|(bus, hub)| Some((bus, hub.as_ref()?.free(1)?)))
}

fn write(device: &mut Element, bus: usize, path: &[usize]) {
    device.remove_children("address");
    let port = path.iter().map(usize::to_string).collect::<Vec<_>>().join(".");
    device.push(
        Element::new("address")
            .with_attr("type", "usb")
            .with_attr("bus", bus.to_string())
            .with_attr("port", port),
    );
}
