//! The way of a definition that another tool wrote: completed, made live, rendered; and what the
//! guest then sees is what libvirt shows it (`fixtures/domain/guests`).

use std::path::Path;

use virtsnap_xml::element::Element;

use super::tests::{chains, context, fixtures, guest_abi, lines};
use super::{LaunchContext, command_line};
use crate::complete::{Host, Ports, Runtime, complete, live};

/// Ports as they come; nothing is tried on this host.
#[derive(Debug)]
struct AnyPort;

impl Ports for AnyPort {
    fn take(&self, range: std::ops::RangeInclusive<u16>) -> Option<u16> {
        Some(*range.start())
    }
}

fn guests() -> Vec<String> {
    let dir = fixtures().join("../guests");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut names = files
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect::<Vec<_>>();
    names.sort();
    assert!(names.len() >= 40);
    names
}

fn as_written(name: &str) -> String {
    let path = fixtures().join(format!("../guests/{name}.xml"));
    let text = std::fs::read_to_string(path).unwrap();
    text.replace("@DIR@", "/var/lib/libvirt/images")
        .replace("@EMULATOR@", "/usr/bin/qemu-system-x86_64")
}

/// What the recording changed to start the guest without KVM and without bridges.
fn emulated(domain: &mut Element) {
    domain.set_attr("type", "qemu");
    if let Some(cpu) = domain.child_mut("cpu")
        && cpu.attr("mode") == Some("host-passthrough")
    {
        cpu.set_attr("mode", "maximum");
        cpu.remove_attr("migratable");
    }
    for interface in domain.child_mut("devices").unwrap().children_mut("interface") {
        if interface.attr("type") != Some("user") {
            interface.set_attr("type", "user");
            for part in ["source", "target", "mtu"] {
                interface.remove_children(part);
            }
            if let Some(driver) = interface.child_mut("driver") {
                driver.remove_attr("queues");
                driver.remove_attr("name");
            }
        }
    }
}

fn made_live(domain: Element) -> Result<Element, String> {
    let config = complete(domain, &Host::for_test()).map_err(|err| err.chain())?;
    let runtime = Runtime {
        channel_dir: Path::new("/run/virtsnap/channel").to_owned(),
        socket_dir: Path::new("/run/virtsnap").to_owned(),
        vnc_listen: "127.0.0.1".to_owned(),
        spice_listen: "127.0.0.1".to_owned(),
        ports: &AnyPort,
    };
    live(&config, 1, &runtime).map_err(|err| err.chain())
}

/// Live definitions of all guests, as text.
pub(super) fn emulated_guests() -> Vec<(String, String)> {
    let live = |name: String| {
        let mut domain = Element::parse(&as_written(&name)).unwrap();
        emulated(&mut domain);
        let live = made_live(domain).unwrap_or_else(|why| panic!("{name}: {why}"));
        (name, live.to_string())
    };
    guests().into_iter().map(live).collect()
}

fn all(check: impl Fn(&str) -> Result<(), String>) {
    let wrong = guests()
        .into_iter()
        .filter_map(|name| check(&name).err().map(|why| format!("== {name}\n{why}")));
    let wrong = wrong.collect::<Vec<_>>();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn guests_are_rendered_as_written() {
    let bridges = ["default", "vagrant-libvirt", "mk-minikube"];
    let bridges = bridges.map(|network| (network.to_owned(), "virbr0".to_owned()));
    let context = LaunchContext { network_bridges: bridges.into(), ..context() };
    all(|name| {
        let live = made_live(Element::parse(&as_written(name)).unwrap())?;
        command_line(&live, &chains(&live), &context).map(|_| ()).map_err(|err| err.chain())
    });
}

#[test]
fn guests_see_what_libvirt_shows() {
    all(|name| {
        let mut domain = Element::parse(&as_written(name)).unwrap();
        emulated(&mut domain);
        let host_model =
            domain.child("cpu").is_some_and(|cpu| cpu.attr("mode") == Some("host-model"));
        let live = made_live(domain)?;
        let ours = command_line(&live, &chains(&live), &context()).map_err(|err| err.chain())?;
        let recorded = lines(&fixtures().join(format!("{name}.libvirt")));
        let plain = |args: &[String]| {
            let mut seen = guest_abi(args);
            for line in &mut seen {
                // Numbers of block nodes are not the guest's business.
                if let Some(at) = line.find("\"libvirt-") {
                    let end = line[at..].find("-format").map_or(line.len(), |end| at + end);
                    line.replace_range(at + 9..end, "N");
                }
            }
            // libvirt names a model of its own list, we the fullest that there is.
            seen.retain(|line| !(host_model && line.starts_with("-cpu")));
            seen
        };
        let (theirs, mine) = (plain(&recorded[1..]), plain(&ours.args));
        let mut why = String::new();
        for line in theirs.iter().filter(|line| !mine.contains(line)) {
            why.push_str(&format!("libvirt: {line}\n"));
        }
        for line in mine.iter().filter(|line| !theirs.contains(line)) {
            why.push_str(&format!("ours:    {line}\n"));
        }
        if why.is_empty() && theirs != mine {
            why = "in another order".to_owned();
        }
        if why.is_empty() { Ok(()) } else { Err(why) }
    });
}
