//! QEMU is killed in the middle of saving memory, at a point that was seen: what is written has
//! grown by some MiB, and QEMU stands still there. The old world holds: no snapshot, no half of a
//! file, the guest is off, and its disks have the last number it wrote. The next snapshot is whole.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use virtsnap_tests::faults::{orphans, signal};
use virtsnap_tests::guest::Mark;
use virtsnap_tests::{Guest, GuestSpec, World, host, images};

/// What was seen to be written when QEMU stood still: far from all that such a guest has.
const SEEN: u64 = 4 << 20;
const TRIES: usize = 12;

/// Bytes on the disk, in the world's own directory, of files named so.
fn written(world: &World, part: &str) -> u64 {
    let files = std::fs::read_dir(world.dir()).into_iter().flatten().flatten();
    let named = files.filter(|entry| entry.file_name().to_string_lossy().contains(part));
    named.filter_map(|entry| Some(entry.metadata().ok()?.blocks() * 512)).sum()
}

/// Kills QEMU while `take` writes into files whose names have `part` in them. What is killed when
/// the call was nearly over is no matter here: then it is tried again.
fn killed_in(take: &str, part: &str) {
    let world = World::new();
    let take = &take.replace("m.mem", &world.path("m.mem").to_string_lossy());
    let vm = world.boot(GuestSpec::new("vm").disks(&["qcow2", "qcow2"]));
    let was_caught = (0..TRIES).any(|_| {
        vm.count_on(1);
        let before = written(&world, part);
        let mut client = world.ask(take);
        let qemu = world.qemu();
        let is_seen = host::wait("memory to be written", 120, || {
            if client.try_wait().expect("it is ours").is_some() {
                return Some(false);
            }
            (written(&world, part) >= before + SEEN).then_some(true)
        });
        signal("STOP", &qemu);
        let is_half = is_seen && client.try_wait().expect("it is ours").is_none();
        signal(if is_half { "KILL" } else { "CONT" }, &qemu);
        let told = client.wait_with_output().expect("it is ours");
        if is_half && !told.status.success() {
            return true;
        }
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        eprintln!("missed: {take}");
        if vm.state() == "shut off" {
            vm.virsh("start {}");
            vm.booted(vm.mark());
        }
        vm.virsh("snapshot-delete {} e");
        false
    });
    assert!(was_caught, "'{take}' was never caught");
    assert_eq!(vm.state(), "shut off");
    assert_eq!(vm.snapshots(), [""; 0]);
    // What could not be undone without a QEMU is, at the latest, when the domain is to start.
    let last = vm.last_match().expect("it counted");
    let at = starts_with(&vm, last..last + 3);
    assert_eq!(world.journal(), None);
    assert_eq!(vm.snapshots(), [""; 0]);
    assert_eq!(orphans(&vm, &[]), [""; 0]);
    assert_eq!(written(&world, "m.mem"), 0, "the half of a file");
    assert!(vm.virsh("domjobinfo {}").contains("None"));
    for target in ["vda", "vdb"] {
        assert_eq!(vm.source(target), vm.disk(target).to_string_lossy());
        assert_eq!(images::internal_snapshots(&vm.disk(target)), [""; 0], "{target}");
    }
    // The next one is whole.
    world.virsh.ok(take);
    let taken = vm.count_on(2);
    // What it says from now on is of the snapshot.
    vm.virsh("suspend {}");
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} e");
    let n = vm.next_match(mark);
    assert!((at..taken).contains(&n), "{n} is not of a snapshot between {at} and {taken}");
    assert!(vm.lines(mark).iter().all(|line| !line.starts_with("START")), "it booted");
    vm.count_on(1);
    vm.virsh("snapshot-delete {} e");
    vm.never_mismatched();
    vm.virsh("destroy {}");
    assert_eq!(orphans(&vm, &[]), [""; 0]);
    assert_eq!(written(&world, "m.mem"), 0);
    for target in ["vda", "vdb"] {
        images::check_but_for_leaks(Path::new(&vm.source(target)));
    }
}

/// It finds the last number; gives where it is then.
#[track_caller]
fn starts_with(vm: &Guest<'_>, expected: std::ops::Range<u64>) -> u64 {
    let mark: Mark = vm.mark();
    vm.virsh("start {}");
    let found = vm.booted(mark);
    assert!(expected.contains(&found), "it booted with {found}, not with one of {expected:?}");
    vm.never_mismatched();
    found
}

#[test]
fn in_external_memory() {
    killed_in("snapshot-create-as vm e --memspec file=m.mem,snapshot=external", "m.mem");
}

#[test]
fn in_external_memory_of_a_guest_that_runs_on() {
    killed_in("snapshot-create-as vm e --live --memspec file=m.mem,snapshot=external", "m.mem");
}

/// Into the first disk's image.
#[test]
fn in_internal_memory() {
    killed_in("snapshot-create-as vm e", "vm-vda");
}
