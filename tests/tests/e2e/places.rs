//! Where overlays may live: in files that the user prepared, on block devices, in deep chains,
//! beside disks of every other kind.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use virtsnap_tests::{Guest, GuestSpec, World, host, images, skip};

/// A block device that is a file; gone when dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path) -> Self {
        let made = Command::new("losetup").args(["-f", "--show"]).arg(file).output();
        let made = made.expect("losetup is there");
        assert!(made.status.success(), "{made:?}");
        Self(String::from_utf8_lossy(&made.stdout).trim().into())
    }

    fn of_size(file: &Path, bytes: u64) -> Self {
        fs::File::create(file).and_then(|made| made.set_len(bytes)).expect("the directory is ours");
        Self::new(file)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

fn overlay(at: &Path, backing: &str, size: &str) {
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing])
        .arg(at)
        .arg(size)
        .status();
    assert!(made.expect("qemu-img is there").success());
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").mode() & 0o777
}

/// As Nova does it for a volume in a file: the overlay is made beforehand, with a relative name of
/// what it stands on, and nothing is recorded.
#[test]
fn an_overlay_of_the_users_is_used_as_it_is() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    vm.write("vda", 1, 0x11);
    let mine = world.path("mine.qcow2");
    overlay(&mine, "vm-vda.qcow2", "16M");
    fs::set_permissions(&mine, fs::Permissions::from_mode(0o640)).unwrap();
    let inode = fs::metadata(&mine).unwrap().ino();
    let create = |name: &str, file: &Path| {
        format!(
            "snapshot-create-as {{}} {name} --disk-only --reuse-external --no-metadata \
             --diskspec vda,file={}",
            file.display()
        )
    };
    vm.virsh(&create("one", &mine));
    assert_eq!(vm.source("vda"), mine.to_string_lossy());
    vm.write("vda", 2, 0x22);
    assert!(vm.holds("vda", 1, 0x11) && vm.holds("vda", 2, 0x22));
    assert!(images::has_pattern(&vm.disk("vda"), 0, 2 << 20, 65536), "the base is as it was");
    let told = images::info(&mine);
    assert!(told.contains("backing file: vm-vda.qcow2"), "the header is the user's: {told}");

    // With metadata: merged when it is deleted, and the file stays, as it is not ours.
    let second = world.path("second.qcow2");
    overlay(&second, "mine.qcow2", "16M");
    vm.virsh(&create("two", &second).replace(" --no-metadata", ""));
    vm.write("vda", 3, 0x33);
    vm.virsh("snapshot-delete {} two");
    assert_eq!(vm.source("vda"), mine.to_string_lossy());
    assert!(second.exists() && vm.snapshots().is_empty());
    let holds = |vm: &Guest<'_>| {
        vm.holds("vda", 1, 0x11) && vm.holds("vda", 2, 0x22) && vm.holds("vda", 3, 0x33)
    };
    assert!(holds(&vm));
    vm.virsh("destroy {}");
    let meta = fs::metadata(&mine).unwrap();
    assert_eq!((meta.ino(), meta.mode() & 0o777), (inode, 0o640));
    assert!(holds(&vm));
    // Its chain is found again by the names in the headers.
    vm.virsh("start {}");
    assert!(holds(&vm));
}

/// libvirt uses what it is given unseen, and the guest's disk changes under it (its defect 10).
#[test]
fn an_overlay_that_would_change_the_disk_is_refused() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    let base = vm.disk("vda");
    let at = |name: &str| world.path(name);
    let elsewhere = at("elsewhere.qcow2");
    images::create(&elsewhere, "qcow2", "16M");
    images::create(&at("alone.qcow2"), "qcow2", "16M");
    overlay(&at("other.qcow2"), elsewhere.to_str().unwrap(), "16M");
    overlay(&at("small.qcow2"), base.to_str().unwrap(), "8M");
    overlay(&at("written.qcow2"), base.to_str().unwrap(), "16M");
    images::write_pattern(&at("written.qcow2"), 9, 0, 65536);
    fs::write(at("noise.qcow2"), [7; 4096]).unwrap();
    for start in [false, true] {
        if start {
            vm.virsh("start {}");
        }
        vm.write("vda", 1, 0x11);
        let wrong = [
            ("alone", "on no image"),
            ("other", "elsewhere.qcow2"),
            ("small", "cut off"),
            ("written", "holds data"),
            ("noise", "not an image"),
            ("absent", "not there"),
        ];
        for (name, why) in wrong {
            let file = at(&format!("{name}.qcow2"));
            let before = fs::read(&file).ok();
            let said = vm.refused(&format!(
                "snapshot-create-as {{}} s --disk-only --reuse-external --diskspec vda,file={}",
                file.display()
            ));
            assert!(said.contains(why) && said.contains("vda"), "{name}: {said}");
            assert_eq!(vm.source("vda"), base.to_string_lossy());
            assert_eq!(fs::read(&file).ok(), before, "{name} is untouched");
        }
        let itself = vm.refused(&format!(
            "snapshot-create-as {{}} s --disk-only --reuse-external --diskspec vda,file={}",
            base.display()
        ));
        assert!(itself.contains("in use"), "{itself}");
        assert!(vm.holds("vda", 1, 0x11) && vm.snapshots().is_empty());
    }
}

#[test]
fn an_empty_file_is_filled_and_never_looser_than_its_base() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    for (name, start, base, made, expected) in [
        ("tight", false, 0o600, 0o666, 0o600),
        ("kept", false, 0o664, 0o600, 0o600),
        ("shared", true, 0o640, 0o664, 0o640),
    ] {
        if start {
            vm.virsh("start {}");
        }
        vm.write("vda", 1, 0x41);
        let below = PathBuf::from(vm.source("vda"));
        let file = world.path(name);
        fs::write(&file, "").unwrap();
        fs::set_permissions(&below, fs::Permissions::from_mode(base)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(made)).unwrap();
        let inode = fs::metadata(&file).unwrap().ino();
        vm.virsh(&format!(
            "snapshot-create-as {{}} {name} --disk-only --diskspec vda,file={}",
            file.display()
        ));
        assert_eq!((fs::metadata(&file).unwrap().ino(), mode(&file)), (inode, expected), "{name}");
        vm.write("vda", 2, 0x42);
        assert!(vm.holds("vda", 1, 0x41) && vm.holds("vda", 2, 0x42));
    }
    vm.virsh("destroy {}");
    vm.virsh("snapshot-revert {} tight");
    assert!(vm.holds("vda", 1, 0x41) && vm.holds("vda", 2, 0), "what the base holds");
    let branch = PathBuf::from(vm.source("vda"));
    assert_eq!(mode(&branch), 0o600, "{}", branch.display());
}

/// Whatever the umask of who starts the daemon.
#[test]
fn new_files_are_never_looser_than_their_base() {
    for umask in ["000", "077", "777"] {
        let mut world = World::stopped(virtsnap_tests::Daemon::Virtsnapd);
        world.umask = Some(umask.to_owned());
        world.start();
        let vm = world.define(GuestSpec::idle("vm").disks(&["qcow2", "qcow2"]));
        fs::set_permissions(vm.disk("vda"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(vm.disk("vdb"), fs::Permissions::from_mode(0o644)).unwrap();
        vm.virsh("snapshot-create-as {} off --disk-only");
        assert_eq!(mode(&world.path("vm-vda.off")), 0o600, "umask {umask}");
        assert_eq!(mode(&world.path("vm-vdb.off")), 0o644, "umask {umask}");
        vm.virsh("start {}");
        let memory = world.path("memory");
        vm.virsh(&format!(
            "snapshot-create-as {{}} full --memspec file={},snapshot=external",
            memory.display()
        ));
        assert_eq!(mode(&memory) & 0o177, 0, "memory is nobody else's, umask {umask}");
        assert_eq!(mode(&world.path("vm-vda.full")), 0o600, "umask {umask}");
        assert_eq!(mode(&world.path("vm-vdb.full")), 0o644, "umask {umask}");
        vm.virsh("destroy {}");
        vm.virsh("snapshot-revert {} off");
        assert_eq!(mode(Path::new(&vm.source("vda"))), 0o600, "umask {umask}");
    }
}

#[test]
fn an_overlay_may_be_on_a_block_device() {
    if !host::is_root() {
        skip!("a loop device needs root");
    }
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    let device = Loop::of_size(&world.path("device"), 32 << 20);
    let spec = format!("--diskspec vda,stype=block,file={}", device.path());
    for start in [false, true] {
        if start {
            vm.virsh("start {}");
        }
        vm.write("vda", 1, 0x51);
        vm.virsh(&format!("snapshot-create-as {{}} s --disk-only {spec}"));
        assert_eq!(vm.source("vda"), device.path());
        assert!(vm.virsh("dumpxml --inactive {}").contains("<disk type='block'"));
        vm.write("vda", 2, 0x52);
        vm.write("vda", 3, 0x53);
        assert!(vm.holds("vda", 1, 0x51));
        assert!(images::has_pattern(&vm.disk("vda"), 0, 3 << 20, 65536), "the base is as it was");
        // Nobody else gets a device that is in use.
        let said = vm.refused(&format!("snapshot-create-as {{}} t --disk-only {spec}"));
        assert!(said.contains("in use"), "{said}");
        // Onto the device, and back off it.
        vm.virsh(
            "snapshot-create-as {} on --disk-only --diskspec vda,file=FILE"
                .replace("FILE", world.path("on-device").to_str().unwrap())
                .as_str(),
        );
        vm.write("vda", 4, 0x54);
        vm.virsh("snapshot-delete {} on");
        vm.virsh("snapshot-delete {} s");
        assert_eq!(vm.source("vda"), vm.disk("vda").to_string_lossy());
        for (at, byte) in [(1, 0x51), (2, 0x52), (3, 0x53), (4, 0x54)] {
            assert!(vm.holds("vda", at, byte), "{at}");
            vm.write("vda", at, 0);
        }
        assert!(device.0.exists(), "a device is never removed");
    }
    vm.virsh("destroy {}");
    images::check(&vm.disk("vda"));
}

/// A revert of a disk on a device goes on in a file beside the overlay, not in `/dev`.
#[test]
fn a_disk_on_a_block_device_goes_back() {
    if !host::is_root() {
        skip!("a loop device needs root");
    }
    let world = World::new();
    let device = Loop::of_size(&world.path("device"), 16 << 20);
    let more = format!(
        "<disk type='block' device='disk'><driver name='qemu' type='raw'/>\
         <source dev='{}'/><target dev='vdb' bus='virtio'/></disk>",
        device.path()
    );
    let vm = world.define(GuestSpec { devices: more, ..GuestSpec::idle("vm") });
    vm.virsh("start {}");
    vm.write("vdb", 1, 0x61);
    let file = world.path("vdb.s");
    vm.virsh(&format!(
        "snapshot-create-as {{}} s --disk-only --diskspec vdb,file={}",
        file.display()
    ));
    vm.write("vdb", 1, 0x62);
    vm.virsh("snapshot-revert {} s");
    let now = vm.source("vdb");
    assert!(now.starts_with(world.dir().to_str().unwrap()), "{now}");
    assert!(vm.holds("vdb", 1, 0x61));
    vm.write("vdb", 1, 0x63);
    vm.virsh("snapshot-delete {} s");
    assert_eq!(vm.source("vdb"), device.path());
    assert!(vm.holds("vdb", 1, 0x63));
}

/// libvirt refuses any revert where one disk, a CD-ROM say, is not a file, and lays an
/// overlay on disks that have no part in it (its defect 14).
#[test]
fn other_disks_are_left_alone_by_a_revert() {
    if !host::is_root() {
        skip!("a loop device needs root");
    }
    let world = World::new();
    let cd = Loop::of_size(&world.path("cd"), 4 << 20);
    let data = Loop::of_size(&world.path("data"), 16 << 20);
    let more = format!(
        "<disk type='block' device='cdrom'><driver name='qemu' type='raw'/><source dev='{}'/>\
         <target dev='sda' bus='sata'/><readonly/></disk>\
         <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{}'/>\
         <target dev='vdc' bus='virtio'/></disk>",
        cd.path(),
        data.path()
    );
    let vm = world
        .define(GuestSpec { devices: more, ..GuestSpec::idle("vm").disks(&["qcow2", "qcow2"]) });
    for disk in ["vda", "vdb", "vdc"] {
        vm.write(disk, 1, 0x71);
    }
    vm.virsh(
        "snapshot-create-as {} s --disk-only --diskspec vda,snapshot=external \
         --diskspec vdb,snapshot=no --diskspec vdc,snapshot=no",
    );
    for disk in ["vda", "vdb", "vdc"] {
        vm.write(disk, 1, 0x72);
    }
    let others = ["vdb", "vdc", "sda"].map(|disk| vm.source(disk));
    vm.virsh("snapshot-revert {} s");
    assert!(vm.holds("vda", 1, 0x71), "it went back");
    assert!(vm.holds("vdb", 1, 0x72) && vm.holds("vdc", 1, 0x72), "they did not");
    assert_eq!(["vdb", "vdc", "sda"].map(|disk| vm.source(disk)), others);
    vm.virsh("snapshot-revert {} s --running");
    assert!(vm.holds("vda", 1, 0x71) && vm.holds("vdc", 1, 0x72));
    assert_eq!(["vdb", "vdc", "sda"].map(|disk| vm.source(disk)), others);
}

/// As many layers as libvirt lets stand on each other start, and one more is refused.
#[test]
fn a_chain_at_its_limit_is_refused_another_layer() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.write("vda", 1, 0x21);
    let layer = |n: usize| world.path(&format!("layer{n}"));
    overlay(&layer(2), vm.disk("vda").to_str().unwrap(), "16M");
    for n in 3..=199 {
        overlay(&layer(n), layer(n - 1).to_str().unwrap(), "16M");
    }
    let xml = vm.virsh("dumpxml --inactive {}");
    let file = world.path("deep.xml");
    let deep = xml.replace(vm.disk("vda").to_str().unwrap(), layer(199).to_str().unwrap());
    fs::write(&file, deep).unwrap();
    world.virsh.ok(&format!("define {}", file.display()));
    vm.virsh("snapshot-create-as {} last --disk-only");
    assert!(vm.holds("vda", 1, 0x21), "through 200 layers");
    let said = vm.refused("snapshot-create-as {} more --disk-only");
    assert!(said.contains("200") && said.contains("delete snapshots"), "{said}");
    vm.virsh("start {}");
    let said = vm.refused("snapshot-create-as {} more --disk-only");
    assert!(said.contains("200"), "{said}");
    vm.virsh("snapshot-delete {} last");
    assert!(vm.holds("vda", 1, 0x21));
}

/// A directory with no room left is named before anything is written.
#[test]
fn no_room_is_said_before_anything_is_written() {
    if !host::is_root() {
        skip!("a file system of its own needs root");
    }
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    let small = world.path("small");
    fs::create_dir(&small).unwrap();
    let mount = |what: &[&str]| {
        let status = Command::new(what[0]).args(&what[1..]).arg(&small).status();
        status.is_ok_and(|status| status.success())
    };
    assert!(mount(&["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs"]));
    let unmount = || assert!(mount(&["umount", "-l"]));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        vm.virsh("start {}");
        let before = vm.source("vda");
        let said = vm.refused(&format!(
            "snapshot-create-as {{}} s --memspec file={}/memory,snapshot=external",
            small.display()
        ));
        assert!(said.contains(small.to_str().unwrap()), "{said}");
        assert!(said.contains("24 MiB are needed") && said.contains("8 MiB are free"), "{said}");
        assert_eq!(fs::read_dir(&small).unwrap().count(), 0);
        assert_eq!((vm.state().as_str(), vm.source("vda")), ("running", before));
        vm.virsh(&format!(
            "snapshot-create-as {{}} s --disk-only --diskspec vda,file={}/overlay",
            small.display()
        ));
        vm.write("vda", 1, 0x31);
        vm.virsh("snapshot-delete {} s");
        assert!(vm.holds("vda", 1, 0x31));
        vm.virsh("destroy {}");
    }));
    unmount();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
