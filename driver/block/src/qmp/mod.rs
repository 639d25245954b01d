//! The monitor connection: QMP over a unix socket.
//!
//! Our own client, because a typed one drops the connection at the first event or enum value that
//! is newer than its schema. A reader task matches replies to commands by id, a writer task keeps
//! a command whole when the caller of [`Qmp::execute`] goes away.
//!
//! Invariants: the listener sees every event, in order, before the reply to any later command is
//! delivered; every command ends, by its reply, its deadline or the end of the connection; after
//! the end nothing waits.

mod message;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use virtsnap_engine::error::{Condition, Error};

pub use message::Message;
pub use message::QmpEvent;

/// A longer line ends the connection. The largest known answer, `query-qmp-schema`, takes 0.3 MiB.
pub const MAX_LINE: usize = 16 << 20;

/// How long a command may take unless the caller says otherwise.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

const GREETING_DEADLINE: Duration = Duration::from_secs(30);
const BACKLOG: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QmpError {
    /// QEMU answered: it did not do it.
    #[error("QEMU refused '{command}': {desc}")]
    Refused { command: String, class: String, desc: String },
    /// The connection ended; whether QEMU acted is not known.
    #[error("the connection to QEMU's monitor was lost")]
    Closed,
    /// No answer in time; QEMU may still act.
    #[error("QEMU did not answer '{command}' in time")]
    Timeout { command: String },
    /// What came is not QMP. The connection has ended.
    #[error("QEMU's monitor does not speak QMP: {0}")]
    Protocol(String),
}

impl QmpError {
    /// The command may have had its effect all the same.
    pub fn in_doubt(&self) -> bool {
        !matches!(self, QmpError::Refused { .. })
    }
}

impl From<QmpError> for Error {
    fn from(err: QmpError) -> Self {
        let condition = match err {
            QmpError::Timeout { .. } => Condition::Timeout,
            QmpError::Refused { .. } | QmpError::Closed | QmpError::Protocol(_) => {
                Condition::Internal
            }
        };
        Error::new(condition, err.to_string())
    }
}

/// Is told of every event, in order. Must not block.
pub type Listener = Box<dyn Fn(&QmpEvent) + Send + Sync>;

/// A connection that has been greeted and accepts commands.
pub struct Qmp {
    outgoing: mpsc::UnboundedSender<Outgoing>,
    waiting: Arc<Mutex<Waiting>>,
    next_id: AtomicU64,
    events: broadcast::Sender<QmpEvent>,
    reader: JoinHandle<()>,
    at_end: watch::Receiver<bool>,
}

impl fmt::Debug for Qmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qmp").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

type Outcome = Result<Value, QmpError>;

struct Outgoing {
    line: Vec<u8>,
    fd: Option<OwnedFd>,
}

#[derive(Default)]
struct Waiting {
    commands: HashMap<u64, (String, oneshot::Sender<Outcome>)>,
    /// Why the connection ended, once it has.
    ended: Option<QmpError>,
}

impl Qmp {
    pub async fn connect(path: &Path) -> Result<Self, QmpError> {
        Self::connect_with(path, Box::new(|_| {})).await
    }

    /// Connects, waits for the greeting and leaves the capabilities mode.
    pub async fn connect_with(path: &Path, listener: Listener) -> Result<Self, QmpError> {
        Self::connect_within(path, listener, GREETING_DEADLINE).await
    }

    /// The same, of a QEMU that may be too busy to greet for that long.
    pub async fn connect_within(
        path: &Path,
        listener: Listener,
        deadline: Duration,
    ) -> Result<Self, QmpError> {
        let greet = async {
            let stream = UnixStream::connect(path).await.map_err(|_| QmpError::Closed)?;
            Self::negotiate(stream, listener, deadline).await
        };
        timeout(deadline, greet)
            .await
            .unwrap_or_else(|_| Err(QmpError::Timeout { command: "qmp_capabilities".to_owned() }))
    }

    async fn negotiate(
        stream: UnixStream,
        listener: Listener,
        deadline: Duration,
    ) -> Result<Self, QmpError> {
        let (read, write) = stream.into_split();
        let mut read = BufReader::new(read);
        let mut line = Vec::new();
        if !read_line(&mut read, &mut line).await? {
            return Err(QmpError::Closed);
        }
        if Message::parse(&line) != Some(Message::Greeting) {
            return Err(QmpError::Protocol("no greeting came".to_owned()));
        }
        let (outgoing, queue) = mpsc::unbounded_channel();
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let (events, _) = broadcast::channel(BACKLOG);
        tokio::spawn(write_all(write, queue));
        let (end, at_end) = watch::channel(false);
        let waiting_too = Arc::clone(&waiting);
        let reader = Reader { read, waiting: waiting_too, events: events.clone(), listener, end };
        let reader = tokio::spawn(reader.run());
        let qmp = Self { outgoing, waiting, next_id: AtomicU64::new(1), events, reader, at_end };
        qmp.execute_within("qmp_capabilities", Value::Null, deadline).await?;
        Ok(qmp)
    }

    /// Runs one command; null stands for no arguments.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.submit(command, arguments, None, COMMAND_DEADLINE).await
    }

    pub async fn execute_within(
        &self,
        command: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        self.submit(command, arguments, None, deadline).await
    }

    /// Runs a command that takes a descriptor with it (`getfd`, `add-fd`).
    pub async fn execute_with_fd(
        &self,
        command: &str,
        arguments: Value,
        fd: OwnedFd,
    ) -> Result<Value, QmpError> {
        self.submit(command, arguments, Some(fd), COMMAND_DEADLINE).await
    }

    /// A human monitor command. Errors come back as text with success: the caller must look.
    pub async fn human(&self, command_line: &str) -> Result<String, QmpError> {
        let arguments = json!({ "command-line": command_line });
        let answer = self.execute("human-monitor-command", arguments).await?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// A command as a client wrote it, and the monitor's own answer, a refusal too.
    pub async fn relay(&self, command: &str) -> Result<String, Error> {
        let invalid = |what| Error::new(Condition::InvalidArgument, what);
        let request: Value = serde_json::from_str(command)
            .map_err(|err| invalid("the monitor command is not JSON").caused_by(err))?;
        let name = request.get("execute").and_then(Value::as_str);
        let name = name.ok_or_else(|| invalid("the monitor command has no \"execute\""))?;
        let arguments = request.get("arguments").cloned().unwrap_or(Value::Null);
        let mut answer = match self.execute(name, arguments).await {
            Ok(value) => json!({ "return": value }),
            Err(QmpError::Refused { class, desc, .. }) => {
                json!({ "error": { "class": class, "desc": desc } })
            }
            Err(err) => return Err(err.into()),
        };
        if let Some(id) = request.get("id") {
            answer["id"] = id.clone();
        }
        Ok(answer.to_string())
    }

    /// All events from now on. A receiver that falls behind by more than the backlog is told so.
    pub fn events(&self) -> broadcast::Receiver<QmpEvent> {
        self.events.subscribe()
    }

    pub fn is_closed(&self) -> bool {
        lock(&self.waiting).ended.is_some()
    }

    /// Returns when the connection has ended and the listener has seen all that came.
    pub async fn closed(&self) {
        self.at_end.clone().wait_for(|gone| *gone).await.ok();
    }

    async fn submit(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<OwnedFd>,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut request = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let mut line = request.to_string().into_bytes();
        line.push(b'\n');
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = lock(&self.waiting);
            if let Some(err) = &waiting.ended {
                return Err(err.clone());
            }
            waiting.commands.insert(id, (command.to_owned(), sender));
        }
        let _forget = Forget { waiting: &self.waiting, id };
        tracing::trace!(command, id, "to the monitor");
        self.outgoing.send(Outgoing { line, fd }).map_err(|_| QmpError::Closed)?;
        match timeout(deadline, receiver).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(QmpError::Closed),
            Err(_) => Err(QmpError::Timeout { command: command.to_owned() }),
        }
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Takes a command off the list when its caller goes away or gives up.
struct Forget<'a> {
    waiting: &'a Mutex<Waiting>,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.waiting).commands.remove(&self.id);
    }
}

struct Reader {
    read: BufReader<OwnedReadHalf>,
    waiting: Arc<Mutex<Waiting>>,
    events: broadcast::Sender<QmpEvent>,
    listener: Listener,
    end: watch::Sender<bool>,
}

impl Reader {
    async fn run(mut self) {
        let why = self.follow().await;
        let mut waiting = lock(&self.waiting);
        for (_, (_, sender)) in waiting.commands.drain() {
            let _ = sender.send(Err(why.clone()));
        }
        waiting.ended = Some(why);
        self.end.send_replace(true);
    }

    /// Until the connection ends; why it did.
    async fn follow(&mut self) -> QmpError {
        let mut line = Vec::new();
        loop {
            match read_line(&mut self.read, &mut line).await {
                Ok(true) => {}
                Ok(false) => return QmpError::Closed,
                Err(err) => return err,
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match Message::parse(&line) {
                Some(Message::Event(event)) => {
                    tracing::debug!(event = event.name, data = %event.data, "from the monitor");
                    (self.listener)(&event);
                    let _ = self.events.send(event);
                }
                Some(Message::Reply { id, outcome }) => self.deliver(id, outcome),
                Some(Message::Greeting | Message::Unknown) => {}
                None => return QmpError::Protocol("a line is no JSON object".to_owned()),
            }
        }
    }

    fn deliver(&self, id: Option<u64>, outcome: Result<Value, message::Refusal>) {
        let command = id.and_then(|id| lock(&self.waiting).commands.remove(&id));
        let Some((command, sender)) = command else {
            tracing::debug!(?id, ?outcome, "a reply that nobody waits for");
            return;
        };
        let outcome = outcome.map_err(|refusal| QmpError::Refused {
            command,
            class: refusal.class,
            desc: refusal.desc,
        });
        let _ = sender.send(outcome);
    }
}

/// One line without its end; false at the end of the stream.
async fn read_line(
    read: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
) -> Result<bool, QmpError> {
    line.clear();
    loop {
        let part = read.fill_buf().await.map_err(|_| QmpError::Closed)?;
        if part.is_empty() {
            return Ok(false);
        }
        let newline = part.iter().position(|&byte| byte == b'\n');
        let text = part.split(|&byte| byte == b'\n').next().unwrap_or_default();
        if line.len() + text.len() > MAX_LINE {
            return Err(QmpError::Protocol(format!("a line is longer than {MAX_LINE} bytes")));
        }
        line.extend_from_slice(text);
        let taken = newline.map_or(part.len(), |at| at + 1);
        read.consume(taken);
        if newline.is_some() {
            return Ok(true);
        }
    }
}

/// Until the last sender is gone or the socket fails; the reader notices the latter too.
async fn write_all(write: OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<Outgoing>) {
    while let Some(mut message) = queue.recv().await {
        if let Err(err) = write_one(write.as_ref(), &mut message).await {
            tracing::debug!(%err, "cannot write to the monitor");
            return;
        }
    }
}

async fn write_one(stream: &UnixStream, message: &mut Outgoing) -> io::Result<()> {
    let mut rest = message.line.as_slice();
    while !rest.is_empty() {
        let written =
            stream.async_io(Interest::WRITABLE, || send(stream, rest, message.fd.as_ref())).await?;
        message.fd = None;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// The descriptor goes with the first byte.
fn send(stream: &UnixStream, bytes: &[u8], fd: Option<&OwnedFd>) -> io::Result<usize> {
    let fds = fd.map(AsFd::as_fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.as_slice().is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds.as_slice()));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
