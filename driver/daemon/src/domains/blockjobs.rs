//! Block jobs of clients: started, followed to their end, noted in the definitions.
//!
//! A job is not the domain's job: the guest runs on, and so do other calls. Only its beginning and
//! its end take the domain's. Every job has a follower, a task that waits for it to become ready or
//! to end, also after a restart of the daemon. Whoever has the domain's job when a block job is over
//! notes what it changed, once: a call that waits for the end, or the follower.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use virtsnap_engine::blockjob::{Ended, Ending, Move, NewBlockJob, Outcome, Stage};
use virtsnap_engine::domain::{BlockJobStatus, Event};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::inspect::Inspect;
use virtsnap_engine::plan;
use virtsnap_engine::ports::{EventSink, Records};
use virtsnap_xml::domain;

use super::job::Operation;
use super::life::Domains;
use super::table::Domain;

/// Between two attempts to note the end of a job on a domain that something else holds.
const RETRY: Duration = Duration::from_secs(1);

impl<H: Inspect> Domains<H> {
    /// The caller has the domain's job.
    pub(crate) async fn start_block_job(
        self: &Arc<Self>,
        domain: &Arc<Domain>,
        job: &NewBlockJob,
    ) -> Result<()> {
        self.snapshots.check_block_job(&domain.book, job).await?;
        self.hypervisor.start_block_job(domain.uuid, job).await?;
        self.follow_block_job(domain, &job.target);
        Ok(())
    }

    /// Tells a job to end; with `wait`, returns when it has.
    pub(crate) async fn end_block_job(
        self: &Arc<Self>,
        domain: &Arc<Domain>,
        target: &str,
        how: Ending,
        wait: bool,
    ) -> Result<()> {
        let job = self.settled_job(domain, Operation::Change("the end of a block job")).await?;
        self.running(domain)?;
        self.hypervisor.end_block_job(domain.uuid, target, how).await?;
        let (domains, domain, target) = (self.clone(), domain.clone(), target.to_owned());
        let ending = tokio::spawn(async move {
            let _job = job;
            domains.see_block_job_out(&domain, &target).await
        });
        if !wait {
            return Ok(());
        }
        let ended = ending.await.unwrap_or_else(|err| {
            let message = "the end of the block job was broken off";
            Err(Error::new(Condition::Internal, message).caused_by(err))
        })?;
        match ended.map(|ended| ended.outcome) {
            Some(Outcome::Failed(why)) if how == Ending::Pivot => {
                let message = format!("the block job failed while pivoting: {why}");
                Err(Error::new(Condition::OperationFailed, message))
            }
            _ => Ok(()),
        }
    }

    /// Takes up again the jobs that went on while there was no daemon.
    pub(crate) fn follow_block_jobs(self: &Arc<Self>) {
        for domain in self.table.all() {
            for target in self.hypervisor.client_block_jobs(domain.uuid) {
                self.follow_block_job(&domain, &target);
            }
        }
    }

    fn follow_block_job(self: &Arc<Self>, domain: &Arc<Domain>, target: &str) {
        let (domains, domain, target) = (self.clone(), domain.clone(), target.to_owned());
        tokio::spawn(async move {
            if let Err(err) = domains.follow(&domain, &target).await {
                let name = domain.name();
                tracing::warn!(domain = name, target, error = %err.chain(), "lost a block job");
            }
        });
    }

    async fn follow(&self, domain: &Domain, target: &str) -> Result<()> {
        let mut stage = Stage::Running;
        loop {
            let next = self.hypervisor.block_job_beyond(domain.uuid, target, stage).await?;
            let Some(next) = next else { return Ok(()) };
            if next == Stage::Ready {
                stage = next;
                continue;
            }
            match self.job(domain, Operation::Change("the end of a block job")).await {
                Ok(_job) => {
                    self.see_block_job_out(domain, target).await?;
                    return Ok(());
                }
                Err(err) if err.condition == Condition::Timeout => tokio::time::sleep(RETRY).await,
                Err(err) => return Err(err),
            }
        }
    }

    /// From the client's last word to the end. The caller has the domain's job. None: somebody
    /// else saw to it.
    async fn see_block_job_out(&self, domain: &Domain, target: &str) -> Result<Option<Ended>> {
        let mut stage = Stage::Ready;
        loop {
            match self.hypervisor.block_job_beyond(domain.uuid, target, stage).await? {
                None => return Ok(None),
                Some(Stage::Concluded) => break,
                Some(next) => {
                    if let Some(to) = self.hypervisor.block_job_moves(domain.uuid, target)? {
                        self.move_in_config(domain, &to)?;
                    }
                    self.hypervisor.finalize_block_job(domain.uuid, target).await?;
                    stage = next;
                }
            }
        }
        let Some(ended) = self.hypervisor.conclude_block_job(domain.uuid, target).await? else {
            return Ok(None);
        };
        self.note_end(domain, &ended).await;
        let status = match &ended.outcome {
            Outcome::Completed => BlockJobStatus::Completed,
            Outcome::Canceled => BlockJobStatus::Canceled,
            Outcome::Failed(_) => BlockJobStatus::Failed,
        };
        let event = Event::BlockJob {
            target: target.to_owned(),
            source: ended.active.to_string_lossy().into_owned(),
            kind: ended.kind,
            status,
        };
        self.table.emit(domain.uuid, &domain.name(), self.id(domain), event);
        Ok(Some(ended))
    }

    /// What it changed is QEMU's truth already: what cannot be noted is told, and goes on.
    async fn note_end(&self, domain: &Domain, ended: &Ended) {
        let noted = async {
            if let Some(to) = &ended.moved {
                self.move_in_config(domain, to)?;
            }
            // Merged by the client, they are the client's: no snapshot's end removes them.
            let before = domain.book().owned.clone();
            let mut owned = before.clone();
            owned.retain(|image| !ended.left.contains(image));
            if owned != before {
                self.table.store().set_owned(domain.uuid, &owned)?;
                domain.book().owned = owned;
            }
            if ended.delete {
                for image in &ended.left {
                    self.remove_merged(domain, image).await?;
                }
            }
            Ok::<_, Error>(())
        };
        if let Err(err) = noted.await {
            tracing::error!(domain = domain.name(), error = %err.chain(), "after a block job");
        }
    }

    async fn remove_merged(&self, domain: &Domain, image: &Path) -> Result<()> {
        // Looked at before the job; but a snapshot may have been redefined since.
        if plan::images_of(&domain.book().moments).contains_key(image) {
            let what = format!("'{}' stays: a snapshot needs it", image.display());
            return Err(Error::new(Condition::OperationInvalid, what));
        }
        self.hypervisor.remove_image(domain.uuid, image).await
    }

    /// The persistent definition follows where it names the same image as the guest had.
    fn move_in_config(&self, domain: &Domain, to: &Move) -> Result<()> {
        let Some(mut config) = domain.config() else { return Ok(()) };
        let disk = domain::disk(&config, &to.target);
        if disk.and_then(|disk| disk.path()).map(Path::new) != Some(&to.from) {
            return Ok(());
        }
        let kind = if to.is_block_device { "block" } else { "file" };
        let path = to.to.to_string_lossy();
        domain::set_image(&mut config, &to.target, kind, &path, to.format.as_str());
        self.table.store().set_config(domain.uuid, &config)?;
        domain.book().config = Some(config);
        Ok(())
    }
}
