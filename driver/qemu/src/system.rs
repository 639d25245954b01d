//! The few system calls without a safe wrapper. The only unsafe code of this crate.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use virtsnap_block::child::{drop_capabilities, inherit_nothing, never_more_privileges};

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
    /// Passed on, under these numbers. They must be above any that this process uses.
    pub(crate) fds: Vec<(RawFd, OwnedFd)>,
    /// Run as this user with its supplementary groups.
    pub(crate) user: Option<Owner>,
    /// It is to lock all its memory, without the capability that this takes otherwise.
    pub(crate) locks_memory: bool,
}

impl Detached {
    /// Prepares `command` to start in a session of its own, with no capability, not even as root,
    /// and no way to get one.
    pub(crate) fn apply(self, command: &mut Command) -> io::Result<()> {
        let groups = match self.user {
            Some(user) => Some((user, supplementary_groups(user)?)),
            None => None,
        };
        let (fds, locks_memory) = (self.fds, self.locks_memory);
        let in_child = move || {
            rustix::process::setsid()?;
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o002));
            inherit_nothing()?;
            for (number, fd) in &fds {
                duplicate(fd, *number)?;
            }
            if locks_memory {
                unlimited_locked_memory()?;
            }
            drop_capabilities(&[])?;
            if let Some((user, groups)) = &groups {
                become_user(*user, groups)?;
            }
            never_more_privileges()
        };
        // SAFETY: between fork and exec the closure makes system calls only: it allocates
        // nothing, takes no lock and touches no state of other threads.
        unsafe { command.pre_exec(in_child) };
        Ok(())
    }
}

fn unlimited_locked_memory() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    Ok(setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None })?)
}

/// Puts a descriptor under a number, for the program that is about to be executed.
fn duplicate(fd: &OwnedFd, number: RawFd) -> io::Result<()> {
    // SAFETY: in the child, between fork and exec, no Rust value owns `number`: the caller keeps
    // these numbers above all that the process uses.
    match unsafe { libc::dup2(fd.as_raw_fd(), number) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
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

/// Opens one queue of a tap device; returns the name it has got. `%d` in a name is a free number.
pub(crate) fn open_tap(
    name: &str,
    vnet_header: bool,
    multiqueue: bool,
) -> io::Result<(OwnedFd, String)> {
    let fd: OwnedFd = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?.into();
    // SAFETY: `ifreq` is plain data, for which zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::other(format!("'{name}' is too long for an interface's name")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut kind = libc::IFF_TAP | libc::IFF_NO_PI;
    if vnet_header {
        kind |= libc::IFF_VNET_HDR;
    }
    if multiqueue {
        kind |= libc::IFF_MULTI_QUEUE;
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(kind).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives across the call.
    let outcome = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    let given = request.ifr_name.iter().take_while(|&&c| c != 0).flat_map(|c| c.to_ne_bytes());
    Ok((fd, String::from_utf8_lossy(&given.collect::<Vec<_>>()).into_owned()))
}

/// Opens /dev/vhost-vsock for one guest CID.
pub(crate) fn open_vsock(cid: u64) -> io::Result<OwnedFd> {
    /// `_IOW(VHOST_VIRTIO, 0x60, __u64)` of linux/vhost.h.
    const VHOST_VSOCK_SET_GUEST_CID: libc::c_ulong = 0x4008_af60;
    let fd: OwnedFd =
        std::fs::File::options().read(true).write(true).open("/dev/vhost-vsock")?.into();
    // SAFETY: the request reads one u64, which lives across the call.
    let outcome = unsafe { libc::ioctl(fd.as_raw_fd(), VHOST_VSOCK_SET_GUEST_CID, &raw const cid) };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use virtsnap_block::testing::{says, status_of_child};

    use super::*;

    #[test]
    fn a_long_lived_child_has_no_capability() {
        let child = Detached { fds: Vec::new(), user: None, locks_memory: false };
        let status = status_of_child(|command| child.apply(command).unwrap());
        says(&status, "NoNewPrivs", "1");
        says(&status, "CapEff", "0000000000000000");
        if rustix::process::geteuid().is_root() {
            says(&status, "CapBnd", "0000000000000000");
        }
    }

    #[test]
    fn descriptors_go_along_only_when_they_are_meant_to() {
        let (reader, writer) = std::io::pipe().unwrap();
        let open = OwnedFd::from(writer);
        rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap();
        let child = Detached { fds: vec![(700, reader.into())], user: None, locks_memory: false };
        let mut command = Command::new("ls");
        command.arg("/proc/self/fd").stdin(Stdio::null());
        child.apply(&mut command).unwrap();
        let listed = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let numbers: Vec<i32> = listed.lines().map(|line| line.parse().unwrap()).collect();
        assert!(numbers.contains(&700), "{numbers:?}");
        assert!(!numbers.contains(&open.as_raw_fd()) || open.as_raw_fd() == 3, "{numbers:?}");
        assert!(numbers.len() <= 5, "{numbers:?}");
    }
}
