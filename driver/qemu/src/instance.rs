//! One running QEMU as the daemon knows it: process, monitor, live definition, chains, state.
//!
//! Invariants: what must outlive the daemon is in the status file before the call that changed it
//! returns; no lock is held over an await or while an event is told; numbers of block nodes are
//! never given twice in the life of one QEMU.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use uuid::Uuid;
use virtsnap_block::throttle::Limits;
use virtsnap_engine::domain::{Active, PausedReason, RunningReason, ShutOffReason, State};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::Target;
use virtsnap_engine::inspect::Pauses;
use virtsnap_xml::element::Element;

use crate::blocks::{Chain, Layer};
use crate::client_jobs::{ClientJob, Merged};
use crate::confine::Borrowed;
use crate::hotplug::Unplugged;
use crate::process::Process;
use crate::qmp::{Qmp, QmpError};
use crate::status::Status;

const FINALIZE_POLL: Duration = Duration::from_millis(2);
const FINALIZE_ATTEMPTS: u32 = 1000;

#[derive(Debug)]
pub struct Instance {
    pub uuid: Uuid,
    pub name: String,
    pub id: i32,
    pub qmp: Arc<Qmp>,
    pub(crate) process: Process,
    /// `RUN/UUID`: the status file, and `qemu/`, which belongs to QEMU's user.
    pub(crate) dir: PathBuf,
    /// Helper processes that end with QEMU (swtpm).
    pub(crate) helpers: Vec<Process>,
    /// True once the process is gone and all that belonged to it is put away.
    pub(crate) ended: watch::Sender<bool>,
    inner: Mutex<Inner>,
}

/// What changes in the life of an instance.
#[derive(Debug, Clone)]
pub(crate) struct Inner {
    pub(crate) state: State,
    pub(crate) live: Element,
    pub(crate) chains: BTreeMap<Target, Chain>,
    /// Block jobs of the client's, by disk.
    pub(crate) jobs: BTreeMap<Target, ClientJob>,
    /// Files that clients have merged away in this life of the guest, and left.
    pub(crate) merged: Vec<Merged>,
    pub(crate) next_node: u32,
    /// Images that QEMU's user was given, with their owners before.
    pub(crate) borrowed: Borrowed,
    /// Why the next STOP event comes.
    pub(crate) pausing: Option<PausedReason>,
    /// Why the next RESUME event comes.
    pub(crate) resuming: Option<RunningReason>,
    /// The next SHUTDOWN event is the first half of a reboot.
    pub(crate) rebooting: bool,
    /// Why the process ends, once that is known.
    pub(crate) stopping: Option<ShutOffReason>,
    pub(crate) agent_connected: bool,
    /// The agent was told to freeze, and has not said since that all is thawed.
    pub(crate) owes_thaw: bool,
    /// Disks to which the guest's writes are held back, with the limits they had.
    pub(crate) throttled: BTreeMap<Target, Limits>,
    /// Somebody is about it.
    pub(crate) is_thawing: bool,
    /// `adjustment=` of a variable clock when QEMU started: what it counts from.
    pub(crate) clock_base: i64,
    /// Number and thread of each vCPU, as QEMU said when we connected.
    pub(crate) vcpus: Vec<(u32, i32)>,
    /// Devices that QEMU has let go and that are still put away.
    pub(crate) unplugged: Vec<Unplugged>,
    /// A start that failed ends without an event.
    pub(crate) is_silent: bool,
    /// The guest takes one step that nobody is told of.
    pub(crate) is_stepping: bool,
    pub(crate) standing: Standing,
}

/// How long the guest has stood still after it ran, by what QEMU's events tell of the time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Standing {
    since: Option<Duration>,
    over: Duration,
}

impl Standing {
    pub(crate) fn begin(&mut self, at: Duration) {
        self.since = Some(at);
    }

    /// A guest that was never seen to stop, because it was started so, has not been counted.
    pub(crate) fn end(&mut self, at: Duration) {
        let lasted = self.since.take().map(|since| at.saturating_sub(since));
        self.over = self.over.saturating_add(lasted.unwrap_or_default());
    }

    pub(crate) fn pauses(self) -> Pauses {
        Pauses { over: self.over, is_on: self.since.is_some() }
    }
}

impl Inner {
    pub(crate) fn new(live: Element, state: State, chains: BTreeMap<Target, Chain>) -> Self {
        let numbers = chains.values().flat_map(|chain| &chain.layers).map(|layer| layer.number);
        let next_node = numbers.max().map_or(1, |highest| highest.saturating_add(1));
        Self {
            state,
            live,
            chains,
            jobs: BTreeMap::new(),
            merged: Vec::new(),
            next_node,
            borrowed: Borrowed::default(),
            pausing: None,
            resuming: None,
            rebooting: false,
            stopping: None,
            agent_connected: false,
            owes_thaw: false,
            throttled: BTreeMap::new(),
            is_thawing: false,
            clock_base: 0,
            vcpus: Vec::new(),
            unplugged: Vec::new(),
            is_silent: false,
            is_stepping: false,
            standing: Standing::default(),
        }
    }
}

impl Instance {
    pub(crate) fn new(
        identity: (Uuid, String, i32),
        process: Process,
        qmp: Arc<Qmp>,
        dir: PathBuf,
        helpers: Vec<Process>,
        inner: Inner,
    ) -> Self {
        let (uuid, name, id) = identity;
        let ended = watch::Sender::new(false);
        Self { uuid, name, id, qmp, process, dir, helpers, ended, inner: Mutex::new(inner) }
    }

    pub fn active(&self) -> Active {
        let inner = self.lock();
        Active {
            uuid: self.uuid,
            name: self.name.clone(),
            id: self.id,
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

    pub fn chains(&self) -> BTreeMap<Target, Chain> {
        self.lock().chains.clone()
    }

    pub fn chain(&self, target: &str) -> Option<Chain> {
        self.lock().chains.get(target).cloned()
    }

    /// The chain that has this image as one of its layers, and that layer.
    pub fn layer_of(&self, image: &Path) -> Option<(Target, Layer)> {
        self.lock().chains.values().find_map(|chain| {
            let layer = chain.layers.iter().find(|layer| layer.is(image))?;
            Some((chain.target.clone(), layer.clone()))
        })
    }

    /// Changes chains and live definition together, durably.
    pub fn update<T>(
        &self,
        change: impl FnOnce(&mut Element, &mut BTreeMap<Target, Chain>) -> T,
    ) -> Result<T> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let outcome = change(&mut inner.live, &mut inner.chains);
        self.save_locked(inner)?;
        Ok(outcome)
    }

    /// A number for a new layer's nodes. Durable with the next change of the chains.
    pub fn next_node_number(&self) -> u32 {
        let mut inner = self.lock();
        let number = inner.next_node;
        inner.next_node = number.saturating_add(1);
        number
    }

    /// Where QEMU may make sockets and files.
    pub fn qemu_dir(&self) -> PathBuf {
        self.dir.join("qemu")
    }

    /// Number and thread of each vCPU.
    pub(crate) fn vcpu_threads(&self) -> Vec<(u32, i32)> {
        self.lock().vcpus.clone()
    }

    pub fn agent_connected(&self) -> bool {
        self.lock().agent_connected
    }

    pub(crate) fn owes_thaw(&self) -> bool {
        self.lock().owes_thaw
    }

    /// Durable before it returns: another daemon must know as well.
    pub(crate) fn set_owes_thaw(&self, owes: bool) -> Result<()> {
        let mut inner = self.lock();
        inner.owes_thaw = owes;
        self.save_locked(&inner)
    }

    /// Whether nobody else is thawing.
    pub(crate) fn begin_thaw(&self) -> bool {
        !std::mem::replace(&mut self.lock().is_thawing, true)
    }

    pub(crate) fn end_thaw(&self) {
        self.lock().is_thawing = false;
    }

    /// Stops the vCPUs for that reason; the event is told before this returns.
    pub async fn pause(&self, reason: PausedReason) -> Result<()> {
        self.lock().pausing = Some(reason);
        let outcome = self.qmp.execute("stop", Value::Null).await;
        self.lock().pausing = None;
        outcome?;
        Ok(())
    }

    /// Lets the vCPUs run for that reason; the event is told before this returns.
    pub async fn resume(&self, reason: RunningReason) -> Result<()> {
        self.lock().resuming = Some(reason);
        let mut outcome = self.qmp.execute("cont", Value::Null).await;
        // Right after its end a migration is not over for QEMU's own bookkeeping.
        for _ in 0..FINALIZE_ATTEMPTS {
            match &outcome {
                Err(QmpError::Refused { desc, .. }) if desc.contains("not finalized yet") => {}
                _ => break,
            }
            tokio::time::sleep(FINALIZE_POLL).await;
            outcome = self.qmp.execute("cont", Value::Null).await;
        }
        self.lock().resuming = None;
        outcome?;
        Ok(())
    }

    /// Waits until the process is gone and put away.
    pub async fn wait_ended(&self) {
        let mut ended = self.ended.subscribe();
        let _ = ended.wait_for(|&ended| ended).await;
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn save(&self) -> Result<()> {
        self.save_locked(&self.lock())
    }

    pub(crate) fn save_locked(&self, inner: &Inner) -> Result<()> {
        Status::of(self, inner).write(&self.dir).map_err(|err| {
            let message = format!("cannot write the status of domain '{}'", self.name);
            Error::new(Condition::Internal, message).caused_by(err)
        })
    }
}
