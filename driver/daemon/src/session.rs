//! One client, from its first byte to its last.
//!
//! [`Session`] is the only owner of a connection's state: it reads frames, starts calls, queues
//! their answers, and moves stream data. Calls run in tasks of their own and may finish in any
//! order; keepalive is answered here, so it never waits behind them. What others may touch, the
//! outgoing queue and the subscriptions, is in the [`SessionHandle`].
//!
//! Frames that libvirt's own daemon leaves without an answer (replies, messages, unknown types
//! from a client) are left so here too; a broken length or descriptor ends the connection without
//! a word, since there is nobody who would understand one.
//!
//! When the client goes away its streams end and its subscriptions are dropped; calls it started
//! run to their end, and nobody hears their answer.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use virtsnap_rpc::framing::{Frame, FrameReader};
use virtsnap_rpc::message::{
    Header, MESSAGE_MAX, MessageType, PROGRAM_KEEPALIVE, PROGRAM_QEMU, PROGRAM_REMOTE, Status,
    VERSION,
};
use virtsnap_rpc::procedure::{KeepaliveProcedure, Procedure};
use virtsnap_rpc::xdr::Xdr;

use crate::handle::SUBSCRIPTIONS_MAX;
pub(crate) use crate::handle::{SessionHandle, Sessions};
use crate::keepalive::Keepalive;
use crate::read_only;
use crate::service::{
    Call, ERR_INTERNAL, ERR_RESOURCE_BUSY, ERR_RPC, FROM_RPC, FROM_STREAMS, Reply, RpcError,
    Service,
};
use crate::stream::{STREAMS_MAX, Stalled, Streams};

/// Calls that wait. With more, nothing is read any more until some have run.
const BACKLOG_MAX: usize = 256;
/// The longest message before CONNECT_OPEN.
const UNOPENED_LIMIT: usize = 64 * 1024;

/// What one client may have the daemon hold. All it sends and is sent is bounded by these; what
/// else it may make grow (streams, registrations, events unread) has its bound where it is kept.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    /// The longest message.
    message: usize,
    /// Calls that run at once. More wait, and keepalive is still answered.
    calls: usize,
    /// Answers not read yet. With more, no further call is read or begun.
    unread: usize,
}

/// Whoever may write is trusted with the host.
const READ_WRITE: Allowance =
    Allowance { message: MESSAGE_MAX, calls: 64, unread: 4 * 1024 * 1024 };
/// Anyone on the host may come, and many times.
const READ_ONLY: Allowance = Allowance { message: 512 * 1024, calls: 16, unread: 1024 * 1024 };
/// A client that connects must open within this time.
const OPEN_DEADLINE: Duration = Duration::from_secs(60);
/// How long a client that leaves may take to read its last answers.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);
const READ_SIZE: usize = 64 * 1024;

struct Session<S> {
    handle: Arc<SessionHandle>,
    service: Arc<S>,
    reader: FrameReader,
    calls: JoinSet<Done>,
    backlog: VecDeque<Frame>,
    /// What the arguments of the calls that run and that wait take together: no more is read once
    /// they exceed one message.
    held: usize,
    streams: Streams,
    stalled: Option<Stalled>,
    keepalive: Keepalive,
    /// CONNECT_CLOSE was answered.
    closing: bool,
}

/// A call that has run.
struct Done {
    header: Header,
    /// The length of its arguments.
    held: usize,
    result: Result<Reply, RpcError>,
}

/// Serves one client until it leaves, breaks the protocol, or `shutdown` turns true.
pub(crate) async fn run<S: Service>(
    socket: UnixStream,
    handle: Arc<SessionHandle>,
    service: Arc<S>,
    shutdown: watch::Receiver<bool>,
) {
    let socket = Arc::new(socket);
    let mut writer = tokio::spawn({
        let (socket, handle) = (Arc::clone(&socket), Arc::clone(&handle));
        async move { handle.outbox().write_to(&socket).await }
    });
    let mut session = Session {
        handle: Arc::clone(&handle),
        service: Arc::clone(&service),
        reader: FrameReader::default(),
        calls: JoinSet::new(),
        backlog: VecDeque::new(),
        held: 0,
        streams: Streams::default(),
        stalled: None,
        keepalive: Keepalive::new(),
        closing: false,
    };
    session.reader.set_limit(UNOPENED_LIMIT);
    if let Err(err) = session.serve(&socket, shutdown).await {
        tracing::debug!(session = handle.id, "connection ended: {err}");
    }
    drop(session);
    handle.close();
    let lost = handle.outbox().is_broken();
    if lost || tokio::time::timeout(FLUSH_DEADLINE, &mut writer).await.is_err() {
        writer.abort();
    }
    service.closed(&handle);
}

impl<S: Service> Session<S> {
    async fn serve(
        &mut self,
        socket: &UnixStream,
        mut shutdown: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; READ_SIZE];
        let open_deadline = Instant::now() + OPEN_DEADLINE;
        while !self.closing {
            self.take_frames()?;
            if self.handle.outbox().is_broken() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let reading = self.may_read();
            let ping_at = self.keepalive.deadline(self.handle.keepalive());
            tokio::select! {
                _ = shutdown.wait_for(|&down| down) => return Ok(()),
                Some(done) = self.calls.join_next() => {
                    // A call's own panic is caught where it is spawned.
                    if let Ok(Done { header, held, result }) = done {
                        self.held = self.held.saturating_sub(held);
                        self.finish_call(header, result);
                    }
                    self.start_waiting_calls();
                }
                ended = self.streams.ended() => self.streams.forget(ended, &self.handle),
                () = self.handle.outbox().changed() => self.start_waiting_calls(),
                () = deliver(&mut self.stalled) => self.stalled = None,
                () = sleep_until(ping_at) => {
                    if !reading {
                        // We do not listen, so silence says nothing about the client.
                        self.keepalive.heard();
                    } else if self.keepalive.expired().is_break() {
                        return Err(io::Error::other("keepalive timeout"));
                    } else {
                        self.send_keepalive(KeepaliveProcedure::PING);
                    }
                }
                () = tokio::time::sleep_until(open_deadline),
                    if self.handle.connection().is_none() =>
                {
                    return Err(io::Error::other("not opened in time"));
                }
                received = crate::wire::receive(socket, &mut buffer), if reading => {
                    let (len, fds) = received?;
                    if len == 0 {
                        return Ok(());
                    }
                    let bytes = buffer.get(..len).unwrap_or_default();
                    self.reader.push(bytes, fds).map_err(io::Error::other)?;
                }
            }
        }
        Ok(())
    }

    fn may_read(&self) -> bool {
        self.stalled.is_none()
            && self.backlog.len() < BACKLOG_MAX
            && self.held <= self.allowance().message
            && !self.is_behind()
    }

    fn allowance(&self) -> Allowance {
        if self.handle.read_only() { READ_ONLY } else { READ_WRITE }
    }

    /// The client does not read its answers.
    fn is_behind(&self) -> bool {
        self.handle.outbox().bytes() > self.allowance().unread
    }

    /// Handles the whole frames that have arrived, as far as there is room for them.
    fn take_frames(&mut self) -> io::Result<()> {
        while !self.closing && self.may_read() {
            let Some(frame) = self.reader.next_frame().map_err(io::Error::other)? else { break };
            self.keepalive.heard();
            self.take_frame(frame);
        }
        Ok(())
    }

    fn take_frame(&mut self, frame: Frame) {
        let header = frame.header;
        if header.program == PROGRAM_KEEPALIVE {
            if header.procedure == KeepaliveProcedure::PING as u32 {
                self.send_keepalive(KeepaliveProcedure::PONG);
            }
            return;
        }
        match header.kind() {
            Ok(MessageType::Call | MessageType::CallWithFds) => match self.check(&frame) {
                Ok(()) => self.queue_call(frame),
                Err(err) => self.refuse(&header, err),
            },
            Ok(MessageType::Stream | MessageType::StreamHole) => {
                self.stalled = self.streams.packet(frame);
            }
            Ok(MessageType::Reply | MessageType::Message | MessageType::ReplyWithFds) | Err(_) => {}
        }
    }

    /// What can be said about a call without its arguments.
    fn check(&self, frame: &Frame) -> Result<(), RpcError> {
        let Header { program, version, procedure, .. } = frame.header;
        let refused = |message| Err(RpcError::new(ERR_RPC, FROM_RPC, message));
        if !matches!(program, PROGRAM_REMOTE | PROGRAM_QEMU) || version != VERSION {
            return refused(format!("Cannot find program {program} version {version}"));
        }
        if frame.header.status() != Ok(Status::Ok) {
            let status = frame.header.status.cast_signed();
            return refused(format!("Unexpected message status {status}"));
        }
        let early = program == PROGRAM_REMOTE
            && Procedure::try_from(procedure).is_ok_and(Procedure::allowed_before_open);
        if self.handle.connection().is_none() && !early {
            let message = "internal error: hypervisor connection not open";
            return Err(RpcError::new(ERR_INTERNAL, FROM_RPC, message));
        }
        if self.handle.read_only() {
            read_only::check(program, procedure, &frame.payload)?;
        }
        Ok(())
    }

    fn queue_call(&mut self, frame: Frame) {
        self.held = self.held.saturating_add(frame.payload.len());
        self.backlog.push_back(frame);
        self.start_waiting_calls();
    }

    fn start_waiting_calls(&mut self) {
        while self.calls.len() < self.allowance().calls && !self.is_behind() {
            let Some(frame) = self.backlog.pop_front() else { break };
            self.start_call(frame);
        }
    }

    /// The call's own task is not in the set: it goes on when the client leaves.
    fn start_call(&mut self, frame: Frame) {
        let header = frame.header;
        let held = frame.payload.len();
        let call = Call {
            program: header.program,
            procedure: header.procedure,
            payload: frame.payload,
            fds: frame.fds,
        };
        let (service, handle) = (Arc::clone(&self.service), Arc::clone(&self.handle));
        let running = tokio::spawn(async move { service.call(&handle, call).await });
        self.calls.spawn(async move {
            let result = running.await.unwrap_or_else(|_| {
                let message = format!("procedure {} failed inside the daemon", header.procedure);
                Err(RpcError::new(ERR_INTERNAL, FROM_RPC, message))
            });
            Done { header, held, result }
        });
    }

    fn finish_call(&mut self, header: Header, result: Result<Reply, RpcError>) {
        if let Err(err) = result.and_then(|reply| self.reply(&header, reply)) {
            self.refuse(&header, err);
            return;
        }
        match (header.program, Procedure::try_from(header.procedure)) {
            (PROGRAM_REMOTE, Ok(Procedure::CONNECT_OPEN)) => {
                self.reader.set_limit(self.allowance().message);
            }
            (PROGRAM_REMOTE, Ok(Procedure::CONNECT_CLOSE)) => self.closing = true,
            _ => {}
        }
    }

    /// Queues the reply, and only then starts what comes after it.
    fn reply(&mut self, header: &Header, reply: Reply) -> Result<(), RpcError> {
        if reply.stream.is_some() && self.streams.len() >= STREAMS_MAX {
            let message = format!("this connection has {STREAMS_MAX} streams open already");
            return Err(RpcError::new(ERR_RESOURCE_BUSY, FROM_STREAMS, message));
        }
        if reply.subscription.is_some() && !self.handle.may_subscribe() {
            let message =
                format!("this connection is registered for {SUBSCRIPTIONS_MAX} events already");
            return Err(RpcError::new(ERR_RESOURCE_BUSY, FROM_RPC, message));
        }
        let frame = if reply.fds.is_empty() {
            header.answer(MessageType::Reply, Status::Ok).frame(&reply.payload)
        } else {
            header
                .answer(MessageType::ReplyWithFds, Status::Ok)
                .frame_with_fds(reply.fds.len(), &reply.payload)
        };
        let frame = frame.map_err(|err| {
            RpcError::new(ERR_INTERNAL, FROM_RPC, format!("the result cannot be sent: {err}"))
        })?;
        self.handle.outbox().reply(frame, reply.fds);
        if let Some(subscription) = reply.subscription {
            self.handle.subscribe(subscription);
        }
        if let Some(stream) = reply.stream {
            self.streams.start(header, stream, Arc::clone(&self.handle));
        }
        Ok(())
    }

    fn refuse(&self, header: &Header, err: RpcError) {
        let frame = err
            .into_wire()
            .to_bytes()
            .and_then(|payload| header.answer(MessageType::Reply, Status::Error).frame(&payload));
        match frame {
            Ok(bytes) => self.handle.outbox().reply(bytes, Vec::new()),
            Err(err) => tracing::error!("an error cannot be encoded: {err}"),
        }
    }

    fn send_keepalive(&self, procedure: KeepaliveProcedure) {
        match Header::keepalive(procedure as u32).frame(&[]) {
            Ok(bytes) if procedure == KeepaliveProcedure::PONG => self.handle.outbox().pong(bytes),
            Ok(bytes) => self.handle.outbox().reply(bytes, Vec::new()),
            Err(err) => tracing::error!("keepalive cannot be encoded: {err}"),
        }
    }
}

/// Pends when nothing is stalled.
async fn deliver(stalled: &mut Option<Stalled>) {
    match stalled {
        Some(stalled) => stalled.deliver().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
