//! Block nodes of a running QEMU: add, find, reopen, delete; and the chains as QEMU has them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::json;
pub(crate) use virtsnap_block::nodes::all;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use super::graph::Graph;
use super::{Chain, Layer};
use crate::argv::{Cache, DiskOptions, blockdev};
use crate::backing;
use crate::instance::Instance;
use crate::qmp::{Qmp, QmpError};

/// The number in `libvirt-N-storage` or `libvirt-N-format`.
fn number(node_name: &str, kind: &str) -> Option<u32> {
    node_name.strip_prefix("libvirt-")?.strip_suffix(kind)?.strip_suffix('-')?.parse().ok()
}

/// Gives QEMU an image as two nodes that nothing stands on yet.
pub(crate) async fn add(
    instance: &Instance,
    target: &str,
    image: &Path,
    format: &str,
) -> Result<()> {
    let taken: BTreeSet<String> =
        all(&instance.qmp).await?.into_iter().map(|node| node.node_name).collect();
    let mut layer = Layer {
        image: image.to_owned(),
        format: format.to_owned(),
        is_block_device: crate::image::storage_driver(image) == "host_device",
        number: instance.next_node_number(),
    };
    // A number given before the daemon died may not have been noted.
    while taken.contains(&layer.storage_node()) || taken.contains(&layer.format_node()) {
        layer.number = instance.next_node_number();
    }
    let options = options(&instance.live(), target);
    for node in blockdev(&layer, &options, None) {
        instance.qmp.execute("blockdev-add", node).await?;
    }
    Ok(())
}

/// The nodes of an image that is in no chain, if QEMU has them.
pub(crate) async fn unused(instance: &Instance, image: &Path) -> Result<Vec<Layer>> {
    let chains = instance.chains();
    let is_used = |number: u32| {
        chains.values().flat_map(|chain| &chain.layers).any(|layer| layer.number == number)
    };
    let nodes = all(&instance.qmp).await?;
    let format_of = |number: u32| {
        let name = format!("libvirt-{number}-format");
        nodes.iter().find(|node| node.node_name == name).map(|node| node.drv.clone())
    };
    let storage = nodes.iter().filter(|node| Path::new(&node.file) == image);
    let found = storage.filter_map(|node| {
        let number = number(&node.node_name, "storage").filter(|number| !is_used(*number))?;
        Some(Layer {
            image: image.to_owned(),
            format: format_of(number).unwrap_or_default(),
            is_block_device: node.drv == "host_device",
            number,
        })
    });
    Ok(found.collect())
}

/// Takes from QEMU every pair of nodes of ours that no chain has and nothing stands on.
pub(crate) async fn sweep(instance: &Instance) -> Result<()> {
    let chains = instance.chains();
    let mut used: BTreeSet<u32> =
        chains.values().flat_map(|chain| &chain.layers).map(|layer| layer.number).collect();
    used.extend(instance.lock().jobs.values().flat_map(|job| job.layers()).map(|l| l.number));
    let mut left: Vec<String> = Vec::new();
    for kind in ["format", "storage"] {
        let nodes = all(&instance.qmp).await?;
        left.extend(
            nodes
                .into_iter()
                .map(|node| node.node_name)
                .filter(|name| number(name, kind).is_some_and(|number| !used.contains(&number))),
        );
    }
    // A node that another one stands on is refused until that one is gone.
    loop {
        let before = left.len();
        let mut refused = Vec::new();
        for name in left {
            match delete(&instance.qmp, &name).await {
                Ok(()) => {}
                Err(QmpError::Refused { desc, .. }) => refused.push((name, desc)),
                Err(err) => return Err(err.into()),
            }
        }
        if refused.is_empty() {
            return Ok(());
        }
        if refused.len() == before {
            for (name, desc) in refused {
                tracing::warn!(domain = instance.name, node = name, desc, "a node stays in QEMU");
            }
            return Ok(());
        }
        left = refused.into_iter().map(|(name, _)| name).collect();
    }
}

/// Takes both nodes of a layer from QEMU; gone is done.
pub(crate) async fn remove(qmp: &Qmp, layer: &Layer) -> Result<(), QmpError> {
    delete(qmp, &layer.format_node()).await?;
    delete(qmp, &layer.storage_node()).await
}

async fn delete(qmp: &Qmp, name: &str) -> Result<(), QmpError> {
    match qmp.execute("blockdev-del", json!({ "node-name": name })).await {
        Ok(_) => Ok(()),
        Err(err @ QmpError::Refused { .. }) => {
            let is_there = all(qmp).await?.iter().any(|node| node.node_name == name);
            if is_there { Err(err) } else { Ok(()) }
        }
        Err(err) => Err(err),
    }
}

/// Reads the chain of a disk from QEMU itself; `more` are layers that may have joined it. What it
/// finds is recorded, in the live definition too.
pub(crate) async fn follow(instance: &Instance, target: &str, more: &[Layer]) -> Result<Chain> {
    let chain = instance.chain(target).ok_or_else(|| no_disk(target))?;
    let mut known: Vec<Layer> = chain.layers.clone();
    known.extend(more.iter().filter(|layer| !chain.layers.contains(layer)).cloned());
    let names = known.iter().map(Layer::format_node).collect();
    let order = Graph::query(&instance.qmp).await?.chain(&names).ok_or_else(|| {
        let what = format!("disk '{target}' stands on none of the images that were recorded");
        Error::new(Condition::Internal, what)
    })?;
    let layers: Vec<Layer> = order
        .iter()
        .filter_map(|name| known.iter().find(|layer| layer.format_node() == *name).cloned())
        .collect();
    let now = Chain { target: chain.target.clone(), layers };
    if now != chain {
        instance.update(|live, chains| {
            chains.insert(target.to_owned(), now.clone());
            backing::write_all(live, chains);
        })?;
    }
    Ok(now)
}

pub(crate) fn no_disk(target: &str) -> Error {
    let what = format!("the running domain has no disk '{target}' with an image");
    Error::new(Condition::InvalidArgument, what)
}

/// Opens a backing layer for writing, or for reading only again.
pub(crate) async fn reopen(
    instance: &Instance,
    chain: &Chain,
    depth: usize,
    read_only: bool,
) -> Result<()> {
    let Some(layer) = chain.layers.get(depth) else { return Ok(()) };
    let backing = chain.layers.get(depth + 1).map(Layer::format_node);
    let mut options = options(&instance.live(), &chain.target);
    if depth > 0 {
        options = options.for_backing();
    }
    options.read_only = read_only;
    let Some(format) = blockdev(layer, &options, backing.as_deref()).pop() else { return Ok(()) };
    instance.qmp.execute("blockdev-reopen", json!({ "options": [format] })).await?;
    Ok(())
}

/// What QEMU still keeps of a layer in its memory goes to the disk.
///
/// A reopen with nothing changed does that, and is the one command that says when it failed.
pub(crate) async fn flush(instance: &Instance, chain: &Chain, depth: usize) -> Result<()> {
    let is_backing = depth > 0;
    let read_only = is_backing || options(&instance.live(), &chain.target).read_only;
    reopen(instance, chain, depth, read_only).await
}

/// The same of the layer that a job has written to, while the job is held at `pending`.
///
/// A job of QEMU's that rewrites a header when it ends does not see to that: a QEMU that was killed
/// after its `block-stream` had completed left an overlay that named no backing file any more and
/// had nothing of it.
pub(crate) async fn flush_grown(instance: &Instance, chain: &Chain, depth: usize) -> Result<()> {
    reopen(instance, chain, depth, false).await
}

/// How the images of a disk are opened. A definition that came so far has been checked.
pub(crate) fn options(live: &Element, target: &str) -> DiskOptions {
    let Some(disk) = domain::disk(live, target) else { return DiskOptions::default() };
    let said = |name: &str| disk.driver().and_then(|driver| driver.attr(name)).map(str::to_owned);
    DiskOptions {
        read_only: disk.is_readonly() || disk.device() == "cdrom",
        cache: said("cache").as_deref().and_then(Cache::from_name),
        aio: said("io"),
        discard: said("discard"),
        detect_zeroes: said("detect_zeroes"),
        discard_no_unref: said("discard_no_unref").map(|value| value == "on"),
        ..DiskOptions::default()
    }
}

/// The path of the image that a disk's guest writes to.
pub(crate) fn active_image(instance: &Instance, target: &str) -> Result<PathBuf> {
    let chain = instance.chain(target).ok_or_else(|| no_disk(target))?;
    let active = chain.layers.first().ok_or_else(|| no_disk(target))?;
    Ok(active.image.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_our_names_only() {
        assert_eq!(number("libvirt-12-storage", "storage"), Some(12));
        for other in ["libvirt-12-format", "libvirt--storage", "#block12", "libvirt-x-storage"] {
            assert_eq!(number(other, "storage"), None, "{other}");
        }
    }
}
