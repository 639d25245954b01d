//! The QEMU program: monitor and agent commands past the driver.

use super::types::DomainRef;
use super::{calls, events};

calls! {
    in QemuProcedure;
    DOMAIN_MONITOR_COMMAND: QemuDomainMonitorCommandArgs { dom: DomainRef, cmd: String, flags: u32 }
        -> QemuDomainMonitorCommandRet { result: String };
    DOMAIN_ATTACH: QemuDomainAttachArgs { pid_value: u32, flags: u32 }
        -> QemuDomainAttachRet { dom: DomainRef };
    DOMAIN_AGENT_COMMAND:
        QemuDomainAgentCommandArgs { dom: DomainRef, cmd: String, timeout: i32, flags: u32 }
        -> QemuDomainAgentCommandRet { result: Option<String> };
    CONNECT_DOMAIN_MONITOR_EVENT_REGISTER:
        QemuConnectDomainMonitorEventRegisterArgs {
            dom: Option<DomainRef>, event: Option<String>, flags: u32,
        } -> QemuConnectDomainMonitorEventRegisterRet { callback_id: i32 };
    CONNECT_DOMAIN_MONITOR_EVENT_DEREGISTER:
        QemuConnectDomainMonitorEventDeregisterArgs { callback_id: i32 } -> ();
    DOMAIN_MONITOR_COMMAND_WITH_FILES:
        QemuDomainMonitorCommandWithFilesArgs { dom: DomainRef, cmd: String, flags: u32 }
        -> QemuDomainMonitorCommandWithFilesRet { result: String };
}

events! {
    in QemuProcedure;
    DOMAIN_MONITOR_EVENT: QemuDomainMonitorEvent {
        callback_id: i32,
        dom: DomainRef,
        event: String,
        seconds: i64,
        micros: u32,
        details: Option<String>,
    };
}
