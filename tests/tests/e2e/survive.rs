//! Guests outlive the daemon: a stop, a crash.

use std::fs;
use std::path::{Path, PathBuf};

use virtsnap_tests::{Daemon, GuestSpec, World, host, images};

#[test]
fn a_killed_daemon_finds_its_guest_and_its_snapshots_again() {
    let mut world = World::new();
    let (at, late) = {
        let vm = world.boot(GuestSpec::new("vm"));
        let at = vm.count_on(2);
        vm.virsh("snapshot-create-as {} whole");
        let late = vm.count_on(2);
        vm.virsh("snapshot-create-as {} disk --disk-only");
        vm.count_on(2);
        (at, late)
    };
    let qemu = world.processes("qemu-system");
    assert_eq!(qemu.len(), 1);
    let id = world.virsh.ok("domid vm");
    let (xml, inactive) = (world.virsh.ok("dumpxml vm"), world.virsh.ok("dumpxml --inactive vm"));
    let tree = world.virsh.ok("snapshot-list vm --tree");

    world.kill();
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(world.processes("qemu-system"), qemu, "the guest does not notice");
    world.start();

    assert_eq!(world.processes("qemu-system"), qemu);
    assert_eq!(world.virsh.ok("domstate vm").trim(), "running");
    assert_eq!(world.virsh.ok("domid vm"), id);
    assert_eq!(world.virsh.ok("dumpxml vm"), xml);
    assert_eq!(world.virsh.ok("dumpxml --inactive vm"), inactive);
    assert_eq!(world.virsh.ok("snapshot-list vm --tree"), tree);
    assert_eq!(world.virsh.ok("snapshot-current vm --name").trim(), "disk");

    // It is still in command, and the next snapshot and revert work.
    world.virsh.ok("suspend vm");
    world.virsh.ok("resume vm");
    world.virsh.ok("snapshot-create-as vm after --disk-only");
    world.virsh.ok("snapshot-delete vm after");
    let vm = world.guest(GuestSpec::new("vm"));
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} whole");
    let n = vm.back_at(mark);
    assert!((at..late).contains(&n), "{n} is not of the snapshot at {at}");
    vm.never_mismatched();
    vm.virsh("destroy {}");
    images::check(Path::new(&vm.source("vda")));
}

#[test]
fn a_guest_that_ended_meanwhile_is_seen_to_be_off() {
    let mut world = World::new();
    world.define(GuestSpec::idle("vm"));
    world.virsh.ok("start vm");
    world.virsh.ok("snapshot-create-as vm one --disk-only");
    let qemu = world.processes("qemu-system");
    world.stop();
    assert_eq!(world.processes("qemu-system"), qemu, "a stop leaves guests alone");
    end_qemu(&world);
    world.start();
    assert_eq!(world.virsh.ok("domstate vm").trim(), "shut off");
    assert_eq!(world.virsh.lines("snapshot-list vm --name"), ["one"]);
    world.virsh.ok("start vm");
}

fn end_qemu(world: &World) {
    for id in world.processes("qemu-system") {
        std::process::Command::new("kill")
            .args(["-KILL", &id.to_string()])
            .status()
            .expect("kill runs");
    }
    host::wait("QEMU to be gone", 20, || world.processes("qemu-system").is_empty().then_some(()));
}

/// A daemon whose guest's status has become something else, and where that is.
fn with_unreadable_status(world: &mut World) -> (PathBuf, Vec<u8>) {
    let uuid = world.virsh.ok("domuuid vm");
    let status = world.path(&format!("run/qemu/{}/status.json", uuid.trim()));
    world.kill();
    let good = fs::read(&status).expect("it is there");
    fs::write(&status, "{\"version\":2}").expect("ours to write");
    (status, good)
}

#[test]
fn a_guest_whose_status_cannot_be_read_is_up_and_nothing_is_done_to_it() {
    if Daemon::chosen() == Daemon::Libvirtd {
        return;
    }
    let mut world = World::new();
    {
        let vm = world.boot(GuestSpec::new("vm"));
        vm.virsh("snapshot-create-as {} one --disk-only");
        vm.count_on(2);
    }
    let (status, good) = with_unreadable_status(&mut world);
    let qemu = world.processes("qemu-system");
    world.start();
    assert_eq!(world.virsh.ok("domstate vm").trim(), "no state");
    assert_eq!(world.virsh.lines("list --name"), ["vm"], "it is active");
    assert!(world.virsh.ok("dumpxml vm").contains("vm-vda.one"));
    assert_eq!(world.virsh.lines("snapshot-list vm --name"), ["one"]);
    for line in [
        "snapshot-create-as vm two --disk-only",
        "snapshot-revert vm one",
        "snapshot-delete vm one",
        "suspend vm",
        "managedsave vm",
    ] {
        let complaint = world.virsh.fails(line);
        let is_told = complaint.contains(status.parent().unwrap().to_str().unwrap());
        assert!(is_told && complaint.contains("restart the daemon"), "{line}: {complaint}");
    }
    assert!(world.virsh.fails("start vm").contains("active"));
    assert_eq!(world.processes("qemu-system"), qemu);
    // What was wrong is put right.
    world.kill();
    fs::write(&status, good).unwrap();
    world.start();
    assert_eq!(world.virsh.ok("domstate vm").trim(), "running");
    let vm = world.guest(GuestSpec::new("vm"));
    vm.count_on(2);
    vm.virsh("snapshot-create-as {} two --disk-only");
    vm.never_mismatched();
    // The other way out of it.
    with_unreadable_status(&mut world);
    world.start();
    world.virsh.ok("destroy vm");
    assert!(world.processes("qemu-system").is_empty());
    assert_eq!(world.virsh.ok("domstate vm").trim(), "shut off");
    world.virsh.ok("start vm");
    // One that is gone has no state to be read.
    with_unreadable_status(&mut world);
    end_qemu(&world);
    world.start();
    assert_eq!(world.virsh.ok("domstate vm").trim(), "shut off");
    world.virsh.ok("start vm");
}
