//! Snapshots as overlays: the old file stays as it was, the guest writes to a new one.

use std::path::Path;

use virtsnap_tests::{Daemon, GuestSpec, World, images};

#[test]
fn a_running_guest_goes_on_in_an_overlay_and_can_go_back() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    let at = vm.count_on(2);
    vm.virsh("snapshot-create-as {} before --disk-only --atomic");
    let overlay = vm.source("vda");
    assert!(overlay.ends_with("vm-vda.before"), "{overlay}");
    assert_eq!(images::chain(Path::new(&overlay)).len(), 2);
    assert!(vm.virsh("dumpxml --inactive {}").contains(&overlay), "the next boot uses it too");
    let later = vm.count_on(4);
    assert!(vm.virsh("snapshot-info {} before").contains("State:          disk-snapshot"));
    assert!(vm.virsh("snapshot-info {} before").contains("Location:       external"));

    // Off afterwards, as the snapshot has no memory; then a boot finds the old disk.
    vm.virsh("snapshot-revert {} before");
    assert_eq!(vm.state(), "shut off");
    let mark = vm.mark();
    vm.virsh("start {}");
    let found = vm.booted(mark);
    assert!((at..later).contains(&found), "{found} is not what the disk had at {at}");
    vm.count_on(2);
    // From running to running: another boot.
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} before --running");
    let found = vm.booted(mark);
    assert!((at..later).contains(&found), "{found} is not what the disk had at {at}");
    vm.virsh("snapshot-revert {} before --paused");
    assert_eq!(vm.state(), "paused");
    vm.virsh("destroy {}");
    vm.never_mismatched();
}

#[test]
fn an_overlay_goes_where_the_diskspec_says() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm").disks(&["qcow2", "raw", "qcow2"]));
    let wanted = world.path("elsewhere.qcow2");
    vm.virsh(&format!(
        "snapshot-create-as {{}} one --disk-only --diskspec vda,snapshot=external,file={} \
         --diskspec vdb,snapshot=external --diskspec vdc,snapshot=no",
        wanted.display()
    ));
    assert_eq!(vm.source("vda"), wanted.to_string_lossy());
    assert!(vm.source("vdb").ends_with("vm-vdb.one"));
    assert_eq!(vm.source("vdc"), vm.disk("vdc").to_string_lossy());
    vm.count_on(2);
    let complaint = vm.refused(&format!(
        "snapshot-create-as {{}} two --disk-only --diskspec vda,file={}",
        wanted.display()
    ));
    assert!(complaint.contains("elsewhere.qcow2"), "{complaint}");
    assert_eq!(vm.source("vda"), wanted.to_string_lossy(), "a refusal changes nothing");
    vm.count_on(2);
    vm.virsh("destroy {}");
    images::check(&wanted);
    vm.never_mismatched();
}

/// A chain of three with content of its own at each level; then each is deleted in turn.
#[test]
fn deleting_keeps_what_the_guest_sees_live() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    for name in ["root", "middle", "leaf"] {
        vm.virsh(&format!("snapshot-create-as {{}} {name} --disk-only"));
        vm.count_on(2);
    }
    assert_eq!(images::chain(Path::new(&vm.source("vda"))).len(), 4);
    for (name, left) in [("middle", 3), ("root", 2), ("leaf", 1)] {
        let here = vm.source("vda");
        vm.virsh(&format!("snapshot-delete {{}} {name}"));
        vm.count_on(2);
        assert_eq!(images::chain(Path::new(&vm.source("vda"))).len(), left, "after {name}");
        assert!(Path::new(&here).exists() == (here == vm.source("vda")), "{here} after {name}");
    }
    assert_eq!(vm.source("vda"), vm.disk("vda").to_string_lossy());
    assert!(world.virsh.lines("snapshot-list vm --name").is_empty());
    let last = vm.last_match().unwrap();
    let mark = vm.mark();
    vm.virsh("destroy {}");
    images::check(&vm.disk("vda"));
    vm.virsh("start {}");
    assert!(vm.booted(mark) >= last, "everything written is in the one file left");
    vm.never_mismatched();
}

#[test]
fn deleting_keeps_what_the_guest_would_see_offline() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    let at = |n: u64| n << 20;
    images::write_pattern(&vm.disk("vda"), 1, at(1), 65536);
    for (n, name) in [(2, "root"), (3, "middle"), (4, "leaf")] {
        vm.virsh(&format!("snapshot-create-as {{}} {name} --disk-only"));
        let overlay = vm.source("vda");
        images::write_pattern(Path::new(&overlay), n, at(u64::from(n)), 65536);
        images::write_pattern(Path::new(&overlay), n, at(8), 65536);
    }
    for name in ["middle", "leaf", "root"] {
        vm.virsh(&format!("snapshot-delete {{}} {name}"));
        assert_eq!(vm.state(), "shut off");
        let now = vm.source("vda");
        for n in 1..=4 {
            assert!(images::has_pattern(Path::new(&now), n, at(u64::from(n)), 65536), "{n} {name}");
        }
        assert!(images::has_pattern(Path::new(&now), 4, at(8), 65536));
        images::check(Path::new(&now));
    }
    assert_eq!(vm.source("vda"), vm.disk("vda").to_string_lossy());
}

#[test]
fn reverting_makes_a_branch_and_both_stay_usable() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    images::write_pattern(&vm.disk("vda"), 1, 1 << 20, 65536);
    vm.virsh("snapshot-create-as {} a --disk-only");
    images::write_pattern(Path::new(&vm.source("vda")), 2, 1 << 20, 65536);
    vm.virsh("snapshot-create-as {} b --disk-only");
    images::write_pattern(Path::new(&vm.source("vda")), 3, 1 << 20, 65536);

    vm.virsh("snapshot-revert {} a");
    let branch = vm.source("vda");
    assert!(images::has_pattern(Path::new(&branch), 1, 1 << 20, 65536), "the content of a");
    assert!(images::has_pattern(&vm.disk("vda"), 1, 1 << 20, 65536), "the base is untouched");
    images::write_pattern(Path::new(&branch), 4, 1 << 20, 65536);
    if world.daemon == Daemon::Libvirtd {
        // It names overlays by the second, and stumbles over its own.
        std::thread::sleep(std::time::Duration::from_secs(2));
    }
    vm.virsh("snapshot-revert {} b");
    assert!(images::has_pattern(Path::new(&vm.source("vda")), 2, 1 << 20, 65536), "that of b");
    assert!(images::has_pattern(&vm.disk("vda"), 1, 1 << 20, 65536), "the base is untouched");
    let tree = vm.virsh("snapshot-list {} --tree");
    assert!(tree.contains("a\n  |\n  +- b") || tree.contains("a\n |\n +- b"), "{tree}");
    assert_eq!(vm.virsh("snapshot-current --name {}").trim(), "b");
}
