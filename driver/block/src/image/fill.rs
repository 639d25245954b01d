//! Overlays in places that a user prepared: an empty file, or a block device.
//!
//! The inode is the user's (its labels, its place in a cluster's storage, a device's name), so
//! nothing is made beside it and renamed; the image is written where it is. A marker
//! (`.NAME.virtsnap-UUID-filled`) says durably, before the first byte, which empty file it is that
//! is being filled, so that undo empties that one and no other. No undo touches a device: what was
//! on it is gone, and what stands there now is nobody's.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use uuid::Uuid;
use virtsnap_engine::error::{Condition, Result};
use virtsnap_engine::facts::Format;

use super::claim::{Claim, gone, new_overlay, shared_mode, sync_directory};
use super::marker::write_marker;
use super::tool::{Patience, QemuImg};
use super::{blocking, failure, identity, is_network, system};

/// Writes a new image on a backing file, which is not opened, into what is at `overlay`.
pub async fn fill_overlay(
    tool: &QemuImg,
    domain: Uuid,
    overlay: &Path,
    format: &Format,
    backing: &Path,
    backing_format: &Format,
    virtual_size: u64,
) -> Result<()> {
    let arguments = new_overlay(overlay, format, backing, backing_format, virtual_size)?;
    let claim = Claim::new(domain, overlay)?;
    let (begun, like) = (claim.clone(), backing.to_owned());
    blocking(move || begin(&begun, &like)).await?;
    let made = tool.run("create", arguments, Patience::Short, overlay).await;
    blocking(move || {
        made.and_then(|_| {
            let file = File::open(&claim.last).and_then(|file| file.sync_all());
            file.map_err(|err| system("make durable", &claim.last, err))
        })
        .inspect_err(|_| {
            if let Err(err) = empty(&claim) {
                tracing::warn!(file = %claim.last.display(), error = %err.chain(), "not emptied");
            }
        })
    })
    .await
}

/// The file that was being filled is empty again.
pub async fn undo(domain: Uuid, overlay: &Path) -> Result<()> {
    let claim = Claim::new(domain, overlay)?;
    blocking(move || empty(&claim)).await
}

fn begin(claim: &Claim, like: &Path) -> Result<()> {
    claim.forget()?;
    let path = &claim.last;
    let fail = |err| system("write", path, err);
    let meta = fs::metadata(path).map_err(fail)?;
    let is_device = meta.file_type().is_block_device();
    // Of a device, the host gives this to one holder: not where it is mounted, say.
    let exclusive = if is_device { libc::O_EXCL } else { 0 };
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(exclusive | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    let is_empty = meta.is_file() && meta.len() == 0;
    if !(is_empty || meta.file_type().is_block_device()) {
        return Err(failure(
            Condition::OperationFailed,
            format!("'{}' is not empty any more, and is not overwritten", path.display()),
        ));
    }
    write_marker(&claim.filled, named(&meta).as_bytes(), &claim.directory)?;
    if is_empty {
        let look = |like: &Path| fs::metadata(like).map_err(|err| system("look at", like, err));
        let like = if is_network(like) { None } else { Some(look(like)?) };
        tighten(&file, &meta, like.as_ref()).map_err(fail)?;
    }
    Ok(())
}

/// Nobody may do more with the overlay than with what it stands on.
fn tighten(file: &File, meta: &Metadata, like: Option<&Metadata>) -> io::Result<()> {
    let most = like.filter(|like| like.is_file()).map_or(0o600, |like| shared_mode(like, meta));
    let mode = meta.mode() & 0o777;
    if mode & !most == 0 {
        return Ok(());
    }
    file.set_permissions(fs::Permissions::from_mode(mode & most))
}

fn empty(claim: &Claim) -> Result<()> {
    let path = &claim.last;
    let said = match fs::read_to_string(&claim.filled) {
        Ok(said) => said,
        Err(err) if gone(&err) => return claim.forget(),
        Err(err) => return Err(system("read", &claim.filled, err)),
    };
    let ours = match fs::metadata(path) {
        Ok(meta) => meta.is_file() && named(&meta) == said,
        Err(err) if gone(&err) => false,
        Err(err) => return Err(system("look at", path, err)),
    };
    if ours {
        let file = OpenOptions::new().write(true).open(path);
        file.and_then(|file| file.set_len(0).and_then(|()| file.sync_all()))
            .map_err(|err| system("empty", path, err))?;
        sync_directory(&claim.directory)?;
    }
    claim.forget()
}

fn named(meta: &Metadata) -> String {
    format!("{:?}\n", identity(meta))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{base, tool};

    async fn fill(tool: &QemuImg, dir: &Path) -> Result<()> {
        let (at, below) = (dir.join("at"), dir.join("base"));
        fill_overlay(tool, Uuid::nil(), &at, &Format::Qcow2, &below, &Format::Qcow2, 1 << 20).await
    }

    #[tokio::test]
    async fn an_empty_file_is_filled_where_it_is_and_emptied_again() {
        let Some(tool) = tool() else { return };
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("at");
        base(&dir.path().join("base")).await;
        fs::set_permissions(dir.path().join("base"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(&at, "").unwrap();
        fs::set_permissions(&at, fs::Permissions::from_mode(0o666)).unwrap();
        let inode = fs::metadata(&at).unwrap().ino();
        fill(&tool, dir.path()).await.unwrap();
        let meta = fs::metadata(&at).unwrap();
        assert_eq!((meta.ino(), meta.mode() & 0o777), (inode, 0o640));
        let facts = tool.info(&at, &Format::Qcow2).await.unwrap();
        assert_eq!(facts.backing, Some(dir.path().join("base")));
        for _ in 0..2 {
            undo(Uuid::nil(), &at).await.unwrap();
            let meta = fs::metadata(&at).unwrap();
            assert_eq!((meta.ino(), meta.len()), (inode, 0));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no marker is left");
    }

    #[tokio::test]
    async fn nothing_but_what_was_filled_is_emptied() {
        let Some(tool) = tool() else { return };
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("at");
        base(&dir.path().join("base")).await;
        fs::write(&at, "precious").unwrap();
        fill(&tool, dir.path()).await.unwrap_err();
        undo(Uuid::nil(), &at).await.unwrap();
        assert_eq!(fs::read(&at).unwrap(), b"precious");
        // Another file has taken the place of the one that was filled.
        fs::write(&at, "").unwrap();
        fill(&tool, dir.path()).await.unwrap();
        fs::rename(&at, dir.path().join("aside")).unwrap();
        fs::write(&at, "precious").unwrap();
        undo(Uuid::nil(), &at).await.unwrap();
        assert_eq!(fs::read(&at).unwrap(), b"precious");
        // Kept, it is not ours to empty any more.
        fs::rename(dir.path().join("aside"), &at).unwrap();
        super::super::claim::keep(Uuid::nil(), &at).await.unwrap();
        undo(Uuid::nil(), &at).await.unwrap();
        assert!(fs::metadata(&at).unwrap().len() > 0);
    }
}
