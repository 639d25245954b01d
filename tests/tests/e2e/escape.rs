//! Names, files and images that try to be more than that: docs/security.md.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use virtsnap_tests::{Daemon, Guest, GuestSpec, World, host};

fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path);
        }
    }
    found
}

/// As XML has it.
fn escaped(name: &str) -> String {
    let name = name.replace('&', "&amp;").replace('<', "&lt;").replace('\n', "&#10;");
    name.replace('\'', "&apos;").replace('"', "&quot;")
}

#[test]
fn a_name_is_a_name_and_never_a_path_or_a_command() {
    if Daemon::chosen() == Daemon::Libvirtd {
        return;
    }
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    let before = files(world.dir());
    let around: BTreeSet<_> =
        std::fs::read_dir("/tmp").unwrap().map(|entry| entry.unwrap().path()).collect();
    let long = "x".repeat(400);
    let names = [
        "../up",
        "a/b",
        "/abs",
        "..",
        ".hidden",
        "-rf",
        "--help",
        "$(touch PWNED)",
        "`touch PWNED`",
        "; touch PWNED",
        "| touch PWNED",
        "a\nb",
        "ünï",
        "a%2fb",
        "it's \"quoted\"",
        "a,b=c:d",
        "json:{}",
        "nbd://host/x",
        long.as_str(),
    ];
    let mut taken = Vec::new();
    for name in names {
        let file = world.path("snapshot.xml");
        let xml = format!("<domainsnapshot><name>{}</name></domainsnapshot>", escaped(name));
        std::fs::write(&file, xml).unwrap();
        let line = format!("snapshot-create vm {} --disk-only", file.display());
        let outcome = world.virsh.run(&line);
        match outcome.success {
            true => taken.push(name),
            false => assert!(outcome.stderr.contains("error:"), "{name}: {outcome:?}"),
        }
        std::fs::remove_file(&file).unwrap();
    }
    for refused in ["../up", "a/b", "/abs", ".hidden", ".."] {
        assert!(!taken.contains(&refused), "{refused} was taken");
    }
    assert!(taken.contains(&"ünï") && taken.contains(&"-rf"), "{taken:?}");
    let store = world.path("lib");
    for path in files(world.dir()).difference(&before) {
        let is_ours = path.starts_with(&store) || path.ends_with("daemon.log");
        let is_overlay = path.parent() == Some(world.dir())
            && path.file_name().unwrap().to_string_lossy().starts_with("vm-vda.");
        assert!(is_ours || is_overlay, "{}", path.display());
    }
    let pwned = files(world.dir()).into_iter().any(|path| path.ends_with("PWNED"));
    assert!(!pwned && !Path::new("PWNED").exists() && !Path::new("/PWNED").exists());
    // Other tests make directories of theirs there.
    for entry in std::fs::read_dir("/tmp").unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let odd = name.starts_with("up") || name.contains("PWNED");
        assert!(!odd || around.contains(&path), "{}", path.display());
    }
    for _ in &taken {
        vm.virsh("snapshot-delete {} --current");
    }
    assert!(world.virsh.lines("snapshot-list vm --name").is_empty());
}

#[test]
fn an_overlay_is_not_written_through_a_link() {
    if Daemon::chosen() == Daemon::Libvirtd {
        return;
    }
    let world = World::new();
    let _vm = world.define(GuestSpec::idle("vm"));
    let (victim, absent) = (world.path("victim"), world.path("absent"));
    std::fs::write(&victim, "precious").unwrap();
    for target in [&victim, &absent] {
        let link = world.path("link.qcow2");
        symlink(target, &link).unwrap();
        let spec = format!("--diskspec vda,file={}", link.display());
        for reuse in ["", " --reuse-external"] {
            world.virsh.fails(&format!("snapshot-create-as vm one --disk-only {spec}{reuse}"));
        }
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        std::fs::remove_file(&link).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    assert!(!absent.exists());
    assert!(world.virsh.lines("snapshot-list vm --name").is_empty());
}

/// The guest writes an image's header on its raw disk, which names a file of the host's. It must
/// stay data, in every way that leads to QEMU and qemu-img.
#[test]
fn a_header_that_a_guest_writes_on_its_raw_disk_is_data() {
    if Daemon::chosen() == Daemon::Libvirtd {
        return;
    }
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm").disks(&["raw"]));
    let (secret, forged) = (world.path("secret"), world.path("forged"));
    std::fs::write(&secret, vec![0x53; 65536]).unwrap();
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .arg(&secret)
        .arg(&forged)
        .status();
    assert!(made.unwrap().success());
    let header = std::fs::read(&forged).unwrap();
    let disk = std::fs::File::options().write(true).open(vm.disk("vda")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, &header, 0).unwrap();

    let never_named = |vm: &Guest<'_>, when: &str| {
        assert!(!vm.virsh("dumpxml {}").contains("secret"), "{when}");
        for qemu in vm.world.processes("qemu-system") {
            for entry in std::fs::read_dir(format!("/proc/{qemu}/fd")).unwrap() {
                let Ok(open) = std::fs::read_link(entry.unwrap().path()) else { continue };
                assert_ne!(open, secret, "{when}");
            }
        }
    };
    vm.virsh("snapshot-create-as {} off --disk-only");
    never_named(&vm, "shut off");
    vm.virsh("start {}");
    never_named(&vm, "running");
    vm.virsh("snapshot-create-as {} on --disk-only");
    never_named(&vm, "on an overlay");
    vm.virsh("destroy {}");
    vm.virsh("snapshot-revert {} off");
    vm.virsh("start {}");
    never_named(&vm, "reverted");
    vm.virsh("destroy {}");
    vm.virsh("snapshot-delete {} on");
    vm.virsh("snapshot-delete {} off");
    let raw = std::fs::read(vm.disk("vda")).unwrap();
    assert_eq!(raw[..header.len()], header[..], "it is what the guest wrote");
    assert!(!raw.windows(64).any(|part| part == [0x53; 64]), "the host's file came in");
}

#[test]
fn passwords_are_shown_with_the_flag_only() {
    if Daemon::chosen() == Daemon::Libvirtd {
        return;
    }
    let world = World::new();
    let mut spec = GuestSpec::idle("vm");
    spec.devices = format!(
        "<graphics type='vnc' passwd='hush'><listen type='socket' socket='{}'/></graphics>",
        world.path("vnc.sock").display()
    );
    let vm = world.define(spec);
    vm.virsh("start {}");
    vm.virsh("snapshot-create-as {} one");
    let file = world.path("saved");
    vm.virsh(&format!("save {{}} {}", file.display()));
    let image = format!("save-image-dumpxml {}", file.display());
    vm.virsh("snapshot-revert {} one");
    host::wait("the guest to run", 60, || (vm.state() == "running").then_some(()));
    vm.virsh("managedsave {}");
    let lines = ["dumpxml vm", "dumpxml vm --inactive", "snapshot-dumpxml vm one"];
    let read_only = format!("qemu:///system?socket={}", world.read_only_socket());
    let mut liar = world.virsh.clone();
    liar.uri = read_only;
    for line in lines.into_iter().chain([image.as_str(), "managedsave-dumpxml vm"]) {
        assert!(!world.virsh.ok(line).contains("hush"), "{line}");
        let with = format!("{line} --security-info");
        assert!(world.virsh.ok(&with).contains("hush"), "{with}");
        let refused = liar.fails(&with);
        assert!(refused.contains("read only") || refused.contains("read-only"), "{refused}");
    }
}
