//! All sixteen snapshot procedures.
//!
//! The rules that libvirt enforces before it asks a driver (which flags exclude each other) are
//! here; everything else is the engine's. HALT has one of its own: a client that gets code 8 for it
//! repeats the call without HALT and then destroys the domain itself, so it never gets code 8.

use virtsnap_engine::domain::{Defined, Event, ShutOffReason};
use virtsnap_engine::error::{Condition, Error, Origin};
use virtsnap_engine::inspect::Inspect;
use virtsnap_engine::options::{
    Afterwards, Consolidate, CreateOptions, DeleteOptions, DeleteScope, ListFilter, ListRoot,
    Meanwhile, Metadata, New, Overlays, RevertOptions, RevertState, Scope,
};
use virtsnap_engine::ports::EventSink;
use virtsnap_rpc::remote::*;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{
    Definition, ErrorKind, Memory, MemoryRequest, Request, SnapshotXmlError, Survivor,
};

use super::flags::ours::*;
use super::flags::{self, Flag};
use super::{Context, Failure, Outcome, jobs};
use crate::domains::{Domain, Operation};

/// The error domain of the checks libvirt makes in its API (VIR_FROM_DOMAIN_SNAPSHOT).
const API: i32 = 35;

const REDEFINE: Flag = (1, "VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE");
const CURRENT: Flag = (2, "VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT");
const NO_METADATA: Flag = (4, "VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA");
const HALT: Flag = (8, "VIR_DOMAIN_SNAPSHOT_CREATE_HALT");
const DISK_ONLY: Flag = (16, "VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY");
const REUSE_EXT: Flag = (32, "VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT");
const QUIESCE: Flag = (64, "VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE");
/// Ours always are.
const ATOMIC: Flag = (128, "VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC");
const LIVE: Flag = (256, "VIR_DOMAIN_SNAPSHOT_CREATE_LIVE");
const VALIDATE: Flag = (512, "VIR_DOMAIN_SNAPSHOT_CREATE_VALIDATE");

/// The flag word of virDomainSnapshotCreateXML as options, with what the administrator said.
fn create_options<H: Inspect>(bits: u32, meanwhile: Meanwhile) -> Outcome<CreateOptions> {
    let known = [
        REDEFINE,
        CURRENT,
        NO_METADATA,
        HALT,
        DISK_ONLY,
        REUSE_EXT,
        QUIESCE,
        ATOMIC,
        LIVE,
        VALIDATE,
        CREATE_NO_CURRENT,
    ];
    let known = known.iter().fold(0, |bits, flag| bits | flag.0);
    flags::only::<H>(bits, known, "SnapshotCreateXML")?;
    flags::requires(bits, CURRENT, REDEFINE, API)?;
    flags::exclusive(bits, REDEFINE, NO_METADATA, API)?;
    flags::exclusive(bits, REDEFINE, HALT, API)?;
    // That is REDEFINE without CURRENT.
    flags::exclusive(bits, REDEFINE, CREATE_NO_CURRENT, API)?;
    flags::requires(bits, QUIESCE, DISK_ONLY, H::ERROR_DOMAIN)?;
    flags::exclusive(bits, LIVE, REDEFINE, H::ERROR_DOMAIN)?;
    let has = |flag: Flag| bits & flag.0 != 0;
    if has(REDEFINE) {
        return Ok(CreateOptions::Redefine { make_current: has(CURRENT) });
    }
    let scope = match has(DISK_ONLY) {
        true => Scope::DiskOnly { quiesce: has(QUIESCE) },
        false => Scope::FullSystem { live: has(LIVE) },
    };
    Ok(CreateOptions::New(New {
        scope,
        metadata: if has(NO_METADATA) { Metadata::Forget } else { Metadata::Keep },
        afterwards: if has(HALT) { Afterwards::Halt } else { Afterwards::Continue },
        overlays: if has(REUSE_EXT) { Overlays::Reuse } else { Overlays::Create },
        becomes_current: !has(CREATE_NO_CURRENT),
        meanwhile,
    }))
}

/// Never code 8 for a call with HALT.
fn without_invalid_argument(failure: Failure) -> Failure {
    const INVALID_ARG: i32 = 8;
    const ARGUMENT_UNSUPPORTED: i32 = 74;
    match failure {
        Failure::Engine(mut err) => {
            if err.condition == Condition::InvalidArgument {
                err.condition = Condition::ArgumentUnsupported;
            }
            Failure::Engine(err)
        }
        Failure::Wire(mut err) => {
            if err.code == INVALID_ARG {
                err.code = ARGUMENT_UNSUPPORTED;
            }
            Failure::Wire(err)
        }
    }
}

fn refused(err: SnapshotXmlError) -> Error {
    let (condition, origin) = match err.kind {
        ErrorKind::Xml => (Condition::XmlError, Origin::Snapshot),
        ErrorKind::WrongRoot | ErrorKind::XmlValue => (Condition::XmlError, Origin::Xml),
        ErrorKind::XmlDetail => (Condition::XmlDetail, Origin::Driver),
        ErrorKind::ConfigUnsupported => (Condition::ConfigUnsupported, Origin::Snapshot),
        ErrorKind::Internal => (Condition::Internal, Origin::Snapshot),
    };
    Error::new(condition, err.message).from_origin(origin)
}

/// A text that is no XML is, to libvirt, a detail.
fn parse(text: &str) -> Result<Element, Error> {
    Element::parse(text).map_err(|err| {
        Error::snapshot(Condition::XmlDetail, "the snapshot description cannot be read")
            .caused_by(err)
    })
}

pub(super) async fn create<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSnapshotCreateXmlArgs,
) -> Outcome<DomainSnapshotCreateXmlRet> {
    let halt = args.flags & HALT.0 != 0;
    match create_or_redefine(&cx, args).await {
        Ok(snap) => Ok(DomainSnapshotCreateXmlRet { snap }),
        Err(failure) if halt => Err(without_invalid_argument(failure)),
        Err(failure) => Err(failure),
    }
}

async fn create_or_redefine<H: Inspect>(
    cx: &Context<'_, H>,
    args: DomainSnapshotCreateXmlArgs,
) -> Outcome<SnapshotRef> {
    let options = create_options::<H>(args.flags, cx.daemon.domains.meanwhile)?;
    let domain = cx.domain(&args.dom)?;
    let domains = &cx.daemon.domains;
    if args.flags & HALT.0 != 0 && !domain.is_persistent() {
        // It would be gone, and its snapshots with it.
        let message = "cannot halt after transient domain snapshot";
        return Err(Error::new(Condition::OperationInvalid, message).into());
    }
    let root = parse(&args.xml_desc)?;
    if args.flags & VALIDATE.0 != 0 {
        super::validate::snapshot(&root).await?;
    }
    let moment = match options {
        CreateOptions::Redefine { make_current } => {
            let asked = Definition::parse(&root).map_err(refused)?;
            let _job = domains.job(&domain, Operation::SnapshotCreate).await?;
            let moment = domains.snapshots.redefine(&domain.book, asked, make_current).await;
            domains.drop_if_gone(&domain);
            moment?
        }
        CreateOptions::New(new) => {
            let request = Request::parse(&root).map_err(refused)?;
            check_live(args.flags, &request)?;
            let _job = domains.job(&domain, Operation::SnapshotCreate).await?;
            let creating = domains.snapshots.create(&domain.book, &request, &new);
            let made = jobs::watched(cx, &domain, Operation::SnapshotCreate, creating, |moment| {
                &moment.memory
            })
            .await;
            domains.drop_if_gone(&domain);
            made?
        }
    };
    Ok(SnapshotRef { name: moment.name, dom: args.dom })
}

/// As libvirt, which looks at the memory of a disk-only snapshot first: it is refused by the engine.
fn check_live(bits: u32, request: &Request) -> Result<(), Error> {
    let has = |flag: Flag| bits & flag.0 != 0;
    let asks_memory =
        matches!(request.memory, Some(MemoryRequest::Internal | MemoryRequest::External { .. }));
    if has(LIVE) && has(DISK_ONLY) && !asks_memory {
        let what = "live snapshot creation is supported only during full system snapshots";
        return Err(Error::new(Condition::OperationUnsupported, what));
    }
    Ok(())
}

/// The flag word of virDomainRevertToSnapshot as options.
fn revert_options<H: Inspect>(bits: u32) -> Outcome<RevertOptions> {
    const RUNNING: Flag = (1, "VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING");
    const PAUSED: Flag = (2, "VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED");
    const FORCE: Flag = (4, "VIR_DOMAIN_SNAPSHOT_REVERT_FORCE");
    const RESET_NVRAM: Flag = (8, "VIR_DOMAIN_SNAPSHOT_REVERT_RESET_NVRAM");
    let ours = REVERT_STOP.0 | REVERT_DISCARD.0 | REVERT_DELETE_CHILDREN.0;
    flags::only::<H>(bits, 0xf | ours, "SnapshotRevert")?;
    flags::exclusive(bits, RUNNING, PAUSED, API)?;
    flags::exclusive(bits, RUNNING, REVERT_STOP, API)?;
    flags::exclusive(bits, PAUSED, REVERT_STOP, API)?;
    let has = |flag: Flag| bits & flag.0 != 0;
    Ok(RevertOptions {
        state: match (has(RUNNING), has(PAUSED), has(REVERT_STOP)) {
            (true, ..) => RevertState::Running,
            (_, true, _) => RevertState::Paused,
            (_, _, true) => RevertState::ShutOff,
            _ => RevertState::AsSnapshot,
        },
        force: has(FORCE),
        reset_nvram: has(RESET_NVRAM),
        discard: has(REVERT_DISCARD),
        delete_children: has(REVERT_DELETE_CHILDREN),
    })
}

pub(super) async fn revert<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainRevertToSnapshotArgs,
) -> Outcome<()> {
    let options = revert_options::<H>(args.flags)?;
    let domain = cx.domain(&args.snap.dom)?;
    let domains = &cx.daemon.domains;
    let _job = domains.job(&domain, Operation::SnapshotRevert).await?;
    let was_active = domains.active(&domain).is_some();
    let reverting = domains.snapshots.revert(&domain.book, &args.snap.name, &options);
    let reverted =
        jobs::watched(&cx, &domain, Operation::SnapshotRevert, reverting, |()| &Memory::No).await;
    if reverted.is_ok() && was_active && domains.active(&domain).is_none() {
        domain.set_off(ShutOffReason::FromSnapshot);
    }
    if reverted.is_ok() && domain.is_persistent() {
        let (name, id) = (domain.name(), domains.id(&domain));
        domains.table.emit(domain.uuid, &name, id, Event::Defined(Defined::FromSnapshot));
    }
    domains.drop_if_gone(&domain);
    Ok(reverted?)
}

/// The flag word of virDomainSnapshotDelete as options.
fn delete_options<H: Inspect>(bits: u32) -> Outcome<DeleteOptions> {
    const CHILDREN: Flag = (1, "VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN");
    const METADATA_ONLY: Flag = (2, "VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY");
    const CHILDREN_ONLY: Flag = (4, "VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN_ONLY");
    let ours = [DELETE_CONSOLIDATE, DELETE_KEEP_BASE, DELETE_KEEP_OVERLAY];
    flags::only::<H>(bits, ours.iter().fold(7, |bits, flag| bits | flag.0), "SnapshotDelete")?;
    flags::exclusive(bits, CHILDREN, CHILDREN_ONLY, API)?;
    for flag in ours {
        flags::exclusive(bits, METADATA_ONLY, flag, API)?;
    }
    flags::exclusive(bits, DELETE_KEEP_BASE, DELETE_KEEP_OVERLAY, API)?;
    let has = |flag: Flag| bits & flag.0 != 0;
    let keep = match (has(DELETE_KEEP_BASE), has(DELETE_KEEP_OVERLAY)) {
        (true, _) => Some(Survivor::Base),
        (_, true) => Some(Survivor::Overlay),
        _ => None,
    };
    Ok(DeleteOptions {
        scope: match (has(CHILDREN), has(CHILDREN_ONLY)) {
            (true, _) => DeleteScope::WithDescendants,
            (_, true) => DeleteScope::DescendantsOnly,
            _ => DeleteScope::Single,
        },
        metadata_only: has(METADATA_ONLY),
        consolidate: Consolidate { required: has(DELETE_CONSOLIDATE), keep },
    })
}

pub(super) async fn delete<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSnapshotDeleteArgs,
) -> Outcome<()> {
    let options = delete_options::<H>(args.flags)?;
    let domain = cx.domain(&args.snap.dom)?;
    let domains = &cx.daemon.domains;
    let listed = || domain.book().moments.get(&args.snap.name).cloned();
    let was_going = listed().is_some_and(|moment| moment.delete_in_progress);
    let _job = domains.job(&domain, Operation::SnapshotDelete).await?;
    if was_going && listed().is_none() {
        // What was asked for is what held the domain: a deletion that was taken up again.
        return Ok(());
    }
    let deleting = domains.snapshots.delete(&domain.book, &args.snap.name, &options);
    let deleted =
        jobs::watched(&cx, &domain, Operation::SnapshotDelete, deleting, |()| &Memory::No).await;
    domains.drop_if_gone(&domain);
    Ok(deleted?)
}

pub(super) async fn xml_desc<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSnapshotGetXmlDescArgs,
) -> Outcome<DomainSnapshotGetXmlDescRet> {
    const SECURE: u32 = 1;
    flags::only::<H>(args.flags, SECURE, "DomainSnapshotGetXMLDesc")?;
    let domain = cx.domain(&args.snap.dom)?;
    let recorded = domain.book().shown(&args.snap.name);
    let definition = match recorded {
        Ok(definition) => definition,
        // One that a list for NO_METADATA gave.
        Err(missing) => {
            let mut unknown = super::images::unknown(&cx, &domain).await?;
            unknown.remove(&args.snap.name).ok_or(missing)?
        }
    };
    let shown = if args.flags & SECURE == 0 { definition.without_secrets() } else { definition };
    Ok(DomainSnapshotGetXmlDescRet { xml: shown.to_element().to_string() })
}

// -- lists ---------------------------------------------------------------------------------------

/// VIR_DOMAIN_SNAPSHOT_LIST_ROOTS and _DESCENDANTS are the same bit.
const ROOTS_OR_DESCENDANTS: u32 = 1;

fn filter<H: Inspect>(bits: u32, function: &str) -> Outcome<ListFilter> {
    const BITS: [(u32, ListFilter); 10] = [
        (2, ListFilter::METADATA),
        (4, ListFilter::LEAVES),
        (8, ListFilter::NO_LEAVES),
        (16, ListFilter::NO_METADATA),
        (32, ListFilter::INACTIVE),
        (64, ListFilter::ACTIVE),
        (128, ListFilter::DISK_ONLY),
        (256, ListFilter::INTERNAL),
        (512, ListFilter::EXTERNAL),
        (1024, ListFilter::TOPOLOGICAL),
    ];
    flags::only::<H>(bits, 0x7ff, function)?;
    let set = BITS.iter().filter(|(bit, _)| bits & bit != 0);
    Ok(set.fold(ListFilter::default(), |all, (_, one)| all | *one))
}

fn names<H: Inspect>(
    domain: &Domain,
    root: ListRoot<'_>,
    bits: u32,
    function: &str,
) -> Outcome<Vec<String>> {
    let filter = filter::<H>(bits, function)?;
    let book = domain.book();
    let moments = book.listed();
    let found = moments.list(root, filter)?;
    Ok(found.into_iter().map(|definition| definition.name.clone()).collect())
}

async fn of_domain<H: Inspect>(
    cx: &Context<'_, H>,
    domain: &Domain,
    bits: u32,
    function: &str,
) -> Outcome<Vec<String>> {
    let root = if bits & ROOTS_OR_DESCENDANTS != 0 { ListRoot::Roots } else { ListRoot::All };
    let mut names = names::<H>(domain, root, bits, function)?;
    let filter = filter::<H>(bits, function)?;
    if filter.contains(ListFilter::NO_METADATA) {
        let unknown = super::images::unknown(cx, domain).await?;
        let listed = unknown.values().filter(|moment| super::images::matches(moment, filter));
        names.extend(listed.map(|moment| moment.name.clone()));
    }
    Ok(names)
}

fn below<H: Inspect>(
    domain: &Domain,
    name: &str,
    bits: u32,
    function: &str,
) -> Outcome<Vec<String>> {
    let root = if bits & ROOTS_OR_DESCENDANTS != 0 {
        ListRoot::DescendantsOf(name)
    } else {
        ListRoot::ChildrenOf(name)
    };
    names::<H>(domain, root, bits, function)
}

fn count(names: &[String]) -> i32 {
    i32::try_from(names.len()).unwrap_or(i32::MAX)
}

pub(super) async fn num<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSnapshotNumArgs,
) -> Outcome<DomainSnapshotNumRet> {
    let domain = cx.domain(&args.dom)?;
    let names = of_domain(&cx, &domain, args.flags, "DomainSnapshotNum").await?;
    Ok(DomainSnapshotNumRet { num: count(&names) })
}

pub(super) async fn list_names<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSnapshotListNamesArgs,
) -> Outcome<DomainSnapshotListNamesRet> {
    let domain = cx.domain(&args.dom)?;
    let names = of_domain(&cx, &domain, args.flags, "DomainSnapshotListNames").await?;
    let most = super::lists::room_for("maxnames", args.max_names)?;
    Ok(DomainSnapshotListNamesRet { names: names.into_iter().take(most).collect() })
}

pub(super) async fn num_children<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSnapshotNumChildrenArgs,
) -> Outcome<DomainSnapshotNumChildrenRet> {
    let domain = cx.domain(&args.snap.dom)?;
    let names = below::<H>(&domain, &args.snap.name, args.flags, "DomainSnapshotNumChildren")?;
    Ok(DomainSnapshotNumChildrenRet { num: count(&names) })
}

pub(super) async fn list_children_names<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSnapshotListChildrenNamesArgs,
) -> Outcome<DomainSnapshotListChildrenNamesRet> {
    let domain = cx.domain(&args.snap.dom)?;
    let names =
        below::<H>(&domain, &args.snap.name, args.flags, "DomainSnapshotListChildrenNames")?;
    let most = super::lists::room_for("maxnames", args.max_names)?;
    Ok(DomainSnapshotListChildrenNamesRet { names: names.into_iter().take(most).collect() })
}

fn references(names: Vec<String>, dom: &DomainRef, need_results: i32) -> (Vec<SnapshotRef>, i32) {
    let ret = count(&names);
    let wanted = if need_results == 0 { Vec::new() } else { names };
    let snapshots = wanted.into_iter().map(|name| SnapshotRef { name, dom: dom.clone() }).collect();
    (snapshots, ret)
}

pub(super) async fn list_all<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainListAllSnapshotsArgs,
) -> Outcome<DomainListAllSnapshotsRet> {
    let domain = cx.domain(&args.dom)?;
    let names = of_domain(&cx, &domain, args.flags, "DomainListAllSnapshots").await?;
    let (snapshots, ret) = references(names, &args.dom, args.need_results);
    Ok(DomainListAllSnapshotsRet { snapshots: snapshots.into(), ret })
}

pub(super) async fn list_all_children<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSnapshotListAllChildrenArgs,
) -> Outcome<DomainSnapshotListAllChildrenRet> {
    let SnapshotRef { name, dom } = &args.snapshot;
    let domain = cx.domain(dom)?;
    let names = below::<H>(&domain, name, args.flags, "DomainSnapshotListAllChildren")?;
    let (snapshots, ret) = references(names, dom, args.need_results);
    Ok(DomainSnapshotListAllChildrenRet { snapshots: snapshots.into(), ret })
}

// -- single ones ---------------------------------------------------------------------------------

pub(super) async fn lookup<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSnapshotLookupByNameArgs,
) -> Outcome<DomainSnapshotLookupByNameRet> {
    flags::only::<H>(args.flags, 0, "DomainSnapshotLookupByName")?;
    cx.domain(&args.dom)?.book().listed().expect(&args.name)?;
    Ok(DomainSnapshotLookupByNameRet { snap: SnapshotRef { name: args.name, dom: args.dom } })
}

pub(super) async fn has_current<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainHasCurrentSnapshotArgs,
) -> Outcome<DomainHasCurrentSnapshotRet> {
    flags::only::<H>(args.flags, 0, "DomainHasCurrentSnapshot")?;
    let has = cx.domain(&args.dom)?.book().listed().current().is_some();
    Ok(DomainHasCurrentSnapshotRet { result: has.into() })
}

fn no_snapshot(message: &str) -> Error {
    Error::new(Condition::NoSnapshot, message).from_origin(Origin::Driver)
}

pub(super) async fn current<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSnapshotCurrentArgs,
) -> Outcome<DomainSnapshotCurrentRet> {
    flags::only::<H>(args.flags, 0, "DomainSnapshotCurrent")?;
    let domain = cx.domain(&args.dom)?;
    let name = domain.book().listed().current().map(str::to_owned);
    let name = name.ok_or_else(|| no_snapshot("the domain does not have a current snapshot"))?;
    Ok(DomainSnapshotCurrentRet { snap: SnapshotRef { name, dom: args.dom } })
}

pub(super) async fn parent<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSnapshotGetParentArgs,
) -> Outcome<DomainSnapshotGetParentRet> {
    flags::only::<H>(args.flags, 0, "DomainSnapshotGetParent")?;
    let domain = cx.domain(&args.snap.dom)?;
    let parent = domain.book().listed().expect(&args.snap.name)?.parent.clone();
    let name = parent.ok_or_else(|| {
        no_snapshot(&format!("snapshot '{}' does not have a parent", args.snap.name))
    })?;
    Ok(DomainSnapshotGetParentRet { snap: SnapshotRef { name, dom: args.snap.dom } })
}

pub(super) async fn is_current<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSnapshotIsCurrentArgs,
) -> Outcome<DomainSnapshotIsCurrentRet> {
    flags::only::<H>(args.flags, 0, "DomainSnapshotIsCurrent")?;
    let domain = cx.domain(&args.snap.dom)?;
    let book = domain.book();
    let moments = book.listed();
    moments.expect(&args.snap.name)?;
    let current = moments.current() == Some(args.snap.name.as_str());
    Ok(DomainSnapshotIsCurrentRet { current: current.into() })
}

/// What is not recorded, and still listed, is inside an image.
pub(super) async fn has_metadata<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSnapshotHasMetadataArgs,
) -> Outcome<DomainSnapshotHasMetadataRet> {
    flags::only::<H>(args.flags, 0, "DomainSnapshotHasMetadata")?;
    let domain = cx.domain(&args.snap.dom)?;
    let missing = domain.book().listed().expect(&args.snap.name).err();
    if let Some(missing) = missing {
        return match super::images::unknown(&cx, &domain).await?.contains_key(&args.snap.name) {
            true => Ok(DomainSnapshotHasMetadataRet { metadata: 0 }),
            false => Err(missing.into()),
        };
    }
    Ok(DomainSnapshotHasMetadataRet { metadata: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHypervisor as Fake;

    fn code(failure: Failure) -> i32 {
        failure.told_by(10).code
    }

    #[test]
    fn nonsense_in_create_flags_is_refused() {
        for bits in [2, 1 | 4, 1 | 8, 64, 256 | 1, 1024, 1 << 15, 1 << 17, 1 | 1 << 16] {
            assert_eq!(
                code(create_options::<Fake>(bits, Meanwhile::GoesOn).unwrap_err()),
                8,
                "{bits:#x}"
            );
        }
    }

    #[test]
    fn a_live_snapshot_of_disks_only_is_refused_for_its_memory_first() {
        let asks = |text: &str| Request::parse(&Element::parse(text).unwrap()).unwrap();
        let plain = asks("<domainsnapshot/>");
        let err = check_live(LIVE.0 | DISK_ONLY.0, &plain).unwrap_err();
        assert_eq!(err.condition, Condition::OperationUnsupported);
        // The engine refuses that with another code.
        let memory = asks("<domainsnapshot><memory file='/m'/></domainsnapshot>");
        check_live(LIVE.0 | DISK_ONLY.0, &memory).unwrap();
        check_live(LIVE.0, &memory).unwrap();
    }

    #[test]
    fn create_flags_become_options() {
        let CreateOptions::New(new) =
            create_options::<Fake>(16 | 64 | 128 | 4, Meanwhile::GoesOn).unwrap()
        else {
            panic!("not a redefine");
        };
        assert_eq!(new.scope, Scope::DiskOnly { quiesce: true });
        assert_eq!(new.metadata, Metadata::Forget);
        let redefine = create_options::<Fake>(3, Meanwhile::GoesOn).unwrap();
        assert_eq!(redefine, CreateOptions::Redefine { make_current: true });
    }

    #[test]
    fn our_own_bits_become_options() {
        let CreateOptions::New(new) = create_options::<Fake>(1 << 16, Meanwhile::GoesOn).unwrap()
        else {
            panic!("not a redefine");
        };
        assert!(!new.becomes_current);
        assert_eq!(revert_options::<Fake>(1 << 16).unwrap().state, RevertState::ShutOff);
        assert!(revert_options::<Fake>(1 << 17).unwrap().discard);
        assert!(revert_options::<Fake>(1 << 18).unwrap().delete_children);
        for bits in [1 | 1 << 16, 2 | 1 << 16, 1 << 19, 16] {
            assert_eq!(code(revert_options::<Fake>(bits).unwrap_err()), 8, "{bits:#x}");
        }
        let deleted = delete_options::<Fake>(1 << 16 | 1 << 18).unwrap().consolidate;
        assert_eq!(deleted, Consolidate { required: true, keep: Some(Survivor::Overlay) });
        for bits in [2 | 1 << 16, 3 << 17, 1 << 19, 8] {
            assert_eq!(code(delete_options::<Fake>(bits).unwrap_err()), 8, "{bits:#x}");
        }
    }

    #[test]
    fn a_call_with_halt_never_gets_code_8() {
        let failure = create_options::<Fake>(64 | 8, Meanwhile::GoesOn).unwrap_err();
        assert_eq!(code(without_invalid_argument(failure)), 74);
        let engine = Error::snapshot(Condition::InvalidArgument, "no");
        assert_eq!(code(without_invalid_argument(engine.into())), 74);
    }

    #[test]
    fn each_list_bit_has_its_filter() {
        assert_eq!(filter::<Fake>(0x7fe, "f").unwrap(), ListFilter::all());
        assert_eq!(filter::<Fake>(1, "f").unwrap(), ListFilter::default());
        assert!(filter::<Fake>(0x800, "f").is_err());
    }
}
