//! Reading and changing a `<domain>` where the daemon itself must: its identity, the views that
//! `virDomainGetXMLDesc` offers, metadata, memory and vCPU counts. Everything else in a definition
//! is the hypervisor's to judge.

use uuid::Uuid;
use virtsnap_engine::error::{Condition, Error, Origin, Result};
use virtsnap_xml::element::Element;

/// Longer than any name a file system takes as part of a file name.
const MAX_NAME: usize = 200;

/// Which view of a definition is wanted (VIR_DOMAIN_XML_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct View {
    /// With passwords.
    pub(crate) secure: bool,
    /// As it will be at the next start.
    pub(crate) inactive: bool,
}

pub(crate) fn parse(text: &str) -> Result<Element> {
    let element = Element::parse(text).map_err(|err| {
        Error::new(Condition::XmlError, "the domain description cannot be read")
            .from_origin(Origin::Domain)
            .caused_by(err)
    })?;
    if element.name() != "domain" {
        return Err(xml_error(format!(
            "unexpected root element <{}>, expecting <domain>",
            element.name()
        )));
    }
    Ok(element)
}

/// The name and uuid; a uuid is made up where there is none, and written in.
pub(crate) fn identify(domain: &mut Element) -> Result<(Uuid, String)> {
    let name = domain.child_text("name").unwrap_or_default();
    check_name(&name)?;
    let uuid = match domain.child_text("uuid") {
        Some(text) => Uuid::parse_str(text.trim())
            .ok()
            .filter(|uuid| !uuid.is_nil())
            .ok_or_else(|| xml_error(format!("malformed uuid element '{}'", text.trim())))?,
        None => {
            let uuid = Uuid::new_v4();
            let element = Element::new("uuid").with_text(uuid.to_string());
            insert_after(domain, element, &["name"]);
            uuid
        }
    };
    Ok((uuid, name))
}

pub(crate) fn check_name(name: &str) -> Result<()> {
    let refused = if name.is_empty() {
        "is empty"
    } else if name.len() > MAX_NAME {
        "is too long"
    } else if name.contains('/') {
        "cannot contain '/'"
    } else if name.chars().any(char::is_control) {
        "cannot contain control characters"
    } else if name == "." || name == ".." {
        "cannot be a directory"
    } else {
        return Ok(());
    };
    let shown: String = name.chars().take(MAX_NAME).collect();
    Err(xml_error(format!("domain name '{}' {refused}", shown.escape_debug())))
}

/// `id` is that of a running domain, where its live definition is shown.
pub(crate) fn view(domain: &Element, id: Option<i32>, view: View) -> Element {
    let mut shown = domain.clone();
    shown.remove_attr("id");
    if view.inactive {
        forget_runtime(&mut shown);
    } else if let Some(id) = id {
        // Where libvirt prints it: after the type.
        let attributes: Vec<(String, String)> =
            shown.attributes().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        for (key, _) in &attributes {
            shown.remove_attr(key);
        }
        for (key, value) in attributes {
            let after_type = key == "type";
            shown.set_attr(&key, value);
            if after_type {
                shown.set_attr("id", id.to_string());
            }
        }
        if shown.attr("id").is_none() {
            shown.set_attr("id", id.to_string());
        }
    }
    if !view.secure {
        hide_secrets(&mut shown);
    }
    shown
}

fn hide_secrets(domain: &mut Element) {
    let Some(devices) = domain.child_mut("devices") else { return };
    for graphics in devices.children_mut("graphics") {
        graphics.remove_attr("passwd");
        graphics.remove_attr("passwdValidTo");
    }
}

/// Drops what only a running domain has, for a transient one whose live definition is all there is.
fn forget_runtime(domain: &mut Element) {
    let Some(devices) = domain.child_mut("devices") else { return };
    for device in devices.elements_mut() {
        let user_alias =
            device.at(&["alias"]).and_then(|alias| alias.attr("name")).unwrap_or_default();
        if !user_alias.starts_with("ua-") {
            device.remove_children("alias");
        }
        if device.name() == "graphics" && device.attr("autoport") == Some("yes") {
            device.set_attr("port", "-1");
        }
        if matches!(device.name(), "serial" | "console" | "parallel" | "channel")
            && device.attr("type") == Some("pty")
        {
            device.remove_children("source");
            device.remove_attr("tty");
        }
        if device.name() == "disk" {
            device.remove_children("backingStore");
            if let Some(source) = device.child_mut("source") {
                source.remove_attr("index");
            }
        }
    }
}

/// What virDomainGetMetadata asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metadata<'a> {
    Description,
    Title,
    /// The element of that namespace.
    Element(&'a str),
}

pub(crate) fn metadata(domain: &Element, wanted: Metadata<'_>) -> Result<String> {
    let found = match wanted {
        Metadata::Description => domain.child_text("description"),
        Metadata::Title => domain.child_text("title"),
        Metadata::Element(uri) => domain
            .child("metadata")
            .and_then(|all| all.elements().find(|entry| namespace(entry) == Some(uri)))
            .map(|entry| without_namespace(entry, uri).to_string().trim_end().to_owned()),
    };
    found.ok_or_else(|| {
        let message = match wanted {
            Metadata::Element(uri) => format!("no metadata of the namespace '{uri}'"),
            Metadata::Title => "the domain has no title".to_owned(),
            Metadata::Description => "the domain has no description".to_owned(),
        };
        Error::new(Condition::NoMetadata, message).from_origin(Origin::Domain)
    })
}

/// `text` none takes it away. `key` is the prefix an element gets.
pub(crate) fn set_metadata(
    domain: &mut Element,
    which: Metadata<'_>,
    text: Option<&str>,
    key: &str,
) -> Result<()> {
    let simple = |domain: &mut Element, name: &str, after: &[&str]| {
        domain.remove_children(name);
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            insert_after(domain, Element::new(name).with_text(text), after);
        }
    };
    match which {
        Metadata::Title => simple(domain, "title", &["name", "uuid", "genid", "hwuuid"]),
        Metadata::Description => {
            simple(domain, "description", &["name", "uuid", "genid", "hwuuid", "title"]);
        }
        Metadata::Element(uri) => set_element(domain, uri, text, key)?,
    }
    Ok(())
}

fn set_element(domain: &mut Element, uri: &str, text: Option<&str>, key: &str) -> Result<()> {
    let new = match text {
        Some(text) => {
            let element = Element::parse(text).map_err(|err| {
                xml_error("the metadata is not well-formed".to_owned()).caused_by(err)
            })?;
            Some(with_namespace(&element, key).with_attr(&format!("xmlns:{key}"), uri))
        }
        None => None,
    };
    if domain.child("metadata").is_none() {
        if new.is_none() {
            return Ok(());
        }
        let before = ["name", "uuid", "genid", "hwuuid", "title", "description"];
        insert_after(domain, Element::new("metadata"), &before);
    }
    let all = domain.child_or_insert("metadata");
    all.nodes_mut().retain(|node| {
        !matches!(node, virtsnap_xml::element::Node::Element(entry) if namespace(entry) == Some(uri))
    });
    if let Some(new) = new {
        all.push(new);
    }
    if all.elements().next().is_none() {
        domain.remove_children("metadata");
    }
    Ok(())
}

/// The namespace an element declares for itself.
fn namespace(element: &Element) -> Option<&str> {
    match element.name().split_once(':') {
        Some((prefix, _)) => element.attr(&format!("xmlns:{prefix}")),
        None => element.attr("xmlns"),
    }
}

fn renamed(element: &Element, name: &str) -> Element {
    let attributes = element.attributes().fold(Element::new(name), |new, (key, value)| {
        if key == "xmlns" || key.starts_with("xmlns:") { new } else { new.with_attr(key, value) }
    });
    let mut new = attributes;
    *new.nodes_mut() = element.nodes().to_vec();
    new
}

fn local_name(element: &Element) -> &str {
    element.name().split_once(':').map_or(element.name(), |(_, local)| local)
}

fn without_namespace(element: &Element, uri: &str) -> Element {
    let mut plain = renamed(element, local_name(element));
    for child in plain.elements_mut() {
        // A child of another namespace declares it and keeps it.
        if namespace(child).is_none_or(|other| other == uri) {
            *child = without_namespace(child, uri);
        }
    }
    plain
}

fn with_namespace(element: &Element, key: &str) -> Element {
    let mut named = renamed(element, &format!("{key}:{}", local_name(element)));
    for child in named.elements_mut() {
        if namespace(child).is_none() {
            *child = with_namespace(child, key);
        }
    }
    named
}

/// Memory and vCPUs as a definition gives them; memory in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) max_memory: u64,
    pub(crate) memory: u64,
    pub(crate) max_vcpus: u32,
    pub(crate) vcpus: u32,
}

pub(crate) fn size(domain: &Element) -> Size {
    let max_memory = domain.child("memory").and_then(kib).unwrap_or(0);
    let memory = domain.child("currentMemory").and_then(kib).unwrap_or(max_memory);
    let max_vcpus =
        domain.child_text("vcpu").and_then(|text| text.trim().parse().ok()).unwrap_or(1);
    let vcpus = domain
        .child("vcpu")
        .and_then(|vcpu| vcpu.attr("current")?.parse().ok())
        .unwrap_or(max_vcpus);
    Size { max_memory, memory: memory.min(max_memory), max_vcpus, vcpus }
}

pub(crate) fn set_memory(domain: &mut Element, kib: u64, maximum: bool) -> Result<()> {
    let size = size(domain);
    if maximum {
        set_kib(domain, "memory", kib, &["metadata", "name", "uuid"]);
        if size.memory > kib {
            set_kib(domain, "currentMemory", kib, &["memory"]);
        }
        return Ok(());
    }
    if kib > size.max_memory {
        return Err(Error::new(
            Condition::InvalidArgument,
            format!("cannot set memory higher than max memory ({} KiB)", size.max_memory),
        ));
    }
    set_kib(domain, "currentMemory", kib, &["memory"]);
    Ok(())
}

pub(crate) fn set_vcpus(domain: &mut Element, count: u32, maximum: bool) -> Result<()> {
    let size = size(domain);
    if maximum {
        let vcpu = domain.child_or_insert("vcpu");
        vcpu.set_text(count.to_string());
        if size.vcpus >= count || size.vcpus == size.max_vcpus {
            vcpu.remove_attr("current");
        }
        return Ok(());
    }
    if count > size.max_vcpus {
        return Err(Error::new(
            Condition::InvalidArgument,
            format!(
                "requested vcpus is greater than max allowable vcpus for the persistent domain: \
                 {count} > {}",
                size.max_vcpus
            ),
        ));
    }
    let vcpu = domain.child_or_insert("vcpu");
    if count == size.max_vcpus {
        vcpu.remove_attr("current");
    } else {
        vcpu.set_attr("current", count.to_string());
    }
    Ok(())
}

fn set_kib(domain: &mut Element, name: &str, kib: u64, after: &[&str]) {
    if domain.child(name).is_none() {
        insert_after(domain, Element::new(name), after);
    }
    let element = domain.child_or_insert(name);
    element.set_attr("unit", "KiB");
    element.set_text(kib.to_string());
}

/// libvirt's units; without one the number is KiB.
fn kib(element: &Element) -> Option<u64> {
    let number: u64 = element.text().trim().parse().ok()?;
    let bytes = match element.attr("unit").unwrap_or("KiB") {
        "b" | "bytes" => return Some(number.div_ceil(1024)),
        "KB" => 1000,
        "k" | "KiB" => 1024,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(bytes).map(|bytes| bytes.div_ceil(1024))
}

/// Inserts after the last of `before` that is there, or in front of everything.
pub(crate) fn insert_after(parent: &mut Element, child: Element, before: &[&str]) {
    use virtsnap_xml::element::Node;
    let at = parent.nodes().iter().rposition(
        |node| matches!(node, Node::Element(element) if before.contains(&element.name())),
    );
    parent.nodes_mut().insert(at.map_or(0, |at| at + 1), Node::Element(child));
}

pub(crate) fn xml_error(message: String) -> Error {
    Error::new(Condition::XmlError, message).from_origin(Origin::Domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(inside: &str) -> Element {
        parse(&format!("<domain type='qemu'><name>vm</name>{inside}</domain>")).unwrap()
    }

    #[test]
    fn a_missing_uuid_is_made_up_and_stays() {
        let mut vm = domain("<memory>1</memory>");
        let (uuid, name) = identify(&mut vm).unwrap();
        assert_eq!(name, "vm");
        assert_eq!(identify(&mut vm).unwrap().0, uuid);
        assert_eq!(vm.elements().nth(1).map(Element::name), Some("uuid"));
    }

    #[test]
    fn names_that_would_leave_a_directory_are_refused() {
        for name in ["", "a/b", "..", "a\nb", &"x".repeat(201)] {
            let err = check_name(name).unwrap_err();
            assert_eq!(err.condition, Condition::XmlError, "{name:?}");
        }
        check_name("vm.1 (büro)").unwrap();
    }

    #[test]
    fn passwords_are_shown_only_when_asked_for() {
        let vm = domain("<devices><graphics type='vnc' passwd='s' passwdValidTo='t'/></devices>");
        assert!(!view(&vm, None, View::default()).to_string().contains("passwd"));
        let secure = View { secure: true, ..View::default() };
        assert_eq!(view(&vm, None, secure), vm);
    }

    #[test]
    fn a_running_domain_shows_its_id_and_the_inactive_view_forgets_what_running_gave_it() {
        let live = domain(
            "<devices><disk><alias name='virtio-disk0'/><source file='/a' index='2'/>\
             <backingStore/></disk><serial type='pty' tty='/dev/pts/1'><source path='/dev/pts/1'/>\
             <alias name='ua-mine'/></serial></devices>",
        );
        assert!(
            view(&live, Some(7), View::default())
                .to_string()
                .starts_with("<domain type='qemu' id='7'>")
        );
        let inactive = View { inactive: true, ..View::default() };
        assert_eq!(
            view(&live, Some(7), inactive),
            domain(
                "<devices><disk><source file='/a'/></disk>\
                 <serial type='pty'><alias name='ua-mine'/></serial></devices>"
            )
        );
    }

    #[test]
    fn title_and_description_stand_where_libvirt_prints_them() {
        let mut vm = domain("<uuid>x</uuid><memory>1</memory>");
        set_metadata(&mut vm, Metadata::Description, Some("d"), "").unwrap();
        set_metadata(&mut vm, Metadata::Title, Some("t"), "").unwrap();
        let names: Vec<_> = vm.elements().map(Element::name).collect();
        assert_eq!(names, ["name", "uuid", "title", "description", "memory"]);
        set_metadata(&mut vm, Metadata::Title, None, "").unwrap();
        let err = metadata(&vm, Metadata::Title).unwrap_err();
        assert_eq!(err.condition, Condition::NoMetadata);
    }

    #[test]
    fn metadata_elements_get_their_namespace_and_lose_it_when_read() {
        let mut vm = domain("");
        let uri = "http://x/";
        set_metadata(&mut vm, Metadata::Element(uri), Some("<a b='1'><c/></a>"), "p").unwrap();
        assert!(vm.to_string().contains("<p:a b='1' xmlns:p='http://x/'>"), "{vm}");
        assert!(vm.to_string().contains("<p:c/>"), "{vm}");
        let read = metadata(&vm, Metadata::Element(uri)).unwrap();
        assert_eq!(read, "<a b='1'>\n  <c/>\n</a>");
        set_metadata(&mut vm, Metadata::Element(uri), None, "p").unwrap();
        assert_eq!(vm, domain(""));
    }

    #[test]
    fn sizes_understand_units_and_limits() {
        let mut vm = domain(
            "<memory unit='MiB'>64</memory><currentMemory unit='KiB'>1024</currentMemory>\
             <vcpu current='1'>4</vcpu>",
        );
        let expected = Size { max_memory: 65536, memory: 1024, max_vcpus: 4, vcpus: 1 };
        assert_eq!(size(&vm), expected);
        assert!(set_memory(&mut vm, 65537, false).is_err());
        set_memory(&mut vm, 512, true).unwrap();
        assert_eq!(size(&vm).memory, 512);
        assert!(set_vcpus(&mut vm, 5, false).is_err());
        set_vcpus(&mut vm, 4, false).unwrap();
        assert_eq!(size(&vm).vcpus, 4);
    }
}
