//! The life of domains: define, start, stop and all between, with libvirt's rules for each.
//!
//! A change of one domain holds its job. Changes of the set of domains (which names and uuids are
//! taken) hold `changes` as well, always after the job.

use std::sync::Arc;

use uuid::Uuid;
use virtsnap_engine::domain::{
    Active, Defined, Event, PausedReason, RunningReason, ShutOffReason, Start, StartFrom, State,
};
use virtsnap_engine::error::{Condition, Error, Result};
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
    changes: tokio::sync::Mutex<()>,
}

/// virDomainUndefineFlags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Undefine {
    pub(crate) snapshots_metadata: bool,
    pub(crate) managed_save: bool,
    pub(crate) nvram: Nvram,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Nvram {
    /// Refused if there is one.
    #[default]
    Unsaid,
    Keep,
    Remove,
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Condition::OperationInvalid, message)
}

fn failed(message: impl Into<String>) -> Error {
    Error::new(Condition::OperationFailed, message)
}

impl<H: Hypervisor> Domains<H> {
    pub(crate) fn new(hypervisor: Arc<H>, table: Arc<Table>) -> Self {
        let store = table.store().clone();
        let snapshots = Snapshots::new(hypervisor.clone(), store.clone(), store);
        Self { hypervisor, table, snapshots, changes: tokio::sync::Mutex::default() }
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
        self.hypervisor.active(domain.uuid)
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
        self.table.store().set_name(uuid, &name)?;
        self.table.store().set_config(uuid, &config)?;
        domain.book().config = Some(config);
        self.table.insert(domain.clone());
        self.table.emit(uuid, &name, self.id(&domain), Event::Defined(how));
        Ok(domain)
    }

    /// Off the runtime's threads: the first definition for an emulator has to ask it what it can.
    async fn complete(&self, definition: Element) -> Result<Element> {
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
        Ok(Arc::new(Domain::new(uuid, name.to_owned())))
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
            self.table.store().forget(domain.uuid)?;
            self.table.remove(domain.uuid);
        }
        self.table.emit(domain.uuid, &name, self.id(domain), Event::Undefined);
        Ok(())
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
        let Some(nvram) = nvram.filter(|path| std::path::Path::new(path).exists()) else {
            return Ok(());
        };
        match options.nvram {
            Nvram::Keep => Ok(()),
            Nvram::Unsaid => Err(invalid("cannot undefine domain with nvram")),
            Nvram::Remove => std::fs::remove_file(&nvram).map_err(|err| {
                let errno = err.raw_os_error().unwrap_or_default();
                Error::new(Condition::System(errno), format!("failed to remove nvram '{nvram}'"))
                    .caused_by(err)
            }),
        }
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
                self.table.forget(domain.uuid);
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
        self.table.store().set_name(domain.uuid, new_name)?;
        self.table.store().set_config(domain.uuid, &config)?;
        {
            let mut book = domain.book();
            book.config = Some(config);
            book.name = new_name.to_owned();
        }
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
        let _job = self.settled_job(domain, Operation::Start).await?;
        if self.active(domain).is_some() {
            return Err(invalid("domain is already running"));
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
        let domain = {
            let _changes = self.changes.lock().await;
            let domain = self.admit(uuid, &name)?;
            if self.table.get(uuid).is_some() && !domain.is_persistent() {
                return Err(invalid(format!("domain '{name}' is already active")));
            }
            if !domain.is_persistent() {
                // Its snapshots need a name to be found under when the daemon is another.
                self.table.store().set_name(uuid, &name)?;
            }
            self.table.insert(domain.clone());
            domain
        };
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
                self.table.insert(Arc::new(Domain::new(active.uuid, active.name.clone())));
            }
        }
        Ok(alive.len())
    }

    /// Transient domains that ended while there was no daemon are gone. One with snapshots stays
    /// listed, so that a definition can bring it back: perhaps its guest was only not found.
    pub(crate) fn drop_ended(&self) {
        for domain in self.table.all() {
            let has_snapshots = !domain.book().moments.is_empty();
            if !has_snapshots {
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
mod tests {
    use virtsnap_engine::plan::{self, Finish, MomentChange, Pivot, Plan};
    use virtsnap_engine::ports::{Entry, Journals};
    use virtsnap_xml::snapshot::Definition;

    use super::*;
    use crate::fake::{self, FakeHypervisor};

    fn xml(name: &str, uuid: u128, inside: &str) -> String {
        let uuid = Uuid::from_u128(uuid);
        format!("<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid>{inside}</domain>")
    }

    fn domains() -> (tempfile::TempDir, Domains<FakeHypervisor>) {
        let directory = tempfile::tempdir().unwrap();
        let domains = fake::domains(directory.path());
        (directory, domains)
    }

    #[tokio::test]
    async fn names_and_uuids_belong_to_one_domain() {
        let (_directory, domains) = domains();
        domains.define(&xml("a", 1, "")).await.unwrap();
        let err = domains.define(&xml("b", 1, "")).await.unwrap_err();
        assert_eq!(err.condition, Condition::OperationFailed);
        assert!(err.message.contains("'a' is already defined with uuid"), "{}", err.message);
        let err = domains.create(&xml("a", 2, ""), false).await.unwrap_err();
        assert!(err.message.contains("'a' already exists with uuid"), "{}", err.message);
    }

    #[tokio::test]
    async fn a_refused_definition_changes_nothing() {
        let (_directory, domains) = domains();
        let vm = domains.define(&xml("a", 1, "<title>old</title>")).await.unwrap();
        assert!(domains.define(&xml("a", 1, "<unknown/>")).await.is_err());
        let shown = domains.xml(&vm, View::default()).unwrap();
        assert_eq!(shown.child_text("title").as_deref(), Some("old"));
    }

    #[tokio::test]
    async fn a_running_domain_is_redefined_for_its_next_start() {
        let (_directory, domains) = domains();
        let vm = domains.define(&xml("a", 1, "<title>old</title>")).await.unwrap();
        domains.start(&vm, false).await.unwrap();
        domains.define(&xml("a", 1, "<title>new</title>")).await.unwrap();
        let title = |inactive| {
            let view = View { inactive, ..View::default() };
            domains.xml(&vm, view).unwrap().child_text("title").unwrap()
        };
        assert_eq!((title(false).as_str(), title(true).as_str()), ("old", "new"));
    }

    #[tokio::test]
    async fn a_transient_domain_is_gone_when_it_stops() {
        let (_directory, domains) = domains();
        let (vm, active) = domains.create(&xml("a", 1, ""), false).await.unwrap();
        assert_eq!(domains.with_id(active.id).unwrap().uuid, vm.uuid);
        assert!(domains.create(&xml("a", 1, ""), false).await.is_err());
        domains.destroy(&vm).await.unwrap();
        let err = domains.named("a").unwrap_err();
        assert_eq!(err.condition, Condition::NoDomain);
    }

    #[tokio::test]
    async fn a_transient_domain_that_does_not_start_was_never_there() {
        let (_directory, domains) = domains();
        assert!(domains.create(&xml("a", 1, "<fails/>"), false).await.is_err());
        assert!(domains.table.all().is_empty());
        let vm = domains.define(&xml("a", 1, "")).await.unwrap();
        assert!(domains.create(&xml("a", 1, "<fails/>"), false).await.is_err());
        assert_eq!(domains.state(&vm), State::ShutOff(ShutOffReason::Failed));
    }

    #[tokio::test]
    async fn a_definition_makes_a_transient_domain_persistent() {
        let (_directory, domains) = domains();
        let (vm, _) = domains.create(&xml("a", 1, ""), false).await.unwrap();
        domains.define(&xml("a", 1, "")).await.unwrap();
        domains.destroy(&vm).await.unwrap();
        assert_eq!(domains.state(&vm), State::ShutOff(ShutOffReason::Destroyed));
        assert!(domains.named("a").is_ok());
    }

    #[tokio::test]
    async fn undefine_of_a_running_domain_makes_it_transient() {
        let (_directory, domains) = domains();
        let vm = domains.define(&xml("a", 1, "")).await.unwrap();
        domains.start(&vm, false).await.unwrap();
        domains.undefine(&vm, Undefine::default()).await.unwrap();
        assert!(!vm.is_persistent());
        assert!(domains.undefine(&vm, Undefine::default()).await.is_err());
        domains.destroy(&vm).await.unwrap();
        assert!(domains.table.all().is_empty());
    }

    #[tokio::test]
    async fn undefine_asks_what_to_do_with_nvram() {
        let (_directory, domains) = domains();
        let file = tempfile::NamedTempFile::new().unwrap();
        let os = format!("<os><nvram>{}</nvram></os>", file.path().display());
        let vm = domains.define(&xml("a", 1, &os)).await.unwrap();
        let err = domains.undefine(&vm, Undefine::default()).await.unwrap_err();
        assert_eq!(err.condition, Condition::OperationInvalid);
        let keep = Undefine { nvram: Nvram::Keep, ..Undefine::default() };
        domains.undefine(&vm, keep).await.unwrap();
        assert!(file.path().exists());
    }

    #[tokio::test]
    async fn wrong_states_are_refused_in_libvirts_words() {
        let (_directory, domains) = domains();
        let vm = domains.define(&xml("a", 1, "")).await.unwrap();
        for refused in [
            domains.destroy(&vm).await,
            domains.suspend(&vm).await,
            domains.resume(&vm).await,
            domains.shutdown(&vm).await,
        ] {
            assert_eq!(refused.unwrap_err().message, "domain is not running");
        }
        domains.start(&vm, true).await.unwrap();
        let again = domains.start(&vm, false).await.unwrap_err();
        assert_eq!(again.message, "domain is already running");
        domains.resume(&vm).await.unwrap();
        assert_eq!(domains.resume(&vm).await.unwrap_err().message, "domain is already running");
    }

    #[tokio::test]
    async fn what_is_defined_and_marked_outlives_the_daemon() {
        let (directory, first) = domains();
        let vm = first.define(&xml("a", 1, "")).await.unwrap();
        first.set_autostart(&vm, true).await.unwrap();
        first.rename(&vm, "b").await.unwrap();
        drop(first);
        let second = fake::domains(directory.path());
        assert!(second.named("a").is_err());
        second.autostart().await;
        assert!(second.active(&second.named("b").unwrap()).is_some());
    }

    /// An operation that took effect and whose last step the fake refuses to do.
    fn leave_unfinished(domains: &Domains<FakeHypervisor>, domain: &Domain) {
        let plan = Plan {
            operation: plan::Operation::Delete { moments: Vec::new() },
            prepare: Vec::new(),
            pivot: Pivot::Record,
            finish: vec![Finish::ThawFilesystems],
            conclude: Vec::new(),
        };
        let mut journal = domains.table.store().begin(domain.uuid, &plan).unwrap();
        journal.record(Entry::Pivoted).unwrap();
    }

    #[tokio::test]
    async fn nothing_starts_or_is_redefined_on_a_world_in_doubt() {
        let (_directory, domains) = domains();
        let vm = domains.define(&xml("a", 1, "")).await.unwrap();
        leave_unfinished(&domains, &vm);
        for refused in [
            domains.start(&vm, false).await.map(drop),
            domains.create(&xml("a", 1, ""), false).await.map(drop),
            domains.define(&xml("a", 1, "<title>new</title>")).await.map(drop),
            domains.rename(&vm, "b").await,
            domains.undefine(&vm, Undefine::default()).await,
        ] {
            let message = refused.unwrap_err().message;
            assert!(message.contains("an earlier operation"), "{message}");
        }
        assert!(domains.active(&vm).is_none());
        assert!(vm.config().unwrap().child("title").is_none());
    }

    #[tokio::test]
    async fn undefine_of_a_running_domain_ends_its_autostart() {
        let (_directory, domains) = domains();
        let vm = domains.define(&xml("a", 1, "")).await.unwrap();
        domains.start(&vm, false).await.unwrap();
        domains.set_autostart(&vm, true).await.unwrap();
        domains.undefine(&vm, Undefine::default()).await.unwrap();
        domains.define(&xml("a", 1, "")).await.unwrap();
        assert!(!vm.autostart());
    }

    #[tokio::test]
    async fn a_managed_save_image_is_not_undefined_by_accident() {
        let (directory, first) = domains();
        let uuid = first.define(&xml("a", 1, "")).await.unwrap().uuid;
        std::fs::write(first.table.store().managed_save(uuid).unwrap(), "").unwrap();
        drop(first);
        let domains = fake::domains(directory.path());
        let vm = domains.named("a").unwrap();
        let err = domains.undefine(&vm, Undefine::default()).await.unwrap_err();
        assert_eq!(err.condition, Condition::OperationInvalid);
        let gone = Undefine { managed_save: true, ..Undefine::default() };
        domains.undefine(&vm, gone).await.unwrap();
    }

    #[tokio::test]
    async fn a_transient_domain_keeps_its_snapshots_when_the_daemon_comes_back() {
        let (directory, first) = domains();
        let (vm, _) = first.create(&xml("a", 1, ""), false).await.unwrap();
        let (bare, _) = first.create(&xml("b", 2, ""), false).await.unwrap();
        let snapshot = Element::parse(
            "<domainsnapshot><name>s</name><state>shutoff</state>\
             <creationTime>1</creationTime></domainsnapshot>",
        )
        .unwrap();
        let snapshot = Definition::parse(&snapshot).unwrap();
        let change = MomentChange { write: vec![snapshot], ..MomentChange::default() };
        first.table.store().record(vm.uuid, &change).unwrap();
        let (vm, bare) = (vm.uuid, bare.uuid);
        drop(first);
        // Both guests have stopped meanwhile.
        let second = fake::domains(directory.path());
        assert_eq!(second.find(vm).unwrap().book().moments.len(), 1);
        second.drop_ended();
        assert!(second.find(vm).is_ok(), "its snapshots would be gone");
        assert!(second.find(bare).is_err(), "nobody could start it");
        assert_eq!(second.table.store().load().unwrap().domains.len(), 1);
    }

    #[tokio::test]
    async fn a_transient_domain_is_known_to_the_next_daemon_or_gone() {
        let (directory, first) = domains();
        first.create(&xml("a", 1, ""), false).await.unwrap();
        drop(first);
        let second = fake::domains(directory.path());
        assert_eq!(second.named("a").unwrap().uuid, Uuid::from_u128(1));
        second.drop_ended();
        drop(second);
        assert!(fake::domains(directory.path()).table.all().is_empty());
    }

    #[tokio::test]
    async fn a_rename_needs_a_free_name_and_a_domain_at_rest() {
        let (_directory, domains) = domains();
        let a = domains.define(&xml("a", 1, "")).await.unwrap();
        domains.define(&xml("b", 2, "")).await.unwrap();
        assert!(domains.rename(&a, "b").await.is_err());
        assert!(domains.rename(&a, "a").await.is_err());
        domains.start(&a, false).await.unwrap();
        assert!(domains.rename(&a, "c").await.is_err());
    }
}
