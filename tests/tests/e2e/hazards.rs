//! Hazards of libvirt 11.3's snapshot code (H-01 to H-12), and that virtsnap does not have them.
//!
//! Shown elsewhere:
//!
//! - H-01: also `defects::defect_04_a_revert_that_cannot_be_done_leaves_the_guest_alone`;
//! - H-03, H-04, H-05: also `driver/qemu/tests/crashes.rs`, which lets each call of each operation
//!   fail in each way;
//! - H-07: `defects::defect_16_no_qemu_is_started_for_an_offline_delete`;
//! - H-09: `internal::a_running_guest_goes_back_in_memory_and_on_disk`;
//! - H-10: `defects::defect_06_a_comma_stays_one`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use virtsnap_tests::{GuestSpec, World, images};

/// H-01: what can be refused is refused while the guest still runs; libvirt has stopped it by then.
#[test]
fn h_01_a_revert_is_checked_before_the_guest_is_stopped() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("snapshot-create-as {} off --disk-only");
    vm.virsh("start {}");
    vm.virsh("snapshot-create-as {} on --disk-only");
    vm.write("vda", 1, 5);
    let qemu = world.processes("qemu-system");
    // A base that is no image any more, and one that is gone.
    let base = vm.disk("vda");
    let aside = world.path("aside");
    std::fs::rename(&base, &aside).unwrap();
    vm.refused("snapshot-revert {} off");
    std::fs::write(&base, "no image").unwrap();
    vm.refused("snapshot-revert {} off");
    std::fs::rename(&aside, &base).unwrap();
    assert_eq!(vm.state(), "running");
    assert_eq!(world.processes("qemu-system"), qemu);
    assert!(vm.holds("vda", 1, 5));
    vm.virsh("snapshot-revert {} off");
}

/// H-02: with no current snapshot libvirt follows a null pointer.
#[test]
fn h_02_a_revert_needs_no_current_snapshot() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.write("vda", 1, 1);
    vm.virsh("snapshot-create-as {} root --disk-only");
    vm.virsh("snapshot-create-as {} leaf --disk-only");
    vm.write("vda", 1, 2);
    let file = world.path("leaf.xml");
    vm.virsh("snapshot-revert {} root");
    vm.virsh("snapshot-delete {} root");
    std::fs::write(&file, vm.virsh("snapshot-dumpxml {} leaf")).unwrap();
    assert!(vm.refused("snapshot-current {}").contains("current"));
    vm.virsh("snapshot-revert {} leaf");
    assert!(vm.holds("vda", 1, 1));
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "leaf");
    // The same after a redefinition that does not say which is current.
    vm.virsh("snapshot-delete {} leaf --metadata");
    vm.virsh(&format!("snapshot-create {{}} {} --redefine", file.display()));
    assert!(vm.refused("snapshot-current {}").contains("current"));
    vm.virsh("snapshot-revert {} leaf --running");
    assert!(vm.holds("vda", 1, 1));
}

/// H-03: the overlay of the state that is given up goes only once the new state is durable. While
/// the record of the revert cannot be written, the old one is whole.
#[test]
fn h_03_the_old_overlay_goes_last() {
    let mut world = World::new();
    world.define(GuestSpec::idle("vm"));
    world.guest(GuestSpec::idle("vm")).write("vda", 1, 1);
    world.virsh.ok("snapshot-create-as vm s --disk-only");
    for (round, milliseconds) in [2, 5, 10, 20, 40].into_iter().enumerate() {
        let pattern = u8::try_from(round + 10).unwrap();
        world.guest(GuestSpec::idle("vm")).write("vda", 2, pattern);
        let old = world.guest(GuestSpec::idle("vm")).source("vda");
        world.crash_during("snapshot-revert vm s", milliseconds);
        let vm = world.guest(GuestSpec::idle("vm"));
        assert!(vm.holds("vda", 1, 1));
        let now = vm.source("vda");
        assert_eq!(vm.holds("vda", 2, pattern), now == old, "{now} after {milliseconds} ms");
        assert_eq!(Path::new(&old).exists(), now == old, "after {milliseconds} ms");
        images::check(Path::new(&now));
    }
}

/// H-04: a snapshot that was taken is not denied because of what came after it. Here the disks are
/// on their overlays, and the daemon dies before it has thawed, recorded or answered.
#[test]
fn h_04_a_snapshot_that_was_taken_is_recorded() {
    let mut world = World::new();
    world.define(GuestSpec::idle("vm"));
    world.virsh.ok("start vm");
    let overlay = world.path("vm-vda.s");
    let mut client = world.virsh.command("snapshot-create-as vm s --disk-only").spawn().unwrap();
    // The moment the overlay is there, the end is near.
    virtsnap_tests::host::wait("the overlay", 60, || overlay.exists().then_some(()));
    world.kill();
    client.wait().unwrap();
    world.start();
    let vm = world.guest(GuestSpec::idle("vm"));
    let taken = vm.snapshots() == ["s"];
    assert_eq!(vm.source("vda") == overlay.to_string_lossy(), taken);
    assert_eq!(overlay.exists(), taken);
    assert_eq!(vm.virsh("dumpxml --inactive {}").contains("vm-vda.s"), taken);
    assert_eq!(vm.state(), "running");
}

/// H-05: a deletion over several disks that was interrupted is known to have been, at the root too.
#[test]
fn h_05_a_deletion_over_several_disks_is_completed() {
    let mut world = World::new();
    let spec = || GuestSpec::idle("vm").disks(&["qcow2", "qcow2", "qcow2"]);
    world.define(spec());
    world.virsh.ok("start vm");
    world.virsh.ok("snapshot-create-as vm root --disk-only");
    let targets = ["vda", "vdb", "vdc"];
    {
        let vm = world.guest(spec());
        for target in targets {
            (1..8).for_each(|mib| vm.write(target, mib, 3));
        }
    }
    world.crash_during("snapshot-delete vm root", 60);
    let vm = world.guest(spec());
    if !vm.snapshots().is_empty() {
        vm.virsh("snapshot-delete {} root");
    }
    vm.virsh("destroy {}");
    for target in targets {
        assert_eq!(vm.source(target), vm.disk(target).to_string_lossy());
        assert!((1..8).all(|mib| vm.holds(target, mib, 3)), "{target}");
        assert!(!world.path(&format!("vm-{target}.root")).exists());
        images::check(&vm.disk(target));
    }
}

/// H-06: overlays of other branches are re-pointed with a look at the result.
#[test]
fn h_06_other_branches_read_what_they_read() {
    let world = World::new();
    for (name, running) in [("off", false), ("on", true)] {
        let vm = world.define(GuestSpec::idle(name));
        vm.write("vda", 1, 1);
        vm.virsh("snapshot-create-as {} root --disk-only");
        vm.write("vda", 1, 2);
        vm.virsh("snapshot-create-as {} mid --disk-only");
        vm.write("vda", 1, 3);
        vm.virsh("snapshot-create-as {} old --disk-only");
        vm.virsh("snapshot-revert {} mid");
        vm.write("vda", 1, 4);
        vm.virsh("snapshot-create-as {} new --disk-only");
        if running {
            vm.virsh("start {}");
        }
        // What `mid` and `root` froze is below both branches.
        for gone in ["root", "mid"] {
            vm.virsh(&format!("snapshot-delete {{}} {gone}"));
            assert!(vm.holds("vda", 1, 4), "{name} without {gone}");
        }
        for (moment, pattern) in [("old", 3), ("new", 4)] {
            vm.virsh(&format!("snapshot-revert {{}} {moment}"));
            assert!(vm.holds("vda", 1, pattern), "{name}: {moment}");
            images::check(Path::new(&vm.source("vda")));
        }
        assert_eq!(vm.snapshots(), ["new", "old"]);
    }
}

/// H-08 (CVE-2025-13193): an overlay of a domain that is off is readable to everybody.
#[test]
fn h_08_an_overlay_is_never_looser_than_its_base() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for (base, allowed) in [(0o600, 0o600), (0o640, 0o640), (0o666, 0o666)] {
        let image = vm.source("vda");
        std::fs::set_permissions(&image, std::fs::Permissions::from_mode(base)).unwrap();
        for name in ["off", "on"] {
            if name == "on" {
                vm.virsh("start {}");
            }
            vm.virsh(&format!("snapshot-create-as {{}} {name}{base:o} --disk-only"));
            let seen = mode(Path::new(&vm.source("vda")));
            assert_eq!(seen & !allowed, 0, "{seen:o} on a base of {base:o}, {name}");
            assert_eq!(seen & 0o077 & !base, 0);
        }
        vm.virsh("destroy {}");
        vm.virsh(&format!("snapshot-revert {{}} on{base:o}"));
        let seen = mode(Path::new(&vm.source("vda")));
        assert_eq!(seen & !allowed, 0, "{seen:o} by a revert");
    }
}

/// H-12: metadata of a snapshot that the images do not hold is accepted, as by libvirt; but revert
/// and delete look at the images before they touch anything.
#[test]
fn h_12_what_redefine_said_is_checked_against_the_images() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.write("vda", 1, 1);
    let mut lies = Vec::new();
    for (name, options) in [("inner", ""), ("outer", "--disk-only")] {
        vm.virsh(&format!("snapshot-create-as {{}} {name} {options}"));
        let xml = vm.virsh(&format!("snapshot-dumpxml {{}} {name}"));
        // The same of an image that is somewhere else.
        let lie = xml.replace("vm-vda.qcow2", "nowhere.qcow2").replace(name, &format!("no{name}"));
        lies.push(lie);
        vm.virsh(&format!("snapshot-delete {{}} {name}"));
    }
    for lie in lies {
        let file = world.path("lie.xml");
        std::fs::write(&file, &lie).unwrap();
        vm.virsh(&format!("snapshot-create {{}} {} --redefine", file.display()));
    }
    // And of an internal one that was deleted behind our back.
    vm.virsh("snapshot-create-as {} gone");
    images::delete_internal(&vm.disk("vda"), "gone");
    for running in [false, true] {
        if running {
            vm.virsh("start {}");
        }
        for name in ["noinner", "noouter", "gone"] {
            vm.refused(&format!("snapshot-revert {{}} {name}"));
            assert_eq!(vm.state() == "running", running, "{name}");
            assert!(vm.holds("vda", 1, 1), "{name}");
            assert_eq!(vm.source("vda"), vm.disk("vda").to_string_lossy());
        }
    }
    for name in ["noinner", "noouter", "gone"] {
        vm.virsh(&format!("snapshot-delete {{}} {name}"));
        assert!(vm.holds("vda", 1, 1), "{name}");
    }
    assert!(vm.snapshots().is_empty());
    vm.virsh("destroy {}");
    images::check(&vm.disk("vda"));
}

/// What another domain stands on, or has, is not written to: also where its own files are in another
/// directory.
#[test]
fn another_domain_keeps_what_it_stands_on() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    let golden = vm.disk("vda");
    vm.write("vda", 1, 1);
    vm.virsh("snapshot-create-as {} s --disk-only");
    let overlay = vm.source("vda");
    vm.write("vda", 1, 2);
    std::fs::create_dir(world.path("elsewhere")).unwrap();
    let below = world.path("elsewhere/below");
    images::create_on(&below, golden.to_str().unwrap());
    let clone = world.path("elsewhere/clone");
    images::create_on(&clone, below.to_str().unwrap());
    let xml = vm.spec.xml(&world).replace("<name>vm<", "<name>clone<");
    let file = world.path("clone.xml");
    let define = |image: &Path| {
        let text = xml.replace(golden.to_str().unwrap(), image.to_str().unwrap());
        std::fs::write(&file, text).unwrap();
        world.virsh.ok(&format!("define {}", file.display()));
    };
    for image in [&clone, &golden] {
        define(image);
        let told = vm.virtsnap_refused("delete {} s --consolidate");
        assert!(told.contains("domain 'clone' reads it"), "{told}");
        assert!(images::has_pattern(&clone, 1, 1 << 20, 64 << 10));
        world.virsh.ok("undefine clone");
    }
    // Without asking for it, the layer stays; and goes when nobody else needs it.
    define(&clone);
    vm.virsh("snapshot-delete {} s");
    assert_eq!(vm.source("vda"), overlay);
    assert!(images::has_pattern(&clone, 1, 1 << 20, 64 << 10) && vm.holds("vda", 1, 2));
    world.virsh.ok("undefine clone");
    vm.virsh("snapshot-create-as {} t --disk-only");
    vm.virsh("snapshot-delete {} t");
    assert_eq!(vm.source("vda"), golden.to_str().unwrap());
    assert!(vm.holds("vda", 1, 2));
}
