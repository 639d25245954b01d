//! The events of a domain's life, in order and detail, as libvirt tells them.
//!
//! `fixtures/events/libvirt-11.3.0/` is what libvirt's own daemon told of the same calls, one file
//! for each kind of snapshot; `VIRTSNAP_TEST_DAEMON=libvirtd UPDATE_EXPECT=1` writes it anew.

use std::path::{Path, PathBuf};
use std::process::Command;

use virtsnap_tests::{Daemon, GuestSpec, World, images, skip, virsh};

const PYTHON: &str = "/usr/bin/python3";

fn recorded(kind: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    root.join("fixtures/events/libvirt-11.3.0").join(format!("{kind}.jsonl"))
}

fn told(world: &World, kind: &str) -> String {
    let at = |name: &str| world.path(name);
    std::fs::write(at("vm.xml"), GuestSpec::idle("vm").xml(world)).unwrap();
    let bystander = GuestSpec::idle("bystander").disks(&[]).xml(world);
    std::fs::write(at("bystander.xml"), bystander).unwrap();
    images::create(&at("vm-vda.qcow2"), "qcow2", "16M");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/events.py");
    let mut command = Command::new(PYTHON);
    command.arg(script).arg(&world.virsh.uri).args([at("vm.xml"), at("bystander.xml")]).arg(kind);
    let outcome = virsh::finish(&mut command, "events.py");
    assert!(outcome.success, "{}{}", outcome.stdout, outcome.stderr);
    outcome.stdout
}

/// `ours` says where what we tell is not what libvirt does, and what it is instead.
fn as_libvirt(kind: &str, ours: &[(&str, &str)]) {
    if !virsh::finish(Command::new(PYTHON).args(["-c", "import libvirt"]), PYTHON).success {
        skip!("{PYTHON} has no libvirt module: apt install python3-libvirt");
    }
    let world = World::new();
    let told = told(&world, kind);
    let recorded = recorded(kind);
    if world.daemon == Daemon::Libvirtd {
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(recorded, &told).unwrap();
        }
        return;
    }
    let recorded = std::fs::read_to_string(recorded).unwrap();
    let expected = |libvirt: &str| {
        let is_it = |case: &str| libvirt.contains(&format!("\"case\": \"{case}\""));
        let other = ours.iter().find(|(case, _)| is_it(case));
        other.map_or(libvirt.to_owned(), |(case, rest)| format!("{{\"case\": \"{case}\", {rest}}}"))
    };
    let differ: Vec<_> = recorded
        .lines()
        .map(expected)
        .zip(told.lines())
        .filter(|(expected, told)| expected != told)
        .map(|(expected, told)| format!("expected {expected}\ntold     {told}"))
        .collect();
    assert!(differ.is_empty(), "{}", differ.join("\n\n"));
    assert_eq!(recorded.lines().count(), told.lines().count());
}

#[test]
fn of_starts_stops_and_snapshots_that_halt() {
    as_libvirt("life", &[]);
}

#[test]
fn of_internal_snapshots_made_while_off() {
    as_libvirt("internal-off", &[]);
}

#[test]
fn of_internal_snapshots_made_while_running() {
    as_libvirt("internal-run", &[]);
}

#[test]
fn of_internal_snapshots_made_while_paused() {
    as_libvirt("internal-paused", &[]);
}

#[test]
fn of_disk_snapshots_made_while_off() {
    as_libvirt("disk-off", &[]);
}

#[test]
fn of_disk_snapshots_made_while_running() {
    as_libvirt("disk-run", &[]);
}

#[test]
fn of_memory_in_a_file_saved_while_running() {
    as_libvirt("memory-run", &[]);
}

#[test]
fn of_memory_in_a_file_saved_while_paused() {
    as_libvirt("memory-paused", &[]);
}

#[test]
fn of_memory_in_a_file_saved_while_the_guest_ran_on() {
    as_libvirt("memory-live", &[]);
}
