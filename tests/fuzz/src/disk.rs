//! What stands in files: of ours, of libvirt's, and of whoever made an image.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};

use virtsnap_block::image::header;
use virtsnap_engine::recover::verdict;
use virtsnap_qemu::fuzzing;
use virtsnap_store::fuzzing as store;

/// Lines of a journal without their checksums, after two bytes that choose a place. What the lines
/// say is read and written the same. Cut at the place, as by a crash, the journal is unreadable or
/// tells the beginning of the same story; with the byte there damaged, too.
pub(crate) fn journal(input: &[u8]) -> bool {
    let Some((&[high, low], lines)) = input.split_first_chunk() else { return false };
    // Nobody vouches for the checksums either.
    drop(store::parse(lines));
    let mut bytes = Vec::new();
    for line in lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        bytes.extend(store::seal(line));
    }
    let Some((whole, end)) = store::parse(&bytes) else { return false };
    assert_eq!(end, bytes.len(), "every line counts");
    drop(verdict(&whole.entries));
    let written = store::write(&whole).expect("what was read can be written");
    let (again, _) = store::parse(&written).expect("what was written can be read");
    assert_eq!((&again.plan, &again.entries), (&whole.plan, &whole.entries));

    let at = usize::from(u16::from_be_bytes([high, low])) % bytes.len();
    let mut damaged = bytes.clone();
    damaged[at] ^= 1 | high;
    for torn in [&bytes[..at], &damaged] {
        if let Some((part, end)) = store::parse(torn) {
            assert_eq!((part.domain, &part.plan), (whole.domain, &whole.plan), "another plan");
            assert!(whole.entries.starts_with(&part.entries), "another story");
            assert!(end <= at || torn.len() > at && torn == bytes, "damage that was read over");
        }
    }
    true
}

thread_local! {
    static SCRATCH: RefCell<File> = RefCell::new(tempfile::tempfile().expect("a scratch file"));
}

/// The head of an image, and names of backing files in it.
pub(crate) fn image_header(input: &[u8]) -> bool {
    SCRATCH.with_borrow_mut(|file| {
        let written = file.rewind().and_then(|()| file.set_len(0)).and_then(|()| {
            file.write_all(input)?;
            // A sparse file: what the header points at may be anywhere in it.
            file.set_len(1 << 30)
        });
        written.expect("the scratch file can be written");
        let Ok(Some(header)) = header::read(file) else { return false };
        if let Some(name) = &header.backing {
            assert!(name.len() <= 3 * 1023, "longer than QEMU allows");
            fuzzing::backing_name(name);
        }
        drop(header.is_pristine(file));
        true
    })
}

pub(crate) fn save_image(input: &[u8]) -> bool {
    fuzzing::save_image(input)
}

/// What stands beside images on a Xen host: save images of xl's form, and what is told of a snapshot
/// to those who work with xl.
pub(crate) fn xl_files(input: &[u8]) -> bool {
    let is_information = std::str::from_utf8(input).is_ok_and(virtsnap_store::fuzz_information);
    virtsnap_xen::fuzzing::save_image(input) | is_information
}

/// A compressed stream of memory: it may give out as much as it likes, piece by piece.
pub(crate) fn memory_stream(input: &[u8]) -> bool {
    const ENOUGH: usize = 4 << 20;
    fuzzing::decompress(input, ENOUGH)
}

/// Status files of running domains of either driver, and notes of jobs under way.
pub(crate) fn status(input: &[u8]) -> bool {
    fuzzing::note(input) | fuzzing::status(input) | virtsnap_xen::fuzzing::status(input)
}
