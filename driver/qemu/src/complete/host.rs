//! What completing a definition needs to know of this host and its QEMU: plain data.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Facts, found once by whoever looks at the QEMU binary.
#[derive(Debug, Clone)]
pub struct Host {
    /// The emulator where a definition names none.
    pub emulator: String,
    /// Machine names that stand for another, as this QEMU says (`pc` → `pc-i440fx-10.0`).
    pub machine_aliases: BTreeMap<String, String>,
    /// The machine where a definition names none.
    pub default_machine: String,
    /// All machines that this QEMU has; empty where that is not known.
    pub machines: Vec<String>,
    /// Firmware descriptions, the preferred one first.
    pub firmware: Vec<Firmware>,
    /// Where variable stores of guests with UEFI go.
    pub nvram_dir: PathBuf,
    /// Directories in which channels without a path get one: such paths are not configuration.
    pub channel_dirs: Vec<PathBuf>,
    /// Devices that distributions may leave out of QEMU; present unless known otherwise.
    pub devices: Devices,
}

/// Whether this QEMU has the devices that decide libvirt's defaults.
#[derive(Debug, Clone, Copy)]
pub struct Devices {
    pub piix3_usb_uhci: bool,
    pub qemu_xhci: bool,
    pub lsi: bool,
    pub cirrus: bool,
    pub rtl8139: bool,
    pub pcie_pci_bridge: bool,
}

/// A firmware that a machine can be given by `<os firmware='efi'>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    pub code: PathBuf,
    /// `raw` or `qcow2`.
    pub format: String,
    pub template: PathBuf,
    pub secure_boot: bool,
    pub enrolled_keys: bool,
    /// Patterns as the descriptor files have them: `pc-q35-*`.
    pub machines: Vec<String>,
}

impl Default for Devices {
    fn default() -> Self {
        Self {
            piix3_usb_uhci: true,
            qemu_xhci: true,
            lsi: true,
            cirrus: true,
            rtl8139: true,
            pcie_pci_bridge: true,
        }
    }
}

impl Host {
    /// QEMU 10.0 as Debian has it, for tests that must not depend on the machine they run on.
    pub fn for_test() -> Self {
        let aliases = [("pc", "pc-i440fx-10.0"), ("q35", "pc-q35-10.0")];
        let ovmf = |code: &str, vars: &str, secure, enrolled, machines: &[&str]| Firmware {
            code: format!("/usr/share/OVMF/{code}").into(),
            format: "raw".to_owned(),
            template: format!("/usr/share/OVMF/{vars}").into(),
            secure_boot: secure,
            enrolled_keys: enrolled,
            machines: machines.iter().map(|name| (*name).to_owned()).collect(),
        };
        let q35 = ["pc-q35-*"];
        let all = ["pc-i440fx-*", "pc-q35-*"];
        Self {
            emulator: "/usr/bin/qemu-system-x86_64".to_owned(),
            machine_aliases: aliases.map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
            default_machine: "pc-i440fx-10.0".to_owned(),
            machines: Vec::new(),
            firmware: vec![
                ovmf("OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd", true, true, &q35),
                ovmf("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.fd", true, false, &q35),
                ovmf("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", false, false, &all),
            ],
            nvram_dir: "/var/lib/libvirt/qemu/nvram".into(),
            channel_dirs: vec!["/run/libvirt/qemu/channel".into()],
            devices: Devices::default(),
        }
    }

    /// The name under which QEMU itself knows a machine.
    pub(super) fn canonical_machine<'a>(&'a self, name: &'a str) -> &'a str {
        self.machine_aliases.get(name).map_or(name, String::as_str)
    }
}

impl Firmware {
    pub(super) fn fits(&self, machine: &str) -> bool {
        self.machines.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => machine.starts_with(start),
            None => pattern == machine,
        })
    }
}
