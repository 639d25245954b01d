//! Devices of a persistent definition: added, taken away and replaced by what identifies them.
//!
//! A disk is known by its target, an interface by its MAC address, anything else by being equal in
//! all that the client said of it.

use virtsnap_engine::error::{Condition, Error, Origin, Result};
use virtsnap_xml::element::{Element, Node};

use super::definition::xml_error;

pub(crate) fn parse(text: &str) -> Result<Element> {
    Element::parse(text)
        .map_err(|err| xml_error("the device description cannot be read".to_owned()).caused_by(err))
}

pub(crate) fn attach(domain: &mut Element, device: &Element) -> Result<()> {
    if let Some(key) = key(device)
        && devices(domain)
            .any(|known| known.name() == device.name() && self::key(known) == Some(key))
    {
        let message = format!("{} '{key}' is already in the domain", device.name());
        return Err(Error::new(Condition::OperationInvalid, message));
    }
    let all = domain.child_or_insert("devices");
    // Beside its kind, where the definition would print it.
    let last = all
        .nodes()
        .iter()
        .rposition(|node| matches!(node, Node::Element(known) if known.name() == device.name()));
    match last {
        Some(at) => all.nodes_mut().insert(at + 1, Node::Element(device.clone())),
        None => all.push(device.clone()),
    }
    Ok(())
}

pub(crate) fn detach(domain: &mut Element, device: &Element) -> Result<()> {
    let at = find(domain, device)?;
    domain.child_or_insert("devices").nodes_mut().remove(at);
    Ok(())
}

pub(crate) fn update(domain: &mut Element, device: &Element) -> Result<()> {
    if key(device).is_none() && device.name() != "graphics" {
        let message =
            format!("a <{}> in the persistent definition cannot be updated", device.name());
        return Err(Error::new(Condition::OperationUnsupported, message));
    }
    let at = match device.name() {
        "graphics" => position(domain, |known| {
            known.name() == "graphics" && known.attr("type") == device.attr("type")
        })
        .ok_or_else(|| missing(device))?,
        _ => find(domain, device)?,
    };
    let nodes = domain.child_or_insert("devices").nodes_mut();
    if let Some(node) = nodes.get_mut(at) {
        let mut new = device.clone();
        // Its place on the bus is the guest's, unless the client says another.
        if let Node::Element(old) = node
            && new.child("address").is_none()
            && let Some(address) = old.child("address")
        {
            new.push(address.clone());
        }
        *node = Node::Element(new);
    }
    Ok(())
}

/// The alias of the device in a live definition that the client means.
pub(crate) fn alias(live: &Element, device: &Element) -> Result<String> {
    let at = find(live, device)?;
    let found = live.child("devices").and_then(|all| match all.nodes().get(at) {
        Some(Node::Element(known)) => known.child("alias")?.attr("name"),
        _ => None,
    });
    found.map(str::to_owned).ok_or_else(|| {
        let message = format!("a <{}> without a name cannot be detached", device.name());
        Error::new(Condition::Internal, message)
    })
}

/// Refuses a device that the running domain has.
pub(crate) fn check_new(live: &Element, device: &Element) -> Result<()> {
    attach(&mut live.clone(), device).map_err(|mut err| {
        if device.name() == "disk" {
            err.condition = Condition::XmlError;
        }
        err
    })
}

fn devices(domain: &Element) -> impl Iterator<Item = &Element> {
    domain.child("devices").into_iter().flat_map(Element::elements)
}

/// What tells a device from others of its kind.
fn key(device: &Element) -> Option<&str> {
    match device.name() {
        "disk" => device.child("target")?.attr("dev"),
        "interface" => device.child("mac")?.attr("address"),
        _ => None,
    }
}

fn find(domain: &Element, device: &Element) -> Result<usize> {
    let found = match key(device) {
        Some(key) => {
            position(domain, |known| known.name() == device.name() && self::key(known) == Some(key))
        }
        None => position(domain, |known| says_all_of(known, device)),
    };
    found.ok_or_else(|| missing(device))
}

fn missing(device: &Element) -> Error {
    let which = key(device).map_or(String::new(), |key| format!(" '{key}'"));
    let message = format!("the domain has no such {}{which}", device.name());
    Error::new(Condition::DeviceMissing, message).from_origin(Origin::Domain)
}

/// Where in `<devices>` it stands.
fn position(domain: &Element, wanted: impl Fn(&Element) -> bool) -> Option<usize> {
    let all = domain.child("devices")?;
    all.nodes().iter().position(|node| matches!(node, Node::Element(known) if wanted(known)))
}

/// Everything in `asked` is in `known` as well.
fn says_all_of(known: &Element, asked: &Element) -> bool {
    known.name() == asked.name()
        && asked.attributes().all(|(key, value)| known.attr(key) == Some(value))
        && (asked.elements().next().is_some() || asked.text().trim() == known.text().trim())
        && asked.elements().all(|child| known.elements().any(|other| says_all_of(other, child)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> Element {
        parse(
            "<domain><devices><disk type='file'><source file='/a'/><target dev='vda'/>\
             <address type='pci' slot='4'/></disk><rng model='virtio'><backend/></rng>\
             </devices></domain>",
        )
        .unwrap()
    }

    fn disk(target: &str, file: &str) -> Element {
        let xml =
            format!("<disk type='file'><source file='{file}'/><target dev='{target}'/></disk>");
        parse(&xml).unwrap()
    }

    #[test]
    fn a_new_disk_stands_with_the_disks_and_a_taken_target_is_refused() {
        let mut vm = domain();
        attach(&mut vm, &disk("vdb", "/b")).unwrap();
        let names: Vec<_> = devices(&vm).map(Element::name).collect();
        assert_eq!(names, ["disk", "disk", "rng"]);
        let err = attach(&mut vm, &disk("vda", "/c")).unwrap_err();
        assert_eq!(err.condition, Condition::OperationInvalid);
    }

    #[test]
    fn detach_goes_by_target_or_by_what_was_said() {
        let mut vm = domain();
        assert!(detach(&mut vm, &disk("vdb", "/a")).is_err());
        detach(&mut vm, &disk("vda", "/other")).unwrap();
        let rng = parse("<rng model='virtio'/>").unwrap();
        detach(&mut vm, &rng).unwrap();
        assert_eq!(detach(&mut vm, &rng).unwrap_err().condition, Condition::DeviceMissing);
        assert_eq!(devices(&vm).count(), 0);
    }

    #[test]
    fn an_updated_disk_keeps_its_address() {
        let mut vm = domain();
        update(&mut vm, &disk("vda", "/new")).unwrap();
        let disk = devices(&vm).next().unwrap();
        assert_eq!(disk.child("source").unwrap().attr("file"), Some("/new"));
        assert!(disk.child("address").is_some());
    }
}
