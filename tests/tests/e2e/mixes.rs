//! Kevin Wolf's table: disks inside and outside, with no memory, with memory inside and outside,
//! and every mix of them in one snapshot of a running guest.
//!
//! The guest writes its count to both disks and compares them with its memory: `MATCH` after a
//! revert says that all three are of one moment.

use std::path::Path;

use virtsnap_tests::{Guest, GuestSpec, World, images};

use crate::internal::runs_from;

const PLACES: [[&str; 2]; 4] = [
    ["internal", "internal"],
    ["external", "external"],
    ["internal", "external"],
    ["external", "internal"],
];

fn diskspecs(places: [&str; 2]) -> String {
    format!("--diskspec vda,snapshot={} --diskspec vdb,snapshot={}", places[0], places[1])
}

/// Takes a snapshot of the counting guest, which goes on; gives what it counted before.
#[track_caller]
fn take(vm: &Guest<'_>, name: &str, how: &str) -> u64 {
    let before = vm.count_on(2);
    vm.virsh(&format!("snapshot-create-as {{}} {name} {how}"));
    assert_eq!(vm.state(), "running", "{name}");
    vm.next_match(vm.mark());
    before
}

/// What the table says of a cell is where the snapshot is: in the images, or in new files.
#[track_caller]
fn is_where_it_should_be(vm: &Guest<'_>, name: &str, sources: &[String; 2], places: [&str; 2]) {
    for ((target, old), place) in ["vda", "vdb"].iter().zip(sources).zip(places) {
        let inside = images::internal_snapshots(Path::new(old)).iter().any(|tag| tag == name);
        let outside = vm.source(target) != *old;
        assert_eq!(
            (inside, outside),
            (place == "internal", place == "external"),
            "{name} {target}"
        );
    }
}

fn sources(vm: &Guest<'_>) -> [String; 2] {
    [vm.source("vda"), vm.source("vdb")]
}

/// Every cell of one row of the table: taken, gone on, gone back to, deleted again.
fn walk(how: &str, config: &str) -> (World, GuestSpec) {
    let mut world = World::stopped(virtsnap_tests::Daemon::chosen());
    config.clone_into(&mut world.config);
    world.start();
    let vm = world.boot(GuestSpec::new("vm").disks(&["qcow2", "qcow2"]));
    let mut names = Vec::new();
    for places in PLACES {
        let name = format!("{}-{}", places[0], places[1]);
        let old = sources(&vm);
        let before = take(&vm, &name, &format!("{how} {}", diskspecs(places)));
        is_where_it_should_be(&vm, &name, &old, places);
        let later = vm.count_on(3);
        vm.virsh(&format!("snapshot-revert {{}} {name}"));
        runs_from(&vm, vm.mark(), before, later);
        names.push((name, before, later));
    }
    // Not only the latest, and not only while it runs.
    vm.virsh("destroy {}");
    for (name, before, later) in &names {
        vm.virsh(&format!("snapshot-revert {{}} {name}"));
        assert_eq!(vm.state(), "running");
        runs_from(&vm, vm.mark(), *before, *later);
    }
    for (name, ..) in &names {
        vm.count_on(1);
        vm.virsh(&format!("snapshot-delete {{}} {name}"));
    }
    vm.count_on(2);
    vm.never_mismatched();
    assert!(vm.snapshots().is_empty());
    let spec = vm.spec.clone();
    (world, spec)
}

/// All that is left are the domain's two images, whole.
fn nothing_is_left(world: &World, spec: GuestSpec) {
    let vm = world.guest(spec);
    let now = sources(&vm);
    vm.virsh("destroy {}");
    for image in &now {
        images::check(Path::new(image));
    }
    for entry in std::fs::read_dir(world.dir()).expect("the directory is ours").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let memory = name.ends_with(".save") || name.ends_with(".vmstate");
        assert!(!memory, "{name} is left");
    }
}

#[test]
fn memory_inside_with_disks_anywhere() {
    let (world, spec) = walk("", "");
    nothing_is_left(&world, spec);
}

#[test]
fn memory_outside_with_disks_anywhere() {
    let (world, spec) = walk("--memspec snapshot=external", "live_memory = false");
    nothing_is_left(&world, spec);
}

#[test]
fn memory_outside_while_the_guest_goes_on_with_disks_anywhere() {
    let (world, spec) = walk("--memspec snapshot=external", "");
    nothing_is_left(&world, spec);
}

#[test]
fn no_memory_with_disks_anywhere() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm").disks(&["qcow2", "qcow2"]));
    let mut taken = Vec::new();
    for places in PLACES {
        let name = format!("{}-{}", places[0], places[1]);
        let old = sources(&vm);
        let before = take(&vm, &name, &format!("--disk-only {}", diskspecs(places)));
        is_where_it_should_be(&vm, &name, &old, places);
        taken.push((name, before, vm.count_on(3)));
    }
    // The same without the flag: disks alone, inside.
    let before = take(&vm, "said", "--memspec snapshot=no");
    taken.push(("said".to_owned(), before, vm.count_on(3)));
    for (name, before, later) in taken.iter().rev() {
        vm.virsh(&format!("snapshot-revert {{}} {name}"));
        assert_eq!(vm.state(), "shut off", "{name} has no memory");
        let mark = vm.mark();
        vm.virsh("start {}");
        let found = vm.booted(mark);
        assert!((*before..*later).contains(&found), "{found} is not of {name}, {before}..{later}");
        vm.count_on(1);
    }
    vm.never_mismatched();
    vm.virsh("destroy {}");
    for (name, ..) in &taken {
        vm.virsh(&format!("snapshot-delete {{}} {name}"));
    }
    for image in sources(&vm) {
        images::check(Path::new(&image));
        assert!(images::internal_snapshots(Path::new(&image)).is_empty());
    }
}

/// A raw disk holds nothing inside, and does not keep the others from it.
#[test]
fn a_raw_disk_goes_outside_by_itself() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm").disks(&["qcow2", "raw"]));
    let old = sources(&vm);
    let complaint = vm.refused("snapshot-create-as {} no --diskspec vdb,snapshot=internal");
    assert!(complaint.contains("vdb") && complaint.contains("raw"), "{complaint}");
    let before = take(&vm, "full", "");
    is_where_it_should_be(&vm, "full", &old, ["internal", "external"]);
    let later = vm.count_on(3);
    vm.virsh("snapshot-revert {} full");
    runs_from(&vm, vm.mark(), before, later);
    vm.virsh("destroy {}");
    vm.virsh("snapshot-delete {} full");
    assert!(images::internal_snapshots(Path::new(&vm.source("vda"))).is_empty());
    images::check(Path::new(&vm.source("vda")));
}

/// Disks that are left out stay as they are, and one that is left to the user keeps the guest
/// stopped until the user lets it go on.
#[test]
fn disks_left_out_and_left_to_the_user() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm").disks(&["qcow2", "qcow2"]));
    for (name, memory, place) in [
        ("inside", "", "internal"),
        ("apart", "", "external"),
        ("outside", "--memspec snapshot=external", "external"),
        ("mixed", "--memspec snapshot=external", "internal"),
        ("none", "--disk-only", "external"),
    ] {
        vm.count_on(1);
        let kept = vm.source("vdb");
        vm.virsh(&format!(
            "snapshot-create-as {{}} {name} {memory} --diskspec vda,snapshot={place} \
             --diskspec vdb,snapshot=manual"
        ));
        assert_eq!(vm.virsh("domstate {} --reason").trim(), "paused (creating snapshot)", "{name}");
        assert_eq!(vm.source("vdb"), kept);
        vm.virsh("resume {}");
        vm.next_match(vm.mark());
    }
    for (name, memory) in
        [("alone", "--memspec snapshot=external"), ("alone-too", "--memspec snapshot=internal")]
    {
        let old = sources(&vm);
        take(&vm, name, &format!("{memory} {}", diskspecs(["no", "no"])));
        assert_eq!(sources(&vm), old, "{name}");
    }
    vm.never_mismatched();
    // Memory alone goes back into the disks as they are: at the same moment they fit.
    vm.virsh("suspend {}");
    let at = vm.last_match().expect("it counts");
    vm.virsh(&format!(
        "snapshot-create-as {{}} asleep --memspec snapshot=external {}",
        diskspecs(["no", "no"])
    ));
    assert_eq!(vm.state(), "paused");
    vm.virsh("snapshot-revert {} asleep");
    assert_eq!(vm.state(), "paused");
    let mark = vm.mark();
    vm.virsh("resume {}");
    vm.reach_after(mark, at + 2);
    vm.never_mismatched();
}

/// Defect 8 of libvirt 11.3, and a part of its defect 4: what is in a file already is not written
/// over, and what is missing is not missed too late.
#[test]
fn defect_08_memory_is_not_written_over_what_is_there() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    let file = world.path("m.save");
    let how = format!("--memspec snapshot=external,file={}", file.display());
    std::fs::write(&file, "precious").expect("the directory is ours");
    let complaint = vm.refused(&format!("snapshot-create-as {{}} no {how}"));
    assert!(complaint.contains("m.save"), "{complaint}");
    assert_eq!(std::fs::read(&file).expect("it is there"), b"precious");
    // One that was made to be filled is filled.
    std::fs::write(&file, "").expect("the directory is ours");
    let before = take(&vm, "s", &how);
    let later = vm.count_on(2);
    let complaint = vm.refused(&format!("snapshot-create-as {{}} again {how}"));
    assert!(complaint.contains("m.save"), "{complaint}");

    let aside = world.path("aside.save");
    std::fs::rename(&file, &aside).expect("the directory is ours");
    let complaint = vm.refused("snapshot-revert {} s");
    assert!(complaint.contains("m.save"), "{complaint}");
    assert_eq!(vm.state(), "running");
    vm.next_match(vm.mark());
    let whole = std::fs::read(&aside).expect("it is there");
    std::fs::write(&file, &whole[..whole.len().min(50)]).expect("the directory is ours");
    let complaint = vm.refused("snapshot-revert {} s");
    assert!(complaint.contains("m.save"), "{complaint}");
    assert_eq!(vm.state(), "running");
    vm.next_match(vm.mark());
    std::fs::rename(&aside, &file).expect("the directory is ours");
    vm.virsh("snapshot-revert {} s");
    runs_from(&vm, vm.mark(), before, later);
    vm.virsh("snapshot-delete {} s");
    assert!(!file.exists());
}

/// Defect 11 of libvirt 11.3: after the memory of a paused guest was saved, its disks could not be
/// used until it ran again.
#[test]
fn defect_11_a_paused_guest_can_be_taken_again_and_again() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    let at = vm.count_on(2);
    vm.virsh("suspend {}");
    for (name, how) in [
        ("a", "--memspec snapshot=external"),
        ("b", "--memspec snapshot=external"),
        ("c", ""),
        ("d", "--disk-only"),
        ("e", "--live --memspec snapshot=external"),
    ] {
        vm.virsh(&format!("snapshot-create-as {{}} {name} {how}"));
        assert_eq!(vm.state(), "paused", "{name}");
    }
    vm.virsh("snapshot-delete {} b");
    vm.virsh("snapshot-delete {} d");
    assert_eq!(vm.state(), "paused");
    let mark = vm.mark();
    vm.virsh("resume {}");
    vm.next_match(mark);
    let later = vm.count_on(4);
    for name in ["a", "c", "e"] {
        vm.virsh(&format!("snapshot-revert {{}} {name}"));
        assert_eq!(vm.state(), "paused", "{name}");
        let mark = vm.mark();
        vm.virsh("resume {}");
        runs_from(&vm, mark, at, later);
    }
}

/// The daemon dies while memory is written: the guest goes on, nothing is left lying about, and the
/// next try works.
#[test]
fn a_crash_while_memory_is_saved_is_undone_or_completed() {
    let mut world = World::new();
    let spec = GuestSpec::new("vm").disks(&["qcow2", "qcow2"]);
    world.boot(spec.clone());
    for (n, milliseconds) in [60, 250, 500, 900].into_iter().enumerate() {
        let how = ["snapshot=external", "snapshot=internal"][n % 2];
        let line = format!(
            "snapshot-create-as vm crash{n} --memspec {how} {}",
            diskspecs(["internal", "external"])
        );
        world.crash_during(&line, milliseconds);
        let vm = world.guest(spec.clone());
        assert_eq!(vm.state(), "running", "{milliseconds} ms");
        vm.next_match(vm.mark());
        let made = vm.snapshots().contains(&format!("crash{n}"));
        let tagged = images::internal_snapshots(Path::new(&vm.source("vda")));
        assert_eq!(tagged.contains(&format!("crash{n}")), made, "{milliseconds} ms");
        let file = world.path(&format!("vm.crash{n}.save"));
        assert_eq!(file.exists(), made && n % 2 == 0, "{milliseconds} ms");
        if !made {
            vm.virsh(&line.replace("vm", "{}"));
        }
        let before = vm.last_match().expect("it counts");
        vm.count_on(2);
        vm.virsh(&format!("snapshot-revert {{}} crash{n}"));
        let found = vm.next_match(vm.mark());
        assert!(found <= before + 1, "{found} is not of crash{n}, at most {before}");
        vm.count_on(1);
        vm.never_mismatched();
    }
}
