//! A guest that is off by a managed save: its memory is on the host, beside disks that stand still.
//!
//! So a snapshot can have that memory, as a copy of the save image, which the next start uses up;
//! and what moves the domain's disks to other images moves them in the save image, too: the guest
//! that comes back from it must not write to a file that a snapshot froze, nor miss one that was
//! merged away ([decision 14](../../../../docs/decisions/0014-snapshots-of-saved-guests.md)).

use std::path::{Path, PathBuf};

use virtsnap_xml::domain::{self, to_inactive};
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::State as Recorded;

use super::Finish;
use super::definition::{self, Source, redirect};
use crate::error::{Condition, Error, Result};
use crate::facts::{DomainFacts, Format, MemoryFile};

/// Who comes back from the managed save.
#[derive(Debug, Clone, Copy)]
pub(super) struct SavedGuest<'a> {
    definition: &'a Element,
    running: bool,
}

impl SavedGuest<'_> {
    /// What it is when it comes back.
    pub(super) fn state(self) -> Recorded {
        if self.running { Recorded::Running } else { Recorded::Paused }
    }

    /// `<domain>` and `<inactiveDomain>` of a moment with its memory.
    pub(super) fn definitions(self, facts: &DomainFacts) -> (Option<Element>, Option<Element>) {
        (Some(to_inactive(self.definition.clone())), facts.config.clone())
    }
}

/// The guest whose memory a snapshot of the domain can have; none is saved.
///
/// # Errors
/// `OperationFailed` where the save image cannot be used, `OperationInvalid` where the domain's
/// disks are others than the guest's.
pub(super) fn guest(facts: &DomainFacts) -> Result<Option<SavedGuest<'_>>> {
    let Some(file) = facts.managed_save.as_deref().filter(|_| !facts.state.is_active()) else {
        return Ok(None);
    };
    let (definition, running) = read(file, facts)?;
    let now = || facts.config.iter().flat_map(domain::disks);
    let other = now().find(|disk| {
        let then = domain::disk(definition, disk.target());
        then.is_none_or(|then| (then.path(), then.format()) != (disk.path(), disk.format()))
    });
    let gone =
        || domain::disks(definition).find(|then| !now().any(|disk| disk.target() == then.target()));
    if let Some(disk) = other.or_else(gone) {
        return Err(Error::new(
            Condition::OperationInvalid,
            format!(
                "disk '{}' was changed since the domain was saved, and its memory is of the disks \
                 of then; take the snapshot without memory, or start the domain first",
                disk.target()
            ),
        ));
    }
    Ok(Some(SavedGuest { definition, running }))
}

fn read<'a>(file: &Path, facts: &'a DomainFacts) -> Result<(&'a Element, bool)> {
    let why = match facts.memory_files.get(file) {
        Some(MemoryFile::Whole { definition, running }) => return Ok((definition, *running)),
        Some(MemoryFile::Damaged(why)) => why,
        None => "there is no such file",
    };
    Err(Error::new(
        Condition::OperationFailed,
        format!(
            "the managed save '{}' cannot be used: {why}; remove it, or take the snapshot without \
             memory (snapshot='no')",
            file.display()
        ),
    ))
}

/// Where the persistent definition gets a disk onto another image, the save image does first.
pub(super) fn follow(finish: &mut Vec<Finish>, facts: &DomainFacts) {
    let Some(file) = facts.managed_save.as_ref().filter(|_| !facts.state.is_active()) else {
        return;
    };
    // One that cannot be read is not restored from.
    let Ok((saved, _)) = read(file, facts) else { return };
    let (mut saved, mut config) = (saved.clone(), facts.config.clone());
    let mut n = 0;
    while let Some(step) = finish.get(n) {
        if let Finish::SetConfig(next) = step {
            let next = next.clone();
            if moved(&mut saved, config.as_ref(), &next) {
                let set = Finish::SetSaved { file: file.clone(), definition: saved.clone() };
                finish.insert(n, set);
                n += 1;
            }
            config = Some(next);
        }
        n += 1;
    }
}

/// Disks that both definitions had on one image go where the other one goes.
fn moved(saved: &mut Element, old: Option<&Element>, new: &Element) -> bool {
    let mut any = false;
    for disk in domain::disks(new) {
        let target = disk.target();
        let was = old.and_then(|old| definition::image(old, target));
        let (Some(was), Some(now)) = (was, disk.image().map(PathBuf::from)) else { continue };
        if now != was && definition::image(saved, target) == Some(was) {
            let format = Format::from(disk.format().unwrap_or("raw"));
            redirect(saved, target, Source::at(disk.source_type(), &now, &format));
            any = true;
        }
    }
    any
}
