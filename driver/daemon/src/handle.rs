//! A client as the rest of the daemon sees it: who it is, what it opened, what it listens for.
//!
//! The [`Session`](crate::session) itself belongs to one task; everything here may be touched
//! from any.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use uuid::Uuid;
use virtsnap_rpc::message::Header;
use virtsnap_rpc::remote::Event;

use crate::outbox::Outbox;
use crate::server::Place;
use crate::service::{ERR_INTERNAL, FROM_RPC, RpcError, Subscription, Topic};

/// Registrations for events that one client may have: more than clients need that register each
/// kind of event for each of a hundred domains.
pub(crate) const SUBSCRIPTIONS_MAX: usize = 4096;

/// Who is on the other end of the socket, as the kernel says (SO_PEERCRED).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What CONNECT_OPEN asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) uri: String,
    pub(crate) read_only: bool,
}

/// A client as calls and events see it.
#[derive(Debug)]
pub(crate) struct SessionHandle {
    pub(crate) id: u64,
    pub(crate) peer: Peer,
    read_only_socket: bool,
    connection: OnceLock<Connection>,
    keepalive: AtomicBool,
    callbacks: AtomicI32,
    subscriptions: Mutex<Vec<Subscription>>,
    outbox: Outbox,
    /// Given back when the last call that was begun here has ended, too.
    _place: Option<Place>,
}

impl SessionHandle {
    pub(crate) fn new(peer: Peer, read_only_socket: bool) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            peer,
            read_only_socket,
            connection: OnceLock::new(),
            keepalive: AtomicBool::new(false),
            callbacks: AtomicI32::new(0),
            subscriptions: Mutex::default(),
            outbox: Outbox::default(),
            _place: None,
        }
    }

    pub(crate) fn with_place(self, place: Place) -> Self {
        Self { _place: Some(place), ..self }
    }

    /// CONNECT_OPEN succeeded. The connection is read-only if either the socket or the client
    /// says so.
    pub(crate) fn open(&self, connection: Connection) -> Result<(), RpcError> {
        self.connection
            .set(connection)
            .map_err(|_| RpcError::new(ERR_INTERNAL, FROM_RPC, "connection already open"))
    }

    pub(crate) fn connection(&self) -> Option<&Connection> {
        self.connection.get()
    }

    pub(crate) fn read_only(&self) -> bool {
        self.read_only_socket || self.connection().is_some_and(|open| open.read_only)
    }

    pub(crate) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    pub(crate) fn keepalive(&self) -> bool {
        self.keepalive.load(Ordering::Relaxed)
    }

    /// The client asked for feature 10: from now on it is pinged when it is silent.
    pub(crate) fn start_keepalive(&self) {
        self.keepalive.store(true, Ordering::Relaxed);
    }

    pub(crate) fn next_callback_id(&self) -> i32 {
        self.callbacks.fetch_add(1, Ordering::Relaxed)
    }

    fn subscriptions(&self) -> MutexGuard<'_, Vec<Subscription>> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn may_subscribe(&self) -> bool {
        self.subscriptions().len() < SUBSCRIPTIONS_MAX
    }

    pub(crate) fn subscribe(&self, subscription: Subscription) {
        self.subscriptions().push(subscription);
    }

    /// The client is gone: nothing is queued for it any more.
    pub(crate) fn close(&self) {
        self.subscriptions().clear();
        self.outbox.finish();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.outbox.is_finished()
    }

    #[cfg(test)]
    pub(crate) fn count(&self, matches: impl Fn(&Subscription) -> bool) -> usize {
        self.subscriptions().iter().filter(|&known| matches(known)).count()
    }

    /// Drops the subscriptions that match; says whether there were any.
    pub(crate) fn unsubscribe(&self, matches: impl Fn(&Subscription) -> bool) -> bool {
        let mut subscriptions = self.subscriptions();
        let before = subscriptions.len();
        subscriptions.retain(|subscription| !matches(subscription));
        subscriptions.len() < before
    }

    /// Sends an event to each matching subscription. Holding the lock while queueing keeps the
    /// order of events the same for all, and no event follows the reply to its deregistration.
    pub(crate) fn publish<E: Event>(
        &self,
        matches: impl Fn(&Subscription) -> bool,
        mut event: impl FnMut(i32) -> E,
    ) {
        for subscription in self.subscriptions().iter().filter(|&known| matches(known)) {
            let frame = event(subscription.callback_id)
                .to_bytes()
                .and_then(|payload| Header::event(E::PROGRAM, E::PROCEDURE).frame(&payload));
            match frame {
                Ok(bytes) => self.outbox.event(bytes),
                Err(err) => tracing::error!("event {} cannot be encoded: {err}", E::PROCEDURE),
            }
        }
    }
}

/// Every connected client.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    known: Mutex<HashMap<u64, Arc<SessionHandle>>>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<SessionHandle>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, session: Arc<SessionHandle>) {
        self.lock().insert(session.id, session);
    }

    pub(crate) fn remove(&self, session: &SessionHandle) {
        self.lock().remove(&session.id);
    }

    pub(crate) fn all(&self) -> Vec<Arc<SessionHandle>> {
        self.lock().values().cloned().collect()
    }

    /// Tells every client that listens for this event number of this domain.
    pub(crate) fn publish_domain<E: Event>(
        &self,
        number: i32,
        domain: Uuid,
        event: impl Fn(i32) -> E,
    ) {
        self.publish(
            |subscription| {
                subscription.topic == Topic::Domain(number)
                    && subscription.object.is_none_or(|object| object == domain)
            },
            event,
        );
    }

    pub(crate) fn publish<E: Event>(
        &self,
        matches: impl Fn(&Subscription) -> bool,
        event: impl Fn(i32) -> E,
    ) {
        for session in self.all() {
            session.publish(&matches, &event);
        }
    }
}
