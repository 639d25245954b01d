//! Which bus a device sits on: `<address>` and the controllers it refers to.

use virtsnap_engine::error::{Condition, Error, Result};

use super::props::Props;
use super::read::View;
use super::{Build, lacks, refuse};

/// The machine's built-in buses matter for how controllers are named and which are not rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chipset {
    I440fx,
    Q35,
    Other,
}

#[derive(Debug)]
pub(super) struct Controller {
    pub(super) kind: String,
    pub(super) index: u64,
    pub(super) model: String,
    alias: String,
    has_master: bool,
}

/// The controllers, as addresses refer to them.
#[derive(Debug)]
pub(super) struct Topology {
    pub(super) machine: String,
    pub(super) chipset: Chipset,
    controllers: Vec<Controller>,
}

impl Topology {
    pub(super) fn read(domain: View<'_>, devices: View<'_>) -> Result<Self> {
        let kind = domain.at(&["os", "type"]).ok_or_else(|| lacks("<os><type>"))?;
        match kind.attr("arch") {
            Some("x86_64" | "i686") | None => {}
            Some(other) => {
                return refuse(format!("guests of architecture {other} are not supported"));
            }
        }
        if kind.text() != "hvm" {
            return refuse(format!("<os><type> '{}' is not hvm", kind.text()));
        }
        let machine = kind.need("machine")?.to_owned();
        let chipset = if machine == "q35" || machine.starts_with("pc-q35-") {
            Chipset::Q35
        } else if machine == "pc" || machine.starts_with("pc-") {
            Chipset::I440fx
        } else {
            Chipset::Other
        };
        let mut controllers = Vec::new();
        for controller in devices.children("controller") {
            let kind = controller.need("type")?;
            // Part of the machine; it is never rendered and has no bus of its own here.
            if kind == "isa" && chipset != Chipset::Other {
                controller.pass_over();
                continue;
            }
            controllers.push(Controller {
                kind: kind.to_owned(),
                index: controller.number("index")?.unwrap_or(0),
                model: controller.attr("model").unwrap_or("").to_owned(),
                alias: controller.alias()?.to_owned(),
                has_master: controller.child("master").is_some(),
            });
        }
        Ok(Self { machine, chipset, controllers })
    }

    pub(super) fn controller(&self, kind: &str, index: u64) -> Result<&Controller> {
        let mut all = self.controllers.iter();
        all.find(|c| c.kind == kind && c.index == index && !c.has_master).ok_or_else(|| {
            Error::new(
                Condition::XmlError,
                format!(
                    "a device's address names the {kind} controller {index}, which is not there"
                ),
            )
        })
    }

    pub(super) fn alias(&self, kind: &str, index: u64) -> Result<&str> {
        Ok(&self.controller(kind, index)?.alias)
    }

    /// A name of the user's choice does not reach a bus that is built in.
    fn pci_bus(&self, index: u64) -> Result<&str> {
        let controller = self.controller("pci", index)?;
        Ok(match controller.model.as_str() {
            "pci-root" if is_user_alias(&controller.alias) => "pci.0",
            "pcie-root" if is_user_alias(&controller.alias) => "pcie.0",
            _ => &controller.alias,
        })
    }
}

fn is_user_alias(alias: &str) -> bool {
    alias.starts_with("ua-")
}

impl Build<'_> {
    /// Adds where the device sits, and its option ROM.
    pub(super) fn place(&self, device: View<'_>, props: Props) -> Result<Props> {
        let Some(address) = device.child("address") else {
            return Ok(props);
        };
        let number = |name: &str| address.number(name).map(|number| number.unwrap_or(0));
        match address.need("type")? {
            "pci" => {
                let (slot, function) = (number("slot")?, number("function")?);
                number("domain")?;
                let at = match function {
                    0 => format!("{slot:#x}"),
                    _ => format!("{slot:#x}.{function:#x}"),
                };
                let acpi = device.child("acpi").map(|acpi| acpi.number("index")).transpose()?;
                let props = props
                    .with("bus", self.topology.pci_bus(number("bus")?)?)
                    .some("multifunction", address.switch("multifunction")?)
                    .with("addr", at)
                    .positive("acpi-index", acpi.flatten());
                option_rom(device, props)
            }
            "usb" => Ok(props
                .with("bus", format!("{}.0", self.topology.alias("usb", number("bus")?)?))
                .some("port", address.attr("port").filter(|port| *port != "0"))),
            "isa" => Ok(props
                .some("iobase", address.number("iobase")?)
                .positive("irq", address.number("irq")?)),
            "virtio-serial" => {
                let controller = self.topology.alias("virtio-serial", number("controller")?)?;
                Ok(props
                    .with("bus", format!("{controller}.{}", number("bus")?))
                    .with("nr", number("port")?))
            }
            "ccid" => {
                // There is one slot, and libvirt leaves it to QEMU.
                number("slot")?;
                let controller = self.topology.alias("ccid", number("controller")?)?;
                Ok(props.with("bus", format!("{controller}.0")))
            }
            "dimm" => {
                Ok(props.with("slot", number("slot")?).positive("addr", address.number("base")?))
            }
            "none" => Ok(props),
            other => refuse(format!(
                "an address of type '{other}' is not supported for <{}>",
                device.name()
            )),
        }
    }

    /// A virtio device: its driver's name follows from bus and model, its common options from
    /// `<driver>`.
    pub(super) fn virtio(&self, device: View<'_>, base: &str) -> Result<Props> {
        let bus = device.child("address").and_then(|address| address.attr("type"));
        if bus != Some("pci") {
            return refuse(format!("a virtio <{}> needs a PCI address", device.name()));
        }
        let model = match device.name() {
            "interface" => device.child("model").and_then(|model| model.attr("type")),
            _ => device.attr("model"),
        };
        let suffix = match model {
            Some("virtio-transitional") => "-pci-transitional",
            Some("virtio-non-transitional") => "-pci-non-transitional",
            _ => "-pci",
        };
        virtio_options(device, Props::device(format!("{base}{suffix}")))
    }

    /// Where a drive sits on its controller.
    pub(super) fn place_drive(&self, disk: View<'_>, bus: &str, props: Props) -> Result<Props> {
        let Some(address) = disk.child("address").filter(|a| a.attr("type") == Some("drive"))
        else {
            return self.place(disk, props);
        };
        let number = |name: &str| address.number(name).map(|number| number.unwrap_or(0));
        let (index, channel) = (number("controller")?, number("bus")?);
        let (target, unit) = (number("target")?, number("unit")?);
        match bus {
            "ide" => {
                let alias = match self.topology.chipset {
                    Chipset::I440fx => "ide",
                    _ => self.topology.alias("ide", index)?,
                };
                Ok(props.with("bus", format!("{alias}.{channel}")).with("unit", unit))
            }
            "sata" => {
                let alias = match self.topology.chipset {
                    Chipset::Q35 if index == 0 => "ide",
                    _ => self.topology.alias("sata", index)?,
                };
                Ok(props.with("bus", format!("{alias}.{unit}")))
            }
            "fdc" => Ok(props.with("unit", unit)),
            "scsi" => {
                let controller = self.topology.controller("scsi", index)?;
                let alias = &controller.alias;
                match controller.model.as_str() {
                    "lsilogic" | "dc390" | "am53c974" => {
                        Ok(props.with("bus", format!("{alias}.{channel}")).with("scsi-id", unit))
                    }
                    _ => Ok(props
                        .with("bus", format!("{alias}.0"))
                        .with("channel", channel)
                        .with("scsi-id", target)
                        .with("lun", unit)),
                }
            }
            other => refuse(format!("a drive address does not fit the bus '{other}'")),
        }
    }
}

pub(super) fn virtio_options(device: View<'_>, props: Props) -> Result<Props> {
    let Some(driver) = device.child("driver") else {
        return Ok(props);
    };
    Ok(props
        .some("iommu_platform", driver.switch("iommu")?)
        .some("ats", driver.switch("ats")?)
        .some("packed", driver.switch("packed")?)
        .some("page-per-vq", driver.switch("page_per_vq")?))
}

fn option_rom(device: View<'_>, props: Props) -> Result<Props> {
    let Some(rom) = device.child("rom") else {
        return Ok(props);
    };
    let (bar, file) = (rom.switch("bar")?, rom.attr("file"));
    if rom.switch("enabled")? == Some(false) {
        return Ok(props.with("romfile", ""));
    }
    Ok(props.some("rombar", bar.map(u64::from)).some("romfile", file))
}
