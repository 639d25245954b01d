//! The stream on its way between QEMU's pipe and the file.
//!
//! QEMU may not run other programs and shall not open files of ours, so it gets one end of a pipe.
//! If the daemon dies the pipe breaks, and with it QEMU's migration: no half of a save goes on
//! unseen.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::Format;
use super::codec::{BUFFER, compress, decompress};

/// Bytes that have passed, for whoever watches.
pub(crate) type Passed = Arc<AtomicU64>;

const FLUSH_EVERY: u64 = 32 << 20;
const FLUSH_POLL: Duration = Duration::from_millis(5);

/// Both ends of a pipe as large as we may have it: the reading end, the writing end.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // A small pipe works too.
    let _ = fcntl_setpipe_size(&write, BUFFER);
    Ok((read, write))
}

/// From QEMU into the file, where the file stands, until QEMU closes its end.
///
/// What is written goes on to the disk meanwhile: at the end, while the guest stands still, little
/// is left to be waited for.
pub(crate) fn into_file(
    format: Format,
    pipe: OwnedFd,
    file: &File,
    passed: &Passed,
) -> io::Result<()> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flusher = scope.spawn(|| flush(file, passed, &is_over));
        let copied = copy_into(format, pipe, file, passed);
        is_over.store(true, Ordering::Release);
        flusher.thread().unpark();
        // An error that a flush was told of is told to nobody else.
        let flushed = flusher.join().unwrap_or(Ok(()));
        copied.and(flushed)
    })
}

fn flush(file: &File, passed: &Passed, is_over: &AtomicBool) -> io::Result<()> {
    let mut flushed = 0;
    while !is_over.load(Ordering::Acquire) {
        let now = passed.load(Ordering::Relaxed);
        if now.saturating_sub(flushed) >= FLUSH_EVERY {
            file.sync_data()?;
            flushed = now;
        }
        std::thread::park_timeout(FLUSH_POLL);
    }
    Ok(())
}

fn copy_into(format: Format, pipe: OwnedFd, file: &File, passed: &Passed) -> io::Result<()> {
    if format == Format::Raw {
        match splice_all(&pipe, file, passed) {
            // Not every kind of file can take pages of a pipe.
            Err(Errno::INVAL) => {}
            done => return Ok(done?),
        }
    }
    let counted = Counted { inner: File::from(pipe), passed };
    compress(format, counted, io::BufWriter::with_capacity(BUFFER, file))
}

/// From the file, where it stands, to QEMU, until the end of the stream.
///
/// QEMU reads as much as it needs and closes its end: that is no failure.
pub(crate) fn from_file(
    format: Format,
    file: File,
    pipe: OwnedFd,
    passed: &Passed,
) -> io::Result<()> {
    let sent = if format == Format::Raw {
        match splice_all(&file, &pipe, passed) {
            Err(Errno::INVAL) => {
                decompress(format, file, Counted { inner: File::from(pipe), passed })
            }
            done => done.map_err(io::Error::from),
        }
    } else {
        decompress(format, file, Counted { inner: File::from(pipe), passed })
    };
    match sent {
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        sent => sent,
    }
}

fn splice_all(
    from: &impl std::os::fd::AsFd,
    to: &impl std::os::fd::AsFd,
    passed: &Passed,
) -> Result<(), Errno> {
    loop {
        match splice(from, None, to, None, BUFFER, SpliceFlags::MOVE | SpliceFlags::MORE) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                passed.fetch_add(length as u64, Ordering::Relaxed);
            }
            Err(Errno::INTR) => {}
            Err(err) => return Err(err),
        }
    }
}

struct Counted<'a> {
    inner: File,
    passed: &'a Passed,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.passed.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.passed.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};

    use super::*;

    #[test]
    fn a_stream_goes_there_and_back() {
        let memory: Vec<u8> = (0..3_000_000_u32).map(|n| (n >> 8) as u8).collect();
        for format in [Format::Raw, Format::Zstd] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"head").unwrap();
            let passed = Passed::default();
            let (read, write) = pipe().unwrap();
            let sent = memory.clone();
            let qemu = std::thread::spawn(move || File::from(write).write_all(&sent));
            into_file(format, read, &file, &passed).unwrap();
            qemu.join().unwrap().unwrap();
            assert_eq!(passed.load(Ordering::Relaxed), memory.len() as u64);

            file.seek(SeekFrom::Start(4)).unwrap();
            let (read, write) = pipe().unwrap();
            let qemu = std::thread::spawn(move || {
                let mut got = Vec::new();
                File::from(read).read_to_end(&mut got).map(|_| got)
            });
            let passed = Passed::default();
            from_file(format, file, write, &passed).unwrap();
            assert!(qemu.join().unwrap().unwrap() == memory);
            assert_eq!(passed.load(Ordering::Relaxed), memory.len() as u64);
        }
    }

    #[test]
    fn a_reader_that_has_enough_is_no_failure() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        file.rewind().unwrap();
        let (read, write) = pipe().unwrap();
        drop(read);
        from_file(Format::Raw, file, write, &Passed::default()).unwrap();
    }
}
