//! What holds a domain just now, as virDomainGetJobInfo and its successors tell it.

use virtsnap_engine::error::{Condition, Error};
use virtsnap_engine::inspect::Inspect;
use virtsnap_rpc::remote::*;

use super::info::millis;
use super::{Context, Outcome, flags};
use crate::domains::{Domain, Operation};

const NONE: i32 = 0;
const UNBOUNDED: i32 = 2;

/// virDomainJobOperation; none for changes that libvirt does not report as jobs either.
fn number(operation: Operation) -> Option<i32> {
    match operation {
        Operation::Change(_) => None,
        Operation::Start => Some(1),
        Operation::SnapshotCreate => Some(6),
        Operation::SnapshotRevert => Some(7),
        Operation::SnapshotDelete => Some(10),
    }
}

/// The operation and how long it has been going on.
fn reported(domain: &Domain) -> Option<(i32, u64)> {
    let job = domain.jobs.running()?;
    Some((number(job.operation)?, millis(job.since.elapsed())))
}

pub(super) async fn info<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetJobInfoArgs,
) -> Outcome<DomainGetJobInfoRet> {
    let domain = cx.domain(&args.dom)?;
    let (kind, time_elapsed) = match reported(&domain) {
        Some((_, elapsed)) => (UNBOUNDED, elapsed),
        None => {
            cx.daemon.domains.running(&domain)?;
            (NONE, 0)
        }
    };
    Ok(DomainGetJobInfoRet {
        kind,
        time_elapsed,
        time_remaining: 0,
        data_total: 0,
        data_processed: 0,
        data_remaining: 0,
        mem_total: 0,
        mem_processed: 0,
        mem_remaining: 0,
        file_total: 0,
        file_processed: 0,
        file_remaining: 0,
    })
}

pub(super) async fn stats<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetJobStatsArgs,
) -> Outcome<DomainGetJobStatsRet> {
    const COMPLETED: u32 = 1;
    const KEEP_COMPLETED: u32 = 2;
    flags::only(args.flags, COMPLETED | KEEP_COMPLETED, "qemuDomainGetJobStats")?;
    let domain = cx.domain(&args.dom)?;
    // What is over is not kept.
    let running = if args.flags & COMPLETED == 0 { reported(&domain) } else { None };
    let Some((operation, elapsed)) = running else {
        if args.flags & COMPLETED == 0 {
            cx.daemon.domains.running(&domain)?;
        }
        return Ok(DomainGetJobStatsRet { kind: NONE, params: Vec::new().into() });
    };
    let params =
        vec![TypedParam::new("operation", operation), TypedParam::new("time_elapsed", elapsed)];
    Ok(DomainGetJobStatsRet { kind: UNBOUNDED, params: params.into() })
}

/// An operation on snapshots goes on to its end, or back to its start, by itself.
pub(super) async fn abort<H: Inspect>(cx: Context<'_, H>, args: DomainAbortJobArgs) -> Outcome<()> {
    let domain = cx.domain(&args.dom)?;
    Err(match reported(&domain) {
        None => Error::new(Condition::OperationInvalid, "no job is active on the domain"),
        Some(_) => Error::new(
            Condition::OperationInvalid,
            "this job cannot be aborted: it completes, or undoes what it did, by itself",
        ),
    }
    .into())
}
