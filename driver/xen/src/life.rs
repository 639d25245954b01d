//! What is asked of a running domain, and how it ends.
//!
//! libxl tells when a guest has stopped and when a domain is gone. A guest of ours that has stopped
//! is taken away or started again, as its definition says (`<on_poweroff>`, `<on_reboot>`,
//! `<on_crash>`); one that xl started is xl's to take away.

use std::sync::{Arc, Weak};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;
use virtsnap_block::image::blocking;
use virtsnap_engine::domain::{
    Event, PausedReason, Resumed, RunningReason, ShutOffReason, State, Suspended,
};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::element::Element;

use crate::context::{End, Ended, Info, ShutdownReason};
use crate::hypervisor::{Shared, Xen};
use crate::instance::{Asked, Instance};
use crate::start;

impl Xen {
    pub(crate) async fn suspend_domain(&self, domain: Uuid) -> Result<()> {
        let instance = self.running(domain)?;
        match instance.state() {
            State::Paused(_) => Ok(()),
            State::Running(_) => self.shared.pause(&instance, PausedReason::User).await,
            _ => refuse("the domain is shutting down"),
        }
    }

    pub(crate) async fn resume_domain(&self, domain: Uuid) -> Result<()> {
        let instance = self.running(domain)?;
        match instance.state() {
            State::Running(_) => Ok(()),
            State::Paused(_) => self.shared.resume(&instance, RunningReason::Unpaused).await,
            State::Crashed => refuse("the guest has crashed; destroy the domain"),
            _ => refuse("the domain is shutting down"),
        }
    }

    pub(crate) async fn shutdown_domain(&self, domain: Uuid) -> Result<()> {
        let instance = self.standing_up(domain)?;
        self.shared.context.shutdown(instance.id).await?;
        instance.lock().asked = Some(Asked { what: "shut down", at: Instant::now() });
        Ok(())
    }

    pub(crate) async fn reboot_domain(&self, domain: Uuid) -> Result<()> {
        let instance = self.standing_up(domain)?;
        self.shared.context.reboot(instance.id).await?;
        instance.lock().asked = Some(Asked { what: "reboot", at: Instant::now() });
        Ok(())
    }

    fn standing_up(&self, domain: Uuid) -> Result<Arc<Instance>> {
        let instance = self.running(domain)?;
        match instance.state() {
            State::Running(_) => Ok(instance),
            _ => refuse("domain is not running: a guest that stands still cannot shut down"),
        }
    }

    /// Ends the domain; returns when it is gone and put away.
    pub(crate) async fn destroy_domain(&self, domain: Uuid, reason: ShutOffReason) -> Result<()> {
        match self.instance(domain) {
            Some(instance) => self.shared.end(&instance, reason).await,
            None => Ok(()),
        }
    }
}

impl Shared {
    /// What libxl says counts: that a guest has stopped is known to it before it is told, and of
    /// what it takes away nobody may begin anything.
    pub(crate) async fn state_now(&self, instance: &Instance) -> Result<State> {
        Ok(observed(instance.state(), self.info(instance).await?.as_ref()))
    }

    /// None: it is gone.
    pub(crate) async fn info(&self, instance: &Instance) -> Result<Option<Info>> {
        let (context, id) = (self.context.clone(), instance.id);
        blocking(move || context.info(id)).await
    }

    pub(crate) async fn pause(&self, instance: &Instance, reason: PausedReason) -> Result<()> {
        // Noted before: a guest that is found standing still is known for what.
        let before = instance.state();
        instance.update(|inner| inner.state = State::Paused(reason))?;
        if let Err(err) = self.context.pause(instance.id).await {
            instance.update(|inner| inner.state = before)?;
            return Err(err);
        }
        self.tell(instance, Event::Suspended(Suspended::Paused));
        Ok(())
    }

    pub(crate) async fn resume(&self, instance: &Instance, reason: RunningReason) -> Result<()> {
        self.unpause(instance).await?;
        instance.update(|inner| inner.state = State::Running(reason))?;
        let resumed = match reason {
            RunningReason::FromSnapshot => Resumed::FromSnapshot,
            _ => Resumed::Unpaused,
        };
        self.tell(instance, Event::Resumed(resumed));
        Ok(())
    }

    /// Done before is done: Xen counts, and refuses the one too many.
    pub(crate) async fn unpause(&self, instance: &Instance) -> Result<()> {
        match self.info(instance).await?.is_some_and(|info| info.is_paused) {
            true => self.context.unpause(instance.id).await,
            false => Ok(()),
        }
    }

    pub(crate) async fn end(&self, instance: &Instance, reason: ShutOffReason) -> Result<()> {
        instance.lock().stopping = Some(reason);
        self.context.stop_suspend(instance.id);
        self.context.destroy(instance.id).await?;
        self.put_away(instance, reason);
        Ok(())
    }

    /// The domain is gone. Done before is done.
    fn put_away(&self, instance: &Instance, reason: ShutOffReason) {
        let is_known = {
            let mut instances = self.instances();
            let is_known =
                instances.get(&instance.uuid).is_some_and(|known| known.id == instance.id);
            if is_known {
                instances.remove(&instance.uuid);
            }
            is_known
        };
        if !is_known {
            return;
        }
        let (reason, is_silent) = {
            let mut inner = instance.lock();
            let reason = inner.stopping.unwrap_or(reason);
            inner.state = State::ShutOff(reason);
            (reason, inner.is_silent)
        };
        if instance.is_ours() {
            start::remove(&instance.dir);
        }
        tracing::info!(domain = instance.name, id = instance.id, ?reason, "it has ended");
        if !is_silent {
            self.events.emit(instance.uuid, &instance.name, -1, Event::Stopped(reason));
        }
    }

    /// For as long as the driver lives.
    pub(crate) async fn follow_ends(shared: Weak<Self>, mut told: UnboundedReceiver<Ended>) {
        while let Some(ended) = told.recv().await {
            let Some(shared) = shared.upgrade() else { return };
            let instances: Vec<_> = shared.instances().values().cloned().collect();
            let found = instances.into_iter().find(|instance| instance.id == ended.id);
            let Some(instance) = found else { continue };
            // One that takes long must not keep the others waiting.
            tokio::spawn(async move { shared.handle_end(&instance, ended.how).await });
        }
    }

    async fn handle_end(self: &Arc<Self>, instance: &Arc<Instance>, how: End) {
        let reason = match how {
            End::Death if instance.lock().is_rebooting => return,
            End::Death => return self.follow_death(instance).await,
            End::Shutdown(ShutdownReason::Suspend) => return self.stood_still(instance).await,
            End::Shutdown(reason) => reason,
        };
        tracing::info!(domain = instance.name, id = instance.id, ?reason, "the guest has stopped");
        if !instance.is_ours() {
            instance.lock().state = State::Shutdown;
            return;
        }
        // A step of a snapshot comes to its end first, and what it changed is noted.
        let _acting = instance.acting.lock().await;
        if instance.lock().stopping.is_some() {
            return;
        }
        let live = instance.live();
        let (event, off) = match reason {
            ShutdownReason::Reboot => ("on_reboot", ShutOffReason::Shutdown),
            ShutdownReason::Crash => ("on_crash", ShutOffReason::Crashed),
            _ => ("on_poweroff", ShutOffReason::Shutdown),
        };
        let action = live.child_text(event).unwrap_or_default();
        let outcome = match action.trim() {
            "restart" | "rename-restart" | "coredump-restart" => {
                self.restart(instance, &live).await
            }
            "preserve" => {
                let state = match off {
                    ShutOffReason::Crashed => State::Crashed,
                    _ => State::Shutdown,
                };
                instance.update(|inner| inner.state = state)
            }
            _ => self.end(instance, off).await,
        };
        if let Err(err) = outcome {
            tracing::error!(domain = instance.name, "after its guest has stopped: {}", err.chain());
        }
    }

    async fn follow_death(&self, instance: &Instance) {
        match self.context.device_model_ends(instance.id).await {
            Ok(()) => self.put_away(instance, ShutOffReason::Destroyed),
            Err(err) => {
                tracing::error!(domain = instance.name, "{}", err.chain());
                instance.lock().state = State::Shutdown;
            }
        }
    }

    /// The second half of a reboot: a new domain on the same disks.
    async fn restart(self: &Arc<Self>, instance: &Arc<Instance>, live: &Element) -> Result<()> {
        let definition = without_number(live.clone());
        instance.lock().is_rebooting = true;
        if let Err(err) = self.context.destroy(instance.id).await {
            // Its end is an end again, whoever brings it about.
            instance.lock().is_rebooting = false;
            return Err(err);
        }
        // Until the new one is there, the old one stands for it.
        let built = self.build(instance.uuid, &instance.name, &definition, None).await;
        match built {
            Ok(new) => {
                self.instances().insert(instance.uuid, Arc::clone(&new));
                let run = async {
                    self.context.watch(new.id).await?;
                    new.update(|inner| inner.state = State::Running(RunningReason::Booted))?;
                    self.context.unpause(new.id).await
                };
                match run.await {
                    Ok(()) => {
                        self.tell(&new, Event::Reboot);
                        Ok(())
                    }
                    Err(err) => {
                        let ended = self.end(&new, ShutOffReason::Failed).await;
                        ended.and(Err(err))
                    }
                }
            }
            Err(err) => {
                self.put_away(instance, ShutOffReason::Failed);
                Err(err)
            }
        }
    }
}

fn observed(known: State, info: Option<&Info>) -> State {
    let has_stopped = |reason| reason != ShutdownReason::Suspend;
    let is_ending = info.is_none_or(|info| info.is_dying || info.shutdown.is_some_and(has_stopped));
    match known {
        State::Running(_) | State::Paused(_) if is_ending => State::Shutdown,
        known => known,
    }
}

/// What a start gives to a definition that is of that start alone.
fn without_number(mut live: Element) -> Element {
    live.remove_attr("id");
    for interface in live.child_mut("devices").into_iter().flat_map(|d| d.children_mut("interface"))
    {
        let generated = interface.child("target").and_then(|target| target.attr("dev"));
        if generated.is_some_and(|name| name.starts_with("vif")) {
            interface.remove_children("target");
        }
    }
    live
}

fn refuse<T>(message: &str) -> Result<T> {
    Err(Error::new(Condition::OperationInvalid, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_has_stopped_is_shutting_down_whatever_was_known() {
        let (running, paused) =
            (State::Running(RunningReason::Booted), State::Paused(PausedReason::User));
        let alive = Info {
            id: 5,
            uuid: Uuid::nil(),
            is_paused: false,
            shutdown: None,
            is_dying: false,
            memory: 1,
            max_memory: 1,
            cpu_time: 1,
            vcpus: 1,
            guest: None,
        };
        let stopped = |reason| Info { shutdown: Some(reason), ..alive };
        assert_eq!(observed(running, Some(&alive)), running);
        assert_eq!(observed(paused, Some(&stopped(ShutdownReason::Suspend))), paused);
        for ending in [
            Some(stopped(ShutdownReason::PowerOff)),
            Some(stopped(ShutdownReason::Reboot)),
            Some(Info { is_dying: true, ..alive }),
            None,
        ] {
            assert_eq!(observed(running, ending.as_ref()), State::Shutdown, "{ending:?}");
            assert_eq!(observed(State::Crashed, ending.as_ref()), State::Crashed);
        }
    }
}
