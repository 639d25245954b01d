//! Merges of images that no device model has open, by `qemu-img`; and what headers and markers
//! tell of merges.
//!
//! An active commit is the one act that must not be repeated from the files: once it has pivoted,
//! the guest writes to the base, and the top is old. The marker that it leaves says so.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use virtsnap_engine::error::{Condition, Result};
use virtsnap_engine::facts::Format;
use virtsnap_engine::plan::Finish;
use virtsnap_engine::ports::MergeError;

use super::Merge;
use crate::image::info::resolve;
use crate::image::system;
use crate::image::tool::Watch;
use crate::image::{QemuImg, blocking, failure, format_of, header, is_gone, is_network, marker};
use crate::survey::Images;

/// A disk stands on no more images.
const DEEPEST: usize = 201;

impl Merge<'_> {
    pub(super) async fn commit_files(
        &self,
        tool: &QemuImg,
        top: &Path,
        base: &Path,
    ) -> Result<(), MergeError> {
        let is_committed = marker::is_committed(self.state_dir, self.domain, top, base).await;
        // What a later step has removed was merged before.
        if is_gone(top) || is_committed.map_err(MergeError::InDoubt)? {
            return Ok(());
        }
        self.may_begin()?;
        let format = format_of(top).map_err(MergeError::NotMerged)?;
        tool.commit((top, &format), base, self.limits.speed, self.watch()).await
    }

    pub(super) async fn stream_files(
        &self,
        tool: &QemuImg,
        top: &Path,
        base: Option<&Path>,
    ) -> Result<(), MergeError> {
        if is_gone(top) {
            return Ok(());
        }
        let format = format_of(top).map_err(MergeError::NotMerged)?;
        let chain = tool.chain(top, &format).await.map_err(MergeError::NotMerged)?;
        let stands_on = chain.get(1).map(|(path, _)| path.as_path());
        if stands_on == base {
            return Ok(());
        }
        self.may_begin()?;
        let Some(base) = base else {
            return tool.stream(top, &format, None, self.watch()).await;
        };
        let Some((_, facts)) = chain.iter().skip(1).find(|(path, _)| path == base) else {
            let what = format!("'{}' does not stand on '{}'", top.display(), base.display());
            return Err(MergeError::NotMerged(failure(Condition::OperationInvalid, what)));
        };
        tool.stream(top, &format, Some((base, &facts.format)), self.watch()).await
    }

    fn watch(&self) -> Watch<'_> {
        let stall = self.limits.stall.saturating_add(self.limits.pause(u64::MAX));
        Watch { merging: self.merging, stall }
    }
}

/// About how many bytes a merge moves: those that the layers hold.
pub async fn weigh(merge: &Finish) -> u64 {
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

/// No operation is under way: what markers say of active commits of these images is old.
pub async fn forget_commits(state_dir: &Path, domain: Uuid, images: &Images) -> Result<()> {
    for path in images.keys().filter(|path| !is_network(path)) {
        marker::unmark_committed(state_dir, domain, path).await?;
    }
    Ok(())
}

/// What the header says the image stands on.
fn backing(image: &Path) -> Option<PathBuf> {
    let file = header::open_image(image).ok()??;
    let name = header::read(&file).ok()??.backing?;
    Some(resolve(image, &name))
}

/// The header says so already.
pub(super) async fn names(image: &Path, backing: &Path, format: &Format) -> Result<bool> {
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
