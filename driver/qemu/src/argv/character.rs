//! Serial and parallel ports, consoles, channels: the guest's side.

use virtsnap_engine::error::Result;

use super::props::Props;
use super::read::View;
use super::{Build, refuse};

impl Build<'_> {
    pub(super) fn character_devices(&mut self) -> Result<()> {
        for serial in self.devices.children("serial") {
            self.serial(serial)?;
        }
        for parallel in self.devices.children("parallel") {
            let alias = parallel.alias()?;
            self.chardev(parallel, alias)?;
            if let Some(target) = parallel.child("target") {
                target.pass_over();
            }
            self.device(front("isa-parallel", alias));
        }
        for channel in self.devices.children("channel") {
            self.channel(channel)?;
        }
        for console in self.devices.children("console") {
            self.console(console)?;
        }
        Ok(())
    }

    fn serial(&mut self, serial: View<'_>) -> Result<()> {
        let alias = serial.alias()?;
        let has_spice =
            self.devices.children("graphics").iter().any(|g| g.attr("type") == Some("spice"));
        // Without a SPICE server there is no one to talk to.
        if serial.attr("type") == Some("spiceport") && !has_spice {
            serial.pass_over();
            return Ok(());
        }
        self.chardev(serial, alias)?;
        let target = serial.child("target");
        let kind = target.and_then(|target| target.attr("type")).unwrap_or("isa-serial");
        let port = target.map(|target| target.number("port")).transpose()?.flatten();
        let model = target.and_then(|target| target.child("model"));
        let model = model.and_then(|model| model.attr("name")).unwrap_or(kind);
        match model {
            "isa-serial" => {
                let props = front(model, alias).with("index", port.unwrap_or(0));
                self.device(self.place(serial, props)?);
            }
            "pci-serial" | "usb-serial" | "isa-debugcon" => {
                self.device(self.place(serial, front(model, alias))?);
            }
            other => return refuse(format!("the serial port model '{other}' is not supported")),
        }
        Ok(())
    }

    fn channel(&mut self, channel: View<'_>) -> Result<()> {
        let alias = channel.alias()?;
        self.chardev(channel, alias)?;
        let Some(target) = channel.child("target") else {
            return refuse(format!("the channel {alias} lacks its <target>"));
        };
        match target.need("type")? {
            "virtio" => {
                let name = target.attr("name").or(match channel.attr("type") {
                    Some("spicevmc") => Some("com.redhat.spice.0"),
                    _ => None,
                });
                let props = front("virtserialport", alias).some("name", name);
                self.device(self.place(channel, props)?);
            }
            "guestfwd" => {
                let (address, port) = (target.need("address")?, target.need("port")?);
                let forward = Props::new()
                    .with("str", format!("tcp:{address}:{port}-chardev:char{alias}"))
                    .into_value();
                let props = Props::new()
                    .with("type", "user")
                    .with("guestfwd", vec![forward])
                    .with("id", alias);
                self.json("-netdev", props);
            }
            other => return refuse(format!("a channel to '{other}' is not supported")),
        }
        Ok(())
    }

    fn console(&mut self, console: View<'_>) -> Result<()> {
        let kind = console.child("target").and_then(|target| target.attr("type"));
        match kind {
            // The first serial port, said again.
            Some("serial") | None => console.pass_over(),
            Some("virtio") => {
                let alias = console.alias()?;
                if let Some(target) = console.child("target") {
                    target.attr("port");
                }
                self.chardev(console, alias)?;
                self.device(self.place(console, front("virtconsole", alias))?);
            }
            Some(other) => return refuse(format!("a console on '{other}' is not supported")),
        }
        Ok(())
    }
}

fn front(driver: &str, alias: &str) -> Props {
    Props::device(driver).with("chardev", format!("char{alias}")).with("id", alias)
}
