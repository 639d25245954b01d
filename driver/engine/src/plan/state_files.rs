//! What a machine keeps outside of its disks belongs to every moment: the variables of UEFI
//! firmware, the state of an emulated TPM.
//!
//! Taken: as a copy beside the file, a file of ours that goes with the moment. Without memory the
//! guest is not stopped for it, as the copy is of one instant and the last thing before the disks
//! are switched; with memory it is made while the guest stands still.
//!
//! Gone back to: a second copy takes the place of the file in one act. Memory has both states in
//! it, and the hypervisor writes them out when the guest goes on; so only a moment without memory
//! needs its copies. Where one is missing, the disks would meet variables that are not theirs:
//! that is a risk, which FORCE accepts.
//!
//! A snapshot without metadata keeps none: nobody would know of them.
//!
//! A variable store that is qcow2 takes part like a disk, by an internal snapshot in the same act,
//! as libvirt does it; so one that libvirt took needs no record of ours.

use std::path::{Path, PathBuf};

use virtsnap_xml::domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Definition, KeptState};

use super::{Finish, Plan, Step};
use crate::domain::StartFrom;
use crate::error::{Condition, Error, Result};
use crate::facts::{DomainFacts, Format, StateFacts, StateFile, StateKind, Target};
use crate::options::RevertOptions;

/// How plans call a variable store that takes part like a disk. No disk has such a target.
pub const NVRAM: &str = "nvram";

/// The variable store of a definition, if internal snapshots can be in it.
pub fn qcow2_store(definition: &Element) -> Option<PathBuf> {
    let (path, format) = domain::nvram(definition)?;
    (format == Format::Qcow2.as_str()).then(|| path.into())
}

/// The moment's internal snapshot in its variable store, if it has one: the image and the tag.
pub(super) fn inside(moment: &Definition, facts: &DomainFacts) -> Option<(PathBuf, String)> {
    let store = moment.domain.as_ref().and_then(qcow2_store)?;
    let snapshots = &facts.images.get(&store)?.snapshots;
    let has_tag = snapshots.iter().any(|snapshot| snapshot.tag == moment.name);
    has_tag.then(|| (store, moment.name.clone()))
}

/// Names for a moment's copy, best first: `VARS.fd.<moment>`, and with a number where that is
/// taken.
pub fn names(file: &StateFile, moment: &str) -> Vec<PathBuf> {
    candidates(&file.copies, &short(moment))
}

/// Names for the copy that takes the place of the file.
pub fn names_beside(file: &StateFile) -> Vec<PathBuf> {
    candidates(&file.path, "reverted")
}

/// The moment's own copy of a state file.
pub fn copy_of(moment: &Definition, kind: StateKind) -> Option<PathBuf> {
    match recorded(moment, kind) {
        Some(KeptState::External { file }) => Some(PathBuf::from(file)),
        Some(KeptState::No | KeptState::Internal) | None => None,
    }
}

/// All of the moment's copies.
pub fn copies(moment: &Definition) -> impl Iterator<Item = PathBuf> {
    [StateKind::Nvram, StateKind::Tpm].into_iter().filter_map(|kind| copy_of(moment, kind))
}

fn recorded(moment: &Definition, kind: StateKind) -> Option<&KeptState> {
    match kind {
        StateKind::Nvram => moment.nvram.as_ref(),
        StateKind::Tpm => moment.tpm.as_ref(),
    }
}

fn candidates(beside: &Path, suffix: &str) -> Vec<PathBuf> {
    let named = |end: String| {
        let mut name = beside.file_name().unwrap_or_default().to_os_string();
        name.push(".");
        name.push(end);
        beside.with_file_name(name)
    };
    let numbered = (1..64).map(|n| format!("{suffix}.{n}"));
    std::iter::once(suffix.to_owned()).chain(numbered).map(named).collect()
}

/// A file name has 255 bytes, of which the file's own name needs some.
fn short(moment: &str) -> String {
    let mut end = moment.len().min(120);
    while !moment.is_char_boundary(end) {
        end -= 1;
    }
    moment.get(..end).unwrap_or_default().to_owned()
}

/// Copies of all state files, as the last things before the pivot; the moment says where they are.
///
/// # Errors
/// `OperationFailed` where there is no name for a copy.
pub(super) fn keep(moment: &mut Definition, facts: &DomainFacts, plan: &mut Plan) -> Result<()> {
    for StateFacts { file, free, .. } in &facts.state_files {
        let kept = if !file.exists {
            KeptState::No
        } else if file.format == Format::Qcow2 {
            if !facts.state.is_active() {
                let (image, tag) = (file.path.clone(), moment.name.clone());
                plan.prepare.push(Step::SnapshotImage { image, tag });
            }
            KeptState::Internal
        } else {
            let copy = free.clone().ok_or_else(|| no_name(file))?;
            let text = copy.to_string_lossy().into_owned();
            plan.prepare.push(Step::CopyImage { from: file.path.clone(), to: copy.clone() });
            plan.finish.push(Finish::KeepImage(copy));
            KeptState::External { file: text }
        };
        match file.kind {
            StateKind::Nvram => moment.nvram = Some(kept),
            StateKind::Tpm => moment.tpm = Some(kept),
        }
    }
    Ok(())
}

/// Something has to be copied.
pub(super) fn any(facts: &DomainFacts) -> bool {
    let mut files = facts.state_files.iter().map(|state| &state.file);
    files.any(|file| file.exists && file.format != Format::Qcow2)
}

/// The variable store as one more disk of an internal snapshot.
///
/// # Errors
/// `OperationFailed` where it has one of that name.
pub(super) fn as_disk(moment: &str, facts: &DomainFacts) -> Result<Option<Target>> {
    let mut files = facts.state_files.iter().map(|state| &state.file);
    let Some(file) = files.find(|file| file.exists && file.format == Format::Qcow2) else {
        return Ok(None);
    };
    let image = facts.images.get(&file.path);
    if image.is_some_and(|image| image.snapshots.iter().any(|saved| saved.tag == moment)) {
        return Err(Error::new(
            Condition::OperationFailed,
            format!("'{}' holds an internal snapshot '{moment}' already", file.path.display()),
        ));
    }
    Ok(Some(NVRAM.to_owned()))
}

/// What a revert does with the state files.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Return {
    pub(super) prepare: Vec<Step>,
    /// While the guest is down, or stopped.
    pub(super) finish: Vec<Finish>,
    /// While the guest is down; in its own process, loading memory does it.
    pub(super) apply: Vec<Finish>,
    /// After the record.
    pub(super) given_up: Vec<Finish>,
}

/// # Errors
/// `RevertRisky` where the moment's state is not there, unless forced; `ArgumentUnsupported` where
/// variables are to be reset and have no template.
pub(super) fn put_back(
    moment: &Definition,
    options: &RevertOptions,
    with_memory: bool,
    facts: &DomainFacts,
) -> Result<Return> {
    let mut plan = Return::default();
    for state in &facts.state_files {
        let path = state.file.path.clone();
        match source(moment, state, options, with_memory, facts)? {
            Source::Present => {}
            Source::Inside { image, tag } => {
                plan.apply.push(Finish::ApplySnapshot { image, tag });
            }
            Source::File(from) => {
                let copy = state.free.clone().ok_or_else(|| no_name(&state.file))?;
                plan.prepare.push(Step::CopyImage { from, to: copy.clone() });
                plan.finish.push(Finish::PutBack { file: copy, to: path });
            }
            Source::Template(from) => plan.apply.push(Finish::Overwrite { image: path, from }),
            Source::Nothing if state.file.exists => plan.given_up.push(Finish::RemoveImage(path)),
            Source::Nothing => {}
        }
    }
    Ok(plan)
}

/// Memory of an internal snapshot is loaded with the variable store that belongs to it.
pub(super) fn load_with(from: &mut StartFrom, moment: &Definition, facts: &DomainFacts) {
    if let StartFrom::VmState { tag, disks, .. } = from
        && inside(moment, facts).is_some_and(|(_, inside)| inside == *tag)
    {
        disks.push(NVRAM.to_owned());
    }
}

/// What takes the place of a state file.
enum Source {
    /// It stays as it is.
    Present,
    File(PathBuf),
    /// The content of that, around the internal snapshots in it.
    Template(PathBuf),
    /// An internal snapshot in it.
    Inside {
        image: PathBuf,
        tag: String,
    },
    Nothing,
}

fn source(
    moment: &Definition,
    state: &StateFacts,
    options: &RevertOptions,
    with_memory: bool,
    facts: &DomainFacts,
) -> Result<Source> {
    let file = &state.file;
    // With memory the firmware's variables come from there, whatever is in the file.
    if options.reset_nvram && file.kind == StateKind::Nvram && !with_memory {
        return match &file.template {
            Some(template) if file.format == Format::Raw => Ok(Source::File(template.clone())),
            Some(_) => Ok(anew(file, facts)),
            None => Err(Error::new(
                Condition::ArgumentUnsupported,
                format!("'{}' has no template from which it could be reset", file.path.display()),
            )),
        };
    }
    if file.kind == StateKind::Nvram
        && let Some((image, tag)) = inside(moment, facts)
    {
        return Ok(Source::Inside { image, tag });
    }
    match recorded(moment, file.kind) {
        Some(KeptState::External { file }) if state.has_copy => Ok(Source::File(file.into())),
        Some(KeptState::No) if !with_memory => Ok(anew(file, facts)),
        Some(_) | None => {
            if with_memory || options.force {
                return Ok(Source::Present);
            }
            Err(missing(moment, file))
        }
    }
}

/// The next start makes a new one, of whatever format the template is; but what holds internal
/// snapshots stays, and only its content goes.
fn anew(file: &StateFile, facts: &DomainFacts) -> Source {
    let image = facts.images.get(&file.path);
    let holds = image.is_some_and(|image| !image.snapshots.is_empty());
    match &file.template {
        Some(template) if holds => Source::Template(template.clone()),
        None if holds => Source::Present,
        _ => Source::Nothing,
    }
}

fn missing(moment: &Definition, file: &StateFile) -> Error {
    let what = match file.kind {
        StateKind::Nvram => "firmware variables (NVRAM)",
        StateKind::Tpm => "TPM state",
    };
    let why = match copy_of(moment, file.kind) {
        Some(copy) => format!("'{}' is gone, or not whole", copy.display()),
        None => "it was not kept when the snapshot was taken".to_owned(),
    };
    Error::new(
        Condition::RevertRisky,
        format!(
            "snapshot '{}' comes without its {what}: {why}; force the revert to leave '{}' as it \
             is",
            moment.name,
            file.path.display()
        ),
    )
}

fn no_name(file: &StateFile) -> Error {
    Error::new(
        Condition::OperationFailed,
        format!("no free file name for a copy of '{}'", file.path.display()),
    )
}
