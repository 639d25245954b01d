//! Merges under a running guest: `block-commit`, `block-stream`, `change-backing-file`.
//!
//! A job survives the daemon, so each act starts by looking for its own job and goes on from where
//! that is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use virtsnap_engine::domain::Event;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::Format;
use virtsnap_engine::ports::MergeError;

use super::drive::{Act, asked};
use super::{Merge, files};
use crate::image::{QemuImg, failure, format_of, in_use, is_gone, marker};
use crate::job;
use crate::nodes::Open;
use crate::qmp::Qmp;

/// A disk of a running guest, as a merge needs it.
pub trait LiveDisk: Sync {
    /// The domain's name.
    fn domain(&self) -> &str;
    fn target(&self) -> &str;
    /// Of the device model.
    fn qmp(&self) -> &Qmp;
    /// What the disk stands on just now, topmost first, as the device model has it; a change is
    /// noted durably before this returns.
    fn follow(&self) -> impl Future<Output = Result<Vec<Open>>> + Send;
    /// The device model is about to write to the image.
    fn lend(&self, image: &Path) -> Result<()>;
    /// What the device model keeps of a layer in its memory goes to the file; `depth` is the
    /// layer's in `chain`.
    fn flush(&self, chain: &[Open], depth: usize) -> impl Future<Output = Result<()>> + Send;
    /// The same of the layer that a job has written to, while the job is held at `pending`.
    ///
    /// A job of QEMU's that rewrites a header when it ends does not see to that: a QEMU that was
    /// killed after its `block-stream` had completed left an overlay that named no backing file any
    /// more and had nothing of it.
    fn flush_grown(&self, chain: &[Open], depth: usize) -> impl Future<Output = Result<()>> + Send;
    /// An active commit is about to switch the disk to its base, which holds the same: what starts
    /// the guest next is to use that. Whether it was switched, [`LiveDisk::follow`] sees.
    fn switch_to(&self, base: &Path) -> impl Future<Output = Result<()>> + Send {
        let _ = base;
        async { Ok(()) }
    }
    /// The guest writes at most so many bytes a second, until [`LiveDisk::let_go`].
    fn hold_back(&self, bytes: u64) -> impl Future<Output = Result<()>> + Send;
    /// Never held back is done.
    fn let_go(&self) -> impl Future<Output = Result<()>> + Send;
    /// Takes from the device model the nodes of images that are merged away.
    fn sweep(&self) -> impl Future<Output = Result<()>> + Send;
    /// The image that the guest stands on, as far as it is noted.
    fn source(&self) -> Option<PathBuf>;
    fn tell(&self, event: Event);
}

impl Merge<'_> {
    pub(super) async fn commit<D: LiveDisk>(
        &self,
        disk: &D,
        top: &Path,
        base: &Path,
    ) -> Result<(), MergeError> {
        let id = job::id("merge", disk.target());
        let mut is_adopted = job::find(disk.qmp(), &id).await.map_err(asked)?.is_some();
        loop {
            let chain = follow(disk).await?;
            let at = depth(&chain, top);
            if !is_adopted {
                if at.is_none() {
                    break;
                }
                self.may_begin()?;
                let arguments = self.commit_arguments(disk, &chain, &id, top, base).await;
                let arguments = arguments.map_err(MergeError::NotMerged)?;
                disk.qmp().execute("block-commit", arguments).await.map_err(asked)?;
            }
            let is_active = at == Some(0);
            let act = Act { id: &id, top, base: Some(base), is_active, is_adopted };
            if self.drive(disk, act).await? {
                break;
            }
            is_adopted = false;
        }
        let chain = follow(disk).await?;
        if depth(&chain, top).is_some() {
            let what = format!("disk '{}' still stands on '{}'", disk.target(), top.display());
            return Err(MergeError::NotMerged(Error::new(Condition::OperationFailed, what)));
        }
        // The base has the data, and the layer above it another name in its header.
        if let Some(below) = depth(&chain, base) {
            for at in [Some(below), below.checked_sub(1)].into_iter().flatten() {
                disk.flush(&chain, at).await.map_err(MergeError::InDoubt)?;
            }
        }
        disk.sweep().await.map_err(MergeError::InDoubt)
    }

    async fn commit_arguments<D: LiveDisk>(
        &self,
        disk: &D,
        chain: &[Open],
        id: &str,
        top: &Path,
        base: &Path,
    ) -> Result<Value> {
        let (Some(at), Some(below)) = (depth(chain, top), depth(chain, base)) else {
            return Err(not_in_chain(disk.target(), chain, top, base));
        };
        let (Some(active), Some(upper), Some(lower)) =
            (chain.first(), chain.get(at), chain.get(below).filter(|_| below > at))
        else {
            return Err(not_in_chain(disk.target(), chain, top, base));
        };
        marker::unmark_committed(self.state_dir, self.domain, top).await?;
        disk.lend(base)?;
        let mut arguments = json!({
            "job-id": id,
            "device": active.node,
            "top-node": upper.node,
            "base-node": lower.node,
            "auto-dismiss": false,
            "auto-finalize": false,
            "speed": self.limits.speed,
        });
        match at.checked_sub(1).and_then(|above| chain.get(above)) {
            None => {}
            Some(above) => {
                // Its header is rewritten to name the base.
                disk.lend(&above.image)?;
                arguments["backing-file"] = Value::from(base.to_string_lossy());
            }
        }
        Ok(arguments)
    }

    pub(super) async fn stream<D: LiveDisk>(
        &self,
        disk: &D,
        top: &Path,
        base: Option<&Path>,
    ) -> Result<(), MergeError> {
        let id = job::id("merge", disk.target());
        let mut is_adopted = job::find(disk.qmp(), &id).await.map_err(asked)?.is_some();
        loop {
            let chain = follow(disk).await?;
            if !is_adopted {
                if is_streamed(&chain, top, base) {
                    break;
                }
                self.may_begin()?;
                let arguments = self.stream_arguments(disk, &chain, &id, top, base);
                let arguments = arguments.map_err(MergeError::NotMerged)?;
                disk.qmp().execute("block-stream", arguments).await.map_err(asked)?;
            }
            let act = Act { id: &id, top, base: None, is_active: false, is_adopted };
            if self.drive(disk, act).await? {
                break;
            }
            is_adopted = false;
        }
        let chain = follow(disk).await?;
        if !is_streamed(&chain, top, base) {
            let target = disk.target();
            let what = format!("disk '{target}': '{}' was not made independent", top.display());
            return Err(MergeError::NotMerged(Error::new(Condition::OperationFailed, what)));
        }
        if let Some(at) = depth(&chain, top) {
            disk.flush(&chain, at).await.map_err(MergeError::InDoubt)?;
        }
        disk.sweep().await.map_err(MergeError::InDoubt)
    }

    fn stream_arguments<D: LiveDisk>(
        &self,
        disk: &D,
        chain: &[Open],
        id: &str,
        top: &Path,
        base: Option<&Path>,
    ) -> Result<Value> {
        let Some((at, upper)) = depth(chain, top).and_then(|at| Some((at, chain.get(at)?))) else {
            return Err(not_in_chain(disk.target(), chain, top, top));
        };
        let mut arguments = json!({
            "job-id": id,
            "device": upper.node,
            "auto-dismiss": false,
            "auto-finalize": false,
            "speed": self.limits.speed,
        });
        if let Some(base) = base {
            let lower = depth(chain, base).filter(|below| *below > at);
            let Some(lower) = lower.and_then(|below| chain.get(below)) else {
                return Err(not_in_chain(disk.target(), chain, top, base));
            };
            arguments["base-node"] = Value::from(lower.node.as_str());
            arguments["backing-file"] = Value::from(base.to_string_lossy());
        }
        disk.lend(top)?;
        Ok(arguments)
    }
}

/// The header of `image` names another backing file; `disk` is there if a running guest has the
/// image open. A header that does so already, and an image that is gone, are left alone.
pub async fn repoint<D: LiveDisk>(
    tool: &QemuImg,
    disk: Option<&D>,
    image: &Path,
    (backing, backing_format): (&Path, &Format),
) -> Result<()> {
    if is_gone(image) || files::names(image, backing, backing_format).await? {
        return Ok(());
    }
    let format = format_of(image)?;
    let Some(disk) = disk else {
        return tool.repoint(image, &format, backing, backing_format).await;
    };
    if format != *backing_format {
        // QEMU would note the image's own format as its backing file's.
        return Err(in_use(image, disk.target(), "re-pointed"));
    }
    disk.lend(image)?;
    let chain = disk.follow().await?;
    let at = depth(&chain, image);
    let layer = at.and_then(|at| chain.get(at));
    let arguments = json!({
        "device": chain.first().map(|active| active.node.as_str()),
        "image-node-name": layer.map(|layer| layer.node.as_str()),
        "backing-file": backing.to_string_lossy(),
    });
    disk.qmp().execute("change-backing-file", arguments).await?;
    match at {
        Some(at) => disk.flush(&chain, at).await,
        None => Ok(()),
    }
}

pub(super) async fn follow<D: LiveDisk>(disk: &D) -> Result<Vec<Open>, MergeError> {
    disk.follow().await.map_err(MergeError::InDoubt)
}

pub(super) fn depth(chain: &[Open], image: &Path) -> Option<usize> {
    chain.iter().position(|layer| layer.is(image))
}

fn is_streamed(chain: &[Open], top: &Path, base: Option<&Path>) -> bool {
    let below = depth(chain, top).and_then(|at| chain.get(at + 1));
    match (below, base) {
        (Some(below), Some(base)) => below.is(base),
        (below, base) => below.is_none() && base.is_none(),
    }
}

fn not_in_chain(target: &str, chain: &[Open], top: &Path, base: &Path) -> Error {
    let images: BTreeSet<String> =
        chain.iter().map(|layer| layer.image.display().to_string()).collect();
    failure(
        Condition::OperationInvalid,
        format!(
            "disk '{target}' does not stand on '{}' over '{}' but on {images:?}",
            top.display(),
            base.display()
        ),
    )
}
