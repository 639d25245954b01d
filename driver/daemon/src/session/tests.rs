//! A session over a socket pair, spoken to in raw frames.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use virtsnap_rpc::framing::{Frame, FrameReader};
use virtsnap_rpc::message::{
    Header, MessageType, PROGRAM_KEEPALIVE, PROGRAM_QEMU, PROGRAM_REMOTE, Status, WireError,
};
use virtsnap_rpc::procedure::Procedure;
use virtsnap_rpc::remote::{DomainEventReboot, DomainRef};
use virtsnap_rpc::xdr::Xdr;

use crate::handle::{Connection, Peer, SUBSCRIPTIONS_MAX, SessionHandle};
use crate::service::{Call, Reply, RpcError, Service, Subscription, Topic};
use crate::stream::{STREAMS_MAX, ServerStream};

/// Long enough for a loaded machine; every test that passes is far quicker.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Fake {
    /// Lets DOMAIN_CREATE go on.
    go: Notify,
    /// DOMAIN_CREATE has gone on.
    gone: Notify,
}

impl Service for Fake {
    async fn call(&self, session: &Arc<SessionHandle>, call: Call) -> Result<Reply, RpcError> {
        let procedure = Procedure::try_from(call.procedure)
            .map_err(|_| RpcError::unknown_procedure(call.procedure))?;
        let echoed = Reply { payload: call.payload, ..Reply::default() };
        match procedure {
            Procedure::AUTH_LIST | Procedure::CONNECT_CLOSE | Procedure::CONNECT_GET_TYPE => {
                Ok(echoed)
            }
            Procedure::CONNECT_SUPPORTS_FEATURE => {
                session.start_keepalive();
                Ok(echoed)
            }
            Procedure::CONNECT_OPEN => {
                let read_only = echoed.payload.ends_with(&[1]);
                session.open(Connection { uri: String::new(), read_only })?;
                Ok(Reply::default())
            }
            Procedure::DOMAIN_CREATE => {
                self.go.notified().await;
                self.gone.notify_one();
                Ok(echoed)
            }
            Procedure::DOMAIN_OPEN_CONSOLE => {
                let (near, far) = tokio::io::duplex(1024);
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(far);
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
                let (source, sink) = tokio::io::split(near);
                Ok(Reply { stream: Some(ServerStream::duplex(source, sink)), ..echoed })
            }
            Procedure::DOMAIN_SCREENSHOT => {
                let source = io::Cursor::new(vec![7; 300_000]);
                Ok(Reply { stream: Some(ServerStream::download(source)), ..echoed })
            }
            Procedure::DOMAIN_OPEN_GRAPHICS_FD => {
                Ok(Reply { fds: call.fds, payload: Vec::new(), ..Reply::default() })
            }
            Procedure::CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY => {
                let subscription =
                    Subscription { callback_id: 5, topic: Topic::Domain(1), object: None };
                Ok(Reply { subscription: Some(subscription), ..echoed })
            }
            Procedure::CONNECT_GET_CAPABILITIES => panic!("a handler's mistake"),
            other => Err(RpcError::unknown_procedure(other as u32)),
        }
    }
}

struct Client {
    socket: UnixStream,
    reader: FrameReader,
    handle: Arc<SessionHandle>,
    service: Arc<Fake>,
    session: JoinHandle<()>,
    shutdown: watch::Sender<bool>,
}

impl Client {
    fn connect() -> Self {
        let (socket, server) = UnixStream::pair().unwrap();
        let peer = Peer { pid: 1, uid: 0, gid: 0 };
        let handle = Arc::new(SessionHandle::new(peer, false));
        let service = Arc::new(Fake::default());
        let (shutdown, down) = watch::channel(false);
        let session =
            tokio::spawn(super::run(server, Arc::clone(&handle), Arc::clone(&service), down));
        Self { socket, reader: FrameReader::default(), handle, service, session, shutdown }
    }

    async fn opened() -> Self {
        let mut client = Self::connect();
        client.call(Procedure::CONNECT_OPEN, 0, &[0; 8]).await;
        assert_eq!(client.status().await, (0, Status::Ok));
        client
    }

    async fn send(&self, bytes: &[u8]) {
        crate::wire::send_all(&self.socket, bytes).await.unwrap();
    }

    async fn call(&self, procedure: Procedure, serial: u32, payload: &[u8]) {
        self.send(&call(procedure, serial).frame(payload).unwrap()).await;
    }

    async fn stream(&self, serial: u32, status: Status, payload: &[u8]) {
        let header = call(Procedure::DOMAIN_OPEN_CONSOLE, serial);
        self.send(&header.answer(MessageType::Stream, status).frame(payload).unwrap()).await;
    }

    /// The next frame; none when the server has closed.
    async fn next(&mut self) -> Option<Frame> {
        let mut buffer = vec![0; 65536];
        loop {
            if let Some(frame) = self.reader.next_frame().unwrap() {
                return Some(frame);
            }
            let received = crate::wire::receive(&self.socket, &mut buffer);
            match timeout(PATIENCE, received).await.expect("an answer") {
                Ok((len, fds)) if len > 0 => self.reader.push(&buffer[..len], fds).unwrap(),
                Ok(_) => return None,
                Err(err) if err.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(err) => panic!("{err}"),
            }
        }
    }

    async fn frame(&mut self) -> Frame {
        self.next().await.expect("the connection is open")
    }

    async fn status(&mut self) -> (u32, Status) {
        let frame = self.frame().await;
        (frame.header.serial, frame.header.status().unwrap())
    }

    async fn error(&mut self) -> (i32, i32, String) {
        let frame = self.frame().await;
        assert_eq!(frame.header.status(), Ok(Status::Error));
        let error = WireError::from_bytes(&frame.payload).unwrap();
        (error.code, error.domain, error.message.unwrap())
    }

    /// The server has closed, and the session has ended.
    async fn closed(mut self) {
        while self.next().await.is_some() {}
        timeout(PATIENCE, self.session).await.unwrap().unwrap();
    }

    /// A call still works.
    async fn alive(&mut self) {
        self.call(Procedure::CONNECT_GET_TYPE, 999, b"here").await;
        let frame = self.frame().await;
        assert_eq!((frame.header.serial, frame.payload.as_slice()), (999, &b"here"[..]));
    }
}

fn call(procedure: Procedure, serial: u32) -> Header {
    Header {
        program: PROGRAM_REMOTE,
        version: 1,
        procedure: procedure as u32,
        kind: MessageType::Call as u32,
        serial,
        status: 0,
    }
}

fn ping() -> Vec<u8> {
    Header::keepalive(1).frame(&[]).unwrap()
}

#[tokio::test]
async fn odd_calls_are_answered_as_libvirtd_does() {
    let mut client = Client::connect();
    let unknown = (39, 7);
    client.call(Procedure::CONNECT_GET_TYPE, 1, &[]).await;
    assert_eq!(client.error().await.0, 1);

    client.call(Procedure::CONNECT_OPEN, 0, &[0; 8]).await;
    client.status().await;
    for (header, text) in [
        (Header { program: 7, ..call(Procedure::AUTH_LIST, 2) }, "Cannot find program 7 version 1"),
        (
            Header { version: 2, ..call(Procedure::AUTH_LIST, 2) },
            "Cannot find program 536903814 version 2",
        ),
        (Header { procedure: 0, ..call(Procedure::AUTH_LIST, 2) }, "unknown procedure: 0"),
        (Header { procedure: 9999, ..call(Procedure::AUTH_LIST, 2) }, "unknown procedure: 9999"),
        (Header { status: 1, ..call(Procedure::AUTH_LIST, 2) }, "Unexpected message status 1"),
    ] {
        client.send(&header.frame(&[]).unwrap()).await;
        let (code, domain, message) = client.error().await;
        assert_eq!(((code, domain), message.as_str()), (unknown, text));
    }
    client.call(Procedure::CONNECT_OPEN, 3, &[0; 8]).await;
    assert_eq!(client.error().await, (1, 7, "connection already open".to_owned()));
    for kind in [1, 2, 5, 9] {
        let header = Header { kind, ..call(Procedure::AUTH_LIST, 4) };
        client.send(&header.frame(&[0; 4]).unwrap()).await;
    }
    client.alive().await;
}

#[tokio::test]
async fn close_is_answered_and_then_the_socket_ends() {
    let mut client = Client::opened().await;
    client.call(Procedure::CONNECT_CLOSE, 1, &[]).await;
    assert_eq!(client.status().await, (1, Status::Ok));
    client.closed().await;
}

#[tokio::test]
async fn a_slow_call_delays_neither_another_nor_keepalive() {
    let mut client = Client::opened().await;
    client.call(Procedure::DOMAIN_CREATE, 1, &[]).await;
    client.alive().await;
    // More calls than run at once, and keepalive is still answered.
    for serial in 2..100 {
        client.call(Procedure::DOMAIN_CREATE, serial, &[]).await;
    }
    client.send(&ping()).await;
    let pong = client.frame().await;
    assert_eq!((pong.header.program, pong.header.procedure), (PROGRAM_KEEPALIVE, 2));
    let mut answered = Vec::new();
    for _ in 1..100 {
        client.service.go.notify_one();
        answered.push(client.status().await.0);
    }
    answered.sort_unstable();
    assert_eq!(answered, (1..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_call_outlives_its_client() {
    let client = Client::opened().await;
    client.call(Procedure::DOMAIN_CREATE, 1, &[]).await;
    // Waits until the call was taken: an answer to a later one proves it.
    let mut client = client;
    client.alive().await;
    let service = Arc::clone(&client.service);
    drop(client.socket);
    timeout(PATIENCE, client.session).await.unwrap().unwrap();
    service.go.notify_one();
    timeout(PATIENCE, service.gone.notified()).await.unwrap();
}

#[tokio::test]
async fn a_panic_is_an_error_of_one_call() {
    let mut client = Client::opened().await;
    client.call(Procedure::CONNECT_GET_CAPABILITIES, 1, &[]).await;
    assert_eq!(client.error().await.0, 1);
    client.alive().await;
}

#[tokio::test]
async fn read_only_clients_may_look() {
    let mut client = Client::connect();
    client.call(Procedure::CONNECT_OPEN, 0, &[0, 0, 0, 0, 0, 0, 0, 1]).await;
    client.status().await;
    client.call(Procedure::DOMAIN_CREATE, 1, &[]).await;
    let (code, domain, message) = client.error().await;
    assert_eq!((code, domain), (29, 20));
    assert_eq!(message, "operation forbidden: read only access prevents virDomainCreate");
    client.call(Procedure::DOMAIN_REVERT_TO_SNAPSHOT, 1, &[]).await;
    assert_eq!(client.error().await.1, 35);
    let monitor =
        Header { program: PROGRAM_QEMU, procedure: 1, ..call(Procedure::CONNECT_OPEN, 2) };
    client.send(&monitor.frame(&[]).unwrap()).await;
    assert_eq!(client.error().await.0, 29);
    client.alive().await;
}

#[tokio::test]
async fn broken_lengths_end_the_connection() {
    for length in [0, 3, 4, 20, 27, 0x7fff_ffff, 4 + 33_554_432 + 1, u32::MAX] {
        let client = Client::opened().await;
        client.send(&length.to_be_bytes()).await;
        client.closed().await;
    }
    // Before CONNECT_OPEN nobody needs much.
    let client = Client::connect();
    client.send(&1_000_000u32.to_be_bytes()).await;
    client.closed().await;
}

#[tokio::test]
async fn a_message_cut_anywhere_ends_with_its_client() {
    let whole = call(Procedure::CONNECT_GET_TYPE, 1).frame(b"abcd").unwrap();
    for cut in 0..whole.len() {
        let client = Client::opened().await;
        client.send(&whole[..cut]).await;
        drop(client.socket);
        timeout(PATIENCE, client.session).await.unwrap().unwrap();
    }
    // And in two pieces it is one message.
    for cut in 1..whole.len() {
        let mut client = Client::opened().await;
        client.send(&whole[..cut]).await;
        tokio::task::yield_now().await;
        client.send(&whole[cut..]).await;
        assert_eq!(client.frame().await.payload, b"abcd");
    }
}

fn pipe() -> OwnedFd {
    std::io::pipe().unwrap().0.into()
}

fn call_with_fds(fds: usize) -> Vec<u8> {
    let header = call(Procedure::DOMAIN_OPEN_GRAPHICS_FD, 1);
    header.answer(MessageType::CallWithFds, Status::Ok).frame_with_fds(fds, &[]).unwrap()
}

#[tokio::test]
async fn descriptors_go_both_ways() {
    for count in [1, 32] {
        let mut client = Client::opened().await;
        client.send(&call_with_fds(count)).await;
        for _ in 0..count {
            crate::wire::send_fd(&client.socket, &pipe()).await.unwrap();
        }
        // A message right behind the dummy bytes must not be mixed up with them.
        client.send(&ping()).await;
        let mut frames = [client.frame().await, client.frame().await];
        frames.sort_by_key(|frame| frame.header.program != PROGRAM_REMOTE);
        let [reply, pong] = frames;
        assert_eq!(reply.header.kind(), Ok(MessageType::ReplyWithFds));
        assert_eq!(reply.fds.len(), count);
        for fd in &reply.fds {
            assert!(rustix::fs::fstat(fd.as_fd()).is_ok());
        }
        assert_eq!(pong.header.program, PROGRAM_KEEPALIVE);
    }
}

#[tokio::test]
async fn announced_descriptors_that_do_not_come_end_the_connection() {
    let client = Client::opened().await;
    client.send(&call_with_fds(32)).await;
    // The next message would be taken for the dummy bytes.
    client.call(Procedure::CONNECT_GET_TYPE, 2, &[0; 8]).await;
    client.closed().await;

    let client = Client::opened().await;
    let header = call(Procedure::DOMAIN_OPEN_GRAPHICS_FD, 1);
    let header = header.answer(MessageType::CallWithFds, Status::Ok);
    client.send(&header.frame(&33u32.to_be_bytes()).unwrap()).await;
    client.closed().await;

    // Too short for the number.
    let client = Client::opened().await;
    client.send(&header.frame(&[0, 0]).unwrap()).await;
    client.closed().await;
}

#[tokio::test]
async fn descriptors_nobody_announced_end_the_connection() {
    let client = Client::opened().await;
    for _ in 0..33 {
        // The server may have closed in between.
        let _ = crate::wire::send_fd(&client.socket, &pipe()).await;
    }
    client.closed().await;
}

#[tokio::test]
async fn a_console_echoes_until_finish() {
    let mut client = Client::opened().await;
    client.call(Procedure::DOMAIN_OPEN_CONSOLE, 7, &[]).await;
    assert_eq!(client.status().await, (7, Status::Ok));
    client.stream(7, Status::Continue, b"hello").await;
    let echo = client.frame().await;
    assert_eq!(echo.header.kind(), Ok(MessageType::Stream));
    assert_eq!((echo.header.serial, echo.payload.as_slice()), (7, &b"hello"[..]));
    client.stream(7, Status::Ok, &[]).await;
    assert_eq!(client.status().await, (7, Status::Ok));
    // Finished twice, data and abort after the end: nobody minds.
    client.stream(7, Status::Ok, &[]).await;
    client.stream(7, Status::Continue, b"late").await;
    client.stream(7, Status::Error, &[]).await;
    client.alive().await;
}

#[tokio::test]
async fn a_download_ends_with_an_empty_packet_and_a_handshake() {
    let mut client = Client::opened().await;
    client.call(Procedure::DOMAIN_SCREENSHOT, 7, &[]).await;
    assert_eq!(client.status().await, (7, Status::Ok));
    let mut got = 0;
    loop {
        let frame = client.frame().await;
        assert_eq!(frame.header.status(), Ok(Status::Continue));
        if frame.payload.is_empty() {
            break;
        }
        got += frame.payload.len();
    }
    assert_eq!(got, 300_000);
    client.stream(7, Status::Ok, &[]).await;
    assert_eq!(client.status().await, (7, Status::Ok));
    client.alive().await;
}

#[tokio::test]
async fn data_for_a_download_breaks_the_stream_only() {
    let mut client = Client::opened().await;
    client.call(Procedure::DOMAIN_SCREENSHOT, 7, &[]).await;
    assert_eq!(client.status().await, (7, Status::Ok));
    client.stream(7, Status::Continue, b"what for").await;
    loop {
        let frame = client.frame().await;
        if frame.header.status() == Ok(Status::Error) {
            assert_eq!(frame.header.kind(), Ok(MessageType::Stream));
            break;
        }
    }
    client.alive().await;
}

#[tokio::test]
async fn abort_is_confirmed_and_data_after_it_ignored() {
    let mut client = Client::opened().await;
    client.call(Procedure::DOMAIN_OPEN_CONSOLE, 7, &[]).await;
    client.status().await;
    client.stream(7, Status::Error, &[]).await;
    client.stream(7, Status::Continue, b"late").await;
    assert_eq!(client.status().await, (7, Status::Ok));
    client.alive().await;
}

#[tokio::test]
async fn a_hole_on_a_console_breaks_the_stream_only() {
    let mut client = Client::opened().await;
    client.call(Procedure::DOMAIN_OPEN_CONSOLE, 7, &[]).await;
    client.status().await;
    let header = call(Procedure::DOMAIN_OPEN_CONSOLE, 7);
    let header = header.answer(MessageType::StreamHole, Status::Continue);
    client.send(&header.frame(&[0; 12]).unwrap()).await;
    let frame = client.frame().await;
    assert_eq!(frame.header.kind(), Ok(MessageType::Stream));
    assert_eq!(frame.header.status(), Ok(Status::Error));
    assert!(WireError::from_bytes(&frame.payload).is_ok());
    client.alive().await;
}

fn reboot(callback_id: i32) -> DomainEventReboot {
    let dom = DomainRef { name: "vm".to_owned(), uuid: uuid::Uuid::nil(), id: 1 };
    DomainEventReboot { callback_id, dom }
}

#[tokio::test]
async fn events_begin_with_the_reply_that_registers_them() {
    let mut client = Client::opened().await;
    let all = |subscription: &Subscription| subscription.topic == Topic::Domain(1);
    client.handle.publish(all, reboot);
    client.call(Procedure::CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY, 1, &[]).await;
    assert_eq!(client.status().await, (1, Status::Ok));
    // The reply is queued a moment before the subscription begins.
    client.alive().await;
    client.handle.publish(all, reboot);
    let event = client.frame().await;
    assert_eq!(event.header.kind(), Ok(MessageType::Message));
    assert_eq!(event.header.procedure, Procedure::DOMAIN_EVENT_CALLBACK_REBOOT as u32);
    assert_eq!(DomainEventReboot::from_bytes(&event.payload).unwrap().callback_id, 5);
    assert!(client.handle.unsubscribe(|subscription| subscription.callback_id == 5));
    client.handle.publish(all, reboot);
    client.alive().await;
}

#[tokio::test]
async fn registrations_for_events_are_bounded() {
    let mut client = Client::opened().await;
    let one = Subscription { callback_id: 1, topic: Topic::Domain(1), object: None };
    for _ in 0..SUBSCRIPTIONS_MAX {
        client.handle.subscribe(one.clone());
    }
    client.call(Procedure::CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY, 1, &[]).await;
    let (code, _, message) = client.error().await;
    assert_eq!(code, 87, "{message}");
    assert_eq!(client.handle.count(|_| true), SUBSCRIPTIONS_MAX);
    client.alive().await;
}

#[tokio::test]
async fn a_client_that_reads_no_events_is_disconnected() {
    let mut client = Client::opened().await;
    client.call(Procedure::CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY, 1, &[]).await;
    client.status().await;
    client.alive().await;
    let session = client.session;
    timeout(PATIENCE, async {
        while !session.is_finished() {
            client.handle.publish(|_| true, reboot);
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_holds_a_bounded_amount() {
    let mut client = Client::opened().await;
    client.call(Procedure::DOMAIN_OPEN_CONSOLE, 7, &[]).await;
    client.status().await;
    // Floods the console and never reads the echo: the session stops reading, and so we cannot
    // write any more. The clock stands, so the timeout comes when nothing moves; it is shorter
    // than the time after which the stuck stream itself is given up.
    let packet = call(Procedure::DOMAIN_OPEN_CONSOLE, 7)
        .answer(MessageType::Stream, Status::Continue)
        .frame(&[1; 100_000])
        .unwrap();
    let flood = async {
        for _ in 0..1000 {
            client.send(&packet).await;
        }
    };
    assert!(timeout(Duration::from_secs(20), flood).await.is_err(), "100 MB were taken");
    drop(client.socket);
    timeout(PATIENCE, client.session).await.unwrap().unwrap();
}

/// Sends until nothing is taken any more; gives the number of messages that were. The clock
/// stands, so its timeout comes when nothing moves.
async fn flood(client: &Client, message: &[u8], most: usize) -> usize {
    for sent in 0..most {
        let sending = client.send(message);
        if timeout(Duration::from_secs(20), sending).await.is_err() {
            return sent;
        }
    }
    most
}

#[tokio::test]
async fn streams_are_bounded() {
    let mut client = Client::opened().await;
    let most = u32::try_from(STREAMS_MAX).unwrap();
    for serial in 1..=most {
        client.call(Procedure::DOMAIN_OPEN_CONSOLE, serial, &[]).await;
        assert_eq!(client.status().await, (serial, Status::Ok));
    }
    client.call(Procedure::DOMAIN_OPEN_CONSOLE, most + 1, &[]).await;
    let (code, _, message) = client.error().await;
    assert_eq!(code, 87, "{message}");
    // One that ends makes room.
    client.stream(1, Status::Ok, &[]).await;
    assert_eq!(client.status().await, (1, Status::Ok));
    client.call(Procedure::DOMAIN_OPEN_CONSOLE, most + 2, &[]).await;
    assert_eq!(client.status().await, (most + 2, Status::Ok));
    client.alive().await;
}

#[tokio::test(start_paused = true)]
async fn calls_in_flight_hold_a_bounded_amount() {
    let client = Client::opened().await;
    // DOMAIN_CREATE waits for us: none of these ends.
    let message = call(Procedure::DOMAIN_CREATE, 1).frame(&vec![0; 8 << 20]).unwrap();
    let taken = flood(&client, &message, 64).await;
    // Five exceed one message's limit; one more may be half read.
    assert!((4..=6).contains(&taken), "{taken} times 8 MiB were taken");
    client.shutdown.send_replace(true);
    timeout(PATIENCE, client.session).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_read_only_client_holds_less() {
    let mut client = Client::connect();
    client.call(Procedure::CONNECT_OPEN, 0, &[0, 0, 0, 1]).await;
    assert_eq!(client.status().await, (0, Status::Ok));
    assert!(client.handle.read_only());
    // Console data is not a call; what is no call and no stream is dropped, and takes no memory.
    let message = call(Procedure::CONNECT_GET_TYPE, 1).frame(&vec![0; 400 << 10]).unwrap();
    // Nothing is read of the answers: after three of them no more calls are begun.
    let taken = flood(&client, &message, 64).await;
    assert!((3..=9).contains(&taken), "{taken} times 400 KiB were taken");
    assert!(client.handle.outbox().bytes() <= 3 * (401 << 10));
    drop(client.socket);
    timeout(PATIENCE, client.session).await.unwrap().unwrap();

    let mut client = Client::connect();
    client.call(Procedure::CONNECT_OPEN, 0, &[0, 0, 0, 1]).await;
    client.status().await;
    let sent = call(Procedure::CONNECT_GET_TYPE, 1).frame(&vec![0; 513 << 10]).unwrap();
    let length = sent.first_chunk::<4>().unwrap();
    client.send(length).await;
    client.closed().await;
}

#[tokio::test]
async fn a_byte_at_a_time_and_half_a_message_delay_nobody() {
    let (mut slow, half) = (Client::opened().await, Client::opened().await);
    let whole = call(Procedure::CONNECT_GET_TYPE, 7).frame(b"here").unwrap();
    half.send(&whole[..whole.len() / 2]).await;
    let mut other = Client::opened().await;
    for byte in &whole[..whole.len() - 1] {
        slow.send(&[*byte]).await;
        other.alive().await;
    }
    slow.send(&whole[whole.len() - 1..]).await;
    assert_eq!(slow.frame().await.payload, b"here");
    assert!(!half.session.is_finished(), "half a message is no reason to end");
    other.alive().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_pinged_five_times_and_left() {
    let mut client = Client::opened().await;
    client.call(Procedure::CONNECT_SUPPORTS_FEATURE, 1, &[]).await;
    client.status().await;
    let start = tokio::time::Instant::now();
    for _ in 0..5 {
        let ping = client.frame().await.header;
        assert_eq!((ping.program, ping.procedure, ping.serial), (PROGRAM_KEEPALIVE, 1, 0));
    }
    client.closed().await;
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_pings_stays() {
    let mut client = Client::opened().await;
    client.call(Procedure::CONNECT_SUPPORTS_FEATURE, 1, &[]).await;
    client.status().await;
    for _ in 0..20 {
        assert_eq!(client.frame().await.header.procedure, 1);
        client.send(&Header::keepalive(2).frame(&[]).unwrap()).await;
    }
    client.alive().await;
}

#[tokio::test(start_paused = true)]
async fn without_feature_10_silence_is_no_reason_to_close() {
    let mut client = Client::opened().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    client.alive().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_opens_is_closed() {
    let client = Client::connect();
    let start = tokio::time::Instant::now();
    timeout(Duration::from_secs(300), client.session).await.unwrap().unwrap();
    assert_eq!(start.elapsed().as_secs(), 60);
}

#[tokio::test]
async fn shutdown_ends_the_session() {
    let client = Client::opened().await;
    client.shutdown.send_replace(true);
    client.closed().await;
}
