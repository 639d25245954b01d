//! The merges of one deletion: how far they are, and the word that stops them.
//!
//! One [`Merging`] is shared by the executor, which says which merge is on, the backend, which says
//! how far that one is and looks whether it is to stop, and whoever asks or aborts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// See the module.
#[derive(Debug, Default)]
pub struct Merging {
    stopped: AtomicBool,
    figures: Mutex<Figures>,
}

/// Bytes, over all merges of the deletion. Neither number ever falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

#[derive(Debug, Default)]
struct Figures {
    /// What each merge moves, in the order of the plan.
    weights: Vec<u64>,
    /// How many of them are over.
    over: usize,
    told: Progress,
}

impl Merging {
    /// One that ends at the first merge that is not done yet.
    pub fn stopped() -> Self {
        let merging = Self::default();
        merging.stop();
        merging
    }

    /// No further merge begins, and the one that is on ends as it can.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// What is to be done, before the first merge. One whose size is not known counts a little.
    pub(crate) fn begin(&self, weights: Vec<u64>) {
        let mut figures = self.lock();
        figures.weights = weights.into_iter().map(|weight| weight.max(1)).collect();
        figures.over = 0;
        figures.told.total = figures.weights.iter().fold(0, |sum, w| sum.saturating_add(*w));
    }

    /// The next merge of the plan is over.
    pub(crate) fn next(&self) {
        let mut figures = self.lock();
        figures.over += 1;
        let done = figures.before();
        figures.advance(done);
    }

    /// The backend: so much of the merge that is on, in units of its own.
    pub fn moved(&self, done: u64, total: u64) {
        let mut figures = self.lock();
        let weight = figures.weights.get(figures.over).copied().unwrap_or(0);
        let share = u128::from(weight) * u128::from(done.min(total)) / u128::from(total.max(1));
        let now = figures.before().saturating_add(u64::try_from(share).unwrap_or(weight));
        figures.advance(now);
    }

    pub fn progress(&self) -> Progress {
        self.lock().told
    }

    fn lock(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Figures {
    /// Of the merges that are over.
    fn before(&self) -> u64 {
        self.weights.iter().take(self.over).fold(0, |sum, weight| sum.saturating_add(*weight))
    }

    /// A guest that writes gives its merge more to do: what was told once stays.
    fn advance(&mut self, done: u64) {
        self.told.done = self.told.done.max(done).min(self.told.total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_never_falls_and_ends_at_the_total() {
        let merging = Merging::default();
        assert_eq!(merging.progress(), Progress::default());
        merging.begin(vec![100, 0, 300]);
        let done = |done, total| {
            merging.moved(done, total);
            merging.progress().done
        };
        assert_eq!(merging.progress(), Progress { done: 0, total: 401 });
        assert_eq!(done(1, 2), 50);
        assert_eq!(done(1, 4), 50, "the guest wrote");
        assert_eq!(done(9, 3), 100);
        merging.next();
        assert_eq!(done(0, 0), 100);
        merging.next();
        assert_eq!(done(u64::MAX / 3, u64::MAX), 201);
        merging.next();
        assert_eq!(merging.progress(), Progress { done: 401, total: 401 });
    }
}
