//! One QEMU process: found, watched, signalled and reaped.
//!
//! Watched by pidfd, because the pid may be another process' soon, and because an init that reaps
//! late keeps a dead pid alive. A pid together with its start time (`/proc/PID/stat`, field 22)
//! names one process for as long as the host is up.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;

use crate::system;

#[derive(Debug)]
pub struct Process {
    pid: i32,
    started: u64,
    watch: AsyncFd<OwnedFd>,
}

impl Process {
    /// A process that is alive now, or dead and not reaped by us yet. Needs a tokio runtime.
    pub fn open(pid: i32) -> io::Result<Self> {
        let fd = pidfd_open(raw(pid)?, PidfdFlags::empty())?;
        // After the descriptor is ours the pid cannot be given to another process unnoticed.
        let started = start_time(pid)?;
        Ok(Self { pid, started, watch: system::watch(fd)? })
    }

    /// The process that was recorded, if it still runs.
    pub fn find(pid: i32, started: u64) -> Option<Self> {
        let process = Self::open(pid).ok()?;
        (process.started == started && !process.is_gone()).then_some(process)
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Clock ticks since boot.
    pub fn started(&self) -> u64 {
        self.started
    }

    pub fn is_gone(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(&self.watch, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec::default();
        matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(n) if n > 0)
    }

    /// Returns when the process has ended, reaped or not.
    pub async fn gone(&self) {
        if let Err(err) = self.watch.readable().await {
            // Only when the runtime shuts down: then nobody acts on it any more.
            tracing::debug!(%err, pid = self.pid, "cannot watch a process any longer");
            std::future::pending::<()>().await;
        }
    }

    /// Gone already is done.
    pub fn signal(&self, signal: Signal) {
        if let Err(err) = pidfd_send_signal(self.watch.get_ref(), signal) {
            tracing::debug!(%err, pid = self.pid, ?signal, "cannot signal");
        }
    }

    /// Reaps it where it is our child, and tells how it ended.
    pub fn reap(&self) -> Option<Ended> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(self.watch.get_ref().as_fd()), options).ok()??;
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(Ended::Exit(code)),
            (None, Some(signal)) => Some(Ended::Signal(signal)),
            (None, None) => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exit(i32),
    Signal(i32),
}

fn raw(pid: i32) -> io::Result<Pid> {
    Pid::from_raw(pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses, and may hold anything.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    fields
        .split_ascii_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn an_end_is_noticed_and_reaped() {
        #[expect(clippy::zombie_processes, reason = "Process::reap is what is tested")]
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = Process::open(pid).unwrap();
        assert!(!process.is_gone());
        assert_eq!(Process::find(pid, process.started()).unwrap().pid(), pid);
        assert!(Process::find(pid, process.started() + 1).is_none(), "another process");
        process.signal(Signal::KILL);
        process.gone().await;
        assert!(Process::find(pid, process.started()).is_none(), "dead, not reaped");
        assert_eq!(process.reap(), Some(Ended::Signal(9)));
        assert_eq!(process.reap(), None);
        process.gone().await;
    }
}
