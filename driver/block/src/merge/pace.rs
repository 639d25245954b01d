//! Is a merge getting anywhere? Judged by its figures and the clock alone.
//!
//! - It *stalls* when nothing more is done for a while: the storage does not answer.
//! - It does not *converge* when a guest writes to what is merged, and what is left does not get
//!   less within a window. Then the guest's writes are held back: to half of what the merge has
//!   shown it can move, then to a quarter of that, and so on; and in the end the merge is ended.
//!
//! Where a merge is held to a speed, the pauses that it makes for that are no sign of either.

use std::time::Duration;

use tokio::time::Instant;

use super::MergeLimits;

/// Never less, so that a guest still gets something done: bytes a second.
const LEAST: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Pace {
    limits: MergeLimits,
    /// The guest may write to it.
    is_active: bool,
    done: u64,
    moved: Instant,
    /// Until then it may pause for what it has moved.
    due: Instant,
    window: Option<Window>,
    held: u32,
}

/// Since the last time that less was left than ever.
#[derive(Debug)]
struct Window {
    since: Instant,
    due: Instant,
    least: u64,
    /// What was done when it began.
    done: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Advice {
    GoOn,
    /// To so many bytes a second.
    HoldBack(u64),
    EndStalled(Duration),
    EndDiverging,
}

impl Pace {
    pub(super) fn new(limits: MergeLimits, is_active: bool, now: Instant) -> Self {
        Self { limits, is_active, done: 0, moved: now, due: now, window: None, held: 0 }
    }

    pub(super) fn look(&mut self, now: Instant, (done, total): (u64, u64)) -> Advice {
        let left = total.saturating_sub(done);
        if done != self.done {
            let pause = self.limits.pause(done.saturating_sub(self.done));
            let longest = self.limits.pause(u64::MAX);
            self.due = (self.due.max(now) + pause).min(now + longest);
            (self.done, self.moved) = (done, now);
        }
        if now.duration_since(self.moved.max(self.due)) > self.limits.stall {
            return Advice::EndStalled(now.duration_since(self.moved));
        }
        // How much there is to do is not known at first.
        if total == 0 || !self.is_active {
            return Advice::GoOn;
        }
        let window = match &mut self.window {
            Some(window) if left >= window.least => window,
            _ => {
                self.window = Some(Window { since: now, due: self.due, least: left, done });
                return Advice::GoOn;
            }
        };
        let passed = now.duration_since(window.since);
        if now.duration_since(window.since.max(window.due)) <= self.limits.window {
            return Advice::GoOn;
        }
        if self.held >= self.limits.throttles {
            return Advice::EndDiverging;
        }
        self.held += 1;
        let moved = u128::from(done.saturating_sub(window.done)) * 1000;
        let rate = u64::try_from(moved / passed.as_millis().max(1)).unwrap_or(u64::MAX);
        *window = Window { since: now, due: self.due, least: left, done };
        Advice::HoldBack((rate >> (2 * self.held - 1).min(63)).max(LEAST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn limits() -> MergeLimits {
        let seconds = Duration::from_secs;
        MergeLimits { stall: seconds(100), window: seconds(10), throttles: 2, speed: 0 }
    }

    fn advised(is_active: bool, figures: impl Fn(u64) -> (u64, u64)) -> Vec<(u64, Advice)> {
        advised_within(limits(), is_active, figures)
    }

    /// What is advised, told once a second of what is done and what there is to do.
    fn advised_within(
        limits: MergeLimits,
        is_active: bool,
        figures: impl Fn(u64) -> (u64, u64),
    ) -> Vec<(u64, Advice)> {
        let start = Instant::now();
        let mut pace = Pace::new(limits, is_active, start);
        let looks = (0..200).map(|second| {
            (second, pace.look(start + Duration::from_secs(second), figures(second)))
        });
        looks.filter(|(_, advice)| *advice != Advice::GoOn).take(4).collect()
    }

    #[test]
    fn what_gets_less_goes_on_however_slowly() {
        let slowly = |second| (10 * second * MIB, 1000 * MIB + second * 9 * MIB);
        assert_eq!(advised(true, slowly), []);
        assert_eq!(advised(false, |second| (second, 10_000)), []);
    }

    #[test]
    fn a_guest_that_writes_as_fast_is_held_back_and_then_the_merge_ends() {
        let chased = |second| (8 * second * MIB, 1000 * MIB + 8 * second * MIB);
        assert_eq!(
            advised(true, chased)[..3],
            [
                (11, Advice::HoldBack(4 * MIB)),
                (22, Advice::HoldBack(MIB)),
                (33, Advice::EndDiverging)
            ]
        );
        assert_eq!(advised(false, chased), [], "nobody writes to an inner layer");
    }

    #[test]
    fn a_guest_that_is_held_back_lets_the_merge_end() {
        let held = |second: u64| (8 * second * MIB, 2000 * MIB + 8 * second.min(15) * MIB);
        assert_eq!(advised(true, held), [(11, Advice::HoldBack(4 * MIB))]);
    }

    #[test]
    fn what_does_not_move_is_ended_whoever_writes() {
        let stalled = Advice::EndStalled(Duration::from_secs(101));
        assert_eq!(advised(false, |_| (5, 10))[0], (101, stalled));
        let (second, advice) = &advised(true, |_| (0, 10))[0];
        assert_eq!((*second, advice), (11, &Advice::HoldBack(LEAST)));
        assert_eq!(advised(true, |_| (0, 0))[0].0, 101);
    }

    #[test]
    fn the_pauses_of_a_merge_that_is_held_to_a_speed_are_no_stall() {
        let slow = MergeLimits { speed: MIB / 8, ..limits() };
        // 16 MiB at once, and nothing for two minutes.
        let in_bursts = |second: u64| ((second / 128 + 1) * 16 * MIB, 1000 * MIB);
        assert_eq!(advised_within(slow, true, in_bursts), []);
        assert_eq!(advised_within(slow, false, in_bursts), []);
        let unlimited = advised(true, in_bursts);
        assert!(matches!(unlimited[0].1, Advice::HoldBack(_)), "{unlimited:?}");
        // What another daemon saw moved is no reason to wait longer, and a little of it not as long.
        let stands = |done| move |_| (done * MIB, 1000 * MIB);
        assert_eq!(advised_within(slow, true, stands(1))[0].0, 8 + 11);
        assert_eq!(advised_within(slow, true, stands(999))[0].0, 128 + 11);
        assert!(matches!(advised_within(slow, false, stands(1))[0], (109, Advice::EndStalled(_))));
    }
}
