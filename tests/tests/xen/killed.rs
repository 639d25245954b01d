//! virtsnapd is killed inside operations, at random: the world from before must hold or the one
//! from after, in names, contents and the guest's own count. `VIRTSNAP_TORTURE` is the number of
//! rounds, `SEED` repeats the choices of a run.

use std::ops::Range;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use virtsnap_tests::xen::{XenHost, XenSpec};

use crate::{count_on_disks, goes_back, lent, sound};

/// Rounds of `make test-xen`.
const SOME: u64 = 2;

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn nothing_is_lost_when_the_daemon_is_killed() {
    let mut host = lent!();
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seed = number("SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
    let rounds = number("VIRTSNAP_TORTURE").unwrap_or(SOME);
    eprintln!("torture-xen: {rounds} rounds, SEED={seed}");
    host.boot(XenSpec::new("vm"));
    let mut bed =
        Bed { dice: Dice(seed), kept: Vec::new(), made: 0, span: Duration::ZERO, inside: 0 };
    bed.take_one(&host);
    for round in 0..rounds {
        let story = bed.round(&mut host);
        eprintln!("torture-xen: round {round}: {story}");
    }
    bed.everything_is_there(&host);
    let Bed { inside, .. } = bed;
    eprintln!("torture-xen: {inside} times the client had not been answered");
    eprintln!("torture-xen: {rounds} rounds, {rounds} operations, 0 lost");
}

/// A guest's snapshots, and what it counted when each was taken.
struct Bed {
    dice: Dice,
    kept: Vec<(String, Range<u64>)>,
    made: u32,
    /// How long the last snapshot took that nothing came between.
    span: Duration,
    /// So many times the daemon was killed before the client was told how it went.
    inside: u32,
}

enum Operation {
    Take(String, &'static str),
    Revert(usize),
    Delete(usize),
}

impl Bed {
    fn round(&mut self, host: &mut XenHost) -> String {
        if self.kept.len() < 2 {
            self.take_one(host);
        }
        let operation = self.choose();
        let (before, line) = {
            let vm = host.guest(XenSpec::new("vm"));
            (vm.count_on(2), self.line(&operation))
        };
        let delay = self.span.mul_f64(self.dice.below(1000) as f64 / 1000.0);
        let told = host.crash_during(&line, delay);
        self.inside += u32::from(!told);
        let vm = host.guest(XenSpec::new("vm"));
        let names = vm.snapshots();
        let is_done = match &operation {
            Operation::Take(name, _) => names.contains(name),
            Operation::Delete(n) => !names.contains(&self.kept[*n].0),
            // Which of the two holds only the guest can say.
            Operation::Revert(_) => told,
        };
        assert!(is_done || !told, "'{line}' succeeded, and was forgotten");
        let story = format!("{line}, killed after {} ms: done: {is_done}", delay.as_millis());
        if vm.state() != "running" {
            let how = if vm.state() == "paused" { "resume {}" } else { "start {}" };
            vm.virsh(how);
        }
        vm.next_match(vm.mark());
        sound(&vm);
        match operation {
            Operation::Take(name, how) => {
                if !is_done {
                    vm.virsh(&format!("snapshot-create-as {{}} {name} {how}"));
                }
                let after = vm.count_on(3);
                self.kept.push((name, before..after));
            }
            Operation::Delete(n) => {
                let (name, _) = self.kept.remove(n);
                if !is_done {
                    vm.virsh(&format!("snapshot-delete {{}} {name}"));
                }
            }
            Operation::Revert(n) => goes_back(&vm, &self.kept[n].0, &self.kept[n].1),
        }
        let mut kept: Vec<_> = self.kept.iter().map(|(name, _)| name.clone()).collect();
        kept.sort();
        assert_eq!(vm.snapshots(), kept, "{story}");
        story
    }

    fn choose(&mut self) -> Operation {
        let kept = self.kept.len() as u64;
        match self.dice.below(4) {
            0 => Operation::Revert(self.dice.below(kept) as usize),
            1 => Operation::Delete(self.dice.below(kept) as usize),
            more => {
                self.made += 1;
                let all = "--memspec snapshot=external --diskspec xvda,snapshot=external";
                Operation::Take(format!("s{:02}", self.made), if more == 2 { "" } else { all })
            }
        }
    }

    fn line(&self, operation: &Operation) -> String {
        match operation {
            Operation::Take(name, how) => format!("snapshot-create-as vm {name} {how}"),
            Operation::Revert(n) => format!("snapshot-revert vm {}", self.kept[*n].0),
            Operation::Delete(n) => format!("snapshot-delete vm {}", self.kept[*n].0),
        }
    }

    fn take_one(&mut self, host: &XenHost) {
        let vm = host.guest(XenSpec::new("vm"));
        self.made += 1;
        let name = format!("s{:02}", self.made);
        let before = vm.count_on(1);
        let began = Instant::now();
        vm.virsh(&format!("snapshot-create-as {{}} {name}"));
        self.span = began.elapsed();
        self.kept.push((name, before..vm.count_on(3)));
    }

    /// Each snapshot gives back the moment it was taken at; then the images are sound.
    fn everything_is_there(&mut self, host: &XenHost) {
        let vm = host.guest(XenSpec::new("vm"));
        for (name, range) in &self.kept {
            goes_back(&vm, name, range);
            vm.count_on(2);
        }
        vm.virsh("destroy {}");
        vm.check(&vm.source("xvda"));
        vm.check(&vm.source("xvdb"));
        count_on_disks(&vm);
    }
}

/// Numbers that a seed repeats.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit.max(1)
    }
}
