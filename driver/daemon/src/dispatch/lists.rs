//! Which domains there are, and finding one.

use virtsnap_engine::inspect::Inspect;
use virtsnap_rpc::remote::*;

use super::{Context, Outcome, flags, numbers};
use crate::domains::Domain;
use crate::service::{ERR_RPC, FROM_RPC, RpcError};

const ACTIVE: u32 = 1;
const INACTIVE: u32 = 2;
/// Bit pairs and groups of VIR_CONNECT_LIST_DOMAINS_*.
const KNOWN: u32 = 0xffff;

/// Each domain matches exactly one bit of a group; a group with no bit set does not filter.
fn matches<H: Inspect>(cx: &Context<'_, H>, domain: &Domain, flags: u32) -> bool {
    let domains = &cx.daemon.domains;
    let active = domains.active(domain).is_some();
    let state = match numbers::state(domains.state(domain)).0 {
        numbers::RUNNING => 16,
        numbers::PAUSED => 32,
        numbers::SHUT_OFF => 64,
        _ => 128,
    };
    let (saved, snapshots) = {
        let book = domain.book();
        (book.has_managed_save, !book.listed().is_empty())
    };
    let either = |yes: bool, bit: u32| if yes { bit } else { bit << 1 };
    let persistence = either(domain.is_persistent(), 4);
    // There are no checkpoints here.
    let is = either(active, ACTIVE)
        | persistence
        | state
        | either(saved, 256)
        | either(domain.autostart(), 1024)
        | either(snapshots, 4096)
        | either(false, 16384);
    const GROUPS: [u32; 7] = [0x3, 0xc, 0xf0, 0x300, 0xc00, 0x3000, 0xc000];
    GROUPS.iter().all(|group| flags & group == 0 || flags & group & is != 0)
}

fn listed<H: Inspect>(cx: &Context<'_, H>, flags: u32) -> Vec<DomainRef> {
    let all = cx.daemon.domains.table.all();
    all.iter()
        .filter(|domain| matches(cx, domain, flags))
        .map(|domain| cx.reference(domain))
        .collect()
}

/// The filter of CONNECT_LIST_ALL_DOMAINS, also used by statistics.
pub(super) fn matching<H: Inspect>(cx: &Context<'_, H>, flags: u32) -> Vec<DomainRef> {
    listed(cx, flags & KNOWN)
}

pub(super) async fn list_all<H: Inspect>(
    cx: Context<'_, H>,
    args: ConnectListAllDomainsArgs,
) -> Outcome<ConnectListAllDomainsRet> {
    flags::only::<H>(args.flags, KNOWN, "ConnectListAllDomains")?;
    let domains = listed(&cx, args.flags);
    let ret = u32::try_from(domains.len()).unwrap_or(u32::MAX);
    let domains = if args.need_results == 0 { Vec::new() } else { domains };
    Ok(ConnectListAllDomainsRet { domains: domains.into(), ret })
}

fn count(domains: &[DomainRef]) -> i32 {
    i32::try_from(domains.len()).unwrap_or(i32::MAX)
}

/// A count a client sent, as a number of elements to give at most.
pub(super) fn at_most(wanted: i32) -> usize {
    usize::try_from(wanted).unwrap_or(0)
}

/// The same of a list of names or numbers. Libraries refuse what is no count before they send it.
pub(super) fn room_for(what: &str, wanted: i32) -> Outcome<usize> {
    const LIST_MAX: usize = 16384;
    let refused = |message| Err(RpcError::new(ERR_RPC, FROM_RPC, message).into());
    match usize::try_from(wanted) {
        Ok(count) if count <= LIST_MAX => Ok(count),
        Ok(count) => refused(format!("{what} > {LIST_MAX}: {count}")),
        Err(_) => refused(format!("{what} must be non-negative: {wanted}")),
    }
}

pub(super) async fn num_active<H: Inspect>(
    cx: Context<'_, H>,
    _: ConnectNumOfDomainsArgs,
) -> Outcome<ConnectNumOfDomainsRet> {
    Ok(ConnectNumOfDomainsRet { num: count(&listed(&cx, ACTIVE)) })
}

pub(super) async fn num_defined<H: Inspect>(
    cx: Context<'_, H>,
    _: ConnectNumOfDefinedDomainsArgs,
) -> Outcome<ConnectNumOfDefinedDomainsRet> {
    Ok(ConnectNumOfDefinedDomainsRet { num: count(&listed(&cx, INACTIVE)) })
}

pub(super) async fn list_ids<H: Inspect>(
    cx: Context<'_, H>,
    args: ConnectListDomainsArgs,
) -> Outcome<ConnectListDomainsRet> {
    let most = room_for("maxids", args.max_ids)?;
    let active = listed(&cx, ACTIVE).into_iter().map(|dom| dom.id);
    Ok(ConnectListDomainsRet { ids: active.take(most).collect() })
}

pub(super) async fn list_defined<H: Inspect>(
    cx: Context<'_, H>,
    args: ConnectListDefinedDomainsArgs,
) -> Outcome<ConnectListDefinedDomainsRet> {
    let most = room_for("maxnames", args.max_names)?;
    let names = listed(&cx, INACTIVE).into_iter().map(|dom| dom.name);
    Ok(ConnectListDefinedDomainsRet { names: names.take(most).collect() })
}

pub(super) async fn by_name<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainLookupByNameArgs,
) -> Outcome<DomainLookupByNameRet> {
    let domain = cx.daemon.domains.named(&args.name)?;
    Ok(DomainLookupByNameRet { dom: cx.reference(&domain) })
}

pub(super) async fn by_uuid<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainLookupByUuidArgs,
) -> Outcome<DomainLookupByUuidRet> {
    let domain = cx.daemon.domains.find(args.uuid)?;
    Ok(DomainLookupByUuidRet { dom: cx.reference(&domain) })
}

pub(super) async fn by_id<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainLookupByIdArgs,
) -> Outcome<DomainLookupByIdRet> {
    let domain = cx.daemon.domains.with_id(args.id)?;
    Ok(DomainLookupByIdRet { dom: cx.reference(&domain) })
}
