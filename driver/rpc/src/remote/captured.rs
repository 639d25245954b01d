//! Frames between unmodified clients (virsh 11.3, libvirt-python) and libvirtd 11.3, one file for
//! each procedure in `fixtures/rpc`, a line `kind hex` for each frame. Each must come out of the
//! framer whole, decode, and encode to the same bytes.

use std::fs;
use std::path::Path;

use super::{Part, recode, recoded};
use crate::framing::FrameReader;
use crate::message::{MessageType, PROGRAM_REMOTE, Status, WireError};
use crate::procedure::{Procedure, QemuProcedure};

fn bytes(hex: &str) -> Vec<u8> {
    assert_eq!(hex.len() % 2, 0, "odd number of digits");
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn name(program: u32, procedure: u32) -> String {
    if program == PROGRAM_REMOTE {
        Procedure::try_from(procedure).unwrap().name().to_owned()
    } else {
        format!("QEMU_{}", QemuProcedure::try_from(procedure).unwrap().name())
    }
}

#[test]
fn captured_frames_come_out_as_they_went_in() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/rpc");
    let mut procedures = 0;
    let mut frames = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        procedures += 1;
        for line in fs::read_to_string(&path).unwrap().lines() {
            let (kind, hex) = line.split_once(' ').unwrap();
            let wire = bytes(hex);
            let mut reader = FrameReader::default();
            reader.push(&wire, []).unwrap();
            let frame = reader.next_frame().unwrap().expect("a whole frame");
            let header = frame.header;
            assert_eq!(header.frame(&frame.payload).unwrap(), wire, "{stem} {kind}");
            assert_eq!(name(header.program, header.procedure), stem);
            let (program, procedure) = (header.program, header.procedure);
            let result = match (kind, header.kind().unwrap(), header.status().unwrap()) {
                ("call", MessageType::Call, Status::Ok) => {
                    recode(program, procedure, Part::Arguments, &frame.payload)
                }
                ("reply", MessageType::Reply, Status::Ok) => {
                    recode(program, procedure, Part::Result, &frame.payload)
                }
                ("event", MessageType::Message, Status::Ok) => {
                    recode(program, procedure, Part::Event, &frame.payload)
                }
                ("error", MessageType::Reply, Status::Error) => {
                    Some(recoded::<WireError>(&frame.payload))
                }
                other => panic!("{stem}: {other:?}"),
            };
            let result = result.unwrap_or_else(|| panic!("{stem}: no struct for it"));
            let again = result.unwrap_or_else(|err| panic!("{stem} {kind}: {err}"));
            assert_eq!(again, frame.payload, "{stem} {kind}");
            frames += 1;
        }
    }
    assert!(procedures >= 100 && frames >= 250, "{procedures} procedures, {frames} frames");
}
