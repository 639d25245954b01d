//! Disks that forget, and memory that is shared: what snapshots say of them.

use std::fs;
use std::process::Command;

use virtsnap_tests::{Guest, GuestSpec, World, host, images};

fn with_transient(world: &World) -> Guest<'_> {
    let vm = world.define(GuestSpec::idle("vm").disks(&["qcow2", "qcow2"]));
    let xml = vm.virsh("dumpxml --inactive {}");
    let transient = xml.replace(
        "<target dev='vdb' bus='virtio'/>",
        "<target dev='vdb' bus='virtio'/><transient/>",
    );
    let file = world.path("transient.xml");
    fs::write(&file, transient).expect("the directory is ours");
    world.virsh.ok(&format!("define {}", file.display()));
    vm
}

#[test]
fn a_transient_disk_forgets_with_its_guest() {
    let mut world = World::new();
    {
        let vm = with_transient(&world);
        let overlay = world.path("vm-vdb.qcow2.TRANSIENT-vm");
        vm.write("vdb", 1, 1);
        vm.virsh("start {}");
        assert_eq!(vm.source("vdb"), overlay.to_string_lossy());
        vm.write("vdb", 1, 2);
        assert!(images::has_pattern(&vm.disk("vdb"), 1, 1 << 20, 65536), "its base is as it was");
        // No memory is kept that would need it, and no layer on it.
        for (line, why) in [
            ("snapshot-create-as {} s", "transient"),
            ("snapshot-create-as {} s --disk-only", "transient"),
            ("managedsave {}", "transient"),
        ] {
            let said = vm.refused(line);
            assert!(said.contains(why), "{line}: {said}");
        }
        assert_eq!(vm.state(), "running");
        // Left out of a snapshot it is no obstacle, and a revert starts it afresh.
        vm.write("vda", 1, 3);
        vm.virsh(
            "snapshot-create-as {} s --disk-only --diskspec vda,snapshot=external \
             --diskspec vdb,snapshot=no",
        );
        vm.write("vda", 1, 4);
        vm.virsh("snapshot-revert {} s --running");
        assert!(vm.holds("vda", 1, 3) && vm.holds("vdb", 1, 1));
        assert_eq!(vm.source("vdb"), overlay.to_string_lossy());
        assert!(vm.virsh("dumpxml --inactive {}").contains("vm-vdb.qcow2'/>"));
        vm.virsh("destroy {}");
        assert!(!overlay.exists());
        assert_eq!(vm.source("vdb"), vm.disk("vdb").to_string_lossy());
        assert!(vm.holds("vdb", 1, 1));
        vm.virsh("start {}");
        vm.write("vdb", 1, 5);
    }
    // The guest ends while no daemon looks.
    let overlay = world.path("vm-vdb.qcow2.TRANSIENT-vm");
    world.kill();
    for id in world.processes("qemu-system") {
        Command::new("kill").args(["-9", &id.to_string()]).status().unwrap();
    }
    host::wait("QEMU to end", 30, || world.processes("qemu-system").is_empty().then_some(()));
    assert!(overlay.exists());
    world.start();
    assert!(!overlay.exists(), "it is put away with the rest");
    let base = world.path("vm-vdb.qcow2");
    assert!(images::has_pattern(&base, 1, 1 << 20, 65536));
}

#[test]
fn a_transient_disk_that_is_off_is_a_disk_like_others() {
    let world = World::new();
    let vm = with_transient(&world);
    vm.write("vdb", 1, 1);
    vm.virsh("snapshot-create-as {} inside");
    vm.virsh("snapshot-create-as {} outside --disk-only");
    vm.write("vdb", 1, 2);
    assert!(vm.virsh("dumpxml {}").contains("<transient/>"));
    vm.virsh("snapshot-revert {} outside");
    assert!(vm.holds("vdb", 1, 1));
    vm.virsh("snapshot-delete {} outside");
    vm.virsh("snapshot-delete {} inside");
    assert!(vm.holds("vdb", 1, 1));
}

/// QEMU does not save a peer of an ivshmem device; its master it does.
#[test]
fn shared_memory_is_started_and_named_where_it_stands_in_the_way() {
    for (role, saves) in [("", false), (" role='master'", true)] {
        let world = World::new();
        let name = world.dir().file_name().unwrap().to_str().unwrap().to_owned();
        let devices = format!(
            "<shmem name='{name}'{role}><model type='ivshmem-plain'/><size unit='M'>4</size></shmem>"
        );
        let vm = world.define(GuestSpec { devices, ..GuestSpec::idle("vm") });
        vm.virsh("start {}");
        let file = std::path::Path::new("/dev/shm").join(&name);
        assert_eq!(fs::metadata(&file).map(|meta| meta.len()).ok(), Some(4 << 20));
        if saves {
            vm.write("vda", 1, 1);
            vm.virsh("snapshot-create-as {} s");
            vm.write("vda", 1, 2);
            vm.virsh("snapshot-revert {} s");
            assert!(vm.holds("vda", 1, 1));
        } else {
            let said = vm.refused("snapshot-create-as {} s");
            assert!(said.contains(&name) && said.contains("master"), "{said}");
        }
        assert_eq!(vm.state(), "running");
        vm.virsh("snapshot-create-as {} disks --disk-only");
        vm.virsh("destroy {}");
        let _ = fs::remove_file(file);
    }
}
