//! A guest's memory on its way to a file, and guests that end with that.
//!
//! The guest takes part in its save: it is told to stand still and does. After it, well or not, it
//! stands as one that was paused, in the same domain. One that does so when the save was given up
//! meanwhile is let go on.
//!
//! The status of a domain that is being saved names the file until the domain is gone. If the daemon
//! dies in between, the next one goes by it: a domain that is still there gets its guest back and the
//! file goes; if it is gone, the image is whole and stays.

use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;
use virtsnap_block::image::claim::{self, Writing};
use virtsnap_block::image::{blocking, failure, plain_path, system};
use virtsnap_engine::domain::{
    Event, PausedReason, RunningReason, Save, SaveImage, ShutOffReason, State, Suspended,
};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::element::Element;

use crate::config::to_libxl;
use crate::context::ShutdownReason;
use crate::hypervisor::{Shared, Xen};
use crate::instance::{Instance, Owner};
use crate::memory::{Memory, OnItsWay};
use crate::save_image::{self, Head};

impl Xen {
    pub(crate) async fn save_domain(&self, domain: Uuid, save: Save) -> Result<()> {
        let instance = self.running(domain)?;
        if save.format != "raw" {
            let what = format!("Xen's save images are not compressed; '{}' is", save.format);
            return Err(failure(Condition::OperationUnsupported, what));
        }
        plain_path(&save.file)?;
        self.refuse_layer(&save.file)?;
        let _acting = instance.acting.lock().await;
        self.shared.check_takes_part(&instance).await?;
        let head = self.head(&instance, &save.definition, save.running.unwrap_or(true)).await?;
        instance.update(|inner| inner.saving = Some(save.file.clone()))?;
        let saved = async {
            let target = claim::write_anew(domain, &save.file, true).await?;
            self.shared.write_memory(&instance, target, head, false, PausedReason::Save).await?;
            self.shared.end(&instance, ShutOffReason::Saved).await
        };
        if let Err(err) = saved.await {
            if let Err(undo) = self.shared.undo_save(&instance, &save.file).await {
                tracing::error!(domain = instance.name, "undo of a save: {}", undo.chain());
            }
            return Err(err);
        }
        claim::keep(domain, &save.file).await
    }

    /// What stands before a guest's memory.
    async fn head(&self, instance: &Instance, definition: &Element, running: bool) -> Result<Head> {
        let config = match &instance.owner {
            Owner::Us => to_libxl(&instance.live(), &self.shared.host)?,
            Owner::Another { .. } => self.shared.context.configuration(instance.id).await?,
        };
        Ok(Head::new(config, definition, running))
    }

    pub(crate) async fn save_memory(
        &self,
        domain: Uuid,
        file: &Path,
        live: bool,
        overwrite: bool,
        definition: &Element,
    ) -> Result<()> {
        let instance = self.running(domain)?;
        if let Owner::Another { untold } = &instance.owner
            && !untold.is_empty()
        {
            // It could not be started again as it was.
            return Err(failure(
                Condition::OperationUnsupported,
                format!(
                    "domain '{}' was not started by virtsnap, and its configuration has parts that \
                     no definition tells of ({}): take a snapshot of its disks alone",
                    instance.name,
                    untold.join(", ")
                ),
            ));
        }
        let _acting = instance.acting.lock().await;
        self.shared.check_takes_part(&instance).await?;
        let head = self.head(&instance, definition, true).await?;
        let target = claim::write_anew(domain, file, overwrite).await?;
        self.shared.write_memory(&instance, target, head, live, PausedReason::Snapshot).await
    }

    pub(crate) async fn undo_save_memory(&self, domain: Uuid, file: &Path) -> Result<()> {
        if let Some(instance) = self.instance(domain) {
            self.shared.let_go_on(&instance, RunningReason::Unpaused).await?;
        }
        claim::undo(domain, file).await
    }

    /// Memory must not be written over a disk.
    fn refuse_layer(&self, file: &Path) -> Result<()> {
        let instances: Vec<_> = self.shared.instances().values().cloned().collect();
        let Ok(file) = file.canonicalize() else { return Ok(()) };
        for instance in instances {
            if let Some(target) = instance.disk_on(&file) {
                let what = format!(
                    "'{}' is the image of disk '{target}' of domain '{}'",
                    file.display(),
                    instance.name
                );
                return Err(failure(Condition::OperationInvalid, what));
            }
        }
        Ok(())
    }

    pub(crate) async fn edit_image(
        &self,
        file: &Path,
        definition: &Element,
        running: Option<bool>,
    ) -> Result<()> {
        let config = to_libxl(definition, &self.shared.host)?;
        save_image::edit(file, definition, config, running).await
    }
}

impl Shared {
    /// Before anything is touched. A guest that does not take part holds everybody up for a minute.
    async fn check_takes_part(&self, instance: &Instance) -> Result<()> {
        let refuse = |why: &str| Err(Error::new(Condition::OperationInvalid, why));
        match self.state_now(instance).await? {
            State::Running(_) => {}
            State::Shutdown => return refuse("the domain is shutting down"),
            _ => {
                return refuse(
                    "the guest takes part when its memory is saved, and so has to run: resume it \
                     first",
                );
            }
        }
        match instance.on_its_way_down() {
            None => Ok(()),
            Some(why) => refuse(&format!("the guest's memory cannot be saved: {why}")),
        }
    }

    /// All of a guest's memory, durably under its name; the guest stands still then.
    async fn write_memory(
        &self,
        instance: &Instance,
        target: Writing,
        head: Head,
        live: bool,
        reason: PausedReason,
    ) -> Result<()> {
        // Noted before: a guest that is found standing still must be let go on.
        let before = instance.state();
        instance.update(|inner| inner.state = State::Paused(reason))?;
        let written = self.write_stream(instance, &target, &head, live).await;
        if let Err(err) = written {
            // Where this fails too, it is known to be standing still by us, and undo tries again.
            let took_part = self.stand_up(instance).await;
            instance.memory().failed(matches!(took_part, Ok(true)));
            took_part?;
            self.unpause(instance).await?;
            instance.update(|inner| inner.state = before)?;
            return Err(err);
        }
        instance.memory().succeeded();
        self.tell(instance, Event::Suspended(Suspended::Paused));
        blocking(move || {
            let path = target.path().to_owned();
            head.finish(target.file()).map_err(|err| system("write", &path, err))?;
            target.publish()
        })
        .await
    }

    async fn write_stream(
        &self,
        instance: &Instance,
        target: &Writing,
        head: &Head,
        live: bool,
    ) -> Result<()> {
        let failed = |err| system("write", target.path(), err);
        head.begin(target.file()).map_err(failed)?;
        let file = target.file().try_clone().map_err(failed)?;
        let total = self.info(instance).await?.map_or(0, |info| info.memory * 1024);
        let on_its_way = OnItsWay::new(&file, head.stream_at(), total).map_err(failed)?;
        *instance.memory() = Memory::OnItsWay(on_its_way);
        let mut saved = self.context.suspend(instance.id, file.into(), live).await;
        // A guest that took no part in the one takes none in the other.
        let is_over =
            |err: &&Error| matches!(err.condition, Condition::Timeout | Condition::Aborted);
        let refused = saved.as_ref().err().filter(|err| !is_over(err));
        if let (Some(err), true) = (refused, live) {
            // Where pages cannot be followed while the guest writes to them, it stands still.
            tracing::warn!(domain = instance.name, "it is saved standing still: {}", err.chain());
            self.stand_up(instance).await?;
            let mut file = target.file().try_clone().map_err(failed)?;
            file.set_len(head.stream_at()).map_err(failed)?;
            file.seek(SeekFrom::Start(head.stream_at())).map_err(failed)?;
            saved = self.context.suspend(instance.id, file.into(), false).await;
        }
        saved?;
        // As one that was paused: what comes next needs no more than that it stands still.
        self.context.pause(instance.id).await?;
        self.context.resume(instance.id).await
    }

    /// A guest that a save has left suspended runs again. Whether it was.
    async fn stand_up(&self, instance: &Instance) -> Result<bool> {
        let is_suspended = self.is_suspended(instance).await?;
        if is_suspended {
            self.context.resume(instance.id).await?;
        }
        Ok(is_suspended)
    }

    async fn is_suspended(&self, instance: &Instance) -> Result<bool> {
        let info = self.info(instance).await?;
        Ok(info.is_some_and(|info| info.shutdown == Some(ShutdownReason::Suspend)))
    }

    /// A guest stands still for its memory, in a save of ours or of xl's.
    pub(crate) async fn stood_still(&self, instance: &Instance) {
        let _acting = instance.acting.lock().await;
        if !instance.memory().was_given_up(Instant::now()) {
            return;
        }
        tracing::info!(domain = instance.name, "it stands still for a save that was given up");
        if let Err(err) = self.stand_up(instance).await {
            tracing::error!(domain = instance.name, "it stands still: {}", err.chain());
        }
    }

    /// It was stopped by us, and runs again. Done before is done.
    pub(crate) async fn let_go_on(
        &self,
        instance: &Arc<Instance>,
        reason: RunningReason,
    ) -> Result<()> {
        self.stand_up(instance).await?;
        match instance.state() {
            State::Paused(PausedReason::Snapshot | PausedReason::Save) => {
                self.resume(instance, reason).await
            }
            _ => Ok(()),
        }
    }

    /// The guest goes on as it was, without the file.
    async fn undo_save(&self, instance: &Arc<Instance>, file: &Path) -> Result<()> {
        if self.instances().contains_key(&instance.uuid) {
            self.let_go_on(instance, RunningReason::SaveCanceled).await?;
            instance.update(|inner| inner.saving = None)?;
        }
        claim::undo(instance.uuid, file).await
    }

    /// What a daemon that died in a save left. `instance`: the domain is still there.
    pub(crate) async fn settle_save(
        &self,
        domain: Uuid,
        instance: Option<&Arc<Instance>>,
        file: &Path,
    ) -> Result<()> {
        if let Some(instance) = instance {
            return self.undo_save(instance, file).await;
        }
        match save_image::look_into(file, &self.host).await {
            Ok(SaveImage::Whole { .. }) => claim::keep(domain, file).await,
            Ok(SaveImage::Torn(_)) | Err(_) => claim::undo(domain, file).await,
        }
    }
}
