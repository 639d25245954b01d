//! Definitions and the life cycle, as calls.

use virtsnap_engine::error::{Condition, Error};
use virtsnap_engine::inspect::Inspect;
use virtsnap_rpc::remote::*;

use super::{Context, Outcome, flags};
use crate::domains::{Nvram, Tpm, Undefine, View, definition};

pub(super) async fn define<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainDefineXmlArgs,
) -> Outcome<DomainDefineXmlRet> {
    let domain = cx.daemon.domains.define(&args.xml).await?;
    Ok(DomainDefineXmlRet { dom: cx.reference(&domain) })
}

/// The definition is checked whole either way: an element that is not understood is refused.
pub(super) async fn define_flags<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainDefineXmlFlagsArgs,
) -> Outcome<DomainDefineXmlFlagsRet> {
    const VALIDATE: u32 = 1;
    flags::only::<H>(args.flags, VALIDATE, "DomainDefineXMLFlags")?;
    let domain = cx.daemon.domains.define(&args.xml).await?;
    Ok(DomainDefineXmlFlagsRet { dom: cx.reference(&domain) })
}

pub(super) async fn undefine<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainUndefineArgs,
) -> Outcome<()> {
    let domain = cx.domain(&args.dom)?;
    Ok(cx.daemon.domains.undefine(&domain, Undefine::default()).await?)
}

pub(super) async fn undefine_flags<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainUndefineFlagsArgs,
) -> Outcome<()> {
    const MANAGED_SAVE: u32 = 1;
    const SNAPSHOTS_METADATA: u32 = 2;
    const NVRAM: u32 = 4;
    const KEEP_NVRAM: u32 = 8;
    const CHECKPOINTS_METADATA: u32 = 16;
    const TPM: u32 = 32;
    const KEEP_TPM: u32 = 64;
    let known = MANAGED_SAVE
        | SNAPSHOTS_METADATA
        | NVRAM
        | KEEP_NVRAM
        | CHECKPOINTS_METADATA
        | TPM
        | KEEP_TPM;
    flags::only::<H>(args.flags, known, "DomainUndefineFlags")?;
    let of = |bit, name| (bit, name);
    flags::exclusive(
        args.flags,
        of(NVRAM, "VIR_DOMAIN_UNDEFINE_NVRAM"),
        of(KEEP_NVRAM, "VIR_DOMAIN_UNDEFINE_KEEP_NVRAM"),
        20,
    )?;
    flags::exclusive(
        args.flags,
        of(TPM, "VIR_DOMAIN_UNDEFINE_TPM"),
        of(KEEP_TPM, "VIR_DOMAIN_UNDEFINE_KEEP_TPM"),
        20,
    )?;
    let nvram = match args.flags & (NVRAM | KEEP_NVRAM) {
        NVRAM => Nvram::Remove,
        KEEP_NVRAM => Nvram::Keep,
        _ => Nvram::Unsaid,
    };
    let options = Undefine {
        snapshots_metadata: args.flags & SNAPSHOTS_METADATA != 0,
        managed_save: args.flags & MANAGED_SAVE != 0,
        nvram,
        tpm: match args.flags & (TPM | KEEP_TPM) {
            TPM => Tpm::Remove,
            KEEP_TPM => Tpm::Keep,
            _ => Tpm::AsDefined,
        },
    };
    let domain = cx.domain(&args.dom)?;
    Ok(cx.daemon.domains.undefine(&domain, options).await?)
}

pub(super) async fn xml_desc<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetXmlDescArgs,
) -> Outcome<DomainGetXmlDescRet> {
    const SECURE: u32 = 1;
    const INACTIVE: u32 = 2;
    const UPDATE_CPU: u32 = 4;
    const MIGRATABLE: u32 = 8;
    let known = SECURE | INACTIVE | UPDATE_CPU | MIGRATABLE;
    let images = flags::ours::XML_IMAGES.0;
    flags::only::<H>(args.flags, known | images, "DomainGetXMLDesc")?;
    let view = View {
        secure: args.flags & (SECURE | MIGRATABLE) != 0,
        inactive: args.flags & INACTIVE != 0,
    };
    let domain = cx.domain(&args.dom)?;
    let domains = &cx.daemon.domains;
    let mut shown = if args.flags & MIGRATABLE != 0 && !view.inactive {
        // What is the same on whatever host: the guest that runs, without what its start added.
        let view = View { inactive: true, ..view };
        definition::view(&domains.current(&domain)?, None, view)
    } else {
        domains.xml(&domain, view)?
    };
    if args.flags & images != 0 {
        super::images::add(&cx, &domain, &mut shown).await?;
    }
    Ok(DomainGetXmlDescRet { xml: shown.to_string() })
}

/// VIR_DOMAIN_START_*, for a domain that has a definition.
#[derive(Debug, Clone, Copy)]
struct Starting {
    paused: bool,
    autodestroy: bool,
    force_boot: bool,
}

fn starting<H: Inspect>(bits: u32, function: &str) -> Outcome<Starting> {
    const PAUSED: u32 = 1;
    const AUTODESTROY: u32 = 2;
    const BYPASS_CACHE: u32 = 4;
    const FORCE_BOOT: u32 = 8;
    const VALIDATE: u32 = 16;
    const RESET_NVRAM: u32 = 32;
    let known = PAUSED | AUTODESTROY | BYPASS_CACHE | FORCE_BOOT | VALIDATE;
    flags::only::<H>(bits, known | RESET_NVRAM, function)?;
    if bits & RESET_NVRAM != 0 {
        return Err(Error::new(
            Condition::ArgumentUnsupported,
            "resetting the NVRAM at start is not supported: remove the NVRAM file instead",
        )
        .into());
    }
    // The host's page cache is used either way.
    Ok(Starting {
        paused: bits & PAUSED != 0,
        autodestroy: bits & AUTODESTROY != 0,
        force_boot: bits & FORCE_BOOT != 0,
    })
}

pub(super) async fn create<H: Inspect>(cx: Context<'_, H>, args: DomainCreateArgs) -> Outcome<()> {
    let domain = cx.domain(&args.dom)?;
    cx.daemon.domains.start(&domain, false).await?;
    Ok(())
}

pub(super) async fn create_with_flags<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainCreateWithFlagsArgs,
) -> Outcome<DomainCreateWithFlagsRet> {
    let how = starting::<H>(args.flags, "DomainCreateWithFlags")?;
    let domain = cx.domain(&args.dom)?;
    let domains = &cx.daemon.domains;
    let guest = domains.start_or_restore(&domain, how.paused, how.force_boot).await?;
    if how.autodestroy {
        cx.daemon.destroy_with(cx.session, &guest).await;
    }
    Ok(DomainCreateWithFlagsRet { dom: cx.reference(&domain) })
}

pub(super) async fn create_xml<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainCreateXmlArgs,
) -> Outcome<DomainCreateXmlRet> {
    let how = starting::<H>(args.flags, "DomainCreateXML")?;
    let (domain, guest) = cx.daemon.domains.create(&args.xml_desc, how.paused).await?;
    if how.autodestroy {
        cx.daemon.destroy_with(cx.session, &guest).await;
    }
    Ok(DomainCreateXmlRet { dom: cx.reference(&domain) })
}

pub(super) async fn destroy<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainDestroyArgs,
) -> Outcome<()> {
    let domain = cx.domain(&args.dom)?;
    Ok(cx.daemon.domains.destroy(&domain).await?)
}

/// GRACEFUL asks not to kill a process that does not end by itself; ending it by its monitor is
/// graceful. There are no logs that REMOVE_LOGS could mean but the domain's own, which stays.
pub(super) async fn destroy_flags<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainDestroyFlagsArgs,
) -> Outcome<()> {
    const GRACEFUL: u32 = 1;
    flags::only::<H>(args.flags, GRACEFUL, "DomainDestroyFlags")?;
    let domain = cx.domain(&args.dom)?;
    Ok(cx.daemon.domains.destroy(&domain).await?)
}

pub(super) async fn suspend<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSuspendArgs,
) -> Outcome<()> {
    let domain = cx.domain(&args.dom)?;
    Ok(cx.daemon.domains.suspend(&domain).await?)
}

pub(super) async fn resume<H: Inspect>(cx: Context<'_, H>, args: DomainResumeArgs) -> Outcome<()> {
    let domain = cx.domain(&args.dom)?;
    Ok(cx.daemon.domains.resume(&domain).await?)
}

pub(super) async fn shutdown<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainShutdownArgs,
) -> Outcome<()> {
    let domain = cx.domain(&args.dom)?;
    Ok(cx.daemon.domains.shutdown(&domain).await?)
}

/// By which way a guest is asked; ACPI is the one we have.
fn by_acpi<H: Inspect>(bits: u32, function: &str) -> Outcome<()> {
    const ACPI: u32 = 1;
    const AGENT: u32 = 2;
    flags::only::<H>(bits, ACPI | AGENT, function)?;
    if bits == AGENT {
        return Err(Error::new(
            Condition::ArgumentUnsupported,
            "asking the guest's agent is not supported: use the ACPI mode",
        )
        .into());
    }
    Ok(())
}

pub(super) async fn shutdown_flags<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainShutdownFlagsArgs,
) -> Outcome<()> {
    by_acpi::<H>(args.flags, "DomainShutdownFlags")?;
    let domain = cx.domain(&args.dom)?;
    Ok(cx.daemon.domains.shutdown(&domain).await?)
}

pub(super) async fn reboot<H: Inspect>(cx: Context<'_, H>, args: DomainRebootArgs) -> Outcome<()> {
    by_acpi::<H>(args.flags, "DomainReboot")?;
    let domain = cx.domain(&args.dom)?;
    Ok(cx.daemon.domains.reboot(&domain).await?)
}

pub(super) async fn reset<H: Inspect>(cx: Context<'_, H>, args: DomainResetArgs) -> Outcome<()> {
    flags::only::<H>(args.flags, 0, "DomainReset")?;
    let domain = cx.domain(&args.dom)?;
    Ok(cx.daemon.domains.reset(&domain).await?)
}

pub(super) async fn get_autostart<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetAutostartArgs,
) -> Outcome<DomainGetAutostartRet> {
    let autostart = cx.domain(&args.dom)?.autostart();
    Ok(DomainGetAutostartRet { autostart: autostart.into() })
}

pub(super) async fn set_autostart<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSetAutostartArgs,
) -> Outcome<()> {
    let domain = cx.domain(&args.dom)?;
    Ok(cx.daemon.domains.set_autostart(&domain, args.autostart != 0).await?)
}

/// Nothing is ever started once: there is no call here to ask for it.
pub(super) async fn get_autostart_once<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetAutostartOnceArgs,
) -> Outcome<DomainGetAutostartOnceRet> {
    cx.domain(&args.dom)?;
    Ok(DomainGetAutostartOnceRet { autostart: 0 })
}

pub(super) async fn rename<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainRenameArgs,
) -> Outcome<DomainRenameRet> {
    flags::only::<H>(args.flags, 0, "DomainRename")?;
    let domain = cx.domain(&args.dom)?;
    cx.daemon.domains.rename(&domain, &args.new_name.unwrap_or_default()).await?;
    Ok(DomainRenameRet { retcode: 0 })
}
