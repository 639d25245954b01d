//! Management software that calls libvirt's library, by the same script as on QEMU.

use std::path::Path;
use std::process::Command;

use virtsnap_tests::xen::{GUESTS, XenSpec};
use virtsnap_tests::{skip, virsh};

use crate::{lent, sound};

const PYTHON: &str = "/usr/bin/python3";

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn virt_manager_and_vagrant_are_at_home() {
    if !virsh::finish(Command::new(PYTHON).args(["-c", "import libvirt"]), PYTHON).success {
        skip!("{PYTHON} has no libvirt module: apt install python3-libvirt");
    }
    let host = lent!();
    let vm = host.boot(XenSpec::new("vm").disks(&["qcow2"]));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/consumers.py");
    // The last one undefines the guest.
    for consumer in ["vagrant", "virt_manager"] {
        let mut command = Command::new(PYTHON);
        command.arg(&script).args([&host.virsh.uri, consumer, "vm", GUESTS]);
        command.arg(vm.path()).arg(host.shell().to_string());
        let outcome = virsh::finish(&mut command, consumer);
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.success && outcome.stdout.contains("all good"), "{consumer}\n{said}");
    }
    sound(&vm);
    assert!(host.virsh.lines("list --all --name").is_empty());
}
