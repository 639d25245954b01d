//! Sockets that systemd made for us (sd_listen_fds): which process they are for, how many there
//! are and what they are called stands in LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES.
//!
//! The variables stay in the environment: they name our process id, so children do not take
//! them for their own.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::server::Listener;

/// The sockets we were started with, if any: with them the daemon makes none itself. Must be
/// called inside the runtime, before the program opens anything that lives in these numbers;
/// a second call gets none.
pub(crate) fn listeners() -> io::Result<Vec<Listener>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let mut listeners = Vec::new();
    for (number, name) in sd_notify::listen_fds_with_names()? {
        // SAFETY: systemd opened this descriptor for this process (LISTEN_PID was compared) and
        // sd-notify has just set its close-on-exec flag, so it is open. Nothing else owns it:
        // it is handed out here only, and once, as TAKEN says.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        // Without LISTEN_FDNAMES, and for sockets of inetd's kind, the name is this word.
        let unit = Some(name.as_str()).filter(|&name| name != "unknown" && !name.is_empty());
        listeners.push(Listener::inherited(socket, unit)?);
    }
    Ok(listeners)
}
