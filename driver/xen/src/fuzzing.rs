//! What the fuzz targets of `tests/fuzz` drive and nobody else needs: this crate's readers of what a
//! client, libxl, or whoever made a file has written. Each says whether it took it.
//!
//! Every function here holds a reader to what it promises, and panics where it does not.

use serde_json::Value;
use virtsnap_xml::element::Element;

use crate::complete::{Runtime, complete, live};
use crate::config::{from_libxl, to_libxl};
use crate::host::Host;
use crate::instance::Status;
use crate::save_image::Head;

/// `<domain>` from a client: completed, which has to settle; then as a guest is started from it.
pub fn domain(tree: &Element) -> bool {
    let host = Host::default();
    let Ok(done) = complete(tree.clone(), &host) else { return false };
    settles(&done, &host);
    start(&done, &host);
    true
}

/// What libxl tells of a domain that another program has started.
pub fn configuration(bytes: &[u8]) -> bool {
    let Ok(config) = serde_json::from_slice::<Value>(bytes) else { return false };
    let host = Host::default();
    let Ok(found) = from_libxl(&config, &host) else { return false };
    settles(&found.domain, &host);
    start(&found.domain, &host);
    true
}

fn settles(done: &Element, host: &Host) {
    let text = done.to_string();
    assert_eq!(Element::parse(&text).as_ref(), Ok(done), "{text}");
    match complete(done.clone(), host) {
        Ok(again) => assert_eq!(again.to_string(), text, "it settles"),
        Err(err) => panic!("what we completed is refused: {}: {text}", err.message),
    }
}

/// What is refused here is refused at the guest's start.
fn start(done: &Element, host: &Host) {
    let runtime = Runtime { channel_dir: "/run/virtsnap/xen".into(), take_port: &|| Some(5901) };
    let Ok(live) = live(done, &runtime) else { return };
    if let Ok(config) = to_libxl(&live, host) {
        drop(from_libxl(&config, host));
    }
}

/// The head of a save image. What was read can be written into the same place, and is the same.
pub fn save_image(bytes: &[u8]) -> bool {
    let Ok(head) = Head::read(bytes) else { return false };
    assert!(head.stream_at() <= bytes.len() as u64, "a stream outside of the file");
    if let Some(written) = head.to_bytes(true) {
        assert_eq!(written.len() as u64, head.stream_at());
        let mut again = Head::read(written.as_slice()).expect("written and read");
        if has_fraction(&head.config) {
            // Which may be read as its neighbour; libxl writes none.
            again.config.clone_from(&head.config);
        }
        assert_eq!(again, head, "written and read");
    }
    drop(head.definition(&Host::default()));
    true
}

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(values) => values.iter().any(has_fraction),
        Value::Object(members) => members.values().any(has_fraction),
        _ => false,
    }
}

/// The status file of a running domain.
pub fn status(bytes: &[u8]) -> bool {
    let Ok(status) = Status::from_bytes(bytes) else { return false };
    let written = serde_json::to_vec(&status).unwrap_or_default();
    assert_eq!(Status::from_bytes(&written).ok(), Some(status), "written and read");
    true
}
