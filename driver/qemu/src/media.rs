//! Changing what is in a CD-ROM or floppy drive of a running guest.
//!
//! `blockdev-open-tray`, `blockdev-remove-medium`, `blockdev-insert-medium`, `blockdev-close-tray`:
//! a guest may lock the tray; then it is asked to let go, and we wait for it for a while. New
//! nodes are made before the old medium goes, so that an image that cannot be opened changes
//! nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use uuid::Uuid;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::Format;
use virtsnap_xml::element::{Element, Node};

use crate::argv::blockdev;
use crate::backing;
use crate::blocks::{Chain, Layer, nodes};
use crate::confine::Use;
use crate::events::alias_of;
use crate::hypervisor::Qemu;
use crate::instance::Instance;
use crate::setup::{devices, disk_image};

/// How long a guest may take to unlock its tray; libvirt waits as long.
const EJECT_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

impl Qemu {
    pub(crate) async fn swap_medium(
        &self,
        domain: Uuid,
        disk: &Element,
        force: bool,
    ) -> Result<()> {
        let instance = self.running(domain)?;
        let target = disk.child("target").and_then(|target| target.attr("dev")).unwrap_or_default();
        let live = instance.live();
        let now = devices(&live, "disk")
            .find(|disk| disk.child("target").and_then(|t| t.attr("dev")) == Some(target));
        let Some(alias) = now.and_then(alias_of) else {
            let message = format!("the running domain has no disk '{target}'");
            return Err(Error::new(Condition::DeviceMissing, message));
        };
        if !matches!(now.and_then(|disk| disk.attr("device")), Some("cdrom" | "floppy")) {
            let message = format!("disk '{target}' is no drive for removable media");
            return Err(Error::new(Condition::OperationUnsupported, message));
        }
        let outcome = async {
            let chain = match disk_image(disk) {
                Some((_, image, format)) => {
                    Some(self.add_chain(&instance, target, &image, &format).await?)
                }
                None => None,
            };
            exchange(&instance, alias, chain.as_ref(), force).await?;
            instance.update(|live, chains| record(live, chains, target, disk, chain))
        };
        let outcome = outcome.await;
        // The nodes of the medium that is not in the drive, the old or the new one.
        nodes::sweep(&instance).await?;
        outcome
    }

    /// The new medium as nodes that nothing uses yet.
    async fn add_chain(
        &self,
        instance: &Instance,
        target: &str,
        image: &Path,
        format: &str,
    ) -> Result<Chain> {
        let found = self.image_tool().chain(image, &Format::from(format)).await?;
        let layers: Vec<Layer> = found
            .into_iter()
            .map(|(image, facts)| Layer {
                image,
                format: facts.format.as_str().to_owned(),
                is_block_device: facts.is_block_device,
                number: instance.next_node_number(),
            })
            .collect();
        let options = nodes::options(&instance.live(), target);
        let mut backing: Option<String> = None;
        for (depth, layer) in layers.iter().enumerate().rev() {
            self.lend(instance, &layer.image, Use::Share)?;
            let options = if depth == 0 { options.clone() } else { options.for_backing() };
            for node in blockdev(layer, &options, backing.as_deref()) {
                instance.qmp.execute("blockdev-add", node).await?;
            }
            backing = Some(layer.format_node());
        }
        Ok(Chain { target: target.to_owned(), layers })
    }
}

async fn exchange(
    instance: &Instance,
    alias: &str,
    chain: Option<&Chain>,
    force: bool,
) -> Result<()> {
    let qmp = &instance.qmp;
    // Refused while the guest holds the tray; it is told, and opens it if it wants.
    let _ = qmp.execute("blockdev-open-tray", json!({ "id": alias, "force": force })).await;
    let opened = async {
        while !is_open(instance, alias).await? {
            sleep(POLL).await;
        }
        Ok(())
    };
    timeout(EJECT_DEADLINE, opened).await.unwrap_or_else(|_| {
        let message =
            format!("the guest has locked the tray of '{alias}'; eject it there or force");
        Err(Error::new(Condition::OperationFailed, message))
    })?;
    qmp.execute("blockdev-remove-medium", json!({ "id": alias })).await?;
    if let Some(top) = chain.and_then(|chain| chain.layers.first()) {
        let arguments = json!({ "id": alias, "node-name": top.format_node() });
        qmp.execute("blockdev-insert-medium", arguments).await?;
        qmp.execute("blockdev-close-tray", json!({ "id": alias })).await?;
    }
    Ok(())
}

/// A drive without a tray (a floppy's) counts as open.
async fn is_open(instance: &Instance, alias: &str) -> Result<bool> {
    let answer = instance.qmp.execute("query-block", Value::Null).await?;
    let drive = answer.as_array().into_iter().flatten().find(|drive| {
        let path = drive.get("qdev").and_then(Value::as_str).unwrap_or_default();
        path.split('/').any(|part| part == alias)
    });
    let Some(drive) = drive else {
        let message = format!("QEMU has no drive '{alias}'");
        return Err(Error::new(Condition::Internal, message));
    };
    Ok(drive.get("tray_open").and_then(Value::as_bool).unwrap_or(true))
}

/// The drive's source in the live definition, and its chain.
fn record(
    live: &mut Element,
    chains: &mut BTreeMap<String, Chain>,
    target: &str,
    disk: &Element,
    chain: Option<Chain>,
) {
    let Some(devices) = live.child_mut("devices") else { return };
    let Some(old) = devices
        .children_mut("disk")
        .find(|disk| disk.child("target").and_then(|t| t.attr("dev")) == Some(target))
    else {
        return;
    };
    old.remove_children("backingStore");
    old.remove_children("source");
    match chain {
        Some(chain) => {
            if let Some(source) = disk.child("source") {
                let is_driver =
                    |node: &Node| matches!(node, Node::Element(e) if e.name() == "driver");
                let at = old.nodes().iter().position(is_driver).map_or(0, |at| at + 1);
                old.nodes_mut().insert(at, Node::Element(source.clone()));
            }
            backing::write(old, &chain);
            chains.insert(target.to_owned(), chain);
        }
        None => {
            chains.remove(target);
        }
    }
}
