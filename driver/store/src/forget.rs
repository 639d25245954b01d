//! The end of a domain, with files outside of the store that go with it.
//!
//! One rename is the pivot: before it the domain is there with all its files, after it none is. The
//! list of the files goes along in the directory, under a name that a living domain's directory is
//! cleaned of; so a list that was written and whose domain did not go says nothing.
//!
//! Whoever finishes what a crash broke off looks at all other domains first: a file that one of
//! them names stays.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use virtsnap_engine::error::{Condition, Error, Result};

use crate::atomic::LEFTOVER;
use crate::v1::{self, GoneV1, Versioned};
use crate::{Store, failed, hold, remove_durably};

/// In a domain's directory; cleaned away where that is not on its way out.
const LIST: &str = ".new-gone";

impl Store {
    /// Takes away all that is stored of a domain; nothing stored is done.
    pub fn forget(&self, domain: Uuid) -> Result<()> {
        self.forget_with(domain, &[])
    }

    /// And with it files, or directories with all that is in them, that belong to no other. What
    /// cannot be removed of these stays behind, and is told in the log.
    pub fn forget_with(&self, domain: Uuid, files: &[PathBuf]) -> Result<()> {
        let shelf = self.shelf(domain)?;
        let shelf = hold(&*shelf);
        shelf.check_known()?;
        let directory = self.directory(domain);
        // Gone in one step; a crash in the second leaves only what `open` takes away.
        let gone = self.domains.join(format!("{LEFTOVER}{domain}"));
        self.disk.remove_all(&gone).map_err(failed("remove", &gone))?;
        if directory.exists() {
            self.list(&directory.join(LIST), files)?;
            self.disk.rename(&directory, &gone).map_err(failed("remove", &directory))?;
            files.iter().for_each(|file| remove(file));
            if let Err(err) = self.disk.remove_all(&gone) {
                tracing::warn!("'{}' stays until the next start: {err}", gone.display());
            }
        } else {
            // By an earlier call, which may have failed to make that durable.
            let synced = self.disk.sync_directory(&self.domains);
            synced.map_err(failed("remove", &directory))?;
        }
        hold(&self.shelves).remove(&domain);
        Ok(())
    }

    fn list(&self, list: &Path, files: &[PathBuf]) -> Result<()> {
        let done = if files.is_empty() && !list.exists() {
            Ok(())
        } else if files.is_empty() {
            self.disk.remove(list)
        } else {
            let content = GoneV1 { files: files.iter().cloned().collect() };
            let text = serde_json::to_vec(&Versioned::new(&content)).map_err(|err| {
                Error::new(Condition::Internal, "the files of the domain cannot be listed")
                    .caused_by(err)
            })?;
            self.disk.replace(list, &text)
        };
        done.map_err(failed("write", list))
    }

    /// Ends what a crash left of this. No client is there yet.
    pub(crate) fn finish_forgetting(&self) -> Result<()> {
        let fail = || failed("read the directory", &self.domains);
        for entry in fs::read_dir(&self.domains).map_err(fail())? {
            let entry = entry.map_err(fail())?;
            let name = entry.file_name();
            let uuid = name.to_str().and_then(|name| name.strip_prefix(LEFTOVER));
            let list = entry.path().join(LIST);
            let Some(uuid) = uuid.and_then(|uuid| Uuid::parse_str(uuid).ok()) else { continue };
            match fs::read(&list) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => tracing::warn!("'{}': {err}", list.display()),
                Ok(bytes) => match v1::from_json::<GoneV1>(&bytes) {
                    Ok(gone) => self.remove_unneeded(uuid, gone.files)?,
                    Err(what) => tracing::warn!("'{}': {what}", list.display()),
                },
            }
        }
        Ok(())
    }

    fn remove_unneeded(&self, of: Uuid, files: BTreeSet<PathBuf>) -> Result<()> {
        if self.directory(of).exists() {
            tracing::warn!("domain {of} is there again: its state stays");
            return Ok(());
        }
        let mut bad = Vec::new();
        let mut needed = BTreeSet::new();
        for uuid in self.uuids(&mut Vec::new())? {
            let (_, domain) = self.read_shelf(uuid, &mut bad)?;
            let book = domain.map(|domain| domain.book);
            needed.extend(
                files.iter().filter(|file| book.as_ref().is_some_and(|book| book.refers_to(file))),
            );
        }
        for file in &files {
            // What cannot be read may name any of them.
            if needed.contains(file) || !bad.is_empty() {
                tracing::warn!("'{}' stays: another domain may need it", file.display());
            } else {
                remove(file);
            }
        }
        Ok(())
    }
}

fn remove(path: &Path) {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let removed = if is_directory { fs::remove_dir_all(path) } else { remove_durably(path) };
    if let Err(err) = removed {
        tracing::warn!("'{}' of a domain that is gone stays behind: {err}", path.display());
    }
}
