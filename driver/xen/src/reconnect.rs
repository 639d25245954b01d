//! After a stop, a crash or an upgrade of the daemon: the domains that went on without it; and those
//! that others start beside us.
//!
//! A status file names a domain of ours by its uuid and Xen's number, which is not given again while
//! the host is up. What libxl says of its state overrides what was recorded. A start that was broken
//! off is undone.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Weak};
use std::time::Duration;

use uuid::Uuid;
use virtsnap_block::image::blocking;
use virtsnap_engine::domain::{
    Active, Event, PausedReason, Resumed, RunningReason, ShutOffReason, Started, State, Suspended,
};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use crate::complete;
use crate::config::{self, from_libxl};
use crate::context::{Info, ShutdownReason};
use crate::hypervisor::{Shared, Xen, lock};
use crate::instance::{Instance, Owner, Recorded, Status, directory};
use crate::start;

/// How soon a domain that another program starts is seen.
const LOOK_EVERY: Duration = Duration::from_secs(2);

impl Xen {
    pub(crate) async fn reconnect_all(&self) -> Result<Vec<Active>> {
        let shared = &self.shared;
        let Some(ended) = lock(&shared.ended).take() else {
            return Ok(self.all_instances());
        };
        let mut running: BTreeMap<Uuid, Info> =
            shared.list().await?.into_iter().map(|info| (info.uuid, info)).collect();
        for status in Status::all(&shared.config.run_dir) {
            // One of another number is another program's by now.
            let is_it = |info: &&Info| status.id.is_none_or(|id| id == info.id);
            let info = running.get(&status.uuid).filter(is_it).copied();
            if info.is_some() {
                running.remove(&status.uuid);
            }
            if let Err(err) = shared.find_again(&status, info).await {
                tracing::error!(domain = status.name, "cannot take it up: {}", err.chain());
            }
        }
        tokio::spawn(Shared::follow_ends(Arc::downgrade(shared), ended));
        for info in running.into_values() {
            shared.adopt(info).await;
        }
        tokio::spawn(Shared::look_around(Arc::downgrade(shared)));
        Ok(self.all_instances())
    }

    pub(crate) fn all_instances(&self) -> Vec<Active> {
        let instances: Vec<_> = self.shared.instances().values().cloned().collect();
        instances.iter().map(|instance| instance.active()).collect()
    }
}

impl Shared {
    async fn list(&self) -> Result<Vec<Info>> {
        let context = self.context.clone();
        blocking(move || context.list()).await
    }

    async fn find_again(self: &Arc<Self>, status: &Status, info: Option<Info>) -> Result<()> {
        let dir = directory(&self.config.run_dir, status.uuid);
        let info = match info {
            // Its end was broken off.
            Some(info) if info.is_dying => {
                if let Err(err) = self.context.destroy(info.id).await {
                    tracing::warn!(domain = status.name, "{}", err.chain());
                }
                None
            }
            info => info,
        };
        let Some(info) = info else {
            tracing::info!(domain = status.name, "it is gone");
            if let Some(id) = status.id {
                self.context.device_model_ends(id).await?;
            }
            let reason = match &status.saving {
                Some(file) => {
                    self.settle_save(status.uuid, None, file).await?;
                    ShutOffReason::Saved
                }
                None => ShutOffReason::Daemon,
            };
            start::remove(&dir);
            self.events.emit(status.uuid, &status.name, -1, Event::Stopped(reason));
            return Ok(());
        };
        if status.state == Recorded::Starting {
            tracing::warn!(domain = status.name, "its start was broken off: it goes");
            self.context.destroy(info.id).await?;
            start::remove(&dir);
            return Ok(());
        }
        let live = Element::parse(&status.live).map_err(|err| {
            Error::new(Condition::Internal, "its live definition is damaged").caused_by(err)
        })?;
        let is_suspended = info.shutdown == Some(ShutdownReason::Suspend);
        let state = status.state.state(info.is_paused || is_suspended);
        let identity = (status.uuid, status.name.clone(), info.id);
        let run_dir = &self.config.run_dir;
        let instance = Arc::new(Instance::new(identity, Owner::Us, run_dir, state, live));
        self.instances().insert(status.uuid, Arc::clone(&instance));
        self.context.watch(info.id).await?;
        match &status.saving {
            Some(file) => self.settle_save(status.uuid, Some(&instance), file).await,
            None => Ok(()),
        }
    }

    /// A domain that another program started. None: it is not whole yet, or not any more.
    async fn adopt(self: &Arc<Self>, info: Info) -> Option<Arc<Instance>> {
        if info.is_dying {
            return None;
        }
        let taken = async {
            let config = self.context.configuration(info.id).await?;
            let found = from_libxl(&config, &self.host)?;
            let mut live = found.domain;
            let name = domain::name(&live).or_else(|| self.context.name(info.id));
            let name = name.unwrap_or_else(|| format!("Domain-{}", info.id));
            config::learn_backends(&mut live, &config);
            complete::with_id(&mut live, info.id);
            if let Some(terminal) = self.context.console(info.id) {
                config::learn_console(&mut live, &terminal);
            }
            let owner = Owner::Another { untold: found.untold };
            let identity = (info.uuid, name, info.id);
            let state = state_of(&info);
            let instance = Instance::new(identity, owner, &self.config.run_dir, state, live);
            Ok::<_, Error>(Arc::new(instance))
        };
        let instance = match taken.await {
            Ok(instance) => instance,
            Err(err) => {
                tracing::debug!(id = info.id, "not taken up: {}", err.chain());
                return None;
            }
        };
        match self.instances().entry(info.uuid) {
            Entry::Vacant(free) => drop(free.insert(Arc::clone(&instance))),
            // Meanwhile it was brought up here.
            Entry::Occupied(_) => return None,
        }
        tracing::info!(domain = instance.name, id = instance.id, "started by another program");
        if let Err(err) = self.context.watch(info.id).await {
            tracing::error!(domain = instance.name, "{}", err.chain());
        }
        Some(instance)
    }

    /// For as long as the driver lives: libxl tells of ends, not of beginnings.
    async fn look_around(shared: Weak<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(shared) = shared.upgrade() else { return };
            match shared.list().await {
                Ok(list) => {
                    for info in list {
                        shared.look_at(info).await;
                    }
                }
                Err(err) => tracing::warn!("{}", err.chain()),
            }
        }
    }

    async fn look_at(self: &Arc<Self>, info: Info) {
        let known = self.instances().get(&info.uuid).cloned();
        let Some(instance) = known else {
            // One that we are making has its uuid already.
            if self.starting().iter().any(|domain| domain.uuid == info.uuid) {
                return;
            }
            if let Some(instance) = self.adopt(info).await {
                self.tell(&instance, Event::Started(Started::Booted));
                if let State::Paused(_) = instance.state() {
                    self.tell(&instance, Event::Suspended(Suspended::Paused));
                }
            }
            return;
        };
        // A step of ours is at it, or the guest has another number by now: then its end is told.
        let Ok(_acting) = instance.acting.try_lock() else { return };
        if instance.id != info.id || info.shutdown.is_some() || info.is_dying {
            return;
        }
        // libxl stops a domain that it takes away.
        if instance.lock().stopping.is_some() {
            return;
        }
        let (state, event) = match (instance.state(), info.is_paused) {
            (State::Running(_), true) => {
                (State::Paused(PausedReason::Unknown), Event::Suspended(Suspended::Paused))
            }
            (State::Paused(PausedReason::User | PausedReason::Unknown), false) => {
                (State::Running(RunningReason::Unknown), Event::Resumed(Resumed::Unpaused))
            }
            _ => return,
        };
        // What was asked of us since the list was made counts more.
        let is_so =
            matches!(self.context.info(info.id), Ok(Some(now)) if now.is_paused == info.is_paused);
        if !is_so {
            return;
        }
        match instance.update(|inner| inner.state = state) {
            Ok(()) => self.tell(&instance, event),
            Err(err) => tracing::error!(domain = instance.name, "{}", err.chain()),
        }
    }
}

fn state_of(info: &Info) -> State {
    match (info.shutdown, info.is_paused) {
        (Some(ShutdownReason::Suspend), _) => State::Paused(PausedReason::Unknown),
        (Some(ShutdownReason::Crash), _) => State::Crashed,
        (Some(_), _) => State::Shutdown,
        (None, true) => State::Paused(PausedReason::Unknown),
        (None, false) => State::Running(RunningReason::Unknown),
    }
}
