//! Saved domains: to a file, to the store (managed save), and back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use virtsnap_engine::domain::{Active, Restore, Save, SaveImage, ShutOffReason, Suspended};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::plan;
use virtsnap_engine::ports::Hypervisor;
use virtsnap_store::remove_durably;
use virtsnap_xml::element::Element;

use super::definition::{self, View};
use super::job::Operation;
use super::life::{Domains, failed, invalid};
use super::table::Domain;

/// How virDomainSave and its successors are asked to save.
#[derive(Debug, Clone, Default)]
pub(crate) struct Saving {
    /// None: a managed save.
    pub(crate) file: Option<PathBuf>,
    /// Another definition for the same guest.
    pub(crate) xml: Option<String>,
    pub(crate) running: Option<bool>,
    pub(crate) format: Option<String>,
}

impl<H: Hypervisor> Domains<H> {
    pub(crate) async fn save(&self, domain: &Domain, asked: Saving) -> Result<()> {
        let _job = self.settled_job(domain, Operation::Save).await?;
        let active = self.running(domain)?;
        if asked.file.is_none() && !domain.is_persistent() {
            return Err(invalid("cannot do managed save for transient domain"));
        }
        let file = match &asked.file {
            Some(file) => {
                self.refuse_used(file)?;
                file.clone()
            }
            None => self.table.store().managed_save(domain.uuid)?,
        };
        let own = definition::view(&active.live, None, View { secure: true, inactive: true });
        let definition = match &asked.xml {
            Some(xml) => self.same_guest(own, xml).await?,
            None => own,
        };
        let format = asked.format.unwrap_or_else(|| "raw".to_owned());
        let save = Save { file, definition, running: asked.running, format };
        self.hypervisor.save(domain.uuid, save).await?;
        if asked.file.is_none() {
            domain.book().has_managed_save = true;
        }
        Ok(())
    }

    /// A saved guest comes back; one without a persistent definition is transient.
    pub(crate) async fn restore(
        &self,
        file: &Path,
        xml: Option<&str>,
        running: Option<bool>,
    ) -> Result<(Arc<Domain>, Active)> {
        let (saved, was_running) = self.whole(file).await?;
        let mut definition = match xml {
            Some(xml) => self.same_guest(saved, xml).await?,
            None => self.complete(saved).await?,
        };
        let (uuid, name) = definition::identify(&mut definition)?;
        let suspended = (!running.unwrap_or(was_running)).then_some(Suspended::Restored);
        let restore = Restore { file: file.to_owned(), discard: false, suspended };
        let domain = self.admit_for_start(uuid, &name).await?;
        let restored = async {
            let _job = self.settled_job(&domain, Operation::Restore).await?;
            if self.active(&domain).is_some() {
                return Err(invalid(format!("domain '{name}' is already active")));
            }
            self.bring_back(&domain, definition, restore).await
        };
        match restored.await {
            Ok(active) => Ok((domain, active)),
            Err(err) => {
                self.drop_if_gone(&domain);
                Err(err)
            }
        }
    }

    /// A start that finds a managed save: the guest comes back from it. None: it is no save that
    /// anybody finished, so that the domain boots. The caller has the job.
    pub(super) async fn restore_managed(
        &self,
        domain: &Domain,
        paused: bool,
    ) -> Result<Option<Active>> {
        let file = self.table.store().managed_save(domain.uuid)?;
        let (saved, running) = match self.hypervisor.save_image(&file).await? {
            SaveImage::Whole { definition, running } => (definition, running),
            SaveImage::Torn(why) => {
                tracing::warn!(domain = domain.name(), why, "its managed save is not used");
                self.discard_managed(domain)?;
                return Ok(None);
            }
        };
        let mut definition = self.complete(saved).await?;
        let (uuid, name) = definition::identify(&mut definition)?;
        if (uuid, &name) != (domain.uuid, &domain.name()) {
            return Err(failed(format!(
                "cannot restore domain '{}' uuid {} from a file which belongs to domain '{name}' \
                 uuid {uuid}",
                domain.name(),
                domain.uuid,
            )));
        }
        let suspended = match (paused, running) {
            (true, _) => Some(Suspended::Paused),
            (false, false) => Some(Suspended::Restored),
            (false, true) => None,
        };
        let restore = Restore { file, discard: true, suspended };
        let active = self.bring_back(domain, definition, restore).await?;
        domain.book().has_managed_save = false;
        Ok(Some(active))
    }

    async fn bring_back(
        &self,
        domain: &Domain,
        definition: Element,
        restore: Restore,
    ) -> Result<Active> {
        let restored = self.hypervisor.restore(definition, restore).await;
        if restored.is_err() {
            domain.set_off(ShutOffReason::Failed);
        }
        restored
    }

    pub(crate) async fn remove_managed_save(&self, domain: &Domain) -> Result<()> {
        let _job = self.job(domain, Operation::Change("the removal of a managed save")).await?;
        if !domain.book().has_managed_save {
            let file = self.table.store().managed_save(domain.uuid)?;
            let message = format!("cannot remove the managed save '{}'", file.display());
            return Err(Error::new(Condition::System(NO_ENTRY), message));
        }
        self.discard_managed(domain)
    }

    /// The memory must not meet the disks again, not even after a loss of power. Gone is done.
    pub(crate) fn discard_managed(&self, domain: &Domain) -> Result<()> {
        let file = self.table.store().managed_save(domain.uuid)?;
        remove_durably(&file).map_err(|err| {
            let errno = err.raw_os_error().unwrap_or_default();
            let message = format!("cannot remove the managed save '{}'", file.display());
            Error::new(Condition::System(errno), message).caused_by(err)
        })?;
        domain.book().has_managed_save = false;
        Ok(())
    }

    /// After the hypervisor has found its guests: a guest that runs has no use for a save, whose
    /// memory is older than its disks.
    pub(super) fn settle_managed(&self) {
        for domain in self.table.all() {
            let Ok(file) = self.table.store().managed_save(domain.uuid) else { continue };
            let is_there = file.exists();
            domain.book().has_managed_save = is_there;
            if is_there
                && self.active(&domain).is_some()
                && let Err(err) = self.discard_managed(&domain)
            {
                tracing::error!(domain = domain.name(), error = %err.chain(), "a managed save");
            }
        }
    }

    // -- save images -----------------------------------------------------------------------------

    pub(crate) fn managed_save_file(&self, domain: &Domain) -> Result<PathBuf> {
        if !domain.book().has_managed_save {
            return Err(invalid("domain does not have managed save image"));
        }
        self.table.store().managed_save(domain.uuid)
    }

    pub(crate) async fn save_image_xml(&self, file: &Path, secure: bool) -> Result<String> {
        let (saved, _) = self.whole(file).await?;
        Ok(definition::view(&saved, None, View { secure, inactive: false }).to_string())
    }

    pub(crate) async fn edit_save_image(
        &self,
        file: &Path,
        xml: &str,
        running: Option<bool>,
    ) -> Result<()> {
        let (saved, _) = self.whole(file).await?;
        let definition = self.same_guest(saved, xml).await?;
        self.hypervisor.edit_save_image(file, &definition, running).await
    }

    async fn whole(&self, file: &Path) -> Result<(Element, bool)> {
        match self.hypervisor.save_image(file).await? {
            SaveImage::Whole { definition, running } => Ok((definition, running)),
            SaveImage::Torn(why) => {
                let message = format!("cannot use the save image '{}': {why}", file.display());
                Err(failed(message))
            }
        }
    }

    /// Another definition, completed, of the guest whose memory was saved.
    async fn same_guest(&self, saved: Element, xml: &str) -> Result<Element> {
        let mut asked = self.complete(definition::parse(xml)?).await?;
        let mut saved = self.complete(saved).await?;
        let difference =
            match definition::identify(&mut saved)? == definition::identify(&mut asked)? {
                true => self.hypervisor.abi_difference(&saved, &asked),
                false => Some("the name or the uuid is another".to_owned()),
            };
        match difference {
            None => Ok(asked),
            Some(what) => Err(Error::new(
                Condition::ConfigUnsupported,
                format!("the saved memory does not fit the new definition: {what}"),
            )),
        }
    }

    /// Memory must not be written over what a domain or one of its snapshots needs.
    fn refuse_used(&self, file: &Path) -> Result<()> {
        let Ok(wanted) = file.canonicalize() else { return Ok(()) };
        for domain in self.table.all_with_waiting() {
            let mut used: Vec<PathBuf> = Vec::new();
            {
                let book = domain.book();
                used.extend(plan::images_of(&book.listed()).into_keys());
                used.extend(plan::memory_files_of(&book.listed()));
                used.extend(book.owned.iter().cloned());
                for definition in book.config.iter() {
                    used.extend(
                        virtsnap_xml::domain::disks(definition)
                            .filter_map(|disk| disk.path().map(PathBuf::from)),
                    );
                }
            }
            if used.iter().any(|path| path.canonicalize().is_ok_and(|path| path == wanted)) {
                let message = format!(
                    "'{}' belongs to a disk or a snapshot of domain '{}'",
                    file.display(),
                    domain.name()
                );
                return Err(invalid(message));
            }
        }
        Ok(())
    }
}

/// ENOENT.
const NO_ENTRY: i32 = 2;
