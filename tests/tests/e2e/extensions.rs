//! What the founding proposals asked for and libvirt never took: options of `virtsnap`, elements in
//! XML, a policy in the domain's metadata.

use std::path::{Path, PathBuf};

use virtsnap_tests::{Daemon, Guest, GuestSpec, World, images};

const POLICY: &str = "urn:virtsnap:policy:1";

fn source(vm: &Guest<'_>, target: &str) -> PathBuf {
    PathBuf::from(vm.source(target))
}

fn chain(vm: &Guest<'_>, target: &str) -> Vec<PathBuf> {
    images::chain(&source(vm, target)).into_iter().map(PathBuf::from).collect()
}

#[test]
fn only_the_disks_of_a_live_snapshot_go_back() {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    vm.write("vda", 1, 1);
    vm.virtsnap("create {} live");
    assert!(vm.virsh("snapshot-info {} live").contains("State:          running"));
    vm.write("vda", 1, 2);
    let complaint = vm.virtsnap_refused("revert {} live --stop --running");
    assert!(complaint.contains("cannot be used with"), "{complaint}");
    vm.virtsnap("revert {} live --stop");
    assert_eq!(vm.state(), "shut off");
    assert!(vm.holds("vda", 1, 1));
    // The memory is still there for a revert that wants it.
    vm.virtsnap("revert {} live --paused");
    assert_eq!(vm.state(), "paused");
}

#[test]
fn a_revert_goes_back_onto_the_original_file() {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm").disks(&["qcow2", "raw"]));
    vm.write("vda", 1, 1);
    vm.write("vdb", 1, 1);
    vm.virsh("start {}");
    vm.virtsnap("create {} one --disk-only");
    vm.write("vda", 1, 2);
    vm.write("vdb", 1, 2);
    vm.virtsnap("create {} two --disk-only");
    vm.write("vdb", 2, 3);
    let overlays = [source(&vm, "vda"), source(&vm, "vdb")];

    let complaint = vm.virtsnap_refused("revert {} one --discard");
    assert!(
        complaint.contains("vm-vda.one") && complaint.contains("DELETE_CHILDREN"),
        "{complaint}"
    );
    assert_eq!(vm.state(), "running", "a refusal changes nothing");

    vm.virtsnap("revert {} two --discard");
    assert_eq!(vm.state(), "shut off");
    assert_eq!(vm.snapshots(), ["one"]);
    assert!(vm.source("vdb").ends_with("vm-vdb.one"), "{}", vm.source("vdb"));
    assert!(vm.holds("vdb", 1, 2) && vm.holds("vdb", 2, 0));
    assert!(overlays.iter().all(|file| !file.exists()));

    vm.virtsnap("create {} three --disk-only");
    vm.virsh("start {}");
    vm.write("vda", 1, 4);
    vm.virtsnap("revert {} one --discard --delete-children");
    assert!(vm.snapshots().is_empty());
    for target in ["vda", "vdb"] {
        assert_eq!(source(&vm, target), vm.disk(target));
        assert!(vm.holds(target, 1, 1), "{target}");
    }
    let left = std::fs::read_dir(world.dir()).unwrap().flatten();
    let left = left.filter(|e| e.file_name().to_string_lossy().starts_with("vm-vd")).count();
    assert_eq!(left, 2, "nothing but the original images");
    vm.virsh("start {}");
}

#[test]
fn a_revert_deletes_what_is_below() {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    vm.write("vda", 1, 1);
    vm.virtsnap("create {} root");
    vm.write("vda", 1, 2);
    vm.virtsnap("create {} child");
    vm.virtsnap("create {} leaf --disk-only");
    vm.write("vda", 1, 3);
    let overlay = source(&vm, "vda");
    vm.virtsnap("revert {} root --delete-children");
    assert_eq!(vm.snapshots(), ["root"]);
    assert_eq!(vm.state(), "running");
    assert!(vm.holds("vda", 1, 1));
    assert_eq!(source(&vm, "vda"), vm.disk("vda"), "nothing else reads it any more");
    assert_eq!(images::internal_snapshots(&vm.disk("vda")), ["root"]);
    assert!(!overlay.exists());
    vm.virsh("destroy {}");
    images::check(&vm.disk("vda"));
}

#[test]
fn a_snapshot_need_not_become_current() {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    vm.virtsnap("create {} main --disk-only");
    vm.write("vda", 1, 1);
    vm.virtsnap("create {} aside --disk-only --no-current");
    vm.write("vda", 1, 2);
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "main");
    vm.virtsnap("create {} next --disk-only");
    assert_eq!(vm.virsh("snapshot-parent {} next").trim(), "main");
    let tree = vm.virtsnap("list {} --tree");
    assert_eq!(tree, "main\n  aside\n  next  (current)\n");
    vm.virsh("snapshot-revert {} aside");
    assert!(vm.holds("vda", 1, 1));
    vm.virsh("snapshot-delete {} main --children");
    assert!(vm.snapshots().is_empty());
    assert!(vm.holds("vda", 1, 1));
}

/// The file that is left is the one that was asked for, and what was below it goes or stays the
/// user's.
fn deletes_upwards(running: bool) {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm").disks(&["qcow2", "raw"]));
    vm.write("vda", 1, 1);
    vm.write("vdb", 1, 1);
    if running {
        vm.virsh("start {}");
    }
    vm.virtsnap("create {} one --disk-only --disk vda,on-delete=overlay --disk vdb,on-delete=base");
    let xml = vm.virsh("snapshot-dumpxml {} one");
    assert!(xml.contains("<on_delete keep='overlay'/>"), "{xml}");
    let first = source(&vm, "vda");
    vm.write("vda", 2, 2);
    vm.write("vdb", 2, 2);
    vm.virtsnap("create {} two --disk-only");
    vm.write("vda", 3, 3);

    // Any client's deletion follows it.
    vm.virsh("snapshot-delete {} one");
    let chain = self::chain(&vm, "vda");
    assert_eq!(chain.last(), Some(&first), "{chain:?}");
    assert!(vm.disk("vda").exists(), "the user's own file stays the user's");
    let chain = self::chain(&vm, "vdb");
    assert_eq!(chain.last(), Some(&vm.disk("vdb")), "{chain:?}");

    let second = source(&vm, "vda");
    vm.virtsnap("delete {} two --consolidate --keep overlay");
    assert_eq!(source(&vm, "vda"), second, "no name changes");
    assert_eq!(self::chain(&vm, "vda"), std::slice::from_ref(&second));
    assert!(!first.exists(), "what virtsnap made and nothing needs is gone");
    for (mib, value) in [(1, 1), (2, 2), (3, 3)] {
        assert!(vm.holds("vda", mib, value), "vda at {mib}");
    }
    assert!(vm.holds("vdb", 1, 1) && vm.holds("vdb", 2, 2));
    if running {
        let xml = vm.virsh("dumpxml {}");
        assert!(!xml.contains(&first.display().to_string()), "{xml}");
        vm.virsh("destroy {}");
    }
    images::check(&second);
}

#[test]
fn the_overlay_is_left_live() {
    deletes_upwards(true);
}

#[test]
fn the_overlay_is_left_offline() {
    deletes_upwards(false);
}

#[test]
fn consolidation_is_refused_where_it_cannot_be() {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virtsnap("create {} fork --disk-only");
    vm.virtsnap("create {} branch --disk-only");
    vm.virsh("snapshot-revert {} fork");
    let complaint = vm.virtsnap_refused("delete {} fork --consolidate");
    assert!(complaint.contains("2 images stand on it"), "{complaint}");
    assert_eq!(vm.snapshots(), ["branch", "fork"]);
    vm.virtsnap("delete {} fork");
    assert_eq!(vm.snapshots(), ["branch"]);
}

/// What is cheaper: a small overlay goes down, a large one takes what little is below.
#[test]
fn a_merge_goes_where_less_is_copied() {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm"));
    images::resize(&vm.disk("vda"), "64M");
    vm.virtsnap("create {} one --disk-only");
    let small = source(&vm, "vda");
    vm.write("vda", 1, 1);
    vm.virtsnap("create {} two --disk-only");
    let large = source(&vm, "vda");
    images::io(&large, "qcow2", "write -P 2 8M 40M");
    vm.virsh("start {}");
    vm.virsh("snapshot-delete {} two");
    assert_eq!(source(&vm, "vda"), large);
    assert!(!small.exists());
    assert!(vm.holds("vda", 1, 1) && vm.holds("vda", 30, 2));
    // The lowest file is the user's: it is what is left, whatever it costs.
    vm.virsh("snapshot-delete {} one");
    assert_eq!(source(&vm, "vda"), vm.disk("vda"));
    assert!(vm.holds("vda", 1, 1) && vm.holds("vda", 30, 2));
}

fn set_policy(vm: &Guest<'_>, policy: &str) {
    let line = format!("metadata {{}} {POLICY} --key virtsnap --set \"{policy}\" --live --config");
    vm.virsh(&line);
}

#[test]
fn a_policy_asks_before_running_state_is_lost() {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    vm.virtsnap("create {} live");
    vm.virtsnap("create {} disks --disk-only");
    let complaint = vm.refused(&format!(
        "metadata {{}} {POLICY} --key v --set \"<policy><revert confirm='often'/></policy>\""
    ));
    assert!(complaint.contains("'never', 'restart' or 'always'"), "{complaint}");

    set_policy(&vm, "<policy><revert confirm='restart'/></policy>");
    let told = vm.virsh(&format!("metadata {{}} {POLICY}"));
    assert!(told.contains("confirm"), "{told}");
    vm.write("vda", 1, 1);
    for line in ["revert {} disks", "revert {} live"] {
        let complaint = vm.virtsnap_refused(line);
        assert!(complaint.contains("forced"), "{complaint}");
    }
    assert!(vm.holds("vda", 1, 1), "nothing was touched");
    // virsh repeats with FORCE what was refused as risky.
    vm.virsh("snapshot-revert {} live --force");
    assert_eq!(vm.state(), "running");
    assert!(vm.holds("vda", 1, 0));
    // The snapshot is older than the policy, and the policy holds on.
    let complaint = vm.refused("snapshot-revert {} disks");
    assert!(complaint.contains("policy"), "{complaint}");
    vm.virsh("destroy {}");
    vm.virsh("snapshot-revert {} disks");
}

/// A guest's machine was changed since: the refusal says what.
#[test]
fn a_changed_machine_is_named() {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    vm.virtsnap("create {} live");
    vm.virsh("destroy {}");
    vm.virsh("setmaxmem {} 40M --config");
    vm.virsh("setmem {} 40M --config");
    vm.virsh("start {}");
    set_policy(&vm, "<policy><revert confirm='restart'/></policy>");
    let complaint = vm.refused("snapshot-revert {} live");
    assert!(complaint.contains("<memory>") && complaint.contains("40960"), "{complaint}");
    vm.virsh("snapshot-revert {} live --force");
    assert!(!vm.virsh("dumpxml {}").contains("40960"), "the machine is the snapshot's again");
}

#[test]
fn a_policy_places_disks_and_memory() {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    set_policy(&vm, "<policy><create disks='external' memory='external'/></policy>");
    vm.virsh("snapshot-create-as {} full");
    let xml = vm.virsh("snapshot-dumpxml {} full");
    assert!(xml.contains("<memory snapshot='external' file='"), "{xml}");
    assert!(vm.source("vda").ends_with("vm-vda.full"));
    vm.virsh(
        "snapshot-create-as {} inside --diskspec vda,snapshot=internal --memspec snapshot=internal",
    );
}

#[test]
fn what_only_images_know_is_listed() {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm"));
    images::io(&vm.disk("vda"), "qcow2", "write -P 1 1M 64k");
    images::take_internal(&vm.disk("vda"), "mine");
    vm.virsh("start {}");
    vm.virtsnap("create {} ours");
    let text = vm.virtsnap("images {}");
    assert!(text.starts_with(&format!("{} (vda)\n", vm.disk("vda").display())), "{text}");
    let row = |tag: &str| {
        let found = text.lines().find(|line| line.split_whitespace().nth(1) == Some(tag));
        found.unwrap_or_else(|| panic!("no {tag} in\n{text}")).to_owned()
    };
    assert!(row("mine").contains(" 0 B ") && row("mine").ends_with("no"), "{text}");
    assert!(row("ours").contains("iB ") && row("ours").ends_with("yes"), "{text}");
    let by_disk = vm.virtsnap("disk-snapshot list {}");
    let rows: Vec<Vec<&str>> =
        by_disk.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(rows, [["DEVICE", "ID", "TAG"], ["vda", "1", "mine"], ["vda", "2", "ours"]]);

    assert_eq!(vm.snapshots(), ["ours"], "a list without filters is libvirt's");
    let unknown = || vm.virsh("snapshot-list {} --no-metadata --name");
    assert_eq!(unknown().trim(), "mine");
    assert!(vm.virsh("snapshot-list {} --no-metadata").contains("shutoff"));
    vm.virsh("snapshot-delete {} ours --metadata");
    let names: Vec<String> = unknown().split_whitespace().map(str::to_owned).collect();
    assert_eq!(names, ["mine", "ours"]);
    vm.virsh("destroy {}");
    assert!(vm.virtsnap("images {}").contains("mine"));

    let ro = format!("qemu:///system?socket={}", world.read_only_socket());
    let asked = world.virsh.read_only(ro).virtsnap("images vm");
    assert!(asked.success && asked.stdout.contains("mine"), "{}", asked.stderr);
}

#[test]
fn the_command_says_what_is_wrong() {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm"));
    assert!(vm.virtsnap_refused("revert {} none").contains("none"));
    let asked = world.virsh.virtsnap("images nobody");
    assert!(!asked.success && asked.stderr.starts_with("virtsnap: "), "{}", asked.stderr);
    assert!(Path::new(&vm.source("vda")).exists());
}

/// As libvirt: the memory was saved in the machine that the record shows.
#[test]
fn a_record_keeps_its_machine() {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    vm.virtsnap("create {} live");
    let xml = vm.virsh("snapshot-dumpxml {} live --security-info");
    let file = world.path("snapshot.xml");
    std::fs::write(
        &file,
        xml.replace("<name>live</name>", "<name>live</name><description>d</description>"),
    )
    .unwrap();
    let line = format!("snapshot-create {{}} {} --redefine", file.display());
    vm.virsh(&line);
    let other = xml.replace(">1</vcpu>", ">2</vcpu>");
    assert_ne!(other, xml);
    std::fs::write(&file, other).unwrap();
    let complaint = vm.refused(&line);
    assert!(complaint.contains("vcpus is '1' in one and '2'"), "{complaint}");
}
