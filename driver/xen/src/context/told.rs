//! What libxl tells of domains and of the host, in our words.

use uuid::Uuid;
use virtsnap_engine::inspect::{Node, VcpuState, VcpuTime};
use virtsnap_xen_sys::v4_17 as xl;

use crate::guest::Guest;

/// A domain has come to an end, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub id: u32,
    pub how: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest has stopped and what belonged to it is still there.
    Shutdown(ShutdownReason),
    /// The domain is gone.
    Death,
}

/// `libxl_shutdown_reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownReason {
    PowerOff,
    Reboot,
    /// It stands still for its memory to be saved.
    Suspend,
    Crash,
    Other,
}

impl From<xl::libxl_shutdown_reason> for ShutdownReason {
    fn from(reason: xl::libxl_shutdown_reason) -> Self {
        match reason {
            xl::LIBXL_SHUTDOWN_REASON_POWEROFF => Self::PowerOff,
            xl::LIBXL_SHUTDOWN_REASON_REBOOT => Self::Reboot,
            xl::LIBXL_SHUTDOWN_REASON_SUSPEND => Self::Suspend,
            xl::LIBXL_SHUTDOWN_REASON_CRASH | xl::LIBXL_SHUTDOWN_REASON_WATCHDOG => Self::Crash,
            _ => Self::Other,
        }
    }
}

/// `libxl_dominfo`. Memory in KiB, processor time in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    pub id: u32,
    pub uuid: Uuid,
    pub is_paused: bool,
    /// It has stopped, and is still there.
    pub shutdown: Option<ShutdownReason>,
    pub is_dying: bool,
    pub memory: u64,
    pub max_memory: u64,
    pub cpu_time: u64,
    pub vcpus: u32,
    pub guest: Option<Guest>,
}

impl From<&xl::libxl_dominfo> for Info {
    fn from(info: &xl::libxl_dominfo) -> Self {
        Self {
            id: info.domid,
            uuid: Uuid::from_bytes(info.uuid.uuid),
            is_paused: info.paused,
            shutdown: info.shutdown.then(|| info.shutdown_reason.into()),
            is_dying: info.dying,
            memory: info.current_memkb,
            max_memory: info.max_memkb,
            cpu_time: info.cpu_time,
            vcpus: info.vcpu_online,
            guest: match info.domain_type {
                xl::LIBXL_DOMAIN_TYPE_PV => Some(Guest::Pv),
                xl::LIBXL_DOMAIN_TYPE_PVH => Some(Guest::Pvh),
                xl::LIBXL_DOMAIN_TYPE_HVM => Some(Guest::Hvm),
                _ => None,
            },
        }
    }
}

/// `libxl_version_info` and `libxl_physinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInfo {
    pub version: (u32, u32),
    pub can_hvm: bool,
    pub can_pv: bool,
    pub can_hap: bool,
    pub node: Node,
}

impl HostInfo {
    pub(super) fn new(version: (u32, u32), page_kib: u64, info: &xl::libxl_physinfo) -> Self {
        Self {
            version,
            can_hvm: info.cap_hvm,
            can_pv: info.cap_pv,
            can_hap: info.cap_hap,
            node: Node {
                memory_kib: info.total_pages.saturating_mul(page_kib),
                free_kib: info.free_pages.saturating_mul(page_kib),
                cpus: info.nr_cpus,
                mhz: info.cpu_khz / 1000,
                nodes: info.nr_nodes,
                cores_per_socket: info.cores_per_socket,
                threads_per_core: info.threads_per_core,
                max_vcpus: info.max_cpu_id.saturating_add(1),
            },
        }
    }
}

/// `libxl_vcpuinfo`, whose map of the host's processors is told beside it.
pub(super) fn vcpu(vcpu: &xl::libxl_vcpuinfo, affinity: Option<Vec<u8>>) -> VcpuTime {
    let state = match (vcpu.online, vcpu.running, vcpu.blocked) {
        (false, ..) => VcpuState::Offline,
        (true, false, true) => VcpuState::Blocked,
        // What is neither waits for a processor, or for its guest to be unpaused.
        (true, ..) => VcpuState::Running,
    };
    VcpuTime {
        number: vcpu.vcpuid,
        state,
        nanoseconds: vcpu.vcpu_time,
        host_cpu: (state != VcpuState::Offline).then_some(vcpu.cpu),
        affinity,
    }
}
