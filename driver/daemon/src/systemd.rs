//! Sockets that systemd opened for us, and telling it how we are.
//!
//! The only unsafe code of this crate: a number in the environment becomes a descriptor.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Once;

use sd_notify::NotifyState;

/// A socket from systemd, with its unit's name.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) socket: OwnedFd,
    pub(crate) unit: Option<String>,
}

/// The sockets of LISTEN_FDS; none when systemd did not start us. The second call gets none.
pub(crate) fn inherited() -> io::Result<Vec<Inherited>> {
    static TAKEN: Once = Once::new();
    let mut found: Vec<(RawFd, Option<String>)> = Vec::new();
    if TAKEN.is_completed() {
        return Ok(Vec::new());
    }
    TAKEN.call_once(|| {});
    let named = std::env::var_os("LISTEN_FDNAMES").is_some();
    if named {
        found.extend(sd_notify::listen_fds_with_names()?.map(|(fd, name)| (fd, Some(name))));
    } else {
        found.extend(sd_notify::listen_fds()?.map(|fd| (fd, None)));
    }
    let take = |(fd, unit)| {
        // SAFETY: LISTEN_PID is our own pid (sd_notify checks it), so systemd opened these
        // descriptors for this process and left them to it; `TAKEN` makes this the only place
        // and time that they are taken.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        Inherited { socket, unit }
    };
    let inherited: Vec<Inherited> = found.into_iter().map(take).collect();
    for one in &inherited {
        rustix::io::fcntl_setfd(&one.socket, rustix::io::FdFlags::CLOEXEC)?;
    }
    Ok(inherited)
}

pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState]) {
    if let Err(err) = sd_notify::notify(state) {
        tracing::warn!(%err, "cannot tell systemd how we are");
    }
}
