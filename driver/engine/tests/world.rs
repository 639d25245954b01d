//! The engine against a simulated world.
//!
//! - a matrix: every operation, in every situation, with every call going wrong in every way:
//!   afterwards the old world or the new one holds, and nothing is left lying about;
//! - random sequences: whatever is done in whatever order, every moment holds what it held.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtsnap_engine::book::Book;
use virtsnap_engine::error::{Condition, Error};
use virtsnap_engine::facts::{Format, StateKind};
use virtsnap_engine::options::{
    Consolidate, DeleteOptions, DeleteScope, Metadata, New, Overlays, RevertOptions, RevertState,
    Scope,
};
use virtsnap_engine::ports::Journals;
use virtsnap_engine::snapshots::Snapshots;
use virtsnap_engine::testing::{Content, Trouble, World};
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Location, Request, Survivor};

const DISKS: [&str; 2] = ["vda", "vdb"];
const STATE: [StateKind; 2] = [StateKind::Nvram, StateKind::Tpm];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    Internal(u8),
    External(u8),
    /// Memory, vda, vdb.
    Mix(u8, Memory, Location, Location),
    Revert(u8, RevertState),
    /// Back onto the frozen file.
    Discard(u8),
    /// The snapshots below go with it.
    Alone(u8, RevertState),
    /// Both.
    DiscardAlone(u8),
    Delete(u8, DeleteScope),
    /// With the overlay left, not the base.
    Stream(u8, DeleteScope),
    Start,
    Stop,
    Pause,
    Write(u8),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Memory {
    None,
    Inside,
    Outside,
    Live,
}

fn name(n: u8) -> String {
    format!("s{n}")
}

type Engine = Snapshots<World, World, World>;

fn engine(world: &World) -> Engine {
    let world = Arc::new(world.clone());
    Snapshots::new(Arc::clone(&world), Arc::clone(&world), world)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn create(engine: &Engine, book: &Mutex<Book>, n: u8, scope: Scope) -> Result<(), Error> {
    take(engine, book, &Request { name: Some(name(n)), ..Request::default() }, scope)
}

fn mix(
    engine: &Engine,
    book: &Mutex<Book>,
    n: u8,
    memory: Memory,
    locations: [Location; 2],
) -> Result<(), Error> {
    let disks = DISKS
        .iter()
        .zip(locations)
        .map(|(disk, location)| format!("<disk name='{disk}' snapshot='{}'/>", location.as_str()));
    let (asked, scope) = match memory {
        Memory::None => ("", Scope::DiskOnly { quiesce: false }),
        Memory::Inside => ("<memory snapshot='internal'/>", Scope::FullSystem { live: false }),
        Memory::Outside => ("<memory snapshot='external'/>", Scope::FullSystem { live: false }),
        Memory::Live => ("<memory snapshot='external'/>", Scope::FullSystem { live: true }),
    };
    let disks: String = disks.collect();
    let name = name(n);
    let text = format!(
        "<domainsnapshot><name>{name}</name>{asked}<disks>{disks}</disks></domainsnapshot>"
    );
    take(engine, book, &Request::parse(&Element::parse(&text).unwrap()).unwrap(), scope)
}

fn take(engine: &Engine, book: &Mutex<Book>, request: &Request, scope: Scope) -> Result<(), Error> {
    let options = New::plain(scope);
    run(engine.create(book, request, &options)).map(|_| ())
}

fn apply(world: &World, book: &Mutex<Book>, op: Op, serial: u64) -> Result<(), Error> {
    let engine = engine(world);
    world.tick();
    match op {
        Op::Internal(n) => create(&engine, book, n, Scope::FullSystem { live: false }),
        Op::External(n) => create(&engine, book, n, Scope::DiskOnly { quiesce: false }),
        Op::Mix(n, memory, vda, vdb) => mix(&engine, book, n, memory, [vda, vdb]),
        Op::Revert(n, state) => {
            let options = RevertOptions { state, ..RevertOptions::default() };
            run(engine.revert(book, &name(n), &options))
        }
        Op::Discard(n) => {
            let options = RevertOptions { discard: true, ..RevertOptions::default() };
            run(engine.revert(book, &name(n), &options))
        }
        Op::Alone(n, state) => {
            let options =
                RevertOptions { state, delete_children: true, ..RevertOptions::default() };
            run(engine.revert(book, &name(n), &options))
        }
        Op::DiscardAlone(n) => {
            let state = RevertState::ShutOff;
            let options = RevertOptions {
                state,
                discard: true,
                delete_children: true,
                ..RevertOptions::default()
            };
            run(engine.revert(book, &name(n), &options))
        }
        Op::Delete(n, scope) => {
            let options = DeleteOptions { scope, ..DeleteOptions::default() };
            run(engine.delete(book, &name(n), &options))
        }
        Op::Stream(n, scope) => {
            let consolidate = Consolidate { keep: Some(Survivor::Overlay), required: false };
            let options = DeleteOptions { scope, consolidate, ..DeleteOptions::default() };
            run(engine.delete(book, &name(n), &options))
        }
        Op::Start => {
            if world.guest().is_none() {
                world.start();
            }
            Ok(())
        }
        Op::Stop => {
            world.stop();
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
            }
            for kind in STATE {
                world.write_state(kind, cluster, serial);
            }
            Ok(())
        }
    }
}

/// What a moment holds: of each disk, if it took part, of firmware and TPM, and of memory.
type Held = (Vec<Option<Content>>, Option<u64>);

fn held(world: &World, moment: &str) -> Held {
    let state = STATE.iter().map(|kind| Some(world.state_of(moment, *kind).unwrap_or_default()));
    let contents = DISKS.iter().map(|disk| world.content_of(moment, disk)).chain(state).collect();
    (contents, world.memory_of(moment))
}

/// All that a user can tell of a world: no file names.
#[derive(Debug, Clone, PartialEq)]
struct View {
    moments: BTreeMap<String, (Option<String>, Held)>,
    current: Option<String>,
    /// Of the disks, and of firmware and TPM.
    disks: Vec<Content>,
    /// Running, frozen, memory.
    guest: Option<(bool, bool, u64)>,
}

/// What the domain has now. Where there is no state yet, it is as good as empty.
fn contents(world: &World) -> Vec<Content> {
    let state = STATE.iter().map(|kind| world.state(*kind).unwrap_or_default());
    DISKS.iter().map(|disk| world.content(disk)).chain(state).collect()
}

fn view(world: &World) -> View {
    let book = world.book().into_inner().unwrap();
    View {
        moments: book
            .moments
            .iter()
            .map(|def| (def.name.clone(), (def.parent.clone(), held(world, &def.name))))
            .collect(),
        current: book.moments.current().map(str::to_owned),
        disks: contents(world),
        guest: world.guest().map(|guest| (guest.running, guest.frozen, guest.memory)),
    }
}

fn assert_tidy_but(world: &World, lost: &Path) {
    assert!(world.book().into_inner().unwrap().owned.contains(lost));
    assert!(!world.has_journal());
}

fn assert_tidy(world: &World, context: &str) {
    assert!(!world.has_journal(), "{context}: the journal is left");
    let book = world.book().into_inner().unwrap();
    for (path, image) in world.images() {
        assert!(!image.claimed, "{context}: {} is still claimed", path.display());
        let original = DISKS.iter().any(|d| path.as_os_str() == &*format!("/img/{d}.qcow2"))
            || ["/fw/template.fd", "/fw/vm.fd", "/fw/tpm2/permall"]
                .iter()
                .any(|f| path.as_os_str() == *f);
        assert!(
            original || book.owned.contains(&path),
            "{context}: {} is nobody's",
            path.display()
        );
    }
    for path in &book.owned {
        assert!(world.images().contains_key(path), "{context}: {} is gone", path.display());
    }
}

/// The daemon comes back, and completes or undoes what it finds.
fn restart(world: &World) -> Mutex<Book> {
    world.revive();
    let book = world.book();
    for unfinished in Journals::unfinished(world).unwrap() {
        run(engine(world).recover(&book, &unfinished)).unwrap();
    }
    book
}

fn situation(ops: &[Op]) -> World {
    situation_with(&Format::Raw, ops)
}

/// The variable store is of that format.
fn situation_with(nvram: &Format, ops: &[Op]) -> World {
    let world = World::with_firmware(&DISKS, nvram);
    let book = world.book();
    let mut serial = 100;
    for op in ops {
        serial += 1;
        apply(&world, &book, *op, serial).unwrap_or_else(|err| panic!("{op:?}: {}", err.chain()));
    }
    world
}

fn every_trouble(before: &[Op], op: Op) {
    every_trouble_with(&Format::Raw, before, op);
}

fn every_trouble_with(nvram: &Format, before: &[Op], op: Op) {
    let old_world = situation_with(nvram, before);
    let new_world = old_world.fork();
    apply(&new_world, &new_world.book(), op, 999)
        .unwrap_or_else(|err| panic!("{before:?} {op:?}: {}", err.chain()));
    let (old, new) = (view(&old_world), view(&new_world));
    assert_tidy(&new_world, "without trouble");

    for trouble in
        [Trouble::Fails, Trouble::FailsAfterEffect, Trouble::DiesBefore, Trouble::DiesAfter]
    {
        for at in 0.. {
            let context = format!("{before:?} then {op:?}, call {at} {trouble:?}");
            let world = old_world.fork();
            world.arm(at, trouble);
            let result = apply(&world, &world.book(), op, 999);
            if !world.was_struck() {
                assert!(at > 0 && result.is_ok(), "{context}: {result:?}");
                break;
            }
            restart(&world);
            let seen = view(&world);
            // What follows the new world (a start) may fail and leaves it shut off.
            let shut_off = View { guest: None, ..new.clone() };
            assert!(
                seen == old || seen == new || seen == shut_off,
                "{context}:\nsaw {seen:#?}\nold {old:#?}\nnew {new:#?}"
            );
            assert_tidy(&world, &context);
        }
    }
}

const AS: RevertState = RevertState::AsSnapshot;
const UP: RevertState = RevertState::Running;
const ONE: DeleteScope = DeleteScope::Single;
const IN: Location = Location::Internal;
const EX: Location = Location::External;
const NO: Location = Location::No;
const BY_HAND: Location = Location::Manual;
use Op::{
    Alone, Delete, Discard, DiscardAlone, External, Internal, Mix, Pause, Revert, Start, Stop,
    Stream, Write,
};

const MEMORIES: [Memory; 4] = [Memory::None, Memory::Inside, Memory::Outside, Memory::Live];

/// Kevin Wolf's table, and what is left out of it or left to the user.
const MIXES: [[Location; 2]; 7] =
    [[IN, IN], [EX, EX], [IN, EX], [EX, IN], [EX, NO], [NO, IN], [IN, BY_HAND]];

#[test]
fn every_mix_keeps_the_old_world_or_makes_the_new() {
    for memory in MEMORIES {
        for [vda, vdb] in MIXES {
            every_trouble(&[Start, Write(1), External(0), Write(2)], Mix(1, memory, vda, vdb));
            if memory != Memory::Live {
                every_trouble(&[Start, Write(1), Pause], Mix(1, memory, vda, vdb));
            }
        }
    }
    for memory in &MEMORIES[1..] {
        every_trouble(&[Start, Write(1)], Mix(1, *memory, NO, NO));
    }
}

#[test]
fn every_mix_is_reverted_to_and_deleted() {
    for memory in MEMORIES {
        for [vda, vdb] in MIXES {
            let taken = [Start, Write(1), Mix(0, memory, vda, vdb), Write(2)];
            let then = |more: &[Op]| [&taken[..], more].concat();
            every_trouble(&taken, Revert(0, AS));
            every_trouble(&then(&[External(1), Write(3)]), Revert(0, UP));
            every_trouble(&then(&[Stop]), Revert(0, RevertState::ShutOff));
            every_trouble(&taken, Delete(0, ONE));
            every_trouble(
                &then(&[Mix(1, memory, vdb, vda), Write(3), Stop]),
                Delete(0, DeleteScope::WithDescendants),
            );
        }
    }
}

/// A variable store that is qcow2 takes part like a disk.
#[test]
fn a_variable_store_with_internal_snapshots_goes_with_the_disks() {
    let every = |before: &[Op], op| every_trouble_with(&Format::Qcow2, before, op);
    for memory in MEMORIES {
        every(&[Start, Write(1)], Mix(1, memory, IN, EX));
        let taken = [Start, Write(1), Mix(0, memory, EX, EX), Write(2)];
        every(&taken, Revert(0, AS));
        every(&taken, Delete(0, ONE));
    }
    every(&[Start, Stop, Write(1)], Internal(1));
    every(&[Start, Write(1)], Internal(1));
    every(&[Start, Write(1), Internal(0), Write(2)], Revert(0, AS));
    every(&[Start, Write(1), Internal(0), Write(2), Stop, Write(3)], Revert(0, AS));
    every(&[Start, Stop, Write(1), Internal(0), Start, Write(2)], Revert(0, UP));
    every(&[Start, Write(1), Internal(0), Write(2), Internal(1)], Delete(0, ONE));
}

#[test]
fn create_keeps_the_old_world_or_makes_the_new() {
    for before in [&[Write(1)][..], &[Start, Write(1)], &[Write(1), External(0), Write(2), Start]] {
        every_trouble(before, External(1));
        every_trouble(before, Internal(1));
    }
}

#[test]
fn revert_keeps_the_old_world_or_makes_the_new() {
    for (before, state) in [
        (&[Write(1), Internal(0), Write(2)][..], AS),
        (&[Write(1), External(0), Write(2)], AS),
        (&[Write(1), External(0), Write(2), Start, Write(3)], AS),
        (&[Write(1), External(0), Write(2), Start, Write(3)], UP),
        (&[Start, Write(1), Internal(0), Write(2)], AS),
        (&[Start, Write(1), Internal(0), Write(2), Stop], AS),
        (&[Start, Write(1), Internal(0), Write(2), External(1), Write(3)], AS),
        (&[Start, Write(1), Internal(0), Write(2), External(1), Stop, Write(3)], UP),
    ] {
        every_trouble(before, Revert(0, state));
    }
}

#[test]
fn a_revert_that_gives_up_keeps_the_old_world_or_makes_the_new() {
    let chain = [Write(1), External(0), Write(2), External(1), Write(3), External(2), Write(4)];
    let mut running = chain.to_vec();
    running.push(Start);
    for before in [&chain[..], &running] {
        every_trouble(before, Discard(2));
        every_trouble(before, DiscardAlone(1));
        every_trouble(before, Alone(0, AS));
        every_trouble(before, Alone(1, UP));
    }
    for before in [
        &[Start, Write(1), Internal(0), Write(2), Internal(1), Write(3)][..],
        &[Start, Write(1), Internal(0), Write(2), External(1), Write(3), Internal(2), Write(4)],
        &[Write(1), Internal(0), Write(2), External(1), Write(3)],
    ] {
        every_trouble(before, Alone(0, AS));
        every_trouble(before, Alone(0, RevertState::ShutOff));
    }
}

#[test]
fn delete_keeps_the_old_world_or_makes_the_new() {
    let chain = [Write(1), External(0), Write(2), External(1), Write(3), External(2), Write(4)];
    let mut running = chain.to_vec();
    running.push(Start);
    let mut branched = chain.to_vec();
    branched.extend([Revert(1, AS), Write(5), External(3), Write(6)]);
    for before in [&chain[..], &running, &branched] {
        for n in 0..3 {
            every_trouble(before, Delete(n, ONE));
            every_trouble(before, Stream(n, ONE));
        }
        every_trouble(before, Stream(0, DeleteScope::WithDescendants));
        every_trouble(before, Delete(0, DeleteScope::WithDescendants));
        every_trouble(before, Delete(0, DeleteScope::DescendantsOnly));
    }
    for before in [
        &[Write(1), Internal(0), Write(2), Internal(1), Write(3)][..],
        &[Start, Write(1), Internal(0), Write(2), External(1), Write(3)],
        &[Start, Write(1), External(0), Write(2), Internal(1), Write(3)],
    ] {
        every_trouble(before, Delete(0, ONE));
        every_trouble(before, Delete(1, ONE));
        every_trouble(before, Delete(0, DeleteScope::WithDescendants));
    }
}

/// A chain gets shorter by one layer, wherever the moment stood, and the oldest name survives.
#[test]
fn deleting_from_a_chain_frees_one_layer() {
    let chain = [Write(1), External(0), Write(2), External(1), Write(3), External(2), Write(4)];
    for n in 0..3 {
        let world = situation(&chain);
        let before = world.images().len();
        apply(&world, &world.book(), Delete(n, ONE), 0).unwrap();
        assert_eq!(world.images().len(), before - DISKS.len(), "s{n}");
    }
    let world = situation(&chain);
    apply(&world, &world.book(), Delete(0, DeleteScope::WithDescendants), 0).unwrap();
    let left: Vec<_> = world.images().into_keys().filter(|path| path.starts_with("/img")).collect();
    assert_eq!(left, DISKS.map(|disk| PathBuf::from(format!("/img/{disk}.qcow2"))));
}

/// What an image stands on is not known while it is away; so nothing is removed, and nothing merged
/// into what it may stand on.
#[test]
fn while_an_image_is_away_nothing_below_it_is_touched() {
    let chain = [Write(1), External(0), Write(2), External(1), Write(3), External(2), Write(4)];
    let mut branched = chain.to_vec();
    branched.extend([Revert(1, AS), Write(5)]);
    for (before, away) in [(&chain[..], "s2"), (&chain, "s1"), (&branched, "s1")] {
        let world = situation(before);
        let path = PathBuf::from(format!("/img/vda.{away}"));
        let image = world.take_away(&path);
        for op in [Delete(2, ONE), Delete(1, ONE), Delete(0, ONE)] {
            drop(apply(&world, &world.book(), op, 0));
        }
        world.put_back(&path, image);
        let old = situation(before);
        assert_eq!(world.content("vda"), old.content("vda"), "{away} was away");
        for name in world.book().into_inner().unwrap().moments.iter().map(|def| def.name.clone()) {
            assert_eq!(world.content_of(&name, "vda"), old.content_of(&name, "vda"), "{name}");
        }
    }
}

/// A file that a user prepared is an overlay when the snapshot is there, and as it was when not:
/// never gone, never half of one.
#[test]
fn what_a_user_prepared_is_used_or_left_as_it_was() {
    let (at, base) = (PathBuf::from("/img/prepared"), PathBuf::from("/img/vda.qcow2"));
    let xml = "<domainsnapshot><name>s0</name><disks><disk name='vda' snapshot='external'>\
               <source file='/img/prepared'/></disk><disk name='vdb' snapshot='no'/></disks>\
               </domainsnapshot>";
    let request = Request::parse(&Element::parse(xml).unwrap()).unwrap();
    for (overlays, backing) in [(Overlays::Create, None), (Overlays::Reuse, Some("/img/vda.qcow2"))]
    {
        for before in [vec![Write(1)], vec![Write(1), Start]] {
            let old = situation(&before);
            old.prepare("/img/prepared", backing);
            let prepared = old.images()[&at].clone();
            let options = New { overlays, ..New::plain(Scope::DiskOnly { quiesce: false }) };
            for trouble in
                [Trouble::Fails, Trouble::FailsAfterEffect, Trouble::DiesBefore, Trouble::DiesAfter]
            {
                for n in 0.. {
                    let world = old.fork();
                    world.arm(n, trouble);
                    let result = run(engine(&world).create(&world.book(), &request, &options));
                    let was_struck = world.was_struck();
                    let book = restart(&world).into_inner().unwrap();
                    let context = format!("{overlays:?} {before:?}, call {n} {trouble:?}");
                    let image = world.images()[&at].clone();
                    match book.moments.get("s0") {
                        Some(_) => assert_eq!(image.backing.as_ref(), Some(&base), "{context}"),
                        None => assert_eq!(image, prepared, "{context}"),
                    }
                    assert!(!image.claimed && !world.has_journal(), "{context}");
                    assert_eq!(world.content("vda"), old.content("vda"), "{context}");
                    let ours = book.moments.get("s0").is_some() && overlays == Overlays::Create;
                    assert_eq!(book.owned.contains(&at), ours, "{context}");
                    if !was_struck {
                        assert!(n > 0 && result.is_ok(), "{context}: {result:?}");
                        break;
                    }
                }
            }
        }
    }
}

/// An operation that could not be completed is settled by the next one, which waits for no merge.
#[test]
fn an_unfinished_operation_comes_before_the_next() {
    let world = situation(&[Write(1), External(0), Write(2)]);
    let book = world.book();
    // begin, Pivoted, then the commit fails.
    world.arm(2, Trouble::Fails);
    let err = apply(&world, &book, Delete(0, ONE), 0).unwrap_err();
    assert_eq!(err.condition, Condition::OperationFailed);
    assert!(world.has_journal());
    world.revive();
    let expected = world.content("vda");
    apply(&world, &book, External(1), 0).unwrap();
    assert_eq!(world.content("vda"), expected);
    assert!(!world.has_journal());
    assert!(world.book().into_inner().unwrap().moments.get("s0").unwrap().delete_in_progress);
    apply(&world, &book, Delete(0, ONE), 0).unwrap();
    assert_eq!(world.content("vda"), expected);
    assert!(world.book().into_inner().unwrap().moments.get("s0").is_none());
    assert_tidy(&world, "after the next deletion");
}

/// A guest that starts between an operation's failure and its completion keeps all it writes.
#[test]
fn a_guest_started_after_settling_keeps_what_it_writes() {
    let before = situation(&[Write(1), External(0), Write(2), External(1), Write(3)]);
    for at in 0.. {
        let world = before.fork();
        let book = world.book();
        world.arm(at, Trouble::Fails);
        let result = apply(&world, &book, Delete(1, ONE), 0);
        if !world.was_struck() {
            assert!(at > 4 && result.is_ok());
            break;
        }
        world.revive();
        run(engine(&world).settle(&book)).unwrap();
        for op in [Start, Write(4), Stop] {
            apply(&world, &book, op, 1000).unwrap();
        }
        let written = world.content("vda");
        apply(&world, &book, External(2), 0).unwrap();
        assert_eq!(world.content("vda"), written, "call {at} failed");
        assert_tidy(&world, &format!("call {at} failed"));
    }
}

/// The disks would meet variables that are not theirs, which only FORCE accepts.
#[test]
fn a_moment_without_its_state_is_a_risk() {
    let revert = |world: &World, options: &RevertOptions| {
        run(engine(world).revert(&world.book(), "s0", options))
    };
    let plain = RevertOptions::default();
    let world = situation(&[Start, Write(1), External(0), Write(1), Stop]);
    let copy = PathBuf::from("/fw/vm.fd.s0");
    let lost = world.fork();
    lost.lose(&copy);
    let err = revert(&lost, &plain).unwrap_err();
    assert_eq!(err.condition, Condition::RevertRisky);
    assert!(err.chain().contains("/fw/vm.fd.s0"), "{}", err.chain());
    let before = world.state(StateKind::Nvram);
    revert(&lost, &RevertOptions { force: true, ..plain }).unwrap();
    assert_eq!(lost.state(StateKind::Nvram), before);
    // What is reset needs no copy.
    let reset = world.fork();
    reset.lose(&copy);
    revert(&reset, &RevertOptions { reset_nvram: true, ..plain }).unwrap();
    assert_eq!(reset.state(StateKind::Nvram), Some(Content::new()));
    assert_tidy_but(&reset, &copy);
    // Nor does memory, which has the variables in it.
    let full = situation(&[Start, Write(1), Internal(0), Write(1)]);
    full.lose(&copy);
    revert(&full, &plain).unwrap();
}

/// Without metadata nobody would know of copies, so there are none; and copies of a moment that is
/// only forgotten are the user's from then on, as its images are.
#[test]
fn copies_go_with_the_record() {
    let world = situation(&[Start, Write(1)]);
    let request = Request { name: Some(name(0)), ..Request::default() };
    let scope = Scope::DiskOnly { quiesce: false };
    let options = New { metadata: Metadata::Forget, ..New::plain(scope) };
    run(engine(&world).create(&world.book(), &request, &options)).unwrap();
    let copy = Path::new("/fw/vm.fd.s0");
    assert!(!world.images().contains_key(copy));

    let world = situation(&[Start, Write(1), External(0), External(1)]);
    let forget = DeleteOptions { metadata_only: true, ..DeleteOptions::default() };
    run(engine(&world).delete(&world.book(), &name(0), &forget)).unwrap();
    apply(&world, &world.book(), Delete(1, ONE), 0).unwrap();
    assert!(world.images().contains_key(copy));
    assert!(!world.images().contains_key(Path::new("/fw/vm.fd.s1")));
    // A new one of that name does not take it for its own.
    apply(&world, &world.book(), Internal(0), 0).unwrap();
    assert!(world.images().contains_key(Path::new("/fw/vm.fd.s0.1")));
}

/// A moment of a domain that has never run: what the firmware has written since goes.
#[test]
fn where_there_were_no_variables_they_are_as_new_again() {
    let world = situation(&[External(0), Start, Write(1), Stop]);
    apply(&world, &world.book(), Revert(0, AS), 0).unwrap();
    assert_eq!(world.state(StateKind::Nvram), None);
    assert_eq!(world.state(StateKind::Tpm), None);
}

#[test]
fn two_snapshots_without_a_name_in_one_second_both_succeed() {
    let world = situation(&[Write(1)]);
    let book = world.book();
    let options = New::plain(Scope::DiskOnly { quiesce: false });
    let engine = engine(&world);
    let first = run(engine.create(&book, &Request::default(), &options)).unwrap();
    let second = run(engine.create(&book, &Request::default(), &options)).unwrap();
    assert_ne!(first.name, second.name);
    assert_eq!(second.parent, Some(first.name));
    // Nor do those that nobody keeps a record of get in each other's way.
    for scope in [options.scope, Scope::FullSystem { live: false }] {
        let unkept = New { metadata: Metadata::Forget, ..New::plain(scope) };
        let first = run(engine.create(&book, &Request::default(), &unkept)).unwrap();
        let second = run(engine.create(&book, &Request::default(), &unkept)).unwrap();
        assert_ne!(first.name, second.name);
    }
}

fn any_memory() -> impl Strategy<Value = Memory> {
    prop::sample::select(MEMORIES.to_vec())
}

fn any_location() -> impl Strategy<Value = Location> {
    prop_oneof![3 => Just(IN), 3 => Just(EX), 1 => Just(NO), 1 => Just(BY_HAND)]
}

fn any_nvram() -> impl Strategy<Value = Format> {
    prop_oneof![Just(Format::Raw), Just(Format::Qcow2)]
}

fn any_op() -> impl Strategy<Value = Op> {
    let state =
        prop_oneof![Just(AS), Just(UP), Just(RevertState::Paused), Just(RevertState::ShutOff),];
    let scope = prop_oneof![
        3 => Just(ONE),
        1 => Just(DeleteScope::WithDescendants),
        1 => Just(DeleteScope::DescendantsOnly),
    ];
    prop_oneof![
        3 => (0u8..6).prop_map(Internal),
        4 => (0u8..6).prop_map(External),
        6 => ((0u8..6), any_memory(), any_location(), any_location())
            .prop_map(|(n, memory, vda, vdb)| Mix(n, memory, vda, vdb)),
        4 => ((0u8..6), state.clone()).prop_map(|(n, state)| Revert(n, state)),
        3 => ((0u8..6), scope.clone()).prop_map(|(n, scope)| Delete(n, scope)),
        2 => ((0u8..6), scope).prop_map(|(n, scope)| Stream(n, scope)),
        1 => (0u8..6).prop_map(Discard),
        1 => ((0u8..6), state).prop_map(|(n, state)| Alone(n, state)),
        1 => (0u8..6).prop_map(DiscardAlone),
        2 => Just(Start),
        1 => Just(Stop),
        1 => Just(Pause),
        6 => (0u8..5).prop_map(Write),
    ]
}

/// What a sequence must keep true, told without images or files.
#[derive(Debug, Default)]
struct Model {
    moments: BTreeMap<String, Held>,
}

impl Model {
    /// A refusal is allowed; a change of anything it did not ask for is not.
    fn follow(&mut self, world: &World, book: &Mutex<Book>, op: Op, serial: u64) {
        let before = contents(world);
        let result = apply(world, book, op, serial);
        let after = contents(world);
        match (op, &result) {
            (Internal(n) | External(n), Ok(())) => {
                assert_eq!(before, after);
                self.took(world, n, [true; 2], after, matches!(op, Internal(_)));
            }
            (Mix(n, memory, vda, vdb), Ok(())) => {
                assert_eq!(before, after);
                let takes_part = [vda, vdb].map(|location| matches!(location, IN | EX));
                self.took(world, n, takes_part, after, memory != Memory::None);
            }
            (Revert(n, _) | Alone(n, _) | Discard(n) | DiscardAlone(n), Ok(())) => {
                let (contents, memory) = &self.moments[&name(n)];
                for ((seen, before), content) in after.iter().zip(&before).zip(contents) {
                    assert_eq!(seen, content.as_ref().unwrap_or(before), "{op:?}");
                }
                if let Some(guest) = world.guest() {
                    assert_eq!(guest.memory, memory.unwrap_or_default(), "{op:?}");
                }
            }
            (Write(_), _) => {}
            _ => assert_eq!(before, after, "{op:?} {result:?}"),
        }
        let book = book.lock().unwrap();
        if let (Delete(..) | Stream(..) | Discard(_) | DiscardAlone(_) | Alone(..), Ok(())) =
            (op, &result)
        {
            self.moments.retain(|name, _| book.moments.get(name).is_some());
        }
        assert_eq!(book.moments.len(), self.moments.len(), "{op:?} {result:?}");
        for (name, expected) in &self.moments {
            assert_eq!(&held(world, name), expected, "{name} after {op:?}");
        }
    }

    fn took(
        &mut self,
        world: &World,
        n: u8,
        takes_part: [bool; 2],
        contents: Vec<Content>,
        with_memory: bool,
    ) {
        let takes_part = takes_part.into_iter().chain([true; STATE.len()]);
        let contents = contents.into_iter().zip(takes_part).map(|(c, takes)| takes.then_some(c));
        let memory = world.guest().filter(|_| with_memory).map(|guest| guest.memory);
        assert!(self.moments.insert(name(n), (contents.collect(), memory)).is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_moment_holds_what_it_held(
        ops in prop::collection::vec(any_op(), 1..40),
        nvram in any_nvram(),
    ) {
        let world = World::with_firmware(&DISKS, &nvram);
        let book = world.book();
        let mut model = Model::default();
        for (serial, op) in ops.into_iter().enumerate() {
            model.follow(&world, &book, op, serial as u64 + 1);
            assert_tidy(&world, &format!("{op:?}"));
        }
    }

    /// The same, with the daemon dying in the middle of every third operation.
    #[test]
    fn every_moment_survives_crashes(
        ops in prop::collection::vec((any_op(), 0usize..24, any::<bool>()), 1..30),
        nvram in any_nvram(),
    ) {
        let world = World::with_firmware(&DISKS, &nvram);
        let mut book = world.book();
        let mut held: BTreeMap<String, View> = BTreeMap::new();
        for (serial, (op, at, after)) in ops.into_iter().enumerate() {
            let before = view(&world);
            if serial % 3 == 0 {
                world.arm(at, if after { Trouble::DiesAfter } else { Trouble::DiesBefore });
            }
            drop(apply(&world, &book, op, serial as u64 + 1));
            book = restart(&world);
            let now = view(&world);
            for (name, (_, contents)) in &before.moments {
                if let Some((_, seen)) = now.moments.get(name) {
                    prop_assert_eq!(seen, contents, "{} after {:?}", name, op);
                }
            }
            held.insert(serial.to_string(), now);
            assert_tidy(&world, &format!("{op:?}"));
        }
    }
}
