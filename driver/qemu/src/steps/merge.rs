//! Layers merged: data down into the base, or up into the top; and names of backing files.
//!
//! In a running QEMU all of it is jobs of QEMU's. A job survives the daemon, so each act starts by
//! looking for its own job and goes on from where that is.
//!
//! Every job is held at `pending`, before QEMU rewrites a header or switches a disk: there the
//! tables of the image that has grown are written out, so that a QEMU that dies next leaves a file
//! that holds what its header says.
//!
//! An active commit is the one act that must not be repeated from the files: once it has pivoted,
//! the guest writes to the base, and the top is old. At `pending`, where the disk is drained and
//! base and top are equal, that is noted durably.
//!
//! A merge ends when it is told to, when it stalls, and when a guest writes faster ([`pace`]
//! (super::pace)). Until its job has concluded, or its process is gone, it is in doubt.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;
use virtsnap_engine::domain::{BlockJobKind, BlockJobStatus};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::Format;
use virtsnap_engine::merging::Merging;
use virtsnap_engine::plan::Finish;
use virtsnap_engine::ports::MergeError;

use super::pace::{Advice, Pace};
use crate::blocks::{Chain, job, nodes, throttle};
use crate::confine::Use;
use crate::hypervisor::Qemu;
use crate::image::info::resolve;
use crate::image::tool::Watch;
use crate::image::{blocking, claim, failure, header, is_gone, system};
use crate::instance::Instance;
use crate::qmp::QmpError;

/// A disk stands on no more images.
const DEEPEST: usize = 201;

impl Qemu {
    pub(crate) async fn merge_layers(
        &self,
        domain: Uuid,
        merge: &Finish,
        merging: &Merging,
    ) -> Result<(), MergeError> {
        let (target, image) = match merge {
            Finish::Commit { disk, base, .. } => (disk, base),
            Finish::Stream { disk, top, .. } => (disk, top),
            other => {
                let what = format!("{other} is no merge");
                return Err(MergeError::NotMerged(failure(Condition::Internal, what)));
            }
        };
        let instance = self.instance(domain).filter(|i| i.layer_of(image).is_some());
        let merged = match (merge, &instance) {
            (Finish::Commit { top, base, .. }, Some(instance)) => {
                self.commit(instance, target, (top, base), merging).await
            }
            (Finish::Commit { top, base, .. }, None) => {
                self.commit_files(domain, top, base, merging).await
            }
            (Finish::Stream { top, base, .. }, Some(instance)) => {
                self.stream(instance, target, (top, base.as_deref()), merging).await
            }
            (_, _) => {
                let base = below(merge);
                self.stream_files(image, base, merging).await
            }
        };
        if let Some(instance) = &instance
            && let Err(err) = throttle::lift(instance, target).await
        {
            tracing::error!(domain = instance.name, disk = target, "{}", err.chain());
        }
        merged
    }

    /// Bytes that the layers hold which are moved.
    pub(crate) async fn weigh_layers(&self, merge: &Finish) -> u64 {
        let (mut at, end) = match merge {
            Finish::Commit { top, base, .. } => (Some(top.clone()), Some(base.clone())),
            Finish::Stream { top, base, .. } => (backing(top), base.clone()),
            _ => return 0,
        };
        let held = blocking(move || {
            let mut held = 0u64;
            for _ in 0..DEEPEST {
                let Some(layer) = at.filter(|layer| Some(layer) != end.as_ref()) else { break };
                let blocks = std::fs::metadata(&layer).map_or(0, |meta| meta.blocks());
                held = held.saturating_add(blocks.saturating_mul(512));
                at = backing(&layer);
            }
            Ok(held)
        });
        held.await.unwrap_or(0)
    }

    async fn commit(
        &self,
        instance: &Instance,
        target: &str,
        (top, base): (&Path, &Path),
        merging: &Merging,
    ) -> Result<(), MergeError> {
        let id = job::id("merge", target);
        let mut is_adopted = job::find(&instance.qmp, &id).await.map_err(asked)?.is_some();
        loop {
            let chain = follow(instance, target).await?;
            let at = depth(&chain, top);
            if !is_adopted {
                if at.is_none() {
                    break;
                }
                may_begin(merging)?;
                let arguments = self.commit_arguments(instance, &chain, &id, top, base).await;
                let arguments = arguments.map_err(MergeError::NotMerged)?;
                instance.qmp.execute("block-commit", arguments).await.map_err(asked)?;
            }
            let act = Act {
                target,
                id: &id,
                top,
                base: Some(base),
                is_active: at == Some(0),
                is_adopted,
            };
            if self.drive(instance, act, merging).await? {
                break;
            }
            is_adopted = false;
        }
        let chain = follow(instance, target).await?;
        if depth(&chain, top).is_some() {
            let what = format!("disk '{target}' still stands on '{}'", top.display());
            return Err(MergeError::NotMerged(Error::new(Condition::OperationFailed, what)));
        }
        // The base has the data, and the layer above it another name in its header.
        if let Some(below) = depth(&chain, base) {
            for at in [Some(below), below.checked_sub(1)].into_iter().flatten() {
                nodes::flush(instance, &chain, at).await.map_err(MergeError::InDoubt)?;
            }
        }
        nodes::sweep(instance).await.map_err(MergeError::InDoubt)
    }

    async fn commit_arguments(
        &self,
        instance: &Instance,
        chain: &Chain,
        id: &str,
        top: &Path,
        base: &Path,
    ) -> Result<Value> {
        let layers = &chain.layers;
        let (Some(at), Some(below)) = (depth(chain, top), depth(chain, base)) else {
            return Err(not_in_chain(chain, top, base));
        };
        let (Some(active), Some(upper), Some(lower)) =
            (layers.first(), layers.get(at), layers.get(below).filter(|_| below > at))
        else {
            return Err(not_in_chain(chain, top, base));
        };
        claim::unmark_committed(&self.config().state_dir, instance.uuid, top).await?;
        self.lend(instance, base, Use::Own)?;
        let mut arguments = json!({
            "job-id": id,
            "device": active.format_node(),
            "top-node": upper.format_node(),
            "base-node": lower.format_node(),
            "auto-dismiss": false,
            "auto-finalize": false,
            "speed": self.config().merges.speed,
        });
        match at.checked_sub(1).and_then(|above| layers.get(above)) {
            None => {}
            Some(above) => {
                // Its header is rewritten to name the base.
                self.lend(instance, &above.image, Use::Own)?;
                arguments["backing-file"] = Value::from(base.to_string_lossy());
            }
        }
        Ok(arguments)
    }

    async fn commit_files(
        &self,
        domain: Uuid,
        top: &Path,
        base: &Path,
        merging: &Merging,
    ) -> Result<(), MergeError> {
        let is_committed = claim::is_committed(&self.config().state_dir, domain, top, base).await;
        // What a later step has removed was merged before.
        if is_gone(top) || is_committed.map_err(MergeError::InDoubt)? {
            return Ok(());
        }
        may_begin(merging)?;
        let format = super::format_of(top).map_err(MergeError::NotMerged)?;
        let speed = self.config().merges.speed;
        self.image_tool().commit((top, &format), base, speed, self.watch(merging)).await
    }

    async fn stream(
        &self,
        instance: &Instance,
        target: &str,
        (top, base): (&Path, Option<&Path>),
        merging: &Merging,
    ) -> Result<(), MergeError> {
        let id = job::id("merge", target);
        let mut is_adopted = job::find(&instance.qmp, &id).await.map_err(asked)?.is_some();
        loop {
            let chain = follow(instance, target).await?;
            if !is_adopted {
                if is_streamed(&chain, top, base) {
                    break;
                }
                may_begin(merging)?;
                let arguments = self.stream_arguments(instance, &chain, &id, top, base);
                let arguments = arguments.map_err(MergeError::NotMerged)?;
                instance.qmp.execute("block-stream", arguments).await.map_err(asked)?;
            }
            let act = Act { target, id: &id, top, base: None, is_active: false, is_adopted };
            if self.drive(instance, act, merging).await? {
                break;
            }
            is_adopted = false;
        }
        let chain = follow(instance, target).await?;
        if !is_streamed(&chain, top, base) {
            let what = format!("disk '{target}': '{}' was not made independent", top.display());
            return Err(MergeError::NotMerged(Error::new(Condition::OperationFailed, what)));
        }
        if let Some(at) = depth(&chain, top) {
            nodes::flush(instance, &chain, at).await.map_err(MergeError::InDoubt)?;
        }
        nodes::sweep(instance).await.map_err(MergeError::InDoubt)
    }

    fn stream_arguments(
        &self,
        instance: &Instance,
        chain: &Chain,
        id: &str,
        top: &Path,
        base: Option<&Path>,
    ) -> Result<Value> {
        let layers = &chain.layers;
        let Some((at, upper)) = depth(chain, top).and_then(|at| Some((at, layers.get(at)?))) else {
            return Err(not_in_chain(chain, top, top));
        };
        let mut arguments = json!({
            "job-id": id,
            "device": upper.format_node(),
            "auto-dismiss": false,
            "auto-finalize": false,
            "speed": self.config().merges.speed,
        });
        if let Some(base) = base {
            let lower = depth(chain, base).filter(|below| *below > at);
            let Some(lower) = lower.and_then(|below| layers.get(below)) else {
                return Err(not_in_chain(chain, top, base));
            };
            arguments["base-node"] = Value::from(lower.format_node());
            arguments["backing-file"] = Value::from(base.to_string_lossy());
        }
        self.lend(instance, top, Use::Own)?;
        Ok(arguments)
    }

    async fn stream_files(
        &self,
        top: &Path,
        base: Option<&Path>,
        merging: &Merging,
    ) -> Result<(), MergeError> {
        if is_gone(top) {
            return Ok(());
        }
        let tool = self.image_tool();
        let format = super::format_of(top).map_err(MergeError::NotMerged)?;
        let chain = tool.chain(top, &format).await.map_err(MergeError::NotMerged)?;
        let stands_on = chain.get(1).map(|(path, _)| path.as_path());
        if stands_on == base {
            return Ok(());
        }
        may_begin(merging)?;
        let Some(base) = base else {
            return tool.stream(top, &format, None, self.watch(merging)).await;
        };
        let Some((_, facts)) = chain.iter().skip(1).find(|(path, _)| path == base) else {
            let what = format!("'{}' does not stand on '{}'", top.display(), base.display());
            return Err(MergeError::NotMerged(failure(Condition::OperationInvalid, what)));
        };
        tool.stream(top, &format, Some((base, &facts.format)), self.watch(merging)).await
    }

    fn watch<'a>(&self, merging: &'a Merging) -> Watch<'a> {
        let limits = self.config().merges;
        Watch { merging, stall: limits.stall.saturating_add(limits.pause(u64::MAX)) }
    }

    /// From wherever the job is to its end. False: it is one that was told to end before, or failed
    /// by itself then, so that the merge is to be begun anew.
    async fn drive(
        &self,
        instance: &Instance,
        act: Act<'_>,
        merging: &Merging,
    ) -> Result<bool, MergeError> {
        let qmp = &instance.qmp;
        let limits = self.config().merges;
        let mut events = qmp.events();
        let mut pace = Pace::new(limits, act.is_active, Instant::now());
        let mut is_completing = false;
        let mut ending: Option<(Instant, Error)> = None;
        let mut kind = act.kind();
        let mut found = job::find(qmp, act.id).await.map_err(asked)?;
        while let Some(job) = found {
            match (job.status.as_str(), act.base) {
                ("ready", _) if !is_completing && ending.is_none() && !merging.is_stopped() => {
                    kind = BlockJobKind::ActiveCommit;
                    self.tell(instance, act, kind, BlockJobStatus::Ready)?;
                    job::complete(qmp, act.id).await.map_err(asked_of_job)?;
                    is_completing = true;
                }
                ("pending", _) if ending.is_none() => {
                    // A drained disk must not wait for what cannot be written.
                    if let Err(why) = self.prepare_end(instance, act, &mut kind).await {
                        job::cancel(qmp, act.id).await.map_err(asked_of_job)?;
                        ending = Some((Instant::now(), why));
                    } else {
                        job::finalize(qmp, act.id).await.map_err(asked_of_job)?;
                    }
                }
                ("concluded", _) => {
                    let why = ending.map(|(_, why)| why);
                    return self.conclude_merge(instance, act, kind, &job, why).await;
                }
                _ => {}
            }
            merging.moved(job.progress().0, job.progress().1);
            match &ending {
                None => {
                    let advice = pace.look(Instant::now(), job.progress());
                    if let Some(why) = self.follow_advice(instance, act, advice, merging).await? {
                        tracing::warn!(domain = instance.name, disk = act.target, "{why}");
                        job::cancel(qmp, act.id).await.map_err(asked_of_job)?;
                        ending = Some((Instant::now(), why));
                    }
                }
                Some((since, _)) if since.elapsed() > limits.stall => {
                    let what = format!("the merge of disk '{}' does not end", act.target);
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
    async fn prepare_end(
        &self,
        instance: &Instance,
        act: Act<'_>,
        kind: &mut BlockJobKind,
    ) -> Result<()> {
        let chain = nodes::follow(instance, act.target, &[]).await?;
        let grown = act.base.unwrap_or(act.top);
        if let Some(at) = depth(&chain, grown) {
            nodes::flush_grown(instance, &chain, at).await?;
        }
        if let Some(base) = act.base.filter(|_| depth(&chain, act.top) == Some(0)) {
            *kind = BlockJobKind::ActiveCommit;
            let state_dir = &self.config().state_dir;
            claim::mark_committed(state_dir, instance.uuid, act.top, base).await?;
        }
        Ok(())
    }

    /// Why the job is to end, if it is.
    async fn follow_advice(
        &self,
        instance: &Instance,
        act: Act<'_>,
        advice: Advice,
        merging: &Merging,
    ) -> Result<Option<Error>, MergeError> {
        let target = act.target;
        if merging.is_stopped() {
            return Ok(Some(aborted()));
        }
        match advice {
            Advice::GoOn => Ok(None),
            Advice::HoldBack(bytes) => {
                tracing::info!(
                    domain = instance.name,
                    disk = target,
                    bytes,
                    "the guest writes faster than can be merged: its writes are held back"
                );
                if let Err(err) = throttle::hold(instance, target, bytes).await {
                    tracing::warn!(domain = instance.name, disk = target, "{}", err.chain());
                }
                Ok(None)
            }
            Advice::EndStalled(for_so_long) => Ok(Some(Error::new(
                Condition::Timeout,
                format!("of disk '{target}' nothing was merged for {} s", for_so_long.as_secs()),
            ))),
            Advice::EndDiverging => Ok(Some(Error::new(
                Condition::OperationFailed,
                format!(
                    "the guest writes to disk '{target}' faster than its layers can be merged, \
                     though its writes were held back; delete again when it writes less, or when \
                     it is off"
                ),
            ))),
        }
    }

    /// What a job that is over came to, as [`Self::drive`]; `why` we ended it.
    async fn conclude_merge(
        &self,
        instance: &Instance,
        act: Act<'_>,
        kind: BlockJobKind,
        job: &job::Job,
        why: Option<Error>,
    ) -> Result<bool, MergeError> {
        let outcome = job::outcome(job, "the block job");
        if outcome.is_err() {
            let state_dir = &self.config().state_dir;
            claim::unmark_committed(state_dir, instance.uuid, act.top)
                .await
                .map_err(MergeError::InDoubt)?;
        }
        // The chain is noted before the job is forgotten.
        follow(instance, act.target).await?;
        job::dismiss(&instance.qmp, act.id).await.map_err(asked_of_job)?;
        let status = match (&outcome, &why) {
            (Ok(()), _) => BlockJobStatus::Completed,
            (Err(_), Some(_)) => BlockJobStatus::Canceled,
            (Err(_), None) => BlockJobStatus::Failed,
        };
        self.tell(instance, act, kind, status)?;
        if outcome.is_err() {
            nodes::sweep(instance).await.map_err(MergeError::InDoubt)?;
        }
        match (outcome, why) {
            (Ok(()), _) => Ok(true),
            (Err(err), None) if act.is_adopted => {
                tracing::info!(domain = instance.name, disk = act.target, "{}", err.chain());
                Ok(false)
            }
            (Err(err), why) => Err(MergeError::NotMerged(why.unwrap_or(err))),
        }
    }

    fn tell(
        &self,
        instance: &Instance,
        act: Act<'_>,
        kind: BlockJobKind,
        status: BlockJobStatus,
    ) -> Result<(), MergeError> {
        let active = nodes::active_image(instance, act.target).map_err(MergeError::InDoubt)?;
        super::tell_block_job(self, instance, (act.target, &active, kind), status);
        Ok(())
    }

    pub(super) async fn repoint(
        &self,
        domain: Uuid,
        image: &Path,
        backing: &Path,
        backing_format: &Format,
    ) -> Result<()> {
        if is_gone(image) || names(image, backing, backing_format).await? {
            return Ok(());
        }
        let format = super::format_of(image)?;
        let instance = self.instance(domain);
        let used = instance.as_ref().and_then(|i| Some((i, i.layer_of(image)?)));
        let Some((instance, (target, layer))) = used else {
            return self.image_tool().repoint(image, &format, backing, backing_format).await;
        };
        if format != *backing_format {
            // QEMU would note the image's own format as its backing file's.
            return Err(super::in_use(image, &target, "re-pointed"));
        }
        self.lend(instance, image, Use::Own)?;
        let top = instance.chain(&target).ok_or_else(|| nodes::no_disk(&target))?;
        let device = top.layers.first().map(|layer| layer.format_node());
        let arguments = json!({
            "device": device,
            "image-node-name": layer.format_node(),
            "backing-file": backing.to_string_lossy(),
        });
        instance.qmp.execute("change-backing-file", arguments).await?;
        match depth(&top, image) {
            Some(at) => nodes::flush(instance, &top, at).await,
            None => Ok(()),
        }
    }
}

/// One job on one disk.
#[derive(Clone, Copy)]
struct Act<'a> {
    target: &'a str,
    id: &'a str,
    top: &'a Path,
    /// Of a commit.
    base: Option<&'a Path>,
    /// The guest writes to the top.
    is_active: bool,
    /// Another daemon began it.
    is_adopted: bool,
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

/// The merge has not begun.
fn may_begin(merging: &Merging) -> Result<(), MergeError> {
    if merging.is_stopped() { Err(MergeError::NotMerged(aborted())) } else { Ok(()) }
}

fn aborted() -> Error {
    Error::new(Condition::Aborted, "operation aborted: the merge was ended")
}

/// QEMU was asked to begin.
fn asked(err: QmpError) -> MergeError {
    match err.in_doubt() {
        true => MergeError::InDoubt(err.into()),
        false => MergeError::NotMerged(err.into()),
    }
}

/// The job is there, whatever the answer.
fn asked_of_job(err: QmpError) -> MergeError {
    MergeError::InDoubt(err.into())
}

async fn follow(instance: &Instance, target: &str) -> Result<Chain, MergeError> {
    nodes::follow(instance, target, &[]).await.map_err(MergeError::InDoubt)
}

/// What the header says the image stands on.
fn backing(image: &Path) -> Option<PathBuf> {
    let file = header::open_image(image).ok()??;
    let name = header::read(&file).ok()??.backing?;
    Some(resolve(image, &name))
}

fn below(merge: &Finish) -> Option<&Path> {
    match merge {
        Finish::Stream { base, .. } => base.as_deref(),
        _ => None,
    }
}

fn depth(chain: &Chain, image: &Path) -> Option<usize> {
    chain.layers.iter().position(|layer| layer.is(image))
}

fn is_streamed(chain: &Chain, top: &Path, base: Option<&Path>) -> bool {
    let below = depth(chain, top).and_then(|at| chain.layers.get(at + 1));
    match (below, base) {
        (Some(below), Some(base)) => below.is(base),
        (below, base) => below.is_none() && base.is_none(),
    }
}

fn not_in_chain(chain: &Chain, top: &Path, base: &Path) -> Error {
    let images: BTreeSet<String> =
        chain.layers.iter().map(|layer| layer.image.display().to_string()).collect();
    failure(
        Condition::OperationInvalid,
        format!(
            "disk '{}' does not stand on '{}' over '{}' but on {images:?}",
            chain.target,
            top.display(),
            base.display()
        ),
    )
}

/// The header says so already.
async fn names(image: &Path, backing: &Path, format: &Format) -> Result<bool> {
    let path = image.to_owned();
    let head = blocking(move || {
        let read = || match header::open_image(&path)? {
            Some(file) => header::read(&file),
            None => Ok(None),
        };
        read().map_err(|err| system("read", &path, err))
    });
    let Some(head) = head.await? else { return Ok(false) };
    let named = head.backing.map(|name| resolve(image, &name));
    Ok(named.as_deref() == Some(backing) && head.backing_format.as_deref() == Some(format.as_str()))
}
