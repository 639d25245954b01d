//! Deletions that take long, because the configuration says so: aborted, gone on with by the next
//! daemon, and guests that do not wait for them.

use std::process::{Child, Stdio};

use virtsnap_tests::host;
use virtsnap_tests::xen::{XenGuest, XenHost, XenSpec};

use crate::{boots, lent, sound, take};

/// What there is to merge takes a minute.
const SLOW: &str = "merge_bytes_per_second = 65536";
const MUCH: &str = "write -P 2 3M 4M";
const MARK: &str = "<snapshotDeleteInProgress/>";

fn spec() -> XenSpec {
    XenSpec::new("vm").disks(&["qcow2", "qcow2"])
}

fn configure(host: &mut XenHost, config: &str) {
    host.kill();
    host.config = config.to_owned();
    host.start();
}

/// one ─ two, and much between them; gives what the guest counted before.
fn with_much_to_merge(host: &mut XenHost) -> u64 {
    configure(host, SLOW);
    let vm = host.boot(spec());
    let before = take(&vm, "one --disk-only");
    vm.io("xvda", MUCH);
    take(&vm, "two --disk-only");
    before
}

/// A client that waits for its answer.
fn ask_to_delete(vm: &XenGuest<'_>) -> Child {
    let mut client = vm.host.virsh.command("snapshot-delete vm one");
    client.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    client.spawn().unwrap()
}

/// The same, when something of it is done.
fn delete(vm: &XenGuest<'_>) -> Child {
    let client = ask_to_delete(vm);
    host::wait("the merge to move", 60, || {
        let told = vm.host.virsh.run("domjobinfo vm --rawstats").stdout;
        let done = told.lines().find_map(|line| line.trim().strip_prefix("disk_processed:"));
        done.filter(|done| done.trim() != "0").map(drop)
    });
    client
}

/// What it complains about in the end.
#[track_caller]
fn complaint(client: Child) -> String {
    let output = client.wait_with_output().unwrap();
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn is_marked(vm: &XenGuest<'_>) -> bool {
    vm.virsh("snapshot-dumpxml {} one").contains(MARK)
}

/// Nothing is left of the first snapshot, and nothing was lost.
#[track_caller]
fn is_gone(vm: &XenGuest<'_>) {
    assert_eq!(vm.snapshots(), ["two"]);
    assert_eq!(vm.chain("xvda").len(), 2);
    assert!(vm.holds("xvda", 3, 2) && vm.holds("xvda", 6, 2));
    vm.count_on(1);
    sound(vm);
    vm.virsh("destroy {}");
    for target in ["xvda", "xvdb"] {
        vm.check(&vm.source(target));
        vm.check(vm.disk(target).to_str().unwrap());
    }
}

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_live_merge_is_aborted_and_the_next_is_taken_up() {
    let mut host = lent!();
    with_much_to_merge(&mut host);
    let vm = host.guest(spec());
    let client = delete(&vm);
    vm.virsh("domjobabort {}");
    let told = complaint(client);
    assert!(told.contains("operation aborted"), "{told}");
    assert!(is_marked(&vm));
    let told = vm.refused("snapshot-revert {} one --force");
    assert!(told.contains("delete it again"), "{told}");
    assert!(vm.holds("xvda", 3, 2));
    vm.count_on(1);

    // The job goes on without the daemon, and is let go on faster by anybody.
    let client = delete(&vm);
    drop(vm);
    host.kill();
    complaint(client);
    host.start();
    let vm = host.guest(spec());
    assert!(is_marked(&vm));
    vm.virsh(
        "qemu-monitor-command {} '{\"execute\": \"block-job-set-speed\", \
         \"arguments\": {\"device\": \"virtsnap-merge-xvda\", \"speed\": 0}}'",
    );
    host::wait("the merge to end", 120, || (vm.snapshots().len() == 1).then_some(()));
    is_gone(&vm);
}

/// It starts again on what it had, and the deletion is completed by whoever comes next.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_guest_reboots_in_the_middle_of_a_merge() {
    let mut host = lent!();
    let before = with_much_to_merge(&mut host);
    let vm = host.guest(spec());
    let client = delete(&vm);
    let (mark, source) = (vm.mark(), vm.source("xvda"));
    host.ok("xl reboot vm");
    boots(&vm, mark, before..u64::MAX);
    let told = complaint(client);
    assert!(told.contains("repeat it"), "{told}");
    assert_eq!(vm.source("xvda"), source);
    assert!(is_marked(&vm) && vm.holds("xvda", 3, 2));
    drop(vm);
    configure(&mut host, "");
    let vm = host.guest(spec());
    host::wait("the deletion to be completed", 120, || (vm.snapshots().len() == 1).then_some(()));
    is_gone(&vm);
}

/// It writes more in a second than is merged: it is held back, and let go when that does not help.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_merge_that_the_guest_outruns_is_ended() {
    let mut host = lent!();
    let slower = "merge_bytes_per_second = 32768\nmerge_window_seconds = 1\nmerge_throttles = 2";
    configure(&mut host, slower);
    let vm = host.boot(spec());
    take(&vm, "one --disk-only");
    let limits = || {
        let told = vm.virsh("qemu-monitor-command {} '{\"execute\":\"query-block\"}'");
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        let devices = told["return"].as_array().unwrap().iter();
        let limits = devices.filter_map(|device| device["inserted"]["bps_wr"].as_u64());
        limits.collect::<Vec<_>>()
    };
    assert_eq!(limits(), [0, 0]);
    let client = ask_to_delete(&vm);
    host::wait("the guest to be held back", 120, || {
        limits().iter().any(|limit| *limit > 0).then_some(())
    });
    let told = complaint(client);
    assert!(told.contains("faster than its layers can be merged"), "{told}");
    assert_eq!(limits(), [0, 0]);
    assert!(is_marked(&vm));
    vm.count_on(2);
    drop(vm);
    configure(&mut host, "");
    let vm = host.guest(spec());
    vm.virsh("snapshot-delete {} one");
    assert!(vm.snapshots().is_empty());
    vm.count_on(1);
    sound(&vm);
    vm.virsh("destroy {}");
    vm.check(&vm.source("xvda"));
}
