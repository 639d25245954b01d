//! Merges of deletions that take long: watched, aborted, gone on with, ended when they get nowhere.
//!
//! They are slow because the configuration says so (`merge_bytes_per_second`), and nothing is
//! measured: each test waits for a state, and the abort comes long before the end.

use std::path::Path;
use std::process::{Child, Stdio};

use virtsnap_tests::{Guest, GuestSpec, World, host, images};

/// 10 MiB take minutes.
const SLOW: &str = "merge_bytes_per_second = 65536\n";
const MARK: &str = "<snapshotDeleteInProgress/>";

fn slow_world(more: &str) -> World {
    let mut world = World::stopped(virtsnap_tests::Daemon::Virtsnapd);
    world.config = format!("{SLOW}{more}");
    world.start();
    world
}

/// The daemon comes back, and merges as fast as it can.
fn hurry(world: &mut World) {
    world.stop();
    world.config.clear();
    world.start();
}

/// A client that waits for its answer.
fn ask(vm: &Guest<'_>, line: &str) -> Child {
    let mut client = vm.world.virsh.command(&line.replace("{}", vm.name()));
    client.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    client.spawn().expect("virsh is there")
}

/// What it complains about in the end.
#[track_caller]
fn complaint(client: Child) -> String {
    let output = client.wait_with_output().expect("it is ours");
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Bytes done and in all, while a deletion goes on.
fn progress(vm: &Guest<'_>) -> Option<(f64, f64)> {
    // Of a domain that is off it is refused while there is no job.
    let told = vm.world.virsh.run(&format!("domjobinfo {} --rawstats", vm.name())).stdout;
    let number = |field: &str| {
        let line = told.lines().find(|line| line.trim_start().starts_with(field))?;
        line.rsplit(':').next()?.trim().parse().ok()
    };
    Some((number("disk_processed")?, number("disk_total")?))
}

#[track_caller]
fn wait_for_progress(vm: &Guest<'_>) -> (f64, f64) {
    host::wait("a merge to move", 60, || progress(vm).filter(|(done, _)| *done > 0.0))
}

#[track_caller]
fn is_marked(vm: &Guest<'_>, snapshot: &str) -> bool {
    vm.virsh(&format!("snapshot-dumpxml {{}} {snapshot}")).contains(MARK)
}

/// No job is on, of ours or of QEMU's.
#[track_caller]
fn nothing_goes_on(vm: &Guest<'_>) {
    assert!(vm.virsh("domjobinfo {}").contains("None"));
    let jobs = vm.virsh("qemu-monitor-command {} '{\"execute\":\"query-jobs\"}'");
    assert!(jobs.contains("\"return\":[]"), "{jobs}");
}

#[test]
fn a_live_merge_is_aborted_and_the_next_deletion_goes_on() {
    let mut world = slow_world("");
    let vm = world.boot(GuestSpec::new("vm").disks(&["qcow2", "qcow2"]));
    vm.count_on(1);
    vm.virsh("snapshot-create-as {} one --disk-only");
    vm.live_io("vdb", "write -P 1 4M 8M");
    let at_two = vm.count_on(1);
    vm.virsh("snapshot-create-as {} two --disk-only");
    vm.live_io("vda", "write -P 2 4M 8M");
    vm.live_io("vdb", "write -P 2 8M 4M");
    vm.count_on(1);

    // Two disks with several MiB each: what is told is of both.
    let client = ask(&vm, "snapshot-delete {} two");
    let (_, total) = wait_for_progress(&vm);
    assert!(total > f64::from(12 << 20), "{total} bytes in all");
    assert!(is_marked(&vm, "two"));
    let (source, mut last) = (vm.source("vda"), 0.0);
    for _ in 0..5 {
        let (done, now) = progress(&vm).expect("it goes on");
        assert!(done >= last && now == total, "{done} of {now} after {last} of {total}");
        last = done;
    }
    vm.virsh("domjobabort {}");
    let complaint_of_client = complaint(client);
    assert!(complaint_of_client.contains("operation aborted"), "{complaint_of_client}");
    nothing_goes_on(&vm);

    // The guest goes on in the chain it was in, and the snapshot says what it is.
    assert_eq!(vm.source("vda"), source);
    vm.count_on(2);
    assert!(is_marked(&vm, "two") && !is_marked(&vm, "one"));
    assert_eq!(vm.snapshots(), ["one", "two"]);
    let refusal = vm.refused("snapshot-revert {} two --force");
    assert!(refusal.contains("delete it again"), "{refusal}");
    vm.live_io("vda", "read -P 2 4M 8M");
    // Another daemon knows as well, and other operations go on.
    let vm = {
        let spec = vm.spec.clone();
        hurry(&mut world);
        world.guest(spec)
    };
    assert!(is_marked(&vm, "two"));
    vm.virsh("snapshot-create-as {} three --disk-only");
    vm.count_on(1);
    vm.virsh("snapshot-delete {} two");
    assert_eq!(vm.snapshots(), ["one", "three"]);
    let completed = vm.virsh("domjobinfo {} --completed --rawstats");
    assert!(
        completed.contains("disk_total") && completed.contains("disk_remaining"),
        "{completed}"
    );
    nothing_goes_on(&vm);
    vm.count_on(1);
    vm.never_mismatched();

    // What is left is what it was.
    vm.virsh("destroy {}");
    for target in ["vda", "vdb"] {
        images::check(Path::new(&vm.source(target)));
        images::check(&vm.disk(target));
    }
    vm.virsh("snapshot-revert {} three");
    assert!(vm.holds("vda", 4, 2) && vm.holds("vdb", 4, 1) && vm.holds("vdb", 8, 2));
    let mark = vm.mark();
    vm.virsh("start {}");
    assert!(vm.booted(mark) > at_two);
    vm.virsh("destroy {}");
    vm.virsh("snapshot-revert {} one");
    assert!(!vm.holds("vda", 4, 2) && !vm.holds("vdb", 4, 1));
    images::check(&vm.disk("vda"));
}

#[test]
fn an_offline_merge_is_aborted_the_domain_starts_and_the_deletion_goes_on() {
    let mut world = slow_world("");
    let vm = world.define(GuestSpec::idle("vm"));
    vm.write("vda", 1, 1);
    vm.virsh("snapshot-create-as {} one --disk-only");
    images::io(Path::new(&vm.source("vda")), "qcow2", "write -P 2 4M 10M");
    let client = ask(&vm, "snapshot-delete {} one");
    wait_for_progress(&vm);
    assert_eq!(world.processes("qemu-img").len(), 1);
    vm.virsh("domjobabort {}");
    assert!(complaint(client).contains("operation aborted"));
    assert_eq!(world.processes("qemu-img"), [] as [u32; 0]);
    assert!(is_marked(&vm, "one"));
    for target in [vm.source("vda"), vm.disk("vda").display().to_string()] {
        images::check(Path::new(&target));
    }
    vm.virsh("start {}");
    assert!(vm.holds("vda", 1, 1) && vm.holds("vda", 9, 2));
    vm.write("vda", 2, 3);
    vm.virsh("destroy {}");
    let vm = {
        let spec = vm.spec.clone();
        hurry(&mut world);
        world.guest(spec)
    };
    vm.virsh("snapshot-delete {} one");
    assert_eq!(vm.snapshots(), [] as [&str; 0]);
    assert_eq!(vm.source("vda"), vm.disk("vda").display().to_string());
    for (mib, pattern) in [(1, 1), (2, 3), (4, 2), (13, 2)] {
        assert!(vm.holds("vda", mib, pattern), "{mib}");
    }
    images::check(&vm.disk("vda"));
}

/// A client that wants to start the domain does not wait for hours, whatever killed the deletion.
#[test]
fn a_merge_whose_qemu_dies_keeps_no_domain_from_starting() {
    let mut world = slow_world("");
    let vm = world.define(GuestSpec::idle("vm"));
    vm.write("vda", 1, 1);
    vm.virsh("snapshot-create-as {} one --disk-only");
    vm.virsh("start {}");
    vm.live_io("vda", "write -P 2 4M 10M");
    let client = ask(&vm, "snapshot-delete {} one");
    wait_for_progress(&vm);
    vm.virsh("destroy {}");
    complaint(client);
    assert_eq!(vm.state(), "shut off");
    assert!(is_marked(&vm, "one"));
    vm.virsh("start {}");
    assert!(vm.holds("vda", 1, 1) && vm.holds("vda", 9, 2));
    assert!(is_marked(&vm, "one"));
    let vm = {
        let spec = vm.spec.clone();
        hurry(&mut world);
        world.guest(spec)
    };
    vm.virsh("snapshot-delete {} one");
    assert!(vm.holds("vda", 1, 1) && vm.holds("vda", 9, 2));
    vm.virsh("destroy {}");
    assert_eq!(vm.source("vda"), vm.disk("vda").display().to_string());
    images::check(&vm.disk("vda"));
}

/// The job that QEMU carried on while there was no daemon is taken up: it can be watched, others
/// are served beside it, and it comes to its end or is aborted.
#[test]
fn a_new_daemon_takes_up_the_merge_that_goes_on() {
    let mut world = slow_world("");
    let vm = world.boot(GuestSpec::new("vm"));
    vm.count_on(1);
    vm.virsh("snapshot-create-as {} one --disk-only");
    vm.live_io("vda", "write -P 2 4M 10M");
    let spec = vm.spec.clone();
    for aborts in [true, false] {
        let vm = world.guest(spec.clone());
        let client = ask(&vm, "snapshot-delete {} one");
        wait_for_progress(&vm);
        world.kill();
        complaint(client);
        world.start();
        let vm = world.guest(spec.clone());
        assert!(is_marked(&vm, "one"));
        wait_for_progress(&vm);
        assert!(vm.virsh("domjobinfo {} --rawstats").contains("operation"));
        if aborts {
            vm.virsh("domjobabort {}");
            host::wait("the job to end", 60, || progress(&vm).is_none().then_some(()));
            nothing_goes_on(&vm);
            assert!(is_marked(&vm, "one"));
        } else {
            let speed = r#"{"execute":"block-job-set-speed","arguments":{"device":"virtsnap-merge-vda","speed":0}}"#;
            vm.virsh(&format!("qemu-monitor-command {{}} '{speed}'"));
            host::wait("the snapshot to go", 60, || vm.snapshots().is_empty().then_some(()));
            nothing_goes_on(&vm);
        }
        vm.count_on(1);
    }
    let vm = world.guest(spec);
    vm.never_mismatched();
    vm.virsh("destroy {}");
    assert_eq!(vm.source("vda"), vm.disk("vda").display().to_string());
    assert!(vm.holds("vda", 4, 2) && vm.holds("vda", 13, 2));
    images::check(&vm.disk("vda"));
}

/// The guest writes a cluster to each disk once a second, and less than that can be merged: its
/// writes are held back, then the merge is ended, and nothing of either is left.
#[test]
fn a_merge_that_the_guest_outruns_is_ended_with_the_chain_consistent() {
    let slower = "merge_bytes_per_second = 32768\nmerge_window_seconds = 1\nmerge_throttles = 2\n";
    let mut world = World::stopped(virtsnap_tests::Daemon::Virtsnapd);
    world.config = slower.to_owned();
    world.start();
    let vm = world.boot(GuestSpec::new("vm"));
    vm.count_on(1);
    vm.virsh("snapshot-create-as {} one --disk-only");
    // What is merged at once is soon within that speed.
    vm.live_io("vda", "write -P 2 4M 64k");
    let limit = |key: &str| {
        let told = vm.virsh("qemu-monitor-command {} '{\"execute\":\"query-block\"}'");
        let (_, after) = told.split_once(&format!("\"{key}\":")).expect("a limit is told");
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().expect("a number")
    };
    assert_eq!(limit("bps_wr"), 0);
    let client = ask(&vm, "snapshot-delete {} one");
    host::wait("the guest to be held back", 60, || (limit("bps_wr") > 0).then_some(()));
    assert!(limit("iops_wr") > 0);
    let said = complaint(client);
    assert!(said.contains("faster than its layers can be merged"), "{said}");
    assert_eq!((limit("bps_wr"), limit("iops_wr")), (0, 0));
    nothing_goes_on(&vm);
    assert!(is_marked(&vm, "one"));
    vm.count_on(2);
    let vm = {
        let spec = vm.spec.clone();
        hurry(&mut world);
        world.guest(spec)
    };
    vm.virsh("snapshot-delete {} one");
    assert_eq!(vm.snapshots(), [] as [&str; 0]);
    vm.count_on(1);
    vm.never_mismatched();
    vm.virsh("destroy {}");
    assert!(vm.holds("vda", 4, 2));
    images::check(&vm.disk("vda"));
}
