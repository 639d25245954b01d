//! Merges that get nowhere: QEMU or qemu-img stands still, the storage does not answer, or the
//! guest writes faster. Each is ended, with the chain as it was; the guest goes on as soon as it
//! can; and the same deletion, asked for again, merges.
//!
//! What stands still was stopped at a point that was seen, and nothing is measured: a test waits
//! for what the client is told.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use virtsnap_tests::faults::signal;
use virtsnap_tests::guest::Mark;
use virtsnap_tests::{Daemon, Guest, GuestSpec, World, host, images};

/// QEMU moves 16 MiB at once, and then pauses for 4 s: 80 MiB take 16 s.
const SLOW: &str = "merge_bytes_per_second = 4194304\nmerge_stall_seconds = 4\n";
const MARK: &str = "<snapshotDeleteInProgress/>";

fn world(config: &str) -> World {
    let mut world = World::stopped(Daemon::Virtsnapd);
    world.config = config.to_owned();
    world.start();
    world
}

/// The daemon comes back, and merges as fast as it can.
fn hurry(world: &mut World) {
    world.stop();
    world.config.clear();
    world.start();
}

/// What the client of a deletion complains about.
#[track_caller]
fn complaint(client: Child) -> String {
    let output = client.wait_with_output().expect("it is ours");
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn wait_for_progress(vm: &Guest<'_>) {
    let moved = || {
        let told = vm.world.virsh.run(&format!("domjobinfo {} --rawstats", vm.name())).stdout;
        let line = told.lines().find(|line| line.trim_start().starts_with("disk_processed"))?;
        let done: u64 = line.rsplit(':').next()?.trim().parse().ok()?;
        (done > 2 << 20).then_some(())
    };
    host::wait("a merge to move", 60, moved);
}

/// The snapshot `one` is marked and nothing else has changed; no job is on.
#[track_caller]
fn is_put_aside(vm: &Guest<'_>, overlay: &str) {
    assert_eq!(vm.source("vda"), overlay);
    assert_eq!(images::chain(Path::new(overlay)).len(), 2);
    assert!(vm.virsh("snapshot-dumpxml {} one").contains(MARK));
    if vm.state() != "shut off" {
        assert!(vm.virsh("domjobinfo {}").contains("None"));
        let jobs = vm.virsh("qemu-monitor-command {} '{\"execute\":\"query-jobs\"}'");
        assert!(jobs.contains("\"return\":[]"), "{jobs}");
    }
}

/// It is deleted at last, by the same call, and all is in one sound file.
#[track_caller]
fn is_deleted(vm: &Guest<'_>, base: &str) {
    vm.virsh("snapshot-delete {} one");
    assert_eq!(vm.snapshots(), [""; 0]);
    assert_eq!(vm.source("vda"), base);
    if vm.spec.boots {
        vm.count_on(2);
        vm.never_mismatched();
    }
    if vm.state() != "shut off" {
        vm.virsh("destroy {}");
    }
    images::check(Path::new(base));
    for (mib, pattern) in [(4, 2), (9, 2), (83, 2)] {
        assert!(vm.holds("vda", mib, pattern), "at {mib} MiB");
    }
}

/// A guest that counts and has 80 MiB above the snapshot `one`: it, its base and its overlay.
fn with_much_to_merge(world: &World) -> (Guest<'_>, String, String) {
    let vm = world.define(GuestSpec::new("vm"));
    let base = vm.source("vda");
    images::resize(Path::new(&base), "96M");
    vm.virsh("start {}");
    vm.booted(Mark::start());
    vm.virsh("snapshot-create-as {} one --disk-only");
    vm.live_io("vda", "write -P 2 4M 80M");
    vm.count_on(1);
    let overlay = vm.source("vda");
    (vm, base, overlay)
}

/// The job is there and QEMU answers, but it moves nothing.
#[test]
fn a_job_that_moves_nothing_is_ended() {
    let mut world = world(SLOW);
    let (vm, base, overlay) = with_much_to_merge(&world);
    let client = world.ask("snapshot-delete vm one");
    wait_for_progress(&vm);
    let pause = r#"{"execute":"job-pause","arguments":{"id":"virtsnap-merge-vda"}}"#;
    vm.virsh(&format!("qemu-monitor-command {{}} '{pause}'"));
    let told = complaint(client);
    assert!(told.contains("nothing was merged for"), "{told}");
    assert!(told.contains("delete them again"), "{told}");
    is_put_aside(&vm, &overlay);
    vm.count_on(2);
    let spec = vm.spec.clone();
    hurry(&mut world);
    is_deleted(&world.guest(spec), &base);
}

/// QEMU itself stands still, guest and monitor and all. Whether its job goes on nobody knows.
#[test]
fn a_qemu_that_stands_still_in_a_merge_goes_on() {
    let world = world(SLOW);
    let (vm, base, overlay) = with_much_to_merge(&world);
    let at = vm.last_match().expect("it counts");
    let client = world.ask("snapshot-delete vm one");
    wait_for_progress(&vm);
    let qemu = world.qemu();
    signal("STOP", &qemu);
    let told = complaint(client);
    assert!(told.contains("outcome is unknown") || told.contains("repeat it"), "{told}");
    // Nothing was concluded from its silence.
    assert!(Path::new(&overlay).exists() && world.journal().is_some());
    signal("CONT", &qemu);
    vm.reach(at + 2);
    assert_eq!(world.qemu(), qemu);
    assert_eq!(vm.source("vda"), overlay);
    assert!(vm.virsh("snapshot-dumpxml {} one").contains(MARK));
    vm.live_io("vda", "read -P 2 4M 80M");
    is_deleted_by_the_same_daemon(&vm, "vda");
    assert_eq!(vm.source("vda"), base);
    vm.count_on(2);
    vm.never_mismatched();
    vm.virsh("destroy {}");
    images::check(Path::new(&base));
    assert!(vm.holds("vda", 4, 2) && vm.holds("vda", 83, 2));
}

/// By the same call, whose merge is let go as fast as it can.
#[track_caller]
fn is_deleted_by_the_same_daemon(vm: &Guest<'_>, target: &str) {
    let mut again = vm.world.ask("snapshot-delete vm one");
    let speed = format!(
        r#"{{"execute":"block-job-set-speed","arguments":{{"device":"virtsnap-merge-{target}","speed":0}}}}"#
    );
    host::wait("the deletion to end", 60, || {
        vm.world.virsh.run(&format!("qemu-monitor-command vm '{speed}'"));
        again.try_wait().expect("it is ours")
    });
    let told = again.wait_with_output().expect("it is ours");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    assert_eq!(vm.snapshots(), [""; 0]);
}

/// The base is on a server that stops answering: QEMU cannot even end the job.
#[test]
fn a_merge_into_a_server_that_stops_answering_goes_on_with_the_server() {
    let world = world(SLOW);
    let file = world.path("exported");
    images::create(&file, "raw", "96M");
    let socket = world.path("nbd.sock");
    let mut server = Command::new("qemu-nbd")
        .args(["--persistent", "--shared=0", "--format=raw", "--export-name=vm"])
        .arg(format!("--socket={}", socket.display()))
        .arg(&file)
        .stdin(Stdio::null())
        .spawn()
        .expect("qemu-nbd is there");
    host::wait("the NBD server", 30, || socket.exists().then_some(()));
    let devices = format!(
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/>\
         <source protocol='nbd' name='vm'><host transport='unix' socket='{}'/></source>\
         <target dev='vdb' bus='virtio'/></disk>",
        socket.display()
    );
    let vm = world.define(GuestSpec { devices, ..GuestSpec::idle("vm") });
    vm.virsh("start {}");
    let overlay = world.path("over");
    let take = "snapshot-create-as {} one --disk-only --diskspec vda,snapshot=no --diskspec";
    vm.virsh(&format!("{take} vdb,file={}", overlay.display()));
    vm.live_io("vdb", "write -P 2 4M 80M");
    let client = world.ask("snapshot-delete vm one");
    wait_for_progress(&vm);
    signal("STOP", &[server.id()]);
    let told = complaint(client);
    assert!(told.contains("does not end"), "{told}");
    assert!(overlay.exists() && world.journal().is_some());
    assert_eq!(vm.state(), "running");
    assert!(vm.virsh("snapshot-dumpxml {} one").contains(MARK));
    signal("CONT", &[server.id()]);
    is_deleted_by_the_same_daemon(&vm, "vdb");
    assert!(!overlay.exists());
    vm.virsh("destroy {}");
    let _ = server.kill();
    server.wait().expect("it is ours");
    assert!(images::reads(&file, "raw", 2, 4 << 20, 80 << 20));
}

/// qemu-img stands still while it merges into the base of a domain that is off, or into its top.
#[test]
fn a_qemu_img_that_stands_still_is_given_up() {
    let mut world = world(SLOW);
    let vm = world.define(GuestSpec::idle("vm"));
    let base = vm.source("vda");
    images::resize(Path::new(&base), "96M");
    vm.virsh("snapshot-create-as {} one --disk-only");
    let overlay = vm.source("vda");
    images::io(Path::new(&overlay), "qcow2", "write -P 2 4M 80M");
    let client = world.ask("snapshot-delete vm one");
    wait_for_progress(&vm);
    let tool = world.processes("qemu-img");
    signal("STOP", &tool);
    let told = complaint(client);
    assert!(told.contains("made no progress"), "{told}");
    assert_eq!(world.processes("qemu-img"), [0; 0]);
    is_put_aside(&vm, &overlay);
    images::check(Path::new(&base));
    images::check(Path::new(&overlay));
    vm.virsh("start {}");
    assert!(vm.holds("vda", 4, 2) && vm.holds("vda", 83, 2));
    vm.virsh("destroy {}");
    let spec = vm.spec.clone();
    hurry(&mut world);
    is_deleted(&world.guest(spec), &base);
}

/// What QEMU limits the guest's writes to the disk to, in bytes a second.
#[track_caller]
fn limit(vm: &Guest<'_>) -> u64 {
    let told = vm.virsh("qemu-monitor-command {} '{\"execute\":\"query-block\"}'");
    let (_, after) = told.split_once("\"bps_wr\":").expect("a limit is told");
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

/// A guest that writes into 16 clusters of its disk as fast as it can, above the snapshot `one`.
/// More than four of them a second cannot be merged, so that it always has a lead.
fn that_floods(world: &World) -> (Guest<'_>, String, String) {
    let vm = world.boot(GuestSpec::new("vm"));
    let base = vm.source("vda");
    for (mib, pattern) in [(12, 2), (13, 2)] {
        vm.write("vda", mib, pattern);
    }
    vm.virsh("snapshot-create-as {} one --disk-only");
    vm.type_line("flood 16", "FLOODING 16");
    let overlay = vm.source("vda");
    (vm, base, overlay)
}

const FOUR_CLUSTERS: &str = "merge_bytes_per_second = 262144\nmerge_window_seconds = 3\n";

/// Without an end to its flood: it is held back to what the merge can follow, and then let go.
#[test]
fn a_guest_that_writes_faster_is_held_back_until_its_layers_are_merged() {
    let world = world(FOUR_CLUSTERS);
    let (vm, base, _) = that_floods(&world);
    assert_eq!(limit(&vm), 0);
    let mut client = world.ask("snapshot-delete vm one");
    host::wait("the guest to be held back", 120, || {
        assert!(client.try_wait().expect("it is ours").is_none(), "it merged without");
        (limit(&vm) > 0).then_some(())
    });
    let told = client.wait_with_output().expect("it is ours");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    assert_eq!(limit(&vm), 0, "it is let go");
    assert_eq!((vm.snapshots(), vm.source("vda")), (Vec::new(), base.clone()));
    assert_eq!(images::chain(Path::new(&base)).len(), 1);
    vm.count_on(2);
    vm.type_line("flood 0", "FLOODING 0");
    let last = vm.count_on(1);
    vm.never_mismatched();
    let mark = vm.mark();
    vm.virsh("destroy {}");
    images::check(Path::new(&base));
    assert!(vm.holds("vda", 12, 2));
    vm.virsh("start {}");
    assert!(vm.booted(mark) >= last);
}

/// Where the guest may not be held back, the merge is ended: in the midst of the flood the chain is
/// whole, and when the storage is fast enough, it merges.
#[test]
fn a_guest_that_writes_faster_and_is_not_held_back_ends_the_merge() {
    let mut world = world(&format!("{FOUR_CLUSTERS}merge_throttles = 0\n"));
    let (vm, base, overlay) = that_floods(&world);
    let told = complaint(world.ask("snapshot-delete vm one"));
    assert!(told.contains("faster than its layers can be merged"), "{told}");
    assert_eq!(limit(&vm), 0);
    is_put_aside(&vm, &overlay);
    vm.count_on(2);
    let spec = vm.spec.clone();
    hurry(&mut world);
    let vm = world.guest(spec);
    vm.virsh("snapshot-delete {} one");
    assert_eq!((vm.snapshots(), vm.source("vda")), (Vec::new(), base.clone()));
    vm.count_on(1);
    vm.never_mismatched();
    vm.virsh("destroy {}");
    images::check(Path::new(&base));
    assert!(vm.holds("vda", 12, 2) && vm.holds("vda", 13, 2));
}
