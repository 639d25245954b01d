//! What libvirt 11.3.0 was recorded to do, case by case, against a live daemon.
//!
//! The data is in `fixtures/conformance`, the player and the judge in `tests/conformance`. An
//! ordinary run takes a sample; `make conformance` takes all of it, and a pattern in
//! `VIRTSNAP_CONFORMANCE` (`'F.revert.ext-mem*'`) the cases it names.

use std::process::{Command, Stdio};

use virtsnap_tests::{Daemon, World, host, skip};

/// A case in this many is part of an ordinary run.
const SAMPLE: &str = "18";

#[test]
fn outcomes_are_those_recorded_or_listed() {
    let python = "/usr/bin/python3";
    let mut probe = Command::new(python);
    probe.args(["-c", "import libvirt"]).stderr(Stdio::null());
    if !probe.status().is_ok_and(|status| status.success()) {
        skip!("Python has no libvirt binding (python3-libvirt)");
    }
    if !host::is_root() {
        skip!("cases with block devices set up loop devices, which needs root");
    }
    let wanted = std::env::var("VIRTSNAP_CONFORMANCE").ok();
    let (only, sample) = match wanted.as_deref() {
        None => ("*", SAMPLE),
        Some("all") => ("*", "1"),
        Some(pattern) => (pattern, "1"),
    };
    let world = World::with(Daemon::Virtsnapd);
    let status = Command::new(python)
        .arg(host::root().join("tests/conformance/run.py"))
        .args(["--uri", &world.virsh.uri, "--sample", sample, "--only", only])
        .arg("--dir")
        .arg(world.path("cases"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .status()
        .expect("Python starts");
    assert!(status.success(), "see the cases above");
}
