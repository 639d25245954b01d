//! A QEMU that runs and that we cannot take up: its status file cannot be read, or is gone.
//!
//! That file is damaged, or of a later version of the daemon; nothing else tells what a layer's
//! nodes are called, which block jobs are ours, or what is owed to the guest. To guess that would
//! be to risk the disks. So the domain is what it is: active, in no state that is known. Nothing
//! is done to it, or to its files, but that it can be destroyed; and if the file is put right, the
//! next daemon takes it up.
//!
//! The process is found by its command line, which names its monitor's socket.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError};

use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;
use virtsnap_engine::domain::{Active, Event, ShutOffReason, State};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::element::Element;

use crate::hypervisor::{Qemu, Shared};
use crate::life::{KILL_DEADLINE, TERM_DEADLINE};
use crate::process::Process;

#[derive(Debug)]
pub(crate) struct Stray {
    pub(crate) uuid: Uuid,
    name: String,
    id: i32,
    process: Process,
    /// `RUN/UUID`.
    dir: PathBuf,
    why: String,
    /// Why it ends, where we end it.
    stopping: OnceLock<ShutOffReason>,
    /// True once the process is gone and what it had is put away.
    ended: watch::Sender<bool>,
}

impl Stray {
    pub(crate) fn active(&self) -> Active {
        let mut live = Element::new("domain");
        live.push(Element::new("name").with_text(&self.name));
        live.push(Element::new("uuid").with_text(self.uuid.to_string()));
        Active {
            uuid: self.uuid,
            name: self.name.clone(),
            id: self.id,
            state: State::Unknown,
            live,
        }
    }

    fn refusal(&self) -> Error {
        let message = format!(
            "domain '{}' runs as process {}, and what is known of it cannot be read from '{}': {}; \
             destroy it, or put that right and restart the daemon",
            self.name,
            self.process.pid(),
            self.dir.display(),
            self.why
        );
        Error::new(Condition::OperationFailed, message)
    }
}

impl Qemu {
    /// Nothing is known of the domain's disks while a QEMU has them that we cannot ask.
    ///
    /// # Errors
    /// `OperationFailed`, with what can be done.
    pub(crate) fn check_known(&self, domain: Uuid) -> Result<()> {
        match self.stray(domain) {
            Some(stray) => Err(stray.refusal()),
            None => Ok(()),
        }
    }

    pub(crate) fn stray(&self, domain: Uuid) -> Option<Arc<Stray>> {
        self.shared.strays().get(&domain).cloned()
    }

    /// Ends it; returns when its process is gone and put away.
    pub(crate) async fn destroy_stray(&self, stray: &Stray, reason: ShutOffReason) -> Result<()> {
        let mut ended = stray.ended.subscribe();
        let _ = stray.stopping.set(reason);
        stray.process.signal(Signal::TERM);
        if timeout(TERM_DEADLINE, ended.wait_for(|&ended| ended)).await.is_ok() {
            return Ok(());
        }
        stray.process.signal(Signal::KILL);
        timeout(KILL_DEADLINE, ended.wait_for(|&ended| ended)).await.map(drop).map_err(|_| {
            let pid = stray.process.pid();
            let message = format!(
                "cannot end domain '{}': process {pid} does not die, it may wait for a device",
                stray.name
            );
            Error::new(Condition::ResourceBusy, message)
        })
    }
}

impl Shared {
    /// Looks for the QEMU of a directory whose status we cannot use. None: there is none, and what
    /// it left is put away.
    pub(crate) fn find_stray(self: &Arc<Self>, dir: &Path, why: &str) -> Option<Active> {
        let uuid = dir.file_name()?.to_str().and_then(|name| Uuid::parse_str(name).ok())?;
        let Some((process, name)) = process_of(dir) else {
            tracing::warn!(dir = %dir.display(), why, "no status to use, and its QEMU is gone");
            remove(dir);
            return None;
        };
        let stray = Arc::new(Stray {
            uuid,
            name: name.unwrap_or_else(|| uuid.to_string()),
            // Without a number it is no less there.
            id: self.next_id().unwrap_or(i32::MAX),
            process,
            dir: dir.to_owned(),
            why: why.to_owned(),
            stopping: OnceLock::new(),
            ended: watch::Sender::new(false),
        });
        tracing::error!("{}", stray.refusal().message);
        self.strays().insert(uuid, Arc::clone(&stray));
        let active = stray.active();
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            stray.process.gone().await;
            shared.put_away_stray(&stray);
        });
        Some(active)
    }

    fn put_away_stray(&self, stray: &Stray) {
        stray.process.reap();
        remove(&stray.dir);
        self.strays().remove(&stray.uuid);
        self.hand_back_lost();
        let reason = stray.stopping.get().copied().unwrap_or(ShutOffReason::Unknown);
        tracing::info!(domain = stray.name, ?reason, "a QEMU that was not taken up has ended");
        self.events.emit(stray.uuid, &stray.name, -1, Event::Stopped(reason));
        stray.ended.send_replace(true);
    }

    /// Images that a guest was lent of which nothing else is known any more: the host was booted
    /// since, or its status was lost. While a QEMU runs of which we do not know what it has, none
    /// is taken from it.
    pub(crate) fn hand_back_lost(&self) {
        if !self.strays().is_empty() {
            return;
        }
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = |path: &Path, owner| self.is_used_by_another(Uuid::nil(), path, owner);
        let lost = std::mem::take(&mut *lost).into_iter();
        self.ledger.hand_back(lost.filter(|(path, owner)| !kept(path, *owner)));
    }
}

fn remove(dir: &Path) {
    if let Err(err) = fs::remove_dir_all(dir) {
        tracing::warn!(dir = %dir.display(), %err, "cannot remove the run directory");
    }
}

/// The QEMU whose monitor is in that directory, and the name of its guest.
fn process_of(dir: &Path) -> Option<(Process, Option<String>)> {
    let monitor = as_argument(&dir.join("qemu").join("monitor.sock"));
    let is_it = |argument: &str| {
        let mut rest = argument.split(&monitor);
        rest.next() != Some(argument)
            && rest.all(|after| after.is_empty() || after.starts_with(','))
    };
    let (process, arguments) = processes_told(is_it).next()?;
    Some((process, name_in(&arguments)))
}

/// Every program of a guest: they were all told to make a socket in that directory.
pub(crate) fn programs_of(dir: &Path) -> Vec<Process> {
    let inside = format!("={}/", as_argument(&dir.join("qemu")));
    processes_told(|argument| argument.contains(&inside)).map(|(process, _)| process).collect()
}

/// As QEMU's own syntax has it.
fn as_argument(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// Processes with such an argument, and all their arguments.
fn processes_told(is_it: impl Fn(&str) -> bool) -> impl Iterator<Item = (Process, Vec<String>)> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(move |entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        // Open first: then the command line is that of this process.
        let process = Process::open(pid).ok().filter(|process| !process.is_gone())?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let arguments = line.split(|byte| *byte == 0);
        let arguments: Vec<_> =
            arguments.map(|argument| String::from_utf8_lossy(argument).into_owned()).collect();
        arguments.iter().any(|argument| is_it(argument)).then_some((process, arguments))
    })
}

/// Of `-name guest=NAME,debug-threads=on`.
fn name_in(arguments: &[String]) -> Option<String> {
    let at = arguments.iter().position(|argument| argument == "-name")?;
    let value = arguments.get(at.checked_add(1)?)?.strip_prefix("guest=")?;
    let value = value.replace(",,", "\0");
    let name = value.split(',').next().unwrap_or_default().replace('\0', ",");
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_from_a_command_line() {
        let line = |name: &str| ["qemu", "-name", name].map(str::to_owned);
        let name = |value| name_in(&line(value));
        assert_eq!(name("guest=vm,debug-threads=on").as_deref(), Some("vm"));
        assert_eq!(name("guest=a,,b,debug-threads=on").as_deref(), Some("a,b"));
        assert_eq!(name("other"), None);
    }

    #[tokio::test]
    async fn a_process_is_found_by_its_monitor() {
        let dir = tempfile::tempdir().unwrap();
        let monitor = dir.path().join("qemu/monitor.sock");
        assert!(process_of(dir.path()).is_none());
        assert!(programs_of(dir.path()).is_empty());
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line", "-name", "guest=g,x=y"])
            .arg(format!("socket,path={},server=on", monitor.display()))
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (process, name) = process_of(dir.path()).unwrap();
        assert_eq!((process.pid().unsigned_abs(), name.as_deref()), (child.id(), Some("g")));
        let programs: Vec<_> = programs_of(dir.path()).iter().map(Process::pid).collect();
        assert_eq!(programs, [process.pid()]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process_of(dir.path()).is_none());
    }
}
