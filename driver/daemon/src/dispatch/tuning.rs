//! Which processors a guest's threads may use: nothing is pinned here, so every one that is online,
//! but for what the hypervisor knows better.

use virtsnap_engine::inspect::Inspect;
use virtsnap_rpc::remote::*;
use virtsnap_rpc::xdr::Opaque;
use virtsnap_xml::element::Element;

use super::info::{all_cpus, cpu_map_of};
use super::node::is_the_host;
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
    let all = all_cpus(&cx, super::lists::at_most(args.map_len)).await?;
    let domains = &cx.daemon.domains;
    let running = flags::either(domains, &domain, args.flags)?.live;
    let known = match domains.active(&domain) {
        Some(_) if running => domains.hypervisor.cpu_times(domain.uuid)?.vcpus,
        _ => Vec::new(),
    };
    let map = |number| {
        let vcpu = known.iter().find(|vcpu| i32::try_from(vcpu.number) == Ok(number));
        vcpu.map_or_else(|| all.clone(), |vcpu| cpu_map_of(vcpu, &all))
    };
    let cpumaps = Opaque((0..wanted).flat_map(map).collect());
    Ok(DomainGetVcpuPinInfoRet { cpumaps, num: wanted })
}

pub(super) async fn emulator_pins<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetEmulatorPinInfoArgs,
) -> Outcome<DomainGetEmulatorPinInfoRet> {
    flags::only::<H>(args.flags, flags::LIVE | flags::CONFIG, "DomainGetEmulatorPinInfo")?;
    let domain = cx.domain(&args.dom)?;
    definition(&cx, &domain, args.flags)?;
    is_the_host(&cx, "where a device model runs").await?;
    let map = all_cpus(&cx, super::lists::at_most(args.map_len)).await?;
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
    is_the_host(&cx, "asking for I/O threads").await?;
    let threads = definition(&cx, &domain, args.flags)?.child_text("iothreads");
    let threads = threads.and_then(|text| text.trim().parse().ok()).unwrap_or(0).min(MOST);
    let online = crate::host::cpu_map()?.present.last().map_or(0, |last| last + 1);
    let map = all_cpus(&cx, usize::try_from(online.div_ceil(8)).unwrap_or(0)).await?;
    let info: Vec<DomainIothreadInfo> = (1..=threads)
        .map(|iothread_id| DomainIothreadInfo { iothread_id, cpumap: Opaque(map.clone()) })
        .collect();
    Ok(DomainGetIothreadInfoRet { info: info.into(), ret: threads })
}
