//! Disks on devices, served by the device model (qdisk) or by the kernel (phy), and vhd images, which
//! Debian's device model does not open.

use std::io::Write as _;

use virtsnap_tests::xen::{GUESTS, XenGuest, XenHost, XenSpec};

use crate::{boots, count_on_disks, goes_back, lent, take};

/// Both disks on loop devices, which stand for any.
#[track_caller]
fn on_devices<'h>(host: &'h XenHost, driver: &str) -> XenGuest<'h> {
    let vm = host.with_images(XenSpec::new("vm").disks(&["raw", "raw"]));
    let mut xml = vm.spec.xml().replace("name='qemu'", &format!("name='{driver}'"));
    for target in ["xvda", "xvdb"] {
        let file = vm.disk(target);
        let device = host.ok(&format!("losetup -f --show {}", file.display()));
        let file = format!("file='{}'", file.display());
        xml = xml.replace(&file, &format!("dev='{}'", device.trim()));
    }
    define(host, &xml.replace("type='file'", "type='block'"));
    vm
}

#[track_caller]
fn define(host: &XenHost, xml: &str) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(xml.as_bytes()).unwrap();
    host.virsh.ok(&format!("define {}", file.path().display()));
}

fn free_devices(vm: &XenGuest<'_>) {
    vm.host.run("losetup -D");
}

/// Nothing is named, and nothing lands in /dev.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn of_disks_on_devices_memory_and_overlays_have_a_place() {
    let host = lent!();
    let vm = on_devices(&host, "qemu");
    let devices = [vm.source("xvda"), vm.source("xvdb")];
    vm.virsh("start {}");
    vm.booted(virtsnap_tests::guest::Mark::start());
    let full = take(&vm, "full");
    let full = full..vm.count_on(3);
    let place = format!("/var/lib/xen/snapshots/{}/", vm.virsh("domuuid {}").trim());
    assert!(vm.source("xvda").starts_with(&place), "{}", vm.source("xvda"));
    take(&vm, "disks --disk-only");
    vm.count_on(2);
    goes_back(&vm, "full", &full);
    assert!(vm.source("xvdb").starts_with(&place), "{}", vm.source("xvdb"));
    let written = vm.count_on(2);
    vm.virsh("snapshot-delete {} disks");
    vm.virsh("snapshot-delete {} full");
    assert_eq!([vm.source("xvda"), vm.source("xvdb")], devices);
    let mark = vm.mark();
    vm.virsh("destroy {}");
    vm.virsh("start {}");
    boots(&vm, mark, written..u64::MAX);
    assert_eq!(host.ok(&format!("ls {place}")), "");
    vm.virsh("destroy {}");
    free_devices(&vm);
}

/// While the guest runs they are out of reach, and when it is off they are images as others are.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn disks_that_the_kernel_serves_have_snapshots_while_the_guest_is_off() {
    let host = lent!();
    let vm = on_devices(&host, "phy");
    vm.virsh("start {}");
    vm.booted(virtsnap_tests::guest::Mark::start());
    for how in ["", "--disk-only", "--diskspec xvdb,snapshot=no"] {
        let said = vm.refused(&format!("snapshot-create-as {{}} refused {how}"));
        assert!(said.contains("disk 'xvda' is served by phy"), "{said}");
        assert!(said.contains("shut the guest down first"), "{said}");
    }
    assert!(vm.snapshots().is_empty());
    let files = host.run("ls -A /var/lib/xen/snapshots/*/").stdout;
    assert!(!files.contains("refused"), "{files}");

    // Memory alone: the disks are the user's to take care of.
    take(&vm, "memory --diskspec xvda,snapshot=no --diskspec xvdb,snapshot=no");
    vm.count_on(2);
    vm.virsh("shutdown {}");
    vm.becomes("shut off");
    let off = count_on_disks_of_devices(&vm);
    vm.virsh("snapshot-create-as {} off --disk-only");
    let xml = vm.virsh("dumpxml {}");
    assert!(!xml.contains("phy"), "the kernel reads no overlay: {xml}");
    let mark = vm.mark();
    vm.virsh("start {}");
    boots(&vm, mark, off..off + 2);
    vm.count_on(3);
    vm.virsh("snapshot-revert {} off");
    let found = count_on_disks(&vm);
    assert!((off..off + 2).contains(&found), "{found}, not {off}");
    free_devices(&vm);
}

#[track_caller]
fn count_on_disks_of_devices(vm: &XenGuest<'_>) -> u64 {
    let of = |target| vm.count_on_disk(vm.disk(target).to_str().unwrap());
    of("xvda").min(of("xvdb"))
}

/// What `qemu-img` does goes; a guest on a disk that nobody serves does not start.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_vhd_image_has_snapshots_and_needs_a_device_model_that_reads_it() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm").disks(&["vpc", "qcow2"]));
    let said = vm.refused("snapshot-create-as {} inside --diskspec xvda,snapshot=internal");
    assert!(said.contains("disk 'xvda' is of format vpc"), "{said}");
    let said = vm.refused("start {}");
    assert!(said.contains("the device model cannot serve disk 'xvda', of format vpc"), "{said}");
    assert_eq!(vm.state(), "shut off");
    assert_eq!(host.ok("xl list | wc -l").trim(), "2", "nothing but dom0 and the head");

    vm.virsh("snapshot-create-as {} off --disk-only");
    let overlay = vm.source("xvda");
    assert_eq!(overlay, format!("{GUESTS}/vm-xvda.off"));
    host.ok(&format!("qemu-io -f qcow2 -c 'write -P 7 0 64k' {overlay}"));
    vm.virsh("snapshot-revert {} off");
    let reverted = vm.source("xvda");
    assert_ne!(reverted, overlay);
    host.ok(&format!("qemu-io -f qcow2 -c 'read -P 0 0 64k' {reverted}"));
    host.ok(&format!("qemu-io -f qcow2 -c 'write -P 9 0 64k' {reverted}"));
    vm.virsh("snapshot-delete {} off");
    let merged = vm.source("xvda");
    host.ok(&format!("qemu-img convert -O raw {merged} /tmp/merged"));
    host.ok("qemu-io -f raw -c 'read -P 9 0 64k' /tmp/merged && rm /tmp/merged");
}

/// qcow2 on a device, and an overlay that is on one: a loop device stands for a volume of LVM's.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn an_image_and_its_overlay_are_on_devices() {
    let host = lent!();
    let made = host.ok(&format!(
        "cd {GUESTS} && for file in below above; do truncate -s 16M $file; losetup -f --show $file; done"
    ));
    let [below, above] = made.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{made}") };
    host.ok(&format!("qemu-img create -q -f qcow2 {below} 8M"));
    let vm = host.guest(XenSpec::new("vm").disks(&["qcow2"]));
    let file = format!("file='{}'", vm.disk("xvda").display());
    let xml = vm.spec.xml().replace(&file, &format!("dev='{below}'"));
    define(&host, &xml.replace("type='file'", "type='block'"));
    vm.write("xvda", 1, 1);
    vm.virsh("start {} --paused");
    let spec = format!("--diskspec xvda,stype=block,file={above}");
    vm.virsh(&format!("snapshot-create-as {{}} s --disk-only {spec}"));
    assert_eq!((vm.source("xvda"), vm.opened()), (above.to_owned(), vec![above.to_owned()]));
    assert!(vm.virsh("dumpxml {} --inactive").contains("<disk type='block'"));
    vm.write("xvda", 2, 2);
    let told = vm.refused(&format!("snapshot-create-as {{}} t --disk-only {spec}"));
    assert!(told.contains("in use"), "{told}");
    // Merged into the device below, while it is used.
    vm.virsh("snapshot-delete {} s");
    assert_eq!(vm.source("xvda"), below);
    assert!(vm.holds("xvda", 1, 1) && vm.holds("xvda", 2, 2));
    // Inside of what is on a device.
    let inside = "--diskspec xvda,snapshot=internal";
    vm.virsh(&format!("snapshot-create-as {{}} inside --disk-only {inside}"));
    vm.write("xvda", 1, 3);
    vm.virsh("snapshot-revert {} inside");
    assert_eq!((vm.source("xvda"), vm.state()), (below.to_owned(), "shut off".to_owned()));
    assert!(vm.holds("xvda", 1, 1));
    assert!(vm.exists(above), "a device is never removed");
    free_devices(&vm);
}
