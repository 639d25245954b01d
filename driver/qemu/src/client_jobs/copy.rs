//! `blockdev-mirror`: a second image that stays in step with the disk.
//!
//! As libvirt: the destination of a shallow copy that is reused is opened without what it stands
//! on, which the client may still be writing; that is opened when the job pivots.

use std::path::Path;

use serde_json::{Value, json};
use virtsnap_block::survey::probe;
use virtsnap_engine::blockjob::Copy;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::{Format, PathKind};

use super::{ClientJob, Kind, id, limit, record, top};
use crate::argv::blockdev;
use crate::blocks::{Chain, Layer, nodes};
use crate::confine::Use;
use crate::hypervisor::Qemu;
use crate::image::{blank, claim, header, storage_driver, system};
use crate::instance::Instance;

impl Qemu {
    pub(super) async fn start_copy(
        &self,
        instance: &Instance,
        chain: &Chain,
        speed: u64,
        copy: &Copy,
    ) -> Result<()> {
        let active = top(chain)?.clone();
        let shallow = copy.shallow && chain.layers.len() > 1;
        let exists = is_there(copy, &chain.target)?;
        let reuse = copy.reuse || copy.is_block_device;
        let format = match &copy.format {
            Some(format) => format.clone(),
            None if copy.reuse => found_format(&copy.destination)?,
            None => active.format(),
        };
        if shallow && !reuse && format == Format::Raw {
            let message =
                format!("shallow copy of disk '{}' into a raw file is not possible", chain.target);
            return Err(Error::new(Condition::ConfigUnsupported, message));
        }
        let below = chain.layers.get(1).filter(|_| shallow);
        let is_made = !reuse && !exists;
        if !reuse {
            self.make_destination(instance, copy, &format, chain, below).await?;
        }
        let outcome = self.mirror(instance, chain, speed, copy, format, below).await;
        if outcome.is_err() {
            super::forget(instance, &chain.target)?;
            nodes::sweep(instance).await?;
            if is_made {
                claim::remove(instance.uuid, &copy.destination).await?;
            }
        }
        outcome
    }

    async fn make_destination(
        &self,
        instance: &Instance,
        copy: &Copy,
        format: &Format,
        chain: &Chain,
        below: Option<&Layer>,
    ) -> Result<()> {
        let active = top(chain)?;
        let facts = nodes::all(&instance.qmp).await?;
        let node = facts.into_iter().find(|node| node.node_name == active.format_node());
        let size = node.map(|node| node.image.facts(&active.image).virtual_size);
        let size = size.ok_or_else(|| nodes::no_disk(&chain.target))?;
        let backing = below.map(|below| (below.image.as_path(), below.format()));
        let like = &active.image;
        blank::create(&self.image_tool(), &copy.destination, format, backing, size, like).await
    }

    async fn mirror(
        &self,
        instance: &Instance,
        chain: &Chain,
        speed: u64,
        copy: &Copy,
        format: Format,
        below: Option<&Layer>,
    ) -> Result<()> {
        let active = top(chain)?;
        let destination = Layer {
            image: copy.destination.clone(),
            format: format.as_str().to_owned(),
            is_block_device: storage_driver(&copy.destination) == "host_device",
            number: instance.next_node_number(),
        };
        self.lend(instance, &copy.destination, Use::Own)?;
        let mut job = ClientJob::new(Kind::Copy, active.clone(), vec![destination.clone()]);
        job.late_backing = below.is_some() && copy.reuse;
        record(instance, &chain.target, job)?;
        let mut options = nodes::options(&instance.live(), &chain.target);
        options.read_only = false;
        let backing = below.filter(|_| !copy.reuse).map(Layer::format_node);
        for node in blockdev(&destination, &options, backing.as_deref()) {
            instance.qmp.execute("blockdev-add", node).await?;
        }
        let mut arguments = json!({
            "job-id": id(&chain.target),
            "device": active.format_node(),
            "target": destination.format_node(),
            "replaces": active.format_node(),
            "sync": if below.is_some() { "top" } else { "full" },
            "auto-dismiss": false,
            "auto-finalize": false,
        });
        limit(&mut arguments, speed);
        if copy.granularity > 0 {
            arguments["granularity"] = copy.granularity.into();
        }
        if copy.buffer > 0 {
            arguments["buf-size"] = copy.buffer.into();
        }
        if copy.synchronous {
            arguments["copy-mode"] = Value::from("write-blocking");
        }
        instance.qmp.execute("blockdev-mirror", arguments).await?;
        Ok(())
    }

    /// What the destination of a reused shallow copy stands on, before the guest does.
    pub(super) async fn open_late_backing(&self, instance: &Instance, target: &str) -> Result<()> {
        let destination = instance.lock().jobs.get(target).and_then(|job| job.to.first().cloned());
        let Some(destination) = destination else { return Ok(()) };
        let chain = self.image_tool().chain(&destination.image, &destination.format()).await?;
        let mut layers: Vec<Layer> = chain
            .into_iter()
            .skip(1)
            .map(|(image, facts)| Layer {
                image,
                format: facts.format.as_str().to_owned(),
                is_block_device: facts.is_block_device,
                number: instance.next_node_number(),
            })
            .collect();
        let options = nodes::options(&instance.live(), target).for_backing();
        let mut below: Option<String> = None;
        for layer in layers.iter().rev() {
            self.lend(instance, &layer.image, Use::Share)?;
            for node in blockdev(layer, &options, below.as_deref()) {
                instance.qmp.execute("blockdev-add", node).await?;
            }
            below = Some(layer.format_node());
        }
        if let Some(below) = below {
            let arguments = json!({ "node": below, "overlay": destination.format_node() });
            instance.qmp.execute("blockdev-snapshot", arguments).await?;
        }
        let mut inner = instance.lock();
        if let Some(job) = inner.jobs.get_mut(target) {
            job.to.truncate(1);
            job.to.append(&mut layers);
            job.late_backing = false;
        }
        instance.save_locked(&inner)
    }
}

/// Is there a file to write the copy to? Refused where that does not fit what was asked.
fn is_there(copy: &Copy, target: &str) -> Result<bool> {
    let path = copy.destination.display();
    let missing = || {
        let message = format!("missing destination file for disk {target}: {path}");
        Error::new(Condition::System(libc::ENOENT), message)
    };
    match probe(&copy.destination)? {
        PathKind::Missing if copy.reuse || copy.is_block_device => Err(missing()),
        PathKind::Missing => Ok(false),
        PathKind::BlockDevice => Ok(true),
        PathKind::Regular(_) if copy.is_block_device => Err(Error::new(
            Condition::InvalidArgument,
            format!("a block device was asked for disk {target}, but '{path}' is none"),
        )),
        PathKind::Regular(length) if length > 0 && !copy.reuse => Err(Error::new(
            Condition::ConfigUnsupported,
            format!("the destination file for disk {target} already exists: '{path}'"),
        )),
        PathKind::Regular(_) => Ok(true),
        PathKind::Other => Err(Error::new(
            Condition::ConfigUnsupported,
            format!("the destination for disk {target}, '{path}', is no file or block device"),
        )),
    }
}

/// libvirt probes a file that the client says is ready to be used. What a guest could write into
/// it is then what the guest could write to its own disk.
fn found_format(path: &Path) -> Result<Format> {
    let found = header::overlay_format(path).map_err(|err| system("read", path, err))?;
    Ok(found.unwrap_or(Format::Raw))
}
