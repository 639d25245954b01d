//! The server on real sockets: serving, stale sockets, inherited ones, limits.

use std::os::unix::net::UnixListener as StdUnixListener;

use tokio::sync::watch;
use virtsnap_rpc::framing::FrameReader;
use virtsnap_rpc::message::{Header, PROGRAM_REMOTE};

use super::*;
use crate::service::{Call, Reply, RpcError};

const PATIENCE: Duration = Duration::from_secs(30);

struct Echo;

impl Service for Echo {
    async fn call(&self, _: &Arc<SessionHandle>, call: Call) -> Result<Reply, RpcError> {
        Ok(Reply { payload: call.payload, ..Reply::default() })
    }
}

fn endpoint(path: &Path) -> Endpoint {
    Endpoint { path: path.to_owned(), mode: 0o640, group: None, read_only: false }
}

/// Whether AUTH_LIST is answered.
async fn answers(path: &Path) -> bool {
    let socket = UnixStream::connect(path).await.unwrap();
    let header = Header {
        program: PROGRAM_REMOTE,
        version: 1,
        procedure: 66,
        kind: 0,
        serial: 0,
        status: 0,
    };
    crate::wire::send_all(&socket, &header.frame(&[]).unwrap()).await.unwrap();
    let mut reader = FrameReader::default();
    let mut buffer = [0; 1024];
    while reader.next_frame().unwrap().is_none() {
        let received = crate::wire::receive(&socket, &mut buffer);
        match tokio::time::timeout(PATIENCE, received).await.unwrap() {
            Ok((len, fds)) if len > 0 => reader.push(&buffer[..len], fds).unwrap(),
            _ => return false,
        }
    }
    true
}

#[tokio::test]
async fn serves_until_shutdown_and_removes_its_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/sock");
    let listener = Listener::bind(&endpoint(&path)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o640);
    // Nobody else may hold the lock.
    assert_eq!(mode(&path.with_file_name("sock.lock")), 0o600);
    let sessions = Arc::new(Sessions::default());
    let (stop, shutdown) = watch::channel(false);
    let server = tokio::spawn(serve(
        vec![listener],
        Arc::new(Echo),
        Arc::clone(&sessions),
        Limits::default(),
        shutdown,
    ));
    assert!(answers(&path).await);
    let client = UnixStream::connect(&path).await.unwrap();
    tokio::time::timeout(PATIENCE, async {
        while sessions.all().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    stop.send_replace(true);
    tokio::time::timeout(PATIENCE, server).await.unwrap().unwrap();
    assert!(!path.exists());
    assert!(sessions.all().is_empty());
    drop(client);
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_served_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sock");
    drop(StdUnixListener::bind(&path).unwrap());
    assert!(path.exists(), "nobody serves it and the file is still there");
    let first = Listener::bind(&endpoint(&path)).unwrap();

    let err = Listener::bind(&endpoint(&path)).unwrap_err();
    assert!(err.to_string().contains("another daemon serves it"), "{err}");
    assert!(path.exists());

    drop(first);
    assert!(!path.exists());
    drop(Listener::bind(&endpoint(&path)).unwrap());
}

#[tokio::test]
async fn a_socket_that_another_program_serves_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sock");
    let foreign = StdUnixListener::bind(&path).unwrap();
    assert!(Listener::bind(&endpoint(&path)).is_err());
    assert!(path.exists());
    drop(foreign);
    drop(Listener::bind(&endpoint(&path)).unwrap());
}

#[tokio::test]
async fn a_file_in_the_way_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sock");
    fs::write(&path, "precious").unwrap();
    assert!(Listener::bind(&endpoint(&path)).is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn inherited_sockets_are_told_apart_by_name() {
    let directory = tempfile::tempdir().unwrap();
    for (file, unit, read_only) in [
        ("virtsnap-sock", Some("virtsnapd.socket"), false),
        ("virtsnap-sock-ro", Some("virtsnapd-ro.socket"), true),
        ("a-ro", None, true),
        ("b", None, false),
        ("c", Some("c-ro"), true),
    ] {
        let path = directory.path().join(file);
        let socket = OwnedFd::from(StdUnixListener::bind(&path).unwrap());
        let listener = Listener::inherited(socket, unit).unwrap();
        assert_eq!(listener.read_only, read_only, "{file} {unit:?}");
        drop(listener);
        assert!(path.exists(), "systemd's socket is systemd's to remove");
    }
}

#[test]
fn one_user_gets_so_many_connections_and_root_any() {
    let users = Users { known: Mutex::default(), limit: 2 };
    let first = users.enter(1000);
    let second = users.enter(1000);
    assert!(first.is_some() && second.is_some());
    assert!(users.enter(1000).is_none());
    assert!(users.enter(1001).is_some());
    drop(first);
    let third = users.enter(1000);
    assert!(third.is_some());
    let root: Vec<_> = (0..10).map(|_| users.enter(0)).collect();
    assert!(root.iter().all(Option::is_some));
    drop((second, third, root));
    assert!(users.known.lock().unwrap().is_empty());
}
