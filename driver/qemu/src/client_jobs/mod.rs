//! Block jobs of the client's in a running QEMU: `block-stream`, `block-commit`, `blockdev-mirror`.
//!
//! A job is in the status file before QEMU is told to start it, so that a daemon that comes back
//! finds it, whatever it came to; QEMU keeps a job that is over until it is dismissed. One that
//! pivots is held at `pending`, where the guest's writes wait and both images are equal, until the
//! new image is durably the one that the next start uses: a host that dies a moment later does not
//! boot what the guest no longer writes to.

mod copy;
mod names;
mod record;

use std::path::Path;

use serde_json::{Value, json};
use uuid::Uuid;
use virtsnap_engine::blockjob::{
    Act, BackingName, Ended, Ending, Move, NewBlockJob, Outcome, Stage,
};
use virtsnap_engine::domain::{BlockJobStatus, Event};
use virtsnap_engine::error::{Condition, Result};

use crate::blocks::{Chain, Layer, job, nodes};
use crate::confine::Use;
use crate::hypervisor::Qemu;
use crate::image::{claim, failure};
use crate::instance::Instance;

pub(crate) use record::{ClientJob, Merged};

use record::{End, Kind, expect, forget, note_ending, note_merged, record, show_mirror};

/// QEMU's name of the client's job on a disk.
pub(crate) fn id(target: &str) -> String {
    job::id("client", target)
}

impl Qemu {
    pub(crate) async fn start_client_job(&self, domain: Uuid, job: &NewBlockJob) -> Result<()> {
        let instance = self.running(domain)?;
        let target = job.target.as_str();
        let chain = nodes::follow(&instance, target, &[]).await?;
        let started = match &job.act {
            Act::Pull { base, backing_name } => {
                self.start_pull(&instance, &chain, job.speed, base.as_deref(), *backing_name).await
            }
            Act::Commit { top, base, backing_name, delete } => {
                let commit = Commit { top, base, backing_name: *backing_name, delete: *delete };
                self.start_client_commit(&instance, &chain, job.speed, commit).await
            }
            Act::Copy(copy) => self.start_copy(&instance, &chain, job.speed, copy).await,
        };
        if started.is_err() {
            forget(&instance, target)?;
        }
        started
    }

    async fn start_pull(
        &self,
        instance: &Instance,
        chain: &Chain,
        speed: u64,
        base: Option<&Path>,
        backing_name: BackingName,
    ) -> Result<()> {
        let active = top(chain)?;
        let mut arguments = json!({
            "job-id": id(&chain.target),
            "device": active.format_node(),
            "auto-dismiss": false,
            "auto-finalize": false,
        });
        if let Some(base) = base {
            let lower = layer(chain, base)?;
            arguments["base-node"] = Value::from(lower.format_node());
            arguments["backing-file"] = names::backing(active, base, backing_name)?.into();
        }
        limit(&mut arguments, speed);
        record(instance, &chain.target, ClientJob::new(Kind::Pull, active.clone(), Vec::new()))?;
        instance.qmp.execute("block-stream", arguments).await?;
        Ok(())
    }

    async fn start_client_commit(
        &self,
        instance: &Instance,
        chain: &Chain,
        speed: u64,
        commit: Commit<'_>,
    ) -> Result<()> {
        let (active, upper, lower) =
            (top(chain)?, layer(chain, commit.top)?, layer(chain, commit.base)?);
        let is_active = upper.number == active.number;
        let above = chain.layers.iter().zip(chain.layers.iter().skip(1));
        let above = above.into_iter().find(|(_, layer)| layer.number == upper.number);
        let mut arguments = json!({
            "job-id": id(&chain.target),
            "device": active.format_node(),
            "top-node": upper.format_node(),
            "base-node": lower.format_node(),
            "auto-dismiss": false,
            "auto-finalize": !is_active,
        });
        self.lend(instance, commit.base, Use::Own)?;
        if let Some((above, _)) = above {
            // Its header is rewritten to name the base.
            self.lend(instance, &above.image, Use::Own)?;
            arguments["backing-file"] =
                names::backing(above, commit.base, commit.backing_name)?.into();
        }
        limit(&mut arguments, speed);
        let (kind, to) = match is_active {
            true => (Kind::ActiveCommit, vec![lower.clone()]),
            false => (Kind::Commit, Vec::new()),
        };
        let mut job = ClientJob::new(kind, active.clone(), to);
        job.delete = commit.delete;
        record(instance, &chain.target, job)?;
        instance.qmp.execute("block-commit", arguments).await?;
        Ok(())
    }

    pub(crate) fn client_jobs(&self, domain: Uuid) -> Vec<String> {
        let instance = self.instance(domain);
        instance.map(|i| i.lock().jobs.keys().cloned().collect()).unwrap_or_default()
    }

    pub(crate) async fn set_client_job_speed(
        &self,
        domain: Uuid,
        target: &str,
        speed: u64,
    ) -> Result<()> {
        let instance = self.running(domain)?;
        expect(&instance, target)?;
        let arguments = json!({ "device": id(target), "speed": speed });
        instance.qmp.execute("block-job-set-speed", arguments).await?;
        Ok(())
    }

    pub(crate) async fn end_client_job(
        &self,
        domain: Uuid,
        target: &str,
        how: Ending,
    ) -> Result<()> {
        let instance = self.running(domain)?;
        let job = expect(&instance, target)?;
        let what = job.words();
        if let Some(ending) = job.ending {
            let how = if ending == End::Pivot { "pivots" } else { "was aborted" };
            return Err(failure(
                Condition::OperationInvalid,
                format!(
                    "the {what} on disk '{target}' {how} and is still being ended, so it cannot be \
                     ended once more: wait until the disk has no block job"
                ),
            ));
        }
        match how {
            Ending::Pivot => self.pivot_client_job(&instance, target, &job).await,
            Ending::Cancel => {
                note_ending(&instance, target, Some(End::Cancel))?;
                let told =
                    instance.qmp.execute("block-job-cancel", json!({ "device": id(target) })).await;
                // One that is over by itself is seen to by whoever waits for it.
                match told {
                    Err(err) if job::find(&instance.qmp, &id(target)).await?.is_none() => {
                        Err(failure(
                            Condition::Internal,
                            format!(
                                "the {what} on disk '{target}' cannot be aborted: QEMU does not \
                                 have it any more. Look at the disk's chain for what it came to"
                            ),
                        )
                        .caused_by(err))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    async fn pivot_client_job(
        &self,
        instance: &Instance,
        target: &str,
        job: &ClientJob,
    ) -> Result<()> {
        // Whether it is in step is QEMU's to say: nobody may have listened when it was told.
        let is_ready = job::find(&instance.qmp, &id(target)).await?.map(|job| job.status);
        if is_ready.as_deref() != Some("ready") {
            let message = format!(
                "the {} on disk '{target}' is not ready for pivot yet: wait until it is (<mirror \
                 ready='yes'> in the domain's XML), or abort it without pivot",
                job.words()
            );
            return Err(failure(Condition::BlockCopyActive, message));
        }
        if !job.pivots() {
            let message = format!(
                "the {} on disk '{target}' does not support pivot: it ends by itself, or is \
                 aborted without pivot",
                job.words()
            );
            return Err(failure(Condition::OperationInvalid, message));
        }
        if job.late_backing {
            self.open_late_backing(instance, target).await?;
        }
        note_ending(instance, target, Some(End::Pivot))?;
        let told = job::complete(&instance.qmp, &id(target)).await;
        let Err(err) = told else { return Ok(()) };
        if err.in_doubt() {
            return Err(err.into());
        }
        note_ending(instance, target, None)?;
        let message = format!(
            "QEMU refuses to pivot the {} on disk '{target}'; the guest goes on on the image that \
             it had: pivot again, or abort it without pivot",
            job.words()
        );
        Err(failure(Condition::Internal, message).caused_by(err))
    }

    pub(crate) async fn client_job_beyond(
        &self,
        domain: Uuid,
        target: &str,
        stage: Stage,
    ) -> Result<Option<Stage>> {
        let Some(instance) = self.instance(domain) else { return Ok(None) };
        if !instance.lock().jobs.contains_key(target) {
            return Ok(None);
        }
        let until = |job: &job::Job| stage_of(job) > stage;
        let Some(found) = job::wait_for_ever(&instance.qmp, &id(target), until).await? else {
            // Never started, or dismissed a moment before the daemon died.
            forget(&instance, target)?;
            return Ok(None);
        };
        if stage_of(&found) == Stage::Ready {
            self.note_ready(&instance, target)?;
        }
        Ok(Some(stage_of(&found)))
    }

    /// In step for the first time: told once.
    fn note_ready(&self, instance: &Instance, target: &str) -> Result<()> {
        let told = {
            let mut inner = instance.lock();
            let inner = &mut *inner;
            let Some(job) = inner.jobs.get_mut(target).filter(|job| !job.ready) else {
                return Ok(());
            };
            job.ready = true;
            show_mirror(&mut inner.live, target, job);
            let event = Event::BlockJob {
                target: target.to_owned(),
                source: job.from.image.to_string_lossy().into_owned(),
                kind: job.kind(),
                status: BlockJobStatus::Ready,
            };
            instance.save_locked(inner)?;
            event
        };
        self.shared.tell(instance, told);
        Ok(())
    }

    pub(crate) fn client_job_moves(&self, domain: Uuid, target: &str) -> Result<Option<Move>> {
        let Some(instance) = self.instance(domain) else { return Ok(None) };
        let inner = instance.lock();
        let job = inner.jobs.get(target).filter(|job| job.ending == Some(End::Pivot));
        Ok(job.and_then(|job| movement(target, &job.from, job.to.first()?)))
    }

    pub(crate) async fn finalize_client_job(&self, domain: Uuid, target: &str) -> Result<()> {
        let instance = self.running(domain)?;
        if expect(&instance, target)?.kind == Kind::Pull {
            let chain = nodes::follow(&instance, target, &[]).await?;
            nodes::flush_grown(&instance, &chain, 0).await?;
        }
        Ok(job::finalize(&instance.qmp, &id(target)).await?)
    }

    pub(crate) async fn conclude_client_job(
        &self,
        domain: Uuid,
        target: &str,
    ) -> Result<Option<Ended>> {
        let Some(instance) = self.instance(domain) else { return Ok(None) };
        let Some(client) = instance.lock().jobs.get(target).cloned() else { return Ok(None) };
        let Some(found) = job::find(&instance.qmp, &id(target)).await? else {
            forget(&instance, target)?;
            return Ok(None);
        };
        let before = instance.chain(target).ok_or_else(|| nodes::no_disk(target))?;
        let after = nodes::follow(&instance, target, &client.to).await?;
        let active = top(&after)?.clone();
        let outcome = match (&found.error, client.ending) {
            // In step with the guest to the end, as asked: QEMU calls that a success.
            (_, Some(End::Cancel)) if client.pivots() => Outcome::Canceled,
            (None, _) => Outcome::Completed,
            (Some(_), Some(End::Cancel)) => Outcome::Canceled,
            (Some(error), _) => Outcome::Failed(error.clone()),
        };
        job::dismiss(&instance.qmp, &id(target)).await?;
        forget(&instance, target)?;
        nodes::sweep(&instance).await?;
        let is_gone = |layer: &&Layer| after.layers.iter().all(|l| l.number != layer.number);
        let left: Vec<_> =
            before.layers.iter().filter(is_gone).map(|layer| layer.image.clone()).collect();
        if matches!(client.kind, Kind::Commit | Kind::ActiveCommit) {
            note_merged(&instance, &left)?;
        }
        Ok(Some(Ended {
            kind: client.kind(),
            moved: movement(target, &client.from, &active),
            active: active.image,
            left,
            delete: client.delete && outcome == Outcome::Completed,
            outcome,
        }))
    }

    pub(crate) async fn remove_unused_image(&self, domain: Uuid, image: &Path) -> Result<()> {
        if let Some((target, _)) = self.instance(domain).and_then(|i| i.layer_of(image)) {
            let what = format!("'{}' is in use by disk '{target}'", image.display());
            return Err(failure(Condition::OperationInvalid, what));
        }
        claim::remove(domain, image).await
    }
}

struct Commit<'a> {
    top: &'a Path,
    base: &'a Path,
    backing_name: BackingName,
    delete: bool,
}

fn stage_of(job: &job::Job) -> Stage {
    match job.status.as_str() {
        "ready" => Stage::Ready,
        "pending" => Stage::Pending,
        "concluded" => Stage::Concluded,
        _ => Stage::Running,
    }
}

fn movement(target: &str, from: &Layer, to: &Layer) -> Option<Move> {
    (from.image != to.image).then(|| Move {
        target: target.to_owned(),
        from: from.image.clone(),
        to: to.image.clone(),
        format: to.format(),
        is_block_device: to.is_block_device,
    })
}

fn limit(arguments: &mut Value, speed: u64) {
    if speed > 0 {
        arguments["speed"] = speed.into();
    }
}

fn top(chain: &Chain) -> Result<&Layer> {
    chain.layers.first().ok_or_else(|| nodes::no_disk(&chain.target))
}

fn layer<'a>(chain: &'a Chain, image: &Path) -> Result<&'a Layer> {
    chain.layers.iter().find(|layer| layer.image == image).ok_or_else(|| {
        let what = format!("disk '{}' does not stand on '{}'", chain.target, image.display());
        failure(Condition::InvalidArgument, what)
    })
}
