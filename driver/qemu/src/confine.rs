//! What a QEMU process may do: its user, and the images it is given.
//!
//! As libvirt's dynamic ownership does it: an image belongs to QEMU's user while QEMU runs and is
//! handed back after. Images that others read too (read-only, shared, backing layers) are given
//! only where QEMU's user could not read them otherwise. The owner before is in the status file,
//! and in a file that outlives a boot (`lent`), before the image changes hands: no crash,
//! of the daemon or of the host, loses an owner.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use virtsnap_engine::error::{Condition, Error, Result};

use crate::hypervisor::Qemu;
use crate::instance::Instance;
use crate::lent::Ledger;

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

    /// A user and a group as a configuration names them: a name, or a number after `+`. Without
    /// a group it is the user's own.
    pub fn named(user: &str, group: Option<&str>) -> Result<Self> {
        let unknown = |what: &str, name: &str| {
            Error::new(Condition::ConfigUnsupported, format!("there is no {what} '{name}' here"))
        };
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let groups = fs::read_to_string("/etc/group").unwrap_or_default();
        let found = entry(&passwd, user).ok_or_else(|| unknown("user", user))?;
        let gid = match group {
            Some(name) => entry(&groups, name).ok_or_else(|| unknown("group", name))?.0,
            None => found.1.ok_or_else(|| unknown("group of user", user))?,
        };
        Ok(Self { uid: found.0, gid })
    }

    pub fn own(self, path: &Path) -> io::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
    }

    fn can_read(self, path: &Path) -> io::Result<bool> {
        let meta = fs::metadata(path)?;
        let shift = match () {
            () if self.uid == 0 => return Ok(true),
            () if meta.uid() == self.uid => 6,
            () if meta.gid() == self.gid => 3,
            () => 0,
        };
        Ok((meta.mode() >> shift) & 0o4 != 0)
    }
}

/// The number of a name in a file like `/etc/passwd`, and the number after it.
fn entry(table: &str, name: &str) -> Option<(u32, Option<u32>)> {
    let number = name.strip_prefix('+');
    let line = table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let matches = match number {
            Some(number) => line.split(':').nth(2) == Some(number),
            None => line.split(':').next() == Some(name),
        };
        let id = fields.nth(2)?.parse().ok()?;
        matches.then(|| (id, fields.next().and_then(|field| field.parse().ok())))
    });
    line.or_else(|| Some((number?.parse().ok()?, None)))
}

/// How QEMU uses a file it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It writes, and nobody else does.
    Own,
    /// It reads, or shares it with others.
    Share,
}

/// Files that QEMU's user was given, and whose they were.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Borrowed(BTreeMap<PathBuf, Owner>);

impl Borrowed {
    /// Remembers the owner of a file that `user` is to be given. False where that is not needed.
    pub(crate) fn note(&mut self, path: &Path, user: Owner, how: Use) -> io::Result<bool> {
        let owner = Owner::of(path)?;
        if owner == user || (how == Use::Share && user.can_read(path)?) {
            return Ok(false);
        }
        self.0.entry(path.to_owned()).or_insert(owner);
        Ok(true)
    }

    /// Whose a borrowed file was.
    pub(crate) fn owner_before(&self, path: &Path) -> Option<Owner> {
        self.0.get(path).copied()
    }

    /// Takes over the duty to hand back.
    pub(crate) fn inherit(&mut self, path: &Path, owner: Owner) {
        self.0.entry(path.to_owned()).or_insert(owner);
    }

    /// Gives all that was noted to `user`; that they were others' is durable before.
    pub(crate) fn give(&self, user: Owner, ledger: &Ledger) -> Result<()> {
        let files = self.0.iter().map(|(path, owner)| (path.as_path(), *owner));
        ledger.note(files, user).map_err(|err| cannot_note(&err))?;
        self.0.keys().try_for_each(|path| {
            user.own(path).map_err(|err| failed("give to QEMU's user", path, err))
        })
    }

    pub(crate) fn has(&self, path: &Path) -> bool {
        self.0.contains_key(path)
    }

    /// Hands all back, except what `kept` takes over.
    pub(crate) fn hand_back(&mut self, ledger: &Ledger, kept: impl Fn(&Path, Owner) -> bool) {
        let mut all = std::mem::take(&mut self.0);
        all.retain(|path, owner| !kept(path, *owner));
        ledger.hand_back(all);
    }
}

fn cannot_note(err: &io::Error) -> Error {
    let condition = Condition::System(err.raw_os_error().unwrap_or(libc::EIO));
    let message = "cannot note whose the images are that QEMU's user is to be given";
    Error::new(condition, format!("{message}: {err}"))
}

impl Qemu {
    /// Gives an image to a running QEMU's user, for as long as that QEMU runs.
    pub fn lend(&self, instance: &Instance, path: &Path, how: Use) -> Result<()> {
        let Some(user) = self.shared.borrower() else { return Ok(()) };
        if crate::image::is_network(path) {
            return Ok(());
        }
        let mut inner = instance.lock();
        let is_needed = inner
            .borrowed
            .note(path, user, how)
            .map_err(|err| failed("look at the owner of", path, err))?;
        if is_needed {
            instance.save_locked(&inner)?;
            let owner = inner.borrowed.owner_before(path).map(|owner| (path, owner));
            self.shared.ledger.note(owner, user).map_err(|err| cannot_note(&err))?;
            user.own(path).map_err(|err| failed("give to QEMU's user", path, err))?;
        }
        Ok(())
    }

    /// An image that is QEMU's user's since it was made like one that is lent.
    pub(crate) fn lend_like(&self, instance: &Instance, image: &Path, like: &Path) -> Result<()> {
        let mut inner = instance.lock();
        let Some(owner) = inner.borrowed.owner_before(like) else { return Ok(()) };
        inner.borrowed.inherit(image, owner);
        instance.save_locked(&inner)?;
        let Some(user) = self.shared.borrower() else { return Ok(()) };
        self.shared.ledger.note([(image, owner)], user).map_err(|err| cannot_note(&err))
    }
}

pub(crate) fn failed(what: &str, path: &Path, err: io::Error) -> Error {
    let condition = Condition::System(err.raw_os_error().unwrap_or(libc::EIO));
    Error::new(condition, format!("cannot {what} '{}'", path.display())).caused_by(err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_of_users() {
        let table = "root:x:0:0:root:/root:/bin/sh\nvm:x:64055:109::/:/bin/false\n";
        assert_eq!(entry(table, "vm"), Some((64055, Some(109))));
        assert_eq!(entry(table, "+64055"), Some((64055, Some(109))));
        assert_eq!(entry(table, "+7"), Some((7, None)));
        assert_eq!(entry(table, "7"), None);
        assert_eq!(entry("broken\n", "broken"), None);
    }

    #[test]
    fn an_image_is_given_only_where_it_must_be() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::write(&image, "").unwrap();
        let mut borrowed = Borrowed::default();
        let us = Owner::of(&image).unwrap();
        assert!(!borrowed.note(&image, us, Use::Own).unwrap(), "it is theirs already");
        let them = Owner { uid: us.uid + 1000, gid: us.gid + 1000 };
        assert!(!borrowed.note(&image, them, Use::Share).unwrap(), "all may read it");
        assert!(borrowed.note(&image, them, Use::Own).unwrap());
        assert_eq!(borrowed.0.get(&image), Some(&us));
    }
}
