//! A guest's memory on its way to a file: watched, aborted, and given up for other reasons. What
//! writes it, libxl's helper, is stopped half way, and so nothing is a matter of luck.

use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use virtsnap_tests::guest::Mark;
use virtsnap_tests::host;
use virtsnap_tests::virsh::Outcome;
use virtsnap_tests::xen::{XenGuest, XenHost, XenSpec};

use crate::{lent, sound};

const CREATE: &str =
    "snapshot-create-as vm s --memspec snapshot=external --diskspec xvda,snapshot=external";

/// Lets a client ask for that, and stops libxl's helper as soon as it has written so many MiB; gives
/// the helper's process.
#[track_caller]
fn hold(host: &XenHost, mib: u32) -> String {
    let pid = host.ok(&format!(
        "for n in $(seq 3000); do
            found=$(grep -lsx libxl-save-help /proc/[0-9]*/comm) && break
            busybox sleep 0.02
        done
        pid=${{found#/proc/}} pid=${{pid%/comm}}
        kill -STOP $pid || exit
        until awk '$1 == \"pos:\" && $2 >= {mib} * 1048576 {{ there = 1 }} END {{ exit !there }}' \
            /proc/$pid/fdinfo/*
        do kill -CONT $pid && busybox sleep 0.05 && kill -STOP $pid || exit
        done
        echo $pid"
    ));
    pid.trim().to_owned()
}

/// Nothing is left of it, and the guest counts on, from where it was.
#[track_caller]
fn goes_on_as_if_nothing_had_been(vm: &XenGuest<'_>, mark: Mark) {
    let last = vm.last_match_before(mark).unwrap();
    let after = vm.mark();
    vm.reach_after(after, last + 2);
    assert!(vm.lines(mark).iter().all(|line| !line.starts_with("START")), "it booted");
    assert!(vm.snapshots().is_empty());
    let left = vm.host.ok("ls -A /root/guests");
    assert_eq!(left.split_whitespace().count(), 2, "{left}");
}

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_save_is_watched_and_aborted() {
    let host = lent!();
    let vm = host.boot(XenSpec::new("vm"));
    let told = vm.refused("domjobabort {}");
    assert!(told.contains("no job is active"), "{told}");
    for (line, operation) in [(CREATE, "Snapshot"), ("managedsave vm", "Save")] {
        let mark = vm.mark();
        let outcome = thread::scope(|scope| {
            let client = scope.spawn(|| host.virsh.run(line));
            let pid = hold(&host, 10);
            let told = vm.virsh("domjobinfo {}");
            let value = |name: &str| {
                let line = told.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_else(|| panic!("no {name} {told}")).trim().to_owned()
            };
            assert_eq!([value("Job type:"), value("Operation:")], ["Unbounded", operation]);
            assert_eq!(value("Memory total:"), "96.000 MiB", "{told}");
            let done: f64 = value("Memory processed:").trim_end_matches(" MiB").parse().unwrap();
            assert!((10.0..96.0).contains(&done), "{told}");
            vm.virsh("domjobabort {}");
            host.ok(&format!("kill -CONT {pid}"));
            joined(client)
        });
        assert!(!outcome.success && outcome.stderr.contains("abort"), "{outcome:?}");
        assert_eq!(vm.state(), "running");
        goes_on_as_if_nothing_had_been(&vm, mark);
    }
    assert!(vm.virsh("dominfo {}").contains("Managed save:   no"));
    // What it came to is told when it is over.
    vm.virsh("snapshot-create-as {} s");
    let told = vm.virsh("domjobinfo {} --completed");
    assert!(told.contains("Completed") && told.contains("Memory processed:"), "{told}");
    sound(&vm);
}

/// It was asked to stand still for a save that was given up before it did.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_guest_that_takes_part_too_late_goes_on() {
    let host = lent!();
    let vm = host.boot(XenSpec::new("vm"));
    let mark = vm.mark();
    let outcome = thread::scope(|scope| {
        let client = scope.spawn(|| host.virsh.run(CREATE));
        let pid = hold(&host, 1);
        vm.virsh("domjobabort {}");
        host.ok(&format!("kill -CONT {pid}"));
        joined(client)
    });
    assert!(!outcome.success, "{outcome:?}");
    goes_on_as_if_nothing_had_been(&vm, mark);
    // As if it had not listened before: nobody saves it now.
    host.ok("xenstore-write /local/domain/$(xl domid vm)/control/shutdown suspend");
    host::wait("the guest to do as it was asked", 60, || {
        let log = host.run("grep -c 'a save that was given up' /root/virtsnap/log").stdout;
        (log.trim() != "0").then_some(())
    });
    goes_on_as_if_nothing_had_been(&vm, mark);
    sound(&vm);
}

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_guest_may_be_destroyed_while_it_is_saved() {
    let host = lent!();
    let vm = host.boot(XenSpec::new("vm"));
    let outcome = thread::scope(|scope| {
        let client = scope.spawn(|| host.virsh.run(CREATE));
        let pid = hold(&host, 10);
        vm.virsh("destroy {}");
        assert_eq!(vm.state(), "shut off");
        host.ok(&format!("kill -CONT {pid}"));
        joined(client)
    });
    assert!(!outcome.success, "{outcome:?}");
    let (mark, last) = (vm.mark(), vm.last_match().unwrap());
    vm.virsh("start {}");
    assert!(vm.booted(mark) >= last);
    goes_on_as_if_nothing_had_been(&vm, vm.mark());
    sound(&vm);
}

/// What it still has to write it writes before anybody else has its images, which it does not lock.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_guest_has_ended_when_its_device_model_has() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm").disks(&["qcow2"]));
    let device_model = || {
        let pid = host.ok("id=$(xl domid vm)
            for file in $(grep -lsxz '[-]xen-domid' /proc/[0-9]*/cmdline); do
                grep -qsxz $id $file && echo $file | cut -d / -f 3
            done; true");
        pid.trim().parse::<u32>().expect("one device model")
    };
    for how in ["virsh", "xl"] {
        vm.virsh("start {} --paused");
        let pid = device_model();
        host.ok(&format!("kill -STOP {pid}"));
        thread::scope(|scope| {
            let client = scope.spawn(|| match how {
                "virsh" => host.virsh.run("destroy vm"),
                _ => host.run("xl destroy vm"),
            });
            host.ok("while xl domid vm > /dev/null 2>&1; do busybox sleep 0.1; done");
            thread::sleep(Duration::from_secs(3));
            assert_ne!(vm.state(), "shut off", "{how}");
            host.ok(&format!("test -e /proc/{pid} && kill -CONT {pid}"));
            let outcome = joined(client);
            assert!(outcome.success, "{outcome:?}");
        });
        vm.becomes("shut off");
        host.ok(&format!("test ! -e /proc/{pid}"));
    }
}

fn joined(client: ScopedJoinHandle<'_, Outcome>) -> Outcome {
    client.join().expect("virsh was run")
}
