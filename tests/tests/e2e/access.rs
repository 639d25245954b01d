//! Who may do what: the read-only socket, and a daemon of an ordinary user.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use virtsnap_tests::{Daemon, GuestSpec, World, host, images, skip};

#[test]
fn the_read_only_socket_only_shows() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("snapshot-create-as {} one");
    let uri = format!("qemu:///system?socket={}", world.read_only_socket());
    let guest = world.virsh.read_only(uri);
    for line in [
        "list --all",
        "dominfo vm",
        "domstate vm",
        "dumpxml vm",
        "domblklist vm",
        "snapshot-list vm --tree",
        "snapshot-info vm one",
        "snapshot-dumpxml vm one",
        "snapshot-current vm",
        "capabilities",
    ] {
        guest.ok(line);
    }
    for line in [
        "start vm",
        "undefine vm",
        "autostart vm",
        "snapshot-create-as vm two",
        "snapshot-revert vm one",
        "snapshot-delete vm one",
        "snapshot-delete vm one --metadata",
        "dumpxml vm --security-info",
        "snapshot-dumpxml vm one --security-info",
    ] {
        let complaint = guest.fails(line);
        assert!(complaint.contains("read only") || complaint.contains("forbidden"), "{complaint}");
    }
    // The client library refuses those by itself; a socket that lies about being writable does not
    // help, since the daemon knows which one it accepted on.
    let mut liar = guest.clone();
    liar.read_only = false;
    for line in ["start vm", "snapshot-create-as vm two", "snapshot-delete vm one"] {
        let complaint = liar.fails(line);
        assert!(complaint.contains("read only"), "{line}: {complaint}");
    }
    assert_eq!(world.virsh.lines("snapshot-list vm --name"), ["one"]);
    assert_eq!(vm.state(), "shut off");
}

#[test]
fn an_ordinary_user_has_a_daemon_of_their_own() {
    if Daemon::chosen() == Daemon::Libvirtd {
        return; // its session mode needs directories that this harness does not lend it
    }
    let world = World::as_user();
    let vm = world.define(GuestSpec::new("mine"));
    world.hand_over();
    let mark = vm.mark();
    vm.virsh("start {}");
    vm.booted(mark);
    let qemu = world.processes("qemu-system");
    assert_eq!(qemu.len(), 1);
    if host::is_root() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", qemu[0])).unwrap();
        assert!(status.contains("Uid:\t65534\t65534"), "{status}");
    }
    let at = vm.count_on(2);
    vm.virsh("snapshot-create-as {} whole");
    vm.next_match(vm.mark());
    let late = vm.count_on(3);
    vm.virsh("snapshot-create-as {} disk --disk-only");
    vm.virsh("snapshot-delete {} disk");
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} whole");
    let n = vm.back_at(mark);
    assert!((at..late).contains(&n), "{n} is not of the snapshot at {at}");
    vm.never_mismatched();
    vm.virsh("destroy {}");
    images::check(&vm.disk("vda"));
}

#[test]
fn the_writable_socket_is_not_for_everybody() {
    if !host::is_root() {
        skip!("this needs root, to be somebody else");
    }
    if Daemon::chosen() == Daemon::Libvirtd {
        return; // the oracle's sockets are opened to all by its configuration
    }
    let world = World::new();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(world.dir(), open).unwrap();
    let as_nobody = |uri: &str, line: &str| {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "virsh",
            "-c",
            uri,
            line,
        ]);
        virtsnap_tests::virsh::finish(command.env("HOME", "/nonexistent"), line)
    };
    let refused = as_nobody(&world.virsh.uri, "list");
    assert!(!refused.success && refused.stderr.contains("Permission denied"), "{refused:?}");
    let read_only = format!("qemu:///system?socket={}", world.read_only_socket());
    let outcome = as_nobody(&read_only, "list");
    assert!(outcome.success, "{outcome:?}");
}
