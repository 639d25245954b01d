//! What the fuzz target `session` of `tests/fuzz` drives and nobody else needs: the daemon without
//! its sockets, over any hypervisor. A client is one end of a pair of sockets.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use virtsnap_engine::book::Book;
use virtsnap_engine::inspect::Inspect;
use virtsnap_engine::ports::EventSink;
use virtsnap_store::Store;

use crate::dispatch::Daemon;
use crate::domains::{Domains, Table};
use crate::events::Events;
use crate::handle::{Peer, SessionHandle, Sessions};
use crate::startup;

/// A daemon that serves.
#[expect(missing_debug_implementations, reason = "nobody shows a daemon")]
pub struct Bench<H: Inspect> {
    daemon: Arc<Daemon<H>>,
    sessions: Arc<Sessions>,
    stop: watch::Sender<bool>,
}

impl<H: Inspect> Bench<H> {
    /// Begins over the store in `directory`, as a daemon that is started does.
    ///
    /// # Panics
    /// When the store cannot be opened, and when anything in it cannot be read.
    pub async fn start(directory: &Path, hypervisor: impl FnOnce(Arc<dyn EventSink>) -> H) -> Self {
        let sessions = Arc::new(Sessions::default());
        let store = Store::open(directory).expect("the store can be opened");
        let bad = store.load().expect("the store can be read").bad;
        assert_eq!(bad, [], "what we wrote can be read");
        let table = Table::load(Arc::new(store), Events::new(sessions.clone()));
        let table = Arc::new(table.expect("the store can be read"));
        let hypervisor = Arc::new(hypervisor(table.clone()));
        let domains = Arc::new(Domains::new(hypervisor, table));
        domains.reconnect().await.expect("guests are found again");
        let mut resuming = startup::settle(&domains).await.expect("what is left can be settled");
        while resuming.join_next().await.is_some() {}
        domains.drop_ended();
        domains.follow_block_jobs();
        Self { daemon: Arc::new(Daemon::new(domains)), sessions, stop: watch::Sender::new(false) }
    }

    /// Serves a new client of root's until it leaves, is hung up on, or the bench is gone.
    pub fn serve(&self, client: UnixStream, read_only: bool) -> impl Future<Output = ()> + use<H> {
        let handle = Arc::new(SessionHandle::new(Peer { pid: 1, uid: 0, gid: 0 }, read_only));
        let (daemon, sessions) = (self.daemon.clone(), self.sessions.clone());
        let stopped = self.stop.subscribe();
        async move {
            sessions.insert(handle.clone());
            crate::session::run(client, handle.clone(), daemon, stopped).await;
            sessions.remove(&handle);
        }
    }

    /// What is known of each domain.
    pub fn books(&self) -> Vec<Book> {
        self.daemon.domains.table.all().iter().map(|domain| domain.book().clone()).collect()
    }

    /// Ends, as soon as all calls have.
    ///
    /// # Panics
    /// When one goes on for longer than that.
    pub async fn end(self, patience: Duration) {
        let store = Arc::downgrade(self.daemon.domains.table.store());
        self.stop.send_replace(true);
        drop(self);
        let over = async {
            while store.strong_count() > 0 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::time::timeout(patience, over).await.expect("all calls end");
    }
}
