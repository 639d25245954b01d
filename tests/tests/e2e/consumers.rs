//! Management software: its calls, in its order and with its flags (K-01 to K-13).
//!
//! `consumers.py` has one function for each that calls libvirt's library; what scripts do through
//! virsh is here. virt-install (K-03), terraform (K-11) and packer (K-12) make no snapshot calls.

use std::path::Path;
use std::process::Command;

use virtsnap_tests::{Daemon, Guest, GuestSpec, World, host, images, skip, virsh};

const PYTHON: &str = "/usr/bin/python3";

#[track_caller]
fn play(vm: &Guest, consumer: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/consumers.py");
    let mut command = Command::new(PYTHON);
    command.arg(script).arg(&vm.world.virsh.uri).arg(consumer);
    command.arg(vm.name()).arg(vm.world.dir());
    let outcome = virsh::finish(&mut command, consumer);
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.success && outcome.stdout.contains("all good"), "{consumer}\n{said}");
}

fn has_python() -> bool {
    virsh::finish(Command::new(PYTHON).args(["-c", "import libvirt"]), PYTHON).success
}

/// Boots the guest and plays the consumer.
#[track_caller]
fn consumer(consumer: &str, spec: GuestSpec) {
    if !has_python() {
        skip!("{PYTHON} has no libvirt module: apt install python3-libvirt");
    }
    if spec.has_agent && host::agent_guest().is_none() {
        skip!("make agent-guest has not built the guest with an agent");
    }
    let world = World::new();
    let vm = match spec.has_agent {
        true => world.boot_with_agent(spec),
        false => world.boot(spec),
    };
    play(&vm, consumer);
}

#[test]
fn virt_manager_makes_and_reverts_snapshots() {
    consumer("virt_manager", GuestSpec::new("vm"));
}

#[test]
fn cockpit_takes_every_state_with_every_kind() {
    consumer("cockpit", GuestSpec::new("vm"));
}

#[test]
fn nova_snapshots_a_volume_and_merges_it() {
    consumer("nova", GuestSpec::new("vm").disks(&["qcow2", "qcow2"]));
}

#[test]
fn vdsm_freezes_snapshots_and_thaws() {
    consumer("vdsm", GuestSpec::with_agent("vm"));
}

#[test]
fn vagrant_saves_and_restores_with_force() {
    consumer("vagrant", GuestSpec::new("vm"));
}

#[test]
fn cloudstack_reverts_to_running_with_force() {
    consumer("cloudstack", GuestSpec::new("vm"));
}

#[test]
fn kubevirt_freezes_and_leaves_cloud_init_out() {
    consumer("kubevirt", GuestSpec::with_agent("vm").disks(&["qcow2", "raw"]));
}

#[test]
fn backup_agents_commit_and_pivot() {
    consumer("backup", GuestSpec::new("vm"));
}

#[test]
fn test_labs_redefine_what_they_made() {
    consumer("test_lab", GuestSpec::new("vm"));
}

/// OpenNebula's driver scripts, which are virsh commands.
#[test]
fn opennebula_uses_virsh() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("one-7").disks(&["qcow2", "qcow2"]));
    // VM snapshots, and after a migration the metadata again.
    let at = vm.count_on(2);
    vm.virsh("snapshot-create-as {} snap-0");
    let later = vm.count_on(3);
    vm.virsh("snapshot-revert {} snap-0 --force");
    let found = vm.next_match(vm.mark());
    assert!((at..=later).contains(&found), "{found} is not of {at}");
    let record = world.path("snap-0.xml");
    std::fs::write(&record, vm.virsh("snapshot-dumpxml {} snap-0")).expect("the directory is ours");
    vm.virsh("snapshot-delete {} snap-0 --metadata");
    vm.virsh(&format!("snapshot-create {{}} {} --redefine", record.display()));
    assert_eq!(world.virsh.lines("snapshot-list one-7 --name"), ["snap-0"]);
    vm.virsh("snapshot-delete {} snap-0");
    // A live disk snapshot, and a disk named twice, as its scripts have done.
    let new = world.path("disk.0.snap");
    let only_vda = format!(
        "--diskspec vda,snapshot=external,file={} --diskspec vdb,snapshot=no",
        new.display()
    );
    let create = "snapshot-create-as {} --disk-only --atomic --no-metadata";
    vm.refused(&format!("{create} {only_vda} --diskspec vdb,snapshot=no"));
    assert_eq!(vm.source("vda"), vm.disk("vda").to_string_lossy(), "a refusal changes nothing");
    vm.virsh(&format!("{create} {only_vda}"));
    assert_eq!(vm.source("vda"), new.to_string_lossy());
    vm.count_on(2);
    vm.virsh("blockcommit {} vda --active --pivot --wait --shallow");
    assert_eq!(vm.source("vda"), vm.disk("vda").to_string_lossy());
    let last = vm.count_on(2);
    let mark = vm.mark();
    vm.virsh("destroy {}");
    images::check(&vm.disk("vda"));
    vm.virsh("start {}");
    assert!(vm.booted(mark) >= last, "what was written is in the base");
}

/// Where virsh itself does something else than it was told when the answer is not the right one.
#[test]
fn virsh_is_not_lured_into_its_fallbacks() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    vm.virsh("snapshot-create-as {} s");
    // With code 8 it would repeat the call without HALT, and destroy the domain itself.
    for line in [
        "snapshot-create-as {} s --halt",
        "snapshot-create-as {} t --halt --disk-only --diskspec vdz",
        "snapshot-create-as {} t --halt --live",
    ] {
        vm.refused(line);
        assert_eq!(vm.state(), "running", "after {line}");
    }
    assert_eq!(world.virsh.lines("snapshot-list vm --name"), ["s"]);
    // Filters: an unknown flag would make it filter by itself, one call for each snapshot.
    if world.daemon == Daemon::Virtsnapd {
        for filter in ["--leaves", "--no-leaves", "--disk-only", "--topological", "--external"] {
            vm.virsh(&format!("snapshot-list {{}} {filter}"));
        }
        let log = world.log();
        assert!(!log.contains("unsupported flags"), "no list was refused");
    }
    // A rename is a new record and a METADATA_ONLY delete of the old one.
    let mut command = world.virsh.command("snapshot-edit vm s --rename --current");
    command.env("EDITOR", "sed -i '1,2s,<name>s<,<name>renamed<,'");
    let outcome = virsh::finish(&mut command, "snapshot-edit --rename");
    assert!(outcome.success, "{}{}", outcome.stdout, outcome.stderr);
    assert_eq!(world.virsh.lines("snapshot-list vm --name"), ["renamed"]);
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "renamed");
    assert_eq!(images::internal_snapshots(&vm.disk("vda")), ["s"], "the image was not touched");
    vm.count_on(2);
    vm.never_mismatched();
}
