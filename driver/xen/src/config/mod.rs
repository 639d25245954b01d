//! A definition as the JSON that libxl starts a domain from (`libxl_domain_config_from_json`), and
//! the JSON of a domain that somebody else started (`libxl_retrieve_domain_configuration`,
//! `libxl_domain_config_to_json`) as a definition.
//!
//! The form is that of `libxl_types.idl` and its generator: a structure is an object with the
//! names of its members, what is left out has its default; an enumeration is its name in lower
//! case; a `defbool` is `"True"` or `"False"`; a bitmap is the array of its bits; the union of what
//! one type of guest has is under `type.pv`, `type.pvh` or `type.hvm`. A name that libxl does not
//! know it ignores without a word, so each name here is one of `libxl_domain_config` of Xen 4.17,
//! and none of those that it calls deprecated. `tests/host/xen/configurations.py` has the real libxl
//! take every golden one and give it back whole.
//!
//! What becomes of which element is what libvirt 11.3's `libxl_conf.c` makes of it. Not done:
//! whatever `complete` refuses.
//!
//! - `build`: the guest itself, `c_info` and `b_info`
//! - `devices`: disks, interfaces, displays, channels
//! - `chardev`: the other end of a serial port
//! - `read`: the way back

mod build;
mod chardev;
mod devices;
mod read;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::element::Element;

use crate::guest::Guest;
use crate::host::Host;

pub use devices::{is_emulated, learn_backends, learn_console};
pub use read::{Found, from_libxl};

/// Display 0 of VNC: libxl takes displays, XML has ports.
pub const FIRST_DISPLAY: u16 = 5900;

/// What libxl is asked for: the live form of a definition. A display without a port gets one from
/// libxl.
pub fn to_libxl(live: &Element, host: &Host) -> Result<Value> {
    let guest = Guest::of(live).ok_or_else(|| unsupported("the domain has no OS type of Xen's"))?;
    let mut config = Object::default();
    config.set("c_info", build::create_info(live, guest)?);
    config.set("b_info", build::build_info(live, guest)?);
    let nothing = Element::default();
    let devices = live.child("devices").unwrap_or(&nothing);
    config.set_list("disks", devices::disks(devices)?);
    config.set_list("nics", devices::nics(devices, guest, host)?);
    let displays = devices::displays(devices)?;
    config.set_list("vkbs", displays.iter().map(|_| json!({})).collect());
    config.set_list("vfbs", displays);
    config.set_list("channels", devices::channels(devices)?);
    for event in ["on_poweroff", "on_reboot", "on_crash"] {
        let text = live.child_text(event).unwrap_or_default();
        config.set_some(event, action_of(text.trim()));
    }
    Ok(config.into())
}

/// `libxl_action_on_shutdown` and libvirt's words for it.
const ACTIONS: [(&str, &str); 6] = [
    ("destroy", "destroy"),
    ("restart", "restart"),
    ("rename-restart", "restart_rename"),
    ("preserve", "preserve"),
    ("coredump-destroy", "coredump_destroy"),
    ("coredump-restart", "coredump_restart"),
];

/// libxl's name of what happens on an event.
pub(crate) fn action_of(word: &str) -> Option<&'static str> {
    libxl(&ACTIONS, word)
}

/// `libxl_disk_format`.
const FORMATS: [(&str, &str); 5] =
    [("raw", "raw"), ("qcow2", "qcow2"), ("qcow", "qcow"), ("vpc", "vhd"), ("qed", "qed")];

/// `libxl_tsc_mode`; what is not said is left to Xen.
const TSC_MODES: [(&str, &str); 3] =
    [("native", "native"), ("paravirt", "native_paravirt"), ("emulate", "always_emulate")];

/// The letters of `u.hvm.boot`.
const BOOT: [(&str, &str); 4] = [("fd", "a"), ("hd", "c"), ("cdrom", "d"), ("network", "n")];

/// `libxl_vga_interface_type`.
const VGA: [(&str, &str); 4] =
    [("vga", "std"), ("cirrus", "cirrus"), ("qxl", "qxl"), ("xen", "std")];

/// `u.hvm.soundhw`.
const SOUND: [(&str, &str); 4] =
    [("ich6", "hda"), ("es1370", "es1370"), ("sb16", "sb16"), ("ac97", "ac97")];

/// How often libxl gives an interface new credit where a rate is set, in microseconds.
const RATE_INTERVAL: u64 = 50_000;

fn libxl(table: &[(&str, &'static str)], word: &str) -> Option<&'static str> {
    table.iter().find(|(xml, _)| *xml == word).map(|(_, libxl)| *libxl)
}

fn xml(table: &[(&'static str, &str)], word: &str) -> Option<&'static str> {
    table.iter().find(|(_, libxl)| *libxl == word).map(|(xml, _)| *xml)
}

fn unsupported(message: impl Into<String>) -> Error {
    Error::new(Condition::ConfigUnsupported, message)
}

fn defbool(value: bool) -> Value {
    Value::from(if value { "True" } else { "False" })
}

/// A structure of libxl's: what is at its default is left out.
#[derive(Debug, Default)]
struct Object(Map<String, Value>);

impl Object {
    fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    fn set_some(&mut self, name: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(name, value);
        }
    }

    fn set_list(&mut self, name: &str, list: Vec<Value>) {
        if !list.is_empty() {
            self.set(name, list);
        }
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Self {
        Self::Object(object.0)
    }
}
