//! Domains: defined, started, stopped in every way, and what is told of them.

use virt::connect::Connect;
use virt::domain::Domain;
use virt::sys;
use virtsnap_tests::guest::Mark;
use virtsnap_tests::xen::{Kind, XenSpec};

use crate::{boots, goes_back, lent, sound, take};

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_pv_guest_lives_as_virsh_says() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm"));
    assert_eq!(vm.state(), "shut off");
    assert_eq!(host.virsh.lines("list --all --name"), ["vm"]);
    vm.virsh("start {}");
    vm.booted(Mark::start());
    assert_eq!(host.virsh.lines("list --name"), ["vm"]);
    assert!(host.ok("xl list").lines().any(|line| line.starts_with("vm ")), "xl sees it too");
    let told = vm.virsh("dominfo {}");
    assert!(told.contains("OS Type:        linux"), "{told}");
    assert!(told.contains("Max memory:     98304 KiB"), "{told}");
    let told = vm.virsh("vcpuinfo {}");
    let value = |name: &str| {
        let line = told.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} {told}")).trim().to_owned()
    };
    assert_eq!(["VCPU:", "CPU:", "CPU Affinity:"].map(value), ["0", "0", "y"], "{told}");
    assert!(["running", "blocked"].contains(&value("State:").as_str()), "{told}");
    assert!(value("CPU time:").trim_end_matches('s').parse::<f64>().unwrap() > 0.0, "{told}");
    assert_eq!(vm.virsh("vcpucount {} --live").trim(), "1");
    let told = vm.virsh("domstats {} --cpu-total --vcpu");
    assert!(told.contains("vcpu.0.time=") && !told.contains("cpu.user"), "{told}");
    let told = vm.refused("nodecpustats");
    assert!(told.contains("not supported"), "{told}");
    let id: u32 = vm.virsh("domid {}").trim().parse().unwrap();
    let xml = vm.virsh("dumpxml {}");
    assert!(xml.contains(&format!("<domain type='xen' id='{id}'")), "{xml}");
    assert_eq!(vm.source("xvda"), vm.disk("xvda").to_str().unwrap());
    assert_eq!(vm.opened().len(), 2);

    vm.virsh("suspend {}");
    assert_eq!(vm.state(), "paused");
    let (mark, last) = (vm.mark(), vm.last_match().unwrap());
    vm.virsh("resume {}");
    assert_eq!(vm.state(), "running");
    assert!(vm.next_match(mark) > last);

    let mark = vm.mark();
    vm.virsh("reboot {}");
    boots(&vm, mark, last..u64::MAX);
    vm.becomes("running");
    assert_ne!(vm.virsh("domid {}").trim(), id.to_string(), "a new domain of Xen's");

    vm.virsh("shutdown {}");
    vm.becomes("shut off");
    let (mark, last) = (vm.mark(), vm.last_match().unwrap());
    vm.virsh("start {}");
    boots(&vm, mark, last..u64::MAX);
    vm.virsh("destroy {}");
    assert_eq!(vm.state(), "shut off");
    assert!(!host.ok("xl list").lines().any(|line| line.starts_with("vm ")));
    vm.virsh("undefine {}");
    assert!(host.virsh.lines("list --all --name").is_empty());
}

/// Undefined while it runs it leaves when it ends, also for a daemon that starts then; its snapshots
/// are there again with its definition.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn snapshots_wait_for_a_domain_that_was_undefined() {
    let mut host = lent!();
    let vm = host.define(XenSpec::new("vm"));
    vm.virsh("snapshot-create-as {} s --disk-only");
    let definition = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(definition.path(), vm.virsh("dumpxml {}")).unwrap();
    vm.virsh("start {}");
    vm.virsh("undefine {}");
    assert_eq!(vm.snapshots(), ["s"]);
    vm.virsh("destroy {}");
    assert!(host.virsh.lines("list --all --name").is_empty());
    drop(vm);
    host.kill();
    host.start();
    assert!(host.virsh.lines("list --all --name").is_empty());
    host.virsh.ok(&format!("define {}", definition.path().display()));
    let vm = host.guest(XenSpec::new("vm"));
    assert_eq!(vm.snapshots(), ["s"]);
    vm.virsh("undefine {} --snapshots-metadata");
}

/// Save and restore, with and without a file's name, also across the daemon.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_saved_guest_goes_on() {
    let mut host = lent!();
    let vm = host.boot(XenSpec::new("vm"));
    vm.virsh("save {} /root/guests/vm.save");
    assert_eq!(vm.state(), "shut off");
    let (mark, last) = (vm.mark(), vm.last_match().unwrap());
    host.virsh.ok("restore /root/guests/vm.save");
    assert!(vm.next_match(mark) >= last);
    vm.virsh("snapshot-create-as {} disks --disk-only");
    let early = vm.count_on(2);
    // No room is said before anything is written.
    host.ok("mkdir -p /root/small && mount -t tmpfs -o size=8m tmpfs /root/small");
    let told = vm.refused("snapshot-create-as {} full --memspec file=/root/small/memory");
    let left = host.ok("ls /root/small; umount /root/small");
    assert!(told.contains("/root/small") && told.contains("8 MiB are free"), "{told}");
    assert_eq!((left, vm.state()), (String::new(), "running".to_owned()));
    vm.virsh("managedsave {}");
    assert_eq!(vm.state(), "shut off");
    let (mark, last) = (vm.mark(), vm.last_match().unwrap());
    // Its memory never meets other disks unasked, with the code on which clients offer FORCE; and
    // a snapshot has it where that is wanted.
    let connection = Connect::open(Some(&host.virsh.uri)).unwrap();
    let domain = connection.lookup_domain_by_name("vm").unwrap();
    let disks = Domain::lookup_snapshot_by_name(&domain, "disks", 0).unwrap();
    let refused = disks.revert(0).unwrap_err();
    assert_eq!(refused.code().to_raw(), sys::VIR_ERR_SNAPSHOT_REVERT_RISKY, "{refused:?}");
    assert!(refused.message().contains("managed save"), "{refused:?}");
    vm.virsh("snapshot-create-as {} saved --memspec snapshot=external");
    drop((disks, domain, connection, vm));
    host.kill();
    host.start();
    let vm = host.guest(XenSpec::new("vm"));
    vm.virsh("start {}");
    assert!(vm.next_match(mark) >= last);
    assert!(vm.lines(mark).iter().all(|line| !line.starts_with("START")), "it booted");
    let late = vm.count_on(3);
    goes_back(&vm, "saved", &(early..late));
    vm.virsh("managedsave {}");
    vm.virsh("snapshot-revert {} disks --force");
    assert_eq!(vm.state(), "shut off");
    assert!(vm.virsh("dominfo {}").contains("Managed save:   no"));
    sound(&vm);
}

/// A guest and its daemon need not live equally long.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_killed_daemon_finds_its_guests_again() {
    let mut host = lent!();
    let vm = host.boot(XenSpec::new("vm"));
    vm.virsh("snapshot-create-as {} one");
    drop(vm);
    host.kill();
    host.start();
    let vm = host.guest(XenSpec::new("vm"));
    assert_eq!((vm.state(), vm.snapshots()), ("running".to_owned(), vec!["one".to_owned()]));
    vm.next_match(vm.mark());
    // One that ends while no daemon is there.
    drop(vm);
    host.kill();
    host.ok("xl destroy vm");
    host.start();
    let vm = host.guest(XenSpec::new("vm"));
    assert_eq!(vm.state(), "shut off");
    sound(&vm);
    // One that another ends, and nothing else goes on.
    vm.virsh("start {} --paused");
    drop(vm);
    host.kill();
    host.start();
    host.ok("xl destroy vm");
    host.guest(XenSpec::new("vm")).becomes("shut off");
}

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_pvh_guest_goes_back() {
    lives_and_goes_back(Kind::Pvh);
}

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn an_hvm_guest_goes_back() {
    lives_and_goes_back(Kind::Hvm);
}

fn lives_and_goes_back(kind: Kind) {
    let host = lent!();
    let vm = host.boot(XenSpec::new("vm").kind(kind));
    let one = take(&vm, "one");
    let end = vm.count_on(3);
    goes_back(&vm, "one", &(one..end));
    vm.virsh("snapshot-delete {} one");
    assert!(vm.snapshots().is_empty());
    let last = vm.count_on(1);
    vm.virsh("destroy {}");
    let mark = vm.mark();
    vm.virsh("start {}");
    boots(&vm, mark, last..u64::MAX);
}
