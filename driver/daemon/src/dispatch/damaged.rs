//! Calls as unmodified clients sent them (`fixtures/rpc`), damaged, over a session: each gets one
//! answer, nothing panics, and the connection goes on.
//!
//! `DAMAGED_CALLS=100` damages each call so often.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use virtsnap_rpc::framing::FrameReader;
use virtsnap_rpc::message::{Header, MessageType, Status, WireError};
use virtsnap_rpc::procedure::Procedure;
use virtsnap_rpc::remote::{ConnectOpenArgs, DomainDefineXmlArgs, DomainDefineXmlRet};
use virtsnap_rpc::xdr::Xdr;

use super::Daemon;
use crate::fake;
use crate::handle::{Peer, SessionHandle};

const VM: &str = "<domain type='qemu'><name>vm</name><memory>65536</memory><vcpu>2</vcpu>\
    <os><type>hvm</type></os><devices><disk type='file' device='disk'>\
    <source file='/images/vm.qcow2'/><target dev='vda'/></disk></devices></domain>";

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Client {
    socket: UnixStream,
    reader: FrameReader,
    serial: u32,
}

impl Client {
    /// Status and payload of the one answer.
    async fn call(&mut self, program: u32, procedure: u32, payload: &[u8]) -> (Status, Vec<u8>) {
        self.serial += 1;
        let serial = self.serial;
        let header = Header {
            program,
            version: 1,
            procedure,
            kind: MessageType::Call as u32,
            serial,
            status: Status::Ok as u32,
        };
        let frame = header.frame(payload).unwrap();
        crate::wire::send_all(&self.socket, &frame).await.unwrap();
        let mut buffer = vec![0; 65536];
        loop {
            while let Some(frame) = self.reader.next_frame().unwrap() {
                // Keepalive, and events of domains.
                if frame.header.kind().unwrap() == MessageType::Message {
                    continue;
                }
                // An answer too many to an earlier call would have its serial.
                assert_eq!((frame.header.serial, frame.header.procedure), (serial, procedure));
                return (frame.header.status().unwrap(), frame.payload);
            }
            let received = crate::wire::receive(&self.socket, &mut buffer);
            let received = tokio::time::timeout(PATIENCE, received).await;
            let (len, fds) = received.unwrap_or_else(|_| panic!("{procedure}: no answer")).unwrap();
            assert!(len > 0, "{procedure}: the connection was closed");
            self.reader.push(&buffer[..len], fds).unwrap();
        }
    }
}

/// Program, procedure and arguments of every recorded call.
fn recorded() -> Vec<(u32, u32, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/rpc");
    let mut calls = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for hex in text.lines().filter_map(|line| line.strip_prefix("call ")) {
            let digits = (0..hex.len()).step_by(2).map(|at| &hex[at..at + 2]);
            let wire: Vec<u8> = digits.map(|hex| u8::from_str_radix(hex, 16).unwrap()).collect();
            let mut reader = FrameReader::default();
            reader.push(&wire, []).unwrap();
            let frame = reader.next_frame().unwrap().unwrap();
            calls.push((frame.header.program, frame.header.procedure, frame.payload));
        }
    }
    calls.sort();
    calls
}

/// Ends the connection, or goes to files of the host.
fn is_left_out(procedure: u32) -> bool {
    let name = Procedure::try_from(procedure).map_or("", Procedure::name);
    name == "CONNECT_CLOSE" || name.starts_with("STORAGE_VOL_")
}

/// The domain that a call is about, where it names one, becomes ours.
fn about(uuid: &[u8; 16], mut payload: Vec<u8>) -> Vec<u8> {
    let string = payload.first_chunk::<4>().map(|length| u32::from_be_bytes(*length) as usize);
    let Some(length) = string.filter(|length| (1..64).contains(length)) else { return payload };
    let at = 4 + length.next_multiple_of(4);
    if let Some(place) = payload.get_mut(at..at + 16) {
        place.copy_from_slice(uuid);
    }
    payload
}

/// The nth damage of these bytes.
fn damaged(payload: &[u8], n: u64) -> Vec<u8> {
    let mut bytes = payload.to_vec();
    let mut mixed = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^= mixed >> 29;
    let words = bytes.len() / 4;
    let Some(at) = usize::try_from(mixed >> 8).ok().and_then(|place| place.checked_rem(words))
    else {
        return vec![0xff; (n % 9) as usize];
    };
    let word: [u8; 4] = match mixed % 8 {
        0 => [0; 4],
        1 => [0xff; 4],
        2 => [0x7f, 0xff, 0xff, 0xff],
        3 => [0x80, 0, 0, 0],
        4 => [0, 0, 0, 1],
        5 => [0, 0, 0x40, 0],
        6 => (mixed as u32).to_be_bytes(),
        _ => {
            bytes.truncate(at * 4);
            return bytes;
        }
    };
    bytes[at * 4..at * 4 + 4].copy_from_slice(&word);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_call_has_one_answer_and_breaks_nothing() {
    let often = std::env::var("DAMAGED_CALLS").ok().and_then(|often| often.parse().ok());
    let directory = tempfile::tempdir().unwrap();
    let (domains, _sessions) = fake::domains_and_sessions(&directory.path().join("state"));
    let daemon = Arc::new(Daemon::new(Arc::new(domains)));
    let (socket, server) = UnixStream::pair().unwrap();
    let handle = Arc::new(SessionHandle::new(Peer { pid: 1, uid: 0, gid: 0 }, false));
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(crate::session::run(server, handle, daemon, stopped));
    let mut client = Client { socket, reader: FrameReader::default(), serial: 0 };
    let remote = virtsnap_rpc::message::PROGRAM_REMOTE;
    let open = ConnectOpenArgs { name: Some("qemu:///system".to_owned()), flags: 0 };
    let open = open.to_bytes().unwrap();
    assert_eq!(client.call(remote, Procedure::CONNECT_OPEN as u32, &open).await.0, Status::Ok);
    let define = DomainDefineXmlArgs { xml: VM.to_owned() }.to_bytes().unwrap();
    let (status, told) = client.call(remote, Procedure::DOMAIN_DEFINE_XML as u32, &define).await;
    assert_eq!(status, Status::Ok);
    let uuid = *DomainDefineXmlRet::from_bytes(&told).unwrap().dom.uuid.as_bytes();

    let (mut asked, mut done) = (0, 0);
    for (program, procedure, payload) in recorded() {
        if is_left_out(procedure) {
            continue;
        }
        let payload = about(&uuid, payload);
        for n in 0..often.unwrap_or(12_u64) {
            let payload = damaged(&payload, n);
            let (status, answer) = client.call(program, procedure, &payload).await;
            asked += 1;
            done += usize::from(status == Status::Ok);
            if status == Status::Error {
                let error = WireError::from_bytes(&answer).unwrap();
                let message = error.message.unwrap_or_default();
                let broke = message.contains("failed inside the daemon");
                assert!(!broke, "{procedure}: {message}: {payload:02x?}");
            }
        }
    }
    assert!(asked > 1000 && done > 100, "{asked} calls, {done} of them done");
}
