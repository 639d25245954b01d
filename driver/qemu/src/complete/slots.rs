//! PCI buses, what they accept, and which functions of their slots are taken. Pure bookkeeping.

use virtsnap_engine::definition::{bad, checked_number, unsupported};
use virtsnap_engine::error::Result;
use virtsnap_xml::element::Element;

const SLOTS: usize = 32;
const FUNCTIONS: u8 = 8;

/// A guest's PCI address; the domain (segment) is always 0 on a PC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) bus: u8,
    pub(super) slot: u8,
    pub(super) function: u8,
    pub(super) multifunction: bool,
}

impl Address {
    pub(super) fn new(bus: u8, slot: u8, function: u8) -> Self {
        Self { bus, slot, function, multifunction: false }
    }

    /// The address that a definition gives, if it is a PCI one.
    pub(super) fn of(device: &Element) -> Result<Option<Self>> {
        let Some(address) = device.child("address") else { return Ok(None) };
        if address.attr("type") != Some("pci") {
            return Ok(None);
        }
        let part = |name: &str, most: u32| -> Result<u8> {
            let value = checked_number(address, name)?.unwrap_or_default();
            let value = u8::try_from(value).ok().filter(|value| u32::from(*value) <= most);
            value.ok_or_else(|| bad(format!("the {name} of a PCI address is at most {most}")))
        };
        if checked_number(address, "domain")?.unwrap_or_default() != 0 {
            return Err(bad("a PC has only PCI domain 0"));
        }
        Ok(Some(Self {
            bus: part("bus", 255)?,
            slot: part("slot", 31)?,
            function: part("function", 7)?,
            multifunction: address.attr("multifunction") == Some("on"),
        }))
    }

    /// Only the kind of address was asked for.
    pub(super) fn is_empty(self) -> bool {
        self.bus == 0 && self.slot == 0 && self.function == 0
    }

    pub(super) fn same(self, other: Self) -> bool {
        (self.bus, self.slot, self.function) == (other.bus, other.slot, other.function)
    }

    pub(super) fn write(self, device: &mut Element) {
        device.remove_children("address");
        let mut address = Element::new("address")
            .with_attr("type", "pci")
            .with_attr("domain", "0x0000")
            .with_attr("bus", format!("0x{:02x}", self.bus))
            .with_attr("slot", format!("0x{:02x}", self.slot))
            .with_attr("function", format!("0x{:x}", self.function));
        if self.multifunction {
            address.set_attr("multifunction", "on");
        }
        device.push(address);
    }
}

/// What a bus accepts, or a device needs; one is fit for the other where they share a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Connect(u16);

impl Connect {
    pub(super) const NONE: Self = Self(0);
    pub(super) const PCI: Self = Self(1);
    pub(super) const PCIE: Self = Self(1 << 1);
    const ROOT_PORT: Self = Self(1 << 2);
    const UPSTREAM: Self = Self(1 << 3);
    const DOWNSTREAM: Self = Self(1 << 4);
    const DMI_BRIDGE: Self = Self(1 << 5);
    const BRIDGE: Self = Self(1 << 6);
    const PCIE_BRIDGE: Self = Self(1 << 7);
    const EXPANDER: Self = Self(1 << 11);
    const PCIE_EXPANDER: Self = Self(1 << 12);
    const KINDS: u16 = 0xff | (1 << 11) | (1 << 12);
    /// Devices without an address may be put there; the device is one.
    const AUTO: Self = Self(1 << 8);
    /// Several such devices share a slot.
    const AGGREGATE: Self = Self(1 << 9);
    /// The device belongs on bus 0, whatever that accepts otherwise.
    const INTEGRATED: Self = Self(1 << 10);

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) const fn auto(self) -> Self {
        self.and(Self::AUTO)
    }

    pub(super) const fn integrated(self) -> Self {
        self.and(Self::INTEGRATED)
    }

    /// Itself, or `other` where a device has no business on a PCI bus.
    pub(super) fn or(self, other: Self) -> Self {
        if self == Self::NONE { other } else { self }
    }

    pub(super) fn of_controller(model: &str) -> Self {
        match model {
            "pci-bridge" => Self::BRIDGE,
            "dmi-to-pci-bridge" => Self::DMI_BRIDGE,
            "pcie-to-pci-bridge" => Self::PCIE_BRIDGE,
            "pcie-root-port" => Self::ROOT_PORT.and(Self::AGGREGATE),
            "pcie-switch-upstream-port" => Self::UPSTREAM,
            "pci-expander-bus" => Self::EXPANDER,
            "pcie-expander-bus" => Self::PCIE_EXPANDER,
            "pcie-switch-downstream-port" => Self::DOWNSTREAM,
            _ => Self::NONE,
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// A bit for each function that is taken.
    functions: u8,
    aggregate: bool,
}

#[derive(Debug, Clone)]
struct Bus {
    model: &'static str,
    accepts: Connect,
    first: u8,
    last: u8,
    slots: [Slot; SLOTS],
}

impl Bus {
    fn none() -> Self {
        Self {
            model: "",
            accepts: Connect::NONE,
            first: 0,
            last: 0,
            slots: [Slot::default(); SLOTS],
        }
    }

    fn new(model: &str) -> Option<Self> {
        let pci = Connect::PCI.and(Connect::BRIDGE);
        let port = Connect::PCIE.and(Connect::UPSTREAM).and(Connect::PCIE_BRIDGE).auto();
        let ports = Connect::ROOT_PORT.and(Connect::DMI_BRIDGE);
        let root = Connect::PCIE.and(ports).and(Connect::PCIE_EXPANDER);
        let (model, accepts, first, last) = match model {
            "pci-root" => ("pci-root", pci.and(Connect::EXPANDER).auto(), 1, 31),
            "pci-expander-bus" => ("pci-expander-bus", pci.auto(), 0, 31),
            "pcie-expander-bus" => ("pcie-expander-bus", ports, 0, 31),
            "pci-bridge" => ("pci-bridge", pci.auto(), 1, 31),
            "pcie-root" => ("pcie-root", root, 1, 31),
            "dmi-to-pci-bridge" => ("dmi-to-pci-bridge", pci, 0, 31),
            "pcie-to-pci-bridge" => ("pcie-to-pci-bridge", pci.auto(), 1, 31),
            "pcie-root-port" => ("pcie-root-port", port, 0, 0),
            "pcie-switch-downstream-port" => ("pcie-switch-downstream-port", port, 0, 0),
            "pcie-switch-upstream-port" => {
                ("pcie-switch-upstream-port", Connect::DOWNSTREAM, 0, 31)
            }
            _ => return None,
        };
        Some(Self { model, accepts, first, last, slots: [Slot::default(); SLOTS] })
    }

    fn slot(&self, slot: u8) -> Slot {
        self.slots.get(usize::from(slot)).copied().unwrap_or_default()
    }

    fn fits(&self, number: u8, device: Connect, given: bool) -> bool {
        let mut accepts = self.accepts;
        let mut device = device;
        if device.has(Connect::INTEGRATED) {
            if number != 0 {
                return false;
            }
            accepts = accepts.and(Connect::PCI.auto());
        }
        if given {
            // Who names an address may put a PCI device into a PCIe slot, and the reverse.
            if accepts.has(Connect::PCI.and(Connect::PCIE)) {
                accepts = accepts.and(Connect::PCI).and(Connect::PCIE);
            }
            if device.has(Connect::BRIDGE) {
                device = device.and(Connect::PCI);
            }
        } else if device.has(Connect::AUTO) && !accepts.has(Connect::AUTO) {
            return false;
        }
        device.0 & accepts.0 & Connect::KINDS != 0
    }

    /// The first place for a device; with no function named, any where devices may share.
    fn find(&self, number: u8, device: Connect, function: Option<u8>) -> Option<Address> {
        if !self.fits(number, device, false) {
            return None;
        }
        for slot in self.first..=self.last {
            let Slot { functions, aggregate } = self.slot(slot);
            let wanted = function.unwrap_or(0);
            if functions == 0 {
                return Some(Address::new(number, slot, wanted));
            }
            if !aggregate || !device.has(Connect::AGGREGATE) {
                continue;
            }
            let free = |function: &u8| functions & (1 << function) == 0;
            let candidates = if function.is_some() { wanted..wanted + 1 } else { 0..FUNCTIONS };
            if let Some(function) = candidates.into_iter().find(free) {
                return Some(Address::new(number, slot, function));
            }
        }
        None
    }
}

/// All PCI buses of a guest.
#[derive(Debug)]
pub(super) struct Buses {
    buses: Vec<Bus>,
    pcie_pci_bridge: bool,
}

impl Buses {
    pub(super) fn new(count: usize, pcie_pci_bridge: bool) -> Self {
        Self { buses: vec![Bus::none(); count], pcie_pci_bridge }
    }

    pub(super) fn len(&self) -> usize {
        self.buses.len()
    }

    /// Empty where no controller is known for the bus.
    pub(super) fn model(&self, index: usize) -> Option<&'static str> {
        self.buses.get(index).map(|bus| bus.model)
    }

    pub(super) fn set_model(&mut self, index: usize, model: &str) -> Result<()> {
        let bus = Bus::new(model)
            .ok_or_else(|| unsupported(format!("a PCI controller cannot be of model '{model}'")))?;
        match self.buses.get_mut(index) {
            Some(place) => *place = bus,
            None => return Err(bad(format!("there is no PCI bus {index}"))),
        }
        Ok(())
    }

    pub(super) fn all_full(&self) -> bool {
        self.buses
            .iter()
            .all(|bus| (bus.first..=bus.last).all(|slot| bus.slot(slot).functions != 0))
    }

    pub(super) fn in_use(&self, address: Address) -> bool {
        let bus = self.buses.get(usize::from(address.bus));
        bus.is_some_and(|bus| bus.slot(address.slot).functions != 0)
    }

    /// Takes one function; `given` where the definition or the chipset says so.
    pub(super) fn reserve(
        &mut self,
        mut address: Address,
        device: Connect,
        given: bool,
        grow: bool,
    ) -> Result<()> {
        if grow {
            self.grow(&mut address, device)?;
        }
        let name = format!("{:02x}:{:02x}.{:x}", address.bus, address.slot, address.function);
        let last = self.buses.len().saturating_sub(1);
        let bus = self
            .buses
            .get_mut(usize::from(address.bus))
            .ok_or_else(|| bad(format!("PCI address {name}: the last bus is {last}")))?;
        if !bus.fits(address.bus, device, given) {
            let model = bus.model;
            return Err(bad(format!("PCI address {name}: a {model} does not take such a device")));
        }
        if address.slot < bus.first || address.slot > bus.last {
            let (first, last) = (bus.first, bus.last);
            return Err(bad(format!("PCI address {name}: the bus has slots {first} to {last}")));
        }
        let Some(slot) = bus.slots.get_mut(usize::from(address.slot)) else {
            return Err(bad(format!("PCI address {name} does not exist")));
        };
        let bit = 1_u8 << (address.function % FUNCTIONS);
        if slot.functions & bit != 0 {
            return Err(bad(format!("PCI address {name} is used twice")));
        }
        if slot.functions == 0 && device.has(Connect::AGGREGATE) {
            slot.aggregate = true;
        }
        slot.functions |= bit;
        Ok(())
    }

    /// Finds a place and takes it; where there is none, a dry run adds buses.
    pub(super) fn reserve_next(
        &mut self,
        device: Connect,
        function: Option<u8>,
        grow: bool,
    ) -> Result<Address> {
        let full = || unsupported("no PCI slot is free for a device");
        let found = self
            .buses
            .iter()
            .enumerate()
            .find_map(|(number, bus)| bus.find(u8::try_from(number).ok()?, device, function));
        let address = match found {
            Some(address) => address,
            None if grow => {
                let next = u8::try_from(self.buses.len()).map_err(|_| full())?;
                let mut address = Address::new(next, 0, function.unwrap_or(0));
                self.grow(&mut address, device)?;
                let bus = self.buses.get(usize::from(address.bus)).ok_or_else(full)?;
                Address { slot: bus.first, ..address }
            }
            None => return Err(full()),
        };
        self.reserve(address, device, false, grow)?;
        Ok(address)
    }

    /// Adds the buses that an address needs. A conventional device in a guest that has only PCIe
    /// needs two: a port, and a bridge in it.
    fn grow(&mut self, address: &mut Address, device: Connect) -> Result<()> {
        let have = self.buses.len();
        let Some(mut add) = (usize::from(address.bus) + 1).checked_sub(have).filter(|n| *n > 0)
        else {
            return Ok(());
        };
        let full = || unsupported("the domain has more devices than PCI buses can hold");
        let mut bridge = false;
        let model = if device.has(Connect::PCI) {
            let home = self.buses.iter().any(|bus| bus.accepts.has(Connect::BRIDGE));
            bridge = !home;
            if bridge && add == 1 {
                add += 1;
                address.bus = address.bus.checked_add(1).ok_or_else(full)?;
            }
            "pci-bridge"
        } else if device.has(Connect::PCIE.and(Connect::UPSTREAM)) {
            "pcie-root-port"
        } else {
            return Err(unsupported(
                "a PCI controller has no slot to go to, and none can be added for it",
            ));
        };
        if bridge {
            self.add_bridge()?;
        }
        while self.buses.len() < have + add {
            self.buses.push(Bus::new(model).ok_or_else(full)?);
        }
        Ok(())
    }

    fn add_bridge(&mut self) -> Result<()> {
        let full = || unsupported("no bridge can be added");
        if self.pcie_pci_bridge {
            // Nothing but the bridge may go into this port.
            let mut port = Bus::new("pcie-root-port").ok_or_else(full)?;
            port.accepts = Connect::PCIE_BRIDGE;
            self.buses.push(port);
            self.buses.push(Bus::new("pcie-to-pci-bridge").ok_or_else(full)?);
        } else {
            self.buses.push(Bus::new("dmi-to-pci-bridge").ok_or_else(full)?);
        }
        Ok(())
    }
}
