//! `qemu-img` as a child process.
//!
//! Every call ends: a short one at its deadline, a long one when the process has done nothing
//! (no I/O, no CPU time) for `STALL`. Then it is killed. Output is read up to a limit only. What it
//! reads a guest may have written: it runs with no capability but those to reach files.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, interval, timeout};
use virtsnap_engine::error::{Condition, Result};

use super::failure;
use crate::system::confine_tool;

/// How long a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Reads or writes little: metadata.
    Short,
    /// Moves data: as long as it moves.
    WhileBusy,
}

const SHORT: Duration = Duration::from_secs(60);
const STALL: Duration = Duration::from_secs(300);
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// 65536 internal snapshots, the most a qcow2 image can have, are listed in less.
const MAX_STDOUT: usize = 64 << 20;
const MAX_STDERR: usize = 16 << 10;

/// The program.
#[derive(Debug, Clone)]
pub struct QemuImg {
    program: PathBuf,
}

impl QemuImg {
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into() }
    }

    /// Runs `qemu-img COMMAND ARGUMENTS`; gives what it printed.
    pub(super) async fn run(
        &self,
        command: &'static str,
        arguments: Vec<OsString>,
        patience: Patience,
        image: &Path,
    ) -> Result<Vec<u8>> {
        run(&self.program, command, arguments, patience, image).await
    }
}

async fn run(
    program: &Path,
    command: &'static str,
    arguments: Vec<OsString>,
    patience: Patience,
    image: &Path,
) -> Result<Vec<u8>> {
    tracing::debug!(command, ?arguments, "qemu-img");
    let mut tool = Command::new(program);
    confine_tool(tool.as_std_mut());
    let mut child = tool
        .arg(command)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|err| {
            let what = format!("cannot run '{}'; is qemu-utils installed?", program.display());
            failure(Condition::Internal, what).caused_by(err)
        })?;
    let ended = wait(&mut child, patience).await;
    let about = |why: String| format!("qemu-img {command} of '{}' {why}", image.display());
    match ended {
        Ok(Some((status, stdout, _))) if status.success() => Ok(stdout),
        Ok(Some((status, _, stderr))) => {
            let words = String::from_utf8_lossy(&stderr);
            let words = words.trim().trim_start_matches("qemu-img: ");
            let words = if words.is_empty() { status.to_string() } else { words.to_owned() };
            Err(failure(Condition::OperationFailed, about(format!("failed: {words}"))))
        }
        Ok(None) => {
            // Dropping would kill too; waiting makes sure that it no longer holds its locks.
            let _ = timeout(CHECK_EVERY, child.kill()).await;
            Err(failure(Condition::Timeout, about("was given up: it made no progress".into())))
        }
        Err(err) => Err(failure(
            Condition::OperationFailed,
            about("failed: its output could not be read".into()),
        )
        .caused_by(err)),
    }
}

type Ended = (ExitStatus, Vec<u8>, Vec<u8>);

/// None: patience ran out.
async fn wait(child: &mut Child, patience: Patience) -> io::Result<Option<Ended>> {
    let pid = child.id();
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let work = async {
        let (stdout, stderr) =
            tokio::try_join!(bounded(stdout, MAX_STDOUT), bounded(stderr, MAX_STDERR))?;
        Ok((child.wait().await?, stdout, stderr))
    };
    tokio::pin!(work);
    let begun = Instant::now();
    let mut ticks = interval(CHECK_EVERY);
    let mut seen = (None, begun);
    loop {
        tokio::select! {
            ended = &mut work => return ended.map(Some),
            _ = ticks.tick() => {}
        }
        let spent = match patience {
            Patience::Short => begun.elapsed() > SHORT,
            Patience::WhileBusy => {
                let effort = pid.and_then(effort);
                if effort.is_none() || effort != seen.0 {
                    seen = (effort, Instant::now());
                }
                seen.1.elapsed() > STALL
            }
        };
        if spent {
            return Ok(None);
        }
    }
}

/// What the process has done so far, as the kernel counts it. None: not ours to see.
fn effort(pid: u32) -> Option<(String, String)> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some((io, stat))
}

/// Reads to the end, keeps the first `limit` bytes; more on standard output is refused by the
/// caller's parser, as it is cut.
async fn bounded(from: Option<impl AsyncRead + Unpin>, limit: usize) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return Ok(kept) };
    let mut chunk = vec![0; 16 << 10];
    loop {
        let got = from.read(&mut chunk).await?;
        if got == 0 {
            return Ok(kept);
        }
        let room = limit.saturating_sub(kept.len()).min(got);
        kept.extend(chunk.iter().take(room));
    }
}
