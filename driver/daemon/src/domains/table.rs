//! Every domain the daemon knows, active or not, by uuid.
//!
//! The table follows the hypervisor's events: a domain that stops and has no persistent definition
//! leaves it, whoever stopped it, and one that another program started joins it. The hypervisor
//! says what is active; the table only remembers why something is not.
//!
//! Where other programs start domains too, the snapshots of one that has left wait for whoever brings
//! its uuid back: by a start beside us, by a definition, by a restore. Until then no client sees it,
//! but no file that it needs is taken from it.
//!
//! Locks: the map (short, never across an await or a file), then a domain's `book` or `life`,
//! never both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use uuid::Uuid;
use virtsnap_engine::book::Book;
use virtsnap_engine::domain::{Event, ShutOffReason};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::moment::MomentList;
use virtsnap_engine::plan::MomentChange;
use virtsnap_engine::ports::{EventSink, Needed, Neighbours, Records};
use virtsnap_store::{Store, StoredDomain};
use virtsnap_xml::element::Element;

use super::job::{Jobs, Operation};
use crate::events::Events;

#[derive(Debug)]
pub(crate) struct Table {
    domains: RwLock<Known>,
    store: Arc<Store>,
    events: Events,
    /// Others start domains too (`Inspect::IS_SHARED`).
    is_shared: bool,
}

/// No domain is in both.
#[derive(Debug, Default)]
struct Known {
    listed: BTreeMap<Uuid, Arc<Domain>>,
    waiting: BTreeMap<Uuid, Arc<Domain>>,
}

#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) uuid: Uuid,
    pub(crate) jobs: Jobs,
    /// Name, persistent definition, snapshots, files: what the engine works on.
    pub(crate) book: Mutex<Book>,
    life: Mutex<Life>,
}

#[derive(Debug)]
struct Life {
    autostart: bool,
    /// Why it is off, when it is off.
    off: ShutOffReason,
}

impl Domain {
    pub(crate) fn new(uuid: Uuid, name: String) -> Self {
        let life = Life { autostart: false, off: ShutOffReason::Unknown };
        let book = Book {
            uuid,
            name,
            config: None,
            moments: MomentList::default(),
            owned: BTreeSet::new(),
            has_managed_save: false,
            has_unreadable_moments: false,
            left: None,
        };
        Self { uuid, jobs: Jobs::default(), book: Mutex::new(book), life: Mutex::new(life) }
    }

    fn stored(stored: StoredDomain) -> Self {
        let life = Life { autostart: stored.autostart, off: ShutOffReason::Unknown };
        Self {
            uuid: stored.book.uuid,
            jobs: Jobs::default(),
            book: Mutex::new(stored.book),
            life: Mutex::new(life),
        }
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn name(&self) -> String {
        self.book().name.clone()
    }

    pub(crate) fn config(&self) -> Option<Element> {
        self.book().config.clone()
    }

    pub(crate) fn is_persistent(&self) -> bool {
        self.book().config.is_some()
    }

    pub(crate) fn autostart(&self) -> bool {
        self.life().autostart
    }

    pub(crate) fn set_autostart(&self, autostart: bool) {
        self.life().autostart = autostart;
    }

    pub(crate) fn off(&self) -> ShutOffReason {
        self.life().off
    }

    pub(crate) fn set_off(&self, reason: ShutOffReason) {
        self.life().off = reason;
    }

    /// An operation on its snapshots goes on: it may bring the domain up again, and it needs what
    /// is stored of it.
    fn is_in_operation(&self) -> bool {
        self.jobs.running().is_some_and(|job| match job.operation {
            Operation::SnapshotCreate | Operation::SnapshotRevert | Operation::SnapshotDelete => {
                true
            }
            Operation::Change(_) | Operation::Start | Operation::Save | Operation::Restore => false,
        })
    }
}

impl Neighbours for Table {
    fn images(&self, but: Uuid) -> BTreeMap<PathBuf, Needed> {
        let others = self.all_with_waiting().into_iter().filter(|other| other.uuid != but);
        others.flat_map(|other| other.book().images()).collect()
    }
}

impl Table {
    pub(crate) fn load(store: Arc<Store>, events: Events) -> Result<Self> {
        let stored = store.load()?.domains.into_iter();
        let listed =
            stored.map(|stored| (stored.book.uuid, Arc::new(Domain::stored(stored)))).collect();
        let domains = RwLock::new(Known { listed, ..Known::default() });
        Ok(Self { domains, store, events, is_shared: false })
    }

    pub(crate) fn shared(self, is_shared: bool) -> Self {
        Self { is_shared, ..self }
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// In the order of their names.
    pub(crate) fn all(&self) -> Vec<Arc<Domain>> {
        let mut all: Vec<_> = self.read().listed.values().cloned().collect();
        all.sort_by_cached_key(|domain| domain.name());
        all
    }

    /// With those that no client sees: whose files nobody may take.
    pub(crate) fn all_with_waiting(&self) -> Vec<Arc<Domain>> {
        let known = self.read();
        known.listed.values().chain(known.waiting.values()).cloned().collect()
    }

    /// One that was here and may be brought back, by that name.
    pub(crate) fn waiting(&self, uuid: Uuid, name: &str) -> Option<Arc<Domain>> {
        let domain = self.read().waiting.get(&uuid).cloned()?;
        if domain.name() != name {
            name.clone_into(&mut domain.book().name);
            self.rename_in_moments(&domain, name);
        }
        Some(domain)
    }

    pub(crate) fn find(&self, uuid: Uuid) -> Result<Arc<Domain>> {
        self.get(uuid).ok_or_else(|| {
            Error::new(Condition::NoDomain, format!("no domain with matching uuid '{uuid}'"))
        })
    }

    pub(crate) fn get(&self, uuid: Uuid) -> Option<Arc<Domain>> {
        self.read().listed.get(&uuid).cloned()
    }

    pub(crate) fn named(&self, name: &str) -> Option<Arc<Domain>> {
        self.read().listed.values().find(|domain| domain.book().name == name).cloned()
    }

    pub(crate) fn insert(&self, domain: Arc<Domain>) {
        let mut known = self.write();
        known.waiting.remove(&domain.uuid);
        known.listed.insert(domain.uuid, domain);
    }

    pub(crate) fn remove(&self, uuid: Uuid) {
        self.write().listed.remove(&uuid);
    }

    /// A domain without a persistent definition has ended, and leaves. Where nobody could start it
    /// again what is stored of it goes with it; else its snapshots wait for that.
    pub(crate) fn leaves(&self, domain: &Domain) {
        let uuid = domain.uuid;
        let is_needed = {
            let book = domain.book();
            !book.listed().is_empty() || book.has_unreadable_moments || book.left.is_some()
        };
        if self.is_shared && is_needed {
            tracing::info!(domain = domain.name(), %uuid, "its snapshots wait for its next start");
            let mut known = self.write();
            if let Some(domain) = known.listed.remove(&uuid) {
                known.waiting.insert(uuid, domain);
            }
            return;
        }
        self.remove(uuid);
        if let Err(err) = self.store.forget(uuid) {
            tracing::error!(%uuid, error = %err.chain(), "cannot remove what was stored");
        }
    }

    /// A domain that runs and that nobody here has started.
    pub(crate) fn adopt(&self, uuid: Uuid, name: &str) {
        if let Some(other) = self.named(name) {
            let (other, known) = (other.uuid, name);
            tracing::warn!(%uuid, %other, known, "two domains have one name: say the uuid");
        }
        // Its snapshots need a name to be found under when the daemon is another.
        if let Err(err) = self.store.set_name(uuid, name) {
            tracing::warn!(domain = name, error = %err.chain(), "its name cannot be noted");
        }
        let waiting = self.waiting(uuid, name);
        self.insert(waiting.unwrap_or_else(|| Arc::new(Domain::new(uuid, name.to_owned()))));
        tracing::info!(domain = name, %uuid, "it runs, and was not known");
    }

    pub(crate) fn rename_in_moments(&self, domain: &Domain, name: &str) {
        let change = renamed(&domain.book().moments, name);
        if change.write.is_empty() {
            return;
        }
        domain.book().moments.apply(&change);
        if let Err(err) = self.store.record(domain.uuid, &change) {
            tracing::warn!(domain = name, error = %err.chain(), "its snapshots are renamed later");
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.domains.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.domains.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A snapshot holds a definition of the domain, which has its name.
pub(crate) fn renamed(moments: &MomentList, name: &str) -> MomentChange {
    let write = moments.iter().cloned().map(|mut moment| {
        let definitions = moment.domain.iter_mut().chain(&mut moment.inactive_domain);
        definitions.for_each(|domain| domain.child_or_insert("name").set_text(name));
        moment
    });
    let current = moments.current().map(str::to_owned);
    MomentChange { write: write.collect(), forget: Vec::new(), current }
}

impl EventSink for Table {
    fn emit(&self, uuid: Uuid, name: &str, id: i32, event: Event) {
        match (&event, self.get(uuid)) {
            (Event::Started(_), None) => self.adopt(uuid, name),
            (Event::Stopped(reason), Some(domain)) => {
                domain.set_off(*reason);
                if !domain.is_persistent() && !domain.is_in_operation() {
                    self.leaves(&domain);
                }
            }
            _ => {}
        }
        self.events.publish(uuid, name, id, &event);
    }
}
