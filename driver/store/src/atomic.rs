//! The one door to what the store changes on the disk: after a crash of the host there is the old
//! content or the new.
//!
//! A file is written beside its place under a name of its own, fsynced, renamed over it, and the
//! directory fsynced. A crash before the rename leaves a file named [`LEFTOVER`]…, which
//! [`Disk::remove_leftovers`] takes away when the store is opened. What an earlier call did but
//! could not sync is synced by the one that finds it done.
//!
//! Every single change goes through [`Disk::act`], where a test can see it, break it, or end the
//! world at it.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// How the names of files begin that are not complete.
pub(crate) const LEFTOVER: &str = ".new-";

/// One change to the disk, or one wait for it.
#[derive(Debug, Clone, Copy)]
pub enum Act<'a> {
    /// A new, empty file.
    Create(&'a Path),
    Write {
        path: &'a Path,
        at: u64,
        bytes: &'a [u8],
    },
    Cut {
        path: &'a Path,
        length: u64,
    },
    Sync(&'a Path),
    /// Within one directory.
    Rename(&'a Path, &'a Path),
    Remove(&'a Path),
    /// A directory with all that is in it.
    RemoveAll(&'a Path),
    MakeDirectory(&'a Path),
    SyncDirectory(&'a Path),
}

/// Whoever stands between the store and the disk: a test.
pub trait Watch: Debug + Send + Sync {
    /// An error is what the act comes to; it is not done then.
    fn before(&self, act: Act<'_>) -> io::Result<()>;
    /// The act was done. An error is what its caller is told all the same.
    fn after(&self, act: Act<'_>) -> io::Result<()>;
}

/// Runs what waits for the disk, here and now, and sees to it that nobody else has to wait with it.
pub type Wait = fn(&mut dyn FnMut());

/// The disk, as the store uses it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) watch: Option<Arc<dyn Watch>>,
    pub(crate) wait: Option<Wait>,
}

impl Disk {
    fn act<T>(&self, act: Act<'_>, effect: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let watched = || {
            let Some(watch) = &self.watch else { return effect() };
            watch.before(act)?;
            let done = effect()?;
            watch.after(act)?;
            Ok(done)
        };
        let (mut watched, mut done) = (Some(watched), None);
        let mut work = || done = watched.take().map(|watched| watched());
        match self.wait {
            Some(wait) if matches!(act, Act::Sync(_) | Act::SyncDirectory(_)) => wait(&mut work),
            _ => work(),
        }
        done.unwrap_or_else(|| Err(io::Error::other("nobody waited for the disk")))
    }

    /// Makes `bytes` the content of `path`, mode 0600, durable when it returns.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let directory = parent(path)?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let create = |path: &Path| self.act(Act::Create(path), || options.open(path));
        let mut file = tempfile::Builder::new().prefix(LEFTOVER).make_in(directory, create)?;
        let new = file.path().to_owned();
        self.act(Act::Write { path: &new, at: 0, bytes }, || file.as_file_mut().write_all(bytes))?;
        self.act(Act::Sync(&new), || file.as_file().sync_all())?;
        self.act(Act::Rename(&new, path), || file.persist(path).map_err(|err| err.error))?;
        self.sync_directory(directory)
    }

    /// Writes at the end of an open file, durably.
    pub(crate) fn append(&self, path: &Path, file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.act(Act::Write { path, at, bytes }, || file.write_all_at(bytes, at))?;
        self.act(Act::Sync(path), || file.sync_data())
    }

    /// Cuts off what stands behind `length` in an open file, durably.
    pub(crate) fn cut(&self, path: &Path, file: &File, length: u64) -> io::Result<()> {
        self.act(Act::Cut { path, length }, || file.set_len(length))?;
        self.act(Act::Sync(path), || file.sync_all())
    }

    /// Removes the file, durably; one that is not there is removed.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        match self.act(Act::Remove(path), || fs::remove_file(path)) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
            Err(_) if !parent(path)?.exists() => Ok(()),
            _ => self.sync_directory(parent(path)?),
        }
    }

    /// Renames within one directory, durably. If that cannot be made durable, the old name is back.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.act(Act::Rename(from, to), || fs::rename(from, to))?;
        self.sync_directory(parent(to)?).inspect_err(|_| {
            let back = self.act(Act::Rename(to, from), || fs::rename(to, from));
            if let Err(err) = back {
                tracing::warn!("'{}' cannot get its name back: {err}", from.display());
            }
        })
    }

    /// Makes the directory, mode 0700, durably; one that is there is made.
    pub(crate) fn make_directory(&self, path: &Path) -> io::Result<()> {
        let make = || DirBuilder::new().mode(0o700).create(path);
        match self.act(Act::MakeDirectory(path), make) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => Err(err),
            _ => self.sync_directory(parent(path)?),
        }
    }

    /// The directory with all above it.
    pub(crate) fn make_directories(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        if let Ok(above) = parent(path) {
            self.make_directories(above)?;
        }
        self.make_directory(path)
    }

    /// Removes the directory with all that is in it, if it is there.
    pub(crate) fn remove_all(&self, path: &Path) -> io::Result<()> {
        if !path.exists() {
            return Ok(());
        }
        self.act(Act::RemoveAll(path), || fs::remove_dir_all(path))
    }

    /// Takes away what a crash left in `directory`.
    pub(crate) fn remove_leftovers(&self, directory: &Path) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if is_leftover(&entry.file_name()) {
                let path = entry.path();
                if entry.file_type()?.is_dir() {
                    self.remove_all(&path)?;
                } else {
                    self.act(Act::Remove(&path), || fs::remove_file(&path))?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.act(Act::SyncDirectory(path), || File::open(path)?.sync_all())
    }
}

pub(crate) fn is_leftover(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(LEFTOVER.as_bytes())
}

fn parent(path: &Path) -> io::Result<&Path> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.ok_or_else(|| io::Error::other("a path without a directory"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const DISK: Disk = Disk { watch: None, wait: None };

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("f");
        DISK.replace(&path, b"a long first content").unwrap();
        DISK.replace(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn when_it_fails_the_old_content_stays_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("f");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), b"x").unwrap();
        assert!(DISK.replace(&path, b"second").is_err());
        assert_eq!(fs::read(path.join("inside")).unwrap(), b"x");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
        assert!(DISK.replace(&home.path().join("none/f"), b"x").is_err());
    }

    #[test]
    fn only_what_a_crash_left_is_removed() {
        let home = tempfile::tempdir().unwrap();
        for name in [".new-abc", "kept", ".kept"] {
            fs::write(home.path().join(name), b"x").unwrap();
        }
        fs::create_dir(home.path().join(".new-dir")).unwrap();
        fs::write(home.path().join(".new-dir/f"), b"x").unwrap();
        DISK.remove_leftovers(home.path()).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".kept", "kept"]);
    }

    #[test]
    fn directories_are_private_and_made_once() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("d");
        DISK.make_directory(&path).unwrap();
        DISK.make_directory(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        fs::write(home.path().join("f"), b"").unwrap();
        assert!(DISK.make_directory(&home.path().join("f")).is_err());
    }

    #[test]
    fn what_is_not_there_is_removed() {
        let home = tempfile::tempdir().unwrap();
        DISK.remove(&home.path().join("none/f")).unwrap();
        DISK.remove(&home.path().join("f")).unwrap();
        assert!(DISK.remove(home.path()).is_err());
    }
}
