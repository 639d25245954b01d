//! How much memory a guest has, and how its NUMA cells share it.

use virtsnap_engine::definition::{bad, set_default, unsupported};
use virtsnap_engine::error::Result;
use virtsnap_xml::element::Element;

/// `hotplugged` is what memory devices have of it, in KiB: it comes on top of the NUMA cells.
pub(super) fn complete(root: &mut Element, hotplugged: u64) -> Result<()> {
    let cells = numa_cells(root)?;
    let total = match (cells, root.child("memory")) {
        (Some(cells), _) => cells.saturating_add(hotplugged),
        (None, Some(memory)) => kib(memory)?,
        (None, None) => return Err(bad("the domain has no <memory>")),
    };
    if total == 0 {
        return Err(bad("the domain's <memory> is zero"));
    }
    if hotplugged >= total {
        return Err(bad("the memory devices are larger than the domain's <memory>"));
    }
    if hotplugged > 0 && root.child("maxMemory").is_none() {
        return Err(unsupported("memory devices need <maxMemory> with slots"));
    }
    set_kib(root.child_or_insert("memory"), total);
    let current = root.child("currentMemory").map(kib).transpose()?;
    let current = current.filter(|size| *size != 0 && *size <= total).unwrap_or(total);
    set_kib(root.child_or_insert("currentMemory"), current);
    if let Some(max) = root.child_mut("maxMemory") {
        let size = kib(max)?;
        if size < total {
            return Err(bad("<maxMemory> is smaller than <memory>"));
        }
        set_kib(max, size);
    }
    if let Some(tune) = root.child_mut("memtune") {
        for limit in tune.elements_mut() {
            let size = kib(limit)?;
            set_kib(limit, size);
        }
    }
    if let Some(backing) = root.child_mut("memoryBacking") {
        for pages in backing.children_mut("hugepages") {
            for page in pages.elements_mut() {
                if let Some(size) = page.attr("size") {
                    let value =
                        size.parse().map_err(|_| bad(format!("the page size '{size}' is none")))?;
                    let size = scale(value, page.attr("unit").unwrap_or("KiB"), "page")?;
                    page.set_attr("size", size.to_string());
                    page.set_attr("unit", "KiB");
                }
            }
        }
    }
    Ok(())
}

/// Brings the guest's NUMA cells into form; gives their sum.
fn numa_cells(root: &mut Element) -> Result<Option<u64>> {
    let Some(numa) = root.child_mut("cpu").and_then(|cpu| cpu.child_mut("numa")) else {
        return Ok(None);
    };
    let mut sum = 0_u64;
    for (id, cell) in numa.children_mut("cell").enumerate() {
        set_default(cell, "id", &id.to_string());
        let text = cell.attr("memory").unwrap_or_default().to_owned();
        let value =
            text.parse().map_err(|_| bad(format!("the memory '{text}' of a cell is no size")))?;
        let size = scale(value, cell.attr("unit").unwrap_or("KiB"), "cell")?;
        sum = sum.saturating_add(size);
        cell.set_attr("memory", size.to_string());
        cell.set_attr("unit", "KiB");
        if let Some(cpus) = cell.attr("cpus").map(ranges).transpose()? {
            cell.set_attr("cpus", cpus);
        }
    }
    Ok(Some(sum).filter(|sum| *sum != 0))
}

/// A scaled size in KiB, rounded up.
pub(super) fn kib(element: &Element) -> Result<u64> {
    let text = element.text();
    let name = element.name();
    let value: u64 = text
        .trim()
        .parse()
        .map_err(|_| bad(format!("<{name}> is '{text}', which is not a size")))?;
    scale(value, element.attr("unit").unwrap_or("KiB"), name)
}

fn scale(value: u64, unit: &str, name: &str) -> Result<u64> {
    let bytes: u64 = match unit.to_ascii_lowercase().as_str() {
        "b" | "byte" | "bytes" => 1,
        "k" | "kib" => 1 << 10,
        "kb" => 1000,
        "m" | "mib" => 1 << 20,
        "mb" => 1_000_000,
        "g" | "gib" => 1 << 30,
        "gb" => 1_000_000_000,
        "t" | "tib" => 1 << 40,
        "tb" => 1_000_000_000_000,
        _ => return Err(bad(format!("<{name}> has the unknown unit '{unit}'"))),
    };
    value
        .checked_mul(bytes)
        .map(|bytes| bytes.div_ceil(1024))
        .ok_or_else(|| bad(format!("<{name}> is larger than any machine")))
}

pub(super) fn set_kib(element: &mut Element, value: u64) {
    element.set_attr("unit", "KiB");
    element.set_text(value.to_string());
}

/// `0,1,2,5` → `0-2,5`: a set of cpus as libvirt prints it.
pub(super) fn ranges(text: &str) -> Result<String> {
    const MOST: u32 = 16384;
    let malformed = || bad(format!("'{text}' is not a list of cpus"));
    let mut set = std::collections::BTreeSet::new();
    for part in text.split(',').map(str::trim) {
        let (exclude, part) = match part.strip_prefix('^') {
            Some(part) => (true, part),
            None => (false, part),
        };
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let from: u32 = from.trim().parse().map_err(|_| malformed())?;
        let to: u32 = to.trim().parse().map_err(|_| malformed())?;
        if from > to || to >= MOST {
            return Err(malformed());
        }
        for cpu in from..=to {
            if exclude {
                set.remove(&cpu);
            } else {
                set.insert(cpu);
            }
        }
    }
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for cpu in set {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    let runs: Vec<String> = runs
        .into_iter()
        .map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") })
        .collect();
    Ok(runs.join(","))
}
