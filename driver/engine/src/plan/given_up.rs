//! What a revert gives up on request, in the same act: the snapshots below the one reverted to
//! (DELETE_CHILDREN), and that one itself (DISCARD).
//!
//! DISCARD is the RFC's: the overlay goes, and the domain is back on the file it had when the
//! snapshot was taken. What it writes from then on lands in that file, so the snapshot is used up:
//! it is deleted in the same act, and its other children go to its parent. It is refused where
//! anything else stands on such a file, and for what could not be kept apart from the snapshot:
//! disks inside an image, memory that is still to be loaded.

use virtsnap_xml::snapshot::{Definition, Location};

use super::delete::{Doomed, delete_tags, doomed};
use super::layers::{Layers, image_of, roots};
use super::merge::DeletedTags;
use super::{Finish, MomentChange};
use crate::error::{Condition, Error, Result};
use crate::facts::DomainFacts;
use crate::moment::MomentList;
use crate::options::{DeleteScope, RevertOptions};

/// The world that a revert goes back into.
#[derive(Debug)]
pub(super) struct GivenUp {
    doomed: Option<Doomed>,
    pub(super) discards: bool,
    /// The moments that are left.
    pub(super) kept: MomentList,
    /// Without the images that nothing needs once they are gone.
    pub(super) facts: DomainFacts,
}

impl GivenUp {
    /// # Errors
    /// What cannot be discarded.
    pub(super) fn new(
        moment: &Definition,
        options: &RevertOptions,
        loads_memory: bool,
        facts: &DomainFacts,
        moments: &MomentList,
    ) -> Result<Self> {
        let scope = match (options.discard, options.delete_children) {
            (true, true) => DeleteScope::WithDescendants,
            (true, false) => DeleteScope::Single,
            (false, true) => DeleteScope::DescendantsOnly,
            (false, false) => {
                let (kept, facts) = (moments.clone(), facts.clone());
                return Ok(Self { doomed: None, discards: false, kept, facts });
            }
        };
        if options.discard {
            check_discard(moment, loads_memory)?;
        }
        let doomed = doomed(&moment.name, scope, moments)?;
        let mut kept = moments.clone();
        kept.apply(&doomed.change);
        let facts = without_garbage(moment, facts, &kept);
        Ok(Self { doomed: Some(doomed), discards: options.discard, kept, facts })
    }

    pub(super) fn gives_up(&self) -> bool {
        self.doomed.is_some()
    }

    /// Internal snapshots of what goes, deleted from their images.
    pub(super) fn delete_tags(&self, moments: &MomentList) -> Vec<Finish> {
        let (mut deleted, mut finish) = (DeletedTags::new(), Vec::new());
        for name in self.doomed.iter().flat_map(|doomed| &doomed.names) {
            if let Some(moment) = moments.get(name) {
                delete_tags(moment, &self.facts, &mut deleted, &mut finish);
            }
        }
        finish
    }

    /// The revert's change of the records, with what goes taken out.
    pub(super) fn record(&self, reverted: MomentChange) -> MomentChange {
        let Some(doomed) = &self.doomed else { return reverted };
        let mut write = reverted.write;
        write.retain(|moment| !doomed.names.contains(&moment.name));
        for orphan in &doomed.change.write {
            match write.iter_mut().find(|moment| moment.name == orphan.name) {
                Some(moment) => moment.parent.clone_from(&orphan.parent),
                None => write.push(orphan.clone()),
            }
        }
        let current = if self.discards { doomed.heir.clone() } else { reverted.current };
        MomentChange { write, forget: doomed.names.clone(), current }
    }
}

fn check_discard(moment: &Definition, loads_memory: bool) -> Result<()> {
    let refused = |what: String| Err(Error::new(Condition::ArgumentUnsupported, what));
    let name = &moment.name;
    if let Some(disk) = moment.disks.iter().find(|disk| disk.snapshot == Location::Internal) {
        return refused(format!(
            "snapshot '{name}' has disk '{}' inside its image, where there is no overlay to \
             discard; revert without DISCARD, and delete it afterwards",
            disk.name
        ));
    }
    if loads_memory {
        return refused(format!(
            "snapshot '{name}' is needed until its memory is loaded, and DISCARD would use it up; \
             discard with REVERT_STOP, or delete it afterwards"
        ));
    }
    Ok(())
}

/// What the domain writes to now is given up, but on the disks that do not go back.
fn without_garbage(moment: &Definition, facts: &DomainFacts, kept: &MomentList) -> DomainFacts {
    let mut needed = roots(kept.iter().chain([moment]), [].into_iter(), facts);
    let stay = facts.disks.iter().filter(|disk| image_of(moment, &disk.target).is_none());
    needed.images.extend(stay.filter_map(|disk| disk.image().cloned()));
    let mut facts = facts.clone();
    let garbage = Layers::of(&facts).garbage(&facts.owned, &needed);
    for image in garbage.into_iter().flatten() {
        facts.images.remove(&image);
    }
    facts
}
