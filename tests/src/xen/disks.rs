//! What guests' disks hold, looked at and written to without the guest's help: in its files while it
//! is off, through its device model while it runs or is paused.

use std::path::Path;

use super::XenGuest;

impl XenGuest<'_> {
    /// Fills 64 KiB at `mib` with a byte.
    #[track_caller]
    pub fn write(&self, target: &str, mib: u64, pattern: u8) {
        self.io(target, &format!("write -P {pattern} {mib}M 64k"));
        assert!(self.holds(target, mib, pattern), "{target}: {pattern} did not reach the disk");
    }

    /// Whether the guest reads that byte, all 64 KiB of it.
    #[track_caller]
    pub fn holds(&self, target: &str, mib: u64, pattern: u8) -> bool {
        if self.state() != "shut off" {
            // What the device model still keeps of qcow2's tables reaches the file.
            self.live_io(target, "flush");
        }
        let file = self.source(target);
        let format = self.format(&file);
        // It ends with an error where the pattern is another one.
        let said = self.host.run(&format!(
            "qemu-io -r -U -f {format} -c 'read -P {pattern} {mib}M 64k' {file}"
        ));
        assert!(said.stdout.contains("read 65536/65536 bytes"), "{target}: {}", said.stdout);
        !said.stdout.contains("Pattern verification failed")
    }

    /// One command of qemu-io on what a disk uses now.
    #[track_caller]
    pub fn io(&self, target: &str, command: &str) {
        if self.state() != "shut off" {
            return self.live_io(target, command);
        }
        let file = self.source(target);
        let format = self.format(&file);
        self.host.ok(&format!("qemu-io -f {format} -c '{command}' {file}"));
    }

    /// The same inside the device model; what it says there is in its log.
    #[track_caller]
    fn live_io(&self, target: &str, command: &str) {
        let (name, file) = (&self.spec.name, self.source(target));
        let said = self.host.ok(&format!(
            "device=$(xl qemu-monitor-command {name} 'info block' |
                awk 'index($0, \" {file} (\") {{ its = 1 }} its && /Attached to/ {{ print $3; exit }}')
            xl qemu-monitor-command {name} \"qemu-io -d $device \\\"{command}\\\"\""
        ));
        assert!(said.trim().is_empty(), "{command} on {target}: {said}");
    }

    #[track_caller]
    fn format(&self, file: &str) -> String {
        let told = self.host.ok(&format!("qemu-img info -U {file}"));
        let format = told.lines().find_map(|line| line.strip_prefix("file format: "));
        format.expect("an image has a format").to_owned()
    }

    /// Files of a disk's chain, the one in use first.
    #[track_caller]
    pub fn chain(&self, target: &str) -> Vec<String> {
        let listed = self.host.ok(&format!("qemu-img info -U --backing-chain {}", self.source(target)));
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
