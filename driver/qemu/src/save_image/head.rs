//! The head of a save image: read from files that anybody may have written, and written.

use std::io::{self, Read};

use virtsnap_xml::element::Element;

use super::Format;

const COMPLETE: &[u8; 16] = b"LibvirtQemudSave";
const PARTIAL: &[u8; 16] = b"LibvirtQemudPart";
const VERSION: u32 = 2;
/// Bytes before the definition.
const FIXED: usize = 92;
/// Room that a new image has for a longer definition, as libvirt leaves.
const SPARE: usize = 64 * 1024;
/// The longest definition and cookie together that are read. No client can send a longer one.
const MAX_ROOM: u32 = 16 << 20;

/// What stands before the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// The guest ran when it was saved, and is to run when it is restored.
    pub(crate) was_running: bool,
    pub(crate) format: Format,
    /// `<domain>` in the form for the same guest elsewhere: inactive, with secrets.
    pub(crate) definition: String,
    /// `<cookie>`: what libvirt needs beside the definition. Old images have none.
    pub(crate) cookie: Option<String>,
    /// Bytes between the fixed part and the stream.
    room: u32,
}

/// Why a file is no save image that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    #[error("it is incomplete: the one who wrote it did not finish")]
    Partial,
    #[error("it is not a saved domain")]
    NoMagic,
    #[error("its version {0} is not known")]
    Version(u32),
    #[error("its format {0} is not known")]
    Format(u32),
    #[error("it is cut short")]
    Short,
    #[error("it is compressed with {0}, which this version of virtsnap cannot undo")]
    NoCodec(&'static str),
    #[error("its head is malformed: {0}")]
    Malformed(&'static str),
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl Head {
    pub(crate) fn new(
        definition: String,
        cookie: Option<String>,
        was_running: bool,
        format: Format,
    ) -> Self {
        let length = text_length(&definition, cookie.as_deref()) + SPARE;
        let room = u32::try_from(length).unwrap_or(u32::MAX);
        Self { was_running, format, definition, cookie, room }
    }

    /// Where the stream begins.
    pub(crate) fn stream_at(&self) -> u64 {
        FIXED as u64 + u64::from(self.room)
    }

    /// The same image with another definition, if there is room for it.
    pub(crate) fn with_definition(&self, definition: String) -> Option<Self> {
        let fits = text_length(&definition, self.cookie.as_deref()) <= self.room as usize;
        fits.then(|| Self { definition, ..self.clone() })
    }

    /// The `<cpu>` that the guest had, where it is not the definition's.
    pub(crate) fn cookie_cpu(&self) -> Option<Element> {
        Element::parse(self.cookie.as_deref()?).ok()?.child("cpu").cloned()
    }

    /// The whole head, as it stands in a file whose stream is there, or is not yet.
    pub(crate) fn to_bytes(&self, is_complete: bool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED + self.room as usize);
        bytes.extend_from_slice(if is_complete { COMPLETE } else { PARTIAL });
        let cookie_at = self.cookie.as_ref().map_or(0, |_| self.definition.len() + 1);
        let numbers = [
            VERSION,
            self.room,
            u32::from(self.was_running),
            self.format.number(),
            u32::try_from(cookie_at).unwrap_or(0),
        ];
        for number in numbers {
            bytes.extend_from_slice(&number.to_ne_bytes());
        }
        bytes.resize(FIXED, 0);
        bytes.extend_from_slice(self.definition.as_bytes());
        bytes.push(0);
        if let Some(cookie) = &self.cookie {
            bytes.extend_from_slice(cookie.as_bytes());
            bytes.push(0);
        }
        bytes.resize(FIXED + self.room as usize, 0);
        bytes
    }

    /// Reads up to the first byte of the stream.
    pub(crate) fn read(mut from: impl Read) -> Result<Self, Damage> {
        let mut fixed = [0; FIXED];
        fill(&mut from, &mut fixed)?;
        let (magic, rest) = fixed.split_at(COMPLETE.len());
        match magic {
            magic if magic == COMPLETE => {}
            magic if magic == PARTIAL => return Err(Damage::Partial),
            _ => return Err(Damage::NoMagic),
        }
        let [version, room, was_running, format, cookie_at] = numbers(rest);
        if room == 0 || room > MAX_ROOM {
            return Err(Damage::Malformed("the length of the definition"));
        }
        if cookie_at > room {
            return Err(Damage::Malformed("the place of the cookie"));
        }
        let mut text = vec![0; room as usize];
        fill(&mut from, &mut text)?;
        let (definition, cookie) = match cookie_at {
            0 => (text.as_slice(), None),
            at => text.split_at_checked(at as usize).map_or((&[][..], None), |(a, b)| (a, Some(b))),
        };
        // Before version 2 nothing was ever compressed.
        let format = if version < VERSION { 0 } else { format };
        Ok(Self {
            was_running: was_running != 0,
            format: Format::of(format).ok_or(Damage::Format(format))?,
            definition: until_zero(definition)?,
            cookie: cookie.map(until_zero).transpose()?.filter(|cookie| !cookie.is_empty()),
            room,
        })
        .and_then(|head| match version {
            1 | VERSION => Ok(head),
            _ => Err(Damage::Version(version)),
        })
    }
}

fn text_length(definition: &str, cookie: Option<&str>) -> usize {
    definition.len() + 1 + cookie.map_or(0, |cookie| cookie.len() + 1)
}

/// The five numbers, in the order of bytes in which the version makes sense.
fn numbers(bytes: &[u8]) -> [u32; 5] {
    let mut words = bytes.chunks_exact(4).map(|word| match word {
        &[a, b, c, d] => u32::from_ne_bytes([a, b, c, d]),
        _ => 0,
    });
    let native: [u32; 5] = std::array::from_fn(|_| words.next().unwrap_or(0));
    if native[0] > VERSION { native.map(u32::swap_bytes) } else { native }
}

fn fill(from: &mut impl Read, bytes: &mut [u8]) -> Result<(), Damage> {
    from.read_exact(bytes).map_err(|err| match err.kind() {
        io::ErrorKind::UnexpectedEof => Damage::Short,
        _ => Damage::Io(err),
    })
}

fn until_zero(bytes: &[u8]) -> Result<String, Damage> {
    let end = bytes.iter().position(|&byte| byte == 0);
    // What runs into the next part could not be written again as it was read.
    let text = end.and_then(|end| bytes.get(..end)).ok_or(Damage::Malformed("it has no end"))?;
    let text = std::str::from_utf8(text).map_err(|_| Damage::Malformed("it is not UTF-8"))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As libvirt 11.3.0 wrote it, but for the stream.
    #[test]
    fn the_bytes_are_libvirts() {
        let head = Head::new("<domain/>\n".into(), Some("<cookie/>\n".into()), true, Format::Zstd);
        let bytes = head.to_bytes(true);
        let mut expected = b"LibvirtQemudSave".to_vec();
        for number in [2_u32, 22 + 65536, 1, 5, 11] {
            expected.extend(number.to_le_bytes());
        }
        expected.resize(92, 0);
        expected.extend(b"<domain/>\n\0<cookie/>\n\0");
        expected.resize(92 + 22 + 65536, 0);
        assert_eq!(bytes, expected);
        assert_eq!(head.stream_at(), expected.len() as u64);
        assert_eq!(Head::read(bytes.as_slice()).unwrap(), head);
        assert!(matches!(Head::read(&*head.to_bytes(false)), Err(Damage::Partial)));
    }

    #[test]
    fn an_image_of_the_other_byte_order_is_read() {
        let head = Head::new("<domain/>".into(), None, false, Format::Raw);
        let mut bytes = head.to_bytes(true);
        for word in bytes[16..36].chunks_exact_mut(4) {
            word.reverse();
        }
        assert_eq!(Head::read(bytes.as_slice()).unwrap(), head);
    }

    #[test]
    fn a_longer_definition_has_the_room_that_was_left() {
        let head = Head::new("<domain/>".into(), None, false, Format::Raw);
        let longer = head.with_definition("x".repeat(SPARE)).unwrap();
        assert_eq!(longer.stream_at(), head.stream_at());
        assert_eq!(head.with_definition("x".repeat(SPARE + 10)), None);
    }

    #[test]
    fn lies_about_lengths_are_refused_before_anything_is_allocated() {
        let bytes = Head::new("<domain/>".into(), None, true, Format::Raw).to_bytes(true);
        let with = |at: usize, number: u32| {
            let mut bytes = bytes.clone();
            bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
            Head::read(bytes.as_slice())
        };
        assert!(matches!(with(20, u32::MAX), Err(Damage::Malformed(_))));
        assert!(matches!(with(20, 0), Err(Damage::Malformed(_))));
        assert!(matches!(with(20, MAX_ROOM), Err(Damage::Short)));
        assert!(matches!(with(32, u32::MAX), Err(Damage::Malformed(_))));
        assert!(matches!(with(28, 7), Err(Damage::Format(7))));
        assert!(matches!(
            with(16, 0x0300_0000),
            Err(Damage::Version(3)) | Err(Damage::Malformed(_))
        ));
        assert!(matches!(Head::read(&bytes[..91]), Err(Damage::Short)));
        assert!(matches!(Head::read(&[b'x'; 100][..]), Err(Damage::NoMagic)));
    }

    impl Head {
        fn with_room(self, room: u32) -> Self {
            Self { room, ..self }
        }
    }

    #[test]
    fn texts_that_run_into_what_follows_are_refused() {
        let bytes = Head::new("<domain/>".into(), Some("<cookie/>".into()), true, Format::Raw)
            .with_room(20)
            .to_bytes(true);
        assert!(Head::read(bytes.as_slice()).is_ok());
        for end in [FIXED + 9, FIXED + 19] {
            let mut endless = bytes.clone();
            assert_eq!(endless[end], 0);
            endless[end] = b'x';
            assert!(matches!(Head::read(endless.as_slice()), Err(Damage::Malformed(_))), "{end}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read(
            definition in "[^\0]{0,200}",
            cookie in proptest::option::of("[^\0]{1,50}"),
            was_running: bool,
            format in 0_u32..=6,
        ) {
            let head = Head::new(definition, cookie, was_running, Format::of(format).unwrap());
            prop_assert_eq!(Head::read(&*head.to_bytes(true)).unwrap(), head);
        }

        #[test]
        fn hostile_heads_are_refused_or_read(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
            room in 0_u32..300,
            cookie_at in 0_u32..400,
        ) {
            let _ = Head::read(bytes.as_slice());
            if bytes.len() >= FIXED {
                bytes[..16].copy_from_slice(COMPLETE);
                for (at, number) in [(16, 2), (20, room), (32, cookie_at)] {
                    bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
                }
                let _ = Head::read(bytes.as_slice());
            }
        }
    }
}
