//! What waits to be written to one client, in order, with bounds for each kind.
//!
//! Replies are bounded by the calls in flight and by the session, which stops reading calls while
//! much waits. A stream keeps a permit for each chunk until it is written. Events have nobody to
//! wait for, so a client that lets too many pile up is disconnected: losing some silently would
//! be worse. A PONG is not queued twice.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::net::UnixStream;
use tokio::sync::{Notify, OwnedSemaphorePermit};

/// Events a client may leave unread, and what they may hold: an event tells of names and
/// namespaces that another client chose.
const EVENTS_MAX: usize = 1024;
const EVENT_BYTES_MAX: usize = 8 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reply,
    Event,
    Pong,
}

#[derive(Debug)]
struct Message {
    kind: Kind,
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// Given back when the message is written.
    _permit: Option<OwnedSemaphorePermit>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Message>,
    bytes: usize,
    events: usize,
    event_bytes: usize,
    /// Nothing more comes in; the writer ends when the queue is empty.
    finished: bool,
    /// The client is lost or too slow; the session ends at once.
    broken: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// For the writer: there is something to do.
    filled: Notify,
    /// For the session: something was written, or the client is lost.
    changed: Notify,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, message: Message) {
        let mut state = self.lock();
        if state.finished || state.broken {
            return;
        }
        match message.kind {
            Kind::Pong if state.queue.iter().any(|queued| queued.kind == Kind::Pong) => return,
            Kind::Event if state.events >= EVENTS_MAX || state.event_bytes >= EVENT_BYTES_MAX => {
                state.broken = true;
                state.queue.clear();
                let events = state.events;
                drop(state);
                tracing::warn!("a client left {events} events unread and is disconnected");
                self.changed.notify_one();
                self.filled.notify_one();
                return;
            }
            Kind::Event => {
                state.events += 1;
                state.event_bytes = state.event_bytes.saturating_add(message.bytes.len());
            }
            Kind::Reply | Kind::Pong => {}
        }
        state.bytes = state.bytes.saturating_add(message.bytes.len());
        state.queue.push_back(message);
        drop(state);
        self.filled.notify_one();
    }

    pub(crate) fn reply(&self, bytes: Vec<u8>, fds: Vec<OwnedFd>) {
        self.push(Message { kind: Kind::Reply, bytes, fds, _permit: None });
    }

    pub(crate) fn stream(&self, bytes: Vec<u8>, permit: OwnedSemaphorePermit) {
        self.push(Message { kind: Kind::Reply, bytes, fds: Vec::new(), _permit: Some(permit) });
    }

    pub(crate) fn event(&self, bytes: Vec<u8>) {
        self.push(Message { kind: Kind::Event, bytes, fds: Vec::new(), _permit: None });
    }

    pub(crate) fn pong(&self, bytes: Vec<u8>) {
        self.push(Message { kind: Kind::Pong, bytes, fds: Vec::new(), _permit: None });
    }

    /// What waits to be written.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.lock().broken
    }

    /// Something was written or the client is lost. Only the session waits here.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Lets the writer end once everything queued is written.
    pub(crate) fn finish(&self) {
        self.lock().finished = true;
        self.filled.notify_one();
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.lock().finished
    }

    /// Writes what is pushed until [`Self::finish`] or until the client is lost.
    pub(crate) async fn write_to(&self, socket: &UnixStream) {
        while let Some(message) = self.next().await {
            let written = write(socket, &message).await;
            let mut state = self.lock();
            state.bytes = state.bytes.saturating_sub(message.bytes.len());
            if message.kind == Kind::Event {
                state.events = state.events.saturating_sub(1);
                state.event_bytes = state.event_bytes.saturating_sub(message.bytes.len());
            }
            if let Err(err) = written {
                tracing::debug!("client lost while writing: {err}");
                state.broken = true;
                state.queue.clear();
            }
            drop(state);
            self.changed.notify_one();
        }
    }

    async fn next(&self) -> Option<Message> {
        loop {
            {
                let mut state = self.lock();
                if state.broken {
                    return None;
                }
                if let Some(message) = state.queue.pop_front() {
                    return Some(message);
                }
                if state.finished {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }
}

async fn write(socket: &UnixStream, message: &Message) -> io::Result<()> {
    crate::wire::send_all(socket, &message.bytes).await?;
    for fd in &message.fds {
        crate::wire::send_fd(socket, fd).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_pings_queues_one_pong() {
        let outbox = Outbox::default();
        for _ in 0..1000 {
            outbox.pong(vec![0; 28]);
        }
        assert_eq!(outbox.lock().queue.len(), 1);
    }

    #[test]
    fn too_many_events_break_the_connection_and_free_the_queue() {
        let outbox = Outbox::default();
        for _ in 0..EVENTS_MAX {
            outbox.event(vec![0; 28]);
        }
        assert!(!outbox.is_broken());
        outbox.event(vec![0; 28]);
        assert!(outbox.is_broken());
        assert!(outbox.lock().queue.is_empty());
    }

    #[test]
    fn a_few_events_that_are_huge_break_it_too() {
        let outbox = Outbox::default();
        for _ in 0..4 {
            outbox.event(vec![0; EVENT_BYTES_MAX / 4]);
        }
        assert!(!outbox.is_broken());
        outbox.event(vec![0; 28]);
        assert!(outbox.is_broken());
    }

    #[test]
    fn nothing_is_queued_after_the_end() {
        let outbox = Outbox::default();
        outbox.finish();
        outbox.reply(vec![0; 28], Vec::new());
        assert!(outbox.lock().queue.is_empty());
    }
}
