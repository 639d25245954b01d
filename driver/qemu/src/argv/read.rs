//! Reading a definition so that nothing in it is overlooked.
//!
//! A [`View`] is an element that remembers what was read of it. When the command line is built,
//! [`Ledger::unread`] names the first element, attribute or text that no one asked for and that
//! the table below does not list as having no meaning for QEMU's command line. So an element that
//! is not rendered is an error by construction, not by care.

use std::cell::RefCell;
use std::collections::HashSet;

use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::element::Element;

/// What has no meaning for the command line, each with all that is inside: a path from
/// `<domain>`, `*` for any element, `@` before an attribute.
const NO_MEANING: &[&str] = &[
    // For people and for the daemon.
    "@id",
    "@xmlns:qemu",
    "title",
    "description",
    "metadata",
    "resource",
    "seclabel",
    "devices/*/seclabel",
    "devices/*/source/seclabel",
    "devices/*/source/privateData",
    "on_poweroff",
    "on_reboot",
    "on_crash",
    "on_lockfailure",
    // Acted on through QMP, cgroups or the scheduler once QEMU is up.
    "currentMemory",
    "memtune",
    "blkiotune",
    "cputune",
    "perf",
    "vcpu/@placement",
    "vcpu/@cpuset",
    "keywrap",
    "devices/memballoon/stats",
    "devices/interface/filterref",
    "devices/interface/link",
    // Used before the command line is made: by the firmware search, the choice of CPU model,
    // the choice of addresses and names.
    "os/type",
    "os/@firmware",
    "os/firmware",
    "os/loader/@readonly",
    "os/loader/@stateless",
    "os/nvram/@template",
    "os/nvram/@templateFormat",
    "cpu/@match",
    "cpu/@check",
    "cpu/model/@fallback",
    "cpu/vendor",
    "devices/disk/target/@dev",
    "devices/disk/target/@bus",
    "devices/disk/target/@tray",
    "devices/disk/@rawio",
    "devices/disk/@sgio",
    "devices/disk/@snapshot",
    "devices/disk/backingStore",
    "devices/disk/mirror",
    "devices/disk/source/@index",
    "devices/disk/driver/@name",
    "devices/disk/driver/@type",
    "devices/disk/source/@startupPolicy",
    "devices/channel/target/@state",
    "devices/video/acceleration/@accel2d",
    "devices/interface/guest",
    "devices/interface/@trustGuestRxFilters",
    "devices/tpm/backend/active_pcr_banks",
];

/// What was read so far.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    seen: RefCell<HashSet<(usize, usize)>>,
}

const SELF: usize = 0;
const TEXT: usize = 1;
const FIRST_ATTRIBUTE: usize = 2;

impl Ledger {
    fn note(&self, element: &Element, slot: usize) {
        let address = std::ptr::from_ref(element) as usize;
        self.seen.borrow_mut().insert((address, slot));
    }

    fn noted(&self, element: &Element, slot: usize) -> bool {
        let address = std::ptr::from_ref(element) as usize;
        self.seen.borrow().contains(&(address, slot))
    }

    /// Refuses the definition if something in it was not read.
    pub(super) fn unread(&self, domain: &Element) -> Result<()> {
        match self.find(domain, "") {
            None => Ok(()),
            Some(path) => Err(Error::new(
                Condition::ConfigUnsupported,
                format!("the domain's {path} is not supported: remove it to start the domain"),
            )),
        }
    }

    fn find(&self, element: &Element, path: &str) -> Option<String> {
        for (at, (name, value)) in element.attributes().enumerate() {
            let path = join(path, &format!("@{name}"));
            if !self.noted(element, FIRST_ATTRIBUTE + at) && !has_no_meaning(&path) {
                return Some(format!("{path}='{value}'"));
            }
        }
        if element.elements().next().is_none()
            && !element.text().trim().is_empty()
            && !self.noted(element, TEXT)
        {
            return Some(format!("<{path}> with its text"));
        }
        for child in element.elements() {
            let path = join(path, child.name());
            if has_no_meaning(&path) {
                continue;
            }
            if !self.noted(child, SELF) {
                return Some(format!("element <{path}>"));
            }
            if let Some(found) = self.find(child, &path) {
                return Some(found);
            }
        }
        None
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

fn has_no_meaning(path: &str) -> bool {
    NO_MEANING.iter().any(|pattern| {
        let mut wanted = pattern.split('/');
        let mut found = path.split('/');
        loop {
            match (wanted.next(), found.next()) {
                (None, None) => return true,
                (Some(a), Some(b)) if a == b || (a == "*" && !b.starts_with('@')) => {}
                _ => return false,
            }
        }
    })
}

/// An element that remembers what was read of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    element: &'a Element,
    ledger: &'a Ledger,
}

impl<'a> View<'a> {
    pub(super) fn root(element: &'a Element, ledger: &'a Ledger) -> Self {
        ledger.note(element, SELF);
        Self { element, ledger }
    }

    fn view(self, element: &'a Element) -> Self {
        View::root(element, self.ledger)
    }

    pub(super) fn name(self) -> &'a str {
        self.element.name()
    }

    pub(super) fn attr(self, name: &str) -> Option<&'a str> {
        let (at, (_, value)) =
            self.element.attributes().enumerate().find(|(_, (key, _))| *key == name)?;
        self.ledger.note(self.element, FIRST_ATTRIBUTE + at);
        Some(value)
    }

    /// An attribute without which the element makes no sense.
    pub(super) fn need(self, name: &str) -> Result<&'a str> {
        self.attr(name).ok_or_else(|| {
            Error::new(
                Condition::XmlError,
                format!("<{}> lacks its attribute '{name}'", self.element.name()),
            )
        })
    }

    pub(super) fn number(self, name: &str) -> Result<Option<u64>> {
        self.attr(name).map(|text| number(self.element.name(), text)).transpose()
    }

    /// `on`/`yes` and `off`/`no`.
    pub(super) fn switch(self, name: &str) -> Result<Option<bool>> {
        match self.attr(name) {
            None => Ok(None),
            Some("on" | "yes") => Ok(Some(true)),
            Some("off" | "no") => Ok(Some(false)),
            Some(other) => Err(Error::new(
                Condition::XmlError,
                format!("<{} {name}='{other}'> is neither on nor off", self.element.name()),
            )),
        }
    }

    pub(super) fn text(self) -> String {
        self.ledger.note(self.element, TEXT);
        self.element.text().trim().to_owned()
    }

    pub(super) fn child(self, name: &str) -> Option<View<'a>> {
        self.element.child(name).map(|child| self.view(child))
    }

    pub(super) fn child_text(self, name: &str) -> Option<String> {
        self.child(name).map(View::text)
    }

    pub(super) fn at(self, path: &[&str]) -> Option<View<'a>> {
        path.iter().try_fold(self, |view, name| view.child(name))
    }

    pub(super) fn children(self, name: &str) -> Vec<View<'a>> {
        let found = self.element.elements().filter(|child| child.name() == name);
        found.map(|child| self.view(child)).collect()
    }

    /// All children; who calls this handles or refuses each.
    pub(super) fn elements(self) -> impl Iterator<Item = View<'a>> {
        self.element.elements().map(move |child| self.view(child))
    }

    /// Counts all of it as read: it repeats what is rendered elsewhere.
    pub(super) fn pass_over(self) {
        for at in 0..self.element.attributes().count() {
            self.ledger.note(self.element, FIRST_ATTRIBUTE + at);
        }
        self.ledger.note(self.element, TEXT);
        for child in self.elements() {
            child.pass_over();
        }
    }

    /// The device's id in QEMU.
    pub(super) fn alias(self) -> Result<&'a str> {
        let alias = self.child("alias").and_then(|alias| alias.attr("name"));
        let alias = alias.ok_or_else(|| {
            Error::new(
                Condition::Internal,
                format!("<{}> has no alias: the definition is not a live one", self.name()),
            )
        })?;
        word("alias", alias)
    }
}

/// Text that stands between the commas of one of QEMU's options.
pub(super) fn word<'a>(element: &str, text: &'a str) -> Result<&'a str> {
    if text.contains(',') {
        let message = format!("'{text}' in <{element}> must not contain a comma");
        return Err(Error::new(Condition::XmlError, message));
    }
    Ok(text)
}

/// A number as libvirt writes them: decimal, or hexadecimal after `0x`.
pub(super) fn number(element: &str, text: &str) -> Result<u64> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|err| {
        Error::new(Condition::XmlError, format!("'{text}' in <{element}> is not a number"))
            .caused_by(err)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_read_is_named() {
        let domain =
            Element::parse("<domain><a b='1' c='2'/><d>text</d><title>t</title></domain>").unwrap();
        let ledger = Ledger::default();
        let view = View::root(&domain, &ledger);
        let a = view.child("a").unwrap();
        a.attr("b");
        let missing = |ledger: &Ledger| ledger.unread(&domain).unwrap_err().message;
        assert!(missing(&ledger).contains("a/@c='2'"), "{}", missing(&ledger));
        a.attr("c");
        assert!(missing(&ledger).contains("<d>"), "{}", missing(&ledger));
        let d = view.child("d").unwrap();
        assert!(missing(&ledger).contains("<d> with its text"), "{}", missing(&ledger));
        d.text();
        ledger.unread(&domain).unwrap();
    }
}
