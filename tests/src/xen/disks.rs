//! What guests' disks hold, looked at and written to without the guest's help: in its files while it
//! is off, through its device model while it runs or is paused.

use std::path::Path;

use super::XenGuest;

/// Where a disk is, of a guest in its state.
struct Place {
    file: String,
    /// The device model's own name of the disk, where one runs.
    device: Option<String>,
}

/// What an image is tells its first bytes.
const IO: &str = "io() {
    case $(head -c 3 \"$1\" | tr -d '\\0') in QFI) format=qcow2 ;; QED) format=qed ;; *) format=raw ;; esac
    qemu-io $3 -f $format -c \"$2\" \"$1\"
}";

impl XenGuest<'_> {
    /// Fills 64 KiB at `mib` with a byte.
    #[track_caller]
    pub fn write(&self, target: &str, mib: u64, pattern: u8) {
        let (place, command) = (self.place(target), format!("write -P {pattern} {mib}M 64k"));
        self.io_at(&place, &command);
        assert!(self.reads(&place, mib, pattern), "{target}: {pattern} did not reach the disk");
    }

    /// Whether the guest reads that byte, all 64 KiB of it.
    #[track_caller]
    pub fn holds(&self, target: &str, mib: u64, pattern: u8) -> bool {
        let place = self.place(target);
        if place.device.is_some() {
            // What the device model still keeps of qcow2's tables reaches the file.
            self.io_at(&place, "flush");
        }
        self.reads(&place, mib, pattern)
    }

    /// One command of qemu-io on what a disk uses now.
    #[track_caller]
    pub fn io(&self, target: &str, command: &str) {
        self.io_at(&self.place(target), command);
    }

    #[track_caller]
    fn reads(&self, place: &Place, mib: u64, pattern: u8) -> bool {
        let file = &place.file;
        // It ends with an error where the pattern is another one.
        let said =
            self.host.run(&format!("{IO}; io '{file}' 'read -P {pattern} {mib}M 64k' '-r -U'"));
        assert!(said.stdout.contains("read 65536/65536 bytes"), "{file}: {}", said.stdout);
        !said.stdout.contains("Pattern verification failed")
    }

    /// Inside the device model where one runs; what it says there is in its log.
    #[track_caller]
    fn io_at(&self, place: &Place, command: &str) {
        let Some(device) = &place.device else {
            self.host.ok(&format!("{IO}; io '{}' '{command}'", place.file));
            return;
        };
        let to = |command: &str| {
            format!("qemu-monitor-command {{}} --hmp 'qemu-io -d {device} \"{command}\"'")
        };
        let said = self.virsh(&format!("{}; {}", to(command), to("flush")));
        assert!(said.trim().is_empty(), "{command}: {said}");
    }

    /// By one call: each takes its time.
    #[track_caller]
    fn place(&self, target: &str) -> Place {
        let lines = "domstate {}; domblklist {}; qemu-monitor-command {} --hmp 'info block'";
        let told = self.host.virsh.run(&lines.replace("{}", &self.spec.name)).stdout;
        let (listed, blocks) = told.split_once("---\n").unwrap_or_else(|| panic!("{told}"));
        let (disks, blocks) = blocks.split_once("\n\n").unwrap_or((blocks, ""));
        let disks: Vec<_> = disks.lines().filter_map(|line| line.trim().split_once(' ')).collect();
        let nth = disks.iter().position(|(name, _)| *name == target);
        let nth = nth.unwrap_or_else(|| panic!("no {target} in\n{told}"));
        let mut devices = blocks.lines().filter_map(|line| line.split_once("Attached to:"));
        let is_off = listed.starts_with("shut off");
        let device = (!is_off).then(|| {
            let (_, device) = devices.nth(nth).unwrap_or_else(|| panic!("no device in\n{told}"));
            device.trim().to_owned()
        });
        Place { file: disks[nth].1.trim().to_owned(), device }
    }

    /// Files of a disk's chain, the one in use first.
    #[track_caller]
    pub fn chain(&self, target: &str) -> Vec<String> {
        let listed =
            self.host.ok(&format!("qemu-img info -U --backing-chain {}", self.source(target)));
        listed.lines().filter_map(|line| line.strip_prefix("image: ")).map(str::to_owned).collect()
    }

    /// Names of the snapshots inside an image.
    #[track_caller]
    pub fn inside(&self, image: &Path) -> Vec<String> {
        let listed = self.host.ok(&format!("qemu-img snapshot -U -l {}", image.display()));
        let rows = listed.lines().skip(2);
        rows.filter_map(|row| row.split_whitespace().nth(1)).map(str::to_owned).collect()
    }

    /// Whether dom0 has such a file.
    pub fn exists(&self, file: &str) -> bool {
        self.host.run(&format!("test -e {file}")).success
    }

    /// Defines the guest again, changed.
    #[track_caller]
    pub fn redefine(&self, change: impl FnOnce(String) -> String) {
        let xml = change(self.virsh("dumpxml {} --inactive --security-info"));
        let file = self.host.file("changed.xml", &xml);
        self.host.virsh.ok(&format!("define {file}"));
    }
}
