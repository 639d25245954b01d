//! What is refused, of a guest that is off and of one that stands still, and files that users have
//! prepared: with nothing touched.

use virtsnap_tests::guest::Mark;
use virtsnap_tests::host;
use virtsnap_tests::xen::{GUESTS, XenGuest, XenSpec};

use crate::lent;

/// Which files there are, and in which the guest's disks are.
#[track_caller]
fn world(vm: &XenGuest<'_>) -> (String, String, String) {
    let files = vm.host.ok(&format!("cd {GUESTS} && ls -l --time-style=+ && cat *.plain | md5sum"));
    (files, vm.virsh("domblklist {}"), vm.virsh("snapshot-list {} --tree") + &vm.state())
}

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn overlays_that_xen_cannot_have_are_refused() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm").disks(&["qcow2", "raw"]));
    host.ok(&format!("echo a file > {GUESTS}/a.plain && mkdir {GUESTS}/directory"));
    vm.redefine(|xml| {
        let target = "<target dev='xvdb' bus='xen'/>";
        xml.replace(target, &format!("{target}<shareable/>"))
    });
    let overlay = |attributes: &str, inner: &str| {
        format!("<disk name='xvda' snapshot='external'{attributes}>{inner}</disk>")
    };
    let nbd = "<source protocol='nbd' name='x'><host name='localhost' port='1'/></source>";
    let cache = "<metadata_cache><max_size unit='bytes'>1048576</max_size></metadata_cache>";
    let cases = [
        (overlay("", "<driver type='vmdk'/>"), "vmdk"),
        (overlay("", "<driver type='raw'/>"), "raw"),
        (overlay("", &format!("<driver type='qed'>{cache}</driver>")), "metadata_cache"),
        (overlay(" type='block'", &format!("<source dev='{GUESTS}/a.plain'/>")), "a.plain"),
        (overlay("", &format!("<source file='{GUESTS}/directory'/>")), "directory"),
        (overlay("", &format!("<source file='{GUESTS}/a.plain'/>")), "a.plain"),
        (overlay("", "<source file='/dev/null'/>"), "/dev/null"),
        (overlay(" type='network'", nbd), "network"),
        (overlay(" type='nvme'", ""), "not to be a file"),
        (overlay(" type='dir'", "<source dir='/tmp'/>"), "dir"),
        (overlay(" type='volume'", "<source pool='p' volume='v'/>"), "volume"),
        ("<disk name='xvda' snapshot='no'/><disk name='xvdb' snapshot='external'/>".into(), "xvdb"),
    ];
    vm.write("xvda", 1, 1);
    // Nor disks that forget, or are elsewhere; nor what else a definition of QEMU's may have.
    for (from, to, what) in [
        (
            "<target dev='xvda' bus='xen'/>",
            "<target dev='xvda' bus='xen'/><transient/>",
            "transient",
        ),
        ("<devices>", "<genid/><devices>", "genid"),
        ("<devices>", "<devices><tpm><backend type='emulator'/></tpm>", "tpm"),
        ("<devices>", "<devices><hostdev mode='subsystem' type='pci'/>", "hostdev"),
        ("type='file'", "type='network'", "'network'"),
    ] {
        let xml = vm.virsh("dumpxml {} --inactive");
        let changed = xml.replacen(from, to, 1);
        assert_ne!(changed, xml);
        let told = vm.refused(&format!("define {}", host.file("changed.xml", &changed)));
        assert!(told.contains(what) && told.contains("support"), "{told}");
    }
    for start in [false, true] {
        if start {
            vm.virsh("start {} --paused");
        }
        let before = world(&vm);
        for (disk, why) in &cases {
            let rest = if disk.contains("xvdb") { "" } else { "<disk name='xvdb' snapshot='no'/>" };
            let xml = format!(
                "<domainsnapshot><name>s</name><disks>{disk}{rest}</disks></domainsnapshot>"
            );
            let told = vm
                .refused(&format!("snapshot-create {{}} {} --disk-only", host.file("s.xml", &xml)));
            assert!(told.contains(why), "{xml}: {told}");
        }
        assert_eq!(world(&vm), before);
        assert!(vm.holds("xvda", 1, 1));
    }
}

/// libvirt uses what it is given unseen, and the guest's disk changes under it.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_prepared_overlay_is_used_where_the_disk_stays_what_it_is() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm").disks(&["qcow2"]));
    host.ok(&format!(
        "cd {GUESTS} && on() {{ qemu-img create -q -u -f qcow2 -F qcow2 -b $2 $1 $3; }}
        qemu-img create -q -f qcow2 alone 8M && qemu-img create -q -f qcow2 elsewhere 8M
        on other {GUESTS}/elsewhere 8M; on small {GUESTS}/vm-xvda.qcow2 4M
        on written vm-xvda.qcow2 8M; qemu-io -f qcow2 -c 'write -P 9 0 64k' written > /dev/null
        head -c 4096 /dev/urandom > noise; on mine vm-xvda.qcow2 8M; chmod 640 mine"
    ));
    vm.write("xvda", 1, 0x11);
    let base = vm.source("xvda");
    let create = |file: &str| {
        format!(
            "snapshot-create-as {{}} s --disk-only --reuse-external --diskspec xvda,file={file}"
        )
    };
    for start in [false, true] {
        if start {
            vm.virsh("start {} --paused");
        }
        for (name, why) in [
            ("alone", "on no image"),
            ("other", "elsewhere"),
            ("small", "cut off"),
            ("written", "holds data"),
            ("noise", "not an image"),
            ("absent", "not there"),
        ] {
            let sum = format!("md5sum {GUESTS}/{name} 2>&1");
            let before = host.run(&sum).stdout;
            let told = vm.refused(&create(&format!("{GUESTS}/{name}")));
            assert!(told.contains(why) && told.contains("xvda"), "{name}: {told}");
            assert_eq!(host.run(&sum).stdout, before, "{name} is untouched");
        }
        assert!(vm.refused(&create(&base)).contains("in use"));
        assert_eq!(vm.source("xvda"), base);
        assert!(vm.holds("xvda", 1, 0x11) && vm.snapshots().is_empty());
    }
    // Mine has a relative name of what it stands on, and is not the daemon's to remove; nor is what
    // others stand on to be written to.
    let mine = format!("{GUESTS}/mine");
    vm.virsh(&create(&mine));
    assert_eq!(vm.source("xvda"), mine);
    vm.write("xvda", 2, 0x22);
    assert!(host.ok(&format!("qemu-img info -U {mine}")).contains("backing file: vm-xvda.qcow2"));
    vm.virsh("snapshot-delete {} s");
    assert_eq!(vm.source("xvda"), mine, "'written' and 'small' stand on what is below");
    host.ok(&format!("rm {GUESTS}/written {GUESTS}/small"));
    // Somebody's job in the device model is nobody's to disturb.
    vm.virsh("snapshot-create-as {} t --disk-only");
    let blocks = vm.virsh("qemu-monitor-command {} --hmp 'info block'");
    let node = blocks.split(':').next().unwrap().trim();
    vm.virsh(&format!(
        "qemu-monitor-command {{}} '{{\"execute\": \"block-commit\", \"arguments\": \
         {{\"device\": \"{node}\", \"job-id\": \"mine\"}}}}'"
    ));
    for line in
        ["snapshot-create-as {} u --disk-only", "snapshot-revert {} t", "snapshot-delete {} t"]
    {
        let told = vm.refused(line);
        assert!(told.contains("block job"), "{line}: {told}");
    }
    vm.virsh("qemu-monitor-command {} '{\"execute\": \"block-job-cancel\", \"arguments\": {\"device\": \"mine\"}}'");
    host::wait("the job to end", 60, || {
        let jobs = vm.virsh("qemu-monitor-command {} '{\"execute\": \"query-block-jobs\"}'");
        (!jobs.contains("mine")).then_some(())
    });
    vm.write("xvda", 3, 0x33);
    vm.virsh("snapshot-delete {} t");
    assert!([(1, 0x11), (2, 0x22), (3, 0x33)].iter().all(|&(at, byte)| vm.holds("xvda", at, byte)));
    assert_eq!(host.ok(&format!("stat -c %a {mine}")).trim(), "640");
}

/// As many layers as libvirt lets stand on each other, and one more is refused.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn two_hundred_layers_are_enough() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm").disks(&["qcow2"]));
    vm.write("xvda", 1, 0x21);
    // A layer like any, but for the name of what it stands on, of which all have as many bytes.
    host.ok(&format!(
        "cd {GUESTS} && mv vm-xvda.qcow2 {GUESTS}/l100 &&
        qemu-img create -q -u -f qcow2 -F qcow2 -b {GUESTS}/l100 l101 8M
        for n in $(seq 102 298); do
            sed 's,{GUESTS}/l100,{GUESTS}/l'$((n - 1)), l101 > l$n
        done"
    ));
    vm.redefine(|xml| xml.replace("vm-xvda.qcow2", "l298"));
    vm.virsh("snapshot-create-as {} last --disk-only");
    assert!(vm.holds("xvda", 1, 0x21), "through 200 layers");
    let told = vm.refused("snapshot-create-as {} more --disk-only");
    assert!(told.contains("200") && told.contains("delete snapshots"), "{told}");
    vm.virsh("snapshot-delete {} last");
    assert!(vm.source("xvda").ends_with("l298") && vm.holds("xvda", 1, 0x21));
}

/// A domain without a definition: it has no state to be off in.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_transient_domain_is_never_off() {
    let host = lent!();
    let vm = host.with_images(XenSpec::new("vm").disks(&["qcow2"]));
    let uuid = "<uuid>6b1a2c5e-1d37-4c58-9f0e-52c0d3f0a0aa</uuid>";
    let xml = vm.spec.xml().replace("</name>", &format!("</name>{uuid}"));
    let create = format!("create {} --paused", host.file("vm.xml", &xml));
    host.virsh.ok(&create);
    vm.write("xvda", 1, 1);
    let told = vm.refused("snapshot-create-as {} s --disk-only --halt");
    assert!(told.contains("transient"), "{told}");
    vm.virsh("snapshot-create-as {} s --disk-only");
    vm.write("xvda", 1, 2);
    let told = vm.refused("snapshot-revert {} s");
    assert!(told.contains("transient domain"), "{told}");
    assert!(vm.holds("xvda", 1, 2));
    vm.virsh("snapshot-revert {} s --paused");
    assert!(vm.holds("xvda", 1, 1));
    assert_eq!((vm.state(), vm.snapshots()), ("paused".to_owned(), vec!["s".to_owned()]));
}

/// Of a guest that has stopped and is kept so, and of one that is gone from Xen and whose device model
/// is not.
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_guest_that_goes_down_is_not_taken() {
    let host = lent!();
    let vm = host.define(XenSpec::new("vm").disks(&["qcow2"]));
    vm.redefine(|xml| {
        let (ends, kept) = ("<on_poweroff>destroy<", "<on_poweroff>preserve<");
        assert!(xml.contains(ends), "{xml}");
        xml.replacen(ends, kept, 1)
    });
    vm.virsh("snapshot-create-as {} before");
    let files = || host.ok(&format!("ls {GUESTS}"));
    let before = files();
    let refused = |lines: &[&str]| {
        for line in lines {
            let told = vm.refused(line);
            assert!(told.contains("shutting down"), "{line}: {told}");
        }
        assert_eq!((vm.snapshots(), files()), (vec!["before".to_owned()], before.clone()));
    };
    vm.virsh("start {}");
    vm.booted(Mark::start());
    vm.virsh("shutdown {}");
    vm.becomes("in shutdown");
    let kinds = ["snapshot-create-as vm s", "snapshot-create-as vm s --disk-only"];
    refused(&kinds);
    refused(&["snapshot-delete vm before", "managedsave vm"]);
    vm.virsh("destroy {}");
    vm.check(vm.disk("xvda").to_str().unwrap());

    vm.virsh("start {} --paused");
    let model = host.ok("xenstore-read /local/domain/$(xl domid vm)/image/device-model-pid");
    let model = model.trim();
    host.ok(&format!("kill -STOP {model} && (xl destroy vm > /tmp/xl.log 2>&1 &)"));
    host::wait("Xen to take the guest away", vm.patience, || {
        (!host.ok("xl list").lines().any(|line| line.starts_with("vm "))).then_some(())
    });
    refused(&kinds);
    host.ok(&format!("kill -CONT {model}"));
    vm.becomes("shut off");
    vm.virsh("snapshot-delete {} before");
    vm.check(vm.disk("xvda").to_str().unwrap());
}
