//! One case with a fault in it: what must hold afterwards.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use virtsnap_engine::book::Book;
use virtsnap_engine::error::Condition;
use virtsnap_engine::ports::{Journals, Unfinished};
use virtsnap_engine::recover::{Verdict, verdict};
use virtsnap_engine::testing::scene::{
    DISKS, Held, Op, View, apply, assert_tidy, held, recover, restart, situation_of, view,
};
use virtsnap_engine::testing::{Same, TICK, Trouble, World};

use crate::Tally;
use crate::cases::Case;
use Op::{
    Alone, Delete, Discard, DiscardAlone, External, Halting, Internal, Mix, Quiesced, Reset,
    Revert, Stream,
};

/// What followed from the worlds of one case that were met so far; whether its guest's process was
/// ended decides what is right for a world.
#[derive(Debug)]
pub(crate) struct Known<T>(RefCell<Vec<(Same, bool, T)>>);

impl<T: Clone> Known<T> {
    pub(crate) fn find(&self, world: &Same, guest_died: bool) -> Option<T> {
        let known = self.0.borrow();
        let found = known.iter().find(|(same, died, _)| *died == guest_died && same == world);
        found.map(|(.., what)| what.clone())
    }

    pub(crate) fn learn(&self, world: Same, guest_died: bool, what: T) {
        self.0.borrow_mut().push((world, guest_died, what));
    }
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

/// A world before, and as the operation makes it.
pub(crate) struct Ground<'a> {
    pub(crate) case: &'a Case,
    pub(crate) world: World,
    pub(crate) old: View,
    pub(crate) new: View,
    pub(crate) held: BTreeMap<String, Held>,
    pub(crate) calls: usize,
    /// Of worlds as a fault left them, and as recovery did.
    pub(crate) left: Known<Outcome>,
    pub(crate) whole: Known<Outcome>,
    /// Of worlds that wait for recovery: what was injected into that.
    pub(crate) crashed: Known<Tally>,
}

impl<'a> Ground<'a> {
    pub(crate) fn of(case: &'a Case) -> Self {
        let world = situation_of(case.world(), &case.before);
        let done = world.fork();
        done.live(&case.minded());
        apply(&done, &done.book(), case.op, 999)
            .unwrap_or_else(|err| panic!("{case:?}: {}", err.chain()));
        assert_tidy(&done, "without trouble");
        let moments = world.moments();
        let held = moments.iter().map(|def| (def.name.clone(), held(&world, &def.name))).collect();
        let (old, new, calls) = (view(&world), view(&done), done.calls());
        let (left, whole, crashed) = (Known::default(), Known::default(), Known::default());
        Self { case, world, old, new, held, calls, left, whole, crashed }
    }

    /// The operation, with trouble at that call. The guest lives.
    pub(crate) fn strike(&self, at: usize, trouble: Trouble) -> Struck<'_> {
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

    pub(crate) fn is_revert(&self) -> bool {
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
pub(crate) struct Told<'a>(pub(crate) &'a str, pub(crate) &'a World);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in {}\n{}", self.0, self.1.plans().join("\n"));
        }
    }
}

pub(crate) struct Struck<'a> {
    pub(crate) ground: &'a Ground<'a>,
    pub(crate) world: World,
    pub(crate) book: Mutex<Book>,
    pub(crate) result: Result<(), String>,
    pub(crate) guest_died: bool,
    pub(crate) context: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    Old,
    New,
    /// A deletion stopped between two merges.
    Aside,
}

impl Struck<'_> {
    fn outcome(&self) -> Outcome {
        let (ground, seen) = (self.ground, view(&self.world));
        if self.world.moments().iter().any(|def| def.delete_in_progress) {
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
    pub(crate) fn check(&self) -> Outcome {
        let (world, context) = (&self.world, &self.context);
        let outcome = self.outcome();
        assert_tidy(world, context);
        let moments = world.moments();
        for (name, before) in &self.ground.held {
            let is_there = moments.get(name).is_some_and(|def| !def.delete_in_progress);
            assert!(!is_there || held(world, name) == *before, "{context}: {name} has changed");
        }
        if let Some(name) = self.ground.makes().filter(|name| moments.get(name).is_some()) {
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

    /// Recovery that nothing hinders, and what must hold then; and the same call again.
    pub(crate) fn settle(&mut self, tally: &mut Tally) -> Outcome {
        let (ground, died) = (self.ground, self.guest_died);
        let left = self.world.same();
        if let Some(outcome) = ground.left.find(&left, died) {
            return outcome;
        }
        tally.worlds += 1;
        self.book = restart(&self.world);
        let context = &self.context;
        assert_eq!(
            *self.book.lock().unwrap(),
            self.world.book().into_inner().unwrap(),
            "{context}: what is known is not what is recorded"
        );
        let whole = self.world.same();
        let known = ground.whole.find(&whole, died);
        let outcome = known.unwrap_or_else(|| {
            let outcome = self.check();
            self.repeat(&self.book, outcome);
            ground.whole.learn(whole, died, outcome);
            outcome
        });
        ground.left.learn(left, died, outcome);
        outcome
    }

    /// The same call again.
    pub(crate) fn repeat(&self, book: &Mutex<Book>, outcome: Outcome) {
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
    pub(crate) fn free_and_repeat(&mut self, restarts: bool) {
        if restarts {
            self.world.revive();
            match recover(&self.world) {
                Ok(book) => self.book = book,
                Err(_) => self.book = self.world.book(),
            }
        }
        let ground = self.ground;
        // One that is to end with the operation does so, whatever cannot be written after that.
        if matches!(ground.case.op, Halting(..)) {
            let guest = self.world.guest().map(|guest| (guest.running, guest.frozen));
            assert!(guest.is_none() || guest == ground.old.guest, "{}: {guest:?}", self.context);
        }
        let goes_on = ground.old.guest == Some((true, false)) && ground.new.guest.is_some();
        if goes_on && !ground.is_revert() {
            let guest = self.world.guest().map(|guest| (guest.running, guest.frozen));
            let is_new = guest == ground.new.guest;
            assert!(guest == Some((true, false)) || is_new, "{}: {guest:?}", self.context);
        }
        if self.world.has_journal() && !restarts {
            let book = self.book.lock().unwrap();
            assert!(book.left.is_some(), "{}: nobody knows of it", self.context);
            let pending = Journals::unfinished(&self.world).unwrap();
            for (unfinished, moment) in pending.iter().flat_map(named) {
                let is_true = matches!(verdict(&unfinished.entries), Verdict::Complete { .. });
                let is_made = is_true && ground.makes().as_ref() == Some(&moment);
                assert!(!is_made || book.listed().get(&moment).is_some(), "{}", self.context);
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

fn named(unfinished: &Unfinished) -> Vec<(&Unfinished, String)> {
    use virtsnap_engine::plan::Operation;
    let names = match &unfinished.plan.operation {
        Operation::Create { moment } | Operation::Revert { moment } => vec![moment.clone()],
        Operation::Delete { moments } => moments.clone(),
    };
    names.into_iter().map(|name| (unfinished, name)).collect()
}

pub(crate) fn word(trouble: Trouble) -> &'static str {
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
