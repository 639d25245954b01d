//! Block jobs as management software starts them: commit, pull, copy; what they must not destroy.

use std::path::Path;
use std::process::Command;

use virtsnap_tests::{GuestSpec, World, images, skip, virsh};

/// The chain that a disk's guest stands on, by file name.
fn chain(image: &str) -> Vec<String> {
    let name = |path: String| {
        Path::new(&path).file_name().expect("an image has a name").to_string_lossy().into_owned()
    };
    images::chain(Path::new(image)).into_iter().map(name).collect()
}

/// What backup programs do: a snapshot without metadata, the base copied, then all merged back.
#[test]
fn an_overlay_is_committed_away_and_the_guest_runs_on() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    let base = vm.source("vda");
    vm.virsh("snapshot-create-as {} tmp --disk-only --atomic --no-metadata");
    let overlay = vm.source("vda");
    vm.count_on(2);
    vm.virsh("blockcommit {} vda --active");
    virtsnap_tests::host::wait("the commit to be in step", 60, || {
        vm.virsh("dumpxml {}").contains("ready='yes'").then_some(())
    });
    let info = vm.virsh("blockjob {} vda --info --raw");
    assert!(info.contains("type=Active Block Commit"), "{info}");
    let xml = vm.virsh("dumpxml {}");
    assert!(xml.contains("<mirror type='file' job='active-commit' ready='yes'>"), "{xml}");
    assert!(!vm.virsh("dumpxml --inactive {}").contains("<mirror"));
    assert!(vm.refused("blockcommit {} vda --active").contains("already in active block job"));
    let refused = vm.refused("snapshot-create-as {} during --disk-only");
    assert!(refused.contains("vda"), "{refused}");

    vm.virsh("blockjob {} vda --pivot");
    assert_eq!(vm.source("vda"), base);
    assert!(vm.virsh("dumpxml --inactive {}").contains(&base), "the next boot uses it too");
    assert!(!vm.virsh("dumpxml {}").contains("<mirror"));
    assert_eq!(vm.virsh("blockjob {} vda --info --raw").trim(), "");
    assert!(Path::new(&overlay).exists(), "nobody asked to remove it");
    // What is left of it is in nobody's way the next time.
    vm.virsh("snapshot-create-as {} again --disk-only --atomic --no-metadata");
    vm.virsh("blockcommit {} vda --active --pivot --wait");
    std::fs::remove_file(&overlay).unwrap();
    let at = vm.count_on(2);
    let mark = vm.mark();
    vm.virsh("destroy {}");
    images::check(Path::new(&base));
    assert_eq!(chain(&base).len(), 1);
    vm.virsh("start {}");
    assert!(vm.booted(mark) >= at, "all that was written is in the one file");
    vm.never_mismatched();
}

#[test]
fn a_commit_that_is_broken_off_leaves_the_chain() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    vm.virsh("snapshot-create-as {} tmp --disk-only --no-metadata");
    let overlay = vm.source("vda");
    vm.count_on(2);
    vm.virsh("blockcommit {} vda --active --wait");
    vm.virsh("blockjob {} vda --abort");
    assert_eq!(vm.source("vda"), overlay);
    assert!(!vm.virsh("dumpxml {}").contains("<mirror"));
    let complaint = vm.refused("blockjob {} vda --abort");
    let is_told = complaint.contains("disk vda does not have an active block job");
    assert!(is_told && complaint.contains("ended by itself"), "{complaint}");
    vm.count_on(2);
    // And the other way to say it: with the overlay removed.
    vm.virsh("blockcommit {} vda --active --delete --pivot --wait");
    assert!(!Path::new(&overlay).exists());
    vm.count_on(2);
    vm.virsh("destroy {}");
    images::check(&vm.disk("vda"));
    vm.never_mismatched();
}

/// Kill and start again, before and after a job is in step.
#[test]
fn a_new_daemon_finds_the_job_again() {
    let mut world = World::new();
    let base = {
        let vm = world.boot(GuestSpec::new("vm"));
        let base = vm.source("vda");
        vm.virsh("snapshot-create-as {} tmp --disk-only --no-metadata");
        vm.count_on(2);
        // Slow, so that it is still under way when the daemon is gone.
        vm.virsh("blockcommit {} vda --active --bytes 65536");
        base
    };
    world.kill();
    world.start();
    let info = world.virsh.ok("blockjob vm vda --info --raw");
    assert!(info.contains("type=Active Block Commit"), "{info}");
    let complaint = world.virsh.fails("blockjob vm vda --pivot");
    for said in ["active block commit on disk 'vda'", "not ready for pivot yet", "abort it"] {
        assert!(complaint.contains(said), "what, where, and what to do: {complaint}");
    }
    world.virsh.ok("blockjob vm vda --bandwidth 0");
    virtsnap_tests::host::wait("the commit to be in step", 60, || {
        world.virsh.ok("dumpxml vm").contains("ready='yes'").then_some(())
    });
    world.virsh.ok("blockjob vm vda --pivot");
    assert!(world.virsh.ok("dumpxml vm").contains(&base));
    assert!(world.virsh.ok("dumpxml --inactive vm").contains(&base));
    world.virsh.ok("destroy vm");
    images::check(Path::new(&base));
}

/// Merging into the middle and pulling to the top, of a chain that no snapshot needs.
#[test]
fn layers_are_merged_and_pulled() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    for name in ["a", "b", "c"] {
        vm.virsh(&format!("snapshot-create-as {{}} {name} --disk-only --no-metadata"));
        vm.count_on(1);
    }
    let active = vm.source("vda");
    assert_eq!(chain(&active), ["vm-vda.c", "vm-vda.b", "vm-vda.a", "vm-vda.qcow2"]);
    let refused = vm.refused("blockcommit {} vda");
    assert!(refused.contains("requires active flag"), "{refused}");
    let (b, a) = (world.path("vm-vda.b"), world.path("vm-vda.a"));
    vm.virsh(&format!("blockcommit {{}} vda --top {} --base {} --wait", b.display(), a.display()));
    assert_eq!(chain(&active), ["vm-vda.c", "vm-vda.a", "vm-vda.qcow2"]);
    assert!(!vm.virsh("dumpxml {}").contains("vm-vda.b'"));
    vm.count_on(1);
    vm.virsh(&format!("blockpull {{}} vda --base {} --wait", vm.disk("vda").display()));
    assert_eq!(chain(&active), ["vm-vda.c", "vm-vda.qcow2"]);
    vm.virsh("blockpull {} vda --wait");
    assert_eq!(chain(&active), ["vm-vda.c"]);
    let at = vm.count_on(2);
    let mark = vm.mark();
    vm.virsh("destroy {}");
    images::check(Path::new(&active));
    for image in [a, b, vm.disk("vda")] {
        std::fs::remove_file(image).unwrap();
    }
    vm.virsh("start {}");
    assert!(vm.booted(mark) >= at);
    vm.never_mismatched();
}

#[test]
fn names_between_images_stay_relative_where_that_was_asked() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    vm.virsh("destroy {}");
    for (name, backing) in [("m", "vm-vda.qcow2"), ("n", "m.qcow2"), ("o", "n.qcow2")] {
        let path = world.path(&format!("{name}.qcow2"));
        images::create_on(&path, backing);
    }
    let xml = vm.virsh("dumpxml --inactive {}").replace("vm-vda.qcow2", "o.qcow2");
    std::fs::write(world.path("vm.xml"), xml).unwrap();
    world.virsh.ok(&format!("define {}", world.path("vm.xml").display()));
    let mark = vm.mark();
    vm.virsh("start {}");
    vm.booted(mark);
    vm.virsh("blockcommit {} vda --top n.qcow2 --base m.qcow2 --keep-relative --wait");
    let info = images::info(&world.path("o.qcow2"));
    assert!(info.contains("backing file: m.qcow2 "), "{info}");
    vm.virsh("destroy {}");
    images::check(&world.path("o.qcow2"));
}

#[test]
fn a_disk_moves_to_a_copy() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm").disks(&["qcow2", "raw"]));
    let copy = world.path("copy.qcow2");
    let go = format!("blockcopy {{}} vda {} --transient-job", copy.display());
    let refused = vm.refused(&format!("blockcopy {{}} vda {} --wait", copy.display()));
    assert!(refused.contains("not transient"), "{refused}");
    vm.virsh(&format!("{go} --wait"));
    let xml = vm.virsh("dumpxml {}");
    assert!(xml.contains("job='copy' ready='yes'>"), "{xml}");
    vm.virsh("blockjob {} vda --abort");
    assert!(copy.exists(), "a copy of that moment");
    images::check(&copy);
    assert_eq!(vm.source("vda"), vm.disk("vda").to_string_lossy());
    assert!(vm.refused(&format!("{go} --wait")).contains("exists"));
    std::fs::remove_file(&copy).unwrap();

    vm.virsh(&format!("{go} --wait --pivot"));
    assert_eq!(vm.source("vda"), copy.to_string_lossy());
    assert!(vm.virsh("dumpxml --inactive {}").contains("copy.qcow2"));
    let at = vm.count_on(2);
    let mark = vm.mark();
    vm.virsh("destroy {}");
    images::check(&copy);
    std::fs::remove_file(vm.disk("vda")).unwrap();
    vm.virsh("start {}");
    assert!(vm.booted(mark) >= at);
    vm.never_mismatched();
}

/// libvirt destroys both snapshots here without a word (S2-71).
#[test]
fn no_commit_takes_a_snapshot_away() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    vm.virsh("snapshot-create-as {} first --disk-only");
    vm.count_on(1);
    vm.virsh("snapshot-create-as {} second --disk-only");
    vm.count_on(1);
    let at = vm.source("vda");
    for commit in ["--active", "--active --shallow", "--top vm-vda.first"] {
        let complaint = vm.refused(&format!("blockcommit {{}} vda {commit}"));
        assert!(
            complaint.contains("snapshot 'first'") || complaint.contains("'second'"),
            "{complaint}"
        );
    }
    assert_eq!(vm.source("vda"), at, "a refusal changes nothing");
    // The older one alone does not stand in the way of what is above it.
    vm.virsh("snapshot-delete {} second --metadata");
    vm.virsh("blockcommit {} vda --active --shallow --pivot --wait");
    assert!(vm.source("vda").ends_with("vm-vda.first"));
    vm.count_on(1);
    vm.virsh("snapshot-revert {} first --running");
    vm.virsh("destroy {}");
    vm.never_mismatched();
}

/// An image that somebody else stands on is nobody's to write into.
#[test]
fn no_commit_falsifies_a_neighbour() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    vm.virsh("snapshot-create-as {} tmp --disk-only --no-metadata");
    let clone = world.path("clone.qcow2");
    images::create_on(&clone, "vm-vda.qcow2");
    let complaint = vm.refused("blockcommit {} vda --active");
    assert!(complaint.contains("clone.qcow2"), "{complaint}");
    std::fs::remove_file(&clone).unwrap();
    vm.virsh("blockcommit {} vda --active --pivot --wait");
    vm.count_on(1);
    vm.virsh("destroy {}");
    vm.never_mismatched();
}

/// Both events, in both ways of naming the disk; then the calls that there is nothing behind.
#[test]
fn the_ends_of_jobs_are_told() {
    const SCRIPT: &str = r#"
import sys, threading, time, libvirt
libvirt.registerErrorHandler(lambda *_: None, None)
libvirt.virEventRegisterDefaultImpl()
def loop():
    while True:
        libvirt.virEventRunDefaultImpl()
threading.Thread(target=loop, daemon=True).start()
conn = libvirt.open(sys.argv[1])
dom = conn.lookupByName("vm")
paths, targets = [], []
for event, told in [(libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB, paths),
                    (libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, targets)]:
    conn.domainEventRegisterAny(
        dom, event, lambda c, d, disk, kind, status, told: told.append((disk, kind, status)), told)
def wait(what):
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, (paths, targets)
        time.sleep(0.05)
NO_METADATA = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
ACTIVE, READY, COMPLETED, CANCELED = libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT, 3, 0, 2
base = sys.argv[2] + "/vm-vda.qcow2"
dom.snapshotCreateXML("<domainsnapshot><name>x</name></domainsnapshot>", NO_METADATA)
for end, status in [(0, CANCELED), (libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT, COMPLETED)]:
    dom.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    wait(lambda: ("vda", ACTIVE, READY) in targets)
    info = dom.blockJobInfo("vda")
    assert info["type"] == ACTIVE and info["cur"] == info["end"] > 0, info
    dom.blockJobAbort("vda", end | libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC)
    wait(lambda: ("vda", ACTIVE, status) in targets)
    assert len(targets) == 2 == len(paths), (targets, paths)
    assert paths[-1] == (base if end else sys.argv[2] + "/vm-vda.x", ACTIVE, status), paths
    assert dom.blockJobInfo("vda") == {}
    del paths[:], targets[:]
for call in [lambda: dom.checkpointCreateXML("<domaincheckpoint/>"),
             lambda: dom.backupBegin("<domainbackup/>", None, 0),
             lambda: dom.checkpointLookupByName("x")]:
    try:
        call()
        raise SystemExit("should be refused")
    except libvirt.libvirtError as error:
        assert error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT, error
assert dom.listAllCheckpoints() == []
assert [d.name() for d in conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_NO_CHECKPOINT)] == ["vm"]
assert conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_CHECKPOINT) == []
assert [d.name() for d in conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_NO_SNAPSHOT)] == ["vm"]
print("all good")
"#;
    let python = "/usr/bin/python3";
    if !virsh::finish(Command::new(python).args(["-c", "import libvirt"]), python).success {
        skip!("{python} has no libvirt module: apt install python3-libvirt");
    }
    let world = World::new();
    let _vm = world.boot(GuestSpec::new("vm"));
    let mut command = Command::new(python);
    command.arg("-c").arg(SCRIPT).arg(&world.virsh.uri).arg(world.dir());
    let outcome = virsh::finish(&mut command, "a listener for block jobs");
    assert!(outcome.stdout.contains("all good"), "{}{}", outcome.stdout, outcome.stderr);
}
