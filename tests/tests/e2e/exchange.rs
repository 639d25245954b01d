//! A host moves from libvirt's own daemon to virtsnapd and back, with its snapshots.
//!
//! One daemon makes a tree, the other lists the same, reverts and deletes; what the guest says
//! proves the content: disks and, where there is memory, memory and disks of one moment.

use std::path::Path;

use virtsnap_tests::guest::Mark;
use virtsnap_tests::virsh::{Outcome, finish};
use virtsnap_tests::{Daemon, Guest, GuestSpec, World, images, oracle, skip};

/// `virtsnapd import …` or `export …` on this world's directories.
fn exchange(world: &World, line: &str) -> Outcome {
    let mut command = world.virtsnapd();
    command.args(line.split_whitespace());
    for (option, below) in [("config", "etc/qemu"), ("state", "lib/qemu"), ("run", "run/qemu")] {
        command.arg(format!("--libvirt-{option}")).arg(world.path(below));
    }
    finish(&mut command, line)
}

#[track_caller]
fn exchanged(world: &World, line: &str) -> String {
    let Outcome { success, stdout, stderr } = exchange(world, line);
    assert!(success, "{line}\n{stdout}{stderr}");
    stdout
}

fn guest<'w>(world: &'w World, spec: &GuestSpec) -> Guest<'w> {
    world.guest(spec.clone())
}

/// The tree, the current one, and what is known of each: must be the same under both.
#[track_caller]
fn known(vm: &Guest) -> String {
    let mut known = vm.virsh("snapshot-list {} --tree");
    known.push_str(&vm.virsh("snapshot-current {} --name"));
    let mut names = vm.world.virsh.lines(&format!("snapshot-list {} --name", vm.name()));
    names.sort();
    for name in names {
        known.push_str(&vm.virsh(&format!("snapshot-dumpxml {{}} {name} --security-info")));
    }
    known
}

/// The guest runs on from the moment: its memory knows what it had counted to.
#[track_caller]
fn runs_from(vm: &Guest, mark: Mark, from: u64, to: u64) {
    let n = vm.next_match(mark);
    assert!((from..=to).contains(&n), "{n} is not between {from} and {to}");
    assert!(vm.lines(mark).iter().all(|line| !line.starts_with("START")), "it booted");
    vm.count_on(2);
}

/// Makes, in whichever daemon runs: if wanted `inside` (memory and disks internal), `file` (memory
/// and disks external), `disks`, and, off, `off`; gives the counts that hold between them.
fn make_tree(vm: &Guest, with_inside: bool) -> [u64; 4] {
    let memory = vm.world.path("file.save");
    let first = vm.count_on(2);
    if with_inside {
        vm.virsh("snapshot-create-as {} inside");
    }
    let second = vm.count_on(3);
    vm.virsh(&format!(
        "snapshot-create-as {{}} file --memspec file={},snapshot=external",
        memory.display()
    ));
    let third = vm.count_on(3);
    vm.virsh("snapshot-create-as {} disks --disk-only");
    let fourth = vm.count_on(3);
    vm.virsh("destroy {}");
    vm.virsh("snapshot-create-as {} off --disk-only");
    [first, second, third, fourth]
}

/// Reverts to each moment of [`make_tree`], deletes all, and looks at what is left.
fn go_back_and_delete(vm: &Guest, counts: [u64; 4]) {
    let [_, second, third, fourth] = counts;
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} file");
    runs_from(vm, mark, second, third);
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} disks --running");
    let found = vm.booted(mark);
    assert!((third..=fourth).contains(&found), "{found} is not between {third} and {fourth}");
    vm.virsh("destroy {}");
    vm.virsh("snapshot-revert {} off");
    assert_eq!(vm.state(), "shut off");
    let mark = vm.mark();
    vm.virsh("start {}");
    let found = vm.booted(mark);
    assert!(found >= fourth, "{found} is older than {fourth}");
    vm.virsh("destroy {}");
    for name in ["file", "disks", "off"] {
        vm.virsh(&format!("snapshot-delete {{}} {name}"));
    }
    let mark = vm.mark();
    vm.virsh("start {}");
    let found = vm.booted(mark);
    assert!(found >= fourth, "{found} is older than {fourth}: a deletion lost what was written");
    vm.virsh("destroy {}");
    vm.never_mismatched();
    assert!(!vm.world.path("file.save").exists(), "memory goes with its snapshot");
}

fn leftovers(world: &World) -> Vec<String> {
    let entries = std::fs::read_dir(world.dir()).expect("the directory is ours");
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut images: Vec<_> = names.filter(|name| name.starts_with("vm-vd")).collect();
    images.sort();
    images
}

#[test]
fn a_tree_made_under_libvirt_is_listed_reverted_and_deleted() {
    if let Some(why) = oracle::unavailable() {
        skip!("{why}");
    }
    let mut world = World::with(Daemon::Libvirtd);
    let spec = GuestSpec::new("vm");
    let vm = world.boot(spec.clone());
    let counts = make_tree(&vm, true);
    let (tree, definition) = (known(&vm), vm.virsh("dumpxml {} --security-info"));
    drop(vm);

    world.become_daemon(Daemon::Virtsnapd, |world| {
        let said = exchanged(world, "import");
        assert!(said.contains("vm: 4 snapshots\n") && said.contains("0 warnings"), "{said}");
        let again = exchange(world, "import vm");
        assert!(!again.success && again.stdout.contains("--replace"), "{}", again.stdout);
        exchanged(world, "import vm --replace");
    });
    let vm = guest(&world, &spec);
    assert_eq!(known(&vm), tree);
    assert_eq!(vm.virsh("dumpxml {} --security-info"), definition);
    // To what libvirt would refuse to go to from here, and to delete.
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} inside");
    runs_from(&vm, mark, counts[0], counts[1]);
    vm.virsh("destroy {}");
    go_back_and_delete(&vm, counts);
    // One more of the old kind, in the image where libvirt made it.
    vm.virsh("snapshot-delete {} inside");
    assert!(images::internal_snapshots(&vm.disk("vda")).is_empty());
    images::check(Path::new(&vm.source("vda")));
    assert!(world.virsh.lines("snapshot-list vm --name").is_empty());
    assert_eq!(leftovers(&world), ["vm-vda.qcow2"], "nothing that libvirt made is left over");
}

#[test]
fn a_tree_made_here_is_listed_reverted_and_deleted_under_libvirt() {
    if let Some(why) = oracle::unavailable() {
        skip!("{why}");
    }
    let mut world = World::with(Daemon::Virtsnapd);
    let spec = GuestSpec::new("vm");
    let vm = world.boot(spec.clone());
    // Without an internal one: libvirt refuses to delete what stands on it.
    let counts = make_tree(&vm, false);
    let (tree, definition) = (known(&vm), vm.virsh("dumpxml {} --security-info"));
    vm.virsh("autostart {}");
    drop(vm);
    world.become_daemon(Daemon::Libvirtd, |world| {
        let said = exchanged(world, "export vm");
        assert!(said.contains("vm: 3 snapshots\n"), "{said}");
        assert!(!exchange(world, "export").success, "it is there already");
        exchanged(world, "export --replace");
        std::fs::remove_file(world.path("etc/qemu/autostart/vm.xml")).expect("it was marked");
    });
    let vm = guest(&world, &spec);
    assert_eq!(known(&vm), tree);
    assert_eq!(vm.virsh("dumpxml {} --security-info"), definition);
    go_back_and_delete(&vm, counts);
}

/// Internal memory alone, which is what the guest's ABI has to be the same for, in both directions.
#[test]
fn internal_snapshots_go_there_and_back() {
    if let Some(why) = oracle::unavailable() {
        skip!("{why}");
    }
    let mut world = World::with(Daemon::Libvirtd);
    let spec = GuestSpec::new("vm").machine("q35").disks(&["qcow2", "qcow2"]);
    let vm = world.boot(spec.clone());
    let first = vm.count_on(2);
    vm.virsh("snapshot-create-as {} theirs");
    let second = vm.count_on(3);
    vm.virsh("destroy {}");
    drop(vm);
    world.become_daemon(Daemon::Virtsnapd, |world| drop(exchanged(world, "import vm")));
    let vm = guest(&world, &spec);
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} theirs");
    runs_from(&vm, mark, first, second);
    vm.virsh("snapshot-create-as {} ours");
    let third = vm.last_match().unwrap_or(0);
    let fourth = vm.count_on(3);
    vm.virsh("destroy {}");
    drop(vm);
    world.become_daemon(Daemon::Libvirtd, |world| {
        drop(exchanged(world, "export vm --replace"));
    });
    let vm = guest(&world, &spec);
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "ours");
    // libvirt 11.3 cannot load an internal snapshot into a QEMU that runs: from off, then.
    let mark = vm.mark();
    vm.virsh("snapshot-revert {} ours");
    runs_from(&vm, mark, third, fourth);
    vm.virsh("destroy {}");
    vm.virsh("snapshot-delete {} ours");
    vm.virsh("snapshot-delete {} theirs");
    assert!(images::internal_snapshots(&vm.disk("vdb")).is_empty());
    vm.never_mismatched();
}

#[test]
fn what_cannot_be_taken_over_is_said_and_left_alone() {
    if let Some(why) = oracle::unavailable() {
        skip!("{why}");
    }
    let mut world = World::with(Daemon::Libvirtd);
    let spec = GuestSpec::idle("vm");
    let vm = world.define(spec.clone());
    for name in ["a", "b", "c"] {
        vm.virsh(&format!("snapshot-create-as {{}} {name} --disk-only"));
    }
    let busy = world.define(GuestSpec::idle("busy"));
    let saved = world.define(GuestSpec::idle("saved"));
    let odd = world.define(GuestSpec::idle("odd"));
    busy.virsh("start {}");
    saved.virsh("start {}");
    saved.virsh("managedsave {}");
    odd.virsh("snapshot-create-as {} s");
    drop((vm, busy, saved, odd));

    let snapshot = |name: &str| world.path(&format!("lib/qemu/snapshot/vm/{name}.xml"));
    let (b, c) = (snapshot("b"), snapshot("c"));
    world.become_daemon(Daemon::Virtsnapd, |world| {
        // libvirt's mark of a deletion that did not end, a file cut short, an unknown element.
        let text = std::fs::read_to_string(&b).expect("libvirt wrote it");
        let marked = text.replacen("</disk>", "<snapshotDeleteInProgress/></disk>", 1);
        assert_ne!(marked, text);
        std::fs::write(&b, &marked).expect("the directory is ours");
        let path = world.path("etc/qemu/odd.xml");
        let text = std::fs::read_to_string(&path).expect("libvirt wrote it");
        let text = text.replacen("<devices>", "<devices><teleporter/>", 1);
        std::fs::write(path, text).expect("the directory is ours");

        let Outcome { success, stdout, .. } = exchange(world, "import");
        assert!(!success, "two are left alone:\n{stdout}");
        for word in [
            "busy: left alone: it runs under libvirt",
            "saved: left alone: libvirt holds its saved memory",
            "a child of 'b'",
            "odd: 1 snapshots",
            "teleporter",
        ] {
            assert!(stdout.contains(word), "no '{word}' in\n{stdout}");
        }
    });
    assert_eq!(world.virsh.lines("list --all --name"), ["odd", "vm"]);
    let odd = guest(&world, &GuestSpec::idle("odd"));
    let complaint = odd.refused("start {}");
    assert!(complaint.contains("teleporter"), "{complaint}");
    let vm = guest(&world, &spec);
    // c froze the file that the interrupted deletion was writing to.
    let complaint = vm.refused("snapshot-revert {} c");
    assert!(complaint.contains("delet") && complaint.contains("vm-vda.b"), "{complaint}");
    let complaint = vm.refused("snapshot-delete {} b");
    assert!(complaint.contains('c'), "{complaint}");
    vm.virsh("snapshot-revert {} a");
    vm.virsh("snapshot-revert {} b");
    vm.virsh("snapshot-delete {} c");
    assert!(!vm.virsh("snapshot-dumpxml {} b").contains("snapshotDeleteInProgress"));
    vm.virsh("snapshot-delete {} b");
    drop((odd, vm));

    world.become_daemon(Daemon::Virtsnapd, |world| {
        // With one file unreadable nothing is ours, and nothing is ever removed.
        std::fs::write(&c, "<domainsnapshot>\n  <name>c").expect("the directory is ours");
        let before = leftovers(world);
        let said = exchanged(world, "import vm --replace");
        assert!(said.contains("c.xml") && said.contains("no image is removed"), "{said}");
        assert_eq!(leftovers(world), before);
    });
    let before = leftovers(&world);
    let vm = guest(&world, &spec);
    vm.virsh("snapshot-delete {} a");
    assert_eq!(leftovers(&world), before, "in doubt the file stays");
}
