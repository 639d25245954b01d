//! What a plan is made from: disks, images, who else reads them.
//!
//! Of what a running domain's device model has open it tells itself ([`virtsnap_block::drives`]); of
//! all else [`virtsnap_block::survey`] does. Where no device model runs, the kernel serves the disks.
//!
//! A running guest's disk is out of reach where the kernel serves it (`phy`), and where the device
//! model has it open twice: as emulated hardware, and for the guest's Xen driver, which has not
//! taken it over. A snapshot through one of the two would leave the other on the old file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use virtsnap_block::drives::{self, Drive};
use virtsnap_block::image::{QemuImg, blocking, system};
use virtsnap_block::survey::{self, Images};
use virtsnap_block::{merge, place};
use virtsnap_engine::domain::{ShutOffReason, State};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::{
    AgentState, DiskDevice, DiskFacts, DomainFacts, Format, InternalSnapshot, MemoryFile, Place,
};
use virtsnap_engine::ports::Subject;
use virtsnap_xml::domain::{self, DiskView};
use virtsnap_xml::element::Element;

use crate::host::Host;
use crate::hypervisor::Xen;
use crate::instance::Instance;
use crate::save_image;

impl Xen {
    /// No operation is under way on the domain when this is asked.
    pub(crate) async fn domain_facts(&self, subject: &Subject) -> Result<DomainFacts> {
        let instance = self.instance(subject.uuid);
        let state = match &instance {
            Some(instance) => self.shared.state_now(instance).await?,
            None => State::ShutOff(ShutOffReason::Unknown),
        };
        let live = instance.as_ref().map(|instance| instance.live());
        let definition = live.as_ref().or(subject.config.as_ref());
        let mut disks = definition.map(survey::disks).unwrap_or_default();
        let (mut images, mut sealed) = (Images::new(), BTreeSet::new());
        if let (Some(instance), Some(live)) = (&instance, &live) {
            let qmp = instance.monitor().await?;
            let drives = match &qmp {
                Some(qmp) => drives::query(qmp).await?,
                None => Vec::new(),
            };
            images = drives::images(&drives);
            sealed = self::sealed(&drives);
            mark_bypassed(live, &drives, &mut disks);
            if let Some(qmp) = &qmp {
                survey::mark_jobs(qmp, &mut disks).await?;
            }
        }
        survey::gather(&self.image_tool(), subject, &disks, &mut images).await?;
        merge::forget_commits(&self.config().state_dir, subject.uuid, &images).await?;
        let foreign_readers = survey::foreign_readers(&images, &subject.others, |_| false).await?;
        let host = self.shared.host.clone();
        let memory_file = move |path: &Path| memory_file(path, &host);
        let memory_files = survey::memory_files(subject.memory_files.clone(), memory_file).await?;
        Ok(DomainFacts {
            uuid: subject.uuid,
            name: subject.name.clone(),
            state,
            config: subject.config.clone(),
            live,
            disks,
            images,
            memory_files,
            owned: subject.owned.clone(),
            foreign_readers,
            sealed,
            state_files: Vec::new(),
            agent: AgentState::NotConfigured,
            memory_blockers: instance.iter().filter_map(|i| i.on_its_way_down()).collect(),
            memory_inside: false,
            saved_by_guest: true,
            internal_after_memory: true,
            files_dir: Some(self.files_dir(subject.uuid)),
            managed_save: None,
            has_unreadable_moments: false,
            now: survey::now(),
        })
    }

    /// What can be read without the domain's job: nothing is changed, and an image that cannot be
    /// read just now is left out.
    pub(crate) async fn snapshots_in_images(
        &self,
        definition: &Element,
        named: &BTreeMap<PathBuf, Format>,
    ) -> Result<BTreeMap<PathBuf, Vec<InternalSnapshot>>> {
        // The device model is not asked: a merge may be on (see `virtsnap_block::nodes`).
        let images = Images::new();
        Ok(survey::snapshots(&self.image_tool(), definition, named, images).await)
    }

    pub(crate) async fn overlay_place(
        &self,
        at: &Path,
        below: &Path,
        facts: &DomainFacts,
    ) -> Result<Place> {
        let tool = self.image_tool();
        let instances: Vec<_> = self.shared.instances().values().cloned().collect();
        let mut in_use = BTreeMap::new();
        for instance in instances {
            let images = chains(&tool, &instance.live()).await;
            let guest = || format!("the domain '{}'", instance.name);
            in_use.extend(images.into_keys().map(|image| (image, guest())));
        }
        place::overlay(&tool, at, below, facts, in_use).await
    }

    /// Where files of a domain are that stand beside no image.
    pub(crate) fn files_dir(&self, domain: Uuid) -> PathBuf {
        self.config().snapshot_dir.join(domain.to_string())
    }

    /// Before the first file is made there.
    pub(crate) async fn make_files_dir(&self, domain: Uuid, file: &Path) -> Result<()> {
        let directory = self.files_dir(domain);
        if file.parent() != Some(&directory) {
            return Ok(());
        }
        blocking(move || make_directory(&directory).map_err(|e| system("make", &directory, e)))
            .await
    }

    /// What the domain's device model has open; nothing where none runs.
    pub(crate) async fn drives(&self, domain: Uuid) -> Result<Vec<Drive>> {
        let Some(instance) = self.instance(domain) else { return Ok(Vec::new()) };
        match instance.monitor().await? {
            Some(qmp) => Ok(drives::query(&qmp).await?),
            None => Ok(Vec::new()),
        }
    }
}

/// For root alone, durably, with those above it.
pub(crate) fn make_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    for above in directory.ancestors().skip(1).take(2) {
        File::open(above)?.sync_all()?;
    }
    Ok(())
}

/// The images under a definition's disks, as far as they can be read.
async fn chains(tool: &QemuImg, definition: &Element) -> Images {
    let mut images = Images::new();
    for disk in survey::disks(definition) {
        let Some(path) = disk.image() else { continue };
        if let Err(err) = survey::walk(tool, path, &disk.format, &mut images).await {
            tracing::warn!("{}", err.chain());
        }
    }
    images
}

fn memory_file(path: &Path, host: &Host) -> MemoryFile {
    let head = match save_image::open(path) {
        Ok((head, _)) => head,
        Err(damage) => return MemoryFile::Damaged(damage.to_string()),
    };
    match head.definition(host) {
        Ok(definition) => MemoryFile::Whole { definition, running: head.was_running },
        Err(err) => MemoryFile::Damaged(err.chain()),
    }
}

fn mark_bypassed(live: &Element, drives: &[Drive], disks: &mut [DiskFacts]) {
    for disk in disks {
        let Some(image) = disk.image() else { continue };
        let on_it = drives.iter().filter(|drive| drive.top().is_some_and(|top| top.is(image)));
        disk.bypass = match on_it.count() {
            1 => None,
            0 => Some(backend(live, domain::disk(live, &disk.target))),
            _ => Some("emulated hardware beside Xen's own disk".to_owned()),
        };
    }
}

/// A device model may lack a format's driver (Debian's has none for vpc), and libxl starts the guest
/// all the same, without the disk.
pub(crate) async fn check_opened(instance: &Instance) -> Result<()> {
    let Some(qmp) = instance.monitor().await? else { return Ok(()) };
    let live = instance.live();
    match unopened(&live, &drives::query(&qmp).await?) {
        None => Ok(()),
        Some(disk) => Err(Error::new(
            Condition::OperationFailed,
            format!(
                "the device model cannot serve disk '{}', of format {}: /var/log/xen/qemu-dm-{}.log \
                 says why",
                disk.target,
                disk.format.as_str(),
                instance.name
            ),
        )),
    }
}

fn unopened(live: &Element, drives: &[Drive]) -> Option<DiskFacts> {
    let is_open = |image: &Path| drives.iter().any(|drive| drive.depth(image).is_some());
    let is_its = |target: &str| {
        let disk = domain::disk(live, target);
        disk.is_some_and(|disk| disk.driver().and_then(|d| d.attr("name")) == Some("qemu"))
    };
    survey::disks(live).into_iter().find(|disk| {
        disk.device == DiskDevice::Disk
            && is_its(&disk.target)
            && disk.image().is_some_and(|image| !is_open(image))
    })
}

/// Who serves a disk that the device model does not have open.
fn backend(live: &Element, disk: Option<DiskView<'_>>) -> String {
    let named = disk.and_then(|disk| disk.driver()?.attr("name").map(str::to_owned));
    match named.as_deref() {
        Some("qemu") => {
            let name = live.child_text("name").unwrap_or_default();
            format!(
                "nobody (the device model has not opened it: /var/log/xen/qemu-dm-{name}.log may \
                 say why)"
            )
        }
        _ => named.unwrap_or_else(|| "phy".to_owned()),
    }
}

/// Images in which no internal snapshot can be deleted: what is open twice, as well.
fn sealed(drives: &[Drive]) -> BTreeSet<PathBuf> {
    let twice = |image: &Path| drives.iter().filter(|d| d.depth(image).is_some()).count() > 1;
    let layers = drives.iter().flat_map(|drive| {
        drive.layers.iter().enumerate().map(move |(at, layer)| (drive, at, layer))
    });
    layers
        .filter(|(drive, at, layer)| !drive.can_delete_in(*at) || twice(&layer.image))
        .map(|(_, _, layer)| layer.image.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use virtsnap_block::graph::Graph;

    use super::*;
    use crate::golden;

    /// As QEMU 10.0 answered on a host of Xen 4.17: xvda is `a.qcow2` on `mid.qcow2` on `base.qcow2`,
    /// and xvdb is `b.raw`.
    fn recorded(name: &str) -> Vec<Drive> {
        let text = golden::read("device-models", &format!("{name}.json"));
        let answers: Value = serde_json::from_str(&text).unwrap();
        let nodes = serde_json::from_value(answers["query-named-block-nodes"].clone()).unwrap();
        drives::of(nodes, &Graph::parse(&answers["x-debug-query-block-graph"]).unwrap())
    }

    fn live(directory: &str, driver: &str) -> Element {
        Element::parse(&format!(
            "<domain><devices>\
             <disk type='file'><driver name='qemu' type='qcow2'/>\
             <source file='{directory}/a.qcow2'/><target dev='xvda'/></disk>\
             <disk type='file'><driver name='{driver}' type='raw'/>\
             <source file='{directory}/b.raw'/><target dev='xvdb'/></disk>\
             </devices></domain>"
        ))
        .unwrap()
    }

    fn bypassed(live: &Element, drives: &[Drive]) -> Vec<Option<String>> {
        let mut disks = survey::disks(live);
        mark_bypassed(live, drives, &mut disks);
        disks.into_iter().map(|disk| disk.bypass).collect()
    }

    #[test]
    fn disks_of_a_device_model_are_in_reach() {
        for (name, directory) in [("pv", "/root/guests/p"), ("hvm", "/root/guests/h")] {
            let drives = recorded(name);
            assert_eq!(bypassed(&live(directory, "qemu"), &drives), [None, None], "{name}");
            let layers = drives.iter().flat_map(|drive| &drive.layers);
            let images: Vec<_> = layers.map(|l| l.image.strip_prefix(directory).unwrap()).collect();
            let expected = ["a.qcow2", "mid.qcow2", "base.qcow2", "b.raw"];
            assert_eq!(images, expected.map(Path::new), "{name}");
            let below = ["mid.qcow2", "base.qcow2"].map(|image| Path::new(directory).join(image));
            assert_eq!(sealed(&drives), BTreeSet::from(below), "{name}");
        }
    }

    #[test]
    fn what_the_kernel_serves_is_out_of_reach() {
        let mut drives = recorded("pv");
        drives.pop();
        let phy = [None, Some("phy".to_owned())];
        assert_eq!(bypassed(&live("/root/guests/p", "phy"), &drives), phy);
        assert_eq!(bypassed(&live("/root/guests/p", "phy"), &[])[1], phy[1]);
        let nobody = bypassed(&live("/root/guests/p", "qemu"), &[])[1].clone().unwrap();
        assert!(nobody.starts_with("nobody (the device model has not opened it"), "{nobody}");
        assert_eq!(unopened(&live("/root/guests/p", "phy"), &drives), None);
        assert_eq!(unopened(&live("/root/guests/p", "qemu"), &drives).unwrap().target, "xvdb");
        assert_eq!(unopened(&live("/root/guests/p", "phy"), &[]).unwrap().target, "xvda");
    }

    /// Before the guest's kernel has taken its disks from the emulated hardware.
    #[test]
    fn what_is_open_twice_is_out_of_reach() {
        let drives = recorded("hvm-emulated");
        let twice = "emulated hardware beside Xen's own disk";
        let live = live("/root/guests/e", "qemu");
        assert_eq!(bypassed(&live, &drives), [Some(twice.to_owned()), Some(twice.to_owned())]);
        let all = ["a.qcow2", "mid.qcow2", "base.qcow2", "b.raw"]
            .map(|image| Path::new("/root/guests/e").join(image));
        assert_eq!(sealed(&drives), BTreeSet::from(all));
    }
}
