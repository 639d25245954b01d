//! The `<domainsnapshot>` that a creation sends.

use virtsnap_xml::element::Element;

use crate::Failure;
use crate::options::{Create, Disk};

pub(crate) fn xml(asked: &Create) -> Result<String, Failure> {
    if let Some(file) = &asked.xml {
        return std::fs::read_to_string(file)
            .map_err(|source| Failure::Read { file: file.clone(), source });
    }
    let mut root = Element::new("domainsnapshot");
    for (name, text) in [("name", &asked.name), ("description", &asked.description)] {
        if let Some(text) = text {
            root.push(Element::new(name).with_text(text));
        }
    }
    if let Some(memory) = &asked.memory {
        let mut element = Element::new("memory").with_attr("snapshot", memory.location.as_str());
        if let Some(file) = &memory.file {
            element.set_attr("file", absolute(file));
        }
        root.push(element);
    }
    if !asked.disk.is_empty() {
        let disks = asked.disk.iter().map(disk);
        root.push(disks.fold(Element::new("disks"), Element::with_child));
    }
    Ok(root.to_string())
}

fn disk(asked: &Disk) -> Element {
    let mut element = Element::new("disk").with_attr("name", &asked.target);
    if let Some(location) = asked.location {
        element.set_attr("snapshot", location.as_str());
    }
    if let Some(format) = &asked.format {
        element.push(Element::new("driver").with_attr("type", format));
    }
    if let Some(file) = &asked.file {
        element.push(Element::new("source").with_attr("file", absolute(file)));
    }
    if let Some(kept) = asked.on_delete {
        element.push(Element::new("on_delete").with_attr("keep", kept.as_str()));
    }
    element
}

/// The daemon is in another directory.
fn absolute(file: &str) -> String {
    std::path::absolute(file).map_or_else(|_| file.to_owned(), |path| path.display().to_string())
}
