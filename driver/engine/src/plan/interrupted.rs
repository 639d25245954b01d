//! Deletions that began and did not end: ours, and those of libvirt's driver.
//!
//! Ours marks each moment that goes, as a whole, before the first merge, and takes the marked ones
//! from the list when all is merged. In between its layers are half overwritten: it can only be
//! deleted, which goes on where it was left.
//!
//! libvirt's driver merges the overlay above into the file that the doomed snapshot froze, and marks the disk in
//! the *parent*, whose overlay that file is (`<snapshotDeleteInProgress/>`). From then on the
//! content of the doomed one is neither old nor new: it can only be deleted, which ends the merge.
//! Until then the marked one cannot be deleted, as under libvirt.

use std::path::Path;

use virtsnap_xml::snapshot::Definition;

use super::align::overlay_path;
use super::layers::image_of;
use crate::error::{Condition, Error, Result};
use crate::moment::MomentList;

/// # Errors
/// `OperationInvalid` when a layer of the moment is half overwritten.
pub(super) fn check_revert(moment: &Definition, moments: &MomentList) -> Result<()> {
    if moment.delete_in_progress {
        return Err(Error::new(
            Condition::OperationInvalid,
            format!(
                "the deletion of snapshot '{}' has begun, and what it held is no longer whole: \
                 delete it again to end that",
                moment.name
            ),
        ));
    }
    for disk in &moment.disks {
        let Some(image) = image_of(moment, &disk.name) else { continue };
        if moments.iter().any(|other| is_marked(other, &disk.name, &image)) {
            return Err(Error::new(
                Condition::OperationInvalid,
                format!(
                    "a deletion of snapshot '{}' was interrupted, and '{}' of disk '{}' holds \
                     only part of its content: delete it to end that",
                    moment.name,
                    image.display(),
                    disk.name
                ),
            ));
        }
    }
    Ok(())
}

/// # Errors
/// `OperationInvalid` when a moment that goes is marked, and the one below it stays.
pub(super) fn check_delete(gone: &[&Definition], kept: &[Definition]) -> Result<()> {
    for moment in gone {
        for disk in moment.disks.iter().filter(|disk| disk.delete_in_progress) {
            let overlay = overlay_path(disk);
            let freezes =
                |def: &&Definition| overlay.is_some() && image_of(def, &disk.name) == overlay;
            if let Some(child) = kept.iter().find(freezes) {
                return Err(Error::new(
                    Condition::OperationInvalid,
                    format!(
                        "a deletion of snapshot '{}' was interrupted, and disk '{}' of '{}' is \
                         part of it: delete '{0}' first",
                        child.name, disk.name, moment.name
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// The moments whose marks mean nothing any more, without them.
pub(super) fn over(kept: &[Definition]) -> Vec<Definition> {
    let is_over = |name: &str, overlay: &Path| {
        !kept.iter().any(|def| image_of(def, name).as_deref() == Some(overlay))
    };
    kept.iter()
        .filter_map(|moment| {
            let mut unmarked = moment.clone();
            for disk in unmarked.disks.iter_mut().filter(|disk| disk.delete_in_progress) {
                disk.delete_in_progress =
                    !overlay_path(disk).is_some_and(|overlay| is_over(&disk.name, &overlay));
            }
            (unmarked != *moment).then_some(unmarked)
        })
        .collect()
}

fn is_marked(moment: &Definition, target: &str, image: &Path) -> bool {
    moment.disks.iter().any(|disk| {
        disk.delete_in_progress
            && disk.name == target
            && overlay_path(disk).as_deref() == Some(image)
    })
}
