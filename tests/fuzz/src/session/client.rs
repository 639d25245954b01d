//! A client: it says what the script says, and holds what it hears to the protocol.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use virtsnap_engine::inspect::Inspect;
use virtsnap_rpc::framing::{Frame, FrameReader};
use virtsnap_rpc::message::{
    Header, MessageType, PROGRAM_KEEPALIVE, PROGRAM_REMOTE, Status, VERSION, WireError,
};
use virtsnap_rpc::procedure::Procedure;
use virtsnap_rpc::remote::{Part, recode};
use virtsnap_rpc::xdr::Xdr;
use virtsnapd::fuzzing::Bench;

/// Of the clock that jumps.
const PATIENCE: Duration = Duration::from_secs(3600);
/// More than the socket takes by itself is not waited for for ever: the daemon may have stopped
/// to read, which is no fault.
const SENDING: Duration = Duration::from_secs(120);

pub(super) struct Client {
    /// None: we hung up.
    writing: Option<OwnedWriteHalf>,
    heard: mpsc::UnboundedReceiver<Frame>,
    serving: JoinHandle<()>,
    reading: JoinHandle<()>,
    serial: u32,
    /// Procedure by serial, of calls without an answer.
    pending: BTreeMap<u32, Header>,
    /// All that were answered: a stream's packets have the serial of its call.
    answered: BTreeMap<u32, Header>,
    /// Bytes went that need be no message: what comes back may be the answer to them.
    garbled: bool,
    gone: bool,
}

impl Client {
    /// Comes, and says nothing yet.
    pub(super) fn connect<H: Inspect>(bench: &Bench<H>, read_only: bool) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let serving = tokio::spawn(bench.serve(theirs, read_only));
        let (mut socket, writing) = ours.into_split();
        let (tell, heard) = mpsc::unbounded_channel();
        let reading = tokio::spawn(async move {
            let mut reader = FrameReader::default();
            let mut buffer = vec![0; 64 << 10];
            while let Ok(length @ 1..) = socket.read(&mut buffer).await {
                reader.push(&buffer[..length], []).expect("no descriptors");
                while let Some(frame) = reader.next_frame().expect("the daemon's frames") {
                    let _ = tell.send(frame);
                }
            }
        });
        Self {
            writing: Some(writing),
            heard,
            serving,
            reading,
            serial: 0,
            pending: BTreeMap::new(),
            answered: BTreeMap::new(),
            garbled: false,
            gone: false,
        }
    }

    pub(super) async fn open(&mut self) -> bool {
        let open = super::script::encode("1 \"qemu:///system\" 0");
        self.remote(Procedure::CONNECT_OPEN, &open).await
    }

    /// The daemon hung up.
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Bytes went that need be no message.
    pub(super) fn is_garbled(&self) -> bool {
        self.garbled
    }

    pub(super) async fn remote(&mut self, procedure: Procedure, payload: &[u8]) -> bool {
        self.call(PROGRAM_REMOTE, procedure as u32, payload, true).await
    }

    /// Whether it was done, when its answer was waited for.
    pub(super) async fn call(
        &mut self,
        program: u32,
        procedure: u32,
        payload: &[u8],
        waits: bool,
    ) -> bool {
        self.serial += 1;
        let header = Header {
            program,
            version: VERSION,
            procedure,
            kind: MessageType::Call as u32,
            serial: self.serial,
            status: Status::Ok as u32,
        };
        let Ok(frame) = header.frame(payload) else { return false };
        self.pending.insert(self.serial, header);
        self.raw_bytes(&frame).await;
        if !waits {
            return false;
        }
        let mine = self.serial;
        while self.pending.contains_key(&mine) && !self.gone {
            if self.listen().await == Some((mine, Status::Ok)) {
                return true;
            }
        }
        false
    }

    pub(super) async fn raw(&mut self, bytes: &[u8]) {
        self.garbled = true;
        self.raw_bytes(bytes).await;
    }

    async fn raw_bytes(&mut self, bytes: &[u8]) {
        let Some(writing) = &mut self.writing else { return };
        // A daemon that hung up is noticed when there is nothing more to be heard.
        let sent = tokio::time::timeout(SENDING, writing.write_all(bytes)).await;
        // What was sent in part only cannot be followed by another message.
        if sent.is_err() {
            self.writing = None;
        }
    }

    /// The next packet of the last call's stream; none: there are no more.
    pub(super) async fn stream(&mut self, data: Option<&[u8]>) {
        let status = if data.is_some() { Status::Continue } else { Status::Ok };
        self.packet(MessageType::Stream, status, data.unwrap_or_default()).await;
    }

    pub(super) async fn abort(&mut self) {
        self.packet(MessageType::Stream, Status::Error, &[]).await;
    }

    pub(super) async fn hole(&mut self) {
        self.packet(MessageType::StreamHole, Status::Continue, &[0; 12]).await;
    }

    async fn packet(&mut self, kind: MessageType, status: Status, payload: &[u8]) {
        let Some(&last) = self.answered.get(&self.serial) else { return };
        let header = Header { kind: kind as u32, status: status as u32, ..last };
        if let Ok(frame) = header.frame(payload) {
            self.raw_bytes(&frame).await;
        }
    }

    /// Every call has its answer, unless what was sent besides may have kept the daemon from
    /// seeing it.
    pub(super) async fn settle(&mut self) {
        while !self.pending.is_empty() && !self.gone && !self.garbled {
            self.listen().await;
        }
    }

    /// Hangs up; returns when the daemon has noticed.
    pub(super) async fn leave(mut self) {
        self.settle().await;
        self.writing = None;
        while !self.gone {
            self.listen().await;
        }
        self.reading.await.expect("all that was sent could be read");
        self.serving.await.expect("the session ends");
    }

    /// Serial and status of the answer that comes next; none: it was something else, or the end.
    async fn listen(&mut self) -> Option<(u32, Status)> {
        let heard = tokio::time::timeout(PATIENCE, self.heard.recv()).await;
        let Ok(heard) = heard else {
            // What was sent besides a message is waited for to go on.
            assert!(self.garbled || self.writing.is_none(), "no answer to {:?}", self.pending);
            self.gone = true;
            return None;
        };
        let Some(frame) = heard else {
            self.gone = true;
            return None;
        };
        assert!(frame.fds.is_empty());
        let Header { program, procedure, serial, .. } = frame.header;
        let status = frame.header.status().expect("a status");
        match frame.header.kind().expect("a type") {
            MessageType::Message if program == PROGRAM_KEEPALIVE => None,
            MessageType::Message => {
                read(program, procedure, Part::Event, &frame.payload);
                None
            }
            MessageType::Reply => self.answer(&frame, serial, status),
            MessageType::Stream | MessageType::StreamHole => {
                let known = self.answered.contains_key(&serial) || self.garbled;
                assert!(known, "a packet of no stream: {:?}", frame.header);
                if status == Status::Error {
                    WireError::from_bytes(&frame.payload).expect("an error");
                }
                None
            }
            other => panic!("the daemon sends {other:?}"),
        }
    }

    fn answer(&mut self, frame: &Frame, serial: u32, status: Status) -> Option<(u32, Status)> {
        let Header { program, procedure, .. } = frame.header;
        let is_asked = |asked: &&Header| (asked.program, asked.procedure) == (program, procedure);
        let asked = self.pending.get(&serial).filter(is_asked).copied();
        // Bytes may have been a call, and have taken a serial that was to be another's.
        assert!(asked.is_some() || self.garbled, "an answer to nothing: {:?}", frame.header);
        if asked.is_some() {
            self.pending.remove(&serial);
        }
        match status {
            Status::Ok => read(program, procedure, Part::Result, &frame.payload),
            Status::Error => {
                let error = WireError::from_bytes(&frame.payload).expect("an error");
                let message = error.message.expect("an error has its words");
                assert!(error.code > 0, "{message}");
                let broke = message.contains("failed inside the daemon");
                assert!(!broke, "{procedure}: {message}");
            }
            Status::Continue => panic!("an answer that goes on"),
        }
        if let Some(asked) = asked.filter(|_| status == Status::Ok) {
            self.answered.insert(serial, asked);
        }
        Some((serial, status))
    }
}

/// What is sent can be read, by the table of all procedures.
fn read(program: u32, procedure: u32, part: Part, payload: &[u8]) {
    match recode(program, procedure, part, payload) {
        Some(again) => assert_eq!(again.as_deref(), Ok(payload), "{part:?} of {procedure}"),
        None => panic!("{part:?} of {procedure}, which is in no table"),
    }
}
