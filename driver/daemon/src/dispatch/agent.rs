//! Calls that the guest's agent answers. Its protocol is the same under every hypervisor.

use serde_json::{Value, json};
use virtsnap_engine::error::{Condition, Error};
use virtsnap_engine::inspect::Inspect;
use virtsnap_rpc::remote::*;

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
    flags::only(args.flags, 0, "qemuDomainFSFreeze")?;
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
    flags::only(args.flags, 0, "qemuDomainFSThaw")?;
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
    flags::only(args.flags, 0, "qemuDomainGetTime")?;
    let domain = cx.domain(&args.dom)?;
    let answer = ask(&cx, &domain, "guest-get-time", None).await?;
    let time = answer.as_i64().ok_or_else(|| {
        Error::new(Condition::AgentUnresponsive, "the guest's agent answers with no time")
    })?;
    let nseconds = u32::try_from(time.rem_euclid(BILLION)).unwrap_or(0);
    Ok(DomainGetTimeRet { seconds: time.div_euclid(BILLION), nseconds })
}

pub(super) async fn hostname<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainGetHostnameArgs,
) -> Outcome<DomainGetHostnameRet> {
    const LEASE: u32 = 1;
    const AGENT: u32 = 2;
    flags::only(args.flags, LEASE | AGENT, "qemuDomainGetHostname")?;
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
