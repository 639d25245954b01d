//! What is known of snapshots: lists, trees, parents, the current one, XML, and editing them.

use std::os::unix::fs::PermissionsExt;

use virtsnap_tests::{Guest, GuestSpec, World, images};

/// root ─ a ─ leaf, root ─ b: made offline, b being current.
fn tree(world: &World) -> Guest<'_> {
    let vm = world.define(GuestSpec::idle("vm"));
    for line in [
        "snapshot-create-as {} root 'the first one'",
        "snapshot-create-as {} a",
        "snapshot-create-as {} leaf",
        "snapshot-revert {} root",
        "snapshot-create-as {} b",
    ] {
        vm.virsh(line);
    }
    vm
}

fn sorted(world: &World, line: &str) -> Vec<String> {
    let mut names = world.virsh.lines(line);
    names.sort();
    names
}

#[test]
fn lists_and_filters() {
    let world = World::new();
    let vm = tree(&world);
    for (filter, names) in [
        ("", "a b leaf root"),
        ("--roots", "root"),
        ("--leaves", "b leaf"),
        ("--no-leaves", "a root"),
        ("--metadata", "a b leaf root"),
        ("--no-metadata", ""),
        ("--inactive", "a b leaf root"),
        ("--active", ""),
        ("--disk-only", ""),
        ("--internal", "a b leaf root"),
        ("--external", ""),
        ("--from root", "a b"),
        ("--from root --descendants", "a b leaf"),
        ("--from a --descendants", "leaf"),
        ("--current --descendants", ""),
    ] {
        let found = sorted(&world, &format!("snapshot-list vm --name {filter}"));
        assert_eq!(found.join(" "), names, "{filter}");
    }
    let order = world.virsh.lines("snapshot-list vm --name --topological");
    let place = |name: &str| order.iter().position(|listed| listed == name).unwrap();
    assert!(place("root") < place("a") && place("a") < place("leaf"), "{order:?}");
    assert!(place("root") < place("b"), "{order:?}");

    let drawn = world.virsh.ok("snapshot-list vm --tree");
    assert_eq!(drawn.lines().next(), Some("root"));
    assert!(drawn.contains("+- a") && drawn.contains("|   +- leaf") || drawn.contains("+- leaf"));
    let parents = world.virsh.ok("snapshot-list vm --parent");
    assert!(parents.lines().any(|line| {
        line.split_whitespace().next() == Some("leaf") && line.trim_end().ends_with('a')
    }));
    assert!(world.virsh.lines("list --all --with-snapshot --name").contains(&vm.name().to_owned()));
    assert!(world.virsh.lines("list --all --without-snapshot --name").is_empty());
}

#[test]
fn one_snapshot_is_described() {
    let world = World::new();
    let vm = tree(&world);
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "b");
    assert_eq!(vm.virsh("snapshot-parent {} leaf").trim(), "a");
    assert_eq!(vm.virsh("snapshot-parent {} --current").trim(), "root");
    assert!(vm.refused("snapshot-parent {} root").contains("parent"));
    let info = vm.virsh("snapshot-info {} root");
    for (field, value) in [
        ("Name:", "root"),
        ("Domain:", "vm"),
        ("Current:", "no"),
        ("State:", "shutoff"),
        ("Location:", "internal"),
        ("Parent:", "-"),
        ("Children:", "2"),
        ("Descendants:", "3"),
        ("Metadata:", "yes"),
    ] {
        let line = info.lines().find(|line| line.starts_with(field)).unwrap_or_default();
        assert_eq!(line[field.len().min(line.len())..].trim(), value, "{field} in\n{info}");
    }
    let xml = vm.virsh("snapshot-dumpxml {} root");
    for part in [
        "<domainsnapshot>",
        "<name>root</name>",
        "<description>the first one</description>",
        "<state>shutoff</state>",
        "<creationTime>",
        "<disk name='vda' snapshot='internal'/>",
        "<domain type='qemu'>",
    ] {
        assert!(xml.contains(part), "no {part} in\n{xml}");
    }
    assert!(vm.virsh("snapshot-dumpxml {} leaf").contains("<parent>\n    <name>a</name>"));
    let complaint = vm.refused("snapshot-info {} nobody");
    assert!(complaint.contains("no domain snapshot with matching name 'nobody'"), "{complaint}");
    let complaint = vm.refused("snapshot-create-as {} root");
    assert!(complaint.contains("root") && complaint.contains("already"), "{complaint}");
}

#[test]
fn deletes_of_leaf_middle_root_and_families() {
    let world = World::new();
    let vm = tree(&world);
    // The middle one: its child moves up.
    vm.virsh("snapshot-delete {} a");
    assert_eq!(vm.virsh("snapshot-parent {} leaf").trim(), "root");
    // The current leaf: its parent becomes current.
    vm.virsh("snapshot-delete {} --current");
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "root");
    vm.virsh("snapshot-create-as {} c");
    vm.virsh("snapshot-delete {} root --children-only");
    assert_eq!(sorted(&world, "snapshot-list vm --name"), ["root"]);
    vm.virsh("snapshot-create-as {} d");
    vm.virsh("snapshot-create-as {} e");
    vm.virsh("snapshot-delete {} root --children");
    assert!(world.virsh.lines("snapshot-list vm --name").is_empty());
    assert!(virtsnap_tests::images::internal_snapshots(&vm.disk("vda")).is_empty());
}

#[test]
fn metadata_alone_can_be_forgotten_and_told_again() {
    let world = World::new();
    let vm = tree(&world);
    let file = world.path("leaf.xml");
    std::fs::write(&file, vm.virsh("snapshot-dumpxml {} leaf --security-info")).unwrap();
    vm.virsh("snapshot-delete {} leaf --metadata");
    let images = virtsnap_tests::images::internal_snapshots(&vm.disk("vda"));
    assert!(images.contains(&"leaf".to_owned()), "the image was left alone: {images:?}");
    vm.virsh(&format!("snapshot-create {{}} {} --redefine --current", file.display()));
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "leaf");
    assert_eq!(vm.virsh("snapshot-parent {} leaf").trim(), "a");
    vm.virsh("snapshot-current {} root");
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "root");
    vm.virsh("snapshot-revert {} leaf");
}

#[test]
fn a_description_is_edited() {
    let world = World::new();
    let vm = tree(&world);
    let editor = world.path("editor.sh");
    std::fs::write(&editor, "#!/bin/sh\nsed -i 's/the first one/the oldest one/' \"$1\"\n")
        .unwrap();
    std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = world.virsh.command("snapshot-edit vm root");
    let outcome = virtsnap_tests::virsh::finish(command.env("EDITOR", &editor), "snapshot-edit");
    assert!(outcome.success, "{}{}", outcome.stdout, outcome.stderr);
    let xml = vm.virsh("snapshot-dumpxml {} root");
    assert!(xml.contains("<description>the oldest one</description>"), "{xml}");
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "b", "which one is current stays");
    assert_eq!(vm.virsh("snapshot-parent {} a").trim(), "root");
}

#[test]
fn undefine_wants_to_be_told_about_snapshots() {
    let world = World::new();
    let vm = tree(&world);
    let complaint = vm.refused("undefine {}");
    assert!(complaint.contains("snapshot"), "{complaint}");
    assert_eq!(sorted(&world, "snapshot-list vm --name").len(), 4);
    vm.virsh("undefine {} --snapshots-metadata");
    assert!(world.virsh.lines("list --all --name").is_empty());
}

#[test]
fn a_snapshot_without_metadata_leaves_none() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("snapshot-create-as {} quiet --no-metadata");
    assert!(world.virsh.lines("snapshot-list vm --name").is_empty());
    assert_eq!(virtsnap_tests::images::internal_snapshots(&vm.disk("vda")), ["quiet"]);
    assert!(vm.refused("snapshot-current {}").contains("current"));
}

#[test]
fn a_renamed_domain_keeps_its_snapshots() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    images::write_pattern(&vm.disk("vda"), 1, 0, 65536);
    vm.virsh("snapshot-create-as {} inside");
    vm.virsh("snapshot-create-as {} outside --disk-only");
    world.virsh.ok("domrename vm other");
    assert_eq!(world.virsh.lines("snapshot-list other --name"), ["inside", "outside"]);
    assert!(world.virsh.ok("snapshot-dumpxml other inside").contains("<name>other</name>"));
    assert_eq!(world.virsh.ok("snapshot-current other --name").trim(), "outside");
    for (filter, found) in [("--with-snapshot", true), ("--without-snapshot", false)] {
        let listed = world.virsh.lines(&format!("list --all --name {filter}"));
        assert_eq!(listed.contains(&"other".to_owned()), found, "{filter}");
    }
    world.virsh.ok("snapshot-revert other inside");
    world.virsh.ok("snapshot-revert other outside");
    assert!(world.virsh.ok("dumpxml other").contains("<name>other</name>"));
    world.virsh.ok("snapshot-delete other outside");
    world.virsh.ok("snapshot-delete other inside");
    world.virsh.ok("undefine other");
}
