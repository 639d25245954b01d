//! Against facts recorded from libvirt 11.3 with QEMU 10.0: `fixtures/domain/argv/NAME.xml` is a
//! live definition, `NAME.libvirt` the arguments that libvirt's driver started QEMU with, one a
//! line, and `NAME.args` ours. All that the guest sees has to be equal.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use virtsnap_xml::element::Element;

use super::{CommandLine, LaunchContext, QemuFacts, command_line};
use crate::blocks::{Chain, Layer};

pub(super) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/domain/argv")
}

pub(super) fn context() -> LaunchContext {
    LaunchContext {
        monitor: "/run/virtsnap/monitor.sock".into(),
        memory_dir: "/run/virtsnap/ram".into(),
        hugepages: vec![(2048, "/dev/hugepages/virtsnap".into())],
        tpm_sockets: BTreeMap::from([("tpm0".to_owned(), "/run/virtsnap/swtpm.sock".into())]),
        network_bridges: BTreeMap::from([("default".to_owned(), "virbr0".to_owned())]),
        incoming: false,
        sandbox: true,
        now: 1_795_308_894,
        local_offset: 0,
        first_fd: 30,
        qemu: QemuFacts { version: (10, 0, 2), ..QemuFacts::default() },
    }
}

/// The chains as the live definition tells them, with libvirt's numbers where it has them.
pub(super) fn chains(live: &Element) -> BTreeMap<String, Chain> {
    let mut chains = BTreeMap::new();
    let mut unnumbered = 1000..;
    for disk in live.child("devices").unwrap().children("disk") {
        let target = disk.child("target").unwrap().attr("dev").unwrap().to_owned();
        let mut layers = Vec::new();
        let mut at = Some(disk);
        while let Some(element) = at {
            let Some(source) = element.child("source") else { break };
            let Some(image) = source.attr("file").or(source.attr("dev")) else { break };
            let format = element.child("format").or(element.child("driver"));
            let number = element.attr("index").or(source.attr("index"));
            layers.push(Layer {
                image: image.into(),
                format: format.and_then(|f| f.attr("type")).unwrap_or("raw").to_owned(),
                is_block_device: element.attr("type") == Some("block"),
                number: number.map_or_else(|| unnumbered.next().unwrap(), |n| n.parse().unwrap()),
            });
            at = element.child("backingStore");
        }
        if !layers.is_empty() {
            chains.insert(target.clone(), Chain { target, layers });
        }
    }
    chains
}

fn ours(live: &Element) -> CommandLine {
    command_line(live, &chains(live), &context()).unwrap_or_else(|err| panic!("{}", err.chain()))
}

/// What the guest cannot see is dropped, what is written in two ways is made one.
pub(super) fn guest_abi(args: &[String]) -> Vec<String> {
    let mut seen = Vec::new();
    let mut at = args.iter();
    while let Some(option) = at.next() {
        match option.as_str() {
            "-S" | "-no-user-config" | "-nodefaults" | "-no-shutdown" | "-no-hpet" | "-no-acpi" => {
                seen.push(option.clone());
                continue;
            }
            _ => {}
        }
        let value = at.next().expect("an option's value");
        let json: Option<Value> = serde_json::from_str(value).ok().filter(Value::is_object);
        let is = |key: &str, wanted: &str| {
            json.as_ref().and_then(|json| json.get(key)).and_then(Value::as_str) == Some(wanted)
        };
        match option.as_str() {
            // The host's side.
            "-add-fd" | "-chardev" | "-mon" | "-sandbox" | "-msg" | "-netdev" | "-incoming" => {
                continue;
            }
            "-blockdev" => continue,
            "-object" if is("qom-type", "secret") => continue,
            "-name" | "-kernel" | "-initrd" | "-vnc" | "-spice" | "-display" | "-k" => continue,
            _ => {}
        }
        let value = match json {
            Some(mut json) => {
                let map = json.as_object_mut().unwrap();
                // libvirt leaves out the format node above raw images on a new QEMU.
                if let Some(Value::String(drive)) = map.get_mut("drive") {
                    *drive = drive.replace("-storage", "-format");
                }
                for host in ["mem-path", "vhostfd", "prealloc-threads"] {
                    map.remove(host);
                }
                json.to_string()
            }
            // A variable offset starts from the time of the recording.
            None if option == "-rtc" && value.starts_with("base=2") => {
                value.split_once(',').map_or_else(String::new, |(_, rest)| rest.to_owned())
            }
            None => value
                .replace("libvirt-pflash0-storage", "libvirt-pflash0-format")
                .replace("libvirt-pflash1-storage", "libvirt-pflash1-format"),
        };
        seen.push(format!("{option} {value}"));
    }
    seen
}

/// Block nodes are compared where libvirt has both nodes, as text where JSON allows.
fn block_nodes(args: &[String]) -> BTreeMap<String, Value> {
    let mut nodes = BTreeMap::new();
    let values = args.windows(2).filter(|pair| pair[0] == "-blockdev").map(|pair| &pair[1]);
    for value in values {
        let json: Value = serde_json::from_str(value).unwrap();
        nodes.insert(json["node-name"].as_str().unwrap().to_owned(), json);
    }
    nodes
}

pub(super) fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

pub(super) fn names() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "xml") {
            names.insert(path.file_stem().unwrap().to_str().unwrap().to_owned());
        }
    }
    names
}

#[test]
fn the_guest_sees_what_libvirt_shows() {
    let names = names();
    assert!(!names.is_empty());
    let mut wrong = Vec::new();
    for name in &names {
        if let Err(why) = compare(name) {
            wrong.push(format!("== {name}\n{why}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ\n{}", wrong.len(), names.len(), wrong.join("\n"));
}

fn compare(name: &str) -> Result<(), String> {
    let file = |extension: &str| fixtures().join(format!("{name}.{extension}"));
    let live = Element::parse(&std::fs::read_to_string(file("xml")).unwrap()).unwrap();
    let ours = command_line(&live, &chains(&live), &context()).map_err(|err| err.chain())?;
    let mut recorded = lines(&file("libvirt"));
    let program = recorded.remove(0);
    let mut why = String::new();
    if program != ours.program {
        why.push_str(&format!("program {program} / {}\n", ours.program));
    }
    let (theirs, mine) = (guest_abi(&recorded), guest_abi(&ours.args));
    for line in theirs.iter().filter(|line| !mine.contains(line)) {
        why.push_str(&format!("libvirt: {line}\n"));
    }
    for line in mine.iter().filter(|line| !theirs.contains(line)) {
        why.push_str(&format!("ours:    {line}\n"));
    }
    if why.is_empty() && theirs != mine {
        why.push_str(&format!("order: {theirs:#?}\n{mine:#?}\n"));
    }
    let mine = block_nodes(&ours.args);
    for (name, node) in block_nodes(&recorded) {
        let format = name.replace("-storage", "-format");
        let is_whole = name == format || block_nodes(&recorded).contains_key(&format);
        if is_whole && mine.get(&name) != Some(&node) {
            why.push_str(&format!("libvirt: {node}\nours:    {:?}\n", mine.get(&name)));
        }
    }
    let args = ours.args.join("\n") + "\n";
    if std::env::var_os("REGENERATE").is_some() {
        std::fs::write(file("args"), &args).unwrap();
    } else if std::fs::read_to_string(file("args")).ok().as_deref() != Some(args.as_str()) {
        why.push_str("our arguments are not the recorded ones (REGENERATE=1 records them)\n");
    }
    if why.is_empty() { Ok(()) } else { Err(why) }
}

#[test]
fn what_is_not_rendered_is_refused() {
    let path = fixtures().join("common-pc.xml");
    let live = Element::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    ours(&live);
    for (path, name) in [
        (&["devices", "disk"][..], "throttlefilters"),
        (&["devices", "disk", "driver"], "unheard"),
        (&["devices"], "nvram"),
        (&["features"], "capabilities"),
        (&["os"], "init"),
        (&[], "launchSecurity"),
    ] {
        let mut changed = live.clone();
        let place = path.iter().fold(&mut changed, |e, name| e.child_mut(name).unwrap());
        place.push(Element::new(name));
        let err = command_line(&changed, &chains(&live), &context()).unwrap_err();
        assert!(err.message.contains(name), "{name}: {}", err.message);
    }
}

/// Every attribute and text of the recorded guests, one after the other, as far as a definition
/// may hold such a value; what many of them have, in a few of them.
#[test]
fn no_text_of_a_definition_becomes_an_option_of_its_own() {
    const EVIL: &str = ",zz=1";
    const FEW: usize = 3;
    let mut wrong = BTreeSet::new();
    let mut tried = BTreeMap::<String, usize>::new();
    for name in names() {
        let file = fixtures().join(format!("{name}.xml"));
        let live = Element::parse(&std::fs::read_to_string(file).unwrap()).unwrap();
        for nth in 0.. {
            let mut changed = live.clone();
            let Some(place) = spoil(&mut changed, EVIL, &mut { nth }, "") else { break };
            let times = tried.entry(place.clone()).or_default();
            *times += 1;
            if *times > FEW || crate::complete::VOCABULARY.check(&changed).is_err() {
                continue;
            }
            let Ok(command) = command_line(&changed, &chains(&live), &context()) else { continue };
            for pair in command.args.windows(2) {
                let (option, value) = (pair[0].as_str(), pair[1].as_str());
                let is_plain =
                    ["-kernel", "-initrd", "-append", "-bios", "-k", "-uuid"].contains(&option);
                let is_json = value.starts_with('{');
                if !is_plain && !is_json && value.replace(",,", "").contains(EVIL) {
                    wrong.insert(format!("{place} in {option}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Appends `evil` to the value that `nth` counts down to; tells where that is.
fn spoil(element: &mut Element, evil: &str, nth: &mut usize, path: &str) -> Option<String> {
    let path = format!("{path}/{}", element.name());
    if path == "/domain/qemu:commandline" || path == "/domain/metadata" {
        return None;
    }
    let mut is_it = || match nth.checked_sub(1) {
        Some(left) => {
            *nth = left;
            false
        }
        None => true,
    };
    let attributes: Vec<(String, String)> =
        element.attributes().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    for (key, value) in attributes {
        if is_it() {
            element.set_attr(&key, value + evil);
            return Some(format!("{path}@{key}"));
        }
    }
    if element.elements().next().is_none() {
        let text = element.text();
        if !text.is_empty() && is_it() {
            element.set_text(text + evil);
            return Some(path);
        }
    }
    element.elements_mut().find_map(|child| spoil(child, evil, nth, &path))
}
