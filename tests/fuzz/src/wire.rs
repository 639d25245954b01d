//! What a client sends.

use virtsnap_rpc::framing::{FrameReader, FramingError};
use virtsnap_rpc::message::{HEADER_LEN, MESSAGE_MAX, PROGRAM_QEMU, PROGRAM_REMOTE, WireError};
use virtsnap_rpc::remote::{Part, recode};
use virtsnap_rpc::xdr::Xdr;

/// The first byte says how the rest is cut. However it is cut, the same messages come out, then
/// the same refusal; and each message is written as it was read.
pub(crate) fn frames(input: &[u8]) -> bool {
    let Some((&piece, wire)) = input.split_first() else { return false };
    let whole = read(wire, wire.len().max(1));
    assert_eq!(read(wire, usize::from(piece) + 1), whole, "cut at {piece}");
    let (messages, _) = whole;
    for message in &messages {
        assert!((HEADER_LEN..=MESSAGE_MAX).contains(&message.len()));
    }
    assert!(wire.starts_with(&messages.concat()), "written as it was read");
    !messages.is_empty()
}

fn read(wire: &[u8], piece: usize) -> (Vec<Vec<u8>>, Option<FramingError>) {
    let mut reader = FrameReader::default();
    let mut messages = Vec::new();
    for bytes in wire.chunks(piece) {
        if let Err(err) = reader.push(bytes, []) {
            return (messages, Some(err));
        }
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => {
                    assert!(frame.fds.is_empty(), "descriptors that nobody sent");
                    let counted = matches!(frame.header.kind, 4 | 5);
                    let written = match counted {
                        true => frame.header.frame_with_fds(0, &frame.payload),
                        false => frame.header.frame(&frame.payload),
                    };
                    messages.push(written.expect("it was short enough to be read"));
                }
                Ok(None) => break,
                Err(err) => return (messages, Some(err)),
            }
        }
    }
    (messages, None)
}

/// A payload for the procedure that the first four bytes choose: what decodes encodes to the same
/// bytes. Decoding is strict, so that no two payloads mean the same.
pub(crate) fn xdr(input: &[u8]) -> bool {
    let Some((&[part, program, high, low], payload)) = input.split_first_chunk() else {
        return false;
    };
    let program = if program & 1 == 0 { PROGRAM_REMOTE } else { PROGRAM_QEMU };
    let procedure = u32::from(u16::from_be_bytes([high, low]));
    let again = match part % 4 {
        0 => recode(program, procedure, Part::Arguments, payload),
        1 => recode(program, procedure, Part::Result, payload),
        2 => recode(program, procedure, Part::Event, payload),
        _ => Some(WireError::from_bytes(payload).and_then(|error| error.to_bytes())),
    };
    match again {
        Some(Ok(again)) => {
            assert_eq!(again, payload, "decoded and encoded");
            true
        }
        Some(Err(_)) | None => false,
    }
}
