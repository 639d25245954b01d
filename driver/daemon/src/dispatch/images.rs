//! Snapshots inside images, known to us or not: made by hand, left by another program, or forgotten
//! with METADATA_ONLY. libvirt's LIST_NO_METADATA was meant for them, and its drivers list none.
//!
//! What is shown to a client that asks for NO_METADATA is a name and a description with what the
//! image says; such a snapshot can be looked at, and only its image's own tools change it. All that
//! the images say comes with a domain's XML, for a bit of ours (`virtsnap images`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use virtsnap_engine::facts::{InternalSnapshot, Target};
use virtsnap_engine::inspect::Inspect;
use virtsnap_engine::options::ListFilter;
use virtsnap_engine::plan;
use virtsnap_xml::domain as xml_domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Definition, Disk, Location, Memory, State};

use super::{Context, Outcome};
use crate::domains::Domain;

/// Of the element that a domain's XML carries them in.
const NAMESPACE: &str = "urn:virtsnap:images:1";

/// One image with internal snapshots.
#[derive(Debug)]
struct Image {
    path: PathBuf,
    /// The disk that writes to it now; none for a layer below, or of another branch.
    disk: Option<Target>,
    snapshots: Vec<InternalSnapshot>,
}

async fn look<H: Inspect>(cx: &Context<'_, H>, domain: &Domain) -> Outcome<Vec<Image>> {
    let domains = &cx.daemon.domains;
    let definition = domains.current(domain)?;
    let named = plan::images_of(&domain.book().moments);
    let found = domains.hypervisor.image_snapshots(domain.uuid, &definition, &named).await?;
    let disk_of = |path: &Path| {
        let disk = xml_domain::disks(&definition)
            .find(|disk| disk.path().is_some_and(|active| Path::new(active) == path));
        disk.map(|disk| disk.target().to_owned())
    };
    let images =
        found.into_iter().map(|(path, snapshots)| Image { disk: disk_of(&path), path, snapshots });
    Ok(images.collect())
}

/// The names inside images that belong to a snapshot we know.
fn known(domain: &Domain) -> BTreeSet<String> {
    let book = domain.book();
    let moments = book.listed();
    let tags = moments.iter().flat_map(|moment| {
        let own = moment.disks.iter().filter_map(|disk| disk.tag.clone());
        own.chain([moment.name.clone()])
    });
    tags.collect()
}

/// Those that we do not know, as descriptions of what is there.
pub(super) async fn unknown<H: Inspect>(
    cx: &Context<'_, H>,
    domain: &Domain,
) -> Outcome<BTreeMap<String, Definition>> {
    let known = known(domain);
    let mut unknown: BTreeMap<String, Definition> = BTreeMap::new();
    for image in look(cx, domain).await? {
        let Some(disk) = &image.disk else { continue };
        for snapshot in &image.snapshots {
            let tag = &snapshot.tag;
            // What cannot be said in XML cannot be shown as one.
            if known.contains(tag) || tag.is_empty() || tag.chars().any(char::is_control) {
                continue;
            }
            let moment = unknown.entry(tag.clone()).or_insert_with(|| described(snapshot));
            if snapshot.vm_state_size > 0 {
                (moment.state, moment.memory) = (State::Running, Memory::Internal { image: None });
            }
            moment.disks.push(Disk::new(disk.clone(), Location::Internal));
        }
    }
    Ok(unknown)
}

fn described(snapshot: &InternalSnapshot) -> Definition {
    Definition::new(&snapshot.tag, State::ShutOff, snapshot.date)
}

/// As the list of known ones is filtered; they have no parent and no child.
pub(super) fn matches(moment: &Definition, filter: ListFilter) -> bool {
    use ListFilter as F;
    let group = |group: F, bit: F| !filter.intersects(group) || filter.contains(bit);
    let kind = if moment.state == State::ShutOff { F::INACTIVE } else { F::ACTIVE };
    filter.contains(F::NO_METADATA)
        && !filter.contains(F::NO_LEAVES)
        && group(F::INACTIVE | F::ACTIVE | F::DISK_ONLY, kind)
        && group(F::INTERNAL | F::EXTERNAL, F::INTERNAL)
}

/// Puts all that the images say into the domain's XML.
pub(super) async fn add<H: Inspect>(
    cx: &Context<'_, H>,
    domain: &Domain,
    shown: &mut Element,
) -> Outcome<()> {
    let known = known(domain);
    let mut list = Element::new("virtsnap:images").with_attr("xmlns:virtsnap", NAMESPACE);
    for image in look(cx, domain).await? {
        let mut entry = Element::new("virtsnap:image");
        if let Some(disk) = &image.disk {
            entry.set_attr("disk", disk);
        }
        entry.set_attr("file", printable(&image.path.to_string_lossy()));
        for snapshot in &image.snapshots {
            let is_known = if known.contains(&snapshot.tag) { "yes" } else { "no" };
            entry.push(
                Element::new("virtsnap:snapshot")
                    .with_attr("id", printable(&snapshot.id))
                    .with_attr("tag", printable(&snapshot.tag))
                    .with_attr("vmStateSize", snapshot.vm_state_size.to_string())
                    .with_attr("date", snapshot.date.to_string())
                    .with_attr("vmClock", snapshot.vm_clock.to_string())
                    .with_attr("known", is_known),
            );
        }
        list.push(entry);
    }
    xml_domain::add_metadata(shown, list);
    Ok(())
}

/// XML has no way to say a control character.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_snapshot_is_listed_where_it_is_asked_for() {
        let snapshot = InternalSnapshot {
            id: "1".to_owned(),
            tag: "mine".to_owned(),
            vm_state_size: 0,
            date: 5,
            vm_clock: 0,
        };
        let moment = described(&snapshot);
        let asked = ListFilter::NO_METADATA;
        assert!(matches(&moment, asked));
        assert!(matches(&moment, asked | ListFilter::INTERNAL | ListFilter::INACTIVE));
        for other in [ListFilter::EXTERNAL, ListFilter::ACTIVE, ListFilter::NO_LEAVES] {
            assert!(!matches(&moment, asked | other));
        }
        assert!(!matches(&moment, ListFilter::empty()));
    }

    #[test]
    fn control_characters_are_not_said() {
        assert_eq!(printable("a\u{1}b"), "a\u{fffd}b");
    }
}
