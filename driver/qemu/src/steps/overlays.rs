//! New layers of a running domain: attached as nodes nothing stands on, then switched to.

use std::path::{Path, PathBuf};

use serde_json::json;
use uuid::Uuid;
use virtsnap_engine::error::{Condition, Result};
use virtsnap_engine::facts::{Format, Target};
use virtsnap_engine::ports::PivotError;

use super::inside::{active, tagged};
use crate::blocks::{Layer, nodes};
use crate::confine::Use;
use crate::hypervisor::Qemu;
use crate::image::{claim, failure, were_written};
use crate::instance::Instance;

impl Qemu {
    pub(super) async fn attach_overlay(
        &self,
        domain: Uuid,
        target: &str,
        overlay: &Path,
        format: &Format,
    ) -> Result<()> {
        let instance = self.running(domain)?;
        let below = nodes::active_image(&instance, target)?;
        detach(&instance, overlay).await?;
        self.lend(&instance, overlay, Use::Own)?;
        if claim::is_claimed(domain, overlay).await? {
            // It was made like the layer below, which may itself be lent.
            self.lend_like(&instance, overlay, &below)?;
        }
        nodes::add(&instance, target, overlay, format.as_str()).await
    }

    pub(super) async fn detach_overlay(&self, domain: Uuid, overlay: &Path) -> Result<()> {
        match self.instance(domain) {
            Some(instance) => detach(&instance, overlay).await,
            None => Ok(()),
        }
    }

    pub(super) async fn switch_to_overlays(
        &self,
        domain: Uuid,
        disks: &[(Target, PathBuf)],
    ) -> Result<(), PivotError> {
        self.snapshot_disks(domain, disks, &[], "").await
    }

    /// All in one transaction: some disks' writes go to their overlays, others get an internal
    /// snapshot.
    pub(super) async fn snapshot_disks(
        &self,
        domain: Uuid,
        disks: &[(Target, PathBuf)],
        internal: &[Target],
        tag: &str,
    ) -> Result<(), PivotError> {
        let instance = self.running(domain).map_err(PivotError::Refused)?;
        let (mut actions, mut switched) = (Vec::new(), Vec::new());
        if !internal.is_empty() {
            let layers = active(&instance, internal).map_err(PivotError::Refused)?;
            let begun = self.note(domain).begin(&instance.qmp, tag, &layers).await;
            begun.map_err(PivotError::Refused)?;
            actions.extend(layers.iter().map(|layer| {
                json!({
                    "type": "blockdev-snapshot-internal-sync",
                    "data": { "device": layer.node, "name": tag }
                })
            }));
        }
        for (target, overlay) in disks {
            let pair = top_and_overlay(&instance, target, overlay).await;
            let (top, layer) = pair.map_err(PivotError::Refused)?;
            actions.push(json!({
                "type": "blockdev-snapshot",
                "data": { "node": top.format_node(), "overlay": layer.format_node() }
            }));
            switched.push((target, layer));
        }
        match instance.qmp.execute("transaction", json!({ "actions": actions })).await {
            Ok(_) => {}
            Err(err) if err.in_doubt() => return Err(PivotError::InDoubt(err.into())),
            Err(err) => return Err(PivotError::Refused(err.into())),
        }
        let noted = instance.update(|_, chains| {
            for (target, layer) in switched {
                if let Some(chain) = chains.get_mut(target) {
                    chain.layers.insert(0, layer);
                }
            }
        });
        // It has happened all the same, and QEMU's graph says so to whoever asks.
        if let Err(err) = noted {
            tracing::error!(domain = instance.name, "{}", err.chain());
        }
        Ok(())
    }

    /// QEMU takes all of a transaction back if one part fails; but if it dies in it, some images
    /// may have the internal snapshot and others not. These have none then.
    pub(super) async fn has_snapshot(
        &self,
        domain: Uuid,
        overlays: &[(Target, PathBuf)],
        internal: &[Target],
        tag: &str,
    ) -> Result<bool> {
        if internal.is_empty() {
            return self.has_switched(domain, overlays).await;
        }
        if let Some(instance) = self.instance(domain) {
            let tagged = tagged(&instance, tag).await?;
            let layers = active(&instance, internal)?;
            let all = layers.iter().all(|layer| tagged.contains(&layer.node));
            return Ok(all && self.has_switched(domain, overlays).await?);
        }
        self.note(domain).settle(&self.image_tool(), tag).await
    }

    /// A running QEMU is asked whether its guest stands on the overlays. When it is gone, an
    /// overlay that was written to says yes; if none was, no write is lost without them.
    pub(super) async fn has_switched(
        &self,
        domain: Uuid,
        disks: &[(Target, PathBuf)],
    ) -> Result<bool> {
        let Some(instance) = self.instance(domain) else {
            return were_written(&self.image_tool(), disks).await;
        };
        let mut all = true;
        for (target, overlay) in disks {
            let attached = nodes::unused(&instance, overlay).await?;
            let chain = nodes::follow(&instance, target, &attached).await?;
            all &= chain.layers.iter().any(|layer| layer.is(overlay));
        }
        Ok(all)
    }
}

pub(super) async fn detach(instance: &Instance, overlay: &Path) -> Result<()> {
    for layer in nodes::unused(instance, overlay).await? {
        nodes::remove(&instance.qmp, &layer).await?;
    }
    Ok(())
}

async fn top_and_overlay(
    instance: &Instance,
    target: &str,
    overlay: &Path,
) -> Result<(Layer, Layer)> {
    let chain = instance.chain(target).ok_or_else(|| nodes::no_disk(target))?;
    let top = chain.layers.first().cloned().ok_or_else(|| nodes::no_disk(target))?;
    let attached = nodes::unused(instance, overlay).await?;
    let layer = attached.into_iter().find(|layer| !layer.format.is_empty()).ok_or_else(|| {
        let what = format!("overlay '{}' was not given to QEMU", overlay.display());
        failure(Condition::Internal, what)
    })?;
    Ok((top, layer))
}
