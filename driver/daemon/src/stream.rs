//! Streams: bytes that flow beside a call, under its serial.
//!
//! Data has no acknowledgement and no window: the socket is the flow control. So each direction
//! is bounded here. Towards the client a stream has at most two chunks waiting to be written;
//! from the client a few packets wait for the sink, and then the session reads no further.
//!
//! The end is a handshake. Our end of data is an empty packet, and the stream stays open; the
//! client's FINISH or ABORT ends it and is confirmed by an empty packet with status OK. Packets
//! for a stream that is gone are ignored, because the client may have sent them before it knew.
//! Holes are refused with an error on the stream: no call here takes a sparse stream.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use virtsnap_rpc::framing::Frame;
use virtsnap_rpc::message::{Header, MessageType, STREAM_CHUNK, Status};
use virtsnap_rpc::xdr::Xdr;

use crate::service::{ERR_INTERNAL, ERR_OPERATION_FAILED, FROM_STREAMS, RpcError};
use crate::session::SessionHandle;

/// Streams one client may have open.
pub(crate) const STREAMS_MAX: usize = 64;
/// Chunks of one stream that wait to be written to the client.
const OUTGOING_CHUNKS: usize = 2;
/// Packets of one stream that wait for its sink.
const INCOMING_PACKETS: usize = 4;
/// How long a sink may take no data before its stream breaks.
const SINK_DEADLINE: Duration = Duration::from_secs(30);

pub(crate) type Source = Box<dyn AsyncRead + Send + Unpin>;
pub(crate) type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// What a call hands over to be streamed: where the client's data comes from and goes to.
#[derive(Default)]
pub(crate) struct ServerStream {
    pub(crate) source: Option<Source>,
    pub(crate) sink: Option<Sink>,
}

impl ServerStream {
    /// Server to client, as for a screenshot.
    pub(crate) fn download(source: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self { source: Some(Box::new(source)), sink: None }
    }

    /// Both ways, as for a console.
    pub(crate) fn duplex(
        source: impl AsyncRead + Send + Unpin + 'static,
        sink: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self { source: Some(Box::new(source)), sink: Some(Box::new(sink)) }
    }
}

impl fmt::Debug for ServerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerStream")
            .field("source", &self.source.is_some())
            .field("sink", &self.sink.is_some())
            .finish()
    }
}

enum Input {
    Data(Vec<u8>),
    Finish,
}

/// A packet that found its stream's queue full. The session reads on once it is delivered.
pub(crate) struct Stalled {
    inbox: mpsc::Sender<Input>,
    input: Option<Input>,
}

impl Stalled {
    /// May be cancelled: the packet stays here until there is room for it.
    pub(crate) async fn deliver(&mut self) {
        if let Ok(permit) = self.inbox.reserve().await
            && let Some(input) = self.input.take()
        {
            permit.send(input);
        }
    }
}

struct Open {
    inbox: mpsc::Sender<Input>,
    task: AbortHandle,
}

/// The open streams of one client, by serial.
#[derive(Default)]
pub(crate) struct Streams {
    open: HashMap<u32, Open>,
    /// Each ends with the packet that tells the client so.
    tasks: JoinSet<()>,
    headers: HashMap<Id, Header>,
    /// Streams being aborted, and what the client is told when they are gone.
    ending: HashMap<Id, Result<(), RpcError>>,
}

impl Streams {
    pub(crate) fn len(&self) -> usize {
        self.headers.len()
    }

    /// Starts the stream of the call with this header.
    pub(crate) fn start(
        &mut self,
        call: &Header,
        stream: ServerStream,
        session: Arc<SessionHandle>,
    ) {
        let header = call.answer(MessageType::Stream, Status::Ok);
        let (sender, inbox) = mpsc::channel(INCOMING_PACKETS);
        let task = self.tasks.spawn(pump(header, stream, inbox, session));
        self.headers.insert(task.id(), header);
        self.open.insert(header.serial, Open { inbox: sender, task });
    }

    /// A packet from the client.
    pub(crate) fn packet(&mut self, frame: Frame) -> Option<Stalled> {
        let serial = frame.header.serial;
        let open = self.open.get(&serial)?;
        let input = match (frame.header.kind(), frame.header.status()) {
            (Ok(MessageType::Stream), Ok(Status::Continue)) if frame.payload.is_empty() => {
                return None;
            }
            (Ok(MessageType::Stream), Ok(Status::Continue)) => Input::Data(frame.payload),
            (Ok(MessageType::Stream), Ok(Status::Ok)) => Input::Finish,
            (Ok(MessageType::Stream), Ok(Status::Error)) => {
                self.abort(serial, Ok(()));
                return None;
            }
            (Ok(MessageType::StreamHole), _) => {
                self.abort(serial, Err(broken("this stream takes no holes")));
                return None;
            }
            _ => {
                self.abort(serial, Err(broken("unexpected message on a stream")));
                return None;
            }
        };
        match open.inbox.try_send(input) {
            // A closed inbox is a stream that has ended already.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => None,
            Err(mpsc::error::TrySendError::Full(input)) => {
                Some(Stalled { inbox: open.inbox.clone(), input: Some(input) })
            }
        }
    }

    fn abort(&mut self, serial: u32, outcome: Result<(), RpcError>) {
        if let Some(open) = self.open.remove(&serial) {
            self.ending.insert(open.task.id(), outcome);
            open.task.abort();
        }
    }

    /// The next stream that ended. Pends while there is none.
    pub(crate) async fn ended(&mut self) -> Result<(Id, ()), JoinError> {
        match self.tasks.join_next_with_id().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }

    /// Forgets a stream that ended, and tells the client if its task could not.
    pub(crate) fn forget(&mut self, ended: Result<(Id, ()), JoinError>, session: &SessionHandle) {
        let (id, finished) = match ended {
            Ok((id, ())) => (id, true),
            Err(err) => (err.id(), false),
        };
        let outcome = self.ending.remove(&id);
        let Some(header) = self.headers.remove(&id) else { return };
        if self.open.get(&header.serial).is_some_and(|open| open.task.id() == id) {
            self.open.remove(&header.serial);
        }
        if !finished {
            end(&header, outcome.unwrap_or_else(|| Err(broken("the stream failed"))), session);
        }
    }
}

fn broken(message: &str) -> RpcError {
    RpcError::new(ERR_INTERNAL, FROM_STREAMS, message)
}

/// The packet that ends a stream.
fn end(header: &Header, outcome: Result<(), RpcError>, session: &SessionHandle) {
    let frame = match outcome {
        Ok(()) => header.answer(MessageType::Stream, Status::Ok).frame(&[]),
        Err(err) => err
            .into_wire()
            .to_bytes()
            .and_then(|payload| header.answer(MessageType::Stream, Status::Error).frame(&payload)),
    };
    match frame {
        Ok(bytes) => session.outbox().reply(bytes, Vec::new()),
        Err(err) => tracing::error!("the end of a stream cannot be encoded: {err}"),
    }
}

/// Moves the data of one stream until it ends, and tells the client.
async fn pump(
    header: Header,
    stream: ServerStream,
    inbox: mpsc::Receiver<Input>,
    session: Arc<SessionHandle>,
) {
    let result = tokio::select! {
        finished = drain(inbox, stream.sink) => finished,
        Err(err) = feed(&header, stream.source, &session) => Err(err),
    };
    let outcome = result.map_err(|err| {
        let message = format!("the stream failed: {err}");
        RpcError::new(ERR_OPERATION_FAILED, FROM_STREAMS, message)
    });
    end(&header, outcome, &session);
}

/// Client to sink, until the client finishes.
async fn drain(mut inbox: mpsc::Receiver<Input>, mut sink: Option<Sink>) -> io::Result<()> {
    while let Some(Input::Data(data)) = inbox.recv().await {
        let sink = sink.as_mut().ok_or_else(|| io::Error::other("it takes no data"))?;
        let written = async {
            sink.write_all(&data).await?;
            sink.flush().await
        };
        tokio::time::timeout(SINK_DEADLINE, written).await.map_err(|_| {
            io::Error::other(format!("no data taken for {} seconds", SINK_DEADLINE.as_secs()))
        })??;
    }
    match sink {
        Some(mut sink) => tokio::time::timeout(SINK_DEADLINE, sink.shutdown()).await?,
        None => Ok(()),
    }
}

/// Source to client. After the end of data only the client ends the stream, so this goes on
/// waiting.
async fn feed(
    header: &Header,
    source: Option<Source>,
    session: &SessionHandle,
) -> io::Result<std::convert::Infallible> {
    let header = header.answer(MessageType::Stream, Status::Continue);
    let permits = Arc::new(Semaphore::new(OUTGOING_CHUNKS));
    if let Some(mut source) = source {
        let mut buffer = vec![0; STREAM_CHUNK];
        loop {
            let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
            let len = source.read(&mut buffer).await?;
            let data = buffer.get(..len).unwrap_or_default();
            let bytes = header.frame(data).map_err(io::Error::other)?;
            session.outbox().stream(bytes, permit);
            if len == 0 {
                break;
            }
        }
    }
    std::future::pending().await
}
