//! Disks of one domain: sizes and statistics.
//!
//! A client names a disk by its target or by its image's path.

use virtsnap_engine::error::{Condition, Error};
use virtsnap_engine::inspect::{BlockStats, Inspect};
use virtsnap_rpc::remote::*;
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use super::{Context, Outcome, flags};
use crate::domains::{Domain, Operation};

/// The target of the disk that `name` means.
pub(super) fn target(definition: &Element, name: &str) -> Outcome<String> {
    let found = domain::disks(definition)
        .find(|disk| disk.target() == name || disk.path() == Some(name))
        .map(|disk| disk.target().to_owned());
    found.ok_or_else(|| {
        let message = format!("invalid path '{name}': it is not a disk of the domain");
        Error::new(Condition::InvalidArgument, message).into()
    })
}

pub(super) async fn info<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetBlockInfoArgs,
) -> Outcome<DomainGetBlockInfoRet> {
    flags::only::<H>(args.flags, 0, "DomainGetBlockInfo")?;
    let domain = cx.domain(&args.dom)?;
    let domains = &cx.daemon.domains;
    let definition = domains.current(&domain)?;
    let target = target(&definition, &args.path)?;
    let size = domains.hypervisor.image_size(&definition, &target).await?;
    Ok(DomainGetBlockInfoRet {
        allocation: size.allocation,
        capacity: size.virtual_size,
        physical: size.physical,
    })
}

pub(super) async fn resize<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainBlockResizeArgs,
) -> Outcome<()> {
    /// Without it the size is in KiB.
    const BYTES: u32 = 1;
    flags::only::<H>(args.flags, BYTES, "DomainBlockResize")?;
    let size = match args.flags & BYTES {
        0 => args.size.checked_mul(1024),
        _ => Some(args.size),
    };
    let size = size.filter(|size| i64::try_from(*size).is_ok()).ok_or_else(|| {
        Error::new(Condition::InvalidArgument, format!("no disk is as large as {}", args.size))
    })?;
    let domain = cx.domain(&args.dom)?;
    let domains = &cx.daemon.domains;
    let _job = domains.settled_job(&domain, Operation::Change("a resize")).await?;
    let active = domains.running(&domain)?;
    let target = target(&active.live, &args.disk)?;
    Ok(domains.hypervisor.resize_disk(domain.uuid, &target, size).await?)
}

async fn stats_of<H: Inspect>(
    cx: &Context<'_, H>,
    domain: &Domain,
    name: &str,
) -> Outcome<BlockStats> {
    let domains = &cx.daemon.domains;
    let active = domains.running(domain)?;
    // No name at all: the sum over all disks.
    let wanted = if name.is_empty() { None } else { Some(target(&active.live, name)?) };
    let mut sum = BlockStats::default();
    for disk in domains.hypervisor.disk_stats(domain.uuid).await? {
        if wanted.as_ref().is_some_and(|wanted| *wanted != disk.target) {
            continue;
        }
        let add = |to: &mut u64, more: u64| *to = to.saturating_add(more);
        add(&mut sum.read_requests, disk.stats.read_requests);
        add(&mut sum.read_bytes, disk.stats.read_bytes);
        add(&mut sum.read_nanoseconds, disk.stats.read_nanoseconds);
        add(&mut sum.write_requests, disk.stats.write_requests);
        add(&mut sum.write_bytes, disk.stats.write_bytes);
        add(&mut sum.write_nanoseconds, disk.stats.write_nanoseconds);
        add(&mut sum.flush_requests, disk.stats.flush_requests);
        add(&mut sum.flush_nanoseconds, disk.stats.flush_nanoseconds);
    }
    Ok(sum)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) async fn stats<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainBlockStatsArgs,
) -> Outcome<DomainBlockStatsRet> {
    let domain = cx.domain(&args.dom)?;
    let stats = stats_of(&cx, &domain, &args.path).await?;
    Ok(DomainBlockStatsRet {
        rd_req: signed(stats.read_requests),
        rd_bytes: signed(stats.read_bytes),
        wr_req: signed(stats.write_requests),
        wr_bytes: signed(stats.write_bytes),
        errs: -1,
    })
}

pub(super) async fn stats_flags<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainBlockStatsFlagsArgs,
) -> Outcome<DomainBlockStatsFlagsRet> {
    flags::only::<H>(args.flags, flags::STRING_OKAY, "DomainBlockStatsFlags")?;
    let domain = cx.domain(&args.dom)?;
    let stats = stats_of(&cx, &domain, &args.path).await?;
    let all = [
        ("wr_bytes", stats.write_bytes),
        ("wr_operations", stats.write_requests),
        ("rd_bytes", stats.read_bytes),
        ("rd_operations", stats.read_requests),
        ("flush_operations", stats.flush_requests),
        ("wr_total_times", stats.write_nanoseconds),
        ("rd_total_times", stats.read_nanoseconds),
        ("flush_total_times", stats.flush_nanoseconds),
    ];
    let most = super::lists::at_most(args.nparams);
    if most == 0 {
        let nparams = i32::try_from(all.len()).unwrap_or(i32::MAX);
        return Ok(DomainBlockStatsFlagsRet { params: Vec::new().into(), nparams });
    }
    let params: Vec<TypedParam> = all
        .into_iter()
        .take(most)
        .map(|(field, value)| TypedParam::new(field, signed(value)))
        .collect();
    let nparams = i32::try_from(params.len()).unwrap_or(i32::MAX);
    Ok(DomainBlockStatsFlagsRet { params: params.into(), nparams })
}
