//! Which processors a guest's threads may use: nothing is pinned here, so every one that is online.

use virtsnap_engine::inspect::Inspect;
use virtsnap_rpc::remote::*;
use virtsnap_rpc::xdr::Opaque;
use virtsnap_xml::element::Element;

use super::info::all_cpus;
use super::{Context, Outcome, flags};
use crate::domains::Domain;
use crate::domains::definition::size;

/// The definition that the flags ask for.
fn definition<H: Inspect>(cx: &Context<'_, H>, domain: &Domain, bits: u32) -> Outcome<Element> {
    let domains = &cx.daemon.domains;
    let affect = flags::either(domains, domain, bits)?;
    Ok(if affect.live { domains.current(domain)? } else { domains.persistent(domain)? })
}

pub(super) async fn vcpu_pins<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetVcpuPinInfoArgs,
) -> Outcome<DomainGetVcpuPinInfoRet> {
    flags::only::<H>(args.flags, flags::LIVE | flags::CONFIG, "DomainGetVcpuPinInfo")?;
    let domain = cx.domain(&args.dom)?;
    let vcpus = size(&definition(&cx, &domain, args.flags)?).max_vcpus;
    let wanted = i32::try_from(vcpus).unwrap_or(i32::MAX).min(args.ncpumaps).clamp(0, 16384);
    let map = all_cpus(super::lists::at_most(args.map_len))?;
    let cpumaps = Opaque(map.repeat(super::lists::at_most(wanted)));
    Ok(DomainGetVcpuPinInfoRet { cpumaps, num: wanted })
}

pub(super) async fn emulator_pins<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetEmulatorPinInfoArgs,
) -> Outcome<DomainGetEmulatorPinInfoRet> {
    flags::only::<H>(args.flags, flags::LIVE | flags::CONFIG, "DomainGetEmulatorPinInfo")?;
    let domain = cx.domain(&args.dom)?;
    definition(&cx, &domain, args.flags)?;
    let map = all_cpus(super::lists::at_most(args.map_len))?;
    Ok(DomainGetEmulatorPinInfoRet { cpumaps: Opaque(map), ret: 1 })
}

/// I/O threads are numbered from 1.
pub(super) async fn iothreads<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetIothreadInfoArgs,
) -> Outcome<DomainGetIothreadInfoRet> {
    const MOST: u32 = 16384;
    flags::only::<H>(args.flags, flags::LIVE | flags::CONFIG, "DomainGetIOThreadInfo")?;
    let domain = cx.domain(&args.dom)?;
    let threads = definition(&cx, &domain, args.flags)?.child_text("iothreads");
    let threads = threads.and_then(|text| text.trim().parse().ok()).unwrap_or(0).min(MOST);
    let online = crate::host::cpu_map()?.present.last().map_or(0, |last| last + 1);
    let map = all_cpus(usize::try_from(online.div_ceil(8)).unwrap_or(0))?;
    let info: Vec<DomainIothreadInfo> = (1..=threads)
        .map(|iothread_id| DomainIothreadInfo { iothread_id, cpumap: Opaque(map.clone()) })
        .collect();
    Ok(DomainGetIothreadInfoRet { info: info.into(), ret: threads })
}
