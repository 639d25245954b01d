//! The connection: opening, features, events.

use virtsnap_rpc::remote::*;

use super::{Answer, Context};
use crate::service::{ERR_INTERNAL, FROM_RPC, RpcError, Subscription, Topic};
use crate::session::Connection;

const OPEN_READ_ONLY: u32 = 1;
/// VIR_DOMAIN_EVENT_ID_LAST: `virsh event --all` registers every one below it.
const DOMAIN_EVENTS: i32 = 28;

pub(super) async fn auth_list(_: Context<'_>, _: AuthListArgs) -> Result<AuthListRet, RpcError> {
    const NONE: i32 = 0;
    Ok(AuthListRet { types: vec![NONE].into() })
}

pub(super) async fn open(cx: Context<'_>, args: ConnectOpenArgs) -> Result<(), RpcError> {
    cx.session.open(Connection {
        uri: args.name.unwrap_or_default(),
        read_only: args.flags & OPEN_READ_ONLY != 0,
    })
}

pub(super) async fn close(_: Context<'_>, _: ConnectCloseArgs) -> Result<(), RpcError> {
    Ok(())
}

pub(super) async fn supports_feature(
    cx: Context<'_>,
    args: ConnectSupportsFeatureArgs,
) -> Result<ConnectSupportsFeatureRet, RpcError> {
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

pub(super) async fn get_type(
    _: Context<'_>,
    _: ConnectGetTypeArgs,
) -> Result<ConnectGetTypeRet, RpcError> {
    Ok(ConnectGetTypeRet { kind: "QEMU".to_owned() })
}

pub(super) async fn get_version(
    _: Context<'_>,
    _: ConnectGetVersionArgs,
) -> Result<ConnectGetVersionRet, RpcError> {
    Ok(ConnectGetVersionRet { hv_ver: 10_000_002 })
}

pub(super) async fn get_lib_version(
    _: Context<'_>,
    _: ConnectGetLibVersionArgs,
) -> Result<ConnectGetLibVersionRet, RpcError> {
    Ok(ConnectGetLibVersionRet { lib_ver: 11_003_000 })
}

pub(super) async fn register_domain_event(
    cx: Context<'_>,
    args: ConnectDomainEventCallbackRegisterAnyArgs,
) -> Result<Answer<ConnectDomainEventCallbackRegisterAnyRet>, RpcError> {
    if !(0..DOMAIN_EVENTS).contains(&args.event_id) {
        let message = format!("unsupported event ID {}", args.event_id);
        return Err(RpcError::new(ERR_INTERNAL, FROM_RPC, message));
    }
    let callback_id = cx.session.next_callback_id();
    let answer = Answer::from(ConnectDomainEventCallbackRegisterAnyRet { callback_id });
    Ok(answer.with_subscription(Subscription {
        callback_id,
        topic: Topic::Domain(args.event_id),
        object: args.dom.map(|dom| dom.uuid),
    }))
}

pub(super) async fn deregister_domain_event(
    cx: Context<'_>,
    args: ConnectDomainEventCallbackDeregisterAnyArgs,
) -> Result<(), RpcError> {
    let known = cx.session.unsubscribe(|subscription| {
        subscription.callback_id == args.callback_id
            && matches!(subscription.topic, Topic::Domain(_))
    });
    if known {
        return Ok(());
    }
    let message = format!("domain event callback {} not registered", args.callback_id);
    Err(RpcError::new(ERR_INTERNAL, FROM_RPC, message))
}

pub(super) async fn register_close_callback(
    cx: Context<'_>,
    _: ConnectRegisterCloseCallbackArgs,
) -> Result<Answer<()>, RpcError> {
    let callback_id = cx.session.next_callback_id();
    Ok(Answer::from(()).with_subscription(Subscription {
        callback_id,
        topic: Topic::ConnectionClosed,
        object: None,
    }))
}

pub(super) async fn unregister_close_callback(
    cx: Context<'_>,
    _: ConnectUnregisterCloseCallbackArgs,
) -> Result<(), RpcError> {
    cx.session.unsubscribe(|subscription| subscription.topic == Topic::ConnectionClosed);
    Ok(())
}
