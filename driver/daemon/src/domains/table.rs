//! Every domain the daemon knows, active or not, by uuid.
//!
//! The table follows the hypervisor's events: a domain that stops and has no persistent definition
//! leaves it, whoever stopped it, and one that another program started joins it. The hypervisor
//! says what is active; the table only remembers why something is not.
//!
//! Locks: the map (short, never across an await or a file), then a domain's `book` or `life`,
//! never both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use uuid::Uuid;
use virtsnap_engine::book::Book;
use virtsnap_engine::domain::{Event, ShutOffReason};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::moment::MomentList;
use virtsnap_engine::ports::EventSink;
use virtsnap_store::{Store, StoredDomain};
use virtsnap_xml::element::Element;

use super::job::{Jobs, Operation};
use crate::events::Events;

#[derive(Debug)]
pub(crate) struct Table {
    domains: RwLock<BTreeMap<Uuid, Arc<Domain>>>,
    store: Arc<Store>,
    events: Events,
    /// Others start domains too (`Inspect::IS_SHARED`).
    is_shared: bool,
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

impl Table {
    pub(crate) fn load(store: Arc<Store>, events: Events) -> Result<Self> {
        let stored = store.load()?.domains.into_iter();
        let domains =
            stored.map(|stored| (stored.book.uuid, Arc::new(Domain::stored(stored)))).collect();
        Ok(Self { domains: RwLock::new(domains), store, events, is_shared: false })
    }

    pub(crate) fn shared(self, is_shared: bool) -> Self {
        Self { is_shared, ..self }
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// In the order of their names.
    pub(crate) fn all(&self) -> Vec<Arc<Domain>> {
        let mut all: Vec<_> = self.read().values().cloned().collect();
        all.sort_by_cached_key(|domain| domain.name());
        all
    }

    pub(crate) fn find(&self, uuid: Uuid) -> Result<Arc<Domain>> {
        self.get(uuid).ok_or_else(|| {
            Error::new(Condition::NoDomain, format!("no domain with matching uuid '{uuid}'"))
        })
    }

    pub(crate) fn get(&self, uuid: Uuid) -> Option<Arc<Domain>> {
        self.read().get(&uuid).cloned()
    }

    pub(crate) fn named(&self, name: &str) -> Option<Arc<Domain>> {
        self.read().values().find(|domain| domain.book().name == name).cloned()
    }

    pub(crate) fn insert(&self, domain: Arc<Domain>) {
        self.write().insert(domain.uuid, domain);
    }

    pub(crate) fn remove(&self, uuid: Uuid) {
        self.write().remove(&uuid);
    }

    /// The domain leaves, and what is stored of it with it: nobody could start it again.
    pub(crate) fn forget(&self, uuid: Uuid) {
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
        self.insert(Arc::new(Domain::new(uuid, name.to_owned())));
        tracing::info!(domain = name, %uuid, "it runs, and was not known");
    }

    /// Nothing is left of it when its guest is gone. On a hypervisor that others use too, its
    /// snapshots are, for when it is started again.
    pub(crate) fn ends_with_guest(&self, domain: &Domain) -> bool {
        let book = domain.book();
        let is_wanted = self.is_shared && !book.listed().is_empty();
        book.config.is_none() && !is_wanted
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Uuid, Arc<Domain>>> {
        self.domains.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Uuid, Arc<Domain>>> {
        self.domains.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventSink for Table {
    fn emit(&self, uuid: Uuid, name: &str, id: i32, event: Event) {
        match (&event, self.get(uuid)) {
            (Event::Started(_), None) => self.adopt(uuid, name),
            (Event::Stopped(reason), Some(domain)) => {
                domain.set_off(*reason);
                if self.ends_with_guest(&domain) && !domain.is_in_operation() {
                    self.forget(uuid);
                }
            }
            _ => {}
        }
        self.events.publish(uuid, name, id, &event);
    }
}
