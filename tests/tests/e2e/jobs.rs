//! What goes on with a domain, as management software watches, waits for and ends it.

use std::path::Path;
use std::process::Command;

use virtsnap_tests::{GuestSpec, World, skip, virsh};

const PYTHON: &str = "/usr/bin/python3";

#[test]
fn an_operation_on_snapshots_is_a_job() {
    if !virsh::finish(Command::new(PYTHON).args(["-c", "import libvirt"]), PYTHON).success {
        skip!("{PYTHON} has no libvirt module: apt install python3-libvirt");
    }
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/jobs.py");
    let mut command = Command::new(PYTHON);
    command.arg(script).arg(&world.virsh.uri).arg("vm").arg(world.dir());
    let outcome = virsh::finish(&mut command, "jobs.py");
    assert!(outcome.success, "{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.stdout.contains("all good"), "{}", outcome.stdout);
    vm.count_on(1);
    vm.never_mismatched();
}
