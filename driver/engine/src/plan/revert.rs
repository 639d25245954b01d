//! Planning a revert.
//!
//! [`route`](super::route) says how each disk goes back. The guest goes on until all that can be
//! refused has been, and all new files exist. A running guest whose definition has not changed since
//! goes back in its own process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use virtsnap_xml::domain::to_inactive;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Definition, Disk, Memory, State as Recorded};

use super::definition::{self, Source, redirect};
use super::given_up::GivenUp;
use super::layers::{Layers, image_of, roots};
use super::policy;
use super::route::{Route, existing, route};
use super::{
    Conclude, Finish, MomentChange, Operation, Pivot, Plan, ResumeReason, Step, interrupted,
    state_files,
};
use crate::domain::{ShutOffReason, Start, StartFrom, State, VmStateIn};
use crate::error::{Condition, Error, Result};
use crate::facts::{DomainFacts, Format, ImageFacts, MemoryFile};
use crate::moment::MomentList;
use crate::options::{RevertOptions, RevertState};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    ShutOff,
    Running,
    Paused,
}

/// `free` has, for each of [`images`](super::route::images), a path beside it where nothing is;
/// `difference` is what a guest would see between the running definition and the moment's, if
/// anything.
///
/// # Errors
/// Every reason not to revert; nothing has been touched.
pub fn revert(
    moment: &Definition,
    options: &RevertOptions,
    facts: &DomainFacts,
    moments: &MomentList,
    free: &BTreeMap<PathBuf, PathBuf>,
    difference: Option<&str>,
) -> Result<Plan> {
    let goal = goal(moment, options);
    let domain = check(moment, options, goal, facts)?;
    interrupted::check_revert(moment, moments)?;
    let loads_memory = moment.memory.is_saved() && goal != Goal::ShutOff;
    let world = GivenUp::new(moment, options, loads_memory, facts, moments)?;
    let routes: Vec<(String, Route)> = moment
        .disks
        .iter()
        .map(|disk| Ok((disk.name.clone(), route(moment, disk, &world, free)?)))
        .collect::<Result<_>>()?;
    let mut from = match goal {
        Goal::ShutOff => StartFrom::BootSnapshot,
        Goal::Running | Goal::Paused => start_from(moment, &routes, facts)?,
    };
    let state = state_files::put_back(moment, options, loads_memory, facts)?;
    state_files::load_with(&mut from, moment, facts);
    let continues = matches!(from, StartFrom::VmState { vmstate: VmStateIn::Disk(_), .. })
        && in_process(domain, &routes, facts);
    if !options.force {
        let difference = difference.filter(|_| loads_memory);
        policy::confirm(&policy::of(facts)?, facts, continues, difference)?;
    }
    match from {
        StartFrom::VmState { tag, vmstate: VmStateIn::Disk(vmstate), disks } if continues => {
            let pivot = Pivot::LoadVmState { tag, vmstate: VmStateIn::Disk(vmstate), disks };
            Ok(in_process_plan(moment, goal, pivot, &routes, state, &world, moments))
        }
        from => restart_plan(moment, domain, (goal, from), &routes, state, &world, moments),
    }
}

fn goal(moment: &Definition, options: &RevertOptions) -> Goal {
    match (options.state, moment.state) {
        (RevertState::Running, _) => Goal::Running,
        (RevertState::Paused, _) => Goal::Paused,
        (RevertState::ShutOff, _) => Goal::ShutOff,
        (RevertState::AsSnapshot, Recorded::Running | Recorded::Blocked) => Goal::Running,
        (RevertState::AsSnapshot, Recorded::Paused) => Goal::Paused,
        (RevertState::AsSnapshot, _) => Goal::ShutOff,
    }
}

fn check<'a>(
    moment: &'a Definition,
    options: &RevertOptions,
    goal: Goal,
    facts: &DomainFacts,
) -> Result<&'a Element> {
    if facts.config.is_none() && goal == Goal::ShutOff {
        return Err(Error::new(
            Condition::OperationInvalid,
            "a transient domain cannot be reverted to a shut-off state; ask for running or paused",
        ));
    }
    let Some(domain) = &moment.domain else {
        return Err(Error::new(
            Condition::RevertRisky,
            format!("snapshot '{}' does not hold the domain's definition", moment.name),
        ));
    };
    let has_memory = moment.memory.is_saved() && goal != Goal::ShutOff;
    if facts.managed_save.is_some() && !has_memory && !options.force {
        return Err(Error::new(
            Condition::RevertRisky,
            "the domain has a managed save image, whose memory would not fit the disks of this \
             snapshot; remove it, or force the revert",
        ));
    }
    if let Some(disk) = facts.disks.iter().find(|disk| disk.block_job) {
        return Err(Error::new(
            Condition::OperationInvalid,
            format!("disk '{}' is busy with a block job; wait for it or abort it", disk.target),
        ));
    }
    Ok(domain)
}

/// Nothing but disks and memory differs, and each disk goes back where it is.
fn in_process(domain: &Element, routes: &[(String, Route)], facts: &DomainFacts) -> bool {
    let Some(live) = &facts.live else { return false };
    let running = matches!(facts.state, State::Running(_) | State::Paused(_));
    let in_place = routes.iter().all(|(target, route)| match route {
        Route::Stay => true,
        Route::InPlace { image, .. } => {
            facts.disks.iter().any(|d| d.target == *target && d.image() == Some(image))
        }
        Route::Branch { .. } | Route::Overlay { .. } | Route::Discard { .. } => false,
    });
    let here = |definition: &Element| {
        let mut definition = definition.clone();
        policy::carry(facts, &mut definition);
        definition
    };
    // A guest with a generation id is told by a new one that it went back: a process keeps its own.
    let told = domain.child("genid").is_some();
    running && in_place && !told && here(&to_inactive(live.clone())) == here(domain)
}

fn in_process_plan(
    moment: &Definition,
    goal: Goal,
    pivot: Pivot,
    routes: &[(String, Route)],
    state: state_files::Return,
    world: &GivenUp,
    moments: &MomentList,
) -> Plan {
    let facts = &world.facts;
    let mut prepare = state.prepare;
    if matches!(facts.state, State::Running(_)) {
        prepare.push(Step::Pause);
    }
    let mut finish = state.finish;
    if goal == Goal::Running {
        finish.push(Finish::Resume(ResumeReason::FromSnapshot));
    }
    finish.extend(world.delete_tags(moments));
    let config = new_config(moment, routes, facts);
    let roots = roots(world.kept.iter(), config.iter().chain(&facts.live), facts);
    if facts.config.is_some() && config != facts.config {
        finish.extend(config.map(Finish::SetConfig));
    }
    let change = made_current(moment, routes, &world.kept, moments.current());
    finish.push(Finish::Record(world.record(change)));
    if world.gives_up() {
        let garbage = Layers::of(facts).garbage(&facts.owned, &roots);
        finish.extend(garbage.into_iter().flatten().map(Finish::RemoveImage));
    }
    Plan {
        operation: Operation::Revert { moment: moment.name.clone() },
        prepare,
        pivot,
        finish,
        conclude: Vec::new(),
    }
}

fn restart_plan(
    moment: &Definition,
    domain: &Element,
    (goal, from): (Goal, StartFrom),
    routes: &[(String, Route)],
    state: state_files::Return,
    world: &GivenUp,
    moments: &MomentList,
) -> Result<Plan> {
    let facts = &world.facts;
    let mut layers = Layers::of(facts);
    let mut prepare = state.prepare;
    let mut finish = vec![Finish::Stop(ShutOffReason::FromSnapshot)];
    // Before anything changes that its memory knows.
    finish.extend(facts.managed_save.clone().map(Finish::ForgetSave));
    finish.extend(state.finish);
    finish.extend(state.apply);
    let mut keep = Vec::new();
    for (target, route) in routes {
        match route {
            Route::Stay | Route::Discard { .. } => {}
            Route::InPlace { image, tag } => {
                finish.push(Finish::ApplySnapshot { image: image.clone(), tag: tag.clone() });
            }
            Route::Branch { image, copy, tag } => {
                prepare.push(Step::CopyImage { from: image.clone(), to: copy.clone() });
                finish.push(Finish::ApplySnapshot { image: copy.clone(), tag: tag.clone() });
                layers.add(copy, layers.backing(image).cloned().as_deref());
                keep.push(copy.clone());
            }
            Route::Overlay { frozen, overlay } => {
                let frozen_facts = existing(facts, target, frozen, &moment.name)?;
                prepare.push(Step::CreateOverlay {
                    overlay: overlay.clone(),
                    format: Format::Qcow2,
                    backing: frozen.clone(),
                    backing_format: frozen_facts.format.clone(),
                    virtual_size: frozen_facts.virtual_size,
                });
                layers.add(overlay, Some(frozen));
                keep.push(overlay.clone());
            }
        }
    }
    let started = redirected(domain, routes, facts);
    let config = new_config(moment, routes, facts);
    finish.extend(world.delete_tags(moments));
    let change = world.record(made_current(moment, routes, &world.kept, moments.current()));
    let roots = roots(world.kept.iter(), config.iter().chain([&started]), facts);
    // Whatever the domain used until now and no moment keeps is the state that is given up.
    let discarded = layers.garbage(&facts.owned, &roots).unwrap_or_default();

    if facts.config.is_some() {
        finish.extend(config.map(Finish::SetConfig));
    }
    finish.push(Finish::Record(change));
    finish.extend(keep.into_iter().map(Finish::KeepImage));
    finish.extend(discarded.into_iter().map(Finish::RemoveImage));
    finish.extend(state.given_up);
    let conclude = match goal {
        Goal::ShutOff => Vec::new(),
        Goal::Running | Goal::Paused => vec![Conclude::Start {
            definition: started,
            start: Start { paused: goal == Goal::Paused, from },
        }],
    };
    Ok(Plan {
        operation: Operation::Revert { moment: moment.name.clone() },
        prepare,
        pivot: Pivot::Record,
        finish,
        conclude,
    })
}

/// What a guest starts from. Memory is looked at here, before anything is touched.
fn start_from(
    moment: &Definition,
    routes: &[(String, Route)],
    facts: &DomainFacts,
) -> Result<StartFrom> {
    let (tag, disks) = saved(moment, routes);
    match &moment.memory {
        Memory::No | Memory::Unsaid => Ok(StartFrom::BootSnapshot),
        Memory::External { file } => {
            let file = PathBuf::from(file);
            match facts.memory_files.get(&file) {
                Some(MemoryFile::Whole { .. }) => Ok(StartFrom::Memory { file }),
                Some(MemoryFile::Damaged(why)) => Err(Error::new(
                    Condition::OperationFailed,
                    format!(
                        "the memory of snapshot '{}' in '{}' cannot be loaded: {why}",
                        moment.name,
                        file.display()
                    ),
                )),
                None => Err(no_file("the memory", &file, &moment.name)),
            }
        }
        Memory::Internal { .. } if !facts.memory_inside => Err(Error::new(
            Condition::ConfigUnsupported,
            format!(
                "the memory of snapshot '{}' is inside of an image, where this hypervisor finds \
                 none; revert its disks alone",
                moment.name
            ),
        )),
        Memory::Internal { image: Some(image) } => {
            let image = PathBuf::from(image);
            let found = facts.images.get(&image);
            let found = found.ok_or_else(|| no_file("the memory", &image, &moment.name))?;
            if memory_size(found, &tag) == 0 {
                return Err(no_memory(moment, &image));
            }
            Ok(StartFrom::VmState { tag, vmstate: VmStateIn::Image(image), disks })
        }
        Memory::Internal { image: None } => {
            let holds_memory = |target: &&String| {
                let image = image_of(moment, target).and_then(|image| facts.images.get(&image));
                image.is_some_and(|image| memory_size(image, &tag) > 0)
            };
            let Some(vmstate) = disks.iter().find(holds_memory).cloned() else {
                return Err(Error::new(
                    Condition::OperationFailed,
                    format!(
                        "no disk of snapshot '{}' holds its memory; revert its disks alone",
                        moment.name
                    ),
                ));
            };
            Ok(StartFrom::VmState { tag, vmstate: VmStateIn::Disk(vmstate), disks })
        }
    }
}

fn memory_size(image: &ImageFacts, tag: &str) -> u64 {
    let saved = image.snapshots.iter().find(|snapshot| snapshot.tag == tag);
    saved.map_or(0, |snapshot| snapshot.vm_state_size)
}

fn no_memory(moment: &Definition, image: &Path) -> Error {
    let what = format!("'{}' does not hold the memory of '{}'", image.display(), moment.name);
    Error::new(Condition::OperationFailed, what)
}

fn no_file(what: &str, file: &Path, moment: &str) -> Error {
    const ENOENT: i32 = 2;
    Error::new(
        Condition::System(ENOENT),
        format!("{what} of snapshot '{moment}' is missing: there is no file '{}'", file.display()),
    )
}

/// The tag, and the disks that carry it, in the order in which they were saved.
fn saved(moment: &Definition, routes: &[(String, Route)]) -> (String, Vec<String>) {
    let mut tag_of = moment.name.clone();
    let mut disks = Vec::new();
    for (target, route) in routes {
        if let Route::InPlace { tag, .. } | Route::Branch { tag, .. } = route {
            tag_of.clone_from(tag);
            disks.push(target.clone());
        }
    }
    (tag_of, disks)
}

/// The persistent definition that comes back with the moment.
fn new_config(
    moment: &Definition,
    routes: &[(String, Route)],
    facts: &DomainFacts,
) -> Option<Element> {
    let config = moment.inactive_domain.as_ref().or(moment.domain.as_ref())?;
    Some(redirected(config, routes, facts))
}

/// `definition` with the name the domain has now, and its disks where the revert puts them.
fn redirected(definition: &Element, routes: &[(String, Route)], facts: &DomainFacts) -> Element {
    let mut domain = definition.clone();
    domain.child_or_insert("name").set_text(facts.name.clone());
    policy::carry(facts, &mut domain);
    for (target, route) in routes {
        match route {
            Route::Stay => stay(&mut domain, target, facts),
            Route::InPlace { image, .. } | Route::Discard { frozen: image } => {
                put_existing(&mut domain, target, image, facts);
            }
            Route::Branch { copy: file, .. } | Route::Overlay { overlay: file, .. } => {
                redirect(&mut domain, target, Source::file(file, &Format::Qcow2));
            }
        }
    }
    domain
}

/// The disk keeps the image it has now, though the rest goes back.
fn stay(domain: &mut Element, target: &str, facts: &DomainFacts) {
    definition::use_lasting(domain, target, facts);
}

fn put_existing(domain: &mut Element, target: &str, image: &Path, facts: &DomainFacts) {
    if let Some(image_facts) = facts.images.get(image) {
        redirect(domain, target, Source::existing(image, image_facts));
    }
}

fn made_current(
    moment: &Definition,
    routes: &[(String, Route)],
    moments: &MomentList,
    current: Option<&str>,
) -> MomentChange {
    let overlay = |target: &str| match routes.iter().find(|(name, _)| name == target)? {
        (_, Route::Overlay { overlay, .. }) => {
            Some(Disk::overlay(target, overlay.to_string_lossy(), "qcow2"))
        }
        (_, Route::Stay | Route::InPlace { .. } | Route::Branch { .. } | Route::Discard { .. }) => {
            None
        }
    };
    let mut reverted = moment.clone();
    // As libvirt: the overlays that children were taken on stay in <disks>, and the new ones go
    // beside them; where there are no children, the old overlays are gone.
    if moments.children(&moment.name).next().is_some() {
        reverted.revert_disks = moment.disks.iter().filter_map(|d| overlay(&d.name)).collect();
    } else {
        reverted.revert_disks.clear();
        for disk in &mut reverted.disks {
            if let Some(new) = overlay(&disk.name) {
                *disk = Disk { on_delete: disk.on_delete, ..new };
            }
        }
    }
    let mut write = vec![reverted];
    if let Some(before) = current.and_then(|name| moments.get(name))
        && before.name != moment.name
        && !before.revert_disks.is_empty()
    {
        write.push(Definition { revert_disks: Vec::new(), ..before.clone() });
    }
    MomentChange { write, forget: Vec::new(), current: Some(moment.name.clone()) }
}
