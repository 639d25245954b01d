//! Guests of QEMU: how their XML is written, and what can be done with them. A [`Guest`] is also what
//! it says on its [`Console`].

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::Deref;
use std::path::PathBuf;

use crate::console::Console;
pub use crate::console::Mark;
use crate::world::World;
use crate::{host, images};

/// What the guest's kernel does without: a fifth of what a boot computes, and a test run boots some
/// hundreds of times. The clock is left as it is, since reverts are about it.
pub(crate) const QUICKLY: &str = "cryptomgr.notests nokaslr mitigations=off lsm= audit=0 \
    no_timer_check nowatchdog rcupdate.rcu_expedited=1 i8042.noprobe";

/// A guest to be defined.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    pub name: String,
    pub machine: String,
    pub memory_mib: u32,
    /// Boots the test guest; without, the firmware finds nothing to boot and idles.
    pub boots: bool,
    /// Boots the guest with an agent instead, and its first disk is that guest's.
    pub has_agent: bool,
    /// Format of each disk: vda, vdb, …
    pub disks: Vec<String>,
    pub uuid: Option<String>,
    /// UEFI firmware, with a variable store of that format.
    pub uefi: Option<&'static str>,
    /// More elements for `<devices>`.
    pub devices: String,
}

impl GuestSpec {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            machine: "pc".to_owned(),
            memory_mib: 96,
            boots: true,
            has_agent: false,
            disks: vec!["qcow2".to_owned()],
            uuid: None,
            uefi: None,
            devices: String::new(),
        }
    }

    /// Nothing to boot: for what is about metadata and disks only.
    pub fn idle(name: &str) -> Self {
        Self { boots: false, memory_mib: 24, ..Self::new(name) }
    }

    /// The guest of `tests/agent-guest`.
    pub fn with_agent(name: &str) -> Self {
        let devices = "<channel type='unix'>\
            <target type='virtio' name='org.qemu.guest_agent.0'/></channel>";
        let devices = devices.to_owned();
        Self { has_agent: true, devices, ..Self::new(name) }
    }

    #[must_use]
    pub fn disks(mut self, formats: &[&str]) -> Self {
        self.disks = formats.iter().map(|&format| format.to_owned()).collect();
        self
    }

    #[must_use]
    pub fn machine(mut self, machine: &str) -> Self {
        self.machine = machine.to_owned();
        self
    }

    /// UEFI firmware with its variables, and a TPM 2.0.
    #[must_use]
    pub fn with_firmware(mut self, nvram_format: &'static str) -> Self {
        self.uefi = Some(nvram_format);
        self.memory_mib = self.memory_mib.max(160);
        self.devices
            .push_str("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>");
        self
    }

    pub fn xml(&self, world: &World) -> String {
        let dir = world.dir().display();
        let name = &self.name;
        let mut os = format!("<type arch='x86_64' machine='{}'>hvm</type>", self.machine);
        if self.boots {
            let (kernel, mut initrd) =
                host::guest_kernel().expect("make guest builds the test guest");
            if self.has_agent {
                (initrd, _) = host::agent_guest().expect("make agent-guest builds it");
            }
            let (kernel, initrd) = (kernel.display(), initrd.display());
            let _ = write!(
                os,
                "<kernel>{kernel}</kernel><initrd>{initrd}</initrd>\
                 <cmdline>console=ttyS0 quiet {QUICKLY}</cmdline>"
            );
        }
        let mut firmware = "";
        if let Some(format) = self.uefi {
            firmware = " firmware='efi'";
            let _ = write!(os, "<nvram format='{format}'/>");
        }
        let mut devices = String::new();
        if let Some(emulator) = &world.emulator {
            let _ = write!(devices, "<emulator>{}</emulator>", emulator.display());
        }
        for (format, letter) in self.disks.iter().zip('a'..) {
            let _ = write!(
                devices,
                "<disk type='file' device='disk'><driver name='qemu' type='{format}'/>\
                 <source file='{dir}/{name}-vd{letter}.{format}'/>\
                 <target dev='vd{letter}' bus='virtio'/></disk>"
            );
        }
        let uuid = self.uuid.as_ref().map_or_else(String::new, |id| format!("<uuid>{id}</uuid>"));
        format!(
            "<domain type='qemu'><name>{name}</name>{uuid}\
             <memory unit='MiB'>{memory}</memory><vcpu>1</vcpu><os{firmware}>{os}</os>\
             <features><acpi/></features><cpu mode='custom' match='exact'><model>qemu64</model></cpu>\
             <devices>{devices}\
             <serial type='pty'><log file='{dir}/{name}.console' append='on'/>\
             <target port='0'/></serial>\
             <memballoon model='none'/>{more}</devices></domain>",
            memory = self.memory_mib,
            more = self.devices,
        )
    }
}

/// A guest that the world's daemon knows.
#[derive(Debug)]
pub struct Guest<'w> {
    pub world: &'w World,
    pub spec: GuestSpec,
    console: Console,
}

impl Deref for Guest<'_> {
    type Target = Console;

    fn deref(&self) -> &Console {
        &self.console
    }
}

impl World {
    /// A guest that the daemon knows already.
    pub fn guest(&self, spec: GuestSpec) -> Guest<'_> {
        let console = Console::new(&spec.name, self.path(&format!("{}.console", spec.name)));
        Guest { world: self, spec, console }
    }

    /// Makes the images and defines the guest.
    #[track_caller]
    pub fn define(&self, spec: GuestSpec) -> Guest<'_> {
        let guest = self.guest(spec);
        for (format, letter) in guest.spec.disks.iter().zip('a'..) {
            images::create(&guest.disk(&format!("vd{letter}")), format, "16M");
        }
        if guest.spec.has_agent {
            let (_, data) = host::agent_guest().expect("make agent-guest builds it");
            std::fs::copy(data, guest.disk("vda")).expect("the directory is ours");
        }
        let file = self.path(&format!("{}.xml", guest.spec.name));
        std::fs::write(&file, guest.spec.xml(self)).expect("the directory is ours");
        self.virsh.ok(&format!("define {}", file.display()));
        guest
    }

    /// Defines and starts the guest with an agent, and waits until the agent answers.
    #[track_caller]
    pub fn boot_with_agent(&self, spec: GuestSpec) -> Guest<'_> {
        let guest = self.define(spec);
        guest.virsh("start {}");
        guest.number_after(Mark::start(), "WROTE ", guest.boot);
        host::wait("the guest's agent", guest.patience, || {
            let ping =
                format!("qemu-agent-command {} '{{\"execute\":\"guest-ping\"}}'", guest.name());
            self.virsh.run(&ping).success.then_some(())
        });
        guest
    }

    /// Defines and starts, and waits until the guest counts.
    #[track_caller]
    pub fn boot(&self, spec: GuestSpec) -> Guest<'_> {
        let guest = self.define(spec);
        guest.virsh("start {}");
        guest.booted(Mark::start());
        guest
    }
}

impl Guest<'_> {
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The file that was made for a disk, whatever the disk uses now.
    pub fn disk(&self, target: &str) -> PathBuf {
        let index = target.bytes().last().map_or(0, |letter| usize::from(letter - b'a'));
        let format = &self.spec.disks[index];
        self.world.path(&format!("{}-{target}.{format}", self.name()))
    }

    /// A virsh line in which `{}` is the guest's name; must succeed.
    #[track_caller]
    pub fn virsh(&self, line: &str) -> String {
        self.world.virsh.ok(&line.replace("{}", self.name()))
    }

    /// A line of `virtsnap`, likewise.
    #[track_caller]
    pub fn virtsnap(&self, line: &str) -> String {
        let outcome = self.world.virsh.virtsnap(&line.replace("{}", self.name()));
        assert!(outcome.success, "virtsnap {line}\n{}{}", outcome.stdout, outcome.stderr);
        outcome.stdout
    }

    /// Must fail, gives the complaint.
    #[track_caller]
    pub fn virtsnap_refused(&self, line: &str) -> String {
        let outcome = self.world.virsh.virtsnap(&line.replace("{}", self.name()));
        assert!(!outcome.success, "virtsnap {line} should have failed:\n{}", outcome.stdout);
        outcome.stderr
    }

    /// The same; must fail, gives the complaint.
    #[track_caller]
    pub fn refused(&self, line: &str) -> String {
        self.world.virsh.fails(&line.replace("{}", self.name()))
    }

    /// `running`, `paused`, `shut off`, …
    #[track_caller]
    pub fn state(&self) -> String {
        self.virsh("domstate {}").trim().to_owned()
    }

    /// The file a disk uses now, as the daemon says.
    #[track_caller]
    pub fn source(&self, target: &str) -> String {
        let listed = self.virsh("domblklist {}");
        let line = listed.lines().find(|line| line.split_whitespace().next() == Some(target));
        let line = line.unwrap_or_else(|| panic!("no {target} in\n{listed}"));
        line.trim_start()[target.len()..].trim().to_owned()
    }

    /// Fills 64 KiB at `mib` with a byte: through the running QEMU, or into the file.
    #[track_caller]
    pub fn write(&self, target: &str, mib: u64, pattern: u8) {
        let command = format!("write -P {pattern} {mib}M 64k");
        if self.state() == "shut off" {
            let (source, format) = self.image(target);
            images::io(&source, &format, &command);
        } else {
            self.live_io(target, &command);
        }
        assert!(self.holds(target, mib, pattern), "{target}: {pattern} did not reach the disk");
    }

    /// Whether the guest reads that byte, all 64 KiB of it.
    #[track_caller]
    pub fn holds(&self, target: &str, mib: u64, pattern: u8) -> bool {
        if self.state() != "shut off" {
            // What QEMU still keeps of qcow2's tables reaches the file.
            self.live_io(target, "flush");
        }
        let (source, format) = self.image(target);
        images::reads(&source, &format, pattern, mib << 20, 64 << 10)
    }

    /// One command of qemu-io inside the running QEMU. What it says goes to QEMU's log.
    #[track_caller]
    pub fn live_io(&self, target: &str, command: &str) {
        let index = target.bytes().last().map_or(0, |letter| letter - b'a');
        let device = format!("/machine/peripheral/virtio-disk{index}/virtio-backend");
        let line = format!("qemu-monitor-command {{}} --hmp 'qemu-io -d {device} \"{command}\"'");
        let said = self.virsh(&line);
        assert!(said.trim().is_empty(), "{command} on {target}: {said}");
    }

    /// What a disk uses now, and its format.
    #[track_caller]
    fn image(&self, target: &str) -> (PathBuf, String) {
        let source = PathBuf::from(self.source(target));
        let told = images::info(&source);
        let format = told.lines().find_map(|line| line.strip_prefix("file format: "));
        (source, format.expect("an image has a format").to_owned())
    }

    /// Names of all snapshots, in order.
    #[track_caller]
    pub fn snapshots(&self) -> Vec<String> {
        self.world.virsh.lines(&format!("snapshot-list {} --name", self.name()))
    }

    /// What the guest finds in its UEFI variable and in its TPM.
    #[track_caller]
    pub fn has_in_firmware(&self, variable: &str, tpm: &str) {
        self.type_line("var?", &format!("VAR {variable}"));
        self.type_line("nv?", &format!("NV {tpm}"));
    }

    /// The guest writes into its UEFI variable and into its TPM.
    #[track_caller]
    pub fn write_firmware(&self, text: &str) {
        self.type_line(&format!("var {text}"), &format!("VAR {text}"));
        self.type_line(&format!("nv {text}"), &format!("NV {text}"));
    }

    /// Types a line on the guest's terminal and waits for an answer that starts with `answer`.
    /// The terminal stays open until then: QEMU looks only now and then whether somebody came.
    #[track_caller]
    pub fn type_line(&self, line: &str, answer: &str) {
        let mark = self.mark();
        let terminal = self.virsh("ttyconsole {}").trim().to_owned();
        let mut file = std::fs::File::options().write(true).open(&terminal).expect("the terminal");
        writeln!(file, "{line}").expect("the guest listens");
        self.said(mark, answer);
    }
}
