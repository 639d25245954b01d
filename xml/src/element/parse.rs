//! Text to tree: every limit, and all of well-formedness that the tokenizer does not check.
//!
//! Sources: XML 1.0 (fifth edition), Namespaces in XML 1.0; libxml2's limits. There is no DTD, so
//! there are no entities but the five, and nothing is ever expanded or loaded.

use std::collections::HashMap;
use std::fmt;

use quick_xml::Reader;
use quick_xml::events::{BytesDecl, BytesStart, Event};

use super::print::is_char;
use super::scope::declared_prefix;
use super::{Element, Node};

/// Nesting deeper than this is refused, as libxml2 does.
pub const MAX_DEPTH: usize = 256;
/// A string on libvirt's wire has at most 4 MiB; a recorded moment holds two domains.
pub const MAX_BYTES: usize = 16 << 20;
/// Attributes of one element.
pub const MAX_ATTRIBUTES: usize = 256;
/// Elements, attributes, comments and pieces of text of one document.
pub const MAX_NODES: usize = 1 << 18;

/// Namespace declarations in force at one place: each name inside is looked up among them.
pub const MAX_NAMESPACES: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    #[error("{0}")]
    Malformed(String),
    #[error("nested deeper than {MAX_DEPTH} elements")]
    Depth,
    #[error("document types and entity declarations are not accepted")]
    Doctype,
    #[error("the document is larger than {MAX_BYTES} bytes")]
    Size,
    #[error("an element has more than {MAX_ATTRIBUTES} attributes")]
    Attributes,
    #[error("the document has more than {MAX_NODES} elements, attributes and texts")]
    Nodes,
    #[error("more than {MAX_NAMESPACES} namespaces are declared around an element")]
    Namespaces,
    #[error("encoding '{0}' is not accepted: use UTF-8")]
    Encoding(String),
}

fn malformed(err: impl fmt::Display) -> XmlError {
    XmlError::Malformed(err.to_string())
}

pub(super) fn document(text: &str) -> Result<Element, XmlError> {
    if text.len() > MAX_BYTES {
        return Err(XmlError::Size);
    }
    if let Some((at, c)) = text.char_indices().find(|(_, c)| !is_char(*c)) {
        return Err(malformed(format_args!("character U+{:04X} at byte {at}", u32::from(c))));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // Line ends are one newline before anything else is looked at (XML 1.0, 2.11).
    if text.contains('\r') {
        return tree(&text.replace("\r\n", "\n").replace('\r', "\n"));
    }
    tree(text)
}

fn tree(text: &str) -> Result<Element, XmlError> {
    let mut reader = Reader::from_str(text);
    reader.config_mut().check_comments = true;
    let mut builder = Builder::default();
    loop {
        let at_start = reader.buffer_position() == 0;
        match reader.read_event() {
            Ok(Event::Eof) => return builder.finish(),
            Ok(Event::Decl(decl)) if at_start => declaration(&decl)?,
            Ok(event) => builder.event(&event)?,
            Err(err) => {
                let at = reader.error_position();
                return Err(malformed(format_args!("{err} (byte {at})")));
            }
        }
    }
}

fn declaration(decl: &BytesDecl<'_>) -> Result<(), XmlError> {
    decl.version().map_err(malformed)?;
    if let Some(encoding) = decl.encoding() {
        let encoding = encoding.map_err(malformed)?;
        if !encoding.eq_ignore_ascii_case("utf-8") && !encoding.eq_ignore_ascii_case("us-ascii") {
            return Err(XmlError::Encoding(encoding.into_owned()));
        }
    }
    Ok(())
}

/// The tree while it grows.
#[derive(Debug, Default)]
struct Builder {
    root: Option<Element>,
    open: Vec<Element>,
    /// How many open elements bind each prefix.
    bound: HashMap<String, usize>,
    /// The sum of `bound`.
    in_force: usize,
    nodes: usize,
}

impl Builder {
    fn event(&mut self, event: &Event<'_>) -> Result<(), XmlError> {
        match event {
            Event::Start(start) => {
                let element = self.start(start)?;
                self.open.push(element);
            }
            Event::Empty(start) => {
                let element = self.start(start)?;
                self.close(element)?;
            }
            Event::End(_) => {
                let element = self.open.pop().ok_or_else(|| malformed("unexpected end tag"))?;
                self.close(element)?;
            }
            Event::Text(part) if part.contains("]]>") => {
                return Err(malformed("']]>' in text"));
            }
            Event::Text(part) => self.text(part)?,
            Event::CData(_) | Event::GeneralRef(_) if self.open.is_empty() => {
                return Err(malformed("text outside the root element"));
            }
            Event::CData(part) => self.text(part)?,
            Event::GeneralRef(reference) => {
                let c = reference_value(reference)?;
                self.text(c.encode_utf8(&mut [0; 4]))?;
            }
            Event::Comment(text) => self.comment(text)?,
            Event::PI(instruction) => {
                let target = instruction.target();
                check_name(target)?;
                if target.eq_ignore_ascii_case("xml") {
                    return Err(malformed("the XML declaration stands at the start only"));
                }
            }
            Event::Decl(_) => {
                return Err(malformed("the XML declaration stands at the start only"));
            }
            Event::DocType(_) => return Err(XmlError::Doctype),
            Event::Eof => {}
        }
        Ok(())
    }

    fn finish(self) -> Result<Element, XmlError> {
        if let Some(open) = self.open.last() {
            return Err(malformed(format_args!("the document ends inside <{}>", open.name)));
        }
        self.root.ok_or_else(|| malformed("the document has no element"))
    }

    fn count(&mut self) -> Result<(), XmlError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES { Err(XmlError::Nodes) } else { Ok(()) }
    }

    fn start(&mut self, start: &BytesStart<'_>) -> Result<Element, XmlError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(XmlError::Depth);
        }
        if self.open.is_empty() && self.root.is_some() {
            return Err(malformed("a second root element"));
        }
        self.count()?;
        let mut element = Element::new(start.name().as_ref());
        check_name(&element.name)?;
        // The tokenizer lets attributes touch each other.
        check_spacing(start.attributes_raw())?;
        for attribute in start.attributes() {
            let attribute = attribute.map_err(malformed)?;
            if element.attributes.len() == MAX_ATTRIBUTES {
                return Err(XmlError::Attributes);
            }
            self.count()?;
            let key = attribute.key.as_ref();
            check_name(key)?;
            element.attributes.push((key.to_owned(), attribute_value(&attribute.value)?));
        }
        self.bind(&element)?;
        Ok(element)
    }

    fn bind(&mut self, element: &Element) -> Result<(), XmlError> {
        for (key, uri) in element.attributes() {
            let Some(prefix) = declared_prefix(key) else { continue };
            let reserved = matches!(prefix, "xml" | "xmlns");
            if reserved || (uri.is_empty() && !prefix.is_empty()) {
                return Err(malformed(format_args!("{key}='{uri}' cannot be declared")));
            }
            *self.bound.entry(prefix.to_owned()).or_default() += 1;
            self.in_force += 1;
        }
        if self.in_force > MAX_NAMESPACES {
            return Err(XmlError::Namespaces);
        }
        let prefixed = element.attributes().map(|(key, _)| key);
        for name in prefixed.chain([element.name()]) {
            let Some((prefix, _)) = name.split_once(':') else { continue };
            let known = matches!(prefix, "xml" | "xmlns");
            if !known && !self.bound.contains_key(prefix) {
                return Err(malformed(format_args!("prefix '{prefix}' of '{name}' is not bound")));
            }
        }
        Ok(())
    }

    fn close(&mut self, mut element: Element) -> Result<(), XmlError> {
        for (key, _) in element.attributes() {
            let Some(prefix) = declared_prefix(key) else { continue };
            if let Some(count) = self.bound.get_mut(prefix) {
                *count -= 1;
                self.in_force -= 1;
                if *count == 0 {
                    self.bound.remove(prefix);
                }
            }
        }
        drop_layout(&mut element);
        match self.open.last_mut() {
            Some(parent) => parent.nodes.push(Node::Element(element)),
            None => self.root = Some(element),
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), XmlError> {
        let Some(parent) = self.open.last_mut() else {
            if text.chars().all(is_space) {
                return Ok(());
            }
            return Err(malformed("text outside the root element"));
        };
        if let Some(Node::Text(last)) = parent.nodes.last_mut() {
            last.push_str(text);
            return Ok(());
        }
        if !text.is_empty() {
            parent.nodes.push(Node::Text(text.to_owned()));
        }
        self.count()
    }

    fn comment(&mut self, text: &str) -> Result<(), XmlError> {
        if text.contains("--") || text.ends_with('-') {
            return Err(malformed("'--' in a comment"));
        }
        self.count()?;
        if let Some(parent) = self.open.last_mut() {
            parent.nodes.push(Node::Comment(text.to_owned()));
        }
        Ok(())
    }
}

/// White space between elements is layout, unless there is other text beside it.
pub(super) fn drop_layout(element: &mut Element) {
    let only_text = element.nodes.iter().all(|node| matches!(node, Node::Text(_)));
    let blank = |node: &Node| !matches!(node, Node::Text(text) if !text.chars().all(is_space));
    if !only_text && element.nodes.iter().all(blank) {
        element.nodes.retain(|node| !matches!(node, Node::Text(_)));
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// `raw` starts after the element's name. Between a closing quote and the next attribute there
/// is white space.
fn check_spacing(raw: &str) -> Result<(), XmlError> {
    let mut rest = raw;
    while let Some(at) = rest.find(['"', '\'']) {
        let (_, quoted) = rest.split_at(at);
        let quote = if quoted.starts_with('"') { '"' } else { '\'' };
        let mut parts = quoted.splitn(3, quote);
        rest = parts.nth(2).unwrap_or_default();
        if !rest.is_empty() && !rest.starts_with(is_space) {
            return Err(malformed("no space between attributes"));
        }
    }
    Ok(())
}

fn attribute_value(raw: &str) -> Result<String, XmlError> {
    let mut value = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find(['&', '<', '\t', '\n']) {
        let (plain, special) = rest.split_at(at);
        value.push_str(plain);
        if special.starts_with('<') {
            return Err(malformed("'<' in an attribute"));
        }
        rest = match special.strip_prefix('&') {
            Some(reference) => {
                let (name, after) = reference
                    .split_once(';')
                    .ok_or_else(|| malformed("'&' that begins no reference in an attribute"))?;
                value.push(reference_value(name)?);
                after
            }
            // Unescaped white space in an attribute is a space (XML 1.0, 3.3.3).
            None => {
                value.push(' ');
                special.get(1..).unwrap_or_default()
            }
        };
    }
    value.push_str(rest);
    Ok(value)
}

/// What stands between `&` and `;`.
fn reference_value(name: &str) -> Result<char, XmlError> {
    let code = match name {
        "lt" => return Ok('<'),
        "gt" => return Ok('>'),
        "amp" => return Ok('&'),
        "apos" => return Ok('\''),
        "quot" => return Ok('"'),
        _ => match name.strip_prefix("#x") {
            Some(hex) if hex.chars().all(|c| c.is_ascii_hexdigit()) => {
                u32::from_str_radix(hex, 16).ok()
            }
            Some(_) => None,
            None => name
                .strip_prefix('#')
                .filter(|digits| digits.chars().all(|c| c.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok()),
        },
    };
    match code.and_then(char::from_u32) {
        Some(c) if is_char(c) => Ok(c),
        _ => Err(malformed(format_args!("unknown reference '&{name};'"))),
    }
}

/// A qualified name: an NCName, or two joined by a colon.
fn check_name(name: &str) -> Result<(), XmlError> {
    let ok = match name.split_once(':') {
        Some((prefix, local)) => is_ncname(prefix) && is_ncname(local),
        None => is_ncname(name),
    };
    if ok { Ok(()) } else { Err(malformed(format_args!("'{name}' is no name"))) }
}

fn is_ncname(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(starts_name) && chars.all(continues_name)
}

fn starts_name(c: char) -> bool {
    matches!(c,
        'A'..='Z' | '_' | 'a'..='z' | '\u{c0}'..='\u{d6}' | '\u{d8}'..='\u{f6}'
        | '\u{f8}'..='\u{2ff}' | '\u{370}'..='\u{37d}' | '\u{37f}'..='\u{1fff}'
        | '\u{200c}'..='\u{200d}' | '\u{2070}'..='\u{218f}' | '\u{2c00}'..='\u{2fef}'
        | '\u{3001}'..='\u{d7ff}' | '\u{f900}'..='\u{fdcf}' | '\u{fdf0}'..='\u{fffd}'
        | '\u{10000}'..='\u{effff}')
}

fn continues_name(c: char) -> bool {
    starts_name(c)
        || matches!(c,
            '-' | '.' | '0'..='9' | '\u{b7}' | '\u{300}'..='\u{36f}' | '\u{203f}'..='\u{2040}')
}
