//! The client is killed while it waits. What it asked for goes on to its end, and no job is left.

use virtsnap_tests::faults::{Slow, signal, slow};
use virtsnap_tests::guest::Mark;
use virtsnap_tests::{Guest, GuestSpec, World, host};

/// Asks, kills the client once there is a sign that work began, and waits for the end.
#[track_caller]
fn vanish(vm: &Guest, line: &str, began: impl Fn() -> bool, is_done: impl Fn() -> bool) {
    let mut client = vm.world.ask(&line.replace("{}", vm.name()));
    host::wait(&format!("the beginning of {line}"), 60, || began().then_some(()));
    signal("KILL", &[client.id()]);
    let status = client.wait().expect("it is ours");
    host::wait(&format!("the end of {line}"), 120, || is_done().then_some(()));
    assert!(!status.success(), "'{line}' was over before the client was killed");
    let rests = || {
        let told = vm.world.virsh.run(&format!("domjobinfo {}", vm.name()));
        (told.stdout.contains("None") || told.stderr.contains("not running")).then_some(())
    };
    host::wait("the job's end", 60, rests);
    assert_eq!(vm.world.journal(), None);
}

#[test]
fn an_operation_outlives_its_client() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    let works = || world.journal().is_some();
    let rests = || world.journal().is_none();
    let has = |name: &str| vm.snapshots().iter().any(|listed| listed == name);
    let at = vm.count_on(1);
    let save =
        format!("snapshot-create-as {{}} m --memspec file={}", world.path("m.mem").display());
    vanish(&vm, &save, works, || rests() && has("m"));
    let late = vm.count_on(2);
    let mark = vm.mark();
    vanish(&vm, "snapshot-revert {} m", works, || rests() && vm.state() == "running");
    let n = vm.back_at(mark);
    assert!((at..late).contains(&n), "{n} is not of the snapshot at {at}");
    (8..12).for_each(|mib| vm.write("vda", mib, 9));
    vanish(&vm, "snapshot-delete {} m", works, || rests() && !has("m"));
    assert!(!world.path("m.mem").exists());
    assert!(vm.holds("vda", 11, 9));
    let at = vm.count_on(1);
    let file = world.path("vm.save");
    let off = || vm.state() == "shut off";
    let mut held = slow(&world, Slow::Memory);
    vanish(
        &vm,
        &format!("save {{}} {}", file.display()),
        || file.exists() || vm.state() == "paused",
        off,
    );
    signal("TERM", &[held.id()]);
    held.wait().expect("it is ours");
    let (mark, said) = (vm.mark(), vm.last_match().expect("it counted"));
    world.virsh.ok(&format!("restore {}", file.display()));
    let n = vm.next_match(mark);
    assert!((at..=said + 2).contains(&n), "{n} was not saved at {at} or later");
    assert!(vm.lines(Mark::start()).iter().filter(|line| line.starts_with("START")).count() == 1);
    vm.never_mismatched();
}
