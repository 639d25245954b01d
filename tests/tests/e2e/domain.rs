//! What is not about snapshots, and has to be there before them.

use virtsnap_tests::programs::OnTerminal;
use virtsnap_tests::{GuestSpec, World};

#[test]
fn a_guest_is_defined_started_looked_at_and_undefined() {
    let world = World::new();
    let vm = world.define(GuestSpec::new("vm").disks(&["qcow2", "raw"]));
    assert_eq!(world.virsh.lines("list --all --name"), ["vm"]);
    assert!(world.virsh.lines("list --name").is_empty());
    assert_eq!(vm.state(), "shut off");
    assert!(vm.virsh("dominfo {}").contains("Persistent:     yes"));

    let start = vm.mark();
    vm.virsh("start {}");
    assert_eq!(vm.state(), "running");
    assert_eq!(vm.booted(start), 0);
    assert_eq!(world.virsh.lines("list --name"), ["vm"]);
    let xml = vm.virsh("dumpxml {}");
    for expected in ["<domain type='qemu' id='1'>", "<alias name='virtio-disk1'/>", "/dev/pts/"] {
        assert!(xml.contains(expected), "no {expected} in\n{xml}");
    }
    let inactive = vm.virsh("dumpxml --inactive {}");
    let running_only = ["<alias", "/dev/pts/", "<domain type='qemu' id="];
    assert!(!running_only.iter().any(|part| inactive.contains(part)), "{inactive}");
    let disks = vm.virsh("domblklist --details {}");
    for target in ["vda", "vdb"] {
        let file = vm.disk(target);
        assert!(disks.contains(&*file.to_string_lossy()), "{disks}");
    }
    assert!(vm.refused("undefine missing").contains("missing"));
    assert!(vm.refused("start {}").contains("already"));

    vm.virsh("suspend {}");
    assert_eq!(vm.state(), "paused");
    assert_eq!(vm.virsh("domstate --reason {}").trim(), "paused (user)");
    let silent = vm.mark();
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(vm.lines(silent).iter().all(|line| !line.starts_with("MATCH")), "it went on");
    vm.virsh("resume {}");
    vm.next_match(silent);

    vm.virsh("destroy {}");
    assert_eq!(vm.virsh("domstate --reason {}").trim(), "shut off (destroyed)");
    vm.never_mismatched();
    vm.virsh("undefine {}");
    assert!(world.virsh.lines("list --all --name").is_empty());
}

#[test]
fn shutdown_reboot_and_reset_reach_the_guest() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm").machine("q35"));
    let before = vm.mark();
    vm.virsh("reset {}");
    assert!(vm.booted(before) > 0, "a reset keeps the disk");
    let before = vm.mark();
    vm.virsh("reboot {} --mode acpi");
    assert!(vm.booted(before) > 0, "a reboot keeps the disk");
    vm.virsh("shutdown {} --mode acpi");
    virtsnap_tests::host::wait("the guest to shut down", 60, || {
        (vm.state() == "shut off").then_some(())
    });
    assert_eq!(vm.virsh("domstate --reason {}").trim(), "shut off (shutdown)");
    vm.never_mismatched();
}

#[test]
fn a_transient_guest_is_gone_when_it_ends() {
    let world = World::new();
    let file = world.path("transient.xml");
    std::fs::write(&file, GuestSpec { disks: vec![], ..GuestSpec::idle("brief") }.xml(&world))
        .unwrap();
    world.virsh.ok(&format!("create {}", file.display()));
    assert!(world.virsh.ok("dominfo brief").contains("Persistent:     no"));
    world.virsh.ok("destroy brief");
    assert!(world.virsh.lines("list --all --name").is_empty());
}

#[test]
fn autostart_is_remembered() {
    let mut world = World::new();
    world.define(GuestSpec::idle("vm"));
    world.virsh.ok("autostart vm");
    assert!(world.virsh.ok("dominfo vm").contains("Autostart:      enable"));
    world.virsh.ok("autostart --disable vm");
    assert!(world.virsh.ok("dominfo vm").contains("Autostart:      disable"));
    world.virsh.ok("autostart vm");
    world.stop();
    // What a reboot of the host does: a daemon that is only restarted starts nothing.
    std::fs::remove_dir_all(world.path("run")).unwrap();
    world.start();
    assert!(world.virsh.ok("dominfo vm").contains("Autostart:      enable"));
    virtsnap_tests::host::wait("the guest to be started", 30, || {
        (world.virsh.ok("domstate vm").trim() == "running").then_some(())
    });
}

#[test]
fn the_console_is_a_stream_in_both_directions() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    let uri = &world.virsh.uri;
    let mut console = OnTerminal::start(&format!("virsh -c '{uri}' console vm"));
    console.expect("MATCH", 60);
    console.type_text("say hello\r");
    console.expect("SAID hello", 30);
    // Somebody else is told that it is taken, and can take it.
    assert!(vm.refused("console {}").contains("terminal") || !vm.refused("console {}").is_empty());
    console.type_text("\u{1d}");
    assert!(console.ends(20), "^] ends the console");
    assert_eq!(vm.state(), "running");
}

#[test]
fn the_negative_control_is_seen() {
    let world = World::new();
    let vm = world.boot(GuestSpec::new("vm"));
    let mark = vm.mark();
    vm.type_line("lie", "MISMATCH mem=");
    assert!(vm.lines(mark).iter().any(|line| line.ends_with(" on vda")));
}

#[test]
fn events_are_told_as_they_happen() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    let watcher = {
        let mut command = world.virsh.command("event --all --loop --timeout 30");
        std::thread::spawn(move || virtsnap_tests::virsh::finish(&mut command, "event"))
    };
    std::thread::sleep(std::time::Duration::from_secs(2));
    for line in ["start {}", "suspend {}", "resume {}", "destroy {}", "undefine {}"] {
        vm.virsh(line);
    }
    let seen = watcher.join().unwrap().stdout;
    let lifecycle = "event 'lifecycle' for domain 'vm': ";
    // Whether QEMU still gets to say that it ends depends on how it is ended.
    let told: Vec<_> = seen
        .lines()
        .filter_map(|line| line.strip_prefix(lifecycle))
        .filter(|event| !event.starts_with("Shutdown"))
        .collect();
    let expected = [
        "Resumed Unpaused",
        "Started Booted",
        "Suspended Paused",
        "Resumed Unpaused",
        "Stopped Destroyed",
        "Undefined Removed",
    ];
    assert_eq!(told, expected, "{seen}");
}
