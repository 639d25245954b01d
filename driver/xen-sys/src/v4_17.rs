//! libxl of Xen 4.17, made by `make xen-bindings` from its headers.

pub const LIBXL_VERSION: u32 = 0;
pub const LIBXL_SUSPEND_DEBUG: u32 = 1;
pub const LIBXL_SUSPEND_LIVE: u32 = 2;
pub type __pid_t = ::core::ffi::c_int;
pub type __gnuc_va_list = __builtin_va_list;
pub type va_list = __gnuc_va_list;
pub type pid_t = __pid_t;
pub const XTL_NONE: xentoollog_level = 0;
pub const XTL_DEBUG: xentoollog_level = 1;
pub const XTL_VERBOSE: xentoollog_level = 2;
pub const XTL_DETAIL: xentoollog_level = 3;
pub const XTL_PROGRESS: xentoollog_level = 4;
pub const XTL_INFO: xentoollog_level = 5;
pub const XTL_NOTICE: xentoollog_level = 6;
pub const XTL_WARN: xentoollog_level = 7;
pub const XTL_ERROR: xentoollog_level = 8;
pub const XTL_CRITICAL: xentoollog_level = 9;
pub const XTL_NUM_LEVELS: xentoollog_level = 10;
pub type xentoollog_level = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct xentoollog_logger {
    pub vmessage: ::core::option::Option<
        unsafe extern "C" fn(
            logger: *mut xentoollog_logger,
            level: xentoollog_level,
            errnoval: ::core::ffi::c_int,
            context: *const ::core::ffi::c_char,
            format: *const ::core::ffi::c_char,
            al: *mut __va_list_tag,
        ),
    >,
    pub progress: ::core::option::Option<
        unsafe extern "C" fn(
            logger: *mut xentoollog_logger,
            context: *const ::core::ffi::c_char,
            doing_what: *const ::core::ffi::c_char,
            percent: ::core::ffi::c_int,
            done: ::core::ffi::c_ulong,
            total: ::core::ffi::c_ulong,
        ),
    >,
    pub destroy: ::core::option::Option<unsafe extern "C" fn(logger: *mut xentoollog_logger)>,
}
#[repr(C)]
#[derive(Debug)]
pub struct xentoollog_logger_stdiostream {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct libxl__ctx {
    _unused: [u8; 0],
}
pub type libxl_ctx = libxl__ctx;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_uuid {
    pub uuid: [::core::ffi::c_uchar; 16usize],
}
pub type libxl_mac = [u8; 6usize];
pub type libxl_string_list = *mut *mut ::core::ffi::c_char;
pub type libxl_key_value_list = *mut *mut ::core::ffi::c_char;
pub type libxl_hwcap = [u32; 8usize];
pub type libxl_ev_user = u64;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_bitmap {
    pub size: u32,
    pub map: *mut u8,
}
#[repr(C)]
#[derive(Debug)]
pub struct libxl__cpu_policy {
    _unused: [u8; 0],
}
pub type libxl_cpuid_policy_list = *mut libxl__cpu_policy;
pub type libxl_domid = u32;
pub type libxl_devid = ::core::ffi::c_int;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_ev_link {
    pub tqe_next: *mut libxl_event,
    pub tqe_prev: *mut *mut libxl_event,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_defbool {
    pub val: ::core::ffi::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_ms_vm_genid {
    pub bytes: [u8; 16usize],
}
pub const ERROR_NONSPECIFIC: libxl_error = -1;
pub const ERROR_VERSION: libxl_error = -2;
pub const ERROR_FAIL: libxl_error = -3;
pub const ERROR_NI: libxl_error = -4;
pub const ERROR_NOMEM: libxl_error = -5;
pub const ERROR_INVAL: libxl_error = -6;
pub const ERROR_BADFAIL: libxl_error = -7;
pub const ERROR_GUEST_TIMEDOUT: libxl_error = -8;
pub const ERROR_TIMEDOUT: libxl_error = -9;
pub const ERROR_NOPARAVIRT: libxl_error = -10;
pub const ERROR_NOT_READY: libxl_error = -11;
pub const ERROR_OSEVENT_REG_FAIL: libxl_error = -12;
pub const ERROR_BUFFERFULL: libxl_error = -13;
pub const ERROR_UNKNOWN_CHILD: libxl_error = -14;
pub const ERROR_LOCK_FAIL: libxl_error = -15;
pub const ERROR_JSON_CONFIG_EMPTY: libxl_error = -16;
pub const ERROR_DEVICE_EXISTS: libxl_error = -17;
pub const ERROR_CHECKPOINT_DEVOPS_DOES_NOT_MATCH: libxl_error = -18;
pub const ERROR_CHECKPOINT_DEVICE_NOT_SUPPORTED: libxl_error = -19;
pub const ERROR_VNUMA_CONFIG_INVALID: libxl_error = -20;
pub const ERROR_DOMAIN_NOTFOUND: libxl_error = -21;
pub const ERROR_ABORTED: libxl_error = -22;
pub const ERROR_NOTFOUND: libxl_error = -23;
pub const ERROR_DOMAIN_DESTROYED: libxl_error = -24;
pub const ERROR_FEATURE_REMOVED: libxl_error = -25;
pub const ERROR_PROTOCOL_ERROR_QMP: libxl_error = -26;
pub const ERROR_UNKNOWN_QMP_ERROR: libxl_error = -27;
pub const ERROR_QMP_GENERIC_ERROR: libxl_error = -28;
pub const ERROR_QMP_COMMAND_NOT_FOUND: libxl_error = -29;
pub const ERROR_QMP_DEVICE_NOT_ACTIVE: libxl_error = -30;
pub const ERROR_QMP_DEVICE_NOT_FOUND: libxl_error = -31;
pub const ERROR_QEMU_API: libxl_error = -32;
pub type libxl_error = ::core::ffi::c_int;
pub const LIBXL_DOMAIN_TYPE_INVALID: libxl_domain_type = -1;
pub const LIBXL_DOMAIN_TYPE_HVM: libxl_domain_type = 1;
pub const LIBXL_DOMAIN_TYPE_PV: libxl_domain_type = 2;
pub const LIBXL_DOMAIN_TYPE_PVH: libxl_domain_type = 3;
pub type libxl_domain_type = ::core::ffi::c_int;
pub const LIBXL_RDM_RESERVE_STRATEGY_IGNORE: libxl_rdm_reserve_strategy = 0;
pub const LIBXL_RDM_RESERVE_STRATEGY_HOST: libxl_rdm_reserve_strategy = 1;
pub type libxl_rdm_reserve_strategy = ::core::ffi::c_uint;
pub const LIBXL_RDM_RESERVE_POLICY_INVALID: libxl_rdm_reserve_policy = -1;
pub const LIBXL_RDM_RESERVE_POLICY_STRICT: libxl_rdm_reserve_policy = 0;
pub const LIBXL_RDM_RESERVE_POLICY_RELAXED: libxl_rdm_reserve_policy = 1;
pub type libxl_rdm_reserve_policy = ::core::ffi::c_int;
pub const LIBXL_CHANNEL_CONNECTION_UNKNOWN: libxl_channel_connection = 0;
pub const LIBXL_CHANNEL_CONNECTION_PTY: libxl_channel_connection = 1;
pub const LIBXL_CHANNEL_CONNECTION_SOCKET: libxl_channel_connection = 2;
pub type libxl_channel_connection = ::core::ffi::c_uint;
pub const LIBXL_DEVICE_MODEL_VERSION_UNKNOWN: libxl_device_model_version = 0;
pub const LIBXL_DEVICE_MODEL_VERSION_QEMU_XEN_TRADITIONAL: libxl_device_model_version = 1;
pub const LIBXL_DEVICE_MODEL_VERSION_QEMU_XEN: libxl_device_model_version = 2;
pub type libxl_device_model_version = ::core::ffi::c_uint;
pub const LIBXL_DISK_FORMAT_UNKNOWN: libxl_disk_format = 0;
pub const LIBXL_DISK_FORMAT_QCOW: libxl_disk_format = 1;
pub const LIBXL_DISK_FORMAT_QCOW2: libxl_disk_format = 2;
pub const LIBXL_DISK_FORMAT_VHD: libxl_disk_format = 3;
pub const LIBXL_DISK_FORMAT_RAW: libxl_disk_format = 4;
pub const LIBXL_DISK_FORMAT_EMPTY: libxl_disk_format = 5;
pub const LIBXL_DISK_FORMAT_QED: libxl_disk_format = 6;
pub type libxl_disk_format = ::core::ffi::c_uint;
pub const LIBXL_DISK_BACKEND_UNKNOWN: libxl_disk_backend = 0;
pub const LIBXL_DISK_BACKEND_PHY: libxl_disk_backend = 1;
pub const LIBXL_DISK_BACKEND_TAP: libxl_disk_backend = 2;
pub const LIBXL_DISK_BACKEND_QDISK: libxl_disk_backend = 3;
pub const LIBXL_DISK_BACKEND_STANDALONE: libxl_disk_backend = 4;
pub type libxl_disk_backend = ::core::ffi::c_uint;
pub const LIBXL_DISK_SPECIFICATION_UNKNOWN: libxl_disk_specification = 0;
pub const LIBXL_DISK_SPECIFICATION_XEN: libxl_disk_specification = 1;
pub const LIBXL_DISK_SPECIFICATION_VIRTIO: libxl_disk_specification = 2;
pub type libxl_disk_specification = ::core::ffi::c_uint;
pub const LIBXL_DISK_TRANSPORT_UNKNOWN: libxl_disk_transport = 0;
pub const LIBXL_DISK_TRANSPORT_MMIO: libxl_disk_transport = 1;
pub type libxl_disk_transport = ::core::ffi::c_uint;
pub const LIBXL_NIC_TYPE_UNKNOWN: libxl_nic_type = 0;
pub const LIBXL_NIC_TYPE_VIF_IOEMU: libxl_nic_type = 1;
pub const LIBXL_NIC_TYPE_VIF: libxl_nic_type = 2;
pub type libxl_nic_type = ::core::ffi::c_uint;
pub const LIBXL_ACTION_ON_SHUTDOWN_DESTROY: libxl_action_on_shutdown = 1;
pub const LIBXL_ACTION_ON_SHUTDOWN_RESTART: libxl_action_on_shutdown = 2;
pub const LIBXL_ACTION_ON_SHUTDOWN_RESTART_RENAME: libxl_action_on_shutdown = 3;
pub const LIBXL_ACTION_ON_SHUTDOWN_PRESERVE: libxl_action_on_shutdown = 4;
pub const LIBXL_ACTION_ON_SHUTDOWN_COREDUMP_DESTROY: libxl_action_on_shutdown = 5;
pub const LIBXL_ACTION_ON_SHUTDOWN_COREDUMP_RESTART: libxl_action_on_shutdown = 6;
pub const LIBXL_ACTION_ON_SHUTDOWN_SOFT_RESET: libxl_action_on_shutdown = 7;
pub type libxl_action_on_shutdown = ::core::ffi::c_uint;
pub const LIBXL_TRIGGER_UNKNOWN: libxl_trigger = 0;
pub const LIBXL_TRIGGER_POWER: libxl_trigger = 1;
pub const LIBXL_TRIGGER_SLEEP: libxl_trigger = 2;
pub const LIBXL_TRIGGER_NMI: libxl_trigger = 3;
pub const LIBXL_TRIGGER_INIT: libxl_trigger = 4;
pub const LIBXL_TRIGGER_RESET: libxl_trigger = 5;
pub const LIBXL_TRIGGER_S3RESUME: libxl_trigger = 6;
pub type libxl_trigger = ::core::ffi::c_uint;
pub const LIBXL_TSC_MODE_DEFAULT: libxl_tsc_mode = 0;
pub const LIBXL_TSC_MODE_ALWAYS_EMULATE: libxl_tsc_mode = 1;
pub const LIBXL_TSC_MODE_NATIVE: libxl_tsc_mode = 2;
pub const LIBXL_TSC_MODE_NATIVE_PARAVIRT: libxl_tsc_mode = 3;
pub type libxl_tsc_mode = ::core::ffi::c_uint;
pub const LIBXL_GFX_PASSTHRU_KIND_DEFAULT: libxl_gfx_passthru_kind = 0;
pub const LIBXL_GFX_PASSTHRU_KIND_IGD: libxl_gfx_passthru_kind = 1;
pub type libxl_gfx_passthru_kind = ::core::ffi::c_uint;
pub const LIBXL_TIMER_MODE_UNKNOWN: libxl_timer_mode = -1;
pub const LIBXL_TIMER_MODE_DELAY_FOR_MISSED_TICKS: libxl_timer_mode = 0;
pub const LIBXL_TIMER_MODE_NO_DELAY_FOR_MISSED_TICKS: libxl_timer_mode = 1;
pub const LIBXL_TIMER_MODE_NO_MISSED_TICKS_PENDING: libxl_timer_mode = 2;
pub const LIBXL_TIMER_MODE_ONE_MISSED_TICK_PENDING: libxl_timer_mode = 3;
pub type libxl_timer_mode = ::core::ffi::c_int;
pub const LIBXL_BIOS_TYPE_UNKNOWN: libxl_bios_type = 0;
pub const LIBXL_BIOS_TYPE_ROMBIOS: libxl_bios_type = 1;
pub const LIBXL_BIOS_TYPE_SEABIOS: libxl_bios_type = 2;
pub const LIBXL_BIOS_TYPE_OVMF: libxl_bios_type = 3;
pub type libxl_bios_type = ::core::ffi::c_uint;
pub const LIBXL_SCHEDULER_UNKNOWN: libxl_scheduler = 0;
pub const LIBXL_SCHEDULER_SEDF: libxl_scheduler = 4;
pub const LIBXL_SCHEDULER_CREDIT: libxl_scheduler = 5;
pub const LIBXL_SCHEDULER_CREDIT2: libxl_scheduler = 6;
pub const LIBXL_SCHEDULER_ARINC653: libxl_scheduler = 7;
pub const LIBXL_SCHEDULER_RTDS: libxl_scheduler = 8;
pub const LIBXL_SCHEDULER_NULL: libxl_scheduler = 9;
pub type libxl_scheduler = ::core::ffi::c_uint;
pub const LIBXL_SHUTDOWN_REASON_UNKNOWN: libxl_shutdown_reason = -1;
pub const LIBXL_SHUTDOWN_REASON_POWEROFF: libxl_shutdown_reason = 0;
pub const LIBXL_SHUTDOWN_REASON_REBOOT: libxl_shutdown_reason = 1;
pub const LIBXL_SHUTDOWN_REASON_SUSPEND: libxl_shutdown_reason = 2;
pub const LIBXL_SHUTDOWN_REASON_CRASH: libxl_shutdown_reason = 3;
pub const LIBXL_SHUTDOWN_REASON_WATCHDOG: libxl_shutdown_reason = 4;
pub const LIBXL_SHUTDOWN_REASON_SOFT_RESET: libxl_shutdown_reason = 5;
pub type libxl_shutdown_reason = ::core::ffi::c_int;
pub const LIBXL_VGA_INTERFACE_TYPE_UNKNOWN: libxl_vga_interface_type = 0;
pub const LIBXL_VGA_INTERFACE_TYPE_CIRRUS: libxl_vga_interface_type = 1;
pub const LIBXL_VGA_INTERFACE_TYPE_STD: libxl_vga_interface_type = 2;
pub const LIBXL_VGA_INTERFACE_TYPE_NONE: libxl_vga_interface_type = 3;
pub const LIBXL_VGA_INTERFACE_TYPE_QXL: libxl_vga_interface_type = 4;
pub type libxl_vga_interface_type = ::core::ffi::c_uint;
pub const LIBXL_VENDOR_DEVICE_NONE: libxl_vendor_device = 0;
pub const LIBXL_VENDOR_DEVICE_XENSERVER: libxl_vendor_device = 1;
pub type libxl_vendor_device = ::core::ffi::c_uint;
pub const LIBXL_HDTYPE_IDE: libxl_hdtype = 1;
pub const LIBXL_HDTYPE_AHCI: libxl_hdtype = 2;
pub type libxl_hdtype = ::core::ffi::c_uint;
pub const LIBXL_VUART_TYPE_UNKNOWN: libxl_vuart_type = 0;
pub const LIBXL_VUART_TYPE_SBSA_UART: libxl_vuart_type = 1;
pub type libxl_vuart_type = ::core::ffi::c_uint;
pub const LIBXL_VKB_BACKEND_UNKNOWN: libxl_vkb_backend = 0;
pub const LIBXL_VKB_BACKEND_QEMU: libxl_vkb_backend = 1;
pub const LIBXL_VKB_BACKEND_LINUX: libxl_vkb_backend = 2;
pub type libxl_vkb_backend = ::core::ffi::c_uint;
pub const LIBXL_PASSTHROUGH_DEFAULT: libxl_passthrough = 0;
pub const LIBXL_PASSTHROUGH_DISABLED: libxl_passthrough = 1;
pub const LIBXL_PASSTHROUGH_ENABLED: libxl_passthrough = 2;
pub const LIBXL_PASSTHROUGH_SYNC_PT: libxl_passthrough = 3;
pub const LIBXL_PASSTHROUGH_SHARE_PT: libxl_passthrough = 4;
pub type libxl_passthrough = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_ioport_range {
    pub first: u32,
    pub number: u32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_iomem_range {
    pub start: u64,
    pub number: u64,
    pub gfn: u64,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_vga_interface_info {
    pub kind: libxl_vga_interface_type,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_vnc_info {
    pub enable: libxl_defbool,
    pub listen: *mut ::core::ffi::c_char,
    pub passwd: *mut ::core::ffi::c_char,
    pub display: ::core::ffi::c_int,
    pub findunused: libxl_defbool,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_spice_info {
    pub enable: libxl_defbool,
    pub port: ::core::ffi::c_int,
    pub tls_port: ::core::ffi::c_int,
    pub host: *mut ::core::ffi::c_char,
    pub disable_ticketing: libxl_defbool,
    pub passwd: *mut ::core::ffi::c_char,
    pub agent_mouse: libxl_defbool,
    pub vdagent: libxl_defbool,
    pub clipboard_sharing: libxl_defbool,
    pub usbredirection: ::core::ffi::c_int,
    pub image_compression: *mut ::core::ffi::c_char,
    pub streaming_video: *mut ::core::ffi::c_char,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_sdl_info {
    pub enable: libxl_defbool,
    pub opengl: libxl_defbool,
    pub display: *mut ::core::ffi::c_char,
    pub xauthority: *mut ::core::ffi::c_char,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_dominfo {
    pub uuid: libxl_uuid,
    pub domid: libxl_domid,
    pub ssidref: u32,
    pub ssid_label: *mut ::core::ffi::c_char,
    pub running: bool,
    pub blocked: bool,
    pub paused: bool,
    pub shutdown: bool,
    pub dying: bool,
    pub never_stop: bool,
    pub shutdown_reason: libxl_shutdown_reason,
    pub outstanding_memkb: u64,
    pub current_memkb: u64,
    pub shared_memkb: u64,
    pub paged_memkb: u64,
    pub max_memkb: u64,
    pub cpu_time: u64,
    pub vcpu_max_id: u32,
    pub vcpu_online: u32,
    pub cpupool: u32,
    pub gpaddr_bits: u8,
    pub domain_type: libxl_domain_type,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_version_info {
    pub xen_version_major: ::core::ffi::c_int,
    pub xen_version_minor: ::core::ffi::c_int,
    pub xen_version_extra: *mut ::core::ffi::c_char,
    pub compiler: *mut ::core::ffi::c_char,
    pub compile_by: *mut ::core::ffi::c_char,
    pub compile_domain: *mut ::core::ffi::c_char,
    pub compile_date: *mut ::core::ffi::c_char,
    pub capabilities: *mut ::core::ffi::c_char,
    pub changeset: *mut ::core::ffi::c_char,
    pub virt_start: u64,
    pub pagesize: ::core::ffi::c_int,
    pub commandline: *mut ::core::ffi::c_char,
    pub build_id: *mut ::core::ffi::c_char,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_domain_create_info {
    pub type_: libxl_domain_type,
    pub hap: libxl_defbool,
    pub oos: libxl_defbool,
    pub ssidref: u32,
    pub ssid_label: *mut ::core::ffi::c_char,
    pub name: *mut ::core::ffi::c_char,
    pub domid: libxl_domid,
    pub uuid: libxl_uuid,
    pub xsdata: libxl_key_value_list,
    pub platformdata: libxl_key_value_list,
    pub poolid: u32,
    pub pool_name: *mut ::core::ffi::c_char,
    pub run_hotplug_scripts: libxl_defbool,
    pub driver_domain: libxl_defbool,
    pub passthrough: libxl_passthrough,
    pub xend_suspend_evtchn_compat: libxl_defbool,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_domain_restore_params {
    pub checkpointed_stream: ::core::ffi::c_int,
    pub stream_version: u32,
    pub colo_proxy_script: *mut ::core::ffi::c_char,
    pub userspace_colo_proxy: libxl_defbool,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_domain_sched_params {
    pub sched: libxl_scheduler,
    pub weight: ::core::ffi::c_int,
    pub cap: ::core::ffi::c_int,
    pub period: ::core::ffi::c_int,
    pub budget: ::core::ffi::c_int,
    pub extratime: ::core::ffi::c_int,
    pub slice: ::core::ffi::c_int,
    pub latency: ::core::ffi::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_vnode_info {
    pub memkb: u64,
    pub num_distances: ::core::ffi::c_int,
    pub distances: *mut u32,
    pub pnode: u32,
    pub vcpus: libxl_bitmap,
}
pub const LIBXL_GIC_VERSION_DEFAULT: libxl_gic_version = 0;
pub const LIBXL_GIC_VERSION_V2: libxl_gic_version = 32;
pub const LIBXL_GIC_VERSION_V3: libxl_gic_version = 48;
pub type libxl_gic_version = ::core::ffi::c_uint;
pub const LIBXL_TEE_TYPE_NONE: libxl_tee_type = 0;
pub const LIBXL_TEE_TYPE_OPTEE: libxl_tee_type = 1;
pub type libxl_tee_type = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_rdm_reserve {
    pub strategy: libxl_rdm_reserve_strategy,
    pub policy: libxl_rdm_reserve_policy,
}
pub const LIBXL_ALTP2M_MODE_DISABLED: libxl_altp2m_mode = 0;
pub const LIBXL_ALTP2M_MODE_MIXED: libxl_altp2m_mode = 1;
pub const LIBXL_ALTP2M_MODE_EXTERNAL: libxl_altp2m_mode = 2;
pub const LIBXL_ALTP2M_MODE_LIMITED: libxl_altp2m_mode = 3;
pub type libxl_altp2m_mode = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Copy, Clone)]
pub struct libxl_domain_build_info {
    pub max_vcpus: ::core::ffi::c_int,
    pub avail_vcpus: libxl_bitmap,
    pub cpumap: libxl_bitmap,
    pub nodemap: libxl_bitmap,
    pub num_vcpu_hard_affinity: ::core::ffi::c_int,
    pub vcpu_hard_affinity: *mut libxl_bitmap,
    pub num_vcpu_soft_affinity: ::core::ffi::c_int,
    pub vcpu_soft_affinity: *mut libxl_bitmap,
    pub numa_placement: libxl_defbool,
    pub tsc_mode: libxl_tsc_mode,
    pub max_memkb: u64,
    pub target_memkb: u64,
    pub video_memkb: u64,
    pub shadow_memkb: u64,
    pub iommu_memkb: u64,
    pub rtc_timeoffset: u32,
    pub exec_ssidref: u32,
    pub exec_ssid_label: *mut ::core::ffi::c_char,
    pub localtime: libxl_defbool,
    pub disable_migrate: libxl_defbool,
    pub cpuid: libxl_cpuid_policy_list,
    pub blkdev_start: *mut ::core::ffi::c_char,
    pub num_vnuma_nodes: ::core::ffi::c_int,
    pub vnuma_nodes: *mut libxl_vnode_info,
    pub max_grant_frames: u32,
    pub max_maptrack_frames: u32,
    pub max_grant_version: ::core::ffi::c_int,
    pub device_model_version: libxl_device_model_version,
    pub device_model_stubdomain: libxl_defbool,
    pub stubdomain_memkb: u64,
    pub stubdomain_kernel: *mut ::core::ffi::c_char,
    pub stubdomain_cmdline: *mut ::core::ffi::c_char,
    pub stubdomain_ramdisk: *mut ::core::ffi::c_char,
    pub device_model: *mut ::core::ffi::c_char,
    pub device_model_ssidref: u32,
    pub device_model_ssid_label: *mut ::core::ffi::c_char,
    pub device_model_user: *mut ::core::ffi::c_char,
    pub extra: libxl_string_list,
    pub extra_pv: libxl_string_list,
    pub extra_hvm: libxl_string_list,
    pub sched_params: libxl_domain_sched_params,
    pub num_ioports: ::core::ffi::c_int,
    pub ioports: *mut libxl_ioport_range,
    pub num_irqs: ::core::ffi::c_int,
    pub irqs: *mut u32,
    pub num_iomem: ::core::ffi::c_int,
    pub iomem: *mut libxl_iomem_range,
    pub claim_mode: libxl_defbool,
    pub event_channels: u32,
    pub kernel: *mut ::core::ffi::c_char,
    pub cmdline: *mut ::core::ffi::c_char,
    pub ramdisk: *mut ::core::ffi::c_char,
    pub device_tree: *mut ::core::ffi::c_char,
    pub acpi: libxl_defbool,
    pub bootloader: *mut ::core::ffi::c_char,
    pub bootloader_args: libxl_string_list,
    pub timer_mode: libxl_timer_mode,
    pub nested_hvm: libxl_defbool,
    pub apic: libxl_defbool,
    pub dm_restrict: libxl_defbool,
    pub tee: libxl_tee_type,
    pub type_: libxl_domain_type,
    pub u: libxl_domain_build_info__bindgen_ty_1,
    pub arch_arm: libxl_domain_build_info__bindgen_ty_2,
    pub arch_x86: libxl_domain_build_info__bindgen_ty_3,
    pub altp2m: libxl_altp2m_mode,
    pub vmtrace_buf_kb: ::core::ffi::c_int,
    pub vpmu: libxl_defbool,
}
#[repr(C)]
#[derive(Copy, Clone)]
pub union libxl_domain_build_info__bindgen_ty_1 {
    pub hvm: libxl_domain_build_info__bindgen_ty_1__bindgen_ty_1,
    pub pv: libxl_domain_build_info__bindgen_ty_1__bindgen_ty_2,
    pub pvh: libxl_domain_build_info__bindgen_ty_1__bindgen_ty_3,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_domain_build_info__bindgen_ty_1__bindgen_ty_1 {
    pub firmware: *mut ::core::ffi::c_char,
    pub bios: libxl_bios_type,
    pub pae: libxl_defbool,
    pub apic: libxl_defbool,
    pub acpi: libxl_defbool,
    pub acpi_s3: libxl_defbool,
    pub acpi_s4: libxl_defbool,
    pub acpi_laptop_slate: libxl_defbool,
    pub nx: libxl_defbool,
    pub viridian: libxl_defbool,
    pub viridian_enable: libxl_bitmap,
    pub viridian_disable: libxl_bitmap,
    pub timeoffset: *mut ::core::ffi::c_char,
    pub hpet: libxl_defbool,
    pub vpt_align: libxl_defbool,
    pub mmio_hole_memkb: u64,
    pub timer_mode: libxl_timer_mode,
    pub nested_hvm: libxl_defbool,
    pub altp2m: libxl_defbool,
    pub system_firmware: *mut ::core::ffi::c_char,
    pub smbios_firmware: *mut ::core::ffi::c_char,
    pub acpi_firmware: *mut ::core::ffi::c_char,
    pub hdtype: libxl_hdtype,
    pub nographic: libxl_defbool,
    pub vga: libxl_vga_interface_info,
    pub vnc: libxl_vnc_info,
    pub keymap: *mut ::core::ffi::c_char,
    pub sdl: libxl_sdl_info,
    pub spice: libxl_spice_info,
    pub gfx_passthru: libxl_defbool,
    pub gfx_passthru_kind: libxl_gfx_passthru_kind,
    pub serial: *mut ::core::ffi::c_char,
    pub boot: *mut ::core::ffi::c_char,
    pub usb: libxl_defbool,
    pub usbversion: ::core::ffi::c_int,
    pub usbdevice: *mut ::core::ffi::c_char,
    pub vkb_device: libxl_defbool,
    pub soundhw: *mut ::core::ffi::c_char,
    pub xen_platform_pci: libxl_defbool,
    pub usbdevice_list: libxl_string_list,
    pub vendor_device: libxl_vendor_device,
    pub ms_vm_genid: libxl_ms_vm_genid,
    pub serial_list: libxl_string_list,
    pub rdm: libxl_rdm_reserve,
    pub rdm_mem_boundary_memkb: u64,
    pub mca_caps: u64,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_domain_build_info__bindgen_ty_1__bindgen_ty_2 {
    pub kernel: *mut ::core::ffi::c_char,
    pub slack_memkb: u64,
    pub bootloader: *mut ::core::ffi::c_char,
    pub bootloader_args: libxl_string_list,
    pub cmdline: *mut ::core::ffi::c_char,
    pub ramdisk: *mut ::core::ffi::c_char,
    pub features: *const ::core::ffi::c_char,
    pub e820_host: libxl_defbool,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_domain_build_info__bindgen_ty_1__bindgen_ty_3 {
    pub pvshim: libxl_defbool,
    pub pvshim_path: *mut ::core::ffi::c_char,
    pub pvshim_cmdline: *mut ::core::ffi::c_char,
    pub pvshim_extra: *mut ::core::ffi::c_char,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_domain_build_info__bindgen_ty_2 {
    pub gic_version: libxl_gic_version,
    pub vuart: libxl_vuart_type,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_domain_build_info__bindgen_ty_3 {
    pub msr_relaxed: libxl_defbool,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_device_vfb {
    pub backend_domid: libxl_domid,
    pub backend_domname: *mut ::core::ffi::c_char,
    pub devid: libxl_devid,
    pub vnc: libxl_vnc_info,
    pub sdl: libxl_sdl_info,
    pub keymap: *mut ::core::ffi::c_char,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_device_vkb {
    pub backend_domid: libxl_domid,
    pub backend_domname: *mut ::core::ffi::c_char,
    pub devid: libxl_devid,
    pub backend_type: libxl_vkb_backend,
    pub unique_id: *mut ::core::ffi::c_char,
    pub feature_disable_keyboard: bool,
    pub feature_disable_pointer: bool,
    pub feature_abs_pointer: bool,
    pub feature_raw_pointer: bool,
    pub feature_multi_touch: bool,
    pub width: u32,
    pub height: u32,
    pub multi_touch_width: u32,
    pub multi_touch_height: u32,
    pub multi_touch_num_contacts: u32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_device_disk {
    pub backend_domid: libxl_domid,
    pub backend_domname: *mut ::core::ffi::c_char,
    pub pdev_path: *mut ::core::ffi::c_char,
    pub vdev: *mut ::core::ffi::c_char,
    pub backend: libxl_disk_backend,
    pub format: libxl_disk_format,
    pub script: *mut ::core::ffi::c_char,
    pub removable: ::core::ffi::c_int,
    pub readwrite: ::core::ffi::c_int,
    pub is_cdrom: ::core::ffi::c_int,
    pub direct_io_safe: bool,
    pub discard_enable: libxl_defbool,
    pub specification: libxl_disk_specification,
    pub transport: libxl_disk_transport,
    pub irq: u32,
    pub base: u64,
    pub colo_enable: libxl_defbool,
    pub colo_restore_enable: libxl_defbool,
    pub colo_host: *mut ::core::ffi::c_char,
    pub colo_port: ::core::ffi::c_int,
    pub colo_export: *mut ::core::ffi::c_char,
    pub active_disk: *mut ::core::ffi::c_char,
    pub hidden_disk: *mut ::core::ffi::c_char,
    pub trusted: libxl_defbool,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_device_nic {
    pub backend_domid: libxl_domid,
    pub backend_domname: *mut ::core::ffi::c_char,
    pub devid: libxl_devid,
    pub mtu: ::core::ffi::c_int,
    pub model: *mut ::core::ffi::c_char,
    pub mac: libxl_mac,
    pub ip: *mut ::core::ffi::c_char,
    pub bridge: *mut ::core::ffi::c_char,
    pub ifname: *mut ::core::ffi::c_char,
    pub script: *mut ::core::ffi::c_char,
    pub nictype: libxl_nic_type,
    pub rate_bytes_per_interval: u64,
    pub rate_interval_usecs: u32,
    pub gatewaydev: *mut ::core::ffi::c_char,
    pub coloft_forwarddev: *mut ::core::ffi::c_char,
    pub colo_sock_mirror_id: *mut ::core::ffi::c_char,
    pub colo_sock_mirror_ip: *mut ::core::ffi::c_char,
    pub colo_sock_mirror_port: *mut ::core::ffi::c_char,
    pub colo_sock_compare_pri_in_id: *mut ::core::ffi::c_char,
    pub colo_sock_compare_pri_in_ip: *mut ::core::ffi::c_char,
    pub colo_sock_compare_pri_in_port: *mut ::core::ffi::c_char,
    pub colo_sock_compare_sec_in_id: *mut ::core::ffi::c_char,
    pub colo_sock_compare_sec_in_ip: *mut ::core::ffi::c_char,
    pub colo_sock_compare_sec_in_port: *mut ::core::ffi::c_char,
    pub colo_sock_compare_notify_id: *mut ::core::ffi::c_char,
    pub colo_sock_compare_notify_ip: *mut ::core::ffi::c_char,
    pub colo_sock_compare_notify_port: *mut ::core::ffi::c_char,
    pub colo_sock_redirector0_id: *mut ::core::ffi::c_char,
    pub colo_sock_redirector0_ip: *mut ::core::ffi::c_char,
    pub colo_sock_redirector0_port: *mut ::core::ffi::c_char,
    pub colo_sock_redirector1_id: *mut ::core::ffi::c_char,
    pub colo_sock_redirector1_ip: *mut ::core::ffi::c_char,
    pub colo_sock_redirector1_port: *mut ::core::ffi::c_char,
    pub colo_sock_redirector2_id: *mut ::core::ffi::c_char,
    pub colo_sock_redirector2_ip: *mut ::core::ffi::c_char,
    pub colo_sock_redirector2_port: *mut ::core::ffi::c_char,
    pub colo_filter_mirror_queue: *mut ::core::ffi::c_char,
    pub colo_filter_mirror_outdev: *mut ::core::ffi::c_char,
    pub colo_filter_redirector0_queue: *mut ::core::ffi::c_char,
    pub colo_filter_redirector0_indev: *mut ::core::ffi::c_char,
    pub colo_filter_redirector0_outdev: *mut ::core::ffi::c_char,
    pub colo_filter_redirector1_queue: *mut ::core::ffi::c_char,
    pub colo_filter_redirector1_indev: *mut ::core::ffi::c_char,
    pub colo_filter_redirector1_outdev: *mut ::core::ffi::c_char,
    pub colo_compare_pri_in: *mut ::core::ffi::c_char,
    pub colo_compare_sec_in: *mut ::core::ffi::c_char,
    pub colo_compare_out: *mut ::core::ffi::c_char,
    pub colo_compare_notify_dev: *mut ::core::ffi::c_char,
    pub colo_sock_sec_redirector0_id: *mut ::core::ffi::c_char,
    pub colo_sock_sec_redirector0_ip: *mut ::core::ffi::c_char,
    pub colo_sock_sec_redirector0_port: *mut ::core::ffi::c_char,
    pub colo_sock_sec_redirector1_id: *mut ::core::ffi::c_char,
    pub colo_sock_sec_redirector1_ip: *mut ::core::ffi::c_char,
    pub colo_sock_sec_redirector1_port: *mut ::core::ffi::c_char,
    pub colo_filter_sec_redirector0_queue: *mut ::core::ffi::c_char,
    pub colo_filter_sec_redirector0_indev: *mut ::core::ffi::c_char,
    pub colo_filter_sec_redirector0_outdev: *mut ::core::ffi::c_char,
    pub colo_filter_sec_redirector1_queue: *mut ::core::ffi::c_char,
    pub colo_filter_sec_redirector1_indev: *mut ::core::ffi::c_char,
    pub colo_filter_sec_redirector1_outdev: *mut ::core::ffi::c_char,
    pub colo_filter_sec_rewriter0_queue: *mut ::core::ffi::c_char,
    pub colo_checkpoint_host: *mut ::core::ffi::c_char,
    pub colo_checkpoint_port: *mut ::core::ffi::c_char,
    pub trusted: libxl_defbool,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_device_pci {
    pub func: u8,
    pub dev: u8,
    pub bus: u8,
    pub domain: ::core::ffi::c_int,
    pub vdevfn: u32,
    pub vfunc_mask: u32,
    pub msitranslate: bool,
    pub power_mgmt: bool,
    pub permissive: bool,
    pub seize: bool,
    pub rdm_policy: libxl_rdm_reserve_policy,
    pub name: *mut ::core::ffi::c_char,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_device_rdm {
    pub start: u64,
    pub size: u64,
    pub policy: libxl_rdm_reserve_policy,
}
pub const LIBXL_USBCTRL_TYPE_AUTO: libxl_usbctrl_type = 0;
pub const LIBXL_USBCTRL_TYPE_PV: libxl_usbctrl_type = 1;
pub const LIBXL_USBCTRL_TYPE_DEVICEMODEL: libxl_usbctrl_type = 2;
pub const LIBXL_USBCTRL_TYPE_QUSB: libxl_usbctrl_type = 3;
pub type libxl_usbctrl_type = ::core::ffi::c_uint;
pub const LIBXL_USBDEV_TYPE_HOSTDEV: libxl_usbdev_type = 1;
pub type libxl_usbdev_type = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_device_usbctrl {
    pub type_: libxl_usbctrl_type,
    pub devid: libxl_devid,
    pub version: ::core::ffi::c_int,
    pub ports: ::core::ffi::c_int,
    pub backend_domid: libxl_domid,
    pub backend_domname: *mut ::core::ffi::c_char,
}
#[repr(C)]
#[derive(Copy, Clone)]
pub struct libxl_device_usbdev {
    pub ctrl: libxl_devid,
    pub port: ::core::ffi::c_int,
    pub type_: libxl_usbdev_type,
    pub u: libxl_device_usbdev__bindgen_ty_1,
}
#[repr(C)]
#[derive(Copy, Clone)]
pub union libxl_device_usbdev__bindgen_ty_1 {
    pub hostdev: libxl_device_usbdev__bindgen_ty_1__bindgen_ty_1,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_device_usbdev__bindgen_ty_1__bindgen_ty_1 {
    pub hostbus: u8,
    pub hostaddr: u8,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_device_dtdev {
    pub path: *mut ::core::ffi::c_char,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_device_vtpm {
    pub backend_domid: libxl_domid,
    pub backend_domname: *mut ::core::ffi::c_char,
    pub devid: libxl_devid,
    pub uuid: libxl_uuid,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_device_p9 {
    pub backend_domid: libxl_domid,
    pub backend_domname: *mut ::core::ffi::c_char,
    pub tag: *mut ::core::ffi::c_char,
    pub path: *mut ::core::ffi::c_char,
    pub security_model: *mut ::core::ffi::c_char,
    pub devid: libxl_devid,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_device_pvcallsif {
    pub backend_domid: libxl_domid,
    pub backend_domname: *mut ::core::ffi::c_char,
    pub devid: libxl_devid,
}
#[repr(C)]
#[derive(Copy, Clone)]
pub struct libxl_device_channel {
    pub backend_domid: libxl_domid,
    pub backend_domname: *mut ::core::ffi::c_char,
    pub devid: libxl_devid,
    pub name: *mut ::core::ffi::c_char,
    pub connection: libxl_channel_connection,
    pub u: libxl_device_channel__bindgen_ty_1,
}
#[repr(C)]
#[derive(Copy, Clone)]
pub union libxl_device_channel__bindgen_ty_1 {
    pub socket: libxl_device_channel__bindgen_ty_1__bindgen_ty_1,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_device_channel__bindgen_ty_1__bindgen_ty_1 {
    pub path: *mut ::core::ffi::c_char,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_connector_param {
    pub unique_id: *mut ::core::ffi::c_char,
    pub width: u32,
    pub height: u32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_device_vdispl {
    pub backend_domid: libxl_domid,
    pub backend_domname: *mut ::core::ffi::c_char,
    pub devid: libxl_devid,
    pub be_alloc: bool,
    pub num_connectors: ::core::ffi::c_int,
    pub connectors: *mut libxl_connector_param,
}
pub const LIBXL_VSND_PCM_FORMAT_S8: libxl_vsnd_pcm_format = 1;
pub const LIBXL_VSND_PCM_FORMAT_U8: libxl_vsnd_pcm_format = 2;
pub const LIBXL_VSND_PCM_FORMAT_S16_LE: libxl_vsnd_pcm_format = 3;
pub const LIBXL_VSND_PCM_FORMAT_S16_BE: libxl_vsnd_pcm_format = 4;
pub const LIBXL_VSND_PCM_FORMAT_U16_LE: libxl_vsnd_pcm_format = 5;
pub const LIBXL_VSND_PCM_FORMAT_U16_BE: libxl_vsnd_pcm_format = 6;
pub const LIBXL_VSND_PCM_FORMAT_S24_LE: libxl_vsnd_pcm_format = 7;
pub const LIBXL_VSND_PCM_FORMAT_S24_BE: libxl_vsnd_pcm_format = 8;
pub const LIBXL_VSND_PCM_FORMAT_U24_LE: libxl_vsnd_pcm_format = 9;
pub const LIBXL_VSND_PCM_FORMAT_U24_BE: libxl_vsnd_pcm_format = 10;
pub const LIBXL_VSND_PCM_FORMAT_S32_LE: libxl_vsnd_pcm_format = 11;
pub const LIBXL_VSND_PCM_FORMAT_S32_BE: libxl_vsnd_pcm_format = 12;
pub const LIBXL_VSND_PCM_FORMAT_U32_LE: libxl_vsnd_pcm_format = 13;
pub const LIBXL_VSND_PCM_FORMAT_U32_BE: libxl_vsnd_pcm_format = 14;
pub const LIBXL_VSND_PCM_FORMAT_F32_LE: libxl_vsnd_pcm_format = 15;
pub const LIBXL_VSND_PCM_FORMAT_F32_BE: libxl_vsnd_pcm_format = 16;
pub const LIBXL_VSND_PCM_FORMAT_F64_LE: libxl_vsnd_pcm_format = 17;
pub const LIBXL_VSND_PCM_FORMAT_F64_BE: libxl_vsnd_pcm_format = 18;
pub const LIBXL_VSND_PCM_FORMAT_IEC958_SUBFRAME_LE: libxl_vsnd_pcm_format = 19;
pub const LIBXL_VSND_PCM_FORMAT_IEC958_SUBFRAME_BE: libxl_vsnd_pcm_format = 20;
pub const LIBXL_VSND_PCM_FORMAT_MU_LAW: libxl_vsnd_pcm_format = 21;
pub const LIBXL_VSND_PCM_FORMAT_A_LAW: libxl_vsnd_pcm_format = 22;
pub const LIBXL_VSND_PCM_FORMAT_IMA_ADPCM: libxl_vsnd_pcm_format = 23;
pub const LIBXL_VSND_PCM_FORMAT_MPEG: libxl_vsnd_pcm_format = 24;
pub const LIBXL_VSND_PCM_FORMAT_GSM: libxl_vsnd_pcm_format = 25;
pub type libxl_vsnd_pcm_format = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_vsnd_params {
    pub num_sample_rates: ::core::ffi::c_int,
    pub sample_rates: *mut u32,
    pub num_sample_formats: ::core::ffi::c_int,
    pub sample_formats: *mut libxl_vsnd_pcm_format,
    pub channels_min: u32,
    pub channels_max: u32,
    pub buffer_size: u32,
}
pub const LIBXL_VSND_STREAM_TYPE_P: libxl_vsnd_stream_type = 1;
pub const LIBXL_VSND_STREAM_TYPE_C: libxl_vsnd_stream_type = 2;
pub type libxl_vsnd_stream_type = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_vsnd_stream {
    pub unique_id: *mut ::core::ffi::c_char,
    pub type_: libxl_vsnd_stream_type,
    pub params: libxl_vsnd_params,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_vsnd_pcm {
    pub name: *mut ::core::ffi::c_char,
    pub params: libxl_vsnd_params,
    pub num_vsnd_streams: ::core::ffi::c_int,
    pub streams: *mut libxl_vsnd_stream,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_device_vsnd {
    pub backend_domid: libxl_domid,
    pub backend_domname: *mut ::core::ffi::c_char,
    pub devid: libxl_devid,
    pub short_name: *mut ::core::ffi::c_char,
    pub long_name: *mut ::core::ffi::c_char,
    pub params: libxl_vsnd_params,
    pub num_vsnd_pcms: ::core::ffi::c_int,
    pub pcms: *mut libxl_vsnd_pcm,
}
#[repr(C)]
#[derive(Copy, Clone)]
pub struct libxl_domain_config {
    pub c_info: libxl_domain_create_info,
    pub b_info: libxl_domain_build_info,
    pub num_disks: ::core::ffi::c_int,
    pub disks: *mut libxl_device_disk,
    pub num_nics: ::core::ffi::c_int,
    pub nics: *mut libxl_device_nic,
    pub num_pcidevs: ::core::ffi::c_int,
    pub pcidevs: *mut libxl_device_pci,
    pub num_rdms: ::core::ffi::c_int,
    pub rdms: *mut libxl_device_rdm,
    pub num_dtdevs: ::core::ffi::c_int,
    pub dtdevs: *mut libxl_device_dtdev,
    pub num_vfbs: ::core::ffi::c_int,
    pub vfbs: *mut libxl_device_vfb,
    pub num_vkbs: ::core::ffi::c_int,
    pub vkbs: *mut libxl_device_vkb,
    pub num_vtpms: ::core::ffi::c_int,
    pub vtpms: *mut libxl_device_vtpm,
    pub num_p9s: ::core::ffi::c_int,
    pub p9s: *mut libxl_device_p9,
    pub num_pvcallsifs: ::core::ffi::c_int,
    pub pvcallsifs: *mut libxl_device_pvcallsif,
    pub num_vdispls: ::core::ffi::c_int,
    pub vdispls: *mut libxl_device_vdispl,
    pub num_vsnds: ::core::ffi::c_int,
    pub vsnds: *mut libxl_device_vsnd,
    pub num_channels: ::core::ffi::c_int,
    pub channels: *mut libxl_device_channel,
    pub num_usbctrls: ::core::ffi::c_int,
    pub usbctrls: *mut libxl_device_usbctrl,
    pub num_usbdevs: ::core::ffi::c_int,
    pub usbdevs: *mut libxl_device_usbdev,
    pub on_poweroff: libxl_action_on_shutdown,
    pub on_reboot: libxl_action_on_shutdown,
    pub on_watchdog: libxl_action_on_shutdown,
    pub on_crash: libxl_action_on_shutdown,
    pub on_soft_reset: libxl_action_on_shutdown,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_vcpuinfo {
    pub vcpuid: u32,
    pub cpu: u32,
    pub online: bool,
    pub blocked: bool,
    pub running: bool,
    pub vcpu_time: u64,
    pub cpumap: libxl_bitmap,
    pub cpumap_soft: libxl_bitmap,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_physinfo {
    pub threads_per_core: u32,
    pub cores_per_socket: u32,
    pub max_cpu_id: u32,
    pub nr_cpus: u32,
    pub cpu_khz: u32,
    pub total_pages: u64,
    pub free_pages: u64,
    pub scrub_pages: u64,
    pub outstanding_pages: u64,
    pub sharing_freed_pages: u64,
    pub sharing_used_frames: u64,
    pub max_possible_mfn: u64,
    pub nr_nodes: u32,
    pub hw_cap: libxl_hwcap,
    pub cap_hvm: bool,
    pub cap_pv: bool,
    pub cap_hvm_directio: bool,
    pub cap_hap: bool,
    pub cap_shadow: bool,
    pub cap_iommu_hap_pt_share: bool,
    pub cap_vmtrace: bool,
    pub cap_vpmu: bool,
    pub cap_gnttab_v1: bool,
    pub cap_gnttab_v2: bool,
}
pub const LIBXL_EVENT_TYPE_DOMAIN_SHUTDOWN: libxl_event_type = 1;
pub const LIBXL_EVENT_TYPE_DOMAIN_DEATH: libxl_event_type = 2;
pub const LIBXL_EVENT_TYPE_DISK_EJECT: libxl_event_type = 3;
pub const LIBXL_EVENT_TYPE_OPERATION_COMPLETE: libxl_event_type = 4;
pub const LIBXL_EVENT_TYPE_DOMAIN_CREATE_CONSOLE_AVAILABLE: libxl_event_type = 5;
pub type libxl_event_type = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Copy, Clone)]
pub struct libxl_event {
    pub link: libxl_ev_link,
    pub domid: libxl_domid,
    pub domuuid: libxl_uuid,
    pub for_user: u64,
    pub type_: libxl_event_type,
    pub u: libxl_event__bindgen_ty_1,
}
#[repr(C)]
#[derive(Copy, Clone)]
pub union libxl_event__bindgen_ty_1 {
    pub domain_shutdown: libxl_event__bindgen_ty_1__bindgen_ty_1,
    pub disk_eject: libxl_event__bindgen_ty_1__bindgen_ty_2,
    pub operation_complete: libxl_event__bindgen_ty_1__bindgen_ty_3,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_event__bindgen_ty_1__bindgen_ty_1 {
    pub shutdown_reason: u8,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_event__bindgen_ty_1__bindgen_ty_2 {
    pub vdev: *mut ::core::ffi::c_char,
    pub disk: libxl_device_disk,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_event__bindgen_ty_1__bindgen_ty_3 {
    pub rc: ::core::ffi::c_int,
}
#[repr(C)]
#[derive(Copy, Clone)]
pub struct libxl_asyncop_how {
    pub callback: ::core::option::Option<
        unsafe extern "C" fn(
            ctx: *mut libxl_ctx,
            rc: ::core::ffi::c_int,
            for_callback: *mut ::core::ffi::c_void,
        ),
    >,
    pub u: libxl_asyncop_how__bindgen_ty_1,
}
#[repr(C)]
#[derive(Copy, Clone)]
pub union libxl_asyncop_how__bindgen_ty_1 {
    pub for_event: libxl_ev_user,
    pub for_callback: *mut ::core::ffi::c_void,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_asyncprogress_how {
    pub callback: ::core::option::Option<
        unsafe extern "C" fn(
            ctx: *mut libxl_ctx,
            arg1: *mut libxl_event,
            for_callback: *mut ::core::ffi::c_void,
        ),
    >,
    pub for_event: libxl_ev_user,
    pub for_callback: *mut ::core::ffi::c_void,
}
pub type libxl_event_predicate = ::core::option::Option<
    unsafe extern "C" fn(
        arg1: *const libxl_event,
        user: *mut ::core::ffi::c_void,
    ) -> ::core::ffi::c_int,
>;
#[repr(C)]
#[derive(Debug)]
pub struct libxl__evgen_domain_death {
    _unused: [u8; 0],
}
pub type libxl_evgen_domain_death = libxl__evgen_domain_death;
pub const libxl_sigchld_owner_libxl: libxl_sigchld_owner = 0;
pub const libxl_sigchld_owner_mainloop: libxl_sigchld_owner = 1;
pub const libxl_sigchld_owner_libxl_always: libxl_sigchld_owner = 2;
pub const libxl_sigchld_owner_libxl_always_selective_reap: libxl_sigchld_owner = 3;
pub type libxl_sigchld_owner = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct libxl_childproc_hooks {
    pub chldowner: libxl_sigchld_owner,
    pub fork_replacement:
        ::core::option::Option<unsafe extern "C" fn(user: *mut ::core::ffi::c_void) -> pid_t>,
    pub reaped_callback: ::core::option::Option<
        unsafe extern "C" fn(
            arg1: pid_t,
            status: ::core::ffi::c_int,
            user: *mut ::core::ffi::c_void,
        ) -> ::core::ffi::c_int,
    >,
}
pub type __builtin_va_list = [__va_list_tag; 1usize];
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct __va_list_tag {
    pub gp_offset: ::core::ffi::c_uint,
    pub fp_offset: ::core::ffi::c_uint,
    pub overflow_arg_area: *mut ::core::ffi::c_void,
    pub reg_save_area: *mut ::core::ffi::c_void,
}
pub struct Libxl {
    __library: ::libloading::Library,
    pub libxl_dominfo_dispose: unsafe extern "C" fn(p: *mut libxl_dominfo),
    pub libxl_dominfo_init: unsafe extern "C" fn(p: *mut libxl_dominfo),
    pub libxl_domain_restore_params_dispose:
        unsafe extern "C" fn(p: *mut libxl_domain_restore_params),
    pub libxl_domain_restore_params_init: unsafe extern "C" fn(p: *mut libxl_domain_restore_params),
    pub libxl_domain_config_dispose: unsafe extern "C" fn(p: *mut libxl_domain_config),
    pub libxl_domain_config_init: unsafe extern "C" fn(p: *mut libxl_domain_config),
    pub libxl_domain_config_to_json: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        p: *mut libxl_domain_config,
    ) -> *mut ::core::ffi::c_char,
    pub libxl_domain_config_from_json: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        p: *mut libxl_domain_config,
        s: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int,
    pub libxl_physinfo_dispose: unsafe extern "C" fn(p: *mut libxl_physinfo),
    pub libxl_physinfo_init: unsafe extern "C" fn(p: *mut libxl_physinfo),
    pub libxl_get_version_info:
        unsafe extern "C" fn(ctx: *mut libxl_ctx) -> *const libxl_version_info,
    pub libxl_ao_abort: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int,
    pub libxl_ctx_alloc: unsafe extern "C" fn(
        pctx: *mut *mut libxl_ctx,
        version: ::core::ffi::c_int,
        flags: ::core::ffi::c_uint,
        lg: *mut xentoollog_logger,
    ) -> ::core::ffi::c_int,
    pub libxl_ctx_free: unsafe extern "C" fn(ctx: *mut libxl_ctx) -> ::core::ffi::c_int,
    pub libxl_domain_create_new: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        d_config: *mut libxl_domain_config,
        domid: *mut u32,
        ao_how: *const libxl_asyncop_how,
        aop_console_how: *const libxl_asyncprogress_how,
    ) -> ::core::ffi::c_int,
    pub libxl_domain_create_restore: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        d_config: *mut libxl_domain_config,
        domid: *mut u32,
        restore_fd: ::core::ffi::c_int,
        send_back_fd: ::core::ffi::c_int,
        params: *const libxl_domain_restore_params,
        ao_how: *const libxl_asyncop_how,
        aop_console_how: *const libxl_asyncprogress_how,
    ) -> ::core::ffi::c_int,
    pub libxl_retrieve_domain_configuration: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid: u32,
        d_config: *mut libxl_domain_config,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int,
    pub libxl_domain_suspend: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid: u32,
        fd: ::core::ffi::c_int,
        flags: ::core::ffi::c_int,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int,
    pub libxl_domain_resume: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid: u32,
        suspend_cancel: ::core::ffi::c_int,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int,
    pub libxl_domain_shutdown: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid: u32,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int,
    pub libxl_domain_reboot: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid: u32,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int,
    pub libxl_domain_destroy: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid: u32,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int,
    pub libxl_domain_rename: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid: u32,
        old_name: *const ::core::ffi::c_char,
        new_name: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int,
    pub libxl_domain_pause: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid: u32,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int,
    pub libxl_domain_unpause: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid: u32,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int,
    pub libxl_set_memory_target: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid: u32,
        target_memkb: i64,
        relative: ::core::ffi::c_int,
        enforce: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int,
    pub libxl_primary_console_get_tty: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid_vm: u32,
        path: *mut *mut ::core::ffi::c_char,
    ) -> ::core::ffi::c_int,
    pub libxl_domain_info: unsafe extern "C" fn(
        arg1: *mut libxl_ctx,
        info_r: *mut libxl_dominfo,
        domid: u32,
    ) -> ::core::ffi::c_int,
    pub libxl_list_domain: unsafe extern "C" fn(
        arg1: *mut libxl_ctx,
        nb_domain_out: *mut ::core::ffi::c_int,
    ) -> *mut libxl_dominfo,
    pub libxl_dominfo_list_free:
        unsafe extern "C" fn(list: *mut libxl_dominfo, nb_domain: ::core::ffi::c_int),
    pub libxl_list_vcpu: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid: u32,
        nb_vcpu: *mut ::core::ffi::c_int,
        nr_cpus_out: *mut ::core::ffi::c_int,
    ) -> *mut libxl_vcpuinfo,
    pub libxl_vcpuinfo_list_free:
        unsafe extern "C" fn(arg1: *mut libxl_vcpuinfo, nr_vcpus: ::core::ffi::c_int),
    pub libxl_userdata_store: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid: u32,
        userdata_userid: *const ::core::ffi::c_char,
        data: *const u8,
        datalen: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int,
    pub libxl_userdata_retrieve: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid: u32,
        userdata_userid: *const ::core::ffi::c_char,
        data_r: *mut *mut u8,
        datalen_r: *mut ::core::ffi::c_int,
    ) -> ::core::ffi::c_int,
    pub libxl_get_physinfo: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        physinfo: *mut libxl_physinfo,
    ) -> ::core::ffi::c_int,
    pub libxl_send_trigger: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid: u32,
        trigger: libxl_trigger,
        vcpuid: u32,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int,
    pub libxl_event_wait: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        event_r: *mut *mut libxl_event,
        typemask: u64,
        predicate: libxl_event_predicate,
        predicate_user: *mut ::core::ffi::c_void,
    ) -> ::core::ffi::c_int,
    pub libxl_event_free: unsafe extern "C" fn(ctx: *mut libxl_ctx, event: *mut libxl_event),
    pub libxl_evenable_domain_death: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        domid: u32,
        arg1: libxl_ev_user,
        evgen_out: *mut *mut libxl_evgen_domain_death,
    ) -> ::core::ffi::c_int,
    pub libxl_evdisable_domain_death:
        unsafe extern "C" fn(ctx: *mut libxl_ctx, arg1: *mut libxl_evgen_domain_death),
    pub libxl_childproc_setmode: unsafe extern "C" fn(
        ctx: *mut libxl_ctx,
        hooks: *const libxl_childproc_hooks,
        user: *mut ::core::ffi::c_void,
    ),
    pub libxl_domid_to_name:
        unsafe extern "C" fn(ctx: *mut libxl_ctx, domid: u32) -> *mut ::core::ffi::c_char,
}
impl Libxl {
    pub unsafe fn new<P>(path: P) -> Result<Self, ::libloading::Error>
    where
        P: AsRef<::std::ffi::OsStr>,
    {
        let path = path.as_ref();
        let library = ::libloading::Library::new(path)?;
        Self::from_library(library)
    }
    pub unsafe fn from_library<L>(library: L) -> Result<Self, ::libloading::Error>
    where
        L: Into<::libloading::Library>,
    {
        let __library = library.into();
        let libxl_dominfo_dispose = __library.get(b"libxl_dominfo_dispose\0").map(|sym| *sym)?;
        let libxl_dominfo_init = __library.get(b"libxl_dominfo_init\0").map(|sym| *sym)?;
        let libxl_domain_restore_params_dispose =
            __library.get(b"libxl_domain_restore_params_dispose\0").map(|sym| *sym)?;
        let libxl_domain_restore_params_init =
            __library.get(b"libxl_domain_restore_params_init\0").map(|sym| *sym)?;
        let libxl_domain_config_dispose =
            __library.get(b"libxl_domain_config_dispose\0").map(|sym| *sym)?;
        let libxl_domain_config_init =
            __library.get(b"libxl_domain_config_init\0").map(|sym| *sym)?;
        let libxl_domain_config_to_json =
            __library.get(b"libxl_domain_config_to_json\0").map(|sym| *sym)?;
        let libxl_domain_config_from_json =
            __library.get(b"libxl_domain_config_from_json\0").map(|sym| *sym)?;
        let libxl_physinfo_dispose = __library.get(b"libxl_physinfo_dispose\0").map(|sym| *sym)?;
        let libxl_physinfo_init = __library.get(b"libxl_physinfo_init\0").map(|sym| *sym)?;
        let libxl_get_version_info = __library.get(b"libxl_get_version_info\0").map(|sym| *sym)?;
        let libxl_ao_abort = __library.get(b"libxl_ao_abort\0").map(|sym| *sym)?;
        let libxl_ctx_alloc = __library.get(b"libxl_ctx_alloc\0").map(|sym| *sym)?;
        let libxl_ctx_free = __library.get(b"libxl_ctx_free\0").map(|sym| *sym)?;
        let libxl_domain_create_new =
            __library.get(b"libxl_domain_create_new\0").map(|sym| *sym)?;
        let libxl_domain_create_restore =
            __library.get(b"libxl_domain_create_restore\0").map(|sym| *sym)?;
        let libxl_retrieve_domain_configuration =
            __library.get(b"libxl_retrieve_domain_configuration\0").map(|sym| *sym)?;
        let libxl_domain_suspend = __library.get(b"libxl_domain_suspend\0").map(|sym| *sym)?;
        let libxl_domain_resume = __library.get(b"libxl_domain_resume\0").map(|sym| *sym)?;
        let libxl_domain_shutdown = __library.get(b"libxl_domain_shutdown\0").map(|sym| *sym)?;
        let libxl_domain_reboot = __library.get(b"libxl_domain_reboot\0").map(|sym| *sym)?;
        let libxl_domain_destroy = __library.get(b"libxl_domain_destroy\0").map(|sym| *sym)?;
        let libxl_domain_rename = __library.get(b"libxl_domain_rename\0").map(|sym| *sym)?;
        let libxl_domain_pause = __library.get(b"libxl_domain_pause\0").map(|sym| *sym)?;
        let libxl_domain_unpause = __library.get(b"libxl_domain_unpause\0").map(|sym| *sym)?;
        let libxl_set_memory_target =
            __library.get(b"libxl_set_memory_target\0").map(|sym| *sym)?;
        let libxl_primary_console_get_tty =
            __library.get(b"libxl_primary_console_get_tty\0").map(|sym| *sym)?;
        let libxl_domain_info = __library.get(b"libxl_domain_info\0").map(|sym| *sym)?;
        let libxl_list_domain = __library.get(b"libxl_list_domain\0").map(|sym| *sym)?;
        let libxl_dominfo_list_free =
            __library.get(b"libxl_dominfo_list_free\0").map(|sym| *sym)?;
        let libxl_list_vcpu = __library.get(b"libxl_list_vcpu\0").map(|sym| *sym)?;
        let libxl_vcpuinfo_list_free =
            __library.get(b"libxl_vcpuinfo_list_free\0").map(|sym| *sym)?;
        let libxl_userdata_store = __library.get(b"libxl_userdata_store\0").map(|sym| *sym)?;
        let libxl_userdata_retrieve =
            __library.get(b"libxl_userdata_retrieve\0").map(|sym| *sym)?;
        let libxl_get_physinfo = __library.get(b"libxl_get_physinfo\0").map(|sym| *sym)?;
        let libxl_send_trigger = __library.get(b"libxl_send_trigger\0").map(|sym| *sym)?;
        let libxl_event_wait = __library.get(b"libxl_event_wait\0").map(|sym| *sym)?;
        let libxl_event_free = __library.get(b"libxl_event_free\0").map(|sym| *sym)?;
        let libxl_evenable_domain_death =
            __library.get(b"libxl_evenable_domain_death\0").map(|sym| *sym)?;
        let libxl_evdisable_domain_death =
            __library.get(b"libxl_evdisable_domain_death\0").map(|sym| *sym)?;
        let libxl_childproc_setmode =
            __library.get(b"libxl_childproc_setmode\0").map(|sym| *sym)?;
        let libxl_domid_to_name = __library.get(b"libxl_domid_to_name\0").map(|sym| *sym)?;
        Ok(Libxl {
            __library,
            libxl_dominfo_dispose,
            libxl_dominfo_init,
            libxl_domain_restore_params_dispose,
            libxl_domain_restore_params_init,
            libxl_domain_config_dispose,
            libxl_domain_config_init,
            libxl_domain_config_to_json,
            libxl_domain_config_from_json,
            libxl_physinfo_dispose,
            libxl_physinfo_init,
            libxl_get_version_info,
            libxl_ao_abort,
            libxl_ctx_alloc,
            libxl_ctx_free,
            libxl_domain_create_new,
            libxl_domain_create_restore,
            libxl_retrieve_domain_configuration,
            libxl_domain_suspend,
            libxl_domain_resume,
            libxl_domain_shutdown,
            libxl_domain_reboot,
            libxl_domain_destroy,
            libxl_domain_rename,
            libxl_domain_pause,
            libxl_domain_unpause,
            libxl_set_memory_target,
            libxl_primary_console_get_tty,
            libxl_domain_info,
            libxl_list_domain,
            libxl_dominfo_list_free,
            libxl_list_vcpu,
            libxl_vcpuinfo_list_free,
            libxl_userdata_store,
            libxl_userdata_retrieve,
            libxl_get_physinfo,
            libxl_send_trigger,
            libxl_event_wait,
            libxl_event_free,
            libxl_evenable_domain_death,
            libxl_evdisable_domain_death,
            libxl_childproc_setmode,
            libxl_domid_to_name,
        })
    }
    pub unsafe fn libxl_dominfo_dispose(&self, p: *mut libxl_dominfo) {
        (self.libxl_dominfo_dispose)(p)
    }
    pub unsafe fn libxl_dominfo_init(&self, p: *mut libxl_dominfo) {
        (self.libxl_dominfo_init)(p)
    }
    pub unsafe fn libxl_domain_restore_params_dispose(&self, p: *mut libxl_domain_restore_params) {
        (self.libxl_domain_restore_params_dispose)(p)
    }
    pub unsafe fn libxl_domain_restore_params_init(&self, p: *mut libxl_domain_restore_params) {
        (self.libxl_domain_restore_params_init)(p)
    }
    pub unsafe fn libxl_domain_config_dispose(&self, p: *mut libxl_domain_config) {
        (self.libxl_domain_config_dispose)(p)
    }
    pub unsafe fn libxl_domain_config_init(&self, p: *mut libxl_domain_config) {
        (self.libxl_domain_config_init)(p)
    }
    pub unsafe fn libxl_domain_config_to_json(
        &self,
        ctx: *mut libxl_ctx,
        p: *mut libxl_domain_config,
    ) -> *mut ::core::ffi::c_char {
        (self.libxl_domain_config_to_json)(ctx, p)
    }
    pub unsafe fn libxl_domain_config_from_json(
        &self,
        ctx: *mut libxl_ctx,
        p: *mut libxl_domain_config,
        s: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int {
        (self.libxl_domain_config_from_json)(ctx, p, s)
    }
    pub unsafe fn libxl_physinfo_dispose(&self, p: *mut libxl_physinfo) {
        (self.libxl_physinfo_dispose)(p)
    }
    pub unsafe fn libxl_physinfo_init(&self, p: *mut libxl_physinfo) {
        (self.libxl_physinfo_init)(p)
    }
    pub unsafe fn libxl_get_version_info(&self, ctx: *mut libxl_ctx) -> *const libxl_version_info {
        (self.libxl_get_version_info)(ctx)
    }
    pub unsafe fn libxl_ao_abort(
        &self,
        ctx: *mut libxl_ctx,
        how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int {
        (self.libxl_ao_abort)(ctx, how)
    }
    pub unsafe fn libxl_ctx_alloc(
        &self,
        pctx: *mut *mut libxl_ctx,
        version: ::core::ffi::c_int,
        flags: ::core::ffi::c_uint,
        lg: *mut xentoollog_logger,
    ) -> ::core::ffi::c_int {
        (self.libxl_ctx_alloc)(pctx, version, flags, lg)
    }
    pub unsafe fn libxl_ctx_free(&self, ctx: *mut libxl_ctx) -> ::core::ffi::c_int {
        (self.libxl_ctx_free)(ctx)
    }
    pub unsafe fn libxl_domain_create_new(
        &self,
        ctx: *mut libxl_ctx,
        d_config: *mut libxl_domain_config,
        domid: *mut u32,
        ao_how: *const libxl_asyncop_how,
        aop_console_how: *const libxl_asyncprogress_how,
    ) -> ::core::ffi::c_int {
        (self.libxl_domain_create_new)(ctx, d_config, domid, ao_how, aop_console_how)
    }
    pub unsafe fn libxl_domain_create_restore(
        &self,
        ctx: *mut libxl_ctx,
        d_config: *mut libxl_domain_config,
        domid: *mut u32,
        restore_fd: ::core::ffi::c_int,
        send_back_fd: ::core::ffi::c_int,
        params: *const libxl_domain_restore_params,
        ao_how: *const libxl_asyncop_how,
        aop_console_how: *const libxl_asyncprogress_how,
    ) -> ::core::ffi::c_int {
        (self.libxl_domain_create_restore)(
            ctx,
            d_config,
            domid,
            restore_fd,
            send_back_fd,
            params,
            ao_how,
            aop_console_how,
        )
    }
    pub unsafe fn libxl_retrieve_domain_configuration(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
        d_config: *mut libxl_domain_config,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int {
        (self.libxl_retrieve_domain_configuration)(ctx, domid, d_config, ao_how)
    }
    pub unsafe fn libxl_domain_suspend(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
        fd: ::core::ffi::c_int,
        flags: ::core::ffi::c_int,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int {
        (self.libxl_domain_suspend)(ctx, domid, fd, flags, ao_how)
    }
    pub unsafe fn libxl_domain_resume(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
        suspend_cancel: ::core::ffi::c_int,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int {
        (self.libxl_domain_resume)(ctx, domid, suspend_cancel, ao_how)
    }
    pub unsafe fn libxl_domain_shutdown(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int {
        (self.libxl_domain_shutdown)(ctx, domid, ao_how)
    }
    pub unsafe fn libxl_domain_reboot(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int {
        (self.libxl_domain_reboot)(ctx, domid, ao_how)
    }
    pub unsafe fn libxl_domain_destroy(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int {
        (self.libxl_domain_destroy)(ctx, domid, ao_how)
    }
    pub unsafe fn libxl_domain_rename(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
        old_name: *const ::core::ffi::c_char,
        new_name: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int {
        (self.libxl_domain_rename)(ctx, domid, old_name, new_name)
    }
    pub unsafe fn libxl_domain_pause(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int {
        (self.libxl_domain_pause)(ctx, domid, ao_how)
    }
    pub unsafe fn libxl_domain_unpause(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int {
        (self.libxl_domain_unpause)(ctx, domid, ao_how)
    }
    pub unsafe fn libxl_set_memory_target(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
        target_memkb: i64,
        relative: ::core::ffi::c_int,
        enforce: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int {
        (self.libxl_set_memory_target)(ctx, domid, target_memkb, relative, enforce)
    }
    pub unsafe fn libxl_primary_console_get_tty(
        &self,
        ctx: *mut libxl_ctx,
        domid_vm: u32,
        path: *mut *mut ::core::ffi::c_char,
    ) -> ::core::ffi::c_int {
        (self.libxl_primary_console_get_tty)(ctx, domid_vm, path)
    }
    pub unsafe fn libxl_domain_info(
        &self,
        arg1: *mut libxl_ctx,
        info_r: *mut libxl_dominfo,
        domid: u32,
    ) -> ::core::ffi::c_int {
        (self.libxl_domain_info)(arg1, info_r, domid)
    }
    pub unsafe fn libxl_list_domain(
        &self,
        arg1: *mut libxl_ctx,
        nb_domain_out: *mut ::core::ffi::c_int,
    ) -> *mut libxl_dominfo {
        (self.libxl_list_domain)(arg1, nb_domain_out)
    }
    pub unsafe fn libxl_dominfo_list_free(
        &self,
        list: *mut libxl_dominfo,
        nb_domain: ::core::ffi::c_int,
    ) {
        (self.libxl_dominfo_list_free)(list, nb_domain)
    }
    pub unsafe fn libxl_list_vcpu(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
        nb_vcpu: *mut ::core::ffi::c_int,
        nr_cpus_out: *mut ::core::ffi::c_int,
    ) -> *mut libxl_vcpuinfo {
        (self.libxl_list_vcpu)(ctx, domid, nb_vcpu, nr_cpus_out)
    }
    pub unsafe fn libxl_vcpuinfo_list_free(
        &self,
        arg1: *mut libxl_vcpuinfo,
        nr_vcpus: ::core::ffi::c_int,
    ) {
        (self.libxl_vcpuinfo_list_free)(arg1, nr_vcpus)
    }
    pub unsafe fn libxl_userdata_store(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
        userdata_userid: *const ::core::ffi::c_char,
        data: *const u8,
        datalen: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int {
        (self.libxl_userdata_store)(ctx, domid, userdata_userid, data, datalen)
    }
    pub unsafe fn libxl_userdata_retrieve(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
        userdata_userid: *const ::core::ffi::c_char,
        data_r: *mut *mut u8,
        datalen_r: *mut ::core::ffi::c_int,
    ) -> ::core::ffi::c_int {
        (self.libxl_userdata_retrieve)(ctx, domid, userdata_userid, data_r, datalen_r)
    }
    pub unsafe fn libxl_get_physinfo(
        &self,
        ctx: *mut libxl_ctx,
        physinfo: *mut libxl_physinfo,
    ) -> ::core::ffi::c_int {
        (self.libxl_get_physinfo)(ctx, physinfo)
    }
    pub unsafe fn libxl_send_trigger(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
        trigger: libxl_trigger,
        vcpuid: u32,
        ao_how: *const libxl_asyncop_how,
    ) -> ::core::ffi::c_int {
        (self.libxl_send_trigger)(ctx, domid, trigger, vcpuid, ao_how)
    }
    pub unsafe fn libxl_event_wait(
        &self,
        ctx: *mut libxl_ctx,
        event_r: *mut *mut libxl_event,
        typemask: u64,
        predicate: libxl_event_predicate,
        predicate_user: *mut ::core::ffi::c_void,
    ) -> ::core::ffi::c_int {
        (self.libxl_event_wait)(ctx, event_r, typemask, predicate, predicate_user)
    }
    pub unsafe fn libxl_event_free(&self, ctx: *mut libxl_ctx, event: *mut libxl_event) {
        (self.libxl_event_free)(ctx, event)
    }
    pub unsafe fn libxl_evenable_domain_death(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
        arg1: libxl_ev_user,
        evgen_out: *mut *mut libxl_evgen_domain_death,
    ) -> ::core::ffi::c_int {
        (self.libxl_evenable_domain_death)(ctx, domid, arg1, evgen_out)
    }
    pub unsafe fn libxl_evdisable_domain_death(
        &self,
        ctx: *mut libxl_ctx,
        arg1: *mut libxl_evgen_domain_death,
    ) {
        (self.libxl_evdisable_domain_death)(ctx, arg1)
    }
    pub unsafe fn libxl_childproc_setmode(
        &self,
        ctx: *mut libxl_ctx,
        hooks: *const libxl_childproc_hooks,
        user: *mut ::core::ffi::c_void,
    ) {
        (self.libxl_childproc_setmode)(ctx, hooks, user)
    }
    pub unsafe fn libxl_domid_to_name(
        &self,
        ctx: *mut libxl_ctx,
        domid: u32,
    ) -> *mut ::core::ffi::c_char {
        (self.libxl_domid_to_name)(ctx, domid)
    }
}
