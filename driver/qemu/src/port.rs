//! The engine's ports, each call handed to the part that does it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use virtsnap_block::{place, survey};
use virtsnap_engine::blockjob::{Ended, Ending, Move, NewBlockJob, Stage};
use virtsnap_engine::domain::{Active, Restore, Save, SaveImage, ShutOffReason, Start};
use virtsnap_engine::error::Result;
use virtsnap_engine::facts::{
    DomainFacts, Format, InternalSnapshot, PathKind, Place, Room, StateFile, Target,
};
use virtsnap_engine::inspect::{
    BlockJob, CpuTimes, DiskStats, ImageSize, Inspect, MemoryJob, MemoryStat, Pauses, Platform,
    Screenshot,
};
use virtsnap_engine::merging::Merging;
use virtsnap_engine::plan::access::Access;
use virtsnap_engine::plan::{Conclude, Finish, Pivot, Step};
use virtsnap_engine::ports::{Hypervisor, MergeError, PivotError, Subject};
use virtsnap_xml::element::Element;

use crate::hypervisor::Qemu;
use crate::image::system;
use crate::migration;
use crate::{saving, steps};

impl Hypervisor for Qemu {
    fn complete(&self, domain: Element) -> Result<Element> {
        self.complete_definition(domain)
    }

    fn abi_difference(&self, a: &Element, b: &Element) -> Option<String> {
        crate::complete::abi_difference(a, b)
    }

    async fn capabilities(&self) -> Result<Element> {
        self.host_capabilities().await
    }

    async fn reconnect(&self) -> Result<Vec<Active>> {
        self.reconnect_all().await
    }

    async fn start(&self, domain: Element, start: Start) -> Result<Active> {
        let uuid = virtsnap_xml::domain::uuid(&domain).unwrap_or_default();
        self.start_domain(domain, start).await.map_err(|err| self.explain(uuid, err))
    }

    fn active(&self, domain: Uuid) -> Option<Active> {
        let instance = self.instance(domain).map(|instance| instance.active());
        instance.or_else(|| self.stray(domain).map(|stray| stray.active()))
    }

    fn all_active(&self) -> Vec<Active> {
        let instances: Vec<_> = self.shared.instances().values().cloned().collect();
        let strays: Vec<_> = self.shared.strays().values().cloned().collect();
        let found = instances.iter().map(|instance| instance.active());
        found.chain(strays.iter().map(|stray| stray.active())).collect()
    }

    fn set_live(&self, domain: Uuid, live: Element) -> Result<()> {
        self.running(domain)?.update(|old, _| *old = live)
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

    async fn reset(&self, domain: Uuid) -> Result<()> {
        self.reset_domain(domain).await
    }

    async fn destroy(&self, domain: Uuid, reason: ShutOffReason) -> Result<()> {
        self.destroy_domain(domain, reason).await
    }

    async fn save(&self, domain: Uuid, save: Save) -> Result<()> {
        self.save_domain(domain, save).await
    }

    async fn save_image(&self, file: &Path) -> Result<SaveImage> {
        saving::look_into(file).await
    }

    async fn edit_save_image(
        &self,
        file: &Path,
        definition: &Element,
        running: Option<bool>,
    ) -> Result<()> {
        saving::edit(file, definition, running).await
    }

    async fn restore(&self, domain: Element, restore: Restore) -> Result<Active> {
        self.restore_domain(domain, restore).await
    }

    async fn monitor_command(&self, domain: Uuid, command: &str, human: bool) -> Result<String> {
        let instance = self.running(domain)?;
        if human {
            Ok(instance.qmp.human(command).await?)
        } else {
            instance.qmp.relay(command).await
        }
    }

    async fn facts(&self, subject: &Subject) -> Result<DomainFacts> {
        self.check_known(subject.uuid)?;
        self.domain_facts(subject).await
    }

    async fn room(&self, directory: &Path) -> Option<Room> {
        place::room(directory).await
    }

    async fn check_access(&self, domain: Uuid, needs: &[Access]) -> Result<()> {
        self.refuse_denied(domain, needs).await
    }

    async fn place(&self, at: &Path, below: &Path, facts: &DomainFacts) -> Result<Place> {
        self.overlay_place(at, below, facts).await
    }

    async fn probe(&self, path: &Path) -> Result<PathKind> {
        survey::probe(path)
    }

    fn state_files(&self, domain: Uuid, definition: &Element) -> Result<Vec<StateFile>> {
        self.state_files_of(domain, definition)
    }

    async fn is_whole_copy(&self, file: &StateFile, copy: &Path) -> Result<bool> {
        steps::is_whole_copy(file, copy).map_err(|err| system("read", copy, err))
    }

    fn tpm_state(&self, domain: Uuid) -> Option<PathBuf> {
        Some(crate::tpm::all_state_of(self.config(), domain))
    }

    async fn act(&self, domain: Uuid, step: &Step) -> Result<()> {
        self.check_known(domain)?;
        self.act_step(domain, step).await.map_err(|err| self.explain(domain, err))
    }

    async fn undo(&self, domain: Uuid, step: &Step) -> Result<()> {
        self.check_known(domain)?;
        self.undo_step(domain, step).await
    }

    async fn pivot(&self, domain: Uuid, pivot: &Pivot) -> Result<(), PivotError> {
        self.check_known(domain).map_err(PivotError::Refused)?;
        self.pivot_to(domain, pivot).await.map_err(|err| match err {
            PivotError::Refused(err) => PivotError::Refused(self.explain(domain, err)),
            doubt @ PivotError::InDoubt(_) => doubt,
        })
    }

    async fn pivoted(&self, domain: Uuid, pivot: &Pivot) -> Result<bool> {
        self.check_known(domain)?;
        self.has_pivoted(domain, pivot).await
    }

    async fn finish(&self, domain: Uuid, finish: &Finish) -> Result<()> {
        self.check_known(domain)?;
        self.finish_act(domain, finish).await.map_err(|err| self.explain(domain, err))
    }

    async fn merge(
        &self,
        domain: Uuid,
        merge: &Finish,
        merging: &Merging,
    ) -> Result<(), MergeError> {
        self.check_known(domain).map_err(MergeError::InDoubt)?;
        self.merge_layers(domain, merge, merging).await.map_err(|err| match err {
            MergeError::NotMerged(err) => MergeError::NotMerged(self.explain(domain, err)),
            doubt @ MergeError::InDoubt(_) => doubt,
        })
    }

    async fn weigh(&self, _domain: Uuid, merge: &Finish) -> u64 {
        virtsnap_block::merge::weigh(merge).await
    }

    async fn conclude(&self, domain: Uuid, conclude: &Conclude) -> Result<()> {
        self.check_known(domain)?;
        match conclude {
            Conclude::Start { .. } if self.instance(domain).is_some() => Ok(()),
            Conclude::Start { definition, start } => {
                let definition = saving::with_new_generation(definition.clone());
                let started = self.start_held(definition, start.clone()).await;
                started.map(drop).map_err(|err| self.explain(domain, err))
            }
        }
    }

    async fn release(&self, domain: Uuid, conclude: &Conclude) -> Result<()> {
        let Conclude::Start { start, .. } = conclude;
        self.release_held(domain, start).await
    }
}

impl Inspect for Qemu {
    const NAME: &'static str = "QEMU";
    /// VIR_FROM_QEMU.
    const ERROR_DOMAIN: i32 = 10;
    const FUNCTIONS: &'static str = "qemu";
    const PATHS: &'static [&'static str] = &["/system", "/session"];

    async fn version(&self) -> Result<u64> {
        let probed = self.shared.probe_blocking(None).await?;
        let (major, minor, micro) = probed.facts.version;
        Ok(u64::from(major) * 1_000_000 + u64::from(minor) * 1000 + u64::from(micro))
    }

    async fn domain_capabilities(&self, platform: &Platform) -> Result<Element> {
        self.capabilities_for(platform).await
    }

    fn cpu_times(&self, domain: Uuid) -> Result<CpuTimes> {
        self.process_times(domain)
    }

    fn resident_memory(&self, domain: Uuid) -> Result<u64> {
        self.process_memory(domain)
    }

    async fn balloon(&self, domain: Uuid) -> Result<Option<u64>> {
        self.balloon_size(domain).await
    }

    async fn set_balloon(&self, domain: Uuid, kib: u64) -> Result<()> {
        self.set_balloon_size(domain, kib).await
    }

    async fn disk_stats(&self, domain: Uuid) -> Result<Vec<DiskStats>> {
        self.all_disk_stats(domain).await
    }

    async fn image_size(&self, domain: &Element, target: &str) -> Result<ImageSize> {
        self.size_of_image(domain, target).await
    }

    fn pauses(&self, domain: Uuid) -> Option<Pauses> {
        Some(self.instance(domain)?.lock().standing.pauses())
    }

    async fn memory_job(&self, domain: Uuid) -> Result<Option<MemoryJob>> {
        let Some(instance) = self.instance(domain) else { return Ok(None) };
        migration::job(&instance).await
    }

    async fn saved_memory(&self, domain: Uuid) -> Result<Option<MemoryJob>> {
        let Some(instance) = self.instance(domain) else { return Ok(None) };
        migration::last(&instance).await
    }

    async fn abort_memory_job(&self, domain: Uuid) -> Result<()> {
        migration::cancel(&*self.running(domain)?).await
    }

    async fn image_snapshots(
        &self,
        domain: Uuid,
        definition: &Element,
        named: &BTreeMap<PathBuf, Format>,
    ) -> Result<BTreeMap<PathBuf, Vec<InternalSnapshot>>> {
        self.snapshots_in_images(domain, definition, named).await
    }

    async fn block_job(&self, domain: Uuid, target: &str) -> Result<Option<BlockJob>> {
        self.running_block_job(domain, target).await
    }

    async fn start_block_job(&self, domain: Uuid, job: &NewBlockJob) -> Result<()> {
        self.start_client_job(domain, job).await
    }

    fn client_block_jobs(&self, domain: Uuid) -> Vec<Target> {
        self.client_jobs(domain)
    }

    async fn set_block_job_speed(&self, domain: Uuid, target: &str, speed: u64) -> Result<()> {
        self.set_client_job_speed(domain, target, speed).await
    }

    async fn end_block_job(&self, domain: Uuid, target: &str, how: Ending) -> Result<()> {
        self.end_client_job(domain, target, how).await
    }

    async fn block_job_beyond(
        &self,
        domain: Uuid,
        target: &str,
        stage: Stage,
    ) -> Result<Option<Stage>> {
        self.client_job_beyond(domain, target, stage).await
    }

    fn block_job_moves(&self, domain: Uuid, target: &str) -> Result<Option<Move>> {
        self.client_job_moves(domain, target)
    }

    async fn finalize_block_job(&self, domain: Uuid, target: &str) -> Result<()> {
        self.finalize_client_job(domain, target).await
    }

    async fn conclude_block_job(&self, domain: Uuid, target: &str) -> Result<Option<Ended>> {
        self.conclude_client_job(domain, target).await
    }

    async fn remove_image(&self, domain: Uuid, image: &Path) -> Result<()> {
        self.remove_unused_image(domain, image).await
    }

    async fn screenshot(&self, domain: Uuid, screen: u32) -> Result<Screenshot> {
        self.take_screenshot(domain, screen).await
    }

    async fn send_keys(&self, domain: Uuid, codes: &[u32], hold: u32) -> Result<()> {
        self.press_keys(domain, codes, hold).await
    }

    async fn inject_nmi(&self, domain: Uuid) -> Result<()> {
        self.nmi(domain).await
    }

    async fn wake_up(&self, domain: Uuid) -> Result<()> {
        self.wake_domain(domain).await
    }

    async fn resize_disk(&self, domain: Uuid, target: &str, size: u64) -> Result<()> {
        self.resize_active_layer(domain, target, size).await
    }

    async fn memory_stats(&self, domain: Uuid) -> Result<Vec<(MemoryStat, u64)>> {
        self.balloon_stats(domain).await
    }

    async fn change_medium(&self, domain: Uuid, disk: &Element, force: bool) -> Result<()> {
        self.swap_medium(domain, disk, force).await
    }

    async fn attach_device(&self, domain: Uuid, device: &Element) -> Result<()> {
        self.plug_in(domain, device).await
    }

    async fn detach_device(&self, domain: Uuid, alias: &str) -> Result<()> {
        self.unplug(domain, alias).await
    }

    async fn open_graphics(&self, domain: Uuid, index: u32) -> Result<std::os::fd::OwnedFd> {
        self.graphics_connection(domain, index).await
    }

    async fn agent_command(
        &self,
        domain: Uuid,
        command: &str,
        seconds: Option<u32>,
    ) -> Result<String> {
        self.raw_agent_command(domain, command, seconds).await
    }
}
