//! qemu-img is killed in the middle of its work, alone or together with the daemon, at a point that
//! was seen: it has begun so many writes to images (strace counts them, and holds it after each), or
//! a merge is so far. Then the old world holds or the new one, and the same call again succeeds.

use std::path::Path;

use virtsnap_tests::faults::{Slow, is_all, orphans, signal, slow};
use virtsnap_tests::{Guest, GuestSpec, World, host, images};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Dies {
    Tool,
    Both,
}

const BASE: u64 = 1 << 20;
const NEW: u64 = 4 << 20;
const LENGTH: u64 = 64 << 10;

/// What the domain finds at a place, whatever state the chain is in.
fn reads(image: &str, pattern: u8, at: u64) -> bool {
    images::reads(Path::new(image), "qcow2", pattern, at, LENGTH)
}

/// Lets a client ask, and kills as soon as `reached`. None: the client had its answer before.
fn kill_at(
    world: &mut World,
    (line, dies): (&str, Dies),
    mut reached: impl FnMut(&World) -> bool,
) -> Option<String> {
    let mut held = slow(world, Slow::Images);
    let mut client = world.ask(line);
    let was_reached = host::wait(line, 120, || {
        if client.try_wait().expect("it is ours").is_some() {
            return Some(false);
        }
        let tool = world.processes("qemu-img");
        if tool.is_empty() || !reached(world) {
            return None;
        }
        // It goes no further while the daemon dies.
        signal("STOP", &tool);
        if dies == Dies::Both {
            world.kill();
        }
        signal("KILL", &tool);
        Some(true)
    });
    let told = client.wait_with_output().expect("it is ours");
    let _ = held.kill();
    held.wait().expect("it is ours");
    if dies == Dies::Both && was_reached {
        host::wait("qemu-img to end with its daemon", 20, || {
            world.processes("qemu-img").is_empty().then_some(())
        });
    }
    let complaint = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.success() || was_reached, "{line}: {complaint}");
    // At the last of its writes it may be over before it can be killed.
    (!told.status.success()).then_some(complaint)
}

/// No journal, nobody's file but the first one, which is the user's, no corruption. What was killed
/// may have left clusters unused.
#[track_caller]
fn is_sound(vm: &Guest<'_>, context: &str) {
    assert_eq!(vm.state(), "shut off", "{context}");
    assert_eq!(vm.world.journal(), None, "{context}");
    assert_eq!(orphans(vm, &["vm-vda.qcow2"]), [""; 0], "{context}");
    for image in images::chain(Path::new(&vm.source("vda"))) {
        images::check_but_for_leaks(Path::new(&image));
    }
}

/// One of the calls that have qemu-img change images of a domain that is off.
struct Call {
    line: &'static str,
    /// What is there before it.
    before: &'static [&'static str],
    /// The first byte of the disk, of the old world and of the new one.
    worlds: (u8, u8),
    /// Snapshots in the old world and in the new one.
    snapshots: [&'static [&'static str]; 2],
}

const CALLS: [Call; 5] = [
    Call {
        line: "snapshot-create-as vm e --disk-only",
        before: &[],
        worlds: (2, 2),
        snapshots: [&[], &["e"]],
    },
    Call { line: "snapshot-create-as vm e", before: &[], worlds: (2, 2), snapshots: [&[], &["e"]] },
    Call {
        line: "snapshot-revert vm e",
        before: &["snapshot-create-as vm e"],
        worlds: (2, 1),
        snapshots: [&["e"], &["e"]],
    },
    Call {
        line: "snapshot-revert vm e",
        before: &["snapshot-create-as vm e --disk-only"],
        worlds: (2, 1),
        snapshots: [&["e"], &["e"]],
    },
    Call {
        line: "snapshot-delete vm e",
        before: &["snapshot-create-as vm e"],
        worlds: (2, 2),
        snapshots: [&["e"], &[]],
    },
];

/// Whether it was so many writes long.
fn dies_in(call: &Call, dies: Dies, writes: usize) -> bool {
    let mut world = World::new();
    let spec = GuestSpec::idle("vm").disks(&["qcow2", "qcow2"]);
    let context = format!("{}: {dies:?} at write {writes}", call.line);
    let was = |world: &World, pattern| {
        let vm = world.guest(spec.clone());
        ["vda", "vdb"].iter().all(|disk| reads(&vm.source(disk), pattern, BASE))
    };
    let vm = world.define(spec.clone());
    for (pattern, line) in [(1, call.before), (2, &[])] {
        for disk in ["vda", "vdb"] {
            vm.write(disk, 1, pattern);
        }
        for line in line {
            world.virsh.ok(line);
        }
    }
    let killed = kill_at(&mut world, (call.line, dies), |world| world.slowed() >= writes);
    let Some(complaint) = killed else { return false };
    if dies == Dies::Both {
        world.start();
    } else {
        assert!(complaint.contains("qemu-img"), "{context}: {complaint}");
    }
    let vm = world.guest(spec.clone());
    if dies == Dies::Tool && world.journal().is_some() {
        // It has begun to take effect; nothing else is done before it is gone on with.
        assert!(complaint.contains("repeat it"), "{context}: {complaint}");
        world.virsh.ok(call.line);
    }
    is_sound(&vm, &context);
    let is_new = vm.snapshots() == call.snapshots[1] && was(&world, call.worlds.1);
    let is_old = vm.snapshots() == call.snapshots[0] && was(&world, call.worlds.0);
    assert!(is_old || is_new, "{context}: {:?}", vm.snapshots());
    for disk in ["vda", "vdb"] {
        let inside = images::internal_snapshots(Path::new(&vm.source(disk)));
        let other = images::internal_snapshots(Path::new(&vm.source("vda")));
        assert_eq!(inside, other, "{context}: {disk}");
    }
    let again = world.virsh.run(call.line);
    assert!(again.success || is_new, "{context}: {}", again.stderr);
    is_sound(&vm, &context);
    assert_eq!(vm.snapshots(), call.snapshots[1], "{context}");
    assert!(was(&world, call.worlds.1), "{context}");
    vm.virsh("start {}");
    assert!(was(&world, call.worlds.1), "{context}");
    vm.virsh("destroy {}");
    true
}

#[test]
fn qemu_img_is_killed_while_it_makes_or_changes_images() {
    let mut deaths = 0;
    for (n, call) in CALLS.iter().enumerate() {
        for dies in [Dies::Tool, Dies::Both] {
            if !is_all() {
                let is_sampled = (dies == Dies::Tool) == (n % 2 == 0);
                deaths += usize::from(is_sampled && dies_in(call, dies, 2));
                continue;
            }
            let last = (1..40).take_while(|&writes| dies_in(call, dies, writes)).last();
            assert!(last.is_some(), "{} was never caught", call.line);
            deaths += last.unwrap_or(0);
        }
    }
    assert!(deaths > 2);
    println!("faults: qemu-img killed {deaths} times while it made or changed images");
}

/// `vm` with the snapshot `e` and 10 MiB above it; gives base and overlay.
fn with_much_to_merge(world: &World) -> (Guest<'_>, String, String) {
    let vm = world.define(GuestSpec::idle("vm"));
    vm.write("vda", 1, 1);
    let base = vm.source("vda");
    world.virsh.ok("snapshot-create-as vm e --disk-only");
    let overlay = vm.source("vda");
    images::io(Path::new(&overlay), "qcow2", "write -P 2 4M 10M");
    (vm, base, overlay)
}

fn is_all_there(image: &str) -> bool {
    reads(image, 1, BASE) && (0..10).all(|mib| reads(image, 2, NEW + (mib << 20)))
}

/// Bytes of a file on the disk.
fn weight(file: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(file).map_or(0, |meta| meta.blocks() * 512)
}

/// In the midst, when the image that gets what is merged has grown by 1 MiB.
#[track_caller]
fn merge_dies(keep: &str, dies: Dies) {
    let mut world = World::new();
    let (vm, base, overlay) = with_much_to_merge(&world);
    let (stays, grows) = match keep {
        "base" => (base.clone(), base.clone()),
        _ => (overlay.clone(), overlay.clone()),
    };
    if keep != "base" {
        // What is below is moved up.
        images::io(Path::new(&base), "qcow2", "write -P 3 14M 2M");
    }
    let spec = vm.spec.clone();
    let line = format!("virtsnap delete vm e --keep {keep}");
    let context = format!("{line}: {dies:?}");
    let before = weight(Path::new(&grows));
    let grown = |_: &World| weight(Path::new(&grows)) >= before + (1 << 20);
    let complaint = kill_at(&mut world, (&line, dies), grown).expect("it is caught in the midst");
    // Nothing was rewritten: the overlay has all of it, and names its base.
    assert!(is_all_there(&overlay), "{context}");
    assert_eq!(images::chain(Path::new(&overlay)).len(), 2, "{context}");
    for image in [&base, &overlay] {
        images::check_but_for_leaks(Path::new(image));
    }
    if dies == Dies::Both {
        world.start();
        // A daemon that comes back goes on by itself.
        let vm = world.guest(spec.clone());
        host::wait("the deletion to end", 60, || vm.snapshots().is_empty().then_some(()));
        host::wait("its job to end", 60, || world.journal().is_none().then_some(()));
    } else {
        assert!(complaint.contains("delete them again"), "{context}: {complaint}");
        let vm = world.guest(spec.clone());
        let xml = vm.virsh("snapshot-dumpxml {} e");
        assert!(xml.contains("<snapshotDeleteInProgress/>"), "{context}: {xml}");
        // What the killed one took and did not use was given back.
        images::check(Path::new(&base));
        images::check(Path::new(&overlay));
        vm.virsh("start {}");
        assert!(is_all_there(&vm.source("vda")), "{context}");
        vm.virsh("destroy {}");
        vm.virtsnap(&format!("delete {{}} e --keep {keep}"));
    }
    let vm = world.guest(spec);
    assert_eq!((vm.snapshots(), vm.source("vda")), (Vec::new(), stays.clone()), "{context}");
    assert_eq!(images::chain(Path::new(&stays)).len(), 1, "{context}");
    assert!(is_all_there(&stays), "{context}");
    is_sound(&vm, &context);
    images::check(Path::new(&stays));
}

#[test]
fn qemu_img_is_killed_while_it_merges_into_the_base() {
    for dies in [Dies::Tool, Dies::Both] {
        merge_dies("base", dies);
    }
}

#[test]
fn qemu_img_is_killed_while_it_merges_into_the_overlay() {
    for dies in [Dies::Tool, Dies::Both] {
        merge_dies("overlay", dies);
    }
}
