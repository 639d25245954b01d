//! Saved guests: to a file, by a managed save, at the other daemon, and back.
//!
//! What proves a restore: the guest goes on counting from where it was saved, and its memory
//! agrees with its disk.

use std::os::unix::fs::PermissionsExt;

use virtsnap_tests::guest::Mark;
use virtsnap_tests::{Daemon, Guest, GuestSpec, World, images, oracle, skip};

/// The guest, saved when it had counted to `saved` at least, goes on without a boot. It had said
/// everything before the mark, but for a line that was on its way.
#[track_caller]
fn goes_on(vm: &Guest, mark: Mark, saved: u64) {
    let said = vm.last_match_before(mark).expect("it counted");
    let n = vm.next_match(mark);
    assert!((saved..=said + 2).contains(&n), "{n} does not follow {said}");
    vm.reach_after(mark, n + 2);
    assert!(vm.lines(mark).iter().all(|line| !line.starts_with("START")), "it booted");
    vm.never_mismatched();
}

fn reason(vm: &Guest) -> String {
    vm.virsh("domstate {} --reason").trim().to_owned()
}

#[test]
fn a_saved_guest_goes_on_where_it_was() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    let file = world.path("vm.save");
    let to = file.display();
    for (save, restore, state) in [
        ("", "", "running"),
        (" --paused", "", "paused"),
        (" --paused", " --running", "running"),
        ("", " --paused", "paused"),
        (" --image-format zstd", "", "running"),
    ] {
        let at = vm.count_on(2);
        vm.virsh(&format!("save {{}} {to}{save}"));
        assert_eq!(reason(&vm), "shut off (saved)");
        let mark = vm.mark();
        world.virsh.ok(&format!("restore {to}{restore}"));
        assert_eq!(vm.state(), state);
        match state {
            "running" => assert_eq!(reason(&vm), "running (restored)"),
            _ => drop(vm.virsh("resume {}")),
        }
        goes_on(&vm, mark, at);
    }
    let complaint = world.virsh.fails(&format!("restore {to}"));
    assert!(complaint.contains("already active"), "{complaint}");
    // A guest that was paused by its user is saved and comes back as it was.
    let at = vm.count_on(1);
    vm.virsh("suspend {}");
    vm.virsh(&format!("save {{}} {to}"));
    let mark = vm.mark();
    world.virsh.ok(&format!("restore {to}"));
    assert_eq!(vm.state(), "paused");
    vm.virsh("resume {}");
    goes_on(&vm, mark, at);
    vm.virsh("destroy {}");
    images::check(&vm.disk("vda"));
}

#[test]
fn a_save_that_fails_leaves_the_guest_running() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    vm.count_on(1);
    for (line, why) in [
        ("save {} /no/such/directory/file".to_owned(), "No such file"),
        (format!("save {{}} {}", vm.disk("vda").display()), "disk"),
        (format!("save {{}} {} --image-format lzop", world.path("x").display()), "lzop"),
        (format!("save {{}} {} --image-format nonsense", world.path("x").display()), "nonsense"),
    ] {
        let complaint = vm.refused(&line);
        assert!(complaint.contains(why), "{line}: {complaint}");
        vm.count_on(1);
    }
    vm.never_mismatched();
    let left = std::fs::read_dir(world.dir()).expect("ours").flatten();
    let names: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().contains("virtsnap-")), "{names:?}");
}

#[test]
fn a_managed_save_is_where_the_next_start_goes_on() {
    let mut world = World::new();
    let at = {
        let vm = world.boot(GuestSpec::new("vm"));
        let at = vm.count_on(2);
        vm.virsh("managedsave {}");
        assert_eq!(reason(&vm), "shut off (saved)");
        assert!(vm.virsh("dominfo {}").contains("Managed save:   yes"));
        assert_eq!(world.virsh.lines("list --all --name --with-managed-save"), ["vm"]);
        assert!(vm.refused("undefine {}").contains("managed save"));
        at
    };
    world.stop();
    world.start();
    let vm = world.guest(GuestSpec::new("vm"));
    assert!(vm.virsh("dominfo {}").contains("Managed save:   yes"));
    let xml = vm.virsh("managedsave-dumpxml {}");
    assert!(xml.contains("<name>vm</name>"), "{xml}");
    let mark = vm.mark();
    vm.virsh("start {}");
    assert_eq!(reason(&vm), "running (restored)");
    assert!(vm.virsh("dominfo {}").contains("Managed save:   no"));
    goes_on(&vm, mark, at);

    // Another way to come back, in the image.
    let at = vm.count_on(1);
    vm.virsh("managedsave {}");
    let file = world.path("other.xml");
    let xml = vm.virsh("managedsave-dumpxml {} --security-info");
    std::fs::write(&file, xml.replace("</name>", "</name>\n  <title>later</title>")).expect("ours");
    vm.virsh(&format!("managedsave-define {{}} {} --paused", file.display()));
    let mark = vm.mark();
    vm.virsh("start {}");
    assert_eq!(vm.state(), "paused");
    assert!(vm.virsh("dumpxml {}").contains("<title>later</title>"));
    vm.virsh("resume {}");
    goes_on(&vm, mark, at);

    // What no longer fits the memory is refused.
    vm.virsh("managedsave {}");
    let xml = vm.virsh("managedsave-dumpxml {} --security-info");
    std::fs::write(&file, xml.replace("bus='virtio'", "bus='sata'")).expect("ours");
    vm.refused(&format!("managedsave-define {{}} {}", file.display()));

    let mark = vm.mark();
    vm.virsh("start {} --force-boot");
    vm.booted(mark);
    assert!(vm.virsh("dominfo {}").contains("Managed save:   no"));
    vm.count_on(1);
    vm.virsh("managedsave {}");
    vm.virsh("managedsave-remove {}");
    let mark = vm.mark();
    vm.virsh("start {}");
    vm.booted(mark);
    vm.virsh("destroy {}");
    vm.virsh("undefine {}");
}

#[test]
fn memory_that_was_saved_never_meets_other_disks() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    vm.count_on(1);
    vm.virsh("snapshot-create-as {} disk --disk-only");
    vm.count_on(2);
    vm.virsh("managedsave {}");
    let complaint = vm.refused("snapshot-revert {} disk");
    assert!(complaint.contains("managed save"), "{complaint}");
    assert!(vm.virsh("dominfo {}").contains("Managed save:   yes"));
    vm.virsh("snapshot-revert {} disk --force");
    assert!(vm.virsh("dominfo {}").contains("Managed save:   no"));
    let mark = vm.mark();
    vm.virsh("start {}");
    vm.booted(mark);
    vm.never_mismatched();
}

fn is_saved(vm: &Guest) -> bool {
    vm.virsh("dominfo {}").contains("Managed save:   yes")
}

#[test]
fn a_snapshot_of_a_saved_guest_has_its_memory() {
    let world = World::new();
    let create = "snapshot-create-as {} s --memspec snapshot=external";
    let file = world.path("vm.s.save");
    let vm = world.define(GuestSpec::new("vm").disks(&["qcow2", "qcow2"]));
    let complaint = vm.refused(create);
    assert!(complaint.contains("shut off"), "{complaint}");
    vm.virsh("start {}");
    let at = vm.count_on(2);
    vm.virsh("managedsave {}");
    vm.refused(&format!("{create} --disk-only"));
    vm.virsh(create);
    let xml = vm.virsh("snapshot-dumpxml {} s");
    assert!(xml.contains("<state>running</state>"), "{xml}");
    assert!(xml.contains(&format!("file='{}'", file.display())), "{xml}");
    let mode = std::fs::metadata(&file).expect("the memory").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(vm.source("vda"), world.path("vm-vda.s").to_string_lossy());

    // It is as saved as before, and goes on on its new layers.
    assert!(is_saved(&vm));
    let mark = vm.mark();
    vm.virsh("start {}");
    goes_on(&vm, mark, at);
    assert_eq!(vm.source("vdb"), world.path("vm-vdb.s").to_string_lossy());
    for late in ["", "managedsave {}", "destroy {}"] {
        vm.count_on(3);
        if !late.is_empty() {
            vm.virsh(late);
        }
        let mark = vm.mark();
        vm.virsh("snapshot-revert {} s");
        assert!(!is_saved(&vm), "its memory is of other disks");
        assert_eq!(reason(&vm), "running (from snapshot)");
        goes_on(&vm, mark, at);
    }
    // The disks alone.
    vm.virtsnap("revert {} s --stop");
    assert_eq!(vm.state(), "shut off");
    let mark = vm.mark();
    vm.virsh("start {}");
    let n = vm.booted(mark);
    assert!((at..at + 4).contains(&n), "{n} is not of {at}");
    vm.virsh("snapshot-delete {} s");
    assert!(!file.exists());
    vm.count_on(2);

    // One that was paused comes back paused; memory of disks that were changed since is none.
    vm.virsh("suspend {}");
    let at = vm.last_match().expect("it has counted");
    vm.virsh("managedsave {}");
    vm.virsh(create);
    assert!(vm.virsh("snapshot-dumpxml {} s").contains("<state>paused</state>"));
    vm.virsh("start {}");
    vm.virsh("resume {}");
    vm.count_on(2);
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} s");
    assert_eq!(vm.state(), "paused");
    vm.virsh("resume {}");
    goes_on(&vm, mark, at);
    vm.virsh("managedsave {}");
    vm.virsh("detach-disk {} vdb --config");
    let complaint = vm.refused("snapshot-create-as {} t --memspec snapshot=external");
    assert!(complaint.contains("vdb"), "{complaint}");
    assert!(is_saved(&vm) && world.virsh.lines("snapshot-list vm --name") == ["s"]);
    vm.virsh("undefine {} --managed-save --snapshots-metadata");
}

/// What moves the domain's disks moves those of the guest that was saved: else it would go on in
/// the file that a snapshot froze.
#[test]
fn a_saved_guest_goes_on_where_its_disks_are() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    let at = vm.count_on(2);
    vm.virsh("managedsave {}");
    let long = world.path(&format!("{}.qcow2", "long".repeat(50)));
    vm.virsh(&format!(
        "snapshot-create-as {{}} one --disk-only --diskspec vda,file={}",
        long.display()
    ));
    vm.virsh("snapshot-create-as {} two --disk-only");
    let mark = vm.mark();
    vm.virsh("start {}");
    goes_on(&vm, mark, at);
    assert!(vm.source("vda").ends_with("long.two"), "{}", vm.source("vda"));
    let late = vm.count_on(4);
    // A layer that is merged away under a saved guest.
    vm.virsh("managedsave {}");
    vm.virsh("snapshot-delete {} two");
    assert!(is_saved(&vm));
    let mark = vm.mark();
    vm.virsh("start {}");
    goes_on(&vm, mark, late);
    assert_eq!(vm.source("vda"), long.to_string_lossy());
    // The snapshot is as it was when the guest was saved.
    vm.virsh("snapshot-revert {} one");
    assert_eq!(vm.state(), "shut off");
    let mark = vm.mark();
    vm.virsh("start {}");
    let n = vm.booted(mark);
    assert!((at..at + 4).contains(&n), "{n} is not of {at}");
    vm.never_mismatched();
    vm.virsh("destroy {}");
    images::check(&vm.disk("vda"));
}

#[test]
fn a_daemon_that_dies_in_a_save_leaves_a_guest_that_runs() {
    for milliseconds in [5, 60, 200] {
        let mut world = World::new();
        {
            let vm = world.boot(GuestSpec::new("vm"));
            vm.count_on(1);
        }
        world.crash_during("managedsave vm", milliseconds);
        world.start();
        let vm = world.guest(GuestSpec::new("vm"));
        let mark = vm.mark();
        if vm.state() == "running" {
            assert!(vm.virsh("dominfo {}").contains("Managed save:   no"));
            vm.next_match(mark);
        } else {
            assert_eq!(vm.state(), "shut off", "after {milliseconds} ms");
            assert!(vm.virsh("dominfo {}").contains("Managed save:   yes"));
            vm.virsh("start {}");
            vm.next_match(mark);
        }
        let booted = vm.lines(mark).iter().any(|line| line.starts_with("START"));
        assert!(!booted, "it booted: {milliseconds} ms");
        vm.count_on(2);
        vm.never_mismatched();
        vm.virsh("managedsave {}");
        let mark = vm.mark();
        vm.virsh("start {}");
        vm.next_match(mark);
        vm.never_mismatched();
    }
}

/// A guest that is the same for two daemons.
fn traveller() -> GuestSpec {
    let uuid = Some("6b1a2c5e-1d37-4c58-9f0e-52c0d3f0a002".to_owned());
    GuestSpec { uuid, ..GuestSpec::new("traveller") }
}

/// Saved at one daemon, restored at the other.
fn travels(from: Daemon, to: Daemon, machine: &str, how: &str) {
    let here = World::with(from);
    let vm = here.boot(traveller().machine(machine));
    let at = vm.count_on(2);
    let file = here.path("packed.save");
    vm.virsh(&format!("save {{}} {}{how}", file.display()));
    let said = vm.last_match().expect("it counted");

    let there = World::with(to);
    let arrived = there.guest(vm.spec.clone());
    std::fs::copy(vm.disk("vda"), arrived.disk("vda")).expect("copied");
    let xml = here.virsh.ok(&format!("save-image-dumpxml {} --security-info", file.display()));
    let xml = xml.replace(&*here.dir().to_string_lossy(), &there.dir().to_string_lossy());
    let definition = there.path("arrived.xml");
    std::fs::write(&definition, xml).expect("ours");
    let line = format!("restore {} --xml {}", file.display(), definition.display());
    there.virsh.ok(&line);
    assert_eq!(arrived.state(), "running");
    let mark = Mark::start();
    let n = arrived.next_match(mark);
    assert!((at..=said + 2).contains(&n), "{n} does not follow {said}");
    arrived.reach(n + 3);
    assert!(arrived.lines(mark).iter().all(|line| !line.starts_with("START")), "it booted");
    arrived.never_mismatched();
    arrived.virsh("destroy {}");
    images::check(&arrived.disk("vda"));
}

#[test]
fn a_save_of_libvirtd_is_restored_here() {
    if let Some(why) = oracle::unavailable() {
        skip!("{why}");
    }
    travels(Daemon::Libvirtd, Daemon::Virtsnapd, "pc", "");
    travels(Daemon::Libvirtd, Daemon::Virtsnapd, "q35", " --image-format zstd");
    travels(Daemon::Libvirtd, Daemon::Virtsnapd, "pc", " --image-format sparse");
}

#[test]
fn a_save_of_ours_is_restored_at_libvirtd() {
    if let Some(why) = oracle::unavailable() {
        skip!("{why}");
    }
    travels(Daemon::Virtsnapd, Daemon::Libvirtd, "q35", "");
    travels(Daemon::Virtsnapd, Daemon::Libvirtd, "pc", " --image-format gzip");
}
