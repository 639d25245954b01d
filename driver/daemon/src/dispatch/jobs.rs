//! What holds a domain just now, as virDomainGetJobInfo and its successors tell it.
//!
//! An operation on snapshots is a job with a number of libvirt's, told about while it runs, when it
//! has succeeded (JOB_COMPLETED), and after that until it is asked for. libvirt tells of the end
//! only where memory went to a file; here every such operation is told of.

use std::time::{Duration, Instant};

use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::inspect::Inspect;
use virtsnap_rpc::remote::*;
use virtsnap_xml::snapshot::Memory;

use super::info::millis;
use super::{Context, Outcome, flags};
use crate::domains::{Domain, Figures, Operation};

// virDomainJobType
const NONE: i32 = 0;
const UNBOUNDED: i32 = 2;
const COMPLETED: i32 = 3;

/// While QEMU saves memory inside of an image its monitor is silent; nobody waits for it here.
const PATIENCE: Duration = Duration::from_secs(1);

/// virDomainJobOperation; none for changes that libvirt does not report as jobs either.
fn number(operation: Operation) -> Option<i32> {
    match operation {
        Operation::Change(_) => None,
        Operation::Start => Some(1),
        Operation::Save => Some(2),
        Operation::Restore => Some(3),
        Operation::SnapshotCreate => Some(6),
        Operation::SnapshotRevert => Some(7),
        Operation::SnapshotDelete => Some(10),
    }
}

/// What is known of the job that holds the domain.
async fn running<H: Inspect>(cx: &Context<'_, H>, domain: &Domain) -> Option<Figures> {
    let job = domain.jobs.running()?;
    number(job.operation)?;
    let mut figures = Figures::new(job.operation, job.since);
    tell_merges(cx, domain, &mut figures);
    let measured = measure(cx, domain, figures.clone());
    Some(tokio::time::timeout(PATIENCE, measured).await.unwrap_or(figures))
}

async fn measure<H: Inspect>(
    cx: &Context<'_, H>,
    domain: &Domain,
    mut figures: Figures,
) -> Figures {
    let hypervisor = &cx.daemon.domains.hypervisor;
    figures.memory = hypervisor.memory_job(domain.uuid).await.ok().flatten();
    tell_merges(cx, domain, &mut figures);
    figures
}

fn tell_merges<H: Inspect>(cx: &Context<'_, H>, domain: &Domain, figures: &mut Figures) {
    if figures.operation == Operation::SnapshotDelete
        && let Some(merging) = cx.daemon.domains.snapshots.merging(domain.uuid)
    {
        let progress = merging.progress();
        (figures.merged, figures.to_merge) = (progress.done, progress.total);
    }
}

/// Runs an operation on snapshots as a job that can be watched. The caller has the domain's job.
pub(super) async fn watched<H: Inspect, T>(
    cx: &Context<'_, H>,
    domain: &Domain,
    operation: Operation,
    act: impl Future<Output = Result<T>>,
    memory: impl FnOnce(&T) -> &Memory,
) -> Result<T> {
    let domains = &cx.daemon.domains;
    let (since, before) = (Instant::now(), domains.hypervisor.pauses(domain.uuid));
    let outcome = act.await?;
    let mut figures = Figures::new(operation, since);
    let memory = memory(&outcome);
    if memory.is_saved() {
        // What the guest noticed: also the switch of its disks, and that all was to be durable.
        let after = domains.hypervisor.pauses(domain.uuid);
        let stood = after.zip(before).and_then(|(after, before)| after.since(before));
        figures.stood = stood.map(millis);
    }
    if matches!(memory, Memory::External { .. }) {
        let saved = domains.hypervisor.saved_memory(domain.uuid);
        let saved = tokio::time::timeout(PATIENCE, saved).await;
        figures.memory = saved.ok().and_then(Result::ok).flatten();
    }
    tell_merges(cx, domain, &mut figures);
    figures.elapsed = millis(since.elapsed());
    tracing::info!(
        domain = domain.name(),
        milliseconds = figures.elapsed,
        guest_stood_still = figures.stood,
        "{} is over",
        operation.what()
    );
    let params = params(&figures);
    domain.jobs.complete(figures);
    let (name, id) = (domain.name(), domains.id(domain));
    domains.table.events().job_completed(domain.uuid, &name, id, &params);
    Ok(outcome)
}

pub(super) async fn info<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetJobInfoArgs,
) -> Outcome<DomainGetJobInfoRet> {
    let domain = cx.domain(&args.dom)?;
    let figures = running::<H>(&cx, &domain).await;
    if figures.is_none() {
        cx.daemon.domains.running(&domain)?;
    }
    let kind = if figures.is_some() { UNBOUNDED } else { NONE };
    let figures = figures.unwrap_or_else(|| Figures::new(Operation::Start, Instant::now()));
    let memory = figures.memory.unwrap_or_default();
    let data = Data::of(&figures);
    Ok(DomainGetJobInfoRet {
        kind,
        time_elapsed: if kind == NONE { 0 } else { figures.elapsed },
        time_remaining: 0,
        data_total: data.total,
        data_processed: data.processed,
        data_remaining: data.remaining,
        mem_total: memory.total,
        mem_processed: memory.processed,
        mem_remaining: memory.remaining,
        file_total: figures.to_merge,
        file_processed: figures.merged,
        file_remaining: figures.to_merge.saturating_sub(figures.merged),
    })
}

/// Memory and disks together.
struct Data {
    total: u64,
    processed: u64,
    remaining: u64,
}

impl Data {
    fn of(figures: &Figures) -> Self {
        let memory = figures.memory.unwrap_or_default();
        let left = figures.to_merge.saturating_sub(figures.merged);
        Self {
            total: memory.total.saturating_add(figures.to_merge),
            processed: memory.processed.saturating_add(figures.merged),
            remaining: memory.remaining.saturating_add(left),
        }
    }
}

/// VIR_DOMAIN_JOB_*
fn params(figures: &Figures) -> Vec<TypedParam> {
    let operation = number(figures.operation).unwrap_or(0);
    let mut params = vec![TypedParam::new("operation", operation)];
    let mut add = |field: &str, value: u64| params.push(TypedParam::new(field, value));
    add("time_elapsed", figures.elapsed);
    let memory = figures.memory.unwrap_or_default();
    figures.stood.or(memory.downtime).into_iter().for_each(|time| add("downtime", time));
    memory.setup.into_iter().for_each(|time| add("setup_time", time));
    if figures.memory.is_some() || figures.to_merge > 0 {
        let data = Data::of(figures);
        add("data_total", data.total);
        add("data_processed", data.processed);
        add("data_remaining", data.remaining);
    }
    if let Some(memory) = &figures.memory {
        add("memory_total", memory.total);
        add("memory_processed", memory.processed);
        add("memory_remaining", memory.remaining);
        if memory.bytes_per_second > 0 {
            add("memory_bps", memory.bytes_per_second);
        }
        add("memory_constant", memory.constant_pages);
        add("memory_normal", memory.normal_pages);
        add("memory_normal_bytes", memory.normal_bytes);
        add("memory_dirty_rate", memory.dirty_rate);
        add("memory_iteration", memory.iteration);
        if memory.page_size > 0 {
            add("memory_page_size", memory.page_size);
        }
    }
    if figures.to_merge > 0 {
        add("disk_total", figures.to_merge);
        add("disk_processed", figures.merged);
        add("disk_remaining", figures.to_merge.saturating_sub(figures.merged));
    }
    params
}

pub(super) async fn stats<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetJobStatsArgs,
) -> Outcome<DomainGetJobStatsRet> {
    const OF_COMPLETED: u32 = 1;
    const KEEP_COMPLETED: u32 = 2;
    flags::only::<H>(args.flags, OF_COMPLETED | KEEP_COMPLETED, "DomainGetJobStats")?;
    let domain = cx.domain(&args.dom)?;
    let (kind, figures) = if args.flags & OF_COMPLETED != 0 {
        (COMPLETED, domain.jobs.completed(args.flags & KEEP_COMPLETED != 0))
    } else {
        (UNBOUNDED, running(&cx, &domain).await)
    };
    let Some(figures) = figures else {
        if args.flags & OF_COMPLETED == 0 {
            cx.daemon.domains.running(&domain)?;
        }
        return Ok(DomainGetJobStatsRet { kind: NONE, params: Vec::new().into() });
    };
    Ok(DomainGetJobStatsRet { kind, params: params(&figures).into() })
}

/// Memory on its way to a file can be stopped: then the operation fails as aborted, and undoes what
/// it did. So can the merges of a deletion, of a domain that is off, too: what is merged stays so,
/// and the rest is for whoever deletes again. All else goes on to its end, or back to its start, by
/// itself.
pub(super) async fn abort<H: Inspect>(cx: Context<'_, H>, args: DomainAbortJobArgs) -> Outcome<()> {
    let domain = cx.domain(&args.dom)?;
    abort_job(&cx, &domain).await
}

pub(super) async fn abort_flags<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainAbortJobFlagsArgs,
) -> Outcome<()> {
    const POSTCOPY: u32 = 1;
    flags::only::<H>(args.flags, POSTCOPY, "DomainAbortJobFlags")?;
    let domain = cx.domain(&args.dom)?;
    if args.flags & POSTCOPY != 0 {
        let message = "current job is not outgoing migration in post-copy mode";
        return Err(Error::new(Condition::OperationInvalid, message).into());
    }
    abort_job(&cx, &domain).await
}

async fn abort_job<H: Inspect>(cx: &Context<'_, H>, domain: &Domain) -> Outcome<()> {
    let invalid = |message: &str| Error::new(Condition::OperationInvalid, message.to_owned());
    let job = domain.jobs.running().filter(|job| number(job.operation).is_some());
    if job.is_some_and(|job| job.operation == Operation::SnapshotDelete)
        && let Some(merging) = cx.daemon.domains.snapshots.merging(domain.uuid)
    {
        merging.stop();
        return Ok(());
    }
    cx.daemon.domains.running(domain)?;
    let Some(job) = job else {
        return Err(invalid("no job is active on the domain").into());
    };
    let hypervisor = &cx.daemon.domains.hypervisor;
    let saving = tokio::time::timeout(PATIENCE, hypervisor.memory_job(domain.uuid)).await;
    if saving.is_ok_and(|memory| memory.is_ok_and(|memory| memory.is_some())) {
        return Ok(hypervisor.abort_memory_job(domain.uuid).await?);
    }
    Err(match job.operation {
        Operation::Start => invalid("cannot abort VM start; use virDomainDestroy instead"),
        _ => invalid(
            "this job cannot be aborted now: only memory on its way to a file can be, and merges",
        ),
    }
    .into())
}

#[cfg(test)]
mod tests {
    use virtsnap_engine::inspect::MemoryJob;

    use super::*;

    #[test]
    fn figures_become_libvirts_fields() {
        let mut figures = Figures::new(Operation::SnapshotCreate, Instant::now());
        let fields = |figures: &Figures| -> Vec<String> {
            params(figures).into_iter().map(|param| param.field).collect()
        };
        assert_eq!(fields(&figures), ["operation", "time_elapsed"]);
        figures.memory =
            Some(MemoryJob { total: 10, processed: 4, remaining: 6, ..Default::default() });
        (figures.merged, figures.to_merge) = (1, 3);
        assert!(!fields(&figures).contains(&"downtime".to_owned()));
        figures.stood = Some(7);
        assert!(params(&figures).contains(&TypedParam::new("downtime", 7_u64)));
        let data = Data::of(&figures);
        assert_eq!((data.total, data.processed, data.remaining), (13, 5, 8));
        assert!(fields(&figures).contains(&"memory_total".to_owned()));
        assert!(fields(&figures).contains(&"disk_total".to_owned()));
    }
}
