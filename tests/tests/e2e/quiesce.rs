//! Snapshots with QUIESCE: Debian's own guest agent freezes a file system that is written to.
//!
//! What proves it: the guest writes lines to a log and never syncs, so that without a freeze the
//! disk has next to nothing of them, and a journal to be replayed. In the layer under a quiesced
//! snapshot the file system is clean, and the log has every line that the guest said it wrote.

use std::path::{Path, PathBuf};
use std::process::Command;

use virtsnap_tests::guest::Mark;
use virtsnap_tests::{Daemon, Guest, GuestSpec, World, host, images, skip, virsh};

/// A program of e2fsprogs, which is not in every user's search path.
fn tool(program: &str, arguments: &[&str]) -> virsh::Outcome {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("env");
    command.arg(format!("PATH={path}")).arg(program).args(arguments);
    virsh::finish(&mut command, program)
}

/// The file system in an image, as a raw copy.
fn raw(world: &World, image: &Path) -> PathBuf {
    let copy = world.path("copy.raw");
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-U", "-O", "raw"]).arg(image).arg(&copy);
    assert!(virsh::finish(&mut command, "qemu-img convert").success);
    copy
}

/// Unmounted, or frozen: nothing is left in the journal, and all is consistent.
#[track_caller]
fn is_clean(copy: &Path) -> bool {
    let copy = copy.to_str().expect("UTF-8");
    let header = tool("dumpe2fs", &["-h", copy]);
    assert!(header.success, "{}", header.stderr);
    let check = tool("e2fsck", &["-f", "-n", copy]);
    !header.stdout.contains("needs_recovery") && check.success
}

/// The number of the log's last line; all before it must be there.
#[track_caller]
fn logged(copy: &Path) -> u64 {
    let shown = tool("debugfs", &["-R", "cat /log", copy.to_str().expect("UTF-8")]);
    let lines: Vec<_> = shown.stdout.lines().collect();
    for (line, n) in lines.iter().zip(1..) {
        assert_eq!(*line, format!("line {n}"), "torn: {lines:?}");
    }
    lines.len() as u64
}

/// The number in the last `WROTE`.
fn wrote(vm: &Guest, mark: Mark) -> u64 {
    let lines = vm.lines(mark);
    let numbers = lines.iter().filter_map(|line| line.strip_prefix("WROTE ")?.parse().ok());
    numbers.max().unwrap_or(0)
}

/// Waits until the guest has written `more` lines.
#[track_caller]
fn write_on(vm: &Guest, more: u64) -> u64 {
    let goal = wrote(vm, Mark::start()) + more;
    host::wait(&format!("WROTE {goal}"), 60, || (wrote(vm, Mark::start()) >= goal).then_some(()));
    goal
}

fn hooks(vm: &Guest, mark: Mark) -> Vec<String> {
    let lines = vm.lines(mark);
    lines.into_iter().filter(|line| line.starts_with("HOOK ")).collect()
}

/// The world, or nothing where the guest was not built.
fn world(config: &str) -> Option<World> {
    host::agent_guest()?;
    let mut world = World::stopped(Daemon::chosen());
    config.clone_into(&mut world.config);
    world.start();
    Some(world)
}

const NO_GUEST: &str = "make agent-guest has not built the guest with an agent";

#[test]
fn what_the_guest_wrote_is_in_the_snapshot() {
    let Some(world) = world("") else { skip!("{NO_GUEST}") };
    let vm = world.boot_with_agent(GuestSpec::with_agent("vm"));
    // The control: without a freeze the file system is in the middle of something.
    let before = write_on(&vm, 3);
    vm.virsh("snapshot-create-as {} rough --disk-only");
    let rough = raw(&world, &vm.disk("vda"));
    assert!(!is_clean(&rough), "a mounted file system is not clean");
    assert!(logged(&rough) < before, "nothing was synced, so not all can be on the disk");
    assert_eq!(hooks(&vm, Mark::start()), Vec::<String>::new());

    let (mark, layer) = (vm.mark(), vm.source("vda"));
    let before = write_on(&vm, 2);
    vm.virsh("snapshot-create-as {} smooth --disk-only --quiesce");
    let after = write_on(&vm, 2);
    assert_eq!(hooks(&vm, mark), ["HOOK freeze", "HOOK thaw"]);
    let smooth = raw(&world, Path::new(&layer));
    assert!(is_clean(&smooth), "the layer under a quiesced snapshot");
    let found = logged(&smooth);
    assert!((before..after).contains(&found), "{found} lines, written were {before} to {after}");
    if world.daemon == Daemon::Virtsnapd {
        assert!(world.log().contains("filesystems=1"), "the number of them is told");
    }

    // The guest goes on, is reverted, and finds the log as it was.
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} smooth --running");
    assert_eq!(vm.number_after(mark, "START ", 180), found);
    vm.virsh("destroy {}");
    images::check(Path::new(&layer));
}

#[test]
fn a_snapshot_that_fails_leaves_nothing_frozen() {
    let Some(world) = world("") else { skip!("{NO_GUEST}") };
    let vm = world.boot_with_agent(GuestSpec::with_agent("vm").disks(&["qcow2", "qcow2"]));
    let sources = (vm.source("vda"), vm.source("vdb"));
    // Already frozen by somebody else: ours must not thaw what is not ours.
    assert!(vm.virsh("domfsfreeze {}").contains('1'));
    let complaint = vm.refused("snapshot-create-as {} s --disk-only --quiesce");
    assert!(complaint.contains("freeze"), "{complaint}");
    let status = "qemu-agent-command {} '{\"execute\":\"guest-fsfreeze-status\"}'";
    assert!(vm.virsh(status).contains("frozen"));
    assert!(vm.virsh("domfsthaw {}").contains('1'));
    write_on(&vm, 1);
    // The agent is there, and QEMU refuses the pivot: one node cannot take two overlays.
    let twice = world.path("twice.qcow2");
    let complaint = vm.refused(&format!(
        "snapshot-create-as {{}} s --disk-only --quiesce --diskspec vda,file={0} --diskspec vdb,file={0}",
        twice.display()
    ));
    assert!(!complaint.is_empty());
    write_on(&vm, 1);
    assert!(vm.virsh(status).contains("thawed"));
    assert_eq!((vm.source("vda"), vm.source("vdb")), sources);
    assert!(!twice.exists(), "nothing is left behind");
    assert!(world.virsh.lines("snapshot-list vm --name").is_empty());
}

#[test]
fn a_freeze_has_a_deadline_and_a_late_one_is_thawed() {
    let Some(world) = world("freeze_seconds = 2") else { skip!("{NO_GUEST}") };
    if world.daemon == Daemon::Libvirtd {
        return; // It waits for ever.
    }
    let vm = world.boot_with_agent(GuestSpec::with_agent("vm"));
    let here = vm.source("vda");

    // An agent that does not answer at all was not told to freeze.
    vm.type_line("deaf", "DEAF");
    let complaint = vm.refused("snapshot-create-as {} s --disk-only --quiesce");
    assert!(complaint.contains("agent"), "{complaint}");
    assert_eq!(vm.source("vda"), here);
    let mark = vm.mark();
    // What management does next: the same without QUIESCE. Nothing of the first is in the way.
    vm.virsh("snapshot-create-as {} s --disk-only");
    vm.type_line("hear", "HEARS");
    vm.number_after(mark, "WROTE ", 60);

    // One that takes too long is told to thaw, and does so when it comes to it.
    vm.type_line("slow", "SLOW");
    let mark = vm.mark();
    let complaint = vm.refused("snapshot-create-as {} t --disk-only --quiesce");
    assert!(complaint.contains("2 seconds"), "{complaint}");
    assert_eq!(hooks(&vm, mark), ["HOOK freeze"]);
    vm.virsh("snapshot-create-as {} t --disk-only");
    vm.type_line("quick", "QUICK");
    host::wait("the thaw", 60, || hooks(&vm, mark).contains(&"HOOK thaw".to_owned()).then_some(()));
    write_on(&vm, 2);
    host::wait("the daemon to know of it", 60, || {
        let again = "snapshot-create-as vm u --disk-only --quiesce";
        world.virsh.run(again).success.then_some(())
    });
    write_on(&vm, 2);
}

#[test]
fn who_cannot_answer_is_refused_before_anything_happens() {
    let Some(world) = world("") else { skip!("{NO_GUEST}") };
    let vm = world.boot_with_agent(GuestSpec::with_agent("vm"));
    let info = vm.virsh("domfsinfo {}");
    assert!(info.contains("/data") && info.contains("ext4") && info.contains("vda"), "{info}");
    vm.virsh("suspend {}");
    let complaint = vm.refused("snapshot-create-as {} s --disk-only --quiesce");
    assert!(complaint.contains("running"), "{complaint}");
    vm.virsh("resume {}");
    vm.virsh("destroy {}");
    // As libvirt: who is off has nothing to quiesce.
    vm.virsh("snapshot-create-as {} off --disk-only --quiesce");
}
