//! An operation that took effect and could not be finished: shown, told of, resumed by the same
//! call, and taken up by the daemon when it starts.
//!
//! What hinders it is a directory where a snapshot's record is to be written: then nothing else is
//! wrong, and root is stopped by it as well.

use std::fs;
use std::path::{Path, PathBuf};

use virtsnap_tests::{Guest, GuestSpec, World, images};

/// Where the record of a snapshot stands, and a way to keep it from being written.
struct Record {
    file: PathBuf,
    aside: PathBuf,
}

impl Record {
    fn of(vm: &Guest<'_>, snapshot: &str) -> Self {
        let uuid = vm.virsh("domuuid {}");
        let moments = vm.world.path(&format!("lib/domains/{}/moments", uuid.trim()));
        Self { file: moments.join(format!("{snapshot}.xml")), aside: moments.join("aside") }
    }

    fn hinder(&self) {
        if self.file.exists() {
            fs::rename(&self.file, &self.aside).expect("the directory is ours");
        }
        fs::create_dir(&self.file).expect("the directory is ours");
        fs::write(self.file.join("occupied"), "").expect("the directory is ours");
    }

    fn mend(&self) {
        fs::remove_dir_all(&self.file).expect("the directory is ours");
        if self.aside.exists() {
            fs::rename(&self.aside, &self.file).expect("the directory is ours");
        }
    }
}

fn shows(vm: &Guest<'_>, snapshot: &str, word: &str) -> String {
    let xml = vm.virsh(&format!("snapshot-dumpxml {{}} {snapshot}"));
    assert!(xml.contains(&format!("<unfinished operation='{word}'>")), "{xml}");
    xml
}

fn chain(world: &World) -> Guest<'_> {
    let vm = world.define(GuestSpec::idle("vm"));
    vm.write("vda", 1, 0x11);
    for (snapshot, mib) in [("a", 2), ("b", 3)] {
        vm.virsh(&format!("snapshot-create-as {{}} {snapshot} --disk-only"));
        vm.write("vda", mib, 0x11);
    }
    vm
}

#[test]
fn a_deletion_that_could_not_end_is_shown_and_repeated() {
    let world = World::new();
    let vm = chain(&world);
    let record = Record::of(&vm, "b");
    record.hinder();
    let complaint = vm.refused("snapshot-delete {} b");
    assert!(complaint.contains("repeat it"), "{complaint}");
    let xml = shows(&vm, "b", "delete");
    assert!(xml.contains("<snapshotDeleteInProgress/>"), "{xml}");
    assert!(!vm.virsh("snapshot-dumpxml {} a").contains("nfinished"), "it is not concerned");
    for other in ["start {}", "snapshot-create-as {} c --disk-only", "snapshot-revert {} a"] {
        let complaint = vm.refused(other);
        let names_it = complaint.contains("the deletion of snapshot 'b'");
        assert!(names_it && complaint.contains("repeat that call"), "{other}: {complaint}");
    }
    assert_eq!(vm.state(), "shut off");
    assert!(vm.refused("snapshot-delete {} b").contains("repeat it"), "it is hindered still");
    record.mend();
    vm.virsh("snapshot-delete {} b");
    assert_eq!(vm.snapshots(), ["a"]);
    assert!((1..4).all(|mib| vm.holds("vda", mib, 0x11)));
    let left = images::chain(Path::new(&vm.source("vda")));
    assert_eq!(left.len(), 2, "merged: {left:?}");
    assert!(!vm.virsh("snapshot-dumpxml {} a").contains("nProgress"));
    vm.virsh("snapshot-revert {} a");
    assert!(vm.holds("vda", 1, 0x11) && !vm.holds("vda", 2, 0x11));
}

#[test]
fn a_creation_that_could_not_end_is_repeated_and_is_the_one_that_was_begun() {
    let world = World::new();
    let vm = chain(&world);
    vm.virsh("start {}");
    // The one that is no longer current is written first.
    let record = Record::of(&vm, "b");
    record.hinder();
    let complaint = vm.refused("snapshot-create-as {} c --disk-only");
    assert!(complaint.contains("repeat it"), "{complaint}");
    assert_eq!(vm.state(), "running");
    assert_eq!(vm.snapshots(), ["a", "b", "c"], "the disks have gone on: it is there");
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "c");
    assert_eq!(vm.virsh("snapshot-parent {} c").trim(), "b");
    shows(&vm, "c", "create");
    for other in ["snapshot-delete {} a", "snapshot-delete {} c", "snapshot-revert {} c"] {
        let complaint = vm.refused(other);
        assert!(complaint.contains("the creation of snapshot 'c'"), "{other}: {complaint}");
    }
    record.mend();
    vm.write("vda", 5, 0x22);
    vm.virsh("snapshot-create-as {} c --disk-only");
    assert_eq!(vm.snapshots(), ["a", "b", "c"]);
    assert!(vm.source("vda").ends_with("vm-vda.c"), "{}", vm.source("vda"));
    let complaint = vm.refused("snapshot-create-as {} c --disk-only");
    assert!(complaint.contains("already"), "the next one is another: {complaint}");
    vm.virsh("destroy {}");
    assert!(vm.holds("vda", 5, 0x22), "no write is lost");
    vm.virsh("snapshot-revert {} c");
    assert!(vm.holds("vda", 3, 0x11) && !vm.holds("vda", 5, 0x22), "it is of its own time");
}

#[test]
fn a_creation_with_halt_that_could_not_end_leaves_no_guest_paused() {
    let world = World::new();
    let vm = chain(&world);
    vm.virsh("start {}");
    let record = Record::of(&vm, "b");
    record.hinder();
    let complaint = vm.refused("snapshot-create-as {} c --halt");
    assert!(complaint.contains("repeat it"), "{complaint}");
    assert_eq!(vm.state(), "shut off", "as was asked for");
    shows(&vm, "c", "create");
    assert!(vm.refused("start {}").contains("the creation of snapshot 'c'"));
    record.mend();
    vm.virsh("snapshot-create-as {} c --halt");
    assert_eq!(vm.snapshots(), ["a", "b", "c"]);
    assert!(!vm.virsh("snapshot-dumpxml {} c").contains("nfinished"));
    vm.virsh("snapshot-revert {} c");
    assert_eq!(vm.state(), "running", "its memory is there");
}

#[test]
fn a_revert_that_could_not_end_is_shown_and_taken_up_by_the_next_daemon() {
    let mut world = World::new();
    let record = {
        let vm = chain(&world);
        let record = Record::of(&vm, "a");
        record.hinder();
        let complaint = vm.refused("snapshot-revert {} a");
        assert!(complaint.contains("repeat it"), "{complaint}");
        shows(&vm, "a", "revert");
        assert!(vm.refused("start {}").contains("the revert to snapshot 'a'"));
        record
    };
    world.kill();
    record.mend();
    world.start();
    assert!(world.log().contains("an interrupted operation was settled"));
    let vm = world.guest(GuestSpec::idle("vm"));
    assert!(!vm.virsh("snapshot-dumpxml {} a").contains("nfinished"));
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "a");
    assert!(vm.holds("vda", 1, 0x11) && !vm.holds("vda", 2, 0x11));
    vm.virsh("snapshot-revert {} b");
    assert!(vm.holds("vda", 2, 0x11) && !vm.holds("vda", 3, 0x11));
}
