//! What a child does between fork and exec, for which there is no safe wrapper. The only unsafe code
//! of this crate.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::CapabilitySets;

/// Lets a tool that reads what a guest may have written do no more than reach files: it runs as
/// root where we do, since images belong to many users. It dies with the thread that starts it, and
/// so with this process, however that ends: what it has open is free when another daemon looks.
pub fn confine_tool(command: &mut Command) {
    /// Numbers of linux/capability.h.
    const CAP_DAC_OVERRIDE: libc::c_ulong = 1;
    const CAP_DAC_READ_SEARCH: libc::c_ulong = 2;
    let in_child = || {
        inherit_nothing()?;
        drop_capabilities(&[CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH])?;
        never_more_privileges()?;
        let kill = Some(rustix::process::Signal::KILL);
        Ok(rustix::process::set_parent_process_death_signal(kill)?)
    };
    // SAFETY: as in `Detached::apply`: system calls only.
    unsafe { command.pre_exec(in_child) };
}

/// No descriptor goes along but the first three and what is duplicated after this, whatever
/// a library opened or we were started with.
pub fn inherit_nothing() -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: marks descriptors to be closed by exec; it closes none now.
    let outcome = unsafe {
        libc::syscall(libc::SYS_close_range, 3_u32, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC)
    };
    match outcome {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes all capabilities but these out of what exec can give, even to root. Who is not root has
/// none and may not do this, and needs not.
pub fn drop_capabilities(kept: &[libc::c_ulong]) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let none = libc::c_ulong::default();
    // SAFETY: these calls take numbers only, and change this process alone.
    unsafe {
        for capability in 0.. {
            if libc::prctl(libc::PR_CAPBSET_READ, capability, none, none, none) < 0 {
                // The kernel knows no more of them.
                break;
            }
            if !kept.contains(&capability)
                && libc::prctl(libc::PR_CAPBSET_DROP, capability, none, none, none) < 0
            {
                // A root that may not do this is confined by somebody else: a container.
                let err = io::Error::last_os_error();
                return if err.raw_os_error() == Some(libc::EPERM) { Ok(()) } else { Err(err) };
            }
        }
        let all = libc::PR_CAP_AMBIENT_CLEAR_ALL;
        if libc::prctl(libc::PR_CAP_AMBIENT, all, none, none, none) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let own = rustix::thread::capabilities(None)?;
    let inheritable = rustix::thread::CapabilitySet::empty();
    Ok(rustix::thread::set_capabilities(None, CapabilitySets { inheritable, ..own })?)
}

/// No program run from now on gains anything by being set-user-id or by file capabilities, and
/// none leaves a core dump, which would hold the guest's memory.
pub fn never_more_privileges() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{says, status_of_child};

    #[test]
    fn a_tool_that_reads_images_can_reach_files_and_no_more() {
        let status = status_of_child(confine_tool);
        says(&status, "NoNewPrivs", "1");
        says(&status, "CapInh", "0000000000000000");
        if rustix::process::geteuid().is_root() {
            for set in ["CapPrm", "CapEff", "CapBnd"] {
                says(&status, set, "0000000000000006");
            }
        }
    }
}
