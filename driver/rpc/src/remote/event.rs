//! Registering for events, and the messages that carry them.
//!
//! Only the messages with a callback id are here. The older ones without it are for clients that
//! were told that the server lacks feature 14; ours has it.

use super::types::{
    DomainEventGraphicsAddress, DomainEventGraphicsIdentity, DomainRef, NetworkRef, NodeDeviceRef,
    PoolRef, SecretRef, TypedParam,
};
use super::{calls, events};
use crate::xdr::List;

calls! {
    CONNECT_DOMAIN_EVENT_REGISTER_ANY: ConnectDomainEventRegisterAnyArgs { event_id: i32 } -> ();
    CONNECT_DOMAIN_EVENT_DEREGISTER_ANY: ConnectDomainEventDeregisterAnyArgs { event_id: i32 }
        -> ();
    CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY:
        ConnectDomainEventCallbackRegisterAnyArgs { event_id: i32, dom: Option<DomainRef> }
        -> ConnectDomainEventCallbackRegisterAnyRet { callback_id: i32 };
    CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY:
        ConnectDomainEventCallbackDeregisterAnyArgs { callback_id: i32 }
        -> ();
    CONNECT_NETWORK_EVENT_REGISTER_ANY:
        ConnectNetworkEventRegisterAnyArgs { event_id: i32, net: Option<NetworkRef> }
        -> ConnectNetworkEventRegisterAnyRet { callback_id: i32 };
    CONNECT_NETWORK_EVENT_DEREGISTER_ANY: ConnectNetworkEventDeregisterAnyArgs { callback_id: i32 }
        -> ();
    CONNECT_STORAGE_POOL_EVENT_REGISTER_ANY:
        ConnectStoragePoolEventRegisterAnyArgs { event_id: i32, pool: Option<PoolRef> }
        -> ConnectStoragePoolEventRegisterAnyRet { callback_id: i32 };
    CONNECT_STORAGE_POOL_EVENT_DEREGISTER_ANY:
        ConnectStoragePoolEventDeregisterAnyArgs { callback_id: i32 }
        -> ();
    CONNECT_NODE_DEVICE_EVENT_REGISTER_ANY:
        ConnectNodeDeviceEventRegisterAnyArgs { event_id: i32, dev: Option<NodeDeviceRef> }
        -> ConnectNodeDeviceEventRegisterAnyRet { callback_id: i32 };
    CONNECT_NODE_DEVICE_EVENT_DEREGISTER_ANY:
        ConnectNodeDeviceEventDeregisterAnyArgs { callback_id: i32 }
        -> ();
    CONNECT_SECRET_EVENT_REGISTER_ANY:
        ConnectSecretEventRegisterAnyArgs { event_id: i32, secret: Option<SecretRef> }
        -> ConnectSecretEventRegisterAnyRet { callback_id: i32 };
    CONNECT_SECRET_EVENT_DEREGISTER_ANY: ConnectSecretEventDeregisterAnyArgs { callback_id: i32 }
        -> ();
}

events! {
    DOMAIN_EVENT_CALLBACK_LIFECYCLE: DomainEventLifecycle {
        callback_id: i32,
        dom: DomainRef,
        event: i32,
        detail: i32,
    };
    DOMAIN_EVENT_CALLBACK_REBOOT: DomainEventReboot { callback_id: i32, dom: DomainRef };
    DOMAIN_EVENT_CALLBACK_RTC_CHANGE: DomainEventRtcChange {
        callback_id: i32,
        dom: DomainRef,
        offset: i64,
    };
    DOMAIN_EVENT_CALLBACK_WATCHDOG: DomainEventWatchdog {
        callback_id: i32,
        dom: DomainRef,
        action: i32,
    };
    DOMAIN_EVENT_CALLBACK_IO_ERROR: DomainEventIoError {
        callback_id: i32,
        dom: DomainRef,
        src_path: String,
        dev_alias: String,
        action: i32,
    };
    DOMAIN_EVENT_CALLBACK_GRAPHICS: DomainEventGraphics {
        callback_id: i32,
        dom: DomainRef,
        phase: i32,
        local: DomainEventGraphicsAddress,
        remote: DomainEventGraphicsAddress,
        auth_scheme: String,
        subject: List<DomainEventGraphicsIdentity, 20>,
    };
    DOMAIN_EVENT_CALLBACK_IO_ERROR_REASON: DomainEventIoErrorReason {
        callback_id: i32,
        dom: DomainRef,
        src_path: String,
        dev_alias: String,
        action: i32,
        reason: String,
    };
    DOMAIN_EVENT_CALLBACK_CONTROL_ERROR: DomainEventControlError {
        callback_id: i32,
        dom: DomainRef,
    };
    DOMAIN_EVENT_CALLBACK_BLOCK_JOB: DomainEventBlockJob {
        callback_id: i32,
        dom: DomainRef,
        path: String,
        kind: i32,
        status: i32,
    };
    DOMAIN_EVENT_CALLBACK_DISK_CHANGE: DomainEventDiskChange {
        callback_id: i32,
        dom: DomainRef,
        old_src_path: Option<String>,
        new_src_path: Option<String>,
        dev_alias: String,
        reason: i32,
    };
    DOMAIN_EVENT_CALLBACK_TRAY_CHANGE: DomainEventTrayChange {
        callback_id: i32,
        dom: DomainRef,
        dev_alias: String,
        reason: i32,
    };
    DOMAIN_EVENT_CALLBACK_PMWAKEUP: DomainEventPmwakeup {
        callback_id: i32,
        reason: i32,
        dom: DomainRef,
    };
    DOMAIN_EVENT_CALLBACK_PMSUSPEND: DomainEventPmsuspend {
        callback_id: i32,
        reason: i32,
        dom: DomainRef,
    };
    DOMAIN_EVENT_CALLBACK_BALLOON_CHANGE: DomainEventBalloonChange {
        callback_id: i32,
        dom: DomainRef,
        actual: u64,
    };
    DOMAIN_EVENT_CALLBACK_PMSUSPEND_DISK: DomainEventPmsuspendDisk {
        callback_id: i32,
        reason: i32,
        dom: DomainRef,
    };
    DOMAIN_EVENT_CALLBACK_DEVICE_REMOVED: DomainEventDeviceRemoved {
        callback_id: i32,
        dom: DomainRef,
        dev_alias: String,
    };
    DOMAIN_EVENT_BLOCK_JOB_2: DomainEventBlockJob2 {
        callback_id: i32,
        dom: DomainRef,
        dst: String,
        kind: i32,
        status: i32,
    };
    DOMAIN_EVENT_CALLBACK_TUNABLE: DomainEventTunable {
        callback_id: i32,
        dom: DomainRef,
        params: List<TypedParam, 2048>,
    };
    DOMAIN_EVENT_CALLBACK_AGENT_LIFECYCLE: DomainEventAgentLifecycle {
        callback_id: i32,
        dom: DomainRef,
        state: i32,
        reason: i32,
    };
    DOMAIN_EVENT_CALLBACK_DEVICE_ADDED: DomainEventDeviceAdded {
        callback_id: i32,
        dom: DomainRef,
        dev_alias: String,
    };
    DOMAIN_EVENT_CALLBACK_MIGRATION_ITERATION: DomainEventMigrationIteration {
        callback_id: i32,
        dom: DomainRef,
        iteration: i32,
    };
    CONNECT_EVENT_CONNECTION_CLOSED: ConnectionClosed { reason: i32 };
    DOMAIN_EVENT_CALLBACK_JOB_COMPLETED: DomainEventJobCompleted {
        callback_id: i32,
        dom: DomainRef,
        params: List<TypedParam, 64>,
    };
    DOMAIN_EVENT_CALLBACK_DEVICE_REMOVAL_FAILED: DomainEventDeviceRemovalFailed {
        callback_id: i32,
        dom: DomainRef,
        dev_alias: String,
    };
    DOMAIN_EVENT_CALLBACK_METADATA_CHANGE: DomainEventMetadataChange {
        callback_id: i32,
        dom: DomainRef,
        kind: i32,
        nsuri: Option<String>,
    };
    DOMAIN_EVENT_BLOCK_THRESHOLD: DomainEventBlockThreshold {
        callback_id: i32,
        dom: DomainRef,
        dev: String,
        path: Option<String>,
        threshold: u64,
        excess: u64,
    };
    DOMAIN_EVENT_MEMORY_FAILURE: DomainEventMemoryFailure {
        callback_id: i32,
        dom: DomainRef,
        recipient: i32,
        action: i32,
        flags: u32,
    };
    DOMAIN_EVENT_MEMORY_DEVICE_SIZE_CHANGE: DomainEventMemoryDeviceSizeChange {
        callback_id: i32,
        dom: DomainRef,
        alias: String,
        size: u64,
    };
    DOMAIN_EVENT_NIC_MAC_CHANGE: DomainEventNicMacChange {
        callback_id: i32,
        dom: DomainRef,
        alias: String,
        old_mac: String,
        new_mac: String,
    };
    NETWORK_EVENT_LIFECYCLE: NetworkEventLifecycle {
        callback_id: i32,
        net: NetworkRef,
        event: i32,
        detail: i32,
    };
    STORAGE_POOL_EVENT_LIFECYCLE: StoragePoolEventLifecycle {
        callback_id: i32,
        pool: PoolRef,
        event: i32,
        detail: i32,
    };
    STORAGE_POOL_EVENT_REFRESH: StoragePoolEventRefresh { callback_id: i32, pool: PoolRef };
    NODE_DEVICE_EVENT_LIFECYCLE: NodeDeviceEventLifecycle {
        callback_id: i32,
        dev: NodeDeviceRef,
        event: i32,
        detail: i32,
    };
    NODE_DEVICE_EVENT_UPDATE: NodeDeviceEventUpdate { callback_id: i32, dev: NodeDeviceRef };
    SECRET_EVENT_LIFECYCLE: SecretEventLifecycle {
        callback_id: i32,
        secret: SecretRef,
        event: i32,
        detail: i32,
    };
    SECRET_EVENT_VALUE_CHANGED: SecretEventValueChanged { callback_id: i32, secret: SecretRef };
    NETWORK_EVENT_CALLBACK_METADATA_CHANGE: NetworkEventMetadataChange {
        callback_id: i32,
        net: NetworkRef,
        kind: i32,
        nsuri: Option<String>,
    };
}
