//! QEMU dies by SIGKILL before, inside and after every call of an operation, under a daemon that
//! lives on. Then the domain is off, the operation is done or undone, at the latest when the next
//! call on the domain settles what was left, every snapshot has its content, and a start works.
//!
//! `CRASHES=all` runs every operation and every moment; else a sample. `CRASHES_FIGURES` names a
//! file that gets a line for each operation.

use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// Which call QEMU dies at, and when in it.
#[derive(Debug, Clone)]
pub(super) struct Murder {
    at: usize,
    when: When,
    status: PathBuf,
    /// Who was killed.
    victim: Arc<Mutex<Option<Pid>>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum When {
    Before,
    /// So many milliseconds after the call began, if it is not over by then.
    Inside(u64),
    After,
}

impl Murder {
    pub(super) async fn around<T>(&self, n: usize, act: impl Future<Output = T>) -> T {
        if n != self.at {
            return act.await;
        }
        match self.when {
            When::Before => {
                self.strike();
                act.await
            }
            When::Inside(milliseconds) => {
                let strike = async {
                    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                    self.strike();
                };
                tokio::join!(act, strike).0
            }
            When::After => {
                let done = act.await;
                self.strike();
                done
            }
        }
    }

    fn strike(&self) {
        let Some(pid) = guest_of(&self.status) else { return };
        if kill_process(pid, Signal::KILL).is_ok() {
            *self.victim.lock().unwrap() = Some(pid);
        }
    }
}

impl Host {
    fn daemon_with_murder(&self, at: usize, when: When) -> Daemon<'_> {
        let mut daemon = self.daemon(None);
        let murder = Murder { at, when, status: self.status(), victim: Arc::default() };
        Arc::get_mut(&mut daemon.hypervisor).unwrap().murder = Some(murder);
        daemon
    }
}

fn is_all() -> bool {
    std::env::var("CRASHES").is_ok_and(|which| which == "all")
}

/// Every call of the operation, and each moment in it.
fn every_death(before: &[Op], op: Op) {
    if !is_possible() {
        return;
    }
    let host = situation(before);
    let daemon = host.daemon(None);
    let old = daemon.view();
    daemon.apply(op, 0).unwrap_or_else(|err| panic!("{op:?}: {}", err.chain()));
    let new = daemon.view();
    drop(daemon);
    let moments: &[When] = if is_all() {
        &[When::Before, When::Inside(1), When::Inside(15), When::Inside(60), When::After]
    } else {
        &[When::Before, When::Inside(4)]
    };
    let (mut deaths, mut undone, mut done, mut resumed) = (0, 0, 0, 0);
    for when in moments {
        for at in 0.. {
            let context = format!("{before:?} then {op:?}, QEMU dies at call {at}, {when:?}");
            match one_death(before, op, (at, *when), (&old, &new), &context) {
                Outcome::NoSuchCall => break,
                Outcome::NoGuest => {}
                Outcome::Holds { is_new, was_resumed } => {
                    deaths += 1;
                    *(if is_new { &mut done } else { &mut undone }) += 1;
                    resumed += usize::from(was_resumed);
                }
            }
        }
    }
    assert!(deaths > 0, "{op:?}: QEMU never died");
    let line = format!(
        "{op:?}: QEMU died {deaths} times; {undone} undone, {done} done, {resumed} by a later call"
    );
    eprintln!("{line}");
    if let Some(file) = std::env::var_os("CRASHES_FIGURES") {
        let mut file = std::fs::File::options().create(true).append(true).open(file).unwrap();
        std::io::Write::write_all(&mut file, format!("{line}\n").as_bytes()).unwrap();
    }
}

enum Outcome {
    NoSuchCall,
    /// There was no process to kill.
    NoGuest,
    Holds {
        is_new: bool,
        was_resumed: bool,
    },
}

fn one_death(
    before: &[Op],
    op: Op,
    (at, when): (usize, When),
    (old, new): (&View, &View),
    context: &str,
) -> Outcome {
    let host = situation(before);
    let daemon = host.daemon_with_murder(at, when);
    let result = daemon.apply(op, 0);
    if daemon.hypervisor.calls.load(Ordering::SeqCst) <= at {
        assert!(result.is_ok(), "{context}");
        return Outcome::NoSuchCall;
    }
    let victim = *daemon.hypervisor.murder.as_ref().unwrap().victim.lock().unwrap();
    let Some(victim) = victim else { return Outcome::NoGuest };
    daemon.wait_until_noticed(victim, context);
    let was_resumed = host.records.has_journal();
    daemon
        .run(daemon.snapshots().settle(&daemon.book))
        .unwrap_or_else(|err| panic!("{context}: cannot be settled: {}", err.chain()));
    let bare = |view: &View| View { is_up: false, runs: false, ..view.clone() };
    let seen = bare(&daemon.view());
    let (is_old, is_new) = (seen == bare(old), seen == bare(new));
    assert!(is_old || is_new, "{context}: saw {seen:#?}\nold {old:#?}\nnew {new:#?}");
    assert!(result.is_err() || is_new, "{context}: it was said to be done");
    if !daemon.is_up() {
        let start = daemon.apply(Op::Start, 0);
        start.unwrap_or_else(|err| panic!("{context}: a start: {}", err.chain()));
        let now = bare(&daemon.view());
        assert!(now == seen, "{context}: after a start {now:#?}\nbefore it {seen:#?}");
    }
    drop(daemon);
    host.kill_guest();
    host.tidy_but_for_leaks(context);
    Outcome::Holds { is_new, was_resumed }
}

impl Daemon<'_> {
    /// A revert may have brought up another QEMU meanwhile.
    fn wait_until_noticed(&self, victim: Pid, context: &str) {
        for _ in 0..400 {
            // Its status goes a moment before it is listed as off.
            let other = guest_of(&self.host.status()).filter(|pid| *pid != victim);
            if !self.is_up() || other.is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{context}: the domain is still listed as active");
    }
}

#[test]
fn a_live_disk_snapshot() {
    every_death(&[Op::Start, Write(0)], Disks(0));
}

#[test]
fn a_live_full_snapshot() {
    every_death(&[Op::Start, Write(0)], Full(0));
}

#[test]
fn memory_in_a_file() {
    every_death(&[Op::Start, Run, Write(0)], Memory(0));
}

#[test]
fn a_live_deletion_of_the_active_layer() {
    every_death(&[Op::Start, Write(0), Disks(0), Write(1)], Delete(0));
}

/// QEMU keeps what it has merged in its tables, and its header says otherwise already.
#[test]
fn a_live_deletion_upwards() {
    every_death(&[Op::Start, Write(0), Disks(0), Write(1)], Stream(0));
}

#[test]
fn a_revert_in_the_same_process() {
    every_death(&[Op::Start, Write(0), Full(0), Write(1)], Revert(0));
}

/// The other operations: a sample of the above is enough for every day.
#[test]
fn and_every_other_operation() {
    if !is_all() {
        return;
    }
    let two = [Op::Start, Write(0), Disks(0), Write(1), Disks(1), Write(2)];
    let three = [Op::Start, Write(0), Disks(0), Write(1), Disks(1), Write(2), Disks(2), Write(3)];
    every_death(&[Op::Start, Run, Write(0)], Live(0));
    every_death(&[Op::Start, Write(0), Memory(0), Write(1)], Memory(1));
    every_death(&[Op::Start, Run, Write(0)], Mixed(0));
    every_death(&[Op::Start, Run, Write(0)], Apart(0));
    every_death(&two, Delete(0));
    every_death(&three, Stream(1));
    every_death(&[Op::Start, Write(0), Full(0), Write(1), Disks(1), Write(2)], Delete(0));
    every_death(&[Op::Start, Write(0), Memory(0), Write(1)], Delete(0));
    every_death(&[Write(0), Disks(0), Write(1), Op::Start, Write(2)], Revert(0));
    every_death(&[Op::Start, Write(0), Mixed(0), Write(1)], Revert(0));
    every_death(&[Op::Start, Write(0), Memory(0), Write(1)], Revert(0));
    every_death(&[Op::Start, Write(0), Apart(0), Write(1)], Revert(0));
}
