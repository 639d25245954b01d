//! Internal snapshots of single images.

use std::path::Path;

use uuid::Uuid;
use virtsnap_block::nodes::Open;
use virtsnap_engine::error::{Condition, Result};
use virtsnap_engine::facts::Format::Qcow2;

use crate::blocks::{Chain, Layer, nodes};
use crate::confine::Use;
use crate::hypervisor::Qemu;
use crate::image::failure;
use crate::instance::Instance;

impl Qemu {
    pub(super) async fn delete_snapshot(
        &self,
        domain: Uuid,
        image: &Path,
        tag: &str,
    ) -> Result<()> {
        let instance = self.instance(domain);
        let used = instance.as_ref().and_then(|i| Some((i, i.layer_of(image)?)));
        let Some((instance, (target, layer))) = used else {
            return self.image_tool().delete_snapshot(image, &Qcow2, tag).await;
        };
        let chain = instance.chain(&target).ok_or_else(|| nodes::no_disk(&target))?;
        let depth = chain.layers.iter().position(|other| *other == layer).unwrap_or(0);
        if depth == 0 {
            return delete_live(instance, &layer, tag).await;
        }
        self.delete_below(instance, &chain, depth, tag).await
    }

    /// A backing layer is open for reading only; to delete in it, it is opened for writing.
    async fn delete_below(
        &self,
        instance: &Instance,
        chain: &Chain,
        depth: usize,
        tag: &str,
    ) -> Result<()> {
        let Some(layer) = chain.layers.get(depth) else { return Ok(()) };
        if has(instance, layer, tag).await? {
            self.lend(instance, &layer.image, Use::Own)?;
            nodes::reopen(instance, chain, depth, false).await?;
        }
        let deleted = delete_live(instance, layer, tag).await;
        // Also when it was opened by a run that a crash ended.
        let closed = nodes::reopen(instance, chain, depth, true).await;
        deleted.and(closed)
    }
}

async fn delete_live(instance: &Instance, layer: &Layer, tag: &str) -> Result<()> {
    let node = layer.format_node();
    virtsnap_block::nodes::delete_snapshot(&instance.qmp, &node, &layer.image, tag).await
}

async fn has(instance: &Instance, layer: &Layer, tag: &str) -> Result<bool> {
    let tagged = tagged(instance, tag).await?;
    Ok(tagged.contains(&layer.format_node()))
}

/// The format nodes whose image has a snapshot of that tag.
pub(super) async fn tagged(instance: &Instance, tag: &str) -> Result<Vec<String>> {
    Ok(virtsnap_block::nodes::tagged(&instance.qmp, tag).await?)
}

/// The active layers of these disks, each once.
pub(super) fn active(instance: &Instance, targets: &[String]) -> Result<Vec<Open>> {
    let mut layers: Vec<Open> = Vec::new();
    for target in targets {
        let chain = instance.chain(target).ok_or_else(|| nodes::no_disk(target))?;
        let layer = chain.layers.first().ok_or_else(|| nodes::no_disk(target))?;
        if layer.format != "qcow2" {
            return Err(failure(
                Condition::ConfigUnsupported,
                format!("disk '{target}' is {}: internal snapshots need qcow2", layer.format),
            ));
        }
        let open = Open::from(layer);
        if !layers.contains(&open) {
            layers.push(open);
        }
    }
    Ok(layers)
}
