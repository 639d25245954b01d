//! After a stop, a crash or an upgrade of the daemon: finding the QEMUs that went on without it.
//!
//! A status file names a process by pid and start time; of one that cannot be read [`crate::stray`]
//! tells. One that is gone, or that never got so
//! far, is put away as if it had ended now; so is one whose vCPUs wait for a start that the old daemon
//! did not bring to its end. One that runs is connected to again; what QEMU says of its state
//! overrides what was recorded, and so does its block graph.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio::time::{sleep, timeout};
use virtsnap_engine::domain::{Active, Event, ShutOffReason, State};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::element::Element;

use crate::agent;
use crate::confine::Owner;
use crate::events::{self, Gate};
use crate::hypervisor::{Qemu, Shared};
use crate::instance::{Inner, Instance};
use crate::life::end_helper;
use crate::process::Process;
use crate::qmp::{Qmp, QmpError};
use crate::status::{ProcessRecord, Status};
use crate::{setup, steps, stray, transient};

const MONITOR_DEADLINE: Duration = Duration::from_secs(30);
/// QEMU's monitor is silent while a job saves or loads memory. To end it then would end a guest
/// that is well.
const BUSY_DEADLINE: Duration = Duration::from_secs(900);
const MONITOR_POLL: Duration = Duration::from_millis(50);
const KILL_DEADLINE: Duration = Duration::from_secs(30);

impl Qemu {
    /// The domains that run; the ends of those that do not are told as events.
    pub(crate) async fn reconnect_all(&self) -> Result<Vec<Active>> {
        let run_dir = &self.shared.config.run_dir;
        let directories = match Status::directories(run_dir) {
            Ok(directories) => directories,
            // The first start since the host was booted.
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(err) => {
                let message = format!("cannot look for running domains in '{}'", run_dir.display());
                return Err(Error::new(Condition::Internal, message).caused_by(err));
            }
        };
        let (mut found, mut running) = (Vec::new(), Vec::new());
        for dir in directories {
            let why = match Status::read(&dir) {
                Ok(Some(status)) => {
                    found.push((status, dir));
                    continue;
                }
                Ok(None) => "it is not there".to_owned(),
                Err(err) => err.to_string(),
            };
            running.extend(self.shared.find_stray(&dir, &why));
        }
        // Those that run come first: what the others hand back may be in use by one of them.
        found.sort_by_key(|(status, _)| {
            status.process.as_ref().and_then(ProcessRecord::find).is_none()
        });
        for (status, dir) in found {
            running.extend(self.shared.find_again(status, &dir).await);
        }
        self.shared.note_lost();
        self.settle_saves().await;
        Ok(running)
    }
}

impl Shared {
    async fn find_again(self: &Arc<Self>, status: Status, dir: &Path) -> Option<Active> {
        if self.instances().contains_key(&status.uuid) {
            return None;
        }
        let (uuid, name) = (status.uuid, status.name.clone());
        let process = status.process.as_ref().and_then(ProcessRecord::find);
        let Some(process) = process else {
            tracing::info!(domain = name, "its QEMU is gone");
            self.put_away_recorded(status, dir).await;
            return None;
        };
        let gate: Gate = Arc::new(OnceLock::new());
        let is_busy = steps::may_be_in_vmstate_job(&self.config.state_dir, uuid);
        let patience = if is_busy { BUSY_DEADLINE } else { MONITOR_DEADLINE };
        let Some(qmp) = connect(&process, dir, &gate, patience).await else {
            tracing::error!(domain = name, "its QEMU does not answer: ending it");
            kill(&process).await;
            self.put_away_recorded(status, dir).await;
            return None;
        };
        if status.is_starting() && !runs(&qmp).await {
            tracing::warn!(domain = name, "its start was broken off: ending it");
            kill(&process).await;
            self.put_away_recorded(status, dir).await;
            return None;
        }
        match self.take_up(status, dir, process, qmp, &gate).await {
            Ok(instance) => Some(instance.active()),
            Err(err) => {
                // The guest runs on; only we cannot see it well. The next start may.
                tracing::error!(domain = name, %uuid, "cannot take it up: {}", err.chain());
                // A match would hold the lock all through.
                let taken_up = self.instances().get(&uuid).map(|instance| instance.active());
                taken_up.or_else(|| self.find_stray(dir, &err.chain()))
            }
        }
    }

    async fn take_up(
        self: &Arc<Self>,
        status: Status,
        dir: &Path,
        process: Process,
        qmp: Qmp,
        gate: &Gate,
    ) -> Result<Arc<Instance>> {
        let live = Element::parse(&status.live).map_err(|err| {
            let message = format!("the recorded definition of domain '{}'", status.name);
            Error::new(Condition::Internal, message).caused_by(err)
        })?;
        let inner = Inner {
            jobs: status.jobs,
            merged: status.merged,
            next_node: status.next_node,
            borrowed: status.borrowed,
            rebooting: status.rebooting,
            owes_thaw: status.owes_thaw,
            throttled: status.throttled.clone(),
            clock_base: status.clock_base,
            ..Inner::new(live, State::from(status.state), status.chains)
        };
        let helpers = status.helpers.iter().filter_map(ProcessRecord::find).collect();
        let identity = (status.uuid, status.name, status.id);
        let instance =
            Instance::new(identity, process, Arc::new(qmp), dir.to_owned(), helpers, inner);
        let instance = Arc::new(instance);
        let _ = gate.set((Arc::downgrade(self), Arc::downgrade(&instance)));
        self.ports.hold_all(&instance.live());
        self.instances().insert(instance.uuid, Arc::clone(&instance));
        self.watch(&instance);
        self.catch_up(&instance).await?;
        if instance.owes_thaw() {
            let instance = Arc::clone(&instance);
            tokio::spawn(async move { agent::thaw(&instance).await });
        }
        tracing::info!(domain = instance.name, id = instance.id, "found again");
        Ok(instance)
    }

    /// What is noted as lent, and no guest that was found has.
    fn note_lost(&self) {
        let instances: Vec<_> = self.instances().values().cloned().collect();
        let is_lost = |(path, _): &(PathBuf, Owner)| {
            !instances.iter().any(|instance| instance.lock().borrowed.has(path))
        };
        let lost: Vec<_> = self.ledger.all().into_iter().filter(is_lost).collect();
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = lost;
        self.hand_back_lost();
    }

    /// What happened while nobody listened.
    async fn catch_up(&self, instance: &Arc<Instance>) -> Result<()> {
        let status = instance.qmp.execute("query-status", Value::Null).await?;
        let chardevs = instance.qmp.execute("query-chardev", Value::Null).await?;
        setup::learn_vcpus(instance).await?;
        let is_down = {
            let mut inner = instance.lock();
            inner.state = setup::reconcile(inner.state, &status);
            inner.agent_connected = setup::agent_is_open(&mut inner.live, &chardevs);
            instance.save_locked(&inner)?;
            inner.state == State::Shutdown
        };
        if is_down {
            self.tell(instance, Event::Shutdown(virtsnap_engine::domain::ShutdownBy::Unknown));
            instance.lock().stopping = Some(ShutOffReason::Shutdown);
            instance.process.signal(Signal::TERM);
        }
        Ok(())
    }

    /// Puts away what a QEMU left that ended while nobody watched.
    async fn put_away_recorded(&self, mut status: Status, dir: &Path) {
        if status.process.is_none() {
            end_unrecorded(dir).await;
        }
        for helper in status.helpers.iter().filter_map(ProcessRecord::find) {
            end_helper(&helper).await;
        }
        let uuid = status.uuid;
        let kept = |path: &Path, owner| self.is_used_by_another(uuid, path, owner);
        status.borrowed.hand_back(&self.ledger, kept);
        transient::remove(&status.name, status.chains.values());
        let was_up = status.process.is_some() && !status.is_starting();
        if let Err(err) = fs::remove_dir_all(dir) {
            tracing::warn!(domain = status.name, %err, "cannot remove the run directory");
        }
        if was_up {
            let event = Event::Stopped(ShutOffReason::Daemon);
            self.events.emit(uuid, &status.name, -1, event);
        }
    }
}

async fn kill(process: &Process) {
    process.signal(Signal::KILL);
    let _ = timeout(KILL_DEADLINE, process.gone()).await;
    process.reap();
}

async fn runs(qmp: &Qmp) -> bool {
    let status = qmp.execute("query-status", Value::Null).await;
    status.is_ok_and(|status| setup::is_running(&status))
}

async fn connect(process: &Process, dir: &Path, gate: &Gate, patience: Duration) -> Option<Qmp> {
    let monitor = dir.join("qemu").join("monitor.sock");
    let attempts = async {
        loop {
            match Qmp::connect_within(&monitor, events::listener(Arc::clone(gate)), patience).await
            {
                Ok(qmp) => return Some(qmp),
                // The old daemon's connection may not have been noticed as closed yet.
                Err(QmpError::Closed) => sleep(MONITOR_POLL).await,
                Err(err) => {
                    tracing::warn!(%err, "the monitor does not answer well");
                    return None;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = process.gone() => None,
        outcome = timeout(patience, attempts) => outcome.ok().flatten(),
    }
}

/// The daemon died between starting a program and recording it; no vCPU ran yet. Left alone, it
/// would make its sockets where the next start looks for those of its own.
///
/// None is missed: one that was forked and is not yet executed holds the store's lock, and without
/// that no daemon starts.
async fn end_unrecorded(dir: &Path) {
    for program in stray::programs_of(dir) {
        tracing::warn!(pid = program.pid(), "its start was broken off unnoted: ending it");
        kill(&program).await;
    }
}
