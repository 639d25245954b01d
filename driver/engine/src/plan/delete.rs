//! Planning a deletion.
//!
//! Forgetting a moment frees the layers it froze. A free layer that exactly one overlay of ours
//! reads is merged with it (down or up: see `merge`), and every reference to the file that goes is
//! re-pointed. A layer that several read, that somebody outside reads, or that holds internal
//! snapshots (merging would falsify them) is simply kept until its last reader goes: every deletion
//! looks at all free layers.
//!
//! A layer that the user put below the domain's disk is never merged into, since what reads it is
//! not an overlay of ours; nor is one whose snapshot has no metadata, since its overlay was handed
//! over to the user. An overlay that the user made for a snapshot is merged like ours, but its file
//! stays.
//!
//! The pivot is the record: from then on the moments are given up, and a crash is completed. But a
//! merge may take hours, and be stopped, or meet a full disk. So the moments are marked first, and
//! after each merge what it changed is recorded, before the next begins: between any two the world
//! is whole, and a deletion that ended there is planned anew
//! ([decision 12](../../../../docs/decisions/0012-deletions-that-stop.md)).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use virtsnap_xml::domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Definition, Location, Survivor};

use super::align::overlay_path;
use super::definition::{self, Source, redirect};
use super::layers::{Layers, Roots, image_of, roots};
use super::merge::{DeletedTags, Ground, Run, Wishes};
use super::policy;
use super::{Finish, MomentChange, Operation, Pivot, Plan, interrupted, saved, state_files};
use crate::domain::State;
use crate::error::{Condition, Error, Result};
use crate::facts::{DiskFacts, DomainFacts};
use crate::moment::MomentList;
use crate::options::{DeleteOptions, DeleteScope};

/// The moments that go, topmost first, and the list as it will be without them.
#[derive(Debug, Clone, PartialEq)]
pub struct Doomed {
    pub names: Vec<String>,
    /// Who gets their children.
    pub heir: Option<String>,
    pub change: MomentChange,
}

/// # Errors
/// `NoSnapshot` when there is no such moment.
pub fn doomed(name: &str, scope: DeleteScope, moments: &MomentList) -> Result<Doomed> {
    let moment = moments.expect(name)?;
    let below = || moments.descendants(name).into_iter().map(|def| def.name.clone());
    let (names, heir): (Vec<String>, Option<&String>) = match scope {
        DeleteScope::Single => (vec![name.to_owned()], moment.parent.as_ref()),
        DeleteScope::WithDescendants => {
            ([name.to_owned()].into_iter().chain(below()).collect(), moment.parent.as_ref())
        }
        DeleteScope::DescendantsOnly => (below().collect(), Some(&moment.name)),
    };
    let goes = |name: &str| names.iter().any(|gone| gone == name);
    let current = match moments.current() {
        Some(current) if goes(current) => heir.cloned(),
        current => current.map(str::to_owned),
    };
    let orphans = moments
        .iter()
        .filter(|def| !goes(&def.name) && def.parent.as_deref().is_some_and(goes))
        .map(|def| Definition { parent: heir.cloned(), ..def.clone() });
    let write = orphans.collect();
    let change = MomentChange { write, forget: names.clone(), current };
    Ok(Doomed { heir: heir.cloned(), change, names })
}

/// # Errors
/// Every reason not to delete; nothing has been touched.
pub fn delete(
    doomed: &Doomed,
    options: &DeleteOptions,
    facts: &DomainFacts,
    moments: &MomentList,
) -> Result<Plan> {
    if facts.state == State::Shutdown {
        return Err(policy::dying());
    }
    if let Some(disk) = facts.disks.iter().find(|disk| disk.block_job) {
        return Err(Error::new(
            Condition::OperationUnsupported,
            format!("disk '{}' is busy with a block job; wait for it or abort it", disk.target),
        ));
    }
    let gone: Vec<&Definition> = doomed.names.iter().filter_map(|n| moments.get(n)).collect();
    let mut finish = Vec::new();
    let mut deleted_tags = DeletedTags::new();
    for moment in &gone {
        delete_tags(moment, facts, &mut deleted_tags, &mut finish);
    }
    let mut after = After::new(doomed, facts, moments);
    interrupted::check_delete(&gone, &after.kept)?;
    after.unmark();
    let wishes = Wishes::new(options.consolidate, &gone, policy::of(facts)?.keep);
    let runs = after.runs(&gone, &deleted_tags, options, facts)?;
    if !runs.is_empty() {
        finish.insert(0, Finish::Record(after.marks(moments)));
    }
    for (n, (run, target)) in runs.into_iter().enumerate() {
        if n > 0 {
            after.end_part(moments, &mut finish);
        }
        match wishes.survivor(&run, &target, facts)? {
            Survivor::Base => after.commit(&run, &target, facts, &mut finish),
            Survivor::Overlay => after.stream(&run, target, &mut finish),
        }
    }
    after.finish(facts, &mut finish);
    saved::follow(&mut finish, facts);
    for act in &finish {
        check_reach(act, facts)?;
    }
    Ok(Plan {
        operation: Operation::Delete { moments: doomed.names.clone() },
        prepare: Vec::new(),
        pivot: Pivot::Record,
        finish,
        conclude: Vec::new(),
    })
}

/// What a running guest's hypervisor has open only it can change, and not all of it.
fn check_reach(finish: &Finish, facts: &DomainFacts) -> Result<()> {
    let layers = Layers::of(facts);
    let under = |disk: &DiskFacts, image: &Path| {
        disk.image().is_some_and(|top| layers.chain(top).any(|layer| layer == image))
    };
    let what = match finish {
        Finish::DeleteSnapshot { image, tag } if facts.sealed.contains(image) => {
            format!("snapshot '{tag}' cannot be deleted from image '{}'", image.display())
        }
        Finish::Commit { base: image, .. } | Finish::Stream { top: image, .. } => {
            let mut bypassed = facts.disks.iter().filter(|disk| disk.bypass.is_some());
            let Some(disk) = bypassed.find(|disk| under(disk, image)) else { return Ok(()) };
            let backend = disk.bypass.as_deref().unwrap_or_default();
            format!("the layers of disk '{}', served by {backend}, cannot be merged", disk.target)
        }
        _ => return Ok(()),
    };
    let what = format!("{what} while the guest runs: shut the guest down first");
    Err(Error::new(Condition::OperationUnsupported, what))
}

pub(super) fn delete_tags(
    moment: &Definition,
    facts: &DomainFacts,
    deleted: &mut DeletedTags,
    finish: &mut Vec<Finish>,
) {
    for disk in moment.disks.iter().filter(|disk| disk.snapshot == Location::Internal) {
        let Some(image) = image_of(moment, &disk.name) else { continue };
        let tag = disk.tag.as_ref().unwrap_or(&moment.name);
        // A copy made by a revert carries the tags of the image it was copied from.
        let copies = facts.owned.iter().chain([&image]).filter(|path| {
            facts.images.get(*path).is_some_and(|i| i.snapshots.iter().any(|s| s.tag == *tag))
        });
        for path in copies {
            if deleted.insert((path.clone(), tag.clone())) {
                finish.push(Finish::DeleteSnapshot { image: path.clone(), tag: tag.clone() });
            }
        }
    }
    if let Some((image, tag)) = state_files::inside(moment, facts)
        && deleted.insert((image.clone(), tag.clone()))
    {
        finish.push(Finish::DeleteSnapshot { image, tag });
    }
}

/// The world as the plan leaves it.
struct After {
    layers: Layers,
    kept: Vec<Definition>,
    /// Overlays made by us, or by a user for a snapshot: what may be merged away.
    overlays: BTreeSet<PathBuf>,
    change: MomentChange,
    live: Option<Element>,
    config: Option<Element>,
    /// The moments that go, as they are while they are still listed.
    going: Vec<Definition>,
    /// What earlier parts of the plan set.
    set_live: Option<Element>,
    set_config: Option<Element>,
    /// Kept moments that the present part changes.
    redirected: BTreeSet<String>,
}

impl After {
    fn new(doomed: &Doomed, facts: &DomainFacts, moments: &MomentList) -> Self {
        let mut list = moments.clone();
        list.apply(&doomed.change);
        let layers = Layers::of(facts);
        let named = moments.iter().flat_map(|def| {
            // A name may be another file's by now: a snapshot's overlay stands on what it froze.
            let stands = |image: &PathBuf, disk: &str| {
                layers
                    .backing(image)
                    .is_some_and(|below| Some(below) == image_of(def, disk).as_ref())
            };
            let overlays = def.disks.iter().chain(&def.revert_disks);
            let overlays = overlays.filter_map(|disk| Some((overlay_path(disk)?, &disk.name)));
            overlays
                .filter(|(image, disk)| stands(image, disk))
                .map(|(image, _)| image)
                .collect::<Vec<_>>()
        });
        Self {
            overlays: facts.owned.iter().cloned().chain(named).collect(),
            layers: layers.clone(),
            kept: list.iter().cloned().collect(),
            change: doomed.change.clone(),
            live: facts.live.clone(),
            config: facts.config.clone(),
            going: doomed
                .names
                .iter()
                .filter_map(|name| moments.get(name))
                .map(|def| Definition { delete_in_progress: true, ..def.clone() })
                .collect(),
            set_live: facts.live.clone(),
            set_config: facts.config.clone(),
            redirected: BTreeSet::new(),
        }
    }

    /// Before the first merge: from here on what goes is only good to be deleted.
    fn marks(&self, moments: &MomentList) -> MomentChange {
        let current = moments.current().map(str::to_owned);
        MomentChange { write: self.going.clone(), forget: Vec::new(), current }
    }

    /// Records what one merge changed, so that the deletion could end here.
    fn end_part(&mut self, moments: &MomentList, finish: &mut Vec<Finish>) {
        self.set_definitions(finish);
        let mut change = self.marks(moments);
        for name in std::mem::take(&mut self.redirected) {
            let now = self.kept.iter().find(|def| def.name == name);
            // In its place in the tree as it still is.
            change.write.extend(moments.get(&name).zip(now).map(|(old, now)| Definition {
                domain: now.domain.clone(),
                inactive_domain: now.inactive_domain.clone(),
                ..old.clone()
            }));
        }
        finish.push(Finish::Record(change));
    }

    fn set_definitions(&mut self, finish: &mut Vec<Finish>) {
        if self.live != self.set_live {
            self.set_live.clone_from(&self.live);
            finish.extend(self.live.clone().map(Finish::SetLive));
        }
        if self.config != self.set_config {
            self.set_config.clone_from(&self.config);
            finish.extend(self.config.clone().map(Finish::SetConfig));
        }
    }

    /// Forgets of interrupted deletions that this one ends.
    fn unmark(&mut self) {
        for unmarked in interrupted::over(&self.kept) {
            self.kept.retain(|def| def.name != unmarked.name);
            self.change.write.retain(|def| def.name != unmarked.name);
            self.change.write.push(unmarked.clone());
            self.kept.push(unmarked);
        }
    }

    /// What must stay readable as it is.
    fn roots(&self, facts: &DomainFacts) -> Roots {
        roots(self.kept.iter(), self.live.iter().chain(&self.config), facts)
    }

    /// The disk whose chain, in a definition or a moment, the image is part of.
    fn disk_of(&self, image: &Path) -> Option<String> {
        let reaches = |from: PathBuf| {
            let mut at = Some(&from);
            let mut left = self.layers.len();
            while let Some(path) = at
                && path != image
                && left > 0
            {
                at = self.layers.backing(path);
                left -= 1;
            }
            at.is_some_and(|path| path == image)
        };
        let of_definitions = self.live.iter().chain(&self.config).flat_map(|definition| {
            domain::disks(definition)
                .filter_map(|disk| Some((disk.target().to_owned(), PathBuf::from(disk.image()?))))
        });
        let of_moments = self.kept.iter().flat_map(|moment| {
            moment.disks.iter().filter_map(|d| Some((d.name.clone(), image_of(moment, &d.name)?)))
        });
        of_definitions
            .chain(of_moments)
            .find(|(_, from)| reaches(from.clone()))
            .map(|(disk, _)| disk)
    }

    /// What is to be merged, and of which disk it is.
    fn runs(
        &self,
        gone: &[&Definition],
        deleted_tags: &DeletedTags,
        options: &DeleteOptions,
        facts: &DomainFacts,
    ) -> Result<Vec<(Run, String)>> {
        let pinned = self.roots(facts);
        let mut layers = self.layers.clone();
        let garbage = layers.garbage(&facts.owned, &pinned);
        let is_known = garbage.is_some();
        for image in garbage.into_iter().flatten() {
            layers.remove(&image);
        }
        let overlays = &self.overlays;
        let ground = Ground { layers: &layers, pinned: &pinned, overlays, deleted_tags, facts };
        // Where it is not known who reads what, all stays as it is until it is.
        let runs = if is_known { ground.runs() } else { Vec::new() };
        if options.consolidate.required {
            ground.check_consolidated(gone, &runs)?;
        }
        let of_disks = runs.into_iter().filter_map(|run| {
            let target = self.disk_of(run.top())?;
            Some((run, target))
        });
        Ok(of_disks.collect())
    }

    /// The top takes what is below it, and no name changes.
    fn stream(&mut self, run: &Run, target: String, finish: &mut Vec<Finish>) {
        let below = self.layers.backing(run.base()).cloned();
        self.layers.add(run.top(), below.as_deref());
        finish.push(Finish::Stream { disk: target, top: run.top().to_owned(), base: below });
    }

    fn commit(&mut self, run: &Run, target: &str, facts: &DomainFacts, finish: &mut Vec<Finish>) {
        let (base, top) = (run.base(), run.top());
        let Some(below) = facts.images.get(base) else { return };
        let source = Source::existing(base, below);
        finish.push(Finish::Commit {
            disk: target.to_owned(),
            top: top.to_owned(),
            base: base.to_owned(),
        });
        for reader in self.layers.readers(top) {
            finish.push(Finish::Repoint {
                image: reader,
                backing: base.to_owned(),
                backing_format: below.format.clone(),
            });
        }
        self.layers.commit(top, base);
        for domain in [&mut self.live, &mut self.config].into_iter().flatten() {
            if definition::image(domain, target).as_deref() == Some(top) {
                redirect(domain, target, source);
            }
        }
        for moment in &mut self.going {
            redirect_moment(moment, target, top, source);
        }
        for moment in &mut self.kept {
            if redirect_moment(moment, target, top, source) {
                self.redirected.insert(moment.name.clone());
                self.change.write.retain(|def| def.name != moment.name);
                self.change.write.push(moment.clone());
            }
        }
    }

    fn finish(mut self, facts: &DomainFacts, finish: &mut Vec<Finish>) {
        let garbage = self.layers.garbage(&facts.owned, &self.roots(facts)).unwrap_or_default();
        self.set_definitions(finish);
        finish.push(Finish::Record(self.change));
        finish.extend(garbage.into_iter().map(Finish::RemoveImage));
    }
}

/// Whether the disk of the moment was on `top`, and is on `source` now.
fn redirect_moment(moment: &mut Definition, target: &str, top: &Path, source: Source<'_>) -> bool {
    if image_of(moment, target).as_deref() != Some(top) {
        return false;
    }
    let Some(domain) = &mut moment.domain else { return false };
    redirect(domain, target, source);
    if let Some(inactive) = &mut moment.inactive_domain
        && definition::image(inactive, target).as_deref() == Some(top)
    {
        redirect(inactive, target, source);
    }
    true
}
