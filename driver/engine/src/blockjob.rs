//! Block jobs that a client asks for: pull, commit, copy.
//!
//! They are no plans: QEMU does the work, the client says when it ends, and the guest runs on. What
//! they share with plans is the rule that no image changes its content for a reader that is not
//! pointed elsewhere: [`check`] refuses a job that would falsify a snapshot, or an image that
//! somebody else reads. libvirt does not look, and a commit there may destroy every snapshot of
//! the disk without a word.

use std::path::{Path, PathBuf};

use crate::domain::BlockJobKind;
use crate::error::{Condition, Error, Result};
use crate::facts::{DomainFacts, Format, Target};
use crate::moment::MomentList;
use crate::plan::moment_image;

/// A job to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBlockJob {
    pub target: Target,
    pub act: Act,
    /// Bytes a second; 0: no limit.
    pub speed: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// What lies between the active layer and `base` (none: all) goes up into the active layer.
    Pull { base: Option<PathBuf>, backing_name: BackingName },
    /// What lies from `top` down to `base` goes down into `base`. Of the active layer, the job
    /// stays in step with the guest until it is told to pivot.
    Commit { top: PathBuf, base: PathBuf, backing_name: BackingName, delete: bool },
    /// A second image that stays in step with the disk until the job is told to pivot to it.
    Copy(Copy),
}

/// How the header that is rewritten names its new backing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackingName {
    Absolute,
    /// From the directory of the image that has it, as the chain's own names are.
    Relative,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    pub destination: PathBuf,
    /// None: as the disk's, or, of a file that is there, what it says.
    pub format: Option<Format>,
    pub is_block_device: bool,
    /// Only the active layer; the copy stands on what the disk stands on.
    pub shallow: bool,
    /// The destination is there and is taken as it is.
    pub reuse: bool,
    /// The guest's writes go to both before they are done.
    pub synchronous: bool,
    /// In bytes; 0: QEMU's default.
    pub granularity: u32,
    pub buffer: u64,
}

/// How far a job has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Running,
    /// In step with the guest; it goes on until it is told to end.
    Ready,
    /// Told to end; the guest's writes wait for a last word.
    Pending,
    /// Over, but not forgotten.
    Concluded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Pivot,
    Cancel,
}

/// The disk's active layer becomes another image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    pub target: Target,
    pub from: PathBuf,
    pub to: PathBuf,
    pub format: Format,
    pub is_block_device: bool,
}

/// What a job that is over came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub kind: BlockJobKind,
    pub outcome: Outcome,
    pub moved: Option<Move>,
    /// The image that the disk's guest writes to now.
    pub active: PathBuf,
    /// Images that left the chain.
    pub left: Vec<PathBuf>,
    /// The client asked that they be removed.
    pub delete: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Completed,
    Canceled,
    Failed(String),
}

/// Refuses a job that takes from a snapshot, or from somebody else, what they need.
///
/// # Errors
/// `OperationInvalid` with the snapshot, or whoever reads the image, and the image;
/// `OperationUnsupported` for a disk that the hypervisor does not serve.
pub fn check(job: &NewBlockJob, facts: &DomainFacts, moments: &MomentList) -> Result<()> {
    let disk = facts.disks.iter().find(|disk| disk.target == job.target);
    if let Some(backend) = disk.and_then(|disk| disk.bypass.as_ref()) {
        return Err(Error::new(
            Condition::OperationUnsupported,
            format!(
                "disk '{}' is served by {backend}, which has no block jobs: shut the guest down \
                 first",
                job.target
            ),
        ));
    }
    match &job.act {
        Act::Commit { top, base, delete, .. } => {
            let commit = Commit { target: &job.target, top, base, delete: *delete };
            commit.check(facts, moments)
        }
        Act::Pull { .. } => {
            let Some(active) = disk.and_then(|disk| disk.image()) else { return Ok(()) };
            no_internal_snapshots(active, "pulled into", facts)
        }
        Act::Copy(_) => Ok(()),
    }
}

struct Commit<'a> {
    target: &'a str,
    top: &'a Path,
    base: &'a Path,
    delete: bool,
}

impl Commit<'_> {
    fn check(&self, facts: &DomainFacts, moments: &MomentList) -> Result<()> {
        let merged = self.merged(facts);
        for moment in moments.iter() {
            let images = moment.disks.iter().filter_map(|disk| moment_image(moment, &disk.name));
            for image in images {
                if let Some(hit) = self.reached_from(&image, &merged, facts) {
                    return Err(Error::new(
                        Condition::OperationInvalid,
                        format!(
                            "committing '{}' into '{}' would destroy snapshot '{}', which needs \
                             '{}'; delete the snapshot instead, or first its metadata",
                            self.top.display(),
                            self.base.display(),
                            moment.name,
                            hit.display()
                        ),
                    ));
                }
            }
        }
        // Read by somebody we do not point elsewhere.
        for image in merged.iter().filter(|image| **image != self.top || self.is_active(facts)) {
            if let Some(who) = facts.foreign_readers.get(*image) {
                return Err(Error::new(
                    Condition::OperationInvalid,
                    format!(
                        "committing into '{}' would falsify {who}, which stands on '{}'",
                        self.base.display(),
                        image.display()
                    ),
                ));
            }
        }
        merged
            .iter()
            .filter(|image| **image != self.base)
            .try_for_each(|image| no_internal_snapshots(image, "committed", facts))
    }

    fn is_active(&self, facts: &DomainFacts) -> bool {
        let disk = facts.disks.iter().find(|disk| disk.target == self.target);
        disk.and_then(|disk| disk.image()).is_some_and(|image| image == self.top)
    }

    /// From the top down to the base.
    fn merged<'a>(&'a self, facts: &'a DomainFacts) -> Vec<&'a Path> {
        let mut merged = vec![self.top];
        let below = backing_chain(self.top, facts);
        for image in below {
            merged.push(image);
            if image == self.base {
                return merged;
            }
        }
        merged.push(self.base);
        merged
    }

    /// The first of the merged images that somebody who reads `image` depends on; none where the
    /// job itself points that reader to the base.
    fn reached_from<'a>(
        &self,
        image: &'a Path,
        merged: &[&'a Path],
        facts: &'a DomainFacts,
    ) -> Option<&'a Path> {
        let hit = |path: &&Path| merged.contains(path);
        if hit(&image) {
            return merged.iter().find(|path| **path == image).copied();
        }
        let found = backing_chain(image, facts).find(hit)?;
        // A layer of the disk's own chain above the top is re-pointed by the job.
        let is_repointed = found == self.top && !self.is_active(facts);
        let is_above = || {
            let disk = facts.disks.iter().find(|disk| disk.target == self.target);
            let active = disk.and_then(|disk| disk.image());
            active.is_some_and(|active| backing_chain(active, facts).any(|layer| layer == image))
        };
        (!is_repointed || (self.delete && !is_above())).then_some(found)
    }
}

/// The images below, the next one first. Ends where a header closes a circle.
fn backing_chain<'a>(image: &Path, facts: &'a DomainFacts) -> impl Iterator<Item = &'a Path> {
    let below = |path: &Path| facts.images.get(path).and_then(|image| image.backing.as_deref());
    std::iter::successors(below(image), move |path| below(path)).take(facts.images.len() + 1)
}

/// They would stay listed, with contents that are wrong.
fn no_internal_snapshots(image: &Path, what: &str, facts: &DomainFacts) -> Result<()> {
    let inside = facts.images.get(image).and_then(|image| image.snapshots.first());
    match inside {
        None => Ok(()),
        Some(snapshot) => Err(Error::new(
            Condition::OperationInvalid,
            format!(
                "image '{}' cannot be {what}: it holds the internal snapshot '{}', whose content \
                 would be lost",
                image.display(),
                snapshot.tag
            ),
        )),
    }
}
