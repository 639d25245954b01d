//! Memory in a file, in the form that `xl save` gives it, so that `xl restore` takes ours and we
//! take xl's.
//!
//! ```text
//!   0    32 bytes  "Xen saved domain, xl format\n \0 \r"; zeroes while it is being written
//!   32   u32       0x01020304: all numbers are in the byte order of the host that wrote it
//!   36   u32       flags that a reader must know: 1, the configuration is JSON; 2, stream version 2
//!   40   u32       flags that it need not know
//!   44   u32       bytes from 48 to the stream
//!   48   u32       bytes of the configuration
//!   52             the configuration, which ends with a zero byte
//!   48+n           libxl's stream
//! ```
//!
//! libxl passes over names in the configuration that it does not know: under `virtsnap` are our
//! definition of the guest and whether it ran. Before its zero byte there are blanks, as room for a
//! longer definition.
//!
//! Source of facts: Xen 4.17's `xl.h` and `xl_saverestore.c`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Value, json};
use virtsnap_block::image::{blocking, failure, plain_path, system};
use virtsnap_engine::domain::SaveImage;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::element::Element;

use crate::config::from_libxl;
use crate::host::Host;

const MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
const ORDER: u32 = 0x0102_0304;
const IS_JSON: u32 = 1;
const IS_VERSION_2: u32 = 2;
/// Bytes before the configuration's length.
const FIXED: usize = 48;
/// Room that a new image has for a longer definition.
const SPARE: usize = 64 << 10;
/// The longest configuration that is read.
const MAX_ROOM: u32 = 16 << 20;
/// What libxl's stream begins with (`LIBXLFMT`, and as its version 2).
const STREAM: &[u8; 12] = b"LibxlFmt\0\0\0\x02";

/// What stands before the stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Head {
    /// libxl's configuration, without what is ours.
    pub(crate) config: Value,
    /// `<domain>` in the form for the same guest elsewhere; none in a file of xl's.
    pub(crate) definition: Option<String>,
    pub(crate) was_running: bool,
    /// From the fixed part to the stream.
    room: u32,
}

/// Why a file is no save image that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    #[error("it is incomplete: the one who wrote it did not finish")]
    Partial,
    #[error("it is not a saved domain of xl's format")]
    NoMagic,
    #[error("it was saved by a host of another byte order")]
    Order,
    #[error("it is of a kind that is not known (flags {0:#x})")]
    Flags(u32),
    #[error("it is cut short")]
    Short,
    #[error("its head is malformed: {0}")]
    Malformed(String),
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl Head {
    pub(crate) fn new(config: Value, definition: &Element, was_running: bool) -> Self {
        let definition = Some(definition.to_string());
        let mut head = Self { config, definition, was_running, room: 0 };
        let length = head.text().len() + SPARE;
        head.room = u32::try_from(length).unwrap_or(u32::MAX);
        head
    }

    pub(crate) fn stream_at(&self) -> u64 {
        FIXED as u64 + u64::from(self.room)
    }

    fn text(&self) -> Vec<u8> {
        let mut config = self.config.clone();
        if let Some(definition) = &self.definition {
            config["virtsnap"] = json!({ "definition": definition, "running": self.was_running });
        }
        let mut bytes = vec![0; 4];
        bytes.extend(config.to_string().into_bytes());
        bytes.push(0);
        bytes
    }

    /// The whole head; none if it has grown beyond its room.
    pub(crate) fn to_bytes(&self, is_complete: bool) -> Option<Vec<u8>> {
        let mut text = self.text();
        let room = usize::try_from(self.room).ok()?;
        if text.len() > room {
            return None;
        }
        text.pop();
        text.resize(room - 1, b' ');
        text.push(0);
        let length = self.room.checked_sub(4)?;
        text.get_mut(..4)?.copy_from_slice(&length.to_ne_bytes());
        let mut bytes = if is_complete { MAGIC.to_vec() } else { vec![0; MAGIC.len()] };
        for number in [ORDER, IS_JSON | IS_VERSION_2, 0, self.room] {
            bytes.extend(number.to_ne_bytes());
        }
        bytes.extend(text);
        Some(bytes)
    }

    /// Reads up to the first byte of the stream.
    pub(crate) fn read(mut from: impl Read) -> Result<Self, Damage> {
        let mut fixed = [0; FIXED];
        fill(&mut from, &mut fixed)?;
        let (magic, rest) = fixed.split_at(MAGIC.len());
        match magic {
            magic if magic == MAGIC => {}
            magic if magic == [0; 32] && rest.starts_with(&ORDER.to_ne_bytes()) => {
                return Err(Damage::Partial);
            }
            _ => return Err(Damage::NoMagic),
        }
        let [order, flags, _, room] = numbers(rest);
        if order != ORDER {
            return Err(Damage::Order);
        }
        if flags != IS_JSON | IS_VERSION_2 {
            return Err(Damage::Flags(flags));
        }
        if !(5..=MAX_ROOM).contains(&room) {
            return Err(Damage::Malformed("the length of the configuration".to_owned()));
        }
        let mut text = vec![0; room as usize];
        fill(&mut from, &mut text)?;
        let (length, text) = text.split_at(4);
        let [length] = numbers(length);
        let text = text.get(..length as usize).ok_or(Damage::Short)?;
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let mut config: Value =
            serde_json::from_slice(text).map_err(|err| Damage::Malformed(err.to_string()))?;
        let ours = config.as_object_mut().and_then(|config| config.remove("virtsnap"));
        let ours = ours.unwrap_or_default();
        let definition = ours["definition"].as_str().map(str::to_owned);
        // What xl saves runs when it is restored.
        let was_running = definition.is_none() || ours["running"].as_bool().unwrap_or(true);
        Ok(Self { config, definition, was_running, room })
    }

    /// The definition; of a file of xl's, what its configuration tells.
    pub(crate) fn definition(&self, host: &Host) -> Result<Element> {
        match &self.definition {
            Some(text) => Element::parse(text).map_err(|err| {
                Error::new(Condition::OperationFailed, "its definition is malformed").caused_by(err)
            }),
            None => Ok(from_libxl(&self.config, host)?.domain),
        }
    }

    /// Before the stream.
    pub(crate) fn begin(&self, mut file: &File) -> io::Result<()> {
        let bytes = self.to_bytes(false).ok_or(io::ErrorKind::InvalidInput)?;
        file.write_all(&bytes)
    }

    /// After the stream: all of it is on the disk, and then it counts.
    pub(crate) fn finish(&self, file: &File) -> io::Result<()> {
        file.sync_all()?;
        file.write_all_at(MAGIC, 0)?;
        file.sync_all()
    }
}

/// A save image, open at its stream.
pub(crate) fn open(path: &Path) -> Result<(Head, File), Damage> {
    // A pipe or a terminal would keep us waiting.
    let kind = fs::metadata(path)?.file_type();
    if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
        return Err(Damage::NoMagic);
    }
    let mut file = File::open(path)?;
    let head = Head::read(&file)?;
    let mut begin = [0; STREAM.len()];
    fill(&mut file, &mut begin)?;
    if begin != *STREAM {
        return Err(Damage::Malformed("what follows it is no stream of libxl's".to_owned()));
    }
    if kind.is_file() {
        // A record without type and length is the last of every stream.
        let mut end = [1; 8];
        file.seek(SeekFrom::End(-8))?;
        fill(&mut file, &mut end)?;
        if end != [0; 8] {
            return Err(Damage::Short);
        }
    }
    file.seek(SeekFrom::Start(head.stream_at()))?;
    Ok((head, file))
}

pub(crate) async fn look_into(file: &Path, host: &Host) -> Result<SaveImage> {
    let path = plain_path(file).map(std::path::PathBuf::from)?;
    let host = host.clone();
    blocking(move || match open(&path) {
        Ok((head, _)) => {
            let definition = head.definition(&host).map_err(|err| unusable(&path, &err.chain()))?;
            Ok(SaveImage::Whole { definition, running: head.was_running })
        }
        Err(Damage::Io(err)) => Err(system("open", &path, err)),
        Err(damage @ (Damage::Partial | Damage::NoMagic | Damage::Short)) => {
            Ok(SaveImage::Torn(damage.to_string()))
        }
        Err(damage) => Err(unusable(&path, &damage.to_string())),
    })
    .await
}

pub(crate) fn unusable(path: &Path, why: &str) -> Error {
    let what = format!("cannot use the save image '{}': {why}", path.display());
    failure(Condition::OperationFailed, what)
}

/// Another definition, in the place of the one that is there where there is room for it, else in
/// a new file that takes the place of this one, whole. One that is not there is done.
pub(crate) async fn edit(
    file: &Path,
    definition: &Element,
    config: Value,
    running: Option<bool>,
) -> Result<()> {
    let (path, text) = (file.to_owned(), definition.to_string());
    blocking(move || {
        let (mut head, mut old) = match open(&path) {
            Err(Damage::Io(err)) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(|damage| unusable(&path, &damage.to_string()))?,
        };
        head.definition = Some(text);
        head.config = config;
        head.was_running = running.unwrap_or(head.was_running);
        let mut write = || -> io::Result<()> {
            let directory = path.parent().unwrap_or(Path::new("/"));
            let is_device = !fs::metadata(&path)?.is_file();
            if let Some(bytes) = head.to_bytes(true).filter(|_| is_device) {
                let device = OpenOptions::new().write(true).open(&path)?;
                device.write_all_at(&bytes, 0)?;
                return device.sync_all();
            }
            head.room = u32::try_from(head.text().len() + SPARE).unwrap_or(u32::MAX);
            let mut new = tempfile::Builder::new().prefix(".new-").tempfile_in(directory)?;
            head.begin(new.as_file())?;
            io::copy(&mut old, new.as_file_mut())?;
            head.finish(new.as_file())?;
            new.persist(&path).map_err(|err| err.error)?;
            File::open(directory)?.sync_all()
        };
        write().map_err(|err| system("write", &path, err))
    })
    .await
}

fn numbers<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut words = bytes.chunks_exact(4).map(|word| match word {
        &[a, b, c, d] => u32::from_ne_bytes([a, b, c, d]),
        _ => 0,
    });
    std::array::from_fn(|_| words.next().unwrap_or(0))
}

fn fill(from: &mut impl Read, bytes: &mut [u8]) -> Result<(), Damage> {
    from.read_exact(bytes).map_err(|err| match err.kind() {
        io::ErrorKind::UnexpectedEof => Damage::Short,
        _ => Damage::Io(err),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head() -> Head {
        let definition = Element::parse("<domain type='xen'><name>g</name></domain>").unwrap();
        Head::new(json!({"c_info": {"type": "pv", "name": "g"}}), &definition, false)
    }

    fn write(path: &Path, head: &Head, stream: &[u8]) {
        let mut file = File::create(path).unwrap();
        head.begin(&file).unwrap();
        file.write_all(stream).unwrap();
        head.finish(&file).unwrap();
    }

    const WHOLE: &[u8] = b"LibxlFmt\0\0\0\x02\0\0\0\0what is in it....\0\0\0\0\0\0\0\0";

    /// As `xl_saverestore.c` of Xen 4.17 writes and reads it.
    #[test]
    fn the_bytes_are_xls() {
        let head = Head { room: 64, definition: None, ..head() };
        let bytes = head.to_bytes(true).unwrap();
        assert_eq!(bytes.len() as u64, head.stream_at());
        let mut expected = b"Xen saved domain, xl format\n \0 \r".to_vec();
        for number in [0x0102_0304_u32, 3, 0, 64, 60] {
            expected.extend(number.to_le_bytes());
        }
        expected.extend(b"{\"c_info\":{\"name\":\"g\",\"type\":\"pv\"}}");
        expected.resize(48 + 63, b' ');
        expected.push(0);
        assert_eq!(bytes, expected);
        let read = Head::read(bytes.as_slice()).unwrap();
        assert_eq!((&read.config, read.definition, read.was_running), (&head.config, None, true));
    }

    #[tokio::test]
    async fn what_was_written_is_read_and_can_be_edited() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        write(&path, &head(), WHOLE);
        let host = Host::default();
        let SaveImage::Whole { definition, running } = look_into(&path, &host).await.unwrap()
        else {
            panic!("it is whole");
        };
        assert_eq!((definition.child_text("name").as_deref(), running), (Some("g"), false));
        let long = "x".repeat(2 * SPARE);
        let another = Element::parse(&format!("<domain><title>{long}</title></domain>")).unwrap();
        edit(&path, &another, json!({"c_info": 1}), Some(true)).await.unwrap();
        let (head, mut file) = open(&path).unwrap();
        assert_eq!(head.definition.as_deref(), Some(another.to_string().as_str()));
        assert_eq!((head.was_running, &head.config), (true, &json!({"c_info": 1})));
        let mut stream = Vec::new();
        file.read_to_end(&mut stream).unwrap();
        assert_eq!(stream, WHOLE);
        edit(&dir.path().join("gone"), &another, json!({}), None).await.unwrap();
    }

    #[test]
    fn what_is_not_whole_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        let told = |path: &Path| open(path).unwrap_err().to_string();
        write(&path, &head(), &WHOLE[..WHOLE.len() - 9]);
        assert!(told(&path).contains("cut short"), "{}", told(&path));
        write(&path, &head(), b"something else altogether\0\0\0\0\0\0\0\0");
        assert!(told(&path).contains("no stream"), "{}", told(&path));
        head().begin(&File::create(&path).unwrap()).unwrap();
        assert!(told(&path).contains("did not finish"), "{}", told(&path));
        fs::write(&path, "").unwrap();
        assert!(told(&path).contains("cut short"), "{}", told(&path));
        fs::write(&path, [7; 100]).unwrap();
        assert!(told(&path).contains("not a saved domain"), "{}", told(&path));
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            is_ours in any::<bool>(),
        ) {
            if is_ours {
                let whole = head().to_bytes(true).unwrap();
                let end = bytes.len().min(52);
                bytes[..end].copy_from_slice(&whole[..end]);
            }
            let _ = Head::read(bytes.as_slice());
        }
    }
}
