//! The engine's events as libvirt's messages.
//!
//! Event numbers and details: `virDomainEventID` and the `VIR_DOMAIN_EVENT_*` enums. Who gets them
//! is the sessions' to know; publishing never waits.

use std::sync::Arc;

use uuid::Uuid;
use virtsnap_engine::domain::{
    BlockJobKind, BlockJobStatus, Defined, Event, IoErrorAction, Resumed, ShutOffReason,
    ShutdownBy, Started, Suspended,
};
use virtsnap_rpc::remote::{self as wire, DomainRef, Event as Message, TypedParam};

use crate::handle::Sessions;

/// The engine's events, told to every session that registered for them.
#[derive(Debug)]
pub(crate) struct Events {
    sessions: Arc<Sessions>,
}

/// libvirt's numbers for the kinds of events (virDomainEventID).
mod id {
    pub(super) const LIFECYCLE: i32 = 0;
    pub(super) const REBOOT: i32 = 1;
    pub(super) const RTC_CHANGE: i32 = 2;
    pub(super) const WATCHDOG: i32 = 3;
    pub(super) const IO_ERROR: i32 = 4;
    pub(super) const IO_ERROR_REASON: i32 = 6;
    pub(super) const BLOCK_JOB: i32 = 8;
    pub(super) const TRAY_CHANGE: i32 = 10;
    pub(super) const PM_WAKEUP: i32 = 11;
    pub(super) const PM_SUSPEND: i32 = 12;
    pub(super) const BALLOON_CHANGE: i32 = 13;
    pub(super) const DEVICE_REMOVED: i32 = 15;
    pub(super) const BLOCK_JOB_2: i32 = 16;
    pub(super) const AGENT_LIFECYCLE: i32 = 18;
    pub(super) const DEVICE_ADDED: i32 = 19;
    pub(super) const MIGRATION_ITERATION: i32 = 20;
    pub(super) const JOB_COMPLETED: i32 = 21;
    pub(super) const METADATA_CHANGE: i32 = 23;
}

impl Events {
    pub(crate) fn new(sessions: Arc<Sessions>) -> Self {
        Self { sessions }
    }

    /// How many registrations for domain events there are.
    #[cfg(test)]
    pub(crate) fn listeners(&self) -> usize {
        let count = |session: std::sync::Arc<crate::handle::SessionHandle>| {
            session.count(|one| matches!(one.topic, crate::service::Topic::Domain(_)))
        };
        self.sessions.all().into_iter().map(count).sum()
    }

    pub(crate) fn publish(&self, uuid: Uuid, name: &str, id: i32, event: &Event) {
        tracing::debug!(domain = name, id, ?event, "event");
        let dom = DomainRef { name: name.to_owned(), uuid, id };
        self.tell_lifecycle(&dom, event);
        self.tell_particular(&dom, event);
    }

    /// Told as libvirt tells it: the old name is gone, the new one is there.
    pub(crate) fn renamed(&self, uuid: Uuid, old_name: &str, new_name: &str) {
        let gone = DomainRef { name: old_name.to_owned(), uuid, id: -1 };
        let there = DomainRef { name: new_name.to_owned(), ..gone.clone() };
        self.lifecycle(&gone, 1, 1);
        self.lifecycle(&there, 0, 2);
    }

    pub(crate) fn job_completed(&self, uuid: Uuid, name: &str, id: i32, params: &[TypedParam]) {
        let dom = DomainRef { name: name.to_owned(), uuid, id };
        self.send(self::id::JOB_COMPLETED, &dom, |callback_id, dom| {
            wire::DomainEventJobCompleted { callback_id, dom, params: params.to_vec().into() }
        });
    }

    fn send<M: Message>(&self, event: i32, dom: &DomainRef, message: impl Fn(i32, DomainRef) -> M) {
        self.sessions.publish_domain(event, dom.uuid, |callback| message(callback, dom.clone()));
    }

    fn lifecycle(&self, dom: &DomainRef, event: i32, detail: i32) {
        self.send(id::LIFECYCLE, dom, |callback_id, dom| wire::DomainEventLifecycle {
            callback_id,
            dom,
            event,
            detail,
        });
    }

    fn tell_lifecycle(&self, dom: &DomainRef, event: &Event) {
        if let Some((number, detail)) = lifecycle_numbers(event) {
            self.lifecycle(dom, number, detail);
        }
    }

    /// The events that have a number of their own, beside or instead of the life cycle's.
    fn tell_particular(&self, dom: &DomainRef, event: &Event) {
        match event {
            Event::Reboot => self.send(id::REBOOT, dom, |callback_id, dom| {
                wire::DomainEventReboot { callback_id, dom }
            }),
            Event::RtcChange { offset } => self.send(id::RTC_CHANGE, dom, |callback_id, dom| {
                wire::DomainEventRtcChange { callback_id, dom, offset: *offset }
            }),
            Event::Watchdog { action } => self.send(id::WATCHDOG, dom, |callback_id, dom| {
                let action = watchdog_action(action);
                wire::DomainEventWatchdog { callback_id, dom, action }
            }),
            Event::IoError { source, alias, action, reason } => {
                self.io_error(dom, source, alias, io_error_action(*action), reason);
            }
            Event::BlockJob { target, source, kind, status } => {
                self.block_job(
                    dom,
                    target,
                    source,
                    (block_job_kind(*kind), block_job_status(*status)),
                );
            }
            Event::TrayChange { alias, opened } => {
                self.send(id::TRAY_CHANGE, dom, |callback_id, dom| wire::DomainEventTrayChange {
                    callback_id,
                    dom,
                    dev_alias: alias.clone(),
                    reason: i32::from(!*opened),
                });
            }
            Event::Started(Started::Wakeup) => self.send(id::PM_WAKEUP, dom, |callback_id, dom| {
                wire::DomainEventPmwakeup { callback_id, reason: 0, dom }
            }),
            Event::PmSuspended => self.send(id::PM_SUSPEND, dom, |callback_id, dom| {
                wire::DomainEventPmsuspend { callback_id, reason: 0, dom }
            }),
            Event::BalloonChange { actual } => {
                self.send(id::BALLOON_CHANGE, dom, |callback_id, dom| {
                    wire::DomainEventBalloonChange { callback_id, dom, actual: *actual }
                });
            }
            Event::DeviceAdded { alias } => self.send(id::DEVICE_ADDED, dom, |callback_id, dom| {
                wire::DomainEventDeviceAdded { callback_id, dom, dev_alias: alias.clone() }
            }),
            Event::DeviceRemoved { alias } => {
                self.send(id::DEVICE_REMOVED, dom, |callback_id, dom| {
                    wire::DomainEventDeviceRemoved { callback_id, dom, dev_alias: alias.clone() }
                });
            }
            Event::AgentLifecycle { connected } => {
                const BY_THE_CHANNEL: i32 = 2;
                let state = if *connected { 1 } else { 2 };
                self.send(id::AGENT_LIFECYCLE, dom, |callback_id, dom| {
                    let reason = BY_THE_CHANNEL;
                    wire::DomainEventAgentLifecycle { callback_id, dom, state, reason }
                });
            }
            Event::MigrationIteration(iteration) => {
                self.send(id::MIGRATION_ITERATION, dom, |callback_id, dom| {
                    let iteration = *iteration;
                    wire::DomainEventMigrationIteration { callback_id, dom, iteration }
                });
            }
            Event::MetadataChange { kind, uri } => {
                self.send(id::METADATA_CHANGE, dom, |callback_id, dom| {
                    let nsuri = uri.clone();
                    wire::DomainEventMetadataChange { callback_id, dom, kind: *kind, nsuri }
                });
            }
            Event::Defined(_)
            | Event::Undefined
            | Event::Started(_)
            | Event::Suspended(_)
            | Event::Resumed(_)
            | Event::Shutdown(_)
            | Event::Stopped(_)
            | Event::Crashed => {}
        }
    }

    fn io_error(&self, dom: &DomainRef, source: &str, alias: &str, action: i32, reason: &str) {
        self.send(id::IO_ERROR, dom, |callback_id, dom| wire::DomainEventIoError {
            callback_id,
            dom,
            src_path: source.to_owned(),
            dev_alias: alias.to_owned(),
            action,
        });
        self.send(id::IO_ERROR_REASON, dom, |callback_id, dom| wire::DomainEventIoErrorReason {
            callback_id,
            dom,
            src_path: source.to_owned(),
            dev_alias: alias.to_owned(),
            action,
            reason: reason.to_owned(),
        });
    }

    /// Once with the image's path, once with the disk's target.
    fn block_job(&self, dom: &DomainRef, target: &str, source: &str, (kind, status): (i32, i32)) {
        self.send(id::BLOCK_JOB, dom, |callback_id, dom| wire::DomainEventBlockJob {
            callback_id,
            dom,
            path: source.to_owned(),
            kind,
            status,
        });
        self.send(id::BLOCK_JOB_2, dom, |callback_id, dom| wire::DomainEventBlockJob2 {
            callback_id,
            dom,
            dst: target.to_owned(),
            kind,
            status,
        });
    }
}

/// virDomainEventType and its detail, for what is an event of the life cycle.
fn lifecycle_numbers(event: &Event) -> Option<(i32, i32)> {
    Some(match event {
        Event::Defined(how) => (
            0,
            match how {
                Defined::Added => 0,
                Defined::Updated => 1,
                Defined::Renamed => 2,
                Defined::FromSnapshot => 3,
            },
        ),
        Event::Undefined => (1, 0),
        Event::Started(how) => (
            2,
            match how {
                Started::Booted => 0,
                Started::Restored => 2,
                Started::FromSnapshot => 3,
                Started::Wakeup => 4,
            },
        ),
        Event::Suspended(why) => (
            3,
            match why {
                Suspended::Paused => 0,
                Suspended::IoError => 2,
                Suspended::Watchdog => 3,
                Suspended::Restored => 4,
                Suspended::FromSnapshot => 5,
            },
        ),
        Event::Resumed(why) => (
            4,
            match why {
                Resumed::Unpaused => 0,
                Resumed::FromSnapshot => 2,
            },
        ),
        Event::Stopped(why) => (
            5,
            match why {
                ShutOffReason::Shutdown => 0,
                ShutOffReason::Destroyed => 1,
                ShutOffReason::Crashed => 2,
                ShutOffReason::Migrated => 3,
                ShutOffReason::Saved => 4,
                ShutOffReason::Failed | ShutOffReason::Unknown | ShutOffReason::Daemon => 5,
                ShutOffReason::FromSnapshot => 6,
            },
        ),
        Event::Shutdown(by) => (
            6,
            match by {
                ShutdownBy::Unknown => 0,
                ShutdownBy::Guest => 1,
                ShutdownBy::Host => 2,
            },
        ),
        Event::PmSuspended => (7, 0),
        Event::Crashed => (8, 0),
        Event::Reboot
        | Event::RtcChange { .. }
        | Event::Watchdog { .. }
        | Event::IoError { .. }
        | Event::BlockJob { .. }
        | Event::TrayChange { .. }
        | Event::BalloonChange { .. }
        | Event::DeviceAdded { .. }
        | Event::DeviceRemoved { .. }
        | Event::AgentLifecycle { .. }
        | Event::MetadataChange { .. }
        | Event::MigrationIteration(_) => return None,
    })
}

/// virDomainEventWatchdogAction, from QEMU's word.
fn watchdog_action(action: &str) -> i32 {
    match action {
        "pause" => 1,
        "reset" => 2,
        "poweroff" => 3,
        "shutdown" => 4,
        "debug" => 5,
        "inject-nmi" => 6,
        _ => 0,
    }
}

fn io_error_action(action: IoErrorAction) -> i32 {
    match action {
        IoErrorAction::None => 0,
        IoErrorAction::Pause => 1,
        IoErrorAction::Report => 2,
    }
}

fn block_job_kind(kind: BlockJobKind) -> i32 {
    match kind {
        BlockJobKind::Pull => 1,
        BlockJobKind::Copy => 2,
        BlockJobKind::Commit => 3,
        BlockJobKind::ActiveCommit => 4,
    }
}

fn block_job_status(status: BlockJobStatus) -> i32 {
    match status {
        BlockJobStatus::Completed => 0,
        BlockJobStatus::Failed => 1,
        BlockJobStatus::Canceled => 2,
        BlockJobStatus::Ready => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_libvirts() {
        let numbers = |event| lifecycle_numbers(&event);
        assert_eq!(numbers(Event::Defined(Defined::FromSnapshot)), Some((0, 3)));
        assert_eq!(numbers(Event::Started(Started::FromSnapshot)), Some((2, 3)));
        assert_eq!(numbers(Event::Resumed(Resumed::Unpaused)), Some((4, 0)));
        assert_eq!(numbers(Event::Stopped(ShutOffReason::FromSnapshot)), Some((5, 6)));
        assert_eq!(numbers(Event::Shutdown(ShutdownBy::Host)), Some((6, 2)));
        assert_eq!(numbers(Event::Reboot), None);
    }
}
