//! Guests outlive the daemon: a stop, a crash.

use std::path::Path;

use virtsnap_tests::{GuestSpec, World, images};

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
    let vm = virtsnap_tests::Guest { world: &world, spec: GuestSpec::new("vm") };
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
    for id in &qemu {
        std::process::Command::new("kill").args(["-KILL", &id.to_string()]).status().unwrap();
    }
    virtsnap_tests::host::wait("QEMU to be gone", 20, || {
        world.processes("qemu-system").is_empty().then_some(())
    });
    world.start();
    assert_eq!(world.virsh.ok("domstate vm").trim(), "shut off");
    assert_eq!(world.virsh.lines("snapshot-list vm --name"), ["one"]);
    world.virsh.ok("start vm");
}
