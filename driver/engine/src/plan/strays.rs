//! An overlay of ours that stands on another file than the one its snapshot froze: somebody put
//! another image in its place.
//!
//! Who reads a layer is read off the images' headers, and what nobody reads is removed or merged
//! into. On the word of an image that is not ours any more, the layer that the right one stands on
//! would go. So such an image is refused by its name, as one that is not there is.
//!
//! A snapshot's record may be older than the image: what a client's block job left behind is the
//! client's from then on, and an overlay that was merged away leaves its name in the record. Hence
//! a layer counts as missed only while it is ours, and a name only if no record of it fits; and of
//! a snapshot that is being deleted, whose layers are being merged, nothing is asked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use virtsnap_xml::snapshot::{Definition, Location};

use super::align::overlay_path;
use super::images_of;
use super::layers::image_of;
use crate::error::{Condition, Error, Result};
use crate::facts::DomainFacts;
use crate::moment::MomentList;

struct Stray<'a> {
    overlay: PathBuf,
    moment: &'a str,
    frozen: PathBuf,
    found: Option<PathBuf>,
}

/// No image is in another's place, wherever it is.
///
/// # Errors
/// `OperationFailed` with the image's name.
pub(crate) fn check(facts: &DomainFacts, moments: &MomentList) -> Result<()> {
    all(facts, moments).into_iter().next().map_or(Ok(()), |stray| Err(stray.refusal()))
}

/// The same of the images that `tops` stand on.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_below(
    tops: impl IntoIterator<Item = PathBuf>,
    facts: &DomainFacts,
    moments: &MomentList,
) -> Result<()> {
    let mut strays = all(facts, moments);
    if strays.is_empty() {
        return Ok(());
    }
    let mut reached = BTreeSet::new();
    let mut open: Vec<PathBuf> = tops.into_iter().collect();
    while let Some(image) = open.pop() {
        let below = facts.images.get(&image).and_then(|image| image.backing.clone());
        if reached.insert(image) {
            open.extend(below);
        }
    }
    strays.retain(|stray| reached.contains(&stray.overlay));
    strays.into_iter().next().map_or(Ok(()), |stray| Err(stray.refusal()))
}

fn all<'a>(facts: &DomainFacts, moments: &'a MomentList) -> Vec<Stray<'a>> {
    let named: Vec<(PathBuf, &Definition, PathBuf)> = moments.iter().flat_map(overlays).collect();
    let backing = |overlay: &Path| facts.images.get(overlay)?.backing.clone();
    let fits: BTreeSet<&PathBuf> = named
        .iter()
        .filter(|(overlay, _, frozen)| backing(overlay).as_ref() == Some(frozen))
        .map(|(overlay, ..)| overlay)
        .collect();
    let ours = images_of(moments);
    let is_ours = |image: &PathBuf| facts.owned.contains(image) || ours.contains_key(image);
    let merging: BTreeSet<&PathBuf> = named
        .iter()
        .filter(|(_, moment, _)| moment.delete_in_progress)
        .map(|(overlay, ..)| overlay)
        .collect();
    named
        .iter()
        .filter(|(overlay, ..)| facts.owned.contains(overlay) && !fits.contains(overlay))
        .filter(|(overlay, ..)| facts.images.contains_key(overlay) && !merging.contains(overlay))
        // What is gone cannot be lost; and a file of two names is known by one.
        .filter(|(.., frozen)| facts.images.contains_key(frozen))
        .filter_map(|(overlay, moment, frozen)| {
            let found = backing(overlay);
            let is_missed = facts.owned.contains(frozen);
            let is_elsewhere = found.as_ref().is_some_and(|found| !is_ours(found));
            (is_missed || is_elsewhere).then(|| Stray {
                overlay: overlay.clone(),
                moment: &moment.name,
                frozen: frozen.clone(),
                found,
            })
        })
        .collect()
}

/// The overlays that records name, whether they are still there or not.
pub(crate) fn overlays_of(moments: &MomentList) -> BTreeSet<PathBuf> {
    moments.iter().flat_map(overlays).map(|(overlay, ..)| overlay).collect()
}

/// Each overlay that a moment's record names, with what it was laid on.
fn overlays(moment: &Definition) -> impl Iterator<Item = (PathBuf, &Definition, PathBuf)> {
    let external = |target: &str| {
        let disk = moment.disks.iter().find(|disk| disk.name == target);
        disk.is_some_and(|disk| disk.snapshot == Location::External)
    };
    let disks = moment.disks.iter().chain(&moment.revert_disks);
    disks
        .filter(move |disk| external(&disk.name))
        .filter_map(move |disk| Some((overlay_path(disk)?, moment, image_of(moment, &disk.name)?)))
}

impl Stray<'_> {
    fn refusal(&self) -> Error {
        let found = match &self.found {
            Some(found) => format!("on '{}'", found.display()),
            None => "on nothing".to_owned(),
        };
        Error::new(
            Condition::OperationFailed,
            format!(
                "'{}' is another image than it was: snapshot '{}' laid it on '{}', and it stands \
                 {found}; put the right one back, or forget that snapshot's record",
                self.overlay.display(),
                self.moment,
                self.frozen.display()
            ),
        )
    }
}
