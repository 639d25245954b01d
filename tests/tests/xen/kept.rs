//! What a snapshot keeps of a domain beside its disks, which of them it takes, and how it is told: of
//! guests that are off or stand still.

use std::os::unix::fs::PermissionsExt as _;

use virtsnap_tests::virsh::finish;
use virtsnap_tests::xen::{GUESTS, XenSpec};

use crate::lent;

fn describes(xml: &str, description: &str) -> bool {
    xml.contains(&format!("<description>{description}</description>"))
}

/// Both definitions are kept, and both come back; the domain stays the one it is.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_snapshot_keeps_both_definitions_and_its_place_in_the_tree() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm"));
    let uuid = vm.virsh("domuuid {}");
    vm.write("xvda", 1, 1);
    vm.virsh("desc {} --config first");
    vm.virsh("snapshot-create-as {} off");
    let record = vm.virsh("snapshot-dumpxml {} off");
    for part in [
        "<state>shutoff</state>",
        "<creationTime>",
        "<domain type='xen'>",
        "<kernel>",
        "<disk name='xvda' snapshot='internal'/>",
    ] {
        assert!(record.contains(part), "no {part} in\n{record}");
    }
    vm.redefine(|xml| xml.replace("first", "second").replace(">1</vcpu>", ">2</vcpu>"));
    assert!(vm.virsh("dumpxml {}").contains(">2</vcpu>"));
    vm.write("xvda", 1, 2);

    vm.virsh("start {} --paused");
    vm.virsh("desc {} --live now");
    vm.virsh("desc {} --config later");
    // Who is current is the parent, whatever was said of it; nor is a definition taken from there.
    let asked = host.file(
        "asked.xml",
        "<domainsnapshot><name>on</name><parent><name>nobody</name></parent>\
         <domain type='xen'><name>other</name></domain></domainsnapshot>",
    );
    vm.virsh(&format!("snapshot-create {{}} {asked} --disk-only"));
    assert_eq!(vm.virsh("snapshot-parent {} on").trim(), "off");
    let record = vm.virsh("snapshot-dumpxml {} on");
    assert!(record.contains("<state>disk-snapshot</state>"), "{record}");
    let (live, persistent) = record.split_once("<inactiveDomain").expect("both definitions");
    assert!(describes(live, "now") && describes(persistent, "later"), "{record}");
    assert!(live.contains("<name>vm</name>") && !record.contains("<name>other</name>"));
    // <disks> has the new names, <domain> the old.
    let (disks, domain) = live.split_once("<domain ").expect("a definition");
    let old = format!("<source file='{}'/>", vm.disk("xvda").display());
    let new = format!("<source file='{}'/>", vm.source("xvda"));
    assert!(disks.contains(&new) && !disks.contains(&old), "{record}");
    assert!(domain.contains(&old) && !domain.contains(&new), "{record}");

    vm.virsh("desc {} --live other");
    vm.virsh("desc {} --config another");
    vm.write("xvda", 1, 3);
    vm.virsh("snapshot-create-as {} leaf --disk-only");
    vm.virsh("snapshot-revert {} on --paused");
    assert!(describes(&vm.virsh("dumpxml {}"), "now"));
    assert!(describes(&vm.virsh("dumpxml {} --inactive"), "later"));
    assert!(vm.holds("xvda", 1, 2));
    // The overlay of a revert has a new name, and is told of until a snapshot stands on it.
    let branch = format!("<source file='{}'/>", vm.source("xvda"));
    assert_ne!(branch, new);
    let told = || vm.virsh("snapshot-dumpxml {} on");
    let (_, overlays) = told().split_once("<revertDisks>").map(own).expect("it is told");
    assert!(overlays.contains(&branch), "{overlays}");
    vm.virsh("snapshot-create-as {} next --disk-only");
    assert!(!told().contains("<revertDisks>"), "it is the child's layer now");
    assert_eq!(vm.virsh("snapshot-parent {} next").trim(), "on");

    vm.virsh("snapshot-revert {} off");
    let now = vm.virsh("dumpxml {}");
    assert!(describes(&now, "first") && now.contains(">1</vcpu>"), "{now}");
    assert!(vm.holds("xvda", 1, 1));
    assert_eq!((vm.state(), vm.virsh("domuuid {}")), ("shut off".to_owned(), uuid));
}

fn own((before, after): (&str, &str)) -> (String, String) {
    (before.to_owned(), after.to_owned())
}

/// `snapshot=` of a disk, what is taken where nobody says anything, and disks named by their paths.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn the_domain_says_which_disks_are_taken() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm").disks(&["qcow2", "qcow2", "qcow2", "qcow2", "raw"]));
    vm.redefine(|mut xml| {
        for (target, how) in [("xvdb", "no"), ("xvdc", "internal"), ("xvdd", "external")] {
            let at = xml.find(&format!("vm-{target}.qcow2")).expect("the disk");
            let disk = xml[..at].rfind("<disk ").expect("its element");
            xml.insert_str(disk + 5, &format!(" snapshot='{how}'"));
        }
        let xvde = "<target dev='xvde' bus='xen'/>";
        xml.replace(xvde, &format!("{xvde}<readonly/>"))
    });
    let targets = ["xvda", "xvdb", "xvdc", "xvdd"];
    for target in targets {
        vm.write(target, 1, 1);
    }
    vm.virsh("snapshot-create-as {} s --disk-only");
    let record = vm.virsh("snapshot-dumpxml {} s");
    for (target, how) in [
        ("xvda", "external"),
        ("xvdb", "no"),
        ("xvdc", "internal"),
        ("xvdd", "external"),
        ("xvde", "no"),
    ] {
        let entry = format!("<disk name='{target}' snapshot='{how}'");
        assert!(record.contains(&entry), "{entry} is not in {record}");
    }
    for target in targets {
        vm.write(target, 1, 2);
    }
    vm.virsh("snapshot-revert {} s");
    assert_eq!(vm.source("xvdb"), vm.disk("xvdb").to_str().unwrap());
    let bytes = targets.map(|target| u8::from(vm.holds(target, 1, 2)));
    assert_eq!(bytes, [0, 1, 0, 0], "only the one that was left out keeps what was written since");
    assert!(["xvda", "xvdc", "xvdd"].iter().all(|target| vm.holds(target, 1, 1)));

    // What is said of a disk of the snapshot is stronger; its path names it as well.
    let others = "--diskspec xvda,snapshot=no --diskspec xvdc,snapshot=no --diskspec xvdd,snapshot=no \
                  --diskspec xvde,snapshot=no";
    let path = vm.source("xvdb");
    vm.virsh(&format!(
        "snapshot-create-as {{}} t --disk-only {others} --diskspec {path},snapshot=external"
    ));
    assert!(vm.source("xvdb").ends_with("vm-xvdb.t"));
    // Debian's device model serves no disk that is read-only.
    vm.redefine(|xml| xml.replace("<readonly/>", ""));
    // Inside alone, of a guest that stands there without memory.
    vm.virsh("start {} --paused");
    vm.write("xvdc", 2, 7);
    let inside = others.replace("xvdc,snapshot=no", "xvdc,snapshot=internal");
    vm.virsh(&format!(
        "snapshot-create-as {{}} u --disk-only {inside} --diskspec xvdb,snapshot=no"
    ));
    vm.write("xvdc", 2, 8);
    vm.write("xvda", 2, 8);
    vm.virsh("snapshot-revert {} u --paused");
    assert!(vm.holds("xvdc", 2, 7) && vm.holds("xvda", 2, 8));
    // None at all is no snapshot.
    let told = vm.refused(&format!(
        "snapshot-create-as {{}} v --disk-only {others} --diskspec xvdb,snapshot=no"
    ));
    assert!(told.contains("nothing is selected"), "{told}");
    for disks in [
        format!("--diskspec xvda --diskspec {}", vm.source("xvda")),
        String::from("--diskspec xvda --diskspec xvda"),
    ] {
        let told = vm.refused(&format!("snapshot-create-as {{}} v --disk-only {disks}"));
        assert!(told.contains("xvda"), "{told}");
    }
    assert_eq!(vm.snapshots(), ["s", "t", "u"]);
}

/// As a power failure would find them; and in the other format that overlays may have, which Debian's
/// device model does not know.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_guest_is_halted_and_goes_on_in_the_other_format() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm").disks(&["qcow2"]));
    vm.write("xvda", 1, 1);
    let base = vm.source("xvda");
    vm.virsh("snapshot-create-as {} other --disk-only --diskspec xvda,driver=qed");
    let overlay = vm.source("xvda");
    assert!(host.ok(&format!("qemu-img info {overlay}")).contains("file format: qed"));
    assert!(vm.holds("xvda", 1, 1));
    vm.write("xvda", 1, 2);
    let told = vm.refused("snapshot-create-as {} inside --diskspec xvda,snapshot=internal");
    assert!(told.contains("qed"), "{told}");
    assert!(vm.refused("start {}").contains("of format qed"));
    vm.virsh("snapshot-delete {} other");
    assert_eq!(vm.source("xvda"), base);
    assert!(vm.holds("xvda", 1, 2));

    vm.virsh("start {} --paused");
    vm.write("xvda", 1, 3);
    let told = vm.refused("snapshot-create-as {} live --disk-only --diskspec xvda,driver=qed");
    assert!(told.contains("qed"), "{told}");
    assert_eq!((vm.source("xvda"), vm.snapshots().len()), (base, 0));
    vm.virsh("snapshot-create-as {} halted --disk-only --halt");
    assert_eq!(vm.state(), "shut off");
    vm.write("xvda", 1, 4);
    vm.virsh("snapshot-revert {} halted");
    assert_eq!(vm.state(), "shut off");
    assert!(vm.holds("xvda", 1, 3));
}

/// Names that nobody gave, records that are edited, forgotten and told again, and what tells of them.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn records_are_made_up_edited_forgotten_and_told_again() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm").disks(&["qcow2"]));
    // One virsh, so that they follow each other at once.
    vm.virsh("snapshot-create {} --disk-only; snapshot-create vm --disk-only; snapshot-create vm");
    let names = vm.snapshots();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.iter().all(|name| name.starts_with(|digit: char| digit.is_ascii_digit())));
    vm.virsh(&format!(
        "snapshot-delete {{}} {} --children",
        host.virsh.ok("snapshot-list vm --name --roots").trim()
    ));

    vm.write("xvda", 1, 1);
    vm.virsh("snapshot-create-as {} root 'the first one'");
    vm.virsh("snapshot-create-as {} leaf");
    let described = vm.virsh("snapshot-info {} root");
    for (field, value) in [
        ("Name:", "root"),
        ("Domain:", "vm"),
        ("Current:", "no"),
        ("State:", "shutoff"),
        ("Location:", "internal"),
        ("Parent:", "-"),
        ("Children:", "1"),
        ("Descendants:", "1"),
        ("Metadata:", "yes"),
    ] {
        let line = described.lines().find(|line| line.starts_with(field)).unwrap_or_default();
        assert_eq!(line.trim_start_matches(field).trim(), value, "{field} in\n{described}");
    }
    let editor = host.file("editor", "#!/bin/sh\nsed -i 's/the first one/the oldest/' \"$1\"\n");
    std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut edit = host.virsh.command("snapshot-edit vm root");
    let outcome = finish(edit.env("EDITOR", &editor), "snapshot-edit");
    assert!(outcome.success, "{}{}", outcome.stdout, outcome.stderr);
    assert!(describes(&vm.virsh("snapshot-dumpxml {} root"), "the oldest"));
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "leaf");

    // Two of one name, in the tree and in the image.
    let told = vm.refused("snapshot-create-as {} root");
    assert!(told.contains("already"), "{told}");
    vm.virsh("snapshot-delete {} leaf --metadata");
    assert_eq!(vm.inside(&vm.disk("xvda")), ["root", "leaf"]);
    let told = vm.refused("snapshot-create-as {} leaf");
    assert!(told.contains("leaf") && told.contains("xvda"), "{told}");

    // Held against the grammar only when that is asked.
    let odd =
        host.file("odd.xml", "<domainsnapshot><name>odd</name><color>red</color></domainsnapshot>");
    let told = vm.refused(&format!("snapshot-create {{}} {odd} --validate"));
    assert!(told.contains("color"), "{told}");
    vm.virsh(&format!("snapshot-create {{}} {odd}"));

    // What is kept of a domain that goes comes back with its definition, parents first; what
    // nobody here knows stays where it was.
    let domain = vm.virsh("dumpxml {} --inactive --security-info");
    let ours = "<extra xmlns='urn:test'><word>kept</word></extra>";
    let domain = domain.replace("</name>", &format!("</name><metadata>{ours}</metadata>"));
    let record = vm.virsh("snapshot-dumpxml {} root --security-info");
    let record =
        record.replace("<name>vm</name>", &format!("<name>vm</name><metadata>{ours}</metadata>"));
    let [domain, record] = [host.file("vm.xml", &domain), host.file("root.xml", &record)];
    vm.virsh("undefine {} --snapshots-metadata");
    host.virsh.ok(&format!("define {domain}"));
    assert!(vm.snapshots().is_empty());
    vm.write("xvda", 1, 2);
    vm.virsh(&format!("snapshot-create {{}} {record} --redefine --current --validate"));
    assert!(vm.virsh("snapshot-dumpxml {} root").contains("<word>kept</word>"));
    vm.virsh("snapshot-revert {} root");
    assert!(vm.holds("xvda", 1, 1));
    assert!(vm.virsh("dumpxml {}").contains("<word>kept</word>"));
    assert_eq!(vm.source("xvda"), format!("{GUESTS}/vm-xvda.qcow2"));
}
