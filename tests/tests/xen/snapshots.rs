//! Snapshots taken and reverted to: memory and disks of one moment, in every way of keeping them.

use virtsnap_tests::guest::Mark;
use virtsnap_tests::xen::XenSpec;

use crate::{boots, count_on_disks, goes_back, lent, sound, take};

const EXTERNAL: &str = "--memspec snapshot=external --diskspec xvda,snapshot=external \
    --diskspec xvdb,snapshot=external";

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_full_snapshot_is_gone_back_to_from_any_state_to_any() {
    let host = lent!();
    let vm = host.boot(XenSpec::new("vm"));
    let first = take(&vm, "first");
    let xml = vm.virsh("snapshot-dumpxml {} first");
    assert!(xml.contains("<memory snapshot='external'"), "{xml}");
    assert!(xml.contains("<disk name='xvda' snapshot='internal'"), "{xml}");
    assert!(xml.contains("<disk name='xvdb' snapshot='external'"), "{xml}");
    let first = first..vm.count_on(3);
    let second = take(&vm, &format!("second {EXTERNAL}"));
    assert!(vm.source("xvda").ends_with(".second") && vm.source("xvdb").ends_with(".second"));
    assert_eq!(vm.opened(), [vm.source("xvda"), vm.source("xvdb")]);
    let second = second..vm.count_on(3);

    // From running, paused and off; to running and to paused.
    goes_back(&vm, "first", &first);
    assert_eq!(vm.virsh("snapshot-current --name {}").trim(), "first");
    vm.virsh("snapshot-revert {} second --paused");
    assert_eq!(vm.state(), "paused");
    goes_back(&vm, "second --running", &second);
    vm.virsh("suspend {}");
    goes_back(&vm, "first --paused", &first);
    vm.virsh("destroy {}");
    goes_back(&vm, "second", &second);
    assert_eq!(vm.opened(), [vm.source("xvda"), vm.source("xvdb")]);
    let tree = vm.virsh("snapshot-list {} --tree");
    assert_eq!(tree.split_whitespace().collect::<Vec<_>>(), ["first", "|", "+-", "second"]);
    vm.virsh("destroy {}");
    vm.check(&vm.source("xvda"));
    vm.check(&vm.source("xvdb"));
}

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_paused_guest_a_live_one_and_one_that_is_stopped_for_it() {
    let host = lent!();
    let vm = host.boot(XenSpec::new("vm"));
    let live = take(&vm, &format!("live --live {EXTERNAL}"));
    assert_eq!(vm.state(), "running");
    let live = live..vm.count_on(4);

    // A guest takes part when its memory is saved; its disks need nobody.
    vm.virsh("suspend {}");
    let refusal = vm.refused("snapshot-create-as {} asleep");
    assert!(refusal.contains("resume it") && refusal.contains("DISK_ONLY"), "{refusal}");
    let layer = vm.source("xvda");
    vm.virsh("snapshot-create-as {} asleep --disk-only");
    assert_eq!(vm.state(), "paused");
    assert_ne!((vm.source("xvda"), vm.snapshots().len()), (layer, 1));
    let mark = vm.mark();
    vm.virsh("resume {}");
    vm.next_match(mark);
    sound(&vm);

    let halted = take(&vm, "halted --halt");
    vm.becomes("shut off");
    let halted = halted..vm.last_match().unwrap() + 2;
    goes_back(&vm, "halted --running", &halted);
    vm.count_on(2);
    vm.virsh("snapshot-revert {} live --paused");
    assert_eq!(vm.state(), "paused");
    goes_back(&vm, "halted", &halted);
    vm.count_on(2);
    goes_back(&vm, "live", &live);
}

/// Without memory, of a guest that runs and of one that does not; to such a one a guest boots.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn disks_alone_go_back_too() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm"));
    vm.virsh("snapshot-create-as {} empty");
    vm.virsh("start {}");
    vm.booted(Mark::start());
    let told = vm.refused("snapshot-create-as {} quiet --disk-only --quiesce");
    assert!(told.contains("agent"), "{told}");
    let running = take(&vm, "running --disk-only");
    let running = running..vm.count_on(3);
    vm.virsh("shutdown {}");
    vm.becomes("shut off");
    let off = vm.last_match().unwrap();
    vm.virsh("snapshot-create-as {} off --disk-only");
    assert!(vm.source("xvda").ends_with(".off") && vm.source("xvdb").ends_with(".off"));
    let off = off..off + 3;
    let mark = vm.mark();
    vm.virsh("start {}");
    boots(&vm, mark, off.clone());
    vm.count_on(3);

    vm.virsh("snapshot-revert {} off");
    assert_eq!(vm.state(), "shut off");
    let found = count_on_disks(&vm);
    assert!(off.contains(&found), "{found} is not of {off:?}");
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} running --running");
    boots(&vm, mark, running);
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} empty --running");
    boots(&vm, mark, 0..1);
    vm.virsh("destroy {}");
    vm.check(&vm.source("xvda"));
}

/// Which files a guest gets that is started again, in each way.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn after_an_external_snapshot_the_layers_are_used() {
    let host = lent!();
    let vm = host.boot(XenSpec::new("vm"));
    let one = take(&vm, "one --disk-only");
    let layers = [vm.source("xvda"), vm.source("xvdb")];
    assert!(layers.iter().all(|layer| layer.ends_with(".one")), "{layers:?}");
    let written = vm.count_on(3);
    let mark = vm.mark();
    vm.virsh("reboot {}");
    boots(&vm, mark, written..u64::MAX);
    assert_eq!((vm.opened(), [vm.source("xvda"), vm.source("xvdb")]), (layers.to_vec(), layers));
    let written = vm.count_on(2);
    vm.virsh("destroy {}");
    let mark = vm.mark();
    vm.virsh("start {}");
    boots(&vm, mark, written..u64::MAX);
    assert!(vm.opened().iter().all(|file| file.ends_with(".one")));
    // The files below are what they were.
    let below = vm.disk("xvdb");
    let below = vm.count_on_disk(below.to_str().unwrap());
    assert!((one..written).contains(&below), "{below} is not of the snapshot at {one}");
}

/// The negative control of this whole directory: what is said of memory and disks of two moments.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn memory_on_disks_of_another_moment_is_seen() {
    let host = lent!();
    let vm = host.boot(XenSpec::new("vm").disks(&["qcow2", "qcow2"]));
    take(&vm, "one");
    vm.count_on(3);
    vm.virsh("save {} /root/guests/vm.save");
    sound(&vm);
    // As a revert that forgot about memory.
    let disk = vm.disk("xvda");
    host.ok(&format!("qemu-img snapshot -a one {}", disk.display()));
    let mark = vm.mark();
    host.virsh.ok("restore /root/guests/vm.save");
    let said = vm.said(mark, "MISMATCH");
    assert!(said.contains("on xvda") || said.contains("on /dev/xvda"), "{said}");
}
