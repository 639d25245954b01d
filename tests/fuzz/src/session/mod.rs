//! Whole sessions: clients of both sockets in any order, the daemon's own code from the frame to
//! the store, and a hypervisor that is simulated.
//!
//! What must hold, whatever is sent: no panic; one answer to each call, that can be read, or a
//! connection that is closed; events and replies that can be read; a read-only client changes
//! nothing in the store or the guests; and whatever is in the store can be read again by the next
//! daemon, which knows the same domains and snapshots.
//!
//! - `script`: the form of an input;
//! - `client`: the other end of a session, which holds what it hears to the protocol;
//! - `machine`: the hypervisor.
//!
//! The clock is tokio's own and jumps when nothing else can go on: a deadline costs no time, and
//! what never ends is found after an hour of that clock.

mod client;
mod machine;
mod script;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use virtsnap_engine::book::Book;
use virtsnap_engine::moment::MomentList;
use virtsnap_rpc::procedure::Procedure;
use virtsnap_xml::snapshot::Memory;
use virtsnapd::fuzzing::Bench;

use self::client::Client;
use self::machine::{Look, Machine, Site};
use self::script::Act;

/// More is told by what comes before.
const ACTS: usize = 40;
/// Longer than any call waits for another.
const LAST_CALLS: Duration = Duration::from_secs(600);

const VM: &str = "<domain type='qemu'><name>vm</name>\
    <uuid>11111111-2222-3333-4444-555555555555</uuid><memory>65536</memory><vcpu>2</vcpu>\
    <os><type>hvm</type></os><devices><disk type='file' device='disk'>\
    <driver name='qemu' type='qcow2'/><source file='/img/vda.qcow2'/><target dev='vda'/></disk>\
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
    <source file='/img/vdb.qcow2'/><target dev='vdb'/></disk><console type='pty'/>\
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
    <graphics type='vnc' passwd='hush'/></devices></domain>";

/// A script; see `script`. Whether a call of it was done.
pub(crate) fn play(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let acts: Vec<(bool, Act)> = text.lines().filter_map(script::act).take(ACTS).collect();
    let before = panics();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().expect("a runtime");
    let directory = scratch();
    let done = runtime.block_on(async {
        let mut stage = Stage::open(directory.path()).await;
        for (read_only, act) in acts {
            stage.act(read_only, act).await;
        }
        stage.close().await
    });
    drop(runtime);
    assert_eq!(panics(), before, "something panicked inside the daemon");
    done
}

/// Panics of any thread so far: the daemon turns its own into errors.
fn panics() -> usize {
    static COUNTED: AtomicUsize = AtomicUsize::new(0);
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            COUNTED.fetch_add(1, Ordering::Relaxed);
            told(panic);
        }));
    });
    COUNTED.load(Ordering::Relaxed)
}

/// In memory where that can be had: the store waits for the disk at each change.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    made.expect("a directory")
}

struct Stage {
    store: PathBuf,
    site: Arc<Site>,
    bench: Option<Bench<Machine>>,
    /// Of the read-write socket and of the read-only one.
    clients: [Option<Client>; 2],
    /// Somebody hung up, and calls may go on without them.
    left: bool,
    done: usize,
}

impl Stage {
    async fn open(directory: &Path) -> Self {
        let site = Arc::new(Site::new(directory));
        let store = directory.join("store");
        let bench = Some(bench(&store, &site).await);
        let mut stage = Self { store, site, bench, clients: [None, None], left: false, done: 0 };
        let define = script::encode(&format!("\"{VM}\""));
        let client = stage.client(false).await;
        assert!(client.remote(Procedure::DOMAIN_DEFINE_XML, &define).await, "it is defined");
        stage
    }

    /// The client of that socket, which comes if it is not there.
    async fn client(&mut self, read_only: bool) -> &mut Client {
        if self.clients[usize::from(read_only)].as_ref().is_some_and(Client::is_gone) {
            self.leave(read_only).await;
        }
        let client = match self.clients[usize::from(read_only)].take() {
            Some(client) => client,
            None => {
                let mut client = self.connect(read_only);
                assert!(client.open().await, "it may come");
                client
            }
        };
        self.clients[usize::from(read_only)].insert(client)
    }

    fn connect(&self, read_only: bool) -> Client {
        Client::connect(self.bench.as_ref().expect("a daemon serves"), read_only)
    }

    async fn leave(&mut self, read_only: bool) {
        if let Some(client) = self.clients[usize::from(read_only)].take() {
            client.leave().await;
            self.left = true;
        }
    }

    async fn act(&mut self, read_only: bool, act: Act) {
        if !read_only || matches!(act, Act::Agent(_) | Act::Restart) {
            return self.perform(false, act).await;
        }
        self.settle().await;
        let before = self.look();
        let told = format!("{act:?}");
        self.perform(true, act).await;
        self.settle().await;
        assert!(self.look() == before, "a reader changed something: {told:.2000}");
    }

    async fn perform(&mut self, read_only: bool, act: Act) {
        match act {
            Act::Call { program, procedure, payload, waits } => {
                // It would go to files of the host.
                if !read_only && procedure == Procedure::STORAGE_VOL_DELETE as u32 {
                    return;
                }
                let client = self.client(read_only).await;
                let done = client.call(program, procedure, &payload, waits).await;
                self.done += usize::from(done);
            }
            Act::Raw(bytes) => self.client(read_only).await.raw(&bytes).await,
            Act::Data(data) => self.client(read_only).await.stream(Some(&data)).await,
            Act::Finish => self.client(read_only).await.stream(None).await,
            Act::Abort => self.client(read_only).await.abort().await,
            Act::Hole => self.client(read_only).await.hole().await,
            Act::Leave | Act::Fresh => {
                self.leave(read_only).await;
                if act == Act::Fresh {
                    self.clients[usize::from(read_only)] = Some(self.connect(read_only));
                }
            }
            Act::Agent(answer) => self.site.agent_says(&answer),
            Act::Restart => self.restart().await,
        }
    }

    /// Nothing goes on.
    async fn settle(&mut self) {
        for read_only in [false, true] {
            match &mut self.clients[usize::from(read_only)] {
                Some(client) if client.is_garbled() => self.leave(read_only).await,
                Some(client) => client.settle().await,
                None => {}
            }
        }
        if std::mem::take(&mut self.left) {
            tokio::time::sleep(LAST_CALLS).await;
        }
    }

    fn look(&self) -> (BTreeMap<PathBuf, Vec<u8>>, Look) {
        let mut files = BTreeMap::new();
        read_all(&self.store, &mut files);
        (files, self.site.look())
    }

    /// The next daemon knows what this one knew.
    async fn restart(&mut self) {
        self.leave(false).await;
        self.leave(true).await;
        self.settle().await;
        let before = self.end().await;
        let bench = bench(&self.store, &self.site).await;
        let known = bench.books();
        self.bench = Some(bench);
        let known: BTreeMap<_, &Book> = known.iter().map(|book| (book.uuid, book)).collect();
        for book in before.iter().filter(|book| book.left.is_none() && book.config.is_some()) {
            let now = known.get(&book.uuid).copied();
            assert_eq!(
                now,
                Some(&as_read(book)),
                "what the next daemon knows, and what this one knew"
            );
        }
    }

    /// What the daemon knew.
    async fn end(&mut self) -> Vec<Book> {
        let bench = self.bench.take().expect("a daemon serves");
        let books = bench.books();
        bench.end(LAST_CALLS).await;
        books
    }

    async fn close(mut self) -> bool {
        self.restart().await;
        self.end().await;
        self.done > 0
    }
}

async fn bench(store: &Path, site: &Arc<Site>) -> Bench<Machine> {
    Bench::start(store, |sink| Machine::new(site.clone(), sink)).await
}

/// What was not said of memory is read as that there is none, as by libvirt's driver.
fn as_read(book: &Book) -> Book {
    let mut moments: Vec<_> = book.moments.iter().cloned().collect();
    for moment in moments.iter_mut().filter(|moment| moment.memory == Memory::Unsaid) {
        moment.memory = Memory::No;
    }
    let current = book.moments.current().map(str::to_owned);
    Book { moments: MomentList::load(moments, current), ..book.clone() }
}

/// Also what is neither a file nor a directory, as its name.
fn read_all(directory: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.map(|entry| entry.expect("a directory of ours").path()) {
        if path.is_dir() {
            read_all(&path, files);
        }
        let content = fs::read(&path).unwrap_or_default();
        files.insert(path, content);
    }
}
