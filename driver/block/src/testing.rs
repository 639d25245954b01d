//! Images for tests, made and read by QEMU's own tools; and what a child may do.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::image::QemuImg;

/// None where the programs are missing: said loudly, and a failure in CI.
pub fn tool() -> Option<QemuImg> {
    for program in ["qemu-img", "qemu-io"] {
        if Command::new(program).arg("--version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "{program} is missing");
            eprintln!("SKIPPED: {program} is missing");
            return None;
        }
    }
    Some(QemuImg::new("qemu-img"))
}

fn spec(path: &Path, format: &str) -> String {
    let name = path.to_str().expect("ours").replace(',', ",,");
    format!("driver={format},file.driver=file,file.filename={name}")
}

/// Runs one qemu-io command; whether it was content.
pub fn io(path: &Path, format: &str, command: &str) -> bool {
    let out = Command::new("qemu-io")
        .args(["--image-opts", "-c", command])
        .arg(spec(path, format))
        .output()
        .expect("it was there");
    let text = String::from_utf8_lossy(&out.stdout);
    out.status.success() && !text.contains("Pattern verification failed")
}

pub fn write(path: &Path, pattern: u8, at: &str) {
    assert!(io(path, "qcow2", &format!("write -P {pattern} {at}")), "write to {path:?}");
}

pub fn holds(path: &Path, pattern: u8, at: &str) -> bool {
    io(path, "qcow2", &format!("read -P {pattern} {at}"))
}

pub async fn base(path: &Path) {
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(path)
        .arg("4M")
        .status()
        .expect("it was there");
    assert!(made.success());
}

/// What the kernel tells of a child that was prepared so.
pub fn status_of_child(prepare: impl FnOnce(&mut Command)) -> String {
    let mut command = Command::new("cat");
    command.arg("/proc/self/status").stdin(Stdio::null());
    prepare(&mut command);
    let output = command.output().expect("cat runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn says(status: &str, field: &str, value: &str) {
    let line = format!("{field}:\t{value}\n");
    assert!(status.contains(&line), "{field} is not {value}: {status}");
}
