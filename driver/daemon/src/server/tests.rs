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
    Endpoint {
        path: path.to_owned(),
        mode: 0o640,
        group: None,
        read_only: false,
        own_user_only: true,
    }
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
        let listener = Listener::inherited(socket, unit, true).unwrap();
        assert_eq!(listener.read_only, read_only, "{file} {unit:?}");
        drop(listener);
        assert!(path.exists(), "systemd's socket is systemd's to remove");
    }
}

#[tokio::test]
async fn a_writable_socket_that_is_open_to_all_is_not_served() {
    let directory = tempfile::tempdir().unwrap();
    let inherit = |file: &str, mode: u32| {
        let path = directory.path().join(file);
        let socket = OwnedFd::from(StdUnixListener::bind(&path).unwrap());
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        Listener::inherited(socket, None, false)
    };
    let refused = inherit("virtsnap-sock", 0o666).unwrap_err();
    assert!(refused.to_string().contains("SocketMode"), "{refused}");
    assert!(!inherit("a-sock", 0o660).unwrap().own_user_only);
    assert!(inherit("virtsnap-sock-ro", 0o666).unwrap().read_only);
}

#[tokio::test]
async fn a_socket_without_a_file_is_for_our_own_user() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("virtsnap-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
    let socket = OwnedFd::from(StdUnixListener::bind_addr(&address).unwrap());
    assert!(Listener::inherited(socket, Some("virtsnapd.socket"), false).unwrap().own_user_only);
}

#[test]
fn a_users_own_daemon_is_for_that_user_and_root() {
    let peer = |uid| Peer { pid: 1, uid, gid: 0 };
    assert!(may_enter(peer(1000), 1000) && may_enter(peer(0), 1000));
    assert!(!may_enter(peer(1001), 1000));
}

fn users(clients: usize, clients_per_user: usize) -> Arc<Users> {
    let limits = Limits { clients, clients_per_user };
    Arc::new(Users { known: Mutex::default(), limits })
}

#[test]
fn all_users_together_leave_places_to_root() {
    let users = users(20, 10);
    let taken: Vec<_> = (0..30).filter_map(|n| users.enter(1000 + n % 3)).collect();
    assert_eq!(taken.len(), 18);
    assert!(users.enter(0).is_some());
    assert!(users.enter(2000).is_none());
}

#[test]
fn one_user_gets_so_many_connections_and_root_any() {
    let users = users(500, 2);
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

#[tokio::test]
async fn more_clients_than_there_may_be_wait_for_one_to_leave() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sock");
    let listener = Listener::bind(&endpoint(&path)).unwrap();
    let sessions = Arc::new(Sessions::default());
    let (_stop, shutdown) = watch::channel(false);
    let limits = Limits { clients: 2, ..Limits::default() };
    tokio::spawn(serve(vec![listener], Arc::new(Echo), Arc::clone(&sessions), limits, shutdown));
    let first = UnixStream::connect(&path).await.unwrap();
    let _second = UnixStream::connect(&path).await.unwrap();
    tokio::time::timeout(PATIENCE, async {
        while sessions.all().len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let third = answers(&path);
    tokio::pin!(third);
    for _ in 0..1000 {
        assert!(futures_are_pending(third.as_mut()).await, "a third client was served");
        tokio::task::yield_now().await;
    }
    assert_eq!(sessions.all().len(), 2);
    drop(first);
    assert!(third.await);
}

/// Polls once.
async fn futures_are_pending(future: std::pin::Pin<&mut impl Future<Output = bool>>) -> bool {
    tokio::select! {
        biased;
        _ = future => false,
        () = std::future::ready(()) => true,
    }
}

/// Its call waits until it is told to go on.
#[derive(Default)]
struct Waiting {
    begun: tokio::sync::Notify,
    go: tokio::sync::Notify,
}

impl Service for Waiting {
    async fn call(&self, _: &Arc<SessionHandle>, _: Call) -> Result<Reply, RpcError> {
        self.begun.notify_one();
        self.go.notified().await;
        Ok(Reply::default())
    }
}

#[tokio::test]
async fn a_place_is_taken_until_the_last_call_has_ended() {
    let users = users(500, 1);
    let place = users.enter(1000).unwrap();
    let (client, server) = UnixStream::pair().unwrap();
    let handle = SessionHandle::new(Peer { pid: 1, uid: 1000, gid: 0 }, false).with_place(place);
    let service = Arc::new(Waiting::default());
    let (_stop, down) = watch::channel(false);
    let session = session::run(server, Arc::new(handle), Arc::clone(&service), down);
    let session = tokio::spawn(session);
    let header = Header {
        program: PROGRAM_REMOTE,
        version: 1,
        procedure: 66,
        kind: 0,
        serial: 0,
        status: 0,
    };
    crate::wire::send_all(&client, &header.frame(&[]).unwrap()).await.unwrap();
    service.begun.notified().await;
    drop(client);
    tokio::time::timeout(PATIENCE, session).await.unwrap().unwrap();
    assert!(users.enter(1000).is_none(), "who hangs up and comes again would have many calls");
    service.go.notify_one();
    tokio::time::timeout(PATIENCE, async {
        while users.enter(1000).is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}
