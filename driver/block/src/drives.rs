//! The disks of a running device model, whoever started it and named its nodes: found by the files
//! that they have open.
//!
//! Sources: `query-named-block-nodes`, and the block graph for who stands on whom. Names of nodes
//! that begin with `#` were made up by QEMU, which opened the image because another one stands on
//! it; such a node cannot be reopened.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use virtsnap_engine::error::Result;
use virtsnap_engine::facts::{Format, ImageFacts};

use crate::graph::Graph;
use crate::image::is_same;
use crate::nodes::{self, Node, Open};
use crate::qmp::{Qmp, QmpError};
use crate::survey::{Images, is_still_there};

/// QEMU's drivers of image formats that a disk of a guest may have.
const FORMATS: [&str; 6] = ["raw", "qcow2", "qcow", "qed", "vpc", "vhdx"];

/// A device of the guest's, and what it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// Its path in QEMU's object tree.
    pub device: String,
    /// Topmost first; never empty.
    pub layers: Vec<Layer>,
}

/// An image that is open, and its nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    pub image: PathBuf,
    /// The node of the format.
    pub node: String,
    /// The node under it, of the file or device.
    pub storage: String,
    pub facts: ImageFacts,
    read_only: bool,
    /// As `blockdev-reopen` takes them.
    cache: Value,
    detect_zeroes: String,
}

/// How a layer is open from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reopen {
    pub read_only: bool,
    /// The guest's discards reach the image.
    pub discard: bool,
}

impl Layer {
    /// Is this the layer's image, by whatever name?
    pub fn is(&self, image: &Path) -> bool {
        self.image == image || is_same(&self.image, image)
    }

    pub fn has_name(&self) -> bool {
        !self.node.starts_with('#')
    }
}

impl From<&Layer> for Open {
    fn from(layer: &Layer) -> Self {
        Self { image: layer.image.clone(), node: layer.node.clone() }
    }
}

impl Drive {
    pub fn depth(&self, image: &Path) -> Option<usize> {
        self.layers.iter().position(|layer| layer.is(image))
    }

    /// Internal snapshots of that layer can be deleted: a layer below the top is opened for writing
    /// then.
    pub fn can_delete_in(&self, depth: usize) -> bool {
        depth == 0
            || self.layers.get(depth).is_some_and(|layer| !layer.read_only || layer.has_name())
    }

    /// The same drive as it is now, by the block graph: no image has been opened since.
    ///
    /// Unlike [`query`] this can be asked while a stream ends (see [`crate::nodes`]).
    pub async fn follow(&self, qmp: &Qmp) -> Result<Self, QmpError> {
        let known = self.layers.iter().map(|layer| layer.node.clone()).collect();
        let mut chains = Graph::query(qmp).await?.chains(&known).into_iter();
        let found = chains.find(|(device, _)| *device == self.device);
        let (device, chain) = found.ok_or_else(|| {
            let what = format!("the device '{}' stands on none of its images", self.device);
            QmpError::Protocol(what)
        })?;
        let of = |name: &String| self.layers.iter().find(|layer| layer.node == *name).cloned();
        Ok(Self { device, layers: chain.iter().filter_map(of).collect() })
    }

    pub fn top(&self) -> Option<&Layer> {
        self.layers.first()
    }

    /// `blockdev-reopen` of a layer that has a name.
    fn reopen_options(&self, depth: usize, how: Reopen) -> Option<Value> {
        let layer = self.layers.get(depth)?;
        let mut options = json!({
            "driver": layer.facts.format.as_str(),
            "node-name": layer.node,
            "file": layer.storage,
            "read-only": how.read_only,
            "cache": layer.cache,
            "detect-zeroes": layer.detect_zeroes,
            "discard": if how.discard { "unmap" } else { "ignore" },
        });
        if matches!(layer.facts.format, Format::Qcow2 | Format::Qed) {
            let below = self.layers.get(depth + 1).map(|below| below.node.as_str());
            options["backing"] = below.into();
        }
        Some(options)
    }
}

/// Every drive of the device model that has a medium.
pub async fn query(qmp: &Qmp) -> Result<Vec<Drive>, QmpError> {
    let nodes = nodes::all(qmp).await?;
    Ok(of(nodes, &Graph::query(qmp).await?))
}

/// The same of answers that are there.
pub fn of(nodes: Vec<Node>, graph: &Graph) -> Vec<Drive> {
    // QEMU renders the name of a format's node as it likes, and that of a file's as it is.
    let files: BTreeMap<String, PathBuf> =
        nodes.iter().map(|node| (node.node_name.clone(), PathBuf::from(&node.file))).collect();
    let mut layers: Vec<Layer> = Vec::new();
    for node in nodes.into_iter().filter(|node| FORMATS.contains(&node.drv.as_str())) {
        let Some(storage) = graph.below(&node.node_name, "file") else { continue };
        let Some(image) = files.get(storage).cloned() else { continue };
        let format = Format::from(node.drv.as_str());
        let cache = json!({ "direct": node.cache.direct, "no-flush": node.cache.no_flush });
        layers.push(Layer {
            facts: ImageFacts { format, ..node.image.facts(&image) },
            image,
            storage: storage.to_owned(),
            node: node.node_name,
            read_only: node.read_only,
            cache,
            detect_zeroes: node.detect_zeroes,
        });
    }
    let known: BTreeSet<String> = layers.iter().map(|layer| layer.node.clone()).collect();
    let known_as = |name: &String| layers.iter().find(|layer| layer.node == *name).cloned();
    let drive = |(device, chain): (String, Vec<String>)| {
        let mut layers: Vec<Layer> = chain.iter().filter_map(known_as).collect();
        for at in 0..layers.len() {
            let below = layers.get(at + 1).map(|below| (below.image.clone(), &below.facts.format));
            let (backing, format) = below.map(|(i, f)| (i, f.clone())).unzip();
            if let Some(layer) = layers.get_mut(at) {
                (layer.facts.backing, layer.facts.backing_format) = (backing, format);
            }
        }
        Drive { device, layers }
    };
    graph.chains(&known).into_iter().map(drive).collect()
}

/// The images of all drives, as the device model knows them, that are still where they were.
pub fn images(drives: &[Drive]) -> Images {
    let layers = drives.iter().flat_map(|drive| &drive.layers);
    let there = layers.filter(|layer| is_still_there(&layer.image, &layer.facts.format));
    let facts = |layer: &Layer| ImageFacts {
        is_block_device: crate::image::storage_driver(&layer.image) == "host_device",
        ..layer.facts.clone()
    };
    there.map(|layer| (layer.image.clone(), facts(layer))).collect()
}

/// What the device model keeps of a layer in its memory goes to the file.
///
/// A reopen with nothing changed says when that failed. A node without a name is only told to
/// (`qemu-io`, of the human monitor): where it fails, QEMU says so in its log alone.
pub async fn flush(qmp: &Qmp, drive: &Drive, depth: usize, how: Reopen) -> Result<()> {
    let Some(layer) = drive.layers.get(depth) else { return Ok(()) };
    if layer.has_name() {
        return reopen(qmp, drive, depth, how).await;
    }
    let line = format!("qemu-io {} flush", layer.node);
    qmp.execute("human-monitor-command", json!({ "command-line": line })).await?;
    Ok(())
}

async fn reopen(qmp: &Qmp, drive: &Drive, depth: usize, how: Reopen) -> Result<()> {
    if let Some(options) = drive.reopen_options(depth, how) {
        qmp.execute("blockdev-reopen", json!({ "options": [options] })).await?;
    }
    Ok(())
}

/// Every internal snapshot of that tag goes from the layer; none is done.
pub async fn delete_snapshot(qmp: &Qmp, drive: &Drive, depth: usize, tag: &str) -> Result<()> {
    let Some(layer) = drive.layers.get(depth) else { return Ok(()) };
    if depth == 0 || !layer.read_only {
        return nodes::delete_snapshot(qmp, &layer.node, &layer.image, tag).await;
    }
    let how = |read_only| Reopen { read_only, discard: false };
    reopen(qmp, drive, depth, how(false)).await?;
    let deleted = nodes::delete_snapshot(qmp, &layer.node, &layer.image, tag).await;
    let closed = reopen(qmp, drive, depth, how(true)).await;
    deleted.and(closed)
}

/// Takes from the device model every node of an image that no drive stands on.
///
/// QEMU refuses that of one that something else uses, and of one that it has opened by itself and
/// will close by itself.
pub async fn sweep(qmp: &Qmp) -> Result<()> {
    let nodes = nodes::all(qmp).await?;
    let used: BTreeSet<String> =
        query(qmp).await?.into_iter().flat_map(|d| d.layers).map(|layer| layer.node).collect();
    let mut left: Vec<String> = nodes
        .into_iter()
        .filter(|node| FORMATS.contains(&node.drv.as_str()) && !node.node_name.starts_with('#'))
        .map(|node| node.node_name)
        .filter(|name| !used.contains(name))
        .collect();
    // One that another stands on goes after that.
    loop {
        let before = left.len();
        let mut refused = Vec::new();
        for name in left {
            match qmp.execute("blockdev-del", json!({ "node-name": name })).await {
                Ok(_) => {}
                Err(QmpError::Refused { desc, .. }) => refused.push((name, desc)),
                Err(err) => return Err(err.into()),
            }
        }
        if refused.len() == before {
            for (node, desc) in refused {
                tracing::debug!(node, desc, "a node stays in the device model");
            }
            return Ok(());
        }
        left = refused.into_iter().map(|(name, _)| name).collect();
    }
}

#[cfg(test)]
mod tests;
