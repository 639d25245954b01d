//! Layers merged under a running QEMU, and in files: [`virtsnap_block::merge`], with what differs.
//!
//! The chain of a disk is noted in the status file, images that QEMU is to write to are lent to its
//! user, nodes have names of ours.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;
use virtsnap_block::merge::{self, LiveDisk, Merge};
use virtsnap_block::nodes::Open;
use virtsnap_engine::domain::Event;
use virtsnap_engine::error::Result;
use virtsnap_engine::facts::{Format, Target};
use virtsnap_engine::merging::Merging;
use virtsnap_engine::plan::Finish;
use virtsnap_engine::ports::MergeError;

use crate::blocks::{Chain, nodes, throttle};
use crate::confine::Use;
use crate::hypervisor::Qemu;
use crate::instance::Instance;
use crate::qmp::Qmp;

impl Qemu {
    pub(crate) async fn merge_layers(
        &self,
        domain: Uuid,
        merge: &Finish,
        merging: &Merging,
    ) -> Result<(), MergeError> {
        let (target, image) = merge::about(merge)?;
        let instance = self.instance(domain).filter(|i| i.layer_of(image).is_some());
        let disk = instance.map(|instance| self.disk(instance, target.to_owned()));
        let config = self.config();
        let act = Merge { domain, state_dir: &config.state_dir, limits: config.merges, merging };
        act.carry_out(&self.image_tool(), disk.as_ref(), merge).await
    }

    pub(super) async fn repoint(
        &self,
        domain: Uuid,
        image: &Path,
        backing: &Path,
        backing_format: &Format,
    ) -> Result<()> {
        let instance = self.instance(domain);
        let used = instance.and_then(|i| Some((i.layer_of(image)?.0, i)));
        let disk = used.map(|(target, instance)| self.disk(instance, target));
        let to = (backing, backing_format);
        merge::repoint(&self.image_tool(), disk.as_ref(), image, to).await
    }

    fn disk(&self, instance: Arc<Instance>, target: Target) -> Disk<'_> {
        Disk { qemu: self, instance, target }
    }
}

/// A disk of a running QEMU.
struct Disk<'a> {
    qemu: &'a Qemu,
    instance: Arc<Instance>,
    target: Target,
}

impl Disk<'_> {
    fn chain(&self) -> Result<Chain> {
        self.instance.chain(&self.target).ok_or_else(|| nodes::no_disk(&self.target))
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
        &self.instance.qmp
    }

    async fn follow(&self) -> Result<Vec<Open>> {
        let chain = nodes::follow(&self.instance, &self.target, &[]).await?;
        Ok(chain.layers.iter().map(Open::from).collect())
    }

    fn lend(&self, image: &Path) -> Result<()> {
        self.qemu.lend(&self.instance, image, Use::Own)
    }

    async fn flush(&self, _chain: &[Open], depth: usize) -> Result<()> {
        nodes::flush(&self.instance, &self.chain()?, depth).await
    }

    async fn flush_grown(&self, _chain: &[Open], depth: usize) -> Result<()> {
        nodes::flush_grown(&self.instance, &self.chain()?, depth).await
    }

    async fn hold_back(&self, bytes: u64) -> Result<()> {
        throttle::hold(&self.instance, &self.target, bytes).await
    }

    async fn let_go(&self) -> Result<()> {
        throttle::lift(&self.instance, &self.target).await
    }

    async fn sweep(&self) -> Result<()> {
        nodes::sweep(&self.instance).await
    }

    fn source(&self) -> Option<PathBuf> {
        nodes::active_image(&self.instance, &self.target).ok()
    }

    fn tell(&self, event: Event) {
        self.qemu.shared.tell(&self.instance, event);
    }
}
