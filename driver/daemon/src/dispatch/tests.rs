//! The unmodified `virsh` against the whole daemon, over a hypervisor in memory.

use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;

use tokio::process::Command;
use tokio::sync::watch;

use super::Daemon;
use crate::domains::Domains;
use crate::fake::{self, FakeHypervisor};
use crate::handle::{Peer, SessionHandle};
use crate::server::{self, Endpoint, Limits, Listener};

const VM: &str = "<domain type='qemu'><name>vm</name>\
    <uuid>11111111-2222-3333-4444-555555555555</uuid><memory unit='KiB'>65536</memory>\
    <currentMemory unit='KiB'>65536</currentMemory><vcpu>2</vcpu><os><type>hvm</type></os>\
    <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
    <source file='/images/vm.qcow2'/><target dev='vda' bus='virtio'/></disk>\
    <graphics type='vnc' passwd='hush'/></devices></domain>";

/// Says loudly that nothing was tested; an error where that must not happen.
fn have_virsh() -> bool {
    let found = std::process::Command::new("virsh").arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: there is no virsh");
        assert!(std::env::var_os("CI").is_none(), "virsh is missing in CI");
    }
    found
}

struct Served {
    directory: tempfile::TempDir,
    socket: PathBuf,
    domains: Arc<Domains<FakeHypervisor>>,
    _stop: watch::Sender<bool>,
}

fn serve() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let (domains, sessions) = fake::domains_and_sessions(&directory.path().join("state"));
    let domains = Arc::new(domains);
    let socket = directory.path().join("sock");
    let endpoint = Endpoint {
        path: socket.clone(),
        mode: 0o600,
        group: None,
        read_only: false,
        own_user_only: true,
    };
    let listener = Listener::bind(&endpoint).unwrap();
    let (stop, stopped) = watch::channel(false);
    let daemon = Arc::new(Daemon::new(domains.clone()));
    tokio::spawn(server::serve(vec![listener], daemon, sessions, Limits::default(), stopped));
    Served { directory, socket, domains, _stop: stop }
}

impl Served {
    async fn run(&self, arguments: &[&str]) -> Output {
        let uri = format!("qemu:///system?socket={}", self.socket.display());
        Command::new("virsh")
            .args(["-c", &uri])
            .args(arguments)
            .env("LC_ALL", "C")
            .output()
            .await
            .unwrap()
    }

    /// What it prints, without the empty lines around.
    async fn virsh(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "virsh {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// What it complains.
    async fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(!output.status.success(), "virsh {arguments:?} was not refused");
        String::from_utf8(output.stderr).unwrap()
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_lives_and_ends() {
    if !have_virsh() {
        return;
    }
    let served = serve();
    let xml = served.file("vm.xml", VM);
    served.virsh(&["define", &xml]).await;
    assert_eq!(served.virsh(&["list", "--all", "--name"]).await, "vm");
    served.virsh(&["start", "vm"]).await;
    assert_eq!(served.virsh(&["domstate", "--reason", "vm"]).await, "running (booted)");
    assert_eq!(served.virsh(&["domid", "vm"]).await, "1");
    assert_eq!(served.virsh(&["domname", "1"]).await, "vm");
    served.virsh(&["suspend", "vm"]).await;
    assert_eq!(served.virsh(&["domstate", "--reason", "vm"]).await, "paused (user)");
    served.virsh(&["resume", "vm"]).await;
    served.virsh(&["reboot", "vm"]).await;
    served.virsh(&["reset", "vm"]).await;
    let again = served.refused(&["start", "vm"]).await;
    assert!(again.contains("already active") || again.contains("already running"), "{again}");
    served.virsh(&["destroy", "--graceful", "vm"]).await;
    assert_eq!(served.virsh(&["domstate", "--reason", "vm"]).await, "shut off (destroyed)");
    served.virsh(&["domrename", "vm", "vm2"]).await;
    served.virsh(&["undefine", "vm2", "--snapshots-metadata", "--nvram"]).await;
    let gone = served.refused(&["dominfo", "vm2"]).await;
    assert!(gone.contains("failed to get domain 'vm2'"), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_tells_about_itself() {
    if !have_virsh() {
        return;
    }
    let served = serve();
    let xml = served.file("vm.xml", VM);
    served.virsh(&["define", &xml]).await;
    let info = served.virsh(&["dominfo", "vm"]).await;
    for line in ["Max memory:     65536 KiB", "CPU(s):         2", "Persistent:     yes"] {
        assert!(info.contains(line), "{info}");
    }
    assert!(served.virsh(&["domblklist", "vm"]).await.contains("/images/vm.qcow2"));
    assert!(!served.virsh(&["dumpxml", "vm"]).await.contains("hush"));
    assert!(served.virsh(&["dumpxml", "vm", "--security-info"]).await.contains("hush"));
    let barred = served.refused(&["-r", "dumpxml", "vm", "--security-info"]).await;
    assert!(barred.contains("secure flag"), "{barred}");
    assert_eq!(served.virsh(&["vcpucount", "vm", "--maximum", "--config"]).await, "2");
    let idle = served.refused(&["domjobinfo", "vm"]).await;
    assert!(idle.contains("domain is not running"), "{idle}");
    let commit = served.refused(&["blockcommit", "vm", "vda", "--active"]).await;
    assert!(commit.contains("invalid argument: no base for 'vda'"), "{commit}");
    for command in ["vcpuinfo", "vcpupin", "emulatorpin"] {
        let told = served.virsh(&[command, "vm"]).await;
        assert!(told.contains("Affinity"), "{command}: {told}");
    }
    assert!(served.virsh(&["iothreadinfo", "vm"]).await.contains("No IOThreads found"));
    assert!(served.virsh(&["domstats", "vm"]).await.contains("block.0.path=/images/vm.qcow2"));
    for command in ["nodeinfo", "nodecpumap", "nodememstats", "nodecpustats", "freecell", "uri"] {
        served.virsh(&[command]).await;
    }
    assert!(served.virsh(&["freecell", "--all"]).await.contains("Total:"));
    assert_eq!(served.virsh(&["capabilities"]).await, "<capabilities/>");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_found_by_its_path() {
    if !have_virsh() {
        return;
    }
    let served = serve();
    let image = served.file("a.img", "12345");
    let vm = VM.replace("/images/vm.qcow2", &image);
    let xml = served.file("vm.xml", &vm);
    assert!(served.virsh(&["vol-dumpxml", &image]).await.contains(">5</capacity>"));
    let directory = served.virsh(&["vol-pool", &image]).await;
    assert!(image.starts_with(&directory), "{directory}");
    served.virsh(&["pool-info", &directory]).await;
    assert!(served.refused(&["vol-info", "/nowhere"]).await.contains("Storage volume not found"));
    let barred = served.refused(&["-r", "vol-info", &image]).await;
    assert!(barred.contains("forbidden"), "{barred}");
    served.virsh(&["define", &xml]).await;
    served.virsh(&["start", "vm"]).await;
    let used = served.refused(&["vol-delete", &image]).await;
    assert!(used.contains("still in use by the running domain 'vm'"), "{used}");
    served.virsh(&["destroy", "vm"]).await;
    let snapshot = format!(
        "<domainsnapshot><name>s</name><state>shutoff</state><creationTime>1</creationTime>\
         <disks><disk name='vda' snapshot='internal'/></disks>{vm}</domainsnapshot>"
    );
    let snapshot = served.file("s.xml", &snapshot);
    served.virsh(&["snapshot-create", "vm", &snapshot, "--redefine"]).await;
    let used = served.refused(&["vol-delete", &image]).await;
    assert!(used.contains("still in use by snapshot 's' of domain 'vm'"), "{used}");
    served.virsh(&["undefine", "vm", "--snapshots-metadata", "--remove-all-storage"]).await;
    assert!(!std::path::Path::new(&image).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_done_is_refused_by_its_name() {
    if !have_virsh() {
        return;
    }
    let served = serve();
    let xml = served.file("vm.xml", VM);
    served.virsh(&["define", &xml]).await;
    let refused = served.refused(&["perf", "vm"]).await;
    let expected = "not supported by the connection driver: virDomainGetPerf";
    assert!(refused.contains(expected), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_is_changed_piece_by_piece() {
    if !have_virsh() {
        return;
    }
    let served = serve();
    let xml = served.file("vm.xml", VM);
    served.virsh(&["define", &xml]).await;
    served.virsh(&["desc", "vm", "--title", "A title"]).await;
    assert_eq!(served.virsh(&["desc", "vm", "--title"]).await, "A title");
    served.virsh(&["metadata", "vm", "http://x/", "--key", "k", "--set", "<a/>", "--config"]).await;
    assert_eq!(served.virsh(&["metadata", "vm", "http://x/", "--config"]).await, "<a/>");
    served.virsh(&["setmem", "vm", "32M", "--config"]).await;
    served.virsh(&["setvcpus", "vm", "1", "--config"]).await;
    let info = served.virsh(&["dominfo", "vm"]).await;
    assert!(
        info.contains("Used memory:    32768 KiB") && info.contains("CPU(s):         1"),
        "{info}"
    );
    served.virsh(&["attach-disk", "vm", "/b.qcow2", "vdb", "--config"]).await;
    assert!(served.virsh(&["domblklist", "vm"]).await.contains("/b.qcow2"));
    served.virsh(&["detach-disk", "vm", "vdb", "--config"]).await;
    assert!(!served.virsh(&["domblklist", "vm"]).await.contains("/b.qcow2"));
    served.virsh(&["autostart", "vm"]).await;
    assert_eq!(served.virsh(&["list", "--all", "--autostart", "--name"]).await, "vm");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_element_is_refused_by_its_name() {
    if !have_virsh() {
        return;
    }
    let served = serve();
    let xml = served.file("vm.xml", &VM.replace("<devices>", "<unknown/><devices>"));
    let refused = served.refused(&["define", &xml]).await;
    assert!(refused.contains("unsupported configuration: element <unknown>"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_metadata_is_put_back_listed_and_forgotten() {
    if !have_virsh() {
        return;
    }
    let served = serve();
    let xml = served.file("vm.xml", VM);
    served.virsh(&["define", &xml]).await;
    for (name, parent) in [("a", None), ("b", Some("a")), ("c", Some("b")), ("d", Some("a"))] {
        let parent =
            parent.map_or(String::new(), |name| format!("<parent><name>{name}</name></parent>"));
        let snapshot = served.file(
            "s.xml",
            &format!(
                "<domainsnapshot><name>{name}</name><state>shutoff</state>{parent}\
                 <creationTime>1700000000</creationTime><disks>\
                 <disk name='vda' snapshot='internal'/></disks>{VM}</domainsnapshot>"
            ),
        );
        served.virsh(&["snapshot-create", "vm", &snapshot, "--redefine", "--current"]).await;
    }
    let tree = served.virsh(&["snapshot-list", "vm", "--tree"]).await;
    assert_eq!(tree.split_whitespace().filter(|word| word.len() == 1 && *word != "|").count(), 4);
    assert_eq!(served.virsh(&["snapshot-current", "vm", "--name"]).await, "d");
    assert_eq!(served.virsh(&["snapshot-parent", "vm", "c"]).await, "b");
    let info = served.virsh(&["snapshot-info", "vm", "a"]).await;
    for line in ["Children:       2", "Descendants:    3", "Current:        no"] {
        assert!(info.contains(line), "{info}");
    }
    let leaves = served.virsh(&["snapshot-list", "vm", "--leaves", "--name"]).await;
    assert_eq!(leaves.split_whitespace().collect::<Vec<_>>(), ["c", "d"]);
    assert!(!served.virsh(&["snapshot-dumpxml", "vm", "a"]).await.contains("hush"));
    let missing = served.refused(&["snapshot-info", "vm", "x"]).await;
    assert!(missing.contains("Domain snapshot not found"), "{missing}");
    let kept = served.refused(&["undefine", "vm"]).await;
    assert!(kept.contains("cannot delete inactive domain with 4 snapshots"), "{kept}");
    served.virsh(&["snapshot-delete", "vm", "a", "--children-only", "--metadata"]).await;
    assert_eq!(served.virsh(&["snapshot-list", "vm", "--name"]).await, "a");
    served.virsh(&["undefine", "vm", "--snapshots-metadata"]).await;
    assert!(served.domains.table.all().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_held_against_the_grammar_only_when_asked() {
    if !have_virsh() {
        return;
    }
    let served = serve();
    served.virsh(&["define", &served.file("vm.xml", VM)]).await;
    let snapshot = |more: &str| {
        format!(
            "<domainsnapshot><name>s</name><state>shutoff</state>\
             <creationTime>1700000000</creationTime><disks>\
             <disk name='vda' snapshot='internal'{more}/></disks>{VM}</domainsnapshot>"
        )
    };
    let wrong = served.file("wrong.xml", &snapshot(" colour='red'"));
    let create = ["snapshot-create", "vm", &wrong, "--redefine", "--validate"];
    let refused = served.refused(&create).await;
    assert!(refused.contains("XML document failed to validate against schema: "), "{refused}");
    assert!(refused.contains("Element domainsnapshot failed to validate content"), "{refused}");
    assert_eq!(served.virsh(&["snapshot-list", "vm", "--name"]).await, "");
    let other = served.file("other.xml", VM);
    let refused = served.refused(&["snapshot-create", "vm", &other, "--validate"]).await;
    assert!(refused.contains("XML error: the root element is <domain>"), "{refused}");
    served.virsh(&["snapshot-create", "vm", &wrong, "--redefine"]).await;
    let right = served.file("right.xml", &snapshot(""));
    served.virsh(&["snapshot-create", "vm", &right, "--redefine", "--validate"]).await;
    assert_eq!(served.virsh(&["snapshot-list", "vm", "--name"]).await, "s");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_of_virsh_can_be_waited_for() {
    if !have_virsh() {
        return;
    }
    let served = serve();
    let xml = served.file("vm.xml", VM);
    let waiting = served.run(&["event", "--all", "--timeout", "20"]);
    let acting = async {
        // Any event ends the waiting; until it is registered there is none to be lost.
        while served.domains.table.events().listeners() < 28 {
            tokio::task::yield_now().await;
        }
        served.virsh(&["define", &xml]).await
    };
    let (heard, _) = tokio::join!(waiting, acting);
    let heard = String::from_utf8_lossy(&heard.stdout).into_owned();
    assert!(heard.contains("event 'lifecycle' for domain 'vm': Defined Added"), "{heard}");
}

#[tokio::test]
async fn autodestroy_ends_the_guest_it_was_asked_for_and_no_later_one() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::new(Arc::new(fake::domains(directory.path())));
    let peer = Peer { pid: 1, uid: 0, gid: 0 };
    let vm = daemon.domains.define(VM).await.unwrap();

    let session = SessionHandle::new(peer, false);
    let guest = daemon.domains.start(&vm, false).await.unwrap();
    daemon.destroy_with(&session, &guest).await;
    daemon.domains.destroy(&vm).await.unwrap();
    daemon.domains.start(&vm, false).await.unwrap();
    daemon.destroy_all_of(session.id).await;
    let active = daemon.domains.active(&vm).expect("somebody else started it");

    daemon.destroy_with(&session, &active).await;
    daemon.destroy_all_of(session.id + 1).await;
    assert!(daemon.domains.active(&vm).is_some());
    daemon.destroy_all_of(session.id).await;
    assert!(daemon.domains.active(&vm).is_none());

    // A client that went away while its guest was starting.
    let guest = daemon.domains.start(&vm, false).await.unwrap();
    session.close();
    daemon.destroy_with(&session, &guest).await;
    assert!(daemon.domains.active(&vm).is_none());
}
