//! Disk images, looked at by QEMU's own tools from outside: what they say is the proof.

use std::path::Path;
use std::process::Command;

use crate::virsh::finish;

#[track_caller]
fn qemu(program: &str, arguments: &[&str]) -> String {
    let outcome = finish(Command::new(program).args(arguments), program);
    assert!(outcome.success, "{program} {arguments:?}\n{}{}", outcome.stdout, outcome.stderr);
    outcome.stdout
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

#[track_caller]
pub fn create(path: &Path, format: &str, size: &str) {
    qemu("qemu-img", &["create", "-q", "-f", format, text(path), size]);
}

/// A qcow2 overlay whose header names `backing` as it is written here.
#[track_caller]
pub fn create_on(path: &Path, backing: &str) {
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, text(path)]);
}

/// A qcow2 on top of another.
#[track_caller]
pub fn create_sized_on(path: &Path, backing: &Path, size: &str) {
    let options = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(backing)];
    qemu("qemu-img", &[&options[..], &[text(path), size]].concat());
}

/// Consistent, nothing leaked.
#[track_caller]
pub fn check(path: &Path) {
    qemu("qemu-img", &["check", "-q", text(path)]);
}

/// Consistent. Clusters may be leaked, as by whoever was killed while he wrote.
#[track_caller]
pub fn check_but_for_leaks(path: &Path) {
    let output = Command::new("qemu-img").args(["check", "-q", text(path)]).output();
    let output = output.expect("qemu-img is there");
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}: {output:?}", path.display());
}

/// `qemu-img info`, also of an image in use.
#[track_caller]
pub fn info(path: &Path) -> String {
    qemu("qemu-img", &["info", "-U", text(path)])
}

/// Names of internal snapshots, also of an image in use.
#[track_caller]
pub fn internal_snapshots(path: &Path) -> Vec<String> {
    let listed = qemu("qemu-img", &["snapshot", "-U", "-l", text(path)]);
    listed
        .lines()
        .skip(2)
        .filter_map(|line| line.split_whitespace().nth(1))
        .map(str::to_owned)
        .collect()
}

/// Takes an internal snapshot behind everybody's back.
#[track_caller]
pub fn take_internal(path: &Path, name: &str) {
    qemu("qemu-img", &["snapshot", "-c", name, text(path)]);
}

/// Makes a qcow2 image larger or smaller.
#[track_caller]
pub fn resize(path: &Path, size: &str) {
    qemu("qemu-img", &["resize", "-q", "-f", "qcow2", text(path), size]);
}

/// Deletes an internal snapshot behind everybody's back.
#[track_caller]
pub fn delete_internal(path: &Path, name: &str) {
    qemu("qemu-img", &["snapshot", "-d", name, text(path)]);
}

/// The files of a backing chain, the active layer first.
#[track_caller]
pub fn chain(path: &Path) -> Vec<String> {
    let listed = qemu("qemu-img", &["info", "-U", "--backing-chain", text(path)]);
    listed.lines().filter_map(|line| line.strip_prefix("image: ")).map(str::to_owned).collect()
}

/// One command of qemu-io on an image that nobody uses; gives what it said.
#[track_caller]
pub fn io(path: &Path, format: &str, command: &str) -> String {
    qemu("qemu-io", &["-f", format, "-c", command, text(path)])
}

/// Fills `length` at `offset` with a byte, through the image format.
#[track_caller]
pub fn write_pattern(path: &Path, pattern: u8, offset: u64, length: u64) {
    let command = format!("write -q -P {pattern} {offset} {length}");
    qemu("qemu-io", &["-f", "qcow2", "-c", &command, text(path)]);
}

/// Whether `length` at `offset` is all `pattern`.
#[track_caller]
pub fn has_pattern(path: &Path, pattern: u8, offset: u64, length: u64) -> bool {
    reads(path, "qcow2", pattern, offset, length)
}

/// The same, of an image of any format that may be in use.
#[track_caller]
pub fn reads(path: &Path, format: &str, pattern: u8, offset: u64, length: u64) -> bool {
    let command = format!("read -P {pattern} {offset} {length}");
    let arguments = ["-r", "-U", "-f", format, "-c", &command, text(path)];
    let outcome = finish(Command::new("qemu-io").args(arguments), "qemu-io");
    // It ends with an error where the pattern is another one.
    let read = outcome.stdout.contains(&format!("read {length}/{length} bytes"));
    assert!(read, "qemu-io {arguments:?}\n{}{}", outcome.stdout, outcome.stderr);
    !outcome.stdout.contains("Pattern verification failed")
}
