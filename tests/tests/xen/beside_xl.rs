//! Guests that `xl create` started: virsh sees them, and snapshots of them work.

use virtsnap_tests::guest::Mark;
use virtsnap_tests::xen::{GUESTS, XenGuest, XenHost, XenSpec};

use crate::{boots, goes_back, lent, sound, take};

pub(crate) fn create(host: &XenHost, spec: XenSpec) -> XenGuest<'_> {
    let vm = host.with_images(spec);
    let text = vm.spec.configuration();
    host.ok(&format!("cat > {GUESTS}/vm.cfg <<'CFG'\n{text}\nCFG\nxl create -q {GUESTS}/vm.cfg"));
    vm.booted(Mark::start());
    vm
}

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_guest_of_xl_is_seen_and_goes_back() {
    let host = lent!();
    let vm = create(&host, XenSpec::new("vm"));
    assert_eq!(host.virsh.lines("list --name"), ["vm"]);
    let xml = vm.virsh("dumpxml {}");
    assert!(xml.contains("<domain type='xen' id='") && xml.contains("memory"), "{xml}");
    assert_eq!(vm.source("xvda"), vm.disk("xvda").to_str().unwrap());
    let one = take(&vm, "one");
    let one = one..vm.count_on(3);
    goes_back(&vm, "one", &one);
    assert!(host.ok("xl list").lines().any(|line| line.starts_with("vm ")));
}

/// xl keeps a process that starts the guest again: on which files?
#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn xl_reboots_its_guest_on_the_layers() {
    let host = lent!();
    let vm = create(&host, XenSpec::new("vm"));
    take(&vm, "one --disk-only");
    let layers = [vm.source("xvda"), vm.source("xvdb")];
    assert!(layers.iter().all(|layer| layer.ends_with(".one")), "{layers:?}");
    assert_eq!(vm.opened(), layers);
    let last = vm.count_on(3);
    let mark = vm.mark();
    host.ok("xl reboot vm");
    boots(&vm, mark, last..u64::MAX);
    assert_eq!(vm.opened(), layers);
    // virsh goes on with it.
    host_sees(&vm, &layers);
    vm.virsh("snapshot-delete {} one");
    assert!(vm.snapshots().is_empty());
    let last = vm.count_on(3);
    let mark = vm.mark();
    host.ok("xl reboot vm");
    boots(&vm, mark, last..u64::MAX);
    sound(&vm);
}

#[track_caller]
fn host_sees(vm: &XenGuest<'_>, files: &[String; 2]) {
    vm.becomes("running");
    assert_eq!(&[vm.source("xvda"), vm.source("xvdb")], files);
}
