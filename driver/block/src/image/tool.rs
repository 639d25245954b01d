//! `qemu-img` as a child process.
//!
//! Every call ends: a short one at its deadline, a long one when the process has done nothing
//! (no I/O, no CPU time) for `STALL`, one that merges also when it is told to stop. Then it is
//! killed. It dies with us, so that a daemon that comes back finds no image in use. Output is read
//! up to a limit only. What it reads a guest may have written: it runs with no capability but those
//! to reach files.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, interval, timeout};
use virtsnap_engine::error::{Condition, Result};
use virtsnap_engine::merging::Merging;
use virtsnap_engine::ports::MergeError;

use super::failure;
use crate::child::confine_tool;

/// How long a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Reads or writes little: metadata.
    Short,
    /// Moves data: as long as it moves.
    WhileBusy,
}

/// A merge and what it may take: it prints how far it is (`-p`).
#[derive(Debug, Clone, Copy)]
pub struct Watch<'a> {
    pub merging: &'a Merging,
    pub stall: Duration,
}

const SHORT: Duration = Duration::from_secs(60);
const STALL: Duration = Duration::from_secs(300);
const CHECK_EVERY: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(200);

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

    /// The same of a merge, which ends when it is told to stop.
    pub(super) async fn run_watched(
        &self,
        command: &'static str,
        arguments: Vec<OsString>,
        watch: Watch<'_>,
        image: &Path,
    ) -> Result<(), MergeError> {
        let mut child = spawn(&self.program, command, arguments).map_err(MergeError::NotMerged)?;
        let ended = wait_watched(&mut child, watch).await;
        let about = |why: &str| format!("qemu-img {command} of '{}' {why}", image.display());
        let not_merged =
            |condition, why: &str| Err(MergeError::NotMerged(failure(condition, about(why))));
        match ended {
            Ok(Watched::Ended(status, _)) if status.success() => Ok(()),
            Ok(Watched::Ended(status, stderr)) => not_merged(
                Condition::OperationFailed,
                &format!("failed: {}", words(status, &stderr)),
            ),
            Ok(Watched::Stopped) => not_merged(Condition::Aborted, "was aborted"),
            Ok(Watched::Stalled) => {
                not_merged(Condition::Timeout, "was given up: it made no progress")
            }
            Ok(Watched::Immortal) => Err(MergeError::InDoubt(failure(
                Condition::Timeout,
                about("does not end: its storage does not answer"),
            ))),
            Err(err) => {
                let why = about("failed: its output could not be read");
                Err(MergeError::InDoubt(failure(Condition::OperationFailed, why).caused_by(err)))
            }
        }
    }
}

enum Watched {
    Ended(ExitStatus, Vec<u8>),
    Stopped,
    Stalled,
    /// It was killed, and did not die.
    Immortal,
}

async fn wait_watched(child: &mut Child, watch: Watch<'_>) -> io::Result<Watched> {
    let pid = child.id();
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let ended = {
        let work = async {
            let (_, stderr) =
                tokio::try_join!(follow(stdout, watch.merging), bounded(stderr, MAX_STDERR))?;
            Ok::<_, io::Error>((child.wait().await?, stderr))
        };
        tokio::pin!(work);
        let mut ticks = interval(LOOK_EVERY);
        let mut seen = (None, Instant::now());
        loop {
            tokio::select! {
                ended = &mut work => {
                    let (status, stderr) = ended?;
                    return Ok(Watched::Ended(status, stderr));
                }
                _ = ticks.tick() => {}
            }
            if watch.merging.is_stopped() {
                break Watched::Stopped;
            }
            let effort = pid.and_then(effort);
            if effort.is_none() || effort != seen.0 {
                seen = (effort, Instant::now());
            }
            if seen.1.elapsed() > watch.stall {
                break Watched::Stalled;
            }
        }
    };
    // Only when it is gone does nothing go on.
    match timeout(watch.stall, child.kill()).await {
        Ok(Ok(())) => Ok(ended),
        Ok(Err(_)) | Err(_) => Ok(Watched::Immortal),
    }
}

/// Reads `(12.34/100%)` after `(12.34/100%)`, each over the last one.
async fn follow(from: Option<impl AsyncRead + Unpin>, merging: &Merging) -> io::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    let mut chunk = vec![0; 4 << 10];
    loop {
        let got = from.read(&mut chunk).await?;
        if got == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(chunk.get(..got).unwrap_or_default());
        if let Some(hundredths) = hundredths(&text) {
            merging.moved(hundredths, 10_000);
        }
    }
}

fn hundredths(text: &str) -> Option<u64> {
    let (before, _) = text.rsplit_once("/100%)")?;
    let (_, percent) = before.rsplit_once('(')?;
    let (whole, part) = percent.trim().split_once('.')?;
    let part: u64 = part.get(..2)?.parse().ok()?;
    Some(whole.parse::<u64>().ok()?.checked_mul(100)?.saturating_add(part))
}

fn spawn(program: &Path, command: &str, arguments: Vec<OsString>) -> Result<Child> {
    tracing::debug!(command, ?arguments, "qemu-img");
    let mut run = Command::new(program);
    run.arg(command)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    confine_tool(run.as_std_mut());
    run.spawn().map_err(|err| {
        let what = format!("cannot run '{}'; is qemu-utils installed?", program.display());
        failure(Condition::Internal, what).caused_by(err)
    })
}

/// Why it failed, as it says.
fn words(status: ExitStatus, stderr: &[u8]) -> String {
    let said = String::from_utf8_lossy(stderr);
    let said = said.trim().trim_start_matches("qemu-img: ");
    if said.is_empty() { status.to_string() } else { said.to_owned() }
}

async fn run(
    program: &Path,
    command: &'static str,
    arguments: Vec<OsString>,
    patience: Patience,
    image: &Path,
) -> Result<Vec<u8>> {
    let mut child = spawn(program, command, arguments)?;
    let ended = wait(&mut child, patience).await;
    let about = |why: String| format!("qemu-img {command} of '{}' {why}", image.display());
    match ended {
        Ok(Some((status, stdout, _))) if status.success() => Ok(stdout),
        Ok(Some((status, _, stderr))) => {
            let words = words(status, &stderr);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_the_last_of_what_came() {
        assert_eq!(hundredths("    (0.00/100%)\r    (12.34/100%)\r"), Some(1234));
        assert_eq!(hundredths("    (100.00/100%)\r\n"), Some(10_000));
        for other in ["", "Image committed.", "(12.", "(x.34/100%)", "(1.é/100%)", "(1.2/100%)"] {
            assert_eq!(hundredths(other), None, "{other}");
        }
    }
}
