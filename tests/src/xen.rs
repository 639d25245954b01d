//! The Xen host that `tests/host/test.sh xen` booted, seen from outside: its shell, virtsnapd in its
//! dom0, the unmodified virsh of this machine, and guests of our own.
//!
//! A [`XenHost`] is lent to one test at a time and is empty at first: no guest, no file of one, and a
//! virtsnapd that has just been started. Whatever computes in there takes long (it is emulated), so
//! virsh runs on this side, and what guests say on their consoles is read through a shared directory.

mod disks;

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::ops::Deref;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

use crate::console::Console;
use crate::guest::QUICKLY;
use crate::host;
use crate::virsh::{Outcome, Virsh};

/// Where guests' files are, in dom0.
pub const GUESTS: &str = "/root/guests";
/// What the daemon keeps and says, in dom0.
const STATE: &str = "/root/virtsnap";
/// Its program, as it was when the first test began: whoever builds while tests run would else have
/// dom0 read parts of either.
const PROGRAM: &str = "/root/virtsnapd";
/// No command in dom0 takes longer.
const DEADLINE: Duration = Duration::from_secs(600);

static TAKEN: Mutex<()> = Mutex::new(());

/// One host, and its daemon.
#[derive(Debug)]
pub struct XenHost {
    pub virsh: Virsh,
    /// More lines of the daemon's configuration, from its next start on.
    pub config: String,
    /// `/share` of dom0.
    share: PathBuf,
    shell: u16,
    /// Holds the socket that leads to the daemon's.
    _dir: TempDir,
    _taken: MutexGuard<'static, ()>,
}

impl XenHost {
    /// Emptied, with a daemon; none where no host was booted.
    pub fn lent() -> Option<Self> {
        // SHARE:PORT:PORT, as xen-serve.sh says.
        let said = std::env::var("VIRTSNAP_XEN_HOST").ok()?;
        let parts: Vec<&str> = said.split(':').collect();
        let [share, shell, daemon] = parts[..] else { panic!("VIRTSNAP_XEN_HOST is {said}") };
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::Builder::new().prefix("vs").tempdir_in("/tmp").expect("a directory");
        let socket = dir.path().join("virtsnap-sock");
        join(&socket, daemon.parse().expect("a port"));
        let mut host = Self {
            virsh: Virsh::new(format!("xen:///system?socket={}", socket.display())),
            config: String::new(),
            share: share.into(),
            shell: shell.parse().expect("a port"),
            _dir: dir,
            _taken: taken,
        };
        host.clear();
        host.start();
        Some(host)
    }

    fn clear(&mut self) {
        self.kill();
        self.ok(&format!(
            "for id in $(xl list | awk 'NR > 1 && $2 > 0 {{ print $2 }}'); do xl destroy $id; done
            rm -rf {GUESTS} {STATE} /run/virtsnap /share/console/*; mkdir -p {GUESTS} {STATE}"
        ));
    }

    /// Runs a script in dom0, as root; what it wrote, on whichever stream, is `stdout`.
    pub fn run(&self, script: &str) -> Outcome {
        let said = self.ask(script).unwrap_or_else(|err| panic!("the Xen host: {err}: {script}"));
        let said = String::from_utf8_lossy(&said).into_owned();
        let (stdout, status) = said.rsplit_once('\0').unwrap_or((&said, "cut off"));
        let (success, stderr) = (status == "0", format!("status {status}"));
        Outcome { success, stdout: stdout.to_owned(), stderr }
    }

    /// The port of its shell, for who asks it in another way than [`Self::run`].
    pub fn shell(&self) -> u16 {
        self.shell
    }

    fn ask(&self, script: &str) -> io::Result<Vec<u8>> {
        let mut line = TcpStream::connect((Ipv4Addr::LOCALHOST, self.shell))?;
        line.set_read_timeout(Some(DEADLINE))?;
        line.write_all(script.as_bytes())?;
        line.write_all(&[0])?;
        let mut said = Vec::new();
        line.read_to_end(&mut said)?;
        Ok(said)
    }

    /// Must succeed; gives what it wrote.
    #[track_caller]
    pub fn ok(&self, script: &str) -> String {
        let outcome = self.run(script);
        assert!(outcome.success, "{script}\n{}{}", outcome.stdout, outcome.stderr);
        outcome.stdout
    }

    /// Starts the daemon, also again after a [`Self::kill`], and waits until it answers.
    pub fn start(&mut self) {
        let program = host::virtsnapd().display();
        // What libxl does step by step fills pages.
        let (log, more) = ("debug,virtsnap_xen::context=info", &self.config);
        self.ok(&format!(
            "printf '%s\\n' \"state_dir = '{STATE}/lib'\" \"log = '{log}'\" \"{more}\" > {STATE}/virtsnapd.toml
            [ -e {PROGRAM} ] || cp {program} {PROGRAM}
            RUST_BACKTRACE=1 setsid {PROGRAM} --hypervisor xen --config {STATE}/virtsnapd.toml \
                >> {STATE}/log 2>&1 < /dev/null &
            echo $! > {STATE}/process"
        ));
        host::wait("virtsnapd in the Xen host to answer", 180, || {
            let runs = self.run(&format!("kill -0 $(cat {STATE}/process)")).success;
            assert!(runs, "the daemon ended:\n{}", self.log());
            self.virsh.run("version --daemon").success.then_some(())
        });
    }

    /// Kills the daemon as a crash would; its guests go on.
    pub fn kill(&mut self) {
        self.ok(&format!(
            "process=$(cat {STATE}/process 2> /dev/null) || exit 0
            kill -KILL $process 2> /dev/null
            while kill -0 $process 2> /dev/null; do busybox sleep 0.1; done
            rm {STATE}/process"
        ));
    }

    /// Lets a client ask for something, kills the daemon so much later, and starts it again. Whether
    /// the client was told of a success before.
    pub fn crash_during(&mut self, line: &str, delay: Duration) -> bool {
        let mut client = self.virsh.command(line);
        client.stdin(std::process::Stdio::null());
        client.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut client = client.spawn().expect("virsh is there");
        std::thread::sleep(delay);
        self.kill();
        let told = client.wait().expect("it is ours").success();
        self.start();
        told
    }

    pub fn log(&self) -> String {
        self.run(&format!("tail -n 60 {STATE}/log")).stdout
    }

    /// Makes the images and defines the guest.
    #[track_caller]
    pub fn define(&self, spec: XenSpec) -> XenGuest<'_> {
        let guest = self.with_images(spec);
        let file = self.file(&format!("{}.xml", guest.spec.name), &guest.spec.xml());
        self.virsh.ok(&format!("define {file}"));
        guest
    }

    /// Makes the images of one that the daemon does not define.
    pub fn with_images(&self, spec: XenSpec) -> XenGuest<'_> {
        let guest = self.guest(spec);
        let mut script = format!("mkdir -p {GUESTS}");
        for (target, format) in guest.targets() {
            let _ = write!(
                script,
                "\nqemu-img create -q -f {format} {} {SIZE}",
                guest.disk(&target).display()
            );
        }
        self.ok(&script);
        guest
    }

    /// One that the daemon did not define.
    pub fn guest(&self, spec: XenSpec) -> XenGuest<'_> {
        let log = self.share.join(format!("console/guest-{}.log", spec.name));
        let mut console = Console::new(&spec.name, log);
        (console.boot, console.patience) = (600, 300);
        XenGuest { host: self, spec, console }
    }

    /// A file for virsh, on this side; its path.
    #[track_caller]
    pub fn file(&self, name: &str, text: &str) -> String {
        let file = self.share.join(name);
        std::fs::write(&file, text).expect("the directory is ours");
        file.display().to_string()
    }

    /// Defines and starts, and waits until the guest counts.
    #[track_caller]
    pub fn boot(&self, spec: XenSpec) -> XenGuest<'_> {
        let guest = self.define(spec);
        guest.virsh("start {}");
        guest.booted(crate::guest::Mark::start());
        guest
    }
}

impl Drop for XenHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's log (last lines)\n{}", self.log());
            let said = self
                .run("xl list; tail -n 5 /var/log/xen/{qemu-dm,xl}-vm.log; xl dmesg | tail -n 5");
            eprintln!("--- the Xen host\n{}", said.stdout);
        }
    }
}

/// A socket here for one there: what a URI with `socket=` names must be local.
fn join(socket: &Path, port: u16) {
    let listener = UnixListener::bind(socket).expect("the directory is ours");
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
            let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { continue };
            std::thread::spawn(move || pour_out(near, far));
            std::thread::spawn(move || pour_in(far_too, near_too));
        }
    });
}

fn pour_out(mut near: UnixStream, mut far: TcpStream) {
    let _ = io::copy(&mut near, &mut far);
    let _ = far.shutdown(Shutdown::Write);
}

fn pour_in(mut far: TcpStream, mut near: UnixStream) {
    let _ = io::copy(&mut far, &mut near);
    let _ = near.shutdown(Shutdown::Both);
}

/// Of every disk. What the guest writes is below 2 MiB.
const SIZE: &str = "8M";

/// How a guest is virtualized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Pv,
    Pvh,
    Hvm,
}

/// A guest to be defined: the test guest, with disks `xvda`, `xvdb`, …
#[derive(Debug, Clone)]
pub struct XenSpec {
    pub name: String,
    pub kind: Kind,
    /// Format of each disk.
    pub disks: Vec<String>,
}

impl XenSpec {
    /// With an image of qcow2 and a raw one.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), kind: Kind::Pv, disks: vec!["qcow2".into(), "raw".into()] }
    }

    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    #[must_use]
    pub fn disks(mut self, formats: &[&str]) -> Self {
        self.disks = formats.iter().map(|&format| format.to_owned()).collect();
        self
    }

    fn disk(&self, target: &str) -> PathBuf {
        let index = target.bytes().last().map_or(0, |letter| usize::from(letter - b'a'));
        format!("{GUESTS}/{}-{target}.{}", self.name, self.disks[index]).into()
    }

    fn targets(&self) -> impl Iterator<Item = (String, &String)> {
        ('a'..).map(|letter| format!("xvd{letter}")).zip(&self.disks)
    }

    fn kernel() -> (PathBuf, PathBuf) {
        host::guest_kernel().expect("make guest builds the test guest")
    }

    pub fn xml(&self) -> String {
        let Self { name, kind, .. } = self;
        let kind = match kind {
            Kind::Pv => "xen",
            Kind::Pvh => "xenpvh",
            Kind::Hvm => "hvm",
        };
        // Under TCG the other kinds end at once with nested paging, and at their first RDTSCP where
        // Xen wants to see it (docs/xen.md).
        let quirks = match self.kind {
            Kind::Pv => "",
            // Without ACPI libxl starts the device model with an option that QEMU 10 has no more.
            Kind::Pvh | Kind::Hvm => {
                "<features><acpi/><hap state='off'/></features>\
                 <clock offset='utc'><timer name='tsc' present='yes' mode='native'/></clock>"
            }
        };
        let (kernel, initrd) = Self::kernel();
        let mut devices = String::new();
        for (target, format) in self.targets() {
            let _ = write!(
                devices,
                "<disk type='file' device='disk'><driver name='qemu' type='{format}'/>\
                 <source file='{}'/><target dev='{target}' bus='xen'/></disk>",
                self.disk(&target).display()
            );
        }
        format!(
            "<domain type='xen'><name>{name}</name><memory unit='MiB'>96</memory><vcpu>1</vcpu>\
             <os><type>{kind}</type><kernel>{}</kernel><initrd>{}</initrd>\
             <cmdline>console=hvc0 quiet {QUICKLY}</cmdline></os>{quirks}<devices>{devices}</devices></domain>",
            kernel.display(),
            initrd.display(),
        )
    }

    /// The same for `xl create`.
    pub fn configuration(&self) -> String {
        let Self { name, .. } = self;
        let (kernel, initrd) = Self::kernel();
        let mut text = format!(
            "name = '{name}'\ntype = 'pv'\nkernel = '{}'\nramdisk = '{}'\nmemory = 96\nvcpus = 1\n\
             extra = 'console=hvc0 quiet {QUICKLY}'\ndisk = [\n",
            kernel.display(),
            initrd.display(),
        );
        for (target, format) in self.targets() {
            let disk = self.disk(&target);
            let disk = disk.display();
            let _ = writeln!(
                text,
                "'format={format},vdev={target},access=rw,backendtype=qdisk,target={disk}',"
            );
        }
        text.push_str("]\n");
        text
    }
}

/// A guest of the host's, which is also what it says on its console.
#[derive(Debug)]
pub struct XenGuest<'h> {
    pub host: &'h XenHost,
    pub spec: XenSpec,
    console: Console,
}

impl Deref for XenGuest<'_> {
    type Target = Console;

    fn deref(&self) -> &Console {
        &self.console
    }
}

impl XenGuest<'_> {
    /// The file that was made for a disk, whatever the disk uses now.
    pub fn disk(&self, target: &str) -> PathBuf {
        self.spec.disk(target)
    }

    fn targets(&self) -> impl Iterator<Item = (String, &String)> {
        self.spec.targets()
    }

    /// A virsh line in which `{}` is the guest's name; must succeed.
    #[track_caller]
    pub fn virsh(&self, line: &str) -> String {
        self.host.virsh.ok(&line.replace("{}", &self.spec.name))
    }

    /// The same; must fail, gives the complaint.
    #[track_caller]
    pub fn refused(&self, line: &str) -> String {
        self.host.virsh.fails(&line.replace("{}", &self.spec.name))
    }

    /// A line of `virtsnap`, likewise.
    #[track_caller]
    pub fn virtsnap(&self, line: &str) -> String {
        let outcome = self.host.virsh.virtsnap(&line.replace("{}", &self.spec.name));
        assert!(outcome.success, "virtsnap {line}\n{}{}", outcome.stdout, outcome.stderr);
        outcome.stdout
    }

    /// The same; must fail, gives the complaint.
    #[track_caller]
    pub fn virtsnap_refused(&self, line: &str) -> String {
        let outcome = self.host.virsh.virtsnap(&line.replace("{}", &self.spec.name));
        assert!(!outcome.success, "virtsnap {line} should have failed:\n{}", outcome.stdout);
        outcome.stderr
    }

    /// `running`, `paused`, `shut off`, …
    #[track_caller]
    pub fn state(&self) -> String {
        self.virsh("domstate {}").trim().to_owned()
    }

    /// Waits until virsh says so; one that xl brings back is nowhere meanwhile.
    #[track_caller]
    pub fn becomes(&self, state: &str) {
        host::wait(&format!("{} to be {state}", self.spec.name), self.patience, || {
            let told = self.host.virsh.run(&format!("domstate {}", self.spec.name));
            (told.success && told.stdout.trim() == state).then_some(())
        });
    }

    /// The file a disk uses now, as the daemon says.
    #[track_caller]
    pub fn source(&self, target: &str) -> String {
        let listed = self.virsh("domblklist {}");
        let line = listed.lines().find(|line| line.split_whitespace().next() == Some(target));
        let line = line.unwrap_or_else(|| panic!("no {target} in\n{listed}"));
        line.trim_start()[target.len()..].trim().to_owned()
    }

    /// The files that the device model has open as disks' tops, as it says itself.
    #[track_caller]
    pub fn opened(&self) -> Vec<String> {
        let name = &self.spec.name;
        let said = self.host.ok(&format!("xl qemu-monitor-command {name} 'info block'"));
        // A line for each: node: file (format).
        let files = said.lines().filter(|line| !line.starts_with(char::is_whitespace));
        let file = |line: &str| Some(line.split_once(": ")?.1.split(" (").next()?.to_owned());
        files.filter_map(file).collect()
    }

    /// Names of all snapshots, in the order that virsh prints them in: by name.
    #[track_caller]
    pub fn snapshots(&self) -> Vec<String> {
        self.host.virsh.lines(&format!("snapshot-list {} --name", self.spec.name))
    }

    /// Types a line on the guest's console and waits for an answer that starts with `answer`.
    #[track_caller]
    pub fn type_line(&self, line: &str, answer: &str) {
        let mark = self.mark();
        let domain = format!("/local/domain/$(xl domid {})", self.spec.name);
        self.host.ok(&format!("echo '{line}' > $(xenstore-read {domain}/console/tty)"));
        self.said(mark, answer);
    }

    /// What the guest counted to, as it stands on a disk that is not in use.
    #[track_caller]
    pub fn count_on_disk(&self, file: &str) -> u64 {
        // Every layer is qcow2.
        let format = if file.ends_with(".raw") { "raw" } else { "qcow2" };
        let said = self.host.ok(&format!(
            "qemu-img dd -f {format} -O raw bs=4096 skip=256 count=257 if={file} of=/tmp/block &&
            head -c 64 /tmp/block | tr -d '\\0'"
        ));
        let count = said.strip_prefix("virtsnap counter ").map(str::trim);
        count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{file}: {said:?}"))
    }

    /// Consistent, all images of a chain.
    #[track_caller]
    pub fn check(&self, file: &str) {
        self.host.ok(&format!(
            "qemu-img info --backing-chain -U {file} | awk '/^image: / {{ print $2 }}' |
            while read -r image; do
                case $(qemu-img info -U $image) in *'file format: qcow2'*)
                    qemu-img check -q $image || exit 1 ;; esac
            done"
        ));
    }
}
