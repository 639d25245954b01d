//! Memory and device state out of a running QEMU, and into a new one.
//!
//! QEMU's migration through a pipe (`getfd`, `migrate` and `migrate-incoming` with `fd:`). What
//! happens to the guest on the way out:
//!
//! | the guest | way | afterwards |
//! |---|---|---|
//! | was paused by its user | `background-snapshot`, where that works | `paused`, nodes active |
//! | is paused for us, runs on later | plain, where nodes can be activated again | `postmigrate` |
//! | runs (`live`) | plain; stopped when no more can be had from that | `postmigrate` |
//!
//! While a guest runs, QEMU sends again what it has written to since: pass by pass, until what is
//! left takes no longer than QEMU's own limit for a pause (0.3 s). One that writes faster than the
//! file takes it would never come so far, and all of it goes into the file. So it is stopped after
//! [`PASSES`], or when [`SIZES`] times its memory were sent, or when the file has no room for more
//! than all of it once again, see [`Room`]. It is not slowed down before: a pause at the end costs
//! less than a guest that crawls (no auto-converge).
//!
//! A plain migration ends with all block nodes inactive. QEMU 10 activates them by
//! `blockdev-set-active`; an older one only when the guest runs. So there internal snapshots of
//! disks after it are refused, by QEMU itself, and a guest that stays stopped takes one step when
//! the operation is over, see [`leave_postmigrate`]. The first way is not for an older one: before
//! 8.2 it lets the guest run when its memory is safe, and the disks would no longer belong to it.
//! In `postmigrate` no second migration is possible either.
//!
//! Of 512 MiB, measured: plain 24 ms, in the background 380 ms.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::time::{Instant, timeout};
use virtsnap_engine::domain::{PausedReason, State};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::inspect::MemoryJob;

use crate::instance::Instance;
use crate::qmp::{Qmp, QmpError, QmpEvent};
use crate::save_image::carry::Passed;

/// A migration that moves nothing for so long is given up.
const STALL: Duration = Duration::from_secs(300);
/// How long QEMU may take to let go of a migration that is to end.
const CANCEL_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Bytes a second: no limit. QEMU's own default is that of a network.
const UNLIMITED: u64 = 1 << 50;
/// After so many passes over a running guest's memory it is stopped for the last one.
pub(crate) const PASSES: u64 = 12;
/// Or after that many times its memory.
const SIZES: u64 = 2;
/// What may be written between two looks at the room that is left.
const MARGIN: u64 = 128 << 20;
/// The name of our descriptor in QEMU.
const FD: &str = "virtsnap-memory";

/// `query-migrate`, as far as we look.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct Progress {
    pub(crate) status: String,
    pub(crate) error_desc: Option<String>,
    pub(crate) total_time: u64,
    pub(crate) expected_downtime: Option<u64>,
    pub(crate) downtime: Option<u64>,
    pub(crate) setup_time: Option<u64>,
    pub(crate) ram: Ram,
    /// Why there could be none: devices whose state QEMU cannot save, or not just now.
    blocked_reasons: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct Ram {
    pub(crate) transferred: u64,
    pub(crate) remaining: u64,
    pub(crate) total: u64,
    pub(crate) duplicate: u64,
    pub(crate) normal: u64,
    pub(crate) normal_bytes: u64,
    pub(crate) dirty_pages_rate: u64,
    pub(crate) dirty_sync_count: u64,
    pub(crate) page_size: u64,
    pub(crate) mbps: f64,
}

impl Progress {
    pub(crate) fn is_active(&self) -> bool {
        !matches!(self.status.as_str(), "" | "none" | "completed" | "failed" | "cancelled")
    }
}

pub(crate) async fn progress(qmp: &Qmp) -> Result<Progress, QmpError> {
    let answer = qmp.execute_within("query-migrate", Value::Null, STALL).await?;
    serde_json::from_value(answer).map_err(|err| QmpError::Protocol(err.to_string()))
}

/// What keeps QEMU from saving the guest's memory. Before QEMU 6 it does not say, and refuses when it
/// is asked to.
pub(crate) async fn blockers(qmp: &Qmp) -> Result<Vec<String>, QmpError> {
    Ok(progress(qmp).await?.blocked_reasons)
}

/// Whether a guest that is saved goes on meanwhile.
#[derive(Debug)]
pub(crate) enum Guest {
    Stands,
    /// If it runs, and while the file has room for that.
    GoesOn(Room),
}

/// What the file can still take.
#[derive(Debug)]
pub(crate) enum Room {
    FileSystemOf(File),
    /// A device, for that many bytes of the stream.
    Bytes(u64),
}

impl Room {
    /// None: there is no telling.
    async fn left(&self, passed: u64) -> Option<u64> {
        match self {
            Room::Bytes(bytes) => Some(bytes.saturating_sub(passed)),
            Room::FileSystemOf(file) => {
                let file = file.try_clone().ok()?;
                let asked = tokio::task::spawn_blocking(move || rustix::fs::fstatvfs(&file));
                let told = asked.await.ok()?.ok()?;
                let free = told.f_bavail.saturating_mul(told.f_frsize);
                (told.f_blocks > 0).then_some(free)
            }
        }
    }
}

/// Why a guest that is being saved can go on no longer.
fn may_not_go_on(ram: &Ram, room: Option<u64>) -> Option<&'static str> {
    if ram.total == 0 {
        // Nothing is known yet.
        return None;
    }
    if ram.dirty_sync_count > PASSES || ram.transferred >= ram.total.saturating_mul(SIZES) {
        return Some("it writes to its memory faster than that is saved");
    }
    let needed = ram.total.saturating_add(MARGIN);
    room.is_some_and(|room| room < needed).then_some("there is no room to save it more than once")
}

/// Writes the guest's memory and device state into the pipe. The guest is stopped then.
pub(crate) async fn save(
    instance: &Instance,
    pipe: OwnedFd,
    guest: Guest,
    passed: &Passed,
) -> Result<()> {
    let qmp = &instance.qmp;
    if progress(qmp).await?.is_active() {
        let what = "the memory of the domain is being saved already";
        return Err(Error::new(Condition::OperationInvalid, what));
    }
    leave_postmigrate(instance).await?;
    let goes_on = match guest {
        Guest::GoesOn(room) if matches!(instance.state(), State::Running(_)) => Some(room),
        Guest::GoesOn(_) | Guest::Stands => None,
    };
    let is_live = goes_on.is_some();
    let mut in_background = !is_live && prefers_background(instance).await?;
    prepare(qmp).await?;
    in_background = in_background && set_background(qmp, true).await?;
    qmp.execute_with_fd("getfd", json!({ "fdname": FD }), pipe).await?;
    let mut events = qmp.events();
    if is_live {
        // A small guest has been stopped when the answer comes.
        instance.lock().pausing = Some(PausedReason::Snapshot);
    }
    let mut started = start(qmp).await;
    if in_background && matches!(started, Err(QmpError::Refused { .. })) {
        // Not every memory backend can be watched.
        in_background = !set_background(qmp, false).await?;
        started = start(qmp).await;
    }
    if let Err(err) = started {
        instance.lock().pausing = None;
        let _ = qmp.execute("closefd", json!({ "fdname": FD })).await;
        return Err(err.into());
    }
    let ended = follow(instance, &mut events, goes_on, passed).await;
    instance.lock().pausing = None;
    if in_background {
        set_background(qmp, false).await?;
    }
    ended?;
    activate(qmp).await?;
    Ok(())
}

async fn start(qmp: &Qmp) -> Result<Value, QmpError> {
    qmp.execute("migrate", json!({ "uri": format!("fd:{FD}") })).await
}

async fn prepare(qmp: &Qmp) -> Result<(), QmpError> {
    let events = json!([{ "capability": "events", "state": true }]);
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": events })).await?;
    qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": UNLIMITED })).await?;
    Ok(())
}

/// Whether it could be set as asked.
async fn set_background(qmp: &Qmp, is_on: bool) -> Result<bool, QmpError> {
    let capabilities = json!([{ "capability": "background-snapshot", "state": is_on }]);
    match qmp.execute("migrate-set-capabilities", json!({ "capabilities": capabilities })).await {
        Ok(_) => Ok(true),
        Err(QmpError::Refused { desc, .. }) if is_on => {
            tracing::debug!(desc, "no background snapshot");
            Ok(false)
        }
        Err(err) => Err(err),
    }
}

/// A guest that nobody will let run soon is better left as it is. QEMU aborts if it is to save in
/// the background a guest that has not run yet or stopped by itself: it goes from `paused` to
/// `paused`, and from no other state.
async fn prefers_background(instance: &Instance) -> Result<bool, QmpError> {
    let state = instance.state();
    if matches!(state, State::Paused(PausedReason::Snapshot | PausedReason::Save)) {
        return Ok(false);
    }
    let status = instance.qmp.execute("query-status", Value::Null).await?;
    let is_paused = status.get("status").and_then(Value::as_str) == Some("paused");
    Ok(is_paused && activate(&instance.qmp).await?)
}

/// Makes all block nodes active; false where this QEMU cannot. Active already is done.
pub(crate) async fn activate(qmp: &Qmp) -> Result<bool, QmpError> {
    match qmp.execute("blockdev-set-active", json!({ "active": true })).await {
        Ok(_) => Ok(true),
        Err(QmpError::Refused { class, .. }) if class == "CommandNotFound" => Ok(false),
        Err(err) => Err(err),
    }
}

/// Until the migration is over.
async fn follow(
    instance: &Instance,
    events: &mut broadcast::Receiver<QmpEvent>,
    mut goes_on: Option<Room>,
    passed: &Passed,
) -> Result<()> {
    let qmp = &instance.qmp;
    let mut seen = (None, Instant::now());
    loop {
        let now = progress(qmp).await?;
        match now.status.as_str() {
            "completed" => return Ok(()),
            "failed" => {
                let why = now.error_desc.unwrap_or_else(|| "QEMU does not say why".to_owned());
                let what = format!("saving the memory failed: {why}");
                return Err(Error::new(Condition::OperationFailed, what));
            }
            "cancelled" | "cancelling" | "none" => {
                let what = "saving the memory was aborted";
                return Err(Error::new(Condition::Aborted, what));
            }
            _ => {}
        }
        let written = passed.load(Ordering::Relaxed);
        if let Some(room) = &goes_on
            && let Some(why) = may_not_go_on(&now.ram, room.left(written).await)
        {
            goes_on = None;
            tracing::info!(domain = instance.name, sent = now.ram.transferred, "paused: {why}");
            instance.pause(PausedReason::Snapshot).await?;
        }
        let moved = (now.ram.transferred, written, now.status);
        if Some(&moved) != seen.0.as_ref() {
            seen = (Some(moved), Instant::now());
        } else if seen.1.elapsed() > STALL {
            let what = "saving the memory makes no progress";
            return Err(Error::new(Condition::Timeout, what));
        }
        let told = async {
            loop {
                match events.recv().await {
                    Ok(event) if event.name == "MIGRATION" => return,
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => return,
                    // The next question says that the connection has ended.
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        let _ = timeout(LOOK_EVERY, told).await;
    }
}

/// What a client is told of a save that goes on.
pub(crate) async fn job(instance: &Instance) -> Result<Option<MemoryJob>> {
    let now = progress(&instance.qmp).await?;
    Ok(now.is_active().then(|| figures(&now)))
}

/// The same of the last one, if it succeeded.
pub(crate) async fn last(instance: &Instance) -> Result<Option<MemoryJob>> {
    let now = progress(&instance.qmp).await?;
    Ok((now.status == "completed").then(|| figures(&now)))
}

fn figures(now: &Progress) -> MemoryJob {
    let ram = &now.ram;
    MemoryJob {
        elapsed: now.total_time,
        setup: now.setup_time,
        downtime: now.downtime.or(now.expected_downtime),
        total: ram.total,
        processed: ram.transferred,
        remaining: ram.remaining,
        constant_pages: ram.duplicate,
        normal_pages: ram.normal,
        normal_bytes: ram.normal_bytes,
        page_size: ram.page_size,
        // QEMU tells megabits.
        bytes_per_second: (ram.mbps * 125_000.0) as u64,
        dirty_rate: ram.dirty_pages_rate,
        iteration: ram.dirty_sync_count,
    }
}

/// Asks for the end of a save; whoever waits for it learns that it was aborted.
pub(crate) async fn cancel(instance: &Instance) -> Result<()> {
    if !progress(&instance.qmp).await?.is_active() {
        let what = "no memory of the domain is being saved";
        return Err(Error::new(Condition::OperationInvalid, what));
    }
    instance.qmp.execute("migrate_cancel", Value::Null).await?;
    Ok(())
}

/// Ends a migration, if there is one, and puts its settings back.
pub(crate) async fn end(instance: &Instance) -> Result<()> {
    let qmp = &instance.qmp;
    let deadline = Instant::now() + CANCEL_DEADLINE;
    let mut is_told = false;
    while progress(qmp).await?.is_active() {
        if !is_told {
            qmp.execute("migrate_cancel", Value::Null).await?;
            is_told = true;
        }
        if Instant::now() > deadline {
            let what = "QEMU does not let go of the migration that saved the memory";
            return Err(Error::new(Condition::Timeout, what));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    set_background(qmp, false).await?;
    // Held by QEMU only where it was not taken for a migration.
    let _ = qmp.execute("closefd", json!({ "fdname": FD })).await;
    leave_inactive(instance).await
}

/// A guest that was stopped by a plain migration, and stays so, can be neither saved again nor, by
/// a QEMU before 10, its images be written to. One step of the guest, of less than a millisecond
/// and told to nobody, makes it a guest that is paused.
pub(crate) async fn leave_postmigrate(instance: &Instance) -> Result<()> {
    let qmp = &instance.qmp;
    let status = qmp.execute("query-status", Value::Null).await?;
    let is_there = status.get("status").and_then(Value::as_str) == Some("postmigrate");
    if !is_there || !matches!(instance.state(), State::Paused(_)) {
        return Ok(());
    }
    instance.lock().is_stepping = true;
    // Both are in the monitor's socket before the first is answered.
    let (went, stopped) =
        tokio::join!(qmp.execute("cont", Value::Null), qmp.execute("stop", Value::Null));
    instance.lock().is_stepping = false;
    went?;
    stopped?;
    Ok(())
}

/// Before images are written to: block nodes that a migration left inactive are active again.
pub(crate) async fn leave_inactive(instance: &Instance) -> Result<()> {
    if !activate(&instance.qmp).await? {
        leave_postmigrate(instance).await?;
    }
    Ok(())
}

/// Reads memory and device state from the pipe into a QEMU that waits for them.
pub(crate) async fn load(instance: &Instance, from: Incoming, passed: &Passed) -> Result<()> {
    let qmp = &instance.qmp;
    prepare(qmp).await?;
    let uri = match from {
        Incoming::Pipe(pipe) => {
            qmp.execute_with_fd("getfd", json!({ "fdname": FD }), pipe).await?;
            format!("fd:{FD}")
        }
        Incoming::Pages { file, offset } => {
            let capabilities = json!([{ "capability": "mapped-ram", "state": true }]);
            let arguments = json!({ "capabilities": capabilities });
            qmp.execute("migrate-set-capabilities", arguments).await?;
            let set = qmp.execute_with_fd("add-fd", Value::Null, file).await?;
            let number = set.get("fdset-id").and_then(Value::as_u64).unwrap_or(0);
            format!("file:/dev/fdset/{number},offset={offset:#x}")
        }
    };
    qmp.execute("migrate-incoming", json!({ "uri": uri })).await?;
    let mut seen = (None, Instant::now());
    loop {
        let now = progress(qmp).await?;
        match now.status.as_str() {
            "completed" => break,
            "failed" => {
                let why = now.error_desc.unwrap_or_default();
                let what = format!("loading the memory failed: {why}");
                return Err(Error::new(Condition::OperationFailed, what));
            }
            _ => {}
        }
        let moved = (passed.load(Ordering::Relaxed), now.ram.transferred);
        if Some(moved) != seen.0 {
            seen = (Some(moved), Instant::now());
        } else if seen.1.elapsed() > STALL {
            let what = "loading the memory makes no progress";
            return Err(Error::new(Condition::Timeout, what));
        }
        tokio::time::sleep(LOAD_POLL).await;
    }
    activate(qmp).await?;
    Ok(())
}

const LOAD_POLL: Duration = Duration::from_millis(5);

/// Where a new QEMU reads memory from.
#[derive(Debug)]
pub(crate) enum Incoming {
    Pipe(OwnedFd),
    /// A file in which each page has a place of its own, from an offset on.
    Pages {
        file: OwnedFd,
        offset: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_goes_on_while_that_gets_somewhere_and_has_room() {
        const GIB: u64 = 1 << 30;
        let ram = |total, transferred, dirty_sync_count| Ram {
            total,
            transferred,
            dirty_sync_count,
            ..Ram::default()
        };
        assert_eq!(may_not_go_on(&Ram::default(), Some(0)), None, "nothing is known yet");
        assert_eq!(may_not_go_on(&ram(GIB, GIB, PASSES), None), None);
        let is_futile = |ram| may_not_go_on(&ram, Some(u64::MAX)).unwrap().contains("faster");
        assert!(is_futile(ram(GIB, GIB, PASSES + 1)));
        assert!(is_futile(ram(GIB, SIZES * GIB, 2)));
        assert_eq!(may_not_go_on(&ram(GIB, 0, 1), Some(GIB + MARGIN)), None);
        let why = may_not_go_on(&ram(GIB, 0, 1), Some(GIB + MARGIN - 1)).unwrap();
        assert!(why.contains("room"), "{why}");
    }
}
