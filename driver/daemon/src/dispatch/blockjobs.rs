//! Block jobs: pull, commit, copy, and their ends.
//!
//! A client names a disk by its target or its image's path, and a layer of its chain by its path,
//! by the name its reader's header has for it, or by `target[index]`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use virtsnap_engine::blockjob::{Act, BackingName, Copy, Ending, NewBlockJob};
use virtsnap_engine::domain::BlockJobKind;
use virtsnap_engine::error::{Condition, Error, Origin};
use virtsnap_engine::facts::Format;
use virtsnap_engine::inspect::Inspect;
use virtsnap_rpc::remote::*;
use virtsnap_xml::domain::{self, DiskView};
use virtsnap_xml::element::Element;

use super::disks::target;
use super::{Context, Outcome, flags};
use crate::domains::{Domain, Operation, devices};

/// Bytes a second of what a client gives in MiB, or, with the flag, in bytes.
fn speed(bandwidth: u64, in_bytes: bool) -> Outcome<u64> {
    const MOST: u64 = i64::MAX as u64;
    let bytes = if in_bytes { Some(bandwidth) } else { bandwidth.checked_mul(1 << 20) };
    bytes.filter(|bytes| *bytes <= MOST).ok_or_else(|| {
        let message = format!("bandwidth must be less than {}", MOST >> 20);
        Error::new(Condition::Overflow, message).into()
    })
}

/// One image of a disk's chain as the live definition has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layer {
    index: Option<u32>,
    path: PathBuf,
}

/// The active layer first.
fn layers(disk: DiskView<'_>) -> Vec<Layer> {
    let of = |holder: &Element, index: Option<&str>| {
        let source = holder.child("source")?;
        let path = source.attr("file").or_else(|| source.attr("dev"))?;
        let index = index.or_else(|| source.attr("index")).and_then(|index| index.parse().ok());
        Some(Layer { index, path: PathBuf::from(path) })
    };
    let mut found: Vec<Layer> = of(disk.element, None).into_iter().collect();
    let mut below = disk.backing_store();
    while let Some(store) = below {
        found.extend(of(store, store.attr("index")));
        below = store.child("backingStore");
    }
    found
}

/// Where in the chain the image is that a client names, looking below `from`.
fn find(chain: &[Layer], from: usize, name: &str, target: &str) -> Outcome<usize> {
    let missing = || {
        let message = format!("could not find image '{name}' in chain for '{target}'");
        Error::new(Condition::InvalidArgument, message).from_origin(Origin::Storage)
    };
    let indexed = name.strip_suffix(']').and_then(|name| name.rsplit_once('['));
    if let Some((of, index)) = indexed
        && let Ok(index) = index.parse::<u32>()
    {
        if of != target {
            let message = format!("requested target '{of}' does not match target '{target}'");
            return Err(Error::new(Condition::InvalidArgument, message)
                .from_origin(Origin::Storage)
                .into());
        }
        let at = chain.iter().skip(from).position(|layer| layer.index == Some(index));
        return Ok(at.map(|at| at + from).ok_or_else(missing)?);
    }
    let is_it = |at: usize, layer: &Layer| {
        let directory = at.checked_sub(1).and_then(|above| chain.get(above)?.path.parent());
        let named = directory.unwrap_or(Path::new(".")).join(name);
        layer.path == Path::new(name)
            || named == layer.path
            || named.canonicalize().is_ok_and(|n| layer.path.canonicalize().is_ok_and(|l| l == n))
    };
    let at = chain.iter().enumerate().skip(from).find(|(at, layer)| is_it(*at, layer));
    Ok(at.map(|(at, _)| at).ok_or_else(missing)?)
}

fn backing_name(relative: bool) -> BackingName {
    if relative { BackingName::Relative } else { BackingName::Absolute }
}

fn image(chain: &[Layer], at: usize) -> PathBuf {
    chain.get(at).map(|layer| layer.path.clone()).unwrap_or_default()
}

/// The disk, if a block job may begin on it.
fn free_disk<'a, H: Inspect>(
    cx: &Context<'_, H>,
    domain: &Domain,
    live: &'a Element,
    name: &str,
) -> Outcome<DiskView<'a>> {
    let target = target(live, name)?;
    let busy = cx.daemon.domains.hypervisor.client_block_jobs(domain.uuid);
    let unsupported = |what: String| Error::new(Condition::OperationUnsupported, what);
    if busy.contains(&target) {
        return Err(unsupported(format!("disk '{target}' already in active block job")).into());
    }
    let Some(disk) = domain::disk(live, &target) else {
        return Err(unsupported(format!("there is no disk '{target}'")).into());
    };
    if disk.bus() == Some("sd") || disk.is_transient() || disk.source_type() == "vhostuser" {
        let kind = if disk.is_transient() { "a transient" } else { "this kind of" };
        return Err(
            unsupported(format!("block jobs are not supported on {kind} disk '{target}'")).into()
        );
    }
    if disk.is_empty() {
        let message = format!("disk {target} has no source file");
        return Err(Error::new(Condition::ConfigUnsupported, message).into());
    }
    Ok(disk)
}

pub(super) async fn commit<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainBlockCommitArgs,
) -> Outcome<()> {
    const SHALLOW: u32 = 1;
    const DELETE: u32 = 2;
    const ACTIVE: u32 = 4;
    const RELATIVE: u32 = 8;
    const BYTES: u32 = 16;
    let known = SHALLOW | DELETE | ACTIVE | RELATIVE | BYTES;
    flags::only::<H>(args.flags, known, "DomainBlockCommit")?;
    let speed = speed(args.bandwidth, args.flags & BYTES != 0)?;
    let domain = cx.domain(&args.dom)?;
    let domains = &cx.daemon.domains;
    let _job = domains.settled_job(&domain, Operation::Change("a block commit")).await?;
    // libvirt looks for the base first, of which it knows nothing while the domain is off.
    let live = match domains.running(&domain) {
        Err(idle) if args.flags & SHALLOW == 0 => {
            let message = format!("no base for '{}' is known: {}", args.disk, idle.message);
            return Err(Error::new(Condition::InvalidArgument, message)
                .from_origin(Origin::Storage)
                .into());
        }
        running => running?.live,
    };
    let disk = free_disk(&cx, &domain, &live, &args.disk)?;
    let (chain, target) = (layers(disk), disk.target().to_owned());
    let invalid = |message: String| Error::new(Condition::InvalidArgument, message);
    let top = match args.top.as_deref() {
        Some(name) if name != target => find(&chain, 0, name, &target)?,
        _ => 0,
    };
    let base = match args.base.as_deref() {
        Some(name) => find(&chain, top + 1, name, &target)?,
        None if args.flags & SHALLOW != 0 => top + 1,
        None => chain.len().saturating_sub(1),
    };
    let top_image = image(&chain, top);
    if (top == 0) != (args.flags & ACTIVE != 0) {
        return Err(invalid(match top {
            0 => format!("commit of '{target}' active layer requires active flag"),
            _ => format!("active commit requested but '{}' is not active", top_image.display()),
        })
        .into());
    }
    if base <= top || base >= chain.len() {
        let what =
            format!("top '{}' in chain for '{target}' has no backing file", top_image.display());
        return Err(invalid(what).into());
    }
    if args.flags & SHALLOW != 0 && base != top + 1 {
        let base = image(&chain, base);
        let what = format!(
            "base '{}' is not immediately below '{}' in chain for '{target}'",
            base.display(),
            top_image.display()
        );
        return Err(invalid(what).into());
    }
    let act = Act::Commit {
        top: top_image,
        base: image(&chain, base),
        backing_name: backing_name(args.flags & RELATIVE != 0),
        delete: args.flags & DELETE != 0,
    };
    Ok(domains.start_block_job(&domain, &NewBlockJob { target, act, speed }).await?)
}

pub(super) async fn pull<H: Inspect>(cx: Context<'_, H>, args: DomainBlockPullArgs) -> Outcome<()> {
    const BYTES: u32 = 64;
    flags::only::<H>(args.flags, BYTES, "DomainBlockPull")?;
    let speed = speed(args.bandwidth, args.flags & BYTES != 0)?;
    let domain = cx.domain(&args.dom)?;
    pull_from(&cx, &domain, &args.path, None, BackingName::Absolute, speed).await
}

async fn pull_from<H: Inspect>(
    cx: &Context<'_, H>,
    domain: &Arc<Domain>,
    disk: &str,
    base: Option<&str>,
    backing_name: BackingName,
    speed: u64,
) -> Outcome<()> {
    let domains = &cx.daemon.domains;
    let _job = domains.settled_job(domain, Operation::Change("a block pull")).await?;
    let live = domains.running(domain)?.live;
    let disk = free_disk(cx, domain, &live, disk)?;
    let (chain, target) = (layers(disk), disk.target().to_owned());
    let base = match base {
        Some(name) => Some(image(&chain, find(&chain, 1, name, &target)?)),
        None => None,
    };
    let act = Act::Pull { base, backing_name };
    Ok(domains.start_block_job(domain, &NewBlockJob { target, act, speed }).await?)
}

pub(super) async fn rebase<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainBlockRebaseArgs,
) -> Outcome<()> {
    const SHALLOW: u32 = 1;
    const REUSE_EXT: u32 = 2;
    const COPY_RAW: u32 = 4;
    const COPY: u32 = 8;
    const RELATIVE: u32 = 16;
    const COPY_DEV: u32 = 32;
    const BYTES: u32 = 64;
    let known = SHALLOW | REUSE_EXT | COPY_RAW | COPY | RELATIVE | COPY_DEV | BYTES;
    flags::only::<H>(args.flags, known, "DomainBlockRebase")?;
    let has = |flag: u32| args.flags & flag != 0;
    let speed = speed(args.bandwidth, has(BYTES))?;
    let domain = cx.domain(&args.dom)?;
    if !has(COPY) {
        if has(RELATIVE) && args.base.is_none() {
            let message = "flag VIR_DOMAIN_BLOCK_REBASE_RELATIVE is valid only with non-null base";
            return Err(Error::new(Condition::InvalidArgument, message).into());
        }
        let name = backing_name(has(RELATIVE));
        return pull_from(&cx, &domain, &args.path, args.base.as_deref(), name, speed).await;
    }
    if has(RELATIVE) {
        let message = "Relative backing during copy not supported yet";
        return Err(Error::new(Condition::ArgumentUnsupported, message).into());
    }
    let copy = Copy {
        destination: PathBuf::from(args.base.unwrap_or_default()),
        format: has(COPY_RAW).then_some(Format::Raw),
        is_block_device: has(COPY_DEV),
        shallow: has(SHALLOW),
        reuse: has(REUSE_EXT),
        synchronous: false,
        granularity: 0,
        buffer: 0,
    };
    start_copy(&cx, &domain, &args.path, copy, speed, false).await
}

pub(super) async fn copy<H: Inspect>(cx: Context<'_, H>, args: DomainBlockCopyArgs) -> Outcome<()> {
    const SHALLOW: u32 = 1;
    const REUSE_EXT: u32 = 2;
    const TRANSIENT_JOB: u32 = 4;
    const SYNCHRONOUS_WRITES: u32 = 8;
    let known = SHALLOW | REUSE_EXT | TRANSIENT_JOB | SYNCHRONOUS_WRITES;
    flags::only::<H>(args.flags, known, "DomainBlockCopy")?;
    let has = |flag: u32| args.flags & flag != 0;
    let domain = cx.domain(&args.dom)?;
    let mut copy = destination(&devices::parse(&args.destxml)?)?;
    copy.shallow = has(SHALLOW);
    copy.reuse = has(REUSE_EXT);
    copy.synchronous = has(SYNCHRONOUS_WRITES);
    let mut speed = 0;
    for param in args.params.iter() {
        match (param.field.as_str(), &param.value) {
            ("bandwidth", ParamValue::ULLong(value)) => speed = self::speed(*value, true)?,
            ("granularity", ParamValue::UInt(value)) => {
                if *value != 0 && !value.is_power_of_two() {
                    let message = "granularity must be power of 2";
                    return Err(Error::new(Condition::InvalidArgument, message).into());
                }
                copy.granularity = *value;
            }
            ("buf-size", ParamValue::ULLong(value)) => copy.buffer = *value,
            (other, _) => {
                let message =
                    format!("parameter '{other}' is not one of a block copy, or its type");
                return Err(Error::new(Condition::InvalidArgument, message).into());
            }
        }
    }
    start_copy(&cx, &domain, &args.path, copy, speed, has(TRANSIENT_JOB)).await
}

/// A `<disk>` of which only where it lies counts.
fn destination(disk: &Element) -> Outcome<Copy> {
    let disk = DiskView { element: disk };
    let Some(path) = disk.path().filter(|_| matches!(disk.source_type(), "file" | "block")) else {
        let message = "the destination of a block copy is a file or a block device";
        return Err(Error::new(Condition::ConfigUnsupported, message).into());
    };
    Ok(Copy {
        destination: PathBuf::from(path),
        format: disk.format().map(Format::from),
        is_block_device: disk.source_type() == "block",
        shallow: false,
        reuse: false,
        synchronous: false,
        granularity: 0,
        buffer: 0,
    })
}

async fn start_copy<H: Inspect>(
    cx: &Context<'_, H>,
    domain: &Arc<Domain>,
    disk: &str,
    copy: Copy,
    speed: u64,
    transient: bool,
) -> Outcome<()> {
    if !copy.destination.is_absolute() {
        let message = "absolute path must be used as block copy target";
        return Err(Error::new(Condition::InvalidArgument, message).into());
    }
    let domains = &cx.daemon.domains;
    let _job = domains.settled_job(domain, Operation::Change("a block copy")).await?;
    let live = domains.running(domain)?.live;
    let target = free_disk(cx, domain, &live, disk)?.target().to_owned();
    if !transient && domain.is_persistent() {
        let message = "domain is not transient: a block copy does not survive its end";
        return Err(Error::new(Condition::OperationInvalid, message).into());
    }
    let job = NewBlockJob { target, act: Act::Copy(copy), speed };
    Ok(domains.start_block_job(domain, &job).await?)
}

pub(super) async fn abort<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainBlockJobAbortArgs,
) -> Outcome<()> {
    const ASYNC: u32 = 1;
    const PIVOT: u32 = 2;
    flags::only::<H>(args.flags, ASYNC | PIVOT, "DomainBlockJobAbort")?;
    let domain = cx.domain(&args.dom)?;
    let domains = &cx.daemon.domains;
    let target = target(&domains.running(&domain)?.live, &args.path)?;
    let how = if args.flags & PIVOT != 0 { Ending::Pivot } else { Ending::Cancel };
    let wait = args.flags & ASYNC == 0;
    Ok(domains.end_block_job(&domain, &target, how, wait).await?)
}

pub(super) async fn set_speed<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainBlockJobSetSpeedArgs,
) -> Outcome<()> {
    const BYTES: u32 = 1;
    flags::only::<H>(args.flags, BYTES, "DomainBlockJobSetSpeed")?;
    let speed = speed(args.bandwidth, args.flags & BYTES != 0)?;
    let domain = cx.domain(&args.dom)?;
    let domains = &cx.daemon.domains;
    let _job = domains.job(&domain, Operation::Change("a change of speed")).await?;
    let target = target(&domains.running(&domain)?.live, &args.path)?;
    Ok(domains.hypervisor.set_block_job_speed(domain.uuid, &target, speed).await?)
}

pub(super) async fn info<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetBlockJobInfoArgs,
) -> Outcome<DomainGetBlockJobInfoRet> {
    const BANDWIDTH_BYTES: u32 = 1;
    flags::only::<H>(args.flags, BANDWIDTH_BYTES, "DomainGetBlockJobInfo")?;
    let domain = cx.domain(&args.dom)?;
    let domains = &cx.daemon.domains;
    let active = domains.running(&domain)?;
    let target = target(&active.live, &args.path)?;
    let Some(job) = domains.hypervisor.block_job(domain.uuid, &target).await? else {
        return Ok(DomainGetBlockJobInfoRet { found: 0, kind: 0, bandwidth: 0, cur: 0, end: 0 });
    };
    let kind = match job.kind {
        BlockJobKind::Pull => 1,
        BlockJobKind::Copy => 2,
        BlockJobKind::Commit => 3,
        BlockJobKind::ActiveCommit => 4,
    };
    let bandwidth = if args.flags & BANDWIDTH_BYTES != 0 {
        job.bandwidth
    } else {
        job.bandwidth.div_ceil(1 << 20)
    };
    Ok(DomainGetBlockJobInfoRet { found: 1, kind, bandwidth, cur: job.done, end: job.total })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> Vec<Layer> {
        let disk = Element::parse(
            "<disk type='file'><source file='/i/top' index='3'/><backingStore type='file' \
             index='2'><source file='/i/mid'/><backingStore type='file' index='1'>\
             <source file='/i/base'/><backingStore/></backingStore></backingStore>\
             <target dev='vda'/></disk>",
        )
        .unwrap();
        layers(DiskView { element: &disk })
    }

    #[test]
    fn a_layer_is_found_by_path_relative_name_or_index() {
        let chain = chain();
        assert_eq!(chain.len(), 3);
        for (name, at) in [("/i/mid", 1), ("mid", 1), ("vda[1]", 2), ("vda[3]", 0)] {
            assert_eq!(find(&chain, 0, name, "vda").unwrap(), at, "{name}");
        }
        for name in ["/i/none", "vda[9]", "vdb[1]"] {
            assert!(find(&chain, 0, name, "vda").is_err(), "{name}");
        }
        assert!(find(&chain, 2, "/i/mid", "vda").is_err(), "only below");
    }

    #[test]
    fn speeds_are_mebibytes_unless_said_otherwise() {
        assert_eq!(speed(3, false).unwrap(), 3 << 20);
        assert_eq!(speed(3, true).unwrap(), 3);
        assert!(speed(u64::MAX >> 10, false).is_err());
    }
}
