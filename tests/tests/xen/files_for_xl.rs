//! What whoever works with xl makes of our snapshots, and we of theirs: `snapshotdata-NAME.xl`.

use virtsnap_tests::xen::{GUESTS, XenGuest, XenHost, XenSpec};

use crate::beside_xl::create;
use crate::{lent, sound, take};

/// Where the daemon keeps the records of its only domain's snapshots.
const MOMENTS: &str = "/root/virtsnap/lib/domains/*/moments";

fn spec() -> XenSpec {
    XenSpec::new("vm").disks(&["qcow2", "qcow2"])
}

fn disks(vm: &XenGuest<'_>) -> String {
    ["xvda", "xvdb"].map(|target| vm.disk(target).display().to_string()).join(" ")
}

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn xl_goes_back_to_a_snapshot_of_ours() {
    let host = lent!();
    let vm = host.boot(spec());
    let before = take(&vm, "one");
    let range = before..vm.count_on(3);
    let listed = host.virsh.virtsnap("disk-snapshot list vm");
    let rows: Vec<Vec<&str>> =
        listed.stdout.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    let expected = [["DEVICE", "ID", "TAG"], ["xvda", "1", "one"], ["xvdb", "1", "one"]];
    assert_eq!(rows, expected, "{}", listed.stderr);

    vm.count_on(2);
    let mark = vm.mark();
    host.ok(&format!(
        "cd {MOMENTS} && . ./snapshotdata-one.xl && xl destroy vm || exit
        for disk in {}; do qemu-img snapshot -a \"$snapshot_name\" $disk || exit; done
        xl restore \"$snapshot_save\"",
        disks(&vm)
    ));
    let n = vm.next_match(mark);
    assert!(range.contains(&n), "it went on at {n}, which is not of {range:?}");
    vm.becomes("running");
    assert_eq!(vm.snapshots(), ["one"]);
    vm.virsh("snapshot-delete {} one");
    host.ok(&format!("! ls {MOMENTS}/*"));
    vm.count_on(2);
    sound(&vm);
}

#[test]
#[ignore = "needs a Xen host: make test-xen"]
fn a_snapshot_made_with_xl_is_gone_back_to() {
    let mut host = lent!();
    let range = made_with_xl(&host);
    // It is taken in when the daemon starts.
    host.kill();
    host.start();
    let vm = host.guest(spec());
    assert_eq!(vm.snapshots(), ["made"]);
    crate::goes_back(&vm, "made", &range);
    vm.virsh("snapshot-delete {} made");
    host.ok(&format!("test -s {GUESTS}/made.save"));
    sound(&vm);
}

fn made_with_xl(host: &XenHost) -> std::ops::Range<u64> {
    let vm = create(host, spec());
    let before = vm.count_on(2);
    let mark = vm.mark();
    host.ok(&format!(
        "xl save vm {GUESTS}/made.save || exit
        for disk in {}; do qemu-img snapshot -c made $disk || exit; done
        xl restore {GUESTS}/made.save",
        disks(&vm)
    ));
    let after = vm.next_match(mark) + 2;
    vm.becomes("running");
    // As those who asked for such files in 2014 have them.
    let place = format!("/var/lib/xen/snapshots/{}", vm.virsh("domuuid {}").trim());
    host.ok(&format!(
        "mkdir -p {place} && cd {place} && cat > snapshotdata-made.xl <<'INFO'\n\
         snapshot_name=\"made\"\nsnapshot_creationtime=\"1397207577\"\n\
         snapshot_save=\"{GUESTS}/made.save\"\nINFO"
    ));
    vm.count_on(3);
    before..after
}
