//! The words of the target `session`: what clients do, a line each, and XDR so that a person and a
//! fuzzer can change it.
//!
//! ```text
//! [ro] [bg] PROCEDURE ARGUMENTS…   a call, by name or #NUMBER; QEMU_… for the other program
//! [ro] raw HEX                     bytes that need not be a message
//! [ro] data "…" | finish | abort | hole    to the stream of the last call
//! [ro] leave | fresh               hangs up; and comes again without CONNECT_OPEN
//! agent …                          what the guests' agents answer from now on
//! restart                          another daemon takes over
//! ```
//!
//! `ro` is the client of the read-only socket, and `bg` does not wait for the answer. An argument
//! is a number (a word of four bytes; `lN`: of eight), `"a string"` with its length, `sN` (a string of N bytes),
//! `vm` and `uuid` (the reference to the domain that is there from the beginning, and its uuid), or
//! `xHEX`. Whatever is none of these is passed over.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use virtsnap_rpc::message::{PROGRAM_QEMU, PROGRAM_REMOTE};
use virtsnap_rpc::procedure::{Procedure, QemuProcedure};

pub(super) const NAME: &str = "vm";
pub(super) const UUID: u128 = 0x1111_1111_2222_3333_4444_5555_5555_5555;

/// Longer than the longest message that a read-only client may send.
const LONGEST: usize = 600 * 1024;

#[derive(Debug, PartialEq)]
pub(super) enum Act {
    Call { program: u32, procedure: u32, payload: Vec<u8>, waits: bool },
    Raw(Vec<u8>),
    Data(Vec<u8>),
    Finish,
    Abort,
    Hole,
    Leave,
    Fresh,
    Agent(String),
    Restart,
}

/// Whether the read-only client does it, and what. None: the line says nothing.
pub(super) fn act(line: &str) -> Option<(bool, Act)> {
    let (mut read_only, mut waits) = (false, true);
    let mut rest = line.trim();
    loop {
        let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
        let after = after.trim_start();
        match word {
            "ro" => read_only = true,
            "bg" => waits = false,
            _ => return Some((read_only, verb(word, after, waits)?)),
        }
        rest = after;
    }
}

fn verb(word: &str, rest: &str, waits: bool) -> Option<Act> {
    Some(match word {
        "raw" => Act::Raw(bytes(rest)),
        "data" => Act::Data(encode(rest)),
        "finish" => Act::Finish,
        "abort" => Act::Abort,
        "hole" => Act::Hole,
        "leave" => Act::Leave,
        "fresh" => Act::Fresh,
        "agent" => Act::Agent(rest.to_owned()),
        "restart" => Act::Restart,
        _ => {
            let (program, procedure) = number(word)?;
            Act::Call { program, procedure, payload: encode(rest), waits }
        }
    })
}

fn number(word: &str) -> Option<(u32, u32)> {
    static NAMES: LazyLock<BTreeMap<String, (u32, u32)>> = LazyLock::new(|| {
        let remote = Procedure::ALL.iter();
        let remote = remote.map(|one| (one.name().to_owned(), (PROGRAM_REMOTE, *one as u32)));
        let qemu = QemuProcedure::ALL.iter();
        let qemu = qemu.map(|one| (format!("QEMU_{}", one.name()), (PROGRAM_QEMU, *one as u32)));
        remote.chain(qemu).collect()
    });
    match word.strip_prefix('#') {
        Some(number) => Some((PROGRAM_REMOTE, number.parse().ok()?)),
        None => NAMES.get(word).copied(),
    }
}

/// The bytes that these arguments are.
pub(super) fn encode(mut text: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    loop {
        text = text.trim_start_matches(' ');
        if let Some(quoted) = text.strip_prefix('"') {
            let end = quoted.find('"').unwrap_or(quoted.len());
            string(&mut wire, &quoted.as_bytes()[..end]);
            text = quoted.get(end + 1..).unwrap_or_default();
            continue;
        }
        let end = text.find([' ', '"']).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        match word {
            "" => return wire,
            "vm" => {
                string(&mut wire, NAME.as_bytes());
                wire.extend(UUID.to_be_bytes());
                wire.extend((-1_i32).to_be_bytes());
            }
            "uuid" => wire.extend(UUID.to_be_bytes()),
            _ => match (word.parse::<i64>(), word.split_at_checked(1).unwrap_or_default()) {
                // The low half of it, whatever its sign.
                (Ok(number), _) => wire.extend((number as u32).to_be_bytes()),
                (Err(_), ("l", number)) => {
                    wire.extend(number.parse::<i64>().unwrap_or_default().to_be_bytes());
                }
                (Err(_), ("x", hex)) => wire.extend(bytes(hex)),
                (Err(_), ("s", length)) => {
                    let length = length.parse().unwrap_or(0).min(LONGEST);
                    string(&mut wire, &vec![b's'; length]);
                }
                _ => {}
            },
        }
        text = rest;
    }
}

fn string(wire: &mut Vec<u8>, text: &[u8]) {
    wire.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    wire.extend(text);
    wire.resize(wire.len().next_multiple_of(4), 0);
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_call() {
        let payload = b"\0\0\0\x01\0\0\0\x03abc\0\xff\xff\xff\xff\x12".to_vec();
        let call = Act::Call { program: PROGRAM_REMOTE, procedure: 1, payload, waits: false };
        assert_eq!(act("ro bg CONNECT_OPEN 1 \"abc\" -1 x12"), Some((true, call)));
        assert_eq!(encode("vm l-2 s2")[28..], *b"\xff\xff\xff\xff\xff\xff\xff\xfe\0\0\0\x02ss\0\0");
        assert_eq!(act("ro"), None);
        assert_eq!(encode("\u{e4} \"\u{e4}"), b"\0\0\0\x02\xc3\xa4\0\0");
    }
}
