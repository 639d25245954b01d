//! Namespaces: which URI a prefix means at one place in a tree.

use super::Element;

/// The bindings in force inside an element. The default is that of a document's outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope<'a> {
    /// (prefix, uri); the empty prefix is the default namespace. The last one wins.
    bindings: Vec<(&'a str, &'a str)>,
}

impl<'a> Scope<'a> {
    /// The scope inside `element`, which stands in this one.
    #[must_use]
    pub fn enter(&self, element: &'a Element) -> Self {
        let mut inner = self.clone();
        for (key, uri) in element.attributes() {
            if let Some(prefix) = declared_prefix(key) {
                inner.bindings.push((prefix, uri));
            }
        }
        inner
    }

    /// Namespace and local name of an element's name.
    pub fn resolve<'n>(&self, name: &'n str) -> (Option<&'a str>, &'n str) {
        let (prefix, local) = name.split_once(':').unwrap_or(("", name));
        let uri = self.bindings.iter().rev().find(|(bound, _)| *bound == prefix);
        (uri.map(|(_, uri)| *uri).filter(|uri| !uri.is_empty()), local)
    }

    /// All bindings, innermost last.
    pub fn bindings(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.bindings.iter().copied()
    }
}

/// The prefix that an `xmlns` attribute declares.
pub(super) fn declared_prefix(key: &str) -> Option<&str> {
    if key == "xmlns" { Some("") } else { key.strip_prefix("xmlns:") }
}

pub(super) fn find<'a>(
    element: &'a Element,
    outside: &Scope<'a>,
    uri: &str,
    local: &str,
) -> Option<&'a Element> {
    let inside = outside.enter(element);
    if inside.resolve(element.name()) == (Some(uri), local) {
        return Some(element);
    }
    element.elements().find_map(|child| find(child, &inside, uri, local))
}
