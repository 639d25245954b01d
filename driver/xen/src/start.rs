//! From a definition to a running domain.
//!
//! A status file without Xen's number is written first: a domain that a crash left half made is
//! known by it, and taken away. Its vCPUs run when all else is done and noted.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;
use virtsnap_block::image::{blocking, remove_durably, system};
use virtsnap_engine::domain::{
    Active, Event, PausedReason, Restore, Resumed, RunningReason, ShutOffReason, Start, StartFrom,
    Started, State,
};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use crate::complete::{self, Runtime};
use crate::config::{self, to_libxl};
use crate::device_model;
use crate::hypervisor::{Shared, Starting, Xen};
use crate::instance::{Instance, Owner, Status, directory};
use crate::save_image::{self, Head};

/// Displays that are looked for.
const PORTS: std::ops::Range<u16> = 5900..6900;

/// Memory that is to be loaded.
type Saved = (Head, File);

impl Xen {
    pub(crate) async fn start_domain(&self, definition: Element, start: Start) -> Result<Active> {
        self.start_how(definition, start, How::Start).await
    }

    /// The domain is up; its vCPUs stay stopped until [`Xen::release_held`], also if another
    /// daemon finds it.
    pub(crate) async fn start_held(&self, definition: Element, start: Start) -> Result<Active> {
        self.start_how(definition, start, How::Hold).await
    }

    /// Done before is done.
    pub(crate) async fn release_held(&self, uuid: Uuid, start: &Start) -> Result<()> {
        let instance = self.running(uuid)?;
        match instance.state() {
            State::Paused(reason) if reason == start.paused_by() => {
                self.shared.let_run(&instance, start).await
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn restore_domain(
        &self,
        definition: Element,
        restore: Restore,
    ) -> Result<Active> {
        let saved = open_saved(restore.file.clone()).await?;
        self.bring_up_task(definition, How::Restore(restore), Some(saved)).await
    }

    async fn start_how(
        &self,
        definition: Element,
        start: Start,
        how: impl FnOnce(Start) -> How,
    ) -> Result<Active> {
        let saved = match &start.from {
            StartFrom::Memory { file } => Some(open_saved(file.clone()).await?),
            StartFrom::Boot | StartFrom::BootSnapshot => None,
            StartFrom::VmState { .. } => {
                let what = "Xen keeps no memory in disk images";
                return Err(Error::new(Condition::OperationUnsupported, what));
            }
        };
        self.bring_up_task(definition, how(start), saved).await
    }

    /// A caller that goes away leaves nothing half made.
    async fn bring_up_task(
        &self,
        definition: Element,
        how: How,
        saved: Option<Saved>,
    ) -> Result<Active> {
        let shared = Arc::clone(&self.shared);
        let task = tokio::spawn(async move { shared.bring_up(definition, how, saved).await });
        task.await.unwrap_or_else(|err| {
            Err(Error::new(Condition::Internal, "starting the domain was torn down").caused_by(err))
        })
    }
}

/// Why a domain is brought up.
#[derive(Debug)]
enum How {
    Start(Start),
    /// To be released later.
    Hold(Start),
    Restore(Restore),
}

impl Shared {
    async fn bring_up(
        self: &Arc<Self>,
        definition: Element,
        how: How,
        saved: Option<Saved>,
    ) -> Result<Active> {
        let lacks = |what: &str| {
            Error::new(Condition::XmlError, format!("the definition of the domain has no <{what}>"))
        };
        let uuid = domain::uuid(&definition).ok_or_else(|| lacks("uuid"))?;
        let name = domain::name(&definition).ok_or_else(|| lacks("name"))?;
        let starting = Starting { uuid, name: name.clone(), definition: definition.clone() };
        let _claim = Claim::take(self, starting)?;
        self.refuse_used(uuid, &definition)?;
        tracing::info!(domain = name, "starting");
        let instance = self.build(uuid, &name, &definition, saved).await?;
        self.instances().insert(uuid, Arc::clone(&instance));
        let outcome = async {
            self.context.watch(instance.id).await?;
            crate::facts::check_opened(&instance).await?;
            match &how {
                How::Start(start) => self.let_run(&instance, start).await,
                How::Hold(start) => {
                    instance.update(|inner| inner.state = State::Paused(start.paused_by()))
                }
                How::Restore(restore) => self.run_restored(&instance, restore).await,
            }
        };
        match outcome.await {
            Ok(()) => Ok(instance.active()),
            Err(err) => {
                instance.lock().is_silent = true;
                if let Err(end) = self.end(&instance, ShutOffReason::Failed).await {
                    tracing::error!(domain = name, "{}", end.chain());
                }
                Err(err)
            }
        }
    }

    /// A domain whose vCPUs stand still. On failure nothing of it is left.
    pub(crate) async fn build(
        self: &Arc<Self>,
        uuid: Uuid,
        name: &str,
        definition: &Element,
        saved: Option<Saved>,
    ) -> Result<Arc<Instance>> {
        self.refuse_taken(uuid, name).await?;
        let dir = directory(&self.config.run_dir, uuid);
        let channels = dir.join("channel");
        let mut live = live_form(definition, channels.clone())?;
        let config = to_libxl(&live, &self.host)?;
        device_model::check(&live, name, &self.device_model).await?;
        Status::starting(uuid, name, &live).write(&dir)?;
        let made = async {
            blocking(move || {
                std::fs::create_dir_all(&channels).map_err(|err| system("make", &channels, err))
            })
            .await?;
            match saved {
                None => self.context.create(&config).await,
                Some((_, file)) => self.context.restore(&config, file.into()).await,
            }
        };
        let id = match made.await {
            Ok(id) => id,
            Err(err) => {
                remove(&dir);
                return Err(err);
            }
        };
        complete::with_id(&mut live, id);
        // What libxl chose is good to know, and no more.
        match self.context.configuration(id).await {
            Ok(config) => config::learn_backends(&mut live, &config),
            Err(err) => tracing::warn!(domain = name, "{}", err.chain()),
        }
        if let Some(terminal) = self.context.console(id) {
            config::learn_console(&mut live, &terminal);
        }
        let state = State::Paused(PausedReason::StartingUp);
        let identity = (uuid, name.to_owned(), id);
        let instance = Instance::new(identity, Owner::Us, &self.config.run_dir, state, live);
        let instance = Arc::new(instance);
        if let Err(err) = instance.update(|_| {}) {
            self.context.destroy(id).await?;
            remove(&dir);
            return Err(err);
        }
        Ok(instance)
    }

    /// libxl takes two domains of one uuid.
    async fn refuse_taken(self: &Arc<Self>, uuid: Uuid, name: &str) -> Result<()> {
        let shared = Arc::clone(self);
        let list = blocking(move || shared.context.list()).await?;
        match list.iter().find(|info| info.uuid == uuid && !info.is_dying) {
            None => Ok(()),
            Some(info) => Err(Error::new(
                Condition::OperationInvalid,
                format!("domain '{name}' is already active, as Xen's domain {}", info.id),
            )),
        }
    }

    /// Two guests would write into one image. Not asked at a reboot: who reboots has its images all
    /// through, and no other's attempt may end it.
    fn refuse_used(&self, uuid: Uuid, definition: &Element) -> Result<()> {
        let own = domain::disks(definition).filter(|d| !d.is_readonly() && !d.is_shareable());
        for disk in own {
            if let Some(image) = disk.path() {
                self.refuse_elsewhere(uuid, Path::new(image), "written to")?;
            }
        }
        Ok(())
    }

    /// The last part: the vCPUs. Events in libvirt's order, which differs between a boot (resumed,
    /// started) and loaded memory (started, resumed).
    pub(crate) async fn let_run(&self, instance: &Instance, start: &Start) -> Result<()> {
        let started = Event::Started(start.started());
        if start.paused {
            instance.update(|inner| inner.state = State::Paused(start.paused_by()))?;
            self.tell(instance, started);
            self.tell(instance, Event::Suspended(start.suspended()));
            return Ok(());
        }
        let reason = match start.boots() {
            true => RunningReason::Booted,
            false => RunningReason::FromSnapshot,
        };
        // Noted before: whoever finds it must not take it for a start that was broken off.
        instance.update(|inner| inner.state = State::Running(reason))?;
        self.context.unpause(instance.id).await?;
        let events = match start.boots() {
            true => [Event::Resumed(Resumed::Unpaused), started],
            false => [started, Event::Resumed(Resumed::FromSnapshot)],
        };
        for event in events {
            self.tell(instance, event);
        }
        Ok(())
    }

    async fn run_restored(&self, instance: &Instance, restore: &Restore) -> Result<()> {
        if restore.discard {
            remove_durably(&restore.file).await?;
        }
        self.tell(instance, Event::Started(Started::Restored));
        match restore.suspended {
            Some(suspended) => {
                // libvirt's word for memory that came from elsewhere.
                instance.update(|inner| inner.state = State::Paused(PausedReason::Migration))?;
                self.tell(instance, Event::Suspended(suspended));
            }
            None => {
                let running = State::Running(RunningReason::Restored);
                instance.update(|inner| inner.state = running)?;
                self.context.unpause(instance.id).await?;
                self.tell(instance, Event::Resumed(Resumed::Unpaused));
            }
        }
        Ok(())
    }
}

/// Refuses memory that cannot be loaded before there is a domain.
async fn open_saved(file: PathBuf) -> Result<Saved> {
    blocking(move || {
        save_image::open(&file).map_err(|damage| save_image::unusable(&file, &damage.to_string()))
    })
    .await
}

fn live_form(definition: &Element, channel_dir: PathBuf) -> Result<Element> {
    complete::live(definition, &Runtime { channel_dir, take_port: &free_port })
}

/// Between our looking and the device model's listening somebody else may take it: then the start
/// fails, and says so.
fn free_port() -> Option<u16> {
    PORTS.clone().find(|port| TcpListener::bind(("0.0.0.0", *port)).is_ok())
}

pub(crate) fn remove(dir: &Path) {
    if let Err(err) = std::fs::remove_dir_all(dir)
        && err.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %dir.display(), %err, "cannot remove the run directory");
    }
}

/// One start of a domain at a time.
struct Claim<'a> {
    shared: &'a Shared,
    uuid: Uuid,
}

impl<'a> Claim<'a> {
    fn take(shared: &'a Shared, domain: Starting) -> Result<Self> {
        let uuid = domain.uuid;
        let what = format!("domain '{}' is already active", domain.name);
        let refused = || Err(Error::new(Condition::OperationInvalid, what));
        {
            let mut starting = shared.starting();
            if starting.iter().any(|other| other.uuid == uuid) {
                return refused();
            }
            starting.push(domain);
        }
        let claim = Self { shared, uuid };
        if shared.instances().contains_key(&uuid) { refused() } else { Ok(claim) }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.shared.starting().retain(|domain| domain.uuid != self.uuid);
    }
}
