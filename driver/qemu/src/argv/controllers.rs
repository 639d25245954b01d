//! `<controller>`: every one that is not part of the machine, in libvirt's order of kinds.

use virtsnap_engine::error::{Condition, Error, Result};

use super::address::Chipset;
use super::disk::io_driver;
use super::props::Props;
use super::read::View;
use super::{Build, refuse};

const ORDER: [&str; 6] = ["pci", "usb", "scsi", "ide", "sata", "virtio-serial"];

impl Build<'_> {
    pub(super) fn controllers(&mut self) -> Result<()> {
        let all = self.devices.children("controller");
        for controller in &all {
            self.pci_hole(*controller)?;
            let kind = controller.need("type")?;
            if !ORDER.contains(&kind) && !matches!(kind, "fdc" | "isa" | "ccid") {
                return refuse(format!("controllers of type '{kind}' are not supported"));
            }
        }
        for kind in ORDER {
            for controller in all.iter().filter(|c| c.attr("type") == Some(kind)) {
                self.controller(*controller, kind)?;
            }
        }
        for controller in all.iter().filter(|c| c.attr("type") == Some("fdc")) {
            controller.pass_over();
        }
        Ok(())
    }

    pub(super) fn smartcard_controllers(&mut self) -> Result<()> {
        for controller in self.devices.children("controller") {
            if controller.attr("type") == Some("ccid") {
                let props = Props::device("usb-ccid").with("id", controller.alias()?);
                self.device(self.place(controller, props)?);
            }
        }
        Ok(())
    }

    fn controller(&mut self, controller: View<'_>, kind: &str) -> Result<()> {
        let index = controller.number("index")?.unwrap_or(0);
        let model = controller.attr("model").unwrap_or("");
        if self.is_built_in(kind, index, model) {
            controller.pass_over();
            return Ok(());
        }
        let props = match kind {
            "pci" => pci(controller, model)?,
            "usb" if model == "none" => return Ok(()),
            "usb" => self.usb(controller, model, index)?,
            "scsi" => self.scsi(controller, model)?,
            "sata" => Props::device("ahci").with("id", controller.alias()?),
            "virtio-serial" => self
                .virtio(controller, "virtio-serial")?
                .with("id", controller.alias()?)
                .some("max_ports", controller.number("ports")?)
                .some("vectors", controller.number("vectors")?),
            _ => return refuse(format!("the {kind} controller {index} is not supported")),
        };
        self.device(self.place(controller, props)?);
        Ok(())
    }

    fn is_built_in(&self, kind: &str, index: u64, model: &str) -> bool {
        match kind {
            "pci" => matches!(model, "pci-root" | "pcie-root"),
            "sata" => index == 0 && self.topology.chipset == Chipset::Q35,
            "ide" => index == 0 && self.topology.chipset == Chipset::I440fx,
            _ => false,
        }
    }

    fn usb(&self, controller: View<'_>, model: &str, index: u64) -> Result<Props> {
        let driver = match model {
            "piix3-uhci" | "" => "piix3-usb-uhci",
            "piix4-uhci" => "piix4-usb-uhci",
            "ehci" => "usb-ehci",
            "ich9-ehci1" => "ich9-usb-ehci1",
            "ich9-uhci1" => "ich9-usb-uhci1",
            "ich9-uhci2" => "ich9-usb-uhci2",
            "ich9-uhci3" => "ich9-usb-uhci3",
            "vt82c686b-uhci" => "vt82c686b-usb-uhci",
            "pci-ohci" => "pci-ohci",
            "nec-xhci" => "nec-usb-xhci",
            "qemu-xhci" => "qemu-xhci",
            other => return refuse(format!("the USB controller model '{other}' is not supported")),
        };
        let ports = controller.number("ports")?;
        let props = Props::device(driver).some("p2", ports).some("p3", ports);
        match controller.child("master") {
            // A companion has no id: its ports belong to its master's bus.
            Some(master) => Ok(props
                .with("masterbus", format!("{}.0", self.topology.alias("usb", index)?))
                .with("firstport", master.number("startport")?.unwrap_or(0))),
            None => Ok(props.with("id", controller.alias()?)),
        }
    }

    fn scsi(&self, controller: View<'_>, model: &str) -> Result<Props> {
        let driver = match model {
            "virtio-scsi" | "virtio-transitional" | "virtio-non-transitional" => {
                return self.virtio_scsi(controller);
            }
            "lsilogic" => "lsi",
            "lsisas1068" => "mptsas1068",
            "lsisas1078" => "megasas",
            "vmpvscsi" => "pvscsi",
            "am53c974" => "am53c974",
            "dc390" => "dc-390",
            other => {
                return refuse(format!("the SCSI controller model '{other}' is not supported"));
            }
        };
        Ok(Props::device(driver).with("id", controller.alias()?))
    }

    fn virtio_scsi(&self, controller: View<'_>) -> Result<Props> {
        let props = self.virtio(controller, "virtio-scsi")?.with("id", controller.alias()?);
        let Some(driver) = controller.child("driver") else {
            return Ok(props);
        };
        Ok(io_driver(driver, props)?
            .positive("num_queues", driver.number("queues")?)
            .positive("cmd_per_lun", driver.number("cmd_per_lun")?)
            .positive("max_sectors", driver.number("max_sectors")?))
    }

    fn pci_hole(&mut self, controller: View<'_>) -> Result<()> {
        let Some(hole) = controller.child("pcihole64") else {
            return Ok(());
        };
        let host = match controller.attr("model") {
            Some("pci-root") => "i440FX-pcihost",
            Some("pcie-root") => "q35-pcihost",
            _ => return refuse("<pcihole64> is only for the root PCI controller"),
        };
        let unit = hole.attr("unit").unwrap_or("KiB");
        let size = super::memory::bytes(&hole.text(), unit)? / 1024;
        self.arg("-global", format!("{host}.pci-hole64-size={size}K"));
        Ok(())
    }
}

fn pci(controller: View<'_>, model: &str) -> Result<Props> {
    let driver = controller.child("model").and_then(|model| model.attr("name"));
    let driver = driver.ok_or_else(|| {
        Error::new(Condition::XmlError, format!("the PCI controller '{model}' lacks its <model>"))
    })?;
    let props = Props::device(driver).with("id", controller.alias()?);
    let Some(target) = controller.child("target") else {
        return Ok(props);
    };
    let reserve = target.number("memReserve")?.map(|kib| kib.saturating_mul(1024));
    let props = props.positive("mem-reserve", reserve);
    match model {
        "pci-bridge" => Ok(props.some("chassis_nr", target.number("chassisNr")?)),
        "pci-expander-bus" | "pcie-expander-bus" => {
            let node = target.child_text("node").map(|node| super::read::number("node", &node));
            Ok(props.some("bus_nr", target.number("busNr")?).some("numa_node", node.transpose()?))
        }
        "pcie-root-port" | "pcie-switch-downstream-port" => Ok(props
            .some("port", target.number("port")?)
            .some("chassis", target.number("chassis")?)
            .some("hotplug", target.switch("hotplug")?)),
        _ => Ok(props),
    }
}
