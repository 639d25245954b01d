//! cockpit-machines (K-04): its calls through the real libvirt-dbus, on a bus of its own.
//!
//! libvirt-dbus takes no socket's path: it opens `qemu:///session`. So the daemon is an ordinary
//! user's, listens where libvirt's would (`listen = 'libvirt'`), and all of it has the world's
//! directory for that user's. `cockpit.py` is the page; Debian's packages come by `make sets`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use virtsnap_tests::virsh::as_user;
use virtsnap_tests::{Daemon, GuestSpec, World, host, skip, virsh};

const PYTHON: &str = "/usr/bin/python3";

/// A message bus with libvirt-dbus on it; both end with it.
struct Bus {
    address: String,
    processes: Vec<Child>,
}

impl Bus {
    fn new(world: &World, set: &Path) -> Self {
        let dir = world.dir();
        let programs = copied(world, set);
        let address = format!("unix:path={}/bus", dir.display());
        let config = dir.join("bus.conf");
        let text = format!(
            "<busconfig><type>session</type><listen>{address}</listen><auth>EXTERNAL</auth>\
             <policy context='default'><allow user='*'/><allow send_destination='*' eavesdrop='true'/>\
             <allow eavesdrop='true'/><allow own='*'/></policy></busconfig>"
        );
        std::fs::write(&config, text).expect("the directory is ours");
        world.hand_over();
        let mut bus = Self { address, processes: Vec::new() };
        let mut daemon = program(world, &programs.join("bin/dbus-daemon"));
        daemon.arg("--nofork").arg("--config-file").arg(config);
        bus.processes.push(daemon.spawn().expect("dbus-daemon starts"));
        host::wait("the bus", 30, || dir.join("bus").exists().then_some(()));
        let mut service = program(world, &programs.join("sbin/libvirt-dbus"));
        service.arg("--session").env("DBUS_SESSION_BUS_ADDRESS", &bus.address);
        service.env("VIRT_DBUS_INTERFACES_DIR", programs.join("share/dbus-1/interfaces"));
        service.env("XDG_RUNTIME_DIR", dir).env("XDG_CONFIG_HOME", dir).env("HOME", dir);
        service.env("LIBVIRT_AUTOSTART", "0");
        bus.processes.push(service.spawn().expect("libvirt-dbus starts"));
        bus
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The user may not be able to read the build directory.
fn copied(world: &World, set: &Path) -> PathBuf {
    let to = world.path("dbus");
    let script = r#"
        mkdir -p "$2/bin" "$2/sbin" "$2/lib" "$2/share/dbus-1"
        cp "$1/bin/dbus-daemon" "$2/bin"
        cp "$1/sbin/libvirt-dbus" "$2/sbin"
        cp -r "$1/share/dbus-1/interfaces" "$2/share/dbus-1"
        cp -P "$1"/lib/x86_64-linux-gnu/*.so* "$2/lib"
    "#;
    let mut copy = Command::new("sh");
    copy.args(["-e", "-c", script, "sh"]).arg(set).arg(&to);
    assert!(copy.status().is_ok_and(|status| status.success()), "{} is whole", set.display());
    to
}

fn program(world: &World, path: &Path) -> Command {
    let mut command = as_user(world.virsh.user, path.as_os_str());
    command.env("LD_LIBRARY_PATH", world.path("dbus/lib"));
    let log = std::fs::File::options().create(true).append(true).open(world.path("dbus.log"));
    let log = log.expect("the directory is ours");
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
    command
}

#[test]
fn cockpit_has_its_snapshots_through_libvirt_dbus() {
    if Daemon::chosen() == Daemon::Libvirtd {
        return; // its session mode needs directories that this harness does not lend it
    }
    let Some(wrapper) = host::unpacked("dbus", "libvirt-dbus") else {
        skip!("make sets has not unpacked libvirt-dbus");
    };
    let set = wrapper.parent().and_then(Path::parent).expect("bin/ is in the set").join("root/usr");
    let mut world = World::as_user();
    world.stop();
    world.config = "listen = 'libvirt'".to_owned();
    let socket = world.path("libvirt/virtqemud-sock");
    world.virsh.uri = format!("qemu:///session?socket={}", socket.display());
    world.hand_over();
    world.start();
    let vm = world.define(GuestSpec::new("vm"));
    let bus = Bus::new(&world, &set);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/cockpit.py");
    let mut page = Command::new(PYTHON);
    page.arg(script).arg(&bus.address).arg(vm.name()).arg(world.dir());
    page.env("PYTHONPATH", set.join("lib/python3/dist-packages"));
    let outcome = virsh::finish(&mut page, "cockpit.py");
    let log = std::fs::read_to_string(world.path("dbus.log")).unwrap_or_default();
    let said = format!("{}{}--- its services\n{log}", outcome.stdout, outcome.stderr);
    assert!(outcome.success && outcome.stdout.contains("all good"), "{said}");
    vm.never_mismatched();
}
