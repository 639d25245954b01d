//! Definitions, moments and journals in durable files.
//!
//! ```text
//!   ROOT/lock                      held while the store is open
//!   ROOT/version                   of the layout
//!   ROOT/domains/UUID/domain.xml   the persistent definition, as libvirt prints it
//!                     domain.json  what libvirt's XML has no place for
//!                     moments/     one file each, as libvirt stores a snapshot; for Xen, beside it
//!                                  what xl's users read of it
//!                     journal.jsonl  only while an operation runs
//!                     managed.save   a managed save; the daemon's
//! ```
//!
//! docs/format.md describes every byte. Invariants: what a call reports as done is on the disk;
//! after a crash each file has its old content or its new; what cannot be read is reported by its
//! name, left where it is, and keeps nothing else from being read.
//!
//! - `shelf`: one domain's directory
//! - `forget`: the end of a domain, with files outside of the store
//! - `journal`: the journal of one running operation
//! - `v1`: the types in our own files
//! - `atomic`: the one door to the disk
//! - `information`: what xl's users read of a moment
//! - `names`: how moments' files are named
//! - `testing`: a disk that breaks, and a host that loses its power

#![forbid(unsafe_code)]

mod atomic;
mod forget;
mod information;
mod journal;
mod names;
#[cfg(test)]
mod sample;
mod shelf;
#[cfg(feature = "testing")]
pub mod testing;
mod v1;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;
use virtsnap_engine::book::Book;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::plan::{MomentChange, Plan};
use virtsnap_engine::ports::{Journal, Journals, Records, Unfinished};
use virtsnap_xml::element::Element;

use crate::atomic::Disk;
pub use crate::atomic::{Act, Wait, Watch};
pub use crate::information::Information;
#[doc(hidden)]
pub use crate::information::fuzz as fuzz_information;
use crate::journal::JournalFile;
#[doc(hidden)]
pub use crate::journal::fuzzing;
use crate::shelf::Shelf;

/// Writes a whole file: after a crash it has its old content or the new one.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    Disk::default().replace(path, bytes)
}

/// Removes a file; one that is not there is removed.
pub fn remove_durably(path: &Path) -> io::Result<()> {
    Disk::default().remove(path)
}

/// The store of one daemon. While it is open, no other process can open it.
#[derive(Debug)]
pub struct Store {
    disk: Disk,
    domains: PathBuf,
    informs: bool,
    /// Has a directory for each domain, by its uuid, in which strays are, too.
    strays: Option<PathBuf>,
    /// Each domain has a lock of its own: the disk is slow.
    shelves: Mutex<BTreeMap<Uuid, Arc<Mutex<Shelf>>>>,
    _lock: RootLock,
}

/// How long a child of a process that was killed may have the lock: it was just forked, and has it
/// until it execs.
const LEFT_BEHIND: Duration = Duration::from_secs(3);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Keeps other processes out.
#[derive(Debug)]
struct RootLock(File);

impl Drop for RootLock {
    /// To close it is not enough: a child that was just forked has the file open until it execs.
    fn drop(&mut self) {
        if let Err(err) = self.0.unlock() {
            tracing::debug!("the store's lock: {err}");
        }
    }
}

/// One domain, as it was found.
#[derive(Debug)]
pub struct StoredDomain {
    pub book: Book,
    pub autostart: bool,
}

/// A file that could not be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFile {
    pub path: PathBuf,
    pub what: String,
}

#[derive(Debug)]
pub struct Loaded {
    pub domains: Vec<StoredDomain>,
    pub bad: Vec<BadFile>,
}

impl Store {
    /// Opens the store in `root`, which is made if it is not there, and takes away what a crash
    /// left half-written. Where another process has it open it waits three seconds.
    ///
    /// # Errors
    /// `ResourceBusy` when another process has it open still.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_on(Disk::default(), root)
    }

    /// A store of which every change to the disk can be watched and broken.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_watched(root: &Path, watch: Arc<dyn Watch>) -> Result<Self> {
        Self::open_on(Disk { watch: Some(watch), wait: None }, root)
    }

    /// From now on it waits for the disk so.
    #[must_use]
    pub fn waiting_by(mut self, wait: Wait) -> Self {
        self.disk.wait = Some(wait);
        self
    }

    /// From now on what whoever works with xl reads of a snapshot stands beside its record. To be
    /// said before anything is read.
    #[must_use]
    pub fn informing(self) -> Self {
        Self { informs: true, ..self }
    }

    /// [`Store::strays`] are looked for there as well, in a directory named by the domain's uuid.
    #[must_use]
    pub fn with_strays_in(self, directory: &Path) -> Self {
        Self { strays: Some(directory.to_owned()), ..self }
    }

    fn open_on(disk: Disk, root: &Path) -> Result<Self> {
        disk.make_directories(root).map_err(failed("make the directory", root))?;
        let lock = lock_root(root)?;
        disk.remove_leftovers(root).map_err(failed("clean up", root))?;
        check_version(&disk, &root.join("version"))?;
        let domains = root.join("domains");
        disk.make_directory(&domains).map_err(failed("make the directory", &domains))?;
        let shelves = Mutex::default();
        let store = Self { disk, domains, informs: false, strays: None, shelves, _lock: lock };
        store.finish_forgetting()?;
        let cleaned = store.disk.remove_leftovers(&store.domains);
        cleaned.map_err(failed("clean up", &store.domains))?;
        for uuid in store.uuids(&mut Vec::new())? {
            let directory = store.directory(uuid);
            for directory in [directory.join("moments"), directory] {
                if directory.is_dir() {
                    let cleaned = store.disk.remove_leftovers(&directory);
                    cleaned.map_err(failed("clean up", &directory))?;
                }
            }
        }
        Ok(store)
    }

    /// Everything that can be read. Of a domain whose definition cannot be read nothing is
    /// listed, so that nothing of it is taken for superfluous.
    pub fn load(&self) -> Result<Loaded> {
        let mut bad = Vec::new();
        let mut domains = Vec::new();
        for uuid in self.uuids(&mut bad)? {
            let (shelf, domain) = self.read_shelf(uuid, &mut bad)?;
            let journal = shelf.journal();
            if journal.exists()
                && let Err(err) = journal::read(&journal)
            {
                bad.push(BadFile { path: journal, what: err.chain() });
            }
            hold(&self.shelves).insert(uuid, Arc::new(Mutex::new(shelf)));
            domains.extend(domain);
        }
        for BadFile { path, what } in &bad {
            tracing::warn!("'{}' is left alone: {what}", path.display());
        }
        Ok(Loaded { domains, bad })
    }

    /// A new domain, or the new name of a known one. Its directory is named by the uuid, and stays.
    pub fn set_name(&self, domain: Uuid, name: &str) -> Result<()> {
        hold(&*self.shelf(domain)?).change_own(|own| name.clone_into(&mut own.name))
    }

    pub fn set_autostart(&self, domain: Uuid, autostart: bool) -> Result<()> {
        hold(&*self.shelf(domain)?).change_own(|own| own.autostart = autostart)
    }

    /// Takes over a moment's record that cannot be read, as it is: while it is there, no image of
    /// the domain is removed or merged.
    pub fn keep_unreadable(&self, domain: Uuid, file: &OsStr, bytes: &[u8]) -> Result<()> {
        hold(&*self.shelf(domain)?).keep_unreadable(file, bytes)
    }

    /// Takes away the persistent definition, and with it autostart; leaves the rest.
    pub fn remove_config(&self, domain: Uuid) -> Result<()> {
        hold(&*self.shelf(domain)?).remove_config()
    }

    /// Where a managed save of the domain is to be.
    pub fn managed_save(&self, domain: Uuid) -> Result<PathBuf> {
        Ok(hold(&*self.shelf(domain)?).managed_save())
    }

    /// What somebody put among the moments of a domain for snapshots that are none of them, and in
    /// which file; nothing, unless the store is [`Store::informing`].
    pub fn strays(&self, domain: Uuid) -> Result<Vec<(PathBuf, Information)>> {
        let elsewhere = self.strays.as_ref().map(|all| all.join(domain.to_string()));
        hold(&*self.shelf(domain)?).strays(elsewhere)
    }

    /// One of them is a moment now. If it is not the file beside that moment's record, it goes.
    pub fn took_in(&self, domain: Uuid, stray: &Path) -> Result<()> {
        hold(&*self.shelf(domain)?).took_in(stray)
    }

    fn directory(&self, domain: Uuid) -> PathBuf {
        self.domains.join(domain.to_string())
    }

    fn read_shelf(
        &self,
        domain: Uuid,
        bad: &mut Vec<BadFile>,
    ) -> Result<(Shelf, Option<StoredDomain>)> {
        Shelf::read(&self.disk, (self.directory(domain), self.informs), domain, bad)
    }

    fn shelf(&self, domain: Uuid) -> Result<Arc<Mutex<Shelf>>> {
        let mut shelves = hold(&self.shelves);
        if let Some(shelf) = shelves.get(&domain) {
            return Ok(shelf.clone());
        }
        let (shelf, _) = self.read_shelf(domain, &mut Vec::new())?;
        let shelf = Arc::new(Mutex::new(shelf));
        shelves.insert(domain, shelf.clone());
        Ok(shelf)
    }

    fn uuids(&self, bad: &mut Vec<BadFile>) -> Result<Vec<Uuid>> {
        let fail = || failed("read the directory", &self.domains);
        let mut uuids = Vec::new();
        for entry in fs::read_dir(&self.domains).map_err(fail())? {
            let entry = entry.map_err(fail())?;
            let name = entry.file_name();
            let uuid = name.to_str().and_then(|name| {
                let uuid = Uuid::parse_str(name).ok()?;
                (uuid.to_string() == name).then_some(uuid)
            });
            match uuid {
                Some(uuid) => uuids.push(uuid),
                None => {
                    let what = "its name is not the uuid of a domain".to_owned();
                    bad.push(BadFile { path: entry.path(), what });
                }
            }
        }
        uuids.sort();
        Ok(uuids)
    }
}

impl Records for Store {
    fn set_config(&self, domain: Uuid, config: &Element) -> Result<()> {
        hold(&*self.shelf(domain)?).set_config(config)
    }

    fn record(&self, domain: Uuid, change: &MomentChange) -> Result<()> {
        hold(&*self.shelf(domain)?).record(change)
    }

    fn set_owned(&self, domain: Uuid, owned: &BTreeSet<PathBuf>) -> Result<()> {
        hold(&*self.shelf(domain)?).change_own(|own| own.owned.clone_from(owned))
    }

    fn managed_save(&self, domain: Uuid) -> Result<PathBuf> {
        Store::managed_save(self, domain)
    }
}

impl Journals for Store {
    fn begin(&self, domain: Uuid, plan: &Plan) -> Result<Box<dyn Journal>> {
        let shelf = self.shelf(domain)?;
        let mut shelf = hold(&*shelf);
        shelf.prepare()?;
        Ok(Box::new(JournalFile::begin(&self.disk, &shelf.journal(), domain, plan)?))
    }

    /// A journal that cannot be read is reported in the log, and lets no new operation begin.
    fn unfinished(&self) -> Result<Vec<Unfinished>> {
        let mut found = Vec::new();
        for domain in self.uuids(&mut Vec::new())? {
            let path = hold(&*self.shelf(domain)?).journal();
            if !path.exists() {
                continue;
            }
            match journal::read(&path) {
                Ok((unfinished, _)) if unfinished.domain == domain => found.push(unfinished),
                Ok(_) => tracing::error!("'{}' is of another domain", path.display()),
                Err(err) => tracing::error!("{}", err.chain()),
            }
        }
        Ok(found)
    }

    fn resume(&self, domain: Uuid) -> Result<Box<dyn Journal>> {
        let path = hold(&*self.shelf(domain)?).journal();
        Ok(Box::new(JournalFile::resume(&self.disk, &path)?))
    }
}

fn lock_root(root: &Path) -> Result<RootLock> {
    let path = root.join("lock");
    let mut options = OpenOptions::new();
    let open = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
    let lock = open.map_err(failed("open", &path))?;
    let start = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(RootLock(lock)),
            Err(TryLockError::WouldBlock) if start.elapsed() < LEFT_BEHIND => {
                std::thread::sleep(LOCK_POLL);
            }
            Err(TryLockError::WouldBlock) => {
                let message =
                    format!("another process uses the store '{}': stop it first", root.display());
                return Err(Error::new(Condition::ResourceBusy, message));
            }
            Err(TryLockError::Error(err)) => return Err(failed("lock", &path)(err)),
        }
    }
}

fn check_version(disk: &Disk, path: &Path) -> Result<()> {
    let expected = format!("{}\n", v1::VERSION);
    match fs::read_to_string(path) {
        Ok(found) if found == expected => Ok(()),
        Ok(found) => Err(Error::new(
            Condition::ConfigUnsupported,
            format!(
                "'{}' says version '{}', and this virtsnap knows {} only",
                path.display(),
                found.trim_end(),
                v1::VERSION
            ),
        )),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            disk.replace(path, expected.as_bytes()).map_err(failed("write", path))
        }
        Err(err) => Err(failed("read", path)(err)),
    }
}

/// What a panic left locked is still whole: every change is one step on the disk.
fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed<'a>(what: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |err| {
        let condition = err.raw_os_error().map_or(Condition::Internal, Condition::System);
        Error::new(condition, format!("cannot {what} '{}'", path.display())).caused_by(err)
    }
}

/// FNV-1a, 64 bits: finds damage, not malice.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
