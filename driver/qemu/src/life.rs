//! The end of a running domain, and what is asked of it while it runs.
//!
//! Every QEMU has one task that waits for its process to end, however it ends, and puts away what
//! belonged to it. So a domain that is destroyed, that shuts down and that is killed from outside
//! all take the same way out; the reason is what was noted before.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio::time::timeout;
use uuid::Uuid;
use virtsnap_engine::domain::{Event, PausedReason, RunningReason, ShutOffReason, State};
use virtsnap_engine::error::{Condition, Error, Result};

use crate::confine::Owner;
use crate::hypervisor::{Qemu, Shared};
use crate::instance::Instance;
use crate::process::Process;
use crate::transient;

/// How long QEMU may take to end by itself once it is told to.
pub(crate) const TERM_DEADLINE: Duration = Duration::from_secs(15);
/// How long the kernel may take to end a killed process.
pub(crate) const KILL_DEADLINE: Duration = Duration::from_secs(30);
/// How long the monitor may have something left to tell after its process is gone.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
const HELPER_DEADLINE: Duration = Duration::from_secs(3);

impl Qemu {
    pub(crate) async fn suspend_domain(&self, domain: Uuid) -> Result<()> {
        let instance = self.running(domain)?;
        match instance.state() {
            State::Paused(_) => Ok(()),
            State::PmSuspended => {
                refuse("the domain is suspended by its own power management; wake it up first")
            }
            _ => instance.pause(PausedReason::User).await,
        }
    }

    pub(crate) async fn resume_domain(&self, domain: Uuid) -> Result<()> {
        let instance = self.running(domain)?;
        match instance.state() {
            State::Running(_) => Ok(()),
            State::PmSuspended => {
                refuse("the domain is suspended by its own power management; wake it up first")
            }
            State::Shutdown => refuse("the domain is shutting down"),
            State::Crashed => refuse("the guest has crashed; reset or destroy the domain"),
            _ => instance.resume(RunningReason::Unpaused).await,
        }
    }

    pub(crate) async fn shutdown_domain(&self, domain: Uuid) -> Result<()> {
        self.power_down(domain, false).await
    }

    /// The guest shuts down, the process waits, is reset and runs again.
    pub(crate) async fn reboot_domain(&self, domain: Uuid) -> Result<()> {
        self.power_down(domain, true).await
    }

    async fn power_down(&self, domain: Uuid, reboots: bool) -> Result<()> {
        let instance = self.running(domain)?;
        if !matches!(instance.state(), State::Running(_)) {
            return refuse("domain is not running: a guest that stands still cannot shut down");
        }
        {
            let mut inner = instance.lock();
            inner.rebooting = reboots;
            instance.save_locked(&inner)?;
        }
        instance.qmp.execute("system_powerdown", Value::Null).await?;
        Ok(())
    }

    pub(crate) async fn reset_domain(&self, domain: Uuid) -> Result<()> {
        let instance = self.running(domain)?;
        instance.qmp.execute("system_reset", Value::Null).await?;
        let mut inner = instance.lock();
        inner.rebooting = false;
        if inner.state == State::Crashed {
            inner.state = State::Paused(PausedReason::Unknown);
        }
        instance.save_locked(&inner)
    }

    pub(crate) async fn wake_domain(&self, domain: Uuid) -> Result<()> {
        let instance = self.running(domain)?;
        if instance.state() != State::PmSuspended {
            return refuse("the domain is not suspended by its own power management");
        }
        instance.qmp.execute("system_wakeup", Value::Null).await?;
        Ok(())
    }

    /// Ends the domain; returns when its process is gone and put away.
    pub(crate) async fn destroy_domain(&self, domain: Uuid, reason: ShutOffReason) -> Result<()> {
        match self.instance(domain) {
            Some(instance) => self.shared.end(&instance, reason).await,
            None => match self.stray(domain) {
                Some(stray) => self.destroy_stray(&stray, reason).await,
                None => Ok(()),
            },
        }
    }
}

impl Shared {
    /// Ends a QEMU, gently first. Its own task puts it away.
    pub(crate) async fn end(&self, instance: &Instance, reason: ShutOffReason) -> Result<()> {
        instance.lock().stopping = Some(reason);
        instance.process.signal(Signal::TERM);
        if timeout(TERM_DEADLINE, instance.wait_ended()).await.is_ok() {
            return Ok(());
        }
        tracing::warn!(domain = instance.name, "QEMU does not end by itself: killing it");
        instance.process.signal(Signal::KILL);
        timeout(KILL_DEADLINE, instance.wait_ended()).await.map_err(|_| {
            let pid = instance.process.pid();
            let message = format!(
                "cannot end domain '{}': process {pid} does not die, it may wait for a device",
                instance.name
            );
            Error::new(Condition::ResourceBusy, message)
        })
    }

    /// Waits for the process to end, for as long as the daemon lives.
    pub(crate) fn watch(self: &Arc<Self>, instance: &Arc<Instance>) {
        let (shared, instance) = (Arc::clone(self), Arc::clone(instance));
        tokio::spawn(async move {
            instance.process.gone().await;
            shared.put_away(&instance).await;
        });
    }

    async fn put_away(&self, instance: &Instance) {
        if timeout(DRAIN_DEADLINE, instance.qmp.closed()).await.is_err() {
            tracing::warn!(domain = instance.name, "the monitor outlives its process");
        }
        let how = instance.process.reap();
        for helper in &instance.helpers {
            end_helper(helper).await;
        }
        let (reason, is_silent, mut borrowed) = {
            let mut inner = instance.lock();
            let reason = inner.stopping.unwrap_or(match inner.state {
                State::Shutdown => ShutOffReason::Shutdown,
                _ => ShutOffReason::Crashed,
            });
            inner.state = State::ShutOff(reason);
            (reason, inner.is_silent, std::mem::take(&mut inner.borrowed))
        };
        tracing::info!(domain = instance.name, id = instance.id, ?how, ?reason, "QEMU has ended");
        let kept = |path: &Path, owner| self.is_used_by_another(instance.uuid, path, owner);
        borrowed.hand_back(&self.ledger, kept);
        transient::remove(&instance.name, instance.chains().values());
        if let Err(err) = std::fs::remove_dir_all(&instance.dir) {
            tracing::warn!(domain = instance.name, %err, "cannot remove the run directory");
        }
        self.ports.release_all(&instance.live());
        self.instances().remove(&instance.uuid);
        if !is_silent {
            self.events.emit(instance.uuid, &instance.name, -1, Event::Stopped(reason));
        }
        instance.ended.send_replace(true);
    }

    /// An image that another running domain uses too stays with QEMU's user, and that domain
    /// hands it back in its time.
    pub(crate) fn is_used_by_another(&self, domain: Uuid, image: &Path, owner: Owner) -> bool {
        let others: Vec<_> =
            self.instances().values().filter(|other| other.uuid != domain).cloned().collect();
        others.iter().any(|other| {
            let mut inner = other.lock();
            let is_used = inner
                .chains
                .values()
                .flat_map(|chain| &chain.layers)
                .chain(inner.jobs.values().flat_map(|job| job.layers()))
                .any(|layer| layer.image == image);
            if is_used {
                inner.borrowed.inherit(image, owner);
                if let Err(err) = other.save_locked(&inner) {
                    tracing::error!(domain = other.name, "{}", err.chain());
                }
            }
            is_used
        })
    }
}

/// Ends swtpm and the like: by a signal, then by force.
pub(crate) async fn end_helper(helper: &Process) {
    helper.signal(Signal::TERM);
    if timeout(HELPER_DEADLINE, helper.gone()).await.is_err() {
        helper.signal(Signal::KILL);
        let _ = timeout(HELPER_DEADLINE, helper.gone()).await;
    }
    helper.reap();
}

fn refuse<T>(message: &str) -> Result<T> {
    Err(Error::new(Condition::OperationInvalid, message))
}
