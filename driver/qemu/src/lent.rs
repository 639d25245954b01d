//! Whose the images are that QEMU's user has now, where a crash of the host cannot lose it.
//!
//! The status file of a guest knows it too, but lies in a directory that a boot empties; and then
//! an image would stay with QEMU's user for good. (libvirt keeps it in an extended attribute of the
//! image, and forgets it when the host was booted since.) `STATE/lent.json` is durable before an
//! image changes hands, and an entry goes when its image was handed back. So what the file names
//! when a daemon starts, and no running guest has, is still to be handed back.
//!
//! An image is only handed back by us if it is the file that was lent and belongs to whom it was
//! given: somebody else may have replaced it meanwhile, or made it their own.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use virtsnap_block::note::write_durably;

use crate::confine::Owner;

const VERSION: u32 = 1;

/// All images that are lent, of all guests.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    /// None: not read yet.
    lent: Mutex<Option<Entries>>,
}

type Entries = BTreeMap<PathBuf, Lent>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Lent {
    owner: Owner,
    /// Who has it now.
    user: Owner,
    inode: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    lent: Entries,
}

impl Ledger {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join("lent.json"), lent: Mutex::default() }
    }

    /// Durable before `user` gets these files of those owners.
    pub(crate) fn note<'a>(
        &self,
        files: impl IntoIterator<Item = (&'a Path, Owner)>,
        user: Owner,
    ) -> io::Result<()> {
        let mut lent = self.lock();
        let before = lent.clone();
        for (path, owner) in files {
            let inode = fs::metadata(path)?.ino();
            lent.insert(path.to_owned(), Lent { owner, user, inode });
        }
        if *lent == before { Ok(()) } else { self.write(&lent) }
    }

    /// Gives files back to their owners. One that is gone is no error.
    pub(crate) fn hand_back(&self, files: impl IntoIterator<Item = (PathBuf, Owner)>) {
        let mut lent = self.lock();
        let mut is_changed = false;
        for (path, owner) in files {
            let noted = lent.remove(&path);
            is_changed |= noted.is_some();
            let shown = path.display();
            match give_back(&path, owner, noted) {
                Ok(true) => {}
                Ok(false) => tracing::info!(path = %shown, "it is not ours to hand back any more"),
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => {
                    tracing::warn!(path = %shown, %err, "cannot hand an image back to its owner");
                }
            }
        }
        // What is handed back once more is handed back.
        if is_changed && let Err(err) = self.write(&lent) {
            tracing::warn!(path = %self.path.display(), %err, "cannot note what was handed back");
        }
    }

    /// What is lent, with its owners.
    pub(crate) fn all(&self) -> Vec<(PathBuf, Owner)> {
        self.lock().iter().map(|(path, lent)| (path.clone(), lent.owner)).collect()
    }

    fn lock(&self) -> Locked<'_> {
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        if lent.is_none() {
            *lent = Some(self.read());
        }
        Locked(lent)
    }

    /// A file that cannot be read is put aside: who owned what it named is for its reader to see.
    fn read(&self) -> Entries {
        let read = match fs::read(&self.path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Entries::new(),
            Err(err) => Err(err.to_string()),
            Ok(bytes) => match serde_json::from_slice::<File>(&bytes) {
                Ok(file) if file.version == VERSION => Ok(file.lent),
                Ok(_) => Err("it is of another version".to_owned()),
                Err(err) => Err(err.to_string()),
            },
        };
        read.unwrap_or_else(|why| {
            let aside = self.path.with_extension("json.unreadable");
            tracing::error!(path = %self.path.display(), why, "whose lent images are is not known");
            if let Err(err) = fs::rename(&self.path, &aside) {
                tracing::error!(path = %self.path.display(), %err, "cannot put it aside");
            }
            Entries::new()
        })
    }

    fn write(&self, lent: &Entries) -> io::Result<()> {
        let file = File { version: VERSION, lent: lent.clone() };
        write_durably(&self.path, &serde_json::to_vec(&file)?)
    }
}

struct Locked<'a>(MutexGuard<'a, Option<Entries>>);

impl std::ops::Deref for Locked<'_> {
    type Target = Entries;

    fn deref(&self) -> &Entries {
        static NONE: Entries = Entries::new();
        self.0.as_ref().unwrap_or(&NONE)
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Entries {
        self.0.get_or_insert_default()
    }
}

/// False where it is not what was lent.
fn give_back(path: &Path, owner: Owner, noted: Option<Lent>) -> io::Result<bool> {
    if let Some(noted) = noted {
        let is_noted = fs::metadata(path)?.ino() == noted.inode;
        if !is_noted || Owner::of(path)? != noted.user {
            return Ok(false);
        }
    }
    owner.own(path).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: Owner = Owner { uid: 65534, gid: 65534 };
    const OTHER: Owner = Owner { uid: 1234, gid: 1234 };

    #[test]
    fn what_was_lent_is_known_after_a_boot() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::write(&image, "").unwrap();
        let ours = Owner::of(&image).unwrap();
        let files = || [(image.as_path(), OTHER)];
        Ledger::new(dir.path()).note(files(), ours).unwrap();
        let known = Ledger::new(dir.path());
        assert_eq!(known.all(), [(image.clone(), OTHER)]);
        // Nothing is given up for a file that is not there.
        let err = known.note([(Path::new("/none/there"), OTHER)], ours).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::NotFound);
        fs::remove_file(&image).unwrap();
        known.hand_back(known.all());
        assert_eq!(Ledger::new(dir.path()).all(), []);
    }

    #[test]
    fn only_what_is_as_it_was_lent_is_handed_back() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let names = ["lent", "taken", "replaced"];
        let images = names.map(|name| dir.path().join(name));
        for image in &images {
            fs::write(image, "").unwrap();
            OTHER.own(image).unwrap();
        }
        let ledger = Ledger::new(dir.path());
        ledger.note(images.iter().map(|image| (image.as_path(), OTHER)), NOBODY).unwrap();
        for image in &images {
            NOBODY.own(image).unwrap();
        }
        let third = Owner { uid: 77, gid: 77 };
        third.own(&images[1]).unwrap();
        let new = dir.path().join("new");
        fs::write(&new, "").unwrap();
        NOBODY.own(&new).unwrap();
        fs::rename(&new, &images[2]).unwrap();

        let next = Ledger::new(dir.path());
        next.hand_back(next.all());
        let owners = images.each_ref().map(|image| Owner::of(image).unwrap());
        assert_eq!(owners, [OTHER, third, NOBODY]);
        assert_eq!(Ledger::new(dir.path()).all(), []);
    }

    #[test]
    fn a_damaged_file_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("lent.json"), "{").unwrap();
        assert_eq!(Ledger::new(dir.path()).all(), []);
        assert!(dir.path().join("lent.json.unreadable").exists());
    }
}
