//! The engine's ports, each call handed to the part that does it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use virtsnap_block::image::blocking;
use virtsnap_block::{merge, place, survey};
use virtsnap_engine::domain::{Active, Restore, Save, SaveImage, ShutOffReason, Start};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::{DomainFacts, Format, InternalSnapshot, PathKind, Place, Room};
use virtsnap_engine::inspect::{CpuTimes, ImageSize, Inspect, MemoryJob, Node, Platform};
use virtsnap_engine::merging::Merging;
use virtsnap_engine::plan::{Conclude, Finish, Pivot, Step};
use virtsnap_engine::ports::{Hypervisor, MergeError, PivotError, Subject};
use virtsnap_xml::element::Element;

use crate::capabilities::Offer;
use crate::context::Info;
use crate::hypervisor::Xen;
use crate::{complete, save_image};

impl Hypervisor for Xen {
    fn complete(&self, domain: Element) -> Result<Element> {
        complete::complete(domain, &self.shared.host)
    }

    fn abi_difference(&self, a: &Element, b: &Element) -> Option<String> {
        complete::abi_difference(a, b)
    }

    async fn capabilities(&self) -> Result<Element> {
        Ok(self.offer().await?.capabilities())
    }

    async fn reconnect(&self) -> Result<Vec<Active>> {
        self.reconnect_all().await
    }

    async fn start(&self, domain: Element, start: Start) -> Result<Active> {
        self.start_domain(domain, start).await
    }

    fn active(&self, domain: Uuid) -> Option<Active> {
        self.instance(domain).map(|instance| instance.active())
    }

    fn all_active(&self) -> Vec<Active> {
        self.all_instances()
    }

    fn set_live(&self, domain: Uuid, live: Element) -> Result<()> {
        self.running(domain)?.update(|inner| inner.live = live)
    }

    async fn suspend(&self, domain: Uuid) -> Result<()> {
        self.suspend_domain(domain).await
    }

    async fn resume(&self, domain: Uuid) -> Result<()> {
        self.resume_domain(domain).await
    }

    async fn shutdown(&self, domain: Uuid) -> Result<()> {
        self.shutdown_domain(domain).await
    }

    async fn reboot(&self, domain: Uuid) -> Result<()> {
        self.reboot_domain(domain).await
    }

    async fn reset(&self, _domain: Uuid) -> Result<()> {
        let what = "Xen does not reset a guest as it stands: reboot it, or destroy and start it";
        Err(Error::new(Condition::NoSupport, what))
    }

    async fn destroy(&self, domain: Uuid, reason: ShutOffReason) -> Result<()> {
        self.destroy_domain(domain, reason).await
    }

    async fn save(&self, domain: Uuid, save: Save) -> Result<()> {
        self.save_domain(domain, save).await
    }

    async fn save_image(&self, file: &Path) -> Result<SaveImage> {
        save_image::look_into(file, &self.shared.host).await
    }

    async fn edit_save_image(
        &self,
        file: &Path,
        definition: &Element,
        running: Option<bool>,
    ) -> Result<()> {
        self.edit_image(file, definition, running).await
    }

    async fn restore(&self, domain: Element, restore: Restore) -> Result<Active> {
        self.restore_domain(domain, restore).await
    }

    async fn monitor_command(&self, domain: Uuid, command: &str, human: bool) -> Result<String> {
        let qmp = self.running(domain)?.device_model().await?;
        if human { Ok(qmp.human(command).await?) } else { qmp.relay(command).await }
    }

    async fn facts(&self, subject: &Subject) -> Result<DomainFacts> {
        let facts = self.domain_facts(subject).await?;
        self.forget_note(subject.uuid);
        Ok(facts)
    }

    async fn probe(&self, path: &Path) -> Result<PathKind> {
        survey::probe(path)
    }

    async fn room(&self, directory: &Path) -> Option<Room> {
        place::room(directory).await
    }

    async fn place(&self, at: &Path, below: &Path, facts: &DomainFacts) -> Result<Place> {
        self.overlay_place(at, below, facts).await
    }

    async fn act(&self, domain: Uuid, step: &Step) -> Result<()> {
        self.act_step(domain, step).await
    }

    async fn undo(&self, domain: Uuid, step: &Step) -> Result<()> {
        self.undo_step(domain, step).await
    }

    async fn pivot(&self, domain: Uuid, pivot: &Pivot) -> Result<(), PivotError> {
        self.pivot_to(domain, pivot).await
    }

    async fn pivoted(&self, domain: Uuid, pivot: &Pivot) -> Result<bool> {
        self.has_pivoted(domain, pivot).await
    }

    async fn finish(&self, domain: Uuid, finish: &Finish) -> Result<()> {
        self.finish_act(domain, finish).await
    }

    async fn merge(
        &self,
        domain: Uuid,
        merge: &Finish,
        merging: &Merging,
    ) -> Result<(), MergeError> {
        self.merge_layers(domain, merge, merging).await
    }

    async fn weigh(&self, _domain: Uuid, merge: &Finish) -> u64 {
        merge::weigh(merge).await
    }

    async fn conclude(&self, domain: Uuid, conclude: &Conclude) -> Result<()> {
        match conclude {
            Conclude::Start { .. } if self.instance(domain).is_some() => Ok(()),
            Conclude::Start { definition, start } => {
                self.start_held(definition.clone(), start.clone()).await.map(drop)
            }
        }
    }

    async fn release(&self, domain: Uuid, conclude: &Conclude) -> Result<()> {
        let Conclude::Start { start, .. } = conclude;
        self.release_held(domain, start).await
    }
}

impl Inspect for Xen {
    const NAME: &'static str = "Xen";
    /// VIR_FROM_LIBXL.
    const ERROR_DOMAIN: i32 = 41;
    const FUNCTIONS: &'static str = "libxl";
    const PATHS: &'static [&'static str] = &["/system", "/", ""];
    const IS_SHARED: bool = true;

    async fn version(&self) -> Result<u64> {
        let context = self.shared.context.clone();
        let (major, minor) = blocking(move || Ok(context.host_info()?.version)).await?;
        Ok(u64::from(major) * 1_000_000 + u64::from(minor) * 1000)
    }

    async fn node(&self) -> Result<Option<Node>> {
        let context = self.shared.context.clone();
        blocking(move || Ok(Some(context.host_info()?.node))).await
    }

    async fn domain_capabilities(&self, platform: &Platform) -> Result<Element> {
        self.offer().await?.domain_capabilities(platform)
    }

    fn cpu_times(&self, domain: Uuid) -> Result<CpuTimes> {
        let total = self.info(domain)?.cpu_time;
        let vcpus = self.shared.context.vcpus(self.running(domain)?.id)?;
        Ok(CpuTimes { total, parts: None, vcpus })
    }

    /// All of its memory: Xen takes none away behind its back.
    fn resident_memory(&self, domain: Uuid) -> Result<u64> {
        Ok(self.info(domain)?.memory)
    }

    async fn balloon(&self, domain: Uuid) -> Result<Option<u64>> {
        Ok(Some(self.info(domain)?.memory))
    }

    async fn set_balloon(&self, domain: Uuid, kib: u64) -> Result<()> {
        let instance = self.running(domain)?;
        self.shared.context.set_memory(instance.id, kib).await
    }

    async fn image_size(&self, domain: &Element, target: &str) -> Result<ImageSize> {
        survey::size(&self.image_tool(), domain, target).await
    }

    async fn memory_job(&self, domain: Uuid) -> Result<Option<MemoryJob>> {
        Ok(self.instance(domain).and_then(|instance| instance.memory().job()))
    }

    async fn saved_memory(&self, domain: Uuid) -> Result<Option<MemoryJob>> {
        Ok(self.instance(domain).and_then(|instance| instance.memory().saved()))
    }

    async fn abort_memory_job(&self, domain: Uuid) -> Result<()> {
        match self.shared.context.stop_suspend(self.running(domain)?.id) {
            true => Ok(()),
            false => {
                let what = "no memory of the domain is being saved";
                Err(Error::new(Condition::OperationInvalid, what))
            }
        }
    }

    async fn image_snapshots(
        &self,
        _domain: Uuid,
        definition: &Element,
        named: &BTreeMap<PathBuf, Format>,
    ) -> Result<BTreeMap<PathBuf, Vec<InternalSnapshot>>> {
        self.snapshots_in_images(definition, named).await
    }

    async fn inject_nmi(&self, domain: Uuid) -> Result<()> {
        let instance = self.running(domain)?;
        self.shared.context.inject_nmi(instance.id).await
    }
}

impl Xen {
    async fn offer(&self) -> Result<Offer> {
        let context = self.shared.context.clone();
        let host = blocking(move || context.host_info()).await?;
        Ok(Offer::new(host, self.shared.device_model.get().await))
    }

    fn info(&self, domain: Uuid) -> Result<Info> {
        let instance = self.running(domain)?;
        let gone = || Error::new(Condition::OperationInvalid, "domain is not running");
        self.shared.context.info(instance.id)?.ok_or_else(gone)
    }
}
