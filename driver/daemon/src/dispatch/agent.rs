//! Calls that the guest's agent answers. Its protocol is the same under every hypervisor.

use serde_json::{Value, json};
use virtsnap_engine::error::{Condition, Error};
use virtsnap_engine::inspect::Inspect;
use virtsnap_rpc::remote::*;
use virtsnap_xml::element::Element;

use super::{Context, Outcome, flags};
use crate::domains::{Domain, Operation};

/// Runs one command and gives what it returned.
async fn ask<H: Inspect>(
    cx: &Context<'_, H>,
    domain: &Domain,
    command: &str,
    arguments: Option<Value>,
) -> Outcome<Value> {
    cx.daemon.domains.running(domain)?;
    let mut request = json!({ "execute": command });
    if let (Some(request), Some(arguments)) = (request.as_object_mut(), arguments) {
        request.insert("arguments".to_owned(), arguments);
    }
    let hypervisor = &cx.daemon.domains.hypervisor;
    let answer = hypervisor.agent_command(domain.uuid, &request.to_string(), None).await?;
    let refused = |why: &str| {
        Error::new(Condition::AgentUnresponsive, format!("the guest's agent answers {why}"))
    };
    let answer: Value = serde_json::from_str(&answer)
        .map_err(|err| refused("with something that is not JSON").caused_by(err))?;
    if let Some(error) = answer.get("error") {
        let why = error.get("desc").and_then(Value::as_str).unwrap_or("without saying why");
        let message = format!("the guest's agent cannot do '{command}': {why}");
        return Err(Error::new(Condition::Internal, message).into());
    }
    Ok(answer.get("return").cloned().ok_or_else(|| refused("without a result"))?)
}

fn count(answer: &Value) -> i32 {
    answer.as_i64().and_then(|count| i32::try_from(count).ok()).unwrap_or(0)
}

pub(super) async fn freeze<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainFsfreezeArgs,
) -> Outcome<DomainFsfreezeRet> {
    flags::only::<H>(args.flags, 0, "DomainFSFreeze")?;
    let domain = cx.domain(&args.dom)?;
    let _job = cx.daemon.domains.job(&domain, Operation::Change("a freeze")).await?;
    let frozen = if args.mountpoints.is_empty() {
        ask(&cx, &domain, "guest-fsfreeze-freeze", None).await?
    } else {
        let arguments = json!({ "mountpoints": args.mountpoints.0 });
        ask(&cx, &domain, "guest-fsfreeze-freeze-list", Some(arguments)).await?
    };
    Ok(DomainFsfreezeRet { filesystems: count(&frozen) })
}

/// The agent thaws all that is frozen, whichever a client names; so libvirt's driver does, too.
pub(super) async fn thaw<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainFsthawArgs,
) -> Outcome<DomainFsthawRet> {
    flags::only::<H>(args.flags, 0, "DomainFSThaw")?;
    let domain = cx.domain(&args.dom)?;
    let _job = cx.daemon.domains.job(&domain, Operation::Change("a thaw")).await?;
    let thawed = ask(&cx, &domain, "guest-fsfreeze-thaw", None).await?;
    Ok(DomainFsthawRet { filesystems: count(&thawed) })
}

pub(super) async fn get_time<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetTimeArgs,
) -> Outcome<DomainGetTimeRet> {
    const BILLION: i64 = 1_000_000_000;
    flags::only::<H>(args.flags, 0, "DomainGetTime")?;
    let domain = cx.domain(&args.dom)?;
    let answer = ask(&cx, &domain, "guest-get-time", None).await?;
    let time = answer.as_i64().ok_or_else(|| {
        Error::new(Condition::AgentUnresponsive, "the guest's agent answers with no time")
    })?;
    let nseconds = u32::try_from(time.rem_euclid(BILLION)).unwrap_or(0);
    Ok(DomainGetTimeRet { seconds: time.div_euclid(BILLION), nseconds })
}

pub(super) async fn set_time<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSetTimeArgs,
) -> Outcome<()> {
    /// To the time of the guest's own hardware clock.
    const SYNC: u32 = 1;
    flags::only::<H>(args.flags, SYNC, "DomainSetTime")?;
    let domain = cx.domain(&args.dom)?;
    let _job = cx.daemon.domains.job(&domain, Operation::Change("a change of its clock")).await?;
    let nanoseconds = i128::from(args.seconds) * 1_000_000_000 + i128::from(args.nseconds);
    let time = i64::try_from(nanoseconds).map_err(|_| {
        let message = format!("a guest's clock cannot be set to {} seconds", args.seconds);
        Error::new(Condition::InvalidArgument, message)
    })?;
    let arguments = (args.flags & SYNC == 0).then(|| json!({ "time": time }));
    ask(&cx, &domain, "guest-set-time", arguments).await?;
    Ok(())
}

pub(super) async fn trim<H: Inspect>(cx: Context<'_, H>, args: DomainFstrimArgs) -> Outcome<()> {
    flags::only::<H>(args.flags, 0, "DomainFSTrim")?;
    if args.mountpoint.is_some() {
        let message = "the agent trims all file systems, not one";
        return Err(Error::new(Condition::ArgumentUnsupported, message).into());
    }
    let domain = cx.domain(&args.dom)?;
    let _job = cx.daemon.domains.job(&domain, Operation::Change("a trim")).await?;
    ask(&cx, &domain, "guest-fstrim", Some(json!({ "minimum": args.minimum }))).await?;
    Ok(())
}

pub(super) async fn filesystems<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetFsinfoArgs,
) -> Outcome<DomainGetFsinfoRet> {
    /// What the protocol can carry.
    const MOST: usize = 256;
    flags::only::<H>(args.flags, 0, "DomainGetFSInfo")?;
    let domain = cx.domain(&args.dom)?;
    let answer = ask(&cx, &domain, "guest-get-fsinfo", None).await?;
    let live = cx.daemon.domains.running(&domain)?.live;
    let text = |of: &Value, name: &str| {
        of.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let found = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let info: Vec<_> = found
        .iter()
        .take(MOST)
        .map(|filesystem| DomainFsinfo {
            mountpoint: text(filesystem, "mountpoint"),
            name: text(filesystem, "name"),
            fstype: text(filesystem, "type"),
            dev_aliases: filesystem
                .get("disk")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|disk| target(&live, disk))
                .take(MOST)
                .collect::<Vec<_>>()
                .into(),
        })
        .collect();
    let ret = u32::try_from(info.len()).unwrap_or(u32::MAX);
    Ok(DomainGetFsinfoRet { info: info.into(), ret })
}

/// The disk of ours that the agent means, found by where it is plugged in.
fn target(live: &Element, disk: &Value) -> Option<String> {
    let number = |of: &Value, name: &str| of.get(name).and_then(Value::as_u64);
    let pci = disk.get("pci-controller")?;
    let pci = ["domain", "bus", "slot", "function"].map(|name| number(pci, name));
    let drive = ["bus", "target", "unit"].map(|name| number(disk, name));
    let devices = live.child("devices")?;
    let is_at = |device: &Element| {
        let address = device.child("address").filter(|a| a.attr("type") == Some("pci"));
        address
            .is_some_and(|address| pci == numbers(address, ["domain", "bus", "slot", "function"]))
    };
    let on_drive = |disk: &Element| {
        let Some(address) = disk.child("address") else { return false };
        let controller = devices.children("controller").find(|controller| {
            controller.attr("index") == address.attr("controller")
                && matches!(controller.attr("type"), Some("scsi" | "sata" | "ide"))
        });
        address.attr("type") == Some("drive")
            && numbers(address, ["bus", "target", "unit"]) == drive
            && controller.is_some_and(is_at)
    };
    let found = devices.children("disk").find(|disk| is_at(disk) || on_drive(disk))?;
    found.child("target")?.attr("dev").map(str::to_owned)
}

/// Attributes as numbers, decimal or with 0x.
fn numbers<const N: usize>(element: &Element, names: [&str; N]) -> [Option<u64>; N] {
    names.map(|name| {
        let text = element.attr(name)?;
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        }
    })
}

pub(super) async fn hostname<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetHostnameArgs,
) -> Outcome<DomainGetHostnameRet> {
    const LEASE: u32 = 1;
    const AGENT: u32 = 2;
    flags::only::<H>(args.flags, LEASE | AGENT, "DomainGetHostname")?;
    if args.flags == LEASE {
        return Err(super::unsupported("finding a guest's name by its DHCP lease"));
    }
    let domain = cx.domain(&args.dom)?;
    let answer = ask(&cx, &domain, "guest-get-host-name", None).await?;
    let name = answer.get("host-name").and_then(Value::as_str).ok_or_else(|| {
        Error::new(Condition::AgentUnresponsive, "the guest's agent answers with no name")
    })?;
    Ok(DomainGetHostnameRet { hostname: name.to_owned() })
}
