//! Sockets and the clients that come through them.
//!
//! The file mode of a socket decides who may connect; the kernel says who did (SO_PEERCRED). Where
//! no mode can tell, on the socket of a user's own daemon and on one without a file, only the
//! daemon's own user and root are let in, and a read-write socket of systemd's that everyone may
//! write to is not served at all.
//!
//! One user other than root gets only so many connections, because the read-only socket is open
//! to everyone on the host, and all of them together leave some for root. A place is free again
//! when the last call of its connection has ended, not when the client hangs up.
//!
//! A socket file left behind by a daemon that died is replaced; one that a daemon still serves is
//! not. Two daemons that start at once are kept apart by a lock on `<socket>.lock`, held as long
//! as the daemon lives.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::handle::Peer;
use crate::service::Service;
use crate::session::{self, SessionHandle, Sessions};

const BACKLOG: i32 = 512;
/// How long clients may take to be told goodbye when the daemon ends.
const GOODBYE: Duration = Duration::from_secs(8);
/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A socket to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) path: PathBuf,
    pub(crate) mode: u32,
    /// Whom the socket belongs to beside root; the daemon's own group without it.
    pub(crate) group: Option<u32>,
    pub(crate) read_only: bool,
    /// It is for the daemon's own user (and root), whatever its mode lets in.
    pub(crate) own_user_only: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {path}: {reason}")]
pub(crate) struct BindError {
    path: PathBuf,
    reason: String,
    source: Option<io::Error>,
}

/// A socket that listens.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    read_only: bool,
    own_user_only: bool,
    /// Absent for a socket that systemd made.
    _file: Option<SocketFile>,
}

/// The file of a socket that is ours: removed when we stop listening.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    _lock: File,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_file(&self.path) {
            tracing::debug!("{} was removed by someone else: {err}", self.path.display());
        }
    }
}

impl Listener {
    /// Must be called inside the runtime.
    pub(crate) fn bind(endpoint: &Endpoint) -> Result<Self, BindError> {
        let path = &endpoint.path;
        let failed = |reason: &str, source: io::Error| BindError {
            path: path.clone(),
            reason: format!("{reason}: {source}"),
            source: Some(source),
        };
        if let Some(parent) = path.parent() {
            // Whoever could write there could put a socket of their own in the place of ours.
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)
                .map_err(|err| failed("its directory", err))?;
        }
        let lock = lock(path)?;
        remove_stale(path)?;
        let socket = listen(endpoint).map_err(|err| failed("the socket", err))?;
        let file = SocketFile { path: path.clone(), _lock: lock };
        let socket = std::os::unix::net::UnixListener::from(socket);
        let socket = UnixListener::from_std(socket).map_err(|err| failed("the runtime", err))?;
        let Endpoint { read_only, own_user_only, .. } = *endpoint;
        Ok(Self { socket, read_only, own_user_only, _file: Some(file) })
    }

    /// A listening socket that systemd made. Its unit's name tells which it is; without a name,
    /// the name of the socket file does. In the daemon of one user (`own_user_only`) it is for
    /// that user, and so is one that has no file, and no mode, to say whom it is for.
    pub(crate) fn inherited(
        socket: OwnedFd,
        unit: Option<&str>,
        own_user_only: bool,
    ) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixListener::from(socket);
        let address = socket.local_addr()?;
        let path = address.as_pathname();
        let read_only = match unit {
            Some(unit) => unit.strip_suffix(".socket").unwrap_or(unit).ends_with("-ro"),
            None => path
                .and_then(Path::file_name)
                .is_some_and(|name| name.as_encoded_bytes().ends_with(b"-ro")),
        };
        let own_user_only = own_user_only || (path.is_none() && !read_only);
        if let Some(path) = path.filter(|_| !read_only && !own_user_only) {
            refuse_open_to_all(path)?;
        }
        socket.set_nonblocking(true)?;
        let socket = UnixListener::from_std(socket)?;
        Ok(Self { socket, read_only, own_user_only, _file: None })
    }
}

/// Whoever may write to it is root on this host: the mode of the unit is a mistake.
fn refuse_open_to_all(path: &Path) -> io::Result<()> {
    const OTHERS_WRITE: u32 = 0o002;
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & OTHERS_WRITE == 0 {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "{} is writable for everyone (mode {:03o}), and who may write there is root here: \
             set SocketMode=0660 and SocketGroup= in its unit",
            path.display(),
            mode & 0o777
        ),
    ))
}

/// The permissions are right before the first client can come: nobody can connect to a socket
/// that does not listen yet.
fn listen(endpoint: &Endpoint) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&endpoint.path)?)?;
    fs::set_permissions(&endpoint.path, Permissions::from_mode(endpoint.mode))?;
    if let Some(group) = endpoint.group {
        std::os::unix::fs::chown(&endpoint.path, None, Some(group))?;
    }
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn lock(path: &Path) -> Result<File, BindError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let refused = |reason: String, source| BindError { path: path.to_owned(), reason, source };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        // Whoever could open it could lock it, and keep the daemon out.
        .mode(0o600)
        .open(&name)
        .map_err(|err| refused(format!("{}: {err}", Path::new(&name).display()), Some(err)))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|err| refused("another daemon serves it".to_owned(), Some(err.into())))?;
    Ok(file)
}

/// Removes the socket file of a daemon that is gone. Anything else in its place stays.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let refused = |reason: String| BindError { path: path.to_owned(), reason, source: None };
    match fs::symlink_metadata(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(refused(err.to_string())),
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(refused("there is a file that is not a socket".to_owned())),
    }
    match StdUnixStream::connect(path) {
        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|err| refused(err.to_string()))
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(refused(format!("cannot tell whether it is served: {err}"))),
        Ok(_) => Err(refused("another daemon serves it".to_owned())),
    }
}

/// How many clients there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) clients: usize,
    /// Of one user other than root.
    pub(crate) clients_per_user: usize,
}

impl Limits {
    /// Of all users other than root: a tenth is left to root, who can then still look and act.
    fn clients_but_root(self) -> usize {
        self.clients.saturating_sub(self.clients.div_ceil(10)).max(1)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { clients: 500, clients_per_user: 100 }
    }
}

/// Serves clients until `shutdown` turns true, then lets their sessions end.
pub(crate) async fn serve<S: Service>(
    listeners: Vec<Listener>,
    service: Arc<S>,
    sessions: Arc<Sessions>,
    limits: Limits,
    shutdown: watch::Receiver<bool>,
) {
    let door = Arc::new(Door {
        service,
        sessions,
        room: Arc::new(Semaphore::new(limits.clients)),
        users: Arc::new(Users { known: Mutex::default(), limits }),
        own: rustix::process::geteuid().as_raw(),
        shutdown,
    });
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(Arc::clone(&door).accept(listener));
    }
    while accepting.join_next().await.is_some() {}
    // Each session holds one permit: having them all means that all have ended.
    let all = u32::try_from(limits.clients).unwrap_or(u32::MAX);
    if tokio::time::timeout(GOODBYE, door.room.acquire_many(all)).await.is_err() {
        tracing::warn!("some clients did not go in time");
    }
}

struct Door<S> {
    service: Arc<S>,
    sessions: Arc<Sessions>,
    room: Arc<Semaphore>,
    users: Arc<Users>,
    /// Whom the daemon itself runs as.
    own: u32,
    shutdown: watch::Receiver<bool>,
}

impl<S: Service> Door<S> {
    async fn accept(self: Arc<Self>, listener: Listener) {
        let mut shutdown = self.shutdown.clone();
        loop {
            let (read_only, own_user_only) = (listener.read_only, listener.own_user_only);
            let next = async {
                let permit = Arc::clone(&self.room).acquire_owned().await;
                (permit, listener.socket.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                _ = shutdown.wait_for(|&down| down) => return,
                next = next => next,
            };
            let Ok(permit) = permit else { return };
            match accepted {
                Ok((socket, _)) => {
                    let door = Arc::clone(&self);
                    tokio::spawn(async move {
                        door.welcome(socket, read_only, own_user_only).await;
                        drop(permit);
                    });
                }
                Err(err) => {
                    tracing::warn!("cannot accept a client: {err}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn welcome(&self, socket: UnixStream, read_only: bool, own_user_only: bool) {
        let peer = match peer(&socket) {
            Ok(peer) => peer,
            Err(err) => {
                tracing::warn!("a client without credentials is refused: {err}");
                return;
            }
        };
        if own_user_only && !may_enter(peer, self.own) {
            tracing::warn!("user {} has no business with this user's daemon", peer.uid);
            return;
        }
        let Some(place) = self.users.enter(peer.uid) else {
            tracing::warn!("user {} has too many connections; one is refused", peer.uid);
            return;
        };
        let handle = Arc::new(SessionHandle::new(peer, read_only).with_place(place));
        tracing::debug!(session = handle.id, peer.pid, peer.uid, read_only, "connected");
        self.sessions.insert(Arc::clone(&handle));
        let (service, shutdown) = (Arc::clone(&self.service), self.shutdown.clone());
        session::run(socket, Arc::clone(&handle), service, shutdown).await;
        self.sessions.remove(&handle);
    }
}

fn peer(socket: &UnixStream) -> io::Result<Peer> {
    let known = rustix::net::sockopt::socket_peercred(socket.as_fd())?;
    Ok(Peer {
        pid: known.pid.as_raw_nonzero().get(),
        uid: known.uid.as_raw(),
        gid: known.gid.as_raw(),
    })
}

/// Into the daemon of one user: that user, and root, who could anyway.
fn may_enter(peer: Peer, own: u32) -> bool {
    peer.uid == own || peer.uid == ROOT
}

const ROOT: u32 = 0;

/// How many connections each user has.
#[derive(Debug)]
struct Users {
    known: Mutex<HashMap<u32, usize>>,
    limits: Limits,
}

impl Users {
    fn enter(self: &Arc<Self>, uid: u32) -> Option<Place> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let count = known.get(&uid).copied().unwrap_or_default();
        let others: usize = known.iter().filter(|(uid, _)| **uid != ROOT).map(|(_, n)| n).sum();
        let is_full =
            count >= self.limits.clients_per_user || others >= self.limits.clients_but_root();
        if uid != ROOT && is_full {
            return None;
        }
        known.insert(uid, count.saturating_add(1));
        Some(Place { users: Arc::clone(self), uid })
    }
}

/// One user's connection, until nothing of it is left.
#[derive(Debug)]
pub(crate) struct Place {
    users: Arc<Users>,
    uid: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut known = self.users.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = known.get_mut(&self.uid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                known.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod clients;
#[cfg(test)]
mod tests;
