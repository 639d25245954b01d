//! From a configuration to the driver of the hypervisor that it names.

use std::sync::Arc;

use uuid::Uuid;
use virtsnap_engine::domain::Event;
use virtsnap_engine::error::Result;
use virtsnap_engine::ports::{EventSink, Hypervisor as _};
use virtsnap_qemu::confine::Owner;
use virtsnap_qemu::hypervisor::{Qemu, QemuConfig};
use virtsnap_xen::hypervisor::{LIBVIRTS_CHANNELS, Xen, XenConfig};
use virtsnap_xml::element::Element;

use crate::config::{Config, Hypervisor, Mode};

/// Whom guests run as when nobody says and the host has such a user: `make install` makes one.
const GUESTS_USER: &str = "virtsnap-qemu";

/// The driver behind `qemu:///`. QEMU itself runs as the configuration says.
pub(crate) fn qemu(config: &Config, events: Arc<dyn EventSink>) -> Result<Qemu> {
    let guests = &config.guests;
    let user = match (&guests.user, &guests.group) {
        (Some(user), group) => Some(Owner::named(user, group.as_deref())?),
        (None, _) if config.mode == Mode::System => {
            Some(Owner::named(GUESTS_USER, None).unwrap_or_else(|_| Owner::ours()))
        }
        (None, _) => None,
    };
    let mut settings = QemuConfig::new(
        config.run_dir.join("qemu"),
        config.state_dir.join("qemu"),
        config.state_dir.join("log"),
    );
    settings.user = user;
    settings.dynamic_ownership = guests.dynamic_ownership;
    settings.sandbox = guests.sandbox;
    settings.freeze_deadline = guests.freeze_deadline;
    settings.merges = guests.merges;
    if let Some(emulator) = &guests.emulator {
        settings.emulator.clone_from(emulator);
    }
    Ok(Qemu::new(settings, events))
}

fn xen_settings(config: &Config) -> XenConfig {
    let mut settings = XenConfig::new(
        config.run_dir.join("guests"),
        config.state_dir.join("guests"),
        config.state_dir.join("log"),
    );
    settings.merges = config.guests.merges;
    settings.snapshot_dir.clone_from(&config.guests.snapshot_dir);
    if let Some(bridges) = &config.guests.network_bridges {
        settings.network_bridges.clone_from(bridges);
    }
    settings
}

/// The driver behind `xen:///`.
pub(crate) fn xen(config: &Config, events: Arc<dyn EventSink>) -> Result<Xen> {
    Xen::new(xen_settings(config), events)
}

/// The hypervisor's judgement of a definition, where nothing runs.
pub(crate) fn completer(config: &Config) -> Result<Box<dyn Fn(Element) -> Result<Element>>> {
    Ok(match config.hypervisor {
        Hypervisor::Qemu => {
            let qemu = qemu(config, Arc::new(Deaf))?;
            Box::new(move |definition| qemu.complete(definition))
        }
        Hypervisor::Xen => {
            let host = virtsnap_xen::Host {
                bridges: xen_settings(config).network_bridges,
                channel_dirs: vec![LIBVIRTS_CHANNELS.into()],
            };
            Box::new(move |definition| virtsnap_xen::complete::complete(definition, &host))
        }
    })
}

/// Nobody is there to hear of events.
struct Deaf;

impl EventSink for Deaf {
    fn emit(&self, _: Uuid, _: &str, _: i32, _: Event) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Neither may be a panic or a guess, and the daemon ends with what is told here.
    #[test]
    fn where_there_is_no_xen_it_is_told_what_is_missing() {
        if std::path::Path::new("/proc/xen/capabilities").exists() {
            return;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = Config::load(Mode::System, Some(file.path()), Some(Hypervisor::Xen)).unwrap();
        let message = xen(&config, Arc::new(Deaf)).unwrap_err().chain();
        assert!(message.contains("Xen") || message.contains("libxen"), "{message}");
        let domain = "<domain type='xen'><name>vm</name><memory>65536</memory>\
            <os><type>linux</type><kernel>/k</kernel></os></domain>";
        let completed = completer(&config).unwrap()(Element::parse(domain).unwrap()).unwrap();
        assert!(completed.child("uuid").is_some(), "a definition needs no hypervisor");
    }
}
