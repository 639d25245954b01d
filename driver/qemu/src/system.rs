//! The few system calls without a safe wrapper. The only unsafe code of this crate.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::confine::Owner;

/// Watches a descriptor for readability.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` gives the same open descriptor for as long as it lives, and the
    // `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// What a long-lived child gets beyond what [`Command`] can say.
#[derive(Debug)]
pub(crate) struct Detached {
    /// Kept open, under the same number.
    pub(crate) fds: Vec<OwnedFd>,
    /// Run as this user with its supplementary groups.
    pub(crate) user: Option<Owner>,
}

impl Detached {
    /// Prepares `command` to start in a session of its own.
    pub(crate) fn apply(self, command: &mut Command) -> io::Result<()> {
        let groups = match self.user {
            Some(user) => Some((user, supplementary_groups(user)?)),
            None => None,
        };
        let fds = self.fds;
        let in_child = move || {
            rustix::process::setsid()?;
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o002));
            for fd in &fds {
                rustix::io::fcntl_setfd(fd.as_fd(), rustix::io::FdFlags::empty())?;
            }
            if let Some((user, groups)) = &groups {
                become_user(*user, groups)?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls only: it allocates
        // nothing, takes no lock and touches no state of other threads.
        unsafe { command.pre_exec(in_child) };
        Ok(())
    }

    pub(crate) fn number(fd: &OwnedFd) -> RawFd {
        fd.as_raw_fd()
    }
}

fn become_user(user: Owner, groups: &[libc::gid_t]) -> io::Result<()> {
    let check = |outcome: libc::c_int| match outcome {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: `groups` is a valid list of `groups.len()` numbers; the calls are async-signal-safe.
    unsafe {
        check(libc::setgroups(groups.len(), groups.as_ptr()))?;
        check(libc::setgid(user.gid))?;
        check(libc::setuid(user.uid))
    }
}

/// The groups of that user in the system's database, `gid` among them.
fn supplementary_groups(user: Owner) -> io::Result<Vec<libc::gid_t>> {
    let Some(name) = user_name(user.uid)? else { return Ok(vec![user.gid]) };
    let mut groups: Vec<libc::gid_t> = vec![0; 256];
    let mut count = 256;
    // SAFETY: `name` ends in a zero byte, and `groups` has room for `count` numbers.
    let outcome =
        unsafe { libc::getgrouplist(name.as_ptr(), user.gid, groups.as_mut_ptr(), &raw mut count) };
    if outcome < 0 {
        return Err(io::Error::other("QEMU's user is in too many groups"));
    }
    groups.truncate(usize::try_from(count).unwrap_or(0));
    Ok(groups)
}

fn user_name(uid: u32) -> io::Result<Option<CString>> {
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    name.map(CString::new).transpose().map_err(io::Error::from)
}
