//! What the host is: processors, memory, identity, as node calls report them.
//!
//! Sources: `/proc/{cpuinfo,meminfo,stat}`, `/sys/devices/system/{cpu,node}`,
//! `/sys/class/dmi/id`. Each reader is a pure function over the text, and a thin door to the file.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::element::Element;

/// virNodeInfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeInfo {
    pub(crate) model: String,
    pub(crate) memory_kib: u64,
    pub(crate) cpus: u32,
    pub(crate) mhz: u32,
    pub(crate) topology: Topology,
}

/// Per NUMA node, as libvirt counts: `sockets` is of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Topology {
    pub(crate) nodes: u32,
    pub(crate) sockets: u32,
    pub(crate) cores: u32,
    pub(crate) threads: u32,
}

pub(crate) fn node_info() -> Result<NodeInfo> {
    let online = cpus("online")?;
    Ok(NodeInfo {
        model: rustix::system::uname().machine().to_string_lossy().into_owned(),
        memory_kib: memory()?.total,
        cpus: count(&online),
        mhz: mhz(&read("/proc/cpuinfo")?),
        topology: topology(&online),
    })
}

pub(crate) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Present and online processors.
pub(crate) struct CpuMap {
    pub(crate) present: BTreeSet<u32>,
    pub(crate) online: BTreeSet<u32>,
}

pub(crate) fn cpu_map() -> Result<CpuMap> {
    Ok(CpuMap { present: cpus("present")?, online: cpus("online")? })
}

/// In KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) buffers: u64,
    pub(crate) cached: u64,
}

pub(crate) fn memory() -> Result<Memory> {
    parse_memory(&read("/proc/meminfo")?)
        .ok_or_else(|| Error::new(Condition::Internal, "/proc/meminfo has no MemTotal"))
}

/// Memory of one NUMA cell; none: a cell that does not exist.
pub(crate) fn cell_memory(cell: u32) -> Result<Option<Memory>> {
    let path = format!("/sys/devices/system/node/node{cell}/meminfo");
    if !Path::new(&path).exists() {
        // Without NUMA the whole host is cell 0.
        return if cell == 0 { memory().map(Some) } else { Ok(None) };
    }
    Ok(parse_memory(&read(&path)?))
}

/// The NUMA cells that have memory or processors.
pub(crate) fn cells() -> BTreeSet<u32> {
    let online = fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default();
    let cells = parse_list(&online);
    if cells.is_empty() { BTreeSet::from([0]) } else { cells }
}

/// Free pages of that size in KiB.
pub(crate) fn free_pages(cell: u32, kib: u32) -> Result<u64> {
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096) / 1024;
    if u64::from(kib) == page {
        let free = cell_memory(cell)?.map_or(0, |memory| memory.free);
        return Ok(free / page.max(1));
    }
    let path =
        format!("/sys/devices/system/node/node{cell}/hugepages/hugepages-{kib}kB/free_hugepages");
    let count = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    count.ok_or_else(|| {
        let message = format!("NUMA cell {cell} has no pages of {kib} KiB");
        Error::new(Condition::OperationFailed, message)
    })
}

/// What went through a network device, as the host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InterfaceStats {
    pub(crate) received: Traffic,
    pub(crate) sent: Traffic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    pub(crate) errors: u64,
    pub(crate) dropped: u64,
}

/// None: there is no such device.
pub(crate) fn interface_stats(name: &str) -> Option<InterfaceStats> {
    parse_interface(&fs::read_to_string("/proc/net/dev").ok()?, name)
}

fn parse_interface(text: &str, name: &str) -> Option<InterfaceStats> {
    let numbers = text.lines().find_map(|line| {
        let (device, numbers) = line.split_once(':')?;
        (device.trim() == name).then_some(numbers)
    })?;
    let numbers: Vec<u64> =
        numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
    let traffic = |from: usize| {
        Some(Traffic {
            bytes: *numbers.get(from)?,
            packets: *numbers.get(from + 1)?,
            errors: *numbers.get(from + 2)?,
            dropped: *numbers.get(from + 3)?,
        })
    };
    Some(InterfaceStats { received: traffic(0)?, sent: traffic(8)? })
}

/// Nanoseconds in each state, of one processor or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuTime {
    pub(crate) kernel: u64,
    pub(crate) user: u64,
    pub(crate) idle: u64,
    pub(crate) iowait: u64,
}

pub(crate) fn cpu_time(cpu: Option<u32>) -> Result<CpuTime> {
    let ticks = rustix::param::clock_ticks_per_second();
    parse_cpu_time(&read("/proc/stat")?, cpu, ticks).ok_or_else(|| {
        let which = cpu.map_or("all processors".to_owned(), |cpu| format!("processor {cpu}"));
        Error::new(Condition::InvalidArgument, format!("the host has no statistics of {which}"))
    })
}

/// `<sysinfo type='smbios'>` from what the kernel tells everyone of the DMI tables.
pub(crate) fn sysinfo() -> Option<Element> {
    let dir = Path::new("/sys/class/dmi/id");
    let entries = |fields: &[(&str, &str)]| {
        let found = fields.iter().filter_map(|(name, file)| {
            let value = fs::read_to_string(dir.join(file)).ok()?;
            let value = value.trim();
            let entry = Element::new("entry").with_attr("name", *name).with_text(value);
            (!value.is_empty()).then_some(entry)
        });
        found.collect::<Vec<_>>()
    };
    let mut sysinfo = Element::new("sysinfo").with_attr("type", "smbios");
    for (section, fields) in DMI {
        let entries = entries(fields);
        if !entries.is_empty() {
            sysinfo.push(entries.into_iter().fold(Element::new(*section), Element::with_child));
        }
    }
    let known = sysinfo.elements().next().is_some();
    known.then_some(sysinfo)
}

const DMI: &[(&str, &[(&str, &str)])] = &[
    ("bios", &[("vendor", "bios_vendor"), ("version", "bios_version"), ("date", "bios_date")]),
    (
        "system",
        &[
            ("manufacturer", "sys_vendor"),
            ("product", "product_name"),
            ("version", "product_version"),
            ("serial", "product_serial"),
            ("uuid", "product_uuid"),
            ("sku", "product_sku"),
            ("family", "product_family"),
        ],
    ),
    (
        "baseBoard",
        &[
            ("manufacturer", "board_vendor"),
            ("product", "board_name"),
            ("version", "board_version"),
            ("serial", "board_serial"),
        ],
    ),
];

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(|err| {
        let errno = err.raw_os_error().unwrap_or_default();
        Error::new(Condition::System(errno), format!("cannot read '{path}'")).caused_by(err)
    })
}

fn cpus(kind: &str) -> Result<BTreeSet<u32>> {
    Ok(parse_list(&read(&format!("/sys/devices/system/cpu/{kind}"))?))
}

/// The largest processor number that is believed: the kernel's own limit is 8192.
const MAX_CPU: u32 = 65_535;

/// `0-3,8` as the kernel writes sets.
fn parse_list(text: &str) -> BTreeSet<u32> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number <= MAX_CPU);
    let mut set = BTreeSet::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Some(first), Some(last)) = (number(first), number(last)) {
            set.extend(first..=last);
        }
    }
    set
}

/// `MemTotal: 1 kB`, or `Node 0 MemTotal: 1 kB`.
fn parse_memory(text: &str) -> Option<Memory> {
    let field = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.split_whitespace().last() == Some(name))
                .then(|| value.split_whitespace().next()?.parse::<u64>().ok())
                .flatten()
        })
    };
    Some(Memory {
        total: field("MemTotal")?,
        free: field("MemFree")?,
        buffers: field("Buffers").unwrap_or(0),
        cached: field("Cached").or_else(|| field("FilePages")).unwrap_or(0),
    })
}

fn parse_cpu_time(text: &str, cpu: Option<u32>, ticks_per_second: u64) -> Option<CpuTime> {
    let wanted = cpu.map_or("cpu".to_owned(), |cpu| format!("cpu{cpu}"));
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(&wanted))?;
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).map_while(|number| number.parse().ok()).collect();
    let nanoseconds = |fields: &[usize]| {
        let sum = fields
            .iter()
            .fold(0u64, |sum, at| sum.saturating_add(ticks.get(*at).copied().unwrap_or(0)));
        sum.saturating_mul(1_000_000_000 / ticks_per_second.max(1))
    };
    // user nice system idle iowait irq softirq
    (ticks.len() >= 4).then(|| CpuTime {
        user: nanoseconds(&[0, 1]),
        kernel: nanoseconds(&[2, 5, 6]),
        idle: nanoseconds(&[3]),
        iowait: nanoseconds(&[4]),
    })
}

fn mhz(cpuinfo: &str) -> u32 {
    let line = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "cpu MHz").then_some(value.trim())
    });
    line.and_then(|value| value.split('.').next()?.parse().ok()).unwrap_or(0)
}

fn count(set: &BTreeSet<u32>) -> u32 {
    u32::try_from(set.len()).unwrap_or(u32::MAX)
}

fn topology(online: &BTreeSet<u32>) -> Topology {
    let read = |cpu: u32, file: &str| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/{file}");
        fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    };
    let nodes = count(&cells());
    let mut sockets = BTreeSet::new();
    let mut cores = BTreeSet::new();
    for cpu in online {
        let socket = read(*cpu, "physical_package_id");
        cores.insert((socket.clone(), read(*cpu, "core_id")));
        sockets.insert(socket);
    }
    regular(nodes, sockets.len(), cores.len(), online.len())
}

/// libvirt's rule: where the product of the parts is not the number of processors, the host is
/// reported as one socket with that many cores.
fn regular(nodes: u32, sockets: usize, cores: usize, cpus: usize) -> Topology {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let (sockets, cores, cpus) = (number(sockets), number(cores), number(cpus));
    let flat = Topology { nodes: 1, sockets: 1, cores: cpus.max(1), threads: 1 };
    if [nodes, sockets, cores].contains(&0) {
        return flat;
    }
    let per_node = (sockets / nodes).max(1);
    let topology =
        Topology { nodes, sockets: per_node, cores: cores / sockets, threads: cpus / cores };
    let product = [per_node, topology.cores, topology.threads]
        .iter()
        .try_fold(nodes, |product, factor| product.checked_mul(*factor));
    if product == Some(cpus) { topology } else { flat }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lists_are_sets_and_absurd_ones_are_not_believed() {
        assert_eq!(parse_list("0-2,5\n"), BTreeSet::from([0, 1, 2, 5]));
        assert_eq!(parse_list(""), BTreeSet::new());
        assert_eq!(parse_list("0-4294967295"), BTreeSet::new());
    }

    #[test]
    fn memory_of_host_and_of_cell() {
        let host =
            "MemTotal:  100 kB\nMemFree: 40 kB\nBuffers: 3 kB\nCached: 7 kB\nSwapCached: 9 kB\n";
        let expected = Memory { total: 100, free: 40, buffers: 3, cached: 7 };
        assert_eq!(parse_memory(host), Some(expected));
        let cell = "Node 0 MemTotal: 100 kB\nNode 0 MemFree: 40 kB\nNode 0 FilePages: 5 kB\n";
        assert_eq!(parse_memory(cell).map(|memory| memory.cached), Some(5));
        assert_eq!(parse_memory(""), None);
    }

    #[test]
    fn traffic_of_a_device() {
        let text = "Inter-| x\n vnet0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n";
        let stats = parse_interface(text, "vnet0").unwrap();
        assert_eq!(stats.received, Traffic { bytes: 1, packets: 2, errors: 3, dropped: 4 });
        assert_eq!(stats.sent.dropped, 8);
        assert_eq!(parse_interface(text, "vnet"), None);
    }

    #[test]
    fn processor_time_is_in_nanoseconds() {
        let text = "cpu  10 1 20 30 4 5 6 0\ncpu0 1 0 2 3 0 0 0 0\n";
        let all = parse_cpu_time(text, None, 100).unwrap();
        assert_eq!(all.user, 110_000_000);
        assert_eq!(all.kernel, 310_000_000);
        assert_eq!(parse_cpu_time(text, Some(0), 100).unwrap().idle, 30_000_000);
        assert_eq!(parse_cpu_time(text, Some(1), 100), None);
    }

    #[test]
    fn an_irregular_host_is_reported_flat() {
        assert_eq!(regular(2, 2, 8, 16), Topology { nodes: 2, sockets: 1, cores: 4, threads: 2 });
        assert_eq!(regular(1, 1, 3, 4), Topology { nodes: 1, sockets: 1, cores: 4, threads: 1 });
        assert_eq!(regular(1, 0, 0, 4), Topology { nodes: 1, sockets: 1, cores: 4, threads: 1 });
    }

    #[test]
    fn this_host_can_be_read() {
        assert!(node_info().unwrap().cpus > 0);
        assert!(cpu_time(None).is_ok());
        assert!(cell_memory(0).unwrap().is_some());
    }
}
