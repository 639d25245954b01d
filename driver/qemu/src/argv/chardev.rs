//! `-chardev`: the host's side of serial ports, consoles, channels, …

use std::path::PathBuf;

use virtsnap_engine::error::Result;

use super::props::{escape_comma, on_off};
use super::read::View;
use super::{Build, refuse};

impl Build<'_> {
    /// The backend of a character device; the id is `char` and the device's alias.
    pub(super) fn chardev(&mut self, device: View<'_>, alias: &str) -> Result<()> {
        let kind = device.need("type")?;
        let mut option = Backend::new(&format!("char{alias}"));
        match kind {
            "null" | "vc" | "stdio" => option.kind = kind.to_owned(),
            // The path is QEMU's to choose; the definition repeats it.
            "pty" => {
                option.kind = "pty".to_owned();
                device.attr("tty");
                if let Some(source) = device.child("source") {
                    source.pass_over();
                }
            }
            "file" => {
                let source = source(device)?;
                option.kind = "file".to_owned();
                option.text("path", source.need("path")?);
                option.switch("append", source.switch("append")?);
                self.out.creates.push(PathBuf::from(source.need("path")?));
            }
            "pipe" => {
                option.kind = "pipe".to_owned();
                option.text("path", source(device)?.need("path")?);
            }
            "dev" => {
                let parallel = device.name() == "parallel";
                option.kind = if parallel { "parallel" } else { "serial" }.to_owned();
                option.text("path", source(device)?.need("path")?);
            }
            "unix" => self.unix(source(device)?, &mut option)?,
            "tcp" => self.tcp(device, &mut option)?,
            "udp" => udp(device, &mut option)?,
            "spicevmc" => {
                option.kind = "spicevmc".to_owned();
                option.text(
                    "name",
                    match device.name() {
                        "redirdev" => "usbredir",
                        "smartcard" => "smartcard",
                        _ => "vdagent",
                    },
                );
            }
            "spiceport" => {
                option.kind = "spiceport".to_owned();
                option.text("name", source(device)?.need("channel")?);
            }
            "qemu-vdagent" => vdagent(device, &mut option)?,
            "dbus" => {
                option.kind = "dbus".to_owned();
                option.text("name", source(device)?.need("channel")?);
            }
            other => {
                return refuse(format!("a <{}> of type '{other}' is not supported", device.name()));
            }
        }
        if let Some(log) = device.child("log") {
            option.text("logfile", log.need("file")?);
            option.switch("logappend", log.switch("append")?);
            self.out.creates.push(PathBuf::from(log.need("file")?));
        }
        self.arg("-chardev", option.finish());
        Ok(())
    }

    fn unix(&mut self, source: View<'_>, option: &mut Backend) -> Result<()> {
        option.kind = "socket".to_owned();
        let path = source.need("path")?;
        option.text("path", path);
        if source.attr("mode") != Some("connect") {
            option.text("server", "on");
            option.text("wait", "off");
            self.out.creates.push(PathBuf::from(path));
        }
        self.reconnect(source, option)
    }

    fn tcp(&mut self, device: View<'_>, option: &mut Backend) -> Result<()> {
        let source = source(device)?;
        option.kind = "socket".to_owned();
        option.text("host", source.need("host")?);
        option.text("port", source.need("service")?);
        match device.child("protocol").map(|protocol| protocol.need("type")).transpose()? {
            None | Some("raw") => {}
            Some("telnet") => option.text("telnet", "on"),
            Some(other) => return refuse(format!("the TCP protocol '{other}' is not supported")),
        }
        if source.attr("mode") == Some("bind") {
            option.text("server", "on");
            option.text("wait", "off");
        }
        if source.switch("tls")? == Some(true) {
            return refuse("TLS for character devices is not supported");
        }
        self.reconnect(source, option)
    }

    fn reconnect(&self, source: View<'_>, option: &mut Backend) -> Result<()> {
        let Some(reconnect) = source.child("reconnect") else {
            return Ok(());
        };
        let seconds = match reconnect.switch("enabled")? {
            Some(true) => reconnect.number("timeout")?.unwrap_or(0),
            _ => 0,
        };
        if self.context.qemu.at_least(9, 2) {
            option.text("reconnect-ms", &seconds.saturating_mul(1000).to_string());
        } else {
            option.text("reconnect", &seconds.to_string());
        }
        Ok(())
    }
}

fn source(device: View<'_>) -> Result<View<'_>> {
    device
        .child("source")
        .ok_or_else(|| super::lacks(&format!("the <source> of a <{}>", device.name())))
}

fn udp(device: View<'_>, option: &mut Backend) -> Result<()> {
    option.kind = "udp".to_owned();
    let (mut remote, mut local) = (("", ""), ("", "0"));
    for source in device.children("source") {
        let host = source.attr("host").unwrap_or("");
        let service = source.attr("service");
        match source.attr("mode") {
            Some("bind") => local = (host, service.unwrap_or("0")),
            _ => remote = (host, service.unwrap_or("")),
        }
    }
    option.text("host", remote.0);
    option.text("port", remote.1);
    option.text("localaddr", local.0);
    option.text("localport", local.1);
    Ok(())
}

fn vdagent(device: View<'_>, option: &mut Backend) -> Result<()> {
    option.kind = "qemu-vdagent".to_owned();
    option.text("name", "vdagent");
    let Some(source) = device.child("source") else {
        return Ok(());
    };
    if let Some(clipboard) = source.child("clipboard") {
        option.switch("clipboard", clipboard.switch("copypaste")?);
    }
    match source.child("mouse").and_then(|mouse| mouse.attr("mode")) {
        None => {}
        Some("client") => option.text("mouse", "on"),
        Some("server") => option.text("mouse", "off"),
        Some(other) => return refuse(format!("the mouse mode '{other}' is not supported")),
    }
    Ok(())
}

/// `kind,id=…,key=value…`
struct Backend {
    kind: String,
    rest: String,
}

impl Backend {
    fn new(id: &str) -> Self {
        Self { kind: String::new(), rest: format!(",id={id}") }
    }

    fn text(&mut self, key: &str, value: &str) {
        self.rest.push_str(&format!(",{key}={}", escape_comma(value)));
    }

    fn switch(&mut self, key: &str, value: Option<bool>) {
        if let Some(value) = value {
            self.text(key, on_off(value));
        }
    }

    fn finish(self) -> String {
        format!("{}{}", self.kind, self.rest)
    }
}
