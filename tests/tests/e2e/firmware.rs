//! Variables of UEFI firmware and the state of a TPM belong to every kind of snapshot. The guest
//! writes both and says what it finds; real OVMF, real swtpm.

use std::path::PathBuf;

use virtsnap_tests::{Guest, GuestSpec, World, images, programs};

fn uefi<'w>(world: &'w World, nvram_format: &'static str) -> Option<Guest<'w>> {
    let installed = programs::exists("swtpm") && std::path::Path::new("/usr/share/OVMF").exists();
    installed.then(|| world.boot(GuestSpec::new("vm").with_firmware(nvram_format)))
}

/// The attribute's value in the first such place of a snapshot's XML.
fn kept(vm: &Guest<'_>, snapshot: &str, element: &str) -> PathBuf {
    let xml = vm.virsh(&format!("snapshot-dumpxml {{}} {snapshot}"));
    let start = format!("<{element} snapshot='external' file='");
    let rest = xml.split(&start).nth(1).unwrap_or_else(|| panic!("no {element} in {xml}"));
    rest.split('\'').next().unwrap_or_default().into()
}

fn nvram(vm: &Guest<'_>) -> PathBuf {
    let xml = vm.virsh("dumpxml {}");
    let rest = xml.split("<nvram").nth(1).expect("it has UEFI");
    let text = rest.split('>').nth(1).and_then(|text| text.split('<').next());
    text.expect("it is in a file").into()
}

macro_rules! uefi_or_skip {
    ($world:expr, $nvram_format:expr) => {
        match uefi($world, $nvram_format) {
            Some(vm) => vm,
            None => virtsnap_tests::skip!("ovmf and swtpm are not installed"),
        }
    };
}

#[test]
fn memory_comes_back_with_the_variables_it_knows() {
    let world = World::new();
    let vm = uefi_or_skip!(&world, "raw");
    vm.write_firmware("one");
    vm.virsh("snapshot-create-as {} full");
    assert_eq!(vm.state(), "running");
    let copy = kept(&vm, "full", "nvram");
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(nvram(&vm)).unwrap());
    vm.write_firmware("two");
    assert_ne!(std::fs::read(&copy).unwrap(), std::fs::read(nvram(&vm)).unwrap());

    // In the same process.
    vm.virsh("snapshot-revert {} full");
    vm.has_in_firmware("one", "one");
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(nvram(&vm)).unwrap());
    vm.write_firmware("three");
    // In a new one, which never ran before it is ended again: the files alone know.
    vm.virsh("destroy {}");
    vm.virsh("snapshot-revert {} full --paused");
    vm.virsh("destroy {}");
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(nvram(&vm)).unwrap());
    let mark = vm.mark();
    vm.virsh("start {}");
    vm.booted(mark);
    vm.has_in_firmware("one", "one");
    vm.write_firmware("four");
    vm.virsh("snapshot-revert {} full --paused");
    vm.virsh("destroy {}");
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(nvram(&vm)).unwrap());
    vm.virsh("snapshot-revert {} full");
    vm.has_in_firmware("one", "one");
    vm.never_mismatched();

    let tpm = kept(&vm, "full", "tpm");
    assert!(tpm.exists());
    vm.virsh("snapshot-delete {} full");
    assert!(!copy.exists() && !tpm.exists());
    vm.has_in_firmware("one", "one");
}

#[test]
fn disks_come_back_with_the_variables_of_their_moment() {
    let world = World::new();
    let vm = uefi_or_skip!(&world, "raw");
    vm.write_firmware("one");
    vm.virsh("snapshot-create-as {} live --disk-only");
    vm.write_firmware("two");
    vm.virsh("destroy {}");
    vm.virsh("snapshot-create-as {} off --disk-only");
    // The variables are those of the moment, whether the domain ran at the time or not.
    for (snapshot, text) in [("live", "one"), ("off", "two")] {
        let mark = vm.mark();
        vm.virsh(&format!("snapshot-revert {{}} {snapshot} --running"));
        vm.booted(mark);
        vm.has_in_firmware(text, text);
        vm.write_firmware("three");
    }
    // Reset: as new, while the TPM goes back.
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} live --running --reset-nvram");
    vm.booted(mark);
    vm.has_in_firmware("none", "one");
    vm.virsh("destroy {}");

    // Without its copies, or with one that is cut short, a revert is a risk.
    let before = std::fs::read(nvram(&vm)).unwrap();
    let aside = world.path("aside");
    for copy in [kept(&vm, "off", "nvram"), kept(&vm, "off", "tpm")] {
        std::fs::rename(&copy, &aside).unwrap();
        let whole = std::fs::read(&aside).unwrap();
        let damages: [&dyn Fn(); 5] = [
            &|| {},
            &|| std::fs::write(&copy, "").unwrap(),
            &|| std::fs::write(&copy, &whole[..whole.len() / 2]).unwrap(),
            &|| std::fs::create_dir(&copy).unwrap(),
            &|| std::os::unix::fs::symlink("/no/such/file", &copy).unwrap(),
        ];
        for (n, damage) in damages.into_iter().enumerate() {
            damage();
            let disk = vm.source("vda");
            let complaint = vm.refused("snapshot-revert {} off");
            assert!(complaint.contains("revert requires force"), "{n}: {complaint}");
            assert!(complaint.contains(copy.to_str().unwrap()), "{n}: {complaint}");
            assert_eq!(std::fs::read(nvram(&vm)).unwrap(), before, "{n}");
            assert_eq!(vm.source("vda"), disk, "{n}");
            let _ = std::fs::remove_file(&copy).or_else(|_| std::fs::remove_dir(&copy));
        }
        std::fs::rename(&aside, &copy).unwrap();
    }
    let copy = kept(&vm, "off", "nvram");
    std::fs::remove_file(&copy).unwrap();
    vm.virsh("snapshot-revert {} off --force");
    assert_eq!(std::fs::read(nvram(&vm)).unwrap(), before);
    // What a client hands back without knowing of the copies does not lose them.
    let live = kept(&vm, "live", "nvram");
    let file = world.path("live.xml");
    let xml = vm.virsh("snapshot-dumpxml {} live");
    let less: Vec<_> = xml
        .lines()
        .filter(|line| !line.contains("<nvram snapshot=") && !line.contains("<tpm snapshot="))
        .collect();
    std::fs::write(&file, less.join("\n")).unwrap();
    vm.virsh(&format!("snapshot-create {{}} --redefine {}", file.display()));
    assert_eq!(kept(&vm, "live", "nvram"), live);
    vm.virsh("snapshot-delete {} live --children");
    assert!(!live.exists());

    // With the domain goes what snapshots kept of its firmware, if the user says so.
    vm.virsh("snapshot-create-as {} last --disk-only");
    let (store, copy, tpm) = (nvram(&vm), kept(&vm, "last", "nvram"), kept(&vm, "last", "tpm"));
    assert!(store.exists() && copy.exists() && tpm.exists());
    vm.virsh("undefine {} --snapshots-metadata --nvram --tpm");
    assert!(!store.exists() && !copy.exists() && !tpm.exists());
}

#[test]
fn memory_in_a_file_comes_back_with_its_variables() {
    let world = World::new();
    let vm = uefi_or_skip!(&world, "raw");
    vm.write_firmware("one");
    vm.virsh("snapshot-create-as {} saved --memspec snapshot=external --live");
    let copy = kept(&vm, "saved", "nvram");
    vm.write_firmware("two");
    vm.virsh("snapshot-revert {} saved");
    vm.has_in_firmware("one", "one");
    vm.write_firmware("three");
    vm.virsh("destroy {}");
    vm.virsh("snapshot-revert {} saved --paused");
    vm.virsh("destroy {}");
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(nvram(&vm)).unwrap());
    // Memory has the variables in it: without the copy there is no risk.
    std::fs::remove_file(&copy).unwrap();
    vm.virsh("snapshot-revert {} saved");
    vm.has_in_firmware("one", "one");
    vm.never_mismatched();
}

/// Made from a template that is raw; what libvirt does with one of qcow2, and more.
#[test]
fn a_variable_store_in_qcow2_takes_part_like_a_disk() {
    let world = World::new();
    let vm = uefi_or_skip!(&world, "qcow2");
    let store = nvram(&vm);
    vm.write_firmware("one");
    vm.virsh("snapshot-create-as {} full");
    vm.write_firmware("two");
    vm.virsh("snapshot-create-as {} live --disk-only");
    vm.write_firmware("three");
    let xml = vm.virsh("snapshot-dumpxml {} live");
    assert!(xml.contains("<nvram snapshot='internal'/>"), "{xml}");
    let boots_with = |line: &str, variable: &str, tpm: &str| {
        let mark = vm.mark();
        vm.virsh(line);
        vm.booted(mark);
        vm.has_in_firmware(variable, tpm);
    };
    boots_with("snapshot-revert {} live --running", "two", "two");
    vm.write_firmware("three");
    vm.virsh("snapshot-revert {} full");
    vm.has_in_firmware("one", "one");
    vm.virsh("snapshot-revert {} full");
    vm.has_in_firmware("one", "one");
    vm.virsh("destroy {}");
    assert_eq!(images::internal_snapshots(&store), ["full", "live"]);
    vm.virsh("snapshot-create-as {} off");
    boots_with("snapshot-revert {} live --running --reset-nvram", "none", "two");
    boots_with("snapshot-revert {} off --running", "one", "one");
    vm.virsh("snapshot-delete {} live");
    assert_eq!(images::internal_snapshots(&store), ["full", "off"]);
    vm.virsh("destroy {}");
    vm.virsh("snapshot-delete {} full");
    assert_eq!(images::internal_snapshots(&store), ["off"]);
    images::check(&store);
}
