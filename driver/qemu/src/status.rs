//! The status file of a running domain: what a daemon needs to find its QEMU again.
//!
//! `RUN/UUID/status.json`, written aside and renamed. It needs no fsync: it is of use only while
//! the QEMU it names is up, and a host that loses the file by a crash loses that QEMU too.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use virtsnap_block::throttle::Limits;
use virtsnap_engine::domain::{PausedReason, RunningReason, ShutOffReason, State};
use virtsnap_engine::facts::Target;

use crate::blocks::Chain;
use crate::client_jobs::{ClientJob, Merged};
use crate::confine::Borrowed;
use crate::instance::{Inner, Instance};
use crate::process::Process;

const FILE: &str = "status.json";
const VERSION: u32 = 1;
/// A larger file was not written by us.
const MAX_SIZE: u64 = 16 << 20;

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Status {
    version: u32,
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) id: i32,
    /// None while the process is not started yet: only what must be undone is known then.
    pub(crate) process: Option<ProcessRecord>,
    pub(crate) helpers: Vec<ProcessRecord>,
    pub(crate) state: StateRecord,
    /// `<domain>`, the live definition.
    pub(crate) live: String,
    pub(crate) chains: BTreeMap<Target, Chain>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) jobs: BTreeMap<Target, ClientJob>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) merged: Vec<Merged>,
    pub(crate) next_node: u32,
    pub(crate) borrowed: Borrowed,
    pub(crate) rebooting: bool,
    pub(crate) clock_base: i64,
    #[serde(default)]
    pub(crate) owes_thaw: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) throttled: BTreeMap<Target, Limits>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct ProcessRecord {
    pub(crate) pid: i32,
    pub(crate) started: u64,
}

impl From<&Process> for ProcessRecord {
    fn from(process: &Process) -> Self {
        Self { pid: process.pid(), started: process.started() }
    }
}

impl ProcessRecord {
    /// The process, if it still runs.
    pub(crate) fn find(&self) -> Option<Process> {
        Process::find(self.pid, self.started)
    }
}

impl Status {
    pub(crate) fn of(instance: &Instance, inner: &Inner) -> Self {
        let mut status = Self::starting(instance.uuid, &instance.name, instance.id, inner);
        status.process = Some(ProcessRecord::from(&instance.process));
        status.helpers = instance.helpers.iter().map(ProcessRecord::from).collect();
        status
    }

    pub(crate) fn starting(uuid: Uuid, name: &str, id: i32, inner: &Inner) -> Self {
        Self {
            version: VERSION,
            uuid,
            name: name.to_owned(),
            id,
            process: None,
            helpers: Vec::new(),
            state: StateRecord::from(inner.state),
            live: inner.live.to_string(),
            chains: inner.chains.clone(),
            jobs: inner.jobs.clone(),
            merged: inner.merged.clone(),
            next_node: inner.next_node,
            borrowed: inner.borrowed.clone(),
            rebooting: inner.rebooting,
            clock_base: inner.clock_base,
            owes_thaw: inner.owes_thaw,
            throttled: inner.throttled.clone(),
        }
    }

    /// The start was not over: nobody was told that the domain runs.
    pub(crate) fn is_starting(&self) -> bool {
        self.state == StateRecord::Paused(Paused::StartingUp)
    }

    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        let aside = dir.join(format!("{FILE}.new"));
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(&text)?;
        fs::rename(&aside, dir.join(FILE))
    }

    /// None where there is no status in `dir`.
    pub(crate) fn read(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(FILE);
        let size = match fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(err),
        };
        if size > MAX_SIZE {
            return Err(invalid("too large"));
        }
        Self::from_bytes(&fs::read(&path)?).map(Some)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        let status: Self = serde_json::from_slice(bytes)?;
        if status.version != VERSION {
            return Err(invalid("of another version"));
        }
        Ok(status)
    }

    /// Every directory under `run` that holds a domain's status.
    pub(crate) fn directories(run: &Path) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(run)? {
            let entry = entry?;
            let is_domain =
                entry.file_name().to_str().is_some_and(|name| Uuid::parse_str(name).is_ok());
            if is_domain && entry.file_type()?.is_dir() {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the status file is {what}"))
}

/// [`State`] as written. The words are part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "reason")]
pub(crate) enum StateRecord {
    Running(Running),
    Paused(Paused),
    Shutdown,
    ShutOff,
    Crashed,
    PmSuspended,
}

macro_rules! record {
    ($(#[$doc:meta])* $record:ident of $reason:ident: $($variant:ident),* $(,)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub(crate) enum $record { $($variant),* }

        impl From<$reason> for $record {
            fn from(reason: $reason) -> Self {
                match reason { $($reason::$variant => $record::$variant),* }
            }
        }

        impl From<$record> for $reason {
            fn from(reason: $record) -> Self {
                match reason { $($record::$variant => $reason::$variant),* }
            }
        }
    };
}

record!(Running of RunningReason:
    Unknown, Booted, Migrated, Restored, FromSnapshot, Unpaused, SaveCanceled, Wakeup, Crashed);
record!(Paused of PausedReason:
    Unknown, User, Migration, Save, Dump, IoError, Watchdog, FromSnapshot, ShuttingDown, Snapshot,
    Crashed, StartingUp);

impl From<State> for StateRecord {
    fn from(state: State) -> Self {
        match state {
            State::Running(reason) => StateRecord::Running(reason.into()),
            State::Paused(reason) => StateRecord::Paused(reason.into()),
            State::Shutdown => StateRecord::Shutdown,
            State::ShutOff(_) => StateRecord::ShutOff,
            State::Crashed => StateRecord::Crashed,
            State::PmSuspended => StateRecord::PmSuspended,
            // No instance is; what its QEMU says counts when it is found again.
            State::Unknown => StateRecord::Paused(Paused::Unknown),
        }
    }
}

impl From<StateRecord> for State {
    fn from(state: StateRecord) -> Self {
        match state {
            StateRecord::Running(reason) => State::Running(reason.into()),
            StateRecord::Paused(reason) => State::Paused(reason.into()),
            StateRecord::Shutdown => State::Shutdown,
            StateRecord::ShutOff => State::ShutOff(ShutOffReason::Unknown),
            StateRecord::Crashed => State::Crashed,
            StateRecord::PmSuspended => State::PmSuspended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The guests of a host must outlive an upgrade: what a released version wrote is read by all
    /// later ones. This file is never edited.
    #[test]
    fn a_status_file_of_version_1_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/domain/status/v1.json");
        fs::copy(fixture, dir.path().join(FILE)).unwrap();
        let status = Status::read(dir.path()).unwrap().unwrap();
        assert_eq!((status.name.as_str(), status.id, status.next_node), ("t", 3, 3));
        assert_eq!(status.process, Some(ProcessRecord { pid: 4711, started: 123_456 }));
        assert_eq!(State::from(status.state), State::Paused(PausedReason::User));
        assert_eq!(status.chains["vda"].layers[1].image, Path::new("/i/base"));
        assert!(status.borrowed.owner_before(Path::new("/i/top")).is_some());
    }
}
