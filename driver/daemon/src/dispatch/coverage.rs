//! docs/protocol-coverage.md is what the table says, and this test keeps it so.
//!
//! `UPDATE_EXPECT=1 cargo test -p virtsnapd coverage` writes it anew.

use std::fmt::Write;
use std::path::Path;

use virtsnap_rpc::procedure::{Procedure, QemuProcedure};

use super::{ANSWERED, ANSWERED_QEMU};

const INTRODUCTION: &str = "\
# What is answered of libvirt's remote protocol

Generated from the dispatch table by `UPDATE_EXPECT=1 cargo test -p virtsnapd coverage`.

A procedure that is not answered is refused with VIR_ERR_NO_SUPPORT and the name of libvirt's
function; clients use their fallbacks. `ro` marks what a read-only client may
call; a few of those are refused with certain flags (secrets in XML, questions to the guest agent).
";

struct Row {
    number: u32,
    name: &'static str,
    read_only: bool,
    answered: bool,
    /// Sent by the server.
    message: bool,
}

fn remote() -> Vec<Row> {
    let rows = Procedure::ALL.iter().map(|&procedure| Row {
        number: procedure as u32,
        name: procedure.name(),
        read_only: procedure.barred_read_only().is_none(),
        answered: ANSWERED.contains(&procedure),
        message: procedure.is_message(),
    });
    rows.collect()
}

fn qemu() -> Vec<Row> {
    let rows = QemuProcedure::ALL.iter().map(|&procedure| Row {
        number: procedure as u32,
        name: procedure.name(),
        read_only: procedure.barred_read_only().is_none(),
        answered: ANSWERED_QEMU.contains(&procedure),
        message: procedure.is_message(),
    });
    rows.collect()
}

fn section(out: &mut String, program: &str, rows: &[Row]) {
    let calls = || rows.iter().filter(|row| !row.message);
    let answered = calls().filter(|row| row.answered).count();
    writeln!(out, "\n## Program {program}: {answered} of {} calls\n", calls().count()).unwrap();
    if answered > 0 {
        out.push_str("| number | procedure | |\n|---:|---|---|\n");
    }
    for row in calls().filter(|row| row.answered) {
        let mark = if row.read_only { "ro" } else { "" };
        writeln!(out, "| {} | {} | {mark} |", row.number, row.name).unwrap();
    }
    let mut missing = calls().filter(|row| !row.answered).peekable();
    if missing.peek().is_some() {
        out.push_str("\nNot answered:\n\n");
    }
    for row in missing {
        writeln!(out, "- {} {}", row.number, row.name).unwrap();
    }
}

#[test]
fn coverage_is_documented() {
    let mut text = INTRODUCTION.to_owned();
    section(&mut text, "REMOTE", &remote());
    section(&mut text, "QEMU", &qemu());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol-coverage.md");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "docs/protocol-coverage.md is stale; see the head of coverage.rs");
}
