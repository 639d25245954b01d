//! A definition as libvirt prints it (order and form of `virDomainSnapshotDefFormat`).

use super::{Definition, Disk, KeptState, Memory};
use crate::element::Element;

impl Definition {
    /// What a client is shown.
    pub fn to_element(&self) -> Element {
        let mut root = Element::new("domainsnapshot");
        root.push(text("name", &self.name));
        if let Some(description) = &self.description {
            root.push(text("description", description));
        }
        root.push(text("state", self.state.as_str()));
        if let Some(parent) = &self.parent {
            root.push(Element::new("parent").with_child(text("name", parent)));
        }
        root.push(text("creationTime", &self.creation_time.to_string()));
        if self.memory != Memory::Unsaid {
            root.push(memory(&self.memory));
        }
        if !self.disks.is_empty() {
            root.push(disks("disks", &self.disks));
        }
        if !self.revert_disks.is_empty() {
            root.push(disks("revertDisks", &self.revert_disks));
        }
        let inactive = self.inactive_domain.clone().map(|it| it.renamed("inactiveDomain"));
        let nvram = self.nvram.as_ref().map(|kept| kept_state("nvram", kept));
        let tpm = self.tpm.as_ref().map(|kept| kept_state("tpm", kept));
        let parts = [self.domain.clone(), inactive, self.cookie.clone(), nvram, tpm];
        let deleting = self.delete_in_progress.then(|| Element::new("snapshotDeleteInProgress"));
        for part in parts.into_iter().flatten().chain(deleting).chain(self.extra.iter().cloned()) {
            root.push(part);
        }
        root
    }

    /// What is stored: with the mark of the current snapshot.
    pub fn to_stored_element(&self, current: bool) -> Element {
        self.to_element().with_child(text("active", if current { "1" } else { "0" }))
    }
}

fn text(name: &str, text: &str) -> Element {
    Element::new(name).with_text(text)
}

fn memory(memory: &Memory) -> Element {
    let element = Element::new("memory");
    match memory {
        Memory::No | Memory::Unsaid => element.with_attr("snapshot", "no"),
        Memory::Internal { image: None } => element.with_attr("snapshot", "internal"),
        Memory::Internal { image: Some(image) } => {
            element.with_attr("snapshot", "internal").with_attr("file", image)
        }
        Memory::External { file } => {
            element.with_attr("snapshot", "external").with_attr("file", file)
        }
    }
}

fn kept_state(name: &str, kept: &KeptState) -> Element {
    let element = Element::new(name);
    match kept {
        KeptState::No => element.with_attr("snapshot", "no"),
        KeptState::Internal => element.with_attr("snapshot", "internal"),
        KeptState::External { file } => {
            element.with_attr("snapshot", "external").with_attr("file", file)
        }
    }
}

fn disks(name: &str, disks: &[Disk]) -> Element {
    disks.iter().fold(Element::new(name), |list, one| list.with_child(disk(one)))
}

fn disk(disk: &Disk) -> Element {
    let mut element = Element::new("disk")
        .with_attr("name", &disk.name)
        .with_attr("snapshot", disk.snapshot.as_str());
    if let Some(source_type) = &disk.source_type {
        element.set_attr("type", source_type);
    }
    if let Some(tag) = &disk.tag {
        element.set_attr("tag", tag);
    }
    if disk.delete_in_progress {
        element.push(Element::new("snapshotDeleteInProgress"));
    }
    if disk.format.is_some() || disk.driver.is_some() {
        element.push(driver(disk.format.as_deref(), disk.driver.as_ref()));
    }
    if let Some(source) = &disk.source {
        element.push(source.clone());
    }
    if let Some(kept) = disk.on_delete {
        element.push(Element::new("on_delete").with_attr("keep", kept.as_str()));
    }
    for extra in &disk.extra {
        element.push(extra.clone());
    }
    element
}

fn driver(format: Option<&str>, more: Option<&Element>) -> Element {
    let mut driver = Element::new("driver");
    if let Some(format) = format {
        driver.set_attr("type", format);
    }
    for child in more.into_iter().flat_map(Element::elements) {
        driver.push(child.clone());
    }
    driver
}
