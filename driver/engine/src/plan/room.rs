//! Is there room for what a plan writes? Asked before its first step.
//!
//! Counted are new files: an overlay with its tables, a copy as large as what is copied, memory as
//! large as the guest's. A merge is not: it gives room back, and whoever deletes a snapshot because
//! a file system is full must be able to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use virtsnap_xml::domain;

use super::{Pivot, Plan, Step};
use crate::domain::VmStateIn;
use crate::error::{Condition, Error, Result};
use crate::facts::{DomainFacts, Room};

/// The tables of an overlay without data, and a little for its first writes.
const OVERLAY: u64 = MIB;
const MIB: u64 = 1 << 20;
/// As libvirt: the error of a system call that found no room.
const ENOSPC: i32 = 28;

/// The directories that the plan writes new files to, with how much, in bytes.
pub fn needs(plan: &Plan, facts: &DomainFacts) -> BTreeMap<PathBuf, u64> {
    let mut needs: BTreeMap<PathBuf, u64> = BTreeMap::new();
    let mut need = |file: &Path, bytes: u64| {
        if let Some(directory) = file.parent().filter(|parent| parent.is_absolute()) {
            let sum = needs.entry(directory.to_owned()).or_default();
            *sum = sum.saturating_add(bytes);
        }
    };
    let size = |image: &Path| facts.images.get(image).map_or(OVERLAY, |image| image.actual_size);
    for step in &plan.prepare {
        match step {
            Step::CreateOverlay { overlay: file, .. }
            | Step::FillOverlay { overlay: file, .. }
            | Step::CreateVmStateImage { image: file } => need(file, OVERLAY),
            Step::CopyImage { from, to } if facts.managed_save.as_ref() == Some(from) => {
                need(to, memory(facts));
            }
            Step::CopyImage { from, to } => need(to, size(from)),
            Step::SaveMemory { file, .. } => need(file, memory(facts)),
            Step::SaveVmState { vmstate, .. } => {
                if let Some(image) = vmstate_image(vmstate, facts) {
                    need(image, memory(facts));
                }
            }
            Step::Pause
            | Step::FreezeFilesystems
            | Step::AttachOverlay { .. }
            | Step::SnapshotImage { .. } => {}
        }
    }
    if let Pivot::SaveVmState { vmstate, .. } = &plan.pivot
        && let Some(image) = vmstate_image(vmstate, facts)
    {
        need(image, memory(facts));
    }
    needs
}

/// # Errors
/// `System(ENOSPC)`, with the directory, what is needed, and what is there.
pub fn check(needs: &BTreeMap<PathBuf, u64>, rooms: &BTreeMap<PathBuf, Room>) -> Result<()> {
    let mut wanted: BTreeMap<u64, u64> = BTreeMap::new();
    for (directory, bytes) in needs {
        let Some(room) = rooms.get(directory) else { continue };
        let sum = wanted.entry(room.file_system).or_default();
        *sum = sum.saturating_add(*bytes);
        if *sum > room.free {
            return Err(Error::new(
                Condition::System(ENOSPC),
                format!(
                    "not enough room in '{}': {} are needed, and {} are free; make room, or name \
                     files elsewhere",
                    directory.display(),
                    mebibytes(sum.div_ceil(MIB)),
                    mebibytes(room.free / MIB)
                ),
            ));
        }
    }
    Ok(())
}

/// Where the disk is a device, its file system is not ours to ask.
fn vmstate_image<'a>(vmstate: &'a VmStateIn, facts: &'a DomainFacts) -> Option<&'a Path> {
    match vmstate {
        VmStateIn::Image(image) => Some(image),
        VmStateIn::Disk(target) => {
            let disk = facts.disks.iter().find(|disk| disk.target == *target)?;
            let image = disk.image()?;
            let is_file = facts.images.get(image).is_some_and(|image| !image.is_block_device);
            is_file.then_some(image)
        }
    }
}

fn memory(facts: &DomainFacts) -> u64 {
    let kib = facts.live.as_ref().and_then(domain::memory_kib).unwrap_or_default();
    kib.saturating_mul(1024)
}

fn mebibytes(number: u64) -> String {
    format!("{number} MiB")
}
