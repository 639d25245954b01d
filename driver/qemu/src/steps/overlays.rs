//! New layers of a running domain: attached as nodes nothing stands on, then switched to.

use std::path::{Path, PathBuf};

use serde_json::json;
use uuid::Uuid;
use virtsnap_engine::error::{Condition, Result};
use virtsnap_engine::facts::{Format, Target};
use virtsnap_engine::ports::PivotError;

use crate::blocks::{Layer, nodes};
use crate::confine::Use;
use crate::hypervisor::Qemu;
use crate::image::{blocking, failure, header, system};
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
        {
            // It was made like the layer below, which may itself be lent.
            let mut inner = instance.lock();
            if let Some(owner) = inner.borrowed.owner_before(&below) {
                inner.borrowed.inherit(overlay, owner);
                instance.save_locked(&inner)?;
            }
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
        let instance = self.running(domain).map_err(PivotError::Refused)?;
        let (mut actions, mut switched) = (Vec::new(), Vec::new());
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

    /// A running QEMU is asked whether its guest stands on the overlays. When it is gone, an
    /// overlay that was written to says yes; if none was, no write is lost without them.
    pub(super) async fn has_switched(
        &self,
        domain: Uuid,
        disks: &[(Target, PathBuf)],
    ) -> Result<bool> {
        let Some(instance) = self.instance(domain) else {
            for (_, overlay) in disks {
                if self.was_written(overlay).await? {
                    return Ok(true);
                }
            }
            return Ok(false);
        };
        let mut all = true;
        for (target, overlay) in disks {
            let attached = nodes::unused(&instance, overlay).await?;
            let chain = nodes::follow(&instance, target, &attached).await?;
            all &= chain.layers.iter().any(|layer| layer.image == *overlay);
        }
        Ok(all)
    }

    async fn was_written(&self, overlay: &Path) -> Result<bool> {
        let path = overlay.to_owned();
        let pristine = blocking(move || {
            let read = |err| system("read", &path, err);
            match std::fs::File::open(&path) {
                Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(Some(true)),
                Err(err) => Err(read(err)),
                Ok(file) => match header::read(&file).map_err(read)? {
                    Some(head) => Ok(Some(head.is_pristine(&file).map_err(read)?)),
                    None => Ok(None),
                },
            }
        })
        .await?;
        match pristine {
            Some(pristine) => Ok(!pristine),
            // qed: its own tool counts.
            None => {
                let check = self.image_tool().check(overlay, &super::format_of(overlay)?).await?;
                Ok(check.allocated_clusters > 0)
            }
        }
    }
}

async fn detach(instance: &Instance, overlay: &Path) -> Result<()> {
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
