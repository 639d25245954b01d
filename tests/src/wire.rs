//! A client in raw frames of libvirt's protocol: for what no library would send, and for more
//! connections than processes are wanted. Numbers are those of program REMOTE.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// No answer takes longer, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);
const PROGRAM_REMOTE: u32 = 0x2000_8086;
const TYPE_REPLY: u32 = 1;

pub const CONNECT_OPEN: u32 = 1;
pub const CONNECT_CLOSE: u32 = 2;
pub const CONNECT_GET_CAPABILITIES: u32 = 7;
pub const DOMAIN_GET_XML_DESC: u32 = 14;
pub const DOMAIN_SNAPSHOT_CREATE_XML: u32 = 185;
pub const DOMAIN_SNAPSHOT_DELETE: u32 = 193;
pub const DOMAIN_UNDEFINE_FLAGS: u32 = 231;
pub const CONNECT_LIST_ALL_DOMAINS: u32 = 273;
pub const DOMAIN_LIST_ALL_SNAPSHOTS: u32 = 274;
pub const CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY: u32 = 316;
pub const DOMAIN_DEFINE_XML_FLAGS: u32 = 350;

/// The arguments of a call, one after the other.
#[derive(Debug, Clone, Default)]
pub struct Args(Vec<u8>);

impl Args {
    #[must_use]
    pub fn number(mut self, number: u32) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    #[must_use]
    pub fn text(self, text: &str) -> Self {
        let length = u32::try_from(text.len()).expect("short");
        let mut args = self.number(length);
        args.0.extend(text.bytes());
        let padded = args.0.len().next_multiple_of(4);
        args.0.resize(padded, 0);
        args
    }

    /// As a reply had it: a reference to a domain.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

/// The bytes of a call.
pub fn call(procedure: u32, serial: u32, args: &Args) -> Vec<u8> {
    let length = u32::try_from(args.0.len() + 28).expect("short");
    let mut bytes = Vec::new();
    for field in [length, PROGRAM_REMOTE, 1, procedure, 0, serial, 0] {
        bytes.extend(field.to_be_bytes());
    }
    bytes.extend(&args.0);
    bytes
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    pub socket: UnixStream,
    serial: u32,
}

impl Client {
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
        Ok(Self { socket, serial: 0 })
    }

    pub fn open(path: &Path) -> io::Result<Self> {
        let mut client = Self::connect(path)?;
        let args = Args::default().number(1).text("qemu:///system").number(0);
        client.ask(CONNECT_OPEN, &args)?;
        Ok(client)
    }

    /// Sends a call and reads until its answer; the code of an error is in its message.
    pub fn ask(&mut self, procedure: u32, args: &Args) -> io::Result<Vec<u8>> {
        self.serial += 1;
        self.socket.write_all(&call(procedure, self.serial, args))?;
        loop {
            let (kind, serial, status, payload) = self.next()?;
            if kind != TYPE_REPLY || serial != self.serial {
                continue;
            }
            if status == 0 {
                return Ok(payload);
            }
            let code = payload.first_chunk::<4>().map_or(0, |code| u32::from_be_bytes(*code));
            let words = String::from_utf8_lossy(&payload).into_owned();
            return Err(io::Error::other(format!("error {code}: {words}")));
        }
    }

    fn next(&mut self) -> io::Result<(u32, u32, u32, Vec<u8>)> {
        let mut head = [0; 28];
        self.socket.read_exact(&mut head)?;
        let mut field = head
            .chunks_exact(4)
            .map(|four| u32::from_be_bytes(four.try_into().unwrap_or_default()));
        let length = field.next().unwrap_or_default().saturating_sub(28);
        let (kind, serial, status) = (field.nth(3), field.next(), field.next());
        let mut payload = vec![0; usize::try_from(length).unwrap_or_default()];
        self.socket.read_exact(&mut payload)?;
        let known = |field: Option<u32>| field.unwrap_or_default();
        Ok((known(kind), known(serial), known(status), payload))
    }

    /// Says goodbye, and waits until the daemon has hung up.
    pub fn close(mut self) -> io::Result<()> {
        self.ask(CONNECT_CLOSE, &Args::default())?;
        self.socket.shutdown(Shutdown::Write)?;
        self.socket.read_to_end(&mut Vec::new()).map(drop)
    }
}
