//! The life of domains: define, start, stop and all between, with libvirt's rules for each.
//!
//! A change of one domain holds its job. Changes of the set of domains (which names and uuids are
//! taken) hold `changes` as well, always after the job.

use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;
use virtsnap_engine::domain::{
    Active, Defined, Event, PausedReason, RunningReason, ShutOffReason, Start, StartFrom, State,
};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::StateKind;
use virtsnap_engine::options::Meanwhile;
use virtsnap_engine::plan::state_files::copy_of;
use virtsnap_engine::ports::{EventSink, Hypervisor, Journals, Records};
use virtsnap_engine::snapshots::Snapshots;
use virtsnap_store::Store;
use virtsnap_xml::element::Element;

use super::definition::{self, View};
use super::job::{Job, Operation};
use super::table::{Domain, Table};

/// The domains of one hypervisor.
pub(crate) struct Domains<H> {
    pub(crate) hypervisor: Arc<H>,
    pub(crate) table: Arc<Table>,
    pub(crate) snapshots: Snapshots<H, Store, Store>,
    /// For new snapshots.
    pub(crate) meanwhile: Meanwhile,
    changes: tokio::sync::Mutex<()>,
}

/// virDomainUndefineFlags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Undefine {
    pub(crate) snapshots_metadata: bool,
    pub(crate) managed_save: bool,
    pub(crate) nvram: Nvram,
    pub(crate) tpm: Tpm,
}

/// What becomes of an emulated TPM's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tpm {
    /// It goes, unless `persistent_state='yes'` says otherwise.
    #[default]
    AsDefined,
    Keep,
    Remove,
}

impl Tpm {
    fn goes(self, config: &Element) -> bool {
        let mut tpms = config.child("devices").into_iter().flat_map(|d| d.children("tpm"));
        let stays = |tpm: &Element| {
            tpm.child("backend").and_then(|b| b.attr("persistent_state")) == Some("yes")
        };
        match self {
            Tpm::AsDefined => !tpms.any(stays),
            Tpm::Keep => false,
            Tpm::Remove => true,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Nvram {
    /// Refused if there is one.
    #[default]
    Unsaid,
    Keep,
    Remove,
}

/// Those that we made.
fn nvram_copies(domain: &Domain) -> Vec<PathBuf> {
    let book = domain.book();
    let copies = book.moments.iter().filter_map(|def| copy_of(def, StateKind::Nvram));
    copies.filter(|copy| book.owned.contains(copy)).collect()
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(Condition::OperationInvalid, message)
}

pub(super) fn failed(message: impl Into<String>) -> Error {
    Error::new(Condition::OperationFailed, message)
}

impl<H: Hypervisor> Domains<H> {
    pub(crate) fn new(hypervisor: Arc<H>, table: Arc<Table>) -> Self {
        let store = table.store().clone();
        let snapshots =
            Snapshots::new(hypervisor.clone(), store.clone(), store).beside(table.clone());
        let (changes, meanwhile) = (tokio::sync::Mutex::default(), Meanwhile::default());
        Self { hypervisor, table, snapshots, meanwhile, changes }
    }

    /// As the administrator said.
    pub(crate) fn with(self, meanwhile: Meanwhile) -> Self {
        Self { meanwhile, ..self }
    }

    // -- looking -------------------------------------------------------------------------------

    pub(crate) fn find(&self, uuid: Uuid) -> Result<Arc<Domain>> {
        self.table.find(uuid)
    }

    pub(crate) fn named(&self, name: &str) -> Result<Arc<Domain>> {
        self.table.named(name).ok_or_else(|| {
            Error::new(Condition::NoDomain, format!("no domain with matching name '{name}'"))
        })
    }

    pub(crate) fn with_id(&self, id: i32) -> Result<Arc<Domain>> {
        let active = self.hypervisor.all_active().into_iter().find(|active| active.id == id);
        active.and_then(|active| self.table.get(active.uuid)).ok_or_else(|| {
            Error::new(Condition::NoDomain, format!("no domain with matching id {id}"))
        })
    }

    pub(crate) fn active(&self, domain: &Domain) -> Option<Active> {
        let mut active = self.hypervisor.active(domain.uuid)?;
        if active.state == State::Unknown
            && let Some(config) = domain.config()
        {
            // What it was started with is the best that can be told of it.
            active.live = config;
        }
        Some(active)
    }

    /// Refused with libvirt's words when it is not running.
    pub(crate) fn running(&self, domain: &Domain) -> Result<Active> {
        self.active(domain).ok_or_else(|| invalid("domain is not running"))
    }

    pub(crate) fn id(&self, domain: &Domain) -> i32 {
        self.active(domain).map_or(-1, |active| active.id)
    }

    pub(crate) fn state(&self, domain: &Domain) -> State {
        match self.active(domain) {
            Some(active) => active.state,
            None => State::ShutOff(domain.off()),
        }
    }

    pub(crate) fn xml(&self, domain: &Domain, view: View) -> Result<Element> {
        let active = self.active(domain);
        let config = domain.config();
        match (active, config) {
            (Some(active), None) => Ok(definition::view(&active.live, Some(active.id), view)),
            (Some(active), Some(_)) if !view.inactive => {
                Ok(definition::view(&active.live, Some(active.id), view))
            }
            (_, Some(config)) => {
                // A persistent definition has nothing of a running one to lose.
                let view = View { inactive: false, ..view };
                Ok(definition::view(&config, None, view))
            }
            (None, None) => Err(self.vanished(domain)),
        }
    }

    /// The definition that holds now: live when running, else the persistent one.
    pub(crate) fn current(&self, domain: &Domain) -> Result<Element> {
        match self.active(domain) {
            Some(active) => Ok(active.live),
            None => domain.config().ok_or_else(|| self.vanished(domain)),
        }
    }

    pub(crate) fn persistent(&self, domain: &Domain) -> Result<Element> {
        domain
            .config()
            .ok_or_else(|| invalid("transient domains do not have any persistent config"))
    }

    fn vanished(&self, domain: &Domain) -> Error {
        let message = format!("no domain with matching uuid '{}'", domain.uuid);
        Error::new(Condition::NoDomain, message)
    }

    // -- definitions ---------------------------------------------------------------------------

    pub(crate) async fn define(&self, xml: &str) -> Result<Arc<Domain>> {
        let mut asked = definition::parse(xml)?;
        asked.remove_attr("id");
        let (uuid, name) = definition::identify(&mut asked)?;
        let config = self.complete(asked).await?;
        let known = self.table.get(uuid);
        let _job = match &known {
            Some(domain) => Some(self.settled_job(domain, Operation::Change("a define")).await?),
            None => None,
        };
        let _changes = self.changes.lock().await;
        let domain = self.admit(uuid, &name)?;
        let how = if domain.is_persistent() { Defined::Updated } else { Defined::Added };
        self.table.store().set_config(uuid, &config)?;
        domain.book().config = Some(config);
        self.table.insert(domain.clone());
        self.note_name(uuid, &name);
        self.table.emit(uuid, &name, self.id(&domain), Event::Defined(how));
        Ok(domain)
    }

    /// The definition has the name, and counts.
    fn note_name(&self, domain: Uuid, name: &str) {
        if let Err(err) = self.table.store().set_name(domain, name) {
            tracing::warn!(domain = name, error = %err.chain(), "its name is noted later");
        }
    }

    /// Off the runtime's threads: the first definition for an emulator has to ask it what it can.
    pub(super) async fn complete(&self, definition: Element) -> Result<Element> {
        let hypervisor = self.hypervisor.clone();
        let task = tokio::task::spawn_blocking(move || hypervisor.complete(definition));
        task.await.unwrap_or_else(|err| {
            let message = "completing the definition was broken off";
            Err(Error::new(Condition::Internal, message).caused_by(err))
        })
    }

    /// The domain of that uuid, or a new one that is not listed yet; refused when the name or the
    /// uuid belongs to another.
    fn admit(&self, uuid: Uuid, name: &str) -> Result<Arc<Domain>> {
        if let Some(domain) = self.table.get(uuid) {
            let known = domain.name();
            if known != name {
                let message = format!("domain '{known}' is already defined with uuid {uuid}");
                return Err(failed(message));
            }
            return Ok(domain);
        }
        if let Some(other) = self.table.named(name) {
            let message = format!("domain '{name}' already exists with uuid {}", other.uuid);
            return Err(failed(message));
        }
        let waiting = self.table.waiting(uuid, name);
        Ok(waiting.unwrap_or_else(|| Arc::new(Domain::new(uuid, name.to_owned()))))
    }

    pub(crate) async fn undefine(&self, domain: &Domain, options: Undefine) -> Result<()> {
        let _job = self.settled_job(domain, Operation::Change("an undefine")).await?;
        let _changes = self.changes.lock().await;
        let Some(config) = domain.config() else {
            return Err(invalid("cannot undefine transient domain"));
        };
        let active = self.active(domain).is_some();
        if !active {
            self.check_nothing_is_lost(domain, &config, options)?;
        }
        let name = domain.name();
        if active {
            self.table.store().remove_config(domain.uuid)?;
            domain.book().config = None;
            domain.set_autostart(false);
        } else {
            let with = self.state_that_goes(domain, &config, options);
            self.table.store().forget_with(domain.uuid, &with)?;
            self.table.remove(domain.uuid);
        }
        self.table.emit(domain.uuid, &name, self.id(domain), Event::Undefined);
        Ok(())
    }

    /// What snapshots kept of the variable store goes with it; the state of a TPM, with all that
    /// snapshots kept of it. What another domain names, too, stays.
    fn state_that_goes(
        &self,
        domain: &Domain,
        config: &Element,
        options: Undefine,
    ) -> Vec<PathBuf> {
        let mut files = Vec::new();
        if options.nvram == Nvram::Remove {
            let nvram = config.at(&["os", "nvram"]).map(Element::text);
            files.extend(nvram.filter(|path| !path.is_empty()).map(PathBuf::from));
            files.extend(nvram_copies(domain));
        }
        if options.tpm.goes(config) {
            files.extend(self.hypervisor.tpm_state(domain.uuid));
        }
        let mut others = self.table.all_with_waiting();
        others.retain(|other| other.uuid != domain.uuid);
        files.retain(|file| {
            let needs = |other: &Arc<Domain>| {
                let text = file.to_string_lossy();
                other.book().refers_to(file)
                    || self.active(other).is_some_and(|active| active.live.mentions(&text))
            };
            let Some(other) = others.iter().find(|other| needs(other)) else { return true };
            let (file, other) = (file.display(), other.name());
            tracing::warn!(%file, other, "it stays: another domain needs it");
            false
        });
        files
    }

    fn check_nothing_is_lost(
        &self,
        domain: &Domain,
        config: &Element,
        options: Undefine,
    ) -> Result<()> {
        let (snapshots, saved) = {
            let book = domain.book();
            (book.moments.len(), book.has_managed_save)
        };
        if saved && !options.managed_save {
            return Err(invalid("refusing to undefine while domain managed save image exists"));
        }
        if snapshots > 0 && !options.snapshots_metadata {
            return Err(invalid(format!(
                "cannot delete inactive domain with {snapshots} snapshots"
            )));
        }
        let nvram = config.at(&["os", "nvram"]).map(Element::text).filter(|path| !path.is_empty());
        let is_there = nvram.is_some_and(|path| std::path::Path::new(&path).exists());
        if is_there && options.nvram == Nvram::Unsaid {
            return Err(invalid("cannot undefine domain with nvram"));
        }
        Ok(())
    }

    /// Changes the persistent definition. The caller has the domain's job.
    pub(crate) fn store_config(
        &self,
        domain: &Domain,
        change: impl FnOnce(&mut Element) -> Result<()>,
    ) -> Result<()> {
        let mut config = self.persistent(domain)?;
        change(&mut config)?;
        let config = self.hypervisor.complete(config)?;
        self.table.store().set_config(domain.uuid, &config)?;
        domain.book().config = Some(config);
        Ok(())
    }

    /// A transient domain that an operation left without a process is gone, unless the operation
    /// itself is still in doubt: then what is stored is needed to settle it.
    pub(crate) fn drop_if_gone(&self, domain: &Domain) {
        if domain.is_persistent() || self.active(domain).is_some() {
            return;
        }
        match self.table.store().unfinished() {
            Ok(all) if all.iter().all(|one| one.domain != domain.uuid) => {
                tracing::info!(domain = domain.name(), "a transient domain has ended");
                self.table.leaves(domain);
            }
            Ok(_) => {}
            Err(err) => tracing::error!(error = %err.chain(), "cannot read the journals"),
        }
    }

    pub(crate) async fn rename(&self, domain: &Domain, new_name: &str) -> Result<()> {
        definition::check_name(new_name)?;
        let _job = self.settled_job(domain, Operation::Change("a rename")).await?;
        let _changes = self.changes.lock().await;
        let Some(mut config) = domain.config() else {
            return Err(invalid("cannot rename a transient domain"));
        };
        if self.active(domain).is_some() {
            return Err(invalid("cannot rename active domain"));
        }
        let old_name = domain.name();
        if old_name == new_name {
            return Err(invalid("Can't rename domain to itself"));
        }
        if self.table.named(new_name).is_some() {
            return Err(invalid(format!("domain with name '{new_name}' already exists")));
        }
        config.child_or_insert("name").set_text(new_name);
        // With this it has the new name. Whatever has not been rewritten when a daemon starts is
        // read with it.
        self.table.store().set_config(domain.uuid, &config)?;
        {
            let mut book = domain.book();
            book.config = Some(config);
            book.name = new_name.to_owned();
        }
        self.note_name(domain.uuid, new_name);
        self.table.rename_in_moments(domain, new_name);
        self.table.events().renamed(domain.uuid, &old_name, new_name);
        Ok(())
    }

    pub(crate) async fn set_autostart(&self, domain: &Domain, autostart: bool) -> Result<()> {
        let _job = self.job(domain, Operation::Change("a change of autostart")).await?;
        if !domain.is_persistent() {
            return Err(invalid("cannot set autostart for transient domain"));
        }
        self.table.store().set_autostart(domain.uuid, autostart)?;
        domain.set_autostart(autostart);
        Ok(())
    }

    // -- running -------------------------------------------------------------------------------

    pub(crate) async fn start(&self, domain: &Domain, paused: bool) -> Result<Active> {
        self.start_or_restore(domain, paused, false).await
    }

    /// A managed save is where it starts from, unless it is to boot: then the save goes.
    pub(crate) async fn start_or_restore(
        &self,
        domain: &Domain,
        paused: bool,
        force_boot: bool,
    ) -> Result<Active> {
        let _job = self.settled_job(domain, Operation::Start).await?;
        if self.active(domain).is_some() {
            return Err(invalid("domain is already running"));
        }
        let has_save = domain.book().has_managed_save;
        if has_save && force_boot {
            self.discard_managed(domain)?;
        } else if has_save && let Some(active) = self.restore_managed(domain, paused).await? {
            return Ok(active);
        }
        let config = domain.config().ok_or_else(|| self.vanished(domain))?;
        self.bring_up(domain, config, paused).await
    }

    /// virDomainCreateXML: a domain that exists only while it runs.
    pub(crate) async fn create(&self, xml: &str, paused: bool) -> Result<(Arc<Domain>, Active)> {
        let mut asked = definition::parse(xml)?;
        asked.remove_attr("id");
        let (uuid, name) = definition::identify(&mut asked)?;
        let definition = self.complete(asked).await?;
        let domain = self.admit_for_start(uuid, &name).await?;
        let started = async {
            let _job = self.settled_job(&domain, Operation::Start).await?;
            if self.active(&domain).is_some() {
                return Err(invalid(format!("domain '{name}' is already active")));
            }
            self.bring_up(&domain, definition, paused).await
        };
        match started.await {
            Ok(active) => Ok((domain, active)),
            Err(err) => {
                self.drop_if_gone(&domain);
                Err(err)
            }
        }
    }

    /// The listed domain of a definition that is to be started, which need not be persistent.
    pub(super) async fn admit_for_start(&self, uuid: Uuid, name: &str) -> Result<Arc<Domain>> {
        let _changes = self.changes.lock().await;
        let domain = self.admit(uuid, name)?;
        if self.table.get(uuid).is_some() && !domain.is_persistent() {
            return Err(invalid(format!("domain '{name}' is already active")));
        }
        if !domain.is_persistent() {
            // Its snapshots need a name to be found under when the daemon is another.
            self.table.store().set_name(uuid, name)?;
        }
        self.table.insert(domain.clone());
        Ok(domain)
    }

    async fn bring_up(&self, domain: &Domain, with: Element, paused: bool) -> Result<Active> {
        let started = self.hypervisor.start(with, Start { paused, from: StartFrom::Boot }).await;
        if started.is_err() {
            domain.set_off(ShutOffReason::Failed);
        }
        started
    }

    pub(crate) async fn destroy(&self, domain: &Domain) -> Result<()> {
        // No job: this is how one gets out of a job that hangs. The hypervisor's own end of the
        // process is what everything else then notices.
        self.running(domain)?;
        self.hypervisor.destroy(domain.uuid, ShutOffReason::Destroyed).await
    }

    pub(crate) async fn suspend(&self, domain: &Domain) -> Result<()> {
        let _job = self.job(domain, Operation::Change("a suspend")).await?;
        match self.running(domain)?.state {
            State::PmSuspended => Err(invalid("domain is pmsuspended")),
            State::Paused(PausedReason::User) => Ok(()),
            _ => self.hypervisor.suspend(domain.uuid).await,
        }
    }

    pub(crate) async fn resume(&self, domain: &Domain) -> Result<()> {
        let _job = self.job(domain, Operation::Change("a resume")).await?;
        match self.running(domain)?.state {
            State::PmSuspended => Err(invalid("domain is pmsuspended")),
            State::Running(RunningReason::Crashed) => self.hypervisor.resume(domain.uuid).await,
            State::Running(_) => Err(invalid("domain is already running")),
            _ => self.hypervisor.resume(domain.uuid).await,
        }
    }

    pub(crate) async fn shutdown(&self, domain: &Domain) -> Result<()> {
        let _job = self.job(domain, Operation::Change("a shutdown")).await?;
        self.running(domain)?;
        self.hypervisor.shutdown(domain.uuid).await
    }

    pub(crate) async fn reboot(&self, domain: &Domain) -> Result<()> {
        let _job = self.job(domain, Operation::Change("a reboot")).await?;
        self.running(domain)?;
        self.hypervisor.reboot(domain.uuid).await
    }

    pub(crate) async fn reset(&self, domain: &Domain) -> Result<()> {
        let _job = self.job(domain, Operation::Change("a reset")).await?;
        self.running(domain)?;
        self.hypervisor.reset(domain.uuid).await
    }

    // -- start-up ------------------------------------------------------------------------------

    /// Takes up again the domains that outlived the daemon.
    pub(crate) async fn reconnect(&self) -> Result<usize> {
        let alive = self.hypervisor.reconnect().await?;
        for active in &alive {
            if self.table.get(active.uuid).is_none() {
                self.table.adopt(active.uuid, &active.name);
            }
        }
        self.settle_managed();
        Ok(alive.len())
    }

    /// Transient domains that ended while there was no daemon are gone. Where nobody else could
    /// start it, one with snapshots stays listed, so that a definition can bring it back: perhaps
    /// its guest was only not found.
    pub(crate) fn drop_ended(&self) {
        for domain in self.table.all() {
            let has_snapshots = !domain.book().listed().is_empty();
            if !has_snapshots || self.table.is_shared() {
                self.drop_if_gone(&domain);
            }
        }
    }

    /// Starts what is marked for it. One that fails does not keep the others down.
    pub(crate) async fn autostart(&self) {
        for domain in self.table.all() {
            if !domain.autostart() || self.active(&domain).is_some() {
                continue;
            }
            let name = domain.name();
            match self.start(&domain, false).await {
                Ok(active) => tracing::info!(domain = name, id = active.id, "autostarted"),
                Err(err) => {
                    tracing::error!(domain = name, error = %err.chain(), "autostart failed");
                }
            }
        }
    }

    /// The job for whatever starts the domain or changes its definition: an operation that was
    /// left unfinished comes first. It may yet change both, and remove images they name.
    pub(crate) async fn settled_job(&self, domain: &Domain, operation: Operation) -> Result<Job> {
        let job = self.job(domain, operation).await?;
        self.snapshots.settle(&domain.book).await?;
        Ok(job)
    }

    pub(crate) async fn job(&self, domain: &Domain, operation: Operation) -> Result<Job> {
        let job = domain.jobs.begin(&domain.name(), operation).await?;
        // While we waited it may have been undefined or, transient, have stopped.
        self.table.find(domain.uuid)?;
        Ok(job)
    }
}

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;
