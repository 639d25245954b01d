//! What a plan is made from: disks, images, who else reads them.
//!
//! Of a running domain's chains QEMU itself tells (`query-named-block-nodes`); of all else
//! [`virtsnap_block::survey`] does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use uuid::Uuid;
use virtsnap_block::merge;
use virtsnap_block::survey::{self, Images};
use virtsnap_engine::domain::{ShutOffReason, State};
use virtsnap_engine::error::Result;
use virtsnap_engine::facts::{
    AgentState, DiskFacts, DomainFacts, Format, ImageFacts, InternalSnapshot, MemoryFile,
};
use virtsnap_engine::ports::Subject;
use virtsnap_xml::element::Element;

use crate::blocks::nodes;
use crate::client_jobs::Merged;
use crate::hypervisor::Qemu;
use crate::image::QemuImg;
use crate::instance::Instance;
use crate::migration;
use crate::save_image::Saved;

impl Qemu {
    /// No operation is under way on the domain when this is asked.
    pub(crate) async fn domain_facts(&self, subject: &Subject) -> Result<DomainFacts> {
        let instance = self.instance(subject.uuid);
        let live = instance.as_ref().map(|instance| instance.live());
        let definition = live.as_ref().or(subject.config.as_ref());
        let mut disks = definition.map(survey::disks).unwrap_or_default();
        let mut images = Images::new();
        let (mut memory_blockers, mut internal_after_memory) = (Vec::new(), true);
        if let Some(instance) = &instance {
            memory_blockers = migration::blockers(&instance.qmp).await?;
            // What the save leaves inactive, QEMU before 10 cannot activate while the guest stands.
            internal_after_memory = migration::activate(&instance.qmp).await?;
            if !internal_after_memory {
                migration::leave_postmigrate(instance).await?;
            }
            live_images(instance, &mut images).await?;
            mark_jobs(instance, &mut disks).await?;
        }
        survey::gather(&self.image_tool(), subject, &disks, &mut images).await?;
        self.forget_vmstate_note(subject.uuid);
        merge::forget_commits(&self.config().state_dir, subject.uuid, &images).await?;
        let merged = instance.as_ref().map(|i| i.lock().merged.clone()).unwrap_or_default();
        let is_given_up = move |meta: &_| merged.contains(&Merged::of(meta));
        let foreign_readers =
            survey::foreign_readers(&images, &subject.others, is_given_up).await?;
        let memory_files = survey::memory_files(subject.memory_files.clone(), memory_file).await?;
        let agent = agent(live.as_ref(), instance.as_deref());
        Ok(DomainFacts {
            uuid: subject.uuid,
            name: subject.name.clone(),
            state: instance
                .as_ref()
                .map_or(State::ShutOff(ShutOffReason::Unknown), |instance| instance.state()),
            config: subject.config.clone(),
            live,
            disks,
            images,
            memory_files,
            owned: subject.owned.clone(),
            foreign_readers,
            sealed: BTreeSet::new(),
            state_files: Vec::new(),
            agent,
            memory_blockers,
            memory_inside: true,
            saved_by_guest: false,
            internal_after_memory,
            managed_save: None,
            files_dir: None,
            has_unreadable_moments: false,
            now: survey::now(),
        })
    }

    /// What can be read without the domain's job: nothing is changed, and an image that cannot be
    /// read just now is left out.
    pub(crate) async fn snapshots_in_images(
        &self,
        domain: Uuid,
        definition: &Element,
        named: &BTreeMap<PathBuf, Format>,
    ) -> Result<BTreeMap<PathBuf, Vec<InternalSnapshot>>> {
        let mut images = Images::new();
        if let Some(instance) = self.instance(domain) {
            live_images(&instance, &mut images).await?;
        }
        Ok(survey::snapshots(&self.image_tool(), definition, named, images).await)
    }

    pub(crate) fn image_tool(&self) -> QemuImg {
        QemuImg::new(&self.config().qemu_img)
    }
}

fn memory_file(path: &Path) -> MemoryFile {
    let saved = match Saved::open(path) {
        Ok(saved) => saved,
        Err(damage) => return MemoryFile::Damaged(damage.to_string()),
    };
    match Element::parse(&saved.head.definition) {
        Ok(definition) => MemoryFile::Whole { definition, running: saved.head.was_running },
        Err(err) => MemoryFile::Damaged(format!("its definition cannot be read: {err}")),
    }
}

fn agent(live: Option<&Element>, instance: Option<&Instance>) -> AgentState {
    let channels = live.and_then(|live| live.child("devices")).into_iter();
    let has_channel = channels.flat_map(|devices| devices.children("channel")).any(|channel| {
        let name = channel.child("target").and_then(|target| target.attr("name"));
        name == Some(crate::events::AGENT_PORT)
    });
    match instance {
        Some(instance) if has_channel && instance.agent_connected() => AgentState::Connected,
        _ if has_channel => AgentState::NotConnected,
        _ => AgentState::NotConfigured,
    }
}

/// The chains that QEMU has open.
async fn live_images(instance: &Instance, images: &mut Images) -> Result<()> {
    let mut told: BTreeMap<String, _> = nodes::all(&instance.qmp)
        .await?
        .into_iter()
        .map(|node| (node.node_name, node.image))
        .collect();
    for chain in instance.chains().values() {
        for (depth, layer) in chain.layers.iter().enumerate() {
            let Some(info) = told.remove(&layer.format_node()) else { continue };
            if !survey::is_still_there(&layer.image, &layer.format()) {
                continue;
            }
            let below = chain.layers.get(depth + 1);
            let facts = ImageFacts {
                format: layer.format(),
                backing: below.map(|below| below.image.clone()),
                backing_format: below.map(|below| below.format()),
                is_block_device: layer.is_block_device,
                ..info.facts(&layer.image)
            };
            images.insert(layer.image.clone(), facts);
        }
    }
    Ok(())
}

async fn mark_jobs(instance: &Instance, disks: &mut [DiskFacts]) -> Result<()> {
    // The client's, until all that they changed is noted.
    let client: BTreeSet<String> = instance.lock().jobs.keys().cloned().collect();
    for disk in disks.iter_mut().filter(|disk| client.contains(&disk.target)) {
        disk.block_job = true;
    }
    survey::mark_jobs(&instance.qmp, disks).await
}
