//! Operations on snapshots, by the real engine with the real store on a simulated hypervisor, on a
//! host that loses its power: at every change the store makes, with every combination of what was
//! not synced lost, and before and after every act on the hypervisor.
//!
//! When power is back no guest runs; recovery brings the old world or the new one, and the new one
//! where the operation was told to be done.
//!
//! What an act on the hypervisor made counts as durable when the act is over, as its steps promise:
//! tests/tests/e2e/durability.rs holds the real ones to it.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use virtsnap_engine::book::Book;
use virtsnap_engine::error::Result;
use virtsnap_engine::options::{
    Consolidate, DeleteOptions, DeleteScope, New, RevertOptions, RevertState, Scope,
};
use virtsnap_engine::plan::MomentChange;
use virtsnap_engine::ports::{Journals, Records};
use virtsnap_engine::snapshots::Snapshots;
use virtsnap_engine::testing::{self, Content, World};
use virtsnap_store::testing::{LossyDisk, Trouble, scratch};
use virtsnap_store::{Act, Store, Watch};
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Request, Survivor};

const DISKS: [&str; 2] = ["vda", "vdb"];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    Internal(u8),
    External(u8),
    Memory(u8),
    Revert(u8),
    Delete(u8, DeleteScope),
    Stream(u8),
    Start,
    Stop,
    Write(u8),
}
use Op::{Delete, External, Internal, Memory, Revert, Start, Stop, Stream, Write};

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn apply<R, J>(world: &World, book: &Mutex<Book>, stored: (Arc<R>, Arc<J>), op: Op) -> Result<()>
where
    R: Records + Send + Sync + 'static,
    J: Journals + Send + Sync + 'static,
{
    let engine = Snapshots::new(Arc::new(world.clone()), stored.0, stored.1);
    let name = |n: u8| format!("s{n}");
    let create = |n, memory: &str, scope| {
        let name = name(n);
        let text = format!("<domainsnapshot><name>{name}</name>{memory}</domainsnapshot>");
        let request = Request::parse(&Element::parse(&text).unwrap()).unwrap();
        run(engine.create(book, &request, &New::plain(scope))).map(drop)
    };
    let delete = |n, scope, keep: Option<Survivor>| {
        let consolidate = Consolidate { keep, required: false };
        let options = DeleteOptions { scope, consolidate, ..DeleteOptions::default() };
        run(engine.delete(book, &name(n), &options))
    };
    world.tick();
    match op {
        Internal(n) => create(n, "", Scope::FullSystem { live: false }),
        External(n) => create(n, "", Scope::DiskOnly { quiesce: false }),
        Memory(n) => create(n, "<memory snapshot='external'/>", Scope::FullSystem { live: false }),
        Revert(n) => {
            let options =
                RevertOptions { state: RevertState::AsSnapshot, ..RevertOptions::default() };
            run(engine.revert(book, &name(n), &options))
        }
        Delete(n, scope) => delete(n, scope, None),
        Stream(n) => delete(n, DeleteScope::Single, Some(Survivor::Overlay)),
        Start => {
            world.start();
            Ok(())
        }
        Stop => {
            world.stop();
            Ok(())
        }
        Write(value) => {
            DISKS.iter().for_each(|disk| world.write(disk, value, u64::from(value)));
            Ok(())
        }
    }
}

fn in_world(world: &World, op: Op) -> Result<()> {
    let records = Arc::new(world.clone());
    apply(world, &world.book(), (records.clone(), records), op)
}

/// What a moment has of each disk, and of memory.
type Held = (Vec<Option<Content>>, Option<u64>);

/// What a user can tell of a world with no guest in it: no names of files.
#[derive(Debug, Clone, PartialEq)]
struct View {
    moments: BTreeMap<String, (Option<String>, Held)>,
    current: Option<String>,
    disks: Vec<Content>,
}

fn view(world: &World) -> View {
    let book = world.book().into_inner().unwrap();
    let moments = book.moments.iter().map(|def| {
        let contents = DISKS.iter().map(|disk| world.content_of(&def.name, disk)).collect();
        (def.name.clone(), (def.parent.clone(), (contents, world.memory_of(&def.name))))
    });
    View {
        moments: moments.collect(),
        current: book.moments.current().map(str::to_owned),
        disks: DISKS.iter().map(|disk| world.content(disk)).collect(),
    }
}

/// What the world's records say, into a store.
fn fill(store: &Store, world: &World) {
    let book = world.book().into_inner().unwrap();
    store.set_config(world.uuid, book.config.as_ref().unwrap()).unwrap();
    store.set_name(world.uuid, testing::NAME).unwrap();
    let write = book.moments.iter().cloned().collect();
    let current = book.moments.current().map(str::to_owned);
    store.record(world.uuid, &MomentChange { write, forget: Vec::new(), current }).unwrap();
    store.set_owned(world.uuid, &book.owned).unwrap();
}

/// A daemon starts on what a loss of power left of the store, and settles it.
fn power_is_back(lost: &Path, world: &World, context: &str) -> View {
    let world = world.fork();
    world.stop();
    let store = Arc::new(Store::open(lost).unwrap());
    let loaded = store.load().unwrap();
    assert_eq!(loaded.bad, [], "{context}");
    let book = Mutex::new(loaded.domains.into_iter().next().unwrap().book);
    let engine = Snapshots::new(Arc::new(world.clone()), store.clone(), store.clone());
    for unfinished in store.unfinished().unwrap() {
        let recovered = run(engine.recover(&book, &unfinished));
        recovered.unwrap_or_else(|err| panic!("{context}: {}", err.chain()));
    }
    assert!(store.unfinished().unwrap().is_empty(), "{context}: the journal is left");

    // The world's own records are what it looks by.
    let found = store.load().unwrap().domains.into_iter().next().unwrap().book;
    world.edit(|config| *config = found.config.clone().unwrap());
    let before: Vec<String> =
        world.book().into_inner().unwrap().moments.iter().map(|def| def.name.clone()).collect();
    let all = MomentChange { write: Vec::new(), forget: before, current: None };
    Records::record(&world, world.uuid, &all).unwrap();
    let write = found.moments.iter().cloned().collect();
    let current = found.moments.current().map(str::to_owned);
    let all = MomentChange { write, forget: Vec::new(), current };
    Records::record(&world, world.uuid, &all).unwrap();

    let original = |path: &PathBuf| DISKS.iter().any(|d| path.ends_with(format!("{d}.qcow2")));
    let images = world.images();
    for (path, image) in &images {
        assert!(!image.claimed, "{context}: {} is still claimed", path.display());
        let is_known = original(path) || found.owned.contains(path);
        assert!(is_known, "{context}: {} is nobody's", path.display());
    }
    for path in &found.owned {
        assert!(images.contains_key(path), "{context}: {} is gone", path.display());
    }
    view(&world)
}

/// The store's disk and the hypervisor lose their power together.
#[derive(Debug)]
struct Plug {
    disk: LossyDisk,
    world: World,
}

impl Watch for Plug {
    fn before(&self, act: Act<'_>) -> io::Result<()> {
        self.disk.before(act).inspect_err(|_| {
            self.world.arm(0, testing::Trouble::DiesBefore);
        })
    }

    fn after(&self, act: Act<'_>) -> io::Result<()> {
        self.disk.after(act)
    }
}

/// Where power goes.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Store(usize),
    Hypervisor(usize, testing::Trouble),
}

/// The operation with power going there; false: it was over before.
fn cut(old: &World, views: (&View, &View), op: Op, cut: Cut, losses: &mut usize) -> bool {
    let context = format!("{op:?}, {cut:?}");
    let home = scratch();
    fill(&Store::open(home.path()).unwrap(), old);
    let world = old.fork();
    let plug = Arc::new(Plug { disk: LossyDisk::new(home.path()), world: world.clone() });
    let store = Arc::new(Store::open_watched(home.path(), plug.clone()).unwrap());
    let book = Mutex::new(store.load().unwrap().domains.into_iter().next().unwrap().book);
    match cut {
        Cut::Store(at) => plug.disk.arm(at, Trouble::Dies),
        Cut::Hypervisor(at, trouble) => world.arm(at, trouble),
    }
    let result = apply(&world, &book, (store.clone(), store), op);
    for lost in plug.disk.losses() {
        let seen = power_is_back(lost.path(), &world, &context);
        let is_fine = seen == *views.1 || result.is_err() && seen == *views.0;
        assert!(is_fine, "{context}: {result:?}\nsaw {seen:?}\nold, new {views:?}");
        *losses += 1;
    }
    plug.disk.was_struck() || world.was_struck()
}

fn every_cut(before: &[Op], op: Op) -> usize {
    let old = World::new(&DISKS);
    old.edit(|config| config.set_attr("type", "qemu"));
    for op in before {
        in_world(&old, *op).unwrap_or_else(|err| panic!("{op:?}: {}", err.chain()));
    }
    let new = old.fork();
    in_world(&new, op).unwrap_or_else(|err| panic!("{op:?}: {}", err.chain()));
    let views = [&old, &new].map(|world| {
        let world = world.fork();
        world.stop();
        view(&world)
    });
    let mut losses = 0;
    let mut all = |at: fn(usize) -> Cut| {
        let is_cut = |n: &usize| cut(&old, (&views[0], &views[1]), op, at(*n), &mut losses);
        (0..).take_while(is_cut).count()
    };
    assert!(all(Cut::Store) > 0, "{before:?} {op:?}: nothing was stored");
    all(|n| Cut::Hypervisor(n, testing::Trouble::DiesBefore));
    all(|n| Cut::Hypervisor(n, testing::Trouble::DiesAfter));
    losses
}

fn every(cases: &[(&[Op], Op)]) {
    let losses: usize = cases.iter().map(|(before, op)| every_cut(before, *op)).sum();
    eprintln!("{} operations, {losses} losses of power", cases.len());
}

const ONE: DeleteScope = DeleteScope::Single;

#[test]
fn create_survives_a_loss_of_power() {
    every(&[
        (&[Write(1)], Internal(0)),
        (&[Write(1)], External(0)),
        (&[Start, Write(1)], Internal(0)),
        (&[Start, Write(1)], External(0)),
        (&[Start, Write(1)], Memory(0)),
        (&[Start, Write(1), External(0), Write(2)], External(1)),
    ]);
}

#[test]
fn revert_survives_a_loss_of_power() {
    every(&[
        (&[Write(1), Internal(0), Write(2)], Revert(0)),
        (&[Write(1), External(0), Write(2)], Revert(0)),
        (&[Start, Write(1), Memory(0), Write(2)], Revert(0)),
        (&[Start, Write(1), Memory(0), Write(2), Stop], Revert(0)),
        (&[Start, Write(1), Internal(0), Write(2), Stop], Revert(0)),
    ]);
}

#[test]
fn delete_survives_a_loss_of_power() {
    every(&[
        (&[Write(1), Internal(0), Write(2)], Delete(0, ONE)),
        (&[Write(1), External(0), Write(2), External(1), Write(3)], Delete(0, ONE)),
        (&[Write(1), External(0), Write(2), External(1), Write(3)], Stream(1)),
        (&[Start, Write(1), Memory(0), Write(2), External(1), Write(3)], Delete(0, ONE)),
        (&[Start, Write(1), Internal(0), Write(2), External(1), Write(3)], Delete(1, ONE)),
        (
            &[Write(1), External(0), Write(2), External(1), Write(3), Revert(0)],
            Delete(0, DeleteScope::WithDescendants),
        ),
    ]);
}
