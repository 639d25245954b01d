//! Changes of a definition piece by piece: metadata, memory, vCPUs, devices.

use virtsnap_engine::domain::Event;
use virtsnap_engine::error::{Condition, Error, Origin};
use virtsnap_engine::inspect::Inspect;
use virtsnap_engine::ports::EventSink;
use virtsnap_rpc::remote::*;
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use super::{Context, Outcome, flags};
use crate::domains::definition::{self, Metadata};
use crate::domains::devices;
use crate::domains::{Domain, Operation};

/// virDomainMetadataType
fn metadata_kind(kind: i32, uri: Option<&str>) -> Outcome<Metadata<'_>> {
    let refused = |what: &str| {
        Error::new(Condition::InvalidArgument, what.to_owned()).from_origin(Origin::Domain)
    };
    Ok(match kind {
        0 => Metadata::Description,
        1 => Metadata::Title,
        2 => Metadata::Element(
            uri.filter(|uri| !uri.is_empty())
                .ok_or_else(|| refused("metadata elements are found by a namespace's URI"))?,
        ),
        _ => return Err(refused("unknown type of metadata").into()),
    })
}

pub(super) async fn get_metadata<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetMetadataArgs,
) -> Outcome<DomainGetMetadataRet> {
    flags::only::<H>(args.flags, flags::LIVE | flags::CONFIG, "DomainGetMetadata")?;
    let domain = cx.domain(&args.dom)?;
    let domains = &cx.daemon.domains;
    let affect = flags::either(domains, &domain, args.flags)?;
    let definition =
        if affect.live { domains.current(&domain)? } else { domains.persistent(&domain)? };
    let wanted = metadata_kind(args.kind, args.uri.as_deref())?;
    Ok(DomainGetMetadataRet { metadata: definition::metadata(&definition, wanted)? })
}

pub(super) async fn set_metadata<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSetMetadataArgs,
) -> Outcome<()> {
    flags::only::<H>(args.flags, flags::LIVE | flags::CONFIG, "DomainSetMetadata")?;
    let domain = cx.domain(&args.dom)?;
    let which = metadata_kind(args.kind, args.uri.as_deref())?;
    let key = args.key.as_deref().unwrap_or_default();
    let text = args.metadata.as_deref();
    if which == Metadata::Title && text.is_some_and(|text| text.contains('\n')) {
        let message = "a domain's title cannot contain newlines";
        return Err(Error::new(Condition::InvalidArgument, message).into());
    }
    change(&cx, &domain, args.flags, "a change of metadata", |definition| {
        definition::set_metadata(definition, which, text, key)
    })
    .await?;
    let event = Event::MetadataChange { kind: args.kind, uri: args.uri.clone() };
    let domains = &cx.daemon.domains;
    domains.table.emit(domain.uuid, &domain.name(), domains.id(&domain), event);
    Ok(())
}

/// Applies a change to the live definition, the persistent one, or both: to both or to neither.
async fn change<H: Inspect>(
    cx: &Context<'_, H>,
    domain: &Domain,
    bits: u32,
    what: &'static str,
    change: impl Fn(&mut Element) -> virtsnap_engine::error::Result<()>,
) -> Outcome<()> {
    let domains = &cx.daemon.domains;
    let _job = domains.settled_job(domain, Operation::Change(what)).await?;
    let affect = flags::affect(domains, domain, bits)?;
    let live = match domains.active(domain).filter(|_| affect.live) {
        Some(active) => {
            let mut live = active.live;
            change(&mut live)?;
            Some(live)
        }
        None => None,
    };
    if affect.config {
        domains.store_config(domain, &change)?;
    }
    if let Some(live) = live {
        domains.hypervisor.set_live(domain.uuid, live)?;
    }
    Ok(())
}

const MAXIMUM: u32 = 4;

pub(super) async fn set_memory<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSetMemoryArgs,
) -> Outcome<()> {
    memory(&cx, &args.dom, args.memory, flags::LIVE).await
}

pub(super) async fn set_max_memory<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSetMaxMemoryArgs,
) -> Outcome<()> {
    memory(&cx, &args.dom, args.memory, MAXIMUM).await
}

pub(super) async fn set_memory_flags<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSetMemoryFlagsArgs,
) -> Outcome<()> {
    flags::only::<H>(args.flags, flags::LIVE | flags::CONFIG | MAXIMUM, "DomainSetMemoryFlags")?;
    memory(&cx, &args.dom, args.memory, args.flags).await
}

async fn memory<H: Inspect>(
    cx: &Context<'_, H>,
    dom: &DomainRef,
    kib: u64,
    bits: u32,
) -> Outcome<()> {
    let domain = cx.domain(dom)?;
    let domains = &cx.daemon.domains;
    let maximum = bits & MAXIMUM != 0;
    if kib == 0 {
        let message = "a domain cannot have no memory at all";
        return Err(Error::new(Condition::InvalidArgument, message).into());
    }
    let _job = domains.settled_job(&domain, Operation::Change("a change of memory")).await?;
    let affect = flags::affect(domains, &domain, bits)?;
    if affect.live && maximum {
        let message = "cannot resize the maximum memory on an active domain";
        return Err(Error::new(Condition::OperationInvalid, message).into());
    }
    if affect.live {
        let most = definition::size(&domains.current(&domain)?).max_memory;
        if kib > most {
            let message = format!("cannot set memory higher than max memory ({most} KiB)");
            return Err(Error::new(Condition::InvalidArgument, message).into());
        }
        domains.hypervisor.set_balloon(domain.uuid, kib).await?;
    }
    if affect.config {
        domains.store_config(&domain, |config| definition::set_memory(config, kib, maximum))?;
    }
    Ok(())
}

pub(super) async fn set_vcpus<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSetVcpusArgs,
) -> Outcome<()> {
    vcpus(&cx, &args.dom, args.nvcpus, flags::LIVE).await
}

pub(super) async fn set_vcpus_flags<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSetVcpusFlagsArgs,
) -> Outcome<()> {
    flags::only::<H>(args.flags, flags::LIVE | flags::CONFIG | MAXIMUM, "DomainSetVcpusFlags")?;
    vcpus(&cx, &args.dom, args.nvcpus, args.flags).await
}

async fn vcpus<H: Inspect>(
    cx: &Context<'_, H>,
    dom: &DomainRef,
    count: u32,
    bits: u32,
) -> Outcome<()> {
    const MOST: u32 = 4096;
    let domain = cx.domain(dom)?;
    let domains = &cx.daemon.domains;
    if count == 0 || count > MOST {
        let message = format!("a domain has between 1 and {MOST} vCPUs, not {count}");
        return Err(Error::new(Condition::InvalidArgument, message).into());
    }
    let _job = domains.settled_job(&domain, Operation::Change("a change of vCPUs")).await?;
    let affect = flags::affect(domains, &domain, bits)?;
    if affect.live {
        let message = "vCPUs of a running domain cannot be changed; use the persistent definition";
        return Err(Error::new(Condition::OperationUnsupported, message).into());
    }
    let maximum = bits & MAXIMUM != 0;
    Ok(domains.store_config(&domain, |config| definition::set_vcpus(config, count, maximum))?)
}

/// What is done with a device.
#[derive(Debug, Clone, Copy)]
enum Act {
    Attach,
    Detach,
    /// `force`: a medium is changed though the guest has locked the tray.
    Update {
        force: bool,
    },
}

pub(super) async fn attach<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainAttachDeviceArgs,
) -> Outcome<()> {
    device(&cx, &args.dom, &args.xml, flags::LIVE, Act::Attach).await
}

pub(super) async fn attach_flags<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainAttachDeviceFlagsArgs,
) -> Outcome<()> {
    flags::only::<H>(args.flags, flags::LIVE | flags::CONFIG, "DomainAttachDeviceFlags")?;
    device(&cx, &args.dom, &args.xml, args.flags, Act::Attach).await
}

pub(super) async fn detach<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainDetachDeviceArgs,
) -> Outcome<()> {
    device(&cx, &args.dom, &args.xml, flags::LIVE, Act::Detach).await
}

pub(super) async fn detach_flags<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainDetachDeviceFlagsArgs,
) -> Outcome<()> {
    flags::only::<H>(args.flags, flags::LIVE | flags::CONFIG, "DomainDetachDeviceFlags")?;
    device(&cx, &args.dom, &args.xml, args.flags, Act::Detach).await
}

pub(super) async fn update_flags<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainUpdateDeviceFlagsArgs,
) -> Outcome<()> {
    const FORCE: u32 = 4;
    flags::only::<H>(args.flags, flags::LIVE | flags::CONFIG | FORCE, "DomainUpdateDeviceFlags")?;
    let act = Act::Update { force: args.flags & FORCE != 0 };
    device(&cx, &args.dom, &args.xml, args.flags, act).await
}

async fn device<H: Inspect>(
    cx: &Context<'_, H>,
    dom: &DomainRef,
    xml: &str,
    bits: u32,
    act: Act,
) -> Outcome<()> {
    let domain = cx.domain(dom)?;
    let domains = &cx.daemon.domains;
    let device = devices::parse(xml)?;
    let _job = domains.settled_job(&domain, Operation::Change("a change of devices")).await?;
    let affect = flags::affect(domains, &domain, bits)?;
    let change = |config: &mut Element| match act {
        Act::Attach => devices::attach(config, &device),
        Act::Detach => devices::detach(config, &device),
        Act::Update { .. } => devices::update(config, &device),
    };
    if affect.config {
        // What the persistent definition refuses must not be done to the running guest.
        change(&mut domains.persistent(&domain)?)?;
    }
    if affect.live {
        let live = domains.running(&domain)?.live;
        let (hypervisor, is_drive) = (&domains.hypervisor, is_removable(&live, &device));
        match act {
            Act::Update { force } if is_drive => {
                hypervisor.change_medium(domain.uuid, &device, force).await?;
            }
            // As libvirt: attaching to a drive that is there is putting a medium into it.
            Act::Attach if is_drive => {
                hypervisor.change_medium(domain.uuid, &device, false).await?;
            }
            Act::Update { .. } => return Err(not_while_running()),
            Act::Attach => {
                devices::check_new(&live, &device)?;
                hypervisor.attach_device(domain.uuid, &device).await?;
            }
            Act::Detach => {
                hypervisor.detach_device(domain.uuid, &devices::alias(&live, &device)?).await?;
            }
        }
    }
    if affect.config {
        domains.store_config(&domain, change)?;
    }
    Ok(())
}

fn not_while_running() -> super::Failure {
    let message = "of a device of a running domain only the medium can be changed; use the persistent definition";
    Error::new(Condition::OperationUnsupported, message).into()
}

/// Is it a drive of the domain whose medium can be changed?
fn is_removable(live: &Element, device: &Element) -> bool {
    let target = device.child("target").and_then(|target| target.attr("dev")).unwrap_or_default();
    device.name() == "disk"
        && domain::disk(live, target)
            .is_some_and(|disk| matches!(disk.device(), "cdrom" | "floppy"))
}
