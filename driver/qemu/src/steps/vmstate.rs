//! Memory and disks into internal snapshots and back, as QEMU's jobs.
//!
//! QEMU's monitor is silent while such a job works; it cannot be cancelled.
//!
//! Before either job starts, a note of the images it works on is made in the state directory. It
//! is for the case that QEMU dies with the job: then the files are all that can be asked. The note
//! stays until facts are asked again, when the operation is over.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;
use virtsnap_engine::domain::{
    Event, PausedReason, RunningReason, ShutOffReason, State, Suspended,
};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::Format::Qcow2;
use virtsnap_engine::facts::Target;
use virtsnap_engine::ports::PivotError;

use super::inside::{active, tagged};
use crate::blocks::{Layer, job};
use crate::hypervisor::Qemu;
use crate::image::{failure, system};
use crate::instance::Instance;

const SAVE: &str = "virtsnap-save";
const LOAD: &str = "virtsnap-load";

impl Qemu {
    pub(super) async fn save_vm_state(
        &self,
        domain: Uuid,
        tag: &str,
        vmstate: &str,
        disks: &[Target],
    ) -> Result<(), PivotError> {
        let refused = PivotError::Refused;
        super::check_tag(tag).map_err(refused)?;
        let instance = self.running(domain).map_err(refused)?;
        let layers = active(&instance, disks).map_err(refused)?;
        let taken = tagged(&instance, tag).await.map_err(refused)?;
        if let Some((layer, _)) = layers.iter().find(|(l, _)| taken.contains(&l.format_node())) {
            let image = layer.image.display();
            let what = format!("image '{image}' already has an internal snapshot '{tag}'");
            return Err(refused(failure(Condition::OperationInvalid, what)));
        }
        self.note(domain).write(&Note::new(tag, &layers)).map_err(refused)?;
        {
            let mut inner = instance.lock();
            inner.pausing = Some(PausedReason::Snapshot);
            inner.resuming = Some(RunningReason::Unpaused);
        }
        let done = run(&instance, ("snapshot-save", SAVE), tag, vmstate, &layers).await;
        {
            let mut inner = instance.lock();
            (inner.pausing, inner.resuming) = (None, None);
        }
        job::outcome(&done?, "saving the snapshot").map_err(refused)?;
        if let Err(err) = job::dismiss(&instance.qmp, SAVE).await {
            tracing::warn!(domain = instance.name, %err, "a job stays on QEMU's list");
        }
        Ok(())
    }

    /// All of the images have the tag, or none keeps it.
    pub(super) async fn has_saved(
        &self,
        domain: Uuid,
        tag: &str,
        disks: &[Target],
    ) -> Result<bool> {
        if let Some(instance) = self.instance(domain) {
            let qmp = &instance.qmp;
            if job::wait(qmp, SAVE, job::Job::is_concluded).await?.is_some() {
                job::dismiss(qmp, SAVE).await?;
            }
            let tagged = tagged(&instance, tag).await?;
            let layers = active(&instance, disks)?;
            // QEMU itself takes back what a failed job did.
            return Ok(layers.iter().all(|(layer, _)| tagged.contains(&layer.format_node())));
        }
        let Some(note) = self.note(domain).read(tag)? else { return Ok(false) };
        let tool = self.image_tool();
        let mut with = Vec::new();
        for image in &note.images {
            if tool.tagged(image, &Qcow2, tag).await?.is_some() {
                with.push(image);
            }
        }
        let all = with.len() == note.images.len();
        if !all {
            for image in with {
                tool.delete_snapshot(image, &Qcow2, tag).await?;
            }
        }
        Ok(all)
    }

    /// The concluded job stays on QEMU's list: it says to whoever asks that this happened.
    pub(super) async fn load_vm_state(
        &self,
        domain: Uuid,
        tag: &str,
        vmstate: &str,
        disks: &[Target],
    ) -> Result<(), PivotError> {
        let refused = PivotError::Refused;
        let instance = self.running(domain).map_err(refused)?;
        let layers = active(&instance, disks).map_err(refused)?;
        let tagged = tagged(&instance, tag).await.map_err(refused)?;
        if let Some((layer, _)) = layers.iter().find(|(l, _)| !tagged.contains(&l.format_node())) {
            let image = layer.image.display();
            let what = format!("image '{image}' does not have an internal snapshot '{tag}'");
            return Err(refused(failure(Condition::OperationInvalid, what)));
        }
        if matches!(instance.state(), State::Running(_)) {
            let what = "memory is loaded into a stopped guest only";
            return Err(refused(failure(Condition::OperationInvalid, what)));
        }
        self.note(domain).write(&Note::new(tag, &layers)).map_err(refused)?;
        let done = run(&instance, ("snapshot-load", LOAD), tag, vmstate, &layers).await?;
        match self.loaded(&instance, &done).await {
            Ok(()) => {
                self.tell_loaded(&instance);
                Ok(())
            }
            Err(Failed::Before(err)) => Err(PivotError::Refused(err)),
            Err(Failed::Halfway(err)) => Err(PivotError::InDoubt(err)),
        }
    }

    /// The guest is stopped where the snapshot was; what resumes it says so in its turn.
    fn tell_loaded(&self, instance: &Instance) {
        instance.lock().state = State::Paused(PausedReason::FromSnapshot);
        if let Err(err) = instance.save() {
            tracing::warn!(domain = instance.name, error = %err.chain(), "the status is old");
        }
        self.shared.tell(instance, Event::Suspended(Suspended::FromSnapshot));
    }

    pub(super) async fn has_loaded(&self, domain: Uuid, tag: &str) -> Result<bool> {
        if let Some(instance) = self.instance(domain) {
            let done = job::wait(&instance.qmp, LOAD, job::Job::is_concluded).await?;
            // Each load's job stays until the next one, so that there was none.
            let Some(done) = done else { return Ok(false) };
            match self.loaded(&instance, &done).await {
                Ok(()) => return Ok(true),
                Err(Failed::Before(_)) => return Ok(false),
                Err(Failed::Halfway(_)) => {}
            }
        }
        // QEMU died in it, and with it the state before. Some disks may have gone back already;
        // the only whole state left is the snapshot's.
        let Some(note) = self.note(domain).read(tag)? else { return Ok(false) };
        for image in &note.images {
            self.image_tool().apply(image, &Qcow2, tag).await?;
        }
        Ok(true)
    }

    async fn loaded(&self, instance: &Instance, done: &job::Job) -> Result<(), Failed> {
        let Err(err) = job::outcome(done, "loading the snapshot") else { return Ok(()) };
        if is_untouched(done.error.as_deref().unwrap_or_default()) {
            if let Err(err) = job::dismiss(&instance.qmp, LOAD).await {
                tracing::warn!(domain = instance.name, %err, "a job stays on QEMU's list");
            }
            return Err(Failed::Before(err));
        }
        // The disks have gone back and the memory is neither old nor new: it must never run.
        match self.destroy_domain(instance.uuid, ShutOffReason::Failed).await {
            Ok(()) => Err(Failed::Halfway(err)),
            Err(also) => Err(Failed::Halfway(also.caused_by(err))),
        }
    }

    /// No operation is under way.
    pub(crate) fn forget_vmstate_note(&self, domain: Uuid) {
        self.note(domain).forget();
    }

    fn note(&self, domain: Uuid) -> NoteFile {
        NoteFile::of(&self.config().state_dir, domain)
    }
}

/// A job that silences the monitor was under way when the daemon ended, or is over.
pub(crate) fn may_be_in_vmstate_job(state_dir: &Path, domain: Uuid) -> bool {
    NoteFile::of(state_dir, domain).path.exists()
}

enum Failed {
    Before(Error),
    Halfway(Error),
}

/// What QEMU says before a load has touched anything.
fn is_untouched(error: &str) -> bool {
    [
        "does not exist in one or more devices",
        "does not support snapshots",
        "No block device node",
        "is a disk-only snapshot",
        "At least one device is required",
        "vmstate block device",
    ]
    .iter()
    .any(|known| error.contains(known))
}

/// Starts the job and waits for its end.
async fn run(
    instance: &Instance,
    (command, id): (&str, &str),
    tag: &str,
    vmstate: &str,
    layers: &[(Layer, PathBuf)],
) -> Result<job::Job, PivotError> {
    let refused = PivotError::Refused;
    let qmp = &instance.qmp;
    let memory = active(instance, &[vmstate.to_owned()]).map_err(refused)?;
    let Some((memory, _)) = memory.first() else {
        return Err(refused(Error::new(Condition::Internal, "no disk for the memory")));
    };
    job::dismiss(qmp, id).await.map_err(|err| refused(err.into()))?;
    let devices: Vec<String> = layers.iter().map(|(layer, _)| layer.format_node()).collect();
    let arguments =
        json!({ "job-id": id, "tag": tag, "vmstate": memory.format_node(), "devices": devices });
    match qmp.execute(command, arguments).await {
        Ok(_) => {}
        Err(err) if err.in_doubt() => return Err(PivotError::InDoubt(err.into())),
        Err(err) => return Err(refused(err.into())),
    }
    match job::wait(qmp, id, job::Job::is_concluded).await {
        Ok(Some(done)) => Ok(done),
        Ok(None) => {
            let what = "QEMU lost the job of the snapshot";
            Err(PivotError::InDoubt(Error::new(Condition::Internal, what)))
        }
        Err(err) => Err(PivotError::InDoubt(err.into())),
    }
}

/// The images of a job under way.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    tag: String,
    images: Vec<PathBuf>,
}

impl Note {
    fn new(tag: &str, layers: &[(Layer, PathBuf)]) -> Self {
        let images = layers.iter().map(|(_, image)| image.clone()).collect();
        Self { tag: tag.to_owned(), images }
    }
}

struct NoteFile {
    path: PathBuf,
}

impl NoteFile {
    fn of(state_dir: &Path, domain: Uuid) -> Self {
        Self { path: state_dir.join(format!("{domain}.vmstate")) }
    }

    fn write(&self, note: &Note) -> Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let write = || -> io::Result<()> {
            fs::create_dir_all(directory)?;
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            file.write_all(&serde_json::to_vec(note)?)?;
            file.as_file().sync_all()?;
            file.persist(&self.path).map_err(|err| err.error)?;
            fs::File::open(directory)?.sync_all()
        };
        write().map_err(|err| system("write", &self.path, err))
    }

    /// None: no job of that tag was under way.
    fn read(&self, tag: &str) -> Result<Option<Note>> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(system("read", &self.path, err)),
        };
        let note: Note = serde_json::from_slice(&bytes).map_err(|err| {
            let what = format!("'{}' is damaged", self.path.display());
            failure(Condition::Internal, what).caused_by(err)
        })?;
        Ok(Some(note).filter(|note| note.tag == tag))
    }

    fn forget(&self) {
        match fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => tracing::warn!(file = %self.path.display(), %err, "a note stays behind"),
        }
    }
}
