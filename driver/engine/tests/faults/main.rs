//! Every fault at every call of every operation, on the simulated hypervisor.
//!
//! Written once over all operations: a [`Case`] is what was done before and the operation. The
//! guest lives meanwhile: it writes between any two calls (`testing::scene`). Afterwards
//!
//! - the old world holds or the new one, or a deletion was put aside with its moments marked;
//! - no byte of any snapshot has changed, no write of the guest is lost, its memory is of one mind
//!   with its disks, and it runs on, unless its own process was ended;
//! - nothing is left lying about: no claim, no journal, nothing attached, frozen or paused;
//! - the same call again succeeds, or is refused and changes nothing.
//!
//! | test | faults |
//! |---|---|
//! | one for each group of cases | each call fails, or loses its answer; the daemon dies before or after it; the guest's process does; the disk is full from there on |
//! | the same, nested | all but the last in recovery from a crash, too, at each of its calls |
//! | `files_that_are_away_or_read_only` | each file, from before the operation or from any of its calls on |
//!
//! `make faults-simulated` tries all; `cargo test` every few ones, at each call. Where a kind of fault was
//! never injected, or a kind of call never struck, a test fails.

#![expect(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use virtsnap_engine::book::Book;
use virtsnap_engine::error::Condition;
use virtsnap_engine::facts::Format;
use virtsnap_engine::options::{DeleteScope, RevertState, Scope};
use virtsnap_engine::ports::Journals;
use virtsnap_engine::testing::scene::{
    DISKS, Held, Memory, Op, View, apply, assert_tidy, held, recover, restart, situation_with, view,
};
use virtsnap_engine::testing::{TICK, Trouble, World};
use virtsnap_xml::snapshot::Location;

use Op::{
    Alone, Delete, Discard, DiscardAlone, External, Forget, Halting, Internal, Mix, Pause,
    Quiesced, Raw, Redefine, Reset, Revert, Start, Stop, Stream, Unrecorded, Write,
};

const AS: RevertState = RevertState::AsSnapshot;
const UP: RevertState = RevertState::Running;
const OFF: RevertState = RevertState::ShutOff;
const STILL: RevertState = RevertState::Paused;
const ONE: DeleteScope = DeleteScope::Single;
const FAMILY: DeleteScope = DeleteScope::WithDescendants;
const BELOW: DeleteScope = DeleteScope::DescendantsOnly;
const IN: Location = Location::Internal;
const EX: Location = Location::External;
const NO: Location = Location::No;
const BY_HAND: Location = Location::Manual;

const MEMORIES: [Memory; 4] = [Memory::None, Memory::Inside, Memory::Outside, Memory::Live];

/// Kevin Wolf's table, and what is left out of it or left to the user.
const MIXES: [[Location; 2]; 7] =
    [[IN, IN], [EX, EX], [IN, EX], [EX, IN], [EX, NO], [NO, IN], [IN, BY_HAND]];

// -- the cases -----------------------------------------------------------------------------------

#[derive(Debug, Clone)]
struct Case {
    nvram: Format,
    before: Vec<Op>,
    op: Op,
}

impl Case {
    /// The disks that all snapshots of the case take along.
    fn minded(&self) -> Vec<&'static str> {
        let leaves_out = |op: &Op, nth: usize| match op {
            Mix(_, _, vda, vdb) => ![IN, EX].contains([vda, vdb][nth]),
            _ => false,
        };
        let ops = || self.before.iter().chain([&self.op]);
        let all = DISKS.iter().enumerate();
        all.filter(|(nth, _)| !ops().any(|op| leaves_out(op, *nth)))
            .map(|(_, disk)| *disk)
            .collect()
    }
}

#[derive(Debug, Default)]
struct Cases(Vec<Case>);

impl Cases {
    fn add(&mut self, before: &[Op], op: Op) {
        self.0.push(Case { nvram: Format::Raw, before: before.to_vec(), op });
    }

    fn add_with_store(&mut self, before: &[Op], op: Op) {
        self.0.push(Case { nvram: Format::Qcow2, before: before.to_vec(), op });
    }
}

fn chain() -> Vec<Op> {
    vec![Write(1), External(0), Write(2), External(1), Write(3), External(2), Write(4)]
}

fn chains() -> [Vec<Op>; 3] {
    let then = |more: &[Op]| [&chain()[..], more].concat();
    [chain(), then(&[Start]), then(&[Revert(1, AS), Write(5), External(3), Write(6)])]
}

fn creations() -> Cases {
    let mut cases = Cases::default();
    let disks = Scope::DiskOnly { quiesce: false };
    let full = Scope::FullSystem { live: false };
    cases.add(&[Start, Write(1)], Mix(1, Memory::Inside, EX, EX));
    for before in [&[Write(1)][..], &[Start, Write(1)], &[Write(1), External(0), Write(2), Start]] {
        cases.add(before, External(1));
        cases.add(before, Internal(1));
        cases.add(before, Unrecorded(1));
    }
    for before in [&[Start, Write(1)][..], &[Start, Write(1), External(0), Write(2), Pause]] {
        cases.add(before, Halting(1, disks));
        cases.add(before, Halting(1, full));
    }
    cases.add(&[Start, Write(1)], Quiesced(1));
    cases.add(&[Start, Write(1), External(0), Write(2)], Quiesced(1));
    for before in [&[Raw, Write(1)][..], &[Raw, Start, Write(1)]] {
        cases.add(before, External(1));
    }
    cases
}

fn mixes() -> Cases {
    let mut cases = Cases::default();
    for memory in MEMORIES {
        for [vda, vdb] in MIXES {
            let mix = Mix(1, memory, vda, vdb);
            cases.add(&[Start, Write(1), External(0), Write(2)], mix);
            if memory != Memory::Live {
                cases.add(&[Start, Write(1), Pause], mix);
            }
        }
    }
    for memory in &MEMORIES[1..] {
        cases.add(&[Start, Write(1)], Mix(1, *memory, NO, NO));
    }
    cases
}

fn mixes_given_back() -> Cases {
    let mut cases = Cases::default();
    for memory in MEMORIES {
        for [vda, vdb] in MIXES {
            let taken = [Start, Write(1), Mix(0, memory, vda, vdb), Write(2)];
            let then = |more: &[Op]| [&taken[..], more].concat();
            cases.add(&taken, Revert(0, AS));
            cases.add(&taken, Revert(0, STILL));
            cases.add(&then(&[External(1), Write(3)]), Revert(0, UP));
            cases.add(&then(&[Stop]), Revert(0, OFF));
            cases.add(&taken, Delete(0, ONE));
            cases.add(&then(&[Mix(1, memory, vdb, vda), Write(3), Stop]), Delete(0, FAMILY));
        }
    }
    cases
}

fn variable_stores() -> Cases {
    let mut cases = Cases::default();
    cases.add_with_store(&[Start, Write(1), External(0), Write(2), Stop, Write(3)], Reset(0));
    for memory in MEMORIES {
        cases.add_with_store(&[Start, Write(1)], Mix(1, memory, IN, EX));
        let taken = [Start, Write(1), Mix(0, memory, EX, EX), Write(2)];
        cases.add_with_store(&taken, Revert(0, AS));
        cases.add_with_store(&taken, Delete(0, ONE));
    }
    let whole = [Start, Write(1), Internal(0), Write(2)];
    let then = |more: &[Op]| [&whole[..], more].concat();
    cases.add_with_store(&[Start, Stop, Write(1)], Internal(1));
    cases.add_with_store(&[Start, Write(1)], Internal(1));
    cases.add_with_store(&whole, Revert(0, AS));
    cases.add_with_store(&then(&[Stop, Write(3)]), Revert(0, AS));
    cases.add_with_store(&[Start, Stop, Write(1), Internal(0), Start, Write(2)], Revert(0, UP));
    cases.add_with_store(&then(&[Internal(1)]), Delete(0, ONE));
    cases
}

fn reverts() -> Cases {
    let mut cases = Cases::default();
    for (before, state) in [
        (&[Write(1), Internal(0), Write(2)][..], AS),
        (&[Write(1), External(0), Write(2)], AS),
        (&[Write(1), External(0), Write(2)], STILL),
        (&[Write(1), External(0), Write(2), Start, Write(3)], AS),
        (&[Write(1), External(0), Write(2), Start, Write(3)], UP),
        (&[Start, Write(1), Internal(0), Write(2)], AS),
        (&[Start, Write(1), Internal(0), Write(2), Stop], AS),
        (&[Start, Write(1), Internal(0), Write(2), External(1), Write(3)], AS),
        (&[Start, Write(1), Internal(0), Write(2), External(1), Write(3)], STILL),
        (&[Start, Write(1), Internal(0), Write(2), External(1), Stop, Write(3)], UP),
        (&[Raw, Start, Write(1), External(0), Write(2)], UP),
        (&[Raw, Write(1), External(0), Write(2)], AS),
    ] {
        cases.add(before, Revert(0, state));
    }
    cases.add(&[Start, Write(1), External(0), Write(2), Stop, Write(3)], Reset(0));
    cases
}

fn reverts_that_give_up() -> Cases {
    let mut cases = Cases::default();
    for before in &chains()[..2] {
        cases.add(before, Discard(2));
        cases.add(before, DiscardAlone(1));
        cases.add(before, Alone(0, AS));
        cases.add(before, Alone(1, UP));
    }
    for before in [
        &[Start, Write(1), Internal(0), Write(2), Internal(1), Write(3)][..],
        &[Start, Write(1), Internal(0), Write(2), External(1), Write(3), Internal(2), Write(4)],
        &[Write(1), Internal(0), Write(2), External(1), Write(3)],
    ] {
        cases.add(before, Alone(0, AS));
        cases.add(before, Alone(0, OFF));
    }
    cases
}

fn deletions() -> Cases {
    let mut cases = Cases::default();
    for before in &chains() {
        for n in 0..3 {
            cases.add(before, Delete(n, ONE));
            cases.add(before, Stream(n, ONE));
        }
        cases.add(before, Stream(0, FAMILY));
        cases.add(before, Delete(0, FAMILY));
        cases.add(before, Delete(0, BELOW));
    }
    for before in [
        &[Write(1), Internal(0), Write(2), Internal(1), Write(3)][..],
        &[Start, Write(1), Internal(0), Write(2), External(1), Write(3)],
        &[Start, Write(1), External(0), Write(2), Internal(1), Write(3)],
    ] {
        cases.add(before, Delete(0, ONE));
        cases.add(before, Delete(1, ONE));
        cases.add(before, Delete(0, FAMILY));
    }
    cases.add(&[Raw, Start, Write(1), External(0), Write(2)], Delete(0, ONE));
    cases
}

fn records() -> Cases {
    let mut cases = Cases::default();
    for before in &chains() {
        cases.add(before, Forget(2));
        cases.add(before, Redefine(1));
    }
    cases
}

// -- what is tried -------------------------------------------------------------------------------

/// How much of it: all with `VIRTSNAP_FAULTS=all`.
fn is_full() -> bool {
    std::env::var_os("VIRTSNAP_FAULTS").is_some_and(|value| value == "all")
}

/// Every `few`th, unless all are wanted.
fn every(few: usize, n: usize) -> bool {
    is_full() || n.is_multiple_of(few)
}

#[derive(Debug, Default)]
struct Tally {
    cases: usize,
    points: usize,
    /// By kind of fault.
    faults: BTreeMap<String, usize>,
    /// By kind of call, and what struck it.
    calls: BTreeMap<String, BTreeSet<String>>,
}

impl Tally {
    fn count(&mut self, fault: String, call: String) {
        *self.faults.entry(fault.clone()).or_default() += 1;
        self.calls.entry(call).or_default().insert(fault);
    }

    fn add(&mut self, other: &Tally) {
        self.cases += other.cases;
        self.points += other.points;
        for (fault, n) in &other.faults {
            *self.faults.entry(fault.clone()).or_default() += n;
        }
        for (call, faults) in &other.calls {
            self.calls.entry(call.clone()).or_default().extend(faults.iter().cloned());
        }
    }

    fn all(&self) -> usize {
        self.faults.values().sum()
    }
}

/// A world before, and as the operation makes it.
struct Ground<'a> {
    case: &'a Case,
    world: World,
    old: View,
    new: View,
    held: BTreeMap<String, Held>,
    calls: usize,
}

impl<'a> Ground<'a> {
    fn of(case: &'a Case) -> Self {
        let world = situation_with(&case.nvram, &case.before);
        let done = world.fork();
        done.live(&case.minded());
        apply(&done, &done.book(), case.op, 999)
            .unwrap_or_else(|err| panic!("{case:?}: {}", err.chain()));
        assert_tidy(&done, "without trouble");
        let names = world.book().into_inner().unwrap();
        let names = names.moments.iter().map(|def| def.name.clone());
        let held = names.map(|name| (name.clone(), held(&world, &name))).collect();
        let (old, new, calls) = (view(&world), view(&done), done.calls());
        Self { case, world, old, new, held, calls }
    }

    /// The operation, with trouble at that call. The guest lives.
    fn strike(&self, at: usize, trouble: Trouble) -> Struck<'_> {
        let world = self.world.fork();
        world.live(&self.case.minded());
        let book = world.book();
        world.arm(at, trouble);
        let context = format!("{:?}, call {at} {trouble:?}", self.case);
        let result = {
            let _told = Told(&context, &world);
            apply(&world, &book, self.case.op, 999).map_err(|err| err.chain())
        };
        let guest_died = matches!(trouble, Trouble::GuestDies | Trouble::GuestDiesAfter);
        Struck { ground: self, world, book, result, guest_died, context }
    }

    fn is_revert(&self) -> bool {
        matches!(self.case.op, Revert(..) | Discard(_) | Alone(..) | DiscardAlone(_) | Reset(_))
    }

    /// The snapshot that the operation makes, if it makes one that is kept.
    fn makes(&self) -> Option<String> {
        match self.case.op {
            Internal(n) | External(n) | Quiesced(n) | Halting(n, _) | Mix(n, ..) => {
                Some(format!("s{n}"))
            }
            _ => None,
        }
    }
}

/// Says where a panic was.
struct Told<'a>(&'a str, &'a World);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in {}\n{}", self.0, self.1.plans().join("\n"));
        }
    }
}

struct Struck<'a> {
    ground: &'a Ground<'a>,
    world: World,
    book: Mutex<Book>,
    result: Result<(), String>,
    guest_died: bool,
    context: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    Old,
    New,
    /// A deletion stopped between two merges.
    Aside,
}

impl Struck<'_> {
    fn outcome(&self) -> Outcome {
        let (ground, seen) = (self.ground, view(&self.world));
        let book = self.world.book().into_inner().unwrap();
        if book.moments.iter().any(|def| def.delete_in_progress) {
            assert_eq!(seen.disks, ground.old.disks, "{}: put aside", self.context);
            return Outcome::Aside;
        }
        // A guest is off where its process was ended, or where what follows a revert failed.
        let is = |expected: &View, may_be_off: bool| {
            seen == *expected
                || (may_be_off
                    && seen.guest.is_none()
                    && seen == View { guest: None, ..expected.clone() })
        };
        if is(&ground.old, self.guest_died) {
            Outcome::Old
        } else if is(&ground.new, self.guest_died || ground.is_revert()) {
            Outcome::New
        } else {
            panic!(
                "{}: {:?}\nsaw {seen:#?}\nold {:#?}\nnew {:#?}",
                self.context, self.result, ground.old, ground.new
            )
        }
    }

    /// After recovery.
    fn check(&self) -> Outcome {
        let (world, context) = (&self.world, &self.context);
        let outcome = self.outcome();
        assert_tidy(world, context);
        let book = world.book().into_inner().unwrap();
        for (name, before) in &self.ground.held {
            let is_there = book.moments.get(name).is_some_and(|def| !def.delete_in_progress);
            assert!(!is_there || held(world, name) == *before, "{context}: {name} has changed");
        }
        if let Some(name) = self.ground.makes().filter(|name| book.moments.get(name).is_some()) {
            let parts = DISKS.iter().filter_map(|disk| world.content_of(&name, disk));
            let ticks: BTreeSet<_> = parts.map(|content| content.get(&TICK).copied()).collect();
            let memory = world.memory_of(&name).filter(|_| !ticks.is_empty());
            assert!(ticks.len() <= 1, "{context}: disks of different moments: {ticks:?}");
            assert!(
                memory.is_none() || ticks.contains(&memory),
                "{context}: memory {memory:?} of another moment than its disks {ticks:?}"
            );
        }
        if let Some(last) = world.last_tick()
            && (!self.ground.is_revert() || outcome == Outcome::Old)
        {
            for disk in DISKS {
                let seen = world.content(disk).get(&TICK).copied();
                assert_eq!(seen, Some(last), "{context}: a write to {disk} is lost");
            }
        }
        outcome
    }

    /// The same call again.
    fn repeat(&self, book: &Mutex<Book>, outcome: Outcome) {
        let context = format!("{}, then {outcome:?}, again", self.context);
        let (before, ground) = (view(&self.world), self.ground);
        let again = apply(&self.world, book, ground.case.op, 999);
        let seen = view(&self.world);
        assert_tidy(&self.world, &context);
        match again {
            // A domain that is off by now is another matter.
            Ok(()) if self.guest_died => {}
            Ok(()) => {
                let seen = View { guest: None, ..seen };
                assert_eq!(seen, View { guest: None, ..ground.new.clone() }, "{context}");
            }
            Err(err) => {
                // Done already, or a guest that is gone.
                let is_done = outcome == Outcome::New || ground.old == ground.new;
                let is_right = is_done || self.guest_died;
                assert!(is_right, "{context}: {}", err.chain());
                assert_ne!(err.condition, Condition::Internal, "{context}: {}", err.chain());
                assert_eq!(seen, before, "{context}: refused, and changed");
            }
        }
    }

    /// While nothing can be written: the guest runs on, what is unfinished is shown, and the same
    /// call succeeds once it can be.
    fn free_and_repeat(&mut self, restarts: bool) {
        if restarts {
            self.world.revive();
            match recover(&self.world) {
                Ok(book) => self.book = book,
                Err(_) => self.book = self.world.book(),
            }
        }
        let ground = self.ground;
        // One that is to end with the operation stands still until that is complete.
        let goes_on = ground.old.guest == Some((true, false)) && ground.new.guest.is_some();
        if goes_on && !ground.is_revert() {
            let guest = self.world.guest().map(|guest| (guest.running, guest.frozen));
            let is_new = guest == ground.new.guest;
            assert!(guest == Some((true, false)) || is_new, "{}: {guest:?}", self.context);
        }
        if self.world.has_journal() && !restarts {
            let book = self.book.lock().unwrap();
            assert!(book.left.is_some(), "{}: nobody knows of it", self.context);
            for moment in Journals::unfinished(&self.world).unwrap().iter().flat_map(named) {
                if let Ok(shown) = book.shown(&moment) {
                    let text = shown.to_element().to_string();
                    assert!(text.contains("<unfinished operation="), "{}: {text}", self.context);
                    let deletes = matches!(ground.case.op, Delete(..) | Stream(..));
                    assert_eq!(deletes, shown.delete_in_progress, "{}", self.context);
                }
            }
        }
        let was_done = self.result.is_ok();
        self.world.revive();
        self.world.free();
        let again = apply(&self.world, &self.book, ground.case.op, 999);
        assert!(again.is_ok() || was_done, "{}: {again:?}", self.context);
        let outcome = self.check();
        assert!(outcome == Outcome::New || ground.old == ground.new, "{}", self.context);
    }
}

fn named(unfinished: &virtsnap_engine::ports::Unfinished) -> Vec<String> {
    use virtsnap_engine::plan::Operation;
    match &unfinished.plan.operation {
        Operation::Create { moment } | Operation::Revert { moment } => vec![moment.clone()],
        Operation::Delete { moments } => moments.clone(),
    }
}

fn word(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::Fails => "the call fails",
        Trouble::FailsAfterEffect => "its answer is lost",
        Trouble::DiesBefore => "the daemon dies before it",
        Trouble::DiesAfter => "the daemon dies after it",
        Trouble::GuestDies => "the guest's process ends before it",
        Trouble::GuestDiesAfter => "the guest's process ends after it",
        Trouble::DiskFull => "the disk is full from it on",
    }
}

fn every_fault(ground: &Ground<'_>, tally: &mut Tally) {
    for trouble in Trouble::ALL {
        for at in 0.. {
            let mut struck = ground.strike(at, trouble);
            if !struck.world.was_struck() {
                assert!(at > 0 && struck.result.is_ok(), "{}", struck.context);
                break;
            }
            let Some(call) = struck.world.struck() else { continue };
            tally.points += 1;
            tally.count(word(trouble).to_owned(), call);
            if trouble == Trouble::DiskFull {
                let (context, world) = (struck.context.clone(), struck.world.clone());
                let _told = Told(&context, &world);
                struck.free_and_repeat(at % 2 == 1);
                continue;
            }
            let was_ok = struck.result.is_ok();
            let (context, world) = (struck.context.clone(), struck.world.clone());
            let _told = Told(&context, &world);
            struck.book = restart(&struck.world);
            let outcome = struck.check();
            let is_true = !was_ok || outcome == Outcome::New || ground.old == ground.new;
            assert!(is_true, "{}: a false success", struck.context);
            if every(3, at) {
                struck.repeat(&struck.book, outcome);
            }
        }
    }
}

/// Recovery meets trouble in its turn, and then another recovery none.
fn every_fault_in_recovery(ground: &Ground<'_>, few: usize, tally: &mut Tally) {
    let mut n = 0;
    for first in [Trouble::DiesBefore, Trouble::DiesAfter, Trouble::GuestDiesAfter] {
        for at in 0..ground.calls {
            let crashed = ground.strike(at, first);
            if !crashed.world.has_journal() {
                continue;
            }
            for second in &Trouble::ALL[..6] {
                for then in 0.. {
                    n += 1;
                    if !every(few, n) && then > 0 {
                        // The end of the row is not known without a try.
                        if then > 40 {
                            break;
                        }
                        continue;
                    }
                    let world = crashed.world.fork();
                    world.revive();
                    world.arm(then, *second);
                    drop(recover(&world));
                    if !world.was_struck() {
                        break;
                    }
                    let Some(call) = world.struck() else { continue };
                    tally.points += 1;
                    tally.count(format!("in recovery, {}", word(*second)), call);
                    let book = restart(&world);
                    let guest_died = crashed.guest_died
                        || matches!(second, Trouble::GuestDies | Trouble::GuestDiesAfter);
                    let context = format!("{}, then call {then} {second:?}", crashed.context);
                    let result = Err("interrupted".to_owned());
                    let struck = Struck { ground, world, book, result, guest_died, context };
                    let outcome = struck.check();
                    if every(7, n) {
                        struck.repeat(&struck.book, outcome);
                    }
                }
            }
        }
    }
}

/// What all groups together injected, and how many groups there were.
static TOTAL: Mutex<(usize, Option<Tally>)> = Mutex::new((0, None));

const GROUPS: usize = 8;

/// Of a group, every `few`th case, and of those every other one nested.
fn matrix(group: &str, few: usize, cases: Cases) {
    let mut tally = Tally::default();
    for (n, case) in cases.0.iter().enumerate() {
        if !every(few, n) {
            continue;
        }
        tally.cases += 1;
        let ground = Ground::of(case);
        every_fault(&ground, &mut tally);
        if every(2 * few, n) {
            every_fault_in_recovery(&ground, 97, &mut tally);
        }
    }
    println!(
        "{group}: {} of {} cases, {} points, {} faults",
        tally.cases,
        cases.0.len(),
        tally.points,
        tally.all()
    );
    for trouble in Trouble::ALL {
        let n = tally.faults.get(word(trouble)).copied().unwrap_or_default();
        assert!(n > 0, "{group}: never injected: {}", word(trouble));
    }
    let mut total = TOTAL.lock().unwrap_or_else(PoisonError::into_inner);
    total.0 += 1;
    total.1.get_or_insert_with(Tally::default).add(&tally);
    if total.0 == GROUPS {
        all_was_struck(total.1.as_ref().unwrap());
    }
}

/// Every kind of fault, and every act that a plan has, by each kind that can meet it.
fn all_was_struck(total: &Tally) {
    println!("all: {} cases, {} points, {} faults", total.cases, total.points, total.all());
    for (fault, n) in &total.faults {
        println!("  {n:>8}  {fault}");
    }
    for trouble in &Trouble::ALL[..6] {
        let fault = format!("in recovery, {}", word(*trouble));
        assert!(total.faults.contains_key(&fault), "never injected: {fault}");
    }
    let expected = [
        "act Pause",
        "act FreezeFilesystems",
        "act CreateOverlay",
        "act CopyImage",
        "act AttachOverlay",
        "act SnapshotImage",
        "act SaveMemory",
        "act CreateVmStateImage",
        "pivot SwitchToOverlays",
        "pivot SnapshotDisks",
        "pivot SaveVmState",
        "pivot LoadVmState",
        "finish ThawFilesystems",
        "finish Resume",
        "finish Stop",
        "finish ApplySnapshot",
        "finish Overwrite",
        "finish DeleteSnapshot",
        "finish Commit",
        "finish Stream",
        "finish Repoint",
        "finish PutBack",
        "finish SetLive",
        "finish RemoveImage",
        "finish KeepImage",
        "finish HandOver",
        "records set-config",
        "records record",
        "records set-owned",
        "journal begin",
        "journal Acting",
        "journal Undone",
        "journal Pivoting",
        "journal Pivoted",
        "journal Finished",
        "journal Up",
        "journal close",
        "start",
        "release",
        "ask SwitchToOverlays",
        "undo CreateOverlay",
    ];
    println!("  {} kinds of calls struck", total.calls.len());
    let by = |call: &str| total.calls.get(call).map_or(0, BTreeSet::len);
    let spared: Vec<_> = expected.iter().filter(|call| by(call) < 4).collect();
    assert!(spared.is_empty(), "struck by fewer than four kinds of faults: {spared:?}");
}

#[test]
fn create_keeps_the_old_world_or_makes_the_new() {
    matrix("creations", 2, creations());
}

#[test]
fn every_mix_keeps_the_old_world_or_makes_the_new() {
    matrix("mixes", 5, mixes());
}

#[test]
fn every_mix_is_reverted_to_and_deleted() {
    matrix("mixes given back", 17, mixes_given_back());
}

/// A variable store that is qcow2 takes part like a disk.
#[test]
fn a_variable_store_with_internal_snapshots_goes_with_the_disks() {
    matrix("variable stores", 4, variable_stores());
}

#[test]
fn revert_keeps_the_old_world_or_makes_the_new() {
    matrix("reverts", 3, reverts());
}

#[test]
fn a_revert_that_gives_up_keeps_the_old_world_or_makes_the_new() {
    matrix("reverts that give up", 4, reverts_that_give_up());
}

#[test]
fn delete_keeps_the_old_world_or_makes_the_new() {
    matrix("deletions", 5, deletions());
}

#[test]
fn a_change_of_records_alone_is_made_or_not() {
    matrix("records", 2, records());
}

/// Files that are not as the facts said: away or read-only, from before the operation, or from any
/// of its calls on. When they are as they were, the old world holds or the new one, and the same
/// call succeeds.
#[test]
fn files_that_are_away_or_read_only() {
    let (mut away, mut read_only, mut hindered) = (0, 0, 0);
    let groups = [creations(), mixes(), reverts(), reverts_that_give_up(), deletions()];
    for (n, case) in groups.iter().flat_map(|cases| &cases.0).enumerate() {
        if !every(9, n) {
            continue;
        }
        let ground = Ground::of(case);
        for path in ground.world.images().keys() {
            for at in (0..ground.calls).filter(|at| every(5, *at)) {
                let struck = ground.without_writing(at, path);
                read_only += 1;
                hindered += usize::from(struck.result.is_err());
            }
            // A running QEMU has open what is away; a state file comes back with its snapshot.
            let is_off = ground.old.guest.is_none() && ground.new.guest.is_none();
            if is_off && path.starts_with("/img") {
                let struck = ground.without(path);
                away += 1;
                hindered += usize::from(struck.result.is_err());
            }
        }
    }
    println!("files: {read_only} read-only, {away} away, {hindered} operations hindered");
    assert!(read_only > 100 && away > 20 && hindered > 20);
}

impl Ground<'_> {
    /// Nothing can be written to that file, from that call on.
    fn without_writing(&self, at: usize, path: &Path) -> Struck<'_> {
        let world = self.world.fork();
        world.live(&self.case.minded());
        world.freeze_file_at(at, path);
        let context = format!("{:?}, {} read-only from call {at}", self.case, path.display());
        self.hindered(world, context, |world| world.set_read_only(path, false))
    }

    /// That file is away.
    fn without(&self, path: &Path) -> Struck<'_> {
        let world = self.world.fork();
        let image = world.take_away(path);
        let context = format!("{:?}, without {}", self.case, path.display());
        self.hindered(world, context, |world| {
            let is_free = !world.images().contains_key(path);
            assert!(is_free, "its name was taken: {}", path.display());
            // Unless it was to be removed, and is.
            let owned = world.book().into_inner().unwrap().owned;
            if owned.contains(path) || !self.world.book().into_inner().unwrap().owned.contains(path)
            {
                world.put_back(path, image);
            }
        })
    }

    fn hindered(&self, world: World, context: String, mend: impl FnOnce(&World)) -> Struck<'_> {
        let book = world.book();
        let result = apply(&world, &book, self.case.op, 999).map_err(|err| err.chain());
        let told = world.clone();
        let mut struck = Struck { ground: self, world, book, result, guest_died: false, context };
        let context = struck.context.clone();
        let _told = Told(&context, &told);
        drop(recover(&struck.world));
        mend(&struck.world);
        struck.book = restart(&struck.world);
        let outcome = struck.check();
        let is_true = struck.result.is_err() || outcome == Outcome::New || self.old == self.new;
        assert!(is_true, "{context}: a false success");
        struck.repeat(&struck.book, outcome);
        struck
    }
}
