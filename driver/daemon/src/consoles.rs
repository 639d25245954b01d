//! Consoles and channels of running guests as streams.
//!
//! A device is a pseudo-terminal or a socket that the hypervisor holds the other end of; its live
//! definition says where. One client at a time has a console: a second is refused, or, if it asks
//! with FORCE, takes over and the first one's stream ends.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::fs::{Mode, OFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use uuid::Uuid;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::element::Element;

use crate::stream::ServerStream;

/// The host's end of a character device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    Pty(PathBuf),
    Unix(PathBuf),
}

impl Device {
    /// A console, serial or parallel device by its alias; the first one without a name.
    pub(crate) fn console(live: &Element, name: Option<&str>) -> Result<Self> {
        let kinds = ["console", "serial", "parallel"];
        let found = devices(live)
            .filter(|device| kinds.contains(&device.name()))
            .find(|device| name.is_none_or(|name| alias(device) == Some(name)));
        let device = found.ok_or_else(|| missing("character device", name))?;
        Self::of(device)
    }

    /// A channel by its alias or its target's name; the first one without a name.
    pub(crate) fn channel(live: &Element, name: Option<&str>) -> Result<Self> {
        let found = devices(live).filter(|device| device.name() == "channel").find(|device| {
            let target = device.child("target").and_then(|target| target.attr("name"));
            name.is_none_or(|name| alias(device) == Some(name) || target == Some(name))
        });
        Self::of(found.ok_or_else(|| missing("channel", name))?)
    }

    fn of(device: &Element) -> Result<Self> {
        let kind = device.attr("type").unwrap_or_default();
        let path = device.child("source").and_then(|source| source.attr("path"));
        match (kind, path) {
            ("pty", Some(path)) => Ok(Device::Pty(path.into())),
            ("unix", Some(path)) => Ok(Device::Unix(path.into())),
            _ => Err(Error::new(
                Condition::OperationFailed,
                format!("a <{}> of type '{kind}' cannot be connected to", device.name()),
            )),
        }
    }

    fn path(&self) -> &Path {
        let (Device::Pty(path) | Device::Unix(path)) = self;
        path
    }
}

fn devices(live: &Element) -> impl Iterator<Item = &Element> {
    live.child("devices").into_iter().flat_map(Element::elements)
}

fn alias(device: &Element) -> Option<&str> {
    device.child("alias")?.attr("name")
}

fn missing(what: &str, name: Option<&str>) -> Error {
    let message = match name {
        Some(name) => format!("cannot find {what} '{name}'"),
        None => format!("the domain has no {what}"),
    };
    Error::new(Condition::Internal, message)
}

/// Who has which console.
#[derive(Debug, Default)]
pub(crate) struct Consoles {
    held: Arc<Mutex<HashMap<(Uuid, PathBuf), Held>>>,
}

#[derive(Debug)]
struct Held {
    ticket: u64,
    /// Dropped to end the holder's stream.
    _end: oneshot::Sender<()>,
}

type Table = Arc<Mutex<HashMap<(Uuid, PathBuf), Held>>>;

fn lock(held: &Table) -> MutexGuard<'_, HashMap<(Uuid, PathBuf), Held>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Consoles {
    pub(crate) async fn open(
        &self,
        domain: Uuid,
        device: &Device,
        force: bool,
    ) -> Result<ServerStream> {
        let (place, ended) = self.take(domain, device.path(), force)?;
        let failed = |err: io::Error| {
            let errno = err.raw_os_error().unwrap_or_default();
            let path = device.path().display();
            Error::new(Condition::System(errno), format!("cannot open the console '{path}'"))
                .caused_by(err)
        };
        let place = Arc::new(place);
        match device {
            Device::Unix(path) => {
                let socket = UnixStream::connect(path).await.map_err(failed)?;
                let (read, write) = socket.into_split();
                let source = Source { inner: read, ended, _place: place.clone() };
                Ok(ServerStream::duplex(source, Sink { inner: write, _place: place }))
            }
            Device::Pty(path) => {
                let terminal = Terminal::open(path).map_err(failed)?;
                let source = Source { inner: terminal.clone(), ended, _place: place.clone() };
                Ok(ServerStream::duplex(source, Sink { inner: terminal, _place: place }))
            }
        }
    }

    fn take(
        &self,
        domain: Uuid,
        path: &Path,
        force: bool,
    ) -> Result<(Place, oneshot::Receiver<()>)> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static TICKETS: AtomicU64 = AtomicU64::new(0);
        let mut held = lock(&self.held);
        let key = (domain, path.to_owned());
        if held.contains_key(&key) && !force {
            return Err(Error::new(
                Condition::OperationFailed,
                "Active console session exists for this domain",
            ));
        }
        let ticket = TICKETS.fetch_add(1, Ordering::Relaxed);
        let (end, ended) = oneshot::channel();
        held.insert(key.clone(), Held { ticket, _end: end });
        Ok((Place { held: self.held.clone(), key, ticket }, ended))
    }
}

/// Gives the console up when dropped, unless somebody took it over.
#[derive(Debug)]
struct Place {
    held: Table,
    key: (Uuid, PathBuf),
    ticket: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        if held.get(&self.key).is_some_and(|holder| holder.ticket == self.ticket) {
            held.remove(&self.key);
        }
    }
}

/// Reads until the device ends or somebody else takes it.
struct Source<R> {
    inner: R,
    ended: oneshot::Receiver<()>,
    _place: Arc<Place>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Source<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if Pin::new(&mut self.ended).poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        match ready!(Pin::new(&mut self.inner).poll_read(cx, buffer)) {
            // A terminal whose other end is gone.
            Err(err) if err.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                Poll::Ready(Ok(()))
            }
            done => Poll::Ready(done),
        }
    }
}

struct Sink<W> {
    inner: W,
    _place: Arc<Place>,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Sink<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A pseudo-terminal whose master the hypervisor has.
#[derive(Debug, Clone)]
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let terminal = rustix::fs::open(path, flags, Mode::empty())?;
        // Bytes go through as they are: the client's own terminal does the editing.
        let mut settings = rustix::termios::tcgetattr(&terminal)?;
        settings.make_raw();
        rustix::termios::tcsetattr(&terminal, rustix::termios::OptionalActions::Now, &settings)?;
        #[expect(
            deprecated,
            reason = "an OwnedFd keeps one open descriptor: it is safe to register"
        )]
        let terminal = AsyncFd::new(terminal)?;
        Ok(Self(Arc::new(terminal)))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let unfilled = buffer.initialize_unfilled();
            match guard.try_io(|terminal| {
                Ok(rustix::io::read(terminal.get_ref().as_fd(), &mut *unfilled)?)
            }) {
                Ok(done) => {
                    buffer.advance(done?);
                    return Poll::Ready(Ok(()));
                }
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|terminal| Ok(rustix::io::write(terminal.get_ref().as_fd(), bytes)?))
            {
                Ok(done) => return Poll::Ready(done),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    fn live() -> Element {
        Element::parse(
            "<domain><devices><serial type='pty'><source path='/dev/pts/9'/>\
             <alias name='serial0'/></serial><serial type='unix'><source path='/s'/>\
             <alias name='serial1'/></serial><channel type='unix'><source path='/c'/>\
             <target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
             <serial type='file'><source path='/f'/><alias name='serial2'/></serial>\
             </devices></domain>",
        )
        .unwrap()
    }

    #[test]
    fn devices_are_found_by_their_names() {
        let live = live();
        assert_eq!(Device::console(&live, None).unwrap(), Device::Pty("/dev/pts/9".into()));
        assert_eq!(Device::console(&live, Some("serial1")).unwrap(), Device::Unix("/s".into()));
        let agent = Device::channel(&live, Some("org.qemu.guest_agent.0")).unwrap();
        assert_eq!(agent, Device::Unix("/c".into()));
        assert!(Device::console(&live, Some("serial2")).is_err());
        assert!(Device::console(&live, Some("nosuch")).is_err());
    }

    #[tokio::test]
    async fn one_client_at_a_time_unless_forced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let consoles = Consoles::default();
        let device = Device::Unix(path);
        let vm = Uuid::from_u128(1);

        let mut first = consoles.open(vm, &device, false).await.unwrap();
        let (mut guest, _) = listener.accept().await.unwrap();
        let err = consoles.open(vm, &device, false).await.unwrap_err();
        assert_eq!(err.condition, Condition::OperationFailed);

        guest.write_all(b"boot").await.unwrap();
        let mut read = [0; 4];
        first.source.as_mut().unwrap().read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"boot");
        first.sink.as_mut().unwrap().write_all(b"x").await.unwrap();
        guest.read_exact(&mut read[..1]).await.unwrap();
        assert_eq!(read[0], b'x');

        let second = consoles.open(vm, &device, true).await.unwrap();
        assert_eq!(first.source.as_mut().unwrap().read(&mut read).await.unwrap(), 0);
        drop(first);
        assert!(consoles.open(vm, &device, false).await.is_err(), "the second still has it");
        drop(second);
        consoles.open(vm, &device, false).await.unwrap();
    }
}
