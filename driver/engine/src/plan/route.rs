//! How each disk goes back to a moment: where it is, on a copy, or by a new overlay.
//!
//! An external moment is gone back to by a new overlay on its frozen layer: no child is lost, and
//! the layer stays as it was. An internal one is applied where it is, if nobody else reads the
//! image; otherwise a copy of the image is, since applying would change what the others read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use virtsnap_xml::snapshot::{Definition, Disk, Location};

use super::align::{overlay_path, sibling};
use super::given_up::GivenUp;
use super::layers::{Layers, image_of};
use super::overlay::check_depth;
use crate::error::{Condition, Error, Result};
use crate::facts::{DomainFacts, ImageFacts};
use crate::moment::MomentList;

/// How one disk goes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// It was not part of the snapshot, and stays as it is.
    Stay,
    InPlace {
        image: PathBuf,
        tag: String,
    },
    /// Onto the frozen layer itself, which nothing else needs any more.
    Discard {
        frozen: PathBuf,
    },
    /// On a copy of the image, because others read it.
    Branch {
        image: PathBuf,
        copy: PathBuf,
        tag: String,
    },
    Overlay {
        frozen: PathBuf,
        overlay: PathBuf,
    },
}

/// The images for which a revert may need a new file, and the file beside which it goes: the image
/// itself, or, where that is a device, a file that the disk had since, or one in the hypervisor's own
/// place.
pub fn images(moment: &Definition, facts: &DomainFacts) -> Vec<(PathBuf, PathBuf)> {
    let is_file = |path: &PathBuf| {
        path.is_absolute() && facts.images.get(path).is_none_or(|image| !image.is_block_device)
    };
    let seat = |disk: &Disk| {
        let image = image_of(moment, &disk.name)?;
        let now = facts.disks.iter().find(|now| now.target == disk.name);
        let files =
            [Some(image.clone()), overlay_path(disk), now.and_then(|now| now.image().cloned())];
        let beside = files.into_iter().flatten().find(is_file);
        let elsewhere = || Some(facts.files_dir.as_ref()?.join(image.file_name()?));
        let beside = beside.or_else(elsewhere)?;
        Some((image, beside))
    };
    moment.disks.iter().filter_map(seat).collect()
}

/// Names for a new file beside `image`, best first: `<stem>.<second>`, as libvirt names an overlay
/// made by a revert, and the next ones, so that two reverts in one second both succeed.
pub fn names(image: &Path, now: i64) -> Vec<PathBuf> {
    (0..64).map(|n| sibling(image, &now.saturating_add(n).to_string())).collect()
}

/// # Errors
/// Every reason why the disk cannot go back; nothing has been touched.
pub(super) fn route(
    moment: &Definition,
    disk: &Disk,
    world: &GivenUp,
    free: &BTreeMap<PathBuf, PathBuf>,
) -> Result<Route> {
    let (target, facts) = (&disk.name, &world.facts);
    let Some(image) = image_of(moment, target) else { return Ok(Route::Stay) };
    let image_facts = existing(facts, target, &image, &moment.name)?;
    let unused = || {
        free.get(&image).cloned().ok_or_else(|| {
            Error::new(
                Condition::OperationFailed,
                format!(
                    "no name can be made up for a new file of disk '{target}', whose image is \
                     '{}'",
                    image.display()
                ),
            )
        })
    };
    if disk.snapshot == Location::External && world.discards {
        return match reader(&image, facts, &world.kept) {
            None => Ok(Route::Discard { frozen: image }),
            Some(reader) => Err(Error::new(
                Condition::OperationUnsupported,
                format!(
                    "disk '{target}' cannot go back onto '{}' itself, which {reader} needs as it \
                     is; delete that first (DELETE_CHILDREN, if it is below this snapshot), or \
                     revert without DISCARD",
                    image.display()
                ),
            )),
        };
    }
    if disk.snapshot == Location::External {
        check_depth(target, &image, facts)?;
        let overlay = unused()?;
        return Ok(Route::Overlay { frozen: image, overlay });
    }
    let tag = disk.tag.clone().unwrap_or_else(|| moment.name.clone());
    if !image_facts.snapshots.iter().any(|snapshot| snapshot.tag == tag) {
        return Err(Error::new(
            Condition::OperationFailed,
            format!(
                "the image '{}' of disk '{target}' has no internal snapshot '{tag}'",
                image.display()
            ),
        ));
    }
    let Some(reader) = reader(&image, facts, &world.kept) else {
        return Ok(Route::InPlace { image, tag });
    };
    let in_use =
        facts.state.is_active() && facts.disks.iter().any(|disk| disk.image() == Some(&image));
    if in_use {
        return Err(Error::new(
            Condition::OperationUnsupported,
            format!(
                "the image '{}' of disk '{target}' is written to by the running domain and also \
                 read by {reader}; shut the domain down first",
                image.display()
            ),
        ));
    }
    if !image.is_absolute() {
        return Err(Error::new(
            Condition::OperationUnsupported,
            format!(
                "the image '{}' of disk '{target}' is also read by {reader}, and cannot be copied \
                 over the network; delete that first",
                image.display()
            ),
        ));
    }
    let copy = unused()?;
    Ok(Route::Branch { image, copy, tag })
}

/// Who but the disk itself would see a change of the image's active content?
fn reader(image: &Path, facts: &DomainFacts, moments: &MomentList) -> Option<String> {
    let freezes = |moment: &&Definition| {
        moment.disks.iter().any(|disk| {
            disk.snapshot == Location::External
                && image_of(moment, &disk.name).as_deref() == Some(image)
        })
    };
    if let Some(moment) = moments.iter().find(freezes) {
        return Some(format!("snapshot '{}'", moment.name));
    }
    let overlays = Layers::of(facts).readers(image);
    let overlay = overlays.first().map(|overlay| format!("the image '{}'", overlay.display()));
    overlay.or_else(|| facts.foreign_readers.get(image).cloned()).or_else(|| {
        let unknown = "perhaps a snapshot whose record cannot be read";
        facts.has_unreadable_moments.then(|| unknown.to_owned())
    })
}

/// # Errors
/// `OperationFailed` when the image, or one that it stands on, is not there.
pub(super) fn existing<'a>(
    facts: &'a DomainFacts,
    target: &str,
    image: &Path,
    moment: &str,
) -> Result<&'a ImageFacts> {
    if let Some(gone) = first_gone(image, facts) {
        return Err(Error::new(
            Condition::OperationFailed,
            format!(
                "the image '{}' that snapshot '{moment}' has for disk '{target}' is gone",
                gone.display()
            ),
        ));
    }
    facts.images.get(image).ok_or_else(|| {
        Error::new(Condition::Internal, format!("nothing is known of '{}'", image.display()))
    })
}

/// The first image of a chain that is not there, or is no image any more.
pub(super) fn first_gone(top: &Path, facts: &DomainFacts) -> Option<PathBuf> {
    let mut image = top;
    // A chain that goes in a circle is somebody else's to refuse.
    for _ in 0..=facts.images.len() {
        match facts.images.get(image) {
            None => return Some(image.to_owned()),
            Some(facts_of) => image = facts_of.backing.as_deref()?,
        }
    }
    None
}
