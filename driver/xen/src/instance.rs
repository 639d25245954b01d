//! One running domain as the daemon knows it: its number, its live definition, its state.
//!
//! Invariants: what must outlive the daemon is in the status file before the call that changed it
//! returns; no lock is held over an await or while an event is told, but `Instance::acting`.
//!
//! The status file is `RUN/UUID/status.json`, written aside and renamed. It needs no fsync: a host
//! that loses it by a crash loses its domains too.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use virtsnap_block::qmp::Qmp;
use virtsnap_engine::domain::{Active, PausedReason, RunningReason, ShutOffReason, State};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use crate::config::to_libxl;
use crate::context::Context;
use crate::host::Host;
use crate::memory::Memory;

/// Where the device model of a domain has the monitor that libxl does not use itself.
const MONITORS: &str = "/var/run/xen";

#[derive(Debug)]
pub struct Instance {
    pub uuid: Uuid,
    pub name: String,
    /// Xen's number. A reboot of the guest makes another instance, with another number.
    pub id: u32,
    /// Whose it is.
    pub owner: Owner,
    pub(crate) dir: PathBuf,
    /// Held by whoever changes which files the disks are, saves memory, or ends the domain.
    pub(crate) acting: Arc<tokio::sync::Mutex<()>>,
    inner: Mutex<Inner>,
    memory: Mutex<Memory>,
    monitor: tokio::sync::Mutex<Weak<Qmp>>,
}

/// Who acts on the guest's shutdown and reboot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    Us,
    /// xl, or another program that uses libxl, has started it. `untold`: parts of its
    /// configuration that its definition does not have.
    Another {
        untold: Vec<String>,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Inner {
    pub(crate) state: State,
    pub(crate) live: Element,
    /// Why it ends, once that is known.
    pub(crate) stopping: Option<ShutOffReason>,
    /// A start that failed ends without an event.
    pub(crate) is_silent: bool,
    /// Its guest has stopped to be started again: until that is over, its end is no end.
    pub(crate) is_rebooting: bool,
    /// The file of a save that the domain is to end with.
    pub(crate) saving: Option<PathBuf>,
    /// What the guest was asked for last, and took note of.
    pub(crate) asked: Option<Asked>,
}

/// A guest that goes down takes no part in a save of its memory: Linux hears nothing more of the
/// toolstack then. One that does not go down after all is not refused for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) what: &'static str,
    pub(crate) at: Instant,
}

impl Asked {
    /// Longer than services usually have to end (systemd's own limit is 90 s for each).
    const PATIENCE: Duration = Duration::from_secs(120);

    /// Why its memory cannot be saved at that time.
    fn refusal(self, now: Instant) -> Option<String> {
        let left = Self::PATIENCE.checked_sub(now.saturating_duration_since(self.at))?;
        (!left.is_zero()).then(|| {
            format!(
                "the guest was asked to {} and takes no part in a save while it does; wait until \
                 it has, or, if it does not, for {} s",
                self.what,
                left.as_secs() + 1
            )
        })
    }
}

impl Instance {
    pub(crate) fn new(
        (uuid, name, id): (Uuid, String, u32),
        owner: Owner,
        run_dir: &Path,
        state: State,
        live: Element,
    ) -> Self {
        Self {
            uuid,
            name,
            id,
            owner,
            dir: directory(run_dir, uuid),
            acting: Arc::default(),
            inner: Mutex::new(Inner {
                state,
                live,
                stopping: None,
                is_silent: false,
                is_rebooting: false,
                saving: None,
                asked: None,
            }),
            memory: Mutex::default(),
            monitor: tokio::sync::Mutex::default(),
        }
    }

    pub fn active(&self) -> Active {
        let inner = self.lock();
        Active {
            uuid: self.uuid,
            name: self.name.clone(),
            id: i32::try_from(self.id).unwrap_or(i32::MAX),
            state: inner.state,
            live: inner.live.clone(),
        }
    }

    pub fn state(&self) -> State {
        self.lock().state
    }

    pub fn live(&self) -> Element {
        self.lock().live.clone()
    }

    /// Why its guest would take no part in a save of its memory just now, as far as we know.
    pub(crate) fn on_its_way_down(&self) -> Option<String> {
        self.lock().asked?.refusal(Instant::now())
    }

    pub fn is_ours(&self) -> bool {
        self.owner == Owner::Us
    }

    /// Durable when it returns. Of one that has ended nothing is written down any more.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> Result<T> {
        let mut inner = self.lock();
        if let State::ShutOff(_) = inner.state {
            return Err(Error::new(Condition::OperationInvalid, "domain is not running"));
        }
        let outcome = change(&mut inner);
        self.save_locked(&inner)?;
        Ok(outcome)
    }

    /// The disk that has this image as its active layer.
    pub fn disk_on(&self, image: &Path) -> Option<String> {
        let live = self.live();
        let mut disks = domain::disks(&live);
        let found = disks.find(|disk| disk.path().is_some_and(|path| Path::new(path) == image));
        found.map(|disk| disk.target().to_owned())
    }

    /// The device model's monitor; none where no device model runs.
    pub async fn monitor(&self) -> Result<Option<Arc<Qmp>>> {
        let path = Path::new(MONITORS).join(format!("qmp-libxenstat-{}", self.id));
        let mut last = self.monitor.lock().await;
        if let Some(qmp) = last.upgrade().filter(|qmp| !qmp.is_closed()) {
            return Ok(Some(qmp));
        }
        if !path.exists() {
            return Ok(None);
        }
        let connected = Qmp::connect(&path).await.map_err(|err| {
            let what = format!("cannot connect to the device model of domain '{}'", self.name);
            Error::new(Condition::OperationFailed, what).caused_by(err)
        })?;
        let qmp = Arc::new(connected);
        *last = Arc::downgrade(&qmp);
        Ok(Some(qmp))
    }

    /// The same, or the refusal of what a device model is needed for.
    pub async fn device_model(&self) -> Result<Arc<Qmp>> {
        self.monitor().await?.ok_or_else(|| {
            let what = format!(
                "no device model serves the disks of domain '{}': shut it down first",
                self.name
            );
            Error::new(Condition::OperationUnsupported, what)
        })
    }

    /// Says to libxl, and so to xl, which files and formats the disks are from now on. It is what
    /// a domain is started from after a reboot, and what a save of xl's takes with it.
    pub(crate) async fn store_disks(&self, context: &Context, host: &Host) -> Result<()> {
        let wanted = to_libxl(&self.live(), host)?;
        let Some(mut stored) = context.stored_configuration(self.id).await? else {
            return Ok(());
        };
        let (Some(stored_disks), Some(disks)) =
            (stored["disks"].as_array_mut(), wanted["disks"].as_array())
        else {
            return Ok(());
        };
        for disk in disks {
            let same = stored_disks.iter_mut().find(|stored| stored["vdev"] == disk["vdev"]);
            let Some(stored) = same else { continue };
            for part in ["pdev_path", "format"] {
                stored[part] = disk[part].clone();
            }
        }
        context.store_configuration(self.id, &stored).await
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn save_locked(&self, inner: &Inner) -> Result<()> {
        if !self.is_ours() {
            return Ok(());
        }
        let status = Status {
            version: VERSION,
            uuid: self.uuid,
            name: self.name.clone(),
            id: Some(self.id),
            state: inner.state.into(),
            live: inner.live.to_string(),
            saving: inner.saving.clone(),
        };
        status.write(&self.dir)
    }
}

pub(crate) fn directory(run_dir: &Path, uuid: Uuid) -> PathBuf {
    run_dir.join(uuid.to_string())
}

const FILE: &str = "status.json";
const VERSION: u32 = 1;
/// A larger file was not written by us.
const MAX_SIZE: u64 = 16 << 20;

/// What a daemon needs to know its domain again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    version: u32,
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    /// None while libxl makes it: nobody was told of it yet.
    pub(crate) id: Option<u32>,
    pub(crate) state: Recorded,
    /// `<domain>`, the live definition.
    pub(crate) live: String,
    /// The file of a save that the domain is to end with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) saving: Option<PathBuf>,
}

/// What libxl cannot tell of a state. The words are part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Recorded {
    Running,
    PausedByUser,
    /// By a step of a snapshot, which may have ended half way.
    PausedForSnapshot,
    PausedForSave,
    PausedFromSnapshot,
    /// A start that is not over.
    Starting,
}

impl From<State> for Recorded {
    fn from(state: State) -> Self {
        match state {
            State::Paused(PausedReason::StartingUp) => Self::Starting,
            State::Paused(PausedReason::Snapshot) => Self::PausedForSnapshot,
            State::Paused(PausedReason::Save) => Self::PausedForSave,
            State::Paused(PausedReason::FromSnapshot) => Self::PausedFromSnapshot,
            State::Paused(_) => Self::PausedByUser,
            _ => Self::Running,
        }
    }
}

impl Recorded {
    /// Of a domain of which libxl tells whether it stands.
    pub(crate) fn state(self, is_paused: bool) -> State {
        if !is_paused {
            return State::Running(RunningReason::Unknown);
        }
        State::Paused(match self {
            Self::Running | Self::Starting => PausedReason::Unknown,
            Self::PausedByUser => PausedReason::User,
            Self::PausedForSnapshot => PausedReason::Snapshot,
            Self::PausedForSave => PausedReason::Save,
            Self::PausedFromSnapshot => PausedReason::FromSnapshot,
        })
    }
}

impl Status {
    pub(crate) fn starting(uuid: Uuid, name: &str, live: &Element) -> Self {
        Self {
            version: VERSION,
            uuid,
            name: name.to_owned(),
            id: None,
            state: Recorded::Starting,
            live: live.to_string(),
            saving: None,
        }
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let write = || -> io::Result<()> {
            fs::create_dir_all(dir)?;
            let aside = dir.join(format!("{FILE}.new"));
            let mut options = fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(&aside)?.write_all(&serde_json::to_vec(self)?)?;
            fs::rename(&aside, dir.join(FILE))
        };
        write().map_err(|err| {
            let what = format!("cannot write the status of domain '{}'", self.name);
            Error::new(Condition::Internal, what).caused_by(err)
        })
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
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too large"));
        }
        Self::from_bytes(&fs::read(&path)?).map(Some)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        let status: Self = serde_json::from_slice(bytes)?;
        if status.version != VERSION {
            let what = "it is of another version";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(status)
    }

    /// Of every domain that has one; what cannot be read is told and left out.
    pub(crate) fn all(run_dir: &Path) -> Vec<Self> {
        let entries = fs::read_dir(run_dir).into_iter().flatten().flatten();
        let mut found = Vec::new();
        for entry in entries {
            let named = entry.file_name();
            if named.to_str().is_none_or(|name| Uuid::parse_str(name).is_err()) {
                continue;
            }
            match Self::read(&entry.path()) {
                Ok(status) => found.extend(status),
                Err(err) => {
                    tracing::error!(path = %entry.path().display(), %err, "a status file");
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_was_asked_to_stop_is_refused_a_save_for_a_while() {
        let at = Instant::now();
        let asked = Asked { what: "reboot", at };
        let refusal = |seconds| asked.refusal(at + Duration::from_secs(seconds));
        let early = refusal(20).unwrap();
        assert!(early.contains("asked to reboot") && early.contains("101 s"), "{early}");
        assert_eq!(refusal(120), None);
    }

    /// Guests outlive an upgrade: what a released version wrote is read by all later ones.
    #[test]
    fn a_status_file_of_version_1_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let uuid = Uuid::from_u128(7);
        let place = directory(dir.path(), uuid);
        fs::create_dir(&place).unwrap();
        let text = format!(
            r#"{{"version":1,"uuid":"{uuid}","name":"t","id":3,"state":"paused-for-snapshot","live":"<domain/>"}}"#
        );
        fs::write(place.join(FILE), text).unwrap();
        fs::create_dir(dir.path().join("something")).unwrap();
        let all = Status::all(dir.path());
        assert_eq!((all.len(), all[0].id, all[0].uuid), (1, Some(3), uuid));
        assert_eq!(all[0].state.state(true), State::Paused(PausedReason::Snapshot));
        assert_eq!(all[0].state.state(false), State::Running(RunningReason::Unknown));
        all[0].write(&place).unwrap();
        assert_eq!(Status::all(dir.path()), all);
        fs::write(place.join(FILE), "{").unwrap();
        assert_eq!(Status::all(dir.path()), []);
    }
}
