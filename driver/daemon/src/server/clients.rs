//! The transport under unmodified clients: virsh and libvirt-python against a service that
//! answers just enough.

use std::ffi::OsStr;
use std::process::Output;

use tokio::process::Command;
use virtsnap_rpc::procedure::Procedure;
use virtsnap_rpc::remote::*;
use virtsnap_rpc::xdr::Xdr;

use super::*;
use crate::handle::Connection;
use crate::service::{Call, Reply, RpcError, Subscription, Topic};
use crate::stream::ServerStream;

const PATIENCE: Duration = Duration::from_secs(60);
const PICTURE: usize = 300_000;

struct OneDomain;

fn dom() -> DomainRef {
    DomainRef { name: "vm".to_owned(), uuid: uuid::Uuid::from_bytes([7; 16]), id: 1 }
}

fn reply(ret: &impl Xdr) -> Reply {
    Reply { payload: ret.to_bytes().unwrap(), ..Reply::default() }
}

impl Service for OneDomain {
    async fn call(&self, session: &Arc<SessionHandle>, call: Call) -> Result<Reply, RpcError> {
        let unknown = RpcError::unknown_procedure(call.procedure);
        Ok(match Procedure::try_from(call.procedure).map_err(|_| unknown.clone())? {
            Procedure::AUTH_LIST => reply(&AuthListRet { types: vec![0].into() }),
            Procedure::CONNECT_OPEN => {
                session.open(Connection { uri: String::new(), read_only: false })?;
                reply(&())
            }
            Procedure::CONNECT_SUPPORTS_FEATURE => {
                let args = ConnectSupportsFeatureArgs::from_bytes(&call.payload).unwrap();
                if args.feature == 10 {
                    session.start_keepalive();
                }
                reply(&ConnectSupportsFeatureRet { supported: 1 })
            }
            Procedure::CONNECT_CLOSE => reply(&()),
            Procedure::DOMAIN_LOOKUP_BY_NAME => reply(&DomainLookupByNameRet { dom: dom() }),
            Procedure::DOMAIN_GET_STATE => reply(&DomainGetStateRet { state: 1, reason: 1 }),
            Procedure::CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY => {
                let args =
                    ConnectDomainEventCallbackRegisterAnyArgs::from_bytes(&call.payload).unwrap();
                let callback_id = session.next_callback_id();
                Reply {
                    subscription: Some(Subscription {
                        callback_id,
                        topic: Topic::Domain(args.event_id),
                        object: None,
                    }),
                    ..reply(&ConnectDomainEventCallbackRegisterAnyRet { callback_id })
                }
            }
            Procedure::CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY => reply(&()),
            Procedure::DOMAIN_SCREENSHOT => Reply {
                stream: Some(ServerStream::download(io::Cursor::new(vec![7; PICTURE]))),
                ..reply(&DomainScreenshotRet { mime: Some("image/png".to_owned()) })
            },
            Procedure::DOMAIN_OPEN_CONSOLE => {
                let (near, far) = tokio::io::duplex(4096);
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(far);
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
                let (source, sink) = tokio::io::split(near);
                Reply { stream: Some(ServerStream::duplex(source, sink)), ..reply(&()) }
            }
            Procedure::DOMAIN_OPEN_GRAPHICS_FD => {
                let (near, far) = StdUnixStream::pair().unwrap();
                io::Write::write_all(&mut &near, b"RFB").unwrap();
                Reply { fds: vec![far.into()], ..reply(&()) }
            }
            Procedure::DOMAIN_OPEN_GRAPHICS => {
                for fd in call.fds {
                    io::Write::write_all(&mut File::from(fd), b"for you").unwrap();
                }
                reply(&())
            }
            _ => return Err(unknown),
        })
    }
}

struct Served {
    directory: tempfile::TempDir,
    sessions: Arc<Sessions>,
    _stop: watch::Sender<bool>,
}

impl Served {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sock");
        let endpoint =
            Endpoint { path, mode: 0o600, group: None, read_only: false, own_user_only: true };
        let listener = Listener::bind(&endpoint).unwrap();
        let sessions = Arc::new(Sessions::default());
        let (stop, shutdown) = watch::channel(false);
        let limits = Limits::default();
        tokio::spawn(serve(
            vec![listener],
            Arc::new(OneDomain),
            sessions.clone(),
            limits,
            shutdown,
        ));
        Self { directory, sessions, _stop: stop }
    }

    fn uri(&self) -> String {
        format!("qemu:///system?socket={}", self.directory.path().join("sock").display())
    }

    async fn virsh(&self, arguments: &[&str]) -> Output {
        run("virsh", [&["-c", &self.uri()], arguments].concat()).await
    }

    async fn python(&self, script: &str) -> Output {
        let script = format!(
            "import libvirt, os, socket\nc = libvirt.open('{}')\nd = c.lookupByName('vm')\n{script}",
            self.uri()
        );
        run("/usr/bin/python3", ["-c", &script]).await
    }
}

async fn run(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(std::process::Stdio::null()).kill_on_drop(true);
    tokio::time::timeout(PATIENCE, command.output()).await.expect("the client ends").unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Whether the clients are here. Their absence is no success: said aloud, and an error in CI.
async fn clients() -> bool {
    let present = |program: &'static str, arguments: &'static [&'static str]| async move {
        let status = Command::new(program).args(arguments).output().await;
        status.is_ok_and(|output| output.status.success())
    };
    if present("virsh", &["--version"]).await
        && present("/usr/bin/python3", &["-c", "import libvirt"]).await
    {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "virsh or libvirt-python is missing");
    eprintln!("SKIPPED: virsh or libvirt-python is missing");
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn virsh_listens_and_keeps_alive() {
    if !clients().await {
        return;
    }
    let served = Served::start();
    // With -k 1 -K 2 virsh gives a server up that leaves its pings unanswered for 3 seconds.
    let patient = ["-k", "1", "-K", "2", "event", "--all", "--loop", "--timeout", "5"];
    let listening = served.virsh(&patient);
    tokio::pin!(listening);
    let listening = loop {
        served.sessions.publish_domain(1, dom().uuid, |callback_id| DomainEventReboot {
            callback_id,
            dom: dom(),
        });
        tokio::select! {
            output = &mut listening => break output,
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    };
    let heard = String::from_utf8_lossy(&listening.stdout).into_owned();
    assert!(heard.contains("event 'reboot' for domain 'vm'"), "{listening:?}");
    assert!(heard.contains("event loop timed out"), "{listening:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn virsh_takes_a_screenshot() {
    if !clients().await {
        return;
    }
    let served = Served::start();
    let file = served.directory.path().join("shot");
    text(&served.virsh(&["screenshot", "vm", file.to_str().unwrap()]).await);
    assert_eq!(fs::read(&file).unwrap(), vec![7; PICTURE]);
}

#[tokio::test(flavor = "multi_thread")]
async fn python_talks_on_a_console() {
    if !clients().await {
        return;
    }
    let served = Served::start();
    let script = "
s = c.newStream(0); d.openConsole(None, s)
sent = os.urandom(2000000); got = b''
for at in range(0, len(sent), 100000):
    s.send(sent[at:at + 100000])
    while len(got) < at: got += s.recv(100000)
while len(got) < len(sent): got += s.recv(100000)
s.finish(); print(got == sent)
s = c.newStream(0); d.openConsole(None, s); s.send(b'x'); s.abort(); print(d.name())
";
    assert_eq!(text(&served.python(script).await), "True\nvm\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn python_passes_descriptors_both_ways() {
    if !clients().await {
        return;
    }
    let served = Served::start();
    let script = "
print(os.read(d.openGraphicsFD(0), 3))
a, b = socket.socketpair(); d.openGraphics(0, b.fileno()); b.close()
print(a.recv(100)); print(c.isAlive())
";
    assert_eq!(text(&served.python(script).await), "b'RFB'\nb'for you'\n1\n");
}
