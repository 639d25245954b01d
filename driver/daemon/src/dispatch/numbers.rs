//! States and reasons as libvirt numbers them (virDomainState and its reasons).

use virtsnap_engine::domain::{PausedReason, RunningReason, ShutOffReason, State};
use virtsnap_engine::inspect::VcpuState;

pub(super) const RUNNING: i32 = 1;
pub(super) const PAUSED: i32 = 3;
pub(super) const SHUT_OFF: i32 = 5;

pub(super) fn vcpu_state(state: VcpuState) -> i32 {
    match state {
        VcpuState::Offline => 0,
        VcpuState::Running => 1,
        VcpuState::Blocked => 2,
    }
}

/// (state, reason)
pub(super) fn state(state: State) -> (i32, i32) {
    match state {
        State::Running(reason) => (RUNNING, running(reason)),
        State::Paused(reason) => (PAUSED, paused(reason)),
        // VIR_DOMAIN_SHUTDOWN_USER: asked for.
        State::Shutdown => (4, 1),
        State::ShutOff(reason) => (SHUT_OFF, shut_off(reason)),
        // VIR_DOMAIN_CRASHED_PANICKED
        State::Crashed => (6, 1),
        State::PmSuspended => (7, 0),
        // VIR_DOMAIN_NOSTATE
        State::Unknown => (0, 0),
    }
}

fn running(reason: RunningReason) -> i32 {
    match reason {
        RunningReason::Unknown => 0,
        RunningReason::Booted => 1,
        RunningReason::Migrated => 2,
        RunningReason::Restored => 3,
        RunningReason::FromSnapshot => 4,
        RunningReason::Unpaused => 5,
        RunningReason::SaveCanceled => 7,
        RunningReason::Wakeup => 8,
        RunningReason::Crashed => 9,
    }
}

fn paused(reason: PausedReason) -> i32 {
    match reason {
        PausedReason::Unknown => 0,
        PausedReason::User => 1,
        PausedReason::Migration => 2,
        PausedReason::Save => 3,
        PausedReason::Dump => 4,
        PausedReason::IoError => 5,
        PausedReason::Watchdog => 6,
        PausedReason::FromSnapshot => 7,
        PausedReason::ShuttingDown => 8,
        PausedReason::Snapshot => 9,
        PausedReason::Crashed => 10,
        PausedReason::StartingUp => 11,
    }
}

fn shut_off(reason: ShutOffReason) -> i32 {
    match reason {
        ShutOffReason::Unknown => 0,
        ShutOffReason::Shutdown => 1,
        ShutOffReason::Destroyed => 2,
        ShutOffReason::Crashed => 3,
        ShutOffReason::Migrated => 4,
        ShutOffReason::Saved => 5,
        ShutOffReason::Failed => 6,
        ShutOffReason::FromSnapshot => 7,
        ShutOffReason::Daemon => 8,
    }
}
