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
use virtsnap_engine::facts::StateKind;
use virtsnap_engine::options::{
    Consolidate, DeleteOptions, DeleteScope, New, RevertOptions, RevertState, Scope,
};
use virtsnap_engine::ports::Journals;
use virtsnap_engine::snapshots::Snapshots;
use virtsnap_engine::testing::{Content, Trouble, World};
use virtsnap_xml::snapshot::{Request, Survivor};

const DISKS: [&str; 2] = ["vda", "vdb"];
const STATE: [StateKind; 2] = [StateKind::Nvram, StateKind::Tpm];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    Internal(u8),
    External(u8),
    Revert(u8, RevertState),
    Delete(u8, DeleteScope),
    /// With the overlay left, not the base.
    Stream(u8, DeleteScope),
    Start,
    Stop,
    Write(u8),
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
    let request = Request { name: Some(name(n)), ..Request::default() };
    let options = New::plain(scope);
    run(engine.create(book, &request, &options)).map(|_| ())
}

fn apply(world: &World, book: &Mutex<Book>, op: Op, serial: u64) -> Result<(), Error> {
    let engine = engine(world);
    world.tick();
    match op {
        Op::Internal(n) => create(&engine, book, n, Scope::FullSystem { live: false }),
        Op::External(n) => create(&engine, book, n, Scope::DiskOnly { quiesce: false }),
        Op::Revert(n, state) => {
            let options = RevertOptions { state, ..RevertOptions::default() };
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

/// All that a user can tell of a world: no file names.
#[derive(Debug, Clone, PartialEq)]
struct View {
    moments: BTreeMap<String, (Option<String>, Vec<Content>)>,
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

fn contents_of(world: &World, moment: &str) -> Vec<Content> {
    let state = STATE.iter().map(|kind| world.state_of(moment, *kind).unwrap_or_default());
    DISKS.iter().map(|disk| world.content_of(moment, disk)).chain(state).collect()
}

fn view(world: &World) -> View {
    let book = world.book().into_inner().unwrap();
    View {
        moments: book
            .moments
            .iter()
            .map(|def| (def.name.clone(), (def.parent.clone(), contents_of(world, &def.name))))
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
    let world = World::with_firmware(&DISKS);
    let book = world.book();
    let mut serial = 100;
    for op in ops {
        serial += 1;
        apply(&world, &book, *op, serial).unwrap_or_else(|err| panic!("{op:?}: {}", err.chain()));
    }
    world
}

fn every_trouble(before: &[Op], op: Op) {
    let old_world = situation(before);
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
use Op::{Delete, External, Internal, Revert, Start, Stop, Stream, Write};

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

/// An operation that could not be completed is completed by the next one.
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
    assert!(world.book().into_inner().unwrap().moments.get("s0").is_none());
    assert_tidy(&world, "after the next operation");
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
}

fn any_op() -> impl Strategy<Value = Op> {
    let state = prop_oneof![Just(AS), Just(UP), Just(RevertState::Paused)];
    let scope = prop_oneof![
        3 => Just(ONE),
        1 => Just(DeleteScope::WithDescendants),
        1 => Just(DeleteScope::DescendantsOnly),
    ];
    prop_oneof![
        3 => (0u8..6).prop_map(Internal),
        4 => (0u8..6).prop_map(External),
        4 => ((0u8..6), state).prop_map(|(n, state)| Revert(n, state)),
        3 => ((0u8..6), scope.clone()).prop_map(|(n, scope)| Delete(n, scope)),
        2 => ((0u8..6), scope).prop_map(|(n, scope)| Stream(n, scope)),
        2 => Just(Start),
        1 => Just(Stop),
        6 => (0u8..5).prop_map(Write),
    ]
}

/// What a sequence must keep true, told without images or files.
#[derive(Debug, Default)]
struct Model {
    moments: BTreeMap<String, Vec<Content>>,
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
                assert!(self.moments.insert(name(n), after).is_none());
            }
            (Revert(n, _), Ok(())) => assert_eq!(Some(&after), self.moments.get(&name(n))),
            (Write(_), _) => {}
            _ => assert_eq!(before, after, "{op:?} {result:?}"),
        }
        let book = book.lock().unwrap();
        if let (Delete(..) | Stream(..), Ok(())) = (op, &result) {
            self.moments.retain(|name, _| book.moments.get(name).is_some());
        }
        assert_eq!(book.moments.len(), self.moments.len(), "{op:?} {result:?}");
        for (name, held) in &self.moments {
            assert_eq!(&contents_of(world, name), held, "{name} after {op:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_moment_holds_what_it_held(ops in prop::collection::vec(any_op(), 1..40)) {
        let world = World::with_firmware(&DISKS);
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
    ) {
        let world = World::with_firmware(&DISKS);
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
