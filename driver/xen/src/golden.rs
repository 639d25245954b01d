//! Golden definitions under `fixtures/xen`; `UPDATE_EXPECT=1` writes what is expected anew: read
//! the diff.
//!
//! `defined/NAME.xml` is what a client wrote, `NAME.complete.xml` its persistent form, and
//! `NAME.json` what libxl is asked for at its start. `started/NAME.json` is a configuration as
//! libxl prints it, `NAME.xml` the definition that we read from it.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use virtsnap_xml::element::{Element, Node};

use crate::complete::Runtime;
use crate::host::Host;

pub(crate) fn fixtures(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/xen").join(of)
}

/// Names without the ending, of those files that have no ending before it.
pub(crate) fn names(of: &str, ending: &str) -> Vec<String> {
    let entries = std::fs::read_dir(fixtures(of)).unwrap();
    let files = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = files
        .filter_map(|file| file.strip_suffix(ending).map(str::to_owned))
        .filter(|name| !name.contains('.'))
        .collect();
    names.sort();
    assert!(!names.is_empty());
    names
}

pub(crate) fn read(of: &str, file: &str) -> String {
    let path = fixtures(of).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

pub(crate) fn defined(name: &str) -> Element {
    Element::parse(&read("defined", &format!("{name}.xml"))).unwrap()
}

/// Says whether the file is as expected; writes it where that is asked for.
pub(crate) fn is_expected(of: &str, file: &str, text: &str) -> Result<(), String> {
    let path = fixtures(of).join(file);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    if expected == text { Ok(()) } else { Err(format!("{}:\n{text}", path.display())) }
}

pub(crate) fn host() -> Host {
    Host {
        bridges: [("default".to_owned(), "virbr0".to_owned())].into(),
        channel_dirs: vec!["/run/virtsnap/channel".into()],
    }
}

pub(crate) fn complete(domain: Element) -> virtsnap_engine::error::Result<Element> {
    crate::complete::complete(domain, &host())
}

pub(crate) fn live(config: &Element) -> Element {
    let runtime =
        Runtime { channel_dir: "/run/virtsnap/channel".into(), take_port: &|| Some(5901) };
    crate::complete::live(config, &runtime).unwrap()
}

/// A golden definition in which something was taken out, doubled or written over.
pub(crate) fn mutated() -> impl Strategy<Value = Element> {
    let value = prop_oneof![
        Just(String::new()),
        Just("0".to_owned()),
        Just("-1".to_owned()),
        Just("18446744073709551615".to_owned()),
        Just("4294967296".to_owned()),
        Just("hvm".to_owned()),
        Just("linux".to_owned()),
        Just("xvdzzzzzzzz".to_owned()),
        Just("sdzz".to_owned()),
        Just("cdrom".to_owned()),
        "[a-z:/,é]{0,6}",
    ];
    let names = names("defined", ".xml");
    let changes = prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, value), 1..4);
    (prop::sample::select(names), changes).prop_map(|(name, changes)| {
        let mut domain = defined(&name);
        for (at, what, value) in changes {
            let count = count(&domain);
            change(&mut domain, &mut at.index(count), what, &value);
        }
        domain
    })
}

fn count(element: &Element) -> usize {
    1 + element.elements().map(count).sum::<usize>()
}

fn change(element: &mut Element, at: &mut usize, what: u8, value: &str) -> bool {
    if *at == 0 {
        let attribute = element.attributes().next().map(|(key, _)| key.to_owned());
        match (what, attribute) {
            (0, Some(attribute)) => element.set_attr(&attribute, value),
            (1, Some(attribute)) => {
                element.remove_attr(&attribute);
            }
            (2, _) => element.nodes_mut().clear(),
            _ => element.set_text(value),
        }
        return true;
    }
    for node in element.nodes_mut() {
        if let Node::Element(child) = node {
            *at -= 1;
            if change(child, at, what, value) {
                return true;
            }
        }
    }
    false
}

#[test]
fn definitions_are_completed() {
    let mut wrong = Vec::new();
    for name in names("defined", ".xml") {
        let done = complete(defined(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let text = format!("{done}");
        wrong.extend(is_expected("defined", &format!("{name}.complete.xml"), &text).err());
        let again = complete(done).unwrap();
        assert_eq!(again.to_string(), text, "{name} is not stable");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
