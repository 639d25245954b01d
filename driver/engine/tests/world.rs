//! The engine against a simulated world.
//!
//! - single situations that have a name;
//! - random sequences with firmware and a TPM, in which the daemon dies time and again.
//!
//! What goes wrong at every call of every operation is in `faults/`, and the tree, files and refusals
//! of random sequences are held against a model in `properties.rs`.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use proptest::prelude::*;
use virtsnap_engine::blockjob::{Act, BackingName, NewBlockJob};
use virtsnap_engine::book::Book;
use virtsnap_engine::error::Condition;
use virtsnap_engine::facts::{Format, StateKind};
use virtsnap_engine::options::{
    DeleteOptions, DeleteScope, Metadata, New, Overlays, RevertOptions, RevertState, Scope,
};
use virtsnap_engine::testing::scene::words::*;
use virtsnap_engine::testing::scene::{
    DISKS, Held, MEMORIES, Memory, Op, STATE, apply, assert_tidy, contents, engine, held, name,
    restart, run, situation,
};
use virtsnap_engine::testing::{Content, Shape, Trouble, World};
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Location, Request};

use Op::{
    Alone, Delete, Discard, DiscardAlone, External, Internal, Mix, Pause, Revert, Start, Stop,
    Stream, Write,
};

fn assert_tidy_but(world: &World, lost: &Path) {
    assert!(world.book().into_inner().unwrap().owned.contains(lost));
    assert!(!world.has_journal());
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

/// Three reverts in one second: the first one's overlay is removed by the second, and its record
/// is not. The third's copy must not have that name, or it is taken for the overlay.
#[test]
fn a_copy_never_has_the_name_of_an_overlay_that_a_record_remembers() {
    let before = [Write(1), Internal(0), Write(2), External(1), Write(3), External(2), Write(4)];
    let world = situation(&before);
    let content = world.content_of("s1", "vda");
    for n in [2, 1, 0] {
        apply(&world, &world.book(), Revert(n, AS), 1).unwrap();
    }
    apply(&world, &world.book(), Delete(2, ONE), 1).unwrap();
    assert_eq!(world.content_of("s1", "vda"), content);
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

#[test]
fn a_disk_that_the_hypervisor_does_not_serve_takes_no_block_job() {
    let world = World::new(&DISKS).shaped(Shape::Outside);
    world.make_bypassed("vdb");
    world.start();
    let check = |target: &str| {
        let act = Act::Pull { base: None, backing_name: BackingName::Absolute };
        let job = NewBlockJob { target: target.to_owned(), act, speed: 0 };
        run(engine(&world).check_block_job(&world.book(), &job))
    };
    check("vda").unwrap();
    let err = check("vdb").unwrap_err();
    assert_eq!(err.condition, Condition::OperationUnsupported);
    assert!(err.message.contains("'vdb' is served by phy"), "{}", err.message);
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

    /// What was there and is, holds what it held; what is new, what the domain had before.
    fn met(&mut self, world: &World, op: Op, before: &[Content]) {
        let now = world.moments();
        self.moments.retain(|name, _| now.get(name).is_some_and(|def| !def.delete_in_progress));
        for (name, expected) in &self.moments {
            assert_eq!(&held(world, name), expected, "{name} after a crash in {op:?}");
        }
        for def in now.iter().filter(|def| !def.delete_in_progress) {
            let found = held(world, &def.name);
            if !self.moments.contains_key(&def.name) {
                for (content, before) in found.0.iter().zip(before) {
                    assert!(content.as_ref().is_none_or(|content| content == before), "{op:?}");
                }
            }
            self.moments.insert(def.name.clone(), found);
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

/// With the daemon dying in the middle of every third operation.
fn hold_through(world: &World, ops: Vec<(Op, usize, bool)>) {
    let mut book = world.book();
    let mut model = Model::default();
    for (serial, (op, at, after)) in ops.into_iter().enumerate() {
        let number = serial as u64 + 1;
        if serial % 3 == 2 {
            world.arm(at, if after { Trouble::DiesAfter } else { Trouble::DiesBefore });
            let before = contents(world);
            drop(apply(world, &book, op, number));
            book = restart(world);
            model.met(world, op, &before);
        } else {
            model.follow(world, &book, op, number);
        }
        assert_tidy(world, &format!("{op:?}"));
    }
}

fn any_life() -> impl Strategy<Value = Vec<(Op, usize, bool)>> {
    prop::collection::vec((any_op(), 0usize..24, any::<bool>()), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn every_moment_holds_what_it_held(ops in any_life(), nvram in any_nvram()) {
        hold_through(&World::with_firmware(&DISKS, &nvram), ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn every_moment_holds_what_it_held_with_memory_outside(
        ops in any_life(),
        is_bypassed in any::<bool>(),
    ) {
        let world = World::new(&DISKS).shaped(Shape::Outside);
        if is_bypassed {
            world.make_bypassed("vdb");
        }
        hold_through(&world, ops);
    }
}
