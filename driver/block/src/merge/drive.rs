//! One job of a device model's, driven from wherever it is to its end.
//!
//! Every job is held at `pending`, before QEMU rewrites a header or switches a disk: there the
//! tables of the image that has grown are written out, so that a QEMU that dies next leaves a file
//! that holds what its header says. Of an active commit the same moment, where the disk is drained
//! and base and top are equal, is noted durably (see [`super::files`]).

use std::path::Path;

use tokio::time::Instant;
use virtsnap_engine::domain::{BlockJobKind, BlockJobStatus, Event};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::ports::MergeError;

use super::live::{LiveDisk, depth, follow};
use super::pace::{Advice, Pace};
use super::{Merge, aborted};
use crate::image::marker;
use crate::job::{self, Job};
use crate::qmp::QmpError;

/// One job on one disk.
#[derive(Clone, Copy)]
pub(super) struct Act<'a> {
    pub(super) id: &'a str,
    pub(super) top: &'a Path,
    /// Of a commit.
    pub(super) base: Option<&'a Path>,
    /// The guest writes to the top.
    pub(super) is_active: bool,
    /// Another daemon began it.
    pub(super) is_adopted: bool,
}

impl Act<'_> {
    fn kind(self) -> BlockJobKind {
        match (self.base, self.is_active && !self.is_adopted) {
            (None, _) => BlockJobKind::Pull,
            (Some(_), true) => BlockJobKind::ActiveCommit,
            (Some(_), false) => BlockJobKind::Commit,
        }
    }
}

impl Merge<'_> {
    /// From wherever the job is to its end. False: it is one that was told to end before, or failed
    /// by itself then, so that the merge is to be begun anew.
    pub(super) async fn drive<D: LiveDisk>(
        &self,
        disk: &D,
        act: Act<'_>,
    ) -> Result<bool, MergeError> {
        let qmp = disk.qmp();
        let limits = self.limits;
        let mut events = qmp.events();
        let mut pace = Pace::new(limits, act.is_active, Instant::now());
        let mut is_completing = false;
        let mut ending: Option<(Instant, Error)> = None;
        let mut kind = act.kind();
        let mut found = job::find(qmp, act.id).await.map_err(asked)?;
        while let Some(job) = found {
            match job.status.as_str() {
                "ready" if !is_completing && ending.is_none() && !self.merging.is_stopped() => {
                    kind = BlockJobKind::ActiveCommit;
                    tell(disk, kind, BlockJobStatus::Ready);
                    job::complete(qmp, act.id).await.map_err(asked_of_job)?;
                    is_completing = true;
                }
                "pending" if ending.is_none() => {
                    // A drained disk must not wait for what cannot be written.
                    if let Err(why) = self.prepare_end(disk, act, &mut kind).await {
                        job::cancel(qmp, act.id).await.map_err(asked_of_job)?;
                        ending = Some((Instant::now(), why));
                    } else {
                        job::finalize(qmp, act.id).await.map_err(asked_of_job)?;
                    }
                }
                "concluded" => {
                    let why = ending.map(|(_, why)| why);
                    return self.conclude(disk, act, kind, &job, why).await;
                }
                _ => {}
            }
            self.merging.moved(job.progress().0, job.progress().1);
            match &ending {
                None => {
                    let advice = pace.look(Instant::now(), job.progress());
                    if let Some(why) = self.follow_advice(disk, advice).await {
                        tracing::warn!(domain = disk.domain(), disk = disk.target(), "{why}");
                        job::cancel(qmp, act.id).await.map_err(asked_of_job)?;
                        ending = Some((Instant::now(), why));
                    }
                }
                Some((since, _)) if since.elapsed() > limits.stall => {
                    let what = format!("the merge of disk '{}' does not end", disk.target());
                    return Err(MergeError::InDoubt(Error::new(Condition::Timeout, what)));
                }
                Some(_) => {}
            }
            found =
                job::next(qmp, &mut events, act.id, limits.stall).await.map_err(asked_of_job)?;
        }
        Ok(true)
    }

    /// The job has done all but to change headers and to switch the disk.
    async fn prepare_end<D: LiveDisk>(
        &self,
        disk: &D,
        act: Act<'_>,
        kind: &mut BlockJobKind,
    ) -> Result<()> {
        let chain = disk.follow().await?;
        let grown = act.base.unwrap_or(act.top);
        if let Some(at) = depth(&chain, grown) {
            disk.flush_grown(&chain, at).await?;
        }
        if let Some(base) = act.base.filter(|_| depth(&chain, act.top) == Some(0)) {
            *kind = BlockJobKind::ActiveCommit;
            marker::mark_committed(self.state_dir, self.domain, act.top, base).await?;
            disk.switch_to(base).await?;
        }
        Ok(())
    }

    /// Why the job is to end, if it is.
    async fn follow_advice<D: LiveDisk>(&self, disk: &D, advice: Advice) -> Option<Error> {
        let target = disk.target();
        if self.merging.is_stopped() {
            return Some(aborted());
        }
        match advice {
            Advice::GoOn => None,
            Advice::HoldBack(bytes) => {
                tracing::info!(
                    domain = disk.domain(),
                    disk = target,
                    bytes,
                    "the guest writes faster than can be merged: its writes are held back"
                );
                if let Err(err) = disk.hold_back(bytes).await {
                    tracing::warn!(domain = disk.domain(), disk = target, "{}", err.chain());
                }
                None
            }
            Advice::EndStalled(for_so_long) => Some(Error::new(
                Condition::Timeout,
                format!("of disk '{target}' nothing was merged for {} s", for_so_long.as_secs()),
            )),
            Advice::EndDiverging => Some(Error::new(
                Condition::OperationFailed,
                format!(
                    "the guest writes to disk '{target}' faster than its layers can be merged, \
                     though its writes were held back; delete again when it writes less, or when \
                     it is off"
                ),
            )),
        }
    }

    /// What a job that is over came to, as [`Self::drive`]; `why` we ended it.
    async fn conclude<D: LiveDisk>(
        &self,
        disk: &D,
        act: Act<'_>,
        kind: BlockJobKind,
        job: &Job,
        why: Option<Error>,
    ) -> Result<bool, MergeError> {
        let outcome = job::outcome(job, "the block job");
        if outcome.is_err() {
            let unmarked = marker::unmark_committed(self.state_dir, self.domain, act.top).await;
            unmarked.map_err(MergeError::InDoubt)?;
        }
        // The chain is noted before the job is forgotten.
        follow(disk).await?;
        job::dismiss(disk.qmp(), act.id).await.map_err(asked_of_job)?;
        let status = match (&outcome, &why) {
            (Ok(()), _) => BlockJobStatus::Completed,
            (Err(_), Some(_)) => BlockJobStatus::Canceled,
            (Err(_), None) => BlockJobStatus::Failed,
        };
        tell(disk, kind, status);
        if outcome.is_err() {
            disk.sweep().await.map_err(MergeError::InDoubt)?;
        }
        match (outcome, why) {
            (Ok(()), _) => Ok(true),
            (Err(err), None) if act.is_adopted => {
                tracing::info!(domain = disk.domain(), disk = disk.target(), "{}", err.chain());
                Ok(false)
            }
            (Err(err), why) => Err(MergeError::NotMerged(why.unwrap_or(err))),
        }
    }
}

fn tell<D: LiveDisk>(disk: &D, kind: BlockJobKind, status: BlockJobStatus) {
    let source = disk.source().unwrap_or_default().to_string_lossy().into_owned();
    disk.tell(Event::BlockJob { target: disk.target().to_owned(), source, kind, status });
}

/// QEMU was asked to begin.
pub(super) fn asked(err: QmpError) -> MergeError {
    match err.in_doubt() {
        true => MergeError::InDoubt(err.into()),
        false => MergeError::NotMerged(err.into()),
    }
}

/// The job is there, whatever the answer.
fn asked_of_job(err: QmpError) -> MergeError {
    MergeError::InDoubt(err.into())
}
