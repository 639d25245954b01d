//! A hypervisor and a library in memory, for the daemon's own tests: life cycle only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use uuid::Uuid;
use virtsnap_engine::domain::{
    Active, Event, PausedReason, Resumed, RunningReason, ShutOffReason, ShutdownBy, Start, Started,
    State, Suspended,
};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::{DomainFacts, PathKind};
use virtsnap_engine::plan::{Conclude, Finish, MomentChange, Pivot, Plan, Step};
use virtsnap_engine::ports::{
    EventSink, Hypervisor, Journal, Journals, PivotError, Records, Subject, Unfinished,
};
use virtsnap_xml::element::Element;

use crate::domains::definition;
use crate::domains::library::{Library, Parts, Stored, new_book};
use crate::domains::{Domains, Table};
use crate::events::Events;
use crate::session::Sessions;

#[derive(Default)]
pub(crate) struct FakeHypervisor {
    active: Mutex<BTreeMap<Uuid, Active>>,
    next_id: AtomicI32,
    sink: OnceLock<Arc<Table<FakeLibrary>>>,
}

impl FakeHypervisor {
    fn tell(&self, active: &Active, id: i32, event: Event) {
        if let Some(sink) = self.sink.get() {
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

    async fn facts(&self, _: &Subject) -> Result<DomainFacts> {
        not_here()
    }

    async fn probe(&self, _: &std::path::Path) -> Result<PathKind> {
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

    async fn conclude(&self, _: Uuid, _: &Conclude) -> Result<()> {
        not_here()
    }
}

/// Definitions in memory. No journals: the fake hypervisor has no snapshots.
#[derive(Default)]
pub(crate) struct FakeLibrary(Mutex<BTreeMap<Uuid, Kept>>);

#[derive(Clone, Default)]
struct Kept {
    name: String,
    config: Option<Element>,
    autostart: bool,
}

impl FakeLibrary {
    fn change(&self, uuid: Uuid, change: impl FnOnce(&mut Kept)) -> Result<()> {
        change(self.0.lock().unwrap().entry(uuid).or_default());
        Ok(())
    }
}

impl Records for FakeLibrary {
    fn set_config(&self, domain: Uuid, config: &Element) -> Result<()> {
        self.change(domain, |kept| kept.config = Some(config.clone()))
    }

    fn record(&self, _: Uuid, _: &MomentChange) -> Result<()> {
        Ok(())
    }

    fn set_owned(&self, _: Uuid, _: &BTreeSet<PathBuf>) -> Result<()> {
        Ok(())
    }
}

impl Journals for FakeLibrary {
    fn begin(&self, _: Uuid, _: &Plan) -> Result<Box<dyn Journal>> {
        not_here()
    }

    fn unfinished(&self) -> Result<Vec<Unfinished>> {
        Ok(Vec::new())
    }

    fn resume(&self, _: Uuid) -> Result<Box<dyn Journal>> {
        not_here()
    }
}

impl Library for FakeLibrary {
    fn load(&self) -> Result<Vec<Stored>> {
        let all = self.0.lock().unwrap();
        let stored = all.iter().map(|(uuid, kept)| {
            let mut book = new_book(*uuid, kept.name.clone()).into_inner().unwrap();
            book.config = kept.config.clone();
            Stored { book, autostart: kept.autostart }
        });
        Ok(stored.collect())
    }

    fn set_name(&self, domain: Uuid, name: &str) -> Result<()> {
        self.change(domain, |kept| kept.name = name.to_owned())
    }

    fn set_autostart(&self, domain: Uuid, autostart: bool) -> Result<()> {
        self.change(domain, |kept| kept.autostart = autostart)
    }

    fn remove_config(&self, domain: Uuid) -> Result<()> {
        self.change(domain, |kept| kept.config = None)
    }

    fn forget(&self, domain: Uuid) -> Result<()> {
        self.0.lock().unwrap().remove(&domain);
        Ok(())
    }
}

pub(crate) struct Fakes;

impl Parts for Fakes {
    type Hypervisor = FakeHypervisor;
    type Library = FakeLibrary;
}

/// A daemon's domains over the fakes; the library outlives it, as files do.
pub(crate) fn domains(library: &Arc<FakeLibrary>) -> Domains<Fakes> {
    let events = Events::new(Arc::new(Sessions::default()));
    let table = Arc::new(Table::load(library.clone(), events).unwrap());
    let hypervisor = FakeHypervisor::default();
    hypervisor.sink.set(table.clone()).ok().unwrap();
    Domains::new(Arc::new(hypervisor), table)
}
