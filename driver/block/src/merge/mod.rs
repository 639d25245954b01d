//! Layers merged: data down into the base, or up into the top; and names of backing files.
//!
//! - `live`: under a running guest, by jobs of its device model; `drive`: one job to its end;
//!   `pace`: whether that gets anywhere;
//! - `files`: by `qemu-img`, where no device model has them open.
//!
//! A merge ends when it is told to, when it stalls, and when a guest writes faster. Until its job
//! has concluded, or its process is gone, it is in doubt.

mod drive;
pub mod files;
pub mod live;
mod pace;

use std::path::Path;
use std::time::Duration;

use uuid::Uuid;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::merging::Merging;
use virtsnap_engine::plan::Finish;
use virtsnap_engine::ports::MergeError;

pub use files::{forget_commits, weigh};
pub use live::{LiveDisk, repoint};

use crate::image::{QemuImg, failure};

/// What the merges of a deletion may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeLimits {
    /// A merge that moves nothing for so long is ended, and one that does not end when it is told
    /// to is given up.
    pub stall: Duration,
    /// While a guest writes, what is left to merge must get less within this time.
    pub window: Duration,
    /// How often the guest's writes are held back more before the merge is ended.
    pub throttles: u32,
    /// Bytes a second that one merge moves; 0: no limit.
    pub speed: u64,
}

impl Default for MergeLimits {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(300),
            window: Duration::from_secs(60),
            throttles: 5,
            speed: 0,
        }
    }
}

/// QEMU and qemu-img move up to so many bytes at once, and then pause until that is within their
/// speed.
const AT_ONCE: u64 = 16 << 20;

impl MergeLimits {
    /// How long nothing moves after so many bytes, by `speed` alone.
    fn pause(&self, moved: u64) -> Duration {
        let millis = moved.min(AT_ONCE).saturating_mul(1000).checked_div(self.speed);
        millis.map_or(Duration::ZERO, Duration::from_millis)
    }
}

/// One merge of a domain's: what it may take, who may end it, where an active commit is noted.
#[derive(Debug, Clone, Copy)]
pub struct Merge<'a> {
    pub domain: Uuid,
    pub state_dir: &'a Path,
    pub limits: MergeLimits,
    pub merging: &'a Merging,
}

impl Merge<'_> {
    /// `Commit` or `Stream`; `disk` is there if a running guest has the images open.
    pub async fn carry_out<D: LiveDisk>(
        &self,
        tool: &QemuImg,
        disk: Option<&D>,
        merge: &Finish,
    ) -> Result<(), MergeError> {
        let merged = match (merge, disk) {
            (Finish::Commit { top, base, .. }, Some(disk)) => self.commit(disk, top, base).await,
            (Finish::Commit { top, base, .. }, None) => self.commit_files(tool, top, base).await,
            (Finish::Stream { top, base, .. }, Some(disk)) => {
                self.stream(disk, top, base.as_deref()).await
            }
            (Finish::Stream { top, base, .. }, None) => {
                self.stream_files(tool, top, base.as_deref()).await
            }
            (other, _) => return Err(no_merge(other)),
        };
        if let Some(disk) = disk
            && let Err(err) = disk.let_go().await
        {
            tracing::error!(domain = disk.domain(), disk = disk.target(), "{}", err.chain());
        }
        merged
    }

    /// The merge has not begun.
    fn may_begin(&self) -> Result<(), MergeError> {
        if self.merging.is_stopped() { Err(MergeError::NotMerged(aborted())) } else { Ok(()) }
    }
}

/// The disk that is merged, and an image of the layers it is done to.
pub fn about(merge: &Finish) -> Result<(&str, &Path), MergeError> {
    match merge {
        Finish::Commit { disk, base, .. } => Ok((disk, base)),
        Finish::Stream { disk, top, .. } => Ok((disk, top)),
        other => Err(no_merge(other)),
    }
}

fn no_merge(finish: &Finish) -> MergeError {
    MergeError::NotMerged(failure(Condition::Internal, format!("{finish} is no merge")))
}

fn aborted() -> Error {
    Error::new(Condition::Aborted, "operation aborted: the merge was ended")
}
