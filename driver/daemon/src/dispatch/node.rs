//! The host and the hypervisor: capabilities, processors, memory.

use virtsnap_engine::error::{Condition, Error};
use virtsnap_engine::inspect::{Inspect, Platform};
use virtsnap_rpc::remote::*;
use virtsnap_rpc::xdr::Opaque;

use super::{Context, Outcome, flags};
use crate::host::{self, Topology};

fn number(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

pub(super) async fn info<H: Inspect>(
    cx: Context<'_, H>,
    _: NodeGetInfoArgs,
) -> Outcome<NodeGetInfoRet> {
    let mut info = host::node_info()?;
    if let Some(node) = cx.daemon.domains.hypervisor.node().await? {
        (info.memory_kib, info.cpus, info.mhz) = (node.memory_kib, node.cpus, node.mhz);
        // As libvirt's Xen driver, which knows of no sockets.
        info.topology = Topology {
            nodes: node.nodes,
            sockets: 1,
            cores: node.cores_per_socket,
            threads: node.threads_per_core,
        };
    }
    let mut model = [0i8; 32];
    // The last place stays NUL.
    for (to, from) in model.iter_mut().take(31).zip(info.model.bytes()) {
        *to = i8::try_from(from).unwrap_or(b'?'.cast_signed());
    }
    Ok(NodeGetInfoRet {
        model,
        memory: info.memory_kib,
        cpus: number(info.cpus),
        mhz: number(info.mhz),
        nodes: number(info.topology.nodes),
        sockets: number(info.topology.sockets),
        cores: number(info.topology.cores),
        threads: number(info.topology.threads),
    })
}

pub(super) async fn hostname<H: Inspect>(
    _: Context<'_, H>,
    _: ConnectGetHostnameArgs,
) -> Outcome<ConnectGetHostnameRet> {
    Ok(ConnectGetHostnameRet { hostname: host::hostname() })
}

pub(super) async fn sysinfo<H: Inspect>(
    _: Context<'_, H>,
    args: ConnectGetSysinfoArgs,
) -> Outcome<ConnectGetSysinfoRet> {
    flags::only::<H>(args.flags, 0, "ConnectGetSysinfo")?;
    let sysinfo = host::sysinfo().ok_or_else(|| {
        Error::new(Condition::OperationUnsupported, "host SMBIOS information is not available")
    })?;
    Ok(ConnectGetSysinfoRet { sysinfo: sysinfo.to_string() })
}

pub(super) async fn capabilities<H: Inspect>(
    cx: Context<'_, H>,
    _: ConnectGetCapabilitiesArgs,
) -> Outcome<ConnectGetCapabilitiesRet> {
    let capabilities = cx.daemon.domains.hypervisor.capabilities().await?.to_string();
    Ok(ConnectGetCapabilitiesRet { capabilities })
}

pub(super) async fn domain_capabilities<H: Inspect>(
    cx: Context<'_, H>,
    args: ConnectGetDomainCapabilitiesArgs,
) -> Outcome<ConnectGetDomainCapabilitiesRet> {
    flags::only::<H>(args.flags, 0, "ConnectGetDomainCapabilities")?;
    let platform = Platform {
        emulator: args.emulatorbin,
        arch: args.arch,
        machine: args.machine,
        virt_type: args.virt_type,
    };
    let found = cx.daemon.domains.hypervisor.domain_capabilities(&platform).await?;
    Ok(ConnectGetDomainCapabilitiesRet { capabilities: found.to_string() })
}

pub(super) async fn max_vcpus<H: Inspect>(
    cx: Context<'_, H>,
    _: ConnectGetMaxVcpusArgs,
) -> Outcome<ConnectGetMaxVcpusRet> {
    /// QEMU's own limit for TCG and KVM guests of the usual machines.
    const OF_QEMU: u32 = 255;
    let node = cx.daemon.domains.hypervisor.node().await?;
    Ok(ConnectGetMaxVcpusRet { max_vcpus: number(node.map_or(OF_QEMU, |node| node.max_vcpus)) })
}

/// Refused where the daemon's kernel is a guest itself, as dom0's is, and so the wrong one to ask.
pub(super) async fn is_the_host<H: Inspect>(cx: &Context<'_, H>, what: &str) -> Outcome<()> {
    match cx.daemon.domains.hypervisor.node().await? {
        Some(_) => Err(super::unsupported(what)),
        None => Ok(()),
    }
}

pub(super) async fn cpu_map<H: Inspect>(
    cx: Context<'_, H>,
    args: NodeGetCpuMapArgs,
) -> Outcome<NodeGetCpuMapRet> {
    flags::only::<H>(args.flags, 0, "nodeGetCPUMap")?;
    is_the_host(&cx, "a map of the host's processors").await?;
    let map = host::cpu_map()?;
    let present = map.present.last().map_or(0, |last| last + 1);
    let bytes = usize::try_from(present.div_ceil(8)).unwrap_or(0);
    let cpumap =
        if args.need_map == 0 { Vec::new() } else { super::info::all_cpus(&cx, bytes).await? };
    let online = if args.need_online == 0 { 0 } else { map.online.len() };
    let online = u32::try_from(online).unwrap_or(u32::MAX);
    Ok(NodeGetCpuMapRet { cpumap: Opaque(cpumap), online, ret: number(present) })
}

/// A size-then-fetch reply: with none asked for, the number there are.
fn fetch<T>(all: Vec<T>, asked: i32) -> (Vec<T>, i32) {
    let count = i32::try_from(all.len()).unwrap_or(i32::MAX);
    match super::lists::at_most(asked) {
        0 => (Vec::new(), count),
        most => {
            let taken: Vec<T> = all.into_iter().take(most).collect();
            let count = i32::try_from(taken.len()).unwrap_or(i32::MAX);
            (taken, count)
        }
    }
}

pub(super) async fn cpu_stats<H: Inspect>(
    cx: Context<'_, H>,
    args: NodeGetCpuStatsArgs,
) -> Outcome<NodeGetCpuStatsRet> {
    flags::only::<H>(args.flags, 0, "nodeGetCPUStats")?;
    is_the_host(&cx, "the use of the host's processors").await?;
    const ALL: i32 = -1;
    let cpu = match args.cpu_num {
        ALL => None,
        cpu => Some(u32::try_from(cpu).map_err(|_| {
            Error::new(Condition::InvalidArgument, format!("there is no processor {cpu}"))
        })?),
    };
    let time = host::cpu_time(cpu)?;
    let fields = [
        ("kernel", time.kernel),
        ("user", time.user),
        ("idle", time.idle),
        ("iowait", time.iowait),
    ];
    let all =
        fields.map(|(field, value)| NodeGetCpuStats { field: field.to_owned(), value }).to_vec();
    let (params, nparams) = fetch(all, args.nparams);
    Ok(NodeGetCpuStatsRet { params: params.into(), nparams })
}

pub(super) async fn memory_stats<H: Inspect>(
    cx: Context<'_, H>,
    args: NodeGetMemoryStatsArgs,
) -> Outcome<NodeGetMemoryStatsRet> {
    flags::only::<H>(args.flags, 0, "nodeGetMemoryStats")?;
    const ALL: i32 = -1;
    let cell = |cell: i32| {
        Error::new(Condition::InvalidArgument, format!("the host has no NUMA cell {cell}"))
    };
    let node = cx.daemon.domains.hypervisor.node().await?;
    let fields = match (node, args.cell_num) {
        (Some(node), ALL) => vec![("total", node.memory_kib), ("free", node.free_kib)],
        (Some(_), _) => return Err(super::unsupported("the memory of a NUMA cell")),
        (None, ALL) => {
            let memory = host::memory()?;
            vec![
                ("total", memory.total),
                ("free", memory.free),
                ("buffers", memory.buffers),
                ("cached", memory.cached),
            ]
        }
        (None, number) => {
            let known = u32::try_from(number).map_err(|_| cell(number))?;
            let memory = host::cell_memory(known)?.ok_or_else(|| cell(number))?;
            vec![("total", memory.total), ("free", memory.free)]
        }
    };
    let all = fields.into_iter();
    let all = all.map(|(field, value)| NodeGetMemoryStats { field: field.to_owned(), value });
    let (params, nparams) = fetch(all.collect(), args.nparams);
    Ok(NodeGetMemoryStatsRet { params: params.into(), nparams })
}

pub(super) async fn free_memory<H: Inspect>(
    cx: Context<'_, H>,
    _: NodeGetFreeMemoryArgs,
) -> Outcome<NodeGetFreeMemoryRet> {
    let free = match cx.daemon.domains.hypervisor.node().await? {
        Some(node) => node.free_kib,
        None => host::memory()?.free,
    };
    Ok(NodeGetFreeMemoryRet { free_mem: free.saturating_mul(1024) })
}

pub(super) async fn cells_free_memory<H: Inspect>(
    cx: Context<'_, H>,
    args: NodeGetCellsFreeMemoryArgs,
) -> Outcome<NodeGetCellsFreeMemoryRet> {
    let start = u32::try_from(args.start_cell).unwrap_or(0);
    let mut free = Vec::new();
    match cx.daemon.domains.hypervisor.node().await? {
        Some(node) if node.nodes <= 1 && start == 0 && args.maxcells > 0 => {
            let cells = vec![node.free_kib.saturating_mul(1024)].into();
            return Ok(NodeGetCellsFreeMemoryRet { cells });
        }
        Some(_) => return Err(super::unsupported("the memory of a NUMA cell")),
        None => {}
    }
    let from_start = host::cells().into_iter().filter(|cell| *cell >= start);
    for cell in from_start.take(super::lists::at_most(args.maxcells)) {
        let kib = host::cell_memory(cell)?.map_or(0, |memory| memory.free);
        free.push(kib.saturating_mul(1024));
    }
    Ok(NodeGetCellsFreeMemoryRet { cells: free.into() })
}

pub(super) async fn free_pages<H: Inspect>(
    cx: Context<'_, H>,
    args: NodeGetFreePagesArgs,
) -> Outcome<NodeGetFreePagesRet> {
    flags::only::<H>(args.flags, 0, "nodeGetFreePages")?;
    is_the_host(&cx, "counting the host's pages").await?;
    let mut counts = Vec::new();
    let start = u32::try_from(args.start_cell).unwrap_or(0);
    for cell in host::cells().into_iter().filter(|cell| *cell >= start) {
        if counts.len() >= usize::try_from(args.cell_count).unwrap_or(0) * args.pages.len() {
            break;
        }
        for size in args.pages.iter() {
            counts.push(host::free_pages(cell, *size)?);
        }
    }
    Ok(NodeGetFreePagesRet { counts: counts.into() })
}
