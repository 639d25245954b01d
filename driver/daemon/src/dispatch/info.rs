//! What a domain is and how it fares: the short questions.

use virtsnap_engine::domain::{PausedReason, State};
use virtsnap_engine::error::{Condition, Error};
use virtsnap_engine::inspect::{Inspect, VcpuTime};
use virtsnap_rpc::remote::*;
use virtsnap_rpc::xdr::Opaque;

use super::{Context, Outcome, flags, numbers};
use crate::domains::Domain;
use crate::domains::definition::{Size, size};

pub(super) async fn state<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetStateArgs,
) -> Outcome<DomainGetStateRet> {
    flags::only::<H>(args.flags, 0, "DomainGetState")?;
    let domain = cx.domain(&args.dom)?;
    let (state, reason) = numbers::state(cx.daemon.domains.state(&domain));
    Ok(DomainGetStateRet { state, reason })
}

/// Of the definition that holds now, with what the guest's balloon says.
async fn current_size<H: Inspect>(cx: &Context<'_, H>, domain: &Domain) -> Outcome<Size> {
    let domains = &cx.daemon.domains;
    let mut now = size(&domains.current(domain)?);
    if domains.active(domain).is_some() {
        // A guest that cannot be asked just now has what its definition says.
        if let Ok(Some(balloon)) = domains.hypervisor.balloon(domain.uuid).await {
            now.memory = balloon;
        }
    }
    Ok(now)
}

pub(super) async fn info<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetInfoArgs,
) -> Outcome<DomainGetInfoRet> {
    let domain = cx.domain(&args.dom)?;
    let domains = &cx.daemon.domains;
    let size = current_size(&cx, &domain).await?;
    let cpu_time = match domains.active(&domain) {
        Some(_) => domains.hypervisor.cpu_times(domain.uuid).map_or(0, |times| times.total),
        None => 0,
    };
    Ok(DomainGetInfoRet {
        state: u8::try_from(numbers::state(domains.state(&domain)).0).unwrap_or(0),
        max_mem: size.max_memory,
        memory: size.memory,
        nr_virt_cpu: u16::try_from(size.vcpus).unwrap_or(u16::MAX),
        cpu_time,
    })
}

pub(super) async fn is_active<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainIsActiveArgs,
) -> Outcome<DomainIsActiveRet> {
    let domain = cx.domain(&args.dom)?;
    Ok(DomainIsActiveRet { active: cx.daemon.domains.active(&domain).is_some().into() })
}

pub(super) async fn is_persistent<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainIsPersistentArgs,
) -> Outcome<DomainIsPersistentRet> {
    let domain = cx.domain(&args.dom)?;
    Ok(DomainIsPersistentRet { persistent: domain.is_persistent().into() })
}

/// libvirt: the persistent definition of a running domain was changed since it started. We do not
/// keep track of that for anybody.
pub(super) async fn is_updated<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainIsUpdatedArgs,
) -> Outcome<DomainIsUpdatedRet> {
    cx.domain(&args.dom)?;
    Ok(DomainIsUpdatedRet { updated: 0 })
}

pub(super) async fn os_type<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetOsTypeArgs,
) -> Outcome<DomainGetOsTypeRet> {
    let domain = cx.domain(&args.dom)?;
    let definition = cx.daemon.domains.current(&domain)?;
    let kind = virtsnap_xml::domain::os_type(&definition).ok_or_else(|| {
        Error::new(Condition::Internal, "the domain's definition has no <os><type>")
    })?;
    Ok(DomainGetOsTypeRet { kind })
}

pub(super) async fn max_memory<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetMaxMemoryArgs,
) -> Outcome<DomainGetMaxMemoryRet> {
    let domain = cx.domain(&args.dom)?;
    let memory = size(&cx.daemon.domains.current(&domain)?).max_memory;
    Ok(DomainGetMaxMemoryRet { memory })
}

pub(super) async fn max_vcpus<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetMaxVcpusArgs,
) -> Outcome<DomainGetMaxVcpusRet> {
    let domain = cx.domain(&args.dom)?;
    let vcpus = size(&cx.daemon.domains.current(&domain)?).max_vcpus;
    Ok(DomainGetMaxVcpusRet { num: i32::try_from(vcpus).unwrap_or(i32::MAX) })
}

pub(super) async fn vcpus_flags<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetVcpusFlagsArgs,
) -> Outcome<DomainGetVcpusFlagsRet> {
    const MAXIMUM: u32 = 4;
    const GUEST: u32 = 8;
    flags::only::<H>(
        args.flags,
        flags::LIVE | flags::CONFIG | MAXIMUM | GUEST,
        "DomainGetVcpusFlags",
    )?;
    if args.flags & GUEST != 0 {
        return Err(super::unsupported("asking the guest how many vCPUs it uses"));
    }
    let domain = cx.domain(&args.dom)?;
    let domains = &cx.daemon.domains;
    let affect = flags::either(domains, &domain, args.flags)?;
    let definition =
        if affect.live { domains.current(&domain)? } else { domains.persistent(&domain)? };
    let size = size(&definition);
    let vcpus = if args.flags & MAXIMUM != 0 { size.max_vcpus } else { size.vcpus };
    Ok(DomainGetVcpusFlagsRet { num: i32::try_from(vcpus).unwrap_or(i32::MAX) })
}

/// More than any client asks for; the reply carries four bytes for each entry at least.
const MAX_VCPUS: usize = 16384;

pub(super) async fn vcpus<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetVcpusArgs,
) -> Outcome<DomainGetVcpusRet> {
    let domain = cx.domain(&args.dom)?;
    let domains = &cx.daemon.domains;
    let active = domains.running(&domain)?;
    let times = domains.hypervisor.cpu_times(domain.uuid)?;
    let wanted = super::lists::at_most(args.max_info)
        .min(MAX_VCPUS)
        .min(usize::try_from(size(&active.live).vcpus).unwrap_or(0));
    let all = all_cpus(&cx, super::lists::at_most(args.map_len)).await?;
    let listed: Vec<_> = times.vcpus.iter().take(wanted).collect();
    let cpumaps = listed.iter().flat_map(|vcpu| cpu_map_of(vcpu, &all)).collect();
    let info: Vec<VcpuInfo> = listed
        .into_iter()
        .map(|vcpu| VcpuInfo {
            number: vcpu.number,
            state: numbers::vcpu_state(vcpu.state),
            cpu_time: vcpu.nanoseconds,
            cpu: vcpu.host_cpu.and_then(|cpu| i32::try_from(cpu).ok()).unwrap_or(-1),
        })
        .collect();
    Ok(DomainGetVcpusRet { info: info.into(), cpumaps: Opaque(cpumaps) })
}

/// In as many bytes as `all` has, which are those of a vCPU that is not pinned.
pub(super) fn cpu_map_of(vcpu: &VcpuTime, all: &[u8]) -> Vec<u8> {
    let mut map = vcpu.affinity.clone().unwrap_or_else(|| all.to_vec());
    map.resize(all.len(), 0);
    map
}

/// A bit map of `len` bytes with every online processor.
pub(super) async fn all_cpus<H: Inspect>(cx: &Context<'_, H>, len: usize) -> Outcome<Vec<u8>> {
    const LONGEST: usize = 2048;
    let mut map = vec![0u8; len.min(LONGEST)];
    let online = match cx.daemon.domains.hypervisor.node().await? {
        Some(node) => (0..node.cpus).collect(),
        None => crate::host::cpu_map()?.online,
    };
    for cpu in online {
        let (byte, bit) = (cpu / 8, cpu % 8);
        if let Some(byte) = usize::try_from(byte).ok().and_then(|byte| map.get_mut(byte)) {
            *byte |= 1 << bit;
        }
    }
    Ok(map)
}

pub(super) async fn control_info<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetControlInfoArgs,
) -> Outcome<DomainGetControlInfoRet> {
    const OK: u32 = 0;
    const JOB: u32 = 1;
    flags::only::<H>(args.flags, 0, "DomainGetControlInfo")?;
    let domain = cx.domain(&args.dom)?;
    cx.daemon.domains.running(&domain)?;
    let (state, state_time) = match domain.jobs.running() {
        Some(job) => (JOB, millis(job.since.elapsed())),
        None => (OK, 0),
    };
    Ok(DomainGetControlInfoRet { state, details: 0, state_time })
}

pub(super) fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) async fn has_managed_save<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainHasManagedSaveImageArgs,
) -> Outcome<DomainHasManagedSaveImageRet> {
    flags::only::<H>(args.flags, 0, "DomainHasManagedSaveImage")?;
    let has = cx.domain(&args.dom)?.book().has_managed_save;
    Ok(DomainHasManagedSaveImageRet { result: has.into() })
}

/// No security driver confines guests here; libvirt's word for that is a model of its own.
pub(super) async fn security_model<H: Inspect>(
    _: Context<'_, H>,
    _: NodeGetSecurityModelArgs,
) -> Outcome<NodeGetSecurityModelRet> {
    let text = |text: &str| text.bytes().map(u8::cast_signed).chain([0]).collect();
    Ok(NodeGetSecurityModelRet { model: text("none"), doi: text("0") })
}

pub(super) async fn security_label<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetSecurityLabelArgs,
) -> Outcome<DomainGetSecurityLabelRet> {
    cx.domain(&args.dom)?;
    Ok(DomainGetSecurityLabelRet { label: Vec::new().into(), enforcing: 0 })
}

/// No domain is tainted or deprecated in a way that we record.
pub(super) async fn messages<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetMessagesArgs,
) -> Outcome<DomainGetMessagesRet> {
    const DEPRECATION: u32 = 1;
    const TAINTING: u32 = 2;
    flags::only::<H>(args.flags, DEPRECATION | TAINTING, "DomainGetMessages")?;
    cx.domain(&args.dom)?;
    Ok(DomainGetMessagesRet { msgs: Vec::new().into() })
}

pub(super) async fn disk_errors<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetDiskErrorsArgs,
) -> Outcome<DomainGetDiskErrorsRet> {
    flags::only::<H>(args.flags, 0, "DomainGetDiskErrors")?;
    let domain = cx.domain(&args.dom)?;
    let active = cx.daemon.domains.running(&domain)?;
    if args.maxerrors == 0 {
        let disks = virtsnap_xml::domain::disks(&active.live).count();
        let nerrors = i32::try_from(disks).unwrap_or(i32::MAX);
        return Ok(DomainGetDiskErrorsRet { errors: Vec::new().into(), nerrors });
    }
    // QEMU remembers an error only where it stopped the guest for it.
    match cx.daemon.domains.state(&domain) {
        State::Paused(PausedReason::IoError) => {
            Err(super::unsupported("telling which disks have errors"))
        }
        _ => Ok(DomainGetDiskErrorsRet { errors: Vec::new().into(), nerrors: 0 }),
    }
}

/// Snapshots are what we have; there are no checkpoints.
pub(super) async fn list_checkpoints<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainListAllCheckpointsArgs,
) -> Outcome<DomainListAllCheckpointsRet> {
    cx.domain(&args.dom)?;
    Ok(DomainListAllCheckpointsRet { checkpoints: Vec::new().into(), ret: 0 })
}
