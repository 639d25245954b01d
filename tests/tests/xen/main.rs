//! On a real Xen host: `make test-xen` boots the one of `tests/host/xen` under emulation, with
//! virtsnapd in its dom0, and runs these outside, with this machine's unmodified virsh.
//!
//! - [`calls`]: what clients ask of the daemon and of snapshots, mostly of a guest that is off.
//! - [`consumers`]: management software, by its own calls.
//! - [`life`]: domains come and go; [`beside_xl`]: those that xl started; [`files_for_xl`]: what xl's
//!   users read of our snapshots, and we of theirs.
//! - [`kept`], [`refused`], [`hazards`], [`options`]: of guests that are off or stand still; they and
//!   [`consumers`] are of `make test-xen-all` alone.
//! - [`snapshots`]: taken and reverted to; [`merges`]: deleted; [`jobs`]: watched and aborted;
//!   [`long_merges`]: deletions that do not come to an end, of `make test-xen-all` alone.
//! - [`backends`]: disks on devices, disks of the kernel's, and of formats that not everybody reads.
//! - [`killed`]: virtsnapd is killed inside operations (`make torture-xen` for more rounds).
//!
//! What proves a revert is the guest itself: it counts once a second in its memory and on each disk,
//! and says `MATCH` while they agree (`tests/guest`). One test lets it say `MISMATCH`.

#![expect(clippy::unwrap_used, reason = "a test")]

mod backends;
mod beside_xl;
mod calls;
mod consumers;
mod files_for_xl;
mod hazards;
mod jobs;
mod kept;
mod killed;
mod life;
mod long_merges;
mod merges;
mod options;
mod refused;
mod snapshots;

use std::ops::Range;

use virtsnap_tests::guest::Mark;
use virtsnap_tests::xen::XenGuest;
use virtsnap_tests::{host, virsh};

/// The host, empty; a test that has none says so.
macro_rules! lent {
    () => {
        match virtsnap_tests::xen::XenHost::lent() {
            Some(host) => host,
            None => virtsnap_tests::skip!("make test-xen boots the Xen host"),
        }
    };
}
pub(crate) use lent;

/// Lets it count on and takes a snapshot; gives the number that this cannot be older than.
#[track_caller]
pub(crate) fn take(vm: &XenGuest<'_>, how: &str) -> u64 {
    let before = vm.count_on(1);
    vm.virsh(&format!("snapshot-create-as {{}} {how}"));
    before
}

/// Reverts to a snapshot with memory, from whatever state, and resumes the guest where that leaves it
/// paused. It must go on from a moment when it counted something of that range, with the memory of it
/// and the disks of it, and not boot.
#[track_caller]
pub(crate) fn goes_back(vm: &XenGuest<'_>, how: &str, range: &Range<u64>) {
    let ran = vm.state() == "running";
    let mark = vm.mark();
    vm.virsh(&format!("snapshot-revert {{}} {how}"));
    if vm.state() == "paused" {
        vm.virsh("resume {}");
    }
    let n = if ran { jumped(vm, mark) } else { vm.next_match(mark) };
    assert!(range.contains(&n), "it went on at {n}, which is not of {range:?}");
    vm.reach_after(mark, n + 1);
    assert!(vm.lines(mark).iter().all(|line| !line.starts_with("START")), "it booted");
    sound(vm);
}

/// Waits until it counts from somewhere else than where it was at the mark, or went on to from there.
#[track_caller]
fn jumped(vm: &XenGuest<'_>, mark: Mark) -> u64 {
    let before = vm.last_match_before(mark).unwrap();
    host::wait("the guest to count from another moment", vm.patience, || {
        let mut last = before;
        let lines = vm.lines(mark);
        let mut counts = lines.iter().filter_map(|line| line.strip_prefix("MATCH ")?.parse().ok());
        counts.find(|&count| count != std::mem::replace(&mut last, count) + 1)
    })
}

/// After the mark the guest booted and found a number of that range on each of its disks.
#[track_caller]
pub(crate) fn boots(vm: &XenGuest<'_>, mark: Mark, range: Range<u64>) {
    let n = vm.booted(mark);
    assert!(range.contains(&n), "it found {n} on its disk, which is not of {range:?}");
    sound(vm);
}

/// Memory and disks never disagreed, nor did disks when it booted. Who was stopped between his writes
/// to two disks left them one apart.
#[track_caller]
pub(crate) fn sound(vm: &XenGuest<'_>) {
    vm.never_mismatched();
    let mut found = 0;
    for line in vm.lines(Mark::start()) {
        assert!(!line.starts_with("ERROR"), "{line}");
        let Some(start) = line.strip_prefix("START ") else { continue };
        let number = |word: Option<&str>| word.and_then(|word| word.parse::<u64>().ok()).unwrap();
        match start.split_once(" says ") {
            None => found = number(start.split(' ').next()),
            Some((disk, says)) => {
                assert!(
                    found.abs_diff(number(Some(says))) < 2,
                    "{found} on xvda, {says} on {disk}"
                );
            }
        }
    }
}

/// That of a guest which is off, as it stands on both disks.
#[track_caller]
pub(crate) fn count_on_disks(vm: &XenGuest<'_>) -> u64 {
    let of = |target| vm.count_on_disk(&vm.source(target));
    let (a, b) = (of("xvda"), of("xvdb"));
    assert!(a.abs_diff(b) < 2, "{a} on xvda, {b} on xvdb");
    a.min(b)
}

/// Outside of that host.
#[test]
fn without_libxl_the_daemon_says_what_is_missing() {
    let config = tempfile::NamedTempFile::new().unwrap();
    let mut daemon = std::process::Command::new(host::virtsnapd());
    let dir = tempfile::tempdir().unwrap();
    let text = format!("run_dir = '{0}/run'\nstate_dir = '{0}/lib'\n", dir.path().display());
    std::fs::write(config.path(), text).unwrap();
    daemon.args(["--hypervisor", "xen", "--config"]).arg(config.path());
    let outcome = virsh::finish(&mut daemon, "virtsnapd");
    let said = outcome.stdout + &outcome.stderr;
    assert!(!outcome.success && said.contains("libxenlight"), "{said}");
    assert!(said.contains("not installed"), "{said}");
}
