//! The connection: opening, features, events.

use virtsnap_engine::error::{Condition, Error};
use virtsnap_engine::inspect::Inspect;
use virtsnap_rpc::remote::*;

use super::{Answer, Context, Outcome};
use crate::handle::{Connection, SessionHandle};
use crate::service::{ERR_INTERNAL, FROM_RPC, RpcError, Subscription, Topic};

const OPEN_READ_ONLY: u32 = 1;
/// VIR_DOMAIN_EVENT_ID_LAST: `virsh event --all` registers every one below it.
const DOMAIN_EVENTS: i32 = 28;

pub(super) async fn auth_list<H: Inspect>(
    _: Context<'_, H>,
    _: AuthListArgs,
) -> Outcome<AuthListRet> {
    const NONE: i32 = 0;
    Ok(AuthListRet { types: vec![NONE].into() })
}

/// The client's URI without what it used up itself. None at all: the server picks. Clients send
/// flags of their own along (an unprivileged one 4); libvirt too looks only at the one.
pub(super) async fn open<H: Inspect>(cx: Context<'_, H>, args: ConnectOpenArgs) -> Outcome<()> {
    let uri = args.name.unwrap_or_default();
    if !uri.is_empty() {
        check_uri::<H>(&uri)?;
    }
    let read_only = args.flags & OPEN_READ_ONLY != 0;
    let SessionHandle { id, peer, .. } = &**cx.session;
    tracing::debug!(session = id, uid = peer.uid, pid = peer.pid, uri, read_only, "opened");
    Ok(cx.session.open(Connection { uri, read_only })?)
}

/// What `qemu` is in `qemu:///system`.
fn scheme<H: Inspect>() -> String {
    H::NAME.to_ascii_lowercase()
}

/// The scheme of our hypervisor, no host, one of its paths, and whatever parameters.
fn check_uri<H: Inspect>(uri: &str) -> Outcome<()> {
    const NO_CONNECT: i32 = 5;
    const FROM_NONE: i32 = 0;
    let Some(rest) = uri.strip_prefix(&format!("{}://", scheme::<H>())) else {
        let message = format!("no connection driver available for {uri}");
        return Err(RpcError::new(NO_CONNECT, FROM_NONE, message).into());
    };
    let path = rest.split_once('?').map_or(rest, |(path, _)| path);
    if H::PATHS.contains(&path) {
        return Ok(());
    }
    let message = format!("unexpected {} URI path '{path}', try {}", H::NAME, default_uri::<H>());
    Err(Error::new(Condition::Internal, message).into())
}

fn default_uri<H: Inspect>() -> String {
    let is_root = rustix::process::geteuid().is_root();
    let mut paths = H::PATHS.iter().filter(|path| is_root || **path != "/system");
    let path = paths.next().or(H::PATHS.first()).unwrap_or(&"");
    format!("{}://{path}", scheme::<H>())
}

pub(super) async fn get_uri<H: Inspect>(
    cx: Context<'_, H>,
    _: ConnectGetUriArgs,
) -> Outcome<ConnectGetUriRet> {
    let opened = cx.session.connection().map(|open| open.uri.clone()).unwrap_or_default();
    let uri = if opened.is_empty() { default_uri::<H>() } else { opened };
    Ok(ConnectGetUriRet { uri })
}

/// A unix socket counts as secure.
pub(super) async fn is_secure<H: Inspect>(
    _: Context<'_, H>,
    _: ConnectIsSecureArgs,
) -> Outcome<ConnectIsSecureRet> {
    Ok(ConnectIsSecureRet { secure: 1 })
}

pub(super) async fn close<H: Inspect>(_: Context<'_, H>, _: ConnectCloseArgs) -> Outcome<()> {
    Ok(())
}

pub(super) async fn supports_feature<H: Inspect>(
    cx: Context<'_, H>,
    args: ConnectSupportsFeatureArgs,
) -> Outcome<ConnectSupportsFeatureRet> {
    const FD_PASSING: i32 = 8;
    const TYPED_PARAM_STRING: i32 = 9;
    const PROGRAM_KEEPALIVE: i32 = 10;
    const REMOTE_EVENT_CALLBACK: i32 = 14;
    const REMOTE_CLOSE_CALLBACK: i32 = 15;
    const NETWORK_UPDATE_HAS_CORRECT_ORDER: i32 = 16;
    if args.feature == PROGRAM_KEEPALIVE {
        cx.session.start_keepalive();
    }
    let supported = matches!(
        args.feature,
        FD_PASSING
            | TYPED_PARAM_STRING
            | PROGRAM_KEEPALIVE
            | REMOTE_EVENT_CALLBACK
            | REMOTE_CLOSE_CALLBACK
            | NETWORK_UPDATE_HAS_CORRECT_ORDER
    );
    Ok(ConnectSupportsFeatureRet { supported: supported.into() })
}

pub(super) async fn get_type<H: Inspect>(
    _: Context<'_, H>,
    _: ConnectGetTypeArgs,
) -> Outcome<ConnectGetTypeRet> {
    Ok(ConnectGetTypeRet { kind: H::NAME.to_owned() })
}

pub(super) async fn get_version<H: Inspect>(
    cx: Context<'_, H>,
    _: ConnectGetVersionArgs,
) -> Outcome<ConnectGetVersionRet> {
    Ok(ConnectGetVersionRet { hv_ver: cx.daemon.domains.hypervisor.version().await? })
}

/// The version of libvirt whose protocol and behaviour this daemon follows.
pub(super) async fn get_lib_version<H: Inspect>(
    _: Context<'_, H>,
    _: ConnectGetLibVersionArgs,
) -> Outcome<ConnectGetLibVersionRet> {
    Ok(ConnectGetLibVersionRet { lib_ver: 11_003_000 })
}

pub(super) async fn register_domain_event<H: Inspect>(
    cx: Context<'_, H>,
    args: ConnectDomainEventCallbackRegisterAnyArgs,
) -> Outcome<Answer<ConnectDomainEventCallbackRegisterAnyRet>> {
    if !(0..DOMAIN_EVENTS).contains(&args.event_id) {
        let message = format!("unsupported event ID {}", args.event_id);
        return Err(RpcError::new(ERR_INTERNAL, FROM_RPC, message).into());
    }
    let callback_id = cx.session.next_callback_id();
    let answer = Answer::from(ConnectDomainEventCallbackRegisterAnyRet { callback_id });
    Ok(answer.with_subscription(Subscription {
        callback_id,
        topic: Topic::Domain(args.event_id),
        object: args.dom.map(|dom| dom.uuid),
    }))
}

pub(super) async fn deregister_domain_event<H: Inspect>(
    cx: Context<'_, H>,
    args: ConnectDomainEventCallbackDeregisterAnyArgs,
) -> Outcome<()> {
    let known = cx.session.unsubscribe(|subscription| {
        subscription.callback_id == args.callback_id
            && matches!(subscription.topic, Topic::Domain(_))
    });
    if known {
        return Ok(());
    }
    let message = format!("domain event callback {} not registered", args.callback_id);
    Err(RpcError::new(ERR_INTERNAL, FROM_RPC, message).into())
}

pub(super) async fn register_close_callback<H: Inspect>(
    cx: Context<'_, H>,
    _: ConnectRegisterCloseCallbackArgs,
) -> Outcome<Answer<()>> {
    let callback_id = cx.session.next_callback_id();
    Ok(Answer::from(()).with_subscription(Subscription {
        callback_id,
        topic: Topic::ConnectionClosed,
        object: None,
    }))
}

pub(super) async fn unregister_close_callback<H: Inspect>(
    cx: Context<'_, H>,
    _: ConnectUnregisterCloseCallbackArgs,
) -> Outcome<()> {
    cx.session.unsubscribe(|subscription| subscription.topic == Topic::ConnectionClosed);
    Ok(())
}
