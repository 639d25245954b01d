//! External memory of a running guest is saved while it goes on, and how long it stood still is told.
//!
//! The save is made slow, so that the guest counts on in the middle of it. That all is of one moment
//! the guest says itself after a revert: it compares its memory with its disks at every count.

use serde_json::{Value, json};
use virtsnap_tests::faults::{Monitor, Slow, Small, slow};
use virtsnap_tests::guest::Mark;
use virtsnap_tests::{Guest, GuestSpec, World, host, skip};

use crate::internal::runs_from;

const EXTERNAL: &str = "--memspec snapshot=external";

fn spec() -> GuestSpec {
    let uuid = Some("7f6f4a3e-5d0a-4c0b-8f55-1c6c2a9d3b10".to_owned());
    GuestSpec { uuid, ..GuestSpec::new("vm").disks(&["qcow2", "qcow2"]) }
}

/// A guest that counts, with a second monitor.
fn boot(config: &str) -> World {
    let mut world = World::stopped(virtsnap_tests::Daemon::Virtsnapd);
    config.clone_into(&mut world.config);
    world.start();
    {
        let vm = world.define_watched(spec());
        vm.virsh("start {}");
        vm.booted(Mark::start());
        vm.count_on(1);
    }
    world
}

/// The pauses that QEMU tells of, in microseconds.
fn pauses(events: &[Value]) -> Vec<u64> {
    let stamp = |event: &Value| {
        let part = |name: &str| event["timestamp"][name].as_u64().expect("a number");
        part("seconds") * 1_000_000 + part("microseconds")
    };
    let mut since = None;
    let mut pauses = Vec::new();
    for event in events {
        match event["event"].as_str() {
            Some("STOP") => assert!(since.replace(stamp(event)).is_none(), "{events:?}"),
            Some("RESUME") => pauses.push(stamp(event) - since.take().expect("it stood")),
            _ => {}
        }
    }
    assert!(since.is_none(), "it still stands: {events:?}");
    pauses
}

/// What the last job says of itself, in milliseconds.
fn told(vm: &Guest, name: &str) -> Option<u64> {
    let job = vm.virsh("domjobinfo {} --completed --keep-completed");
    let line = job.lines().find_map(|line| line.strip_prefix(name));
    Some(line?.trim().strip_suffix("ms").expect("milliseconds").trim().parse().expect("a number"))
}

/// What is told of a pause is what the guest had by QEMU's own events: no more, no less.
#[track_caller]
fn its_pause_is_told(vm: &Guest, monitor: &mut Monitor) -> u64 {
    let pauses = pauses(&monitor.events());
    let [pause] = pauses[..] else { panic!("one pause, not {pauses:?}") };
    assert_eq!(told(vm, "Total downtime:"), Some(pause / 1000));
    assert!(told(vm, "Time elapsed:").expect("it took a time") >= pause / 1000);
    assert!(vm.world.log().contains(&format!("guest_stood_still={}", pause / 1000)));
    pause
}

/// Takes a snapshot that is slow, and looks at what the guest does meanwhile. Gives what it had
/// counted to before.
#[track_caller]
fn take(world: &World, how: &str, meanwhile: impl FnOnce(&Guest, &mut Monitor)) -> u64 {
    let vm = world.guest(spec());
    let before = vm.count_on(1);
    let mut monitor = Monitor::of(&vm);
    monitor.events();
    let mut held = slow(world, Slow::Memory);
    let mut client = world.ask(&format!("snapshot-create-as vm {how}"));
    let status = |monitor: &mut Monitor| monitor.execute("query-migrate", &json!({}));
    host::wait("memory on its way", 60, || {
        let now = status(&mut monitor);
        let is_sent = now["ram"]["transferred"].as_u64() > Some(1 << 20);
        (now["status"] == "active" && is_sent).then_some(())
    });
    meanwhile(&vm, &mut monitor);
    assert_eq!(status(&mut monitor)["status"], "active", "it was to take longer");
    assert!(client.try_wait().expect("it is ours").is_none());
    let _ = held.kill();
    held.wait().expect("it is ours");
    let outcome = client.wait_with_output().expect("it is ours");
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    its_pause_is_told(&vm, &mut monitor);
    vm.next_match(vm.mark());
    before
}

fn saw(monitor: &mut Monitor, name: &str) -> bool {
    monitor.events().iter().any(|event| event["event"] == name)
}

/// It counts on while its memory is written, with the flag and without. What is kept is of the end
/// of the save, with what was counted meanwhile.
#[test]
fn a_guest_counts_on_while_its_memory_is_saved() {
    let world = boot("");
    let vm = world.guest(spec());
    let mut taken = Vec::new();
    for (name, flag) in [("plain", ""), ("asked", "--live")] {
        let mut meanwhile = 0;
        let before = take(&world, &format!("{name} {EXTERNAL} {flag}"), |vm, monitor| {
            meanwhile = vm.count_on(2);
            assert_eq!(vm.state(), "running");
            assert!(vm.virsh("domjobinfo {}").contains("Memory processed"));
            assert!(!saw(monitor, "STOP"), "it has not stood still");
        });
        assert!(meanwhile >= before + 2, "{name}: from {before} to {meanwhile}");
        taken.push((name, meanwhile, vm.count_on(2)));
    }
    vm.never_mismatched();
    for (name, at, later) in taken {
        vm.virsh(&format!("snapshot-revert {{}} {name}"));
        runs_from(&vm, vm.mark(), at, later);
    }
    vm.virsh("destroy {}");
}

/// Where the administrator wants libvirt's way, it stands still from the beginning, unless the
/// caller asks for more.
#[test]
fn it_stands_still_where_the_administrator_says_so() {
    let world = boot("live_memory = false");
    let vm = world.guest(spec());
    let before = take(&world, &format!("stands {EXTERNAL}"), |vm, _| {
        assert_eq!(vm.virsh("domstate {} --reason").trim(), "paused (creating snapshot)");
        assert!(vm.virsh("domjobinfo {}").contains("Memory processed"));
    });
    let later = vm.count_on(2);
    take(&world, &format!("goes-on {EXTERNAL} --live"), |vm, monitor| {
        vm.count_on(1);
        assert!(!saw(monitor, "STOP"), "it has not stood still");
    });
    vm.virsh("snapshot-revert {} stands");
    runs_from(&vm, vm.mark(), before, later);
    vm.virsh("destroy {}");
}

/// Of each kind of snapshot with memory; disks alone make no pause, and tell of none.
#[test]
fn how_long_the_guest_stood_still_is_told() {
    let world = boot("");
    let vm = world.guest(spec());
    let mut monitor = Monitor::of(&vm);
    let out = "--diskspec vda,snapshot=external --diskspec vdb,snapshot=external";
    let none = "--diskspec vda,snapshot=no --diskspec vdb,snapshot=no";
    for (name, how) in [
        ("inside", String::new()),
        ("apart", out.to_owned()),
        ("outside", EXTERNAL.to_owned()),
        ("alone", format!("{EXTERNAL} {none}")),
    ] {
        monitor.events();
        vm.virsh(&format!("snapshot-create-as {{}} {name} {how}"));
        let pause = its_pause_is_told(&vm, &mut monitor);
        eprintln!("{name}: {pause} us");
        vm.count_on(1);
    }
    vm.virsh("snapshot-create-as {} disks --disk-only");
    assert_eq!(pauses(&monitor.events()), [0; 0]);
    assert_eq!(told(&vm, "Total downtime:"), None);
    // One that its user has stopped was not stopped for the snapshot.
    vm.virsh("suspend {}");
    vm.virsh(&format!("snapshot-create-as {{}} asleep {EXTERNAL}"));
    assert_eq!((vm.state().as_str(), told(&vm, "Total downtime:")), ("paused", Some(0)));
    vm.virsh("destroy {}");
}

/// The room that was looked at is room for its memory once. Where there is no more, it stands
/// still, as if it had been asked to.
#[test]
fn a_file_system_with_room_for_its_memory_once_is_enough() {
    if !host::is_root() {
        skip!("only root may mount a small file system");
    }
    let world = boot("");
    let vm = world.guest(spec());
    let small = Small::mount(world.path("small"), "112m");
    let how = format!("s --memspec {},snapshot=external", small.path("m.mem").display());
    let before = take(&world, &how, |vm, _| {
        assert_eq!(vm.virsh("domstate {} --reason").trim(), "paused (creating snapshot)");
    });
    assert!(world.log().contains("no room to save it more than once"));
    let later = vm.count_on(2);
    vm.virsh("snapshot-revert {} s");
    runs_from(&vm, vm.mark(), before, later);
    vm.virsh("destroy {}");
}
