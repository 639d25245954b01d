//! The daemon is killed at the points at which libvirt 11.3 loses data or leaves a guest stopped,
//! each one seen and not guessed: by the journal, by QEMU's events, by what lies on the disk. QEMU
//! stands still (SIGSTOP) where it would be too quick.
//!
//! What libvirt leaves in each case is in its test's first line. Here, always, when the daemon is
//! back: the guest counts on, no write of it is lost, XML and QEMU name the same images, the
//! snapshot is whole or its name is free, no file is nobody's, and no job is left.

use std::ops::Range;
use std::time::Duration;

use serde_json::{Value, json};
use virtsnap_tests::faults::{Killed, Monitor, Slow, orphans, signal, slow};
use virtsnap_tests::guest::Mark;
use virtsnap_tests::{Guest, GuestSpec, World, images};

/// A point that was missed is tried for again so often.
const TRIES: usize = 12;

fn spec() -> GuestSpec {
    let uuid = Some("4c7d2f0a-8a0e-4b7f-9d4e-0f6a3b1c5d21".to_owned());
    GuestSpec { uuid, ..GuestSpec::new("vm").disks(&["qcow2", "qcow2"]) }
}

/// A guest that counts, with a second monitor.
fn boot() -> World {
    boot_with("")
}

/// The same, by a daemon with such a configuration.
fn boot_with(config: &str) -> World {
    let mut world = World::stopped(virtsnap_tests::Daemon::chosen());
    config.clone_into(&mut world.config);
    world.start();
    {
        let vm = world.define_watched(spec());
        images::resize(&vm.disk("vda"), "128M");
        vm.virsh("start {}");
        vm.booted(Mark::start());
        vm.count_on(1);
    }
    world
}

fn guest(world: &World) -> Guest<'_> {
    world.guest(spec())
}

/// Kills the daemon where `reached` says, until what it left is as `is_it` says. Between two tries
/// it is started, and `again` takes back what the client's call had done.
#[track_caller]
fn kill_at(
    world: &mut World,
    (line, what): (&str, Slow),
    mut reached: impl FnMut(&World) -> bool,
    is_it: impl Fn(&Killed) -> bool,
    again: &[&str],
) -> Killed {
    for _ in 0..TRIES {
        let mut slow = slow(world, what);
        let killed = world.kill_at(line, &mut reached);
        let _ = slow.kill();
        slow.wait().expect("it is ours");
        signal("CONT", &world.qemu());
        match killed {
            Some(killed) if is_it(&killed) => {
                let told = &killed.complaint;
                assert!(told.contains("End of file") || told.contains("onnection"), "{told}");
                return killed;
            }
            Some(killed) => {
                eprintln!("missed: {:?}", killed.journal);
                world.start();
            }
            None => eprintln!("missed: too late"),
        }
        for line in again {
            let taken_back = world.virsh.run(line);
            eprintln!("{line}: {}{}", taken_back.stdout, taken_back.stderr);
        }
    }
    panic!("'{line}' was never caught");
}

fn says(killed: &Killed, what: impl Fn(&[String]) -> bool) -> bool {
    killed.journal.as_deref().is_some_and(what)
}

fn last_is(world: &World, entry: &str) -> bool {
    world.journal().is_some_and(|entries| entries.last().is_some_and(|last| last == entry))
}

/// QEMU stands still, and the daemon has the time to say what it wanted to say.
fn freeze(world: &World) -> bool {
    signal("STOP", &world.qemu());
    std::thread::sleep(Duration::from_millis(400));
    true
}

/// After the daemon's return, of a guest that had counted to `before`. Ends with the guest off and
/// its images checked.
#[track_caller]
fn all_is_well(world: &World, before: u64) {
    let vm = guest(world);
    goes_on(&vm, before);
    let mut monitor = Monitor::of(&vm);
    for target in ["vda", "vdb"] {
        let live = vm.source(target);
        assert_eq!(live, monitor.image(target), "{target}: the XML and QEMU");
        let inactive = vm.virsh("domblklist {} --inactive");
        assert!(inactive.contains(&live), "{target} is {live}, but at the next boot\n{inactive}");
    }
    let jobs = monitor.execute("query-jobs", &json!({}));
    // The job of a load stays on QEMU's list until the next one, concluded.
    let under_way = |job: &&Value| job["status"] != "concluded";
    let left: Vec<_> = jobs.as_array().expect("a list").iter().filter(under_way).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(vm.virsh("domjobinfo {}").contains("None"));
    assert_eq!(world.journal(), None);
    assert_eq!(orphans(&vm, &[]), [""; 0]);
    boots_with_all(&vm);
    vm.virsh("destroy {}");
    for target in ["vda", "vdb"] {
        let layers = images::chain(vm.source(target).as_ref());
        layers.iter().for_each(|layer| images::check(layer.as_ref()));
    }
}

/// It runs, and no number is missing.
#[track_caller]
fn goes_on(vm: &Guest, before: u64) {
    let mark = vm.mark();
    assert_eq!(vm.state(), "running");
    let n = vm.next_match(mark);
    assert!(n >= before, "it counted to {before} and is at {n}");
    assert!(vm.lines(mark).iter().all(|line| !line.starts_with("START")), "it was booted");
    vm.never_mismatched();
}

/// Off and on again, it finds what it had written: what it said last, one more, or another one
/// where a line was on its way when it ended.
#[track_caller]
fn boots_with_all(vm: &Guest) {
    vm.virsh("destroy {}");
    let (mark, said) = (vm.mark(), vm.last_match().expect("it counted"));
    vm.virsh("start {}");
    let found = vm.booted(mark);
    assert!((said..=said + 2).contains(&found), "it booted with {found}, and had said {said}");
    vm.never_mismatched();
}

/// Whether the snapshot is there; if not, it can be taken now, and deleted.
#[track_caller]
fn is_whole_or_absent(world: &World, name: &str, take: &str) -> bool {
    let vm = guest(world);
    if vm.snapshots().iter().any(|listed| listed == name) {
        return true;
    }
    vm.virsh(take);
    vm.virsh(&format!("snapshot-delete {{}} {name}"));
    false
}

const DISK_ONLY: &str = "snapshot-create-as vm e --disk-only";

/// libvirt: a stray overlay with content makes the name unusable.
#[test]
fn a_in_a_creation_before_it_took_effect() {
    let mut world = boot();
    let before = guest(&world).last_match().expect("it counts");
    kill_at(
        &mut world,
        (DISK_ONLY, Slow::Acts),
        |world| world.journal().is_some_and(|entries| entries.len() >= 2),
        |killed| says(killed, |entries| !entries.iter().any(|entry| entry.contains("pivot"))),
        &["snapshot-delete vm e"],
    );
    world.start();
    assert!(!is_whole_or_absent(&world, "e", DISK_ONLY));
    all_is_well(&world, before);
}

/// libvirt: all that the guest writes from then on is silently left behind at its next boot, and
/// no snapshot, merge or name works any more.
#[test]
fn a2_just_after_qemu_switched_to_the_overlays() {
    let mut world = boot();
    let before = guest(&world).last_match().expect("it counts");
    let mut monitor = Monitor::of(&guest(&world));
    kill_at(
        &mut world,
        (DISK_ONLY, Slow::Words),
        |world| last_is(world, "\"pivoting\"") && monitor.image("vda").ends_with("vm-vda.e"),
        |killed| says(killed, |entries| entries.last().is_some_and(|e| e == "\"pivoting\"")),
        &["snapshot-delete vm e"],
    );
    drop(monitor);
    // What libvirt would lose.
    let mark = guest(&world).mark();
    guest(&world).reach_after(mark, before + 3);
    world.start();
    assert!(is_whole_or_absent(&world, "e", DISK_ONLY), "the snapshot was taken");
    assert!(guest(&world).source("vda").ends_with("vm-vda.e"));
    world.virsh.ok("snapshot-delete vm e");
    all_is_well(&world, before + 3);
}

/// libvirt: the next boot uses the old disk.
#[test]
fn a2_a_little_later() {
    let mut world = boot();
    let before = guest(&world).last_match().expect("it counts");
    kill_at(
        &mut world,
        (DISK_ONLY, Slow::Acts),
        |world| last_is(world, "\"pivoted\""),
        |killed| says(killed, |entries| entries.iter().any(|entry| entry == "\"pivoted\"")),
        &["snapshot-delete vm e"],
    );
    let mark = guest(&world).mark();
    guest(&world).reach_after(mark, before + 2);
    world.start();
    assert!(is_whole_or_absent(&world, "e", DISK_ONLY), "the snapshot was taken");
    all_is_well(&world, before + 2);
}

/// A guest with the snapshots `keep` and `e`, and much in the overlay above `e`.
fn with_two_snapshots() -> (World, Range<u64>) {
    let world = boot();
    let vm = guest(&world);
    let at = vm.last_match().expect("it counts");
    vm.virsh("snapshot-create-as {} keep --disk-only");
    let kept = at..vm.count_on(2);
    // Away from what the guest writes, and so much that merging it upwards would be more work.
    for mib in (8..104).step_by(32) {
        vm.live_io("vda", &format!("write -P 8 {mib}M 32M"));
    }
    vm.virsh(&DISK_ONLY.replace(" vm ", " {} "));
    vm.virsh(FILL);
    vm.count_on(1);
    (world, kept)
}

const FILL: &str = "qemu-monitor-command vm --hmp \
     'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend \"write -P 9 8M 32M\"'";
const DELETE: &str = "snapshot-delete vm e";
/// Takes back a deletion that was not caught.
const NOT_DELETED: &[&str] = &[DELETE, DISK_ONLY, FILL];

/// Whatever became of the deletion: nothing that was to be kept is lost, and a revert gives what
/// the guest had when the snapshot was taken.
#[track_caller]
fn deleted_or_whole(mut world: World, kept: Range<u64>, before: u64) {
    world.start();
    if is_whole_or_absent(&world, "e", DISK_ONLY) {
        world.virsh.ok(DELETE);
    }
    all_is_well(&world, before);
    let vm = guest(&world);
    assert!(vm.holds("vda", 8, 9) && vm.holds("vda", 39, 9) && vm.holds("vda", 40, 8));
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} keep --running");
    let found = vm.booted(mark);
    assert!(kept.contains(&found), "{found} is not of the snapshot, one of {kept:?}");
    vm.never_mismatched();
}

const MERGE: &str = "virtsnap-merge-vda";
/// Entries of a deletion's journal while its first merge is on: it has pivoted, and its snapshots
/// are marked.
const MARKED: usize = 2;

fn is_merge(job: &Value, status: &str) -> bool {
    job["id"] == MERGE && job["status"] == status
}

/// libvirt: the snapshot stays listed, and a revert to it "succeeds" with wrong data.
#[test]
fn b_while_a_deletion_commits() {
    let (mut world, kept) = with_two_snapshots();
    let before = guest(&world).last_match().expect("it counts");
    let mut monitor = Monitor::of(&guest(&world));
    kill_at(
        &mut world,
        (DELETE, Slow::Acts),
        |_| {
            monitor.saw("JOB_STATUS_CHANGE", |job| is_merge(job, "running")) && {
                // So slow that it is far from done.
                monitor
                    .execute("block-job-set-speed", &json!({ "device": MERGE, "speed": 2 << 20 }));
                let jobs = monitor.execute("query-block-jobs", &json!({}));
                let job = jobs.get(0).cloned().unwrap_or_default();
                job["offset"].as_u64() < job["len"].as_u64()
            }
        },
        |killed| says(killed, |entries| entries.len() <= MARKED),
        NOT_DELETED,
    );
    let jobs = monitor.execute("query-block-jobs", &json!({}));
    assert_eq!(jobs[0]["device"], MERGE, "QEMU works on");
    monitor.execute("block-job-set-speed", &json!({ "device": MERGE, "speed": 40 << 20 }));
    drop(monitor);
    deleted_or_whole(world, kept, before);
}

/// The same.
#[test]
fn b_when_the_commit_is_ready() {
    let (mut world, kept) = with_two_snapshots();
    let before = guest(&world).last_match().expect("it counts");
    let mut monitor = Monitor::of(&guest(&world));
    kill_at(
        &mut world,
        (DELETE, Slow::Acts),
        |world| monitor.saw("JOB_STATUS_CHANGE", |job| is_merge(job, "ready")) && freeze(world),
        |killed| says(killed, |entries| entries.len() <= MARKED),
        NOT_DELETED,
    );
    drop(monitor);
    deleted_or_whole(world, kept, before);
}

/// libvirt: its XML names the overlay that QEMU has left, and takes more snapshots on it.
#[test]
fn b_when_qemu_has_left_the_overlay() {
    let (mut world, kept) = with_two_snapshots();
    let before = guest(&world).last_match().expect("it counts");
    let mut monitor = Monitor::of(&guest(&world));
    kill_at(
        &mut world,
        (DELETE, Slow::Acts),
        |world| monitor.saw("JOB_STATUS_CHANGE", |job| is_merge(job, "concluded")) && freeze(world),
        |killed| says(killed, |entries| entries.len() <= MARKED),
        NOT_DELETED,
    );
    drop(monitor);
    deleted_or_whole(world, kept, before);
}

/// libvirt: the guest runs on, and cannot be started again.
#[test]
fn b_when_the_overlay_is_removed() {
    let (mut world, kept) = with_two_snapshots();
    let before = guest(&world).last_match().expect("it counts");
    let overlay = world.path("vm-vda.e");
    kill_at(
        &mut world,
        (DELETE, Slow::Acts),
        |_| !overlay.exists(),
        |k| k.journal.is_some(),
        NOT_DELETED,
    );
    deleted_or_whole(world, kept, before);
}

/// A checkpoint in a file, caught while memory is written. The guest that stood still goes on as
/// soon as there is a daemon, and the file is gone or the snapshot's.
fn in_the_middle_of_memory(take: &str, config: &str) {
    let mut world = boot_with(config);
    let file = world.path("m.mem");
    let take = &format!("{take} --memspec {},snapshot=external", file.display());
    let before = guest(&world).last_match().expect("it counts");
    let mut monitor = Monitor::of(&guest(&world));
    kill_at(
        &mut world,
        (take, Slow::Acts),
        |world| {
            let migration = monitor.execute("query-migrate", &json!({}));
            let sent = migration["ram"]["transferred"].as_u64();
            migration["status"] == "active" && sent > Some(1 << 20) && freeze(world)
        },
        |killed| says(killed, |entries| !entries.iter().any(|entry| entry.contains("pivot"))),
        &["snapshot-delete vm e"],
    );
    drop(monitor);
    let half = |world: &World| {
        let files = std::fs::read_dir(world.dir()).expect("the directory is ours").flatten();
        files.filter(|entry| entry.file_name().to_string_lossy().contains("m.mem")).count()
    };
    assert_eq!(half(&world), 1, "it was being written");
    world.start();
    goes_on(&guest(&world), before);
    let vm = guest(&world);
    assert_eq!(vm.snapshots(), [""; 0]);
    assert_eq!(half(&world), 0, "the half of a file");
    // The name and the file's are free, and what is taken now is whole.
    let at = vm.last_match().expect("it counts");
    vm.virsh(&take.replace(" vm ", " {} "));
    let late = vm.count_on(2);
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} e");
    let n = vm.back_at(mark);
    assert!((at..late).contains(&n), "{n} is not of the snapshot at {at}");
    all_is_well(&world, n);
}

/// libvirt: the guest is stopped until there is a daemon again, the file is nobody's, and the next
/// try overwrites it.
#[test]
fn c_while_memory_is_written() {
    in_the_middle_of_memory("snapshot-create-as vm e", "live_memory = false");
}

/// The same, of a guest that was to run on.
#[test]
fn c2_while_memory_is_written_live() {
    in_the_middle_of_memory("snapshot-create-as vm e", "");
}

const INTERNAL: &str = "snapshot-create-as vm e";

/// libvirt: the guest stays stopped, and the name is in the image and unusable for ever.
#[test]
fn d_while_an_internal_snapshot_is_saved() {
    let mut world = boot();
    let before = guest(&world).last_match().expect("it counts");
    let mut monitor = Monitor::of(&guest(&world));
    kill_at(
        &mut world,
        (INTERNAL, Slow::Acts),
        |world| monitor.saw("STOP", |_| true) && freeze(world),
        |killed| says(killed, |entries| entries.last().is_some_and(|e| e == "\"pivoting\"")),
        &["snapshot-delete vm e"],
    );
    drop(monitor);
    world.start();
    goes_on(&guest(&world), before);
    let was_taken = is_whole_or_absent(&world, "e", INTERNAL);
    let vm = guest(&world);
    for target in ["vda", "vdb"] {
        let inside = images::internal_snapshots(&vm.disk(target));
        assert_eq!(inside.len(), usize::from(was_taken), "{target} holds {inside:?}");
    }
    let mut expected = before;
    if was_taken {
        let late = vm.count_on(2);
        let mark = vm.mark();
        vm.virsh("snapshot-revert {} e");
        expected = vm.back_at(mark);
        assert!((before..late).contains(&expected), "{expected}, saved at {before} or later");
    }
    all_is_well(&world, expected);
}

/// libvirt: the domain is off, and its state lost.
fn in_a_revert(reached: impl Fn(&World, &[u32]) -> bool) {
    let mut world = boot();
    let kept = {
        let vm = guest(&world);
        let at = vm.last_match().expect("it counts");
        let file = world.path("m.mem");
        let take = "snapshot-create-as {} e --memspec ";
        vm.virsh(&format!("{take}{},snapshot=external", file.display()));
        at..vm.count_on(2)
    };
    let mut mark = Mark::start();
    let caught = (0..TRIES).any(|_| {
        // A try that came too late left the guest where the snapshot is.
        guest(&world).count_on(1);
        mark = guest(&world).mark();
        let old = world.qemu();
        let killed = world.kill_at("snapshot-revert vm e", |world| reached(world, &old));
        let is_it = killed.as_ref().is_some_and(|killed| killed.journal.is_some());
        if killed.is_some() && !is_it {
            world.start();
        }
        is_it
    });
    assert!(caught, "the revert was never caught");
    world.start();
    let vm = guest(&world);
    assert_eq!(vm.state(), "running");
    let n = vm.back_at(mark);
    assert!(kept.contains(&n), "{n} is not of the snapshot, one of {kept:?}");
    assert!(vm.lines(mark).iter().all(|line| !line.starts_with("START")), "it booted");
    assert_eq!(vm.snapshots(), ["e"]);
    all_is_well(&world, n);
}

#[test]
fn e_in_a_revert_when_the_old_qemu_is_gone() {
    in_a_revert(|world, old| world.qemu().iter().all(|id| !old.contains(id)));
}

#[test]
fn e_in_a_revert_when_the_new_qemu_loads() {
    in_a_revert(|world, old| world.qemu().iter().any(|id| !old.contains(id)));
}

/// The daemon is killed when a program of a guest that starts is there and the daemon has not
/// noted it. The program stands still, as on a busy host: it says nothing before the next daemon
/// is here.
fn in_a_start(program: &str, devices: &str) {
    let mut world = World::stopped(virtsnap_tests::Daemon::chosen());
    world.start();
    let mut spec = GuestSpec { uuid: spec().uuid, ..GuestSpec::new("vm") };
    devices.clone_into(&mut spec.devices);
    let vm = world.define(spec.clone());
    // QEMU is asked what it can do now, by a process that is no guest's.
    vm.virsh("start {}");
    vm.virsh("destroy {}");
    let status = world.path("run/qemu").join(spec.uuid.as_deref().expect("it has one"));
    let status = || std::fs::read_to_string(status.join("status.json")).ok();
    let caught = (0..TRIES).find_map(|_| {
        let mut slow = slow(&world, Slow::Words);
        let killed = world.kill_at("start vm", |world| {
            let new = world.processes(program);
            signal("STOP", &new);
            !new.is_empty()
        });
        let _ = slow.kill();
        slow.wait().expect("it is ours");
        let left = world.processes(program);
        let is_noted = |text: &str| left.iter().any(|id| text.contains(&format!("\"pid\":{id},")));
        if killed.is_some() && status().is_some_and(|text| !is_noted(&text)) {
            return Some(left);
        }
        eprintln!("missed: {:?}", status());
        signal("CONT", &left);
        if killed.is_some() {
            world.start();
        }
        world.virsh.run("destroy vm");
        None
    });
    let left = caught.expect("the start was never caught");
    assert_ne!(left, [0; 0], "'{program}' was there");
    world.start();
    assert_eq!(world.processes(program), [0; 0], "{left:?} and nobody knows of it");
    let vm = world.guest(spec);
    assert_eq!(vm.state(), "shut off");
    let mark = vm.mark();
    vm.virsh("start {}");
    vm.booted(mark);
    vm.count_on(1);
    boots_with_all(&vm);
}

/// None of libvirt's points but one of ours: a slow QEMU was nobody's, and the next one its rival.
#[test]
fn f_in_a_start_before_its_qemu_is_noted() {
    in_a_start("qemu-system", "");
}

/// Nor is this: the TPM's state stayed locked.
#[test]
fn f_in_a_start_before_its_tpm_is_noted() {
    if !virtsnap_tests::programs::exists("swtpm") {
        virtsnap_tests::skip!("swtpm is not installed");
    }
    let backend = "<backend type='emulator' version='2.0'/>";
    in_a_start("swtpm", &format!("<tpm model='tpm-crb'>{backend}</tpm>"));
}
