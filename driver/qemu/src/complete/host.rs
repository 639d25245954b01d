//! What completing a definition needs to know of this host and its QEMU: plain data.
//!
//! Firmware descriptions are QEMU's (docs/interop/firmware.json): one JSON file each, the same
//! name in a later directory hides an earlier one, and names are sorted by preference.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Where descriptions of firmware are, the directory that wins last.
const FIRMWARE_DIRS: [&str; 2] = ["/usr/share/qemu/firmware", "/etc/qemu/firmware"];
/// A description is a page of text.
const MAX_DESCRIPTION: u64 = 1 << 20;

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

impl Devices {
    /// From the names of the devices that a QEMU has; all are assumed where none is known.
    pub fn of(names: &BTreeSet<String>) -> Self {
        let has = |name: &str| names.is_empty() || names.contains(name);
        Self {
            piix3_usb_uhci: has("piix3-usb-uhci"),
            qemu_xhci: has("qemu-xhci"),
            lsi: has("lsi53c895a"),
            cirrus: has("cirrus-vga"),
            rtl8139: has("rtl8139"),
            pcie_pci_bridge: has("pcie-pci-bridge"),
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
    /// What is described on this host, the preferred one first. What cannot be read is passed over.
    pub fn installed() -> Vec<Self> {
        let mut files = BTreeMap::new();
        for dir in FIRMWARE_DIRS {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.path().extension().is_some_and(|extension| extension == "json") {
                    files.insert(entry.file_name(), entry.path());
                }
            }
        }
        let described = files.values().filter_map(|path| Self::described(&read(path)?));
        described.filter(|firmware| firmware.code.exists()).collect()
    }

    /// From one description: UEFI in flash for x86_64, with a template for its variables.
    pub fn described(json: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(json).ok()?;
        let has = |list: &str, name: &str| {
            let items = value.get(list).and_then(Value::as_array).into_iter().flatten();
            items.filter_map(Value::as_str).any(|item| item == name)
        };
        let mapping = value.get("mapping")?;
        let text = |part: &str, name: &str| mapping.get(part)?.get(name)?.as_str();
        let is_flash = mapping.get("device")?.as_str()? == "flash";
        // Confidential guests need memory that is measured: not ordinary ones.
        let is_split = mapping.get("mode").is_none_or(|mode| mode == "split");
        if !has("interface-types", "uefi") || !is_flash || !is_split {
            return None;
        }
        let targets = value.get("targets").and_then(Value::as_array).into_iter().flatten();
        let ours = targets
            .filter(|target| target.get("architecture").and_then(Value::as_str) == Some("x86_64"));
        let machines: Vec<String> = ours
            .filter_map(|target| target.get("machines")?.as_array())
            .flatten()
            .filter_map(|machine| machine.as_str().map(str::to_owned))
            .collect();
        Some(Self {
            code: text("executable", "filename")?.into(),
            format: text("executable", "format")?.to_owned(),
            template: text("nvram-template", "filename")?.into(),
            secure_boot: has("features", "secure-boot"),
            enrolled_keys: has("features", "enrolled-keys"),
            machines,
        })
    }

    pub(crate) fn fits(&self, machine: &str) -> bool {
        self.machines.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => machine.starts_with(start),
            None => pattern == machine,
        })
    }
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = fs::File::open(path).ok()?;
    file.take(MAX_DESCRIPTION).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_of_firmware_is_read() {
        let json = r#"{
            "interface-types": ["uefi"],
            "mapping": {
                "device": "flash",
                "executable": {"filename": "/c.fd", "format": "raw"},
                "nvram-template": {"filename": "/v.fd", "format": "raw"}
            },
            "targets": [
                {"architecture": "x86_64", "machines": ["pc-q35-*"]},
                {"architecture": "aarch64", "machines": ["virt-*"]}
            ],
            "features": ["secure-boot", "requires-smm"]
        }"#;
        let firmware = Firmware::described(json).unwrap();
        assert_eq!(firmware.code, Path::new("/c.fd"));
        assert!(firmware.secure_boot && !firmware.enrolled_keys);
        assert!(firmware.fits("pc-q35-10.0") && !firmware.fits("pc-i440fx-10.0"));
        let memory = json.replace("flash", "memory");
        assert_eq!(Firmware::described(&memory), None);
    }
}
