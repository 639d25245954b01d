//! A private directory with one running daemon in it.
//!
//! Everything a world starts names the directory on its command line, which is how the janitor
//! finds the guests that outlived their daemon. The janitor waits for the end of a pipe: it also
//! cleans up after a test process that was killed.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::virsh::{Virsh, as_user};
use crate::{host, oracle};

/// Debian's `nobody`.
const NOBODY: u32 = 65534;

/// Whose daemon answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    Virtsnapd,
    /// libvirt's own, in a mount namespace of its own: needs root.
    Libvirtd,
}

impl Daemon {
    /// What the scenarios run against: virtsnapd, unless the oracle was asked for.
    pub fn chosen() -> Self {
        match std::env::var("VIRTSNAP_TEST_DAEMON").as_deref() {
            Ok("libvirtd") => Self::Libvirtd,
            Ok("virtsnapd") | Err(_) => Self::Virtsnapd,
            Ok(other) => panic!("VIRTSNAP_TEST_DAEMON is virtsnapd or libvirtd, not {other}"),
        }
    }
}

/// One daemon, its clients and its guests. Dropping it ends all of them.
#[derive(Debug)]
pub struct World {
    pub daemon: Daemon,
    pub virsh: Virsh,
    /// What guests are run with; none: what the daemon finds by itself.
    pub emulator: Option<PathBuf>,
    /// Another virtsnapd than the one of this tree.
    pub program: Option<PathBuf>,
    /// What the daemon is started with; none: ours.
    pub umask: Option<String>,
    /// More lines for virtsnapd's configuration, from its next start on.
    pub config: String,
    dir: Option<TempDir>,
    session: bool,
    process: Option<Child>,
    janitor: Child,
}

impl World {
    /// The daemon that [`Daemon::chosen`] says, started and answering.
    pub fn new() -> Self {
        Self::with(Daemon::chosen())
    }

    pub fn with(daemon: Daemon) -> Self {
        let mut world = Self::stopped(daemon);
        world.start();
        world
    }

    /// virtsnapd in session mode: as an ordinary user, whoever runs the tests.
    pub fn as_user() -> Self {
        let mut world = Self::stopped(Daemon::Virtsnapd);
        world.virsh.uri = world.virsh.uri.replace(":///system", ":///session");
        world.session = true;
        if host::is_root() {
            world.virsh.user = Some(NOBODY);
        }
        world.hand_over();
        world.start();
        world
    }

    /// Gives everything in the directory to the user that the daemon runs as.
    pub fn hand_over(&self) {
        let Some(user) = self.virsh.user else { return };
        let owner = format!("{user}:{user}");
        let status = Command::new("chown").arg("-R").arg(owner).arg(self.dir()).status();
        assert!(status.is_ok_and(|status| status.success()), "chown");
    }

    /// With the daemon not yet started.
    pub fn stopped(daemon: Daemon) -> Self {
        // Short: the path of a Unix socket has 107 bytes.
        let dir = tempfile::Builder::new().prefix("vs").tempdir_in("/tmp").expect("a directory");
        let janitor = janitor(dir.path());
        let virsh = Virsh::new(format!("qemu:///system?socket={}", socket(daemon, dir.path())));
        let (dir, emulator, process) = (Some(dir), None, None);
        let config = String::new();
        let (program, umask, session) = (None, None, false);
        Self { daemon, virsh, emulator, program, umask, config, dir, session, process, janitor }
    }

    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("only drop takes it").path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        socket(self.daemon, self.dir()).into()
    }

    pub fn read_only_socket(&self) -> String {
        format!("{}-ro", socket(self.daemon, self.dir()))
    }

    /// Starts the daemon, also again after a [`Self::kill`], and waits until it answers.
    pub fn start(&mut self) {
        self.launch();
        host::wait("the daemon to answer", 60, || {
            if let Some(Ok(Some(status))) = self.process.as_mut().map(Child::try_wait) {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            self.virsh.run("version --daemon").success.then_some(())
        });
    }

    /// The same without waiting: it may be killed while it recovers.
    pub fn launch(&mut self) {
        let mut command = match self.daemon {
            Daemon::Virtsnapd => self.virtsnapd(),
            Daemon::Libvirtd => oracle::libvirtd(self.dir()),
        };
        let log = File::options().create(true).append(true).open(self.path("daemon.log"));
        let log = log.expect("the directory is ours");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.process = Some(command.spawn().expect("the daemon starts"));
    }

    /// Stops this daemon and starts another one in the same directory: the host changes hands. The
    /// old one's guests must be off.
    pub fn become_daemon(&mut self, daemon: Daemon, between: impl FnOnce(&Self)) {
        self.stop();
        self.daemon = daemon;
        self.virsh.uri = format!("qemu:///system?socket={}", socket(daemon, self.dir()));
        between(self);
        self.start();
    }

    /// virtsnapd with this world's configuration.
    pub fn virtsnapd(&self) -> Command {
        let config = self.path("virtsnapd.toml");
        let text = format!(
            "run_dir = '{0}/run'\nstate_dir = '{0}/lib'\nlog = 'debug'\n{1}\n",
            self.dir().display(),
            self.config
        );
        std::fs::write(&config, text).expect("the directory is ours");
        if !self.session {
            let program = self.program.as_deref().unwrap_or_else(|| host::virtsnapd());
            let mut command = match &self.umask {
                None => Command::new(program),
                Some(umask) => {
                    let mut shell = Command::new("sh");
                    let line = format!("umask {umask}; exec \"$0\" \"$@\"");
                    shell.arg("-c").arg(line).arg(program);
                    shell
                }
            };
            command.arg("--config").arg(config);
            return command;
        }
        // The build directory may not be open to that user.
        let program = self.path("virtsnapd");
        std::fs::copy(host::virtsnapd(), &program).expect("the directory is ours");
        let mut command = as_user(self.virsh.user, program.as_os_str());
        command.arg("--config").arg(config);
        for name in ["XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"] {
            command.env(name, self.dir());
        }
        command.env("XDG_CACHE_HOME", self.dir()).env("HOME", self.dir());
        command
    }

    /// The daemon's process, while it runs.
    pub fn process(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Kills the daemon as a crash would; its guests go on.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it is ours");
            process.wait().expect("it is ours");
        }
    }

    /// Lets a client ask for something, kills the daemon so much later, and starts it again.
    pub fn crash_during(&mut self, line: &str, milliseconds: u64) {
        let mut client = self.virsh.command(line);
        client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut client = client.spawn().expect("virsh is there");
        std::thread::sleep(Duration::from_millis(milliseconds));
        self.kill();
        client.wait().expect("it is ours");
        self.start();
    }

    /// Asks the daemon to end, and waits until it has.
    pub fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let id = process.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status().expect("kill is there");
        let status = host::wait("the daemon to end", 30, || process.try_wait().expect("ours"));
        assert!(status.success(), "stopped with {status}:\n{}", self.log());
    }

    pub fn log(&self) -> String {
        std::fs::read(self.path("daemon.log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Processes that run in this world, by what their command line says.
    pub fn processes(&self, program: &str) -> Vec<u32> {
        let here = self.dir().to_str().expect("UTF-8").as_bytes().to_vec();
        let ids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|id: &u32| {
                let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
                let name = line.split(|byte| *byte == 0).next().unwrap_or_default();
                name.windows(program.len()).any(|part| part == program.as_bytes())
                    && line.windows(here.len()).any(|part| part == here)
            })
            .collect()
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's log (last lines)");
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            lines.iter().skip(lines.len().saturating_sub(60)).for_each(|line| eprintln!("{line}"));
        }
        self.kill();
        if std::env::var_os("VIRTSNAP_TEST_KEEP").is_some() {
            let _ = self.janitor.kill();
            if let Some(dir) = self.dir.take() {
                eprintln!("kept: {}", dir.keep().display());
            }
        }
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

fn socket(daemon: Daemon, dir: &Path) -> String {
    match daemon {
        Daemon::Virtsnapd => format!("{}/run/virtsnap-sock", dir.display()),
        Daemon::Libvirtd => oracle::socket(dir),
    }
}

/// A shell that outlives us just long enough to clean up. Its own process group: an interrupt of
/// the test run does not reach it.
fn janitor(dir: &Path) -> Child {
    Command::new("/bin/bash")
        .arg(host::root().join("tests/setup/janitor.sh"))
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("bash is there")
}
