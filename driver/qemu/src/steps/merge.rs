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

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use uuid::Uuid;
use virtsnap_engine::domain::{BlockJobKind, BlockJobStatus};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::Format;

use crate::blocks::{Chain, job, nodes};
use crate::confine::Use;
use crate::hypervisor::Qemu;
use crate::image::info::resolve;
use crate::image::{blocking, claim, failure, header, is_gone, system};
use crate::instance::Instance;

impl Qemu {
    pub(super) async fn commit(
        &self,
        domain: Uuid,
        target: &str,
        top: &Path,
        base: &Path,
    ) -> Result<()> {
        let Some(instance) = self.instance(domain).filter(|i| i.layer_of(base).is_some()) else {
            return self.commit_files(domain, top, base).await;
        };
        let id = job::id("merge", target);
        let chain = nodes::follow(&instance, target, &[]).await?;
        let is_adopted = job::find(&instance.qmp, &id).await?.is_some();
        if is_adopted || depth(&chain, top).is_some() {
            let is_active = !is_adopted && depth(&chain, top) == Some(0);
            if !is_adopted {
                self.start_commit(&instance, &chain, &id, top, base).await?;
            }
            let act = Act { target, id: &id, top, base: Some(base), is_active };
            self.drive(&instance, act).await?;
        }
        let chain = nodes::follow(&instance, target, &[]).await?;
        if depth(&chain, top).is_some() {
            let what = format!("disk '{target}' still stands on '{}'", top.display());
            return Err(Error::new(Condition::OperationFailed, what));
        }
        // The base has the data, and the layer above it another name in its header.
        if let Some(below) = depth(&chain, base) {
            nodes::flush(&instance, &chain, below).await?;
            if let Some(above) = below.checked_sub(1) {
                nodes::flush(&instance, &chain, above).await?;
            }
        }
        nodes::sweep(&instance).await
    }

    async fn start_commit(
        &self,
        instance: &Instance,
        chain: &Chain,
        id: &str,
        top: &Path,
        base: &Path,
    ) -> Result<()> {
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
        });
        match at.checked_sub(1).and_then(|above| layers.get(above)) {
            None => {}
            Some(above) => {
                // Its header is rewritten to name the base.
                self.lend(instance, &above.image, Use::Own)?;
                arguments["backing-file"] = Value::from(base.to_string_lossy());
            }
        }
        instance.qmp.execute("block-commit", arguments).await?;
        Ok(())
    }

    async fn commit_files(&self, domain: Uuid, top: &Path, base: &Path) -> Result<()> {
        // What a later step has removed was merged before.
        if is_gone(top) || claim::is_committed(&self.config().state_dir, domain, top, base).await? {
            return Ok(());
        }
        self.image_tool().commit(top, &super::format_of(top)?, base).await
    }

    pub(super) async fn stream(
        &self,
        domain: Uuid,
        target: &str,
        top: &Path,
        base: Option<&Path>,
    ) -> Result<()> {
        let Some(instance) = self.instance(domain).filter(|i| i.layer_of(top).is_some()) else {
            return self.stream_files(top, base).await;
        };
        let id = job::id("merge", target);
        let chain = nodes::follow(&instance, target, &[]).await?;
        let is_adopted = job::find(&instance.qmp, &id).await?.is_some();
        if is_adopted || !is_streamed(&chain, top, base) {
            if !is_adopted {
                self.start_stream(&instance, &chain, &id, top, base).await?;
            }
            let act = Act { target, id: &id, top, base: None, is_active: false };
            self.drive(&instance, act).await?;
        }
        let chain = nodes::follow(&instance, target, &[]).await?;
        if !is_streamed(&chain, top, base) {
            let what = format!("disk '{target}': '{}' was not made independent", top.display());
            return Err(Error::new(Condition::OperationFailed, what));
        }
        if let Some(at) = depth(&chain, top) {
            nodes::flush(&instance, &chain, at).await?;
        }
        nodes::sweep(&instance).await
    }

    async fn start_stream(
        &self,
        instance: &Instance,
        chain: &Chain,
        id: &str,
        top: &Path,
        base: Option<&Path>,
    ) -> Result<()> {
        let layers = &chain.layers;
        let Some((at, upper)) = depth(chain, top).and_then(|at| Some((at, layers.get(at)?))) else {
            return Err(not_in_chain(chain, top, top));
        };
        let mut arguments = json!({
            "job-id": id,
            "device": upper.format_node(),
            "auto-dismiss": false,
            "auto-finalize": false,
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
        instance.qmp.execute("block-stream", arguments).await?;
        Ok(())
    }

    async fn stream_files(&self, top: &Path, base: Option<&Path>) -> Result<()> {
        if is_gone(top) {
            return Ok(());
        }
        let tool = self.image_tool();
        let format = super::format_of(top)?;
        let Some(base) = base else { return tool.stream(top, &format, None).await };
        let chain = tool.chain(top, &format).await?;
        let Some((_, facts)) = chain.iter().skip(1).find(|(path, _)| path == base) else {
            let what = format!("'{}' does not stand on '{}'", top.display(), base.display());
            return Err(failure(Condition::OperationInvalid, what));
        };
        tool.stream(top, &format, Some((base, &facts.format))).await
    }

    /// From wherever the job is to its end.
    async fn drive(&self, instance: &Instance, act: Act<'_>) -> Result<()> {
        let qmp = &instance.qmp;
        let mut is_completing = false;
        let mut kind = match (act.base, act.is_active) {
            (None, _) => BlockJobKind::Pull,
            (Some(_), true) => BlockJobKind::ActiveCommit,
            (Some(_), false) => BlockJobKind::Commit,
        };
        let tell = |kind, source: &Path, status| {
            super::tell_block_job(self, instance, (act.target, source, kind), status);
        };
        let active = || nodes::active_image(instance, act.target);
        loop {
            let until =
                |job: &job::Job| job.needs_us() && !(is_completing && job.status == "ready");
            let Some(job) = job::wait(qmp, act.id, until).await? else { return Ok(()) };
            match (job.status.as_str(), act.base) {
                ("ready", _) => {
                    kind = BlockJobKind::ActiveCommit;
                    tell(kind, &active()?, BlockJobStatus::Ready);
                    job::complete(qmp, act.id).await?;
                    is_completing = true;
                }
                ("pending", base) => {
                    let chain = nodes::follow(instance, act.target, &[]).await?;
                    let grown = base.unwrap_or(act.top);
                    if let Some(at) = depth(&chain, grown) {
                        nodes::flush_grown(instance, &chain, at).await?;
                    }
                    if let Some(base) = base.filter(|_| depth(&chain, act.top) == Some(0)) {
                        kind = BlockJobKind::ActiveCommit;
                        let state_dir = &self.config().state_dir;
                        claim::mark_committed(state_dir, instance.uuid, act.top, base).await?;
                    }
                    job::finalize(qmp, act.id).await?;
                }
                _ => {
                    let outcome = job::outcome(&job, "the block job");
                    if outcome.is_err() {
                        claim::unmark_committed(&self.config().state_dir, instance.uuid, act.top)
                            .await?;
                    }
                    // The chain is noted before the job is forgotten.
                    nodes::follow(instance, act.target, &[]).await?;
                    job::dismiss(qmp, act.id).await?;
                    let status = match outcome {
                        Ok(()) => BlockJobStatus::Completed,
                        Err(_) => BlockJobStatus::Failed,
                    };
                    tell(kind, &active()?, status);
                    return outcome;
                }
            }
        }
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
    is_active: bool,
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
