//! Guests whose memory cannot be saved: passthrough, and devices that QEMU has no state of.
//!
//! What stands for them is QEMU's own NVMe controller: it needs no hardware, and QEMU says of it what
//! it says of a device of the host that cannot be moved.

use virt::sys;
use virtsnap_tests::{Daemon, GuestSpec, World};

use crate::refusals::Bed;

const DEVICE: &str = "{\"execute\":\"device_add\",\"arguments\":\
    {\"driver\":\"nvme\",\"id\":\"odd\",\"serial\":\"1\"}}";

#[test]
fn memory_that_cannot_be_saved_is_refused_before_anything_is_touched() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm").disks(&["qcow2", "qcow2"]));
    vm.write("vda", 1, 1);
    vm.virsh("start {}");
    vm.virsh(&format!("qemu-monitor-command {{}} '{DEVICE}'"));
    let bed = Bed::new(vm);
    let live = sys::VIR_DOMAIN_SNAPSHOT_CREATE_LIVE;
    let external =
        format!("<memory snapshot='external' file='{}'/>", world.path("memory.save").display());
    let no_disks =
        "<disks><disk name='vda' snapshot='no'/><disk name='vdb' snapshot='no'/></disks>";
    for (parts, flags) in [
        (String::new(), 0),
        (external.clone(), 0),
        (external.clone(), live),
        (format!("{external}{no_disks}"), 0),
        (String::new(), sys::VIR_DOMAIN_SNAPSHOT_CREATE_HALT),
    ] {
        let said = bed.no_snapshot(&parts, flags, sys::VIR_ERR_OPERATION_INVALID);
        assert!(said.contains("nvme"), "{parts}: {said}");
        if world.daemon == Daemon::Virtsnapd {
            assert!(said.contains("DISK_ONLY"), "{parts}: {said}");
        }
    }
    let file = world.path("vm.save");
    let save = format!("save {{}} {}", file.display());
    let said = bed.refuses_line(&save, "operation is not valid");
    assert!(said.contains("nvme"), "{said}");
    bed.refuses("managed save", sys::VIR_ERR_OPERATION_INVALID, |domain| domain.managed_save(0));
    // It was not even stopped for a moment.
    assert_eq!(bed.vm.virsh("domstate {} --reason").trim(), "running (booted)");

    // What is offered instead: the disks alone, and all of it when it is off.
    let vm = &bed.vm;
    vm.virsh("snapshot-create-as {} disks --disk-only");
    vm.write("vda", 1, 2);
    vm.virsh("destroy {}");
    vm.virsh("snapshot-create-as {} off");
    vm.write("vda", 1, 3);
    vm.virsh("snapshot-revert {} off");
    assert!(vm.holds("vda", 1, 2));
    vm.virsh("snapshot-revert {} disks");
    assert!(vm.holds("vda", 1, 1));
    // Without the device it is a guest like others.
    vm.virsh("start {}");
    vm.virsh("snapshot-create-as {} whole");
}

/// As libvirt: memory waits for block jobs, on whatever disk.
#[test]
fn memory_waits_for_block_jobs() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm").disks(&["qcow2", "qcow2"]));
    vm.virsh("start {}");
    vm.write("vdb", 1, 7);
    let copy = world.path("copy.img");
    vm.virsh(&format!("blockcopy {{}} vdb {} --transient-job --wait", copy.display()));
    let bed = Bed::new(vm);
    let parts = format!(
        "<memory snapshot='external' file='{}'/><disks><disk name='vdb' snapshot='no'/></disks>",
        world.path("memory.save").display()
    );
    bed.no_snapshot(&parts, 0, sys::VIR_ERR_OPERATION_INVALID);
    let file = world.path("vm.save");
    bed.refuses_line(&format!("save {{}} {}", file.display()), "operation is not valid");
    bed.vm.virsh("blockjob {} vdb --abort");
    bed.vm.virsh("snapshot-create-as {} s");
    assert!(bed.vm.holds("vdb", 1, 7));
}
