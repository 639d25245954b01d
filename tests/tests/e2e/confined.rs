//! What a QEMU may do to the host, as the kernel tells it: docs/security.md.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use virtsnap_tests::{Daemon, Guest, GuestSpec, World, host, skip};

fn status(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap()
}

fn field<'s>(status: &'s str, name: &str) -> &'s str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}

/// What is behind the descriptors of a process.
fn descriptors(pid: u32) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok()).collect()
}

fn start_confined(vm: &Guest<'_>) -> u32 {
    vm.virsh("start {}");
    let qemu = vm.world.processes("qemu-system");
    assert_eq!(qemu.len(), 1);
    let status = status(qemu[0]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        if host::is_root() || set != "CapBnd" {
            assert_eq!(field(&status, set), "0000000000000000", "{set}");
        }
    }
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    assert_eq!(field(&status, "Seccomp"), "2", "QEMU's own sandbox is on");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", qemu[0])).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let command = std::fs::read(format!("/proc/{}/cmdline", qemu[0])).unwrap();
    let command = String::from_utf8_lossy(&command);
    for part in ["elevateprivileges=deny", "spawn=deny", "resourcecontrol=deny", "obsolete=deny"] {
        assert!(command.contains(part), "{part}");
    }
    qemu[0]
}

#[test]
fn qemu_has_no_capability_and_no_descriptor_of_ours() {
    if Daemon::chosen() == Daemon::Libvirtd {
        return;
    }
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    let qemu = start_confined(&vm);
    let lib = world.path("lib");
    for path in descriptors(qemu) {
        let is_log = path.starts_with(lib.join("log"));
        assert!(!path.starts_with(&lib) || is_log, "the store: {}", path.display());
        assert!(!path.ends_with("virtsnap-sock.lock"), "{}", path.display());
        assert!(!path.ends_with("daemon.log"), "{}", path.display());
    }
    // Snapshots and a revert need no more than that.
    vm.virsh("snapshot-create-as {} one");
    vm.virsh("snapshot-create-as {} two --disk-only");
    vm.virsh("snapshot-delete {} two");
    vm.virsh("snapshot-revert {} one");
}

#[test]
fn what_a_guest_has_on_the_host_is_private() {
    if Daemon::chosen() == Daemon::Libvirtd {
        return;
    }
    let mut world = World::stopped(Daemon::Virtsnapd);
    // Whatever the daemon was started with.
    world.umask = Some("000".to_owned());
    world.start();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    vm.virsh("snapshot-create-as {} one");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&world.socket()), 0o660);
    assert_eq!(mode(Path::new(&world.read_only_socket())), 0o666);
    assert_eq!(mode(&world.path("run")), 0o755);
    // The definitions with their passwords, journals, logs with the command lines.
    assert_eq!(mode(&world.path("lib")), 0o700);
    let mut open = vec![world.path("lib"), world.path("run/qemu")];
    let mut seen = 0;
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
            let shared = meta.permissions().mode() & 0o077;
            if meta.is_dir() {
                // Others may pass through to what is theirs, and may not write.
                assert_eq!(shared & 0o022, 0, "{} {shared:o}", path.display());
                open.push(path);
            } else if mode(&directory) & 0o077 != 0 && !path.ends_with("last-id") {
                // QEMU's own directory keeps others from what it makes, by its mode.
                assert_eq!(shared, 0, "{} {shared:o}", path.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 1, "only {seen} files were looked at");
}

/// A user of QEMU's that may do nothing else here; all that was lent is handed back.
#[test]
fn a_guest_of_an_ordinary_user_is_confined_too() {
    if !host::is_root() {
        skip!("only root can start QEMU as somebody else");
    }
    if Daemon::chosen() == Daemon::Libvirtd {
        return;
    }
    let mut world = World::stopped(Daemon::Virtsnapd);
    let vm = with_a_user(&mut world);
    let qemu = start_confined(&vm);
    let status = status(qemu);
    assert_eq!(field(&status, "Uid"), "64055\t64055\t64055\t64055");
    assert_eq!(field(&status, "Groups"), "64055");
    vm.virsh("snapshot-create-as {} one");
    vm.virsh("destroy {}");
    assert_eq!(uid(&vm.disk("vda")), 0);
}

fn uid(path: &Path) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path).unwrap())
}

/// QEMU is an ordinary user.
fn with_a_user(world: &mut World) -> Guest<'_> {
    world.config = "user = '+64055'\ngroup = '+64055'".to_owned();
    for directory in ["", "lib", "lib/qemu"] {
        let path = world.path(directory);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o711)).unwrap();
    }
    world.start();
    let vm = world.define(GuestSpec::idle("vm"));
    // QEMU makes files where its user may, and the directory is ours.
    let console = world.path("vm.console");
    std::fs::write(&console, "").unwrap();
    std::fs::set_permissions(&console, std::fs::Permissions::from_mode(0o666)).unwrap();
    vm
}

/// The host is gone, and with it all that stood in its run directory.
#[test]
fn a_crash_of_the_host_forgets_nobodys_images() {
    if !host::is_root() {
        skip!("only root can start QEMU as somebody else");
    }
    if Daemon::chosen() == Daemon::Libvirtd {
        return;
    }
    let mut world = World::stopped(Daemon::Virtsnapd);
    let (base, overlay) = {
        let vm = with_a_user(&mut world);
        let base = vm.disk("vda");
        std::os::unix::fs::chown(&base, Some(4321), Some(4321)).unwrap();
        vm.virsh("start {}");
        vm.virsh("snapshot-create-as {} one --disk-only");
        (base, PathBuf::from(vm.source("vda")))
    };
    assert_eq!((uid(&base), uid(&overlay)), (64055, 64055));
    let crash = |world: &mut World| {
        world.kill();
        for id in world.processes("qemu-system") {
            std::process::Command::new("kill").args(["-KILL", &id.to_string()]).status().unwrap();
        }
        host::wait("QEMU to be gone", 20, || {
            world.processes("qemu-system").is_empty().then_some(())
        });
        std::fs::remove_dir_all(world.path("run")).unwrap();
        assert_eq!(uid(&overlay), 64055);
    };
    crash(&mut world);
    world.start();
    assert_eq!((uid(&base), uid(&overlay)), (4321, 4321), "the overlay was made like its base");
    // What somebody else has made their own meanwhile is theirs.
    world.virsh.ok("start vm");
    assert_eq!(uid(&overlay), 64055);
    crash(&mut world);
    std::os::unix::fs::chown(&overlay, Some(99), None).unwrap();
    world.start();
    assert_eq!((uid(&base), uid(&overlay)), (4321, 99));
}
