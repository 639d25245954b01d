//! What goes wrong, at a point that was seen and not guessed: processes that are stopped, killed
//! and let go on; the journal as it is on the disk; a monitor of QEMU's beside the daemon's.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::guest::{Guest, GuestSpec};
use crate::host;
use crate::world::World;

/// Nothing that is waited for takes longer, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// Sends a signal by name, `KILL`, `STOP`, `CONT`, to processes of this world.
pub fn signal(name: &str, ids: &[u32]) {
    for id in ids {
        let mut kill = Command::new("kill");
        kill.arg(format!("-{name}")).arg(id.to_string()).stderr(Stdio::null());
        kill.status().expect("kill is there");
    }
}

/// What is made slow of a daemon, so that it can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slow {
    /// It is held when an entry of the journal is on the disk, before it does what that announces.
    Acts,
    /// It is held where the next entry of its journal is on the disk, until strace is no more.
    NextAct,
    /// It is held before it writes anything: when QEMU has answered, before the journal says so.
    Words,
    /// Memory goes into its file by about five MiB a second.
    Memory,
    /// A tool that it starts is held after each write to an image.
    Images,
}

/// What [`slow`] saw, in strace's words.
const SLOWED: &str = "slowed.log";

/// It ends with the daemon.
pub fn slow(world: &World, what: Slow) -> Child {
    let daemon = world.process().expect("the daemon runs");
    let (call, delay) = match what {
        Slow::Acts => ("fdatasync", "delay_exit=150000"),
        Slow::NextAct => ("fdatasync", "delay_exit=3600000000"),
        Slow::Words => ("write", "delay_enter=60000"),
        Slow::Memory => ("splice", "delay_enter=200000"),
        Slow::Images => ("pwrite64,pwritev", "delay_exit=60000"),
    };
    let strace = Command::new("strace")
        .args(["-f", "-qq", "-p", &daemon.to_string(), "-o"])
        .arg(world.path(SLOWED))
        .args(["-e", &format!("trace={call}"), "-e", &format!("inject={call}:{delay}")])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("strace is there: apt install strace");
    let tasks = PathBuf::from(format!("/proc/{daemon}/task"));
    host::wait("strace to hold the daemon", 20, || {
        let tasks = std::fs::read_dir(&tasks).ok()?.flatten();
        let is_held = |task: PathBuf| {
            let status = std::fs::read_to_string(task.join("status")).unwrap_or_default();
            status.lines().all(|line| line != "TracerPid:\t0")
        };
        tasks.map(|task| task.path()).all(is_held).then_some(())
    });
    strace
}

/// A daemon that was killed while a client waited for it.
#[derive(Debug)]
pub struct Killed {
    /// What its journal said when it was dead: [`World::journal`].
    pub journal: Option<Vec<String>>,
    /// What the client was told.
    pub complaint: String,
}

impl World {
    /// The entries of the operation that runs or was interrupted, as they are written, without the
    /// plan. None: there is no journal.
    pub fn journal(&self) -> Option<Vec<String>> {
        let text = std::fs::read_to_string(self.journal_file()?).ok()?;
        let complete = &text[..=text.rfind('\n')?];
        let entries = complete.lines().skip(1).filter_map(|line| line.split_once(' '));
        Some(entries.map(|(_, entry)| entry.to_owned()).collect())
    }

    pub fn journal_file(&self) -> Option<PathBuf> {
        let domains = std::fs::read_dir(self.path("lib/domains")).ok()?.flatten();
        domains.map(|domain| domain.path().join("journal.jsonl")).find(|file| file.exists())
    }

    /// Lets a client ask for something and kills the daemon as soon as `reached`; it is not
    /// started again. None: the client had its answer before, and there is a daemon.
    pub fn kill_at(
        &mut self,
        line: &str,
        mut reached: impl FnMut(&Self) -> bool,
    ) -> Option<Killed> {
        let mut client = self.ask(line);
        let start = Instant::now();
        while !reached(self) {
            if client.try_wait().expect("it is ours").is_some() {
                let told = client.wait_with_output().expect("it is ours");
                eprintln!("'{line}' ended: {}", String::from_utf8_lossy(&told.stderr));
                return None;
            }
            assert!(start.elapsed() < DEADLINE, "'{line}' hangs");
            std::thread::sleep(Duration::from_micros(100));
        }
        self.kill();
        let journal = self.journal();
        let told = client.wait_with_output().expect("it is ours");
        let complaint = String::from_utf8_lossy(&told.stderr).into_owned();
        if told.status.success() {
            self.start();
            return None;
        }
        Some(Killed { journal, complaint })
    }

    /// Calls that [`slow`] held up to now.
    pub fn slowed(&self) -> usize {
        let seen = std::fs::read_to_string(self.path(SLOWED)).unwrap_or_default();
        seen.lines().filter(|line| !line.contains("resumed>")).count()
    }

    /// A client that is not waited for: virsh, or what `virtsnap …` says.
    pub fn ask(&self, line: &str) -> Child {
        let mut client = match line.strip_prefix("virtsnap ") {
            Some(line) => self.virsh.virtsnap_command(line),
            None => self.virsh.command(line),
        };
        client.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        client.spawn().expect("virsh is there")
    }

    /// Processes of QEMU that run guests here.
    pub fn qemu(&self) -> Vec<u32> {
        self.processes("qemu-system")
    }

    /// Defines the guest with a second monitor: [`Monitor::of`].
    #[track_caller]
    pub fn define_watched(&self, spec: GuestSpec) -> Guest<'_> {
        assert!(spec.uuid.is_some(), "it is defined twice");
        let vm = self.define(spec);
        let file = self.path("watched.xml");
        let extra = format!(
            "<qemu:commandline><qemu:arg value='-qmp'/>\
             <qemu:arg value='unix:{},server=on,wait=off'/></qemu:commandline></domain>",
            monitor_of(self, vm.name()).display()
        );
        let spaced = "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ";
        let xml = vm.spec.xml(self).replacen("<domain ", spaced, 1);
        std::fs::write(&file, xml.replace("</domain>", &extra)).expect("the directory is ours");
        self.virsh.ok(&format!("define {}", file.display()));
        vm
    }
}

fn monitor_of(world: &World, guest: &str) -> PathBuf {
    world.path(&format!("{guest}.qmp"))
}

/// A monitor that the daemon does not know of. There can be one at a time.
#[derive(Debug)]
pub struct Monitor {
    reader: BufReader<UnixStream>,
    line: String,
    events: VecDeque<Value>,
}

impl Monitor {
    /// None: QEMU is gone.
    pub fn try_of(vm: &Guest) -> Option<Self> {
        let stream = UnixStream::connect(monitor_of(vm.world, vm.name())).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        let reader = BufReader::new(stream);
        let mut monitor = Self { reader, line: String::new(), events: VecDeque::new() };
        monitor.execute("qmp_capabilities", &json!({}));
        Some(monitor)
    }

    #[track_caller]
    pub fn of(vm: &Guest) -> Self {
        host::wait("QEMU's second monitor", 60, || Self::try_of(vm))
    }

    /// What was answered; an error is answered, too.
    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.reader.get_mut().write_all(line.as_bytes()).expect("QEMU listens");
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < DEADLINE, "QEMU does not answer {command}");
            let Some(message) = self.next() else { continue };
            match message.get("return").or(message.get("error")) {
                Some(answer) => return answer.clone(),
                None => self.events.push_back(message),
            }
        }
    }

    /// Whether an event came that is `name` and is as `is` says; what came before it is forgotten.
    pub fn saw(&mut self, name: &str, is: impl Fn(&Value) -> bool) -> bool {
        let new = self.next();
        self.events.extend(new);
        while let Some(event) = self.events.pop_front() {
            if event["event"] == name && is(&event["data"]) {
                return true;
            }
        }
        false
    }

    /// All events that came and were not asked for yet.
    #[track_caller]
    pub fn events(&mut self) -> Vec<Value> {
        // What QEMU tells before its answer is here then.
        self.execute("query-status", &json!({}));
        self.events.drain(..).collect()
    }

    /// Waits for it.
    #[track_caller]
    pub fn wait(&mut self, name: &str, is: impl Fn(&Value) -> bool) {
        host::wait(name, DEADLINE.as_secs(), || self.saw(name, &is).then_some(()));
    }

    /// The image that a disk of the guest writes to, as QEMU says.
    #[track_caller]
    pub fn image(&mut self, target: &str) -> String {
        let index = target.bytes().last().map_or(0, |letter| letter - b'a');
        let device = format!("virtio-disk{index}");
        let blocks = self.execute("query-block", &json!({}));
        let blocks = blocks.as_array().expect("a list");
        let disk = blocks
            .iter()
            .find(|block| block["qdev"].as_str().is_some_and(|path| path.contains(&device)));
        let disk = disk.unwrap_or_else(|| panic!("no {device} in {blocks:?}"));
        disk["inserted"]["image"]["filename"].as_str().expect("a file").to_owned()
    }

    fn next(&mut self) -> Option<Value> {
        // A line that comes in two parts is kept until it is complete.
        let read = self.reader.read_line(&mut self.line);
        if read.is_err() || !self.line.ends_with('\n') {
            return None;
        }
        serde_json::from_str(&std::mem::take(&mut self.line)).ok()
    }
}

/// Files of the world that nothing refers to: no disk, no snapshot, no backing chain of those.
/// `mine` are known to whoever asks.
pub fn orphans(vm: &Guest, mine: &[&str]) -> Vec<String> {
    let mut known = vm.virsh("dumpxml {}") + &vm.virsh("dumpxml --inactive {}");
    for name in vm.snapshots() {
        known += &vm.virsh(&format!("snapshot-dumpxml {{}} '{name}'"));
    }
    let images =
        vm.spec.disks.iter().zip('a'..).map(|(_, letter)| vm.source(&format!("vd{letter}")));
    for image in images {
        known += &crate::images::chain(Path::new(&image)).join("\n");
    }
    let files = std::fs::read_dir(vm.world.dir()).expect("the directory is ours").flatten();
    files
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            let is_ours =
                name.contains("-vd") || name.contains("virtsnap-") || name.ends_with(".mem");
            let is_known = known.contains(name.as_str()) || mine.contains(&name.as_str());
            is_ours && !is_known
        })
        .collect()
}

/// A file system of so few bytes that it can be filled. Mounted, which takes root.
#[derive(Debug)]
pub struct Small {
    at: PathBuf,
}

impl Small {
    pub fn mount(at: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&at).expect("the directory is ours");
        let options = format!("size={size},mode=755");
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", &options, "none"]).arg(&at).status();
        assert!(status.is_ok_and(|status| status.success()), "mount {}", at.display());
        Self { at }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    /// All but so many bytes are taken; fewer are free if fewer were.
    pub fn fill_but(&self, free: u64) {
        let file = self.path("ballast");
        let mut ballast = std::fs::File::create(&file).expect("a name takes no room");
        let block = vec![1; 64 << 10];
        let mut length = 0;
        for size in [64 << 10, 4 << 10] {
            while let Ok(written) = ballast.write(&block[..size]) {
                length += written as u64;
            }
        }
        ballast.set_len(length.saturating_sub(free)).expect("it gets smaller");
    }

    pub fn empty(&self) {
        std::fs::remove_file(self.path("ballast")).expect("it was filled");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// The full set of what takes long, not only a sample: `VIRTSNAP_FAULTS=all`.
pub fn is_all() -> bool {
    std::env::var("VIRTSNAP_FAULTS").is_ok_and(|which| which == "all")
}
