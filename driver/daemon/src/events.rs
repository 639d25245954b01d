//! Who is told what happened: subscriptions, and the engine's events as libvirt's messages.
//!
//! Event ids and details: `virDomainEventID` and the `VIR_DOMAIN_EVENT_*` enums. Registration is
//! per (event, domain) and connection; callback ids are unique in the daemon. Publishing never
//! waits: what a session cannot take is the session's to drop.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;
use virtsnap_engine::domain::{
    BlockJobKind, BlockJobStatus, Defined, Event, IoErrorAction, Resumed, ShutOffReason,
    ShutdownBy, Started, Suspended,
};
use virtsnap_engine::error::{Condition, Error, Origin, Result};
use virtsnap_rpc::remote::{self as wire, DomainRef, Event as Message};
use virtsnap_rpc::xdr::Xdr;

/// The ids a client may register: 0 to 27 in libvirt 11.3.
const EVENT_IDS: i32 = 28;
/// More than any client has; a limit for one that misbehaves.
const MAX_PER_SESSION: usize = 1024;

/// Where a session takes its events. Must not block.
pub(crate) trait Outlet: Send + Sync {
    fn send(&self, procedure: u32, payload: Vec<u8>);
}

#[derive(Default)]
pub(crate) struct Events {
    subscriptions: Mutex<Vec<Subscription>>,
    next_callback: AtomicI32,
}

struct Subscription {
    callback: i32,
    session: u64,
    event_id: i32,
    domain: Option<Uuid>,
    outlet: Arc<dyn Outlet>,
}

impl Events {
    pub(crate) fn subscribe(
        &self,
        session: u64,
        event_id: i32,
        domain: Option<Uuid>,
        outlet: Arc<dyn Outlet>,
    ) -> Result<i32> {
        if !(0..EVENT_IDS).contains(&event_id) {
            return Err(refused(format!("unsupported event ID {event_id}")));
        }
        self.add(session, event_id, domain, outlet)
    }

    /// An event of another driver's objects, which we have none of: accepted, never sent.
    pub(crate) fn subscribe_foreign(&self, session: u64, outlet: Arc<dyn Outlet>) -> Result<i32> {
        self.add(session, -1, None, outlet)
    }

    fn add(
        &self,
        session: u64,
        event_id: i32,
        domain: Option<Uuid>,
        outlet: Arc<dyn Outlet>,
    ) -> Result<i32> {
        let mut all = self.subscriptions();
        if all.iter().filter(|one| one.session == session).count() >= MAX_PER_SESSION {
            return Err(refused(format!("more than {MAX_PER_SESSION} event registrations")));
        }
        let callback = self.next_callback.fetch_add(1, Ordering::Relaxed) & i32::MAX;
        all.push(Subscription { callback, session, event_id, domain, outlet });
        Ok(callback)
    }

    pub(crate) fn unsubscribe(&self, session: u64, callback: i32) -> Result<()> {
        let mut all = self.subscriptions();
        let before = all.len();
        all.retain(|one| one.session != session || one.callback != callback);
        if all.len() == before {
            return Err(refused(format!("domain event callback {callback} not registered")));
        }
        Ok(())
    }

    pub(crate) fn session_ended(&self, session: u64) {
        self.subscriptions().retain(|one| one.session != session);
    }

    pub(crate) fn publish(&self, uuid: Uuid, name: &str, id: i32, event: &Event) {
        tracing::debug!(domain = name, id, ?event, "event");
        let dom = DomainRef { name: name.to_owned(), uuid, id };
        self.each(uuid, |subscription| {
            encode(event, subscription.event_id, subscription.callback, &dom)
        });
    }

    /// Told as libvirt tells it: the old name is gone, the new one is there.
    pub(crate) fn renamed(&self, uuid: Uuid, old_name: &str, new_name: &str) {
        let gone = DomainRef { name: old_name.to_owned(), uuid, id: -1 };
        let there = DomainRef { name: new_name.to_owned(), ..gone.clone() };
        for (dom, (event, detail)) in [(gone, (1, 1)), (there, (0, 2))] {
            self.each(uuid, |one| {
                (one.event_id == 0).then(|| lifecycle(one.callback, &dom, event, detail)).flatten()
            });
        }
    }

    fn each(&self, uuid: Uuid, message: impl Fn(&Subscription) -> Option<(u32, Vec<u8>)>) {
        for one in self.subscriptions().iter() {
            if one.domain.is_none_or(|wanted| wanted == uuid)
                && let Some((procedure, payload)) = message(one)
            {
                one.outlet.send(procedure, payload);
            }
        }
    }

    fn subscriptions(&self) -> MutexGuard<'_, Vec<Subscription>> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(message: String) -> Error {
    Error::new(Condition::Internal, message).from_origin(Origin::Rpc)
}

fn message<M: Message>(message: &M) -> Option<(u32, Vec<u8>)> {
    match message.to_bytes() {
        Ok(payload) => Some((M::PROCEDURE, payload)),
        Err(err) => {
            tracing::error!(procedure = M::PROCEDURE, %err, "an event does not fit the wire");
            None
        }
    }
}

fn lifecycle(callback_id: i32, dom: &DomainRef, event: i32, detail: i32) -> Option<(u32, Vec<u8>)> {
    message(&wire::DomainEventLifecycle { callback_id, dom: dom.clone(), event, detail })
}

/// The message that a registration of `event_id` gets for this event, if any.
fn encode(
    event: &Event,
    event_id: i32,
    callback_id: i32,
    dom: &DomainRef,
) -> Option<(u32, Vec<u8>)> {
    let dom = || dom.clone();
    match (event_id, event) {
        (0, event) => {
            let (event, detail) = lifecycle_numbers(event)?;
            lifecycle(callback_id, &dom(), event, detail)
        }
        (1, Event::Reboot) => message(&wire::DomainEventReboot { callback_id, dom: dom() }),
        (2, Event::RtcChange { offset }) => {
            message(&wire::DomainEventRtcChange { callback_id, dom: dom(), offset: *offset })
        }
        (3, Event::Watchdog { action }) => message(&wire::DomainEventWatchdog {
            callback_id,
            dom: dom(),
            action: watchdog_action(action),
        }),
        (4, Event::IoError { source, alias, action, .. }) => message(&wire::DomainEventIoError {
            callback_id,
            dom: dom(),
            src_path: source.clone(),
            dev_alias: alias.clone(),
            action: io_error_action(*action),
        }),
        (6, Event::IoError { source, alias, action, reason }) => {
            message(&wire::DomainEventIoErrorReason {
                callback_id,
                dom: dom(),
                src_path: source.clone(),
                dev_alias: alias.clone(),
                action: io_error_action(*action),
                reason: reason.clone(),
            })
        }
        (8, Event::BlockJob { source, kind, status, .. }) => message(&wire::DomainEventBlockJob {
            callback_id,
            dom: dom(),
            path: source.clone(),
            kind: block_job_kind(*kind),
            status: block_job_status(*status),
        }),
        (10, Event::TrayChange { alias, opened }) => message(&wire::DomainEventTrayChange {
            callback_id,
            dom: dom(),
            dev_alias: alias.clone(),
            reason: i32::from(!*opened),
        }),
        (11, Event::Started(Started::Wakeup)) => {
            message(&wire::DomainEventPmwakeup { callback_id, reason: 0, dom: dom() })
        }
        (12, Event::PmSuspended) => {
            message(&wire::DomainEventPmsuspend { callback_id, reason: 0, dom: dom() })
        }
        (13, Event::BalloonChange { actual }) => {
            message(&wire::DomainEventBalloonChange { callback_id, dom: dom(), actual: *actual })
        }
        (15, Event::DeviceRemoved { alias }) => message(&wire::DomainEventDeviceRemoved {
            callback_id,
            dom: dom(),
            dev_alias: alias.clone(),
        }),
        (16, Event::BlockJob { target, kind, status, .. }) => {
            message(&wire::DomainEventBlockJob2 {
                callback_id,
                dom: dom(),
                dst: target.clone(),
                kind: block_job_kind(*kind),
                status: block_job_status(*status),
            })
        }
        (18, Event::AgentLifecycle { connected }) => message(&wire::DomainEventAgentLifecycle {
            callback_id,
            dom: dom(),
            state: if *connected { 1 } else { 2 },
            reason: 2,
        }),
        (19, Event::DeviceAdded { alias }) => message(&wire::DomainEventDeviceAdded {
            callback_id,
            dom: dom(),
            dev_alias: alias.clone(),
        }),
        (20, Event::MigrationIteration(iteration)) => {
            message(&wire::DomainEventMigrationIteration {
                callback_id,
                dom: dom(),
                iteration: *iteration,
            })
        }
        (23, Event::MetadataChange { kind, uri }) => message(&wire::DomainEventMetadataChange {
            callback_id,
            dom: dom(),
            kind: *kind,
            nsuri: uri.clone(),
        }),
        _ => None,
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

    #[derive(Default)]
    struct Inbox(Mutex<Vec<(u32, Vec<u8>)>>);

    impl Outlet for Inbox {
        fn send(&self, procedure: u32, payload: Vec<u8>) {
            self.0.lock().unwrap().push((procedure, payload));
        }
    }

    impl Inbox {
        fn lifecycles(&self) -> Vec<(i32, i32, i32, String)> {
            let mut taken = Vec::new();
            for (procedure, payload) in self.0.lock().unwrap().drain(..) {
                assert_eq!(procedure, wire::DomainEventLifecycle::PROCEDURE);
                let event = wire::DomainEventLifecycle::from_bytes(&payload).unwrap();
                taken.push((event.callback_id, event.event, event.detail, event.dom.name));
            }
            taken
        }
    }

    #[test]
    fn a_registration_gets_its_events_and_no_others() {
        let events = Events::default();
        let (vm, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let inbox = Arc::new(Inbox::default());
        let all = events.subscribe(1, 0, None, inbox.clone()).unwrap();
        let one = events.subscribe(1, 0, Some(vm), inbox.clone()).unwrap();
        events.publish(other, "other", 3, &Event::Started(Started::Booted));
        assert_eq!(inbox.lifecycles(), [(all, 2, 0, "other".to_owned())]);
        events.publish(vm, "vm", -1, &Event::Stopped(ShutOffReason::FromSnapshot));
        let expected = [(all, 5, 6, "vm".to_owned()), (one, 5, 6, "vm".to_owned())];
        assert_eq!(inbox.lifecycles(), expected);
        events.publish(vm, "vm", 1, &Event::Reboot);
        assert!(inbox.lifecycles().is_empty());
    }

    #[test]
    fn a_rename_is_told_with_both_names() {
        let events = Events::default();
        let inbox = Arc::new(Inbox::default());
        let callback = events.subscribe(1, 0, None, inbox.clone()).unwrap();
        events.renamed(Uuid::from_u128(1), "old", "new");
        let expected = [(callback, 1, 1, "old".to_owned()), (callback, 0, 2, "new".to_owned())];
        assert_eq!(inbox.lifecycles(), expected);
    }

    #[test]
    fn all_ids_of_virsh_event_all_are_accepted_and_unknown_ones_are_not() {
        let events = Events::default();
        let inbox = Arc::new(Inbox::default());
        for id in 0..28 {
            events.subscribe(1, id, None, inbox.clone()).unwrap();
        }
        let err = events.subscribe(1, 28, None, inbox.clone()).unwrap_err();
        assert_eq!(err.message, "unsupported event ID 28");
        assert!(events.subscribe(1, -1, None, inbox).is_err());
    }

    #[test]
    fn only_the_session_that_registered_may_deregister() {
        let events = Events::default();
        let callback = events.subscribe(1, 0, None, Arc::new(Inbox::default())).unwrap();
        assert!(events.unsubscribe(2, callback).is_err());
        events.unsubscribe(1, callback).unwrap();
        assert!(events.unsubscribe(1, callback).is_err());
        events.subscribe(1, 0, None, Arc::new(Inbox::default())).unwrap();
        events.session_ended(1);
        assert!(events.subscriptions().is_empty());
    }
}
