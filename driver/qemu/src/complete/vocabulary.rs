//! What we understand of the domain XML, as data: `vocabulary.txt`.

use std::sync::OnceLock;

use virtsnap_engine::error::Result;
use virtsnap_xml::element::Element;
use virtsnap_xml::vocabulary::Vocabulary;

static TABLE: &str = include_str!("vocabulary.txt");

/// Refuses the first element, attribute or value that is not in the table, by its path.
pub(crate) fn check(domain: &Element) -> Result<()> {
    Ok(table().check(domain)?)
}

/// Puts elements and attributes in libvirt's order, and leaves out what is empty.
pub(super) fn arrange(domain: &mut Element) {
    table().arrange(domain);
}

fn table() -> &'static Vocabulary {
    static READ: OnceLock<Vocabulary> = OnceLock::new();
    READ.get_or_init(|| Vocabulary::read(TABLE))
}

#[cfg(test)]
mod tests {
    use virtsnap_engine::error::Condition;

    use super::*;

    #[test]
    fn every_group_that_is_used_exists() {
        for line in TABLE.lines().filter_map(|line| line.trim().strip_prefix('^')) {
            assert!(TABLE.lines().any(|other| other == format!(":{line}")), "{line}");
        }
    }

    #[test]
    fn what_is_unknown_is_not_supported() {
        let condition = |text| check(&Element::parse(text).unwrap()).unwrap_err().condition;
        let element = "<domain><devices><disk><foo/></disk></devices></domain>";
        assert_eq!(condition(element), Condition::ConfigUnsupported);
        assert_eq!(condition("<network/>"), Condition::XmlError);
    }
}
