//! PCI addresses, given out as libvirt gives them out: the same slots for the same definition.
//!
//! Two passes. The first, dry, finds out how many buses are needed and adds the controllers that
//! make them; only the places that belong to the chipset are written down in it. The second
//! writes addresses. In both, devices come in the fixed order of [`ORDER`].

use virtsnap_engine::definition::{bad, checked_number, set_default, unsupported};
use virtsnap_engine::error::Result;
use virtsnap_xml::element::Element;

use super::draft::{Draft, number_of};
use super::slots::{Address, Buses, Connect};

/// A bus number above this is refused before anything is allocated for it.
const MOST_BUSES: u32 = 256;

/// Classes in the order in which they get their slots; PCI controllers come before all.
const ORDER: [&str; 18] = [
    "filesystem",
    "interface",
    "sound",
    "controller",
    "disk",
    "hostdev",
    "memballoon",
    "rng",
    "watchdog",
    "video",
    "shmem",
    "input",
    "serial",
    "iommu",
    "vsock",
    "memory",
    "crypto",
    "panic",
];

pub(super) fn assign(draft: &mut Draft<'_>) -> Result<()> {
    normalise(draft)?;
    let highest = draft.controllers("pci").filter_map(|c| number_of(c, "index")).max();
    let highest = highest.unwrap_or_default();
    if highest >= MOST_BUSES {
        return Err(unsupported(format!("{highest} is too high an index for a PCI controller")));
    }
    let buses = dry_run(draft, highest)?;
    let mut addresses = Assignment::new(draft, buses, false)?;
    addresses.chipset()?;
    addresses.devices()?;
    mark_multifunction(draft);
    controller_defaults(draft)
}

/// Finds how many buses are needed, and adds their controllers.
fn dry_run(draft: &mut Draft<'_>, highest: u32) -> Result<usize> {
    let q35 = draft.q35;
    let mut addresses = Assignment::new(draft, highest as usize + 1, true)?;
    addresses.chipset()?;
    if !q35 && !addresses.buses.all_full() {
        // One slot stays free for a bridge, so that the guest can be extended.
        addresses.buses.reserve_next(Connect::PCI.auto(), None, true)?;
    }
    addresses.devices()?;
    if q35 && highest == 0 && addresses.buses.len() > 1 {
        // One port stays free, for a device plugged in later.
        addresses.buses.reserve_next(Connect::PCIE.auto(), None, true)?;
    }
    let mut index = 1;
    while let Some(model) = addresses.buses.model(index) {
        let number = u32::try_from(index).unwrap_or(MOST_BUSES);
        if addresses.draft.ensure_controller("pci", number, Some(model)) {
            let connect = Connect::of_controller(model);
            addresses.buses.reserve_next(connect, None, true)?;
        }
        index += 1;
        if addresses.buses.len() > MOST_BUSES as usize {
            return Err(unsupported("the domain has more devices than PCI buses can hold"));
        }
    }
    Ok(addresses.buses.len())
}

#[derive(Debug)]
struct Assignment<'d, 'h> {
    draft: &'d mut Draft<'h>,
    buses: Buses,
    dry: bool,
}

impl<'d, 'h> Assignment<'d, 'h> {
    /// Buses as the controllers make them, with all addresses taken that are given.
    fn new(draft: &'d mut Draft<'h>, count: usize, dry: bool) -> Result<Self> {
        let mut buses = Buses::new(count, draft.host.devices.pcie_pci_bridge);
        for controller in draft.controllers("pci") {
            let index = number_of(controller, "index").unwrap_or_default() as usize;
            let model = controller.attr("model").unwrap_or_default();
            buses.set_model(index, model)?;
        }
        let default = if draft.q35 { "pcie-root-port" } else { "pci-bridge" };
        for index in 1..count {
            if buses.model(index) == Some("") {
                buses.set_model(index, default)?;
            }
        }
        for device in &draft.devices {
            let Some(address) = Address::of(device)?.filter(|address| !address.is_empty()) else {
                continue;
            };
            if is_chipset_function(device, address) {
                continue;
            }
            let connect = connect(device, draft.q35).or(Connect::PCI);
            buses.reserve(address, connect, true, dry)?;
        }
        Ok(Self { draft, buses, dry })
    }

    /// Devices that the chipset brings along, at their places.
    fn chipset(&mut self) -> Result<()> {
        if self.draft.q35 { self.ich9() } else { self.piix3() }
    }

    fn piix3(&mut self) -> Result<()> {
        for at in self.draft.positions("controller") {
            let controller = &self.draft.devices[at];
            let place = match (controller.attr("type"), number_of(controller, "index")) {
                (Some("ide"), Some(0)) => Address::new(0, 1, 1),
                (Some("usb"), Some(0)) if controller.attr("model") == Some("piix3-uhci") => {
                    Address::new(0, 1, 2)
                }
                _ => continue,
            };
            self.fix(at, place, "0:0:1")?;
            self.buses.reserve(place, Connect::PCI.auto(), true, self.dry)?;
        }
        for function in [0, 3] {
            self.buses.reserve(
                Address::new(0, 1, function),
                Connect::PCI.auto(),
                true,
                self.dry,
            )?;
        }
        self.screen(2, Connect::PCI.auto())
    }

    fn ich9(&mut self) -> Result<()> {
        for at in self.draft.positions("controller") {
            let controller = &self.draft.devices[at];
            let free = Address::of(controller)?.is_none();
            let slots: &[u8] = match (controller.attr("type"), controller.attr("model")) {
                (Some("sata"), _) if number_of(controller, "index") == Some(0) => {
                    self.fix(at, Address::new(0, 0x1f, 2), "0:0:1f.2")?;
                    continue;
                }
                (Some("usb"), Some("ich9-uhci1")) if free => &[0x1d, 0x1a],
                (Some("pci"), Some("dmi-to-pci-bridge")) if free => &[0x1e],
                _ => continue,
            };
            let usb = controller.attr("type") == Some("usb");
            let place = slots.iter().map(|slot| Address::new(0, *slot, 0));
            if let Some(mut place) = place.into_iter().find(|place| !self.buses.in_use(*place)) {
                self.buses.reserve(place, Connect::PCIE, true, self.dry)?;
                place.multifunction = usb;
                place.write(&mut self.draft.devices[at]);
            }
        }
        for function in [0, 3] {
            self.buses.reserve(Address::new(0, 0x1f, function), Connect::PCIE, true, self.dry)?;
        }
        self.screen(1, Connect::PCIE)?;
        let audio = Address::new(0, 0x1b, 0);
        if self.buses.in_use(audio) {
            return Ok(());
        }
        for at in self.draft.positions("sound") {
            let sound = &mut self.draft.devices[at];
            if sound.attr("model") == Some("ich9") && is_wanted(sound)? {
                self.buses.reserve(audio, Connect::PCIE, true, self.dry)?;
                audio.write(sound);
                break;
            }
        }
        Ok(())
    }

    /// The primary screen is where QEMU puts it by itself.
    fn screen(&mut self, slot: u8, connect: Connect) -> Result<()> {
        let Some(at) = self.draft.positions("video").first().copied() else { return Ok(()) };
        let video = &self.draft.devices[at];
        let model = video.child("model").and_then(|model| model.attr("type"));
        if matches!(model, Some("none" | "ramfb")) || !is_wanted(video)? {
            return Ok(());
        }
        let place = Address::new(0, slot, 0);
        if self.buses.in_use(place) {
            return self.next(at, None);
        }
        self.buses.reserve(place, connect, true, self.dry)?;
        place.write(&mut self.draft.devices[at]);
        Ok(())
    }

    /// A controller of the chipset is at its place or nowhere.
    fn fix(&mut self, at: usize, place: Address, name: &str) -> Result<()> {
        let controller = &mut self.draft.devices[at];
        match Address::of(controller)?.filter(|address| !address.is_empty()) {
            Some(address) if !address.same(place) => {
                let kind = controller.attr("type").unwrap_or_default();
                Err(bad(format!("the first {kind} controller of this machine is at {name}")))
            }
            Some(_) => Ok(()),
            None => {
                place.write(controller);
                Ok(())
            }
        }
    }

    fn devices(&mut self) -> Result<()> {
        for at in self.draft.positions("controller") {
            let controller = &self.draft.devices[at];
            let root = matches!(controller.attr("model"), Some("pci-root" | "pcie-root"));
            if controller.attr("type") == Some("pci") && !root && is_wanted(controller)? {
                self.next(at, None)?;
            }
        }
        for class in ORDER {
            for at in self.draft.positions(class) {
                let device = &self.draft.devices[at];
                if device.attr("type") == Some("pci") && class == "controller" {
                    continue;
                }
                let none = connect(device, self.draft.q35) == Connect::NONE;
                if none || !is_wanted(device)? {
                    continue;
                }
                match usb2_function(device) {
                    Some(function) => self.companion(at, function)?,
                    None => self.next(at, None)?,
                }
            }
        }
        Ok(())
    }

    /// The parts of a USB 2 controller share a slot.
    fn companion(&mut self, at: usize, function: u8) -> Result<()> {
        let device = &self.draft.devices[at];
        let index = number_of(device, "index");
        let mut slot = None;
        for other in self.draft.controllers("usb") {
            if usb2_function(other).is_some() && number_of(other, "index") == index {
                slot = Address::of(other)?.filter(|address| !address.is_empty());
                if slot.is_some() {
                    break;
                }
            }
        }
        let Some(slot) = slot else { return self.next(at, Some(function)) };
        let mut place = Address { function, multifunction: false, ..slot };
        self.buses.reserve(place, connect(device, self.draft.q35), true, self.dry)?;
        place.multifunction = function == 0;
        place.write(&mut self.draft.devices[at]);
        Ok(())
    }

    fn next(&mut self, at: usize, function: Option<u8>) -> Result<()> {
        let connect = connect(&self.draft.devices[at], self.draft.q35);
        let mut place = self.buses.reserve_next(connect, function, self.dry)?;
        if !self.dry {
            place.multifunction = function == Some(0);
            place.write(&mut self.draft.devices[at]);
        }
        Ok(())
    }
}

/// The function of its slot that a part of an ICH9 USB 2 controller has.
fn usb2_function(device: &Element) -> Option<u8> {
    match (device.name(), device.attr("model")?) {
        ("controller", "ich9-ehci1") => Some(7),
        ("controller", "ich9-uhci1") => Some(0),
        ("controller", "ich9-uhci2") => Some(1),
        ("controller", "ich9-uhci3") => Some(2),
        _ => None,
    }
}

fn is_chipset_function(device: &Element, address: Address) -> bool {
    if device.name() != "controller" || address.bus != 0 || address.slot != 1 {
        return false;
    }
    match (device.attr("type"), number_of(device, "index"), address.function) {
        (Some("ide"), Some(0), 1) => true,
        (Some("usb"), Some(0), 2) => device.attr("model") == Some("piix3-uhci"),
        _ => false,
    }
}

/// The device has no address, or one that says only `type='pci'`.
fn is_wanted(device: &Element) -> Result<bool> {
    if device.child("address").is_none() {
        return Ok(true);
    }
    Ok(Address::of(device)?.is_some_and(Address::is_empty))
}

/// Addresses given in the definition, in libvirt's form.
fn normalise(draft: &mut Draft<'_>) -> Result<()> {
    for device in &mut draft.devices {
        match Address::of(device)? {
            Some(address) if address.is_empty() => device.remove_children("address"),
            Some(address) => {
                let multifunction = device
                    .child("address")
                    .and_then(|a| a.attr("multifunction"))
                    .map(str::to_owned);
                Address { multifunction: false, ..address }.write(device);
                if let (Some(value), Some(written)) = (multifunction, device.child_mut("address")) {
                    written.set_attr("multifunction", value);
                }
            }
            None => {}
        }
    }
    Ok(())
}

/// What a device plugs into; on i440fx all of it is conventional PCI.
fn connect(device: &Element, q35: bool) -> Connect {
    let pci = Connect::PCI.auto();
    let pcie = if q35 { Connect::PCIE.auto() } else { pci };
    let virtio = |model: Option<&str>| match model {
        Some("virtio-transitional") => pci,
        _ => pcie,
    };
    let model = device.attr("model");
    let child =
        |name: &str, attribute: &str| device.child(name).and_then(|child| child.attr(attribute));
    match device.name() {
        "controller" => controller_connect(device, pci, pcie),
        "interface" => match child("model", "type") {
            Some("usb-net") => Connect::NONE,
            Some("virtio" | "virtio-non-transitional" | "e1000e" | "igb") => pcie,
            _ => pci,
        },
        "sound" => match model {
            Some("sb16" | "pcspk" | "usb" | "ich7") => Connect::NONE,
            Some("virtio") => pcie,
            _ => pci,
        },
        "disk" if child("target", "bus") == Some("virtio") => virtio(model),
        "memballoon" | "rng" if model != Some("none") => virtio(model),
        "vsock" | "filesystem" => virtio(model),
        "crypto" | "shmem" => pci,
        "watchdog" if model == Some("i6300esb") => pci,
        "video" => match child("model", "type") {
            Some("virtio" | "bochs") => pcie,
            Some("none" | "ramfb") => Connect::NONE,
            _ => pci,
        },
        "input" if device.attr("bus") == Some("virtio") => virtio(model),
        "serial" if child("target", "type") == Some("pci-serial") => pci,
        "panic" if model == Some("pvpanic") => pci.integrated(),
        _ => Connect::NONE,
    }
}

fn controller_connect(device: &Element, pci: Connect, pcie: Connect) -> Connect {
    let model = device.attr("model").unwrap_or_default();
    match device.attr("type").unwrap_or_default() {
        "pci" => Connect::of_controller(model),
        "sata" => pci,
        "ide" if number_of(device, "index") != Some(0) => pci,
        "usb" => match model {
            "nec-xhci" | "qemu-xhci" => pcie,
            "none" => Connect::NONE,
            _ => pci,
        },
        "scsi" | "virtio-serial" => match model {
            "virtio-scsi" | "virtio" | "virtio-non-transitional" | "" => pcie,
            _ => pci,
        },
        _ => Connect::NONE,
    }
}

/// A device at function 0 says so when its slot has other functions in use.
fn mark_multifunction(draft: &mut Draft<'_>) {
    let addresses: Vec<Address> =
        draft.devices.iter().filter_map(|device| Address::of(device).ok().flatten()).collect();
    for device in &mut draft.devices {
        let Some(here) = Address::of(device).ok().flatten() else { continue };
        let shared = |other: &Address| {
            other.function != 0 && other.bus == here.bus && other.slot == here.slot
        };
        if here.function == 0
            && !here.is_empty()
            && addresses.iter().any(shared)
            && let Some(address) = device.child_mut("address")
        {
            set_default(address, "multifunction", "on");
        }
    }
}

/// Names of the devices that make the buses, and their numbers as the guest sees them.
fn controller_defaults(draft: &mut Draft<'_>) -> Result<()> {
    for at in draft.positions("controller") {
        let controller = &mut draft.devices[at];
        if controller.attr("type") != Some("pci") {
            continue;
        }
        let address = Address::of(controller)?.unwrap_or(Address::new(0, 0, 0));
        let index = checked_number(controller, "index")?.unwrap_or_default();
        let model = controller.attr("model").unwrap_or_default().to_owned();
        let device = match model.as_str() {
            "pci-bridge" => "pci-bridge",
            "dmi-to-pci-bridge" => "i82801b11-bridge",
            "pcie-to-pci-bridge" => "pcie-pci-bridge",
            "pcie-root-port" => "pcie-root-port",
            "pcie-switch-upstream-port" => "x3130-upstream",
            "pcie-switch-downstream-port" => "xio3130-downstream",
            "pci-expander-bus" => "pxb",
            "pcie-expander-bus" => "pxb-pcie",
            _ => continue,
        };
        set_default(controller.child_or_insert("model"), "name", device);
        let port = match model.as_str() {
            "pcie-root-port" => Some((u32::from(address.slot) << 3) + u32::from(address.function)),
            "pcie-switch-downstream-port" => Some(u32::from(address.slot)),
            _ => None,
        };
        if model == "pci-bridge" {
            if index <= u32::from(address.bus) {
                return Err(unsupported(format!(
                    "the PCI controller {index} is on bus {}: a bridge's index must be larger",
                    address.bus
                )));
            }
            let target = controller.child_or_insert("target");
            set_default(target, "chassisNr", &index.to_string());
        }
        if model.ends_with("-expander-bus") {
            expander_number(draft, at)?;
            continue;
        }
        if let Some(port) = port {
            let target = controller.child_or_insert("target");
            set_default(target, "chassis", &index.to_string());
            let port = checked_number(target, "port")?.unwrap_or(port);
            target.set_attr("port", format!("0x{port:x}"));
        }
    }
    Ok(())
}

/// The bus number at which an expander's buses start: two below the lowest in use, which leaves
/// the most room for others.
fn expander_number(draft: &mut Draft<'_>, at: usize) -> Result<()> {
    const END: u32 = 256;
    let number = |controller: &Element| number_of(controller.child("target")?, "busNr");
    if draft.devices.get(at).and_then(number).is_some() {
        return Ok(());
    }
    let lowest = draft.controllers("pci").filter_map(number).min().unwrap_or(END);
    let Some(free) = lowest.checked_sub(2).filter(|free| *free > 0) else {
        return Err(unsupported("no bus number is free for an expander bus: give it a busNr"));
    };
    if let Some(controller) = draft.devices.get_mut(at) {
        controller.child_or_insert("target").set_attr("busNr", free.to_string());
    }
    Ok(())
}
