//! libvirt's own daemon in a private corner: the oracle.
//!
//! It runs in a mount namespace of its own, where a world's directories lie over the system's, so
//! that it can neither see nor change what the machine's libvirt has.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::host;

/// Where its socket is, seen from outside.
pub fn socket(dir: &Path) -> String {
    format!("{}/run/libvirt-sock", dir.display())
}

/// Why the oracle cannot run here, if it cannot.
pub fn unavailable() -> Option<String> {
    if !host::is_root() {
        return Some("libvirtd in a mount namespace needs root".to_owned());
    }
    host::unpacked("oracle", "libvirtd").is_none().then(|| "make sets has not run".to_owned())
}

/// The command that runs it in `dir`.
pub fn libvirtd(dir: &Path) -> Command {
    let program = host::unpacked("oracle", "libvirtd").expect("make sets unpacks libvirtd");
    let files = program.parent().and_then(Path::parent).expect("bin/ is in the set").join("root");
    // The monolithic daemon loads every driver it finds; QEMU's alone is wanted.
    let drivers = dir.join("drivers");
    for made in ["drivers", "etc", "run", "lib", "log", "cache"] {
        std::fs::create_dir_all(dir.join(made)).expect("the directory is ours");
    }
    let driver = "usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so";
    let _ = symlink(files.join(driver), drivers.join("libvirt_driver_qemu.so"));
    std::fs::write(dir.join("etc/libvirtd.conf"), DAEMON_CONF).expect("the directory is ours");
    std::fs::write(dir.join("etc/qemu.conf"), QEMU_CONF).expect("the directory is ours");
    // Its package makes a user, without whom it does not start; here only it sees that user.
    for (file, line) in [
        ("passwd", "libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin"),
        ("group", "libvirt-qemu:x:64055:\nkvm:x:64056:"),
    ] {
        let known = std::fs::read_to_string(Path::new("/etc").join(file)).unwrap_or_default();
        std::fs::write(dir.join(file), format!("{known}{line}\n")).expect("the directory is ours");
    }
    let script = r#"
        mount --bind "$1/passwd" /etc/passwd
        mount --bind "$1/group" /etc/group
        for pair in etc:/etc run:/run lib:/var/lib log:/var/log cache:/var/cache; do
            over=${pair#*:}/libvirt
            mkdir -p "$over"
            mount --bind "$1/${pair%%:*}" "$over"
        done
        # Where it looks for what writes memory to files.
        mkdir -p /usr/lib/libvirt
        mount --bind "$3" /usr/lib/libvirt
        exec "$2" --config "$1/etc/libvirtd.conf" --pid-file "$1/libvirtd.pid"
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-e", "-c", script, "sh"]).arg(dir).arg(program);
    command.arg(files.join("usr/lib/libvirt"));
    command.env("LIBVIRT_DRIVER_DIR", drivers);
    command
}

const DAEMON_CONF: &str = "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n";

const QEMU_CONF: &str = r#"
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
clear_emulator_capabilities = 0
seccomp_sandbox = 0
"#;
