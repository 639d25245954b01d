//! SIGKILL at randomised points of virtsnapd and of QEMU, in real operations of real clients.
//!
//! A round asks for one operation through virsh and kills the daemon, QEMU, or one after the other
//! when the operation's journal ends with a line of some kind (every kind in turn) and a moment
//! has passed; sometimes the next daemon is killed while it recovers. Then the world before the
//! operation must hold or the one after it, in everything that can be seen: the list of snapshots,
//! a hash of what each disk and each snapshot holds, memory files, the guest's own counter,
//! `qemu-img check`, no file left behind. Where the old world holds, the same call must do it now.
//!
//! - [`model`]: the worlds; [`sight`]: what is seen; [`bed`]: the domains; [`journal`]; [`dice`].
//!
//! `VIRTSNAP_TORTURE` is the number of rounds, `SEED` repeats the choices of a run (`make torture`).

#![expect(clippy::unwrap_used, reason = "a test")]

mod bed;
mod dice;
mod journal;
mod model;
mod round;
mod sight;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use virtsnap_tests::{host, skip};

use crate::round::Rack;

/// Rounds of an ordinary run.
const SOME: usize = 20;
/// Daemons that are tortured side by side.
const RACKS: usize = 2;
/// From so many rounds on, no kind of entry may have been left out.
const FULL: usize = 100;

#[test]
fn nothing_is_lost_whatever_is_killed() {
    if host::guest_kernel().is_none() {
        skip!("make guest builds the test guest");
    }
    let tally = torture(None);
    assert!(tally.lost.is_empty() && tally.wrong.is_empty(), "see above");
    assert_eq!(tally.rounds, rounds(), "some rounds were not played");
    let kinds = journal::kinds();
    let missed: Vec<_> = kinds.iter().filter(|kind| !tally.daemon.contains_key(*kind)).collect();
    assert!(rounds() < FULL || missed.is_empty(), "never killed at {missed:?}");
}

/// The negative control: the same with a daemon that does not look at its journals.
#[test]
#[ignore = "builds another daemon: make torture-control"]
fn without_recovery_something_is_lost() {
    let tally = torture(Some(host::virtsnapd_without_recovery()));
    assert!(!tally.lost.is_empty(), "this test would not see a loss");
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    rounds: usize,
    operations: usize,
    /// How many daemons were killed when the journal ended with that kind of line.
    daemon: BTreeMap<String, usize>,
    qemu: BTreeMap<String, usize>,
    /// Rounds after which data was not there, or other data.
    lost: Vec<String>,
    /// Rounds after which anything else was not as it must be.
    wrong: Vec<String>,
}

fn rounds() -> usize {
    number("VIRTSNAP_TORTURE").map_or(SOME, |rounds| usize::try_from(rounds).unwrap())
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not '{value}'")))
}

fn torture(program: Option<PathBuf>) -> Tally {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number("SEED").unwrap_or(since.as_secs());
    let rounds = rounds();
    say(&format!("{rounds} rounds, SEED={seed}"));
    let tally = Arc::new(Mutex::new(Tally::default()));
    let next = Arc::new(AtomicUsize::new(number("ROUND").map_or(0, |n| n as usize)));
    let end = next.load(Ordering::Relaxed) + rounds;
    let racks: Vec<_> = (0..RACKS)
        .map(|_| {
            let (next, tally, program) = (next.clone(), tally.clone(), program.clone());
            std::thread::spawn(move || {
                let mut rack = Rack::new(program, tally);
                loop {
                    let round = next.fetch_add(1, Ordering::Relaxed);
                    if round >= end {
                        return rack.finish();
                    }
                    rack.play(seed, round);
                }
            })
        })
        .collect();
    for rack in racks {
        if rack.join().is_err() {
            tally.lock().unwrap().wrong.push("a run broke off".to_owned());
        }
    }
    let tally = std::mem::take(&mut *tally.lock().unwrap());
    say(&format!("daemons killed at {}", list(&tally.daemon)));
    say(&format!("QEMUs killed at {}", list(&tally.qemu)));
    let Tally { rounds, operations, lost, wrong, .. } = &tally;
    say(&format!("{} rounds with something else wrong", wrong.len()));
    say(&format!("{rounds} rounds, {operations} operations, {} lost", lost.len()));
    tally
}

fn list(kills: &BTreeMap<String, usize>) -> String {
    let parts: Vec<String> = kills.iter().map(|(kind, times)| format!("{kind} {times}")).collect();
    parts.join(", ")
}

/// A line of progress. The Makefile shows those that begin like this.
pub(crate) fn say(what: &str) {
    eprintln!("torture: {what}");
}
