//! What libvirt 11.3 does badly, each by its number, and that virtsnap does not.
//!
//! Disks hold patterns that are written and read through QEMU's own block layer, so that a guest
//! needs no operating system. Where a number is missing here, another test shows it:
//!
//! - 3: also `driver/qemu/tests/crashes.rs`, at every call of every operation;
//! - 5, 9, 13: also the planner's own tests.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use virtsnap_tests::{Guest, GuestSpec, World, images};

/// Names that QEMU's job identifiers, command lines and option strings cannot carry as they are.
const ODD_NAMES: [&str; 9] =
    ["a b", "a,b", "a:b", "a%b", "a\"b", "a&b", "füße", "スナップ", "-rf *"];

/// Takes a snapshot from XML, for names that virsh's own options would take apart.
fn create(vm: &Guest, name: &str, options: &str) {
    let file = vm.world.path("odd.xml");
    let name = name.replace('&', "&amp;").replace('"', "&quot;");
    std::fs::write(&file, format!("<domainsnapshot><name>{name}</name></domainsnapshot>"))
        .expect("the directory is ours");
    vm.virsh(&format!("snapshot-create {{}} {} {options}", file.display()));
}

fn quoted(name: &str) -> String {
    format!("--snapshotname '{name}'")
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

fn sorted_paths(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    paths.sort();
    paths
}

/// a ─ b, a ─ c ─ d: what is deleted below `a` has a child beside a sibling.
fn fork(vm: &Guest, options: &str) {
    for (name, pattern) in [("a", 1), ("b", 2)] {
        vm.virsh(&format!("snapshot-create-as {{}} {name} {options}"));
        vm.write("vda", 1, pattern);
    }
    vm.virsh("snapshot-revert {} a");
    for (name, pattern) in [("c", 3), ("d", 4)] {
        vm.virsh(&format!("snapshot-create-as {{}} {name} {options}"));
        vm.write("vda", 1, pattern);
    }
}

/// Defect 1: libvirtd crashes when it deletes the children of a tree that forks.
#[test]
fn defect_01_children_of_a_forked_tree_are_deleted() {
    let world = World::new();
    for (n, options) in ["", "--disk-only"].into_iter().enumerate() {
        for (scope, left) in [("--children-only", &["a"][..]), ("--children", &[])] {
            for metadata in ["", "--metadata"] {
                let vm = world.define(GuestSpec::idle(&format!("vm{n}{}{}", scope, metadata)));
                fork(&vm, options);
                vm.virsh(&format!("snapshot-delete {{}} a {scope} {metadata}"));
                assert_eq!(vm.snapshots(), left, "{options} {scope} {metadata}");
                assert!(vm.holds("vda", 1, 4), "{options} {scope} {metadata}");
                if metadata.is_empty() && scope == "--children" {
                    assert_eq!(vm.source("vda"), vm.disk("vda").to_string_lossy());
                    assert!(images::internal_snapshots(&vm.disk("vda")).is_empty());
                    images::check(&vm.disk("vda"));
                }
            }
        }
    }
}

/// Defect 2: deleting an external snapshot removes the overlay in which its internal child is.
#[test]
fn defect_02_an_internal_child_outlives_its_external_parent() {
    let world = World::new();
    for (name, running) in [("off", false), ("on", true)] {
        let vm = world.define(GuestSpec::idle(name));
        if running {
            vm.virsh("start {}");
        }
        vm.write("vda", 1, 1);
        vm.virsh("snapshot-create-as {} outer --disk-only");
        vm.write("vda", 1, 2);
        vm.virsh("snapshot-create-as {} inner");
        vm.write("vda", 1, 3);
        vm.virsh("snapshot-delete {} outer");
        assert!(vm.holds("vda", 1, 3), "{name}: what the guest sees");
        assert_eq!(vm.snapshots(), ["inner"]);
        vm.virsh("snapshot-revert {} inner");
        assert!(vm.holds("vda", 1, 2), "{name}: what the child held");
        vm.virsh("snapshot-delete {} inner");
        assert!(vm.holds("vda", 1, 2));
    }
}

/// Defect 3, first window: the daemon dies around QEMU's switch to the overlays. The definition
/// then says what QEMU does, and the next snapshot and the next boot work.
#[test]
fn defect_03_a_crash_in_a_create_leaves_disks_and_definition_of_one_mind() {
    let mut world = World::new();
    let spec = || GuestSpec::idle("vm").disks(&["qcow2", "qcow2"]);
    world.define(spec());
    world.virsh.ok("start vm");
    for (round, milliseconds) in [5, 15, 25, 35, 50, 80].into_iter().enumerate() {
        let round = u8::try_from(round + 1).unwrap();
        world.guest(spec()).write("vda", 1, round);
        let line = format!("snapshot-create-as vm r{round} --disk-only");
        world.crash_during(&line, milliseconds);
        let vm = world.guest(spec());
        assert!(vm.holds("vda", 1, round), "after {milliseconds} ms");
        for target in ["vda", "vdb"] {
            let used = world.virsh.ok("qemu-monitor-command vm --hmp 'info block'");
            let source = vm.source(target);
            assert!(used.contains(&format!("{source} ")), "QEMU uses {used}, not {source}");
            assert!(world.virsh.ok("dumpxml --inactive vm").contains(&source), "{source}");
        }
        if vm.snapshots().contains(&format!("r{round}")) {
            assert!(vm.source("vda").ends_with(&format!(".r{round}")));
        } else {
            // Undone: the same name is free again, on disk as well.
            vm.virsh(&format!("snapshot-create-as {{}} r{round} --disk-only"));
        }
        vm.write("vdb", 1, round);
    }
    let vm = world.guest(spec());
    vm.virsh("destroy {}");
    vm.virsh("start {}");
    assert!(vm.holds("vda", 1, 6) && vm.holds("vdb", 1, 6), "the next boot uses the same disks");
    vm.virsh("snapshot-delete {} r1 --children");
    assert!(vm.holds("vda", 1, 6) && vm.holds("vdb", 1, 6));
}

/// Defect 3, second window: the daemon dies while layers are merged. The snapshot is then gone and
/// the merge completed, or it is whole.
#[test]
fn defect_03_a_crash_in_a_delete_never_leaves_a_snapshot_with_other_content() {
    let mut world = World::new();
    world.define(GuestSpec::idle("vm"));
    world.virsh.ok("start vm");
    for (round, milliseconds) in [10, 30, 60, 100].into_iter().enumerate() {
        let round = u8::try_from(round * 3 + 1).unwrap();
        {
            let vm = world.guest(GuestSpec::idle("vm"));
            vm.write("vda", 1, round);
            vm.virsh("snapshot-create-as {} e --disk-only");
            for mib in 1..12 {
                vm.write("vda", mib, round + 1);
            }
        }
        world.crash_during("snapshot-delete vm e", milliseconds);
        let vm = world.guest(GuestSpec::idle("vm"));
        assert!((1..12).all(|mib| vm.holds("vda", mib, round + 1)), "after {milliseconds} ms");
        if vm.snapshots() == ["e"] {
            vm.virsh("snapshot-revert {} e --running");
            assert!(vm.holds("vda", 1, round), "after {milliseconds} ms");
            vm.virsh("snapshot-delete {} e");
        }
        assert!(vm.snapshots().is_empty());
    }
    let vm = world.guest(GuestSpec::idle("vm"));
    vm.virsh("destroy {}");
    assert!(Path::new(&vm.source("vda")).exists(), "the definition names a file that is there");
    vm.virsh("start {}");
}

/// Defect 4: a revert that cannot be done has stopped the guest by the time it says so.
#[test]
fn defect_04_a_revert_that_cannot_be_done_leaves_the_guest_alone() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("snapshot-create-as {} inner");
    images::delete_internal(&vm.disk("vda"), "inner");
    vm.virsh("start {}");
    vm.virsh("snapshot-create-as {} outer --disk-only");
    vm.virsh("snapshot-create-as {} top --disk-only");
    vm.write("vda", 1, 7);
    let (id, qemu) = (vm.virsh("domid {}"), world.processes("qemu-system"));

    // The layer that `outer` froze goes away behind the daemon's back; QEMU has it open still.
    let frozen = world.path("vm-vda.outer");
    let aside = world.path("aside");
    std::fs::rename(&frozen, &aside).unwrap();
    let complaint = vm.refused("snapshot-revert {} top --running");
    assert!(complaint.contains("vm-vda.outer"), "{complaint}");
    std::fs::rename(&aside, &frozen).unwrap();
    let complaint = vm.refused("snapshot-revert {} inner");
    assert!(complaint.contains("inner"), "{complaint}");

    assert_eq!((vm.state().as_str(), vm.virsh("domid {}")), ("running", id));
    assert_eq!(world.processes("qemu-system"), qemu);
    assert!(vm.holds("vda", 1, 7), "and it sees what it saw");
    vm.virsh("snapshot-revert {} outer --running");
}

/// Defect 4, of memory: libvirt opens the file when the guest is gone already.
#[test]
fn defect_04_a_lost_memory_file_is_seen_while_the_guest_runs() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    vm.write("vda", 1, 1);
    let file = world.path("memory");
    let memory = format!("--memspec file={},snapshot=external", file.display());
    vm.virsh(&format!("snapshot-create-as {{}} full {memory}"));
    vm.write("vda", 1, 2);
    let (id, whole) = (vm.virsh("domid {}"), std::fs::read(&file).unwrap());
    let mut of_another = whole.clone();
    of_another[..16].copy_from_slice(b"LibvirtQemudPart");
    for (what, bytes) in [
        ("gone", None),
        ("empty", Some(&[][..])),
        ("no save image", Some(&b"nothing of the kind"[..])),
        ("half", Some(&whole[..whole.len() / 2])),
        ("never finished", Some(&of_another[..])),
    ] {
        match bytes {
            None => std::fs::remove_file(&file).unwrap(),
            Some(bytes) => std::fs::write(&file, bytes).unwrap(),
        }
        let complaint = vm.refused("snapshot-revert {} full");
        assert!(complaint.contains("memory"), "{what}: {complaint}");
        assert_eq!((vm.state().as_str(), vm.virsh("domid {}")), ("running", id.clone()), "{what}");
        assert!(vm.holds("vda", 1, 2), "{what}");
    }
    std::fs::write(&file, whole).unwrap();
    vm.virsh("snapshot-revert {} full");
    assert_eq!(vm.state(), "running");
    assert!(vm.holds("vda", 1, 1));
}

/// Defect 5: two disks are given one file.
#[test]
fn defect_05_one_overlay_is_never_for_two_disks() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm").disks(&["qcow2", "qcow2"]));
    let file = world.path("one").display().to_string();
    for state in ["shut off", "running"] {
        if state == "running" {
            vm.virsh("start {}");
        }
        let complaint = vm.refused(&format!(
            "snapshot-create-as {{}} one --disk-only --diskspec vda,file={file} \
             --diskspec vdb,file={file}"
        ));
        assert!(complaint.contains(&file), "{complaint}");
        assert!(!Path::new(&file).exists());
        assert_eq!(vm.source("vda"), vm.disk("vda").to_string_lossy());
        assert_eq!(vm.source("vdb"), vm.disk("vdb").to_string_lossy());
        assert!(vm.snapshots().is_empty());
    }
}

/// Defect 6: a comma in a name is doubled in the file that is made.
#[test]
fn defect_06_a_comma_stays_one() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.write("vda", 1, 1);
    create(&vm, "a,b", "--disk-only");
    assert!(world.path("vm-vda.a,b").exists());
    assert_eq!(vm.source("vda"), world.path("vm-vda.a,b").to_string_lossy());
    vm.write("vda", 1, 2);
    vm.virsh("start {}");
    assert!(vm.holds("vda", 1, 2));
    create(&vm, "c,d", "--disk-only");
    assert_eq!(vm.source("vda"), world.path("vm-vda.c,d").to_string_lossy());
    vm.virsh("snapshot-revert {} a,b --running");
    assert!(vm.holds("vda", 1, 1));
    vm.virsh("snapshot-delete {} a,b");
    vm.virsh("snapshot-delete {} c,d");
    assert!(vm.holds("vda", 1, 1));
}

/// Defect 7: metadata is written last, and where it cannot be, the guest is on an overlay that no
/// snapshot speaks of.
#[test]
fn defect_07_a_long_name_is_a_snapshot_or_nothing() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    vm.write("vda", 1, 1);
    // The last is longer than the name of an internal snapshot can be.
    for (n, length) in [200, 251, 255, 400].into_iter().enumerate() {
        let name = format!("{n}").repeat(length);
        if length < 256 {
            vm.virsh(&format!("snapshot-create-as {{}} {name}"));
            assert!(images::internal_snapshots(&vm.disk("vda")).contains(&name), "{length}");
            assert!(vm.snapshots().contains(&name), "{length}");
            vm.virsh(&format!("snapshot-delete {{}} {name}"));
        } else {
            vm.refused(&format!("snapshot-create-as {{}} {name}"));
        }
        let overlay = world.path(&format!("short{n}"));
        vm.virsh(&format!(
            "snapshot-create-as {{}} {name} --disk-only --diskspec vda,file={}",
            overlay.display()
        ));
        assert_eq!(vm.source("vda"), overlay.to_string_lossy());
        vm.virsh(&format!("snapshot-delete {{}} {name}"));
        // The overlay's name would be too long: nothing happens.
        if length > 250 {
            vm.refused(&format!("snapshot-create-as {{}} {name} --disk-only"));
            assert_eq!(vm.source("vda"), vm.disk("vda").to_string_lossy());
        }
        assert!(vm.snapshots().is_empty());
    }
    assert!(vm.holds("vda", 1, 1));
}

/// Defect 8: a file that is in the memory's place is written over.
#[test]
fn defect_08_no_file_is_overwritten_unasked() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    let file = world.path("precious");
    std::fs::write(&file, "of the user").unwrap();
    let memory = format!("--memspec file={},snapshot=external", file.display());
    let complaint = vm.refused(&format!("snapshot-create-as {{}} full {memory}"));
    assert!(complaint.contains("precious"), "{complaint}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "of the user");
    assert_eq!(vm.state(), "running");
    assert_eq!(vm.source("vda"), vm.disk("vda").to_string_lossy());
    assert!(vm.snapshots().is_empty());
    // Nor one where a default name leads.
    let full = "<domainsnapshot><name>s</name><memory snapshot='external'/></domainsnapshot>";
    let xml = world.path("full.xml");
    std::fs::write(&xml, full).unwrap();
    let create = format!("snapshot-create {{}} {}", xml.display());
    vm.virsh(&create);
    let shown = vm.virsh("snapshot-dumpxml {} s");
    let (_, rest) = shown.split_once("file='").expect("the memory has a file");
    let made = PathBuf::from(rest.split_once('\'').unwrap().0);
    assert!(made.exists());
    vm.virsh("snapshot-delete {} s");
    assert!(!made.exists(), "it goes with its snapshot");
    std::fs::write(&made, "of the user, too").unwrap();
    vm.refused(&create);
    assert_eq!(std::fs::read_to_string(&made).unwrap(), "of the user, too");
    assert_eq!(vm.state(), "running");
}

/// Defect 9: names made of seconds collide.
#[test]
fn defect_09_two_in_one_second_both_succeed() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    for options in ["", "--disk-only"] {
        // One virsh, so that they follow each other at once.
        vm.virsh(&format!("snapshot-create {{}} {options}; snapshot-create vm {options}"));
    }
    assert_eq!(vm.snapshots().len(), 4);
    vm.virsh("snapshot-create-as {} outer --disk-only");
    vm.virsh("snapshot-revert {} outer; snapshot-revert vm outer; snapshot-revert vm outer");
    assert_eq!(images::chain(Path::new(&vm.source("vda"))).len(), 4);
    vm.virsh("start {}");
}

/// Defect 10: an image that was prepared is taken without a look, and the disk changes under the
/// guest.
#[test]
fn defect_10_a_prepared_overlay_is_looked_at() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.write("vda", 1, 1);
    let file = world.path("prepared");
    let line = format!(
        "snapshot-create-as {{}} s --disk-only --reuse-external --diskspec vda,file={}",
        file.display()
    );
    let backed = |base: &Path, size: &str| {
        let _ = std::fs::remove_file(&file);
        images::create_sized_on(&file, base, size);
    };
    images::create(&world.path("other"), "qcow2", "16M");
    // With content of its own, which the guest would find on its disk.
    let written = world.path("written");
    images::create_sized_on(&written, &vm.disk("vda"), "16M");
    images::write_pattern(&written, 9, 2 << 20, 65536);
    for state in ["shut off", "running"] {
        if state == "running" {
            vm.virsh("start {}");
        }
        let _ = std::fs::remove_file(&file);
        vm.refused(&line);
        images::create(&file, "qcow2", "16M");
        vm.refused(&line);
        backed(&world.path("other"), "16M");
        vm.refused(&line);
        backed(&vm.disk("vda"), "8M");
        vm.refused(&line);
        std::fs::copy(&written, &file).unwrap();
        vm.refused(&line);
        assert_eq!(vm.source("vda"), vm.disk("vda").to_string_lossy());
        assert!(vm.holds("vda", 1, 1) && vm.snapshots().is_empty() && vm.state() == state);
    }
    backed(&vm.disk("vda"), "16M");
    vm.virsh(&line);
    assert_eq!(vm.source("vda"), file.to_string_lossy());
    vm.write("vda", 1, 2);
    vm.virsh("snapshot-revert {} s");
    assert!(vm.holds("vda", 1, 1));
}

/// Defect 11: after memory was saved of a paused guest, QEMU's disks are left inactive.
#[test]
fn defect_11_a_paused_guest_can_be_taken_again_and_again() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {} --paused");
    let memory = |name: &str| {
        let file = world.path(&format!("{name}.memory"));
        format!(
            "snapshot-create-as {{}} {name} --memspec file={},snapshot=external",
            file.display()
        )
    };
    for (name, pattern) in [("one", 1), ("two", 2), ("three", 3)] {
        vm.write("vda", 1, pattern);
        vm.virsh(&memory(name));
        assert_eq!(vm.state(), "paused");
    }
    vm.write("vda", 1, 4);
    vm.virsh("snapshot-delete {} two");
    assert!(vm.holds("vda", 1, 4));
    vm.virsh("snapshot-create-as {} inner");
    vm.write("vda", 1, 5);
    vm.virsh("snapshot-create-as {} disks --disk-only");
    for (name, pattern) in [("one", 1), ("three", 3), ("inner", 4)] {
        vm.virsh(&format!("snapshot-revert {{}} {name}"));
        assert_eq!(vm.state(), "paused", "{name}");
        assert!(vm.holds("vda", 1, pattern), "{name}");
    }
    vm.virsh("resume {}");
    assert_eq!(vm.state(), "running");
}

/// Defect 12: the name of an internal snapshot of a running guest had to be a job identifier.
#[test]
fn defect_12_any_legal_name_works_live() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    for (n, name) in (1..).zip(ODD_NAMES) {
        vm.write("vda", 1, n);
        create(&vm, name, "");
        vm.write("vda", 1, 99);
        vm.virsh(&format!("snapshot-revert {{}} {}", quoted(name)));
        assert!(vm.holds("vda", 1, n), "{name}");
        create(&vm, &format!("{name}x"), "--disk-only");
        assert!(world.path(&format!("vm-vda.{name}x")).exists(), "{name}");
        vm.virsh(&format!("snapshot-delete {{}} {}", quoted(&format!("{name}x"))));
        assert!(vm.holds("vda", 1, n), "{name}");
    }
    let expected = ODD_NAMES.map(str::to_owned).to_vec();
    assert_eq!(sorted(vm.snapshots()), sorted(expected));
    vm.virsh("destroy {}");
    for (n, name) in (1..).zip(ODD_NAMES) {
        vm.virsh(&format!("snapshot-revert {{}} {} --paused", quoted(name)));
        assert!(vm.holds("vda", 1, n), "{name}, in a new process");
        vm.virsh(&format!("snapshot-delete {{}} {}", quoted(name)));
    }
    vm.virsh("destroy {}");
    assert!(images::internal_snapshots(&vm.disk("vda")).is_empty());
    images::check(&vm.disk("vda"));
}

/// Defect 13: an image ends up with two internal snapshots of one name.
#[test]
fn defect_13_a_stray_internal_snapshot_is_seen_before_anything_is_touched() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.write("vda", 1, 1);
    vm.virsh("snapshot-create-as {} stray --no-metadata");
    for state in ["shut off", "running"] {
        if state == "running" {
            vm.virsh("start {}");
        }
        let complaint = vm.refused("snapshot-create-as {} stray");
        assert!(complaint.contains("stray") && complaint.contains("vda"), "{complaint}");
        assert_eq!(vm.state(), state);
        assert_eq!(images::internal_snapshots(&vm.disk("vda")), ["stray"]);
        assert!(vm.snapshots().is_empty());
    }
}

/// Defect 14: a revert gives a disk that was no part of the snapshot a new overlay, too.
#[test]
fn defect_14_a_disk_outside_the_snapshot_stays_as_it_is() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm").disks(&["qcow2", "qcow2", "raw"]));
    for target in ["vda", "vdb", "vdc"] {
        vm.write(target, 1, 1);
    }
    vm.virsh("snapshot-create-as {} part --disk-only --diskspec vdb,snapshot=no --diskspec vdc,snapshot=manual");
    for target in ["vda", "vdb", "vdc"] {
        vm.write(target, 1, 2);
    }
    vm.virsh("snapshot-revert {} part");
    assert!(vm.holds("vda", 1, 1));
    for target in ["vdb", "vdc"] {
        assert_eq!(vm.source(target), vm.disk(target).to_string_lossy());
        assert!(vm.holds(target, 1, 2), "{target} is not reverted");
    }
}

/// Defect 15: reverting behind an external snapshot leaves its overlay for ever.
#[test]
fn defect_15_no_file_is_left_that_nobody_needs() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.write("vda", 1, 1);
    vm.virsh("snapshot-create-as {} inner");
    vm.virsh("snapshot-create-as {} outer --disk-only");
    vm.write("vda", 1, 2);
    vm.virsh("snapshot-revert {} inner");
    assert!(vm.holds("vda", 1, 1));
    vm.virsh("snapshot-delete {} outer");
    vm.virsh("snapshot-delete {} inner");
    assert!(vm.holds("vda", 1, 1));
    let images: Vec<_> = std::fs::read_dir(world.dir())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("vm-vda"))
        .collect();
    // The user's own file, which is not ours to remove, and the one in use.
    let mut expected = vec![vm.disk("vda"), vm.source("vda").into()];
    expected.dedup();
    assert_eq!(sorted_paths(images), sorted_paths(expected));
}

/// Defect 16: lists come in the order of a hash table.
#[test]
fn defect_16_lists_are_in_order() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    let names = ["m", "c", "x", "a", "q", "b"];
    for name in names {
        vm.virsh(&format!("snapshot-create-as {{}} {name} --disk-only"));
    }
    let connection = virt::connect::Connect::open(Some(&world.virsh.uri)).unwrap();
    let domain = connection.lookup_domain_by_name("vm").unwrap();
    let listed: Vec<_> =
        domain.list_all_snapshots(0).unwrap().iter().map(|s| s.name().unwrap()).collect();
    assert_eq!(listed, names, "parents before children, as they were taken");
}

/// Defect 16: a QEMU is started to delete an external snapshot of a domain that is off.
#[test]
fn defect_16_no_qemu_is_started_for_an_offline_delete() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    for (name, pattern) in [("a", 1), ("b", 2), ("c", 3)] {
        vm.virsh(&format!("snapshot-create-as {{}} {name} --disk-only"));
        vm.write("vda", u64::from(pattern), pattern);
    }
    // With an emulator that leaves a mark, no start can go unnoticed.
    let emulator = world.path("emulator");
    let mark = world.path("started");
    let xml = vm.virsh("dumpxml --inactive {}");
    let (before, rest) = xml.split_once("<emulator>").expect("every domain has an emulator");
    let (real, after) = rest.split_once("</emulator>").unwrap();
    // A guest has a name; what asks an emulator what it can do gives none.
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *guest=*) touch {}; exit 1;; esac\nexec {real} \"$@\"\n",
        mark.display()
    );
    std::fs::write(&emulator, script).unwrap();
    std::fs::set_permissions(&emulator, std::fs::Permissions::from_mode(0o755)).unwrap();
    let xml = format!("{before}<emulator>{}</emulator>{after}", emulator.display());
    let file = world.path("other.xml");
    std::fs::write(&file, xml).unwrap();
    vm.virsh(&format!("define {}", file.display()));
    vm.refused("start {}");
    assert!(mark.exists(), "the mark works");
    std::fs::remove_file(&mark).unwrap();

    for name in ["b", "a", "c"] {
        vm.virsh(&format!("snapshot-delete {{}} {name}"));
    }
    assert!(!mark.exists(), "an emulator was started");
    assert_eq!(vm.source("vda"), vm.disk("vda").to_string_lossy());
    assert!((1..=3).all(|n| vm.holds("vda", u64::from(n), n)));
}
