//! Snapshots deleted: leaf, middle, root, with children, live and offline. No content may change.

use virtsnap_tests::xen::{XenGuest, XenSpec};

use crate::{boots, count_on_disks, goes_back, lent, sound, take};

/// Internal ones and their memory go; the others stay what they were.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn internal_snapshots_go_one_by_one() {
    let host = lent!();
    let vm = host.boot(XenSpec::new("vm").disks(&["qcow2", "qcow2"]));
    take(&vm, "one");
    vm.count_on(2);
    let two = take(&vm, "two");
    let two = two..vm.count_on(3);
    // Of a running guest, without its memory.
    let inside = "--diskspec xvda,snapshot=internal --diskspec xvdb,snapshot=internal";
    take(&vm, &format!("three --disk-only {inside}"));
    let memory = memory_file(&vm, "one");
    vm.virsh("snapshot-delete {} one");
    assert_eq!(vm.snapshots(), ["three", "two"]);
    host.ok(&format!("test ! -e {memory}"));
    vm.virsh("snapshot-delete {} three");
    goes_back(&vm, "two", &two);
    vm.virsh("snapshot-delete {} two");
    vm.virsh("destroy {}");
    for target in ["xvda", "xvdb"] {
        let file = vm.disk(target);
        let file = file.to_str().unwrap();
        assert_eq!(host.ok(&format!("qemu-img snapshot -l {file}")).trim(), "", "all are gone");
        host.ok(&format!("qemu-img check -q {file}"));
    }
}

fn memory_file(vm: &XenGuest<'_>, snapshot: &str) -> String {
    let xml = vm.virsh(&format!("snapshot-dumpxml {{}} {snapshot}"));
    let memory = xml.split("<memory ").nth(1).unwrap_or_else(|| panic!("no memory in {xml}"));
    memory.split("file='").nth(1).and_then(|rest| rest.split('\'').next()).unwrap().to_owned()
}

/// Layers are merged under the running guest: the middle, the root, the leaf.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn layers_are_merged_under_a_running_guest() {
    let host = lent!();
    let vm = host.boot(XenSpec::new("vm"));
    for name in ["one", "two", "three"] {
        take(&vm, &format!("{name} --disk-only"));
    }
    let mark = vm.mark();
    vm.virsh("snapshot-delete {} two");
    assert_eq!(vm.snapshots(), ["one", "three"]);
    vm.virsh("snapshot-delete {} one");
    vm.virsh("snapshot-delete {} three");
    assert!(vm.snapshots().is_empty());
    let last = vm.count_on(1);
    assert!(vm.lines(mark).iter().all(|line| !line.starts_with("START")), "it booted");
    let files = [vm.disk("xvda"), vm.disk("xvdb")].map(|file| file.to_str().unwrap().to_owned());
    assert_eq!([vm.source("xvda"), vm.source("xvdb")], files);
    assert_eq!(vm.opened(), files);
    let mark = vm.mark();
    vm.virsh("reboot {}");
    boots(&vm, mark, last..u64::MAX);
    vm.virsh("destroy {}");
    let left = host.ok("ls /root/guests");
    assert_eq!(left.split_whitespace().count(), 2, "{left}");
    vm.check(&files[0]);
}

/// The same without a guest, by qemu-img.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn layers_are_merged_offline() {
    let host = lent!();
    let vm = host.boot(XenSpec::new("vm"));
    take(&vm, "one --disk-only");
    let two = take(&vm, "two --disk-only");
    let two = two..vm.count_on(2);
    take(&vm, "three --disk-only");
    vm.count_on(2);
    vm.virsh("shutdown {}");
    vm.becomes("shut off");
    let last = vm.last_match().unwrap();
    vm.virsh("snapshot-delete {} one");
    vm.virsh("snapshot-delete {} three");
    assert_eq!(vm.snapshots(), ["two"]);
    let count = count_on_disks(&vm);
    assert!(count >= last, "{count} is older than {last}");
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} two --running");
    boots(&vm, mark, two);
    vm.virsh("destroy {}");
    vm.virsh("snapshot-delete {} two");
    vm.check(&vm.source("xvda"));
}

/// A tree of both kinds, and what is left of it.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_mixed_tree_is_taken_down() {
    let host = lent!();
    let vm = host.boot(XenSpec::new("vm"));
    let root = take(&vm, "root");
    let root = root..vm.count_on(3);
    take(&vm, "left --memspec snapshot=external --diskspec xvda,snapshot=external");
    vm.count_on(1);
    take(&vm, "leaf --disk-only");
    goes_back(&vm, "root", &root);
    let right = take(&vm, "right");
    let right = right..vm.count_on(3);
    let tree = vm.virsh("snapshot-list {} --tree");
    let words: Vec<_> = tree.split_whitespace().filter(|word| word.len() > 2).collect();
    assert_eq!(words, ["root", "left", "leaf", "right"]);
    vm.virsh("snapshot-delete {} left --children-only");
    assert_eq!(vm.snapshots(), ["left", "right", "root"]);
    vm.virsh("snapshot-delete {} left --children");
    assert_eq!(vm.snapshots(), ["right", "root"]);
    goes_back(&vm, "right", &right);
    goes_back(&vm, "root", &root);
    vm.virsh("destroy {}");
    vm.virsh("snapshot-delete {} root --children");
    assert!(vm.snapshots().is_empty());
    vm.check(&vm.source("xvda"));
    vm.check(&vm.source("xvdb"));
    sound(&vm);
}
