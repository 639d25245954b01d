//! The unmodified `virsh`, one process per command.

use std::ffi::OsStr;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// No command of these tests takes longer, even on a busy machine that emulates another.
const DEADLINE: Duration = Duration::from_secs(600);

/// A client of one daemon.
#[derive(Debug, Clone)]
pub struct Virsh {
    /// `virsh` as installed, or another version's.
    pub program: PathBuf,
    pub uri: String,
    pub read_only: bool,
    /// Runs virsh as this user.
    pub user: Option<u32>,
}

/// What a command came to.
#[derive(Debug)]
pub struct Outcome {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Virsh {
    pub fn new(uri: impl Into<String>) -> Self {
        Self { program: "virsh".into(), uri: uri.into(), read_only: false, user: None }
    }

    pub fn read_only(&self, uri: impl Into<String>) -> Self {
        Self { read_only: true, uri: uri.into(), ..self.clone() }
    }

    /// The command line, for tests that run it in their own way.
    pub fn command(&self, line: &str) -> Command {
        let mut command = as_user(self.user, self.program.as_os_str());
        command.arg("-c").arg(&self.uri).env("LC_ALL", "C.UTF-8").env_remove("LIBVIRT_DEBUG");
        if self.read_only {
            command.arg("--readonly");
        }
        command.arg(line);
        command
    }

    /// Runs one line as virsh itself would parse it, quotes and all.
    pub fn run(&self, line: &str) -> Outcome {
        finish(&mut self.command(line), line)
    }

    /// Must succeed; gives what it printed.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        let Outcome { success, stdout, stderr } = self.run(line);
        assert!(success, "virsh {line}\n{stdout}{stderr}");
        stdout
    }

    /// `virtsnap` with this daemon; words are parted by blanks.
    pub fn virtsnap(&self, line: &str) -> Outcome {
        finish(&mut self.virtsnap_command(line), line)
    }

    /// That command line, likewise.
    pub fn virtsnap_command(&self, line: &str) -> Command {
        let mut command = as_user(self.user, crate::host::virtsnap().as_os_str());
        command.arg("-c").arg(&self.uri).env("LC_ALL", "C.UTF-8").args(line.split_whitespace());
        command
    }

    /// Must fail; gives what it complained about.
    #[track_caller]
    pub fn fails(&self, line: &str) -> String {
        let Outcome { success, stdout, stderr } = self.run(line);
        assert!(!success, "virsh {line} should have failed:\n{stdout}{stderr}");
        stderr
    }

    /// Must succeed; the lines that are not empty, without space around them.
    #[track_caller]
    pub fn lines(&self, line: &str) -> Vec<String> {
        let text = self.ok(line);
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

/// A command that runs as somebody else, where that was asked for and is possible.
pub fn as_user(user: Option<u32>, program: &OsStr) -> Command {
    let Some(user) = user else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={user}")).arg(format!("--regid={user}"));
    command.arg("--clear-groups").arg("--").arg(program);
    command
}

/// Runs to the end or to the deadline.
pub fn finish(command: &mut Command, what: &str) -> Outcome {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|err| panic!("cannot run {}: {err}", command.get_program().display()));
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = wait_for(&mut child, what);
    Outcome {
        success: status,
        stdout: stdout.join().expect("reader"),
        stderr: stderr.join().expect("reader"),
    }
}

fn wait_for(child: &mut Child, what: &str) -> bool {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait().expect("the child is ours") {
            return status.success();
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("'{what}' did not end within {} s", DEADLINE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
