//! What a driver understands of the domain XML, as data: its table of elements.
//!
//! The table is read three times for each definition: to refuse what is not in it, to put
//! elements and attributes in the order in which libvirt prints them, and to leave out what is
//! empty. Content that only makes sense together (a bus and its controller) is looked at by the
//! code that completes it.
//!
//! A line is an element: its name, then its attributes, each alone or with the values that are
//! taken (`attr=a|b`). What stands below, two spaces further in, may stand inside. After a name,
//! `?` says that it is left out when nothing is in it, `*` that anything may be inside and is kept
//! as it is. `^group` puts the lines of `:group` there. `#` begins a comment.

use crate::element::{Element, Node};

/// A table that was read; it begins with the root.
#[derive(Debug)]
pub struct Vocabulary(Rule);

/// What is not in the table.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    #[error("a {expected} is described by <{expected}>, not by <{found}>")]
    Root { expected: String, found: String },
    #[error("{0}")]
    Content(String),
}

impl Vocabulary {
    pub fn read(table: &str) -> Self {
        Self(read(table))
    }

    /// Refuses the first element, attribute or value that is not in the table, by its path.
    pub fn check(&self, root: &Element) -> Result<(), Unknown> {
        let Self(rule) = self;
        if root.name() != rule.name {
            let (expected, found) = (rule.name.clone(), root.name().to_owned());
            return Err(Unknown::Root { expected, found });
        }
        check_attributes(root, rule, "")?;
        check_children(root, rule, "")
    }

    /// Puts elements and attributes in libvirt's order, and leaves out what is empty.
    pub fn arrange(&self, root: &mut Element) {
        arrange_with(root, &self.0);
    }
}

#[derive(Debug, Default, Clone)]
struct Rule {
    name: String,
    /// Left out when nothing is in it.
    optional: bool,
    /// Anything may be inside, in its own order.
    opaque: bool,
    attributes: Vec<(String, Vec<String>)>,
    children: Vec<Rule>,
}

fn check_children(element: &Element, rule: &Rule, path: &str) -> Result<(), Unknown> {
    if rule.opaque {
        return Ok(());
    }
    for child in element.elements() {
        let path = match path {
            "" => child.name().to_owned(),
            path => format!("{path}/{}", child.name()),
        };
        let Some(rule) = rule.child(child.name()) else {
            return Err(Unknown::Content(format!("the element {path} is not supported")));
        };
        check_attributes(child, rule, &path)?;
        check_children(child, rule, &path)?;
    }
    Ok(())
}

fn check_attributes(element: &Element, rule: &Rule, path: &str) -> Result<(), Unknown> {
    if rule.opaque {
        return Ok(());
    }
    for (key, value) in element.attributes() {
        if is_namespace(key) {
            continue;
        }
        let Some((_, values)) = rule.attributes.iter().find(|(name, _)| name == key) else {
            return Err(Unknown::Content(format!("the attribute {path}@{key} is not supported")));
        };
        if !values.is_empty() && !values.iter().any(|known| known == value) {
            let known = values.join(", ");
            return Err(Unknown::Content(format!(
                "{path}@{key} is '{value}', but only these are supported: {known}"
            )));
        }
    }
    Ok(())
}

fn arrange_with(element: &mut Element, rule: &Rule) {
    if rule.opaque {
        return;
    }
    for (name, _) in &rule.attributes {
        if let Some(value) = element.remove_attr(name) {
            element.set_attr(name, value);
        }
    }
    // Namespaces come last.
    let spaces: Vec<String> =
        element.attributes().filter(|(key, _)| is_namespace(key)).map(|(k, _)| k.into()).collect();
    for key in spaces {
        if let Some(value) = element.remove_attr(&key) {
            element.set_attr(&key, value);
        }
    }
    for child in element.elements_mut() {
        if let Some(rule) = rule.child(child.name()) {
            arrange_with(child, rule);
        }
    }
    let has_elements = element.elements().next().is_some();
    element.nodes_mut().retain(|node| match node {
        Node::Element(child) => {
            !rule.child(child.name()).is_some_and(|r| r.optional && empty(child))
        }
        Node::Comment(_) => false,
        Node::Text(_) => !has_elements,
    });
    element.nodes_mut().sort_by_key(|node| match node {
        Node::Element(child) => rule.children.iter().position(|r| r.name == child.name()),
        Node::Text(_) | Node::Comment(_) => None,
    });
}

fn empty(element: &Element) -> bool {
    element.attributes().next().is_none()
        && element.elements().next().is_none()
        && element.text().trim().is_empty()
}

fn is_namespace(key: &str) -> bool {
    key == "xmlns" || key.starts_with("xmlns:")
}

impl Rule {
    fn child(&self, name: &str) -> Option<&Rule> {
        self.children.iter().find(|rule| rule.name == name)
    }
}

fn read(text: &str) -> Rule {
    let lines: Vec<(usize, &str)> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        .map(|line| ((line.len() - line.trim_start().len()) / 2, line.trim()))
        .collect();
    let mut groups: Vec<Rule> = Vec::new();
    let mut root = Rule::default();
    let mut at = 0;
    while let Some((_, line)) = lines.get(at) {
        let mut rule = rule(line.trim_start_matches(':'));
        at = read_children(&lines, at + 1, 1, &mut rule, &groups);
        if line.starts_with(':') {
            groups.push(rule);
        } else {
            root = rule;
        }
    }
    root
}

fn read_children(
    lines: &[(usize, &str)],
    mut at: usize,
    depth: usize,
    parent: &mut Rule,
    groups: &[Rule],
) -> usize {
    while let Some((here, line)) = lines.get(at) {
        if *here < depth {
            break;
        }
        if let Some(name) = line.strip_prefix('^') {
            let group = groups.iter().find(|group| group.name == name);
            debug_assert!(group.is_some(), "the table has no group '{name}'");
            parent.children.extend(group.map(|group| group.children.clone()).unwrap_or_default());
            at += 1;
            continue;
        }
        let mut child = rule(line);
        at = read_children(lines, at + 1, depth + 1, &mut child, groups);
        parent.children.push(child);
    }
    at
}

fn rule(line: &str) -> Rule {
    let mut words = line.split_whitespace();
    let word = words.next().unwrap_or_default();
    let attributes = words
        .map(|word| match word.split_once('=') {
            Some((name, values)) => {
                (name.to_owned(), values.split('|').map(str::to_owned).collect())
            }
            None => (word.to_owned(), Vec::new()),
        })
        .collect();
    Rule {
        name: word.trim_end_matches(['?', '*']).to_owned(),
        optional: word.ends_with('?'),
        opaque: word.ends_with('*'),
        attributes,
        children: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "
# A comment.
:place
  address type=drive|pci unit

domain type=qemu id
  name
  vcpu placement
  devices
    disk type=file|block device
      target dev bus
      iotune?
      host*
      ^place
";

    fn parse(text: &str) -> Element {
        Element::parse(text).unwrap()
    }

    fn refusal(text: &str) -> String {
        Vocabulary::read(TABLE).check(&parse(text)).unwrap_err().to_string()
    }

    #[test]
    fn what_is_unknown_is_named() {
        let element = refusal("<domain><devices><disk><foo/></disk></devices></domain>");
        assert!(element.contains("element devices/disk/foo"), "{element}");
        let attribute = refusal("<domain><vcpu colour='blue'>1</vcpu></domain>");
        assert!(attribute.contains("attribute vcpu@colour"), "{attribute}");
        let value = refusal("<domain><devices><disk type='nvme'/></devices></domain>");
        assert!(value.contains("devices/disk@type is 'nvme'"), "{value}");
        assert!(refusal("<network/>").contains("not by <network>"));
    }

    #[test]
    fn groups_and_opaque_elements_are_known() {
        let domain = "<domain><devices><disk><host><any thing='1'/></host>\
                      <address type='pci' unit='1'/></disk></devices></domain>";
        Vocabulary::read(TABLE).check(&parse(domain)).unwrap();
    }

    #[test]
    fn order_is_the_tables() {
        let mut domain = parse(
            "<domain><devices><disk device='cdrom' type='file'><address unit='0' type='drive'/>\
             <target bus='ide' dev='hda'/><iotune/></disk></devices><name>a</name></domain>",
        );
        Vocabulary::read(TABLE).arrange(&mut domain);
        let expected = parse(
            "<domain><name>a</name><devices><disk type='file' device='cdrom'>\
             <target dev='hda' bus='ide'/><address type='drive' unit='0'/></disk></devices></domain>",
        );
        assert_eq!(domain, expected);
    }
}
