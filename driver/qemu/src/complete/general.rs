//! Defaults of everything that is not a device: vcpus, machine, features, cpu, clock.

use uuid::Uuid;
use virtsnap_engine::definition::{self, bad, checked_number, set_default, unsupported};
use virtsnap_engine::error::Result;
use virtsnap_xml::domain;
use virtsnap_xml::element::{Element, Node};

use super::draft::Draft;
use super::memory::{self, ranges};

const QEMU_NAMESPACE: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// The emulated cpu that a PC machine of QEMU has where nothing is asked for.
const DEFAULT_CPU: &str = "qemu64";

pub(super) fn complete(draft: &mut Draft<'_>, hotplugged: u64) -> Result<()> {
    draft.root.remove_attr("id");
    set_default(&mut draft.root, "type", "qemu");
    identity(&mut draft.root)?;
    memory::complete(&mut draft.root, hotplugged)?;
    vcpus(&mut draft.root)?;
    machine(draft)?;
    sysinfo(&mut draft.root);
    features(&mut draft.root);
    cpu(draft)?;
    clock(&mut draft.root)?;
    lifecycle(&mut draft.root)?;
    if let Some(label) = draft.root.child_mut("seclabel") {
        if label.attr("type") == Some("none") {
            set_default(label, "model", "none");
        }
        label.remove_children("imagelabel");
    }
    namespaces(&mut draft.root);
    Ok(())
}

fn identity(root: &mut Element) -> Result<()> {
    definition::identity(root)?;
    if let Some(genid) = root.child_mut("genid") {
        let text = genid.text();
        let id = match text.trim() {
            "" => Uuid::new_v4(),
            text => Uuid::try_parse(text)
                .map_err(|_| bad(format!("the genid '{text}' is not a uuid")))?,
        };
        genid.set_text(id.to_string());
    }
    Ok(())
}

fn vcpus(root: &mut Element) -> Result<()> {
    let vcpu = root.child_or_insert("vcpu");
    definition::vcpus(vcpu)?;
    if let Some(set) = vcpu.attr("cpuset").map(ranges).transpose()? {
        vcpu.set_attr("cpuset", set);
    }
    let threads = root.child_text("iothreads").unwrap_or_default();
    if !threads.is_empty() && threads.trim().parse::<u32>().is_err() {
        return Err(bad(format!("<iothreads> is '{threads}', not a number")));
    }
    if threads.trim() == "0" {
        root.remove_children("iothreads");
    }
    tunables(root)
}

fn tunables(root: &mut Element) -> Result<()> {
    if let Some(tune) = root.child_mut("cputune") {
        for pin in tune.elements_mut() {
            if let Some(set) = pin.attr("cpuset").map(ranges).transpose()? {
                pin.set_attr("cpuset", set);
            }
        }
    }
    if let Some(tune) = root.child_mut("numatune") {
        for memory in tune.elements_mut() {
            set_default(memory, "mode", "strict");
            if let Some(set) = memory.attr("nodeset").map(ranges).transpose()? {
                memory.set_attr("nodeset", set);
            }
        }
    }
    Ok(())
}

fn machine(draft: &mut Draft<'_>) -> Result<()> {
    let host = draft.host;
    let os = draft.root.child_mut("os").ok_or_else(|| bad("the domain has no <os>"))?;
    let kind = os.child_mut("type").ok_or_else(|| bad("<os> has no <type>"))?;
    match kind.text().trim() {
        "hvm" => kind.set_text("hvm"),
        other => return Err(unsupported(format!("the OS type '{other}' is not supported"))),
    }
    set_default(kind, "arch", "x86_64");
    let asked = kind.attr("machine").unwrap_or(&host.default_machine).to_owned();
    let machine = host.canonical_machine(&asked).to_owned();
    if !host.machines.is_empty() && !host.machines.contains(&machine) {
        return Err(unsupported(format!("this QEMU has no machine type '{asked}'")));
    }
    draft.q35 = is_q35(&machine);
    if !draft.q35 && !machine.starts_with("pc-i440fx-") && machine != "pc" && !is_old_pc(&machine) {
        return Err(unsupported(format!(
            "the machine type '{asked}' is not supported: use pc (i440fx) or q35"
        )));
    }
    kind.set_attr("machine", machine);
    boot_order(draft)?;
    Ok(())
}

pub(super) fn is_q35(machine: &str) -> bool {
    machine == "q35" || machine.starts_with("pc-q35")
}

/// `pc-0.14`, `pc-1.3`: names from before QEMU 1.4.
fn is_old_pc(machine: &str) -> bool {
    machine
        .strip_prefix("pc-")
        .is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()))
}

fn boot_order(draft: &mut Draft<'_>) -> Result<()> {
    let mut orders = std::collections::BTreeSet::new();
    for device in &draft.devices {
        if let Some(boot) = device.child("boot") {
            match checked_number(boot, "order")? {
                Some(order) if order > 0 && orders.insert(order) => {}
                Some(0) | None => return Err(bad("the boot order of a device starts at 1")),
                Some(order) => {
                    return Err(unsupported(format!(
                        "boot order '{order}' is used for more than one device"
                    )));
                }
            }
        }
    }
    let os = draft.root.child_or_insert("os");
    match (os.child("boot").is_some(), orders.is_empty()) {
        (true, false) => Err(unsupported(
            "<boot> of a device cannot be used together with <boot> of <os>: leave one out",
        )),
        (false, true) => {
            os.push(Element::new("boot").with_attr("dev", "hd"));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn sysinfo(root: &mut Element) {
    const ORDER: [&str; 12] = [
        "vendor",
        "manufacturer",
        "product",
        "version",
        "date",
        "release",
        "serial",
        "uuid",
        "asset",
        "location",
        "sku",
        "family",
    ];
    for block in root.children_mut("sysinfo").flat_map(Element::elements_mut) {
        if block.name() == "oemStrings" {
            continue;
        }
        block.nodes_mut().sort_by_key(|node| match node {
            Node::Element(entry) => {
                let name = entry.attr("name").unwrap_or_default();
                ORDER.iter().position(|known| *known == name)
            }
            Node::Text(_) | Node::Comment(_) => None,
        });
    }
}

fn features(root: &mut Element) {
    let Some(features) = root.child_mut("features") else { return };
    for feature in features.elements_mut() {
        match feature.name() {
            "hyperv" => set_default(feature, "mode", "custom"),
            "pvspinlock" | "pmu" | "vmport" | "smm" | "vmcoreinfo" | "ps2" => {
                set_default(feature, "state", "on");
            }
            _ => {}
        }
    }
}

fn cpu(draft: &mut Draft<'_>) -> Result<()> {
    let kvm = draft.kvm;
    let emulator = draft.of("emulator").next().map(Element::text);
    let i686 = emulator.as_ref().unwrap_or(&draft.host.emulator).ends_with("-i386");
    let cpu = draft.root.child_or_insert("cpu");
    set_default(cpu, "mode", "custom");
    if cpu.attr("mode") == Some("custom") {
        set_default(cpu, "match", "exact");
        let default = if i686 { "qemu32" } else { DEFAULT_CPU };
        if cpu.child_text("model").is_none_or(|model| model.trim().is_empty()) {
            cpu.set_attr("check", "none");
            cpu.set_attr("match", "exact");
            let model = cpu.child_or_insert("model");
            model.set_attr("fallback", "forbid");
            model.set_text(default);
        }
    } else {
        cpu.remove_attr("match");
    }
    let mode = cpu.attr("mode").unwrap_or_default().to_owned();
    if mode == "host-passthrough" {
        if !kvm {
            return Err(unsupported("cpu mode 'host-passthrough' needs a domain of type 'kvm'"));
        }
        set_default(cpu, "migratable", "on");
    }
    let check = match mode.as_str() {
        "host-model" => "partial",
        "custom" if kvm => "partial",
        _ => "none",
    };
    set_default(cpu, "check", check);
    for model in cpu.children_mut("model") {
        set_default(model, "fallback", "allow");
    }
    for topology in cpu.children_mut("topology") {
        set_default(topology, "dies", "1");
        set_default(topology, "clusters", "1");
    }
    for feature in cpu.children_mut("feature") {
        set_default(feature, "policy", "require");
    }
    check_topology(draft)
}

fn check_topology(draft: &Draft<'_>) -> Result<()> {
    let vcpus = draft.root.child_text("vcpu").and_then(|text| text.trim().parse().ok());
    let Some(topology) = draft.root.at(&["cpu", "topology"]) else { return Ok(()) };
    let mut product = 1_u32;
    for level in ["sockets", "dies", "clusters", "cores", "threads"] {
        let count = checked_number(topology, level)?.filter(|count| *count > 0);
        let count = count.ok_or_else(|| bad(format!("the cpu topology lacks {level}")))?;
        product = product.saturating_mul(count);
    }
    if vcpus != Some(product) {
        return Err(unsupported(format!(
            "the cpu topology has {product} cpus, but the domain has {} vcpus",
            vcpus.unwrap_or_default()
        )));
    }
    Ok(())
}

fn clock(root: &mut Element) -> Result<()> {
    let clock = root.child_or_insert("clock");
    domain::complete_clock(clock);
    if clock.attr("offset") == Some("variable") {
        let text = clock.attr("adjustment").unwrap_or_default();
        if text.parse::<i64>().is_err() {
            return Err(bad(format!("the clock's adjustment '{text}' is not a number")));
        }
    }
    Ok(())
}

fn lifecycle(root: &mut Element) -> Result<()> {
    const ACTIONS: [&str; 6] = [
        "destroy",
        "restart",
        "preserve",
        "rename-restart",
        "coredump-destroy",
        "coredump-restart",
    ];
    for (event, default) in
        [("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")]
    {
        let element = root.child_or_insert(event);
        let action = element.text();
        match action.trim() {
            "" => element.set_text(default),
            "rename-restart" => {
                return Err(unsupported(format!("<{event}> cannot be 'rename-restart'")));
            }
            known if ACTIONS.contains(&known) => {}
            other => return Err(unsupported(format!("<{event}> is '{other}', which is unknown"))),
        }
    }
    Ok(())
}

/// Prefixes that the metadata needs and the root declares are declared at the metadata; the root
/// keeps QEMU's own.
fn namespaces(root: &mut Element) {
    let spaces: Vec<(String, String)> = root
        .attributes()
        .filter(|(key, _)| key.starts_with("xmlns"))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    for (key, _) in &spaces {
        root.remove_attr(key);
    }
    if let Some(metadata) = root.child_mut("metadata") {
        for (key, value) in &spaces {
            let prefix = key.strip_prefix("xmlns:").unwrap_or_default();
            if metadata.attr(key).is_none() && !prefix.is_empty() && uses(metadata, prefix) {
                metadata.set_attr(key, value.clone());
            }
        }
    }
    if root.child("qemu:commandline").is_some() {
        root.set_attr("xmlns:qemu", QEMU_NAMESPACE);
    }
}

fn uses(element: &Element, prefix: &str) -> bool {
    let here = |name: &str| name.split_once(':').is_some_and(|(used, _)| used == prefix);
    here(element.name())
        || element.attributes().any(|(key, _)| here(key))
        || element.elements().any(|child| uses(child, prefix))
}
