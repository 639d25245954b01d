//! One domain: life cycle, devices, block jobs, statistics.

use uuid::Uuid;

use super::calls;
use super::types::{
    CheckpointRef, DomainDiskError, DomainFsinfo, DomainInterface, DomainIothreadInfo,
    DomainMemoryStat, DomainRef, TypedParam, VcpuInfo,
};
use crate::xdr::{List, Opaque};

calls! {
    DOMAIN_ATTACH_DEVICE: DomainAttachDeviceArgs { dom: DomainRef, xml: String } -> ();
    DOMAIN_CREATE: DomainCreateArgs { dom: DomainRef } -> ();
    DOMAIN_CREATE_XML: DomainCreateXmlArgs { xml_desc: String, flags: u32 }
        -> DomainCreateXmlRet { dom: DomainRef };
    DOMAIN_DEFINE_XML: DomainDefineXmlArgs { xml: String }
        -> DomainDefineXmlRet { dom: DomainRef };
    DOMAIN_DESTROY: DomainDestroyArgs { dom: DomainRef } -> ();
    DOMAIN_DETACH_DEVICE: DomainDetachDeviceArgs { dom: DomainRef, xml: String } -> ();
    DOMAIN_GET_XML_DESC: DomainGetXmlDescArgs { dom: DomainRef, flags: u32 }
        -> DomainGetXmlDescRet { xml: String };
    DOMAIN_GET_AUTOSTART: DomainGetAutostartArgs { dom: DomainRef }
        -> DomainGetAutostartRet { autostart: i32 };
    DOMAIN_GET_INFO: DomainGetInfoArgs { dom: DomainRef } -> DomainGetInfoRet {
        state: u8, max_mem: u64, memory: u64, nr_virt_cpu: u16, cpu_time: u64,
    };
    DOMAIN_GET_MAX_MEMORY: DomainGetMaxMemoryArgs { dom: DomainRef }
        -> DomainGetMaxMemoryRet { memory: u64 };
    DOMAIN_GET_MAX_VCPUS: DomainGetMaxVcpusArgs { dom: DomainRef }
        -> DomainGetMaxVcpusRet { num: i32 };
    DOMAIN_GET_OS_TYPE: DomainGetOsTypeArgs { dom: DomainRef }
        -> DomainGetOsTypeRet { kind: String };
    DOMAIN_GET_VCPUS: DomainGetVcpusArgs { dom: DomainRef, max_info: i32, map_len: i32 }
        -> DomainGetVcpusRet { info: List<VcpuInfo, 16384>, cpumaps: Opaque<8388608> };
    DOMAIN_LOOKUP_BY_ID: DomainLookupByIdArgs { id: i32 }
        -> DomainLookupByIdRet { dom: DomainRef };
    DOMAIN_LOOKUP_BY_NAME: DomainLookupByNameArgs { name: String }
        -> DomainLookupByNameRet { dom: DomainRef };
    DOMAIN_LOOKUP_BY_UUID: DomainLookupByUuidArgs { uuid: Uuid }
        -> DomainLookupByUuidRet { dom: DomainRef };
    DOMAIN_REBOOT: DomainRebootArgs { dom: DomainRef, flags: u32 } -> ();
    DOMAIN_RESUME: DomainResumeArgs { dom: DomainRef } -> ();
    DOMAIN_SET_AUTOSTART: DomainSetAutostartArgs { dom: DomainRef, autostart: i32 } -> ();
    DOMAIN_SET_MAX_MEMORY: DomainSetMaxMemoryArgs { dom: DomainRef, memory: u64 } -> ();
    DOMAIN_SET_MEMORY: DomainSetMemoryArgs { dom: DomainRef, memory: u64 } -> ();
    DOMAIN_SET_VCPUS: DomainSetVcpusArgs { dom: DomainRef, nvcpus: u32 } -> ();
    DOMAIN_SHUTDOWN: DomainShutdownArgs { dom: DomainRef } -> ();
    DOMAIN_SUSPEND: DomainSuspendArgs { dom: DomainRef } -> ();
    DOMAIN_UNDEFINE: DomainUndefineArgs { dom: DomainRef } -> ();
    DOMAIN_CORE_DUMP: DomainCoreDumpArgs { dom: DomainRef, to: String, flags: u32 } -> ();
    DOMAIN_RESTORE: DomainRestoreArgs { from: String } -> ();
    DOMAIN_SAVE: DomainSaveArgs { dom: DomainRef, to: String } -> ();
    DOMAIN_GET_SCHEDULER_TYPE: DomainGetSchedulerTypeArgs { dom: DomainRef }
        -> DomainGetSchedulerTypeRet { kind: String, nparams: i32 };
    DOMAIN_BLOCK_STATS: DomainBlockStatsArgs { dom: DomainRef, path: String } -> DomainBlockStatsRet {
        rd_req: i64, rd_bytes: i64, wr_req: i64, wr_bytes: i64, errs: i64,
    };
    DOMAIN_INTERFACE_STATS: DomainInterfaceStatsArgs { dom: DomainRef, device: String } -> DomainInterfaceStatsRet {
        rx_bytes: i64, rx_packets: i64, rx_errs: i64, rx_drop: i64, tx_bytes: i64, tx_packets:
        i64, tx_errs: i64, tx_drop: i64,
    };
    DOMAIN_GET_SECURITY_LABEL: DomainGetSecurityLabelArgs { dom: DomainRef }
        -> DomainGetSecurityLabelRet { label: List<i8, 4097>, enforcing: i32 };
    DOMAIN_IS_ACTIVE: DomainIsActiveArgs { dom: DomainRef } -> DomainIsActiveRet { active: i32 };
    DOMAIN_IS_PERSISTENT: DomainIsPersistentArgs { dom: DomainRef }
        -> DomainIsPersistentRet { persistent: i32 };
    DOMAIN_MEMORY_STATS: DomainMemoryStatsArgs { dom: DomainRef, max_stats: u32, flags: u32 }
        -> DomainMemoryStatsRet { stats: List<DomainMemoryStat, 1024> };
    DOMAIN_ATTACH_DEVICE_FLAGS:
        DomainAttachDeviceFlagsArgs { dom: DomainRef, xml: String, flags: u32 }
        -> ();
    DOMAIN_DETACH_DEVICE_FLAGS:
        DomainDetachDeviceFlagsArgs { dom: DomainRef, xml: String, flags: u32 }
        -> ();
    DOMAIN_GET_JOB_INFO: DomainGetJobInfoArgs { dom: DomainRef } -> DomainGetJobInfoRet {
        kind: i32, time_elapsed: u64, time_remaining: u64, data_total: u64, data_processed: u64,
        data_remaining: u64, mem_total: u64, mem_processed: u64, mem_remaining: u64, file_total:
        u64, file_processed: u64, file_remaining: u64,
    };
    DOMAIN_ABORT_JOB: DomainAbortJobArgs { dom: DomainRef } -> ();
    DOMAIN_UPDATE_DEVICE_FLAGS:
        DomainUpdateDeviceFlagsArgs { dom: DomainRef, xml: String, flags: u32 }
        -> ();
    DOMAIN_MANAGED_SAVE: DomainManagedSaveArgs { dom: DomainRef, flags: u32 } -> ();
    DOMAIN_HAS_MANAGED_SAVE_IMAGE: DomainHasManagedSaveImageArgs { dom: DomainRef, flags: u32 }
        -> DomainHasManagedSaveImageRet { result: i32 };
    DOMAIN_MANAGED_SAVE_REMOVE: DomainManagedSaveRemoveArgs { dom: DomainRef, flags: u32 } -> ();
    DOMAIN_GET_BLOCK_INFO: DomainGetBlockInfoArgs { dom: DomainRef, path: String, flags: u32 }
        -> DomainGetBlockInfoRet { allocation: u64, capacity: u64, physical: u64 };
    DOMAIN_CREATE_WITH_FLAGS: DomainCreateWithFlagsArgs { dom: DomainRef, flags: u32 }
        -> DomainCreateWithFlagsRet { dom: DomainRef };
    DOMAIN_GET_MEMORY_PARAMETERS:
        DomainGetMemoryParametersArgs { dom: DomainRef, nparams: i32, flags: u32 }
        -> DomainGetMemoryParametersRet { params: List<TypedParam, 16>, nparams: i32 };
    DOMAIN_SET_VCPUS_FLAGS: DomainSetVcpusFlagsArgs { dom: DomainRef, nvcpus: u32, flags: u32 }
        -> ();
    DOMAIN_GET_VCPUS_FLAGS: DomainGetVcpusFlagsArgs { dom: DomainRef, flags: u32 }
        -> DomainGetVcpusFlagsRet { num: i32 };
    DOMAIN_OPEN_CONSOLE:
        DomainOpenConsoleArgs { dom: DomainRef, dev_name: Option<String>, flags: u32 }
        -> ();
    DOMAIN_IS_UPDATED: DomainIsUpdatedArgs { dom: DomainRef }
        -> DomainIsUpdatedRet { updated: i32 };
    DOMAIN_SET_MEMORY_FLAGS: DomainSetMemoryFlagsArgs { dom: DomainRef, memory: u64, flags: u32 }
        -> ();
    DOMAIN_GET_BLKIO_PARAMETERS:
        DomainGetBlkioParametersArgs { dom: DomainRef, nparams: i32, flags: u32 }
        -> DomainGetBlkioParametersRet { params: List<TypedParam, 16>, nparams: i32 };
    DOMAIN_INJECT_NMI: DomainInjectNmiArgs { dom: DomainRef, flags: u32 } -> ();
    DOMAIN_SCREENSHOT: DomainScreenshotArgs { dom: DomainRef, screen: u32, flags: u32 }
        -> DomainScreenshotRet { mime: Option<String> };
    DOMAIN_GET_STATE: DomainGetStateArgs { dom: DomainRef, flags: u32 }
        -> DomainGetStateRet { state: i32, reason: i32 };
    DOMAIN_SEND_KEY: DomainSendKeyArgs {
        dom: DomainRef, codeset: u32, holdtime: u32, keycodes: List<u32, 16>, flags: u32,
    } -> ();
    DOMAIN_GET_CONTROL_INFO: DomainGetControlInfoArgs { dom: DomainRef, flags: u32 }
        -> DomainGetControlInfoRet { state: u32, details: u32, state_time: u64 };
    DOMAIN_GET_VCPU_PIN_INFO:
        DomainGetVcpuPinInfoArgs { dom: DomainRef, ncpumaps: i32, map_len: i32, flags: u32 }
        -> DomainGetVcpuPinInfoRet { cpumaps: Opaque<8388608>, num: i32 };
    DOMAIN_UNDEFINE_FLAGS: DomainUndefineFlagsArgs { dom: DomainRef, flags: u32 } -> ();
    DOMAIN_SAVE_FLAGS:
        DomainSaveFlagsArgs { dom: DomainRef, to: String, dxml: Option<String>, flags: u32 }
        -> ();
    DOMAIN_RESTORE_FLAGS: DomainRestoreFlagsArgs { from: String, dxml: Option<String>, flags: u32 }
        -> ();
    DOMAIN_DESTROY_FLAGS: DomainDestroyFlagsArgs { dom: DomainRef, flags: u32 } -> ();
    DOMAIN_SAVE_IMAGE_GET_XML_DESC: DomainSaveImageGetXmlDescArgs { file: String, flags: u32 }
        -> DomainSaveImageGetXmlDescRet { xml: String };
    DOMAIN_SAVE_IMAGE_DEFINE_XML:
        DomainSaveImageDefineXmlArgs { file: String, dxml: String, flags: u32 }
        -> ();
    DOMAIN_BLOCK_JOB_ABORT: DomainBlockJobAbortArgs { dom: DomainRef, path: String, flags: u32 }
        -> ();
    DOMAIN_GET_BLOCK_JOB_INFO:
        DomainGetBlockJobInfoArgs { dom: DomainRef, path: String, flags: u32 }
        -> DomainGetBlockJobInfoRet { found: i32, kind: i32, bandwidth: u64, cur: u64, end: u64 };
    DOMAIN_BLOCK_JOB_SET_SPEED:
        DomainBlockJobSetSpeedArgs { dom: DomainRef, path: String, bandwidth: u64, flags: u32 }
        -> ();
    DOMAIN_BLOCK_PULL:
        DomainBlockPullArgs { dom: DomainRef, path: String, bandwidth: u64, flags: u32 }
        -> ();
    DOMAIN_BLOCK_STATS_FLAGS:
        DomainBlockStatsFlagsArgs { dom: DomainRef, path: String, nparams: i32, flags: u32 }
        -> DomainBlockStatsFlagsRet { params: List<TypedParam, 16>, nparams: i32 };
    DOMAIN_RESET: DomainResetArgs { dom: DomainRef, flags: u32 } -> ();
    DOMAIN_OPEN_GRAPHICS: DomainOpenGraphicsArgs { dom: DomainRef, idx: u32, flags: u32 } -> ();
    DOMAIN_BLOCK_RESIZE:
        DomainBlockResizeArgs { dom: DomainRef, disk: String, size: u64, flags: u32 }
        -> ();
    DOMAIN_GET_BLOCK_IO_TUNE:
        DomainGetBlockIoTuneArgs { dom: DomainRef, disk: Option<String>, nparams: i32, flags: u32 }
        -> DomainGetBlockIoTuneRet { params: List<TypedParam, 32>, nparams: i32 };
    DOMAIN_GET_NUMA_PARAMETERS:
        DomainGetNumaParametersArgs { dom: DomainRef, nparams: i32, flags: u32 }
        -> DomainGetNumaParametersRet { params: List<TypedParam, 16>, nparams: i32 };
    DOMAIN_SHUTDOWN_FLAGS: DomainShutdownFlagsArgs { dom: DomainRef, flags: u32 } -> ();
    DOMAIN_GET_CPU_STATS: DomainGetCpuStatsArgs {
        dom: DomainRef, nparams: u32, start_cpu: i32, ncpus: u32, flags: u32,
    } -> DomainGetCpuStatsRet { params: List<TypedParam, 2048>, nparams: i32 };
    DOMAIN_GET_DISK_ERRORS: DomainGetDiskErrorsArgs { dom: DomainRef, maxerrors: u32, flags: u32 }
        -> DomainGetDiskErrorsRet { errors: List<DomainDiskError, 256>, nerrors: i32 };
    DOMAIN_SET_METADATA: DomainSetMetadataArgs {
        dom: DomainRef, kind: i32, metadata: Option<String>, key: Option<String>, uri:
        Option<String>, flags: u32,
    } -> ();
    DOMAIN_GET_METADATA:
        DomainGetMetadataArgs { dom: DomainRef, kind: i32, uri: Option<String>, flags: u32 }
        -> DomainGetMetadataRet { metadata: String };
    DOMAIN_BLOCK_REBASE: DomainBlockRebaseArgs {
        dom: DomainRef, path: String, base: Option<String>, bandwidth: u64, flags: u32,
    } -> ();
    DOMAIN_GET_HOSTNAME: DomainGetHostnameArgs { dom: DomainRef, flags: u32 }
        -> DomainGetHostnameRet { hostname: String };
    DOMAIN_GET_EMULATOR_PIN_INFO:
        DomainGetEmulatorPinInfoArgs { dom: DomainRef, map_len: i32, flags: u32 }
        -> DomainGetEmulatorPinInfoRet { cpumaps: Opaque<8388608>, ret: i32 };
    DOMAIN_BLOCK_COMMIT: DomainBlockCommitArgs {
        dom: DomainRef, disk: String, base: Option<String>, top: Option<String>, bandwidth: u64,
        flags: u32,
    } -> ();
    DOMAIN_OPEN_CHANNEL: DomainOpenChannelArgs { dom: DomainRef, name: Option<String>, flags: u32 }
        -> ();
    DOMAIN_GET_JOB_STATS: DomainGetJobStatsArgs { dom: DomainRef, flags: u32 }
        -> DomainGetJobStatsRet { kind: i32, params: List<TypedParam, 64> };
    DOMAIN_FSFREEZE:
        DomainFsfreezeArgs { dom: DomainRef, mountpoints: List<String, 256>, flags: u32 }
        -> DomainFsfreezeRet { filesystems: i32 };
    DOMAIN_FSTHAW: DomainFsthawArgs { dom: DomainRef, mountpoints: List<String, 256>, flags: u32 }
        -> DomainFsthawRet { filesystems: i32 };
    DOMAIN_GET_TIME: DomainGetTimeArgs { dom: DomainRef, flags: u32 }
        -> DomainGetTimeRet { seconds: i64, nseconds: u32 };
    DOMAIN_OPEN_GRAPHICS_FD: DomainOpenGraphicsFdArgs { dom: DomainRef, idx: u32, flags: u32 }
        -> ();
    DOMAIN_BLOCK_COPY: DomainBlockCopyArgs {
        dom: DomainRef, path: String, destxml: String, params: List<TypedParam, 16>, flags: u32,
    } -> ();
    DOMAIN_SET_TIME:
        DomainSetTimeArgs { dom: DomainRef, seconds: i64, nseconds: u32, flags: u32 } -> ();
    DOMAIN_FSTRIM: DomainFstrimArgs {
        dom: DomainRef, mountpoint: Option<String>, minimum: u64, flags: u32,
    } -> ();
    DOMAIN_GET_FSINFO: DomainGetFsinfoArgs { dom: DomainRef, flags: u32 }
        -> DomainGetFsinfoRet { info: List<DomainFsinfo, 256>, ret: u32 };
    DOMAIN_DEFINE_XML_FLAGS: DomainDefineXmlFlagsArgs { xml: String, flags: u32 }
        -> DomainDefineXmlFlagsRet { dom: DomainRef };
    DOMAIN_GET_IOTHREAD_INFO: DomainGetIothreadInfoArgs { dom: DomainRef, flags: u32 }
        -> DomainGetIothreadInfoRet { info: List<DomainIothreadInfo, 16384>, ret: u32 };
    DOMAIN_INTERFACE_ADDRESSES:
        DomainInterfaceAddressesArgs { dom: DomainRef, source: u32, flags: u32 }
        -> DomainInterfaceAddressesRet { ifaces: List<DomainInterface, 2048> };
    DOMAIN_ABORT_JOB_FLAGS: DomainAbortJobFlagsArgs { dom: DomainRef, flags: u32 } -> ();
    DOMAIN_RENAME: DomainRenameArgs { dom: DomainRef, new_name: Option<String>, flags: u32 }
        -> DomainRenameRet { retcode: i32 };
    DOMAIN_GET_PERF_EVENTS: DomainGetPerfEventsArgs { dom: DomainRef, flags: u32 }
        -> DomainGetPerfEventsRet { params: List<TypedParam, 64> };
    DOMAIN_GET_GUEST_VCPUS: DomainGetGuestVcpusArgs { dom: DomainRef, flags: u32 }
        -> DomainGetGuestVcpusRet { params: List<TypedParam, 64> };
    DOMAIN_SET_BLOCK_THRESHOLD:
        DomainSetBlockThresholdArgs { dom: DomainRef, dev: String, threshold: u64, flags: u32 }
        -> ();
    DOMAIN_MANAGED_SAVE_GET_XML_DESC: DomainManagedSaveGetXmlDescArgs { dom: DomainRef, flags: u32 }
        -> DomainManagedSaveGetXmlDescRet { xml: String };
    DOMAIN_MANAGED_SAVE_DEFINE_XML:
        DomainManagedSaveDefineXmlArgs { dom: DomainRef, dxml: Option<String>, flags: u32 }
        -> ();
    DOMAIN_GET_LAUNCH_SECURITY_INFO: DomainGetLaunchSecurityInfoArgs { dom: DomainRef, flags: u32 }
        -> DomainGetLaunchSecurityInfoRet { params: List<TypedParam, 64> };
    DOMAIN_LIST_ALL_CHECKPOINTS:
        DomainListAllCheckpointsArgs { dom: DomainRef, need_results: i32, flags: u32 }
        -> DomainListAllCheckpointsRet { checkpoints: List<CheckpointRef, 16384>, ret: i32 };
    DOMAIN_GET_GUEST_INFO: DomainGetGuestInfoArgs { dom: DomainRef, types: u32, flags: u32 }
        -> DomainGetGuestInfoRet { params: List<TypedParam, 2048> };
    DOMAIN_AUTHORIZED_SSH_KEYS_GET:
        DomainAuthorizedSshKeysGetArgs { dom: DomainRef, user: String, flags: u32 }
        -> DomainAuthorizedSshKeysGetRet { keys: List<String, 2048> };
    DOMAIN_GET_MESSAGES: DomainGetMessagesArgs { dom: DomainRef, flags: u32 }
        -> DomainGetMessagesRet { msgs: List<String, 2048> };
    DOMAIN_START_DIRTY_RATE_CALC:
        DomainStartDirtyRateCalcArgs { dom: DomainRef, seconds: i32, flags: u32 }
        -> ();
    DOMAIN_SAVE_PARAMS:
        DomainSaveParamsArgs { dom: DomainRef, params: List<TypedParam, 64>, flags: u32 }
        -> ();
    DOMAIN_RESTORE_PARAMS: DomainRestoreParamsArgs { params: List<TypedParam, 64>, flags: u32 }
        -> ();
    DOMAIN_GRAPHICS_RELOAD: DomainGraphicsReloadArgs { dom: DomainRef, kind: u32, flags: u32 }
        -> ();
    DOMAIN_GET_AUTOSTART_ONCE: DomainGetAutostartOnceArgs { dom: DomainRef }
        -> DomainGetAutostartOnceRet { autostart: i32 };
}
