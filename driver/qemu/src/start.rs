//! Bringing a domain up, so that a failure at any point leaves nothing behind.
//!
//! 1. A [`Launch`] gathers what the process needs, and can put all of it away again.
//! 2. QEMU starts with its vCPUs stopped (`-S`), in a session of its own, as its own user; when its
//!    monitor answers, the launch becomes an [`Instance`] that ends like any other.
//! 3. Through the monitor: terminals' paths into the live definition, what the command line cannot
//!    say, memory from a snapshot; then the vCPUs run.
//!
//! All of it is a task of its own: it ends well or is undone even if the caller goes away.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustix::process::Signal;
use uuid::Uuid;
use virtsnap_engine::domain::{
    Active, Event, PausedReason, Restore, RunningReason, ShutOffReason, Start, StartFrom, Started,
    State,
};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use crate::complete::VOCABULARY;
use crate::events::Gate;
use crate::hypervisor::{Qemu, Shared};
use crate::image::{blocking, remove_durably};
use crate::instance::Instance;
use crate::launch::Launch;
use crate::save_image::Saved;
use crate::setup;

impl Qemu {
    pub(crate) async fn start_domain(&self, definition: Element, start: Start) -> Result<Active> {
        self.start_how(definition, start, How::Start).await
    }

    /// The domain is up and has all it needs; its vCPUs stay stopped until [`Qemu::release_held`],
    /// also if another daemon finds it.
    pub(crate) async fn start_held(&self, definition: Element, start: Start) -> Result<Active> {
        self.start_how(definition, start, How::Hold).await
    }

    /// Done before is done.
    pub(crate) async fn release_held(&self, uuid: Uuid, start: &Start) -> Result<()> {
        let instance = self.running(uuid)?;
        match instance.state() {
            State::Paused(reason) if reason == start.paused_by() => {
                let_run(&self.shared, &instance, start).await
            }
            _ => Ok(()),
        }
    }

    async fn start_how(
        &self,
        definition: Element,
        start: Start,
        how: impl FnOnce(Start) -> How,
    ) -> Result<Active> {
        if start.from == StartFrom::Boot {
            // A definition that came from elsewhere was stored without being understood.
            VOCABULARY.check(&definition)?;
        }
        let saved = match &start.from {
            StartFrom::Memory { file } => Some(open_saved(file.clone()).await?),
            StartFrom::Boot | StartFrom::BootSnapshot | StartFrom::VmState { .. } => None,
        };
        self.bring_up_task(definition, how(start), saved).await
    }

    /// A guest that was saved comes back.
    pub(crate) async fn start_saved(&self, definition: Element, how: Restore) -> Result<Active> {
        let saved = open_saved(how.file.clone()).await?;
        self.bring_up_task(definition, How::Restore(how), Some(saved)).await
    }

    async fn bring_up_task(
        &self,
        definition: Element,
        how: How,
        saved: Option<Saved>,
    ) -> Result<Active> {
        let shared = Arc::clone(&self.shared);
        let task = tokio::spawn(async move { bring_up(&shared, definition, how, saved).await });
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

async fn bring_up(
    shared: &Arc<Shared>,
    definition: Element,
    how: How,
    saved: Option<Saved>,
) -> Result<Active> {
    let lacks = |what: &str| {
        Error::new(Condition::XmlError, format!("the definition of the domain has no <{what}>"))
    };
    let uuid = domain::uuid(&definition).ok_or_else(|| lacks("uuid"))?;
    let name = domain::name(&definition).ok_or_else(|| lacks("name"))?;
    let _claim = Claim::take(shared, uuid, &name)?;
    let definition = match saved.as_ref().and_then(|saved| saved.head.cookie_cpu()) {
        Some(cpu) => with_cpu(definition, cpu),
        None => definition,
    };
    let id = shared.next_id()?;
    tracing::info!(domain = name, id, "starting");
    let mut attempts = 1..=PORT_ATTEMPTS;
    let (launch, gate, qmp) = loop {
        let last = attempts.next().is_none_or(|attempt| attempt == PORT_ATTEMPTS);
        let mut launch = Launch::new(shared, uuid, name.clone(), id, definition.clone())?;
        launch.incoming = saved.is_some();
        let gate: Gate = Arc::new(OnceLock::new());
        match launch.until_monitor(&gate).await {
            Ok(qmp) => break (launch, gate, qmp),
            Err(err) => {
                launch.put_away().await;
                if last || !lost_a_port(&err) {
                    return Err(err);
                }
                tracing::info!(domain = name, "another process took a port; choosing again");
            }
        }
    };
    let (instance, command, log) = launch.into_instance(qmp)?;
    let _ = gate.set((Arc::downgrade(shared), Arc::downgrade(&instance)));
    shared.instances().insert(uuid, Arc::clone(&instance));
    shared.watch(&instance);
    let is_loading = saved.is_some();
    let outcome = async {
        instance.save()?;
        setup::through_monitor(&instance, &command).await?;
        let qemu = Qemu { shared: Arc::clone(shared) };
        match &how {
            How::Start(start) => {
                load(&qemu, &instance, start, saved).await?;
                let_run(shared, &instance, start).await
            }
            How::Hold(start) => {
                load(&qemu, &instance, start, saved).await?;
                instance.lock().state = State::Paused(start.paused_by());
                instance.save()
            }
            How::Restore(restore) => run_restored(&qemu, &instance, restore, saved).await,
        }
    };
    match outcome.await {
        Ok(()) => Ok(instance.active()),
        Err(err) => {
            instance.lock().is_silent = true;
            instance.process.signal(Signal::KILL);
            shared.end(&instance, ShutOffReason::Failed).await?;
            // What is wrong with memory that came from elsewhere only QEMU's log tells.
            match log.filter(|_| is_loading) {
                Some(log) => {
                    let message = format!("{}: {}", err.message, log.last_words());
                    Err(Error::new(err.condition, message))
                }
                None => Err(err),
            }
        }
    }
}

/// The last part for a saved guest.
async fn run_restored(
    qemu: &Qemu,
    instance: &Arc<Instance>,
    restore: &Restore,
    saved: Option<Saved>,
) -> Result<()> {
    if let Some(saved) = saved {
        saved.load(instance).await?;
    }
    if restore.discard {
        remove_durably(&restore.file).await?;
    }
    qemu.shared.tell(instance, Event::Started(Started::Restored));
    let Some(suspended) = restore.suspended else {
        return instance.resume(RunningReason::Restored).await;
    };
    // libvirt's word for memory that came from elsewhere.
    instance.lock().state = State::Paused(PausedReason::Migration);
    instance.save()?;
    qemu.shared.tell(instance, Event::Suspended(suspended));
    Ok(())
}

/// Refuses an image that cannot be loaded before there is a process.
async fn open_saved(file: PathBuf) -> Result<Saved> {
    blocking(move || {
        Saved::open(&file).map_err(|damage| {
            let message = format!("cannot load the memory in '{}': {damage}", file.display());
            Error::new(Condition::OperationFailed, message)
        })
    })
    .await
}

/// The definition with the processor that the guest had when it was saved.
fn with_cpu(mut definition: Element, cpu: Element) -> Element {
    *definition.child_or_insert("cpu") = cpu;
    definition
}

/// How often ports for graphics are chosen anew.
const PORT_ATTEMPTS: u32 = 4;

/// Between our finding a port free and QEMU's listening on it, somebody else took it: only QEMU's
/// last words tell.
fn lost_a_port(err: &Error) -> bool {
    err.condition == Condition::Internal && err.message.contains("Address already in use")
}

/// The last part but one: memory.
async fn load(
    qemu: &Qemu,
    instance: &Arc<Instance>,
    start: &Start,
    saved: Option<Saved>,
) -> Result<()> {
    match (&start.from, saved) {
        (StartFrom::VmState { tag, vmstate, disks }, _) => {
            setup::load_vm_state(qemu, instance, tag, vmstate, disks).await
        }
        (_, Some(saved)) => saved.load(instance).await,
        (_, None) => Ok(()),
    }
}

/// The last part: the vCPUs. Events in libvirt's order, which differs between a boot (resumed,
/// started) and loaded memory (started, resumed).
async fn let_run(shared: &Shared, instance: &Arc<Instance>, start: &Start) -> Result<()> {
    let tell = |event| shared.tell(instance, event);
    if start.paused {
        instance.lock().state = State::Paused(start.paused_by());
        instance.save()?;
        tell(Event::Started(start.started()));
        tell(Event::Suspended(start.suspended()));
        return Ok(());
    }
    if start.boots() {
        instance.resume(RunningReason::Booted).await?;
        tell(Event::Started(start.started()));
    } else {
        tell(Event::Started(start.started()));
        instance.resume(RunningReason::FromSnapshot).await?;
    }
    Ok(())
}

/// One start of a domain at a time.
struct Claim<'a> {
    shared: &'a Shared,
    uuid: Uuid,
}

impl<'a> Claim<'a> {
    fn take(shared: &'a Shared, uuid: Uuid, name: &str) -> Result<Self> {
        let refused = || {
            let message = format!("domain '{name}' is already active");
            Err(Error::new(Condition::OperationInvalid, message))
        };
        if !shared.starting().insert(uuid) {
            return refused();
        }
        let claim = Self { shared, uuid };
        let is_up = shared.instances().contains_key(&uuid) || shared.strays().contains_key(&uuid);
        if is_up { refused() } else { Ok(claim) }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.shared.starting().remove(&self.uuid);
    }
}
