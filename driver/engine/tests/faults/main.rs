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
//! | `files::` | each file is away, read-only, cut short or another, from before the operation or from any of its calls on |
//!
//! `make faults-simulated` tries all; `cargo test` every few ones, at each call. Where a kind of fault was
//! never injected, or a kind of call never struck, a test fails.
//!
//! Every fault is injected, and many leave the same world behind ([`Same`]: all that the future
//! depends on, but for how often the guest has written). What follows from a world is gone through
//! once for each case.

#![expect(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test")]

mod cases;
mod files;
mod ground;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use virtsnap_engine::testing::Trouble;
use virtsnap_engine::testing::scene::recover;

use cases::Cases;
use ground::{Ground, Outcome, Struck, Told, word};

/// How much of it: all with `VIRTSNAP_FAULTS=all`.
fn is_full() -> bool {
    std::env::var_os("VIRTSNAP_FAULTS").is_some_and(|value| value == "all")
}

/// Every `few`th, unless all are wanted.
fn every(few: usize, n: usize) -> bool {
    is_full() || n.is_multiple_of(few)
}

#[derive(Debug, Clone, Default)]
struct Tally {
    cases: usize,
    /// Worlds that faults left, as far as they differ, each with a recovery that nothing hinders.
    worlds: usize,
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
        self.worlds += other.worlds;
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

fn every_fault(ground: &Ground<'_>, tally: &mut Tally) {
    for trouble in Trouble::ALL {
        for at in 0.. {
            let mut struck = ground.strike(at, trouble);
            if !struck.world.was_struck() {
                assert!(at > 0 && struck.result.is_ok(), "{}", struck.context);
                break;
            }
            let Some(call) = struck.world.struck() else { continue };
            tally.count(word(trouble).to_owned(), call);
            let (context, world) = (struck.context.clone(), struck.world.clone());
            let _told = Told(&context, &world);
            if trouble == Trouble::DiskFull {
                struck.free_and_repeat(at % 2 == 1);
                continue;
            }
            let outcome = struck.settle(tally);
            let is_true =
                struck.result.is_err() || outcome == Outcome::New || ground.old == ground.new;
            assert!(is_true, "{context}: a false success");
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
            let left = crashed.world.same();
            let injected = ground.crashed.find(&left, crashed.guest_died).unwrap_or_else(|| {
                let mut own = Tally::default();
                crashed.every_fault_in_recovery(few, &mut n, &mut own);
                let injected = Tally { worlds: 0, ..own.clone() };
                tally.worlds += own.worlds;
                ground.crashed.learn(left, crashed.guest_died, injected.clone());
                injected
            });
            tally.add(&injected);
        }
    }
}

impl Struck<'_> {
    fn every_fault_in_recovery(&self, few: usize, n: &mut usize, tally: &mut Tally) {
        let undisturbed = self.world.fork();
        undisturbed.revive();
        drop(recover(&undisturbed));
        for trouble in &Trouble::ALL[..6] {
            for at in 0..undisturbed.calls() {
                *n += 1;
                if !every(few, *n) && at > 0 {
                    continue;
                }
                let world = self.world.fork();
                let context = format!("{}, then call {at} {trouble:?}", self.context);
                let _told = Told(&context, &world);
                world.revive();
                world.arm(at, *trouble);
                drop(recover(&world));
                assert!(world.was_struck(), "{context}: not injected");
                let Some(call) = world.struck() else { continue };
                tally.count(format!("in recovery, {}", word(*trouble)), call);
                let mut struck = Struck {
                    ground: self.ground,
                    book: world.book(),
                    world: world.clone(),
                    result: Err("interrupted".to_owned()),
                    guest_died: self.guest_died
                        || matches!(trouble, Trouble::GuestDies | Trouble::GuestDiesAfter),
                    context: context.clone(),
                };
                struck.settle(tally);
            }
        }
    }
}

/// What all groups together injected where memory can be inside, and how many groups there were.
static TOTAL: Mutex<(usize, Option<Tally>)> = Mutex::new((0, None));

const GROUPS: usize = 9;

/// Of a group, every `few`th case, and of those every other one nested.
fn matrix(group: &str, few: usize, cases: Cases) {
    let tally = injected(group, few, &cases);
    let mut total = TOTAL.lock().unwrap_or_else(PoisonError::into_inner);
    total.0 += 1;
    total.1.get_or_insert_with(Tally::default).add(&tally);
    if total.0 == GROUPS {
        let total = total.1.as_ref().unwrap();
        all_was_struck("all", total, &[&CALLS[..], &CALLS_INSIDE].concat());
    }
}

fn injected(group: &str, few: usize, cases: &Cases) -> Tally {
    let chosen: Vec<_> = cases.0.iter().enumerate().filter(|(n, _)| every(few, *n)).collect();
    let (next, tally) = (AtomicUsize::new(0), Mutex::new(Tally::default()));
    let work = || {
        while let Some((n, case)) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut own = Tally { cases: 1, ..Tally::default() };
            let ground = Ground::of(case);
            every_fault(&ground, &mut own);
            if every(2 * few, *n) {
                every_fault_in_recovery(&ground, 97, &mut own);
            }
            tally.lock().unwrap().add(&own);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let tally = tally.into_inner().unwrap();
    println!(
        "{group}: {} of {} cases, {} faults, {} worlds",
        tally.cases,
        cases.0.len(),
        tally.all(),
        tally.worlds
    );
    for trouble in Trouble::ALL {
        let n = tally.faults.get(word(trouble)).copied().unwrap_or_default();
        assert!(n > 0, "{group}: never injected: {}", word(trouble));
    }
    tally
}

/// Calls that every hypervisor meets, and those of one whose images can hold memory, with state
/// files.
const CALLS: [&str; 38] = [
    "act Pause",
    "act FreezeFilesystems",
    "act CreateOverlay",
    "act CopyImage",
    "act AttachOverlay",
    "act SnapshotImage",
    "act SaveMemory",
    "pivot SwitchToOverlays",
    "pivot SnapshotDisks",
    "finish ThawFilesystems",
    "finish Resume",
    "finish Stop",
    "finish ApplySnapshot",
    "finish DeleteSnapshot",
    "finish Commit",
    "finish Stream",
    "finish Repoint",
    "finish SetLive",
    "finish SetSaved",
    "finish ForgetSave",
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
const CALLS_INSIDE: [&str; 5] = [
    "act CreateVmStateImage",
    "pivot SaveVmState",
    "pivot LoadVmState",
    "finish Overwrite",
    "finish PutBack",
];

/// Every kind of fault, and every act that a plan has, by each kind that can meet it.
fn all_was_struck(all: &str, total: &Tally, expected: &[&str]) {
    println!("{all}: {} cases, {} faults, {} worlds", total.cases, total.all(), total.worlds);
    for (fault, n) in &total.faults {
        println!("  {n:>8}  {fault}");
    }
    for trouble in &Trouble::ALL[..6] {
        let fault = format!("in recovery, {}", word(*trouble));
        assert!(total.faults.contains_key(&fault), "never injected: {fault}");
    }
    println!("  {} kinds of calls struck", total.calls.len());
    let by = |call: &str| total.calls.get(call).map_or(0, BTreeSet::len);
    let spared: Vec<_> = expected.iter().filter(|call| by(call) < 4).collect();
    assert!(spared.is_empty(), "struck by fewer than four kinds of faults: {spared:?}");
}

#[test]
fn create_keeps_the_old_world_or_makes_the_new() {
    matrix("creations", 2, cases::creations());
}

#[test]
fn every_mix_keeps_the_old_world_or_makes_the_new() {
    matrix("mixes", 5, cases::mixes());
}

#[test]
fn every_mix_is_reverted_to_and_deleted() {
    matrix("mixes given back", 17, cases::mixes_given_back());
}

/// A variable store that is qcow2 takes part like a disk.
#[test]
fn a_variable_store_with_internal_snapshots_goes_with_the_disks() {
    matrix("variable stores", 4, cases::variable_stores());
}

#[test]
fn revert_keeps_the_old_world_or_makes_the_new() {
    matrix("reverts", 3, cases::reverts());
}

#[test]
fn a_revert_that_gives_up_keeps_the_old_world_or_makes_the_new() {
    matrix("reverts that give up", 4, cases::reverts_that_give_up());
}

#[test]
fn delete_keeps_the_old_world_or_makes_the_new() {
    matrix("deletions", 5, cases::deletions());
}

#[test]
fn a_saved_guest_and_its_disks_stay_of_one_mind() {
    matrix("saved guests", 2, cases::saved_guests());
}

/// On a hypervisor whose images hold no memory, without firmware.
#[test]
fn where_memory_is_outside_of_images_all_holds_as_well() {
    let mut total = Tally::default();
    for (group, cases) in cases::outside() {
        total.add(&injected(&format!("outside, {group}"), 13, &cases));
    }
    // A few cases do not meet every call.
    if is_full() {
        all_was_struck("outside, all", &total, &CALLS);
    }
    let inside = total.calls.keys().find(|call| call.contains("VmState"));
    assert_eq!(inside, None, "memory inside of images");
}

#[test]
fn a_change_of_records_alone_is_made_or_not() {
    matrix("records", 2, cases::records());
}
