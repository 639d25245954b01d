//! One round: an operation, one kill or more, and what must hold afterwards.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use virtsnap_tests::{Daemon, World, host};

use crate::bed::{Bed, Role, Wish, done};
use crate::dice::Dice;
use crate::journal::{self, Journal};
use crate::model::{Complaints, Model, Operation, Scope, State, Trouble};
use crate::sight::{Depth, Seen};
use crate::{Tally, say};

/// One daemon with its domains.
pub(crate) struct Rack {
    world: World,
    beds: Vec<Bed>,
    kinds: Vec<String>,
    /// The daemon does not recover.
    is_control: bool,
    /// What was wrong in this round, though nothing was lost.
    wrong: Vec<String>,
    tally: Arc<Mutex<Tally>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Daemon,
    Qemu,
}

/// A kill to come.
#[derive(Debug)]
struct Strike {
    victim: Victim,
    /// When the journal has so many more lines of that kind; no kind: at once.
    kind: Option<String>,
    more: usize,
    delay: Duration,
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_deref().unwrap_or("any time");
        let Self { victim, more, delay, .. } = self;
        write!(f, "{victim:?} at {more}. {kind} + {:.1} ms", delay.as_secs_f64() * 1e3)
    }
}

/// What is known of an operation whose client is gone.
#[derive(Debug, Default)]
struct Aftermath {
    /// What the client was told; nothing: the daemon was killed before it said anything.
    told: Option<Result<(), String>>,
    qemu_killed: bool,
}

impl Rack {
    pub(crate) fn new(program: Option<PathBuf>, tally: Arc<Mutex<Tally>>) -> Self {
        let mut world = World::stopped(Daemon::Virtsnapd);
        let is_control = program.is_some();
        world.program = program;
        world.start();
        let roles = [Role::Counts, Role::Idles, Role::Off];
        let mut beds: Vec<Bed> =
            roles.iter().enumerate().map(|(n, role)| Bed::new(*role, n)).collect();
        for bed in &mut beds {
            bed.define(&world);
        }
        Self { world, beds, kinds: journal::kinds(), is_control, wrong: Vec::new(), tally }
    }

    pub(crate) fn play(&mut self, seed: u64, round: usize) {
        let began = Instant::now();
        let mut dice = Dice::new(seed, round);
        // Each kind in turn, and once no kind at all.
        let mut wanted = self.kinds.get(round % (self.kinds.len() + 1)).cloned();
        if self.is_control && dice.percent(50) {
            // A merge that nobody completes is where most can be lost.
            wanted = Some("finished".to_owned());
        }
        let chosen = self.choose_bed(&mut dice, wanted.as_deref());
        let Some(mut bed) = chosen.map(|n| self.beds.remove(n)) else { return };
        let mut story = format!("round {round}, {}", bed.name());
        let result = self.one(&mut bed, wanted.as_deref(), &mut dice, &mut story);
        let result = result.and_then(|()| self.neighbours());
        story.push_str(&format!(", {:.1} s", began.elapsed().as_secs_f64()));
        if self.report(result, format!("{story} (SEED={seed} ROUND={round})"), &story) {
            bed.rebuild(&mut self.world);
            for bed in &mut self.beds {
                bed.rebuild(&mut self.world);
            }
        }
        self.beds.insert(chosen.unwrap_or(0), bed);
        self.tally().rounds += 1;
    }

    /// Says how it went; true: it cannot go on like this.
    fn report(&mut self, result: Result<(), Trouble>, repeat: String, story: &str) -> bool {
        let wrong = std::mem::take(&mut self.wrong);
        if !wrong.is_empty() {
            let story = format!("{repeat}: WRONG: {wrong:#?}");
            say(&story);
            self.tally().wrong.push(story);
        }
        let Err(trouble) = result else {
            say(story);
            return false;
        };
        let kind = if trouble.is_loss { "LOST" } else { "WRONG" };
        let story = format!("{repeat}: {kind}: {}", trouble.why);
        say(&story);
        let mut tally = self.tally();
        let list = if trouble.is_loss { &mut tally.lost } else { &mut tally.wrong };
        list.push(story);
        true
    }

    /// All domains, one last time.
    pub(crate) fn finish(mut self) {
        for mut bed in std::mem::take(&mut self.beds) {
            let result = self.last_look(&mut bed);
            let story = format!("{} at the end", bed.name());
            self.report(result, story.clone(), &story);
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn choose_bed(&self, dice: &mut Dice, wanted: Option<&str>) -> Option<usize> {
        // Without a guest there is nothing to switch or to start.
        let runs = matches!(wanted, Some("pivoting" | "up"));
        let beds = if runs { 2 } else { self.beds.len() };
        (beds > 0).then(|| dice.below(beds))
    }

    fn one(
        &mut self,
        bed: &mut Bed,
        wanted: Option<&str>,
        dice: &mut Dice,
        story: &mut String,
    ) -> Result<(), Trouble> {
        if bed.role != Role::Off && (wanted == Some("pivoting") || dice.percent(85)) {
            bed.start(&self.world)?;
        }
        let before = bed.verify(&self.world, Depth::All, &mut self.wrong);
        before.map_err(|trouble| trouble.within("before"))?;
        bed.scribble(&self.world, dice)?;
        let wish = match wanted {
            Some("acting" | "pivoting") => Wish::Create,
            Some("undone") => Wish::Overlays,
            Some("up") => Wish::Revert,
            Some("pivoted" | "finished") if self.is_control || dice.percent(50) => Wish::Merge,
            _ if dice.percent(20) => Wish::Create,
            _ => Wish::Any,
        };
        let before = match wish {
            Wish::Merge => 2,
            // One without memory: to it, the guest is started anew.
            Wish::Revert => 1,
            _ => usize::from(bed.model.snapshots.is_empty() && dice.percent(70)),
        };
        for _ in 0..before {
            let snapshot = bed.overlays();
            self.again(bed, &snapshot)?;
            bed.scribble(&self.world, dice)?;
        }
        let operation = bed.choose(dice, wish);
        let strikes = self.strikes(bed, wanted, dice);
        *story = format!("{story}: {operation}");
        let mark = bed.guest(&self.world).mark();
        let (old, new) = (bed.model.clone(), operation.on(&bed.model));

        let aftermath = self.strike(bed, &operation, strikes, story);
        let reverts = matches!(operation, Operation::Revert { .. });
        let is_new = self.judge(bed, [&old, &new], &aftermath)?;
        story.push_str(if is_new { " → new" } else { " → old" });
        bed.listen(&self.world, mark, reverts)?;
        bed.scribble(&self.world, dice)?;
        if is_new {
            return Ok(());
        }
        if old.state == State::Running {
            // There is nothing to be saved of a guest that was killed.
            bed.start(&self.world)?;
        }
        self.again(bed, &operation)
    }

    /// The kills of a round, in their order.
    fn strikes(&self, bed: &Bed, wanted: Option<&str>, dice: &mut Dice) -> Vec<Strike> {
        let running = bed.model.state == State::Running;
        let delay = |dice: &mut Dice, most: usize| {
            Duration::from_micros(if dice.percent(60) { 0 } else { dice.below(most) as u64 })
        };
        let strike = |dice: &mut Dice, victim, kind: &str| Strike {
            victim,
            kind: Some(kind.to_owned()),
            more: 1 + dice.below(4) * usize::from(dice.percent(25)),
            delay: delay(dice, 15_000),
        };
        let mut strikes = Vec::new();
        let qemu = running && dice.percent(20);
        match wanted {
            // Only a step that fails or a daemon that recovers undoes anything.
            Some("undone") => {
                let victim = if qemu { Victim::Qemu } else { Victim::Daemon };
                let first = strike(dice, victim, "acting");
                // So that more than one step is to be undone.
                strikes.push(Strike { more: 2 + dice.below(2), ..first });
            }
            None => {
                let victim = if qemu { Victim::Qemu } else { Victim::Daemon };
                let delay = Duration::from_micros(dice.below(400_000) as u64);
                return vec![Strike { victim, kind: None, more: 0, delay }];
            }
            Some(_) => {}
        }
        if let Some(kind) = wanted {
            let victim = if qemu && kind != "undone" { Victim::Qemu } else { Victim::Daemon };
            let mut strike = strike(dice, victim, kind);
            if kind == "undone" {
                (strike.more, strike.delay) = (1, Duration::ZERO);
            } else if kind == "finished" && self.is_control {
                // Between the first of the disks and the record.
                (strike.more, strike.delay) = (2 + dice.below(2), Duration::ZERO);
            }
            strikes.push(strike);
        }
        // While it recovers.
        if dice.percent(25)
            && let Some(kind) = dice.pick(&self.kinds)
        {
            strikes.push(strike(dice, Victim::Daemon, kind));
        }
        strikes
    }

    /// Asks for the operation and kills. Afterwards a daemon answers and no client is left.
    fn strike(
        &mut self,
        bed: &mut Bed,
        operation: &Operation,
        strikes: Vec<Strike>,
        story: &mut String,
    ) -> Aftermath {
        let journal = Journal::of(&self.world, bed.uuid());
        let mut client = Client::start(&self.world, &bed.line(&self.world, operation));
        let mut aftermath = Aftermath::default();
        let (mut alive, mut first) = (true, true);
        let mut before = Vec::new();
        self.tally().operations += 1;
        for strike in strikes {
            if !alive {
                before = journal.lines();
                if before.is_empty() {
                    break;
                }
                self.world.launch();
                alive = true;
            }
            let socket = self.world.socket();
            let over = || match aftermath.told.is_none() && client.is_running() {
                true => false,
                // A daemon that listens has recovered.
                false => UnixStream::connect(&socket).is_ok(),
            };
            if let Some(kind) = &strike.kind {
                journal.wait(kind, strike.more, &before, over);
            }
            std::thread::sleep(strike.delay);
            let was_over = !client.is_running();
            let at = match strike.victim {
                Victim::Daemon => {
                    self.world.kill();
                    alive = false;
                    // What it said before is a promise; that it is gone is no answer.
                    let said = client.wait();
                    if first && aftermath.told.is_none() {
                        aftermath.told = (was_over || said.is_ok()).then_some(said);
                    }
                    first = false;
                    let at = journal.last();
                    *self.tally().daemon.entry(at.clone()).or_default() += 1;
                    at
                }
                Victim::Qemu => {
                    let at = journal.last();
                    if bed.kill_qemu(&self.world) {
                        aftermath.qemu_killed = true;
                        bed.may_leak = true;
                        *self.tally().qemu.entry(at.clone()).or_default() += 1;
                    }
                    at
                }
            };
            story.push_str(&format!(" [{strike}: {at}]"));
        }
        if alive {
            let said = client.wait();
            aftermath.told = first.then_some(said).or(aftermath.told);
            // What could not be finished is, at the latest, by the next daemon.
            if !journal.lines().is_empty() {
                self.world.kill();
                alive = false;
            }
        }
        if !alive {
            self.world.start();
        }
        let left = journal.lines();
        if !left.is_empty() {
            self.wrong.push(format!("a new daemon has not settled the journal: {left:?}"));
        }
        aftermath
    }

    /// Which world holds: true, the new one.
    fn judge(
        &mut self,
        bed: &mut Bed,
        worlds: [&Model; 2],
        after: &Aftermath,
    ) -> Result<bool, Trouble> {
        let seen = self.seen_at_rest(bed, after.qemu_killed);
        let [old, new] = worlds.map(|world| world.complaints(&seen, after.qemu_killed));
        let may_be = match &after.told {
            Some(Ok(())) => [false, true],
            Some(Err(why)) if !after.qemu_killed => {
                self.wrong.push(format!("failed for no reason: {why}"));
                [true, false]
            }
            Some(Err(_)) | None => [true, true],
        };
        let is_new = match (&old, &new) {
            (_, new) if may_be[1] && new.is_empty() => true,
            (old, _) if may_be[0] && old.is_empty() => false,
            (_, new) if may_be[1] && new.lost.is_empty() => true,
            (old, _) if may_be[0] && old.lost.is_empty() => false,
            _ => {
                let told = &after.told;
                return Err(Trouble::lost(format!(
                    "told {told:?}\n  not the new world: {new:#?}\n  not the old: {old:#?}"
                )));
            }
        };
        let Complaints { wrong, .. } = if is_new { new } else { old };
        bed.tell(wrong, &mut self.wrong);
        bed.model = worlds[usize::from(is_new)].clone();
        bed.model.learn(&seen);
        if seen.state.is_none() {
            return Err(Trouble::from("it can neither go on nor be started".to_owned()));
        }
        Ok(is_new)
    }

    /// Until QEMU's end has been noticed.
    fn seen_at_rest(&self, bed: &Bed, qemu_killed: bool) -> Seen {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let seen = bed.look(&self.world, Depth::All);
            // A death is noticed a moment later.
            let is_told =
                seen.state.is_some_and(|state| (state != State::Off) == bed.has_qemu(&self.world));
            if is_told || !qemu_killed || Instant::now() > deadline {
                return seen;
            }
        }
    }

    /// What was undone can be done.
    fn again(&mut self, bed: &mut Bed, operation: &Operation) -> Result<(), Trouble> {
        let new = operation.on(&bed.model);
        let mark = bed.guest(&self.world).mark();
        let line = bed.line(&self.world, operation);
        done(&format!("again, {operation}"), &self.world.virsh.run(&line))?;
        self.tally().operations += 1;
        bed.model = new;
        let after = bed.verify(&self.world, Depth::All, &mut self.wrong);
        after.map_err(|trouble| trouble.within(&format!("after {operation}")))?;
        bed.listen(&self.world, mark, matches!(operation, Operation::Revert { .. }))
    }

    /// The other domains of a daemon that was killed are as they were. What they hold is read when
    /// their next round begins.
    fn neighbours(&mut self) -> Result<(), Trouble> {
        for bed in &mut self.beds {
            let seen = bed.verify(&self.world, Depth::Lists, &mut self.wrong);
            seen.map_err(|trouble| trouble.within("neighbour"))?;
        }
        Ok(())
    }

    /// Every snapshot is reverted to and must give what it holds; then all are deleted.
    fn last_look(&mut self, bed: &mut Bed) -> Result<(), Trouble> {
        if bed.role == Role::Counts {
            done("destroy", &self.world.virsh.run(&format!("destroy {}", bed.name())))
                .or_else(|why| if bed.model.state == State::Off { Ok(()) } else { Err(why) })?;
            bed.model.state = State::Off;
            return bed.verify(&self.world, Depth::All, &mut self.wrong).map(drop);
        }
        let names: Vec<String> = bed.model.snapshots.keys().cloned().collect();
        for name in &names {
            self.again(bed, &Operation::Revert { to: name.clone(), running: false })?;
        }
        for name in names {
            self.again(bed, &Operation::Delete { name, scope: Scope::One })?;
        }
        Ok(())
    }
}

/// A virsh that nobody waits for yet.
struct Client {
    child: Child,
    ended: Option<Result<(), String>>,
}

impl Client {
    fn start(world: &World, line: &str) -> Self {
        let mut command = world.virsh.command(line);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Self { child: command.spawn().expect("virsh is there"), ended: None }
    }

    fn is_running(&mut self) -> bool {
        self.ended.is_none() && self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    fn wait(&mut self) -> Result<(), String> {
        if let Some(ended) = &self.ended {
            return ended.clone();
        }
        let child = &mut self.child;
        let status = host::wait("the client to end", 180, || child.try_wait().expect("ours"));
        let mut said = String::new();
        if let Some(mut pipe) = self.child.stderr.take() {
            let _ = std::io::Read::read_to_string(&mut pipe, &mut said);
        }
        let ended = if status.success() { Ok(()) } else { Err(said.trim().to_owned()) };
        self.ended = Some(ended.clone());
        ended
    }
}
