//! The one door to files whose content changes: after a crash there is the old content or the new.
//!
//! Written beside the file under a name of its own, fsynced, renamed over it, and the directory
//! fsynced. A crash before the rename leaves a file named [`LEFTOVER`]…, which
//! [`remove_leftovers`] takes away when the store is opened.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// How the names of files begin that are not complete.
pub(crate) const LEFTOVER: &str = ".new-";

/// Makes `bytes` the content of `path`, mode 0600, durable when it returns.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = parent(path)?;
    let mut file = tempfile::Builder::new().prefix(LEFTOVER).tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|err| err.error)?;
    sync_directory(directory)
}

/// Removes the file, durably; one that is not there is removed.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory(parent(path)?),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(err),
    }
}

/// Renames within one directory, durably.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_directory(parent(to)?)
}

/// Makes the directory, mode 0700, durably; one that is there is made.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_directory(parent(path)?),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(err) => Err(err),
    }
}

/// Takes away what a crash left in `directory`.
pub(crate) fn remove_leftovers(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if is_leftover(&entry.file_name()) {
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

pub(crate) fn is_leftover(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(LEFTOVER.as_bytes())
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::other("a path without a directory"))
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("f");
        replace(&path, b"a long first content").unwrap();
        replace(&path, b"second").unwrap();
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
        assert!(replace(&path, b"second").is_err());
        assert_eq!(fs::read(path.join("inside")).unwrap(), b"x");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
        assert!(replace(&home.path().join("none/f"), b"x").is_err());
    }

    #[test]
    fn only_what_a_crash_left_is_removed() {
        let home = tempfile::tempdir().unwrap();
        for name in [".new-abc", "kept", ".kept"] {
            fs::write(home.path().join(name), b"x").unwrap();
        }
        fs::create_dir(home.path().join(".new-dir")).unwrap();
        fs::write(home.path().join(".new-dir/f"), b"x").unwrap();
        remove_leftovers(home.path()).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".kept", "kept"]);
    }

    #[test]
    fn directories_are_private_and_made_once() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("d");
        make_directory(&path).unwrap();
        make_directory(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        fs::write(home.path().join("f"), b"").unwrap();
        assert!(make_directory(&home.path().join("f")).is_err());
    }

    #[test]
    fn what_is_not_there_is_removed() {
        let home = tempfile::tempdir().unwrap();
        remove(&home.path().join("f")).unwrap();
        assert!(remove(home.path()).is_err());
    }
}
