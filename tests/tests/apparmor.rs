//! On a host with AppArmor: `make test-apparmor` runs these inside the host of `tests/host/apparmor`,
//! whose kernel has it. One at a time: a profile is of the whole host.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use virtsnap_tests::{Daemon, Guest, GuestSpec, World, host, images};

const PROFILE: &str = "virtsnap-qemu";

/// The example of a profile that we install, for a world. Gone when this is dropped.
#[derive(Default)]
struct Profile(Option<String>);

impl Profile {
    /// With these rules for images, also for a QEMU that runs under it already.
    fn load(&mut self, world: &World, rules: &str) {
        self.load_with(world, "(attach_disconnected)", rules);
    }

    fn load_with(&mut self, world: &World, flags: &str, rules: &str) {
        let dir = world.dir().to_str().unwrap();
        let example = host::root().join("driver/daemon/apparmor/qemu");
        let profile = std::fs::read_to_string(example)
            .unwrap()
            .replace("/run/virtsnap/", &format!("{dir}/run/"))
            .replace("/var/lib/virtsnap/", &format!("{dir}/lib/"))
            .replace("/var/log/virtsnap/**", &format!("{dir}/*.console"))
            .replace("(attach_disconnected)", flags)
            .replace("/var/lib/libvirt/images/** rwk,", rules);
        assert!(profile.contains(rules) && profile.matches(dir).count() >= 4, "{profile}");
        parse("--replace", &profile).unwrap();
        self.0 = Some(profile);
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        if let Some(profile) = self.0.take()
            && let Err(why) = parse("--remove", &profile)
        {
            eprintln!("{why}");
        }
    }
}

fn parse(how: &str, profile: &str) -> Result<(), String> {
    let mut parser = Command::new("apparmor_parser");
    let parser = parser.args([how, "--skip-cache"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut parser = parser.spawn().map_err(|err| err.to_string())?;
    let written = parser.stdin.take().map(|mut stdin| stdin.write_all(profile.as_bytes()));
    let outcome = parser.wait_with_output().map_err(|err| err.to_string())?;
    if outcome.status.success() && written.is_some_and(|written| written.is_ok()) {
        return Ok(());
    }
    Err(format!("{profile}\n{}", String::from_utf8_lossy(&outcome.stderr)))
}

/// What confines the guest's QEMU.
fn label(vm: &Guest<'_>) -> String {
    let qemu = vm.world.processes("qemu-system");
    assert_eq!(qemu.len(), 1, "{qemu:?}");
    let label = std::fs::read_to_string(format!("/proc/{}/attr/apparmor/current", qemu[0]));
    label.unwrap().trim().to_owned()
}

fn says(refusal: &str, parts: &[&str]) {
    for part in parts {
        assert!(refusal.contains(part), "no '{part}' in: {refusal}");
    }
}

/// Each program takes its time here: no more of them than are needed.
fn write(vm: &Guest<'_>, pattern: u8) {
    vm.live_io("vda", &format!("write -P {pattern} 1M 64k"));
}

/// What a running guest reads where `write` wrote.
fn reads(vm: &Guest<'_>, image: &str, pattern: u8) -> bool {
    vm.live_io("vda", "flush");
    images::reads(Path::new(image), "qcow2", pattern, 1 << 20, 64 << 10)
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
#[ignore = "needs a kernel with AppArmor: make test-apparmor"]
fn a_host_with_apparmor_needs_no_profile() {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    assert_eq!(label(&vm), "unconfined", "a kernel with AppArmor, and no profile");
    write(&vm, 1);
    vm.virsh("snapshot-create-as {} one --disk-only");
    write(&vm, 2);
    let memory = world.path("two.mem");
    vm.virsh(&format!("snapshot-create-as {{}} two --memspec {},snapshot=external", name(&memory)));
    write(&vm, 3);
    vm.virsh("snapshot-delete {} one");
    assert!(reads(&vm, &vm.source("vda"), 3), "a layer was merged under a running guest");
    vm.virsh("snapshot-revert {} two");
    assert!(reads(&vm, &vm.source("vda"), 2), "a revert brings the old content back");
    write(&vm, 4);
    vm.virsh("destroy {}");
    vm.virsh("snapshot-delete {} two");
    assert!(vm.snapshots().is_empty());
    let left = vm.source("vda");
    assert!(images::reads(Path::new(&left), "qcow2", 4, 1 << 20, 64 << 10), "merged offline");
}

#[test]
#[ignore = "needs a kernel with AppArmor: make test-apparmor"]
fn what_a_profile_denies_is_named_before_anything_is_touched() {
    let (world, mut profile) = (World::with(Daemon::Virtsnapd), Profile::default());
    let vm = world.define(GuestSpec::idle("vm"));
    let base = vm.disk("vda");
    let base = name(&base);
    let one = world.path("vm-vda.one");
    let one = name(&one);
    profile.load(&world, &format!("{base} rwk,"));
    vm.virsh("start {}");
    assert_eq!(label(&vm), format!("{PROFILE} (enforce)"));
    write(&vm, 1);

    // The overlay.
    let refusal = vm.refused("snapshot-create-as {} one --disk-only");
    let rule = |file: &str| format!("\"{file}\" rwk,");
    says(&refusal, &[PROFILE, &format!("write to '{one}'"), "the new overlay of disk 'vda'"]);
    says(&refusal, &["nothing was changed", &rule(one), "apparmor_parser -r"]);
    assert!(vm.snapshots().is_empty() && vm.source("vda") == base && !Path::new(one).exists());
    profile.load(&world, &format!("{base} rwk,\n{one} rwk,"));
    vm.virsh("snapshot-create-as {} one --disk-only");
    write(&vm, 2);

    // The base, which is only read now, and is written to by a merge.
    profile.load(&world, &format!("{base} rk,\n{one} rwk,"));
    let refusal = vm.refused("snapshot-delete {} one");
    says(&refusal, &[PROFILE, &format!("write to '{base}'"), &rule(base)]);
    says(&refusal, &["layer 1 below the top of disk 'vda'", "nothing was changed"]);
    assert_eq!((vm.snapshots(), vm.source("vda")), (vec!["one".to_owned()], one.to_owned()));
    assert!(images::reads(Path::new(base), "qcow2", 1, 1 << 20, 64 << 10));
    profile.load(&world, &format!("{base} rwk,\n{one} rwk,"));
    vm.virsh("snapshot-delete {} one");
    assert!(vm.snapshots().is_empty() && vm.source("vda") == base);
    assert!(reads(&vm, base, 2));

    // A guest that runs goes on where it could not come back.
    vm.virsh("snapshot-create-as {} one --disk-only");
    write(&vm, 3);
    let qemu = world.processes("qemu-system");
    let refusal = vm.refused("snapshot-revert {} one --running");
    says(&refusal, &[PROFILE, "write to", "the top of disk 'vda'", "nothing was changed"]);
    assert_eq!((world.processes("qemu-system"), vm.source("vda")), (qemu, one.to_owned()));
    assert!(reads(&vm, one, 3), "the guest that was to be stopped runs on");
    profile.load(&world, &format!("{}/vm-vda* rwk,", world.dir().display()));
    vm.virsh("snapshot-revert {} one --running");
    assert_eq!(label(&vm), format!("{PROFILE} (enforce)"));
    assert!(reads(&vm, &vm.source("vda"), 2), "a revert brings the old content back");
    vm.virsh("destroy {}");
}

/// A guest from before the profile: the QEMU that a revert starts is confined, though this one is not.
#[test]
#[ignore = "needs a kernel with AppArmor: make test-apparmor"]
fn a_profile_that_came_later_is_of_the_next_qemu() {
    let (world, mut profile) = (World::with(Daemon::Virtsnapd), Profile::default());
    let vm = world.define(GuestSpec::idle("vm"));
    let base = vm.disk("vda");
    vm.virsh("start {}");
    vm.virsh("snapshot-create-as {} one --disk-only");
    profile.load(&world, &format!("{}/vm-vda.* w,", world.dir().display()));
    assert_eq!(label(&vm), "unconfined");
    let refusal = vm.refused("snapshot-revert {} one --running");
    says(
        &refusal,
        &[&format!("nor read '{}'", name(&base)), "layer 1 below the top of disk 'vda'"],
    );
    assert_eq!(vm.state(), "running");

    // A start says as much as QEMU does, and what confines it.
    vm.virsh("destroy {}");
    let refusal = vm.refused("start {}");
    says(&refusal, &[PROFILE, "vm-vda."]);
    // One that is only watched denies nothing.
    profile.load_with(&world, "(attach_disconnected, complain)", "");
    vm.virsh("start {}");
    assert_eq!(label(&vm), format!("{PROFILE} (complain)"));
    vm.virsh("snapshot-delete {} one");
    assert_eq!(vm.source("vda"), name(&base));
    vm.virsh("destroy {}");
}

/// What the kernel does not tell beforehand (here: whose file it is) QEMU is denied in the middle.
#[test]
#[ignore = "needs a kernel with AppArmor: make test-apparmor"]
fn a_denial_in_the_middle_names_layer_and_profile() {
    assert!(host::is_root());
    let (mut world, mut profile) = (World::stopped(Daemon::Virtsnapd), Profile::default());
    world.config = "dynamic_ownership = false".to_owned();
    world.start();
    let vm = world.define(GuestSpec::idle("vm"));
    let base = vm.disk("vda");
    vm.virsh("start {}");
    write(&vm, 1);
    vm.virsh("snapshot-create-as {} one --disk-only");
    write(&vm, 2);
    vm.virsh("destroy {}");
    // Root's QEMU has no capability: others must let it.
    std::os::unix::fs::chown(&base, Some(1234), Some(1234)).unwrap();
    std::fs::set_permissions(&base, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let (dir, file) = (world.dir().display(), name(&base));
    profile.load(&world, &format!("{dir}/vm-vda.one rwk,\n{file} rk,\nowner {file} w,"));
    vm.virsh("start {}");
    assert_eq!(label(&vm), format!("{PROFILE} (enforce)"));
    let refusal = vm.refused("snapshot-delete {} one");
    says(&refusal, &["Permission denied", file, "layer 1 below the top of disk 'vda'", PROFILE]);
    assert_eq!((vm.snapshots(), vm.state()), (vec!["one".to_owned()], "running".to_owned()));
    assert!(images::reads(&base, "qcow2", 1, 1 << 20, 64 << 10));
    profile.load(&world, &format!("{dir}/vm-vda.* rwk,"));
    vm.virsh("snapshot-delete {} one");
    assert!(vm.snapshots().is_empty() && vm.source("vda") == file && reads(&vm, file, 2));
    vm.virsh("destroy {}");
}
