//! What a snapshot keeps of the domain beside its disks, and what the domain says of snapshots.

use virtsnap_tests::{GuestSpec, World, images};

use crate::refusals::redefine;

fn has(xml: &str, description: &str) -> bool {
    xml.contains(&format!("<description>{description}</description>"))
}

/// Both definitions are kept, and both come back.
#[test]
fn the_live_and_the_persistent_definition_come_back() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.write("vda", 1, 1);
    vm.virsh("desc {} --config first");
    vm.virsh("snapshot-create-as {} off");
    redefine(&vm, |xml| xml.replace("first", "second").replace(">1</vcpu>", ">2</vcpu>"));
    vm.write("vda", 1, 2);

    vm.virsh("start {}");
    vm.virsh("desc {} --live now");
    vm.virsh("desc {} --config later");
    vm.virsh("snapshot-create-as {} on --disk-only");
    let record = vm.virsh("snapshot-dumpxml {} on");
    let (live, persistent) = record.split_once("<inactiveDomain").expect("both definitions");
    assert!(has(live, "now") && has(persistent, "later"), "{record}");
    vm.virsh("desc {} --live other");
    vm.virsh("desc {} --config another");
    vm.write("vda", 1, 3);
    vm.virsh("snapshot-revert {} on --running");
    assert!(has(&vm.virsh("dumpxml {}"), "now"));
    assert!(has(&vm.virsh("dumpxml {} --inactive"), "later"));
    assert!(vm.holds("vda", 1, 2));

    vm.virsh("snapshot-revert {} off");
    let now = vm.virsh("dumpxml {}");
    assert!(has(&now, "first") && now.contains(">1</vcpu>"), "{now}");
    assert!(vm.holds("vda", 1, 1));
}

/// The parent is who was current; the overlay of a revert is told of until a snapshot stands on it.
#[test]
fn the_overlays_of_a_revert_are_told_of() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    let told = |name: &str| vm.virsh(&format!("snapshot-dumpxml {{}} {name}"));
    vm.write("vda", 1, 1);
    vm.virsh("snapshot-create-as {} one --disk-only");
    vm.write("vda", 1, 2);
    let file = world.path("two.xml");
    let xml =
        "<domainsnapshot><name>two</name><parent><name>nobody</name></parent></domainsnapshot>";
    std::fs::write(&file, xml).expect("the directory is ours");
    vm.virsh(&format!("snapshot-create {{}} {} --disk-only", file.display()));
    assert_eq!(vm.virsh("snapshot-parent {} two").trim(), "one");
    vm.write("vda", 1, 3);

    vm.virsh("snapshot-revert {} one --running");
    assert!(vm.holds("vda", 1, 1));
    let (_, overlays) = told("one").split_once("<revertDisks>").map(own).expect("it is told");
    assert!(overlays.contains(&format!("<source file='{}'/>", vm.source("vda"))), "{overlays}");
    vm.write("vda", 1, 4);
    vm.virsh("snapshot-create-as {} three --disk-only");
    assert!(!told("one").contains("<revertDisks>"), "it is the child's layer now");
    assert_eq!(vm.virsh("snapshot-parent {} three").trim(), "one");
    vm.write("vda", 1, 5);
    for (name, byte) in [("two", 2), ("three", 4), ("one", 1), ("two", 2)] {
        vm.virsh(&format!("snapshot-revert {{}} {name} --running"));
        assert!(vm.holds("vda", 1, byte), "{name}");
    }
}

fn own((before, after): (&str, &str)) -> (String, String) {
    (before.to_owned(), after.to_owned())
}

/// `snapshot=` of a disk, and what is taken where nobody says anything.
#[test]
fn a_domain_says_which_of_its_disks_are_taken() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm").disks(&["qcow2"; 5]));
    let medium = world.path("medium.raw");
    images::create(&medium, "raw", "1M");
    redefine(&vm, |mut xml| {
        for (target, how) in [("vdb", "no"), ("vdc", "internal"), ("vdd", "external")] {
            let at = xml.find(&format!("vm-{target}.qcow2")).expect("the disk");
            let disk = xml[..at].rfind("<disk ").expect("its element");
            xml.insert_str(disk + 5, &format!(" snapshot='{how}'"));
        }
        let vde = "<target dev='vde' bus='virtio'/>";
        let drives = format!(
            "<disk type='file' device='cdrom'><target dev='hda' bus='ide'/></disk>\
             <disk type='file' device='cdrom'><driver name='qemu' type='raw'/>\
             <source file='{}'/><target dev='hdb' bus='ide'/></disk><controller ",
            medium.display()
        );
        xml.replace(vde, &format!("{vde}<readonly/>")).replacen("<controller ", &drives, 1)
    });
    let targets = ["vda", "vdb", "vdc", "vdd"];
    for target in targets {
        vm.write(target, 1, 1);
    }
    vm.virsh("start {}");
    vm.virsh("snapshot-create-as {} s --disk-only");
    let record = vm.virsh("snapshot-dumpxml {} s");
    for (target, how) in [
        ("vda", "external"),
        ("vdb", "no"),
        ("vdc", "internal"),
        ("vdd", "external"),
        ("vde", "no"),
        ("hda", "no"),
        ("hdb", "no"),
    ] {
        let entry = format!("<disk name='{target}' snapshot='{how}'");
        assert!(record.contains(&entry), "{entry} is not in {record}");
    }
    for target in targets {
        vm.write(target, 1, 2);
    }
    vm.virsh("snapshot-revert {} s");
    let bytes = targets.map(|target| u8::from(vm.holds(target, 1, 2)));
    assert_eq!(bytes, [0, 1, 0, 0], "only the one that was left out keeps what was written since");
    assert!(["vda", "vdc", "vdd"].iter().all(|target| vm.holds(target, 1, 1)));
    // What is said of a disk of the snapshot is stronger.
    vm.virsh("snapshot-create-as {} t --disk-only --diskspec vdb,snapshot=external");
    assert!(vm.source("vdb").ends_with("vm-vdb.t"));
}

/// As a power failure would find them; and in the other format that overlays may have.
#[test]
fn a_guest_is_halted_on_an_overlay_of_the_other_format() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    vm.write("vda", 1, 1);
    vm.virsh("snapshot-create-as {} halted --disk-only --halt --diskspec vda,driver=qed");
    assert_eq!(vm.state(), "shut off");
    let overlay = std::path::PathBuf::from(vm.source("vda"));
    assert!(images::info(&overlay).contains("file format: qed"));
    assert!(vm.holds("vda", 1, 1));
    vm.write("vda", 1, 2);
    let complaint = vm.refused("snapshot-create-as {} inside --diskspec vda,snapshot=internal");
    assert!(complaint.contains("qed"), "{complaint}");
    vm.virsh("start {}");
    assert!(vm.holds("vda", 1, 2));
    vm.write("vda", 2, 3);
    vm.virsh("snapshot-create-as {} next --disk-only");
    vm.write("vda", 1, 4);
    vm.virsh("snapshot-revert {} next --running");
    assert!(vm.holds("vda", 1, 2) && vm.holds("vda", 2, 3));
    vm.virsh("snapshot-revert {} halted");
    assert_eq!(vm.state(), "shut off");
    assert!(vm.holds("vda", 1, 1) && vm.holds("vda", 2, 0));
}
