//! Reading and changing a `<domain>` where the daemon itself must: its identity, the views that
//! `virDomainGetXMLDesc` offers, metadata, memory and vCPU counts. Everything else in a definition
//! is the hypervisor's to judge.

use uuid::Uuid;
use virtsnap_engine::error::{Condition, Error, Origin, Result};
use virtsnap_xml::domain::{self, MetadataError, Vcpus};
use virtsnap_xml::element::Element;
use virtsnap_xml::policy::{self, Policy};

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
        Error::new(Condition::XmlDetail, "the domain description cannot be read")
            .from_origin(Origin::Domain)
            .caused_by(err)
    })?;
    if element.name() != "domain" {
        return Err(xml_error(format!(
            "unexpected root element <{}>, expecting <domain>",
            element.name()
        )));
    }
    check_policy(&element)?;
    Ok(element)
}

/// A policy that could not be followed is not taken.
fn check_policy(definition: &Element) -> Result<()> {
    Policy::of(definition).map(drop).map_err(|err| xml_error(err.to_string()))
}

/// The name and uuid; a uuid is made up where there is none, and written in.
pub(crate) fn identify(definition: &mut Element) -> Result<(Uuid, String)> {
    let name = definition.child_text("name").unwrap_or_default();
    check_name(&name)?;
    let uuid = match definition.child_text("uuid") {
        Some(text) => Uuid::parse_str(text.trim())
            .ok()
            .filter(|uuid| !uuid.is_nil())
            .ok_or_else(|| xml_error(format!("malformed uuid element '{}'", text.trim())))?,
        None => {
            let uuid = Uuid::new_v4();
            domain::set_uuid(definition, uuid);
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
pub(crate) fn view(definition: &Element, id: Option<i32>, view: View) -> Element {
    let mut shown = definition.clone();
    if view.inactive {
        shown = domain::to_inactive(shown);
    } else {
        shown.remove_attr("id");
        if let Some(id) = id {
            set_id(&mut shown, id);
        }
    }
    if view.secure { shown } else { domain::without_secrets(shown) }
}

/// Where libvirt prints it: right after the type.
fn set_id(shown: &mut Element, id: i32) {
    let after: Vec<(String, String)> = shown
        .attributes()
        .skip_while(|(key, _)| *key != "type")
        .skip(1)
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    for (key, _) in &after {
        shown.remove_attr(key);
    }
    shown.set_attr("id", id.to_string());
    for (key, value) in after {
        shown.set_attr(&key, value);
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

pub(crate) fn metadata(definition: &Element, wanted: Metadata<'_>) -> Result<String> {
    let found = match wanted {
        Metadata::Description => domain::description(definition),
        Metadata::Title => domain::title(definition),
        Metadata::Element(uri) => domain::metadata(definition, uri)
            .map(|element| element.to_metadata_string().trim_end().to_owned()),
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
    definition: &mut Element,
    which: Metadata<'_>,
    text: Option<&str>,
    key: &str,
) -> Result<()> {
    match which {
        Metadata::Title => domain::set_title(definition, text.unwrap_or_default()),
        Metadata::Description => domain::set_description(definition, text.unwrap_or_default()),
        Metadata::Element(uri) => {
            domain::set_metadata(definition, text, key, uri).map_err(|err| match err {
                MetadataError::Malformed(_) => xml_error("bad metadata".to_owned()).caused_by(err),
                MetadataError::Prefix(_) | MetadataError::Taken(_) => {
                    Error::new(Condition::Internal, "bad metadata").caused_by(err)
                }
            })?;
            if uri == policy::NAMESPACE {
                check_policy(definition)?;
            }
        }
    }
    Ok(())
}

/// Memory and vCPUs as a definition gives them; memory in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) max_memory: u64,
    pub(crate) memory: u64,
    pub(crate) max_vcpus: u32,
    pub(crate) vcpus: u32,
}

pub(crate) fn size(definition: &Element) -> Size {
    let vcpus = domain::vcpus(definition).unwrap_or(Vcpus { current: 1, max: 1 });
    Size {
        max_memory: domain::memory_kib(definition).unwrap_or(0),
        memory: domain::current_memory_kib(definition).unwrap_or(0),
        max_vcpus: vcpus.max,
        vcpus: vcpus.current,
    }
}

pub(crate) fn set_memory(definition: &mut Element, kib: u64, maximum: bool) -> Result<()> {
    let size = size(definition);
    if maximum {
        set_kib(definition, "memory", kib);
        if size.memory > kib {
            set_kib(definition, "currentMemory", kib);
        }
        return Ok(());
    }
    if kib > size.max_memory {
        return Err(Error::new(
            Condition::InvalidArgument,
            format!("cannot set memory higher than max memory ({} KiB)", size.max_memory),
        ));
    }
    set_kib(definition, "currentMemory", kib);
    Ok(())
}

pub(crate) fn set_vcpus(definition: &mut Element, count: u32, maximum: bool) -> Result<()> {
    let size = size(definition);
    let mut vcpu = definition.child("vcpu").cloned().unwrap_or_else(|| Element::new("vcpu"));
    if maximum {
        // The number in use stays, as far as there is room for it.
        vcpu.set_text(count.to_string());
        if size.vcpus >= count {
            vcpu.remove_attr("current");
        } else {
            vcpu.set_attr("current", size.vcpus.to_string());
        }
    } else if count > size.max_vcpus {
        return Err(Error::new(
            Condition::InvalidArgument,
            format!(
                "requested vcpus is greater than max allowable vcpus for the persistent domain: \
                 {count} > {}",
                size.max_vcpus
            ),
        ));
    } else if count == size.max_vcpus {
        vcpu.remove_attr("current");
    } else {
        vcpu.set_attr("current", count.to_string());
        vcpu.set_text(size.max_vcpus.to_string());
    }
    put(definition, vcpu);
    Ok(())
}

fn set_kib(definition: &mut Element, name: &str, kib: u64) {
    let mut element = definition.child(name).cloned().unwrap_or_else(|| Element::new(name));
    element.set_attr("unit", "KiB");
    element.set_text(kib.to_string());
    put(definition, element);
}

/// Replaces the element of that name, or adds it before what libvirt prints after sizes.
fn put(definition: &mut Element, child: Element) {
    if definition.child(child.name()).is_some() {
        definition.replace_child(child);
    } else {
        definition.insert_before(&["vcpu", "os", "features", "cpu", "clock", "devices"], child);
    }
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
        let vm = domain("<devices><graphics type='vnc' passwd='s'/></devices>");
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
        assert!(vm.to_string().contains("xmlns:p=\"http://x/\""), "{vm}");
        assert!(vm.to_string().contains("<p:c/>"), "{vm}");
        let read = metadata(&vm, Metadata::Element(uri)).unwrap();
        // As libvirt, which has libxml2 print it.
        assert_eq!(read, "<a b=\"1\">\n  <c/>\n</a>");
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
        let counts = |vm: &Element| (size(vm).vcpus, size(vm).max_vcpus);
        set_vcpus(&mut vm, 8, true).unwrap();
        assert_eq!(counts(&vm), (4, 8));
        set_vcpus(&mut vm, 2, true).unwrap();
        assert_eq!(counts(&vm), (2, 2));
    }

    #[test]
    fn a_policy_that_cannot_be_followed_is_refused() {
        let vm = |policy: &str| {
            parse(&format!(
                "<domain><name>vm</name><metadata>\
                 <v:policy xmlns:v='{}'>{policy}</v:policy></metadata></domain>",
                policy::NAMESPACE
            ))
        };
        let mut good = vm("<v:delete keep='overlay'/>").unwrap();
        assert_eq!(vm("<v:delete keep='all'/>").unwrap_err().condition, Condition::XmlError);
        let element = Metadata::Element(policy::NAMESPACE);
        let bad = Some("<policy><revert confirm='x'/></policy>");
        assert!(set_metadata(&mut good, element, bad, "v").is_err());
    }
}
