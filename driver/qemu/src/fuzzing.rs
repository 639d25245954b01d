//! What the fuzz targets of `tests/fuzz` drive and nobody else needs: this crate's readers of
//! bytes that QEMU, a guest, or whoever made a file has written. Each says whether it took them.
//!
//! Every function here holds a reader to what it promises, and panics where it does not.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::Value;
use virtsnap_engine::domain::{RunningReason, State};
use virtsnap_xml::element::Element;

use crate::blocks::{self, graph};
use crate::events;
use crate::image::edit::Check;
use crate::image::info::{self, ImageInfo};
use crate::instance::Inner;
use crate::migration::Progress;
use crate::qmp::{Message, QmpEvent};
use crate::save_image::{Format, Head, codec};
use crate::status::Status;

/// Lines from the monitor of a guest with this live definition: every event is acted upon, every
/// reply is read as each of the answers that we ask for.
pub fn monitor(live: &Element, lines: &[u8]) -> bool {
    let running = State::Running(RunningReason::Booted);
    let mut inner = Inner::new(live.clone(), running, BTreeMap::new());
    let mut known = false;
    for line in lines.split(|&byte| byte == b'\n') {
        match Message::parse(line) {
            Some(Message::Event(event)) => known |= told(&mut inner, &event),
            Some(Message::Reply { outcome: Ok(value), .. }) => known |= answer(&value),
            Some(Message::Reply { outcome: Err(_), .. } | Message::Greeting) => known = true,
            Some(Message::Unknown) | None => {}
        }
    }
    // What events have changed can still be written down, and read again.
    let written = inner.live.to_string();
    assert_eq!(Element::parse(&written).as_ref(), Ok(&inner.live), "{written}");
    known
}

fn told(inner: &mut Inner, event: &QmpEvent) -> bool {
    let mut told = Vec::new();
    events::translate(inner, event, &mut told);
    !told.is_empty()
}

fn answer(value: &Value) -> bool {
    fn read<T: serde::de::DeserializeOwned>(value: &Value) -> Option<T> {
        serde_json::from_value(value.clone()).ok()
    }
    let nodes = read::<Vec<virtsnap_block::nodes::Node>>(value);
    let jobs = read::<Vec<blocks::job::Job>>(value);
    let graph = graph::Graph::parse(value);
    if let Some(graph) = &graph {
        let all = graph.names();
        for chain in all.iter().filter_map(|name| graph.chain(&[name.clone()].into())) {
            assert!(chain.len() <= graph::MAX_STEPS, "an endless chain");
        }
        graph.chain(&all);
    }
    let progress = read::<Progress>(value).filter(|progress| !progress.status.is_empty());
    progress.as_ref().map(Progress::is_active);
    nodes.is_some() || jobs.is_some() || graph.is_some() || progress.is_some()
}

/// What `qemu-img` printed of an image, or found in it.
pub fn image_tool(printed: &[u8]) -> bool {
    let path = Path::new("/images/vm.qcow2");
    let facts = serde_json::from_slice::<ImageInfo>(printed).map(|image| image.facts(path));
    if let Ok(facts) = &facts {
        for snapshot in &facts.snapshots {
            let _ = crate::image::edit::id_of(&facts.snapshots, &snapshot.tag);
        }
        if let Some(backing) = &facts.backing {
            drop(crate::image::name(backing));
        }
    }
    facts.is_ok() || serde_json::from_slice::<Check>(printed).is_ok()
}

/// The path that a name in an image's header means.
pub fn backing_name(name: &str) {
    let path = info::resolve(Path::new("/images/vm.qcow2"), name);
    drop(crate::image::name(&path));
}

/// The head of a save image. What was read can be written, and is the same.
pub fn save_image(bytes: &[u8]) -> bool {
    let Ok(head) = Head::read(bytes) else { return false };
    assert!(head.stream_at() <= bytes.len() as u64, "a stream outside of the file");
    let written = head.to_bytes(true);
    assert_eq!(Head::read(written.as_slice()).ok().as_ref(), Some(&head), "written and read");
    assert_eq!(written.len() as u64, head.stream_at());
    drop(head.cookie_cpu());
    drop(Element::parse(&head.definition));
    true
}

/// The stream of a save image in each of the compressions that are read, none of which may give
/// out more than `limit` bytes here. The first byte chooses.
pub fn decompress(bytes: &[u8], limit: usize) -> bool {
    struct Bounded(usize);
    impl io::Write for Bounded {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let Some((&choice, stream)) = bytes.split_first() else { return false };
    let Some(format) = Format::of(u32::from(choice % 8)) else { return false };
    codec::decompress(format, stream, Bounded(limit)).is_ok()
}

/// The status file of a running domain.
pub fn status(bytes: &[u8]) -> bool {
    let Ok(status) = Status::from_bytes(bytes) else { return false };
    let written = serde_json::to_vec(&status).unwrap_or_default();
    assert_eq!(Status::from_bytes(&written).ok(), Some(status), "written and read");
    true
}

/// The note of a job under way, in the state directory.
pub fn note(bytes: &[u8]) -> bool {
    virtsnap_block::note::Note::from_bytes(bytes).is_ok()
}

/// A stream that [`decompress`] reads, for its corpus.
///
/// # Errors
/// Where nothing writes that format.
pub fn compress(choice: u8, memory: &[u8]) -> io::Result<Vec<u8>> {
    let format = Format::of(u32::from(choice)).ok_or(io::ErrorKind::Unsupported)?;
    let mut stream = vec![choice];
    codec::compress(format, memory, &mut stream)?;
    Ok(stream)
}
