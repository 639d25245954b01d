//! The acts of a plan on QEMU and on image files.
//!
//! - [`overlays`]: new layers, given to QEMU and switched to in one transaction;
//! - [`memory`]: memory into files of its own;
//! - [`vmstate`]: memory and disks into internal snapshots and back, as jobs;
//! - [`merge`]: commit, stream, re-point;
//! - [`inside`]: internal snapshots of single images;
//! - [`state_files`]: variable stores and TPM state, copied and put back.
//!
//! Every undo and every finish may come twice, after a crash at any point, with QEMU as it was
//! left, or gone. So none of them trusts what was recorded before it has asked: a job that still
//! runs is adopted, a chain is read from QEMU's own graph, an image's header is looked at.

mod inside;
mod memory;
mod merge;
mod overlays;
mod state_files;
pub(crate) mod vmstate;

pub(crate) use state_files::is_whole_copy;
pub(crate) use vmstate::{attach_vm_state_image, detach_vm_state, may_be_in_vmstate_job};

#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::Value;
use uuid::Uuid;
use virtsnap_engine::domain::{PausedReason, RunningReason};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::Format;
use virtsnap_engine::merging::Merging;
use virtsnap_engine::plan::{Finish, Pivot, ResumeReason, Step};
use virtsnap_engine::ports::PivotError;

use crate::backing;
use crate::hypervisor::Qemu;
use crate::image::{claim, fill, in_use, remove_durably, tag};
use crate::saving;

impl Qemu {
    pub(crate) async fn act_step(&self, domain: Uuid, step: &Step) -> Result<()> {
        match step {
            Step::Pause => self.running(domain)?.pause(PausedReason::Snapshot).await,
            Step::FreezeFilesystems => self.freeze_filesystems(domain).await,
            Step::CreateOverlay { overlay, format, backing, backing_format, virtual_size } => {
                let tool = self.image_tool();
                claim::create_overlay(
                    &tool,
                    domain,
                    overlay,
                    format,
                    backing,
                    backing_format,
                    *virtual_size,
                )
                .await
            }
            Step::FillOverlay { overlay, format, backing, backing_format, virtual_size } => {
                let tool = self.image_tool();
                fill::fill_overlay(
                    &tool,
                    domain,
                    overlay,
                    format,
                    backing,
                    backing_format,
                    *virtual_size,
                )
                .await
            }
            Step::CopyImage { from, to } => {
                self.refuse_active(domain, from, "copied")?;
                self.copy_file(domain, from, to).await
            }
            Step::AttachOverlay { disk, overlay, format } => {
                self.attach_overlay(domain, disk, overlay, format).await
            }
            Step::SnapshotImage { image, tag } => {
                self.refuse_in_use(domain, image, "changed")?;
                let (tool, state_dir) = (self.image_tool(), &self.config().state_dir);
                tag::take(&tool, state_dir, domain, image, tag).await
            }
            Step::SaveMemory { file, live, overwrite, definition } => {
                self.save_memory(domain, file, *live, *overwrite, definition).await
            }
            Step::CreateVmStateImage { image } => {
                claim::create_blank(&self.image_tool(), domain, image).await
            }
            Step::SaveVmState { tag, vmstate, disks } => {
                self.act_save_vm_state(domain, tag, vmstate, disks).await
            }
        }
    }

    pub(crate) async fn undo_step(&self, domain: Uuid, step: &Step) -> Result<()> {
        match step {
            Step::Pause => self.let_run(domain, RunningReason::Unpaused).await,
            Step::FreezeFilesystems => self.thaw_filesystems(domain).await,
            Step::CreateOverlay { overlay, .. } => claim::undo(domain, overlay).await,
            Step::FillOverlay { overlay, .. } => fill::undo(domain, overlay).await,
            Step::CopyImage { to, .. } => claim::undo(domain, to).await,
            Step::AttachOverlay { overlay, .. } => self.detach_overlay(domain, overlay).await,
            Step::SnapshotImage { image, tag } => {
                let (tool, state_dir) = (self.image_tool(), &self.config().state_dir);
                tag::undo(&tool, state_dir, domain, image, tag).await
            }
            Step::SaveMemory { file, live, .. } => self.undo_save_memory(domain, file, *live).await,
            Step::CreateVmStateImage { image } => claim::undo(domain, image).await,
            Step::SaveVmState { tag, vmstate, disks } => {
                self.undo_save_vm_state(domain, tag, vmstate, disks).await
            }
        }
    }

    pub(crate) async fn pivot_to(&self, domain: Uuid, pivot: &Pivot) -> Result<(), PivotError> {
        match pivot {
            Pivot::Record => Ok(()),
            Pivot::SwitchToOverlays { disks } => self.switch_to_overlays(domain, disks).await,
            Pivot::SaveVmState { tag, vmstate, disks } => {
                self.save_vm_state(domain, tag, vmstate, disks).await
            }
            Pivot::LoadVmState { tag, vmstate, disks } => {
                self.load_vm_state(domain, tag, vmstate, disks).await
            }
            Pivot::SnapshotDisks { overlays, internal, tag } => {
                self.snapshot_disks(domain, overlays, internal, tag).await
            }
        }
    }

    pub(crate) async fn has_pivoted(&self, domain: Uuid, pivot: &Pivot) -> Result<bool> {
        match pivot {
            Pivot::Record => Ok(false),
            Pivot::SnapshotDisks { overlays, internal, tag } => {
                self.has_snapshot(domain, overlays, internal, tag).await
            }
            Pivot::SwitchToOverlays { disks } => self.has_switched(domain, disks).await,
            Pivot::SaveVmState { tag, vmstate, disks } => {
                self.has_saved(domain, tag, vmstate, disks).await
            }
            Pivot::LoadVmState { tag, vmstate, .. } => self.has_loaded(domain, tag, vmstate).await,
        }
    }

    pub(crate) async fn finish_act(&self, domain: Uuid, finish: &Finish) -> Result<()> {
        match finish {
            Finish::ThawFilesystems => self.thaw_filesystems(domain).await,
            Finish::Resume(ResumeReason::Unpaused) => {
                self.let_run(domain, RunningReason::Unpaused).await
            }
            Finish::Resume(ResumeReason::FromSnapshot) => {
                self.let_run(domain, RunningReason::FromSnapshot).await
            }
            Finish::Stop(reason) => self.destroy_domain(domain, *reason).await,
            Finish::ApplySnapshot { image, tag } => {
                self.refuse_in_use(domain, image, "reverted")?;
                self.image_tool().apply(image, &Format::Qcow2, tag).await
            }
            Finish::DeleteSnapshot { image, tag } => self.delete_snapshot(domain, image, tag).await,
            Finish::Commit { .. } | Finish::Stream { .. } => {
                Ok(self.merge_layers(domain, finish, &Merging::default()).await?)
            }
            Finish::Repoint { image, backing, backing_format } => {
                self.repoint(domain, image, backing, backing_format).await
            }
            Finish::Overwrite { image, from } => {
                self.refuse_in_use(domain, image, "reset")?;
                self.overwrite(image, from).await
            }
            Finish::PutBack { file, to } => self.put_back(domain, file, to).await,
            Finish::SetLive(definition) => match self.instance(domain) {
                Some(instance) => instance.update(|live, chains| {
                    live.clone_from(definition);
                    backing::write_all(live, chains);
                }),
                None => Ok(()),
            },
            Finish::SetSaved { file, definition } => saving::set_saved(file, definition).await,
            Finish::ForgetSave(file) => remove_durably(file).await,
            Finish::RemoveImage(path) => claim::remove(domain, path).await,
            Finish::KeepImage(path) | Finish::HandOver(path) => claim::keep(domain, path).await,
            Finish::SetConfig(_) | Finish::Record(_) => {
                Err(Error::new(Condition::Internal, "records are not the hypervisor's to write"))
            }
        }
    }

    /// Lets the vCPUs run, if they were stopped by us or by a snapshot that was loaded.
    async fn let_run(&self, domain: Uuid, reason: RunningReason) -> Result<()> {
        let Some(instance) = self.instance(domain) else { return Ok(()) };
        let status = instance.qmp.execute("query-status", Value::Null).await?;
        match status.get("status").and_then(Value::as_str) {
            // A load that failed leaves the guest, unharmed, in restore-vm.
            Some("paused" | "prelaunch" | "restore-vm" | "save-vm" | "postmigrate") => {
                instance.resume(reason).await
            }
            _ => Ok(()),
        }
    }

    fn refuse_in_use(&self, domain: Uuid, image: &Path, what: &str) -> Result<()> {
        match self.instance(domain).and_then(|instance| instance.layer_of(image)) {
            None => Ok(()),
            Some((target, _)) => Err(in_use(image, &target, what)),
        }
    }

    /// A copy of an image that is written to would be torn.
    fn refuse_active(&self, domain: Uuid, image: &Path, what: &str) -> Result<()> {
        let Some(instance) = self.instance(domain) else { return Ok(()) };
        let chains = instance.chains();
        let active =
            chains.values().find(|chain| chain.layers.first().is_some_and(|layer| layer.is(image)));
        active.map_or(Ok(()), |chain| Err(in_use(image, &chain.target, what)))
    }
}
