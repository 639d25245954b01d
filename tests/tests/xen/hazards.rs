//! Trees that fork, images that others read, files that are gone or not what was said of them: the
//! hazards of libvirt's own code, on guests that are off or stand still.

use virtsnap_tests::xen::{GUESTS, XenSpec};

use crate::lent;

/// root ─ mid ─ old, mid ─ new; what the first two froze is below both branches.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn other_branches_read_what_they_read() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm").disks(&["qcow2"]));
    vm.write("xvda", 1, 1);
    for (name, byte) in [("root", 2), ("mid", 3), ("old", 3)] {
        vm.virsh(&format!("snapshot-create-as {{}} {name} --disk-only"));
        vm.write("xvda", 1, byte);
    }
    vm.virsh("snapshot-revert {} mid");
    assert!(vm.holds("xvda", 1, 2));
    vm.write("xvda", 1, 4);
    vm.virsh("snapshot-create-as {} new --disk-only");
    vm.virsh("start {} --paused");
    // Inside a layer above all of them.
    let layer = vm.source("xvda");
    vm.virsh("snapshot-create-as {} inner --disk-only --diskspec xvda,snapshot=internal");
    vm.write("xvda", 1, 5);
    // The current one has a child; the first two have several, and are off and on the active branch.
    for gone in ["root", "mid"] {
        vm.virsh(&format!("snapshot-delete {{}} {gone}"));
        assert!(vm.holds("xvda", 1, 5), "without {gone}");
    }
    assert_eq!(vm.snapshots(), ["inner", "new", "old"]);
    assert!(vm.refused("snapshot-parent {} old").contains("parent"));
    assert_eq!(vm.virsh("snapshot-parent {} inner").trim(), "new");
    // An external parent of an internal one, while the layer with that is in use; then that from
    // within a layer that is not the topmost.
    vm.virsh("snapshot-delete {} new");
    assert!(vm.holds("xvda", 1, 5));
    vm.virsh("snapshot-create-as {} above --disk-only");
    vm.write("xvda", 2, 6);
    vm.virsh("snapshot-revert {} inner --paused");
    assert!(vm.holds("xvda", 1, 4), "what the child held");
    vm.virsh("snapshot-revert {} above --paused");
    assert!(vm.holds("xvda", 1, 5) && vm.holds("xvda", 2, 0));
    // Images that were opened because another stands on them cannot be opened for writing.
    let told = vm.refused("snapshot-delete {} inner");
    assert!(told.contains("shut the guest down first"), "{told}");
    assert!(vm.holds("xvda", 1, 5) && vm.snapshots().len() == 3);
    vm.virsh("snapshot-revert {} old");
    assert!(vm.holds("xvda", 1, 3));
    vm.virsh("snapshot-delete {} inner");
    vm.virsh("snapshot-delete {} old");
    vm.virsh("snapshot-delete {} above");
    assert!(vm.snapshots().is_empty() && vm.holds("xvda", 1, 3));
    assert_eq!(vm.inside(std::path::Path::new(&vm.source("xvda"))), Vec::<String>::new());
    assert!(!vm.exists(&layer) || vm.source("xvda") == layer);
    vm.check(&vm.source("xvda"));
}

/// What can be refused is refused while the guest is there, and it stays the one that it was.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_revert_is_checked_before_anything_is_stopped() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm").disks(&["qcow2"]));
    vm.write("xvda", 1, 1);
    vm.virsh("snapshot-create-as {} inner");
    vm.virsh("snapshot-create-as {} off --disk-only");
    vm.virsh("start {} --paused");
    vm.virsh("snapshot-create-as {} on --disk-only");
    vm.write("xvda", 1, 5);
    let id = vm.virsh("domid {}");
    let (base, frozen) = (vm.disk("xvda"), format!("{GUESTS}/vm-xvda.off"));
    let base = base.display();
    // Layers that are gone, no images any more, and a snapshot that is not in its image.
    for (spoil, heal, name, why) in [
        (format!("mv {base} /tmp/aside"), format!("mv /tmp/aside {base}"), "off", "vm-xvda.qcow2"),
        (
            format!("mv {base} /tmp/aside; echo no > {base}"),
            format!("mv /tmp/aside {base}"),
            "off",
            "vm-xvda.qcow2",
        ),
        (format!("mv {frozen} /tmp/aside"), format!("mv /tmp/aside {frozen}"), "on", "vm-xvda.off"),
    ] {
        host.ok(&spoil);
        let told = vm.refused(&format!("snapshot-revert {{}} {name}"));
        host.ok(&heal);
        assert!(told.contains(why), "{spoil}: {told}");
        assert_eq!((vm.state(), vm.virsh("domid {}")), ("paused".to_owned(), id.clone()));
    }
    assert!(vm.holds("xvda", 1, 5), "it sees what it saw");

    // What was said of an image that holds nothing of the kind is a record, and no more.
    let record = vm.virsh("snapshot-dumpxml {} inner").replace("inner", "lie");
    let lie = host.file("lie.xml", &record);
    vm.virsh(&format!("snapshot-create {{}} {lie} --redefine"));
    let told = vm.refused("snapshot-revert {} lie");
    assert!(told.contains("lie"), "{told}");
    assert_eq!((vm.state(), vm.virsh("domid {}")), ("paused".to_owned(), id));
    vm.virsh("snapshot-delete {} lie");
    assert!(vm.holds("xvda", 1, 5));

    // No current snapshot is none to follow.
    let xml = host.file("on.xml", &vm.virsh("snapshot-dumpxml {} on"));
    vm.virsh("snapshot-delete {} on --metadata");
    vm.virsh(&format!("snapshot-create {{}} {xml} --redefine --current"));
    vm.virsh("snapshot-revert {} off");
    vm.virsh("snapshot-delete {} off");
    vm.virsh("snapshot-delete {} inner");
    assert!(vm.refused("snapshot-current {}").contains("current"));
    vm.virsh("snapshot-revert {} on");
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "on");
    assert!(vm.holds("xvda", 1, 1));
}

/// Modes and names of files, one file for two disks, a disk that is gone, and what stays.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn files_are_what_they_ought_to_be() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm").disks(&["qcow2", "raw"]));
    host.ok(&format!("chmod 600 {0}/vm-xvda.qcow2; chmod 640 {0}/vm-xvdb.raw", GUESTS));
    let modes =
        |name: &str| host.ok(&format!("cd {GUESTS} && stat -c %a vm-xvda.{name} vm-xvdb.{name}"));
    vm.virsh("snapshot-create-as {} off --disk-only");
    assert_eq!(modes("off"), "600\n640\n");
    let one = format!("{GUESTS}/one");
    let told = vm.refused(&format!(
        "snapshot-create-as {{}} s --disk-only --diskspec xvda,file={one} --diskspec xvdb,file={one}"
    ));
    assert!(told.contains(&one) && !vm.exists(&one), "{told}");
    vm.virsh("start {} --paused");
    vm.virsh("snapshot-create-as {} on --disk-only");
    assert_eq!(modes("on"), "600\n640\n");
    vm.write("xvdb", 1, 1);
    // A comma stays one, live and in the files of the device model that is started.
    let comma = host.file("comma.xml", "<domainsnapshot><name>a,b c</name></domainsnapshot>");
    vm.virsh(&format!("snapshot-create {{}} {comma} --disk-only"));
    assert_eq!(vm.source("xvda"), format!("{GUESTS}/vm-xvda.a,b c"));
    vm.write("xvda", 1, 2);
    vm.virsh("snapshot-revert {} --snapshotname 'a,b c' --paused");
    assert!(vm.holds("xvda", 1, 0) && vm.holds("xvdb", 1, 1));

    // The other disk went: no reason to keep the snapshots.
    vm.virsh("destroy {}");
    vm.redefine(|xml| {
        let (at, end) = (xml.rfind("<disk ").unwrap(), xml.rfind("</disk>").unwrap());
        format!("{}{}", &xml[..at], &xml[end + 7..])
    });
    assert!(!vm.virsh("domblklist {}").contains("xvdb"));
    for name in ["on", "'a,b c'", "off"] {
        vm.virsh(&format!("snapshot-delete {{}} --snapshotname {name}"));
    }
    assert!(vm.snapshots().is_empty());
    assert_eq!(vm.source("xvda"), vm.disk("xvda").to_str().unwrap());
    assert!(vm.exists(vm.disk("xvdb").to_str().unwrap()), "the user's own");
}

/// Nothing locks images here: what another running guest has is refused.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn two_guests_do_not_write_into_one_image() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm").disks(&["qcow2"]));
    let image = vm.disk("xvda");
    let twin = host.file("twin.xml", &vm.spec.xml().replace("<name>vm<", "<name>twin<"));
    host.virsh.ok(&format!("define {twin}"));
    host.virsh.ok("snapshot-create-as twin before");
    vm.virsh("start {} --paused");
    for line in ["start twin", "snapshot-create-as twin s", "snapshot-delete twin before"] {
        let told = host.virsh.fails(line);
        assert!(told.contains("running domain 'vm'"), "{line}: {told}");
        assert!(told.contains(image.to_str().unwrap()), "{line}: {told}");
    }
    assert_eq!(vm.inside(&image), ["before"]);
    vm.virsh("destroy {}");
    host.virsh.ok("start twin --paused");
    assert!(vm.refused("start {}").contains("running domain 'twin'"));
    // What was refused late is completed when that can be.
    assert!(host.virsh.lines("snapshot-list twin --name").is_empty());
    host.virsh.ok("destroy twin");
    assert_eq!(vm.inside(&image), Vec::<String>::new());
    let mut starts =
        ["vm", "twin"].map(|name| host.virsh.command(&format!("start {name} --paused")));
    let starts = starts.each_mut().map(|start| start.spawn().expect("virsh is there"));
    let started = starts.map(|mut start| start.wait().expect("it is ours").success());
    assert!(started[0] != started[1], "one of two that start at a time: {started:?}");
}
