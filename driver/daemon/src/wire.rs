//! The socket calls that tokio has no form for: bytes together with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use virtsnap_rpc::message::FDS_MAX;

/// Reads what is there, with the descriptors that came with it. No bytes means the end.
///
/// The kernel ends a read behind bytes that carry descriptors, so one read never mixes those of
/// two messages. More descriptors at once than a message may announce is an error.
pub(crate) async fn receive(
    socket: &UnixStream,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    socket
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let got = rustix::net::recvmsg(
                socket.as_fd(),
                &mut [IoSliceMut::new(buffer)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
            )?;
            let mut fds = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            if got.flags.contains(ReturnFlags::CTRUNC) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "more descriptors at once than a message may carry",
                ));
            }
            Ok((got.bytes, fds))
        })
        .await
}

pub(crate) async fn send_all(socket: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = socket
            .async_io(Interest::WRITABLE, || {
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                Ok(rustix::net::send(socket.as_fd(), bytes, flags)?)
            })
            .await?;
        bytes = bytes.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// One descriptor on one dummy byte, as libvirt does it.
pub(crate) async fn send_fd(socket: &UnixStream, fd: &OwnedFd) -> io::Result<()> {
    socket
        .async_io(Interest::WRITABLE, || {
            let fds = [fd.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(io::Error::other("no room for a descriptor"));
            }
            rustix::net::sendmsg(
                socket.as_fd(),
                &[IoSlice::new(&[0])],
                &mut control,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            )?;
            Ok(())
        })
        .await
}
