//! A faithful XML tree on quick-xml's tokenizer, and libvirt's way to print it.
//!
//! quick-xml is a tokenizer, not a conforming parser; what it lets pass (two roots, unclosed
//! elements, forbidden characters, DTDs) is refused here.

use std::fmt;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// Nesting deeper than this is refused, as libxml2 does.
pub const MAX_DEPTH: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    #[error("{0}")]
    Malformed(String),
    #[error("nested deeper than {MAX_DEPTH} elements")]
    Depth,
    #[error("document types and entity declarations are not accepted")]
    Doctype,
}

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
        parse(text)
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

    fn drop_layout(&mut self) {
        if self.elements().next().is_some() {
            self.nodes.retain(|node| !matches!(node, Node::Text(text) if text.trim().is_empty()));
        }
    }
}

fn malformed(err: impl fmt::Display) -> XmlError {
    XmlError::Malformed(err.to_string())
}

fn parse(text: &str) -> Result<Element, XmlError> {
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Element> = Vec::new();
    let mut root: Option<Element> = None;
    loop {
        let event = reader.read_event().map_err(malformed)?;
        match event {
            Event::Start(start) => {
                if open.len() == MAX_DEPTH {
                    return Err(XmlError::Depth);
                }
                open.push(start_element(&start)?);
            }
            Event::Empty(start) => close(start_element(&start)?, &mut open, &mut root)?,
            Event::End(_) => {
                let mut element = open.pop().ok_or_else(|| malformed("unexpected end tag"))?;
                element.drop_layout();
                close(element, &mut open, &mut root)?;
            }
            Event::Text(part) => add_text(&part, &mut open)?,
            Event::CData(part) => add_text(&part, &mut open)?,
            Event::GeneralRef(entity) => {
                let name = &*entity;
                let text = quick_xml::escape::unescape(&format!("&{name};"))
                    .map_err(malformed)?
                    .into_owned();
                add_text(&text, &mut open)?;
            }
            Event::Comment(comment) => {
                if let Some(parent) = open.last_mut() {
                    let text = comment.to_string();
                    parent.nodes.push(Node::Comment(text));
                }
            }
            Event::DocType(_) => return Err(XmlError::Doctype),
            Event::Decl(_) | Event::PI(_) => {}
            Event::Eof => break,
        }
    }
    if !open.is_empty() {
        return Err(malformed("the document ends inside an element"));
    }
    root.ok_or_else(|| malformed("the document has no element"))
}

fn start_element(start: &BytesStart<'_>) -> Result<Element, XmlError> {
    let name = start.name().as_ref().to_owned();
    let mut element = Element::new(name);
    for attribute in start.attributes() {
        let attribute = attribute.map_err(malformed)?;
        let key = attribute.key.as_ref().to_owned();
        let raw = &attribute.value;
        let value = quick_xml::escape::unescape(raw).map_err(malformed)?.into_owned();
        element.attributes.push((key, value));
    }
    Ok(element)
}

fn add_text(text: &str, open: &mut [Element]) -> Result<(), XmlError> {
    match open.last_mut() {
        Some(parent) => {
            if let Some(Node::Text(last)) = parent.nodes.last_mut() {
                last.push_str(text);
            } else {
                parent.nodes.push(Node::Text(text.to_owned()));
            }
            Ok(())
        }
        None if text.trim().is_empty() => Ok(()),
        None => Err(malformed("text outside the root element")),
    }
}

fn close(
    element: Element,
    open: &mut [Element],
    root: &mut Option<Element>,
) -> Result<(), XmlError> {
    match open.last_mut() {
        Some(parent) => parent.nodes.push(Node::Element(element)),
        None if root.is_some() => return Err(malformed("a second root element")),
        None => *root = Some(element),
    }
    Ok(())
}

/// Prints as libvirt prints: two spaces, single quotes, one element a line.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(self, f, 0)
    }
}

fn print(element: &Element, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
    write!(f, "{:indent$}<{}", "", element.name, indent = depth * 2)?;
    for (key, value) in &element.attributes {
        write!(f, " {key}='{}'", escape(value))?;
    }
    if element.nodes.is_empty() {
        return writeln!(f, "/>");
    }
    if element.elements().next().is_none() {
        return writeln!(f, ">{}</{}>", escape(&element.text()), element.name);
    }
    writeln!(f, ">")?;
    for node in &element.nodes {
        match node {
            Node::Element(child) => print(child, f, depth + 1)?,
            Node::Comment(text) => {
                writeln!(f, "{:indent$}<!--{text}-->", "", indent = depth * 2 + 2)?
            }
            Node::Text(text) => write!(f, "{}", escape(text))?,
        }
    }
    writeln!(f, "{:indent$}</{}>", "", element.name, indent = depth * 2)
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entities_and_cdata_are_text() {
        let e = Element::parse("<a>x &amp; <![CDATA[<y>]]>&#98;</a>").unwrap();
        assert_eq!(e.text(), "x & <y>b");
    }

    #[test]
    fn prints_as_libvirt_prints() {
        let e = Element::parse("<a b=\"1\"><c/><d>t</d></a>").unwrap();
        assert_eq!(e.to_string(), "<a b='1'>\n  <c/>\n  <d>t</d>\n</a>\n");
    }
}
