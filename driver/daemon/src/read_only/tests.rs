//! Every procedure over a real read-only socket: what may change anything is refused, and nothing
//! has changed. What is barred by number alone needs no valid arguments to be refused; the others
//! get those that clients really sent (`fixtures/rpc`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::watch;
use uuid::Uuid;
use virtsnap_rpc::framing::{Frame, FrameReader};
use virtsnap_rpc::message::{
    Header, MessageType, PROGRAM_QEMU, PROGRAM_REMOTE, Status, VERSION, WireError,
};
use virtsnap_rpc::procedure::{Procedure, QemuProcedure};
use virtsnap_rpc::remote::*;
use virtsnap_rpc::xdr::Xdr;

use crate::dispatch::Daemon;
use crate::fake;
use crate::server::{self, Endpoint, Limits, Listener};
use crate::service::ERR_OPERATION_DENIED;

/// The domain that the recorded calls speak of.
const VM: &str = "<domain type='qemu'><name>test</name>\
    <uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid><memory unit='KiB'>65536</memory>\
    <currentMemory unit='KiB'>65536</currentMemory><vcpu>2</vcpu><os><type>hvm</type></os>\
    <devices><graphics type='vnc' passwd='hush'/></devices></domain>";

struct Client {
    socket: UnixStream,
    reader: FrameReader,
    serial: u32,
}

impl Client {
    async fn open(path: &Path, flags: u32) -> Self {
        let socket = UnixStream::connect(path).await.unwrap();
        let mut client = Self { socket, reader: FrameReader::default(), serial: 0 };
        let args = ConnectOpenArgs { name: Some("qemu:///system".to_owned()), flags };
        client.ask(&args).await.unwrap();
        client
    }

    async fn ask<C: Call>(&mut self, args: &C) -> Result<Vec<u8>, WireError> {
        self.call(C::PROGRAM, C::PROCEDURE, &args.to_bytes().unwrap()).await
    }

    async fn call(
        &mut self,
        program: u32,
        procedure: u32,
        payload: &[u8],
    ) -> Result<Vec<u8>, WireError> {
        self.serial += 1;
        let header = Header {
            program,
            version: VERSION,
            procedure,
            kind: MessageType::Call as u32,
            serial: self.serial,
            status: 0,
        };
        crate::wire::send_all(&self.socket, &header.frame(payload).unwrap()).await.unwrap();
        loop {
            let Frame { header, payload, .. } = self.next().await;
            let is_reply = header.kind() == Ok(MessageType::Reply);
            if is_reply && header.serial == self.serial {
                return match header.status().unwrap() {
                    Status::Ok => Ok(payload),
                    _ => Err(WireError::from_bytes(&payload).unwrap()),
                };
            }
        }
    }

    async fn next(&mut self) -> Frame {
        let mut buffer = vec![0; 65536];
        loop {
            if let Some(frame) = self.reader.next_frame().unwrap() {
                return frame;
            }
            let (len, fds) = crate::wire::receive(&self.socket, &mut buffer).await.unwrap();
            assert!(len > 0, "the daemon hung up");
            self.reader.push(&buffer[..len], fds).unwrap();
        }
    }
}

struct Served {
    directory: tempfile::TempDir,
    sockets: [PathBuf; 2],
    _stop: watch::Sender<bool>,
}

/// A daemon over the hypervisor in memory, with a domain of each state, on a socket of each kind.
async fn serve() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let (domains, sessions) = fake::domains_and_sessions(&directory.path().join("state"));
    let sockets = ["sock", "sock-ro"].map(|name| directory.path().join(name));
    let listeners = sockets.iter().map(|path| {
        let read_only = path.ends_with("sock-ro");
        let (path, mode, group) = (path.clone(), 0o600, None);
        Listener::bind(&Endpoint { path, mode, group, read_only, own_user_only: true }).unwrap()
    });
    let (stop, stopped) = watch::channel(false);
    let daemon = Arc::new(Daemon::new(Arc::new(domains)));
    let listeners = listeners.collect();
    tokio::spawn(server::serve(listeners, daemon, sessions, Limits::default(), stopped));
    let mut owner = Client::open(&sockets[0], 0).await;
    let xml = VM.to_owned();
    let defined = owner.ask(&DomainDefineXmlFlagsArgs { xml, flags: 0 }).await;
    defined.unwrap();
    Served { directory, sockets, _stop: stop }
}

/// Every file of the store, and what is in it.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

/// The arguments that clients sent with this procedure, if any were recorded.
fn recorded(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/rpc");
    let text = std::fs::read_to_string(directory.join(format!("{name}.hex"))).unwrap_or_default();
    let calls = text.lines().filter_map(|line| line.strip_prefix("call "));
    let bytes = |hex: &str| -> Vec<u8> {
        let digits = (0..hex.len()).step_by(2);
        digits.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    };
    calls.map(|hex| bytes(hex.trim())[28..].to_vec()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_procedure_that_changes_anything_is_refused() {
    let served = serve().await;
    let state = served.directory.path().join("state");
    let before = contents(&state);
    assert!(!before.is_empty());
    // A client that says so on the writable socket is held to it.
    let mut clients =
        [Client::open(&served.sockets[1], 0).await, Client::open(&served.sockets[0], 1).await];
    let mut refused = 0;
    for client in &mut clients {
        let remote = Procedure::ALL.iter().map(|one| {
            (PROGRAM_REMOTE, *one as u32, one.name().to_owned(), one.barred_read_only())
        });
        let qemu = QemuProcedure::ALL.iter().map(|one| {
            let name = format!("QEMU_{}", one.name());
            (PROGRAM_QEMU, *one as u32, name, one.barred_read_only())
        });
        for (program, number, name, barred) in remote.chain(qemu) {
            if name == "CONNECT_CLOSE" {
                continue;
            }
            let mut payloads = recorded(&name);
            payloads.push(Vec::new());
            for payload in payloads {
                let outcome = client.call(program, number, &payload).await;
                let Some(function) = barred else { continue };
                let err = outcome.expect_err(&name);
                assert_eq!(err.code, ERR_OPERATION_DENIED, "{name}: {:?}", err.message);
                let message = err.message.unwrap();
                assert!(message.contains("read only") && message.contains(function), "{message}");
                refused += 1;
            }
        }
    }
    assert!(refused > 2 * 200, "only {refused}");
    assert_eq!(contents(&state), before);
    let mut owner = Client::open(&served.sockets[0], 0).await;
    let listed = owner.ask(&ConnectListAllDomainsArgs { need_results: 1, flags: 0 }).await;
    let listed = ConnectListAllDomainsRet::from_bytes(&listed.unwrap()).unwrap();
    assert_eq!(listed.domains.len(), 1);
    assert_eq!(listed.domains[0].id, -1, "nobody started it");
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_that_ask_for_secrets_are_refused() {
    let served = serve().await;
    let uuid = Uuid::parse_str("6695eb01-f6a4-8304-79aa-97f2502e193f").unwrap();
    let dom = DomainRef { name: "test".to_owned(), uuid, id: -1 };
    let snap = SnapshotRef { name: "one".to_owned(), dom: dom.clone() };
    let mut owner = Client::open(&served.sockets[0], 0).await;
    let mut client = Client::open(&served.sockets[1], 0).await;

    let xml = |flags| DomainGetXmlDescArgs { dom: dom.clone(), flags };
    let shown = |bytes: Vec<u8>| DomainGetXmlDescRet::from_bytes(&bytes).unwrap().xml;
    assert!(shown(owner.ask(&xml(1)).await.unwrap()).contains("hush"));
    assert!(shown(owner.ask(&xml(8)).await.unwrap()).contains("<name>test"));
    assert!(!shown(client.ask(&xml(0)).await.unwrap()).contains("hush"));
    assert!(!shown(client.ask(&xml(2)).await.unwrap()).contains("hush"));

    let mut denied = Vec::new();
    for flags in [1, 8, 9, 3, 0xffff_ffff] {
        denied.push(client.ask(&xml(flags)).await);
    }
    let snapshot = DomainSnapshotGetXmlDescArgs { snap, flags: 1 };
    denied.push(client.ask(&snapshot).await);
    let saved = DomainManagedSaveGetXmlDescArgs { dom: dom.clone(), flags: 1 };
    denied.push(client.ask(&saved).await);
    let image = DomainSaveImageGetXmlDescArgs { file: "/any".to_owned(), flags: 0 };
    denied.push(client.ask(&image).await);
    let in_guest = DomainGetVcpusFlagsArgs { dom: dom.clone(), flags: 8 };
    denied.push(client.ask(&in_guest).await);
    let by_agent = DomainInterfaceAddressesArgs { dom: dom.clone(), source: 1, flags: 0 };
    denied.push(client.ask(&by_agent).await);
    for outcome in denied {
        let err = outcome.expect_err("barred by its flags");
        assert_eq!(err.code, ERR_OPERATION_DENIED, "{:?}", err.message);
    }
}
