//! libvirt's form: two spaces, single quotes, one element a line.
//!
//! `<metadata>` is printed by libxml2 in libvirt, so here in libxml2's form: double quotes, and in
//! text only what must be escaped. Tabs and line ends in attributes are written as character
//! references in both forms (libvirt writes them raw and loses them when it reads them back).

use std::fmt::{self, Write};

use super::{Element, Node};

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = Form::Libvirt.of(self);
        lines(self, f, 0, form)
    }
}

pub(super) fn metadata(element: &Element) -> String {
    let mut out = String::new();
    // A `String` takes all that is written to it.
    let _ = lines(element, &mut out, 0, Form::Libxml2);
    out
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Libvirt,
    Libxml2,
}

impl Form {
    /// The form of an element that stands in one of this form.
    fn of(self, element: &Element) -> Self {
        if element.name == "metadata" { Form::Libxml2 } else { self }
    }

    fn quote(self) -> char {
        match self {
            Form::Libvirt => '\'',
            Form::Libxml2 => '"',
        }
    }
}

/// The element on lines of its own.
fn lines(element: &Element, out: &mut dyn Write, depth: usize, form: Form) -> fmt::Result {
    indent(out, depth)?;
    if element.nodes.is_empty() || element.nodes.iter().any(|node| matches!(node, Node::Text(_))) {
        inline(element, out, form)?;
        return out.write_char('\n');
    }
    open(element, out, form)?;
    out.write_str(">\n")?;
    for node in &element.nodes {
        match node {
            Node::Element(child) => lines(child, out, depth + 1, form.of(child))?,
            Node::Comment(text) => {
                indent(out, depth + 1)?;
                writeln!(out, "<!--{text}-->")?;
            }
            Node::Text(_) => {}
        }
    }
    indent(out, depth)?;
    writeln!(out, "</{}>", element.name)
}

/// The element with no layout added: beside text, white space would be content.
fn inline(element: &Element, out: &mut dyn Write, form: Form) -> fmt::Result {
    open(element, out, form)?;
    if element.nodes.is_empty() {
        return out.write_str("/>");
    }
    out.write_char('>')?;
    for node in &element.nodes {
        match node {
            Node::Element(child) => inline(child, out, form.of(child))?,
            Node::Comment(text) => write!(out, "<!--{text}-->")?,
            Node::Text(text) => escape(text, out, form, Place::Text)?,
        }
    }
    write!(out, "</{}>", element.name)
}

fn open(element: &Element, out: &mut dyn Write, form: Form) -> fmt::Result {
    write!(out, "<{}", element.name)?;
    for (key, value) in &element.attributes {
        write!(out, " {key}={}", form.quote())?;
        escape(value, out, form, Place::Attribute)?;
        out.write_char(form.quote())?;
    }
    Ok(())
}

fn indent(out: &mut dyn Write, depth: usize) -> fmt::Result {
    write!(out, "{:indent$}", "", indent = depth * 2)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Text,
    Attribute,
}

fn escape(text: &str, out: &mut dyn Write, form: Form, place: Place) -> fmt::Result {
    for c in text.chars() {
        match c {
            '<' => out.write_str("&lt;")?,
            '>' => out.write_str("&gt;")?,
            '&' => out.write_str("&amp;")?,
            '\'' if form == Form::Libvirt => out.write_str("&apos;")?,
            '"' if form == Form::Libvirt || place == Place::Attribute => {
                out.write_str("&quot;")?;
            }
            '\t' | '\n' if place == Place::Attribute => write!(out, "&#{};", u32::from(c))?,
            '\r' => out.write_str("&#13;")?,
            _ if is_char(c) => out.write_char(c)?,
            // No document can hold it.
            _ => {}
        }
    }
    Ok(())
}

/// XML 1.0's Char.
pub(super) fn is_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}
