//! What stands in our own files, version 1: types of their own, so that the engine's may change.
//!
//! Elements stand as the text that libvirt would print. docs/format.md shows every field;
//! `fixtures/store/v1` is frozen.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use virtsnap_engine::domain::{ShutOffReason, Start, StartFrom, VmStateIn};
use virtsnap_engine::facts::Format;
use virtsnap_engine::plan::{
    Conclude, Finish, MomentChange, Operation, Pivot, Plan, ResumeReason, Step,
};
use virtsnap_engine::ports::Entry;
use virtsnap_xml::element::{Element, XmlError};
use virtsnap_xml::snapshot::{Definition, SnapshotXmlError};

pub(crate) const VERSION: u32 = 1;

/// The text of an element or a snapshot is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error(transparent)]
    Xml(#[from] XmlError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotXmlError),
}

/// A document of ours: `version` stands first in it.
#[derive(Debug, Serialize)]
pub(crate) struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    content: T,
}

impl<T> Versioned<T> {
    pub(crate) fn new(content: T) -> Self {
        Self { version: VERSION, content }
    }
}

/// The version is looked at before the rest is believed.
pub(crate) fn from_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(json).map_err(|err| err.to_string())?;
    if version != VERSION {
        return Err(format!("it is of version {version}, not {VERSION}"));
    }
    serde_json::from_slice(json).map_err(|err| err.to_string())
}

/// `domain.json`: what libvirt's XML has no place for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OwnV1 {
    /// For a domain without a persistent definition.
    pub(crate) name: String,
    pub(crate) autostart: bool,
    /// Files that virtsnap created.
    pub(crate) owned: BTreeSet<PathBuf>,
}

/// What goes with a domain: files and directories outside of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GoneV1 {
    pub(crate) files: BTreeSet<PathBuf>,
}

/// The first line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeadV1 {
    pub(crate) domain: Uuid,
    pub(crate) plan: PlanV1,
}

/// Every further line of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EntryV1 {
    Acting(usize),
    Undone(usize),
    Pivoting,
    Pivoted,
    Finished(usize),
    Up(usize),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlanV1 {
    operation: OperationV1,
    prepare: Vec<StepV1>,
    pivot: PivotV1,
    finish: Vec<FinishV1>,
    conclude: Vec<ConcludeV1>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
enum OperationV1 {
    Create { moment: String },
    Revert { moment: String },
    Delete { moments: Vec<String> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
enum StepV1 {
    Pause,
    FreezeFilesystems,
    CreateOverlay {
        overlay: PathBuf,
        format: String,
        backing: PathBuf,
        backing_format: String,
        virtual_size: u64,
    },
    FillOverlay {
        overlay: PathBuf,
        format: String,
        backing: PathBuf,
        backing_format: String,
        virtual_size: u64,
    },
    CopyImage {
        from: PathBuf,
        to: PathBuf,
    },
    AttachOverlay {
        disk: String,
        overlay: PathBuf,
        format: String,
    },
    SnapshotImage {
        image: PathBuf,
        tag: String,
    },
    SaveMemory {
        file: PathBuf,
        live: bool,
        overwrite: bool,
        xml: String,
    },
    CreateVmStateImage {
        image: PathBuf,
    },
    SaveVmState {
        tag: String,
        vmstate: VmStateInV1,
        disks: Vec<String>,
    },
}

/// A disk's target, or an image of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum VmStateInV1 {
    Disk(String),
    Image { image: PathBuf },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
enum PivotV1 {
    Record,
    SwitchToOverlays { disks: Vec<(String, PathBuf)> },
    SnapshotDisks { overlays: Vec<(String, PathBuf)>, internal: Vec<String>, tag: String },
    SaveVmState { tag: String, vmstate: VmStateInV1, disks: Vec<String> },
    LoadVmState { tag: String, vmstate: VmStateInV1, disks: Vec<String> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
enum FinishV1 {
    ThawFilesystems,
    Resume(ResumeReasonV1),
    Stop(ShutOffReasonV1),
    ApplySnapshot { image: PathBuf, tag: String },
    DeleteSnapshot { image: PathBuf, tag: String },
    Commit { disk: String, top: PathBuf, base: PathBuf },
    Stream { disk: String, top: PathBuf, base: Option<PathBuf> },
    Repoint { image: PathBuf, backing: PathBuf, backing_format: String },
    Overwrite { image: PathBuf, from: PathBuf },
    PutBack { file: PathBuf, to: PathBuf },
    SetLive { xml: String },
    SetConfig { xml: String },
    SetSaved { file: PathBuf, xml: String },
    ForgetSave(PathBuf),
    Record { write: Vec<String>, forget: Vec<String>, current: Option<String> },
    RemoveImage(PathBuf),
    KeepImage(PathBuf),
    HandOver(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
enum ConcludeV1 {
    Start { xml: String, paused: bool, from: StartFromV1 },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
enum StartFromV1 {
    Boot,
    BootSnapshot,
    VmState { tag: String, vmstate: VmStateInV1, disks: Vec<String> },
    Memory { file: PathBuf },
}

/// An enum whose variants are the engine's, by name.
macro_rules! same_words {
    ($ours:ident = $theirs:ident { $($word:ident),+ $(,)? }) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        enum $ours { $($word),+ }

        impl From<$theirs> for $ours {
            fn from(word: $theirs) -> Self {
                match word { $($theirs::$word => $ours::$word),+ }
            }
        }

        impl From<$ours> for $theirs {
            fn from(word: $ours) -> Self {
                match word { $($ours::$word => $theirs::$word),+ }
            }
        }
    };
}

same_words!(ResumeReasonV1 = ResumeReason { Unpaused, FromSnapshot });
same_words!(
    ShutOffReasonV1 = ShutOffReason {
        Unknown,
        Shutdown,
        Destroyed,
        Crashed,
        Migrated,
        Saved,
        Failed,
        FromSnapshot,
        Daemon,
    }
);

impl From<Entry> for EntryV1 {
    fn from(entry: Entry) -> Self {
        match entry {
            Entry::Acting(n) => EntryV1::Acting(n),
            Entry::Undone(n) => EntryV1::Undone(n),
            Entry::Pivoting => EntryV1::Pivoting,
            Entry::Pivoted => EntryV1::Pivoted,
            Entry::Finished(n) => EntryV1::Finished(n),
            Entry::Up(n) => EntryV1::Up(n),
        }
    }
}

impl From<EntryV1> for Entry {
    fn from(entry: EntryV1) -> Self {
        match entry {
            EntryV1::Acting(n) => Entry::Acting(n),
            EntryV1::Undone(n) => Entry::Undone(n),
            EntryV1::Pivoting => Entry::Pivoting,
            EntryV1::Pivoted => Entry::Pivoted,
            EntryV1::Finished(n) => Entry::Finished(n),
            EntryV1::Up(n) => Entry::Up(n),
        }
    }
}

impl From<&Plan> for PlanV1 {
    fn from(plan: &Plan) -> Self {
        Self {
            operation: match plan.operation.clone() {
                Operation::Create { moment } => OperationV1::Create { moment },
                Operation::Revert { moment } => OperationV1::Revert { moment },
                Operation::Delete { moments } => OperationV1::Delete { moments },
            },
            prepare: plan.prepare.iter().cloned().map(StepV1::from).collect(),
            pivot: plan.pivot.clone().into(),
            finish: plan.finish.iter().cloned().map(FinishV1::from).collect(),
            conclude: plan.conclude.iter().cloned().map(ConcludeV1::from).collect(),
        }
    }
}

impl TryFrom<PlanV1> for Plan {
    type Error = Unreadable;

    fn try_from(plan: PlanV1) -> Result<Self, Unreadable> {
        Ok(Self {
            operation: match plan.operation {
                OperationV1::Create { moment } => Operation::Create { moment },
                OperationV1::Revert { moment } => Operation::Revert { moment },
                OperationV1::Delete { moments } => Operation::Delete { moments },
            },
            prepare: plan.prepare.into_iter().map(Step::try_from).collect::<Result<_, _>>()?,
            pivot: plan.pivot.into(),
            finish: plan.finish.into_iter().map(Finish::try_from).collect::<Result<_, _>>()?,
            conclude: plan
                .conclude
                .into_iter()
                .map(Conclude::try_from)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<Step> for StepV1 {
    fn from(step: Step) -> Self {
        match step {
            Step::Pause => StepV1::Pause,
            Step::FreezeFilesystems => StepV1::FreezeFilesystems,
            Step::CreateOverlay { overlay, format, backing, backing_format, virtual_size } => {
                StepV1::CreateOverlay {
                    overlay,
                    format: format.as_str().to_owned(),
                    backing,
                    backing_format: backing_format.as_str().to_owned(),
                    virtual_size,
                }
            }
            Step::FillOverlay { overlay, format, backing, backing_format, virtual_size } => {
                StepV1::FillOverlay {
                    overlay,
                    format: format.as_str().to_owned(),
                    backing,
                    backing_format: backing_format.as_str().to_owned(),
                    virtual_size,
                }
            }
            Step::CopyImage { from, to } => StepV1::CopyImage { from, to },
            Step::AttachOverlay { disk, overlay, format } => {
                StepV1::AttachOverlay { disk, overlay, format: format.as_str().to_owned() }
            }
            Step::SnapshotImage { image, tag } => StepV1::SnapshotImage { image, tag },
            Step::SaveMemory { file, live, overwrite, definition } => {
                StepV1::SaveMemory { file, live, overwrite, xml: definition.to_string() }
            }
            Step::CreateVmStateImage { image } => StepV1::CreateVmStateImage { image },
            Step::SaveVmState { tag, vmstate, disks } => {
                StepV1::SaveVmState { tag, vmstate: vmstate.into(), disks }
            }
        }
    }
}

impl From<VmStateIn> for VmStateInV1 {
    fn from(vmstate: VmStateIn) -> Self {
        match vmstate {
            VmStateIn::Disk(target) => VmStateInV1::Disk(target),
            VmStateIn::Image(image) => VmStateInV1::Image { image },
        }
    }
}

impl From<VmStateInV1> for VmStateIn {
    fn from(vmstate: VmStateInV1) -> Self {
        match vmstate {
            VmStateInV1::Disk(target) => VmStateIn::Disk(target),
            VmStateInV1::Image { image } => VmStateIn::Image(image),
        }
    }
}

impl TryFrom<StepV1> for Step {
    type Error = Unreadable;

    fn try_from(step: StepV1) -> Result<Self, Unreadable> {
        Ok(match step {
            StepV1::Pause => Step::Pause,
            StepV1::FreezeFilesystems => Step::FreezeFilesystems,
            StepV1::CreateOverlay { overlay, format, backing, backing_format, virtual_size } => {
                Step::CreateOverlay {
                    overlay,
                    format: Format::from(format.as_str()),
                    backing,
                    backing_format: Format::from(backing_format.as_str()),
                    virtual_size,
                }
            }
            StepV1::FillOverlay { overlay, format, backing, backing_format, virtual_size } => {
                Step::FillOverlay {
                    overlay,
                    format: Format::from(format.as_str()),
                    backing,
                    backing_format: Format::from(backing_format.as_str()),
                    virtual_size,
                }
            }
            StepV1::CopyImage { from, to } => Step::CopyImage { from, to },
            StepV1::AttachOverlay { disk, overlay, format } => {
                Step::AttachOverlay { disk, overlay, format: Format::from(format.as_str()) }
            }
            StepV1::SnapshotImage { image, tag } => Step::SnapshotImage { image, tag },
            StepV1::SaveMemory { file, live, overwrite, xml } => {
                Step::SaveMemory { file, live, overwrite, definition: Element::parse(&xml)? }
            }
            StepV1::CreateVmStateImage { image } => Step::CreateVmStateImage { image },
            StepV1::SaveVmState { tag, vmstate, disks } => {
                Step::SaveVmState { tag, vmstate: vmstate.into(), disks }
            }
        })
    }
}

impl From<Pivot> for PivotV1 {
    fn from(pivot: Pivot) -> Self {
        match pivot {
            Pivot::Record => PivotV1::Record,
            Pivot::SwitchToOverlays { disks } => PivotV1::SwitchToOverlays { disks },
            Pivot::SnapshotDisks { overlays, internal, tag } => {
                PivotV1::SnapshotDisks { overlays, internal, tag }
            }
            Pivot::SaveVmState { tag, vmstate, disks } => {
                PivotV1::SaveVmState { tag, vmstate: vmstate.into(), disks }
            }
            Pivot::LoadVmState { tag, vmstate, disks } => {
                PivotV1::LoadVmState { tag, vmstate: vmstate.into(), disks }
            }
        }
    }
}

impl From<PivotV1> for Pivot {
    fn from(pivot: PivotV1) -> Self {
        match pivot {
            PivotV1::Record => Pivot::Record,
            PivotV1::SwitchToOverlays { disks } => Pivot::SwitchToOverlays { disks },
            PivotV1::SnapshotDisks { overlays, internal, tag } => {
                Pivot::SnapshotDisks { overlays, internal, tag }
            }
            PivotV1::SaveVmState { tag, vmstate, disks } => {
                Pivot::SaveVmState { tag, vmstate: vmstate.into(), disks }
            }
            PivotV1::LoadVmState { tag, vmstate, disks } => {
                Pivot::LoadVmState { tag, vmstate: vmstate.into(), disks }
            }
        }
    }
}

impl From<Finish> for FinishV1 {
    fn from(finish: Finish) -> Self {
        match finish {
            Finish::ThawFilesystems => FinishV1::ThawFilesystems,
            Finish::Resume(reason) => FinishV1::Resume(reason.into()),
            Finish::Stop(reason) => FinishV1::Stop(reason.into()),
            Finish::ApplySnapshot { image, tag } => FinishV1::ApplySnapshot { image, tag },
            Finish::DeleteSnapshot { image, tag } => FinishV1::DeleteSnapshot { image, tag },
            Finish::Commit { disk, top, base } => FinishV1::Commit { disk, top, base },
            Finish::Stream { disk, top, base } => FinishV1::Stream { disk, top, base },
            Finish::Repoint { image, backing, backing_format } => FinishV1::Repoint {
                image,
                backing,
                backing_format: backing_format.as_str().to_owned(),
            },
            Finish::Overwrite { image, from } => FinishV1::Overwrite { image, from },
            Finish::PutBack { file, to } => FinishV1::PutBack { file, to },
            Finish::SetLive(xml) => FinishV1::SetLive { xml: xml.to_string() },
            Finish::SetConfig(xml) => FinishV1::SetConfig { xml: xml.to_string() },
            Finish::Record(MomentChange { write, forget, current }) => {
                let write = write.iter().map(|def| def.to_element().to_string()).collect();
                FinishV1::Record { write, forget, current }
            }
            Finish::RemoveImage(path) => FinishV1::RemoveImage(path),
            Finish::KeepImage(path) => FinishV1::KeepImage(path),
            Finish::SetSaved { file, definition } => {
                FinishV1::SetSaved { file, xml: definition.to_string() }
            }
            Finish::ForgetSave(path) => FinishV1::ForgetSave(path),
            Finish::HandOver(path) => FinishV1::HandOver(path),
        }
    }
}

impl TryFrom<FinishV1> for Finish {
    type Error = Unreadable;

    fn try_from(finish: FinishV1) -> Result<Self, Unreadable> {
        Ok(match finish {
            FinishV1::ThawFilesystems => Finish::ThawFilesystems,
            FinishV1::Resume(reason) => Finish::Resume(reason.into()),
            FinishV1::Stop(reason) => Finish::Stop(reason.into()),
            FinishV1::ApplySnapshot { image, tag } => Finish::ApplySnapshot { image, tag },
            FinishV1::DeleteSnapshot { image, tag } => Finish::DeleteSnapshot { image, tag },
            FinishV1::Commit { disk, top, base } => Finish::Commit { disk, top, base },
            FinishV1::Stream { disk, top, base } => Finish::Stream { disk, top, base },
            FinishV1::Repoint { image, backing, backing_format } => Finish::Repoint {
                image,
                backing,
                backing_format: Format::from(backing_format.as_str()),
            },
            FinishV1::Overwrite { image, from } => Finish::Overwrite { image, from },
            FinishV1::PutBack { file, to } => Finish::PutBack { file, to },
            FinishV1::SetLive { xml } => Finish::SetLive(Element::parse(&xml)?),
            FinishV1::SetConfig { xml } => Finish::SetConfig(Element::parse(&xml)?),
            FinishV1::Record { write, forget, current } => {
                let write = write.iter().map(|text| definition(text)).collect::<Result<_, _>>()?;
                Finish::Record(MomentChange { write, forget, current })
            }
            FinishV1::RemoveImage(path) => Finish::RemoveImage(path),
            FinishV1::KeepImage(path) => Finish::KeepImage(path),
            FinishV1::SetSaved { file, xml } => {
                Finish::SetSaved { file, definition: Element::parse(&xml)? }
            }
            FinishV1::ForgetSave(path) => Finish::ForgetSave(path),
            FinishV1::HandOver(path) => Finish::HandOver(path),
        })
    }
}

impl From<Conclude> for ConcludeV1 {
    fn from(conclude: Conclude) -> Self {
        match conclude {
            Conclude::Start { definition, start: Start { paused, from } } => ConcludeV1::Start {
                xml: definition.to_string(),
                paused,
                from: match from {
                    StartFrom::Boot => StartFromV1::Boot,
                    StartFrom::BootSnapshot => StartFromV1::BootSnapshot,
                    StartFrom::VmState { tag, vmstate, disks } => {
                        StartFromV1::VmState { tag, vmstate: vmstate.into(), disks }
                    }
                    StartFrom::Memory { file } => StartFromV1::Memory { file },
                },
            },
        }
    }
}

impl TryFrom<ConcludeV1> for Conclude {
    type Error = Unreadable;

    fn try_from(conclude: ConcludeV1) -> Result<Self, Unreadable> {
        let ConcludeV1::Start { xml, paused, from } = conclude;
        let from = match from {
            StartFromV1::Boot => StartFrom::Boot,
            StartFromV1::BootSnapshot => StartFrom::BootSnapshot,
            StartFromV1::VmState { tag, vmstate, disks } => {
                StartFrom::VmState { tag, vmstate: vmstate.into(), disks }
            }
            StartFromV1::Memory { file } => StartFrom::Memory { file },
        };
        Ok(Conclude::Start { definition: Element::parse(&xml)?, start: Start { paused, from } })
    }
}

fn definition(text: &str) -> Result<Definition, Unreadable> {
    Ok(Definition::parse(&Element::parse(text)?)?)
}
