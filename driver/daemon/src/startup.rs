//! From a configuration to a daemon that serves, and back.
//!
//! The order matters. The store's lock keeps a second daemon out before anything is touched. Guests
//! that outlived the last daemon are found before any unfinished operation is taken up, and both
//! before the first client is heard. Autostart comes last, and once after each boot of the host.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinSet, block_in_place};
use virtsnap_engine::error::Error;
use virtsnap_engine::inspect::Inspect;
use virtsnap_engine::plan::{self, Finish};
use virtsnap_engine::ports::{EventSink, Journals};

use crate::config::{Config, Mode};
use crate::dispatch::Daemon;
use crate::domains::{Domains, Operation, Table};
use crate::events::Events;
use crate::handle::Sessions;
use crate::server::{self, BindError, Endpoint, Limits, Listener};
use crate::systemd;

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("cannot make the directory {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    #[error("{} can be changed by other users: it must belong to the daemon's user", .0.display())]
    Foreign(PathBuf),
    #[error("{}", .0.chain())]
    Engine(Error),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("cannot use a socket that systemd passed")]
    Inherited(#[source] io::Error),
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}

impl From<Error> for StartError {
    fn from(err: Error) -> Self {
        StartError::Engine(err)
    }
}

/// Serves until SIGTERM or SIGINT. Guests go on without us.
pub(crate) async fn run<H: Inspect>(
    config: &Config,
    hypervisor: impl FnOnce(Arc<dyn EventSink>) -> Result<H, Error>,
) -> Result<(), StartError> {
    if cfg!(feature = "without-recovery") {
        tracing::error!("BUILT WITHOUT RECOVERY, as a negative control: DATA WILL BE LOST");
    }
    let stop = stop_signal()?;
    directory(&config.run_dir, 0o755)?;
    directory(&config.state_dir, 0o700)?;
    let sessions = Arc::new(Sessions::default());
    let domains = Arc::new(open(config, sessions.clone(), hypervisor)?);
    let found = domains.reconnect().await?;
    let mut resuming = settle(&domains).await?;
    domains.take_in_strays().await;
    domains.drop_ended();
    domains.follow_block_jobs();
    let listeners = listen(config)?;
    let limits = Limits { clients: config.max_clients, ..Limits::default() };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        domains = domains.table.all().len(),
        running = found,
        "ready"
    );
    systemd::ready();
    let starting = tokio::spawn(autostart(domains.clone(), config.run_dir.join("autostarted")));
    server::serve(listeners, Arc::new(Daemon::new(domains)), sessions, limits, stop).await;
    systemd::stopping();
    starting.abort();
    resuming.abort_all();
    tracing::info!("stopped; guests keep running");
    Ok(())
}

fn open<H: Inspect>(
    config: &Config,
    sessions: Arc<Sessions>,
    hypervisor: impl FnOnce(Arc<dyn EventSink>) -> Result<H, Error>,
) -> Result<Domains<H>, StartError> {
    // While a slow disk is waited for, another thread serves the other clients.
    let store = config.open_store()?.waiting_by(|work| block_in_place(work));
    let store = Arc::new(store);
    let table = Table::load(store, Events::new(sessions))?.shared(H::IS_SHARED);
    let table = Arc::new(table);
    let hypervisor = hypervisor(table.clone())?;
    Ok(Domains::new(Arc::new(hypervisor), table).with(config.guests.meanwhile))
}

/// How long the first client waits for merges that go on.
const SOON: Duration = Duration::from_secs(3);

/// Completes or undoes what a crash left half done. What cannot be settled now is tried again at
/// the next operation on that domain, and does not hold up the others. Nor do merges of layers,
/// which may take hours: those that are not over soon are gone on with beside what clients ask, as
/// the job that they were.
pub(crate) async fn settle<H: Inspect>(
    domains: &Arc<Domains<H>>,
) -> Result<JoinSet<()>, StartError> {
    let mut resuming = JoinSet::new();
    for unfinished in domains.table.store().unfinished()? {
        if cfg!(feature = "without-recovery") {
            tracing::error!(domain = %unfinished.domain, "BUILT WITHOUT RECOVERY: a journal goes");
            domains.table.store().resume(unfinished.domain)?.close()?;
            continue;
        }
        let Some(domain) = domains.table.get(unfinished.domain) else {
            tracing::error!(domain = %unfinished.domain, "an unfinished operation of no domain");
            continue;
        };
        let operation = match unfinished.plan.operation {
            plan::Operation::Create { .. } => Operation::SnapshotCreate,
            plan::Operation::Revert { .. } => Operation::SnapshotRevert,
            plan::Operation::Delete { .. } => Operation::SnapshotDelete,
        };
        let job = domains.job(&domain, operation).await?;
        let domains = Arc::clone(domains);
        let is_long = unfinished.plan.finish.iter().any(Finish::is_merge);
        let recover = async move {
            let name = domain.name();
            match domains.snapshots.recover(&domain.book, &unfinished).await {
                Ok(()) => tracing::info!(domain = name, "an interrupted operation was settled"),
                Err(err) => {
                    tracing::error!(domain = name, error = %err.chain(), "cannot settle it yet");
                }
            }
            domains.drop_if_gone(&domain);
            drop(job);
        };
        if is_long {
            resuming.spawn(recover);
        } else {
            recover.await;
        }
    }
    let soon = async { while resuming.join_next().await.is_some() {} };
    if tokio::time::timeout(SOON, soon).await.is_err() {
        tracing::info!(merging = resuming.len(), "some deletions take longer, and go on");
    }
    Ok(resuming)
}

/// The marker lies in a directory that a boot of the host empties.
async fn autostart<H: Inspect>(domains: Arc<Domains<H>>, marker: PathBuf) {
    if marker.exists() {
        return;
    }
    domains.autostart().await;
    if let Err(err) = fs::write(&marker, "") {
        tracing::warn!("cannot write {}: {err}", marker.display());
    }
}

fn listen(config: &Config) -> Result<Vec<Listener>, StartError> {
    let own_user_only = config.mode == Mode::Session;
    let inherited = systemd::inherited().map_err(StartError::Inherited)?;
    if !inherited.is_empty() {
        let listeners = inherited
            .into_iter()
            .map(|one| Listener::inherited(one.socket, one.unit.as_deref(), own_user_only))
            .collect::<io::Result<_>>();
        return listeners.map_err(StartError::Inherited);
    }
    let (path, read_only) = config.sockets();
    let group = group_of_users(config.mode);
    let (mode, everyone) = match config.mode {
        Mode::System => (0o660, 0o666),
        Mode::Session => (0o600, 0o600),
    };
    let mut endpoints = vec![Endpoint { path, mode, group, read_only: false, own_user_only }];
    endpoints.extend(read_only.map(|path| Endpoint {
        path,
        mode: everyone,
        group: None,
        read_only: true,
        own_user_only,
    }));
    endpoints.iter().map(|endpoint| Ok(Listener::bind(endpoint)?)).collect()
}

/// Who may use the read-write socket beside root: the group `virtsnap`, if there is one. Whoever
/// may is root on this host.
fn group_of_users(mode: Mode) -> Option<u32> {
    if mode == Mode::Session {
        return None;
    }
    group_number(&fs::read_to_string("/etc/group").ok()?, "virtsnap")
}

fn group_number(table: &str, name: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// A directory that nobody but us and root may change: whoever else could would put files and
/// sockets of their own in the place of ours.
fn directory(path: &Path, mode: u32) -> Result<(), StartError> {
    let failed = |err| StartError::Directory(path.to_owned(), err);
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed)?;
    let meta = fs::metadata(path).map_err(failed)?;
    let ours = rustix::process::geteuid().as_raw();
    if (meta.uid() != ours && meta.uid() != 0) || meta.mode() & 0o002 != 0 {
        return Err(StartError::Foreign(path.to_owned()));
    }
    Ok(())
}

/// Turns true at the first SIGTERM or SIGINT.
fn stop_signal() -> Result<watch::Receiver<bool>, StartError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;
    let (tell, told) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tell.send_replace(true);
    });
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let table = "virtsnapx:x:1:\nvirtsnap:x:77:a,b\n";
        assert_eq!(group_number(table, "virtsnap"), Some(77));
        assert_eq!(group_number(table, "virt"), None);
    }
}
