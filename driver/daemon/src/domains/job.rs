//! One modifying job per domain.
//!
//! A second one waits, as libvirt's callers expect, and gives up after [`PATIENCE`] with a timeout
//! that names what holds the domain. A job ends when its guard is dropped, whatever happened.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as Lock, OwnedMutexGuard};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::inspect::MemoryJob;

const PATIENCE: Duration = Duration::from_secs(30);

/// What holds a domain. The numbers of virDomainJobOperation are dispatch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Short changes that report no progress.
    Change(&'static str),
    Start,
    Save,
    Restore,
    SnapshotCreate,
    SnapshotRevert,
    SnapshotDelete,
}

impl Operation {
    pub(crate) fn what(self) -> &'static str {
        match self {
            Operation::Change(what) => what,
            Operation::Start => "a start",
            Operation::Save => "a save",
            Operation::Restore => "a restore",
            Operation::SnapshotCreate => "the creation of a snapshot",
            Operation::SnapshotRevert => "a revert to a snapshot",
            Operation::SnapshotDelete => "the deletion of a snapshot",
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Running {
    pub(crate) operation: Operation,
    pub(crate) since: Instant,
}

/// What is told of a job, while it runs or after. Bytes, and milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) operation: Operation,
    pub(crate) elapsed: u64,
    /// Memory on its way to a file.
    pub(crate) memory: Option<MemoryJob>,
    /// How long its guest stood still for a snapshot with memory, once that is over.
    pub(crate) stood: Option<u64>,
    /// Of disks whose layers are merged.
    pub(crate) merged: u64,
    pub(crate) to_merge: u64,
}

impl Figures {
    pub(crate) fn new(operation: Operation, since: Instant) -> Self {
        let elapsed = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        Self { operation, elapsed, memory: None, stood: None, merged: 0, to_merge: 0 }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Jobs {
    lock: Arc<Lock<()>>,
    running: Arc<Mutex<Option<Running>>>,
    /// The last one that succeeded, until somebody asked.
    completed: Mutex<Option<Figures>>,
}

/// Holding it is having the domain.
#[derive(Debug)]
pub(crate) struct Job {
    running: Arc<Mutex<Option<Running>>>,
    _lock: OwnedMutexGuard<()>,
}

impl Jobs {
    pub(crate) async fn begin(&self, domain: &str, operation: Operation) -> Result<Job> {
        let lock = tokio::time::timeout(PATIENCE, self.lock.clone().lock_owned());
        let Ok(lock) = lock.await else {
            let holder = self.running().map_or("another job", |job| job.operation.what());
            return Err(Error::new(
                Condition::Timeout,
                format!("cannot acquire state change lock of domain '{domain}' (held by {holder})"),
            ));
        };
        let running = Running { operation, since: Instant::now() };
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
        Ok(Job { running: self.running.clone(), _lock: lock })
    }

    pub(crate) fn complete(&self, figures: Figures) {
        *self.completed.lock().unwrap_or_else(PoisonError::into_inner) = Some(figures);
    }

    pub(crate) fn completed(&self, keep: bool) -> Option<Figures> {
        let mut completed = self.completed.lock().unwrap_or_else(PoisonError::into_inner);
        if keep { completed.clone() } else { completed.take() }
    }

    pub(crate) fn running(&self) -> Option<Running> {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_job_waits_then_names_the_first() {
        let jobs = Jobs::default();
        let first = jobs.begin("vm", Operation::SnapshotRevert).await.unwrap();
        let err = jobs.begin("vm", Operation::Start).await.unwrap_err();
        assert_eq!(err.condition, Condition::Timeout);
        assert!(err.message.contains("held by a revert to a snapshot"), "{}", err.message);
        drop(first);
        assert!(jobs.running().is_none());
        jobs.begin("vm", Operation::Start).await.unwrap();
    }
}
