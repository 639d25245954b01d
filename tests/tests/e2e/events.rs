//! The events of a domain's life, in order and detail, as libvirt tells them.
//!
//! `fixtures/events/libvirt-11.3.0/` is what libvirt's own daemon told of the same calls, one file
//! for each kind of snapshot; `VIRTSNAP_TEST_DAEMON=libvirtd UPDATE_EXPECT=1` writes it anew.

use std::path::{Path, PathBuf};
use std::process::Command;

use virtsnap_tests::{Daemon, GuestSpec, World, images, skip, virsh};

const PYTHON: &str = "/usr/bin/python3";

fn recorded(kind: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    root.join("fixtures/events/libvirt-11.3.0").join(format!("{kind}.jsonl"))
}

fn told(world: &World, kind: &str) -> String {
    let at = |name: &str| world.path(name);
    std::fs::write(at("vm.xml"), GuestSpec::idle("vm").xml(world)).expect("the directory is ours");
    let bystander = GuestSpec::idle("bystander").disks(&[]).xml(world);
    std::fs::write(at("bystander.xml"), bystander).expect("the directory is ours");
    images::create(&at("vm-vda.qcow2"), "qcow2", "16M");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/events.py");
    let mut command = Command::new(PYTHON);
    command.arg(script).arg(&world.virsh.uri).args([at("vm.xml"), at("bystander.xml")]).arg(kind);
    let outcome = virsh::finish(&mut command, "events.py");
    assert!(outcome.success, "{}{}", outcome.stdout, outcome.stderr);
    outcome.stdout
}

/// A guest that goes back to an internal snapshot is loaded in its own process, if its definition
/// is still that of the snapshot: it is never stopped, keeps its id and its consoles, and nobody is
/// told otherwise. libvirt ends its process (STOPPED) and starts another (STARTED).
fn in_process(paused: bool) -> Vec<(String, String)> {
    let kind = if paused { "internal-paused" } else { "internal-run" };
    let mut ours = Vec::new();
    for from in ["run", "paused"] {
        for flags in ["0", "RUNNING", "PAUSED"] {
            let runs = flags == "RUNNING" || (flags == "0" && !paused);
            let mut events = vec!["[3, 5]"];
            if from == "run" {
                events.insert(0, "[3, 0]");
            }
            if runs {
                events.push("[4, 2]");
            }
            events.push("[0, 3]");
            let (events, state) = (events.join(", "), if runs { "[1, 4]" } else { "[3, 7]" });
            let rest = format!("\"outcome\": \"ok\", \"events\": [{events}], \"state\": {state}");
            ours.push((format!("revert {kind} from {from} {flags}"), rest));
        }
    }
    ours
}

/// A domain that was ended before stays off for the reason it was ended for; at libvirt the end of
/// its QEMU, told late, overrides the reason.
fn off(case: &str, events: &str, reason: u32) -> (String, String) {
    let rest = format!("\"outcome\": \"ok\", \"events\": [{events}], \"state\": [5, {reason}]");
    (case.to_owned(), rest)
}

/// `ours` says where what we tell is not what libvirt does, and what it is instead.
fn as_libvirt(kind: &str, ours: &[(String, String)]) {
    if !virsh::finish(Command::new(PYTHON).args(["-c", "import libvirt"]), PYTHON).success {
        skip!("{PYTHON} has no libvirt module: apt install python3-libvirt");
    }
    let world = World::new();
    let told = told(&world, kind);
    let recorded = recorded(kind);
    if world.daemon == Daemon::Libvirtd {
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(recorded, &told).expect("the directory is ours");
        }
        return;
    }
    let recorded = std::fs::read_to_string(recorded).expect("it was recorded");
    // What QEMU says when it is told to end may come before or after what libvirt says of that.
    let certain = |line: &str| line.replace("[6, 2], ", "").replace("[6, 2]", "");
    let expected = |libvirt: &str| {
        let is_it = |case: &str| libvirt.contains(&format!("\"case\": \"{case}\""));
        let other = ours.iter().find(|(case, _)| is_it(case));
        other.map_or(libvirt.to_owned(), |(case, rest)| format!("{{\"case\": \"{case}\", {rest}}}"))
    };
    let differ: Vec<_> = recorded
        .lines()
        .map(expected)
        .zip(told.lines())
        .filter(|(expected, told)| certain(expected) != certain(told))
        .map(|(expected, told)| format!("expected {expected}\ntold     {told}"))
        .collect();
    assert!(differ.is_empty(), "{}", differ.join("\n\n"));
    assert_eq!(recorded.lines().count(), told.lines().count());
}

#[test]
fn of_starts_stops_and_snapshots_that_halt() {
    as_libvirt("life", &[off("rename", "[1, 1], [0, 2]", 7)]);
}

#[test]
fn of_internal_snapshots_made_while_off() {
    as_libvirt("internal-off", &[]);
}

#[test]
fn of_internal_snapshots_made_while_running() {
    as_libvirt("internal-run", &in_process(false));
}

#[test]
fn of_internal_snapshots_made_while_paused() {
    as_libvirt("internal-paused", &in_process(true));
}

#[test]
fn of_disk_snapshots_made_while_off() {
    as_libvirt("disk-off", &[off("delete disk-off", "", 2)]);
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
