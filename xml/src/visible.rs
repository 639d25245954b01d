//! What a guest sees of its definition, as data, and where two definitions differ in it.
//!
//! Each driver has its own table. What differs is told in words, so that the one who asked can see
//! what was changed.

use crate::domain::parse_number;
use crate::element::Element;

/// What a guest sees.
#[derive(Debug)]
pub struct Visible {
    /// Elements under the domain, compared whole.
    pub whole: &'static [&'static str],
    /// Classes of devices, with the attributes, and the children (`name` or `name@attribute`),
    /// that make them what they are to the guest.
    pub devices: &'static [(&'static str, &'static [&'static str], &'static [&'static str])],
}

impl Visible {
    pub fn difference_of_whole(&self, a: &Element, b: &Element) -> Option<String> {
        self.whole.iter().find_map(|name| {
            let text = |domain: &Element| domain.child(name).map(seen).unwrap_or_default();
            compare(&format!("<{name}>"), &text(a), &text(b))
        })
    }

    pub fn difference_of_devices(&self, a: &Element, b: &Element) -> Option<String> {
        let mut classes = self.devices.iter();
        classes.find_map(|(class, own, inside)| devices(a, b, class, own, inside))
    }
}

/// The difference between two values of `what`, if there is one.
pub fn compare(what: &str, a: &str, b: &str) -> Option<String> {
    let or_none = |text: &str| match text.trim() {
        "" => "nothing".to_owned(),
        text => format!("'{text}'"),
    };
    (a != b).then(|| format!("{what} is {} in one and {} in the other", or_none(a), or_none(b)))
}

/// An element without what is of one run only.
pub fn seen(element: &Element) -> String {
    let mut text = element.text().trim().to_owned();
    for (key, value) in element.attributes() {
        text.push_str(&format!(" {key}={}", number(value)));
    }
    for child in element.elements() {
        text.push_str(&format!(" {}({})", child.name(), seen(child).trim()));
    }
    text.trim().to_owned()
}

/// `0x02` and `2` are the same address.
fn number(text: &str) -> String {
    match text.strip_prefix("0x") {
        Some(_) => parse_number(text).map_or_else(|| text.to_owned(), |n| n.to_string()),
        None => text.to_owned(),
    }
}

fn devices(a: &Element, b: &Element, class: &str, own: &[&str], inside: &[&str]) -> Option<String> {
    let list = |domain: &Element| {
        let devices = domain.child("devices").into_iter().flat_map(|d| d.children(class));
        let mut list: Vec<_> = devices.map(|d| (identity(d), shape(d, own, inside))).collect();
        list.sort();
        list
    };
    let (a, b) = (list(a), list(b));
    let count = |list: &[_]| list.len().to_string();
    if let Some(difference) =
        compare(&format!("the number of {class} devices"), &count(&a), &count(&b))
    {
        return Some(difference);
    }
    a.iter().zip(&b).enumerate().find_map(|(nth, ((name, a), (_, b)))| {
        let name = if name.is_empty() { (nth + 1).to_string() } else { name.clone() };
        compare(&format!("{class} {name}"), a, b)
    })
}

/// How a device is called in a message, and found again in the other definition.
fn identity(device: &Element) -> String {
    let child =
        |name: &str, attribute: &str| device.child(name)?.attr(attribute).map(str::to_owned);
    match device.name() {
        "disk" => child("target", "dev").unwrap_or_default(),
        "interface" => child("mac", "address").unwrap_or_default(),
        "controller" => {
            let kind = device.attr("type").unwrap_or_default();
            let index = device.attr("index").and_then(parse_number).unwrap_or_default();
            format!("{kind} {index:03} {}", device.attr("model").unwrap_or_default())
        }
        _ => String::new(),
    }
}

fn shape(device: &Element, own: &[&str], inside: &[&str]) -> String {
    let mut parts: Vec<String> = own
        .iter()
        .filter_map(|name| device.attr(name).map(|value| format!("{name}={value}")))
        .collect();
    for part in inside {
        let (name, attribute) = part.split_once('@').unwrap_or((part, ""));
        for child in device.children(name) {
            let text = match attribute {
                "" => seen(child),
                attribute => child.attr(attribute).unwrap_or_default().to_owned(),
            };
            parts.push(format!("{part}: {text}"));
        }
    }
    parts.join(", ")
}
