//! Guest memory: `-m`, the backends, NUMA nodes, memory devices.
//!
//! The id of the RAM block is part of the guest's ABI: `pc.ram`, or `ram-nodeN` with NUMA.

use virtsnap_engine::error::{Condition, Error, Result};

use super::props::{Props, on_off};
use super::read::{View, number};
use super::{Build, lacks, refuse};

impl Build<'_> {
    pub(super) fn has_numa(&self) -> bool {
        self.domain.at(&["cpu", "numa"]).is_some_and(|numa| !numa.children("cell").is_empty())
    }

    /// What QEMU itself calls the memory of this machine.
    pub(super) fn ram_id(&self) -> &'static str {
        if self.topology.machine.starts_with("microvm") { "microvm.ram" } else { "pc.ram" }
    }

    pub(super) fn memory_part(&mut self) -> Result<()> {
        let memory = self.domain.child("memory").ok_or_else(|| lacks("<memory>"))?;
        let mut size = bytes(&memory.text(), memory.attr("unit").unwrap_or("KiB"))? / 1024;
        for device in self.devices.children("memory") {
            // <memory> counts what the devices bring; -m does not.
            size = size.saturating_sub(device_size(device)?);
        }
        let mut option = format!("size={}k", size & !0x1ff);
        if let Some(most) = self.domain.child("maxMemory") {
            let limit = bytes(&most.text(), most.attr("unit").unwrap_or("KiB"))? / 1024;
            let slots = super::read::number("maxMemory", most.need("slots")?)?;
            option = format!("size={size}k,slots={slots},maxmem={limit}k");
        }
        self.arg("-m", option);
        if !self.has_numa() {
            let id = self.ram_id();
            let node = self.host_node_policy(None)?;
            let props = self.backend(id, Region { size, cell: None, system: true }, node)?;
            self.json("-object", props);
        }
        let locked = self.domain.at(&["memoryBacking", "locked"]).is_some();
        self.arg("-overcommit", format!("mem-lock={}", on_off(locked)));
        self.smp()?;
        self.iothreads()?;
        self.numa()
    }

    fn numa(&mut self) -> Result<()> {
        let Some(numa) = self.domain.at(&["cpu", "numa"]) else {
            return Ok(());
        };
        let cells = numa.children("cell");
        for (at, cell) in cells.iter().enumerate() {
            let id = cell.number("id")?.unwrap_or(at as u64);
            let size = bytes(cell.need("memory")?, cell.attr("unit").unwrap_or("KiB"))? / 1024;
            let alias = format!("ram-node{id}");
            let node = self.host_node_policy(Some(id))?;
            let region = Region { size, cell: Some(*cell), system: false };
            let props = self.backend(&alias, region, node)?;
            self.json("-object", props);
            let mut option = format!("node,nodeid={id}");
            for range in cell.attr("cpus").unwrap_or("").split(',').filter(|r| !r.is_empty()) {
                option.push_str(&format!(",cpus={}", range.trim()));
            }
            option.push_str(&format!(",memdev={alias}"));
            self.arg("-numa", option);
        }
        if cells.iter().any(|cell| cell.child("distances").is_some()) {
            self.distances(&cells)?;
        }
        Ok(())
    }

    /// All pairs, once one is given.
    fn distances(&mut self, cells: &[View<'_>]) -> Result<()> {
        for from in 0..cells.len() {
            for to in 0..cells.len() {
                let given = distance(cells, from, to)?.or(distance(cells, to, from)?);
                let value = given.unwrap_or(if from == to { 10 } else { 20 });
                self.arg("-numa", format!("dist,src={from},dst={to},val={value}"));
            }
        }
        Ok(())
    }

    fn backend(&self, id: &str, region: Region<'_>, node: HostNodes) -> Result<Props> {
        let backing = self.domain.child("memoryBacking");
        let text = |name: &str, attr: &str| {
            backing.and_then(|b| b.child(name)).and_then(|e| e.attr(attr)).map(str::to_owned)
        };
        let cell = |name: &str| region.cell.and_then(|cell| cell.attr(name)).map(str::to_owned);
        let access = cell("memAccess").or_else(|| text("access", "mode"));
        let share = match access.as_deref() {
            None => None,
            Some("shared") => Some(true),
            Some("private") => Some(false),
            Some(other) => return refuse(format!("the memory access mode '{other}' is not known")),
        };
        let discard = match region.cell.map(|cell| cell.switch("discard")).transpose()?.flatten() {
            Some(said) => Some(said),
            None => backing.and_then(|backing| backing.child("discard")).map(|_| true),
        };
        let source = text("source", "type");
        let pages = self.huge_page(region.cell)?;
        let immediate = text("allocation", "mode").as_deref() == Some("immediate");
        let threads = match backing.and_then(|backing| backing.child("allocation")) {
            Some(allocation) => allocation.number("threads")?,
            None => None,
        };
        let mut file_like = true;
        let mut props = match (source.as_deref(), &pages) {
            (Some("memfd"), pages) => {
                let props = Props::object("memory-backend-memfd", id).some("share", share);
                match pages {
                    Some((size, _)) => props.with("hugetlb", true).with("hugetlbsize", size * 1024),
                    None => props,
                }
            }
            (_, Some((_, path))) => Props::object("memory-backend-file", id)
                .with("mem-path", path.as_str())
                .some("discard-data", discard)
                .some("share", share),
            (Some("file"), None) | (None | Some("anonymous"), None)
                if source.as_deref() == Some("file") || share.is_some() =>
            {
                let path = self.context.memory_dir.join(id);
                Props::object("memory-backend-file", id)
                    .with("mem-path", path.to_string_lossy())
                    .some("discard-data", discard)
                    .some("share", share)
            }
            (None | Some("anonymous"), None) => {
                file_like = false;
                Props::object("memory-backend-ram", id)
            }
            (Some(other), _) => return refuse(format!("the memory source '{other}' is not known")),
        };
        // QEMU's own default RAM block has no path before its name; a backend's has, unless told.
        if region.system && file_like {
            props = props.with("x-use-canonical-path-for-ramblock-id", false);
        }
        if immediate || pages.is_some() {
            props = props.with("prealloc", true).positive("prealloc-threads", threads);
        }
        props = props.with("size", region.size.saturating_mul(1024));
        if let Some((nodes, policy)) = node {
            props = props.with("host-nodes", nodes).with("policy", policy);
        }
        Ok(props)
    }

    /// Page size in KiB and the path of hugetlbfs, if this region has huge pages.
    fn huge_page(&self, cell: Option<View<'_>>) -> Result<Option<(u64, String)>> {
        let Some(pages) = self.domain.at(&["memoryBacking", "hugepages"]) else {
            return Ok(None);
        };
        let id = cell.map(|cell| cell.number("id")).transpose()?.flatten();
        let mut size = None;
        let listed = pages.children("page");
        for page in &listed {
            let kib = bytes(page.need("size")?, page.attr("unit").unwrap_or("KiB"))? / 1024;
            let applies = match (page.attr("nodeset"), id) {
                (None, _) => true,
                (Some(set), Some(id)) => numbers(set)?.contains(&id),
                (Some(_), None) => false,
            };
            if applies {
                size = Some(kib);
            }
        }
        if !listed.is_empty() && size.is_none() {
            return Ok(None);
        }
        let mounts = &self.context.hugepages;
        let mount = match size {
            None => mounts.first(),
            Some(size) => mounts.iter().find(|(kib, _)| *kib == size),
        };
        match mount {
            Some((kib, path)) => Ok(Some((*kib, path.to_string_lossy().into_owned()))),
            None => refuse("the host has no hugetlbfs mount for the domain's huge pages"),
        }
    }

    fn host_node_policy(&self, cell: Option<u64>) -> Result<HostNodes> {
        let Some(tune) = self.domain.child("numatune") else {
            return Ok(None);
        };
        let mut chosen = tune.child("memory");
        // Where every cell has a policy of its own, the general one is for the host alone.
        if let Some(general) = chosen {
            general.pass_over();
        }
        for node in tune.children("memnode") {
            if cell.is_some() && node.number("cellid")? == cell {
                chosen = Some(node);
            }
        }
        let Some(chosen) = chosen else {
            return Ok(None);
        };
        chosen.attr("placement");
        let mode = chosen.attr("mode").unwrap_or("strict");
        let Some(set) = chosen.attr("nodeset") else {
            return Ok(None);
        };
        let policy = match mode {
            "strict" => "bind",
            "preferred" => "preferred",
            "interleave" => "interleave",
            "restrictive" => return Ok(None),
            other => return refuse(format!("the NUMA policy '{other}' is not supported")),
        };
        Ok(Some((numbers(set)?, policy)))
    }

    pub(super) fn memory_devices(&mut self) -> Result<()> {
        for device in self.devices.children("memory") {
            let alias = device.alias()?;
            let size = device_size(device)?;
            let target = device.child("target").ok_or_else(|| lacks("<memory><target>"))?;
            let node = target.child_text("node").map(|node| number("node", &node)).transpose()?;
            let cells = self.domain.at(&["cpu", "numa"]).map(|n| n.children("cell"));
            let cell = cells
                .unwrap_or_default()
                .into_iter()
                .find(|cell| cell.attr("id").and_then(|id| id.parse().ok()) == node);
            let driver = match device.attr("model") {
                Some("dimm") => "pc-dimm",
                Some(other) => {
                    return refuse(format!("memory devices of model '{other}' are not supported"));
                }
                None => return Err(lacks("the model of a <memory> device")),
            };
            let memory = format!("mem{alias}");
            let policy = self.host_node_policy(node)?;
            let props = self.backend(&memory, Region { size, cell, system: false }, policy)?;
            self.json("-object", props);
            let props =
                Props::device(driver).some("node", node).with("memdev", memory).with("id", alias);
            self.device(self.place(device, props)?);
        }
        Ok(())
    }
}

struct Region<'a> {
    /// KiB.
    size: u64,
    cell: Option<View<'a>>,
    /// The machine's own memory.
    system: bool,
}

type HostNodes = Option<(Vec<u64>, &'static str)>;

fn distance(cells: &[View<'_>], from: usize, to: usize) -> Result<Option<u64>> {
    let Some(distances) = cells.get(from).and_then(|cell| cell.child("distances")) else {
        return Ok(None);
    };
    for sibling in distances.children("sibling") {
        if sibling.number("id")? == Some(to as u64) {
            return sibling.number("value");
        }
    }
    Ok(None)
}

fn device_size(device: View<'_>) -> Result<u64> {
    let size = device.at(&["target", "size"]).ok_or_else(|| lacks("<memory><target><size>"))?;
    Ok(bytes(&size.text(), size.attr("unit").unwrap_or("KiB"))? / 1024)
}

/// A size in bytes.
pub(super) fn bytes(text: &str, unit: &str) -> Result<u64> {
    let factor: u64 = match unit {
        "b" | "B" | "bytes" | "byte" => 1,
        "KB" => 1000,
        "k" | "K" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        other => {
            let message = format!("the unit '{other}' is not known");
            return Err(Error::new(Condition::XmlError, message));
        }
    };
    number("size", text)?.checked_mul(factor).ok_or_else(|| {
        Error::new(Condition::XmlError, format!("the size {text} {unit} is too large"))
    })
}

/// A set such as `0-3,^2,8`.
fn numbers(set: &str) -> Result<Vec<u64>> {
    let mut all = std::collections::BTreeSet::new();
    for part in set.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        if let Some(without) = part.strip_prefix('^') {
            all.remove(&number("nodeset", without)?);
        } else if let Some((from, to)) = part.split_once('-') {
            let (from, to) = (number("nodeset", from)?, number("nodeset", to)?);
            if to < from || to > 4096 {
                return refuse(format!("'{set}' is not a set of host nodes"));
            }
            all.extend(from..=to);
        } else {
            all.insert(number("nodeset", part)?);
        }
    }
    Ok(all.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_sets() {
        assert_eq!(numbers("0-3,^2,8").unwrap(), [0, 1, 3, 8]);
        assert!(numbers("3-1").is_err());
        assert!(numbers("0-99999999999").is_err());
    }

    #[test]
    fn sizes_do_not_overflow() {
        assert_eq!(bytes("2", "GiB").unwrap(), 2 << 30);
        assert!(bytes("18446744073709551615", "KiB").is_err());
    }
}
