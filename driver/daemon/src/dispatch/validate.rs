//! VIR_DOMAIN_SNAPSHOT_CREATE_VALIDATE: the document is held against `schemas/domainsnapshot.rng`.
//!
//! What that grammar lets be anything (a whole `<domain>`, a cookie, the details of a source) is
//! left out first: it cannot be wrong, and libxml2 would take minutes for a hostile one.

use virtsnap_engine::error::{Condition, Error, Origin};
use virtsnap_relaxng::{Invalid, Schema};
use virtsnap_xml::element::Element;

/// More than any domain has disks for.
const MOST_ELEMENTS: usize = 4096;

/// A document with another root is not refused here: that has an error of its own.
pub(super) async fn snapshot(root: &Element) -> Result<(), Error> {
    if root.name() != "domainsnapshot" {
        return Ok(());
    }
    let outline = outline(root);
    if count(&outline) > MOST_ELEMENTS {
        return Err(refused(format!("it has more than {MOST_ELEMENTS} elements")));
    }
    let text = outline.to_string();
    let checked = tokio::task::spawn_blocking(move || check(&text)).await;
    let checked = checked.map_err(|err| Error::new(Condition::Internal, err.to_string()))?;
    checked.map_err(|err| refused(err.message))
}

fn check(text: &str) -> Result<(), Invalid> {
    Schema::domain_snapshot()?.validate(text)
}

fn refused(why: String) -> Error {
    Error::new(Condition::XmlInvalidSchema, format!("the <domainsnapshot> is not valid: {why}"))
        .from_origin(Origin::Xml)
}

fn outline(root: &Element) -> Element {
    let mut outline = root.clone();
    for child in outline.elements_mut() {
        match child.name() {
            "domain" | "inactiveDomain" => *child = Element::new(child.name()),
            "cookie" => empty_children(child),
            "disks" | "revertDisks" => {
                let disks = child.elements_mut();
                for disk in disks {
                    disk.children_mut("source").for_each(empty_children);
                }
            }
            _ => {}
        }
    }
    outline
}

fn empty_children(parent: &mut Element) {
    for child in parent.elements_mut() {
        *child = Element::new(child.name());
    }
}

fn count(element: &Element) -> usize {
    element.elements().map(count).fold(1, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn verdict(inside: &str) -> Result<(), Error> {
        let text = format!("<domainsnapshot>{inside}</domainsnapshot>");
        snapshot(&Element::parse(&text).unwrap()).await
    }

    #[tokio::test]
    async fn what_is_not_in_the_grammar_is_told_as_libvirt_does() {
        let err = verdict("<name>s1</name><bogus/>").await.unwrap_err();
        assert_eq!((err.condition, err.origin), (Condition::XmlInvalidSchema, Origin::Xml));
        let complaint = "Element domainsnapshot has extra content: bogus";
        assert!(err.message.contains(complaint), "{}", err.message);
    }

    #[tokio::test]
    async fn what_may_be_anything_is_not_looked_at() {
        let attributes: String = (0..250).map(|i| format!(" a{i}=''")).collect();
        let anything = format!("<x{attributes}/>").repeat(400);
        let source = format!("<source file='/a'><seclabel{attributes}/></source>");
        let disks = format!("<disks><disk name='vda'>{source}</disk></disks>");
        let inside =
            format!("<domain{attributes}>{anything}</domain><cookie>{anything}</cookie>{disks}");
        verdict(&inside).await.unwrap();
        verdict("<cookie>text</cookie>").await.unwrap_err();
        verdict("<disks><disk name='vda'><source file='/a'><y/></source></disk></disks>")
            .await
            .unwrap_err();
    }

    #[tokio::test]
    async fn there_is_an_end_to_it() {
        let disks = "<disk name='vda'/>".repeat(MOST_ELEMENTS);
        let err = verdict(&format!("<disks>{disks}</disks>")).await.unwrap_err();
        assert_eq!(err.condition, Condition::XmlInvalidSchema);
    }

    #[tokio::test]
    async fn another_root_is_left_to_the_reader() {
        snapshot(&Element::new("domain")).await.unwrap();
    }
}
