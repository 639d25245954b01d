//! A file's bytes into another file: by reflink where the file system can, else without its holes.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;

const STEP: u64 = 64 << 20;

/// `to` is empty; it is not yet durable when this returns.
pub(super) fn contents(from: &Path, to: &File) -> io::Result<()> {
    let from = File::open(from)?;
    if ioctl_ficlone(to, &from).is_ok() {
        return Ok(());
    }
    let length = seek(&from, SeekFrom::End(0))?;
    ftruncate(to, length)?;
    let mut at = 0;
    while at < length {
        let data = match seek(&from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            // A block device has no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(err) => return Err(err.into()),
        };
        let end = match seek(&from, SeekFrom::Hole(data)) {
            Ok(end) => end.min(length),
            Err(_) => length,
        };
        range(&from, to, data, end)?;
        at = end;
    }
    Ok(())
}

fn range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read, mut write) = (start, start);
    while read < end {
        let step = usize::try_from((end - read).min(STEP)).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut read), to, Some(&mut write), step) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return by_hand(from, to, read, end);
            }
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}

fn by_hand(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut chunk = vec![0; 1 << 20];
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(chunk.len());
        let got = from.read_at(chunk.get_mut(..want).unwrap_or_default(), at)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all_at(chunk.get(..got).unwrap_or_default(), at)?;
        at += got as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn data_and_holes_arrive() {
        let mut from = tempfile::NamedTempFile::new().unwrap();
        from.as_file().set_len((8 << 20) + 13).unwrap();
        from.as_file().write_all_at(&[7; 70000], 1 << 20).unwrap();
        from.as_file().write_all_at(&[9; 5], (8 << 20) + 8).unwrap();
        let mut to = tempfile::tempfile().unwrap();
        contents(from.path(), &to).unwrap();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        from.read_to_end(&mut a).unwrap();
        to.rewind().unwrap();
        to.read_to_end(&mut b).unwrap();
        assert!(a == b);
        assert!(to.metadata().unwrap().blocks() <= from.as_file().metadata().unwrap().blocks());
    }

    #[test]
    fn by_hand_copies_as_well() {
        let mut from = tempfile::NamedTempFile::new().unwrap();
        let data: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        from.write_all(&data).unwrap();
        let mut to = tempfile::tempfile().unwrap();
        by_hand(from.as_file(), &to, 0, data.len() as u64).unwrap();
        let mut copied = Vec::new();
        to.rewind().unwrap();
        to.read_to_end(&mut copied).unwrap();
        assert!(copied == data);
    }
}
