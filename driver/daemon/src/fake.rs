//! A hypervisor in memory, for the daemon's own tests: life cycle only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use uuid::Uuid;
use virtsnap_engine::domain::{
    Active, Event, PausedReason, Resumed, RunningReason, SaveImage, ShutOffReason, ShutdownBy,
    Start, Started, State, Suspended,
};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::{DomainFacts, Format, InternalSnapshot, PathKind};
use virtsnap_engine::inspect::Inspect;
use virtsnap_engine::plan::{Conclude, Finish, Pivot, Step};
use virtsnap_engine::ports::{EventSink, Hypervisor, PivotError, Subject};
use virtsnap_store::Store;
use virtsnap_xml::element::Element;

use crate::domains::definition;
use crate::domains::{Domains, Table};
use crate::events::Events;
use crate::handle::Sessions;

#[derive(Default)]
pub(crate) struct FakeHypervisor {
    active: Mutex<BTreeMap<Uuid, Active>>,
    next_id: AtomicI32,
    inside: Mutex<BTreeMap<PathBuf, Vec<InternalSnapshot>>>,
    sink: OnceLock<Weak<Table>>,
}

impl FakeHypervisor {
    pub(crate) fn put_inside(&self, image: &Path, snapshot: InternalSnapshot) {
        self.inside.lock().unwrap().entry(image.to_owned()).or_default().push(snapshot);
    }

    fn tell(&self, active: &Active, id: i32, event: Event) {
        if let Some(sink) = self.sink.get().and_then(Weak::upgrade) {
            sink.emit(active.uuid, &active.name, id, event);
        }
    }

    fn set_state(&self, uuid: Uuid, state: State, event: Event) -> Result<()> {
        let mut all = self.active.lock().unwrap();
        let active = all.get_mut(&uuid).expect("the domain runs");
        active.state = state;
        let active = active.clone();
        drop(all);
        self.tell(&active, active.id, event);
        Ok(())
    }
}

fn not_here<T>() -> Result<T> {
    Err(Error::new(Condition::NoSupport, "the fake has no snapshots"))
}

impl Hypervisor for FakeHypervisor {
    fn complete(&self, domain: Element) -> Result<Element> {
        match domain.child("unknown") {
            Some(_) => Err(Error::new(Condition::ConfigUnsupported, "element <unknown>")),
            None => Ok(domain),
        }
    }

    async fn capabilities(&self) -> Result<Element> {
        Ok(Element::new("capabilities"))
    }

    async fn reconnect(&self) -> Result<Vec<Active>> {
        Ok(self.all_active())
    }

    async fn start(&self, domain: Element, start: Start) -> Result<Active> {
        let mut domain = domain;
        let (uuid, name) = definition::identify(&mut domain)?;
        if domain.child("fails").is_some() {
            return Err(Error::new(Condition::Internal, "the guest does not start"));
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let state = if start.paused {
            State::Paused(PausedReason::StartingUp)
        } else {
            State::Running(RunningReason::Booted)
        };
        let active = Active { uuid, name, id, state, live: domain };
        self.active.lock().unwrap().insert(uuid, active.clone());
        self.tell(&active, id, Event::Started(Started::Booted));
        Ok(active)
    }

    fn active(&self, domain: Uuid) -> Option<Active> {
        self.active.lock().unwrap().get(&domain).cloned()
    }

    fn all_active(&self) -> Vec<Active> {
        self.active.lock().unwrap().values().cloned().collect()
    }

    fn set_live(&self, domain: Uuid, live: Element) -> Result<()> {
        self.active.lock().unwrap().get_mut(&domain).expect("the domain runs").live = live;
        Ok(())
    }

    async fn suspend(&self, domain: Uuid) -> Result<()> {
        let event = Event::Suspended(Suspended::Paused);
        self.set_state(domain, State::Paused(PausedReason::User), event)
    }

    async fn resume(&self, domain: Uuid) -> Result<()> {
        let event = Event::Resumed(Resumed::Unpaused);
        self.set_state(domain, State::Running(RunningReason::Unpaused), event)
    }

    async fn shutdown(&self, domain: Uuid) -> Result<()> {
        self.destroy(domain, ShutOffReason::Shutdown).await
    }

    async fn reboot(&self, domain: Uuid) -> Result<()> {
        self.set_state(domain, State::Running(RunningReason::Booted), Event::Reboot)
    }

    async fn reset(&self, domain: Uuid) -> Result<()> {
        self.reboot(domain).await
    }

    async fn destroy(&self, domain: Uuid, reason: ShutOffReason) -> Result<()> {
        let gone = self.active.lock().unwrap().remove(&domain);
        if let Some(gone) = gone {
            self.tell(&gone, gone.id, Event::Shutdown(ShutdownBy::Host));
            self.tell(&gone, -1, Event::Stopped(reason));
        }
        Ok(())
    }

    /// Here, the definition alone.
    async fn save_image(&self, file: &Path) -> Result<SaveImage> {
        let text = std::fs::read_to_string(file).map_err(|err| {
            Error::new(Condition::OperationFailed, "cannot read it").caused_by(err)
        })?;
        Ok(match Element::parse(&text) {
            Ok(definition) => SaveImage::Whole { definition, running: true },
            Err(err) => SaveImage::Torn(err.to_string()),
        })
    }

    async fn facts(&self, _: &Subject) -> Result<DomainFacts> {
        not_here()
    }

    async fn probe(&self, _: &Path) -> Result<PathKind> {
        not_here()
    }

    async fn act(&self, _: Uuid, _: &Step) -> Result<()> {
        not_here()
    }

    async fn undo(&self, _: Uuid, _: &Step) -> Result<()> {
        not_here()
    }

    async fn pivot(&self, _: Uuid, _: &Pivot) -> Result<(), PivotError> {
        not_here().map_err(PivotError::Refused)
    }

    async fn pivoted(&self, _: Uuid, _: &Pivot) -> Result<bool> {
        not_here()
    }

    async fn finish(&self, _: Uuid, _: &Finish) -> Result<()> {
        not_here()
    }

    async fn release(&self, _: Uuid, _: &Conclude) -> Result<()> {
        not_here()
    }

    async fn conclude(&self, _: Uuid, _: &Conclude) -> Result<()> {
        not_here()
    }
}

impl Inspect for FakeHypervisor {
    const NAME: &'static str = "QEMU";
    const ERROR_DOMAIN: i32 = 10;
    const FUNCTIONS: &'static str = "qemu";
    const PATHS: &'static [&'static str] = &["/system", "/session"];

    async fn image_snapshots(
        &self,
        _: Uuid,
        _: &Element,
        _: &BTreeMap<PathBuf, Format>,
    ) -> Result<BTreeMap<PathBuf, Vec<InternalSnapshot>>> {
        Ok(self.inside.lock().unwrap().clone())
    }
}

/// A daemon's domains over the fake; what is stored in `directory` outlives them.
pub(crate) fn domains(directory: &Path) -> Domains<FakeHypervisor> {
    domains_and_sessions(directory).0
}

/// The same on a hypervisor that others use too.
pub(crate) fn shared_domains(directory: &Path) -> Domains<FakeHypervisor> {
    over(Store::open(directory).unwrap().informing(), true).0
}

pub(crate) fn domains_and_sessions(directory: &Path) -> (Domains<FakeHypervisor>, Arc<Sessions>) {
    domains_on(Store::open(directory).unwrap())
}

pub(crate) fn domains_on(store: Store) -> (Domains<FakeHypervisor>, Arc<Sessions>) {
    over(store, false)
}

fn over(store: Store, is_shared: bool) -> (Domains<FakeHypervisor>, Arc<Sessions>) {
    let sessions = Arc::new(Sessions::default());
    let table = Table::load(Arc::new(store), Events::new(sessions.clone())).unwrap();
    let table = Arc::new(table.shared(is_shared));
    let hypervisor = Arc::new(FakeHypervisor::default());
    hypervisor.sink.set(Arc::downgrade(&table)).unwrap();
    (Domains::new(hypervisor, table), sessions)
}
