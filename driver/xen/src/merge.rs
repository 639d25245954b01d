//! Layers merged and internal snapshots deleted: by jobs of the device model where it has the images
//! open, by `qemu-img` where it has not.
//!
//! What a domain is started from after the guest's reboot is libxl's stored configuration. It names
//! the base of an active commit before the disk is switched to it: until then both hold the same,
//! and a guest that goes on from an old top would ruin the base.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;
use virtsnap_block::drives::{self, Drive, Layer, Reopen};
use virtsnap_block::image::in_use;
use virtsnap_block::job;
use virtsnap_block::merge::{self, LiveDisk, Merge};
use virtsnap_block::nodes::Open;
use virtsnap_block::qmp::Qmp;
use virtsnap_block::throttle::{self, Limits};
use virtsnap_engine::domain::Event;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::{Format, Target};
use virtsnap_engine::merging::Merging;
use virtsnap_engine::plan::Finish;
use virtsnap_engine::ports::MergeError;
use virtsnap_xml::domain;

use crate::hypervisor::{Xen, lock};
use crate::instance::Instance;

impl Xen {
    pub(crate) async fn merge_layers(
        &self,
        domain: Uuid,
        merge: &Finish,
        merging: &Merging,
    ) -> Result<(), MergeError> {
        let (target, image) = merge::about(merge)?;
        if let Some(instance) = self.instance(domain) {
            forget_ended(&instance, target).await.map_err(MergeError::InDoubt)?;
        }
        let disk = self.disk_with(domain, Some(target), image).await;
        let disk = disk.map_err(MergeError::InDoubt)?;
        let config = self.config();
        let act = Merge { domain, state_dir: &config.state_dir, limits: config.merges, merging };
        act.carry_out(&self.image_tool(), disk.as_ref(), merge).await
    }

    pub(crate) async fn repoint(
        &self,
        domain: Uuid,
        image: &Path,
        backing: &Path,
        backing_format: &Format,
    ) -> Result<()> {
        let disk = self.disk_with(domain, None, image).await?;
        let to = (backing, backing_format);
        merge::repoint(&self.image_tool(), disk.as_ref(), image, to).await
    }

    pub(crate) async fn delete_snapshot(
        &self,
        domain: Uuid,
        image: &Path,
        tag: &str,
    ) -> Result<()> {
        let Some(disk) = self.disk_with(domain, None, image).await? else {
            self.shared.refuse_elsewhere(domain, image, "changed")?;
            return self.image_tool().delete_snapshot(image, &Format::Qcow2, tag).await;
        };
        let drive = disk.drive().await?;
        match drive.depth(image) {
            Some(depth) if !drive.can_delete_in(depth) => {
                Err(in_use(image, &disk.target, "changed"))
            }
            Some(depth) => drives::delete_snapshot(&disk.qmp, &drive, depth, tag).await,
            None => Ok(()),
        }
    }

    /// The running domain's disk that has the image among its layers.
    async fn disk_with(
        &self,
        domain: Uuid,
        target: Option<&str>,
        image: &Path,
    ) -> Result<Option<Disk<'_>>> {
        let Some(instance) = self.instance(domain) else { return Ok(None) };
        let Some(qmp) = instance.monitor().await? else { return Ok(None) };
        let drives = drives::query(&qmp).await?;
        let with: Vec<&Drive> = drives.iter().filter(|d| d.depth(image).is_some()).collect();
        let live = instance.live();
        let sources: Vec<(String, PathBuf)> = domain::disks(&live)
            .filter_map(|disk| Some((disk.target().to_owned(), PathBuf::from(disk.path()?))))
            .collect();
        let has = |drive: &Drive, source: &Path| drive.depth(source).is_some();
        let found = with.iter().find_map(|drive| {
            let mut of = sources.iter().filter(|(name, _)| target.is_none_or(|t| t == name));
            of.find(|(_, source)| has(drive, source)).map(|(name, _)| (*drive, name.clone()))
        });
        // An active commit that has switched the disk leaves its name on no drive.
        let found = found.or_else(|| match (with.as_slice(), target) {
            ([drive], Some(target)) => Some((*drive, target.to_owned())),
            _ => None,
        });
        match found {
            Some((drive, target)) => {
                let (begun, switching) = (drive.clone(), Mutex::default());
                Ok(Some(Disk { xen: self, instance, qmp, target, begun, switching }))
            }
            None if with.is_empty() => Ok(None),
            None => {
                let what = format!(
                    "image '{}' is open in the device model of domain '{}', for none of its disks",
                    image.display(),
                    instance.name
                );
                Err(Error::new(Condition::OperationFailed, what))
            }
        }
    }
}

/// A job that was over when another daemon died: the chain tells what it came to, and as long as the
/// job is there the device model must not be asked what it has open (see [`virtsnap_block::nodes`]).
async fn forget_ended(instance: &Instance, target: &str) -> Result<()> {
    let Some(qmp) = instance.monitor().await? else { return Ok(()) };
    let id = job::id("merge", target);
    if job::find(&qmp, &id).await?.is_some_and(|job| job.is_concluded()) {
        job::dismiss(&qmp, &id).await?;
    }
    Ok(())
}

/// A disk of a running domain that its device model serves.
struct Disk<'a> {
    xen: &'a Xen,
    instance: Arc<Instance>,
    qmp: Arc<Qmp>,
    target: Target,
    /// As it was when this began: what it has open can be asked for at that time only.
    begun: Drive,
    /// Held from before the disk is switched until it is known whether it was: what a guest that
    /// stops meanwhile is started from again must not be read in between.
    switching: Mutex<Option<OwnedMutexGuard<()>>>,
}

impl Disk<'_> {
    async fn act(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.instance.acting).lock_owned().await
    }

    async fn drive(&self) -> Result<Drive> {
        Ok(self.begun.follow(&self.qmp).await?)
    }

    async fn flush_layer(&self, chain: &[Open], depth: usize, read_only: bool) -> Result<()> {
        let drive = self.drive().await?;
        let at = chain.get(depth).and_then(|open| drive.depth(&open.image));
        let Some(at) = at else { return Ok(()) };
        let how = Reopen { read_only, discard: at == 0 && self.passes_discards() };
        drives::flush(&self.qmp, &drive, at, how).await
    }

    async fn stand_on(&self, layer: &Layer) -> Result<()> {
        let source = (self.target.clone(), layer.image.clone(), layer.facts.format.clone());
        self.xen.stand_on(&self.instance, &[source]).await
    }

    /// As libxl has it of a disk that can be written to.
    fn passes_discards(&self) -> bool {
        let live = self.instance.live();
        domain::disk(&live, &self.target).is_some_and(|disk| {
            let said = disk.driver().and_then(|driver| driver.attr("discard"));
            !disk.is_readonly() && said != Some("ignore")
        })
    }

    fn is_of(&self, device: &Value) -> bool {
        device.get("qdev").and_then(Value::as_str) == Some(self.begun.device.as_str())
    }
}

impl LiveDisk for Disk<'_> {
    fn domain(&self) -> &str {
        &self.instance.name
    }

    fn target(&self) -> &str {
        &self.target
    }

    fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    async fn follow(&self) -> Result<Vec<Open>> {
        let held = lock(&self.switching).take();
        let _acting = match held {
            Some(held) => held,
            None => self.act().await,
        };
        let drive = self.drive().await?;
        if let Some(top) = drive.top().filter(|top| self.source().is_none_or(|s| !top.is(&s))) {
            self.stand_on(top).await?;
        }
        Ok(drive.layers.iter().map(Open::from).collect())
    }

    /// The device model is root's.
    fn lend(&self, _image: &Path) -> Result<()> {
        Ok(())
    }

    async fn flush(&self, chain: &[Open], depth: usize) -> Result<()> {
        self.flush_layer(chain, depth, depth > 0).await
    }

    async fn flush_grown(&self, chain: &[Open], depth: usize) -> Result<()> {
        self.flush_layer(chain, depth, false).await
    }

    async fn switch_to(&self, base: &Path) -> Result<()> {
        let acting = self.act().await;
        let drive = self.drive().await?;
        if let Some(layer) = drive.layers.iter().find(|layer| layer.is(base)) {
            self.stand_on(layer).await?;
        }
        *lock(&self.switching) = Some(acting);
        Ok(())
    }

    async fn hold_back(&self, bytes: u64) -> Result<()> {
        match throttle::find(&self.qmp, |device| self.is_of(device)).await? {
            Some((device, limits)) => {
                Ok(throttle::set(&self.qmp, &device, limits.held_to(bytes)).await?)
            }
            None => Ok(()),
        }
    }

    /// libxl sets no limits: those that there are, are ours, or those of a daemon before.
    async fn let_go(&self) -> Result<()> {
        let none = Limits::none();
        match throttle::find(&self.qmp, |device| self.is_of(device)).await? {
            Some((device, limits)) if limits != none => {
                Ok(throttle::set(&self.qmp, &device, none).await?)
            }
            _ => Ok(()),
        }
    }

    async fn sweep(&self) -> Result<()> {
        let _acting = self.act().await;
        self.xen.store_disks(&self.instance).await?;
        drives::sweep(&self.qmp).await
    }

    fn source(&self) -> Option<PathBuf> {
        let live = self.instance.live();
        domain::disk(&live, &self.target)?.path().map(PathBuf::from)
    }

    fn tell(&self, event: Event) {
        self.xen.shared.tell(&self.instance, event);
    }
}
