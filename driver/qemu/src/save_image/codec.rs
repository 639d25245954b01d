//! The compressions of a stream that libvirt knows, in our own process.
//!
//! libvirt runs the programs of those names. We use decoders written in Rust instead: a save image
//! may come from anybody, and the daemon is root.

use std::io::{self, BufReader, Read, Write};

use bzip2::read::{BzEncoder, MultiBzDecoder};
use flate2::read::{GzEncoder, MultiGzDecoder};
use lzma_rust2::{XzOptions, XzReader, XzWriter};
use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::{CompressionLevel, FrameCompressor};

pub(crate) const BUFFER: usize = 1 << 20;
/// What an xz stream may make us allocate, in KiB. `xz -9` needs 64 MiB.
const XZ_MEMORY: u32 = 128 << 10;

/// How the stream is written. The numbers are in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Format {
    #[default]
    Raw,
    Gzip,
    Bzip2,
    Xz,
    Lzop,
    Zstd,
    /// Each page at a place of its own (QEMU's mapped-ram).
    Sparse,
}

impl Format {
    const ALL: [(Format, &str); 7] = [
        (Format::Raw, "raw"),
        (Format::Gzip, "gzip"),
        (Format::Bzip2, "bzip2"),
        (Format::Xz, "xz"),
        (Format::Lzop, "lzop"),
        (Format::Zstd, "zstd"),
        (Format::Sparse, "sparse"),
    ];

    pub(crate) fn of(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).map(|(format, _)| *format)
    }

    pub(crate) fn number(self) -> u32 {
        let at = Self::ALL.iter().position(|(format, _)| *format == self);
        at.and_then(|at| u32::try_from(at).ok()).unwrap_or(0)
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(format, _)| *format)
    }

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(format, _)| *format == self).map_or("raw", |(_, name)| name)
    }
}

/// Writes what comes from `from`, compressed, until its end.
pub(crate) fn compress(format: Format, from: impl Read, mut to: impl Write) -> io::Result<()> {
    match format {
        Format::Raw => copy(from, to),
        Format::Gzip => copy(GzEncoder::new(from, flate2::Compression::default()), to),
        Format::Bzip2 => copy(BzEncoder::new(from, bzip2::Compression::best()), to),
        Format::Xz => {
            // The preset that libvirt asks of xz.
            let mut writer = XzWriter::new(&mut to, XzOptions::with_preset(3))?;
            copy(from, &mut writer)?;
            writer.finish().map(drop)
        }
        Format::Zstd => compress_zstd(from, to),
        Format::Lzop | Format::Sparse => Err(unsupported(format)),
    }
}

/// Writes what comes from `from`, decompressed, until its end.
pub(crate) fn decompress(format: Format, from: impl Read, to: impl Write) -> io::Result<()> {
    match format {
        Format::Raw => copy(from, to),
        Format::Gzip => copy(MultiGzDecoder::new(from), to),
        Format::Bzip2 => copy(MultiBzDecoder::new(from), to),
        Format::Xz => copy(XzReader::new_mem_limit(from, true, XZ_MEMORY), to),
        Format::Zstd => decompress_zstd(from, to),
        Format::Lzop | Format::Sparse => Err(unsupported(format)),
    }
}

fn unsupported(format: Format) -> io::Error {
    let what = format!("this version of virtsnap has no '{}' compression", format.name());
    io::Error::new(io::ErrorKind::Unsupported, what)
}

fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return to.flush(),
            Ok(length) => to.write_all(buffer.get(..length).unwrap_or_default())?,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
}

/// The encoder panics where its source or drain fail, so that these keep their failures to
/// themselves until it is done.
fn compress_zstd(from: impl Read, to: impl Write) -> io::Result<()> {
    let mut source = Held { inner: from, failure: None };
    let mut drain = Held { inner: to, failure: None };
    let mut frame = FrameCompressor::new(CompressionLevel::Fastest);
    frame.set_source(&mut source);
    frame.set_drain(&mut drain);
    frame.compress();
    drop(frame);
    match source.failure.or(drain.failure) {
        Some(err) => Err(err),
        None => drain.inner.flush(),
    }
}

struct Held<T> {
    inner: T,
    failure: Option<io::Error>,
}

impl<T: Read> Read for Held<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(buffer) {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => {
                    self.failure.get_or_insert(err);
                    return Ok(0);
                }
                length => return length,
            }
        }
    }
}

impl<T: Write> Write for Held<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failure.is_none()
            && let Err(err) = self.inner.write_all(bytes)
        {
            self.failure = Some(err);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One frame after the other: parallel compressors write several.
fn decompress_zstd(from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut from = BufReader::with_capacity(BUFFER, from);
    let invalid = |err| io::Error::new(io::ErrorKind::InvalidData, err);
    while !io::BufRead::fill_buf(&mut from)?.is_empty() {
        let frame = StreamingDecoder::new(&mut from).map_err(invalid)?;
        copy(frame, &mut to)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITABLE: [Format; 5] =
        [Format::Raw, Format::Gzip, Format::Bzip2, Format::Xz, Format::Zstd];

    fn memory() -> Vec<u8> {
        let page =
            |n: u32| (0..1024).flat_map(move |i: u32| (i.wrapping_mul(n) >> 3).to_le_bytes());
        (0..700).flat_map(|n| page(n % 5)).collect()
    }

    #[test]
    fn what_was_compressed_comes_back() {
        for format in WRITABLE {
            for memory in [memory(), Vec::new(), vec![7]] {
                let (mut packed, mut back) = (Vec::new(), Vec::new());
                compress(format, memory.as_slice(), &mut packed).unwrap();
                decompress(format, packed.as_slice(), &mut back).unwrap();
                assert!(back == memory, "{}", format.name());
            }
        }
    }

    /// The programs that libvirt runs read what we write, and we read what they write.
    #[test]
    fn the_programs_of_those_names_agree() {
        for (format, program) in [
            (Format::Gzip, "gzip"),
            (Format::Bzip2, "bzip2"),
            (Format::Xz, "xz"),
            (Format::Zstd, "zstd"),
        ] {
            let memory = memory();
            let mut packed = Vec::new();
            compress(format, memory.as_slice(), &mut packed).unwrap();
            let Some(back) = filter(program, "-dc", packed) else { continue };
            assert!(back == memory, "{program} -dc");
            let packed = filter(program, "-c", memory.clone()).unwrap();
            let mut back = Vec::new();
            decompress(format, packed.as_slice(), &mut back).unwrap();
            assert!(back == memory, "{program} -c");
        }
    }

    fn filter(program: &str, option: &str, input: Vec<u8>) -> Option<Vec<u8>> {
        use std::process::{Command, Stdio};
        let child =
            Command::new(program).arg(option).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = child else {
            eprintln!("SKIPPED: {program} is not installed");
            return None;
        };
        let mut stdin = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.status.success());
        Some(output.stdout)
    }

    #[test]
    fn failures_and_damage_are_told() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for format in WRITABLE {
            let err = compress(format, memory().as_slice(), Full).unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::StorageFull, "{}", format.name());
            if format != Format::Raw {
                let mut packed = Vec::new();
                compress(format, memory().as_slice(), &mut packed).unwrap();
                packed.truncate(packed.len() / 2);
                let cut = decompress(format, packed.as_slice(), io::sink());
                assert!(cut.is_err(), "{} cut short", format.name());
                assert!(decompress(format, &b"nonsense, nonsense"[..], io::sink()).is_err());
            }
        }
        for format in [Format::Lzop, Format::Sparse] {
            let err = decompress(format, &b""[..], io::sink()).unwrap_err();
            assert!(err.to_string().contains(format.name()));
        }
    }

    #[test]
    fn names_and_numbers() {
        for number in 0..7 {
            let format = Format::of(number).unwrap();
            assert_eq!((format.number(), Format::named(format.name())), (number, Some(format)));
        }
        assert_eq!((Format::of(7), Format::named("lzma")), (None, None));
    }
}
