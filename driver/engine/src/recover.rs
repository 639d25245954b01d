//! After a crash: a fold over the journal says what is to be done.

use std::collections::BTreeSet;

use crate::error::{Condition, Error};
use crate::execute::{Failure, Stage};
use crate::plan::{Pivot, Plan};
use crate::ports::{Entry, Hypervisor, Journal, Records, Unfinished};

/// What a journal tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The pivot did not happen: undo these steps.
    Unwind(BTreeSet<usize>),
    /// It may have: ask, then unwind these or complete.
    Ask(BTreeSet<usize>),
    /// It happened: finish, except for `finished`, which are done; then conclude. What is `up` may
    /// have run, and is not started again.
    Complete { finished: BTreeSet<usize>, up: BTreeSet<usize> },
}

pub fn verdict(entries: &[Entry]) -> Verdict {
    let mut pending = BTreeSet::new();
    let (mut finished, mut up) = (BTreeSet::new(), BTreeSet::new());
    let (mut in_doubt, mut pivoted) = (false, false);
    for entry in entries {
        match *entry {
            Entry::Acting(n) => {
                pending.insert(n);
            }
            Entry::Pivoting => in_doubt = true,
            Entry::Undone(n) => {
                // An undo only ever starts once the pivot is known not to have happened.
                in_doubt = false;
                pending.remove(&n);
            }
            Entry::Pivoted => pivoted = true,
            Entry::Finished(n) => {
                pivoted = true;
                finished.insert(n);
            }
            Entry::Up(n) => {
                pivoted = true;
                up.insert(n);
            }
        }
    }
    match (pivoted, in_doubt) {
        (true, _) => Verdict::Complete { finished, up },
        (false, true) => Verdict::Ask(pending),
        (false, false) => Verdict::Unwind(pending),
    }
}

/// Which world holds after recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    Undone,
    Completed,
}

impl<H: Hypervisor, R: Records> Stage<'_, H, R> {
    /// Brings an unfinished operation to the old world or the new one.
    pub(crate) async fn recover(
        &self,
        unfinished: &Unfinished,
        journal: &mut dyn Journal,
    ) -> Result<Settled, Failure> {
        let plan = &unfinished.plan;
        let steps = match verdict(&unfinished.entries) {
            Verdict::Unwind(steps) => steps,
            Verdict::Complete { finished, up } => {
                return self.complete(plan, &finished, &up, journal).await;
            }
            Verdict::Ask(steps) => {
                let pivoted = plan.pivot != Pivot::Record
                    && self
                        .hypervisor
                        .pivoted(self.domain, &plan.pivot)
                        .await
                        .map_err(Failure::InDoubt)?;
                if pivoted {
                    drop(journal.record(Entry::Pivoted));
                    let none = BTreeSet::new();
                    return self.complete(plan, &none, &none, journal).await;
                }
                steps
            }
        };
        let cause = Error::new(
            Condition::OperationFailed,
            "the operation was interrupted before it took effect, and was undone",
        );
        match self.unwind(plan, steps, journal, cause).await {
            Failure::RolledBack(_) => Ok(Settled::Undone),
            stuck => Err(stuck),
        }
    }

    async fn complete(
        &self,
        plan: &Plan,
        finished: &BTreeSet<usize>,
        up: &BTreeSet<usize>,
        journal: &mut dyn Journal,
    ) -> Result<Settled, Failure> {
        self.finish(plan, |n| finished.contains(&n), journal).await?;
        self.conclude(plan, |n| up.contains(&n), journal).await?;
        Ok(Settled::Completed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(steps: &[usize]) -> BTreeSet<usize> {
        steps.iter().copied().collect()
    }

    #[test]
    fn nothing_was_done_nothing_is_undone() {
        assert_eq!(verdict(&[]), Verdict::Unwind(set(&[])));
    }

    #[test]
    fn every_step_that_may_have_run_is_undone() {
        let entries = [Entry::Acting(0), Entry::Acting(1)];
        assert_eq!(verdict(&entries), Verdict::Unwind(set(&[0, 1])));
    }

    #[test]
    fn a_failed_undo_is_tried_again() {
        let entries = [Entry::Acting(0), Entry::Acting(1), Entry::Pivoting, Entry::Undone(1)];
        assert_eq!(verdict(&entries), Verdict::Unwind(set(&[0])));
    }

    #[test]
    fn a_pivot_without_an_outcome_is_asked_about() {
        let entries = [Entry::Acting(0), Entry::Pivoting];
        assert_eq!(verdict(&entries), Verdict::Ask(set(&[0])));
    }

    #[test]
    fn after_the_pivot_we_only_go_forward() {
        let entries = [Entry::Acting(0), Entry::Pivoting, Entry::Pivoted, Entry::Finished(1)];
        let (finished, up) = (set(&[1]), set(&[]));
        assert_eq!(verdict(&entries), Verdict::Complete { finished, up });
    }

    #[test]
    fn what_came_up_is_not_started_again() {
        let entries = [Entry::Pivoted, Entry::Finished(0), Entry::Up(0)];
        let (finished, up) = (set(&[0]), set(&[0]));
        assert_eq!(verdict(&entries), Verdict::Complete { finished, up });
    }
}
