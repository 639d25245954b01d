//! What a QEMU process may do: its user, its sandbox, and the images it is given.
//!
//! As libvirt's dynamic ownership does it: an image belongs to QEMU's user while QEMU runs and is
//! handed back after. Images that others read too (read-only, shared, backing layers) are given
//! only where QEMU's user could not open them otherwise. The owner before is in the status file
//! before the image changes hands, so that a crash of the daemon loses no owner.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

/// A user and a group, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl Owner {
    pub fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self { uid: meta.uid(), gid: meta.gid() })
    }

    /// Who we are.
    pub fn ours() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    pub fn own(self, path: &Path) -> io::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
    }
}

/// Files that QEMU's user was given, and whose they were.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Borrowed(BTreeMap<PathBuf, Owner>);

impl Borrowed {
    /// Remembers the owner of a file that is about to be given to `user`. False where there is
    /// nothing to give: it belongs to `user` already.
    pub(crate) fn note(&mut self, path: &Path, user: Owner) -> io::Result<bool> {
        let owner = Owner::of(path)?;
        if owner == user {
            return Ok(false);
        }
        self.0.entry(path.to_owned()).or_insert(owner);
        Ok(true)
    }

    pub(crate) fn contains(&self, path: &Path) -> bool {
        self.0.contains_key(path)
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }

    /// Hands all back, except what `kept` says is still in use. A file that is gone is no error.
    pub(crate) fn hand_back(&mut self, kept: impl Fn(&Path) -> bool) {
        for (path, owner) in std::mem::take(&mut self.0) {
            if kept(&path) {
                continue;
            }
            match owner.own(&path) {
                Ok(()) => {}
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => {
                    let path = path.display();
                    tracing::warn!(%path, %err, "cannot hand an image back to its owner");
                }
            }
        }
    }
}
