//! Disks on an NBD server: libvirt's driver takes snapshots of them while the guest runs, and
//! refuses all of it when it is shut off.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use virtsnap_tests::{Guest, GuestSpec, World, host, images};

/// A server with one export, `vm`, on a socket; gone when dropped.
struct Server {
    process: Child,
    socket: PathBuf,
}

impl Server {
    /// The bytes of that file, whatever they mean.
    fn new(world: &World, file: &Path) -> Self {
        let socket = world.path("nbd.sock");
        let process = Command::new("qemu-nbd")
            .args(["--persistent", "--shared=0", "--format=raw", "--export-name=vm"])
            .arg(format!("--socket={}", socket.display()))
            .arg(file)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-nbd is there");
        host::wait("the NBD server", 30, || socket.exists().then_some(()));
        Self { process, socket }
    }

    fn uri(&self) -> PathBuf {
        format!("nbd+unix:///vm?socket={}", self.socket.display()).into()
    }

    /// As vdb of a guest.
    fn disk(&self, format: &str) -> String {
        format!(
            "<disk type='network' device='disk'><driver name='qemu' type='{format}'/>\
             <source protocol='nbd' name='vm'><host transport='unix' socket='{}'/></source>\
             <target dev='vdb' bus='virtio'/></disk>",
            self.socket.display()
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A qcow2 image in a file that leaves it room to grow, or none.
fn exported(world: &World, room: u64) -> PathBuf {
    let file = world.path("exported");
    images::create(&file, "qcow2", "16M");
    images::write_pattern(&file, 1, 1 << 20, 65536);
    let now = fs::metadata(&file).expect("it was made").len();
    let file_of = fs::File::options().write(true).open(&file).expect("it was made");
    file_of.set_len(now + room).expect("the directory is ours");
    file
}

fn guest<'w>(world: &'w World, server: &Server, format: &str) -> Guest<'w> {
    world.define(GuestSpec { devices: server.disk(format), ..GuestSpec::idle("vm") })
}

#[track_caller]
fn is_on_the_server(vm: &Guest<'_>) {
    for view in ["dumpxml {}", "dumpxml --inactive {}"] {
        let xml = vm.virsh(view);
        assert!(xml.contains("<source protocol='nbd' name='vm'"), "{xml}");
    }
}

#[test]
fn a_network_disk_gets_an_overlay_and_goes_back() {
    for format in ["raw", "qcow2"] {
        let world = World::new();
        let file = match format {
            "raw" => {
                let file = world.path("exported");
                images::create(&file, "raw", "16M");
                images::io(&file, "raw", "write -P 1 1M 64k");
                file
            }
            _ => exported(&world, 32 << 20),
        };
        let server = Server::new(&world, &file);
        let vm = guest(&world, &server, format);
        let base_holds =
            |at: u64, byte: u8| images::reads(&server.uri(), format, byte, at << 20, 65536);
        for (round, running) in [false, true].into_iter().enumerate() {
            if running {
                vm.virsh("start {}");
            }
            // What the round before has left, and what this one writes.
            let (old, byte) = if running { (0x12, 3) } else { (0, 2) };
            let overlay = world.path(&format!("overlay{round}"));
            let complaint = vm.refused("snapshot-create-as {} s --disk-only");
            assert!(complaint.contains("vdb") && complaint.contains("source"), "{complaint}");
            vm.virsh(&format!(
                "snapshot-create-as {{}} s --disk-only --diskspec vdb,file={}",
                overlay.display()
            ));
            assert_eq!(vm.source("vdb"), overlay.to_string_lossy());
            assert!(vm.holds("vdb", 1, 1), "{format}: what is on the server is read");
            vm.write("vdb", 2, byte);
            assert!(base_holds(2, old), "{format}: the server's image is as it was");
            // Back: on a new overlay, and the one that was given up is gone.
            let revert =
                if running { "snapshot-revert {} s --running" } else { "snapshot-revert {} s" };
            vm.virsh(revert);
            assert!(!overlay.exists() && vm.source("vdb") != overlay.to_string_lossy());
            assert!(vm.holds("vdb", 1, 1) && vm.holds("vdb", 2, old));
            vm.write("vdb", 2, byte + 0x10);
            // Away: what was written goes to the server.
            let branch = PathBuf::from(vm.source("vdb"));
            vm.virsh("snapshot-delete {} s");
            is_on_the_server(&vm);
            assert!(!branch.exists());
            if running {
                vm.live_io("vdb", "flush");
            }
            assert!(base_holds(1, 1) && base_holds(2, byte + 0x10), "{format} {round}");
        }
        vm.virsh("destroy {}");
        vm.virsh("start {}");
        vm.virsh("destroy {}");
    }
}

#[test]
fn a_snapshot_inside_an_image_on_the_server() {
    let world = World::new();
    let file = exported(&world, 48 << 20);
    let server = Server::new(&world, &file);
    let vm = guest(&world, &server, "qcow2");
    let write = |byte: u8| images::io(&server.uri(), "qcow2", &format!("write -P {byte} 1M 64k"));
    let holds = |byte| images::reads(&server.uri(), "qcow2", byte, 1 << 20, 65536);
    vm.virsh("snapshot-create-as {} off");
    write(2);
    vm.virsh("snapshot-revert {} off");
    assert!(holds(1), "it went back");
    // With memory, while it runs.
    vm.virsh("start {}");
    vm.virsh("snapshot-create-as {} memory");
    vm.live_io("vdb", "write -P 3 1M 64k");
    vm.live_io("vdb", "flush");
    assert!(holds(3));
    vm.virsh("snapshot-revert {} memory");
    vm.live_io("vdb", "flush");
    assert!(holds(1), "it went back");
    vm.virsh("destroy {}");
    for name in ["memory", "off"] {
        vm.virsh(&format!("snapshot-delete {{}} {name}"));
    }
    assert!(vm.snapshots().is_empty() && holds(1));
    assert!(images::internal_snapshots(&server.uri()).is_empty());
    is_on_the_server(&vm);
    images::check(&server.uri());
}

#[test]
fn an_export_without_room_is_named() {
    let world = World::new();
    let file = exported(&world, 0);
    let server = Server::new(&world, &file);
    let vm = guest(&world, &server, "qcow2");
    let said = vm.refused("snapshot-create-as {} s");
    assert!(said.contains("NBD export") && said.contains("grow"), "{said}");
    assert!(vm.snapshots().is_empty());
    assert!(images::internal_snapshots(&vm.disk("vda")).is_empty(), "nothing is left of it");
    assert!(images::reads(&server.uri(), "qcow2", 1, 1 << 20, 65536));
    images::check(&server.uri());
}
