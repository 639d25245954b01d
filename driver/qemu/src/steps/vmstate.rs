//! Memory and disks into internal snapshots and back, as QEMU's jobs.
//!
//! QEMU's monitor is silent while such a job works; it cannot be cancelled.
//!
//! Before either job starts, a note of the images it works on is made in the state directory. It
//! is for the case that QEMU dies with the job: then the files are all that can be asked. The note
//! stays until facts are asked again, when the operation is over.

use std::path::Path;

use serde_json::json;
use uuid::Uuid;
use virtsnap_block::nodes::Open;
use virtsnap_block::note::NoteFile;
use virtsnap_engine::domain::{
    Event, PausedReason, RunningReason, ShutOffReason, State, Suspended, VmStateIn,
};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::Format::Qcow2;
use virtsnap_engine::facts::Target;
use virtsnap_engine::ports::PivotError;

use super::inside::{active, tagged};
use super::overlays::detach;
use crate::blocks::{Layer, job, nodes};
use crate::confine::Use;
use crate::hypervisor::Qemu;
use crate::image::{failure, marker};
use crate::instance::Instance;
use crate::migration;

const SAVE: &str = "virtsnap-save";
const LOAD: &str = "virtsnap-load";

impl Qemu {
    pub(super) async fn save_vm_state(
        &self,
        domain: Uuid,
        tag: &str,
        vmstate: &VmStateIn,
        disks: &[Target],
    ) -> Result<(), PivotError> {
        let refused = PivotError::Refused;
        let instance = self.running(domain).map_err(refused)?;
        migration::leave_inactive(&instance).await.map_err(refused)?;
        let layers = active(&instance, disks).map_err(refused)?;
        self.note(domain).begin(&instance.qmp, tag, &layers).await.map_err(refused)?;
        let memory = self.attach_vm_state(&instance, vmstate).await.map_err(refused)?;
        {
            let mut inner = instance.lock();
            inner.pausing = Some(PausedReason::Snapshot);
            inner.resuming = Some(RunningReason::Unpaused);
        }
        let done = run(&instance, ("snapshot-save", SAVE), tag, &memory, &layers).await;
        {
            let mut inner = instance.lock();
            (inner.pausing, inner.resuming) = (None, None);
        }
        job::outcome(&done?, "saving the snapshot").map_err(refused)?;
        if let Err(err) = job::dismiss(&instance.qmp, SAVE).await {
            tracing::warn!(domain = instance.name, %err, "a job stays on QEMU's list");
        }
        if let Err(err) = detach_vm_state(&instance, vmstate).await {
            tracing::warn!(domain = instance.name, error = %err.chain(), "a node stays in QEMU");
        }
        Ok(())
    }

    /// The same as a step. Tags that were there before are told from ours, as undo comes next.
    pub(super) async fn act_save_vm_state(
        &self,
        domain: Uuid,
        tag: &str,
        vmstate: &VmStateIn,
        disks: &[Target],
    ) -> Result<()> {
        let instance = self.running(domain)?;
        let taken = tagged(&instance, tag).await?;
        for layer in active(&instance, disks)? {
            if taken.contains(&layer.node) {
                let image = &layer.image;
                marker::mark_foreign_tag(&self.config().state_dir, domain, image, tag).await?;
            }
        }
        let saved = self.save_vm_state(domain, tag, vmstate, disks).await;
        saved.map_err(|(PivotError::Refused(err) | PivotError::InDoubt(err))| err)
    }

    pub(super) async fn undo_save_vm_state(
        &self,
        domain: Uuid,
        tag: &str,
        vmstate: &VmStateIn,
        disks: &[Target],
    ) -> Result<()> {
        let note = self.note(domain).read(tag)?;
        let images = match self.instance(domain) {
            Some(instance) => {
                if job::wait(&instance.qmp, SAVE, job::Job::is_concluded).await?.is_some() {
                    job::dismiss(&instance.qmp, SAVE).await?;
                }
                detach_vm_state(&instance, vmstate).await?;
                active(&instance, disks)?.into_iter().map(|layer| layer.image).collect()
            }
            // Without a note the job was never begun.
            None => note.map(|note| note.images).unwrap_or_default(),
        };
        for image in images {
            if !marker::take_foreign_tag(&self.config().state_dir, domain, &image, tag).await? {
                self.delete_snapshot(domain, &image, tag).await?;
            }
        }
        match vmstate {
            VmStateIn::Image(image) => self.delete_snapshot(domain, image, tag).await,
            VmStateIn::Disk(_) => Ok(()),
        }
    }

    /// The node that the memory goes into or comes from.
    async fn attach_vm_state(&self, instance: &Instance, vmstate: &VmStateIn) -> Result<Open> {
        let none = || failure(Condition::Internal, "there is no image for the memory");
        match vmstate {
            VmStateIn::Disk(target) => {
                let layers = active(instance, std::slice::from_ref(target))?;
                layers.into_iter().next().ok_or_else(none)
            }
            VmStateIn::Image(image) => {
                self.lend(instance, image, Use::Own)?;
                Ok(Open::from(&attach_vm_state_image(instance, image).await?))
            }
        }
    }

    /// All of the images have the tag, or none keeps it.
    pub(super) async fn has_saved(
        &self,
        domain: Uuid,
        tag: &str,
        vmstate: &VmStateIn,
        disks: &[Target],
    ) -> Result<bool> {
        let tool = self.image_tool();
        let has_memory = match vmstate {
            VmStateIn::Disk(_) => true,
            VmStateIn::Image(image) => {
                if let Some(instance) = self.instance(domain) {
                    job::wait(&instance.qmp, SAVE, job::Job::is_concluded).await?;
                    detach_vm_state(&instance, vmstate).await?;
                }
                !crate::image::is_gone(image) && tool.tagged(image, &Qcow2, tag).await?.is_some()
            }
        };
        if let Some(instance) = self.instance(domain) {
            let qmp = &instance.qmp;
            if job::wait(qmp, SAVE, job::Job::is_concluded).await?.is_some() {
                job::dismiss(qmp, SAVE).await?;
            }
            let tagged = tagged(&instance, tag).await?;
            let layers = active(&instance, disks)?;
            // QEMU itself takes back what a failed job did.
            let all = layers.iter().all(|layer| tagged.contains(&layer.node));
            return Ok(all && has_memory);
        }
        if !has_memory {
            self.note(domain).take_back(&tool, tag).await?;
            return Ok(false);
        }
        self.note(domain).settle(&tool, tag).await
    }

    /// The concluded job stays on QEMU's list: it says to whoever asks that this happened.
    pub(super) async fn load_vm_state(
        &self,
        domain: Uuid,
        tag: &str,
        vmstate: &VmStateIn,
        disks: &[Target],
    ) -> Result<(), PivotError> {
        let refused = PivotError::Refused;
        let instance = self.running(domain).map_err(refused)?;
        migration::leave_inactive(&instance).await.map_err(refused)?;
        let layers = active(&instance, disks).map_err(refused)?;
        let tagged = tagged(&instance, tag).await.map_err(refused)?;
        if let Some(layer) = layers.iter().find(|layer| !tagged.contains(&layer.node)) {
            let image = layer.image.display();
            let what = format!("image '{image}' does not have an internal snapshot '{tag}'");
            return Err(refused(failure(Condition::OperationInvalid, what)));
        }
        if matches!(instance.state(), State::Running(_)) {
            let what = "memory is loaded into a stopped guest only";
            return Err(refused(failure(Condition::OperationInvalid, what)));
        }
        self.note(domain).write(tag, &layers).map_err(refused)?;
        let memory = self.attach_vm_state(&instance, vmstate).await.map_err(refused)?;
        let done = run(&instance, ("snapshot-load", LOAD), tag, &memory, &layers).await?;
        let loaded = self.loaded(&instance, &done).await;
        if !matches!(loaded, Err(Failed::Halfway(_)))
            && let Err(err) = detach_vm_state(&instance, vmstate).await
        {
            tracing::warn!(domain = instance.name, error = %err.chain(), "a node stays in QEMU");
        }
        match loaded {
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

    pub(super) async fn has_loaded(
        &self,
        domain: Uuid,
        tag: &str,
        vmstate: &VmStateIn,
    ) -> Result<bool> {
        if let Some(instance) = self.instance(domain) {
            let done = job::wait(&instance.qmp, LOAD, job::Job::is_concluded).await?;
            // Each load's job stays until the next one, so that there was none.
            let loaded = match done {
                Some(done) => self.loaded(&instance, &done).await.map(|()| true),
                None => Ok(false),
            };
            match loaded {
                Ok(loaded) => {
                    detach_vm_state(&instance, vmstate).await?;
                    return Ok(loaded);
                }
                Err(Failed::Before(_)) => {
                    detach_vm_state(&instance, vmstate).await?;
                    return Ok(false);
                }
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

    pub(super) fn note(&self, domain: Uuid) -> NoteFile {
        NoteFile::of(&self.config().state_dir, domain)
    }
}

/// A job that silences the monitor was under way when the daemon ended, or is over.
pub(crate) fn may_be_in_vmstate_job(state_dir: &Path, domain: Uuid) -> bool {
    NoteFile::of(state_dir, domain).exists()
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

/// Gives QEMU an image that no device uses, for memory.
pub(crate) async fn attach_vm_state_image(instance: &Instance, image: &Path) -> Result<Layer> {
    detach(instance, image).await?;
    nodes::add(instance, "", image, "qcow2").await?;
    let added = nodes::unused(instance, image).await?.into_iter().next();
    added.ok_or_else(|| {
        let what = format!("image '{}' was not given to QEMU", image.display());
        failure(Condition::Internal, what)
    })
}

pub(crate) async fn detach_vm_state(instance: &Instance, vmstate: &VmStateIn) -> Result<()> {
    match vmstate {
        VmStateIn::Disk(_) => Ok(()),
        VmStateIn::Image(image) => detach(instance, image).await,
    }
}

/// Starts the job and waits for its end.
async fn run(
    instance: &Instance,
    (command, id): (&str, &str),
    tag: &str,
    memory: &Open,
    layers: &[Open],
) -> Result<job::Job, PivotError> {
    let refused = PivotError::Refused;
    let qmp = &instance.qmp;
    job::dismiss(qmp, id).await.map_err(|err| refused(err.into()))?;
    let mut devices: Vec<&String> = layers.iter().map(|layer| &layer.node).collect();
    if !devices.contains(&&memory.node) {
        // QEMU wants the memory's node among those it saves.
        devices.push(&memory.node);
    }
    let arguments = json!({ "job-id": id, "tag": tag, "vmstate": memory.node, "devices": devices });
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
