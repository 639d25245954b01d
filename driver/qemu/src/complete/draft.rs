//! A definition in work: the domain without its devices, and the devices as a list by class.
//!
//! Classes print in the vocabulary's order, so only the order inside a class is of consequence
//! and a device is added by pushing it. Controllers and disks are the exception: libvirt sorts
//! them as it reads them, and so do we.

use virtsnap_xml::domain::parse_number;
use virtsnap_xml::element::{Element, Node};

use super::host::Host;

#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) root: Element,
    pub(super) devices: Vec<Element>,
    pub(super) host: &'a Host,
    /// The machine is a q35; the other possibility is an i440fx.
    pub(super) q35: bool,
    pub(super) kvm: bool,
}

impl<'a> Draft<'a> {
    /// Takes the devices out of a definition. The machine is not known yet.
    pub(super) fn new(mut root: Element, host: &'a Host) -> Self {
        let kvm = root.attr("type") == Some("kvm");
        let mut devices = Vec::new();
        if let Some(element) = root.child_mut("devices") {
            for node in element.nodes_mut().drain(..) {
                if let Node::Element(device) = node {
                    devices.push(device);
                }
            }
        }
        root.remove_children("devices");
        Self { root, devices, host, q35: false, kvm }
    }

    pub(super) fn finish(mut self) -> Element {
        let mut devices = Element::new("devices");
        for device in self.devices {
            devices.push(device);
        }
        self.root.push(devices);
        self.root
    }

    pub(super) fn of<'s>(&'s self, class: &'s str) -> impl Iterator<Item = &'s Element> {
        self.devices.iter().filter(move |device| device.name() == class)
    }

    pub(super) fn of_mut<'s>(
        &'s mut self,
        class: &'s str,
    ) -> impl Iterator<Item = &'s mut Element> {
        self.devices.iter_mut().filter(move |device| device.name() == class)
    }

    pub(super) fn has(&self, class: &str) -> bool {
        self.of(class).next().is_some()
    }

    /// Where the devices of a class are, in their order.
    pub(super) fn positions(&self, class: &str) -> Vec<usize> {
        let of_class = self.devices.iter().enumerate().filter(|(_, d)| d.name() == class);
        of_class.map(|(at, _)| at).collect()
    }

    pub(super) fn controllers<'s>(
        &'s self,
        kind: &'s str,
    ) -> impl Iterator<Item = &'s Element> + 's {
        self.of("controller").filter(move |c| c.attr("type") == Some(kind))
    }

    pub(super) fn controller<'s>(&'s self, kind: &'s str, index: u32) -> Option<&'s Element> {
        self.controllers(kind).find(|c| number_of(c, "index") == Some(index))
    }

    /// Adds a controller unless there is one of that kind and index; says whether it did.
    pub(super) fn ensure_controller(
        &mut self,
        kind: &str,
        index: u32,
        model: Option<&str>,
    ) -> bool {
        if self.controller(kind, index).is_some() {
            return false;
        }
        let mut controller = Element::new("controller")
            .with_attr("type", kind)
            .with_attr("index", index.to_string());
        if let Some(model) = model {
            controller.set_attr("model", model);
        }
        self.insert_controller(controller);
        true
    }

    /// Sorted by index among those of its kind, kinds in the order of their first.
    ///
    /// A USB 2 companion (it has a `<master>`) stands after the controller it belongs to.
    pub(super) fn insert_controller(&mut self, new: Element) {
        let index = number_of(&new, "index");
        let companion = new.child("master").is_some();
        let mut at = None;
        for (position, other) in self.devices.iter().enumerate().rev() {
            if other.name() != "controller" || other.attr("type") != new.attr("type") {
                continue;
            }
            let other_index = number_of(other, "index");
            if index.is_none() {
                at = Some(position + 1);
                break;
            }
            let before_companion =
                !companion && other.child("master").is_some() && other_index == index;
            if other_index > index || before_companion {
                at = Some(position);
            } else if at.is_none() {
                at = Some(position + 1);
            }
        }
        let at = at.or_else(|| self.positions("controller").last().map(|last| last + 1));
        self.devices.insert(at.unwrap_or(self.devices.len()), new);
    }
}

pub(super) fn number_of(element: &Element, attribute: &str) -> Option<u32> {
    parse_number(element.attr(attribute)?)
}
