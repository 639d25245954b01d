//! A faithful XML tree on quick-xml's tokenizer, and libvirt's way to print it.
//!
//! quick-xml is a tokenizer, not a conforming parser: `parse` refuses what it lets pass and what
//! libxml2 (so libvirt) refuses. Kept, in the order they were read: elements, attributes with
//! `xmlns` among them, text, comments. Not kept: the XML declaration, processing instructions,
//! whether text was CDATA, and the layout between elements.
//!
//! Invariant: what [`Element`]'s `Display` prints of a parsed tree, parses to the same tree.
//!
//! - `parse`, text in, limits and well-formedness
//! - `print`, libvirt's form, and libxml2's inside `<metadata>`
//! - `scope`, namespaces

mod parse;
mod print;
mod scope;

pub use parse::{MAX_ATTRIBUTES, MAX_BYTES, MAX_DEPTH, MAX_NAMESPACES, MAX_NODES, XmlError};
pub use scope::Scope;

/// One element: qualified name, attributes (`xmlns` among them) and children, in document order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Element(Element),
    Text(String),
    Comment(String),
}

impl Element {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Reads a whole document.
    pub fn parse(text: &str) -> Result<Self, XmlError> {
        parse::document(text)
    }

    /// The qualified name as written, prefix included.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn attr(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn attributes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.attributes.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Replaces the attribute where it stands, or adds it at the end.
    pub fn set_attr(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        match self.attributes.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value,
            None => self.attributes.push((name.to_owned(), value)),
        }
    }

    pub fn remove_attr(&mut self, name: &str) -> Option<String> {
        let at = self.attributes.iter().position(|(key, _)| key == name)?;
        Some(self.attributes.remove(at).1)
    }

    #[must_use]
    pub fn with_attr(mut self, name: &str, value: impl Into<String>) -> Self {
        self.set_attr(name, value);
        self
    }

    #[must_use]
    pub fn with_child(mut self, child: Element) -> Self {
        self.push(child);
        self
    }

    #[must_use]
    pub fn with_text(mut self, text: impl Into<String>) -> Self {
        self.nodes.push(Node::Text(text.into()));
        self
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn nodes_mut(&mut self) -> &mut Vec<Node> {
        &mut self.nodes
    }

    pub fn push(&mut self, child: Element) {
        self.nodes.push(Node::Element(child));
    }

    /// Child elements, in document order.
    pub fn elements(&self) -> impl Iterator<Item = &Element> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            Node::Text(_) | Node::Comment(_) => None,
        })
    }

    pub fn elements_mut(&mut self) -> impl Iterator<Item = &mut Element> {
        self.nodes.iter_mut().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            Node::Text(_) | Node::Comment(_) => None,
        })
    }

    /// Child elements of that name, in document order.
    pub fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.elements().filter(move |child| child.name == name)
    }

    pub fn children_mut<'a>(&'a mut self, name: &'a str) -> impl Iterator<Item = &'a mut Element> {
        self.elements_mut().filter(move |child| child.name == name)
    }

    /// The first child element of that name.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.elements().find(|child| child.name == name)
    }

    pub fn child_mut(&mut self, name: &str) -> Option<&mut Element> {
        self.elements_mut().find(|child| child.name == name)
    }

    /// The element reached by taking the first child of each name in turn.
    pub fn at(&self, path: &[&str]) -> Option<&Element> {
        path.iter().try_fold(self, |element, name| element.child(name))
    }

    /// The first child of that name, added at the end if there is none.
    pub fn child_or_insert(&mut self, name: &str) -> &mut Element {
        let at = match self.position(name) {
            Some(at) => at,
            None => {
                self.push(Element::new(name));
                self.nodes.len() - 1
            }
        };
        match &mut self.nodes[at] {
            Node::Element(element) => element,
            Node::Text(_) | Node::Comment(_) => unreachable!("position() finds elements only"),
        }
    }

    pub fn remove_children(&mut self, name: &str) {
        self.nodes.retain(|node| !matches!(node, Node::Element(child) if child.name == name));
    }

    /// The text directly inside, joined.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            if let Node::Text(part) = node {
                text.push_str(part);
            }
        }
        text
    }

    /// All text inside, however deep: what XPath's `string()` gives.
    pub fn deep_text(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            match node {
                Node::Text(part) => text.push_str(part),
                Node::Element(child) => text.push_str(&child.deep_text()),
                Node::Comment(_) => {}
            }
        }
        text
    }

    /// An attribute, or the text of an element, in here is just that.
    pub fn mentions(&self, text: &str) -> bool {
        self.attributes().any(|(_, value)| value == text)
            || self.text().trim() == text
            || self.elements().any(|child| child.mentions(text))
    }

    pub fn child_text(&self, name: &str) -> Option<String> {
        self.child(name).map(Element::text)
    }

    /// Replaces all that is inside by `text`.
    pub fn set_text(&mut self, text: impl Into<String>) {
        self.nodes = vec![Node::Text(text.into())];
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.nodes
            .iter()
            .position(|node| matches!(node, Node::Element(child) if child.name == name))
    }

    /// Takes out the first child of that name.
    pub fn take_child(&mut self, name: &str) -> Option<Element> {
        let at = self.position(name)?;
        match self.nodes.remove(at) {
            Node::Element(element) => Some(element),
            Node::Text(_) | Node::Comment(_) => None,
        }
    }

    /// Puts `child` where the first child of its name stands, or at the end if there is none.
    pub fn replace_child(&mut self, child: Element) {
        match self.position(&child.name) {
            Some(at) => self.nodes[at] = Node::Element(child),
            None => self.push(child),
        }
    }

    /// Puts `child` before the first child that has one of the names, or at the end.
    pub fn insert_before(&mut self, names: &[&str], child: Element) {
        let at = self.nodes.iter().position(
            |node| matches!(node, Node::Element(next) if names.contains(&next.name.as_str())),
        );
        self.nodes.insert(at.unwrap_or(self.nodes.len()), Node::Element(child));
    }

    /// The same element under another name (`<domain>` as `<inactiveDomain>`).
    #[must_use]
    pub fn renamed(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The first descendant, or the element itself, of that namespace and local name. Bindings
    /// from outside of `self` are not known: start at the element that has them.
    pub fn find_ns(&self, uri: &str, local: &str) -> Option<&Element> {
        scope::find(self, &Scope::default(), uri, local)
    }

    /// As [`Display`](std::fmt::Display) prints, in the form of libxml2 that libvirt uses for what
    /// is inside `<metadata>`.
    pub fn to_metadata_string(&self) -> String {
        print::metadata(self)
    }
}

#[cfg(test)]
mod tests;
