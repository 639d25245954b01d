//! `<metadata>` of a domain as virDomainSetMetadata and virDomainGetMetadata treat it.
//!
//! One element for each namespace. A client writes and reads its element without the namespace;
//! in the domain it and all unprefixed elements inside carry the client's prefix.

use super::put;
use crate::element::{Element, Node, Scope, XmlError};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// VIR_ERR_XML_ERROR
    #[error("the metadata is not well-formed")]
    Malformed(#[source] XmlError),
    /// VIR_ERR_INTERNAL_ERROR
    #[error("'{0}' cannot be the prefix of a namespace: use letters, digits, '-', '_' and '.'")]
    Prefix(String),
    /// VIR_ERR_INTERNAL_ERROR
    #[error("the metadata itself binds the prefix '{0}': choose another key")]
    Taken(String),
}

/// The element of namespace `uri`, as the client gave it. None: there is no such element.
pub fn metadata(domain: &Element, uri: &str) -> Option<Element> {
    let outside = Scope::default().enter(domain);
    let metadata = domain.child("metadata")?;
    let outside = outside.enter(metadata);
    let element = metadata.elements().find(|element| namespace(&outside, element) == Some(uri))?;
    let mut found = without_namespace(element, &outside, uri);
    // What its prefixes mean must not be lost with the place it stood in.
    for (prefix, bound) in outside.bindings() {
        let key = if prefix.is_empty() { "xmlns".to_owned() } else { format!("xmlns:{prefix}") };
        if bound != uri && uses_prefix(&found, prefix) && found.attr(&key).is_none() {
            found.set_attr(&key, bound);
        }
    }
    Some(found)
}

/// Sets (or with no `text`, removes) the element of namespace `uri`, under the prefix `key`.
pub fn set_metadata(
    domain: &mut Element,
    text: Option<&str>,
    key: &str,
    uri: &str,
) -> Result<(), MetadataError> {
    let new = text.map(|text| with_namespace(text, key, uri)).transpose()?;
    let outside = Scope::default().enter(domain);
    let old = domain.child("metadata").cloned().unwrap_or_else(|| Element::new("metadata"));
    let outside = outside.enter(&old);
    let mut metadata = old.clone();
    metadata.nodes_mut().retain(
        |node| !matches!(node, Node::Element(child) if namespace(&outside, child) == Some(uri)),
    );
    if let Some(new) = new {
        metadata.push(new);
    }
    if metadata.elements().next().is_some() {
        put(domain, metadata);
    } else {
        domain.remove_children("metadata");
    }
    Ok(())
}

/// Adds an element that declares its own namespace.
pub fn add_metadata(domain: &mut Element, element: Element) {
    let metadata = domain.child("metadata").cloned();
    let metadata = metadata.unwrap_or_else(|| Element::new("metadata"));
    put(domain, metadata.with_child(element));
}

fn namespace<'a>(outside: &Scope<'a>, element: &'a Element) -> Option<&'a str> {
    outside.enter(element).resolve(element.name()).0
}

fn with_namespace(text: &str, key: &str, uri: &str) -> Result<Element, MetadataError> {
    let declared = format!("xmlns:{key}");
    // The tree's own reader knows what a prefix may be.
    let probe = Element::new("probe").with_attr(&declared, "urn:probe");
    if key.contains(':') || Element::parse(&probe.to_string()).is_err() {
        return Err(MetadataError::Prefix(key.to_owned()));
    }
    let element = Element::parse(text).map_err(MetadataError::Malformed)?;
    if element.attr(&declared).is_some_and(|bound| bound != uri) {
        return Err(MetadataError::Taken(key.to_owned()));
    }
    let mut element = prefixed(element, &Scope::default(), key);
    element.set_attr(&declared, uri);
    Ok(element)
}

/// With the prefix on every element that is in no namespace.
fn prefixed(element: Element, outside: &Scope<'_>, key: &str) -> Element {
    let original = element.clone();
    let inside = outside.enter(&original);
    let mut element = element;
    for child in element.elements_mut() {
        *child = prefixed(std::mem::take(child), &inside, key);
    }
    match inside.resolve(original.name()) {
        (None, local) => element.renamed(format!("{key}:{local}")),
        (Some(_), _) => element,
    }
}

/// The reverse: no element inside carries a prefix of `uri`, nor is one declared, unless an
/// attribute needs it.
fn without_namespace(element: &Element, outside: &Scope<'_>, uri: &str) -> Element {
    let inside = outside.enter(element);
    let name = match inside.resolve(element.name()) {
        (Some(bound), local) if bound == uri => local,
        _ => element.name(),
    };
    let mut plain = element.clone().renamed(name);
    for child in plain.elements_mut() {
        *child = without_namespace(child, &inside, uri);
    }
    for (key, bound) in element.attributes() {
        let needed = match key.strip_prefix("xmlns:") {
            Some(prefix) => uses_prefix(&plain, prefix),
            None => key != "xmlns",
        };
        if bound == uri && !needed {
            plain.remove_attr(key);
        }
    }
    plain
}

fn uses_prefix(element: &Element, prefix: &str) -> bool {
    let has = |name: &str| name.split_once(':').is_some_and(|(before, _)| before == prefix);
    has(element.name())
        || element.attributes().any(|(key, _)| has(key))
        || element.elements().any(|child| uses_prefix(child, prefix))
}
