//! Other clients than virsh: libvirt-python, and the `virt` crate.

use std::path::Path;
use std::process::Command;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::ErrorNumber;
use virt::sys;
use virtsnap_tests::{GuestSpec, World, images, skip, virsh};

/// Debian's binding is for Debian's interpreter; another `python3` may come first in `PATH`.
const PYTHON: &str = "/usr/bin/python3";

#[test]
fn python_sees_what_virsh_sees() {
    if !virsh::finish(Command::new(PYTHON).args(["-c", "import libvirt"]), PYTHON).success {
        skip!("{PYTHON} has no libvirt module: apt install python3-libvirt");
    }
    let world = World::new();
    let spec = GuestSpec::new("py");
    let xml = world.path("py-spec.xml");
    std::fs::write(&xml, spec.xml(&world)).unwrap();
    images::create(&world.path("py-vda.qcow2"), "qcow2", "16M");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/client.py");
    let mut command = Command::new(PYTHON);
    command.arg(script).arg(&world.virsh.uri).arg(&xml);
    let outcome = virsh::finish(&mut command, "client.py");
    assert!(outcome.success, "{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.stdout.contains("all good"), "{}", outcome.stdout);
}

#[test]
fn the_virt_crate_takes_a_guest_through_snapshots() {
    let world = World::new();
    let uri = world.virsh.uri.clone();
    images::create(&world.path("rs-vda.qcow2"), "qcow2", "16M");
    let connection = Connect::open(Some(&uri)).unwrap();
    assert!(connection.is_alive().unwrap());
    assert_eq!(connection.driver_type().unwrap(), "QEMU");
    let domain = connection.define_domain_xml(&GuestSpec::idle("rs").xml(&world)).unwrap();
    domain.create_with_flags(sys::VIR_DOMAIN_START_PAUSED).unwrap();

    let take = |name: &str, flags| {
        let xml = format!("<domainsnapshot><name>{name}</name></domainsnapshot>");
        domain.create_snapshot_xml(&xml, flags)
    };
    let disk = take("disk", sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY).unwrap();
    assert_eq!(disk.name().unwrap(), "disk");
    let whole = take("whole", 0).unwrap();
    assert_eq!(whole.parent(0).unwrap().name().unwrap(), "disk");
    assert!(whole.is_current(0).unwrap() && !disk.is_current(0).unwrap());
    assert!(whole.has_metadata(0).unwrap());
    assert_eq!(disk.num_children(0).unwrap(), 1);
    assert_eq!(domain.num_snapshots(0).unwrap(), 2);
    assert_eq!(domain.list_all_snapshots(sys::VIR_DOMAIN_SNAPSHOT_LIST_ROOTS).unwrap().len(), 1);

    // Errors carry libvirt's numbers.
    let refused = |result: Result<_, virt::error::Error>, expected: ErrorNumber| {
        let err = result.map(|_: virt::domain_snapshot::DomainSnapshot| ()).unwrap_err();
        assert!(err.code().is(expected), "{err:?}");
    };
    refused(take("whole", 0), ErrorNumber::OperationFailed);
    refused(Domain::lookup_snapshot_by_name(&domain, "nobody", 0), ErrorNumber::NoDomainSnapshot);
    refused(domain.create_snapshot_xml("<domainsnapshot", 0), ErrorNumber::XmlDetail);

    whole.revert(sys::VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED).unwrap();
    assert!(domain.is_active().unwrap());
    whole.delete(0).unwrap();
    disk.delete(0).unwrap();
    assert_eq!(domain.num_snapshots(0).unwrap(), 0);
    refused(domain.current_snapshot(0), ErrorNumber::NoDomainSnapshot);
    domain.destroy().unwrap();
    domain.undefine().unwrap();
    images::check(&world.path("rs-vda.qcow2"));
}
