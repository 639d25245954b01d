//! Golden pairs: what we make of a definition is what libvirtd 11.3 made of it.
//!
//! `NAME.xml` is the input, `NAME.expected.xml` the recorded result. Where the input leaves uuid,
//! genid or MAC address to chance, the recorded one is taken over before comparing.

use std::path::{Path, PathBuf};

use super::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/domain/complete")
}

fn read(path: &Path) -> Element {
    let text = std::fs::read_to_string(path).unwrap();
    Element::parse(&text).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

fn borrow_chance(ours: &mut Element, input: &Element, recorded: &Element) {
    for name in ["uuid", "genid"] {
        let asked = input.child_text(name).unwrap_or_default();
        if let (true, Some(text)) = (asked.is_empty(), recorded.child_text(name)) {
            if let Some(ours) = ours.child_mut(name) {
                ours.set_text(text);
            }
        }
    }
    let macs: Vec<Element> = recorded
        .at(&["devices"])
        .unwrap()
        .children("interface")
        .filter_map(|interface| interface.child("mac").cloned())
        .collect();
    let given: Vec<bool> = input
        .at(&["devices"])
        .map(|devices| devices.children("interface").map(|i| i.child("mac").is_some()).collect())
        .unwrap_or_default();
    let devices = ours.child_mut("devices").unwrap();
    for ((interface, mac), given) in devices.children_mut("interface").zip(macs).zip(given) {
        if !given {
            *interface.child_mut("mac").unwrap() = mac;
        }
    }
}

#[test]
fn completes_as_libvirtd_does() {
    let mut wrong = Vec::new();
    let mut count = 0;
    let mut names: Vec<PathBuf> = std::fs::read_dir(fixtures())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".expected.xml"))
        .collect();
    names.sort();
    for expected in names {
        count += 1;
        let text = expected.to_string_lossy().replace(".expected.xml", ".xml");
        let input = read(Path::new(&text));
        let recorded = read(&expected);
        match complete(input.clone(), &Host::for_test()) {
            Err(err) => wrong.push(format!("{text}: {}", err.message)),
            Ok(mut ours) => {
                borrow_chance(&mut ours, &input, &recorded);
                if ours.to_string() != recorded.to_string() {
                    let other = difference(&ours.to_string(), &recorded.to_string());
                    wrong.push(format!("{text}:\n{other}"));
                }
                // The order of disks can change once, when their buses have become explicit.
                let second = complete(ours.clone(), &Host::for_test()).unwrap();
                let third = complete(second.clone(), &Host::for_test()).unwrap();
                if third.to_string() != second.to_string() {
                    let other = difference(&third.to_string(), &second.to_string());
                    wrong.push(format!("{text}: not stable:\n{other}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count}\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 20, "only {count} pairs found");
}

/// The lines around the first that differ.
fn difference(ours: &str, recorded: &str) -> String {
    let ours: Vec<&str> = ours.lines().collect();
    let recorded: Vec<&str> = recorded.lines().collect();
    let first = ours.iter().zip(&recorded).position(|(a, b)| a != b);
    let first = first.unwrap_or(ours.len().min(recorded.len()));
    let from = first.saturating_sub(3);
    let cut =
        |lines: &[&str]| lines.iter().skip(from).take(9).copied().collect::<Vec<_>>().join("\n");
    format!("ours:\n{}\nrecorded:\n{}", cut(&ours), cut(&recorded))
}
