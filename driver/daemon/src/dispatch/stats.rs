//! CONNECT_GET_ALL_DOMAIN_STATS and the statistics of one domain.
//!
//! Names of the parameters: `virConnectGetAllDomainStats` (VIR_DOMAIN_STATS_*). What cannot be told
//! is left out, as clients expect.

use virtsnap_engine::domain::State;
use virtsnap_engine::error::{Condition, Error};
use virtsnap_engine::inspect::{BlockStats, Inspect, MemoryStat};
use virtsnap_rpc::remote::*;
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use super::{Context, Outcome, flags, numbers};
use crate::domains::Domain;
use crate::domains::definition::size;

const STATE: u32 = 1;
const CPU_TOTAL: u32 = 2;
const BALLOON: u32 = 4;
const VCPU: u32 = 8;
const INTERFACE: u32 = 16;
const BLOCK: u32 = 32;
/// PERF, IOTHREAD, MEMORY, DIRTYRATE and VM are known words, and nothing here has them.
const OTHERS: u32 = 64 | 128 | 256 | 512 | 1024;

const ENFORCE: u32 = 1 << 31;
const NOWAIT: u32 = 1 << 29;
const BACKING: u32 = 1 << 30;
const FILTERS: u32 = 0xff;

pub(super) async fn all<H: Inspect>(
    cx: Context<'_, H>,
    args: ConnectGetAllDomainStatsArgs,
) -> Outcome<ConnectGetAllDomainStatsRet> {
    let known = FILTERS | NOWAIT | BACKING | ENFORCE;
    flags::only::<H>(args.flags, known, "ConnectGetAllDomainStats")?;
    let every = STATE | CPU_TOTAL | BALLOON | VCPU | INTERFACE | BLOCK;
    if args.flags & ENFORCE != 0 {
        flags::only::<H>(args.stats, every, "ConnectGetAllDomainStats")?;
    } else {
        flags::only::<H>(args.stats, every | OTHERS, "ConnectGetAllDomainStats")?;
    }
    let wanted = if args.stats == 0 { every } else { args.stats };
    let every_domain = args.doms.is_empty();
    let doms =
        if every_domain { super::lists::matching(&cx, args.flags & FILTERS) } else { args.doms.0 };
    let mut ret_stats = Vec::new();
    for dom in doms {
        // One that has just gone is not there to be told of.
        let Ok(domain) = cx.domain(&dom) else { continue };
        let params = of_domain(&cx, &domain, wanted).await;
        ret_stats.push(DomainStatsRecord { dom: cx.reference(&domain), params: params.into() });
    }
    Ok(ConnectGetAllDomainStatsRet { ret_stats: ret_stats.into() })
}

async fn of_domain<H: Inspect>(cx: &Context<'_, H>, of: &Domain, wanted: u32) -> Vec<TypedParam> {
    let mut params = Vec::new();
    let domains = &cx.daemon.domains;
    let state = domains.state(of);
    if wanted & STATE != 0 {
        let (state, reason) = numbers::state(state);
        params.push(TypedParam::new("state.state", state));
        params.push(TypedParam::new("state.reason", reason));
    }
    if wanted & CPU_TOTAL != 0
        && state.is_active()
        && let Ok(times) = domains.hypervisor.cpu_times(of.uuid)
    {
        params.push(TypedParam::new("cpu.time", times.total));
        if let Some(parts) = times.parts {
            params.push(TypedParam::new("cpu.user", parts.user));
            params.push(TypedParam::new("cpu.system", parts.system));
        }
    }
    if wanted & BALLOON != 0 {
        balloon(cx, of, &mut params).await;
    }
    if wanted & VCPU != 0 {
        vcpus(cx, of, state, &mut params);
    }
    if wanted & INTERFACE != 0 {
        interfaces(cx, of, &mut params);
    }
    if wanted & BLOCK != 0 {
        disks(cx, of, &mut params).await;
    }
    params
}

async fn balloon<H: Inspect>(cx: &Context<'_, H>, of: &Domain, params: &mut Vec<TypedParam>) {
    let domains = &cx.daemon.domains;
    let Ok(definition) = domains.current(of) else { return };
    let size = size(&definition);
    let mut current = size.memory;
    if domains.active(of).is_some() {
        if let Ok(Some(now)) = domains.hypervisor.balloon(of.uuid).await {
            current = now;
        }
        params.push(TypedParam::new("balloon.current", current));
    }
    params.push(TypedParam::new("balloon.maximum", size.max_memory));
    if domains.active(of).is_some()
        && let Ok(rss) = domains.hypervisor.resident_memory(of.uuid)
    {
        params.push(TypedParam::new("balloon.rss", rss));
    }
}

fn vcpus<H: Inspect>(cx: &Context<'_, H>, of: &Domain, state: State, params: &mut Vec<TypedParam>) {
    let domains = &cx.daemon.domains;
    let Ok(definition) = domains.current(of) else { return };
    let size = size(&definition);
    params.push(TypedParam::new("vcpu.current", size.vcpus));
    params.push(TypedParam::new("vcpu.maximum", size.max_vcpus));
    if !state.is_active() {
        return;
    }
    let Ok(times) = domains.hypervisor.cpu_times(of.uuid) else { return };
    for vcpu in &times.vcpus {
        let number = vcpu.number;
        let state = numbers::vcpu_state(vcpu.state);
        params.push(TypedParam::new(format!("vcpu.{number}.state"), state));
        params.push(TypedParam::new(format!("vcpu.{number}.time"), vcpu.nanoseconds));
    }
}

/// Of interfaces that have a device on the host.
fn interfaces<H: Inspect>(cx: &Context<'_, H>, of: &Domain, params: &mut Vec<TypedParam>) {
    let Some(active) = cx.daemon.domains.active(of) else { return };
    let Some(devices) = active.live.child("devices") else { return };
    let mut count = 0u32;
    for interface in devices.children("interface") {
        let Some(name) = interface.child("target").and_then(|target| target.attr("dev")) else {
            continue;
        };
        let Some(stats) = crate::host::interface_stats(name) else { continue };
        let mut add = |field: &str, value: u64| {
            params.push(TypedParam::new(format!("net.{count}.{field}"), value));
        };
        // What the host receives from its end of the device, the guest has sent.
        add("rx.bytes", stats.sent.bytes);
        add("rx.pkts", stats.sent.packets);
        add("rx.errs", stats.sent.errors);
        add("rx.drop", stats.sent.dropped);
        add("tx.bytes", stats.received.bytes);
        add("tx.pkts", stats.received.packets);
        add("tx.errs", stats.received.errors);
        add("tx.drop", stats.received.dropped);
        params.push(TypedParam::new(format!("net.{count}.name"), name));
        count += 1;
    }
    params.push(TypedParam::new("net.count", count));
}

async fn disks<H: Inspect>(cx: &Context<'_, H>, of: &Domain, params: &mut Vec<TypedParam>) {
    let domains = &cx.daemon.domains;
    let Ok(definition) = domains.current(of) else { return };
    let stats = match domains.active(of) {
        Some(_) => domains.hypervisor.disk_stats(of.uuid).await.unwrap_or_default(),
        None => Vec::new(),
    };
    let disks: Vec<_> = domain::disks(&definition)
        .map(|disk| (disk.target().to_owned(), disk.path().map(str::to_owned)))
        .collect();
    let count = u32::try_from(disks.len()).unwrap_or(u32::MAX);
    params.push(TypedParam::new("block.count", count));
    for (index, (target, path)) in disks.into_iter().enumerate() {
        let field = |name: &str| format!("block.{index}.{name}");
        params.push(TypedParam::new(field("name"), target.as_str()));
        if let Some(path) = path {
            params.push(TypedParam::new(field("path"), path));
        }
        if let Some(disk) = stats.iter().find(|disk| disk.target == target) {
            let numbers = block_numbers(&disk.stats);
            params.extend(numbers.map(|(name, value)| TypedParam::new(field(name), value)));
        }
        if let Ok(size) = domains.hypervisor.image_size(&definition, &target).await {
            params.push(TypedParam::new(field("allocation"), size.allocation));
            params.push(TypedParam::new(field("capacity"), size.virtual_size));
            params.push(TypedParam::new(field("physical"), size.physical));
        }
    }
}

fn block_numbers(stats: &BlockStats) -> [(&'static str, u64); 8] {
    [
        ("rd.reqs", stats.read_requests),
        ("rd.bytes", stats.read_bytes),
        ("rd.times", stats.read_nanoseconds),
        ("wr.reqs", stats.write_requests),
        ("wr.bytes", stats.write_bytes),
        ("wr.times", stats.write_nanoseconds),
        ("fl.reqs", stats.flush_requests),
        ("fl.times", stats.flush_nanoseconds),
    ]
}

pub(super) async fn memory<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainMemoryStatsArgs,
) -> Outcome<DomainMemoryStatsRet> {
    flags::only::<H>(args.flags, 0, "DomainMemoryStats")?;
    let domain = cx.domain(&args.dom)?;
    let domains = &cx.daemon.domains;
    let active = domains.running(&domain)?;
    let mut known = domains.hypervisor.memory_stats(domain.uuid).await?;
    let has = |known: &[(MemoryStat, u64)], stat| known.iter().any(|(one, _)| *one == stat);
    if !has(&known, MemoryStat::ActualBalloon) {
        known.insert(0, (MemoryStat::ActualBalloon, size(&active.live).memory));
    }
    if !has(&known, MemoryStat::ResidentSet)
        && let Ok(resident) = domains.hypervisor.resident_memory(domain.uuid)
    {
        known.push((MemoryStat::ResidentSet, resident));
    }
    let most = usize::try_from(args.max_stats).unwrap_or(0);
    let stats = known.into_iter().take(most);
    let stats = stats.map(|(stat, val)| DomainMemoryStat { tag: memory_tag(stat), val });
    Ok(DomainMemoryStatsRet { stats: stats.collect() })
}

/// virDomainMemoryStatTags
fn memory_tag(stat: MemoryStat) -> i32 {
    match stat {
        MemoryStat::SwapIn => 0,
        MemoryStat::SwapOut => 1,
        MemoryStat::MajorFaults => 2,
        MemoryStat::MinorFaults => 3,
        MemoryStat::Unused => 4,
        MemoryStat::Available => 5,
        MemoryStat::ActualBalloon => 6,
        MemoryStat::ResidentSet => 7,
        MemoryStat::Usable => 8,
        MemoryStat::LastUpdate => 9,
        MemoryStat::DiskCaches => 10,
        MemoryStat::HugetlbAllocations => 11,
        MemoryStat::HugetlbFailures => 12,
    }
}

/// `device` is the host's end, by its name, or the guest's, by its MAC address.
pub(super) async fn interface<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainInterfaceStatsArgs,
) -> Outcome<DomainInterfaceStatsRet> {
    let domain = cx.domain(&args.dom)?;
    let active = cx.daemon.domains.running(&domain)?;
    let interfaces = active.live.child("devices").into_iter();
    let mut interfaces = interfaces.flat_map(|devices| devices.children("interface"));
    let names = |interface: &Element, child: &str, attr: &str| {
        interface.child(child).and_then(|child| child.attr(attr)).map(str::to_owned)
    };
    let found = interfaces.find(|one| {
        names(one, "target", "dev").as_ref() == Some(&args.device)
            || names(one, "mac", "address")
                .is_some_and(|mac| mac.eq_ignore_ascii_case(&args.device))
    });
    let Some(found) = found else {
        let message = format!("the domain has no interface '{}'", args.device);
        return Err(Error::new(Condition::InvalidArgument, message).into());
    };
    let stats = names(found, "target", "dev").and_then(|name| crate::host::interface_stats(&name));
    let Some(stats) = stats else {
        let message = format!("interface '{}' has no device on the host", args.device);
        return Err(Error::new(Condition::OperationInvalid, message).into());
    };
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    // What the host receives from its end of the device, the guest has sent.
    Ok(DomainInterfaceStatsRet {
        rx_bytes: number(stats.sent.bytes),
        rx_packets: number(stats.sent.packets),
        rx_errs: number(stats.sent.errors),
        rx_drop: number(stats.sent.dropped),
        tx_bytes: number(stats.received.bytes),
        tx_packets: number(stats.received.packets),
        tx_errs: number(stats.received.errors),
        tx_drop: number(stats.received.dropped),
    })
}

pub(super) async fn cpu<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetCpuStatsArgs,
) -> Outcome<DomainGetCpuStatsRet> {
    const TOTAL: i32 = -1;
    flags::only::<H>(args.flags, flags::STRING_OKAY, "DomainGetCPUStats")?;
    let domain = cx.domain(&args.dom)?;
    cx.daemon.domains.running(&domain)?;
    if args.start_cpu != TOTAL {
        return Err(super::unsupported("a guest's time on each of the host's processors"));
    }
    let times = cx.daemon.domains.hypervisor.cpu_times(domain.uuid)?;
    let mut all = vec![("cpu_time", times.total)];
    if let Some(parts) = times.parts {
        all.extend([("user_time", parts.user), ("system_time", parts.system)]);
    }
    let count = i32::try_from(all.len()).unwrap_or(i32::MAX);
    let most = usize::try_from(args.nparams).unwrap_or(0);
    let params = all.into_iter().take(most).map(|(field, value)| TypedParam::new(field, value));
    Ok(DomainGetCpuStatsRet { params: params.collect(), nparams: count })
}
