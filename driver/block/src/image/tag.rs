//! Internal snapshots of images that nobody has open, as a step of a plan and its undo.

use std::path::Path;

use uuid::Uuid;
use virtsnap_engine::error::{Condition, Result};
use virtsnap_engine::facts::Format::Qcow2;

use super::{QemuImg, failure, is_gone, marker};

/// A new internal snapshot of that tag.
pub async fn take(
    tool: &QemuImg,
    state_dir: &Path,
    domain: Uuid,
    image: &Path,
    tag: &str,
) -> Result<()> {
    check(tag)?;
    if tool.tagged(image, &Qcow2, tag).await?.is_some() {
        // Undo comes next, and must not take it for ours.
        marker::mark_foreign_tag(state_dir, domain, image, tag).await?;
    }
    tool.snapshot(image, &Qcow2, tag).await
}

/// Undo of [`take`].
pub async fn undo(
    tool: &QemuImg,
    state_dir: &Path,
    domain: Uuid,
    image: &Path,
    tag: &str,
) -> Result<()> {
    if is_gone(image) || marker::take_foreign_tag(state_dir, domain, image, tag).await? {
        return Ok(());
    }
    tool.delete_snapshot(image, &Qcow2, tag).await
}

/// QEMU cuts a longer tag short without a word.
pub fn check(tag: &str) -> Result<()> {
    if tag.is_empty() || tag.len() > 255 || tag.contains('\0') {
        return Err(failure(
            Condition::InvalidArgument,
            format!("'{tag}' cannot name an internal snapshot: it takes 1 to 255 bytes"),
        ));
    }
    Ok(())
}
