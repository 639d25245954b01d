//! What the founding proposals asked for and libvirt never took, on a guest that is off or stands
//! still, which is quick: what its disks hold is read from outside.

use virtsnap_tests::xen::{XenGuest, XenHost, XenSpec};

use crate::{boots, goes_back, lent, take};

/// Both disks, stopped before its first instruction: its device model has the disks open.
#[track_caller]
fn standing<'h>(host: &'h XenHost, formats: &[&str]) -> XenGuest<'h> {
    let vm = host.define(XenSpec::new("vm").disks(formats));
    vm.virsh("start {} --paused");
    vm
}

/// REVERT_DISCARD and REVERT_DELETE_CHILDREN.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_revert_may_give_up_what_came_after() {
    let host = lent!();
    let vm = standing(&host, &["qcow2", "raw"]);
    for target in ["xvda", "xvdb"] {
        vm.write(target, 1, 1);
    }
    vm.virtsnap("create {} one --disk-only");
    for target in ["xvda", "xvdb"] {
        vm.write(target, 1, 2);
    }
    vm.virtsnap("create {} two --disk-only");
    vm.write("xvdb", 2, 3);
    let overlays = [vm.source("xvda"), vm.source("xvdb")];
    let told = vm.virtsnap_refused("revert {} one --discard");
    assert!(told.contains("vm-xvda.one") && told.contains("DELETE_CHILDREN"), "{told}");
    assert_eq!((vm.state(), vm.opened()), ("paused".to_owned(), overlays.to_vec()), "untouched");

    vm.virtsnap("revert {} two --discard");
    assert_eq!((vm.state(), vm.snapshots()), ("shut off".to_owned(), vec!["one".to_owned()]));
    assert!(vm.source("xvdb").ends_with("vm-xvdb.one"), "{}", vm.source("xvdb"));
    assert!(vm.holds("xvdb", 1, 2) && vm.holds("xvdb", 2, 0));
    assert!(!overlays.iter().any(|file| vm.exists(file)));

    vm.virtsnap("create {} three --disk-only");
    vm.virsh("start {} --paused");
    vm.write("xvda", 1, 4);
    vm.virtsnap("revert {} one --discard --delete-children");
    assert!(vm.snapshots().is_empty());
    for target in ["xvda", "xvdb"] {
        assert_eq!(vm.source(target), vm.disk(target).to_str().unwrap());
        assert!(vm.holds(target, 1, 1), "{target}");
    }
    let left = host.ok("ls /root/guests");
    assert_eq!(left.split_whitespace().count(), 2, "{left}");

    // What is below goes, and the snapshot stays.
    for name in ["root", "child", "leaf"] {
        vm.virsh(&format!("snapshot-create-as {{}} {name} --disk-only"));
        vm.write("xvda", 2, 5);
    }
    let overlay = vm.source("xvda");
    vm.virtsnap("revert {} root --delete-children");
    assert_eq!(vm.snapshots(), ["root"]);
    assert!(vm.holds("xvda", 2, 0) && !vm.exists(&overlay));
}

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_snapshot_may_stay_aside() {
    let host = lent!();
    let vm = standing(&host, &["qcow2"]);
    vm.virtsnap("create {} main --disk-only");
    vm.write("xvda", 1, 1);
    vm.virtsnap("create {} aside --disk-only --no-current");
    vm.write("xvda", 1, 2);
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "main");
    vm.virtsnap("create {} next --disk-only");
    let tree = vm.virtsnap("list {} --tree");
    assert_eq!(tree, "main\n  aside\n  next  (current)\n");
    vm.virsh("snapshot-revert {} aside");
    assert!(vm.holds("xvda", 1, 1));
    // One merge takes all of it away.
    vm.virsh("snapshot-delete {} main --children");
    assert!(vm.snapshots().is_empty());
    assert!(vm.holds("xvda", 1, 1));
    assert_eq!(vm.source("xvda"), vm.disk("xvda").to_str().unwrap());
}

/// The file that is left is the one that was asked for, and what was below it goes or stays the
/// user's.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn the_file_that_is_left_is_chosen() {
    let host = lent!();
    let vm = standing(&host, &["qcow2", "raw"]);
    vm.write("xvda", 1, 1);
    vm.write("xvdb", 1, 1);
    vm.virtsnap(
        "create {} one --disk-only --disk xvda,on-delete=overlay --disk xvdb,on-delete=base",
    );
    let xml = vm.virsh("snapshot-dumpxml {} one");
    assert!(xml.contains("<on_delete keep='overlay'/>"), "{xml}");
    let first = vm.source("xvda");
    vm.write("xvda", 2, 2);
    vm.write("xvdb", 2, 2);
    vm.virtsnap("create {} two --disk-only");
    vm.write("xvda", 3, 3);

    // Any client's deletion follows it.
    vm.virsh("snapshot-delete {} one");
    let base = |target| vm.disk(target).to_str().unwrap().to_owned();
    assert_eq!(vm.chain("xvda").last(), Some(&first));
    assert!(vm.exists(&base("xvda")), "the user's own file stays the user's");
    assert_eq!(vm.chain("xvdb").last(), Some(&base("xvdb")));

    let second = vm.source("xvda");
    vm.virtsnap("delete {} two --consolidate --keep overlay");
    assert_eq!(vm.chain("xvda"), std::slice::from_ref(&second), "no name changes");
    assert!(!vm.exists(&first), "what virtsnap made and nothing needs is gone");
    for (mib, value) in [(1, 1), (2, 2), (3, 3)] {
        assert!(vm.holds("xvda", mib, value), "xvda at {mib}");
    }
    assert!(vm.holds("xvdb", 1, 1) && vm.holds("xvdb", 2, 2));
    assert!(vm.opened().contains(&second));
    vm.virsh("destroy {}");
    vm.check(&second);

    // Where two stand on it, it cannot be.
    vm.virtsnap("create {} fork --disk-only");
    vm.virtsnap("create {} branch --disk-only");
    vm.virsh("snapshot-revert {} fork");
    let told = vm.virtsnap_refused("delete {} fork --consolidate");
    assert!(told.contains("2 images stand on it"), "{told}");
    assert_eq!(vm.snapshots(), ["branch", "fork"]);
    vm.virtsnap("delete {} fork");
    vm.virtsnap("delete {} branch");
}

/// What is cheaper: a small overlay goes down, a large one takes what little is below.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_merge_goes_the_cheaper_way() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm").disks(&["qcow2"]));
    // There is no difference worth a thought in less.
    host.ok(&format!("qemu-img resize -q {} 32M", vm.disk("xvda").display()));
    vm.virtsnap("create {} one --disk-only");
    let small = vm.source("xvda");
    vm.write("xvda", 1, 1);
    vm.virtsnap("create {} two --disk-only");
    let large = vm.source("xvda");
    vm.io("xvda", "write -P 2 8M 20M");
    vm.virsh("start {} --paused");
    vm.virsh("snapshot-delete {} two");
    assert_eq!(vm.source("xvda"), large);
    assert!(!vm.exists(&small));
    assert!(vm.holds("xvda", 1, 1) && vm.holds("xvda", 25, 2));
    // The lowest file is the user's: it is what is left, whatever it costs.
    vm.virsh("snapshot-delete {} one");
    assert_eq!(vm.source("xvda"), vm.disk("xvda").to_str().unwrap());
    assert!(vm.holds("xvda", 1, 1) && vm.holds("xvda", 25, 2));
}

/// Where files go, and what is asked before a guest is given up, says the domain itself.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_policy_places_files_and_asks_before_a_guest_is_given_up() {
    let host = lent!();
    let vm = standing(&host, &["qcow2"]);
    let set = |policy: &str| {
        vm.virsh(&format!(
            "metadata {{}} urn:virtsnap:policy:1 --key virtsnap --set \"<policy>{policy}</policy>\" \
             --live --config"
        ))
    };
    set("<create disks='internal'/>");
    vm.virsh("snapshot-create-as {} inside --disk-only");
    assert_eq!(vm.source("xvda"), vm.disk("xvda").to_str().unwrap());
    assert_eq!(vm.inside(&vm.disk("xvda")), ["inside"]);
    set("<revert confirm='restart'/>");
    vm.write("xvda", 1, 1);
    let told = vm.refused("snapshot-revert {} inside");
    assert!(told.contains("policy"), "{told}");
    assert!(vm.holds("xvda", 1, 1) && vm.state() == "paused", "nothing was touched");
    // virsh repeats with FORCE what was refused as risky.
    vm.virsh("snapshot-revert {} inside --force");
    assert_eq!(vm.state(), "shut off");
    assert!(vm.holds("xvda", 1, 0));
}

/// Memory is loaded into the machine that it is of. Whoever has another one by now is told how it
/// differs, where the policy asks, and gives it up.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_changed_machine_is_named() {
    let host = lent!();
    let vm = host.boot(XenSpec::new("vm").disks(&["qcow2"]));
    let policy = "<policy><revert confirm='restart'/></policy>";
    vm.virsh(&format!(
        "metadata {{}} urn:virtsnap:policy:1 --key virtsnap --set \"{policy}\" --live --config"
    ));
    let before = take(&vm, "live");
    vm.virsh("destroy {}");
    let (mark, last) = (vm.mark(), vm.last_match().unwrap());
    vm.redefine(|xml| xml.replace("98304<", "114688<"));
    vm.virsh("start {}");
    boots(&vm, mark, last..last + 2);
    let told = vm.refused("snapshot-revert {} live");
    assert!(told.contains("memory is '114688 KiB' in one and '98304 KiB'"), "{told}");
    assert!(vm.virsh("dominfo {}").contains("114688"));
    vm.count_on(1);
    goes_back(&vm, "live --force", &(before..last + 2));
    assert!(!vm.virsh("dumpxml {}").contains("114688"), "the machine is the snapshot's again");
}
