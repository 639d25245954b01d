//! What a successful reply promises: the host may lose its power right after it.
//!
//! The real daemon, QEMU and qemu-img are traced while every operation is done once. The rules, each
//! checked at each call:
//!
//! - a record or a line of a journal is written only when every image, memory file and state file,
//!   and every directory of one, is durable;
//! - no image is removed before the records that no longer name it are durable;
//! - a reply is sent when nothing is left that a loss of power would take back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use virtsnap_tests::trace::{Disk, Moment, Tracing};
use virtsnap_tests::{Guest, GuestSpec, World, host, images, programs, skip};

/// Procedures, and how many successful replies of each the operations below come to.
type Replies = BTreeMap<u32, usize>;

const DEFINE: u32 = 11;
const SET_AUTOSTART: u32 = 29;
const SAVE: u32 = 55;
const MANAGED_SAVE: u32 = 182;
const REMOVE_SAVE: u32 = 184;
const CREATE: u32 = 185;
const REVERT: u32 = 192;
const DELETE: u32 = 193;
const UNDEFINE: u32 = 231;
const SET_METADATA: u32 = 264;

const RENAME: u32 = 358;

/// What a guest or a daemon writes for itself, or for as long as the host is up.
fn is_passing(world: &World, path: &Path) -> bool {
    let inside = path.strip_prefix(world.dir()).unwrap_or(path);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    !path.starts_with(world.dir())
        || inside.starts_with("run")
        || name.starts_with(".new-")
        || name.starts_with("last-id")
        // Of swtpm; what a snapshot has of it is a copy.
        || ["permall", ".lock"].iter().any(|end| name.ends_with(end))
        || [".log", ".console", ".toml", ".pid"].iter().any(|end| name.ends_with(end))
}

/// Does what is to be traced, and holds the trace to the rules.
#[track_caller]
fn traced(world: &World, expected: &[(u32, usize)], operations: impl FnOnce()) {
    let Some(tracing) = Tracing::attach(world) else {
        skip!("one process may not trace another here, or strace is not installed");
    };
    operations();
    let replay = tracing.finish();
    let records = world.path("lib/domains");
    let mut replies = Replies::new();
    let mut faults = Vec::new();
    let mut told = BTreeSet::new();
    let left = |disk: &Disk, is_wanted: &dyn Fn(&Path) -> bool| -> Vec<String> {
        let paths = disk.unsafe_paths().into_iter();
        let paths = paths.filter(|path| !is_passing(world, path) && is_wanted(path));
        paths.map(|path| path.display().to_string()).collect()
    };
    replay.each(|moment, disk| {
        let (when, unsafe_then) = match moment {
            Moment::Written(path) if path.starts_with(&records) && !is_passing(world, path) => {
                let outside = |path: &Path| !path.starts_with(&records);
                (format!("when '{}' is written", path.display()), left(disk, &outside))
            }
            Moment::Removed(path) if is_image(world, path) => {
                (format!("when '{}' is removed", path.display()), left(disk, &|_| true))
            }
            Moment::Reply(procedure) if expected.iter().any(|(known, _)| known == procedure) => {
                *replies.entry(*procedure).or_default() += 1;
                (format!("at a reply of {procedure}"), left(disk, &|_| true))
            }
            Moment::Written(_) | Moment::Removed(_) | Moment::Reply(_) => return,
        };
        // Once is enough.
        for path in unsafe_then.into_iter().filter(|path| told.insert(path.clone())) {
            faults.push(format!("{when}, not durable: {path}"));
        }
    });
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(replies, expected.iter().copied().collect(), "the trace missed a reply");
}

fn is_image(world: &World, path: &Path) -> bool {
    let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    path.parent() == Some(world.dir()) && !is_hidden && !is_passing(world, path)
}

fn idle<'w>(world: &'w World, disks: &[&str]) -> Guest<'w> {
    world.define(GuestSpec::idle("vm").disks(disks))
}

#[test]
fn what_is_told_of_a_definition_is_durable() {
    let world = World::new();
    let other = world.path("other.xml");
    let uuid = Some("5f2b1c1e-0a5c-4d8e-9a57-3c1b7a0d4e11".to_owned());
    let spec = GuestSpec { uuid, ..GuestSpec::idle("other") };
    std::fs::write(&other, spec.xml(&world)).unwrap();
    let file = other.display();
    let expected = [(DEFINE, 2), (SET_AUTOSTART, 2), (SET_METADATA, 1), (RENAME, 1), (UNDEFINE, 1)];
    traced(&world, &expected, || {
        for line in [
            &format!("define {file}"),
            &format!("define {file}"),
            "autostart other",
            "autostart other --disable",
            "metadata other http://x/ --key k --set '<a/>'",
            "domrename other another",
            "undefine another",
        ] {
            world.virsh.ok(line);
        }
    });
}

#[test]
fn what_is_told_of_a_domain_that_is_off_is_durable() {
    let world = World::new();
    let vm = idle(&world, &["qcow2", "qcow2"]);
    vm.write("vda", 1, 7);
    traced(&world, &[(CREATE, 4), (REVERT, 3), (DELETE, 4)], || {
        for line in [
            "snapshot-create-as {} inside",
            "snapshot-create-as {} a --disk-only",
            "snapshot-create-as {} b --disk-only",
            "snapshot-create-as {} c --disk-only",
            "snapshot-revert {} b",
            "snapshot-revert {} inside",
            "snapshot-revert {} c",
            "snapshot-delete {} a",
            "snapshot-delete {} c",
            "snapshot-delete {} b --children",
            "snapshot-delete {} inside",
        ] {
            vm.virsh(line);
        }
    });
}

#[test]
fn what_is_told_of_a_domain_that_runs_is_durable() {
    let world = World::new();
    let vm = idle(&world, &["qcow2", "qcow2"]);
    let memory = world.path("memory.save");
    let memory = memory.display();
    vm.virsh("start {}");
    vm.write("vda", 1, 7);
    traced(&world, &[(CREATE, 7), (REVERT, 3), (DELETE, 6)], || {
        for line in [
            "snapshot-create-as {} inside",
            "snapshot-create-as {} a --disk-only",
            &format!("snapshot-create-as {{}} full --memspec {memory},snapshot=external"),
            &format!("snapshot-create-as {{}} live --live --memspec {memory}.2,snapshot=external"),
            "snapshot-create-as {} b --disk-only",
            "snapshot-create-as {} c --disk-only --diskspec vdb,snapshot=no",
            "snapshot-create-as {} d --disk-only",
            "snapshot-delete {} d",
            "snapshot-delete {} c",
            "snapshot-delete {} a",
            "snapshot-revert {} full",
            "snapshot-revert {} live",
            "snapshot-revert {} inside",
            "snapshot-delete {} live",
            "snapshot-delete {} full --children",
            "snapshot-delete {} inside",
        ] {
            vm.virsh(line);
        }
    });
    for name in ["one", "two", "three"] {
        vm.virsh(&format!("snapshot-create-as {{}} {name} --disk-only"));
    }
    let to = world.path("vm.save");
    let to = to.display();
    // A guest that comes back is written for by QEMU itself, while the reply is on its way.
    traced(&world, &[(DELETE, 2), (SAVE, 1), (MANAGED_SAVE, 2), (REMOVE_SAVE, 1)], || {
        // A layer between others, whose name is in the header of one that is written to.
        vm.virtsnap("delete {} two --consolidate --keep base");
        vm.virtsnap("delete {} three --consolidate --keep overlay");
        vm.virsh(&format!("save {{}} {to}"));
        world.virsh.ok(&format!("restore {to}"));
        vm.virsh("managedsave {}");
        vm.virsh("start {}");
        vm.virsh("managedsave {}");
        vm.virsh("managedsave-remove {}");
    });
}

/// What QEMU keeps of qcow2's tables in its memory no trace shows: it is gone with QEMU.
#[test]
fn a_merge_that_was_told_of_outlives_qemu() {
    let world = World::new();
    let vm = idle(&world, &["qcow2"]);
    let kill = || {
        let qemu = world.processes("qemu-system");
        for id in qemu {
            Command::new("kill").args(["-KILL", &id.to_string()]).status().expect("kill is there");
        }
        host::wait("the domain to be off", 30, || (vm.state() == "shut off").then_some(()));
    };
    let merges = [("one", "base"), ("two", "base"), ("one", "overlay"), ("two", "overlay")];
    for (round, (merge, keep)) in merges.into_iter().enumerate() {
        vm.virsh("start {}");
        vm.write("vda", 1, 1);
        for (n, name) in [(2, "one"), (3, "two")] {
            let file = world.path(&format!("{name}.{round}"));
            let file = file.display();
            vm.virsh(&format!(
                "snapshot-create-as {{}} {name} --disk-only --diskspec vda,file={file}"
            ));
            vm.write("vda", u64::from(n), n);
        }
        vm.virtsnap(&format!("delete {{}} {merge} --consolidate --keep {keep}"));
        kill();
        for n in 1..=3 {
            assert!(vm.holds("vda", u64::from(n), n), "{merge} {keep}: {n}");
        }
        images::check(Path::new(&vm.source("vda")));
        for name in vm.virsh("snapshot-list {} --name").split_whitespace() {
            vm.virsh(&format!("snapshot-delete {{}} {name}"));
        }
        for n in 1..=3 {
            assert!(vm.holds("vda", u64::from(n), n), "{merge} {keep}, off: {n}");
        }
    }
}

#[test]
fn firmware_that_was_told_to_be_kept_is_durable() {
    let installed = programs::exists("swtpm") && Path::new("/usr/share/OVMF").exists();
    if !installed {
        skip!("ovmf and swtpm are not installed");
    }
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm").with_firmware("raw"));
    vm.virsh("start {}");
    vm.virsh("suspend {}");
    traced(&world, &[(CREATE, 2), (REVERT, 1), (DELETE, 2)], || {
        vm.virsh("snapshot-create-as {} full");
        vm.virsh("snapshot-create-as {} disk --disk-only");
        vm.virsh("snapshot-revert {} full --paused");
        vm.virsh("snapshot-delete {} disk");
        vm.virsh("snapshot-delete {} full");
    });
}
