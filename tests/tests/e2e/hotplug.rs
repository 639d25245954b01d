//! Devices that come to a running guest and go, and snapshots around that.

use std::path::Path;

use virtsnap_tests::guest::Guest;
use virtsnap_tests::{GuestSpec, World, host, images};

fn disk_xml(image: &Path, target: &str, bus: &str) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
         <source file='{}'/><target dev='{target}' bus='{bus}'/></disk>",
        image.display()
    )
}

fn write(world: &World, name: &str, xml: &str) -> String {
    let path = world.path(name);
    std::fs::write(&path, xml).expect("the directory is ours");
    path.display().to_string()
}

/// Through the running QEMU, at the disk's device, as the guest would.
fn qemu_io(vm: &Guest<'_>, target: &str, command: &str) {
    let xml = vm.virsh("dumpxml {}");
    let disk = xml.split("<disk ").find(|disk| disk.contains(&format!("dev='{target}'")));
    let alias = disk.and_then(|disk| disk.split("<alias name='").nth(1)).expect("a live disk");
    let alias = alias.split('\'').next().expect("a name");
    let backend = if alias.starts_with("virtio") { "/virtio-backend" } else { "" };
    let device = format!("/machine/peripheral/{alias}{backend}");
    let said =
        vm.virsh(&format!("qemu-monitor-command {{}} --hmp 'qemu-io -d {device} \"{command}\"'"));
    assert!(!said.contains("rror") && !said.contains("failed"), "{said}");
}

fn is_gone(vm: &Guest<'_>, target: &str) {
    host::wait("the guest to let the disk go", 60, || {
        (!vm.virsh("domblklist {}").contains(target)).then_some(())
    });
}

#[test]
fn disks_come_and_go_on_every_bus() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    for (target, bus) in [("vdb", "virtio"), ("sda", "scsi"), ("sdb", "usb")] {
        let image = world.path(&format!("{target}.qcow2"));
        images::create(&image, "qcow2", "8M");
        let xml = write(&world, &format!("{target}.xml"), &disk_xml(&image, target, bus));
        vm.virsh(&format!("attach-device {{}} {xml} --live --config"));
        assert_eq!(vm.source(target), image.to_string_lossy());
        assert!(vm.virsh("dumpxml --inactive {}").contains(&format!("dev='{target}'")));
        let live = vm.virsh("dumpxml {}");
        assert!(live.contains("<alias name='") && live.contains("<address type="), "{live}");
        // A USB disk's image is behind a device without a name.
        let has_name = bus != "usb";
        if has_name {
            qemu_io(&vm, target, "write -P 7 0 64k");
        }
        let complaint = vm.refused(&format!("attach-device {{}} {xml} --live"));
        assert!(complaint.contains(target), "{complaint}");
        vm.virsh(&format!("detach-device {{}} {xml} --live --config"));
        is_gone(&vm, target);
        assert!(!vm.virsh("dumpxml --inactive {}").contains(&format!("dev='{target}'")));
        images::check(&image);
        assert!(!has_name || images::has_pattern(&image, 7, 0, 65536), "{target}");
        // And once more, at the same place.
        vm.virsh(&format!("attach-device {{}} {xml} --live"));
        if has_name {
            qemu_io(&vm, target, "write -P 8 0 64k");
        }
        vm.virsh(&format!("detach-disk {{}} {target} --live"));
        is_gone(&vm, target);
        assert!(!has_name || images::has_pattern(&image, 8, 0, 65536), "{target}");
    }
    let ide = write(&world, "ide.xml", &disk_xml(&vm.disk("vda"), "hda", "ide"));
    assert!(
        vm.refused(&format!("attach-device {{}} {ide} --live")).contains("cannot be hotplugged")
    );
    let missing = write(&world, "none.xml", &disk_xml(&world.path("none.qcow2"), "vdc", "virtio"));
    vm.refused(&format!("attach-device {{}} {missing} --live --config"));
    assert!(!vm.virsh("domblklist {}").contains("vdc"));
    assert!(!vm.virsh("domblklist --inactive {}").contains("vdc"), "neither of both");
    vm.count_on(1);
    vm.never_mismatched();
}

#[test]
fn a_new_daemon_knows_the_disk() {
    let mut world = World::new();
    let image = {
        let vm = world.boot(GuestSpec::new("vm"));
        let image = world.path("more.qcow2");
        images::create(&image, "qcow2", "8M");
        vm.virsh(&format!("attach-disk {{}} {} vdb --live --subdriver qcow2", image.display()));
        image
    };
    world.kill();
    world.start();
    assert!(world.virsh.ok("domblklist vm").contains("more.qcow2"));
    world.virsh.ok("snapshot-create-as vm s --disk-only");
    assert!(world.virsh.ok("domblklist vm").contains("more.s"));
    world.virsh.ok("snapshot-delete vm s");
    world.virsh.ok("detach-disk vm vdb --live");
    host::wait("the disk to go", 60, || {
        (!world.virsh.ok("domblklist vm").contains("vdb")).then_some(())
    });
    images::check(&image);
    world.virsh.ok("destroy vm");
}

/// The disk was not there, came, went, and came again: each snapshot goes back to what it had.
#[test]
fn snapshots_go_back_over_disks_that_come_and_go() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    let image = world.path("more.qcow2");
    images::create(&image, "qcow2", "8M");
    let xml = write(&world, "more.xml", &disk_xml(&image, "vdb", "virtio"));
    vm.virsh("snapshot-create-as {} before");
    vm.virsh(&format!("attach-device {{}} {xml} --live --config"));
    qemu_io(&vm, "vdb", "write -P 1 0 64k");
    vm.virsh("snapshot-create-as {} with");
    qemu_io(&vm, "vdb", "write -P 2 0 64k");
    vm.virsh(&format!("detach-device {{}} {xml} --live --config"));
    is_gone(&vm, "vdb");

    vm.virsh("snapshot-revert {} with");
    assert!(images::has_pattern(&image, 1, 0, 65536), "what it had at the snapshot");
    vm.count_on(1);
    vm.virsh("snapshot-revert {} before");
    assert!(!vm.virsh("domblklist {}").contains("vdb"));
    assert!(!vm.virsh("domblklist --inactive {}").contains("vdb"));
    vm.count_on(1);
    // the snapshot's disk is not in the domain, and is no reason to keep the snapshot.
    vm.virsh("snapshot-delete {} with");
    assert!(images::internal_snapshots(&image).is_empty());
    vm.virsh("snapshot-delete {} before");
    vm.virsh("destroy {}");
    images::check(&image);
    images::check(&vm.disk("vda"));
    vm.never_mismatched();
}

/// As before, with overlays.
#[test]
fn external_snapshots_of_a_disk_that_went_can_go() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    let image = world.path("more.qcow2");
    images::create(&image, "qcow2", "8M");
    let xml = write(&world, "more.xml", &disk_xml(&image, "vdb", "virtio"));
    vm.virsh(&format!("attach-device {{}} {xml} --live --config"));
    qemu_io(&vm, "vdb", "write -P 1 0 64k");
    vm.virsh("snapshot-create-as {} s --disk-only");
    qemu_io(&vm, "vdb", "write -P 2 0 64k");
    let overlay = vm.source("vdb");
    vm.virsh("detach-disk {} vdb --live --config");
    is_gone(&vm, "vdb");
    assert!(images::has_pattern(Path::new(&overlay), 2, 0, 65536));
    vm.virsh("snapshot-delete {} s");
    assert_eq!(vm.source("vda"), vm.disk("vda").to_string_lossy());
    images::check(&image);
    vm.count_on(1);
    vm.virsh("destroy {}");
    vm.never_mismatched();
}

#[test]
fn an_interface_comes_and_goes() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    let xml = "<interface type='user'><mac address='52:54:00:aa:bb:cc'/><model type='virtio'/></interface>";
    let xml = write(&world, "net.xml", xml);
    vm.virsh(&format!("attach-device {{}} {xml} --live"));
    assert!(vm.virsh("domiflist {}").contains("52:54:00:aa:bb:cc"));
    vm.virsh("snapshot-create-as {} with");
    vm.virsh(&format!("detach-device {{}} {xml} --live"));
    host::wait("the guest to let the interface go", 60, || {
        (!vm.virsh("domiflist {}").contains("52:54:00:aa:bb:cc")).then_some(())
    });
    vm.virsh("snapshot-revert {} with");
    assert!(vm.virsh("domiflist {}").contains("52:54:00:aa:bb:cc"));
    vm.count_on(1);
    vm.never_mismatched();
}
