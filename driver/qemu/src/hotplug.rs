//! Devices that come to a running guest, and go.
//!
//! What QEMU is told is what its command line would have said: the command lines of the definition
//! with the device and without it are compared, and the difference is `blockdev-add`, `object-add`,
//! `netdev_add` and `device_add`. So a device that was plugged in is, to the guest, the one that it
//! is after a revert to a snapshot taken since; names and addresses are chosen as for a start.
//!
//! A device goes when the guest lets it go (`DEVICE_DELETED`), now or later. As libvirt, we wait for
//! that a few seconds, and a guest that takes longer is no error.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;
use virtsnap_engine::domain::Event;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::{Format, Target};
use virtsnap_xml::domain;
use virtsnap_xml::element::{Element, Node};

use crate::argv::{self, LaunchContext};
use crate::backing;
use crate::blocks::{Chain, Layer, nodes};
use crate::complete;
use crate::confine::Use;
use crate::events::alias_of;
use crate::hypervisor::Qemu;
use crate::instance::Instance;
use crate::setup::{self, disk_image};

/// How long a guest may take to let a device go before the call returns; libvirt waits as long.
const UNPLUG_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

fn unsupported(what: impl Into<String>) -> Error {
    Error::new(Condition::OperationUnsupported, what)
}

impl Qemu {
    pub(crate) async fn plug_in(&self, domain: Uuid, device: &Element) -> Result<()> {
        let instance = self.running(domain)?;
        check_kind(device)?;
        let before = instance.live();
        let (mut after, added) = self.with_device(&before, device)?;
        let mut chains = instance.chains();
        for disk in added.iter().filter(|device| device.name() == "disk") {
            if let Some(chain) = self.new_chain(&instance, disk).await? {
                chains.insert(chain.target.clone(), chain);
            }
        }
        let context = self.context(&instance).await?;
        let without = argv::command_line(&before, &instance.chains(), &context)?;
        let with = argv::command_line(&after, &chains, &context)?;
        if with.taps.len() > without.taps.len() {
            return Err(unsupported("an interface on a tap device cannot be attached live yet"));
        }
        backing::write_all(&mut after, &chains);
        if let Err(err) = tell(&instance, &difference(&without.args, &with.args)?).await {
            nodes::sweep(&instance).await?;
            return Err(err);
        }
        // QEMU may have told of changes meanwhile: only what is new is put into the definition.
        instance.update(|live, known| {
            for device in &added {
                let alias = alias_of(device);
                let done = devices_of(&after).find(|known| alias_of(known) == alias).cloned();
                insert(live, done.unwrap_or_else(|| device.clone()), &after);
            }
            for (target, chain) in chains {
                known.entry(target).or_insert(chain);
            }
        })?;
        for alias in added.iter().filter_map(alias_of) {
            self.shared.tell(&instance, Event::DeviceAdded { alias: alias.to_owned() });
        }
        Ok(())
    }

    /// The live definition with the device, named and placed, and what that added.
    fn with_device(&self, live: &Element, device: &Element) -> Result<(Element, Vec<Element>)> {
        let inactive = domain::to_inactive(live.clone());
        let mut asked = inactive.clone();
        asked.child_or_insert("devices").push(device.clone());
        let placed = self.complete_definition(asked)?;
        let known = self.complete_definition(inactive)?;
        let mut left: Vec<&Element> = devices_of(&known).collect();
        let mut new = Vec::new();
        for device in devices_of(&placed) {
            match left.iter().position(|known| *known == device) {
                Some(at) => drop(left.swap_remove(at)),
                None => new.push(device.clone()),
            }
        }
        // A controller that the guest's firmware would have to set up.
        if let Some(bridge) =
            new.iter().find(|new| new.name() == "controller" && new.attr("type") == Some("pci"))
        {
            let model = bridge.attr("model").unwrap_or("bridge");
            let what = format!("no PCI slot is free for the device: it would take another {model}");
            return Err(Error::new(Condition::Internal, what));
        }
        if !left.is_empty() {
            let what = "the device changes others of the domain, which a running guest has already";
            return Err(unsupported(what));
        }
        let mut after = live.clone();
        for device in &new {
            insert(&mut after, device.clone(), &placed);
        }
        complete::name_devices(&mut after);
        let named = devices_of(&after).filter(|device| {
            let alias = alias_of(device);
            !devices_of(live).any(|known| alias_of(known) == alias && known.name() == device.name())
        });
        let added: Vec<Element> = named.cloned().collect();
        if added.len() != new.len() {
            return Err(Error::new(Condition::OperationFailed, "a device of that name is there"));
        }
        Ok((after, added))
    }

    async fn new_chain(&self, instance: &Instance, disk: &Element) -> Result<Option<Chain>> {
        let Some((target, image, format)) = disk_image(disk) else { return Ok(None) };
        let found = self.image_tool().chain(&image, &Format::from(format.as_str())).await?;
        let shared = disk.child("readonly").is_some() || disk.child("shareable").is_some();
        let mut layers = Vec::new();
        for (depth, (image, facts)) in found.into_iter().enumerate() {
            let how = if depth == 0 && !shared { Use::Own } else { Use::Share };
            self.lend(instance, &image, how)?;
            layers.push(Layer {
                image,
                format: facts.format.as_str().to_owned(),
                is_block_device: facts.is_block_device,
                number: instance.next_node_number(),
            });
        }
        Ok(Some(Chain { target, layers }))
    }

    /// As at the start, as far as two command lines with the same context can differ.
    async fn context(&self, instance: &Instance) -> Result<LaunchContext> {
        let live = instance.live();
        let emulator = domain::emulator(&live).map(Into::into);
        let probed = self.shared.probe_blocking(emulator).await?;
        Ok(LaunchContext {
            monitor: instance.qemu_dir().join("monitor.sock"),
            memory_dir: instance.qemu_dir(),
            hugepages: setup::hugepages(),
            tpm_sockets: setup::tpm_sockets(&live, &instance.dir),
            network_bridges: self.config().network_bridges.clone(),
            incoming: false,
            sandbox: self.config().sandbox,
            now: 0,
            local_offset: 0,
            first_fd: 3,
            qemu: probed.facts.clone(),
        })
    }

    pub(crate) async fn unplug(&self, domain: Uuid, alias: &str) -> Result<()> {
        let instance = self.running(domain)?;
        let live = instance.live();
        let is_it = |device: &&Element| alias_of(device) == Some(alias);
        let Some(device) = devices_of(&live).find(is_it) else {
            let message = format!("the running domain has no device '{alias}'");
            return Err(Error::new(Condition::DeviceMissing, message));
        };
        check_can_go(device)?;
        let target = device.child("target").and_then(|target| target.attr("dev"));
        if device.name() == "disk"
            && target.is_some_and(|target| instance.lock().jobs.contains_key(target))
        {
            return Err(unsupported(format!("disk '{alias}' already in active block job")));
        }
        instance.qmp.execute("device_del", json!({ "id": alias })).await?;
        let end = Instant::now() + UNPLUG_PATIENCE;
        while instance.has_or_puts_away(alias) && Instant::now() < end {
            sleep(POLL).await;
        }
        Ok(())
    }
}

impl Instance {
    fn has_or_puts_away(&self, alias: &str) -> bool {
        let inner = self.lock();
        devices_of(&inner.live).any(|device| alias_of(device) == Some(alias))
            || inner.unplugged.iter().any(|gone| gone.alias == alias)
    }
}

/// A device that QEMU has let go, whose backends are still there.
#[derive(Debug, Clone)]
pub(crate) struct Unplugged {
    pub(crate) alias: String,
    kind: String,
    chain: Option<Chain>,
}

/// Takes a device that is gone out of the definition.
pub(crate) fn take_out(
    live: &mut Element,
    chains: &mut BTreeMap<Target, Chain>,
    alias: &str,
) -> Option<Unplugged> {
    let devices = live.child_mut("devices")?;
    let is_it =
        |node: &Node| matches!(node, Node::Element(device) if alias_of(device) == Some(alias));
    let at = devices.nodes().iter().position(is_it)?;
    let Node::Element(device) = devices.nodes_mut().remove(at) else { return None };
    let target = device.child("target").and_then(|target| target.attr("dev"));
    let chain = target.filter(|_| device.name() == "disk").and_then(|name| chains.remove(name));
    Some(Unplugged { alias: alias.to_owned(), kind: device.name().to_owned(), chain })
}

/// What stood behind a device that is gone.
pub(crate) async fn put_away(instance: &Instance, gone: Unplugged) {
    let Unplugged { alias, kind, chain } = &gone;
    let layers = chain.iter().flat_map(|chain| &chain.layers);
    for layer in layers {
        if let Err(err) = nodes::remove(&instance.qmp, layer).await {
            tracing::warn!(domain = instance.name, device = alias, %err, "a node stays in QEMU");
            break;
        }
    }
    let backend = match kind.as_str() {
        "interface" => Some(("netdev_del", format!("host{alias}"))),
        "rng" => Some(("object-del", format!("obj{alias}"))),
        _ => None,
    };
    if let Some((command, id)) = backend
        && let Err(err) = instance.qmp.execute(command, json!({ "id": id })).await
    {
        tracing::warn!(domain = instance.name, device = alias, %err, "a backend stays in QEMU");
    }
    instance.lock().unplugged.retain(|other| other.alias != *alias);
}

fn devices_of(domain: &Element) -> impl Iterator<Item = &Element> {
    domain.child("devices").into_iter().flat_map(Element::elements)
}

fn check_kind(device: &Element) -> Result<()> {
    let bus = device.child("target").and_then(|target| target.attr("bus"));
    let target = device.child("target").and_then(|target| target.attr("dev")).unwrap_or_default();
    match (device.name(), device.attr("device").unwrap_or("disk")) {
        ("disk", "floppy") => Err(unsupported("floppy device hotplug isn't supported")),
        ("disk", kind) => {
            let bus = bus.or_else(|| implied_bus(target));
            match bus {
                Some("virtio") if kind == "cdrom" => {
                    Err(unsupported("cdrom device with virtio bus isn't supported"))
                }
                Some("virtio" | "scsi" | "usb") => Ok(()),
                other => Err(unsupported(format!(
                    "disk bus '{}' cannot be hotplugged",
                    other.unwrap_or_default()
                ))),
            }
        }
        ("interface" | "rng" | "controller", _) => Ok(()),
        ("input", _) if device.attr("bus").is_some_and(|bus| bus != "ps2") => Ok(()),
        (other, _) => Err(unsupported(format!("live attach of device '{other}' is not supported"))),
    }
}

/// What a target's name says where no bus is said.
fn implied_bus(target: &str) -> Option<&'static str> {
    match target.get(..2)? {
        "vd" => Some("virtio"),
        "sd" => Some("scsi"),
        "hd" => Some("ide"),
        "ub" => Some("usb"),
        _ => None,
    }
}

fn check_can_go(device: &Element) -> Result<()> {
    let bus = device.child("target").and_then(|target| target.attr("bus")).unwrap_or_default();
    let refused = |what: &str| Err(unsupported(format!("{what} cannot be hot unplugged")));
    match (device.name(), device.attr("device").unwrap_or("disk"), bus) {
        ("disk", "disk" | "lun", "virtio" | "scsi" | "usb") => Ok(()),
        ("disk", "cdrom", "scsi" | "usb") => Ok(()),
        ("disk", "disk" | "lun", _) => refused("this type of disk"),
        ("disk", kind, _) => refused(&format!("a disk of type '{kind}'")),
        ("interface" | "rng" | "input", ..) => Ok(()),
        ("controller", ..) if device.attr("type") == Some("scsi") => Ok(()),
        (other, ..) => refused(&format!("a device '{other}'")),
    }
}

/// Beside its kind, and a disk where the start's order of disks has it.
fn insert(live: &mut Element, device: Element, order: &Element) {
    let key = |device: &Element| {
        let target = device.child("target").and_then(|target| target.attr("dev"));
        target.map(str::to_owned)
    };
    let before: Vec<_> = devices_of(order)
        .filter(|known| known.name() == device.name())
        .take_while(|known| key(known) != key(&device))
        .map(key)
        .collect();
    let is_disk = device.name() == "disk";
    let all = live.child_or_insert("devices");
    let stands_before = |node: &Node| match node {
        Node::Element(known) if known.name() == device.name() => {
            !is_disk || before.contains(&key(known))
        }
        _ => false,
    };
    let first = |node: &Node| matches!(node, Node::Element(known) if known.name() == device.name());
    let at = match all.nodes().iter().rposition(stands_before) {
        Some(at) => at + 1,
        None => all.nodes().iter().position(first).unwrap_or(all.nodes().len()),
    };
    all.nodes_mut().insert(at, Node::Element(device));
}

/// Options of the second command line that the first does not have, in order.
fn difference(without: &[String], with: &[String]) -> Result<Vec<(String, Value)>> {
    let mut known: Vec<&[String]> = without.windows(2).filter(|pair| is_option(pair)).collect();
    let mut new = Vec::new();
    for pair in with.windows(2).filter(|pair| is_option(pair)) {
        if let Some(at) = known.iter().position(|known| *known == pair) {
            known.swap_remove(at);
            continue;
        }
        let [option, value] = pair else { continue };
        let value = serde_json::from_str(value).map_err(|err| {
            unsupported(format!("{option} {value} cannot be given to a running guest"))
                .caused_by(err)
        })?;
        new.push((option.clone(), value));
    }
    if known.is_empty() {
        return Ok(new);
    }
    Err(unsupported("the device changes how others are set up, which a running guest has already"))
}

/// An option that has a value.
fn is_option(pair: &[String]) -> bool {
    matches!(pair, [option, value] if option.starts_with('-') && !value.starts_with('-'))
}

/// Tells QEMU, and takes back what was told if it refuses a part.
async fn tell(instance: &Instance, options: &[(String, Value)]) -> Result<()> {
    let mut undo: Vec<(&str, Value)> = Vec::new();
    for (option, value) in options {
        let id = |key: &str| json!({ "id": value.get(key) });
        let (command, back) = match option.as_str() {
            "-blockdev" => ("blockdev-add", None),
            "-object" => ("object-add", Some(("object-del", id("id")))),
            "-netdev" => ("netdev_add", Some(("netdev_del", id("id")))),
            "-device" => ("device_add", Some(("device_del", id("id")))),
            other => {
                return Err(unsupported(format!("{other} cannot be given to a running guest")));
            }
        };
        if let Err(err) = instance.qmp.execute(command, value.clone()).await {
            for (command, id) in undo.into_iter().rev() {
                if let Err(err) = instance.qmp.execute(command, id).await {
                    tracing::warn!(domain = instance.name, %err, "after a device was refused");
                }
            }
            return Err(err.into());
        }
        undo.extend(back);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_difference_of_two_command_lines_is_what_is_new() {
        let without = words("-name x -device {\"id\":\"a\"} -nodefaults -S");
        let with = words(
            "-name x -blockdev {\"node-name\":\"n\"} -device {\"id\":\"a\"} -device \
             {\"id\":\"b\"} -nodefaults -S",
        );
        let new = difference(&without, &with).unwrap();
        assert_eq!(new[0], ("-blockdev".to_owned(), json!({ "node-name": "n" })));
        assert_eq!(new[1], ("-device".to_owned(), json!({ "id": "b" })));
        assert_eq!(new.len(), 2);
        assert!(difference(&with, &without).is_err(), "something would have to go");
        assert!(difference(&without, &words("-name y -device {\"id\":\"a\"}")).is_err());
    }

    #[test]
    fn a_disk_stands_where_a_start_would_have_it() {
        let disk = |target: &str| format!("<disk><target dev='{target}'/></disk>");
        let domain = |targets: &[&str]| {
            let disks: String = targets.iter().map(|target| disk(target)).collect();
            Element::parse(&format!("<domain><devices>{disks}<rng/></devices></domain>")).unwrap()
        };
        let mut live = domain(&["vda", "vdc"]);
        let order = domain(&["vda", "vdb", "vdc"]);
        insert(&mut live, Element::parse(&disk("vdb")).unwrap(), &order);
        let targets: Vec<_> = domain::disks(&live).map(|disk| disk.target()).collect();
        assert_eq!(targets, ["vda", "vdb", "vdc"]);
    }
}
