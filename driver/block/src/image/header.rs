//! A reader of qcow2 headers, for files that nobody vouches for.
//!
//! Every number in them is foreign: offsets and lengths are bounded before they are used, and
//! nothing is allocated by what a header says beyond fixed limits. Source: QEMU's
//! docs/interop/qcow2.txt.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use virtsnap_engine::facts::Format;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// What QEMU itself accepts for the backing file's name.
const MAX_NAME: usize = 1023;
const MAX_EXTENSIONS: usize = 64;
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Among the incompatible features.
const DATA_FILE: u64 = 1 << 2;
/// QEMU's own limit for an L1 table.
const MAX_L1_BYTES: u64 = 32 << 20;
const HEAD: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub virtual_size: u64,
    /// As written: relative to the image's directory, or a protocol's, or `json:`.
    pub backing: Option<String>,
    pub backing_format: Option<String>,
    /// The guest's data is in another file.
    pub has_data_file: bool,
    l1_offset: u64,
    l1_entries: u32,
}

/// None: a file that is not qcow2, or is damaged.
pub fn read(file: &File) -> io::Result<Option<Header>> {
    let mut head = Vec::with_capacity(HEAD);
    let mut chunk = [0; HEAD];
    while head.len() < HEAD {
        let got = file.read_at(&mut chunk, head.len() as u64)?;
        if got == 0 {
            break;
        }
        head.extend(chunk.iter().take(got.min(HEAD - head.len())));
    }
    let Some(fixed) = parse(&head) else { return Ok(None) };
    let backing = match fixed.backing {
        None => None,
        Some((offset, length)) => {
            let mut name = vec![0; length];
            match file.read_exact_at(&mut name, offset) {
                Ok(()) => {}
                Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(err) => return Err(err),
            }
            Some(String::from_utf8_lossy(&name).into_owned())
        }
    };
    Ok(Some(Header { backing, ..fixed.header }))
}

/// The format of an image that is known to stand on another one. A raw image never does, so that
/// nothing a guest can write is taken for an answer.
pub fn overlay_format(path: &Path) -> io::Result<Option<Format>> {
    let mut magic = [0; 4];
    let Some(file) = open_image(path)? else { return Ok(None) };
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) => {}
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(err) => return Err(err),
    }
    Ok(match &magic {
        b"QFI\xfb" => Some(Format::Qcow2),
        b"QED\0" => Some(Format::Qed),
        _ => None,
    })
}

/// Opens what a path leads to, if it is a regular file or a block device. Nothing else is opened:
/// a pipe would keep us waiting for ever, and some devices act on being opened.
pub fn open_image(path: &Path) -> io::Result<Option<File>> {
    if !can_be_image(&std::fs::metadata(path)?) {
        return Ok(None);
    }
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    Ok(can_be_image(&file.metadata()?).then_some(file))
}

pub(super) fn can_be_image(meta: &Metadata) -> bool {
    meta.is_file() || meta.file_type().is_block_device()
}

/// Opens a path as it stands: no link is followed, no pipe waited for. None: not a regular file.
pub fn open_regular(path: &Path) -> io::Result<Option<File>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(err) if err.raw_os_error() == Some(libc::ELOOP) => return Ok(None),
        Err(err) => return Err(err),
    };
    Ok(file.metadata()?.is_file().then_some(file))
}

impl Header {
    /// Nothing was ever written to the guest's disk in this image: its L1 table is empty.
    pub fn is_pristine(&self, file: &File) -> io::Result<bool> {
        let bytes = u64::from(self.l1_entries) * 8;
        if bytes > MAX_L1_BYTES {
            return Ok(false);
        }
        let mut at = 0;
        let mut chunk = [0; HEAD];
        while at < bytes {
            let want = usize::try_from((bytes - at).min(HEAD as u64)).unwrap_or(HEAD);
            let part = chunk.get_mut(..want).unwrap_or_default();
            let Some(offset) = self.l1_offset.checked_add(at) else { return Ok(false) };
            file.read_exact_at(part, offset)?;
            if part.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += want as u64;
        }
        Ok(true)
    }
}

struct Fixed {
    header: Header,
    backing: Option<(u64, usize)>,
}

fn parse(head: &[u8]) -> Option<Fixed> {
    if head.get(..4)? != MAGIC {
        return None;
    }
    let version = be32(head, 4)?;
    let name_offset = be64(head, 8)?;
    let name_length = usize::try_from(be32(head, 16)?).ok()?;
    let cluster_bits = be32(head, 20)?;
    if !(2..=3).contains(&version) || !(9..=21).contains(&cluster_bits) {
        return None;
    }
    let cluster = 1u64 << cluster_bits;
    let backing = match (name_offset, name_length) {
        (0, _) | (_, 0) => None,
        (offset, length) => {
            let end = offset.checked_add(length as u64)?;
            if length > MAX_NAME || end > cluster {
                return None;
            }
            Some((offset, length))
        }
    };
    let length = if version == 2 { 72 } else { usize::try_from(be32(head, 100)?).ok()? };
    let end = backing.map_or(cluster, |(offset, _)| offset);
    let header = Header {
        virtual_size: be64(head, 24)?,
        backing: None,
        backing_format: backing_format(head, length, end),
        has_data_file: version == 3 && be64(head, 72)? & DATA_FILE != 0,
        l1_offset: be64(head, 40)?,
        l1_entries: be32(head, 36)?,
    };
    Some(Fixed { header, backing })
}

fn backing_format(head: &[u8], mut at: usize, end: u64) -> Option<String> {
    for _ in 0..MAX_EXTENSIONS {
        let kind = be32(head, at)?;
        let length = usize::try_from(be32(head, at.checked_add(4)?)?).ok()?;
        let body = at.checked_add(8)?;
        let next = body.checked_add(length.checked_next_multiple_of(8)?)?;
        if kind == 0 || next as u64 > end {
            return None;
        }
        if kind == BACKING_FORMAT {
            let name = head.get(body..body.checked_add(length)?)?;
            return std::str::from_utf8(name).ok().map(str::to_owned);
        }
        at = next;
    }
    None
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let part = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(part.try_into().ok()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    let part = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(part.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::io::Write;

    use super::*;

    /// A version 3 header with one extension and a backing file name at 512.
    fn sample(name: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 4096];
        head[..4].copy_from_slice(&MAGIC);
        head[4..8].copy_from_slice(&3u32.to_be_bytes());
        head[8..16].copy_from_slice(&512u64.to_be_bytes());
        head[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
        head[20..24].copy_from_slice(&16u32.to_be_bytes());
        head[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
        head[100..104].copy_from_slice(&112u32.to_be_bytes());
        head[112..116].copy_from_slice(&BACKING_FORMAT.to_be_bytes());
        head[116..120].copy_from_slice(&3u32.to_be_bytes());
        head[120..123].copy_from_slice(b"raw");
        let end = (512 + name.len()).min(4096);
        head[512..end].copy_from_slice(&name[..end - 512]);
        head
    }

    fn read_bytes(bytes: &[u8]) -> Option<Header> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        read(&file).unwrap()
    }

    #[test]
    fn the_backing_file_and_its_format_are_read() {
        let header = read_bytes(&sample("b,a:s\"é".as_bytes())).unwrap();
        assert_eq!(header.backing.as_deref(), Some("b,a:s\"é"));
        assert_eq!(header.backing_format.as_deref(), Some("raw"));
        assert_eq!(header.virtual_size, 1 << 30);
    }

    #[test]
    fn a_name_longer_than_qemu_allows_is_no_name() {
        assert_eq!(read_bytes(&sample(&[b'x'; 1024])), None);
    }

    #[test]
    fn a_name_outside_the_first_cluster_is_no_name() {
        for offset in [65536u64, u64::MAX, u64::MAX - 3] {
            let mut head = sample(b"base");
            head[8..16].copy_from_slice(&offset.to_be_bytes());
            assert_eq!(read_bytes(&head), None);
        }
    }

    #[test]
    fn a_file_cut_before_its_name_is_no_image() {
        assert_eq!(read_bytes(&sample(b"base")[..514]), None);
    }

    #[test]
    fn an_endless_row_of_extensions_ends() {
        let mut head = sample(b"base");
        head[112..116].copy_from_slice(&1u32.to_be_bytes());
        head[116..120].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(read_bytes(&head).unwrap().backing_format, None);
    }

    #[test]
    fn a_huge_l1_table_is_not_read() {
        let mut head = sample(b"base");
        head[36..40].copy_from_slice(&u32::MAX.to_be_bytes());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&head).unwrap();
        assert!(!read(&file).unwrap().unwrap().is_pristine(&file).unwrap());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..700),
                                  magic in any::<bool>(), version in 2u8..4) {
            if magic && bytes.len() > 24 {
                bytes[..8].copy_from_slice(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, version]);
                bytes[20..24].copy_from_slice(&[0, 0, 0, 16]);
            }
            if let Some(header) = read_bytes(&bytes) {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&bytes).unwrap();
                let _ = header.is_pristine(&file);
            }
        }
    }
}
