//! Calls in raw frames, whose failure is for the caller to judge: for more connections than
//! processes are wanted. Numbers are those of program REMOTE.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::raw::{Message, OK, RawClient, text};

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
    pub fn text(self, of: &str) -> Self {
        self.raw(&text(of))
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
    Message { serial, ..Message::call(procedure, &args.0) }.bytes()
}

/// One connection.
#[derive(Debug)]
pub struct Client(RawClient);

impl Client {
    pub fn connect(path: &Path) -> io::Result<Self> {
        RawClient::try_connect(path).map(Self)
    }

    pub fn open(path: &Path) -> io::Result<Self> {
        let mut client = Self::connect(path)?;
        let args = Args::default().number(1).text("qemu:///system").number(0);
        client.ask(CONNECT_OPEN, &args)?;
        Ok(client)
    }

    pub fn socket(&mut self) -> &mut UnixStream {
        &mut self.0.socket
    }

    /// Sends a call and reads until its answer; the code of an error is in its message.
    pub fn ask(&mut self, procedure: u32, args: &Args) -> io::Result<Vec<u8>> {
        let serial = self.0.try_post(&Message::call(procedure, &args.0))?;
        let answer = self.0.try_answer(serial)?;
        let answer = answer.ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))?;
        if answer.status == OK {
            return Ok(answer.payload);
        }
        let (code, _, words) = answer.refusal();
        Err(io::Error::other(format!("error {code}: {words}")))
    }

    /// Says goodbye, and waits until the daemon has hung up.
    pub fn close(mut self) -> io::Result<()> {
        self.ask(CONNECT_CLOSE, &Args::default())?;
        self.0.socket.shutdown(Shutdown::Write)?;
        self.0.socket.read_to_end(&mut Vec::new()).map(drop)
    }
}
