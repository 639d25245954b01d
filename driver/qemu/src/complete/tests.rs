//! Golden pairs: what we make of a definition is what libvirtd 11.3 made of it.
//!
//! `NAME.xml` is the input, `NAME.expected.xml` the recorded result. Where the input leaves uuid,
//! genid or MAC address to chance, the recorded one is taken over before comparing.

use std::path::{Path, PathBuf};

use std::collections::BTreeMap;

use virtsnap_engine::error::{Condition, Error};
use virtsnap_engine::facts::Target;

use super::*;
use crate::argv::{LaunchContext, QemuFacts};
use crate::blocks::{Chain, Layer};

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
        if let (true, Some(text)) = (asked.is_empty(), recorded.child_text(name))
            && let Some(ours) = ours.child_mut(name)
        {
            ours.set_text(text);
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

/// Ports as on a host where nothing listens.
#[derive(Debug, Default)]
struct Fresh(std::sync::Mutex<std::collections::BTreeSet<u16>>);

impl Ports for Fresh {
    fn take(&self, range: std::ops::RangeInclusive<u16>) -> Option<u16> {
        let mut taken = self.0.lock().unwrap();
        let port = range.into_iter().find(|port| !taken.contains(port))?;
        taken.insert(port);
        Some(port)
    }
}

/// What the runtime adds later, or only libvirt's cgroups and security drivers do.
fn without_later_parts(live: &mut Element) {
    for name in ["resource", "seclabel", "cpu"] {
        live.remove_children(name);
    }
    let devices = live.child_mut("devices").unwrap();
    for disk in devices.children_mut("disk") {
        disk.remove_children("backingStore");
        let empty = disk.child("source").is_none();
        for source in disk.children_mut("source") {
            source.remove_attr("index");
        }
        if empty {
            disk.child_mut("driver").unwrap().remove_attr("type");
        }
    }
    for device in devices.elements_mut().filter(|device| device.attr("type") == Some("pty")) {
        device.remove_children("source");
        device.remove_attr("tty");
    }
}

#[test]
fn the_live_form_is_libvirtds() {
    let mut count = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        let text = path.to_string_lossy().into_owned();
        let Some(stem) = text.strip_suffix(".live.xml") else { continue };
        count += 1;
        let mut recorded = read(&path);
        let config = complete(read(Path::new(&format!("{stem}.xml"))), &Host::for_test()).unwrap();
        let id: i32 = recorded.attr("id").unwrap().parse().unwrap();
        let name = config.child_text("name").unwrap();
        let ports = Fresh::default();
        let runtime = Runtime {
            channel_dir: format!("/run/libvirt/qemu/channel/{id}-{name}").into(),
            socket_dir: format!("/var/lib/libvirt/qemu/domain-{id}-{name}").into(),
            vnc_listen: "127.0.0.1".to_owned(),
            spice_listen: "127.0.0.1".to_owned(),
            ports: &ports,
        };
        let mut ours = live(&config, id, &runtime).unwrap();
        assert_eq!(abi_difference(&ours, &recorded), None);
        without_later_parts(&mut ours);
        without_later_parts(&mut recorded);
        if ours.to_string() != recorded.to_string() {
            wrong
                .push(format!("{stem}:\n{}", difference(&ours.to_string(), &recorded.to_string())));
        }
    }
    assert!(wrong.is_empty(), "{} of {count}\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 3, "only {count} live forms found");
}

/// libvirt takes a port that it refuses when it reads the definition again, because the port's type
/// is filled in after the ports are looked at.
#[test]
fn what_is_unknown_is_not_supported() {
    let condition = |text| {
        let unknown = VOCABULARY.check(&Element::parse(text).unwrap()).unwrap_err();
        Error::from(unknown).condition
    };
    let element = "<domain><devices><disk><foo/></disk></devices></domain>";
    assert_eq!(condition(element), Condition::ConfigUnsupported);
    assert_eq!(condition("<network/>"), Condition::XmlError);
}

#[test]
fn what_is_completed_is_not_refused_the_second_time() {
    let serial = |port: u32| format!("<serial type='pty'><target port='{port}'/></serial>");
    for ports in [serial(5), format!("{0}{0}", serial(1)), [0, 1, 2, 3].map(serial).concat()] {
        let text = format!(
            "<domain type='qemu'><name>vm</name><memory>65536</memory>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os>\
             <devices>{ports}</devices></domain>"
        );
        let asked = Element::parse(&text).unwrap();
        let Ok(completed) = complete(asked, &Host::for_test()) else { continue };
        complete(completed, &Host::for_test()).unwrap_or_else(|err| panic!("{ports}: {err}"));
    }
}

/// A guest that we define is one that we can start: nothing is accepted only to be refused then.
#[test]
fn what_is_completed_has_a_command_line() {
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        let text = path.to_string_lossy();
        if text.ends_with(".expected.xml") || text.ends_with(".live.xml") {
            continue;
        }
        let outcome = complete(read(&path), &Host::for_test()).and_then(|config| {
            let ports = Fresh::default();
            let live = live(&config, 1, &runtime(&ports, "/run/d"))?;
            crate::argv::command_line(&live, &chains(&live), &context(&live))
        });
        // libvirt refuses that start too: without TLS there are no secure channels.
        let expected = text.ends_with("vdsm-q35.xml");
        match outcome {
            Err(err) if !expected => wrong.push(format!("{text}: {}", err.message)),
            Ok(_) if expected => wrong.push(format!("{text}: is not refused")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.len(), wrong.join("\n"));
}

fn runtime<'a>(ports: &'a Fresh, dir: &str) -> Runtime<'a> {
    Runtime {
        channel_dir: dir.into(),
        socket_dir: dir.into(),
        vnc_listen: "127.0.0.1".to_owned(),
        spice_listen: "127.0.0.1".to_owned(),
        ports,
    }
}

fn chains(live: &Element) -> BTreeMap<Target, Chain> {
    let mut chains = BTreeMap::new();
    for (number, disk) in (1..).zip(live.child("devices").unwrap().children("disk")) {
        let source = disk.child("source");
        let image = source.and_then(|s| s.attr("file").or_else(|| s.attr("dev")));
        let Some(image) = image else { continue };
        let target = Target::from(disk.child("target").unwrap().attr("dev").unwrap());
        let layer = Layer {
            image: image.into(),
            format: disk.child("driver").unwrap().attr("type").unwrap().to_owned(),
            is_block_device: disk.attr("type") == Some("block"),
            number,
        };
        chains.insert(target.clone(), Chain { target, layers: vec![layer] });
    }
    chains
}

fn context(live: &Element) -> LaunchContext {
    let tpms = live.child("devices").unwrap().children("tpm");
    let sockets = tpms.filter_map(|tpm| Some(tpm.child("alias")?.attr("name")?.to_owned()));
    LaunchContext {
        monitor: "/run/d/monitor.sock".into(),
        memory_dir: "/run/d".into(),
        hugepages: vec![(2048, "/dev/hugepages".into())],
        tpm_sockets: sockets.map(|alias| (alias, "/run/d/tpm.sock".into())).collect(),
        network_bridges: [("default".to_owned(), "virbr0".to_owned())].into(),
        incoming: false,
        sandbox: true,
        now: 1_700_000_000,
        local_offset: 0,
        first_fd: 20,
        qemu: QemuFacts { version: (10, 0, 2), ..QemuFacts::default() },
    }
}

/// Live definitions that libvirt made for guests of many tools: defining one again gives the same
/// machine, with the same names of devices.
#[test]
fn a_running_guests_definition_is_the_same_machine() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(fixtures().join("../argv")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "xml") {
            continue;
        }
        count += 1;
        let recorded = read(&path);
        let outcome = complete(recorded.clone(), &Host::for_test()).and_then(|config| {
            let ports = Fresh::default();
            Ok((config.clone(), live(&config, 1, &runtime(&ports, "/run/d"))?))
        });
        match outcome {
            Err(err) => wrong.push(format!("{}: {}", path.display(), err.message)),
            Ok((config, ours)) => {
                let difference = abi_difference(&recorded, &config);
                if let Some(difference) = difference.or_else(|| aliases_differ(&recorded, &ours)) {
                    wrong.push(format!("{}: {difference}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count}\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 40, "only {count} definitions found");
}

/// Sets the nth attribute, counted through the whole tree.
fn set_nth(element: &mut Element, nth: &mut usize, value: &str) -> bool {
    let names: Vec<String> = element.attributes().map(|(name, _)| name.to_owned()).collect();
    if let Some(name) = names.get(*nth) {
        element.set_attr(name, value);
        return true;
    }
    *nth -= names.len();
    element.elements_mut().any(|child| set_nth(child, nth, value))
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]

    /// A senseless value is refused or has no consequence: it never brings us down.
    #[test]
    fn nonsense_in_an_attribute_is_survived(
        name in proptest::sample::select(vec![
            "hand-disks-pc", "hand-pci", "misc-q35", "usb2-q35", "consoles", "cpu-topo",
            "card-9p-expander", "memory-devices", "live-q35",
        ]),
        nth in 0_usize..200,
        value in proptest::sample::select(vec![
            "", "0", "-1", "1", "7", "31", "32", "255", "256", "65536", "4294967295",
            "0xffffffff", "99999999999999999999", "zz", "vdzzzz", "0-99999", "none", "pci",
        ]),
    ) {
        let mut domain = read(&fixtures().join(format!("{name}.xml")));
        let mut nth = nth;
        if set_nth(&mut domain, &mut nth, value)
            && let Ok(config) = complete(domain, &Host::for_test())
        {
            let ports = Fresh::default();
            let _ = live(&config, i32::MAX, &runtime(&ports, "/run/d"));
        }
    }
}

fn aliases_differ(recorded: &Element, ours: &Element) -> Option<String> {
    let aliases = |domain: &Element| {
        let devices = domain.child("devices").unwrap().elements();
        let mut names: Vec<String> = devices
            .filter_map(|d| Some(format!("{} {}", d.name(), d.child("alias")?.attr("name")?)))
            .collect();
        names.sort();
        names
    };
    let (recorded, ours) = (aliases(recorded), aliases(ours));
    (recorded != ours).then(|| format!("{recorded:?}\n{ours:?}"))
}

#[test]
fn what_a_guest_would_see_is_told() {
    let base = complete(read(&fixtures().join("hand-disks-pc.xml")), &Host::for_test()).unwrap();
    assert_eq!(abi_difference(&base, &base), None);
    let change = |edit: &dyn Fn(&mut Element)| {
        let mut other = base.clone();
        edit(&mut other);
        abi_difference(&base, &other).unwrap_or_default()
    };
    let machine = change(&|domain| {
        let kind = domain.child_mut("os").unwrap().child_mut("type").unwrap();
        kind.set_attr("machine", "pc-i440fx-7.2");
    });
    assert!(machine.contains("machine type"), "{machine}");
    let memory = change(&|domain| domain.child_mut("memory").unwrap().set_text("4096"));
    assert!(memory.contains("<memory>"), "{memory}");
    let disk = change(&|domain| {
        let disk = domain.child_mut("devices").unwrap().child_mut("disk").unwrap();
        disk.child_mut("address").unwrap().set_attr("unit", "1");
    });
    assert!(disk.contains("disk hda"), "{disk}");
    let gone = change(&|domain| domain.child_mut("devices").unwrap().remove_children("memballoon"));
    assert!(gone.contains("memballoon"), "{gone}");
    let path = change(&|domain| {
        let disk = domain.child_mut("devices").unwrap().child_mut("disk").unwrap();
        disk.child_mut("source").unwrap().set_attr("file", "/elsewhere");
    });
    assert_eq!(path, "");
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
