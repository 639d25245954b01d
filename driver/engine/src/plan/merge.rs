//! Which layers a deletion merges, and which of their files is left.
//!
//! A free layer that exactly one overlay of ours reads is merged with it, and a run of them in one
//! go. Either the data goes down into the lowest (*commit*: libvirt's way, which keeps the older
//! name) or up into the topmost (*stream*: what was below is given up). A commit costs what the
//! upper layers hold, a stream what the lower ones hold and the topmost does not cover; so measured
//! on QEMU, with a factor of twelve between them either way.
//!
//! | says which is left, the first that speaks | |
//! |---|---|
//! | flags of the call | for all disks |
//! | `<on_delete>` of the snapshots deleted | if those of one run agree |
//! | the domain's policy | |
//! | the measure | stream only where it is clearly cheaper |
//!
//! By measure nothing is taken from the user: a lowest layer that is not ours, or that is raw, is
//! what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use virtsnap_xml::snapshot::{Definition, Location, Survivor};

use super::layers::{Layers, Roots, image_of};
use super::route::first_gone;
use crate::error::{Condition, Error, Result};
use crate::facts::{DomainFacts, Format};
use crate::options::Consolidate;

/// Bytes that a stream must save. With less it does not matter which way it goes, and libvirt's
/// leaves libvirt's names.
const WORTH: u128 = 16 << 20;

/// Images, tag: the internal snapshots that the same plan deletes.
pub(super) type DeletedTags = BTreeSet<(PathBuf, String)>;

/// Layers that become one: each is read by the next alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    /// Lowest first; at least two.
    pub(super) layers: Vec<PathBuf>,
}

impl Run {
    pub(super) fn base(&self) -> &Path {
        self.layers.first().map(PathBuf::as_path).unwrap_or_else(|| Path::new(""))
    }

    pub(super) fn top(&self) -> &Path {
        self.layers.last().map(PathBuf::as_path).unwrap_or_else(|| Path::new(""))
    }

    /// All but the topmost: what is free.
    fn free(&self) -> &[PathBuf] {
        self.layers.split_last().map(|(_, free)| free).unwrap_or_default()
    }
}

/// What may be merged is judged by these.
pub(super) struct Ground<'a> {
    /// Without what is garbage.
    pub(super) layers: &'a Layers,
    pub(super) pinned: &'a Roots,
    /// What may be merged with the layer below.
    pub(super) overlays: &'a BTreeSet<PathBuf>,
    pub(super) deleted_tags: &'a DeletedTags,
    pub(super) facts: &'a DomainFacts,
}

impl Ground<'_> {
    pub(super) fn runs(&self) -> Vec<Run> {
        let mut runs = Vec::new();
        for base in self.facts.images.keys() {
            let Some(first) = self.overlay(base) else { continue };
            if self.layers.backing(base).is_some_and(|below| self.overlay(below).is_some()) {
                continue;
            }
            let mut layers = vec![base.clone(), first];
            while let Some(above) = layers.last().and_then(|top| self.overlay(top)) {
                layers.push(above);
            }
            runs.push(Run { layers });
        }
        runs
    }

    /// The overlay that a free layer is to be merged with.
    fn overlay(&self, layer: &Path) -> Option<PathBuf> {
        match self.layers.readers(layer).as_slice() {
            [only] if !self.pinned.images.contains(layer) && self.overlays.contains(only) => {
                (self.is_plain(layer) && self.is_plain(only)).then(|| only.clone())
            }
            _ => None,
        }
    }

    /// Merging would falsify the internal snapshots of either side.
    fn is_plain(&self, image: &Path) -> bool {
        !self.facts.foreign_readers.contains_key(image)
            && self.facts.images.get(image).is_some_and(|facts| {
                let deleted =
                    |tag: &str| self.deleted_tags.contains(&(image.to_owned(), tag.to_owned()));
                facts.snapshots.iter().all(|snapshot| deleted(&snapshot.tag))
            })
    }

    /// Why a free layer stays beside its overlay.
    fn obstacle(&self, layer: &Path) -> String {
        if let Some(who) = self.facts.foreign_readers.get(layer) {
            return format!("{who} reads it");
        }
        let readers = self.layers.readers(layer);
        match readers.as_slice() {
            _ if self.pinned.images.contains(layer) => "another snapshot needs it".to_owned(),
            [only] if !self.overlays.contains(only) => {
                format!("'{}', which stands on it, is no snapshot's overlay", only.display())
            }
            [only] => {
                let full = if self.is_plain(layer) { only } else { layer };
                format!("'{}' holds internal snapshots", full.display())
            }
            all => format!("{} images stand on it", all.len()),
        }
    }

    /// CONSOLIDATE: every layer that the deletion frees is merged or goes.
    ///
    /// # Errors
    /// `OperationUnsupported`, with what keeps a layer.
    pub(super) fn check_consolidated(&self, gone: &[&Definition], runs: &[Run]) -> Result<()> {
        if let Some(image) = self.pinned.images.iter().find_map(|top| first_gone(top, self.facts)) {
            return Err(Error::new(
                Condition::OperationFailed,
                format!(
                    "nothing can be consolidated: '{}' is gone, or no image any more; put it back \
                     first, or delete without CONSOLIDATE, which keeps all images",
                    image.display()
                ),
            ));
        }
        for moment in gone {
            for disk in moment.disks.iter().filter(|disk| disk.snapshot == Location::External) {
                let Some(layer) = image_of(moment, &disk.name) else { continue };
                let merged = runs.iter().any(|run| run.free().contains(&layer));
                if !merged && !self.layers.readers(&layer).is_empty() {
                    return Err(Error::new(
                        Condition::OperationUnsupported,
                        format!(
                            "disk '{}' cannot be consolidated: '{}' has to stay, since {}; delete \
                             without CONSOLIDATE to leave it",
                            disk.name,
                            layer.display(),
                            self.obstacle(&layer)
                        ),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// What was asked for: flags, `<on_delete>`, policy.
#[derive(Debug)]
pub(super) struct Wishes {
    consolidate: Consolidate,
    /// The layer that a deleted snapshot froze → what its `<on_delete>` keeps.
    on_delete: BTreeMap<PathBuf, Survivor>,
    policy: Option<Survivor>,
}

impl Wishes {
    pub(super) fn new(
        consolidate: Consolidate,
        gone: &[&Definition],
        policy: Option<Survivor>,
    ) -> Self {
        let mut on_delete = BTreeMap::new();
        for moment in gone {
            for disk in &moment.disks {
                if let (Some(kept), Some(layer)) = (disk.on_delete, image_of(moment, &disk.name)) {
                    on_delete.insert(layer, kept);
                }
            }
        }
        Self { consolidate, on_delete, policy }
    }

    /// Which file of the run is left.
    ///
    /// # Errors
    /// `OperationUnsupported` for a commit into a block device that is too small, and for what
    /// CONSOLIDATE cannot be given.
    pub(super) fn survivor(
        &self,
        run: &Run,
        target: &str,
        facts: &DomainFacts,
    ) -> Result<Survivor> {
        let said: BTreeSet<_> =
            run.free().iter().filter_map(|layer| self.on_delete.get(layer)).copied().collect();
        if self.consolidate.required && self.consolidate.keep.is_none() && said.len() > 1 {
            return Err(Error::new(
                Condition::OperationUnsupported,
                format!(
                    "disk '{target}': the <on_delete> of the snapshots deleted keep different \
                     files, of which only one can be left; delete them one after the other"
                ),
            ));
        }
        let agreed = said.first().copied().filter(|_| said.len() == 1);
        let wish = self.consolidate.keep.or(agreed).or(self.policy);
        let kept = wish.unwrap_or_else(|| measured(run, facts));
        if kept == Survivor::Base {
            check_sizes(target, run, facts)?;
        }
        Ok(kept)
    }
}

fn measured(run: &Run, facts: &DomainFacts) -> Survivor {
    let image = |path: &Path| facts.images.get(path);
    let (Some(base), Some(top)) = (image(run.base()), image(run.top())) else {
        return Survivor::Base;
    };
    let is_ours = run.free().iter().all(|layer| facts.owned.contains(layer));
    if !is_ours || base.format == Format::Raw {
        return Survivor::Base;
    }
    let held = |layers: &[PathBuf]| -> u128 {
        layers.iter().filter_map(|layer| image(layer)).map(|i| u128::from(i.actual_size)).sum()
    };
    let down = held(run.layers.get(1..).unwrap_or_default());
    // What the top holds it does not need from below; so much of the disk it covers.
    let size = u128::from(top.virtual_size.max(1));
    let covered = u128::from(top.actual_size).min(size);
    let up = held(run.free()) * (size - covered) / size;
    if up + WORTH <= down { Survivor::Overlay } else { Survivor::Base }
}

/// A base on a block device cannot grow.
fn check_sizes(target: &str, run: &Run, facts: &DomainFacts) -> Result<()> {
    let (Some(upper), Some(lower)) = (facts.images.get(run.top()), facts.images.get(run.base()))
    else {
        return Ok(());
    };
    if lower.is_block_device && upper.virtual_size > lower.virtual_size {
        return Err(Error::new(
            Condition::OperationUnsupported,
            format!(
                "disk '{target}' has grown since the snapshot, and its layer '{}' is a block \
                 device that cannot; keep the overlay instead (KEEP_OVERLAY, or <on_delete>)",
                run.base().display()
            ),
        ));
    }
    Ok(())
}
