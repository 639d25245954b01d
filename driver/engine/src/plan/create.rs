//! Planning a new snapshot.
//!
//! Shut off: overlay files and internal snapshots are made, and the record is the pivot. Of an
//! active domain `live` tells.

use std::collections::BTreeMap;
use std::path::PathBuf;

use virtsnap_xml::domain::to_inactive;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{
    Definition, Disk, Location, Memory, MemoryRequest, Request, State as Recorded,
};

use super::align::{align, overlay_path, sibling};
use super::definition::{self, Source, push_overlay, redirect};
use super::live::{self, Parts};
use super::overlay::plan_overlay;
use super::policy;
use super::route::first_gone;
use super::{Finish, MomentChange, Operation, Pivot, Plan, Step, saveable, saved, state_files};
use crate::domain::State;
use crate::error::{Condition, Error, Origin, Result};
use crate::facts::{DiskFacts, DomainFacts, Format, ImageFacts, PathKind, Place};
use crate::moment::MomentList;
use crate::options::{Afterwards, Metadata, New, Overlays, Scope};

/// What will be recorded, and the files it needs, before their paths were looked at.
#[derive(Debug)]
pub struct Draft {
    pub moment: Definition,
}

impl Draft {
    /// Where overlays are to be, and what on. The planner must be told what is there now.
    pub fn overlays(&self, facts: &DomainFacts) -> Vec<(PathBuf, PathBuf)> {
        let disks = self.moment.disks.iter().zip(&facts.disks);
        disks.filter_map(|(disk, on)| Some((overlay_path(disk)?, on.image()?.clone()))).collect()
    }

    /// The file that memory goes to.
    pub fn memory_file(&self) -> Option<PathBuf> {
        live::memory_path(&self.moment).map(PathBuf::from)
    }
}

/// First half: from the request to the moment that will be recorded.
///
/// # Errors
/// Every refusal that needs no look at the new paths.
pub fn draft(
    request: &Request,
    options: &New,
    facts: &DomainFacts,
    moments: &MomentList,
) -> Result<Draft> {
    let name = name(request, options, facts, moments)?;
    let policy = policy::of(facts)?;
    let request = &policy::applied(&policy, request, options, facts)?;
    let (recorded, memory, default) = scope(request, options, facts, &name)?;
    let default = policy.disks.unwrap_or(default);
    let disks = align(request, facts, &name, default)?;
    check_selection(request, &memory, &disks, facts, default)?;
    let memory = place(memory, &disks, facts, &name)?;
    let of_saved = matches!(memory, Memory::External { .. }) && !facts.state.is_active();
    let guest = if of_saved { saved::guest(facts)? } else { None };
    let (domain, inactive_domain) =
        guest.map_or_else(|| definitions(facts), |guest| guest.definitions(facts));
    let moment = Definition {
        description: request.description.clone(),
        parent: moments.current().map(str::to_owned),
        memory,
        disks,
        domain,
        inactive_domain,
        ..Definition::new(name, recorded, facts.now)
    };
    Ok(Draft { moment })
}

/// Second half: from the draft, and what is at its new paths, to the plan.
///
/// # Errors
/// `ConfigUnsupported` when a file is in the way, `OperationFailed` when an internal snapshot of
/// that name is.
pub fn plan(
    draft: Draft,
    options: &New,
    facts: &DomainFacts,
    moments: &MomentList,
    places: &BTreeMap<PathBuf, Place>,
) -> Result<(Definition, Plan)> {
    let Draft { mut moment } = draft;
    let mut plan = Plan {
        operation: Operation::Create { moment: moment.name.clone() },
        prepare: Vec::new(),
        pivot: Pivot::Record,
        finish: Vec::new(),
        conclude: Vec::new(),
    };
    let active = facts.state.is_active();
    let mut parts = Parts::default();
    for (disk, facts_of) in moment.disks.iter().zip(&facts.disks) {
        match disk.snapshot {
            Location::External => {
                let overlay = plan_overlay(disk, facts_of, facts, options, places, &mut plan)?;
                parts.overlays.push((disk.name.clone(), overlay));
            }
            Location::Internal => {
                check_internal(facts_of, facts, &moment.name)?;
                if !active && let Some(image) = facts_of.image() {
                    let (image, tag) = (image.clone(), moment.name.clone());
                    plan.prepare.push(Step::SnapshotImage { image, tag });
                }
                parts.internal.push(disk.name.clone());
            }
            Location::No | Location::Manual => {}
        }
    }
    if options.metadata == Metadata::Keep {
        parts.internal.extend(state_files::as_disk(&moment.name, facts)?);
    }
    let switched = parts.overlays.clone();
    let memory = live::memory_path(&moment).map(PathBuf::from);
    let kind_of = |path: &PathBuf| places.get(path).map_or(PathKind::Other, |place| place.kind);
    let memory_is = memory.as_ref().map_or(PathKind::Missing, kind_of);
    live::check_memory_path(&moment, options, facts, memory_is)?;
    if moment.memory.is_saved() {
        saveable::check_facts(facts)?;
    }
    if active {
        live::arrange(&moment, parts, options, facts, &mut plan)?;
    } else if let (Some(from), Some(to)) = (&facts.managed_save, &memory) {
        plan.prepare.push(Step::CopyImage { from: from.clone(), to: to.clone() });
    }
    if options.metadata == Metadata::Keep {
        state_files::keep(&mut moment, facts, &mut plan)?;
    }
    follow_disks(&moment, &switched, options, facts, &mut plan);
    // What was there before with something in it stays the caller's.
    let memory = memory.filter(|_| matches!(memory_is, PathKind::Missing | PathKind::Regular(0)));
    let made = |file| match options.metadata {
        Metadata::Keep => Finish::KeepImage(file),
        Metadata::Forget => Finish::HandOver(file),
    };
    plan.finish.extend(switched.into_iter().map(|(_, overlay)| match options.overlays {
        Overlays::Create => made(overlay),
        // What the user made stays the user's, whatever becomes of the snapshot.
        Overlays::Reuse => Finish::HandOver(overlay),
    }));
    plan.finish.extend(memory.map(made));
    if options.metadata == Metadata::Keep {
        plan.finish.push(Finish::Record(recorded(&moment, options, moments)));
    }
    saved::follow(&mut plan.finish, facts);
    Ok((moment, plan))
}

/// The moment becomes current, unless told not to; the one that was current has no revert in
/// progress any more.
fn recorded(moment: &Definition, options: &New, moments: &MomentList) -> MomentChange {
    let mut write = vec![moment.clone()];
    if let Some(parent) = moments.current().and_then(|current| moments.get(current))
        && !parent.revert_disks.is_empty()
    {
        write.push(Definition { revert_disks: Vec::new(), ..parent.clone() });
    }
    let current = match options.becomes_current {
        true => Some(moment.name.clone()),
        false => moments.current().map(str::to_owned),
    };
    MomentChange { write, forget: Vec::new(), current }
}

fn name(
    request: &Request,
    options: &New,
    facts: &DomainFacts,
    moments: &MomentList,
) -> Result<String> {
    let Some(name) = request.name.as_ref().filter(|name| !name.is_empty()) else {
        // Seconds since the epoch, as libvirt; two in one second both succeed.
        let mut second = facts.now;
        while is_taken(&second.to_string(), facts, moments) {
            second = second.saturating_add(1);
        }
        return Ok(second.to_string());
    };
    if options.metadata == Metadata::Keep && moments.get(name).is_some() {
        return Err(Error::new(
            Condition::OperationFailed,
            format!("domain '{}' has a snapshot '{name}' already", facts.name),
        )
        .from_origin(Origin::Domain));
    }
    Ok(name.clone())
}

/// There is a snapshot of that name, with metadata or without.
fn is_taken(name: &str, facts: &DomainFacts, moments: &MomentList) -> bool {
    let has_tag = |image: &ImageFacts| image.snapshots.iter().any(|s| s.tag == name);
    let of_a_disk = |disk: &DiskFacts| {
        disk.image().is_some_and(|image| {
            facts.images.contains_key(&sibling(image, name))
                || facts.images.get(image).is_some_and(has_tag)
        })
    };
    moments.get(name).is_some() || facts.disks.iter().any(of_a_disk)
}

/// State to record, memory, and where a disk goes that nobody said anything about.
fn scope(
    request: &Request,
    options: &New,
    facts: &DomainFacts,
    name: &str,
) -> Result<(Recorded, Memory, Location)> {
    let state = recorded_state(facts.state)?;
    let active = facts.state.is_active();
    let disk_only = matches!(options.scope, Scope::DiskOnly { .. });
    let asks_memory =
        matches!(request.memory, Some(MemoryRequest::Internal | MemoryRequest::External { .. }));
    let external_memory = match &request.memory {
        None => !facts.memory_inside,
        Some(asked) => matches!(asked, MemoryRequest::External { .. }),
    };
    let saved =
        if asks_memory && external_memory && !disk_only { saved::guest(facts)? } else { None };
    if asks_memory && (disk_only || !active) && saved.is_none() {
        return Err(Error::snapshot(
            Condition::XmlError,
            "memory cannot be part of a snapshot of disks only or of a domain that is shut off; \
             leave out <memory>, or say snapshot='no'",
        ));
    }
    if matches!(options.scope, Scope::FullSystem { live: true }) && !(active && external_memory) {
        return Err(Error::new(
            Condition::OperationUnsupported,
            "a live snapshot is one of a running domain with external memory",
        ));
    }
    let memory_file = |file: &Option<String>| match file {
        Some(file) => Ok(file.clone()),
        None => live::default_memory_path(facts, name, "save"),
    };
    if let (Some(guest), Some(MemoryRequest::External { file })) = (saved, &request.memory) {
        let file = memory_file(file)?;
        return Ok((guest.state(), Memory::External { file }, Location::External));
    }
    let says_external = request.disks.iter().any(|disk| disk.snapshot == Some(Location::External));
    match (active, disk_only) {
        (false, true) => Ok((state, Memory::No, Location::External)),
        (false, false) if says_external => {
            let unsaid = request.memory.is_none();
            let memory = if unsaid { Memory::Unsaid } else { Memory::No };
            Ok((state, memory, Location::External))
        }
        (false, false) => Ok((state, Memory::No, Location::Internal)),
        (true, true) => Ok((Recorded::DiskSnapshot, Memory::No, Location::External)),
        (true, false) => Ok(match &request.memory {
            Some(MemoryRequest::Internal) if !facts.memory_inside => return Err(only_outside()),
            // What was not said of the disks is as where the memory is among them.
            None if !facts.memory_inside => {
                (state, Memory::External { file: memory_file(&None)? }, Location::Internal)
            }
            None | Some(MemoryRequest::Internal) => {
                (state, Memory::Internal { image: None }, Location::Internal)
            }
            Some(MemoryRequest::No) => (Recorded::DiskSnapshot, Memory::No, Location::Internal),
            Some(MemoryRequest::External { file }) => {
                (state, Memory::External { file: memory_file(file)? }, Location::External)
            }
        }),
    }
}

fn only_outside() -> Error {
    Error::new(
        Condition::ConfigUnsupported,
        "this hypervisor keeps no memory inside of images: ask for <memory snapshot='external'/>, \
         or leave <memory> out",
    )
}

/// Internal memory stands in the first internal disk; where there is none, in an image of its own.
fn place(memory: Memory, disks: &[Disk], facts: &DomainFacts, name: &str) -> Result<Memory> {
    let on_disk = disks.iter().any(|disk| disk.snapshot == Location::Internal);
    if on_disk || !matches!(memory, Memory::Internal { .. }) {
        return Ok(memory);
    }
    let image = live::default_memory_path(facts, name, "vmstate")?;
    Ok(Memory::Internal { image: Some(image) })
}

fn recorded_state(state: State) -> Result<Recorded> {
    match state {
        State::Running(_) => Ok(Recorded::Running),
        State::Paused(_) => Ok(Recorded::Paused),
        State::ShutOff(_) => Ok(Recorded::ShutOff),
        // Its QEMU ends any moment, with whatever was half taken.
        State::Shutdown => Err(policy::dying()),
        State::Crashed => Ok(Recorded::Crashed),
        State::Unknown => Err(Error::new(
            Condition::OperationFailed,
            "nothing is known of the state that the domain is in; destroy it, or restart the daemon",
        )),
        State::PmSuspended => Err(Error::new(
            Condition::OperationUnsupported,
            "a domain suspended by its guest cannot be snapshot; wake it first",
        )),
    }
}

fn check_selection(
    request: &Request,
    memory: &Memory,
    disks: &[Disk],
    facts: &DomainFacts,
    default: Location,
) -> Result<()> {
    // As libvirt: where all disks must be internal, one that is asked not to be is an error of its
    // snapshot code; what the domain says of its disks is the driver's concern.
    let asked = request.disks.iter().filter_map(|disk| disk.snapshot);
    let another = asked.into_iter().any(|location| location != Location::Internal);
    let speaks = default == Location::Internal && another;
    let origin = if speaks { Origin::Snapshot } else { Origin::Driver };
    let unsupported = |message: String| {
        Err(Error::new(Condition::ConfigUnsupported, message).from_origin(origin))
    };
    let takes_part = |d: &Disk| matches!(d.snapshot, Location::Internal | Location::External);
    // As libvirt, to which memory that goes with the disks alone is nothing that was selected.
    let asks_memory =
        matches!(request.memory, Some(MemoryRequest::Internal | MemoryRequest::External { .. }))
            || (!facts.memory_inside && memory.is_saved());
    if !asks_memory && !disks.iter().any(takes_part) {
        let nothing = "nothing is selected for the snapshot, no disk and no memory";
        // As libvirt, to which it is a snapshot that leaves out what it is about.
        let full = facts.state.is_active() && default == Location::Internal;
        if full && request.memory == Some(MemoryRequest::No) {
            return Err(Error::new(Condition::OperationUnsupported, nothing));
        }
        return unsupported(nothing.into());
    }
    for (disk, facts_of) in disks.iter().zip(&facts.disks) {
        if takes_part(disk) && facts_of.block_job {
            return Err(Error::new(
                Condition::BlockCopyActive,
                format!("disk '{}' is busy with a block job", disk.name),
            ));
        }
    }
    Ok(())
}

fn check_internal(disk: &DiskFacts, facts: &DomainFacts, tag: &str) -> Result<()> {
    let image = image_facts(disk, facts)?;
    if image.format != Format::Qcow2 {
        return Err(Error::new(
            Condition::ConfigUnsupported,
            format!(
                "disk '{}' is of format {}, which has no internal snapshots; take it externally",
                disk.target,
                image.format.as_str()
            ),
        ));
    }
    if image.snapshots.iter().any(|snapshot| snapshot.tag == tag) {
        return Err(Error::new(
            Condition::OperationFailed,
            format!(
                "the image of disk '{}' holds an internal snapshot '{tag}' already",
                disk.target
            ),
        ));
    }
    Ok(())
}

/// The disk's image. A running hypervisor has its chain open, but whoever opens it anew would not
/// get past a layer that is gone; so nothing is laid on one, nor kept in it.
///
/// # Errors
/// `OperationUnsupported` where snapshots cannot reach the disk, `OperationFailed` where an image
/// that it stands on is not there.
pub(super) fn image_facts<'a>(disk: &DiskFacts, facts: &'a DomainFacts) -> Result<&'a ImageFacts> {
    let path = disk.image().ok_or_else(|| {
        Error::new(
            Condition::OperationUnsupported,
            format!("disk '{}' is not on an image that can be looked into", disk.target),
        )
    })?;
    let gone = first_gone(path, facts);
    facts.images.get(path).filter(|_| gone.is_none()).ok_or_else(|| {
        Error::new(
            Condition::OperationFailed,
            format!(
                "disk '{}' stands on '{}', which is gone, or no image any more; put it back first",
                disk.target,
                gone.as_ref().unwrap_or(path).display()
            ),
        )
    })
}

/// The definitions follow the disks. The persistent one only where it used the same image.
fn follow_disks(
    moment: &Definition,
    switched: &[(String, PathBuf)],
    options: &New,
    facts: &DomainFacts,
    plan: &mut Plan,
) {
    if switched.is_empty() {
        return;
    }
    // Of a guest that is halted nothing goes on.
    let live = facts.live.clone().filter(|_| options.afterwards == Afterwards::Continue);
    let (mut live, mut config) = (live, facts.config.clone());
    for (target, overlay) in switched {
        let disk = moment.disks.iter().find(|disk| disk.name == *target);
        let format =
            disk.and_then(|disk| disk.format.as_deref()).map_or(Format::Qcow2, Format::from);
        let kind = disk.and_then(|disk| disk.source_type.as_deref()).unwrap_or("file");
        let source = Source::of_kind(kind, overlay, &format);
        let old = facts.disks.iter().find(|d| d.target == *target).and_then(DiskFacts::image);
        if let Some(live) = &mut live {
            push_overlay(live, target, source);
        }
        if let Some(config) = &mut config
            && definition::image(config, target).as_ref() == old
        {
            redirect(config, target, source);
        }
    }
    plan.finish.extend(live.map(Finish::SetLive));
    plan.finish.extend(config.map(Finish::SetConfig));
}

/// `<domain>` and `<inactiveDomain>` of the moment.
fn definitions(facts: &DomainFacts) -> (Option<Element>, Option<Element>) {
    match &facts.live {
        Some(live) => {
            let mut domain = to_inactive(live.clone());
            for disk in facts.disks.iter().filter(|disk| disk.transient) {
                definition::use_lasting(&mut domain, &disk.target, facts);
            }
            (Some(domain), facts.config.clone())
        }
        None => (facts.config.clone(), None),
    }
}
