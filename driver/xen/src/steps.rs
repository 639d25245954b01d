//! The acts of a plan on Xen and on image files.
//!
//! Overlays become block nodes of the device model, and one transaction switches to them. What libxl
//! starts a domain from after the guest's reboot names the overlays *before* that transaction: an
//! overlay that nothing was written to reads as the image below, so a guest that is started on it
//! by whatever crash is well; one that went on from the file below would ruin the overlay.
//!
//! Every undo and every finish may come twice, after a crash at any point, with the domain as it was
//! left, or gone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;
use virtsnap_block::drives::{self, Drive, Layer};
use virtsnap_block::image::{
    blocking, claim, failure, fill, format_of, header, in_use, remove_durably, storage_driver,
    system, tag, were_written,
};
use virtsnap_block::nodes::{self, Open};
use virtsnap_block::note::NoteFile;
use virtsnap_block::qmp::{Qmp, QmpError};
use virtsnap_engine::domain::{PausedReason, RunningReason};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::{Format, Target};
use virtsnap_engine::merging::Merging;
use virtsnap_engine::plan::{Finish, Pivot, ResumeReason, Step};
use virtsnap_engine::ports::PivotError;
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use crate::hypervisor::Xen;
use crate::instance::Instance;

impl Xen {
    pub(crate) async fn act_step(&self, domain: Uuid, step: &Step) -> Result<()> {
        let tool = self.image_tool();
        if let Some(file) = new_file(step) {
            self.make_files_dir(domain, file).await?;
        }
        match step {
            Step::Pause => self.shared.pause(&*self.running(domain)?, PausedReason::Snapshot).await,
            Step::FreezeFilesystems => no_agent(),
            Step::CreateOverlay { overlay, format, backing, backing_format, virtual_size } => {
                let size = *virtual_size;
                claim::create_overlay(&tool, domain, overlay, format, backing, backing_format, size)
                    .await
            }
            Step::FillOverlay { overlay, format, backing, backing_format, virtual_size } => {
                let size = *virtual_size;
                fill::fill_overlay(&tool, domain, overlay, format, backing, backing_format, size)
                    .await
            }
            Step::CopyImage { from, to } => {
                self.refuse_active(domain, from, "copied").await?;
                claim::copy_image(domain, from, to).await
            }
            Step::AttachOverlay { overlay, format, .. } => {
                self.attach_overlay(domain, overlay, format).await
            }
            Step::SnapshotImage { image, tag } => {
                self.refuse_in_use(domain, image, "changed").await?;
                tag::take(&tool, &self.config().state_dir, domain, image, tag).await
            }
            Step::SaveMemory { file, live, overwrite, definition } => {
                self.save_memory(domain, file, *live, *overwrite, definition).await
            }
            Step::CreateVmStateImage { .. } | Step::SaveVmState { .. } => no_memory_inside(),
        }
    }

    pub(crate) async fn undo_step(&self, domain: Uuid, step: &Step) -> Result<()> {
        match step {
            Step::Pause => self.let_run(domain, RunningReason::Unpaused).await,
            Step::FreezeFilesystems => Ok(()),
            Step::CreateOverlay { overlay, .. } => claim::undo(domain, overlay).await,
            Step::FillOverlay { overlay, .. } => fill::undo(domain, overlay).await,
            Step::CopyImage { to, .. } => claim::undo(domain, to).await,
            Step::AttachOverlay { disk, overlay, .. } => {
                self.detach_overlay(domain, disk, overlay).await
            }
            Step::SnapshotImage { image, tag } => {
                let (tool, state_dir) = (self.image_tool(), &self.config().state_dir);
                tag::undo(&tool, state_dir, domain, image, tag).await
            }
            Step::SaveMemory { file, .. } => self.undo_save_memory(domain, file).await,
            // Refused, and never done.
            Step::CreateVmStateImage { .. } | Step::SaveVmState { .. } => Ok(()),
        }
    }

    pub(crate) async fn pivot_to(&self, domain: Uuid, pivot: &Pivot) -> Result<(), PivotError> {
        match pivot {
            Pivot::Record => Ok(()),
            Pivot::SwitchToOverlays { disks } => self.snapshot_disks(domain, disks, &[], "").await,
            Pivot::SnapshotDisks { overlays, internal, tag } => {
                self.snapshot_disks(domain, overlays, internal, tag).await
            }
            Pivot::SaveVmState { .. } | Pivot::LoadVmState { .. } => {
                no_memory_inside().map_err(PivotError::Refused)
            }
        }
    }

    pub(crate) async fn has_pivoted(&self, domain: Uuid, pivot: &Pivot) -> Result<bool> {
        match pivot {
            Pivot::Record | Pivot::SaveVmState { .. } | Pivot::LoadVmState { .. } => Ok(false),
            Pivot::SwitchToOverlays { disks } => self.has_switched(domain, disks).await,
            Pivot::SnapshotDisks { overlays, internal, tag } => {
                self.has_snapshot(domain, overlays, internal, tag).await
            }
        }
    }

    pub(crate) async fn finish_act(&self, domain: Uuid, finish: &Finish) -> Result<()> {
        match finish {
            Finish::ThawFilesystems => Ok(()),
            Finish::Resume(ResumeReason::Unpaused) => {
                self.let_run(domain, RunningReason::Unpaused).await
            }
            Finish::Resume(ResumeReason::FromSnapshot) => {
                self.let_run(domain, RunningReason::FromSnapshot).await
            }
            Finish::Stop(reason) => self.destroy_domain(domain, *reason).await,
            Finish::ApplySnapshot { image, tag } => {
                self.refuse_in_use(domain, image, "reverted").await?;
                self.image_tool().apply(image, &Format::Qcow2, tag).await
            }
            Finish::DeleteSnapshot { image, tag } => self.delete_snapshot(domain, image, tag).await,
            Finish::Commit { .. } | Finish::Stream { .. } => {
                Ok(self.merge_layers(domain, finish, &Merging::default()).await?)
            }
            Finish::Repoint { image, backing, backing_format } => {
                self.repoint(domain, image, backing, backing_format).await
            }
            Finish::Overwrite { image, .. } | Finish::PutBack { to: image, .. } => Err(failure(
                Condition::Internal,
                format!("'{}': Xen's guests keep no state outside of disks", image.display()),
            )),
            Finish::SetLive(definition) => match self.instance(domain) {
                Some(instance) => {
                    let _acting = instance.acting.lock().await;
                    instance.update(|inner| inner.live.clone_from(definition))?;
                    self.store_disks(&instance).await
                }
                None => Ok(()),
            },
            Finish::SetSaved { file, definition } => self.edit_image(file, definition, None).await,
            Finish::ForgetSave(file) => remove_durably(file).await,
            Finish::RemoveImage(path) => claim::remove(domain, path).await,
            Finish::KeepImage(path) | Finish::HandOver(path) => claim::keep(domain, path).await,
            Finish::SetConfig(_) | Finish::Record(_) => {
                Err(Error::new(Condition::Internal, "records are not the hypervisor's to write"))
            }
        }
    }

    async fn let_run(&self, domain: Uuid, reason: RunningReason) -> Result<()> {
        match self.instance(domain) {
            Some(instance) => self.shared.let_go_on(&instance, reason).await,
            None => Ok(()),
        }
    }

    /// No operation is under way.
    pub(crate) fn forget_note(&self, domain: Uuid) {
        self.note(domain).forget();
    }

    fn note(&self, domain: Uuid) -> NoteFile {
        NoteFile::of(&self.config().state_dir, domain)
    }

    /// Gives the overlay to the device model, as a node that nothing stands on.
    async fn attach_overlay(&self, domain: Uuid, overlay: &Path, format: &Format) -> Result<()> {
        let instance = self.running(domain)?;
        let qmp = instance.device_model().await?;
        detach(&qmp, overlay).await?;
        let storage = storage_driver(overlay);
        let node = json!({
            "driver": format.as_str(),
            "node-name": node_name(overlay),
            // It is laid on the disk's own node by the transaction.
            "backing": null,
            "discard": "unmap",
            "file": { "driver": storage, "filename": overlay.to_string_lossy(), "discard": "unmap" },
        });
        qmp.execute("blockdev-add", node).await?;
        Ok(())
    }

    /// The names of a pivot that was refused, or broken off before it happened, are taken back.
    async fn detach_overlay(&self, domain: Uuid, target: &str, overlay: &Path) -> Result<()> {
        let Some(instance) = self.instance(domain) else { return Ok(()) };
        let _acting = instance.acting.lock().await;
        let qmp = instance.monitor().await?;
        if let Some(qmp) = &qmp
            && drives::query(qmp).await?.iter().any(|drive| drive.depth(overlay).is_some())
        {
            return Err(in_use(overlay, target, "taken away"));
        }
        let live = instance.live();
        let names_it = domain::disk(&live, target)
            .is_some_and(|disk| disk.path().map(Path::new) == Some(overlay));
        if names_it && let Some((below, format)) = below(overlay).await? {
            let source = [(target.to_owned(), below, format)];
            self.stand_on(&instance, &source).await?;
        }
        match &qmp {
            Some(qmp) => detach(qmp, overlay).await,
            None => Ok(()),
        }
    }

    /// All in one transaction: some disks' writes go to their overlays, others get an internal
    /// snapshot.
    async fn snapshot_disks(
        &self,
        domain: Uuid,
        overlays: &[(Target, PathBuf)],
        internal: &[Target],
        tag: &str,
    ) -> Result<(), PivotError> {
        let instance = self.running(domain).map_err(PivotError::Refused)?;
        let _acting = instance.acting.lock().await;
        let qmp = instance.device_model().await.map_err(PivotError::Refused)?;
        let before = instance.live();
        let prepared = async {
            let drives = drives::query(&qmp).await?;
            let actions = self.actions(&instance, &qmp, &drives, overlays, internal, tag).await?;
            let mut sources = Vec::new();
            for (target, overlay) in overlays {
                sources.push((target.clone(), overlay.clone(), format_of(overlay)?));
            }
            self.stand_on(&instance, &sources).await?;
            Ok(actions)
        };
        let done = match prepared.await {
            Ok(actions) => qmp.execute("transaction", json!({ "actions": actions })).await,
            Err(err) => {
                self.name_again(&instance, before).await;
                return Err(PivotError::Refused(err));
            }
        };
        match done {
            Ok(_) => Ok(()),
            Err(err) if err.in_doubt() => Err(PivotError::InDoubt(err.into())),
            Err(err) => {
                self.name_again(&instance, before).await;
                Err(PivotError::Refused(err.into()))
            }
        }
    }

    async fn actions(
        &self,
        instance: &Instance,
        qmp: &Qmp,
        drives: &[Drive],
        overlays: &[(Target, PathBuf)],
        internal: &[Target],
        tag: &str,
    ) -> Result<Vec<serde_json::Value>> {
        let live = instance.live();
        let mut actions = Vec::new();
        if !internal.is_empty() {
            let tops = internal.iter().map(|target| top(drives, &live, target).map(Open::from));
            let tops: Vec<Open> = tops.collect::<Result<_>>()?;
            self.note(instance.uuid).begin(qmp, tag, &tops).await?;
            actions.extend(tops.iter().map(|top| {
                json!({
                    "type": "blockdev-snapshot-internal-sync",
                    "data": { "device": top.node, "name": tag }
                })
            }));
        }
        for (target, overlay) in overlays {
            actions.push(json!({
                "type": "blockdev-snapshot",
                "data": { "node": top(drives, &live, target)?.node, "overlay": node_name(overlay) }
            }));
        }
        Ok(actions)
    }

    /// The live definition and libxl's own name these images, durably.
    pub(crate) async fn stand_on(
        &self,
        instance: &Instance,
        sources: &[(Target, PathBuf, Format)],
    ) -> Result<()> {
        if sources.is_empty() {
            return Ok(());
        }
        instance.update(|inner| {
            for (target, image, format) in sources {
                let kind = if storage_driver(image) == "host_device" { "block" } else { "file" };
                let path = image.to_string_lossy();
                domain::set_image(&mut inner.live, target, kind, &path, format.as_str());
            }
        })?;
        self.store_disks(instance).await
    }

    async fn name_again(&self, instance: &Instance, before: Element) {
        let named = async {
            instance.update(|inner| inner.live = before)?;
            self.store_disks(instance).await
        };
        // The undo of the overlays' attaching does it again.
        if let Err(err) = named.await {
            tracing::error!(domain = instance.name, "{}", err.chain());
        }
    }

    async fn has_snapshot(
        &self,
        domain: Uuid,
        overlays: &[(Target, PathBuf)],
        internal: &[Target],
        tag: &str,
    ) -> Result<bool> {
        if internal.is_empty() {
            return self.has_switched(domain, overlays).await;
        }
        let Some(qmp) = self.monitor_of(domain).await? else {
            return self.note(domain).settle(&self.image_tool(), tag).await;
        };
        // By now a disk may stand on another image: of a transaction that failed with the domain.
        let Some(note) = self.note(domain).read(tag)? else { return Ok(false) };
        let tagged = nodes::tagged(&qmp, tag).await?;
        let drives = drives::query(&qmp).await?;
        let layers: Vec<&Layer> = drives.iter().flat_map(|drive| &drive.layers).collect();
        let has = |image: &PathBuf| {
            layers.iter().any(|layer| layer.is(image) && tagged.contains(&layer.node))
        };
        Ok(note.images.iter().all(has) && self.has_switched(domain, overlays).await?)
    }

    /// The device model is asked whether the guest stands on the overlays. Where there is none, an
    /// overlay that was written to says yes; if none was, no write is lost without them.
    async fn has_switched(&self, domain: Uuid, disks: &[(Target, PathBuf)]) -> Result<bool> {
        let Some(qmp) = self.monitor_of(domain).await? else {
            return were_written(&self.image_tool(), disks).await;
        };
        let drives = drives::query(&qmp).await?;
        let is_open = |overlay: &PathBuf| drives.iter().any(|drive| drive.depth(overlay).is_some());
        Ok(disks.iter().all(|(_, overlay)| is_open(overlay)))
    }

    async fn monitor_of(&self, domain: Uuid) -> Result<Option<Arc<Qmp>>> {
        match self.instance(domain) {
            Some(instance) => instance.monitor().await,
            None => Ok(None),
        }
    }

    async fn refuse_in_use(&self, domain: Uuid, image: &Path, what: &str) -> Result<()> {
        self.shared.refuse_elsewhere(domain, image, what)?;
        let Some(instance) = self.instance(domain) else { return Ok(()) };
        if let Some(target) = instance.disk_on(image) {
            return Err(in_use(image, &target, what));
        }
        let drives = self.drives(domain).await?;
        match drives.iter().find(|drive| drive.depth(image).is_some()) {
            Some(drive) => {
                let target = drive.top().and_then(|top| instance.disk_on(&top.image));
                Err(in_use(image, target.as_deref().unwrap_or(&drive.device), what))
            }
            None => Ok(()),
        }
    }

    /// A copy of an image that is written to would be torn.
    async fn refuse_active(&self, domain: Uuid, image: &Path, what: &str) -> Result<()> {
        let Some(instance) = self.instance(domain) else { return Ok(()) };
        match instance.disk_on(image) {
            Some(target) => Err(in_use(image, &target, what)),
            None => Ok(()),
        }
    }
}

/// The active layer of a disk, by the file that the definition names.
fn top<'a>(drives: &'a [Drive], live: &Element, target: &str) -> Result<&'a Layer> {
    let lacks = || {
        let what = format!("the device model does not serve disk '{target}'");
        failure(Condition::OperationFailed, what)
    };
    let disk = domain::disk(live, target).ok_or_else(lacks)?;
    let image = disk.path().map(Path::new).ok_or_else(lacks)?;
    let mut tops = drives.iter().filter_map(Drive::top);
    tops.find(|top| top.is(image)).ok_or_else(lacks)
}

/// Of an overlay, the same at any time: after a crash it is found again. QEMU takes 31 bytes.
fn node_name(overlay: &Path) -> String {
    format!("virtsnap-{:016x}", claim::fingerprint(overlay))
}

/// Absent is done.
async fn detach(qmp: &Qmp, overlay: &Path) -> Result<()> {
    let name = node_name(overlay);
    if !nodes::all(qmp).await?.iter().any(|node| node.node_name == name) {
        return Ok(());
    }
    match qmp.execute("blockdev-del", json!({ "node-name": name })).await {
        Ok(_) => Ok(()),
        Err(err @ QmpError::Refused { .. }) => {
            let what = format!("the device model keeps '{}' open", overlay.display());
            Err(failure(Condition::OperationFailed, what).caused_by(err))
        }
        Err(err) => Err(err.into()),
    }
}

/// What an overlay's header says it stands on; none if it is gone.
async fn below(overlay: &Path) -> Result<Option<(PathBuf, Format)>> {
    let path = overlay.to_owned();
    blocking(move || {
        let read = || match header::open_image(&path) {
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
            Ok(Some(file)) => header::read(&file),
            Ok(None) => Ok(None),
        };
        let head = read().map_err(|err| system("read", &path, err))?;
        Ok(head.and_then(|head| {
            let format = head.backing_format.as_deref().map_or(Format::Raw, Format::from);
            Some((virtsnap_block::image::info::resolve(&path, &head.backing?), format))
        }))
    })
    .await
}

fn new_file(step: &Step) -> Option<&Path> {
    match step {
        Step::CreateOverlay { overlay, .. } | Step::FillOverlay { overlay, .. } => Some(overlay),
        Step::CopyImage { to, .. } => Some(to),
        Step::SaveMemory { file, .. } => Some(file),
        _ => None,
    }
}

fn no_agent() -> Result<()> {
    let what = "Xen's guests have no agent that virtsnap could ask to freeze file systems";
    Err(Error::new(Condition::OperationUnsupported, what))
}

fn no_memory_inside() -> Result<()> {
    let what = "Xen keeps no memory in disk images";
    Err(Error::new(Condition::OperationUnsupported, what))
}
