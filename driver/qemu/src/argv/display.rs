//! Graphics servers and video cards.

use std::path::PathBuf;

use virtsnap_engine::error::Result;

use super::props::{Props, escape_comma, on_off};
use super::read::{View, word};
use super::{Build, Password, lacks, refuse};

impl Build<'_> {
    pub(super) fn graphics(&mut self) -> Result<()> {
        for graphics in self.devices.children("graphics") {
            match graphics.need("type")? {
                "vnc" => self.vnc(graphics)?,
                "spice" => self.spice(graphics)?,
                "egl-headless" => {
                    let node = graphics.child("gl").and_then(|gl| gl.attr("rendernode"));
                    let node = node.map(|node| format!(",rendernode={}", escape_comma(node)));
                    self.arg("-display", format!("egl-headless{}", node.unwrap_or_default()));
                }
                other => return refuse(format!("graphics of type '{other}' are not supported")),
            }
        }
        Ok(())
    }

    fn vnc(&mut self, graphics: View<'_>) -> Result<()> {
        let mut option = match listen(graphics)? {
            Listen::Socket(path) => {
                self.out.creates.push(PathBuf::from(&path));
                format!("vnc=unix:{}", escape_comma(&path))
            }
            Listen::None => "none".to_owned(),
            Listen::Address(address) => {
                let port = graphics.number("port")?.unwrap_or(0);
                let Some(display) = port.checked_sub(5900).filter(|_| port <= 65535) else {
                    return refuse(format!("the VNC port {port} is not between 5900 and 65535"));
                };
                let address = match address {
                    Some(address) if address.contains(':') => format!("[{address}]"),
                    other => other.unwrap_or_default(),
                };
                let address = escape_comma(&address);
                let websocket = graphics.number("websocket")?.filter(|port| *port > 0);
                let websocket = websocket.map(|port| format!(",websocket={port}"));
                format!("{address}:{display}{}", websocket.unwrap_or_default())
            }
        };
        graphics.attr("autoport");
        if let Some(policy) = graphics.attr("sharePolicy") {
            option.push_str(&format!(",share={policy}"));
        }
        if self.password(graphics, "vnc")? {
            option.push_str(",password=on");
        }
        if let Some(control) = graphics.switch("powerControl")? {
            option.push_str(&format!(",power-control={}", on_off(control)));
        }
        option.push_str(&format!(",audiodev=audio{}", self.audio_id(graphics)?));
        self.arg("-vnc", option);
        self.keymap(graphics);
        Ok(())
    }

    fn spice(&mut self, graphics: View<'_>) -> Result<()> {
        let mut parts = Vec::new();
        match listen(graphics)? {
            Listen::Socket(path) => {
                parts.push(format!("unix=on,addr={}", escape_comma(&path)));
                self.out.creates.push(PathBuf::from(path));
            }
            Listen::None => parts.push("port=0".to_owned()),
            Listen::Address(address) => {
                let port = graphics.attr("port").filter(|port| !matches!(*port, "-1" | "0"));
                let port = port.map(|port| word("graphics", port)).transpose()?;
                if graphics.attr("tlsPort").is_some_and(|port| !matches!(port, "-1" | "0")) {
                    return refuse("TLS for SPICE is not supported: remove tlsPort");
                }
                if let Some(port) = port {
                    parts.push(format!("port={port}"));
                    parts.extend(address.map(|address| format!("addr={}", escape_comma(&address))));
                }
            }
        }
        graphics.attr("autoport");
        match graphics.child("mouse").and_then(|mouse| mouse.attr("mode")) {
            None => {}
            Some("server") => parts.push("agent-mouse=off".to_owned()),
            Some("client") => parts.push("agent-mouse=on".to_owned()),
            Some(other) => return refuse(format!("the SPICE mouse mode '{other}' is not known")),
        }
        if !self.password(graphics, "spice")? {
            parts.push("disable-ticketing=on".to_owned());
        }
        match graphics.attr("defaultMode") {
            None | Some("any") => {}
            Some("insecure") => parts.push("plaintext-channel=default".to_owned()),
            Some(other) => return refuse(format!("SPICE: defaultMode='{other}' needs TLS")),
        }
        for channel in graphics.children("channel") {
            let name = word("channel", channel.need("name")?)?;
            match channel.need("mode")? {
                "any" => {}
                "insecure" => parts.push(format!("plaintext-channel={name}")),
                _ => return refuse(format!("SPICE: a secure channel '{name}' needs TLS")),
            }
        }
        spice_options(graphics, &mut parts)?;
        parts.push("seamless-migration=on".to_owned());
        self.arg("-spice", parts.join(","));
        self.keymap(graphics);
        Ok(())
    }

    fn keymap(&mut self, graphics: View<'_>) {
        if let Some(keymap) = graphics.attr("keymap") {
            self.arg("-k", keymap);
        }
    }

    /// Never on the command line, where every process could read it.
    fn password(&mut self, graphics: View<'_>, protocol: &'static str) -> Result<bool> {
        let connected = graphics.attr("connected").map(str::to_owned);
        let valid_to = graphics.attr("passwdValidTo").map(str::to_owned);
        let Some(secret) = graphics.attr("passwd") else {
            return Ok(false);
        };
        let secret = secret.to_owned();
        self.out.passwords.push(Password { protocol, secret, connected, valid_to });
        Ok(true)
    }

    pub(super) fn videos(&mut self) -> Result<()> {
        for (at, video) in self.devices.children("video").into_iter().enumerate() {
            let model = video.child("model").ok_or_else(|| lacks("<video><model>"))?;
            let kind = model.need("type")?;
            if kind == "none" {
                video.pass_over();
                continue;
            }
            // libvirt moves the primary card to the front.
            let primary = model.attr("primary").map_or(at == 0, |primary| primary == "yes");
            let props = self.video_driver(video, model, kind, primary)?;
            let props = video_memory(model, kind, props.with("id", video.alias()?))?;
            let props = match model.child("resolution") {
                Some(size) => props.some("xres", size.number("x")?).some("yres", size.number("y")?),
                None => props,
            };
            self.device(self.place(video, props)?);
        }
        Ok(())
    }

    fn video_driver(
        &self,
        video: View<'_>,
        model: View<'_>,
        kind: &str,
        primary: bool,
    ) -> Result<Props> {
        if let Some(driver) = video.child("driver") {
            if driver.attr("name").is_some_and(|name| name != "qemu") {
                return refuse("video by vhost-user is not supported");
            }
            if driver.attr("vgaconf").is_some_and(|conf| conf != "io") {
                return refuse("video: vgaconf is not supported");
            }
        }
        let accel = model.child("acceleration").map(|accel| accel.switch("accel3d")).transpose()?;
        let gl = accel.flatten() == Some(true);
        let driver = match (kind, primary) {
            ("vga", true) => "VGA",
            ("cirrus", true) => "cirrus-vga",
            ("vmvga", true) => "vmware-svga",
            ("bochs", true) => "bochs-display",
            ("ramfb", true) => "ramfb",
            ("qxl", true) => "qxl-vga",
            ("qxl", false) => "qxl",
            ("virtio", true) if gl => "virtio-vga-gl",
            ("virtio", true) => "virtio-vga",
            ("virtio", false) if gl => "virtio-gpu-gl-pci",
            ("virtio", false) => "virtio-gpu-pci",
            (other, _) => {
                let place = if primary { "the primary" } else { "a secondary" };
                return refuse(format!("'{other}' cannot be {place} video card"));
            }
        };
        if kind == "virtio" {
            let props = super::address::virtio_options(video, Props::device(driver))?;
            return Ok(props.some("blob", model.switch("blob")?));
        }
        Ok(Props::device(driver))
    }
}

fn video_memory(model: View<'_>, kind: &str, props: Props) -> Result<Props> {
    let kib = |name: &str| model.number(name);
    let heads = kib("heads")?;
    let (ram, vram, vram64, vgamem) = (kib("ram")?, kib("vram")?, kib("vram64")?, kib("vgamem")?);
    let to_bytes = |kib: Option<u64>| kib.map(|kib| kib.saturating_mul(1024));
    let to_mib = |kib: Option<u64>| kib.map(|kib| kib / 1024);
    Ok(match kind {
        "qxl" => props
            .positive("max_outputs", heads)
            .positive("ram_size", to_bytes(ram))
            .positive("vram_size", to_bytes(vram))
            .with("vram64_size_mb", to_mib(vram64).unwrap_or(0))
            .with("vgamem_mb", to_mib(vgamem).unwrap_or(0)),
        "virtio" => props.positive("max_outputs", heads),
        "vga" | "vmvga" => props.positive("vgamem_mb", to_mib(vram)),
        "bochs" => props.positive("vgamem", to_bytes(vram)),
        _ => props,
    })
}

fn spice_options(graphics: View<'_>, parts: &mut Vec<String>) -> Result<()> {
    for (element, attribute, option) in [
        ("image", "compression", "image-compression"),
        ("jpeg", "compression", "jpeg-wan-compression"),
        ("zlib", "compression", "zlib-glz-wan-compression"),
        ("playback", "compression", "playback-compression"),
        ("streaming", "mode", "streaming-video"),
    ] {
        if let Some(value) = graphics.child(element).and_then(|e| e.attr(attribute)) {
            parts.push(format!("{option}={}", word(element, value)?));
        }
    }
    for (element, attribute, option) in [
        ("clipboard", "copypaste", "disable-copy-paste=on"),
        ("filetransfer", "enable", "disable-agent-file-xfer=on"),
    ] {
        let said = graphics.child(element).map(|e| e.switch(attribute)).transpose()?.flatten();
        if said == Some(false) {
            parts.push(option.to_owned());
        }
    }
    if let Some(gl) = graphics.child("gl") {
        let node = gl.attr("rendernode");
        if gl.switch("enable")? == Some(true) {
            parts.push("gl=on".to_owned());
            parts.extend(node.map(|node| format!("rendernode={}", escape_comma(node))));
        }
    }
    Ok(())
}

enum Listen {
    Address(Option<String>),
    Socket(String),
    None,
}

fn listen(graphics: View<'_>) -> Result<Listen> {
    let repeated = graphics.attr("listen").map(str::to_owned);
    let socket = graphics.attr("socket").map(str::to_owned);
    let Some(listen) = graphics.children("listen").into_iter().next() else {
        return Ok(socket.map_or(Listen::Address(repeated), Listen::Socket));
    };
    listen.attr("network");
    match listen.need("type")? {
        "address" | "network" => {
            Ok(Listen::Address(listen.attr("address").map(str::to_owned).or(repeated)))
        }
        "socket" => {
            let path = listen.attr("socket").map(str::to_owned).or(socket);
            Ok(Listen::Socket(path.ok_or_else(|| lacks("the path of a graphics socket"))?))
        }
        "none" => Ok(Listen::None),
        other => refuse(format!("graphics: listening on '{other}' is not supported")),
    }
}
