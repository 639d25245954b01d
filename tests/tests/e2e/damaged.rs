//! Files that are gone, cut short, or something else than they were: each operation is refused
//! before anything is touched, says which file it is about, and the daemon serves other domains.
//! An operation that does not need the file may go on, and then loses nothing either.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use virtsnap_tests::faults::is_all;
use virtsnap_tests::{Guest, GuestSpec, World, host, images, skip};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Damage {
    Missing,
    Empty,
    CutShort,
    /// Bytes that are no image.
    Nonsense,
    OtherFormat,
    Directory,
    Fifo,
    DanglingLink,
}
use Damage::*;

impl Damage {
    const ALL: [Self; 8] =
        [Missing, Empty, CutShort, Nonsense, OtherFormat, Directory, Fifo, DanglingLink];
    const SAMPLE: [Self; 4] = [Missing, CutShort, Directory, Fifo];

    /// The file as it was is at `aside`.
    fn inflict(self, file: &Path, aside: &Path) {
        fs::rename(file, aside).expect("the file is there");
        match self {
            Missing => {}
            Empty => fs::write(file, "").expect("ours"),
            CutShort => {
                let bytes = fs::read(aside).expect("ours");
                fs::write(file, &bytes[..bytes.len().min(60)]).expect("ours");
            }
            Nonsense => fs::write(file, [7; 70_000]).expect("ours"),
            OtherFormat => images::create(file, "vmdk", "16M"),
            Directory => fs::create_dir(file).expect("ours"),
            Fifo => {
                let made = Command::new("mkfifo").arg(file).status();
                assert!(made.is_ok_and(|status| status.success()), "mkfifo");
            }
            DanglingLink => std::os::unix::fs::symlink("/no/such/file", file).expect("ours"),
        }
    }

    fn heal(self, file: &Path, aside: &Path) {
        match self {
            Missing => {}
            Directory => fs::remove_dir(file).expect("ours"),
            _ => fs::remove_file(file).expect("ours"),
        }
        fs::rename(aside, file).expect("ours");
    }
}

/// Every regular file of the world that a domain may lose, with its bytes.
fn files(world: &World, name: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![world.dir().to_owned(), world.path("lib/domains")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            let below = path.starts_with(world.path("lib/domains"));
            if kind.is_dir() && below {
                directories.push(path);
            } else if kind.is_file()
                && (below || path.to_string_lossy().contains(&format!("{name}-vd")))
            {
                let bytes = fs::read(&path).expect("ours");
                found.insert(path, bytes);
            }
        }
    }
    found
}

/// A domain that is off: `vm-vda.qcow2`, on it the layer of `s1`, on that the one of `s2`.
fn chain<'w>(world: &'w World, name: &str) -> Guest<'w> {
    let vm = world.define(GuestSpec::idle(name));
    vm.write("vda", 1, 1);
    vm.virsh("snapshot-create-as {} s1 --disk-only");
    vm.write("vda", 1, 2);
    vm.virsh("snapshot-create-as {} s2 --disk-only");
    vm.write("vda", 1, 3);
    vm
}

/// Each of the lines is refused with the file's name and leaves everything as it was.
fn every_damage(world: &World, vm: &Guest, file: &Path, lines: &[&str]) -> usize {
    let aside = file.with_file_name("aside");
    let damages: &[Damage] = if is_all() { &Damage::ALL } else { &Damage::SAMPLE };
    let mut refused = 0;
    for damage in damages {
        damage.inflict(file, &aside);
        let (before, listed) = (files(world, vm.name()), vm.snapshots());
        let (state, qemu) = (vm.state(), world.qemu());
        for line in lines {
            let context = format!("{} is {damage:?}, {line}", file.display());
            let outcome = world.virsh.run(&line.replace("{}", vm.name()));
            assert_eq!(world.virsh.ok("domstate other").trim(), "running", "{context}");
            assert!(!outcome.success, "{context}: was done");
            refused += 1;
            let name = file.file_name().expect("a name").to_string_lossy();
            let told = &outcome.stderr;
            assert!(told.contains(&*name), "{context}: {told}");
            assert_eq!((vm.state(), world.qemu()), (state.clone(), qemu.clone()), "{context}");
            assert_eq!(vm.snapshots(), listed, "{context}");
            let now = files(world, vm.name());
            let changed: Vec<_> =
                now.iter().filter(|(path, b)| before.get(*path) != Some(b)).collect();
            let changed: Vec<_> = changed.iter().map(|(path, _)| path).collect();
            assert!(changed.is_empty() && now.len() == before.len(), "{context}: {changed:?}");
        }
        damage.heal(file, &aside);
    }
    refused
}

fn other(world: &World) {
    world.define(GuestSpec::idle("other")).virsh("start {}");
}

/// What a disk needs its whole chain for.
const CREATE: &str = "snapshot-create-as {} e --disk-only";
const CREATE_FULL: &str = "snapshot-create-as {} e";
const CREATE_LIVE: &str = "snapshot-create-as {} e --live --memspec snapshot=external";

fn layers(world: &World, vm: &Guest) -> [PathBuf; 3] {
    [vm.disk("vda"), world.path("vm-vda.s1"), world.path("vm-vda.s2")]
}

/// All three moments are there, and can be gone back to.
fn is_whole(vm: &Guest) {
    assert!(vm.holds("vda", 1, 3));
    for (name, pattern) in [("s2", 2), ("s1", 1)] {
        vm.virsh(&format!("snapshot-revert {{}} {name}"));
        assert!(vm.holds("vda", 1, pattern), "{name}");
    }
}

#[test]
fn an_image_that_is_damaged_is_named_before_anything_is_touched() {
    let world = World::new();
    other(&world);
    let vm = chain(&world, "vm");
    let mut refused = 0;
    for (n, layer) in layers(&world, &vm).iter().enumerate() {
        // What a snapshot froze stands on the layers below.
        let reverts = ["snapshot-revert {} s2", "snapshot-revert {} s1"];
        let lines = [&[CREATE, CREATE_FULL, "start {}"], &reverts[..2 - n]].concat();
        refused += every_damage(&world, &vm, layer, &lines);
    }
    is_whole(&vm);
    println!("faults: {refused} calls on damaged images of a domain that is off refused");
}

#[test]
fn an_image_that_is_damaged_under_a_running_guest_is_named() {
    let world = World::new();
    other(&world);
    let vm = chain(&world, "vm");
    vm.virsh("start {}");
    let mut refused = 0;
    for (n, layer) in layers(&world, &vm).iter().enumerate() {
        let reverts = ["snapshot-revert {} s2", "snapshot-revert {} s1"];
        let lines = [&[CREATE, CREATE_FULL, CREATE_LIVE], &reverts[..2 - n]].concat();
        refused += every_damage(&world, &vm, layer, &lines);
        // The guest has it open, and writes on.
        vm.write("vda", 4, 4);
    }
    vm.virsh("destroy {}");
    assert!(vm.holds("vda", 4, 4));
    is_whole(&vm);
    println!("faults: {refused} calls on damaged images of a running guest refused");
}

/// Where a layer is not there, nobody can tell what else needs the others: it only forgets. What is
/// there and is no image, of a domain that is off or as the disk itself, is named, and nothing is
/// done.
#[test]
fn a_deletion_without_one_of_the_layers_keeps_every_image() {
    let world = World::new();
    other(&world);
    let sample = [
        (Missing, 0, false),
        (Missing, 1, false),
        (Missing, 0, true),
        (Nonsense, 0, false),
        (Nonsense, 1, true),
        (Directory, 1, false),
        (Fifo, 0, true),
    ];
    let all = Damage::ALL.into_iter().flat_map(|damage| {
        let places = (0..3).flat_map(|n| [(n, false), (n, true)]);
        places.map(move |(n, is_running)| (damage, n, is_running))
    });
    let cases: Vec<_> = if is_all() { all.collect() } else { sample.to_vec() };
    let (mut refused, mut forgotten) = (0, 0);
    for (damage, n, is_running) in cases {
        let was_refused = deletes_without(&world, damage, n, is_running);
        *(if was_refused { &mut refused } else { &mut forgotten }) += 1;
    }
    println!(
        "faults: {refused} deletions without a layer refused, {forgotten} forgot and kept all"
    );
}

/// Whether it was refused.
fn deletes_without(world: &World, damage: Damage, n: usize, is_running: bool) -> bool {
    let vm = chain(world, "vm");
    let layers = layers(world, &vm);
    if is_running {
        vm.virsh("start {}");
    }
    let (aside, before) = (world.path("aside"), files(world, "vm"));
    let context = format!("layer {n} is {damage:?}, running: {is_running}");
    damage.inflict(&layers[n], &aside);
    let with_damage = files(world, "vm");
    let state = vm.state();
    // What was asked to be merged cannot be.
    let told = vm.virtsnap_refused("delete {} s1 --consolidate");
    assert!(told.contains(&*layers[n].to_string_lossy()), "{context}: {told}");
    assert_eq!(vm.snapshots(), ["s1", "s2"], "{context}");
    assert!(files(world, "vm") == with_damage, "{context}: a refusal changed something");

    let is_no_image = matches!(damage, Empty | CutShort | Nonsense | OtherFormat);
    // Of a running guest's lower layers QEMU tells; the disk's own is asked by name.
    let is_refused = is_no_image && (!is_running || n == 2);
    let outcome = world.virsh.run("snapshot-delete vm s1");
    assert_eq!(outcome.success, !is_refused, "{context}: {}", outcome.stderr);
    if is_refused {
        assert!(
            outcome.stderr.contains(&*layers[n].to_string_lossy()),
            "{context}: {}",
            outcome.stderr
        );
        assert!(files(world, "vm") == with_damage, "{context}: a refusal changed something");
    } else {
        assert_eq!(vm.snapshots(), ["s2"], "{context}");
    }
    assert_eq!(vm.state(), state, "{context}");
    assert_eq!(world.virsh.ok("domstate other").trim(), "running", "{context}");
    damage.heal(&layers[n], &aside);
    for path in layers.iter().take(if is_running { 2 } else { 3 }) {
        let now = fs::read(path).expect("it was kept");
        assert!(now == before[path], "{context}: {} was changed", path.display());
    }
    assert!(vm.holds("vda", 1, 3), "{context}");
    // What the first could not merge, the next does.
    if is_refused {
        vm.virsh("snapshot-delete {} s1");
    }
    vm.virsh("snapshot-delete {} s2");
    assert!(vm.holds("vda", 1, 3), "{context}");
    let left = images::chain(vm.source("vda").as_ref());
    assert_eq!(left.len(), 1, "{context}: {left:?}");
    if is_running {
        vm.virsh("destroy {}");
    }
    vm.virsh("undefine {}");
    for layer in &layers {
        let _ = fs::remove_file(layer);
    }
    is_refused
}

/// Nobody may write to a file, not even root, until it is dropped.
struct ReadOnly<'f>(&'f Path);

impl<'f> ReadOnly<'f> {
    fn make(file: &'f Path) -> Self {
        for options in [&["--bind"][..], &["-o", "remount,bind,ro"]] {
            let made = Command::new("mount").args(options).arg(file).arg(file).status();
            assert!(made.is_ok_and(|status| status.success()), "mount {}", file.display());
        }
        Self(file)
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// What has to write to it is refused, and succeeds when it may be written to.
#[test]
fn an_image_that_is_read_only_is_left_as_it_is() {
    if !host::is_root() {
        skip!("only root may mount a file read-only");
    }
    let world = World::new();
    let vm = chain(&world, "vm");
    let [base, _, active] = layers(&world, &vm);
    let refused = |file: &Path, line: &str| {
        let before = fs::read(file).expect("ours");
        let told = match line.strip_prefix("virtsnap ") {
            Some(line) => vm.virtsnap_refused(line),
            None => vm.refused(line),
        };
        assert!(told.contains("ead-only"), "{line}: {told}");
        assert!(fs::read(file).expect("ours") == before, "{line}: it was written to");
        assert_eq!(vm.snapshots(), ["s1", "s2"], "{line}");
    };
    let held = ReadOnly::make(&active);
    refused(&active, CREATE_FULL);
    refused(&active, "start {}");
    assert_eq!(vm.state(), "shut off");
    drop(held);
    let merge = "virtsnap delete {} s1 --keep base";
    let held = ReadOnly::make(&base);
    refused(&base, merge);
    assert!(vm.holds("vda", 1, 3));
    vm.virsh("start {}");
    refused(&base, merge);
    assert!(vm.state() == "running" && vm.holds("vda", 1, 3));
    drop(held);
    vm.virtsnap("delete {} s1 --keep base");
    assert_eq!(vm.snapshots(), ["s2"]);
    assert!(vm.holds("vda", 1, 3));
    vm.virsh("destroy {}");
    vm.virsh("snapshot-revert {} s2");
    assert!(vm.holds("vda", 1, 2));
}

/// The newest layer is lost: what the snapshots hold is not.
#[test]
fn a_domain_whose_newest_layer_is_gone_goes_back() {
    let world = World::new();
    let vm = chain(&world, "vm");
    fs::remove_file(&layers(&world, &vm)[2]).expect("ours");
    for (name, pattern) in [("s2", 2), ("s1", 1)] {
        vm.virsh(&format!("snapshot-revert {{}} {name}"));
        assert!(vm.holds("vda", 1, pattern), "{name}");
    }
    vm.virsh("start {}");
}

/// A merge upwards leaves the overlay's name to the disk's own layer.
#[test]
fn a_name_that_the_disk_itself_has_is_not_told_to_be_removed() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.write("vda", 1, 1);
    vm.virsh("snapshot-create-as {} s --disk-only");
    vm.virtsnap("delete {} s --keep overlay");
    let active = vm.source("vda");
    assert!(active.ends_with(".s"), "{active}");
    let told = vm.refused("snapshot-create-as {} s --disk-only");
    assert!(told.contains(&active) && told.contains("in use by the domain 'vm'"), "{told}");
    assert!(told.contains("name another file") && !told.contains("remove it"), "{told}");
    assert!(vm.holds("vda", 1, 1));
}

#[test]
fn memory_that_is_damaged_is_named_while_the_guest_runs() {
    let world = World::new();
    other(&world);
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    let memory = world.path("m.mem");
    vm.virsh(&format!("snapshot-create-as {{}} m --memspec file={}", memory.display()));
    vm.virsh("destroy {}");
    let refused = every_damage(&world, &vm, &memory, &["snapshot-revert {} m"]);
    vm.virsh("start {}");
    let qemu = world.qemu();
    for damage in Damage::SAMPLE {
        damage.inflict(&memory, &world.path("aside"));
        let told = vm.refused("snapshot-revert {} m");
        assert!(told.contains("m.mem"), "{damage:?}: {told}");
        assert_eq!(world.qemu(), qemu, "{damage:?}: the guest was stopped");
        damage.heal(&memory, &world.path("aside"));
    }
    vm.virsh("snapshot-revert {} m");
    println!("faults: {refused} calls on damaged memory refused");
}

/// The daemon finds its own files damaged when it starts. It serves what it can, and says why not.
#[test]
fn a_daemon_that_finds_its_files_damaged_serves_the_others() {
    let mut world = World::new();
    other(&world);
    let moments = {
        let vm = chain(&world, "vm");
        let uuid = vm.virsh("domuuid {}").trim().to_owned();
        world.path("lib/domains").join(uuid).join("moments")
    };
    let damages: &[Damage] =
        if is_all() { &Damage::ALL } else { &[Missing, Nonsense, Directory, Fifo] };
    for (file, is_journal) in
        [(moments.join("s2.xml"), false), (moments.with_file_name("journal.jsonl"), true)]
    {
        if is_journal {
            fs::write(&file, "").expect("ours");
        }
        for damage in damages {
            world.stop();
            let aside = world.path("aside");
            damage.inflict(&file, &aside);
            world.start();
            let context = format!("{} is {damage:?}", file.display());
            assert_eq!(world.virsh.ok("domstate other").trim(), "running", "{context}");
            let vm = world.guest(GuestSpec::idle("vm"));
            assert_eq!(vm.source("vda"), world.path("vm-vda.s2").to_string_lossy(), "{context}");
            assert!(vm.holds("vda", 1, 3), "{context}");
            if is_journal && !matches!(damage, Missing | DanglingLink) {
                // What it says may be half done: nothing else is begun.
                let told = vm.refused("snapshot-delete {} s1");
                assert!(told.contains("journal.jsonl"), "{context}: {told}");
                assert!(vm.holds("vda", 1, 3), "{context}");
            }
            world.stop();
            damage.heal(&file, &aside);
            world.start();
        }
        if is_journal {
            world.stop();
            fs::remove_file(&file).expect("ours");
            world.start();
        }
    }
    let vm = world.guest(GuestSpec::idle("vm"));
    assert_eq!(vm.snapshots(), ["s1", "s2"]);
    vm.virsh("snapshot-revert {} s2");
    assert!(vm.holds("vda", 1, 2));
}
