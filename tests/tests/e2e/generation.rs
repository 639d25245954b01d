//! The generation id (`<genid>`): by another one a guest knows that it went back in time.

use std::collections::BTreeSet;

use virtsnap_tests::{Guest, GuestSpec, World};

/// The ids that an XML document tells.
fn ids(xml: &str) -> Vec<String> {
    let parts = xml.split("<genid>").skip(1);
    parts.filter_map(|part| part.split("</genid>").next()).map(str::to_owned).collect()
}

/// What the guest sees: the daemon and QEMU agree on it.
#[track_caller]
fn seen(vm: &Guest) -> String {
    let told = vm.virsh("qemu-monitor-command {} '{\"execute\":\"query-vm-generation-id\"}'");
    let [live] = &ids(&vm.virsh("dumpxml {}"))[..] else { panic!("one id") };
    assert!(told.contains(&format!("\"guid\":\"{live}\"")), "{live} is not in {told}");
    live.clone()
}

#[track_caller]
fn persistent(vm: &Guest) -> String {
    let [id] = &ids(&vm.virsh("dumpxml {} --inactive"))[..] else { panic!("one id") };
    id.clone()
}

fn boot(world: &World) -> Guest<'_> {
    let vm = world.define(GuestSpec::new("vm"));
    let xml = vm.virsh("dumpxml {}").replace("<memory unit", "<genid/><memory unit");
    let file = world.path("vm.xml");
    std::fs::write(&file, xml).expect("the directory is ours");
    world.virsh.ok(&format!("define {}", file.display()));
    vm.virsh("start {}");
    vm.booted(virtsnap_tests::guest::Mark::start());
    vm
}

/// Each way back, from running: another id each time, and the memory and disks of the moment.
#[test]
fn a_revert_is_seen_in_the_generation_id() {
    let world = World::new();
    let vm = boot(&world);
    let first = seen(&vm);
    assert_eq!(first, persistent(&vm), "a start has the one that is defined");
    let at = vm.count_on(2);
    vm.virsh("snapshot-create-as {} inside");
    let memory = format!("file={},snapshot=external", world.path("memory.save").display());
    vm.virsh(&format!("snapshot-create-as {{}} outside --memspec {memory}"));
    vm.virsh("snapshot-create-as {} disks --disk-only");
    let later = vm.count_on(3);
    let recorded = |name: &str| vm.virsh(&format!("snapshot-dumpxml {{}} {name}"));
    let records = ["inside", "outside", "disks"].map(|name| (name, ids(&recorded(name))));
    assert!(records.iter().all(|(_, ids)| ids.len() == 2 && ids.iter().all(|id| *id == first)));

    let mut before = BTreeSet::from([first.clone()]);
    for (name, how, goes_on) in [
        ("inside", "", true),
        ("inside", "--paused", true),
        ("outside", "", true),
        ("outside", "--paused", true),
        ("inside", "--running", true),
        ("disks", "--running", false),
        ("disks", "--paused", false),
    ] {
        // Whatever it is reverted to lies behind it.
        while vm.last_match().is_none_or(|count| count <= later) {
            vm.count_on(1);
        }
        let mark = vm.mark();
        vm.virsh(&format!("snapshot-revert {{}} {name} {how}"));
        if how == "--paused" {
            assert_eq!(vm.state(), "paused");
            vm.virsh("resume {}");
        }
        assert!(before.insert(seen(&vm)), "{name} {how}: it is told nothing new");
        assert_eq!(persistent(&vm), first, "{name} {how}: of the guest that runs alone");
        let found = if goes_on { vm.back_at(mark) } else { vm.booted(mark) };
        assert!((at..=later).contains(&found), "{name} {how}: {found} is not of {at}");
        for (name, recorded_then) in &records {
            assert_eq!(ids(&recorded(name)), *recorded_then, "the record of {name}");
        }
    }
    // A snapshot of it has the id that the guest knows.
    let now = seen(&vm);
    vm.virsh("snapshot-create-as {} next --disk-only");
    assert_eq!(ids(&recorded("next")), [now, first]);
    vm.never_mismatched();
}

/// A revert that starts nothing tells nobody: the start that follows is of the definition.
#[test]
fn a_start_after_a_revert_has_the_id_that_is_defined() {
    let world = World::new();
    let vm = boot(&world);
    let first = seen(&vm);
    let at = vm.count_on(1);
    vm.virsh("snapshot-create-as {} disks --disk-only");
    let later = vm.count_on(3);
    vm.virsh("snapshot-revert {} disks");
    assert_eq!(vm.state(), "shut off");
    assert_eq!(persistent(&vm), first);
    let mark = vm.mark();
    vm.virsh("start {}");
    assert_eq!(seen(&vm), first);
    let found = vm.booted(mark);
    assert!((at..later).contains(&found), "{found} is not of {at}");
    // What was saved may have run on elsewhere.
    let at = vm.count_on(1);
    let file = world.path("vm.save");
    vm.virsh(&format!("save {{}} {}", file.display()));
    let mut before = BTreeSet::from([first.clone()]);
    let mark = vm.mark();
    world.virsh.ok(&format!("restore {}", file.display()));
    assert!(before.insert(seen(&vm)), "restored");
    assert!(vm.next_match(mark) >= at);
    vm.virsh("managedsave {}");
    let mark = vm.mark();
    vm.virsh("start {}");
    assert!(before.insert(seen(&vm)), "started from a managed save");
    assert!(vm.next_match(mark) >= at);
    assert_eq!(persistent(&vm), first);
    vm.never_mismatched();
}
