//! Every domain the daemon knows, active or not, by uuid.
//!
//! The table is what events and the engine's records change: a domain that stops and has no
//! persistent definition leaves it, whoever stopped it. The hypervisor says what is active; the
//! table only remembers why something is not.
//!
//! Locks: `domains` (short, never across an await or a file), then a domain's `record`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use uuid::Uuid;
use virtsnap_engine::domain::{Event, ShutOffReason};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::plan::MomentChange;
use virtsnap_engine::ports::{EventSink, Records};
use virtsnap_xml::element::Element;

use super::job::Jobs;
use super::library::{Library, Stored};
use crate::events::Events;

pub(crate) struct Table {
    domains: RwLock<BTreeMap<Uuid, Arc<Domain>>>,
    library: Arc<dyn Library>,
    events: Arc<Events>,
}

#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) uuid: Uuid,
    pub(crate) jobs: Jobs,
    record: Mutex<Record>,
}

/// What is known of a domain beside its hypervisor's word.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) name: String,
    /// The persistent definition; none for a transient domain.
    pub(crate) config: Option<Element>,
    pub(crate) autostart: bool,
    /// Why it is off, when it is off.
    pub(crate) off: ShutOffReason,
}

impl Domain {
    pub(crate) fn new(uuid: Uuid, name: String) -> Self {
        let record = Record { name, config: None, autostart: false, off: ShutOffReason::Unknown };
        Self { uuid, jobs: Jobs::default(), record: Mutex::new(record) }
    }

    fn stored(stored: Stored, name: String) -> Self {
        let domain = Self::new(stored.uuid, name);
        {
            let mut record = domain.record();
            record.config = stored.config;
            record.autostart = stored.autostart;
        }
        domain
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn name(&self) -> String {
        self.record().name.clone()
    }

    pub(crate) fn config(&self) -> Option<Element> {
        self.record().config.clone()
    }

    pub(crate) fn is_persistent(&self) -> bool {
        self.record().config.is_some()
    }
}

impl Table {
    pub(crate) fn load(library: Arc<dyn Library>, events: Arc<Events>) -> Result<Self> {
        let mut domains = BTreeMap::new();
        for stored in library.load()? {
            let uuid = stored.uuid;
            let name = stored.config.as_ref().and_then(|config| config.child_text("name"));
            let Some(name) = name.or_else(|| stored.name.clone()) else {
                tracing::error!(%uuid, "a stored domain has no name; it is not listed");
                continue;
            };
            domains.insert(uuid, Arc::new(Domain::stored(stored, name)));
        }
        Ok(Self { domains: RwLock::new(domains), library, events })
    }

    pub(crate) fn library(&self) -> &dyn Library {
        &*self.library
    }

    pub(crate) fn events(&self) -> &Arc<Events> {
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
        self.read().values().find(|domain| domain.record().name == name).cloned()
    }

    pub(crate) fn insert(&self, domain: Arc<Domain>) {
        self.write().insert(domain.uuid, domain);
    }

    pub(crate) fn remove(&self, uuid: Uuid) {
        self.write().remove(&uuid);
    }

    /// The file of a domain nobody can start again is of no use to anyone.
    pub(crate) fn forget(&self, uuid: Uuid) {
        self.remove(uuid);
        if let Err(err) = self.library.forget(uuid) {
            tracing::error!(%uuid, error = %err.chain(), "cannot remove what was stored");
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<Uuid, Arc<Domain>>> {
        self.domains.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<Uuid, Arc<Domain>>> {
        self.domains.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventSink for Table {
    fn emit(&self, uuid: Uuid, name: &str, id: i32, event: Event) {
        if let Event::Stopped(reason) = event
            && let Some(domain) = self.get(uuid)
        {
            let persistent = {
                let mut record = domain.record();
                record.off = reason;
                record.config.is_some()
            };
            if !persistent && reason != ShutOffReason::FromSnapshot {
                self.forget(uuid);
            }
        }
        self.events.publish(uuid, name, id, &event);
    }
}

/// What the engine records goes to the file first, then to memory.
impl Records for Table {
    fn set_config(&self, uuid: Uuid, config: &Element) -> Result<()> {
        let domain = self.find(uuid)?;
        self.library.set_config(uuid, config)?;
        domain.record().config = Some(config.clone());
        Ok(())
    }

    fn record(&self, uuid: Uuid, change: &MomentChange) -> Result<()> {
        self.library.record(uuid, change)
    }

    fn set_owned(&self, uuid: Uuid, owned: &BTreeSet<PathBuf>) -> Result<()> {
        self.library.set_owned(uuid, owned)
    }
}
