//! Which images does a plan have the hypervisor's own processes open? Asked before its first step:
//! what confines them (AppArmor, for one) may deny one of them, and would say so when the guest is
//! down and half of the plan is done.
//!
//! What image tools open is not counted: they run as the daemon.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use super::{Conclude, Finish, Pivot, Plan, Step};
use crate::domain::{StartFrom, VmStateIn};
use crate::facts::DomainFacts;

/// A disk stands on no more images.
const DEEPEST: usize = 201;

/// One image that a process must be let open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    pub image: PathBuf,
    pub how: How,
    pub by: By,
    /// What the image is, for whoever has to allow it: `layer 1 below the top of disk 'vda'`.
    pub role: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    Read,
    Write,
}

/// Which process opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// The one that the guest runs in now.
    Running,
    /// One that is to be started, with the emulator that the definition names.
    Started(Option<PathBuf>),
}

/// All images that the plan needs more of than a running process already has.
pub fn needs(plan: &Plan, facts: &DomainFacts) -> Vec<Access> {
    let is_running = facts.live.is_some();
    let mut found = Vec::new();
    let mut need = |image: &Path, how, by: By, role: String| {
        found.push(Access { image: image.to_owned(), how, by, role });
    };
    let mut backing: BTreeMap<&Path, &Path> = BTreeMap::new();
    for step in &plan.prepare {
        match step {
            Step::CreateOverlay { overlay, backing: below, .. }
            | Step::FillOverlay { overlay, backing: below, .. } => {
                backing.insert(overlay, below);
            }
            Step::AttachOverlay { disk, overlay, .. } => {
                need(overlay, How::Write, By::Running, format!("the new overlay of disk '{disk}'"));
            }
            Step::SaveVmState { vmstate: VmStateIn::Image(image), .. } => {
                need(image, How::Write, By::Running, "the image for the memory".to_owned());
            }
            _ => {}
        }
    }
    if let Pivot::SaveVmState { vmstate: VmStateIn::Image(image), .. }
    | Pivot::LoadVmState { vmstate: VmStateIn::Image(image), .. } = &plan.pivot
    {
        need(image, How::Write, By::Running, "the image with the memory".to_owned());
    }
    for finish in plan.finish.iter().filter(|_| is_running) {
        for image in written_by(finish, facts) {
            // The active layer is open for writing already.
            if let Some((disk, depth @ 1..)) = place(&image, facts) {
                need(&image, How::Write, By::Running, role(&disk, depth));
            }
        }
    }
    for Conclude::Start { definition, start } in &plan.conclude {
        let by = By::Started(domain::emulator(definition).map(PathBuf::from));
        for (image, how, role) in opened_at_start(definition, &backing, facts) {
            need(&image, how, by.clone(), role);
        }
        if let StartFrom::VmState { vmstate: VmStateIn::Image(image), .. } = &start.from {
            need(image, How::Write, by, "the image with the memory".to_owned());
        }
    }
    found
}

/// Images of a running guest's chains whose content or header changes.
fn written_by(finish: &Finish, facts: &DomainFacts) -> Vec<PathBuf> {
    match finish {
        Finish::Commit { top, base, .. } => {
            // The layer above the top gets another backing file's name.
            let above = facts.images.iter().filter(|(image, _)| place(image, facts).is_some());
            let above = above.filter(|(_, facts)| facts.backing.as_ref() == Some(top));
            above.map(|(image, _)| image.clone()).chain([base.clone()]).collect()
        }
        Finish::Stream { top: image, .. }
        | Finish::Repoint { image, .. }
        | Finish::DeleteSnapshot { image, .. } => vec![image.clone()],
        _ => Vec::new(),
    }
}

/// The disk whose chain an image is in, and how far from its top.
fn place(image: &Path, facts: &DomainFacts) -> Option<(String, usize)> {
    facts.disks.iter().find_map(|disk| {
        let depth = chain(disk.image()?, &BTreeMap::new(), facts).position(|at| at == image)?;
        Some((disk.target.clone(), depth))
    })
}

fn opened_at_start(
    definition: &Element,
    backing: &BTreeMap<&Path, &Path>,
    facts: &DomainFacts,
) -> Vec<(PathBuf, How, String)> {
    let mut opened = Vec::new();
    for disk in domain::disks(definition) {
        let Some(active) = disk.path().map(PathBuf::from) else { continue };
        let is_read = disk.is_readonly() || disk.device() == "cdrom";
        for (depth, image) in chain(&active, backing, facts).enumerate() {
            let how = if depth == 0 && !is_read { How::Write } else { How::Read };
            opened.push((image.to_owned(), how, role(disk.target(), depth)));
        }
    }
    opened
}

fn role(disk: &str, depth: usize) -> String {
    match depth {
        0 => format!("the top of disk '{disk}'"),
        depth => format!("layer {depth} below the top of disk '{disk}'"),
    }
}

/// An image and all that it stands on, overlays that the plan is to make included.
fn chain<'a>(
    top: &'a Path,
    planned: &'a BTreeMap<&'a Path, &'a Path>,
    facts: &'a DomainFacts,
) -> impl Iterator<Item = &'a Path> {
    let below = |image: &&'a Path| {
        let known = || facts.images.get(*image)?.backing.as_deref();
        planned.get(image).copied().or_else(known)
    };
    std::iter::successors(Some(top), below).take(DEEPEST)
}
