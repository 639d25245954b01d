//! Full system snapshots inside the qcow2: memory and disks of one moment, taken and given back.
//!
//! What proves a revert: the guest goes on counting from the snapshot's number, and its memory
//! agrees with its disks (it says MATCH).

use virtsnap_tests::{Guest, GuestSpec, World, images};

/// Takes an internal snapshot of a counting guest; gives the number it cannot be older than.
fn take(vm: &Guest, name: &str) -> u64 {
    vm.count_on(2);
    let before = vm.last_match().expect("it counts");
    vm.virsh(&format!("snapshot-create-as {{}} {name}"));
    vm.next_match(vm.mark());
    before
}

/// The guest runs on from `snapshot`: it neither booted nor kept what it counted since.
#[track_caller]
pub(crate) fn runs_from(vm: &Guest, mark: virtsnap_tests::guest::Mark, snapshot: u64, later: u64) {
    let n = vm.next_match(mark);
    assert!((snapshot..later).contains(&n), "{n} is not of the snapshot at {snapshot}");
    vm.reach_after(mark, n + 2);
    assert!(vm.lines(mark).iter().all(|line| !line.starts_with("START")), "it booted");
    vm.never_mismatched();
}

#[test]
fn a_running_guest_goes_back_in_memory_and_on_disk() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm").disks(&["qcow2", "qcow2"]));
    let first = take(&vm, "first");
    let second_at = vm.count_on(3);
    let second = take(&vm, "second");
    assert!(second >= second_at);
    let end = vm.count_on(3);

    // From running.
    vm.virsh("snapshot-revert {} first");
    runs_from(&vm, vm.mark(), first, second_at);
    assert_eq!(vm.virsh("snapshot-current --name {}").trim(), "first");
    // Forward again, from paused.
    vm.virsh("suspend {}");
    vm.virsh("snapshot-revert {} second");
    assert_eq!(vm.state(), "running");
    runs_from(&vm, vm.mark(), second, end);
    // To paused, and on from there.
    vm.virsh("snapshot-revert {} first --paused");
    assert_eq!(vm.state(), "paused");
    let mark = vm.mark();
    vm.virsh("resume {}");
    runs_from(&vm, mark, first, second_at);
    // From shut off.
    vm.virsh("destroy {}");
    vm.virsh("snapshot-revert {} second");
    assert_eq!(vm.state(), "running");
    runs_from(&vm, vm.mark(), second, end);

    for target in ["vda", "vdb"] {
        assert_eq!(images::internal_snapshots(&vm.disk(target)), ["first", "second"]);
    }
    vm.virsh("snapshot-delete {} first");
    assert_eq!(images::internal_snapshots(&vm.disk("vda")), ["second"]);
    assert_eq!(world.virsh.lines("snapshot-list vm --name"), ["second"]);
    vm.virsh("destroy {}");
    images::check(&vm.disk("vda"));
    images::check(&vm.disk("vdb"));
}

#[test]
fn a_paused_guest_is_taken_and_given_back_paused() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    let at = vm.count_on(2);
    vm.virsh("suspend {}");
    vm.virsh("snapshot-create-as {} asleep");
    assert_eq!(vm.state(), "paused");
    assert!(vm.virsh("snapshot-info {} asleep").contains("State:          paused"));
    let mark = vm.mark();
    vm.virsh("resume {}");
    let end = {
        vm.next_match(mark);
        vm.count_on(4)
    };
    vm.virsh("snapshot-revert {} asleep");
    assert_eq!(vm.state(), "paused");
    let mark = vm.mark();
    vm.virsh("resume {}");
    runs_from(&vm, mark, at, end);
    vm.virsh("snapshot-revert {} asleep --running");
    assert_eq!(vm.state(), "running");
    runs_from(&vm, vm.mark(), at, end);
}

#[test]
fn a_guest_that_is_off_keeps_only_its_disks() {
    let world = World::new();
    let vm = world.define(GuestSpec::new("vm"));
    images::write_pattern(&vm.disk("vda"), 0x11, 2 << 20, 65536);
    vm.virsh("snapshot-create-as {} before");
    images::write_pattern(&vm.disk("vda"), 0x22, 2 << 20, 65536);
    vm.virsh("snapshot-create-as {} after");
    vm.virsh("snapshot-revert {} before");
    assert_eq!(vm.state(), "shut off");
    assert!(images::has_pattern(&vm.disk("vda"), 0x11, 2 << 20, 65536));
    // To running: a boot, not a resume.
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} after --running");
    assert_eq!(vm.booted(mark), 0);
    // From running back to off.
    vm.virsh("snapshot-revert {} before");
    assert_eq!(vm.state(), "shut off");
    assert!(images::has_pattern(&vm.disk("vda"), 0x11, 2 << 20, 65536));
    vm.virsh("snapshot-revert {} after --paused");
    assert_eq!(vm.state(), "paused");
    vm.virsh("destroy {}");
    vm.virsh("snapshot-delete {} before");
    vm.virsh("snapshot-delete {} after");
    assert!(images::internal_snapshots(&vm.disk("vda")).is_empty());
    assert!(images::has_pattern(&vm.disk("vda"), 0x22, 2 << 20, 65536));
    images::check(&vm.disk("vda"));
}

#[test]
fn what_a_raw_disk_cannot_do_is_refused_before_anything_happens() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm").disks(&["qcow2", "raw"]));
    let complaint = vm.refused("snapshot-create-as {} no --diskspec vdb,snapshot=internal");
    assert!(complaint.contains("vdb") && complaint.contains("raw"), "{complaint}");
    assert!(world.virsh.lines("snapshot-list vm --name").is_empty());
    assert!(images::internal_snapshots(&vm.disk("vda")).is_empty());
}
