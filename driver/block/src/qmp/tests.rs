//! The monitor's client against a scripted QEMU.

use std::io::{BufRead, BufReader as StdReader, Write};
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::sync::atomic::AtomicUsize;
use std::thread;

use super::*;

const GREETING: &str =
    "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 99}}, \"capabilities\": [\"novel\"]}}\r\n";

/// A monitor that does what `play` says after the capabilities are agreed.
struct FakeMonitor {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
}

fn fake(
    greeting: &'static str,
    play: impl FnOnce(&mut StdReader<StdStream>, &mut StdStream) + Send + 'static,
) -> FakeMonitor {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("monitor.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut read = StdReader::new(stream.try_clone().unwrap());
        stream.write_all(greeting.as_bytes()).unwrap();
        let Some(hello) = request(&mut read) else { return };
        assert_eq!(hello["execute"], "qmp_capabilities");
        answer(&mut stream, &hello, json!({}));
        play(&mut read, &mut stream);
    });
    FakeMonitor { _dir: dir, path }
}

fn request(read: &mut StdReader<StdStream>) -> Option<Value> {
    let mut line = String::new();
    read.read_line(&mut line).unwrap();
    serde_json::from_str(&line).ok()
}

fn answer(stream: &mut StdStream, request: &Value, value: Value) {
    writeln!(stream, "{}\r", json!({ "return": value, "id": request["id"] })).unwrap();
}

#[tokio::test]
async fn replies_find_their_commands_in_any_order() {
    let monitor = fake(GREETING, |read, stream| {
        let first = request(read).unwrap();
        let second = request(read).unwrap();
        for request in [second, first] {
            let name = request["execute"].clone();
            answer(stream, &request, name);
        }
    });
    let qmp = Qmp::connect(&monitor.path).await.unwrap();
    let (a, b) =
        tokio::join!(qmp.execute("query-a", Value::Null), qmp.execute("query-b", json!({"x": 1})));
    assert_eq!((a.unwrap(), b.unwrap()), (json!("query-a"), json!("query-b")));
}

#[tokio::test]
async fn unknown_events_fields_and_error_classes_cost_nothing() {
    let monitor = fake(GREETING, |read, stream| {
        let first = request(read).unwrap();
        writeln!(stream, "{}", json!({ "event": "NOVEL", "data": { "x": [1] }, "extra": 1 }))
            .unwrap();
        writeln!(stream, "{}", json!({ "novel": true })).unwrap();
        writeln!(stream, "{}", json!({ "return": 5, "id": 999_999 })).unwrap();
        let error = json!({ "class": "NovelClass", "desc": "no, thank you", "more": 1 });
        writeln!(stream, "{}", json!({ "error": error, "id": first["id"] })).unwrap();
        let second = request(read).unwrap();
        answer(stream, &second, json!({ "status": "novel" }));
    });
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let listener = Box::new(move |event: &QmpEvent| log.lock().unwrap().push(event.name.clone()));
    let qmp = Qmp::connect_with(&monitor.path, listener).await.unwrap();
    let mut events = qmp.events();
    let err = qmp.execute("stop", Value::Null).await.unwrap_err();
    assert_eq!(
        err,
        QmpError::Refused {
            command: "stop".to_owned(),
            class: "NovelClass".to_owned(),
            desc: "no, thank you".to_owned()
        }
    );
    assert!(!err.in_doubt());
    assert_eq!(*seen.lock().unwrap(), ["NOVEL"], "the listener is told before the reply");
    let event = events.recv().await.unwrap();
    assert_eq!((event.name.as_str(), event.data), ("NOVEL", json!({ "x": [1] })));
    assert_eq!(qmp.execute("query", Value::Null).await.unwrap(), json!({ "status": "novel" }));
}

#[tokio::test]
async fn the_end_of_the_stream_ends_all_that_waits() {
    let monitor = fake(GREETING, |read, _| {
        request(read).unwrap();
        request(read).unwrap();
    });
    let qmp = Qmp::connect(&monitor.path).await.unwrap();
    let (a, b) = tokio::join!(qmp.execute("a", Value::Null), qmp.execute("b", Value::Null));
    assert_eq!((a, b), (Err(QmpError::Closed), Err(QmpError::Closed)));
    assert!(qmp.is_closed());
    assert_eq!(qmp.execute("c", Value::Null).await, Err(QmpError::Closed));
}

#[tokio::test]
async fn garbage_ends_the_connection_as_such() {
    let monitor = fake(GREETING, |read, stream| {
        request(read).unwrap();
        stream.write_all(b"QEMU 10 monitor - type 'help'\n").unwrap();
        let _ = request(read);
    });
    let qmp = Qmp::connect(&monitor.path).await.unwrap();
    let err = qmp.execute("a", Value::Null).await.unwrap_err();
    assert!(matches!(err, QmpError::Protocol(_)), "{err:?}");
    assert!(err.in_doubt());
}

#[tokio::test]
async fn a_line_without_end_is_cut_off() {
    let monitor = fake(GREETING, |read, stream| {
        request(read).unwrap();
        let chunk = vec![b' '; 1 << 20];
        while stream.write_all(&chunk).is_ok() {}
    });
    let qmp = Qmp::connect(&monitor.path).await.unwrap();
    let err = qmp.execute("a", Value::Null).await.unwrap_err();
    assert!(matches!(&err, QmpError::Protocol(text) if text.contains("longer")), "{err:?}");
}

#[tokio::test]
async fn a_large_line_is_read_whole() {
    let text = "x".repeat(3 << 20);
    let expected = text.clone();
    let monitor = fake(GREETING, move |read, stream| {
        let asked = request(read).unwrap();
        answer(stream, &asked, json!(text));
    });
    let qmp = Qmp::connect(&monitor.path).await.unwrap();
    assert_eq!(qmp.execute("a", Value::Null).await.unwrap(), json!(expected));
}

#[tokio::test]
async fn a_late_reply_does_not_disturb_the_next_command() {
    let monitor = fake(GREETING, |read, stream| {
        let late = request(read).unwrap();
        let next = request(read).unwrap();
        answer(stream, &late, json!("late"));
        answer(stream, &next, json!("next"));
    });
    let qmp = Qmp::connect(&monitor.path).await.unwrap();
    let err = qmp.execute_within("a", Value::Null, Duration::from_millis(20)).await;
    assert_eq!(err, Err(QmpError::Timeout { command: "a".to_owned() }));
    assert_eq!(qmp.execute("b", Value::Null).await.unwrap(), json!("next"));
}

#[tokio::test]
async fn what_does_not_greet_is_no_monitor() {
    let monitor = fake("{\"hello\": 1}\n", |_, _| {});
    let err = Qmp::connect(&monitor.path).await.unwrap_err();
    assert!(matches!(err, QmpError::Protocol(_)), "{err:?}");
    let missing = monitor.path.with_extension("absent");
    assert_eq!(Qmp::connect(&missing).await.unwrap_err(), QmpError::Closed);
}

#[tokio::test]
async fn a_descriptor_goes_with_its_command() {
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    let monitor = fake(GREETING, |_, stream| {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let got = rustix::net::recvmsg(
            &*stream,
            &mut [std::io::IoSliceMut::new(&mut bytes)],
            &mut control,
            rustix::net::RecvFlags::empty(),
        )
        .unwrap();
        for message in control.drain() {
            if let rustix::net::RecvAncillaryMessage::ScmRights(fds) = message {
                TAKEN.fetch_add(fds.count(), Ordering::SeqCst);
            }
        }
        let asked: Value = serde_json::from_slice(&bytes[..got.bytes]).unwrap();
        answer(stream, &asked, json!({}));
    });
    let qmp = Qmp::connect(&monitor.path).await.unwrap();
    let fd = std::fs::File::open("/dev/null").unwrap().into();
    qmp.execute_with_fd("getfd", json!({ "fdname": "f" }), fd).await.unwrap();
    assert_eq!(TAKEN.load(Ordering::SeqCst), 1);
}
