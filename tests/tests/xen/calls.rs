//! What clients ask of a daemon for Xen: the connection, and all calls on snapshots, of a guest that is
//! mostly off.

use std::process::{Command, Stdio};
use std::time::Duration;

use virtsnap_tests::host;
use virtsnap_tests::virsh::Virsh;
use virtsnap_tests::xen::{Kind, XenGuest, XenHost, XenSpec};

use crate::lent;

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_connection_is_of_xen_and_of_nothing_else() {
    let host = lent!();
    let uri = &host.virsh.uri;
    assert!(host.virsh.ok("uri").starts_with("xen:///system"), "{uri}");
    let version = host.virsh.ok("version");
    assert!(version.contains("Xen 4.17"), "{version}");
    let capabilities = host.virsh.ok("capabilities");
    for word in ["<os_type>xen</os_type>", "<externalSnapshot/>", "<disksnapshot default='on'"] {
        assert!(capabilities.contains(word), "{capabilities}");
    }
    let node = host.virsh.ok("nodeinfo");
    let memory = node.lines().find_map(|line| line.strip_prefix("Memory size:"));
    let kib: u64 = memory.unwrap().trim().trim_end_matches(" KiB").parse().unwrap();
    let seen = host.ok("awk '/^MemTotal/ { print $2 }' /proc/meminfo");
    assert!(kib > seen.trim().parse().unwrap(), "{kib} KiB is what dom0 has, not the host");
    for (scheme, told) in
        [("qemu:///system", "no connection driver"), ("xen:///session", "Xen URI")]
    {
        let other = Virsh::new(uri.replace("xen:///system", scheme));
        let refused = other.run("list");
        assert!(!refused.success && refused.stderr.contains(told), "{scheme}: {}", refused.stderr);
    }
}

/// What is offered is there, and a guest that cannot be started is refused before it is made.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn what_a_guest_can_have_is_told() {
    let host = lent!();
    let [pv, hvm] = ["xenpv", "xenfv"]
        .map(|machine| host.virsh.ok(&format!("domcapabilities --machine {machine}")));
    let within = |text: &str, tag: &str| -> Vec<String> {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        let parts = text.split(&open).skip(1);
        parts.map(|part| part.split(&close).next().unwrap().to_owned()).collect()
    };
    let loader = hvm.split("<loader").nth(1).and_then(|rest| rest.split("<enum").next()).unwrap();
    let files = [within(&hvm, "path"), within(loader, "value")].concat();
    assert!(files.len() >= 2, "{hvm}");
    for file in files {
        host.ok(&format!("test -f {file}"));
    }
    assert!(hvm.contains("<value>ide</value>") && !pv.contains("<value>ide</value>"), "{pv}");
    assert!(pv.contains("<value>xen</value>") && pv.contains("<loader supported='no'/>"), "{pv}");

    let vm = host.define(XenSpec::new("vm").kind(Kind::Hvm));
    let without = vm.virsh("dumpxml {}").replace("<acpi/>", "");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), without).unwrap();
    host.virsh.ok(&format!("define {}", file.path().display()));
    // Debian's device model is of those that cannot do without.
    let told = vm.refused("start {}");
    assert!(told.contains("-no-acpi") && told.contains("add <acpi/>"), "{told}");
    assert_eq!(vm.state(), "shut off");
    assert!(host.virsh.ok("capabilities").contains("<acpi default='on' toggle='no'/>"));
}

fn off(host: &XenHost) -> XenGuest<'_> {
    host.define(XenSpec::new("vm").disks(&["qcow2", "qcow2"]))
}

/// `snapshot-list --name`, filtered.
#[track_caller]
fn names(vm: &XenGuest<'_>, filter: &str) -> Vec<String> {
    vm.host.virsh.lines(&format!("snapshot-list vm --name {filter}"))
}

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn each_call_on_snapshots_is_answered() {
    let host = lent!();
    let vm = off(&host);
    assert_eq!(host.virsh.lines("list --all --without-snapshot --name"), ["vm"]);
    for name in ["root", "child", "leaf"] {
        vm.virsh(&format!("snapshot-create-as {{}} {name} said --atomic"));
    }
    vm.virsh("snapshot-create-as {} away said --disk-only --diskspec xvdb,snapshot=no");
    assert_eq!(host.virsh.lines("list --all --with-snapshot --name"), ["vm"]);

    // Lists and the tree.
    assert_eq!(names(&vm, "--topological"), ["root", "child", "leaf", "away"]);
    assert_eq!(names(&vm, "--roots"), ["root"]);
    assert_eq!(names(&vm, "--leaves"), ["away"]);
    assert_eq!(names(&vm, "--from root"), ["child"]);
    assert_eq!(names(&vm, "--from child --descendants --topological"), ["leaf", "away"]);
    assert_eq!(names(&vm, "--inactive --internal"), ["child", "leaf", "root"]);
    assert_eq!(names(&vm, "--external"), ["away"]);
    assert_eq!(names(&vm, "--active"), Vec::<String>::new());
    assert_eq!(vm.virsh("snapshot-parent {} child").trim(), "root");
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "away");
    let info = vm.virsh("snapshot-info {} child");
    for line in ["Current:        no", "Children:       1", "Metadata:       yes"] {
        assert!(info.contains(line), "{info}");
    }
    let xml = vm.virsh("snapshot-dumpxml {} away --security-info");
    assert!(xml.contains("<description>said</description>"), "{xml}");
    assert!(xml.contains("<disk name='xvdb' snapshot='no'/>"), "{xml}");
    assert!(xml.contains(&format!("<source file='{}'/>", vm.source("xvda"))), "{xml}");

    // Metadata alone: edited, forgotten, told again.
    let child = vm.virsh("snapshot-dumpxml {} child");
    let file = std::env::temp_dir().join(format!("virtsnap-xen-{}.xml", std::process::id()));
    std::fs::write(&file, child.replace("said", "edited")).unwrap();
    vm.virsh(&format!("snapshot-create {{}} {} --redefine", file.display()));
    assert!(vm.virsh("snapshot-dumpxml {} child").contains("<description>edited</description>"));
    vm.virsh("snapshot-delete {} child --metadata");
    assert_eq!(names(&vm, "--roots"), ["root"]);
    assert_eq!(names(&vm, "--no-metadata"), ["child"], "the images still have it");
    vm.virsh(&format!("snapshot-create {{}} {} --redefine --current", file.display()));
    assert_eq!(vm.virsh("snapshot-current {} --name").trim(), "child");
    std::fs::remove_file(file).unwrap();
    vm.virsh("snapshot-create-as {} unknown --no-metadata --diskspec xvdb,snapshot=internal");
    assert!(!vm.snapshots().contains(&"unknown".to_owned()));

    refusals(&vm);
    vm.virsh("domrename {} other");
    assert_eq!(host.virsh.lines("snapshot-list other --name").len(), 4);
    host.virsh.ok("domrename other vm");
    vm.virsh("undefine {} --snapshots-metadata");
}

fn refusals(vm: &XenGuest<'_>) {
    for (line, why) in [
        ("snapshot-create-as {} a/b", "a/b"),
        ("snapshot-create-as {} .a", "'.a'"),
        ("snapshot-create-as {} a --live", "live"),
        ("snapshot-create-as {} a --memspec snapshot=internal", "memory"),
        ("snapshot-create-as {} a --quiesce", "DISK_ONLY"),
        ("snapshot-create-as {} a --diskspec xvdz", "xvdz"),
        ("snapshot-create-as {} root", "root"),
        ("snapshot-dumpxml {} none", "none"),
        ("undefine {}", "4 snapshots"),
    ] {
        let told = vm.refused(line);
        assert!(told.contains(why), "{line}: {told}");
    }
}

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn what_happens_is_told() {
    let host = lent!();
    let vm = off(&host);
    let mut command = host.virsh.command("event vm --event lifecycle --loop --timeout 600");
    let listener = command.stdout(Stdio::piped()).spawn().unwrap();
    // Until it has registered.
    std::thread::sleep(Duration::from_secs(15));
    vm.virsh("snapshot-create-as {} off");
    for line in ["start {}", "suspend {}", "resume {}", "destroy {}"] {
        vm.virsh(line);
    }
    vm.virsh("snapshot-revert {} off --running");
    vm.virsh("snapshot-revert {} off");
    host::wait("the domain to be off", 60, || (vm.state() == "shut off").then_some(()));
    // It ends as by Ctrl-C, and says what it heard.
    std::thread::sleep(Duration::from_secs(3));
    Command::new("kill").args(["-INT", &listener.id().to_string()]).status().unwrap();
    let told = String::from_utf8(listener.wait_with_output().unwrap().stdout).unwrap();
    let prefix = "event 'lifecycle' for domain 'vm': ";
    let told: Vec<_> = told.lines().filter_map(|line| line.strip_prefix(prefix)).collect();
    let expected = [
        "Started Booted",
        "Suspended Paused",
        "Resumed Unpaused",
        "Stopped Destroyed",
        "Started Snapshot",
        "Stopped Snapshot",
    ];
    let mut rest = told.iter();
    for event in expected {
        assert!(rest.any(|one| *one == event), "no '{event}' in its place: {told:?}");
    }
}
