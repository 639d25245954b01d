//! Other programs than the installed ones: the older (or newer) QEMU and virsh, and libvirtd,
//! whose memory images must load here and back.

use virtsnap_tests::{Daemon, Guest, GuestSpec, World, host, images, oracle, skip};

/// A guest that is the same for two daemons.
fn traveller() -> GuestSpec {
    let uuid = Some("6b1a2c5e-1d37-4c58-9f0e-52c0d3f0a001".to_owned());
    GuestSpec { uuid, ..GuestSpec::new("traveller") }
}

/// Moves disk and definition from one world into another, and tells it of the snapshot.
fn move_to<'w>(from: &Guest, world: &'w World, snapshot: &str) -> Guest<'w> {
    let xml = |line: &str| {
        from.virsh(line)
            .replace(&*from.world.dir().to_string_lossy(), &world.dir().to_string_lossy())
    };
    let definition = world.path("arrived.xml");
    std::fs::write(&definition, xml("dumpxml {} --inactive --security-info")).expect("ours");
    let moment = world.path("arrived-snapshot.xml");
    let told = xml(&format!("snapshot-dumpxml {{}} {snapshot} --security-info"));
    std::fs::write(&moment, told).expect("ours");
    let guest = world.guest(from.spec.clone());
    std::fs::copy(from.disk("vda"), guest.disk("vda")).expect("copied");
    world.virsh.ok(&format!("define {}", definition.display()));
    guest.virsh(&format!("snapshot-create {{}} {} --redefine --current", moment.display()));
    guest
}

/// Takes a snapshot with memory at one daemon and goes on from it at the other.
fn travels(from: Daemon, to: Daemon, machine: &str) {
    let here = World::with(from);
    let vm = here.boot(traveller().machine(machine));
    let at = vm.count_on(2);
    vm.virsh("snapshot-create-as {} packed");
    vm.next_match(vm.mark());
    let late = vm.count_on(4);
    vm.virsh("destroy {}");

    let there = World::with(to);
    let arrived = move_to(&vm, &there, "packed");
    arrived.virsh("snapshot-revert {} packed");
    assert_eq!(arrived.state(), "running");
    let n = arrived.next_match(virtsnap_tests::guest::Mark::start());
    assert!((at..late).contains(&n), "{n} is not of the snapshot at {at}");
    arrived.reach(n + 3);
    let lines = arrived.lines(virtsnap_tests::guest::Mark::start());
    assert!(lines.iter().all(|line| !line.starts_with("START")), "it booted: {lines:?}");
    arrived.never_mismatched();
    arrived.virsh("destroy {}");
    images::check(&arrived.disk("vda"));
}

#[test]
fn a_memory_image_of_libvirtd_loads_here() {
    if let Some(why) = oracle::unavailable() {
        skip!("{why}");
    }
    travels(Daemon::Libvirtd, Daemon::chosen(), "pc");
    travels(Daemon::Libvirtd, Daemon::chosen(), "q35");
}

#[test]
fn a_memory_image_of_ours_loads_at_libvirtd() {
    if let Some(why) = oracle::unavailable() {
        skip!("{why}");
    }
    travels(Daemon::chosen(), Daemon::Libvirtd, "pc");
    travels(Daemon::chosen(), Daemon::Libvirtd, "q35");
}

/// A short life with snapshots, whatever the programs' versions.
fn short_life(world: &World) {
    let vm = world.boot(GuestSpec::new("vm"));
    vm.virsh("snapshot-create-as {} disk --disk-only");
    let at = vm.count_on(2);
    vm.virsh("snapshot-create-as {} whole");
    vm.next_match(vm.mark());
    let late = vm.count_on(3);
    assert_eq!(world.virsh.lines("snapshot-list vm --name --topological"), ["disk", "whole"]);
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} whole");
    let n = vm.back_at(mark);
    assert!((at..late).contains(&n), "{n} is not of the snapshot at {at}");
    vm.virsh("snapshot-delete {} whole");
    vm.virsh("snapshot-delete {} disk");
    vm.count_on(1);
    memory_in_a_file(&vm);
    memory_in_a_file_and_disks_inside(&vm);
    vm.never_mismatched();
    vm.virsh("destroy {}");
    images::check(&vm.disk("vda"));
    vm.virsh("undefine {} --snapshots-metadata");
}

/// Of a guest that runs on, and of one that stands still.
fn memory_in_a_file(vm: &Guest) {
    for (name, how) in [("live", " --live"), ("asleep", "")] {
        let at = vm.count_on(2);
        let file = vm.world.path(&format!("{name}.mem"));
        if name == "asleep" {
            vm.virsh("suspend {}");
        }
        vm.virsh(&format!(
            "snapshot-create-as {{}} {name} --memspec file={},snapshot=external{how}",
            file.display()
        ));
        if name == "asleep" {
            assert_eq!(vm.state(), "paused");
            vm.virsh("resume {}");
        }
        vm.next_match(vm.mark());
        let late = vm.count_on(3);
        let mark = vm.mark();
        vm.virsh(&format!("snapshot-revert {{}} {name} --running"));
        let n = vm.back_at(mark);
        assert!((at..late).contains(&n), "{n} is not of the snapshot {name} at {at}");
        vm.count_on(1);
        vm.never_mismatched();
    }
}

/// What a QEMU before 10 cannot do is refused before its guest is stopped or a file is made.
fn memory_in_a_file_and_disks_inside(vm: &Guest) {
    let version = vm.virsh("qemu-monitor-command {} --hmp 'info version'");
    let major: u32 = version.trim().split('.').next().and_then(|n| n.parse().ok()).expect("one");
    let file = vm.world.path("apart.mem");
    let line = format!(
        "snapshot-create-as {{}} apart --memspec file={},snapshot=external --diskspec \
         vda,snapshot=internal",
        file.display()
    );
    if major < 10 {
        let stops = vm.world.log().matches("event=Suspended").count();
        let complaint = vm.refused(&line);
        assert!(complaint.contains("internal snapshot of disk 'vda'"), "{complaint}");
        assert_eq!(vm.world.log().matches("event=Suspended").count(), stops, "it never stopped");
        assert!(!file.exists());
    } else {
        vm.virsh(&line);
        vm.virsh("snapshot-delete {} apart");
    }
    vm.count_on(1);
}

/// With those programs of the other set of packages.
fn with_the_others(programs: &[&str]) {
    let mut world = World::new();
    for name in programs {
        let Some(program) = host::unpacked("other", name) else {
            skip!("make sets has not run");
        };
        match *name {
            "virsh" => world.virsh.program = program,
            _ => world.emulator = Some(program),
        }
    }
    short_life(&world);
}

#[test]
fn the_other_qemu_works() {
    with_the_others(&["qemu-system-x86_64"]);
}

#[test]
fn the_other_virsh_works() {
    with_the_others(&["virsh"]);
}

/// As they come together in one release.
#[test]
fn the_other_qemu_and_virsh_work() {
    with_the_others(&["qemu-system-x86_64", "virsh"]);
}
