//! A domain with two disks, firmware and a TPM in the simulated world, and what a user does with
//! it: the vocabulary of the tests that try every fault.
//!
//! A guest that lives writes one counter to all its disks and into its memory between any two
//! calls ([`World::live`]): so a write that is lost, or memory that meets disks of another moment,
//! is seen.

#![expect(clippy::expect_used, clippy::panic, reason = "for tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use virtsnap_xml::domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Location, Request, Survivor};

use super::inner::MANAGED_SAVE;
use super::{Content, TICK, World};
use crate::book::Book;
use crate::error::{Error, Result};
use crate::facts::{Format, StateKind};
use crate::options::{
    Afterwards, Consolidate, DeleteOptions, DeleteScope, Meanwhile, Metadata, New, RevertOptions,
    RevertState, Scope,
};
use crate::ports::Journals;
use crate::snapshots::Snapshots;

pub const DISKS: [&str; 2] = ["vda", "vdb"];
pub const STATE: [StateKind; 2] = [StateKind::Nvram, StateKind::Tpm];
pub const MEMORIES: [Memory; 4] = [Memory::None, Memory::Inside, Memory::Outside, Memory::Live];

/// Short words for lists of operations.
pub mod words {
    use super::{DeleteScope, Location, RevertState};

    pub const AS: RevertState = RevertState::AsSnapshot;
    pub const UP: RevertState = RevertState::Running;
    pub const OFF: RevertState = RevertState::ShutOff;
    pub const STILL: RevertState = RevertState::Paused;
    pub const ONE: DeleteScope = DeleteScope::Single;
    pub const FAMILY: DeleteScope = DeleteScope::WithDescendants;
    pub const BELOW: DeleteScope = DeleteScope::DescendantsOnly;
    pub const IN: Location = Location::Internal;
    pub const EX: Location = Location::External;
    pub const NO: Location = Location::No;
    pub const BY_HAND: Location = Location::Manual;
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    Internal(u8),
    External(u8),
    /// Through the guest's agent.
    Quiesced(u8),
    /// The domain ends with it: of disks only, or of all.
    Halting(u8, Scope),
    /// Nobody keeps a record of it.
    Unrecorded(u8),
    /// Memory, vda, vdb.
    Mix(u8, Memory, Location, Location),
    Revert(u8, RevertState),
    /// Back onto the frozen file.
    Discard(u8),
    /// The snapshots below go with it.
    Alone(u8, RevertState),
    /// Both.
    DiscardAlone(u8),
    /// With new firmware variables.
    Reset(u8),
    Delete(u8, DeleteScope),
    /// With the overlay left, not the base.
    Stream(u8, DeleteScope),
    /// Its record, and nothing else.
    Forget(u8),
    /// With another description.
    Redefine(u8),
    /// The first disk is a raw file.
    Raw,
    /// The second disk is a raw file that the hypervisor does not serve.
    Bypassed,
    Start,
    Stop,
    /// By a managed save.
    Save,
    Pause,
    Write(u8),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Memory {
    None,
    Inside,
    /// The guest stands still meanwhile, as the administrator wants it.
    Outside,
    /// As it is by itself.
    Live,
}

pub fn name(n: u8) -> String {
    format!("s{n}")
}

pub type Engine = Snapshots<World, World, World>;

pub fn engine(world: &World) -> Engine {
    let world = Arc::new(world.clone());
    Snapshots::new(Arc::clone(&world), Arc::clone(&world), world)
}

/// Nothing in the simulated world waits.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("the simulated world waits for nothing"),
    }
}

fn mix(n: u8, memory: Memory, locations: [Location; 2]) -> (Request, New) {
    let disks = DISKS
        .iter()
        .zip(locations)
        .map(|(disk, location)| format!("<disk name='{disk}' snapshot='{}'/>", location.as_str()));
    let (asked, scope) = match memory {
        Memory::None => ("", Scope::DiskOnly { quiesce: false }),
        Memory::Inside => ("<memory snapshot='internal'/>", Scope::FullSystem { live: false }),
        Memory::Outside => ("<memory snapshot='external'/>", Scope::FullSystem { live: false }),
        Memory::Live => ("<memory snapshot='external'/>", Scope::FullSystem { live: false }),
    };
    let meanwhile =
        if memory == Memory::Outside { Meanwhile::StandsStill } else { Meanwhile::GoesOn };
    let disks: String = disks.collect();
    let name = name(n);
    let text = format!(
        "<domainsnapshot><name>{name}</name>{asked}<disks>{disks}</disks></domainsnapshot>"
    );
    let parsed = Request::parse(&Element::parse(&text).expect("it is XML"));
    (parsed.expect("it is a request"), New { meanwhile, ..New::plain(scope) })
}

fn create(world: &World, book: &Mutex<Book>, request: &Request, options: &New) -> Result<()> {
    run(engine(world).create(book, request, options)).map(drop)
}

fn plain(n: u8) -> Request {
    Request { name: Some(name(n)), ..Request::default() }
}

fn revert(world: &World, book: &Mutex<Book>, n: u8, options: RevertOptions) -> Result<()> {
    run(engine(world).revert(book, &name(n), &options))
}

fn delete(world: &World, book: &Mutex<Book>, n: u8, options: DeleteOptions) -> Result<()> {
    run(engine(world).delete(book, &name(n), &options))
}

/// `serial` is what a write writes.
pub fn apply(world: &World, book: &Mutex<Book>, op: Op, serial: u64) -> Result<(), Error> {
    // Most operations are in the same second as the one before.
    if serial.is_multiple_of(4) {
        world.tick();
    }
    let disk_only = Scope::DiskOnly { quiesce: false };
    let back = RevertOptions::default();
    match op {
        Op::Internal(n) => {
            create(world, book, &plain(n), &New::plain(Scope::FullSystem { live: false }))
        }
        Op::External(n) => create(world, book, &plain(n), &New::plain(disk_only)),
        Op::Quiesced(n) => {
            create(world, book, &plain(n), &New::plain(Scope::DiskOnly { quiesce: true }))
        }
        Op::Halting(n, scope) => {
            let options = New { afterwards: Afterwards::Halt, ..New::plain(scope) };
            create(world, book, &plain(n), &options)
        }
        Op::Unrecorded(n) => {
            let options = New { metadata: Metadata::Forget, ..New::plain(disk_only) };
            create(world, book, &plain(n), &options)
        }
        Op::Mix(n, memory, vda, vdb) => {
            let (request, options) = mix(n, memory, [vda, vdb]);
            create(world, book, &request, &options)
        }
        Op::Revert(n, state) => revert(world, book, n, RevertOptions { state, ..back }),
        Op::Discard(n) => revert(world, book, n, RevertOptions { discard: true, ..back }),
        Op::Alone(n, state) => {
            revert(world, book, n, RevertOptions { state, delete_children: true, ..back })
        }
        Op::DiscardAlone(n) => {
            let state = RevertState::ShutOff;
            let options = RevertOptions { state, discard: true, delete_children: true, ..back };
            revert(world, book, n, options)
        }
        Op::Reset(n) => revert(world, book, n, RevertOptions { reset_nvram: true, ..back }),
        Op::Delete(n, scope) => {
            delete(world, book, n, DeleteOptions { scope, ..DeleteOptions::default() })
        }
        Op::Stream(n, scope) => {
            let consolidate = Consolidate { keep: Some(Survivor::Overlay), required: false };
            let options = DeleteOptions { scope, consolidate, ..DeleteOptions::default() };
            delete(world, book, n, options)
        }
        Op::Forget(n) => {
            let options = DeleteOptions { metadata_only: true, ..DeleteOptions::default() };
            delete(world, book, n, options)
        }
        Op::Redefine(n) => {
            let mut moment = book
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .moments
                .expect(&name(n))?
                .clone();
            moment.description = Some("another".to_owned());
            run(engine(world).redefine(book, moment, false)).map(drop)
        }
        Op::Raw => {
            world.make_raw(DISKS[0]);
            Ok(())
        }
        Op::Bypassed => {
            world.make_bypassed(DISKS[1]);
            Ok(())
        }
        Op::Start => {
            if world.guest().is_none() {
                world.start();
            }
            book.lock().unwrap_or_else(PoisonError::into_inner).has_managed_save = false;
            Ok(())
        }
        Op::Stop => {
            world.stop();
            Ok(())
        }
        Op::Save => {
            if world.guest().is_some() {
                world.save();
            }
            book.lock().unwrap_or_else(PoisonError::into_inner).has_managed_save =
                world.saved().is_some();
            Ok(())
        }
        Op::Pause => {
            if world.guest().is_some() {
                world.pause();
            }
            Ok(())
        }
        Op::Write(cluster) => {
            for disk in DISKS {
                world.write(disk, cluster, serial);
                world.write(disk, TICK, serial);
            }
            for kind in STATE {
                world.write_state(kind, cluster, serial);
            }
            Ok(())
        }
    }
}

/// What a moment holds: of each disk, if it took part, of firmware and TPM, and of memory.
pub type Held = (Vec<Option<Content>>, Option<u64>);

pub fn held(world: &World, moment: &str) -> Held {
    let state = STATE.iter().map(|kind| Some(world.state_of(moment, *kind).unwrap_or_default()));
    let contents = DISKS.iter().map(|disk| world.content_of(moment, disk)).chain(state).collect();
    (contents, world.memory_of(moment))
}

/// What the domain has now. Where there is no state yet, it is as good as empty.
pub fn contents(world: &World) -> Vec<Content> {
    let state = STATE.iter().map(|kind| world.state(*kind).unwrap_or_default());
    DISKS.iter().map(|disk| world.content(disk)).chain(state).collect()
}

/// All that a user can tell of a world: no file names, and not what a guest does by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub moments: BTreeMap<String, Seen>,
    pub current: Option<String>,
    /// Of the disks, and of firmware and TPM.
    pub disks: Vec<Content>,
    /// Running, frozen.
    pub guest: Option<(bool, bool)>,
    /// Whether the next start goes on with a guest that was saved.
    pub is_saved: bool,
}

/// Of a moment: parent, description, content, and whether there is memory.
pub type Seen = (Option<String>, Option<String>, Vec<Option<Content>>, bool);

fn without_tick(mut content: Content) -> Content {
    content.remove(&TICK);
    content
}

pub fn view(world: &World) -> View {
    let all = world.moments();
    let moments = all.iter().filter(|def| !def.delete_in_progress).map(|def| {
        let (disks, memory) = held(world, &def.name);
        let disks = disks.into_iter().map(|disk| disk.map(without_tick)).collect();
        (def.name.clone(), (def.parent.clone(), def.description.clone(), disks, memory.is_some()))
    });
    View {
        moments: moments.collect(),
        current: all.current().map(str::to_owned),
        disks: contents(world).into_iter().map(without_tick).collect(),
        guest: world.guest().map(|guest| (guest.running, guest.frozen)),
        is_saved: world.saved().is_some(),
    }
}

/// Nothing is left lying about, and nothing that is ours is gone.
pub fn assert_tidy(world: &World, context: &str) {
    assert!(!world.has_journal(), "{context}: the journal is left");
    if let Some(guest) = world.guest() {
        assert!(guest.is_settled(), "{context}: QEMU has something of ours: {guest:?}");
    }
    let needed = needed(world);
    let inner = world.lock();
    for (path, image) in inner.images.iter() {
        assert!(!image.claimed, "{context}: {} is still claimed", path.display());
        // What the user put below the disks, and what a start makes, stays whoever needs it.
        let kind = path.extension().and_then(|kind| kind.to_str());
        let original = matches!(kind, Some("qcow2" | "raw" | "fd"))
            || ["/fw/tpm2/permall", MANAGED_SAVE].iter().any(|file| path == Path::new(file));
        assert!(
            original || image.is_users || inner.owned.contains(path) || needed.contains(path),
            "{context}: {} is nobody's",
            path.display()
        );
    }
    let saved = inner.images.get(Path::new(MANAGED_SAVE));
    if let Some(saved) = saved.and_then(|image| image.memory.as_ref()) {
        let disks = |domain: &Element| -> Vec<_> {
            domain::disks(domain).map(|disk| disk.path().map(str::to_owned)).collect()
        };
        let config = inner.config.as_ref().expect("the domain is persistent");
        assert_eq!(disks(&saved.definition), disks(config), "{context}: it would come back to");
    }
    for path in &needed {
        assert!(inner.images.contains_key(path), "{context}: {} is needed", path.display());
    }
    for path in &inner.owned {
        assert!(inner.images.contains_key(path), "{context}: {} is gone", path.display());
    }
}

/// What the domain and its moments stand on, all the way down.
pub fn needed(world: &World) -> BTreeSet<PathBuf> {
    let inner = world.lock();
    let of_disks = |domain: &Element| -> Vec<PathBuf> {
        domain::disks(domain).filter_map(|disk| Some(PathBuf::from(disk.path()?))).collect()
    };
    let mut open: Vec<PathBuf> = inner.config.as_deref().map(of_disks).unwrap_or_default();
    open.extend(inner.guest.iter().flat_map(|guest| guest.active.values().cloned()));
    for moment in inner.moments.iter() {
        let images = moment.disks.iter();
        open.extend(images.filter_map(|disk| crate::plan::moment_image(moment, &disk.name)));
    }
    let mut needed = BTreeSet::new();
    while let Some(path) = open.pop() {
        open.extend(inner.images.get(&path).and_then(|image| image.backing.clone()));
        needed.insert(path);
    }
    needed
}

/// The daemon comes back, and completes or undoes what it finds.
pub fn restart(world: &World) -> Mutex<Book> {
    world.revive();
    recover(world).unwrap_or_else(|err| panic!("recovery without trouble: {}", err.chain()))
}

/// The same where trouble goes on; the book is what was made of it.
pub fn recover(world: &World) -> Result<Mutex<Book>> {
    let book = world.book();
    for unfinished in Journals::unfinished(world)? {
        run(engine(world).recover(&book, &unfinished))?;
    }
    Ok(book)
}

/// With firmware and a TPM.
pub fn situation(ops: &[Op]) -> World {
    situation_of(World::with_firmware(&DISKS, &Format::Raw), ops)
}

/// The same in a world that is new.
pub fn situation_of(world: World, ops: &[Op]) -> World {
    let mut book = world.book();
    let mut serial = 100;
    for op in ops {
        serial += 1;
        apply(&world, &book, *op, serial).unwrap_or_else(|err| panic!("{op:?}: {}", err.chain()));
        if matches!(op, Op::Raw | Op::Bypassed) {
            // The user's edit.
            book = world.book();
        }
    }
    world
}
