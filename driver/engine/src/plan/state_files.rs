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

use std::path::{Path, PathBuf};

use virtsnap_xml::snapshot::{Definition, KeptState};

use super::{Finish, Plan, Step};
use crate::error::{Condition, Error, Result};
use crate::facts::{DomainFacts, StateFacts, StateFile, StateKind};
use crate::options::RevertOptions;

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
    facts.state_files.iter().any(|state| state.file.exists)
}

/// What a revert does with the state files.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Return {
    pub(super) prepare: Vec<Step>,
    /// While the guest is down, or stopped.
    pub(super) finish: Vec<Finish>,
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
        match source(moment, state, options, with_memory)? {
            Source::Present => {}
            Source::File(from) => {
                let copy = state.free.clone().ok_or_else(|| no_name(&state.file))?;
                plan.prepare.push(Step::CopyImage { from, to: copy.clone() });
                plan.finish.push(Finish::PutBack { file: copy, to: path });
            }
            // The next start makes a new one.
            Source::Nothing if state.file.exists => plan.given_up.push(Finish::RemoveImage(path)),
            Source::Nothing => {}
        }
    }
    Ok(plan)
}

/// What takes the place of a state file.
enum Source {
    /// It stays as it is.
    Present,
    File(PathBuf),
    Nothing,
}

fn source(
    moment: &Definition,
    state: &StateFacts,
    options: &RevertOptions,
    with_memory: bool,
) -> Result<Source> {
    let file = &state.file;
    // With memory the firmware's variables come from there, whatever is in the file.
    if options.reset_nvram && file.kind == StateKind::Nvram && !with_memory {
        return match &file.template {
            Some(template) => Ok(Source::File(template.clone())),
            None => Err(Error::new(
                Condition::ArgumentUnsupported,
                format!("'{}' has no template from which it could be reset", file.path.display()),
            )),
        };
    }
    match recorded(moment, file.kind) {
        Some(KeptState::External { file }) if state.has_copy => Ok(Source::File(file.into())),
        Some(KeptState::No) if !with_memory => Ok(Source::Nothing),
        Some(_) | None => {
            if with_memory || options.force {
                return Ok(Source::Present);
            }
            Err(missing(moment, file))
        }
    }
}

fn missing(moment: &Definition, file: &StateFile) -> Error {
    let what = match file.kind {
        StateKind::Nvram => "firmware variables (NVRAM)",
        StateKind::Tpm => "TPM state",
    };
    let why = match copy_of(moment, file.kind) {
        Some(copy) => format!("'{}' is gone", copy.display()),
        None => "they were not kept when it was taken".to_owned(),
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
