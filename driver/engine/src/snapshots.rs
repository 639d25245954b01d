//! The snapshot calls, from a request to a recorded change: the engine as the daemon sees it.
//!
//! The caller holds the domain's job for the whole of a call, and runs it on a task of its own:
//! an operation outlives its client.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;
use virtsnap_xml::domain::to_inactive;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Definition, Request};

use crate::blockjob::{self, NewBlockJob};
use crate::book::{self, Book};
use crate::domain::StartFrom;
use crate::error::{Condition, Error, Origin, Result};
use crate::execute::{Failure, Stage};
use crate::facts::{DomainFacts, Format, MemoryFile, PathKind, StateFacts};
use crate::merging::Merging;
use crate::moment::MomentList;
use crate::options::{DeleteOptions, Metadata, New, RevertOptions, RevertState, Scope};
use crate::plan::delete::Doomed;
use crate::plan::{self, Conclude, Operation, Plan};
use crate::ports::{
    Hypervisor, Journal, Journals, Needed, Neighbours, Records, Subject, Unfinished,
};
use crate::recover::Settled;
use crate::unfinished::{Call, Left};

/// Creates, reverts to and deletes snapshots.
#[derive(Debug)]
pub struct Snapshots<H, R, J> {
    hypervisor: Arc<H>,
    records: Arc<R>,
    journals: Arc<J>,
    neighbours: Arc<dyn Neighbours>,
    /// Of each domain's last deletion.
    merging: Mutex<BTreeMap<Uuid, Arc<Merging>>>,
}

impl<H: Hypervisor, R: Records, J: Journals> Snapshots<H, R, J> {
    pub fn new(hypervisor: Arc<H>, records: Arc<R>, journals: Arc<J>) -> Self {
        Self { hypervisor, records, journals, neighbours: Arc::new(()), merging: Mutex::default() }
    }

    /// What these need is neither written to nor removed.
    #[must_use]
    pub fn beside(self, neighbours: Arc<dyn Neighbours>) -> Self {
        Self { neighbours, ..self }
    }

    /// virDomainSnapshotCreateXML without REDEFINE. Returns the moment as it was recorded.
    pub async fn create(
        &self,
        book: &Mutex<Book>,
        request: &Request,
        options: &New,
    ) -> Result<Definition> {
        let call = Call::Create(request.name.as_deref());
        let completed = self.settle_for(book, call).await?;
        if let Some(Operation::Create { moment }) = &completed
            && let Some(made) = lock(book).moments.get(moment)
            && is_as_asked(made, request, options)
        {
            return Ok(made.clone());
        }
        let mut facts = self.facts(book).await?;
        let moments = lock(book).moments.clone();
        let active = facts.disks.iter().filter_map(|disk| disk.image().cloned());
        plan::strays::check_below(active, &facts, &moments)?;
        let draft = plan::create::draft(request, options, &facts, &moments)?;
        if completed.is_some() && options.metadata == Metadata::Forget {
            // It was made, and nobody keeps a record of it.
            return Ok(draft.moment);
        }
        if let Some(definition) = facts.live.as_ref().or(facts.config.as_ref()) {
            facts.state_files = self.state_to_keep(&facts, definition, &draft.moment.name).await?;
        }
        let mut places = BTreeMap::new();
        for (overlay, below) in draft.overlays(&facts) {
            let place = self.hypervisor.place(&overlay, &below, &facts).await?;
            places.insert(overlay, place);
        }
        if let Some(file) = draft.memory_file() {
            let kind = self.hypervisor.probe(&file).await?;
            places.insert(file, kind.into());
        }
        let (moment, plan) = plan::create::plan(draft, options, &facts, &moments, &places)?;
        self.run(book, &plan, &facts).await?;
        Ok(moment)
    }

    /// virDomainSnapshotCreateXML with REDEFINE: metadata only.
    pub async fn redefine(
        &self,
        book: &Mutex<Book>,
        asked: Definition,
        make_current: bool,
    ) -> Result<Definition> {
        self.settle(book).await?;
        let mut book = lock(book);
        let machine = asked.domain.clone();
        let (moment, change) =
            plan::redefine::redefine(asked, make_current, &book.name, book.uuid, &book.moments)?;
        if let Some(machine) = machine
            && let Some(old) = book.moments.get(&moment.name)
        {
            self.check_same_machine(&moment.name, old.domain.as_ref(), machine)?;
        }
        self.records.record(book.uuid, &change)?;
        book.moments.apply(&change);
        Ok(moment)
    }

    /// The memory of a snapshot that is there already was saved in its machine, and in no other.
    fn check_same_machine(&self, name: &str, old: Option<&Element>, new: Element) -> Result<()> {
        let new = self.hypervisor.complete(new.clone()).unwrap_or(new);
        match old.and_then(|old| self.hypervisor.abi_difference(old, &new)) {
            None => Ok(()),
            Some(difference) => Err(Error::new(
                Condition::ConfigUnsupported,
                format!("snapshot '{name}' cannot change to another machine: {difference}"),
            )
            .from_origin(Origin::Domain)),
        }
    }

    /// virDomainRevertToSnapshot.
    pub async fn revert(
        &self,
        book: &Mutex<Book>,
        name: &str,
        options: &RevertOptions,
    ) -> Result<()> {
        let completed = self.settle_for(book, Call::Revert(name)).await?;
        if completed.is_some() && lock(book).moments.get(name).is_none() {
            // It was used up by that.
            return Ok(());
        }
        lock(book).moments.expect(name)?;
        let mut facts = self.facts(book).await?;
        let moments = lock(book).moments.clone();
        let moment = moments.expect(name)?;
        if options.discard || options.delete_children {
            plan::strays::check(&facts, &moments)?;
        }
        let images = moment.disks.iter().filter_map(|disk| plan::moment_image(moment, &disk.name));
        plan::strays::check_below(images, &facts, &moments)?;
        if options.state != RevertState::ShutOff {
            self.check_machine(moment, &facts)?;
        }
        facts.state_files = self.state_to_put_back(&facts, moment).await?;
        let free = self.free_names(moment, &facts, &moments).await?;
        let difference = match (&facts.live, &moment.domain) {
            (Some(live), Some(domain)) => self.hypervisor.abi_difference(live, domain),
            _ => None,
        };
        let difference = difference.as_deref();
        let plan = plan::revert::revert(moment, options, &facts, &moments, &free, difference)?;
        self.check_memory_fits(&plan)?;
        self.run(book, &plan, &facts).await
    }

    /// Memory only loads into the machine that it was saved from. What this host would make of that
    /// machine today is looked at while the guest still runs.
    fn check_memory_fits(&self, plan: &Plan) -> Result<()> {
        for Conclude::Start { definition, start } in &plan.conclude {
            if matches!(start.from, StartFrom::Boot | StartFrom::BootSnapshot) {
                continue;
            }
            let today = self.hypervisor.complete(definition.clone())?;
            if let Some(difference) = self.hypervisor.abi_difference(definition, &today) {
                return Err(Error::new(
                    Condition::ConfigUnsupported,
                    format!(
                        "the snapshot's memory does not fit the machine that this host would \
                         give it: {difference}"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// virDomainSnapshotDelete.
    pub async fn delete(
        &self,
        book: &Mutex<Book>,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<()> {
        let merging = self.begin_merging(lock(book).uuid);
        if self.resume_deletion(book, name, &merging).await? {
            return Ok(());
        }
        self.settle(book).await?;
        let moments = lock(book).moments.clone();
        let doomed = plan::delete::doomed(name, options.scope, &moments)?;
        if doomed.names.is_empty() {
            return Ok(());
        }
        if options.metadata_only {
            return self.forget(book, &doomed);
        }
        let facts = self.facts(book).await?;
        plan::strays::check(&facts, &moments)?;
        let plan = plan::delete::delete(&doomed, options, &facts, &moments)?;
        self.run_merging(book, &plan, &facts, &merging).await
    }

    /// How far the merges of the deletion that holds the domain are, or of the last one that did;
    /// none has been begun by this daemon.
    pub fn merging(&self, domain: Uuid) -> Option<Arc<Merging>> {
        lock_all(&self.merging).get(&domain).cloned()
    }

    fn begin_merging(&self, domain: Uuid) -> Arc<Merging> {
        let merging = Arc::new(Merging::default());
        lock_all(&self.merging).insert(domain, Arc::clone(&merging));
        merging
    }

    /// A deletion of the moment that was left unfinished is all that was asked for.
    async fn resume_deletion(
        &self,
        book: &Mutex<Book>,
        name: &str,
        merging: &Merging,
    ) -> Result<bool> {
        let domain = lock(book).uuid;
        for unfinished in self.journals.unfinished()? {
            let is_it = match &unfinished.plan.operation {
                Operation::Delete { moments } => moments.iter().any(|moment| moment == name),
                Operation::Create { .. } | Operation::Revert { .. } => false,
            };
            if unfinished.domain == domain && is_it {
                return match self.recover_with(book, &unfinished, merging).await? {
                    Settled::Completed => Ok(true),
                    Settled::Undone => Ok(false),
                };
            }
        }
        Ok(false)
    }

    /// The moments go, the images stay: they are the user's from now on.
    fn forget(&self, book: &Mutex<Book>, doomed: &Doomed) -> Result<()> {
        let mut book = lock(book);
        let mut owned = book.owned.clone();
        for moment in doomed.names.iter().filter_map(|name| book.moments.get(name)) {
            for overlay in moment.disks.iter().chain(&moment.revert_disks) {
                overlay.path().map(|path| owned.remove(Path::new(path)));
            }
            for copy in plan::state_files::copies(moment) {
                owned.remove(&copy);
            }
            plan::memory_path(moment).map(|file| owned.remove(file));
        }
        self.records.set_owned(book.uuid, &owned)?;
        book.owned = owned;
        self.records.record(book.uuid, &doomed.change)?;
        book.moments.apply(&doomed.change);
        Ok(())
    }

    /// Completes or undoes what a crash left, for a book that was just loaded. Call it at start-up
    /// for each of [`Journals::unfinished`], after the hypervisor has found its domains again.
    ///
    /// # Errors
    /// What hinders it; then the book knows what is left.
    pub async fn recover(&self, book: &Mutex<Book>, unfinished: &Unfinished) -> Result<()> {
        let merging = self.begin_merging(unfinished.domain);
        Ok(self.recover_with(book, unfinished, &merging).await.map(drop)?)
    }

    async fn recover_with(
        &self,
        book: &Mutex<Book>,
        unfinished: &Unfinished,
        merging: &Merging,
    ) -> Result<Settled, Failure> {
        let open = self.journals.resume(unfinished.domain);
        let mut journal = open.map_err(Failure::Unfinished)?;
        let recovered = self.stage(book, merging).recover(unfinished, journal.as_mut()).await;
        self.ended(book, journal, recovered)
    }

    /// The journal goes, or the book learns what is left.
    fn ended<T>(
        &self,
        book: &Mutex<Book>,
        journal: Box<dyn Journal>,
        outcome: Result<T, Failure>,
    ) -> Result<T, Failure> {
        let outcome = match outcome {
            Err(failure) if failure.needs_recovery() => Err(failure),
            // All is done; what is done again is done.
            over => journal.close().map_err(Failure::Unfinished).and(over),
        };
        let cause = outcome.as_ref().err().filter(|failure| failure.needs_recovery());
        let cause = cause.map(Failure::cause);
        let domain = lock(book).uuid;
        let left = cause.and_then(|cause| {
            let all = self.journals.unfinished().unwrap_or_default();
            let ours = all.into_iter().find(|unfinished| unfinished.domain == domain);
            ours.map(|unfinished| Left::of(&unfinished, cause))
        });
        lock(book).left = left;
        outcome
    }

    /// Refuses a block job of the client's that would destroy a snapshot. The caller holds the
    /// domain's job, and has settled it.
    pub async fn check_block_job(&self, book: &Mutex<Book>, job: &NewBlockJob) -> Result<()> {
        let facts = self.facts(book).await?;
        let moments = lock(book).moments.clone();
        blockjob::check(job, &facts, &moments)
    }

    /// An operation that was left unfinished comes first: nothing is planned on a world in doubt,
    /// and no guest is started on images or a definition that recovery is still to change. Whoever
    /// starts or redefines the domain calls this before, with its job.
    ///
    /// Nobody waits here for merges: a deletion that has some left is put aside, and its moments
    /// stay marked until they are deleted again.
    pub async fn settle(&self, book: &Mutex<Book>) -> Result<()> {
        self.settle_for(book, Call::Other).await.map(drop)
    }

    /// The same for a call, which may be the one that goes on with it: then it gets what it began,
    /// if that was completed.
    async fn settle_for(&self, book: &Mutex<Book>, call: Call<'_>) -> Result<Option<Operation>> {
        let domain = lock(book).uuid;
        for unfinished in self.journals.unfinished()? {
            if unfinished.domain != domain {
                continue;
            }
            let operation = &unfinished.plan.operation;
            match self.recover_with(book, &unfinished, &Merging::stopped()).await {
                Ok(Settled::Completed) if call.began(operation) => {
                    return Ok(Some(operation.clone()));
                }
                Ok(_) | Err(Failure::PutAside(_)) => {}
                Err(failure) if call.began(operation) => return Err(failure.into()),
                Err(failure) if failure.needs_recovery() => {
                    let left = Left::of(&unfinished, failure.cause());
                    return Err(left.refusal().caused_by(Error::from(failure)));
                }
                Err(failure) => tracing::warn!(%domain, ?failure, "{operation} is over"),
            }
        }
        Ok(None)
    }

    async fn run(&self, book: &Mutex<Book>, plan: &Plan, facts: &DomainFacts) -> Result<()> {
        self.run_merging(book, plan, facts, &Merging::default()).await
    }

    async fn run_merging(
        &self,
        book: &Mutex<Book>,
        plan: &Plan,
        facts: &DomainFacts,
        merging: &Merging,
    ) -> Result<()> {
        let domain = lock(book).uuid;
        let needs = plan::room::needs(plan, facts);
        let mut rooms = BTreeMap::new();
        for directory in needs.keys() {
            let room = self.hypervisor.room(directory).await;
            rooms.extend(room.map(|room| (directory.clone(), room)));
        }
        plan::room::check(&needs, &rooms)?;
        self.hypervisor.check_access(domain, &plan::access::needs(plan, facts)).await?;
        tracing::debug!(%domain, "{plan}");
        let mut journal = self.journals.begin(domain, plan)?;
        let outcome = self.stage(book, merging).execute(plan, journal.as_mut()).await;
        if let Err(failure) = &outcome {
            tracing::warn!(%domain, operation = ?plan.operation, ?failure, "failed");
        }
        Ok(self.ended(book, journal, outcome)?)
    }

    fn stage<'a>(&'a self, book: &'a Mutex<Book>, merging: &'a Merging) -> Stage<'a, H, R> {
        let domain = lock(book).uuid;
        Stage { domain, hypervisor: &self.hypervisor, records: &self.records, book, merging }
    }

    async fn facts(&self, book: &Mutex<Book>) -> Result<DomainFacts> {
        let owned = lock(book).owned.clone();
        let managed_save = self.managed_save(book)?;
        // Two books are never held at once.
        let domain = lock(book).uuid;
        let others = self.others(domain);
        let subject = {
            let book = lock(book);
            // Copies of state files are no images.
            let copies: BTreeSet<PathBuf> =
                book.moments.iter().flat_map(plan::state_files::copies).collect();
            let mut memory_files = plan::memory_files_of(&book.moments);
            memory_files.extend(managed_save.clone());
            let mut images = plan::images_of(&book.moments);
            let store = book.config.as_ref().and_then(plan::state_files::qcow2_store);
            images.extend(store.map(|path| (path, Format::Qcow2)));
            Subject {
                uuid: book.uuid,
                name: book.name.clone(),
                config: book.config.clone(),
                images,
                memory_files,
                owned: owned.difference(&copies).cloned().collect(),
                others,
            }
        };
        let mut facts = self.hypervisor.facts(&subject).await?;
        facts.owned = owned;
        facts.managed_save = managed_save;
        facts.has_unreadable_moments = lock(book).has_unreadable_moments;
        Ok(facts)
    }

    /// Also of those that run and have no definition, or stand on other images than it says.
    fn others(&self, domain: Uuid) -> BTreeMap<PathBuf, Needed> {
        let mut images = self.neighbours.images(domain);
        for active in self.hypervisor.all_active() {
            if active.uuid != domain {
                images.extend(book::images_in(&active.live, &active.name));
            }
        }
        images
    }

    fn managed_save(&self, book: &Mutex<Book>) -> Result<Option<PathBuf>> {
        let (domain, is_there) = {
            let book = lock(book);
            (book.uuid, book.has_managed_save)
        };
        is_there.then(|| self.records.managed_save(domain)).transpose()
    }

    /// The domain's state files, each with a path for its copy.
    async fn state_to_keep(
        &self,
        facts: &DomainFacts,
        definition: &Element,
        moment: &str,
    ) -> Result<Vec<StateFacts>> {
        let mut found = Vec::new();
        for file in self.hypervisor.state_files(facts.uuid, definition)? {
            let free = self.first_free(plan::state_files::names(&file, moment)).await?;
            found.push(StateFacts { file, free, has_copy: false });
        }
        Ok(found)
    }

    /// The state files of the definition that comes back with the moment.
    async fn state_to_put_back(
        &self,
        facts: &DomainFacts,
        moment: &Definition,
    ) -> Result<Vec<StateFacts>> {
        let Some(definition) = &moment.domain else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for file in self.hypervisor.state_files(facts.uuid, definition)? {
            let free = self.first_free(plan::state_files::names_beside(&file)).await?;
            let has_copy = match plan::state_files::copy_of(moment, file.kind) {
                Some(copy) => self.hypervisor.is_whole_copy(&file, &copy).await?,
                None => false,
            };
            found.push(StateFacts { file, free, has_copy });
        }
        Ok(found)
    }

    async fn first_free(&self, paths: Vec<PathBuf>) -> Result<Option<PathBuf>> {
        for path in paths {
            if self.hypervisor.probe(&path).await? == PathKind::Missing {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Memory only loads into the machine it was saved from.
    fn check_machine(&self, moment: &Definition, facts: &DomainFacts) -> Result<()> {
        let Some(file) = plan::memory_path(moment) else { return Ok(()) };
        let Some(MemoryFile::Whole { definition, .. }) = facts.memory_files.get(file) else {
            return Ok(());
        };
        // libvirt leaves out of a save image what is a default anyway.
        let saved = self.hypervisor.complete(to_inactive(definition.clone()));
        let saved = saved.as_ref().unwrap_or(definition);
        let domain = moment.domain.as_ref();
        match domain.and_then(|domain| self.hypervisor.abi_difference(saved, domain)) {
            None => Ok(()),
            Some(difference) => Err(Error::new(
                Condition::ConfigUnsupported,
                format!(
                    "the memory in '{}' is of another machine than snapshot '{}': {difference}",
                    file.display(),
                    moment.name
                ),
            )
            .from_origin(Origin::Domain)),
        }
    }

    /// For each image of the moment, a path beside it where nothing is, and of which no record
    /// tells: one that was removed may be remembered as another image.
    async fn free_names(
        &self,
        moment: &Definition,
        facts: &DomainFacts,
        moments: &MomentList,
    ) -> Result<BTreeMap<PathBuf, PathBuf>> {
        let mut free = BTreeMap::new();
        let mut taken = plan::overlays_of(moments);
        for (image, beside) in plan::route::images(moment, facts) {
            for path in plan::route::names(&beside, facts.now) {
                if !taken.contains(&path)
                    && self.hypervisor.probe(&path).await? == PathKind::Missing
                {
                    taken.insert(path.clone());
                    free.insert(image, path);
                    break;
                }
            }
        }
        Ok(free)
    }
}

fn lock_all<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A creation that is repeated is the one that was begun, as far as its record tells.
fn is_as_asked(made: &Definition, request: &Request, options: &New) -> bool {
    made.description == request.description
        && (!made.memory.is_saved() || matches!(options.scope, Scope::FullSystem { .. }))
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    // The book is whole between any two statements that hold it.
    book.lock().unwrap_or_else(PoisonError::into_inner)
}
