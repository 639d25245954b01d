//! A disk that breaks, and a host that loses its power.
//!
//! [`LossyDisk`] stands between a store and a real directory. It keeps beside it what of each file
//! and each directory is durable, by the strictest reading of POSIX: content after a sync of the
//! file, names after a sync of their directory. A loss of power takes back any part of the rest:
//! names in any combination, content wholly, in half, or so that zeros stand in its place.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use crate::atomic::{Act, Watch};

/// How it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// One act fails, without effect.
    Fails,
    /// One act has its effect and fails: a sync of which nobody knows what it did.
    FailsAfterEffect,
    /// From then on there is no room.
    Full,
    /// From then on nothing can be changed.
    ReadOnly,
    /// That act and all after it do not happen: the process or the host dies.
    Dies,
}

pub const TROUBLES: [Trouble; 5] =
    [Trouble::Fails, Trouble::FailsAfterEffect, Trouble::Full, Trouble::ReadOnly, Trouble::Dies];

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

/// More are sampled, evenly.
const MOST_LOSSES: usize = 256;

/// A directory in the host's memory, where it has one: there a sync takes no time.
///
/// # Panics
/// If there can be none.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

#[derive(Debug)]
pub struct LossyDisk {
    root: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    nodes: Vec<Node>,
    acts: usize,
    trouble: Option<(usize, Trouble)>,
}

#[derive(Debug, Clone)]
enum Node {
    File { durable: Vec<u8>, now: Vec<u8> },
    Directory { durable: BTreeMap<PathBuf, usize>, pending: Vec<Change> },
}

#[derive(Debug, Clone)]
enum Change {
    Add(PathBuf, usize),
    Rename(PathBuf, PathBuf, usize),
    Remove(PathBuf),
}

/// What one loss of power spares: of each node, which pending changes, or how much of its content.
type Spared = Vec<usize>;

impl LossyDisk {
    /// On a directory whose content is durable.
    pub fn new(root: &Path) -> Self {
        let mut inner = Inner::default();
        inner.read(root);
        Self { root: root.to_owned(), inner: Mutex::new(inner) }
    }

    /// The `n`th act from now goes wrong.
    pub fn arm(&self, n: usize, trouble: Trouble) {
        let mut inner = self.lock();
        inner.acts = 0;
        inner.trouble = Some((n, trouble));
    }

    /// There is room again, and nothing goes wrong any more.
    pub fn mend(&self) {
        self.lock().trouble = None;
    }

    pub fn acts(&self) -> usize {
        self.lock().acts
    }

    /// Was the trouble that was armed met?
    pub fn was_struck(&self) -> bool {
        let inner = self.lock();
        inner.trouble.is_some_and(|(at, _)| inner.acts > at)
    }

    /// What may be there when power comes back, each in a directory of its own. The first is what
    /// is there when only the process dies: all of it.
    ///
    /// # Panics
    /// If the directories cannot be made.
    pub fn losses(&self) -> Vec<TempDir> {
        let inner = self.lock();
        let choices: Vec<usize> = inner.nodes.iter().map(Node::choices).collect();
        let all: usize = choices.iter().fold(1, |all: usize, n| all.saturating_mul(*n));
        let step = all.div_ceil(MOST_LOSSES).max(1);
        let numbers = (0..all).step_by(step);
        let spared = numbers.map(|mut number| -> Spared {
            let digit = |n: &usize| {
                let digit = number % n;
                number /= n;
                digit
            };
            choices.iter().map(digit).collect()
        });
        spared
            .map(|spared| {
                let to = scratch();
                inner.write(0, &spared, to.path()).expect("it can be written");
                to
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inside<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }
}

impl Watch for LossyDisk {
    fn before(&self, act: Act<'_>) -> io::Result<()> {
        let mut inner = self.lock();
        let now = inner.acts;
        inner.acts += 1;
        let Some((at, trouble)) = inner.trouble.filter(|(at, _)| now >= *at) else {
            return Ok(());
        };
        let needs_room = matches!(act, Act::Create(_) | Act::Write { .. } | Act::MakeDirectory(_));
        let errno = match trouble {
            Trouble::Fails if now == at => EIO,
            Trouble::Full if needs_room => {
                if let Act::Write { path, at, bytes } = act {
                    // What there is room for is written.
                    let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
                    inner.write_at(self.inside(path), at, half);
                    let _ = fs::OpenOptions::new()
                        .write(true)
                        .open(path)
                        .and_then(|file| std::os::unix::fs::FileExt::write_all_at(&file, half, at));
                }
                ENOSPC
            }
            Trouble::ReadOnly => EROFS,
            Trouble::Dies => EIO,
            Trouble::Fails | Trouble::FailsAfterEffect | Trouble::Full => return Ok(()),
        };
        Err(io::Error::from_raw_os_error(errno))
    }

    fn after(&self, act: Act<'_>) -> io::Result<()> {
        let mut inner = self.lock();
        inner.follow(act, |path| self.inside(path));
        let now = inner.acts - 1;
        match inner.trouble {
            Some((at, Trouble::FailsAfterEffect)) if now == at => {
                Err(io::Error::from_raw_os_error(EIO))
            }
            _ => Ok(()),
        }
    }
}

impl Inner {
    fn read(&mut self, path: &Path) -> usize {
        let id = self.nodes.len();
        if path.is_dir() {
            let empty = Node::Directory { durable: BTreeMap::new(), pending: Vec::new() };
            self.nodes.push(empty);
            let mut names = BTreeMap::new();
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                names.insert(PathBuf::from(entry.file_name()), self.read(&entry.path()));
            }
            self.nodes[id] = Node::Directory { durable: names, pending: Vec::new() };
        } else {
            let bytes = fs::read(path).unwrap_or_default();
            self.nodes.push(Node::File { durable: bytes.clone(), now: bytes });
        }
        id
    }

    fn find(&self, path: &Path) -> Option<usize> {
        path.iter().try_fold(0, |id, name| match &self.nodes[id] {
            Node::Directory { durable, pending } => {
                applied(durable, pending).get(Path::new(name)).copied()
            }
            Node::File { .. } => None,
        })
    }

    fn change(&mut self, path: &Path, change: impl FnOnce(PathBuf) -> Change) {
        let directory = path.parent().and_then(|parent| self.find(parent));
        let name = path.file_name().map(PathBuf::from);
        let (Some(id), Some(name)) = (directory, name) else { panic!("{path:?} is not inside") };
        if let Node::Directory { pending, .. } = &mut self.nodes[id] {
            pending.push(change(name));
        }
    }

    fn write_at(&mut self, path: &Path, at: u64, bytes: &[u8]) {
        if let Some(Node::File { now, .. }) = self.find(path).map(|id| &mut self.nodes[id]) {
            let at = at as usize;
            now.resize(now.len().max(at + bytes.len()), 0);
            now[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn follow<'a>(&mut self, act: Act<'a>, inside: impl Fn(&'a Path) -> &'a Path) {
        match act {
            Act::Create(path) | Act::MakeDirectory(path) => {
                let node = match act {
                    Act::Create(_) => Node::File { durable: Vec::new(), now: Vec::new() },
                    _ => Node::Directory { durable: BTreeMap::new(), pending: Vec::new() },
                };
                let id = self.nodes.len();
                self.nodes.push(node);
                self.change(inside(path), |name| Change::Add(name, id));
            }
            Act::Write { path, at, bytes } => self.write_at(inside(path), at, bytes),
            Act::Cut { path, length } => {
                if let Some(Node::File { now, .. }) =
                    self.find(inside(path)).map(|id| &mut self.nodes[id])
                {
                    now.resize(length as usize, 0);
                }
            }
            Act::Rename(from, to) => {
                assert_eq!(from.parent(), to.parent(), "renames stay in one directory");
                let id = self.find(inside(from)).expect("what is renamed is there");
                let to = PathBuf::from(to.file_name().expect("a name"));
                self.change(inside(from), |from| Change::Rename(from, to, id));
            }
            Act::Remove(path) | Act::RemoveAll(path) => self.change(inside(path), Change::Remove),
            Act::Sync(path) | Act::SyncDirectory(path) => {
                let id = self.find(inside(path)).expect("what is synced is there");
                match &mut self.nodes[id] {
                    Node::File { durable, now } => durable.clone_from(now),
                    Node::Directory { durable, pending } => {
                        *durable = applied(durable, pending);
                        pending.clear();
                    }
                }
            }
        }
    }

    /// What a loss leaves of a node.
    fn write(&self, id: usize, spared: &Spared, to: &Path) -> io::Result<()> {
        match &self.nodes[id] {
            Node::File { durable, now } => fs::write(to, remains(durable, now, spared[id])),
            Node::Directory { durable, pending } => {
                let lost = spared[id];
                let kept: Vec<Change> = pending
                    .iter()
                    .enumerate()
                    .filter(|(n, _)| lost & (1 << n) == 0)
                    .map(|(_, change)| change.clone())
                    .collect();
                fs::create_dir_all(to)?;
                applied(durable, &kept)
                    .into_iter()
                    .try_for_each(|(name, id)| self.write(id, spared, &to.join(name)))
            }
        }
    }
}

impl Node {
    /// In how many ways a loss can take from it; the first is not at all.
    fn choices(&self) -> usize {
        match self {
            Node::File { durable, now } if durable == now => 1,
            Node::File { .. } => 4,
            Node::Directory { pending, .. } => 1 << pending.len().min(8),
        }
    }
}

fn remains(durable: &[u8], now: &[u8], choice: usize) -> Vec<u8> {
    let grown = now.len().saturating_sub(durable.len());
    match choice {
        0 => now.to_vec(),
        1 => durable.to_vec(),
        // Torn in the middle of what is new.
        2 => now[..now.len() - grown.div_ceil(2)].to_vec(),
        // Its length reached the disk, and its content did not.
        _ => {
            let mut bytes = durable.to_vec();
            bytes.resize(now.len(), 0);
            bytes
        }
    }
}

fn applied(durable: &BTreeMap<PathBuf, usize>, pending: &[Change]) -> BTreeMap<PathBuf, usize> {
    let mut names = durable.clone();
    for change in pending {
        match change {
            Change::Add(name, id) => {
                names.insert(name.clone(), *id);
            }
            Change::Rename(from, to, id) => {
                if names.get(from) == Some(id) {
                    names.remove(from);
                }
                names.insert(to.clone(), *id);
            }
            Change::Remove(name) => {
                names.remove(name);
            }
        }
    }
    names
}
