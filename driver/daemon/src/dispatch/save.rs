//! Saving and restoring, as calls.

use std::path::{Path, PathBuf};

use virtsnap_engine::error::{Condition, Error};
use virtsnap_engine::inspect::Inspect;
use virtsnap_rpc::remote::*;
use virtsnap_xml::snapshot::Memory;

use super::flags::{self, Flag};
use super::{Context, Outcome, jobs};
use crate::domains::{Domain, Operation, Saving};

const BYPASS_CACHE: u32 = 1;
const RUNNING: Flag = (2, "VIR_DOMAIN_SAVE_RUNNING");
const PAUSED: Flag = (4, "VIR_DOMAIN_SAVE_PAUSED");
const RESET_NVRAM: u32 = 8;
/// VIR_FROM_DOMAIN: the library's own checks.
const API: i32 = 20;

/// Whether the guest is to run when it comes back; none: as it was. The host's page cache is used
/// either way: BYPASS_CACHE asks for no more than to be kind to it.
fn running<H: Inspect>(bits: u32, known: u32, function: &str) -> Outcome<Option<bool>> {
    flags::only::<H>(bits, known | RUNNING.0 | PAUSED.0, function)?;
    flags::exclusive(bits, RUNNING, PAUSED, API)?;
    Ok(match (bits & RUNNING.0 != 0, bits & PAUSED.0 != 0) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    })
}

fn restored_running<H: Inspect>(bits: u32) -> Outcome<Option<bool>> {
    let running = running::<H>(bits, BYPASS_CACHE | RESET_NVRAM, "DomainRestoreInternal")?;
    if bits & RESET_NVRAM != 0 {
        return Err(Error::new(
            Condition::ArgumentUnsupported,
            "resetting the NVRAM of a restored guest is not supported: its memory would not fit it",
        )
        .into());
    }
    Ok(running)
}

/// A save is a job that can be watched.
async fn act<H: Inspect>(cx: &Context<'_, H>, domain: &Domain, saving: Saving) -> Outcome<()> {
    let saved = cx.daemon.domains.save(domain, saving);
    Ok(jobs::watched(cx, domain, Operation::Save, saved, |()| &Memory::No).await?)
}

pub(super) async fn save<H: Inspect>(cx: Context<'_, H>, args: DomainSaveArgs) -> Outcome<()> {
    let domain = cx.domain(&args.dom)?;
    let saving = Saving { file: Some(args.to.into()), ..Saving::default() };
    act(&cx, &domain, saving).await
}

pub(super) async fn save_flags<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSaveFlagsArgs,
) -> Outcome<()> {
    let running = running::<H>(args.flags, BYPASS_CACHE, "DomainSaveFlags")?;
    let domain = cx.domain(&args.dom)?;
    let file = Some(args.to.into());
    let saving = Saving { file, xml: args.dxml, running, format: None };
    act(&cx, &domain, saving).await
}

/// The parameters of virDomainSaveParams and virDomainRestoreParams.
#[derive(Debug, Default)]
struct Params {
    file: Option<PathBuf>,
    xml: Option<String>,
    format: Option<String>,
}

fn params(list: Vec<TypedParam>, knows_format: bool) -> Outcome<Params> {
    let mut params = Params::default();
    let mut channels = None;
    for TypedParam { field, value } in list {
        match (field.as_str(), value) {
            ("file", ParamValue::String(file)) => params.file = Some(file.into()),
            ("dxml", ParamValue::String(xml)) => params.xml = Some(xml),
            ("image_format", ParamValue::String(name)) if knows_format => {
                params.format = Some(name);
            }
            ("parallel.channels", ParamValue::Int(count)) => channels = Some(count),
            (field @ ("file" | "dxml" | "image_format" | "parallel.channels"), _) => {
                let message = format!("the parameter '{field}' is of another type");
                return Err(Error::new(Condition::InvalidArgument, message).into());
            }
            (other, _) => {
                let message = format!("parameter '{other}' not supported");
                return Err(Error::new(Condition::ArgumentUnsupported, message).into());
            }
        }
    }
    if channels.is_some() {
        let message = "several channels need save images of format 'sparse', which this version of \
                       virtsnap reads with one and does not write";
        return Err(Error::new(Condition::ArgumentUnsupported, message).into());
    }
    Ok(params)
}

pub(super) async fn save_params<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSaveParamsArgs,
) -> Outcome<()> {
    let running = running::<H>(args.flags, BYPASS_CACHE, "DomainSaveParams")?;
    let Params { file, xml, format } = params(args.params.0, true)?;
    let domain = cx.domain(&args.dom)?;
    // As libvirt: a managed save has the format of the configuration.
    let format = format.filter(|_| file.is_some());
    act(&cx, &domain, Saving { file, xml, running, format }).await
}

pub(super) async fn restore<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainRestoreArgs,
) -> Outcome<()> {
    cx.daemon.domains.restore(Path::new(&args.from), None, None).await?;
    Ok(())
}

pub(super) async fn restore_flags<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainRestoreFlagsArgs,
) -> Outcome<()> {
    let running = restored_running::<H>(args.flags)?;
    let file = Path::new(&args.from);
    cx.daemon.domains.restore(file, args.dxml.as_deref(), running).await?;
    Ok(())
}

pub(super) async fn restore_params<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainRestoreParamsArgs,
) -> Outcome<()> {
    let running = restored_running::<H>(args.flags)?;
    let Params { file, xml, .. } = params(args.params.0, false)?;
    let Some(file) = file else {
        let message = "missing path to restore from";
        return Err(Error::new(Condition::InvalidArgument, message).into());
    };
    cx.daemon.domains.restore(&file, xml.as_deref(), running).await?;
    Ok(())
}

pub(super) async fn managed_save<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainManagedSaveArgs,
) -> Outcome<()> {
    let running = running::<H>(args.flags, BYPASS_CACHE, "DomainManagedSave")?;
    let domain = cx.domain(&args.dom)?;
    act(&cx, &domain, Saving { running, ..Saving::default() }).await
}

pub(super) async fn managed_save_remove<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainManagedSaveRemoveArgs,
) -> Outcome<()> {
    flags::only::<H>(args.flags, 0, "DomainManagedSaveRemove")?;
    let domain = cx.domain(&args.dom)?;
    Ok(cx.daemon.domains.remove_managed_save(&domain).await?)
}

const SECURE: u32 = 1;

pub(super) async fn image_xml<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSaveImageGetXmlDescArgs,
) -> Outcome<DomainSaveImageGetXmlDescRet> {
    flags::only::<H>(args.flags, SECURE, "DomainSaveImageGetXMLDesc")?;
    let secure = args.flags & SECURE != 0;
    let xml = cx.daemon.domains.save_image_xml(Path::new(&args.file), secure).await?;
    Ok(DomainSaveImageGetXmlDescRet { xml })
}

pub(super) async fn define_image_xml<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSaveImageDefineXmlArgs,
) -> Outcome<()> {
    let running = running::<H>(args.flags, 0, "DomainSaveImageDefineXML")?;
    let file = Path::new(&args.file);
    Ok(cx.daemon.domains.edit_save_image(file, &args.dxml, running).await?)
}

pub(super) async fn managed_xml<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainManagedSaveGetXmlDescArgs,
) -> Outcome<DomainManagedSaveGetXmlDescRet> {
    flags::only::<H>(args.flags, SECURE, "DomainManagedSaveGetXMLDesc")?;
    let domain = cx.domain(&args.dom)?;
    let file = cx.daemon.domains.managed_save_file(&domain)?;
    let xml = cx.daemon.domains.save_image_xml(&file, args.flags & SECURE != 0).await?;
    Ok(DomainManagedSaveGetXmlDescRet { xml })
}

pub(super) async fn define_managed_xml<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainManagedSaveDefineXmlArgs,
) -> Outcome<()> {
    let running = running::<H>(args.flags, 0, "DomainSaveImageDefineXML")?;
    let domain = cx.domain(&args.dom)?;
    let file = cx.daemon.domains.managed_save_file(&domain)?;
    let xml = args.dxml.unwrap_or_default();
    Ok(cx.daemon.domains.edit_save_image(&file, &xml, running).await?)
}
