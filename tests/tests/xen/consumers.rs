//! Management software that calls libvirt's library, by the same script as on QEMU.

use std::path::Path;
use std::process::Command;

use virtsnap_tests::xen::{GUESTS, XenSpec};
use virtsnap_tests::{skip, virsh};

use crate::{boots, goes_back, lent, sound, take};

const PYTHON: &str = "/usr/bin/python3";

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn those_who_call_the_library_are_at_home() {
    if !virsh::finish(Command::new(PYTHON).args(["-c", "import libvirt"]), PYTHON).success {
        skip!("{PYTHON} has no libvirt module: apt install python3-libvirt");
    }
    let host = lent!();
    let vm = host.boot(XenSpec::new("vm").disks(&["qcow2"]));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/consumers.py");
    // The last one undefines the guest.
    for consumer in ["vagrant", "cockpit", "test_lab", "virt_manager"] {
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

/// Its driver scripts, which are virsh commands, as in the test of the same on QEMU.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn opennebula_uses_virsh() {
    let host = lent!();
    let vm = host.boot(XenSpec::new("one-7").disks(&["qcow2", "qcow2"]));
    let at = take(&vm, "snap-0");
    let later = vm.count_on(3);
    goes_back(&vm, "snap-0 --force", &(at..later));
    let record = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(record.path(), vm.virsh("snapshot-dumpxml {} snap-0")).unwrap();
    vm.virsh("snapshot-delete {} snap-0 --metadata");
    vm.virsh(&format!("snapshot-create {{}} {} --redefine", record.path().display()));
    assert_eq!(vm.snapshots(), ["snap-0"]);
    vm.virsh("snapshot-delete {} snap-0");
    assert_eq!(vm.source("xvda"), vm.disk("xvda").to_str().unwrap());
    let new = format!("{GUESTS}/disk.0.snap");
    vm.virsh(&format!(
        "snapshot-create-as {{}} --disk-only --atomic --no-metadata \
         --diskspec xvda,snapshot=external,file={new} --diskspec xvdb,snapshot=no"
    ));
    assert_eq!(vm.source("xvda"), new);
    let told = vm.refused("blockcommit {} xvda --active --pivot --wait --shallow");
    assert!(told.contains("not supported"), "{told}");
    let last = vm.count_on(2);
    let mark = vm.mark();
    vm.virsh("destroy {}");
    vm.virsh("start {}");
    boots(&vm, mark, last..u64::MAX);
}
