//! What the host has: paths of what `make` built, and waiting with a deadline.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is inside the repository")
}

/// Where cargo builds, and where the test guest and the unpacked packages are.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The daemon, built from the tree as it is now: a stale binary would prove nothing.
pub fn virtsnapd() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("virtsnapd", "virtsnapd"))
}

/// A daemon that ignores what a crash left, as the negative control of what recovery is good for.
/// It is built in a place of its own, so that nobody takes it for the daemon.
pub fn virtsnapd_without_recovery() -> PathBuf {
    let place = target().join("without-recovery");
    let place = place.to_str().expect("UTF-8");
    cargo(&["--package", "virtsnapd", "--features", "without-recovery", "--target-dir", place]);
    Path::new(place).join("debug/virtsnapd")
}

/// The command, likewise.
pub fn virtsnap() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("virtsnap-cli", "virtsnap"))
}

fn build(package: &str, program: &str) -> PathBuf {
    cargo(&["--package", package]);
    target().join("debug").join(program)
}

fn cargo(arguments: &[&str]) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    let build = build.args(["build", "--quiet"]).args(arguments).current_dir(root());
    assert!(build.status().expect("cargo runs").success(), "{arguments:?} does not build");
}

/// Kernel and initramfs of the test guest; `make guest` builds them.
pub fn guest_kernel() -> Option<(PathBuf, PathBuf)> {
    let dir = target().join("guest");
    let parts = (dir.join("vmlinuz"), dir.join("initrd.gz"));
    (parts.0.exists() && parts.1.exists()).then_some(parts)
}

/// The initramfs of the guest with an agent, and an image for its disk (`tests/agent-guest`).
pub fn agent_guest() -> Option<(PathBuf, PathBuf)> {
    let dir = target().join("agent-guest");
    let parts = (dir.join("initrd.gz"), dir.join("data.qcow2"));
    (guest_kernel().is_some() && parts.0.exists() && parts.1.exists()).then_some(parts)
}

/// A program of an unpacked set of packages (`make sets`): `oracle` or `other`.
pub fn unpacked(set: &str, program: &str) -> Option<PathBuf> {
    Some(target().join("sets").join(set).join("bin").join(program)).filter(|path| path.exists())
}

/// Whether this process may do what only root may.
pub fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t0")))
}

/// Repeats `attempt` until it gives something; fails the test, saying `what`, after `seconds`.
pub fn wait<T>(what: &str, seconds: u64, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {seconds} s in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
