//! The engine's port: each call goes to the part of this crate that does it.

use std::path::Path;

use uuid::Uuid;
use virtsnap_engine::domain::{Active, ShutOffReason, Start};
use virtsnap_engine::error::Result;
use virtsnap_engine::facts::{DomainFacts, PathKind};
use virtsnap_engine::plan::{Conclude, Finish, Pivot, Step};
use virtsnap_engine::ports::{Hypervisor, PivotError, Subject};
use virtsnap_xml::element::Element;

use crate::capabilities;
use crate::facts;
use crate::hypervisor::Qemu;

impl Hypervisor for Qemu {
    fn complete(&self, definition: Element) -> Result<Element> {
        self.complete_definition(definition)
    }

    async fn capabilities(&self) -> Result<Element> {
        let probed = self.shared.probe_blocking(None).await?;
        Ok(capabilities::of_host(&probed))
    }

    async fn reconnect(&self) -> Result<Vec<Active>> {
        self.reconnect_all().await
    }

    async fn start(&self, definition: Element, start: Start) -> Result<Active> {
        self.start_domain(definition, start).await
    }

    fn active(&self, domain: Uuid) -> Option<Active> {
        self.instance(domain).map(|instance| instance.active())
    }

    fn all_active(&self) -> Vec<Active> {
        let instances: Vec<_> = self.shared.instances().values().cloned().collect();
        instances.iter().map(|instance| instance.active()).collect()
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

    async fn monitor_command(&self, domain: Uuid, command: &str, human: bool) -> Result<String> {
        self.raw_monitor_command(domain, command, human).await
    }

    async fn facts(&self, subject: &Subject) -> Result<DomainFacts> {
        self.domain_facts(subject).await
    }

    async fn probe(&self, path: &Path) -> Result<PathKind> {
        facts::probe(path)
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

    async fn conclude(&self, domain: Uuid, conclude: &Conclude) -> Result<()> {
        let Conclude::Start { definition, start } = conclude;
        if self.instance(domain).is_some() {
            return Ok(());
        }
        self.start_domain(definition.clone(), start.clone()).await.map(|_| ())
    }
}
