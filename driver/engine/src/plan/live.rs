//! How the parts of one moment of a running guest are made to belong together: what stops it, where
//! its memory goes, and which act is the pivot.
//!
//! | memory | disks | before the pivot | pivot |
//! |---|---|---|---|
//! | none | external | freeze | switch to the overlays |
//! | none | internal, mixed | freeze | one transaction |
//! | internal | internal | – | the save job, which takes memory and disks |
//! | internal | mixed | pause, the save job | switch to the overlays |
//! | internal | external, none | pause, memory into an image of its own | switch, or the record |
//! | external | any, none | memory into a save image | as without memory |
//!
//! External memory of a running guest is saved live: it stands still for the last pages only. It is
//! paused before where the administrator wants it as libvirt has it, and where it is to be halted,
//! unless the caller asked for `live`: what is to end soon has nothing to go on for, and memory that
//! nobody writes to is saved soonest, in the smallest file. The save itself stops a guest that writes
//! faster than the file takes it. Internal memory is always that of a guest that stands still.
//!
//! A guest that takes part in its save (`saved_by_guest`) could not do so if it was paused: then the
//! save itself stops it, at its beginning or, live, at its end. One that stands still already is
//! refused.
//!
//! Where images hold no memory (`memory_inside`), that of which nothing is said is external, beside
//! disks that are as they would be with it inside: internal, where they can be.
//!
//! Every new file is made before the guest stops. A disk that the user takes care of (`manual`)
//! leaves the guest stopped: it is for the user to let it go on.

use std::path::{Path, PathBuf};

use virtsnap_xml::snapshot::{Definition, Location, Memory};

use super::align::files_directory;
use super::{Finish, Pivot, Plan, ResumeReason, Step, state_files};
use crate::domain::{ShutOffReason, State, VmStateIn};
use crate::error::{Condition, Error, Result};
use crate::facts::{AgentState, DomainFacts, PathKind, Target};
use crate::options::{Afterwards, Meanwhile, New, Overlays, Scope};

/// The disks that take part, by where their snapshot goes.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) overlays: Vec<(Target, PathBuf)>,
    pub(super) internal: Vec<Target>,
}

impl Parts {
    fn pivot(self, tag: &str) -> Pivot {
        let Self { overlays, internal } = self;
        match (overlays.is_empty(), internal.is_empty()) {
            (_, false) => Pivot::SnapshotDisks { overlays, internal, tag: tag.to_owned() },
            (false, true) => Pivot::SwitchToOverlays { disks: overlays },
            (true, true) => Pivot::Record,
        }
    }
}

/// Completes a plan that makes the disks' new files.
///
/// # Errors
/// When the guest cannot be quiesced.
pub(super) fn arrange(
    moment: &Definition,
    parts: Parts,
    options: &New,
    facts: &DomainFacts,
    plan: &mut Plan,
) -> Result<()> {
    let runs = matches!(facts.state, State::Running(_));
    let manual = moment.disks.iter().any(|disk| disk.snapshot == Location::Manual);
    if options.scope == (Scope::DiskOnly { quiesce: true }) {
        check_quiesce(facts, manual)?;
        plan.prepare.push(Step::FreezeFilesystems);
        plan.finish.push(Finish::ThawFilesystems);
    }
    let tag = moment.name.clone();
    let memory_on_disk = moment.memory == Memory::Internal { image: None };
    let one_job = memory_on_disk && parts.overlays.is_empty();
    // The job stops the guest and lets it go on itself; but what the state files hold is to be of
    // the moment that the memory is of, and a guest that is to be halted is not to go on.
    let goes_on = options.afterwards == Afterwards::Continue;
    let stops_itself = one_job && goes_on && !state_files::any(facts);
    let live = runs && saved_live(moment, options);
    let stops = runs && (manual || (moment.memory.is_saved() && !stops_itself));
    if let Memory::Internal { image: Some(image) } = &moment.memory {
        plan.prepare.push(Step::CreateVmStateImage { image: image.into() });
    }
    let save_stops = facts.saved_by_guest && matches!(moment.memory, Memory::External { .. });
    if stops && !live && !save_stops {
        plan.prepare.push(Step::Pause);
    }
    plan.pivot = match &moment.memory {
        Memory::No | Memory::Unsaid => parts.pivot(&tag),
        Memory::Internal { image } => {
            let Parts { overlays, internal: disks } = parts;
            let vmstate = match image {
                Some(image) => VmStateIn::Image(image.into()),
                None => VmStateIn::Disk(disks.first().cloned().unwrap_or_default()),
            };
            if one_job {
                Pivot::SaveVmState { tag, vmstate, disks }
            } else {
                plan.prepare.push(Step::SaveVmState { tag: tag.clone(), vmstate, disks });
                Parts { overlays, internal: Vec::new() }.pivot(&tag)
            }
        }
        Memory::External { file } => {
            check_internal_after(&parts, facts)?;
            plan.prepare.push(Step::SaveMemory {
                file: file.into(),
                live,
                overwrite: options.overlays == Overlays::Reuse,
                definition: moment.domain.clone().unwrap_or_default(),
            });
            parts.pivot(&tag)
        }
    };
    if stops && !manual && goes_on {
        plan.finish.push(Finish::Resume(ResumeReason::Unpaused));
    }
    if !goes_on {
        // Before the bookkeeping, like a resume: whatever becomes of that, none stays paused.
        plan.finish.push(Finish::Stop(ShutOffReason::FromSnapshot));
    }
    Ok(())
}

fn saved_live(moment: &Definition, options: &New) -> bool {
    let asked = options.scope == Scope::FullSystem { live: true };
    let by_itself =
        options.meanwhile == Meanwhile::GoesOn && options.afterwards == Afterwards::Continue;
    matches!(moment.memory, Memory::External { .. }) && (asked || by_itself)
}

/// Seen before the memory is written, which may take long.
fn check_internal_after(parts: &Parts, facts: &DomainFacts) -> Result<()> {
    let Some(first) = parts.internal.first().filter(|_| !facts.internal_after_memory) else {
        return Ok(());
    };
    Err(Error::new(
        Condition::ConfigUnsupported,
        format!(
            "this version of the hypervisor cannot take an internal snapshot of disk '{first}' once \
             the memory was saved to a file: take the disk externally, or the memory internally"
        ),
    ))
}

fn check_quiesce(facts: &DomainFacts, manual: bool) -> Result<()> {
    if !matches!(facts.state, State::Running(_)) {
        return Err(Error::new(
            Condition::OperationInvalid,
            "a guest that is not running cannot quiesce its file systems",
        ));
    }
    if manual {
        return Err(Error::new(
            Condition::OperationUnsupported,
            "a disk that is left to you (snapshot='manual') keeps the guest stopped, and a guest \
             that is stopped cannot thaw its file systems; freeze and thaw them yourself",
        ));
    }
    match facts.agent {
        AgentState::Connected => Ok(()),
        AgentState::NotConfigured => Err(Error::new(
            Condition::ArgumentUnsupported,
            "the domain has no channel for a guest agent, which quiescing needs",
        )),
        AgentState::NotConnected => Err(Error::new(
            Condition::AgentUnresponsive,
            "the guest agent, which quiescing needs, is not connected",
        )),
    }
}

/// `<domain>.<snapshot>.<suffix>` beside the first disk's image: where memory goes that was given
/// no file. The images' directory is the one place where the host surely has room for guests.
pub(super) fn default_memory_path(
    facts: &DomainFacts,
    moment: &str,
    suffix: &str,
) -> Result<String> {
    let Some(directory) = files_directory(facts) else {
        return Err(Error::snapshot(
            Condition::XmlError,
            "no name can be made up for the file of the memory, since no disk of the domain is in \
             a file; say <memory snapshot='external' file='…'/>",
        ));
    };
    let name = format!("{}.{moment}.{suffix}", facts.name).replace('/', "_");
    Ok(directory.join(name).to_string_lossy().into_owned())
}

/// The file that the memory is to be written to.
pub fn memory_path(moment: &Definition) -> Option<&Path> {
    match &moment.memory {
        Memory::No | Memory::Unsaid | Memory::Internal { image: None } => None,
        Memory::Internal { image: Some(file) } | Memory::External { file } => Some(Path::new(file)),
    }
}

/// Memory is written to a file that is missing or empty, or that the caller gave up.
pub(super) fn check_memory_path(
    moment: &Definition,
    options: &New,
    facts: &DomainFacts,
    there: PathKind,
) -> Result<()> {
    let Some(path) = memory_path(moment) else { return Ok(()) };
    let refused = |what: String| Err(Error::new(Condition::ConfigUnsupported, what));
    let file = path.display();
    // Of a saved guest the memory is copied, which makes a new file.
    let is_save_image = matches!(moment.memory, Memory::External { .. }) && facts.state.is_active();
    if facts.images.contains_key(path) || facts.memory_files.contains_key(path) {
        return refused(format!(
            "memory cannot go to '{file}', which an image or a snapshot of the domain is in; name \
             another file"
        ));
    }
    let overlays = moment.disks.iter().filter_map(super::align::overlay_path);
    if overlays.into_iter().any(|overlay| overlay == path) {
        return refused(format!("memory and a disk cannot both go to '{file}'; name another file"));
    }
    match there {
        PathKind::Missing => Ok(()),
        PathKind::Regular(0) if is_save_image => Ok(()),
        PathKind::Regular(_) | PathKind::BlockDevice
            if is_save_image && options.overlays == Overlays::Reuse =>
        {
            Ok(())
        }
        PathKind::Regular(_) | PathKind::BlockDevice | PathKind::Other => refused(format!(
            "memory cannot go to '{file}', which is there already; remove it, name another file, or \
             say that it may be used (REUSE_EXT)"
        )),
    }
}
