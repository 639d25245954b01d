//! The only interpreter of a plan. It knows steps, not snapshots.
//!
//! Before the pivot we only go back; after it we only go forward; in doubt we touch nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::book::Book;
use crate::error::{Condition, Error, Result};
use crate::merging::Merging;
use crate::plan::{Finish, Pivot, Plan, Step};
use crate::ports::{Entry, Hypervisor, Journal, MergeError, PivotError, Records};

/// How an operation failed, and which world holds.
#[derive(Debug)]
pub enum Failure {
    /// Nothing changed: the domain and its disks are as they were.
    RolledBack(Error),
    /// The old state holds, but not every step could be undone. Recovery tries again.
    Stuck { cause: Error, left: Vec<Step> },
    /// We do not know which state holds, so we touch nothing. Recovery asks.
    InDoubt(Error),
    /// The new state holds; recovery completes the rest.
    Unfinished(Error),
    /// A deletion ended before one of its merges: the state is whole and recorded, its moments are
    /// marked, and to delete them again is to go on.
    PutAside(Error),
    /// The new state holds and all is recorded; what was to follow failed.
    NotConcluded(Error),
}

impl Failure {
    /// Does the journal stay, for recovery?
    pub fn needs_recovery(&self) -> bool {
        match self {
            Failure::Stuck { .. } | Failure::InDoubt(_) | Failure::Unfinished(_) => true,
            Failure::RolledBack(_) | Failure::PutAside(_) | Failure::NotConcluded(_) => false,
        }
    }

    /// What went wrong, in one line.
    pub(crate) fn cause(&self) -> String {
        match self {
            Failure::Stuck { cause, .. }
            | Failure::RolledBack(cause)
            | Failure::InDoubt(cause)
            | Failure::Unfinished(cause)
            | Failure::PutAside(cause)
            | Failure::NotConcluded(cause) => cause.chain(),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let incomplete = |message: &str, cause| {
            Error::new(Condition::OperationFailed, message.to_owned()).caused_by(cause)
        };
        match failure {
            Failure::RolledBack(cause) | Failure::NotConcluded(cause) => cause,
            Failure::Stuck { cause, left } => Error::new(
                Condition::OperationFailed,
                format!(
                    "the operation failed, and {} of its steps could not be undone yet",
                    left.len()
                ),
            )
            .caused_by(cause),
            Failure::InDoubt(cause) => Error::new(
                Condition::Internal,
                "the outcome is unknown until the hypervisor answers again",
            )
            .caused_by(cause),
            Failure::PutAside(cause) => Error::new(
                cause.condition,
                "the deletion has stopped, and its snapshots stay listed as being deleted: delete \
                 them again to go on with it",
            )
            .caused_by(cause),
            Failure::Unfinished(cause) => incomplete(
                "the operation took effect, but its last steps failed: repeat it, when the cause \
                 is mended, to complete it",
                cause,
            ),
        }
    }
}

/// Where a plan is acted out.
pub(crate) struct Stage<'a, H, R> {
    pub(crate) domain: Uuid,
    pub(crate) hypervisor: &'a H,
    pub(crate) records: &'a R,
    pub(crate) book: &'a Mutex<Book>,
    pub(crate) merging: &'a Merging,
}

impl<H: Hypervisor, R: Records> Stage<'_, H, R> {
    /// Acts out a plan whose journal was opened with it.
    pub(crate) async fn execute(
        &self,
        plan: &Plan,
        journal: &mut dyn Journal,
    ) -> Result<(), Failure> {
        for (n, step) in plan.prepare.iter().enumerate() {
            if let Err(cause) = self.act(n, step, journal).await {
                return Err(self.unwind(plan, 0..=n, journal, cause).await);
            }
        }
        let all = 0..=plan.prepare.len().saturating_sub(1);
        match self.pivot(&plan.pivot, journal).await {
            Ok(()) => {}
            Err(PivotError::Refused(cause)) => {
                return Err(self.unwind(plan, all, journal, cause).await);
            }
            // To unwind now could unlink an overlay the guest is writing to.
            Err(PivotError::InDoubt(cause)) => return Err(Failure::InDoubt(cause)),
        }
        self.finish(plan, |_| false, journal).await?;
        self.conclude(plan, |_| false, journal).await
    }

    async fn act(&self, n: usize, step: &Step, journal: &mut dyn Journal) -> Result<()> {
        // Intent before effect: if we die in between, recovery undoes a step that never ran
        // (harmless) rather than forgetting one that did.
        journal.record(Entry::Acting(n))?;
        self.hypervisor.act(self.domain, step).await
    }

    async fn pivot(&self, pivot: &Pivot, journal: &mut dyn Journal) -> Result<(), PivotError> {
        if *pivot == Pivot::Record {
            // A line that may or may not have reached the disk is read again by recovery.
            return journal.record(Entry::Pivoted).map_err(PivotError::InDoubt);
        }
        journal.record(Entry::Pivoting).map_err(PivotError::Refused)?;
        self.hypervisor.pivot(self.domain, pivot).await?;
        // If this entry is lost, recovery asks the hypervisor and learns the same.
        if let Err(err) = journal.record(Entry::Pivoted) {
            tracing::warn!(domain = %self.domain, "journal: {}", err.chain());
        }
        Ok(())
    }

    /// Undoes those steps, last first. One failed undo does not stop the others: a leftover file
    /// is a nuisance, a guest left frozen is an outage.
    pub(crate) async fn unwind(
        &self,
        plan: &Plan,
        steps: impl IntoIterator<Item = usize>,
        journal: &mut dyn Journal,
        cause: Error,
    ) -> Failure {
        let mut left = Vec::new();
        let mut steps: Vec<usize> = steps.into_iter().collect();
        steps.sort_unstable();
        for n in steps.into_iter().rev() {
            let Some(step) = plan.prepare.get(n) else { continue };
            match self.hypervisor.undo(self.domain, step).await {
                // A lost entry only means that recovery undoes the step once more.
                Ok(()) => drop(journal.record(Entry::Undone(n))),
                Err(err) => {
                    tracing::error!(domain = %self.domain, ?step, "undo: {}", err.chain());
                    left.push(step.clone());
                }
            }
        }
        if left.is_empty() { Failure::RolledBack(cause) } else { Failure::Stuck { cause, left } }
    }

    /// In the order of the plan, in which the guest comes first (thaw, resume) and each step finds
    /// what it needs done. The first failure ends it: recovery goes on from there.
    pub(crate) async fn finish(
        &self,
        plan: &Plan,
        is_done: impl Fn(usize) -> bool,
        journal: &mut dyn Journal,
    ) -> Result<(), Failure> {
        self.weigh(plan).await;
        for (n, finish) in plan.finish.iter().enumerate() {
            if is_done(n) {
                self.book().follow(finish);
                if finish.is_merge() {
                    self.merging.next();
                }
                continue;
            }
            if finish.is_merge() {
                self.merge(plan, n, finish).await?;
            } else {
                self.finish_one(finish).await.map_err(Failure::Unfinished)?;
            }
            self.book().follow(finish);
            // A lost entry only means that recovery does the step once more.
            drop(journal.record(Entry::Finished(n)));
        }
        Ok(())
    }

    async fn weigh(&self, plan: &Plan) {
        let mut weights = Vec::new();
        for merge in plan.finish.iter().filter(|finish| finish.is_merge()) {
            weights.push(self.hypervisor.weigh(self.domain, merge).await);
        }
        self.merging.begin(weights);
    }

    async fn merge(&self, plan: &Plan, n: usize, merge: &Finish) -> Result<(), Failure> {
        let merged = self.hypervisor.merge(self.domain, merge, self.merging).await;
        self.merging.next();
        merged.map_err(|failed| match failed {
            MergeError::NotMerged(err) if plan.may_end_before(n) => Failure::PutAside(err),
            failed => Failure::Unfinished(failed.into()),
        })
    }

    async fn finish_one(&self, finish: &Finish) -> Result<()> {
        match finish {
            Finish::SetConfig(config) => self.records.set_config(self.domain, config),
            Finish::Record(change) => self.records.record(self.domain, change),
            // Ours from now on, and durably so before its claim goes.
            Finish::KeepImage(path) => {
                let mut owned = self.book().owned.clone();
                owned.insert(path.clone());
                self.records.set_owned(self.domain, &owned)?;
                self.hypervisor.finish(self.domain, finish).await
            }
            // Gone before we forget that it was ours to remove.
            Finish::RemoveImage(path) => {
                self.hypervisor.finish(self.domain, finish).await?;
                let mut owned = self.book().owned.clone();
                owned.remove(path);
                self.records.set_owned(self.domain, &owned)
            }
            Finish::ThawFilesystems
            | Finish::Resume(_)
            | Finish::Stop(_)
            | Finish::ApplySnapshot { .. }
            | Finish::DeleteSnapshot { .. }
            | Finish::Commit { .. }
            | Finish::Stream { .. }
            | Finish::Repoint { .. }
            | Finish::Overwrite { .. }
            | Finish::PutBack { .. }
            | Finish::HandOver(_)
            | Finish::SetSaved { .. }
            | Finish::ForgetSave(_)
            | Finish::SetLive(_) => self.hypervisor.finish(self.domain, finish).await,
        }
    }

    /// What comes up stands still until the journal has it: so no crash brings it up twice, and
    /// memory never meets disks that its guest has written to since.
    pub(crate) async fn conclude(
        &self,
        plan: &Plan,
        is_up: impl Fn(usize) -> bool,
        journal: &mut dyn Journal,
    ) -> Result<(), Failure> {
        let is_active = || self.hypervisor.active(self.domain).is_some();
        for (n, conclude) in plan.conclude.iter().enumerate() {
            if is_up(n) && !is_active() {
                tracing::info!(domain = %self.domain, "it came up, and has ended since");
                continue;
            }
            if !is_up(n) {
                if let Err(err) = self.hypervisor.conclude(self.domain, conclude).await {
                    if !is_active() {
                        return Err(Failure::NotConcluded(err));
                    }
                    tracing::warn!(domain = %self.domain, "it is up, but: {}", err.chain());
                }
                // Lost, it matters only if we die and the guest ends, both before the journal goes.
                if let Err(err) = journal.record(Entry::Up(n)) {
                    tracing::warn!(domain = %self.domain, "journal: {}", err.chain());
                }
            }
            if let Err(err) = self.hypervisor.release(self.domain, conclude).await {
                // A guest must not be left standing.
                return Err(match is_active() {
                    true => Failure::Unfinished(err),
                    false => Failure::NotConcluded(err),
                });
            }
        }
        Ok(())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // The book is whole between any two statements that hold it.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
