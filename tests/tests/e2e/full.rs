//! File systems run full in the middle of an operation. It is refused, or undone, or left
//! unfinished and resumed by the same call when there is room again; the guest goes on, and what
//! it wrote is there.

use std::process::Output;

use virtsnap_tests::faults::{Slow, Small, is_all, orphans, slow};
use virtsnap_tests::{Guest, GuestSpec, World, host, images, skip};

const PAGE: u64 = 4096;

fn is_listed(vm: &Guest, name: &str) -> bool {
    vm.snapshots().iter().any(|listed| listed == name)
}

/// XML, next boot and QEMU name the same image, which is sound, and nothing is left lying about.
#[track_caller]
fn is_sound(vm: &Guest, context: &str) {
    assert_eq!(vm.state(), "running", "{context}");
    let inactive = vm.virsh("domblklist {} --inactive");
    assert!(inactive.contains(&vm.source("vda")), "{context}: {inactive}");
    assert_eq!(vm.world.journal(), None, "{context}");
    assert_eq!(orphans(vm, &[]), [""; 0], "{context}");
}

/// Does it with so much room, and if that fails, again with all of it.
#[track_caller]
fn at_last(vm: &Guest, small: &Small, free: u64, line: &str) -> bool {
    small.fill_but(free);
    let first = vm.world.virsh.run(&line.replace("{}", vm.name()));
    assert_eq!(vm.state(), "running", "{line} with {free} bytes: {}", first.stderr);
    vm.live_io("vda", "write -P 7 5M 64k");
    small.empty();
    if !first.success {
        // What it had come to is settled by it, before it is asked for anew.
        vm.world.virsh.run(&line.replace("{}", vm.name()));
    }
    first.success
}

/// Journal, records and notes have no room at each of their writes.
#[test]
fn the_store_is_full() {
    if !host::is_root() {
        skip!("only root may mount a small file system");
    }
    let mut world = World::stopped(virtsnap_tests::Daemon::Virtsnapd);
    let small = Small::mount(world.path("lib"), "4m");
    world.start();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    vm.write("vda", 1, 1);
    let pages: &[u64] =
        if is_all() { &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16] } else { &[0, 2, 4, 6, 9] };
    let (mut refused, mut done) = (0, 0);
    for &free in pages {
        let context = format!("{free} pages");
        let mut count = |success| *(if success { &mut done } else { &mut refused }) += 1;
        count(at_last(&vm, &small, free * PAGE, "snapshot-create-as {} s --disk-only"));
        assert!(is_listed(&vm, "s"), "{context}");
        is_sound(&vm, &context);
        vm.write("vda", 2, 2);
        count(at_last(&vm, &small, free * PAGE, "snapshot-delete {} s"));
        assert!(!is_listed(&vm, "s"), "{context}");
        is_sound(&vm, &context);
        assert!(vm.holds("vda", 1, 1) && vm.holds("vda", 2, 2), "{context}");
        count(at_last(&vm, &small, free * PAGE, "snapshot-create-as {} m"));
        assert!(is_listed(&vm, "m"), "{context}");
        vm.write("vda", 2, 3);
        count(at_last(&vm, &small, free * PAGE, "snapshot-revert {} m"));
        is_sound(&vm, &context);
        assert!(vm.holds("vda", 1, 1) && vm.holds("vda", 2, 2), "{context}: after the revert");
        count(at_last(&vm, &small, free * PAGE, "snapshot-delete {} m"));
        assert!(!is_listed(&vm, "m"), "{context}");
        assert!(images::internal_snapshots(&vm.disk("vda")).is_empty(), "{context}");
    }
    assert!(refused > 0 && done > 0, "{refused} without room, {done} with enough");
    vm.virsh("destroy {}");
    images::check(vm.source("vda").as_ref());
    println!("faults: {refused} calls found the store full, {done} had room enough");
}

/// A guest whose disk is on the small file system.
fn on<'w>(world: &'w World, small: &Small, spec: GuestSpec) -> Guest<'w> {
    let uuid = Some("4c7d2f0a-8a0e-4b7f-9d4e-0f6a3b1c5d22".to_owned());
    let format = spec.disks[0].clone();
    let vm = world.define(GuestSpec { uuid, ..spec });
    let (from, to) = (vm.disk("vda"), small.path(&format!("vm-vda.{format}")));
    let xml = vm.spec.xml(world).replace(&*from.to_string_lossy(), &to.to_string_lossy());
    std::fs::remove_file(&from).expect("the directory is ours");
    images::create(&to, &format, "16M");
    let file = world.path("moved.xml");
    std::fs::write(&file, xml).expect("the directory is ours");
    world.virsh.ok(&format!("define {}", file.display()));
    vm
}

/// The base has no room for what is merged into it.
#[test]
fn the_base_cannot_take_what_is_merged() {
    if !host::is_root() {
        skip!("only root may mount a small file system");
    }
    let world = World::new();
    let small = Small::mount(world.path("img"), "24m");
    let vm = on(&world, &small, GuestSpec::idle("vm").disks(&["raw"]));
    let overlay = world.path("over.vm-vda.e");
    for is_running in [true, false] {
        if is_running {
            vm.virsh("start {}");
        }
        let line = format!(
            "snapshot-create-as {{}} e --disk-only --diskspec vda,file={}",
            overlay.display()
        );
        vm.virsh(&line);
        // Where the base has nothing yet.
        let at = if is_running { 2 } else { 9 };
        (at..at + 6).for_each(|mib| vm.write("vda", mib, 9));
        small.fill_but(2 * PAGE);
        let complaint = vm.refused("snapshot-delete {} e");
        assert!(complaint.contains("o space"), "{complaint}");
        assert_eq!(vm.state() == "running", is_running);
        assert!((at..at + 6).all(|mib| vm.holds("vda", mib, 9)), "running: {is_running}");
        small.empty();
        vm.virsh("snapshot-delete {} e");
        assert!(!is_listed(&vm, "e") && !overlay.exists());
        assert!((at..at + 6).all(|mib| vm.holds("vda", mib, 9)), "running: {is_running}");
        assert_eq!(vm.source("vda"), small.path("vm-vda.raw").to_string_lossy());
        if is_running {
            vm.virsh("destroy {}");
        }
    }
}

/// The room goes when the first act is announced, and the daemon held before it begins with it.
fn without_room_from_the_first_act(small: &Small, vm: &Guest, line: &str) -> Output {
    let mut held = slow(vm.world, Slow::NextAct);
    let client = vm.world.ask(&line.replace("{}", vm.name()));
    let announced = || vm.world.journal().filter(|entries| !entries.is_empty()).map(drop);
    host::wait("the first act", 60, announced);
    small.fill_but(0);
    assert_eq!(vm.world.journal().map(|entries| entries.len()), Some(1), "it was not held");
    let _ = held.kill();
    held.wait().expect("it is ours");
    client.wait_with_output().expect("it is ours")
}

/// An overlay, and memory, that have no room, or no more of it.
#[test]
fn what_is_new_has_no_room() {
    if !host::is_root() {
        skip!("only root may mount a small file system");
    }
    let world = World::new();
    let small = Small::mount(world.path("img"), "64m");
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    vm.write("vda", 1, 1);
    let overlay = small.path("vm-vda.e");
    let take =
        format!("snapshot-create-as {{}} e --disk-only --diskspec vda,file={}", overlay.display());
    let memory = small.path("m.mem");
    let save = format!("snapshot-create-as {{}} m --memspec file={}", memory.display());
    small.fill_but(0);
    for line in [&take, &save] {
        let complaint = vm.refused(line);
        assert!(complaint.contains("img") && complaint.contains("not enough room"), "{complaint}");
        is_sound(&vm, line);
    }
    small.empty();
    // The room goes while it is worked on.
    for line in [&take, &save] {
        let told = without_room_from_the_first_act(&small, &vm, line);
        assert!(!told.status.success(), "{line}");
        is_sound(&vm, line);
        assert!(vm.snapshots().is_empty() && !overlay.exists() && !memory.exists(), "{line}");
        assert!(vm.holds("vda", 1, 1));
        small.empty();
    }
    vm.virsh(&take);
    vm.virsh(&save);
    vm.virsh("snapshot-delete {} m");
    vm.virsh("snapshot-delete {} e");
    assert!(vm.holds("vda", 1, 1));
    is_sound(&vm, "in the end");
}

/// The room goes while QEMU writes memory into the disk's own image.
#[test]
fn memory_inside_an_image_runs_out_of_room() {
    if !host::is_root() {
        skip!("only root may mount a small file system");
    }
    let world = World::new();
    let small = Small::mount(world.path("img"), "128m");
    let vm = on(&world, &small, GuestSpec::idle("vm"));
    vm.virsh("start {}");
    vm.write("vda", 1, 1);
    vm.virsh("snapshot-create-as {} before");
    vm.write("vda", 1, 2);
    let told = without_room_from_the_first_act(&small, &vm, "snapshot-create-as {} m");
    let complaint = String::from_utf8_lossy(&told.stderr);
    // QEMU calls it an error of input or output.
    assert!(!told.status.success() && complaint.contains("saving the snapshot"), "{complaint}");
    assert_eq!(vm.snapshots(), ["before"]);
    assert!(vm.holds("vda", 1, 2));
    small.empty();
    is_sound(&vm, "without room");
    assert_eq!(images::internal_snapshots(vm.source("vda").as_ref()), ["before"]);
    vm.virsh("snapshot-create-as {} m");
    vm.write("vda", 1, 3);
    for (name, pattern) in [("m", 2), ("before", 1)] {
        vm.virsh(&format!("snapshot-revert {{}} {name}"));
        assert_eq!(vm.state(), "running", "{name}");
        assert!(vm.holds("vda", 1, pattern), "{name}");
    }
}

/// The overlay has no room for what lies below it.
#[test]
fn the_overlay_cannot_take_what_is_below() {
    if !host::is_root() {
        skip!("only root may mount a small file system");
    }
    let world = World::new();
    let small = Small::mount(world.path("img"), "24m");
    let vm = world.define(GuestSpec::idle("vm"));
    let overlay = small.path("vm-vda.e");
    (2..8).for_each(|mib| vm.write("vda", mib, 9));
    for is_running in [true, false] {
        if is_running {
            vm.virsh("start {}");
        }
        vm.virsh("snapshot-create-as {} low --disk-only");
        // What is the same below would not have to be taken.
        let new = if is_running { 7 } else { 6 };
        (4..8).for_each(|mib| vm.write("vda", mib, new));
        let line = format!(
            "snapshot-create-as {{}} e --disk-only --diskspec vda,file={}",
            overlay.display()
        );
        vm.virsh(&line);
        vm.write("vda", 3, 8);
        let is_whole = || {
            vm.holds("vda", 2, 9)
                && vm.holds("vda", 3, 8)
                && (4..8).all(|m| vm.holds("vda", m, new))
        };
        small.fill_but(2 * PAGE);
        let complaint = vm.virtsnap_refused("delete {} e --keep overlay");
        assert!(complaint.contains("o space"), "{complaint}");
        assert_eq!(vm.state() == "running", is_running);
        assert!(is_whole(), "running: {is_running}");
        small.empty();
        vm.virtsnap("delete {} e --keep overlay");
        assert_eq!(vm.source("vda"), overlay.to_string_lossy());
        assert_eq!(vm.snapshots(), ["low"]);
        assert!(is_whole(), "running: {is_running}");
        vm.virsh("snapshot-delete {} low");
        assert!(is_whole(), "running: {is_running}");
        if is_running {
            vm.virsh("destroy {}");
        }
    }
}

/// The guest's own write has no room: it is paused, nothing it wrote is lost, and it goes on,
/// also when a snapshot was taken meanwhile.
#[test]
fn a_guest_that_ran_out_of_room_goes_on() {
    if !host::is_root() {
        skip!("only root may mount a small file system");
    }
    let world = World::new();
    let small = Small::mount(world.path("img"), "24m");
    let vm = on(&world, &small, GuestSpec::new("vm").disks(&["raw"]));
    let is_paused = || {
        let state = vm.virsh("domstate {} --reason");
        (state.trim() == "paused (I/O error)").then_some(())
    };
    for with_snapshot in [false, true] {
        small.fill_but(0);
        let mark = vm.mark();
        vm.virsh("start {}");
        host::wait("the guest's write to fail", 120, is_paused);
        if with_snapshot {
            let overlay = world.path("over.vm-vda.e");
            let line = format!(
                "snapshot-create-as {{}} e --disk-only --diskspec vda,file={}",
                overlay.display()
            );
            vm.virsh(&line);
            is_paused().expect("a snapshot does not wake it");
        }
        small.empty();
        vm.virsh("resume {}");
        vm.booted(mark);
        vm.count_on(3);
        vm.never_mismatched();
        vm.virsh("destroy {}");
        if with_snapshot {
            vm.virsh("snapshot-revert {} e");
            let mark = vm.mark();
            vm.virsh("start {}");
            vm.booted(mark);
            vm.never_mismatched();
        } else {
            std::fs::remove_file(small.path("vm-vda.raw")).expect("ours");
            images::create(&small.path("vm-vda.raw"), "raw", "16M");
        }
    }
}
