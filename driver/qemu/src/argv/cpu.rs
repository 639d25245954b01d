//! `-cpu`: the model, its features, and what timers, Hyper-V and KVM features add.

use virtsnap_engine::error::{Condition, Error, Result};

use super::props::on_off;
use super::read::{View, word};
use super::{Build, refuse};

/// Features that libvirt and QEMU spell differently.
const SPELLING: [(&str, &str); 12] = [
    ("cmp_legacy", "cmp-legacy"),
    ("ds_cpl", "ds-cpl"),
    ("fxsr_opt", "fxsr-opt"),
    ("kvm_pv_eoi", "kvm-pv-eoi"),
    ("kvm_pv_unhalt", "kvm-pv-unhalt"),
    ("lahf_lm", "lahf-lm"),
    ("nodeid_msr", "nodeid-msr"),
    ("pclmuldq", "pclmulqdq"),
    ("perfctr_core", "perfctr-core"),
    ("perfctr_nb", "perfctr-nb"),
    ("tsc_adjust", "tsc-adjust"),
    ("vmx-invvpid-single-context-noglobals", "vmx-invept-single-context-noglobals"),
];

impl Build<'_> {
    pub(super) fn cpu(&mut self) -> Result<()> {
        let cpu = self.domain.child("cpu");
        let mut model = cpu.map(|cpu| self.model(cpu)).transpose()?.flatten();
        let mut flags = String::new();
        self.timers(&mut flags)?;
        self.features(&mut flags)?;
        if let Some(cpu) = cpu {
            cache(cpu, &mut flags)?;
            physical_bits(cpu, &mut flags)?;
        }
        if model.is_none() && !flags.is_empty() {
            model = Some("qemu64".to_owned());
        }
        if let Some(model) = model {
            self.arg("-cpu", format!("{model}{flags}"));
        }
        Ok(())
    }

    fn model(&self, cpu: View<'_>) -> Result<Option<String>> {
        let migratable = cpu.switch("migratable")?;
        let mut option = match cpu.attr("mode") {
            Some("host-passthrough") => "host".to_owned(),
            Some("maximum") => "max".to_owned(),
            Some("custom") | None => match cpu.child_text("model") {
                Some(model) => word("model", &model)?.to_owned(),
                None => return Ok(None),
            },
            Some(other) => {
                return Err(Error::new(
                    Condition::Internal,
                    format!("the CPU mode '{other}' was not resolved to a model"),
                ));
            }
        };
        let is_host = matches!(cpu.attr("mode"), Some("host-passthrough" | "maximum"));
        if let Some(migratable) = migratable.filter(|_| is_host) {
            option.push_str(&format!(",migratable={}", on_off(migratable)));
        }
        if let Some(vendor) = cpu.child("model").and_then(|model| model.attr("vendor_id")) {
            option.push_str(&format!(",vendor={}", word("model", vendor)?));
        }
        for feature in cpu.children("feature") {
            let name = word("feature", feature.need("name")?)?;
            let spelled = SPELLING.iter().find(|(ours, _)| *ours == name).map_or(name, |s| s.1);
            match feature.attr("policy") {
                Some("force" | "require") | None => option.push_str(&format!(",{spelled}=on")),
                // What QEMU does not know is off anyway, and naming it would be an error.
                Some("disable" | "forbid") => {
                    let known = &self.context.qemu.cpu_features;
                    if known.is_empty() || known.contains(spelled) {
                        option.push_str(&format!(",{spelled}=off"));
                    }
                }
                Some("optional") => {}
                Some(other) => {
                    return refuse(format!("the CPU feature policy '{other}' is not known"));
                }
            }
        }
        Ok(Some(option))
    }

    fn timers(&self, flags: &mut String) -> Result<()> {
        for timer in self.timer_list() {
            let present = timer.switch("present")?;
            match timer.need("name")? {
                "kvmclock" => {
                    if let Some(present) = present {
                        flags.push_str(&format!(",kvmclock={}", on_off(present)));
                    }
                }
                "hypervclock" if present == Some(true) => flags.push_str(",hv-time=on"),
                "tsc" => {
                    if let Some(frequency) = timer.number("frequency")?.filter(|hz| *hz > 0) {
                        flags.push_str(&format!(",tsc-frequency={frequency}"));
                    }
                    timer.attr("mode");
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn features(&self, flags: &mut String) -> Result<()> {
        let Some(features) = self.domain.child("features") else {
            return Ok(());
        };
        for rendered_elsewhere in ["pae", "acpi", "apic"] {
            features.child(rendered_elsewhere);
        }
        let eoi = features.child("apic").map(|apic| apic.switch("eoi")).transpose()?.flatten();
        if let Some(eoi) = eoi {
            flags.push_str(&format!(",kvm-pv-eoi={}", on_off(eoi)));
        }
        if let Some(lock) = features.child("pvspinlock") {
            let state = lock.switch("state")?.unwrap_or(true);
            flags.push_str(&format!(",kvm-pv-unhalt={}", on_off(state)));
        }
        if let Some(hyperv) = features.child("hyperv") {
            enlightenments(hyperv, flags)?;
        }
        if self.devices.children("panic").iter().any(|p| p.attr("model") == Some("hyperv")) {
            flags.push_str(",hv-crash");
        }
        if let Some(kvm) = features.child("kvm") {
            kvm_features(kvm, flags)?;
        }
        if let Some(pmu) = features.child("pmu") {
            flags.push_str(&format!(",pmu={}", on_off(pmu.switch("state")?.unwrap_or(true))));
        }
        Ok(())
    }
}

/// In libvirt's order, not the document's.
fn enlightenments(hyperv: View<'_>, flags: &mut String) -> Result<()> {
    match hyperv.attr("mode") {
        None | Some("custom") => {}
        Some("passthrough") => flags.push_str(",hv-passthrough=on"),
        Some(other) => return refuse(format!("the Hyper-V mode '{other}' is not supported")),
    }
    let plain = |name: &str| format!(",hv-{}=on", name.replace('_', "-"));
    for name in [
        "relaxed",
        "vapic",
        "spinlocks",
        "vpindex",
        "runtime",
        "synic",
        "stimer",
        "reset",
        "vendor_id",
        "frequencies",
        "reenlightenment",
        "tlbflush",
        "ipi",
        "evmcs",
        "avic",
        "emsr_bitmap",
        "xmm_input",
    ] {
        let Some(feature) = hyperv.child(name) else {
            continue;
        };
        let on = feature.switch("state")?.unwrap_or(true);
        let retries = feature.number("retries")?;
        let vendor = word("vendor_id", feature.attr("value").unwrap_or_default())?;
        if on {
            match name {
                "spinlocks" => {
                    flags.push_str(&format!(",hv-spinlocks={:#x}", retries.unwrap_or(0)));
                }
                "vendor_id" => {
                    flags.push_str(&format!(",hv-vendor-id={vendor}"));
                }
                _ => flags.push_str(&plain(name)),
            }
        }
        for (owner, child, flag) in [
            ("stimer", "direct", ",hv-stimer-direct=on"),
            ("tlbflush", "direct", ",hv-tlbflush-direct=on"),
            ("tlbflush", "extended", ",hv-tlbflush-ext=on"),
        ] {
            let state = feature.child(child).map(|child| child.switch("state")).transpose()?;
            if name == owner && state.flatten() == Some(true) {
                flags.push_str(flag);
            }
        }
    }
    Ok(())
}

fn kvm_features(kvm: View<'_>, flags: &mut String) -> Result<()> {
    for (name, when, flag) in [
        ("hidden", true, ",kvm=off"),
        ("hint-dedicated", true, ",kvm-hint-dedicated=on"),
        ("poll-control", true, ",kvm-poll-control=on"),
        ("pv-ipi", false, ",kvm-pv-ipi=off"),
    ] {
        let state = kvm.child(name).map(|feature| feature.switch("state")).transpose()?.flatten();
        if state == Some(when) {
            flags.push_str(flag);
        }
    }
    Ok(())
}

fn cache(cpu: View<'_>, flags: &mut String) -> Result<()> {
    let Some(cache) = cpu.child("cache") else {
        return Ok(());
    };
    cache.attr("level");
    let is_host = matches!(cpu.attr("mode"), Some("host-passthrough" | "maximum"));
    let (flag, host_off, l3_off) = match cache.attr("mode") {
        Some("emulate") => (",l3-cache=on", true, false),
        Some("passthrough") => (",host-cache-info=on", false, true),
        Some("disable") => ("", true, true),
        other => return refuse(format!("the CPU cache mode {other:?} is not supported")),
    };
    flags.push_str(flag);
    if host_off && is_host {
        flags.push_str(",host-cache-info=off");
    }
    if l3_off {
        flags.push_str(",l3-cache=off");
    }
    Ok(())
}

fn physical_bits(cpu: View<'_>, flags: &mut String) -> Result<()> {
    let Some(address) = cpu.child("maxphysaddr") else {
        return Ok(());
    };
    let (bits, limit) = (address.number("bits")?, address.number("limit")?);
    match (address.attr("mode"), bits) {
        (Some("passthrough"), _) => {
            flags.push_str(",host-phys-bits=on");
            if let Some(limit) = limit.filter(|limit| *limit > 0) {
                flags.push_str(&format!(",host-phys-bits-limit={limit}"));
            }
        }
        (_, Some(bits)) => flags.push_str(&format!(",phys-bits={bits}")),
        (_, None) => flags.push_str(",host-phys-bits=off"),
    }
    Ok(())
}
