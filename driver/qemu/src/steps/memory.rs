//! Memory into a file of its own: a save image, or a qcow2 image that no device uses.

use std::path::Path;

use uuid::Uuid;
use virtsnap_engine::domain::{PausedReason, RunningReason, State};
use virtsnap_engine::error::Result;
use virtsnap_xml::element::Element;

use crate::hypervisor::Qemu;
use crate::image::claim;
use crate::migration;
use crate::save_image::{self, COOKIE, Format, Head};

impl Qemu {
    pub(super) async fn save_memory(
        &self,
        domain: Uuid,
        file: &Path,
        live: bool,
        overwrite: bool,
        definition: &Element,
    ) -> Result<()> {
        let instance = self.running(domain)?;
        let was_running =
            matches!(instance.state(), State::Running(_) | State::Paused(PausedReason::Snapshot));
        let head =
            Head::new(definition.to_string(), Some(COOKIE.to_owned()), was_running, Format::Raw);
        let target = claim::write_anew(domain, file, overwrite).await?;
        save_image::save(&instance, target, head, live).await
    }

    pub(super) async fn undo_save_memory(
        &self,
        domain: Uuid,
        file: &Path,
        live: bool,
    ) -> Result<()> {
        if let Some(instance) = self.instance(domain) {
            migration::end(&instance).await?;
            // One that its user had paused is not stopped by the end of a migration.
            let stopped_by_us = matches!(
                instance.state(),
                State::Paused(PausedReason::Snapshot | PausedReason::Unknown)
            );
            if live && stopped_by_us {
                self.let_run(domain, RunningReason::Unpaused).await?;
            }
        }
        claim::undo(domain, file).await
    }
}
