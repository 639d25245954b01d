//! A client that writes its messages byte by byte, right and wrong ones: libvirt's remote protocol
//! from its description alone, with nothing of ours.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub const REMOTE: u32 = 0x2000_8086;

pub const CALL: u32 = 0;
pub const REPLY: u32 = 1;
pub const STREAM: u32 = 3;
pub const CALL_WITH_FDS: u32 = 4;
pub const STREAM_HOLE: u32 = 6;

pub const OK: u32 = 0;
pub const ERROR: u32 = 1;
pub const CONTINUE: u32 = 2;

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A message without its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub program: u32,
    pub version: u32,
    pub procedure: u32,
    pub kind: u32,
    pub serial: u32,
    pub status: u32,
    pub payload: Vec<u8>,
}

impl Message {
    pub fn call(procedure: u32, payload: &[u8]) -> Self {
        let (program, version, serial) = (REMOTE, 1, 0);
        let payload = payload.to_vec();
        Self { program, version, procedure, kind: CALL, serial, status: OK, payload }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(28 + self.payload.len()).expect("a short message");
        let head = [self.program, self.version, self.procedure, self.kind, self.serial];
        let mut bytes = length.to_be_bytes().to_vec();
        head.iter().for_each(|field| bytes.extend(field.to_be_bytes()));
        bytes.extend(self.status.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// Code, domain and text of a refusal.
    #[track_caller]
    pub fn refusal(&self) -> (u32, u32, String) {
        assert_eq!(self.status, ERROR, "{self:?}");
        let word = |at: usize| {
            u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
        };
        assert_eq!(word(8), 1, "a message");
        let length = word(12) as usize;
        let text = String::from_utf8_lossy(&self.payload[16..16 + length]).into_owned();
        (word(0), word(4), text)
    }
}

/// A string as XDR has it.
pub fn text(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).expect("short").to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[derive(Debug)]
pub struct RawClient {
    pub(crate) socket: UnixStream,
    serial: u32,
}

impl RawClient {
    #[track_caller]
    pub fn connect(socket: &Path) -> Self {
        Self::try_connect(socket).expect("the daemon listens")
    }

    pub fn try_connect(socket: &Path) -> std::io::Result<Self> {
        let socket = UnixStream::connect(socket)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, serial: 0 })
    }

    /// Connected, and the hypervisor opened.
    #[track_caller]
    pub fn open(socket: &Path) -> Self {
        let mut client = Self::connect(socket);
        // Some daemons serve nobody who has not asked how to authenticate.
        assert_eq!(client.call(66, &[]).status, OK);
        assert_eq!(client.call(1, &open_arguments()).status, OK);
        client
    }

    pub fn patience(&self, patience: Duration) {
        self.socket.set_read_timeout(Some(patience)).expect("a socket");
    }

    /// What cannot be sent because the daemon has closed is not sent.
    pub fn send(&mut self, bytes: &[u8]) {
        match self.socket.write_all(bytes) {
            Ok(()) => {}
            Err(err)
                if matches!(err.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
            Err(err) => panic!("sending: {err}"),
        }
    }

    /// Sends a message under a serial of its own, which is returned.
    pub fn post(&mut self, message: &Message) -> u32 {
        let message = self.numbered(message);
        self.send(&message.bytes());
        self.serial
    }

    pub fn try_post(&mut self, message: &Message) -> std::io::Result<u32> {
        let message = self.numbered(message);
        self.socket.write_all(&message.bytes())?;
        Ok(self.serial)
    }

    fn numbered(&mut self, message: &Message) -> Message {
        self.serial += 1;
        Message { serial: self.serial, ..message.clone() }
    }

    /// A call, and its answer. Other messages that come before it are passed over.
    #[track_caller]
    pub fn ask(&mut self, message: &Message) -> Message {
        let serial = self.post(message);
        let answer = self.try_answer(serial).unwrap_or_else(|err| panic!("no answer: {err}"));
        answer.expect("the connection is open")
    }

    pub fn try_answer(&mut self, serial: u32) -> std::io::Result<Option<Message>> {
        loop {
            match self.try_receive()? {
                Some(other) if other.kind != REPLY || other.serial != serial => {}
                answer => return Ok(answer),
            }
        }
    }

    #[track_caller]
    pub fn call(&mut self, procedure: u32, payload: &[u8]) -> Message {
        self.ask(&Message::call(procedure, payload))
    }

    /// The next message; none where the daemon has closed.
    #[track_caller]
    pub fn receive(&mut self) -> Option<Message> {
        self.try_receive().unwrap_or_else(|err| panic!("no answer: {err}"))
    }

    /// The same; an error when none comes in time.
    pub fn try_receive(&mut self) -> std::io::Result<Option<Message>> {
        let mut head = [0; 28];
        match self.socket.read_exact(&mut head) {
            Ok(()) => {}
            Err(err)
                if matches!(err.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) =>
            {
                return Ok(None);
            }
            Err(err) => return Err(err),
        }
        let mut words = head
            .chunks_exact(4)
            .map(|word| u32::from_be_bytes(word.try_into().expect("four bytes")));
        let mut next = || words.next().expect("seven words");
        let length = next() as usize;
        assert!((28..=4 + 33_554_432).contains(&length), "a message of {length} bytes");
        let mut payload = vec![0; length - 28];
        let [program, version, procedure, kind, serial, status] = std::array::from_fn(|_| next());
        self.socket.read_exact(&mut payload)?;
        Ok(Some(Message { program, version, procedure, kind, serial, status, payload }))
    }

    /// The daemon closes without another word.
    #[track_caller]
    pub fn is_closed(mut self) {
        assert_eq!(self.receive(), None);
    }
}

/// Arguments of CONNECT_OPEN.
pub fn open_arguments() -> Vec<u8> {
    [1_u32.to_be_bytes().as_slice(), &text("qemu:///system"), &[0; 4]].concat()
}
