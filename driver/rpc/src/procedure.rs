//! Every procedure number, its name, and whether a read-only client may call it.
//!
//! Names are the protocol's own, without the program's prefix, so that they can be searched for.
//! In brackets stands the function of libvirt's API that refuses a read-only connection; libvirt
//! has that rule in its API layer, on both sides, and not in the protocol. Two that change things
//! are barred here though libvirt's API forgets to: a test holds all rules against the permissions
//! of libvirt's access control (`fixtures/permissions.txt`). A few procedures are barred only with
//! certain flags: see [`barred_by_flags`].

use crate::message::{PROGRAM_KEEPALIVE, PROGRAM_QEMU, PROGRAM_REMOTE};
use crate::remote::{
    DomainGetVcpusFlagsArgs, DomainGetXmlDescArgs, DomainInterfaceAddressesArgs,
    DomainManagedSaveGetXmlDescArgs, DomainSnapshotGetXmlDescArgs,
};
use crate::xdr::{Xdr, XdrError};

macro_rules! procedures {
    ($(#[$meta:meta])* $name:ident of $program:expr;
     $($number:literal $procedure:ident $([$barred:ident])?,)*) => {
        $(#[$meta])*
        #[allow(non_camel_case_types, reason = "the protocol's spelling")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($procedure = $number,)*
        }

        impl $name {
            pub const PROGRAM: u32 = $program;
            pub const ALL: &[Self] = &[$(Self::$procedure),*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$procedure => stringify!($procedure),)*
                }
            }

            /// A message that the server sends: nobody can call it.
            pub fn is_message(self) -> bool {
                let name = self.name();
                name.contains("_EVENT_") && !name.contains("REGISTER")
            }

            /// The API function that refuses this on a read-only connection, if one does.
            pub fn barred_read_only(self) -> Option<&'static str> {
                match self {
                    $(Self::$procedure => None $(.or(Some(stringify!($barred))))?,)*
                }
            }
        }

        impl TryFrom<u32> for $name {
            type Error = XdrError;

            fn try_from(number: u32) -> Result<Self, XdrError> {
                match number {
                    $($number => Ok(Self::$procedure),)*
                    other => Err(XdrError::BadValue(other)),
                }
            }
        }
    };
}

procedures! {
    /// Program REMOTE.
    Procedure of PROGRAM_REMOTE;
    1 CONNECT_OPEN,
    2 CONNECT_CLOSE,
    3 CONNECT_GET_TYPE,
    4 CONNECT_GET_VERSION,
    5 CONNECT_GET_MAX_VCPUS,
    6 NODE_GET_INFO,
    7 CONNECT_GET_CAPABILITIES,
    8 DOMAIN_ATTACH_DEVICE [virDomainAttachDevice],
    9 DOMAIN_CREATE [virDomainCreate],
    10 DOMAIN_CREATE_XML [virDomainCreateXML],
    11 DOMAIN_DEFINE_XML [virDomainDefineXML],
    12 DOMAIN_DESTROY [virDomainDestroy],
    13 DOMAIN_DETACH_DEVICE [virDomainDetachDevice],
    14 DOMAIN_GET_XML_DESC,
    15 DOMAIN_GET_AUTOSTART,
    16 DOMAIN_GET_INFO,
    17 DOMAIN_GET_MAX_MEMORY,
    18 DOMAIN_GET_MAX_VCPUS,
    19 DOMAIN_GET_OS_TYPE,
    20 DOMAIN_GET_VCPUS,
    21 CONNECT_LIST_DEFINED_DOMAINS,
    22 DOMAIN_LOOKUP_BY_ID,
    23 DOMAIN_LOOKUP_BY_NAME,
    24 DOMAIN_LOOKUP_BY_UUID,
    25 CONNECT_NUM_OF_DEFINED_DOMAINS,
    26 DOMAIN_PIN_VCPU [virDomainPinVcpu],
    27 DOMAIN_REBOOT [virDomainReboot],
    28 DOMAIN_RESUME [virDomainResume],
    29 DOMAIN_SET_AUTOSTART [virDomainSetAutostart],
    30 DOMAIN_SET_MAX_MEMORY [virDomainSetMaxMemory],
    31 DOMAIN_SET_MEMORY [virDomainSetMemory],
    32 DOMAIN_SET_VCPUS [virDomainSetVcpus],
    33 DOMAIN_SHUTDOWN [virDomainShutdown],
    34 DOMAIN_SUSPEND [virDomainSuspend],
    35 DOMAIN_UNDEFINE [virDomainUndefine],
    36 CONNECT_LIST_DEFINED_NETWORKS,
    37 CONNECT_LIST_DOMAINS,
    38 CONNECT_LIST_NETWORKS,
    39 NETWORK_CREATE [virNetworkCreate],
    40 NETWORK_CREATE_XML [virNetworkCreateXML],
    41 NETWORK_DEFINE_XML [virNetworkDefineXML],
    42 NETWORK_DESTROY [virNetworkDestroy],
    43 NETWORK_GET_XML_DESC,
    44 NETWORK_GET_AUTOSTART,
    45 NETWORK_GET_BRIDGE_NAME,
    46 NETWORK_LOOKUP_BY_NAME,
    47 NETWORK_LOOKUP_BY_UUID,
    48 NETWORK_SET_AUTOSTART [virNetworkSetAutostart],
    49 NETWORK_UNDEFINE [virNetworkUndefine],
    50 CONNECT_NUM_OF_DEFINED_NETWORKS,
    51 CONNECT_NUM_OF_DOMAINS,
    52 CONNECT_NUM_OF_NETWORKS,
    53 DOMAIN_CORE_DUMP [virDomainCoreDump],
    54 DOMAIN_RESTORE [virDomainRestore],
    55 DOMAIN_SAVE [virDomainSave],
    56 DOMAIN_GET_SCHEDULER_TYPE,
    57 DOMAIN_GET_SCHEDULER_PARAMETERS,
    58 DOMAIN_SET_SCHEDULER_PARAMETERS [virDomainSetSchedulerParameters],
    59 CONNECT_GET_HOSTNAME,
    60 CONNECT_SUPPORTS_FEATURE,
    61 DOMAIN_MIGRATE_PREPARE [virDomainMigratePrepare],
    62 DOMAIN_MIGRATE_PERFORM [virDomainMigratePerform],
    63 DOMAIN_MIGRATE_FINISH [virDomainMigrateFinish],
    64 DOMAIN_BLOCK_STATS,
    65 DOMAIN_INTERFACE_STATS,
    66 AUTH_LIST,
    67 AUTH_SASL_INIT,
    68 AUTH_SASL_START,
    69 AUTH_SASL_STEP,
    70 AUTH_POLKIT,
    71 CONNECT_NUM_OF_STORAGE_POOLS,
    72 CONNECT_LIST_STORAGE_POOLS,
    73 CONNECT_NUM_OF_DEFINED_STORAGE_POOLS,
    74 CONNECT_LIST_DEFINED_STORAGE_POOLS,
    75 CONNECT_FIND_STORAGE_POOL_SOURCES [virConnectFindStoragePoolSources],
    76 STORAGE_POOL_CREATE_XML [virStoragePoolCreateXML],
    77 STORAGE_POOL_DEFINE_XML [virStoragePoolDefineXML],
    78 STORAGE_POOL_CREATE [virStoragePoolCreate],
    79 STORAGE_POOL_BUILD [virStoragePoolBuild],
    80 STORAGE_POOL_DESTROY [virStoragePoolDestroy],
    81 STORAGE_POOL_DELETE [virStoragePoolDelete],
    82 STORAGE_POOL_UNDEFINE [virStoragePoolUndefine],
    83 STORAGE_POOL_REFRESH [virStoragePoolRefresh],
    84 STORAGE_POOL_LOOKUP_BY_NAME,
    85 STORAGE_POOL_LOOKUP_BY_UUID,
    86 STORAGE_POOL_LOOKUP_BY_VOLUME,
    87 STORAGE_POOL_GET_INFO,
    88 STORAGE_POOL_GET_XML_DESC,
    89 STORAGE_POOL_GET_AUTOSTART,
    90 STORAGE_POOL_SET_AUTOSTART [virStoragePoolSetAutostart],
    91 STORAGE_POOL_NUM_OF_VOLUMES,
    92 STORAGE_POOL_LIST_VOLUMES,
    93 STORAGE_VOL_CREATE_XML [virStorageVolCreateXML],
    94 STORAGE_VOL_DELETE [virStorageVolDelete],
    95 STORAGE_VOL_LOOKUP_BY_NAME,
    96 STORAGE_VOL_LOOKUP_BY_KEY,
    97 STORAGE_VOL_LOOKUP_BY_PATH,
    98 STORAGE_VOL_GET_INFO,
    99 STORAGE_VOL_GET_XML_DESC,
    100 STORAGE_VOL_GET_PATH,
    101 NODE_GET_CELLS_FREE_MEMORY,
    102 NODE_GET_FREE_MEMORY,
    103 DOMAIN_BLOCK_PEEK [virDomainBlockPeek],
    104 DOMAIN_MEMORY_PEEK [virDomainMemoryPeek],
    105 CONNECT_DOMAIN_EVENT_REGISTER,
    106 CONNECT_DOMAIN_EVENT_DEREGISTER,
    107 DOMAIN_EVENT_LIFECYCLE,
    108 DOMAIN_MIGRATE_PREPARE2 [virDomainMigratePrepare2],
    109 DOMAIN_MIGRATE_FINISH2 [virDomainMigrateFinish2],
    110 CONNECT_GET_URI,
    111 NODE_NUM_OF_DEVICES,
    112 NODE_LIST_DEVICES,
    113 NODE_DEVICE_LOOKUP_BY_NAME,
    114 NODE_DEVICE_GET_XML_DESC,
    115 NODE_DEVICE_GET_PARENT,
    116 NODE_DEVICE_NUM_OF_CAPS,
    117 NODE_DEVICE_LIST_CAPS,
    118 NODE_DEVICE_DETTACH [virNodeDeviceDettach],
    119 NODE_DEVICE_RE_ATTACH [virNodeDeviceReAttach],
    120 NODE_DEVICE_RESET [virNodeDeviceReset],
    121 DOMAIN_GET_SECURITY_LABEL,
    122 NODE_GET_SECURITY_MODEL,
    123 NODE_DEVICE_CREATE_XML [virNodeDeviceCreateXML],
    124 NODE_DEVICE_DESTROY [virNodeDeviceDestroy],
    125 STORAGE_VOL_CREATE_XML_FROM [virStorageVolCreateXMLFrom],
    126 CONNECT_NUM_OF_INTERFACES,
    127 CONNECT_LIST_INTERFACES,
    128 INTERFACE_LOOKUP_BY_NAME,
    129 INTERFACE_LOOKUP_BY_MAC_STRING,
    130 INTERFACE_GET_XML_DESC,
    131 INTERFACE_DEFINE_XML [virInterfaceDefineXML],
    132 INTERFACE_UNDEFINE [virInterfaceUndefine],
    133 INTERFACE_CREATE [virInterfaceCreate],
    134 INTERFACE_DESTROY [virInterfaceDestroy],
    135 CONNECT_DOMAIN_XML_FROM_NATIVE [virConnectDomainXMLFromNative],
    136 CONNECT_DOMAIN_XML_TO_NATIVE [virConnectDomainXMLToNative],
    137 CONNECT_NUM_OF_DEFINED_INTERFACES,
    138 CONNECT_LIST_DEFINED_INTERFACES,
    139 CONNECT_NUM_OF_SECRETS,
    140 CONNECT_LIST_SECRETS,
    141 SECRET_LOOKUP_BY_UUID,
    142 SECRET_DEFINE_XML [virSecretDefineXML],
    143 SECRET_GET_XML_DESC,
    144 SECRET_SET_VALUE [virSecretSetValue],
    145 SECRET_GET_VALUE [virSecretGetValue],
    146 SECRET_UNDEFINE [virSecretUndefine],
    147 SECRET_LOOKUP_BY_USAGE,
    148 DOMAIN_MIGRATE_PREPARE_TUNNEL [virDomainMigratePrepareTunnel],
    149 CONNECT_IS_SECURE,
    150 DOMAIN_IS_ACTIVE,
    151 DOMAIN_IS_PERSISTENT,
    152 NETWORK_IS_ACTIVE,
    153 NETWORK_IS_PERSISTENT,
    154 STORAGE_POOL_IS_ACTIVE,
    155 STORAGE_POOL_IS_PERSISTENT,
    156 INTERFACE_IS_ACTIVE,
    157 CONNECT_GET_LIB_VERSION,
    158 CONNECT_COMPARE_CPU,
    159 DOMAIN_MEMORY_STATS,
    160 DOMAIN_ATTACH_DEVICE_FLAGS [virDomainAttachDeviceFlags],
    161 DOMAIN_DETACH_DEVICE_FLAGS [virDomainDetachDeviceFlags],
    162 CONNECT_BASELINE_CPU,
    163 DOMAIN_GET_JOB_INFO,
    164 DOMAIN_ABORT_JOB [virDomainAbortJob],
    165 STORAGE_VOL_WIPE [virStorageVolWipe],
    166 DOMAIN_MIGRATE_SET_MAX_DOWNTIME [virDomainMigrateSetMaxDowntime],
    167 CONNECT_DOMAIN_EVENT_REGISTER_ANY,
    168 CONNECT_DOMAIN_EVENT_DEREGISTER_ANY,
    169 DOMAIN_EVENT_REBOOT,
    170 DOMAIN_EVENT_RTC_CHANGE,
    171 DOMAIN_EVENT_WATCHDOG,
    172 DOMAIN_EVENT_IO_ERROR,
    173 DOMAIN_EVENT_GRAPHICS,
    174 DOMAIN_UPDATE_DEVICE_FLAGS [virDomainUpdateDeviceFlags],
    175 NWFILTER_LOOKUP_BY_NAME,
    176 NWFILTER_LOOKUP_BY_UUID,
    177 NWFILTER_GET_XML_DESC,
    178 CONNECT_NUM_OF_NWFILTERS,
    179 CONNECT_LIST_NWFILTERS,
    180 NWFILTER_DEFINE_XML [virNWFilterDefineXML],
    181 NWFILTER_UNDEFINE [virNWFilterUndefine],
    182 DOMAIN_MANAGED_SAVE [virDomainManagedSave],
    183 DOMAIN_HAS_MANAGED_SAVE_IMAGE,
    184 DOMAIN_MANAGED_SAVE_REMOVE [virDomainManagedSaveRemove],
    185 DOMAIN_SNAPSHOT_CREATE_XML [virDomainSnapshotCreateXML],
    186 DOMAIN_SNAPSHOT_GET_XML_DESC,
    187 DOMAIN_SNAPSHOT_NUM,
    188 DOMAIN_SNAPSHOT_LIST_NAMES,
    189 DOMAIN_SNAPSHOT_LOOKUP_BY_NAME,
    190 DOMAIN_HAS_CURRENT_SNAPSHOT,
    191 DOMAIN_SNAPSHOT_CURRENT,
    192 DOMAIN_REVERT_TO_SNAPSHOT [virDomainRevertToSnapshot],
    193 DOMAIN_SNAPSHOT_DELETE [virDomainSnapshotDelete],
    194 DOMAIN_GET_BLOCK_INFO,
    195 DOMAIN_EVENT_IO_ERROR_REASON,
    196 DOMAIN_CREATE_WITH_FLAGS [virDomainCreateWithFlags],
    197 DOMAIN_SET_MEMORY_PARAMETERS [virDomainSetMemoryParameters],
    198 DOMAIN_GET_MEMORY_PARAMETERS,
    199 DOMAIN_SET_VCPUS_FLAGS [virDomainSetVcpusFlags],
    200 DOMAIN_GET_VCPUS_FLAGS,
    201 DOMAIN_OPEN_CONSOLE [virDomainOpenConsole],
    202 DOMAIN_IS_UPDATED,
    203 CONNECT_GET_SYSINFO,
    204 DOMAIN_SET_MEMORY_FLAGS [virDomainSetMemoryFlags],
    205 DOMAIN_SET_BLKIO_PARAMETERS [virDomainSetBlkioParameters],
    206 DOMAIN_GET_BLKIO_PARAMETERS,
    207 DOMAIN_MIGRATE_SET_MAX_SPEED [virDomainMigrateSetMaxSpeed],
    208 STORAGE_VOL_UPLOAD [virStorageVolUpload],
    209 STORAGE_VOL_DOWNLOAD [virStorageVolDownload],
    210 DOMAIN_INJECT_NMI [virDomainInjectNMI],
    211 DOMAIN_SCREENSHOT [virDomainScreenshot],
    212 DOMAIN_GET_STATE,
    213 DOMAIN_MIGRATE_BEGIN3 [virDomainMigrateBegin3],
    214 DOMAIN_MIGRATE_PREPARE3 [virDomainMigratePrepare3],
    215 DOMAIN_MIGRATE_PREPARE_TUNNEL3 [virDomainMigratePrepareTunnel3],
    216 DOMAIN_MIGRATE_PERFORM3 [virDomainMigratePerform3],
    217 DOMAIN_MIGRATE_FINISH3 [virDomainMigrateFinish3],
    218 DOMAIN_MIGRATE_CONFIRM3 [virDomainMigrateConfirm3],
    219 DOMAIN_SET_SCHEDULER_PARAMETERS_FLAGS [virDomainSetSchedulerParametersFlags],
    220 INTERFACE_CHANGE_BEGIN [virInterfaceChangeBegin],
    221 INTERFACE_CHANGE_COMMIT [virInterfaceChangeCommit],
    222 INTERFACE_CHANGE_ROLLBACK [virInterfaceChangeRollback],
    223 DOMAIN_GET_SCHEDULER_PARAMETERS_FLAGS,
    224 DOMAIN_EVENT_CONTROL_ERROR,
    225 DOMAIN_PIN_VCPU_FLAGS [virDomainPinVcpuFlags],
    226 DOMAIN_SEND_KEY [virDomainSendKey],
    227 NODE_GET_CPU_STATS,
    228 NODE_GET_MEMORY_STATS,
    229 DOMAIN_GET_CONTROL_INFO,
    230 DOMAIN_GET_VCPU_PIN_INFO,
    231 DOMAIN_UNDEFINE_FLAGS [virDomainUndefineFlags],
    232 DOMAIN_SAVE_FLAGS [virDomainSaveFlags],
    233 DOMAIN_RESTORE_FLAGS [virDomainRestoreFlags],
    234 DOMAIN_DESTROY_FLAGS [virDomainDestroyFlags],
    235 DOMAIN_SAVE_IMAGE_GET_XML_DESC [virDomainSaveImageGetXMLDesc],
    236 DOMAIN_SAVE_IMAGE_DEFINE_XML [virDomainSaveImageDefineXML],
    237 DOMAIN_BLOCK_JOB_ABORT [virDomainBlockJobAbort],
    238 DOMAIN_GET_BLOCK_JOB_INFO,
    239 DOMAIN_BLOCK_JOB_SET_SPEED [virDomainBlockJobSetSpeed],
    240 DOMAIN_BLOCK_PULL [virDomainBlockPull],
    241 DOMAIN_EVENT_BLOCK_JOB,
    242 DOMAIN_MIGRATE_GET_MAX_SPEED [virDomainMigrateGetMaxSpeed],
    243 DOMAIN_BLOCK_STATS_FLAGS,
    244 DOMAIN_SNAPSHOT_GET_PARENT,
    245 DOMAIN_RESET [virDomainReset],
    246 DOMAIN_SNAPSHOT_NUM_CHILDREN,
    247 DOMAIN_SNAPSHOT_LIST_CHILDREN_NAMES,
    248 DOMAIN_EVENT_DISK_CHANGE,
    249 DOMAIN_OPEN_GRAPHICS [virDomainOpenGraphics],
    250 NODE_SUSPEND_FOR_DURATION [virNodeSuspendForDuration],
    251 DOMAIN_BLOCK_RESIZE [virDomainBlockResize],
    252 DOMAIN_SET_BLOCK_IO_TUNE [virDomainSetBlockIoTune],
    253 DOMAIN_GET_BLOCK_IO_TUNE,
    254 DOMAIN_SET_NUMA_PARAMETERS [virDomainSetNumaParameters],
    255 DOMAIN_GET_NUMA_PARAMETERS,
    256 DOMAIN_SET_INTERFACE_PARAMETERS [virDomainSetInterfaceParameters],
    257 DOMAIN_GET_INTERFACE_PARAMETERS,
    258 DOMAIN_SHUTDOWN_FLAGS [virDomainShutdownFlags],
    259 STORAGE_VOL_WIPE_PATTERN [virStorageVolWipePattern],
    260 STORAGE_VOL_RESIZE [virStorageVolResize],
    261 DOMAIN_PM_SUSPEND_FOR_DURATION [virDomainPMSuspendForDuration],
    262 DOMAIN_GET_CPU_STATS,
    263 DOMAIN_GET_DISK_ERRORS,
    264 DOMAIN_SET_METADATA [virDomainSetMetadata],
    265 DOMAIN_GET_METADATA,
    266 DOMAIN_BLOCK_REBASE [virDomainBlockRebase],
    267 DOMAIN_PM_WAKEUP [virDomainPMWakeup],
    268 DOMAIN_EVENT_TRAY_CHANGE,
    269 DOMAIN_EVENT_PMWAKEUP,
    270 DOMAIN_EVENT_PMSUSPEND,
    271 DOMAIN_SNAPSHOT_IS_CURRENT,
    272 DOMAIN_SNAPSHOT_HAS_METADATA,
    273 CONNECT_LIST_ALL_DOMAINS,
    274 DOMAIN_LIST_ALL_SNAPSHOTS,
    275 DOMAIN_SNAPSHOT_LIST_ALL_CHILDREN,
    276 DOMAIN_EVENT_BALLOON_CHANGE,
    277 DOMAIN_GET_HOSTNAME [virDomainGetHostname],
    278 DOMAIN_GET_SECURITY_LABEL_LIST,
    279 DOMAIN_PIN_EMULATOR [virDomainPinEmulator],
    280 DOMAIN_GET_EMULATOR_PIN_INFO,
    281 CONNECT_LIST_ALL_STORAGE_POOLS,
    282 STORAGE_POOL_LIST_ALL_VOLUMES,
    283 CONNECT_LIST_ALL_NETWORKS,
    284 CONNECT_LIST_ALL_INTERFACES,
    285 CONNECT_LIST_ALL_NODE_DEVICES,
    286 CONNECT_LIST_ALL_NWFILTERS,
    287 CONNECT_LIST_ALL_SECRETS,
    288 NODE_SET_MEMORY_PARAMETERS [virNodeSetMemoryParameters],
    289 NODE_GET_MEMORY_PARAMETERS,
    290 DOMAIN_BLOCK_COMMIT [virDomainBlockCommit],
    291 NETWORK_UPDATE [virNetworkUpdate],
    292 DOMAIN_EVENT_PMSUSPEND_DISK,
    293 NODE_GET_CPU_MAP,
    294 DOMAIN_FSTRIM [virDomainFSTrim],
    295 DOMAIN_SEND_PROCESS_SIGNAL [virDomainSendProcessSignal],
    296 DOMAIN_OPEN_CHANNEL [virDomainOpenChannel],
    297 NODE_DEVICE_LOOKUP_SCSI_HOST_BY_WWN,
    298 DOMAIN_GET_JOB_STATS,
    299 DOMAIN_MIGRATE_GET_COMPRESSION_CACHE,
    300 DOMAIN_MIGRATE_SET_COMPRESSION_CACHE [virDomainMigrateSetCompressionCache],
    301 NODE_DEVICE_DETACH_FLAGS [virNodeDeviceDetachFlags],
    302 DOMAIN_MIGRATE_BEGIN3_PARAMS [virDomainMigrateBegin3Params],
    303 DOMAIN_MIGRATE_PREPARE3_PARAMS [virDomainMigratePrepare3Params],
    304 DOMAIN_MIGRATE_PREPARE_TUNNEL3_PARAMS [virDomainMigratePrepareTunnel3Params],
    305 DOMAIN_MIGRATE_PERFORM3_PARAMS [virDomainMigratePerform3Params],
    306 DOMAIN_MIGRATE_FINISH3_PARAMS [virDomainMigrateFinish3Params],
    307 DOMAIN_MIGRATE_CONFIRM3_PARAMS [virDomainMigrateConfirm3Params],
    308 DOMAIN_SET_MEMORY_STATS_PERIOD [virDomainSetMemoryStatsPeriod],
    309 DOMAIN_CREATE_XML_WITH_FILES [virDomainCreateXMLWithFiles],
    310 DOMAIN_CREATE_WITH_FILES [virDomainCreateWithFiles],
    311 DOMAIN_EVENT_DEVICE_REMOVED,
    312 CONNECT_GET_CPU_MODEL_NAMES,
    313 CONNECT_NETWORK_EVENT_REGISTER_ANY,
    314 CONNECT_NETWORK_EVENT_DEREGISTER_ANY,
    315 NETWORK_EVENT_LIFECYCLE,
    316 CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY,
    317 CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY,
    318 DOMAIN_EVENT_CALLBACK_LIFECYCLE,
    319 DOMAIN_EVENT_CALLBACK_REBOOT,
    320 DOMAIN_EVENT_CALLBACK_RTC_CHANGE,
    321 DOMAIN_EVENT_CALLBACK_WATCHDOG,
    322 DOMAIN_EVENT_CALLBACK_IO_ERROR,
    323 DOMAIN_EVENT_CALLBACK_GRAPHICS,
    324 DOMAIN_EVENT_CALLBACK_IO_ERROR_REASON,
    325 DOMAIN_EVENT_CALLBACK_CONTROL_ERROR,
    326 DOMAIN_EVENT_CALLBACK_BLOCK_JOB,
    327 DOMAIN_EVENT_CALLBACK_DISK_CHANGE,
    328 DOMAIN_EVENT_CALLBACK_TRAY_CHANGE,
    329 DOMAIN_EVENT_CALLBACK_PMWAKEUP,
    330 DOMAIN_EVENT_CALLBACK_PMSUSPEND,
    331 DOMAIN_EVENT_CALLBACK_BALLOON_CHANGE,
    332 DOMAIN_EVENT_CALLBACK_PMSUSPEND_DISK,
    333 DOMAIN_EVENT_CALLBACK_DEVICE_REMOVED,
    334 DOMAIN_CORE_DUMP_WITH_FORMAT [virDomainCoreDumpWithFormat],
    335 DOMAIN_FSFREEZE [virDomainFSFreeze],
    336 DOMAIN_FSTHAW [virDomainFSThaw],
    337 DOMAIN_GET_TIME [virDomainGetTime],
    338 DOMAIN_SET_TIME [virDomainSetTime],
    339 DOMAIN_EVENT_BLOCK_JOB_2,
    340 NODE_GET_FREE_PAGES,
    341 NETWORK_GET_DHCP_LEASES,
    342 CONNECT_GET_DOMAIN_CAPABILITIES [virConnectGetDomainCapabilities],
    343 DOMAIN_OPEN_GRAPHICS_FD [virDomainOpenGraphicsFD],
    344 CONNECT_GET_ALL_DOMAIN_STATS,
    345 DOMAIN_BLOCK_COPY [virDomainBlockCopy],
    346 DOMAIN_EVENT_CALLBACK_TUNABLE,
    347 NODE_ALLOC_PAGES [virNodeAllocPages],
    348 DOMAIN_EVENT_CALLBACK_AGENT_LIFECYCLE,
    349 DOMAIN_GET_FSINFO [virDomainGetFSInfo],
    350 DOMAIN_DEFINE_XML_FLAGS [virDomainDefineXMLFlags],
    351 DOMAIN_GET_IOTHREAD_INFO,
    352 DOMAIN_PIN_IOTHREAD [virDomainPinIOThread],
    353 DOMAIN_INTERFACE_ADDRESSES,
    354 DOMAIN_EVENT_CALLBACK_DEVICE_ADDED,
    355 DOMAIN_ADD_IOTHREAD [virDomainAddIOThread],
    356 DOMAIN_DEL_IOTHREAD [virDomainDelIOThread],
    357 DOMAIN_SET_USER_PASSWORD [virDomainSetUserPassword],
    358 DOMAIN_RENAME [virDomainRename],
    359 DOMAIN_EVENT_CALLBACK_MIGRATION_ITERATION,
    360 CONNECT_REGISTER_CLOSE_CALLBACK,
    361 CONNECT_UNREGISTER_CLOSE_CALLBACK,
    362 CONNECT_EVENT_CONNECTION_CLOSED,
    363 DOMAIN_EVENT_CALLBACK_JOB_COMPLETED,
    364 DOMAIN_MIGRATE_START_POST_COPY [virDomainMigrateStartPostCopy],
    365 DOMAIN_GET_PERF_EVENTS,
    366 DOMAIN_SET_PERF_EVENTS [virDomainSetPerfEvents],
    367 DOMAIN_EVENT_CALLBACK_DEVICE_REMOVAL_FAILED,
    368 CONNECT_STORAGE_POOL_EVENT_REGISTER_ANY,
    369 CONNECT_STORAGE_POOL_EVENT_DEREGISTER_ANY,
    370 STORAGE_POOL_EVENT_LIFECYCLE,
    371 DOMAIN_GET_GUEST_VCPUS [virDomainGetGuestVcpus],
    372 DOMAIN_SET_GUEST_VCPUS [virDomainSetGuestVcpus],
    373 STORAGE_POOL_EVENT_REFRESH,
    374 CONNECT_NODE_DEVICE_EVENT_REGISTER_ANY,
    375 CONNECT_NODE_DEVICE_EVENT_DEREGISTER_ANY,
    376 NODE_DEVICE_EVENT_LIFECYCLE,
    377 NODE_DEVICE_EVENT_UPDATE,
    378 STORAGE_VOL_GET_INFO_FLAGS,
    379 DOMAIN_EVENT_CALLBACK_METADATA_CHANGE,
    380 CONNECT_SECRET_EVENT_REGISTER_ANY,
    381 CONNECT_SECRET_EVENT_DEREGISTER_ANY,
    382 SECRET_EVENT_LIFECYCLE,
    383 SECRET_EVENT_VALUE_CHANGED,
    384 DOMAIN_SET_VCPU [virDomainSetVcpu],
    385 DOMAIN_EVENT_BLOCK_THRESHOLD,
    386 DOMAIN_SET_BLOCK_THRESHOLD [virDomainSetBlockThreshold],
    387 DOMAIN_MIGRATE_GET_MAX_DOWNTIME,
    388 DOMAIN_MANAGED_SAVE_GET_XML_DESC,
    389 DOMAIN_MANAGED_SAVE_DEFINE_XML [virDomainManagedSaveDefineXML],
    390 DOMAIN_SET_LIFECYCLE_ACTION [virDomainSetLifecycleAction],
    391 STORAGE_POOL_LOOKUP_BY_TARGET_PATH,
    392 DOMAIN_DETACH_DEVICE_ALIAS [virDomainDetachDeviceAlias],
    393 CONNECT_COMPARE_HYPERVISOR_CPU [virConnectCompareHypervisorCPU],
    394 CONNECT_BASELINE_HYPERVISOR_CPU [virConnectBaselineHypervisorCPU],
    395 NODE_GET_SEV_INFO [virNodeGetSEVInfo],
    396 DOMAIN_GET_LAUNCH_SECURITY_INFO [virDomainGetLaunchSecurityInfo],
    397 NWFILTER_BINDING_LOOKUP_BY_PORT_DEV,
    398 NWFILTER_BINDING_GET_XML_DESC,
    399 NWFILTER_BINDING_CREATE_XML [virNWFilterBindingCreateXML],
    400 NWFILTER_BINDING_DELETE [virNWFilterBindingDelete],
    401 CONNECT_LIST_ALL_NWFILTER_BINDINGS,
    402 DOMAIN_SET_IOTHREAD_PARAMS [virDomainSetIOThreadParams],
    403 CONNECT_GET_STORAGE_POOL_CAPABILITIES,
    404 NETWORK_LIST_ALL_PORTS,
    405 NETWORK_PORT_LOOKUP_BY_UUID,
    406 NETWORK_PORT_CREATE_XML [virNetworkPortCreateXML],
    407 NETWORK_PORT_GET_PARAMETERS,
    408 NETWORK_PORT_SET_PARAMETERS [virNetworkPortSetParameters],
    409 NETWORK_PORT_GET_XML_DESC,
    410 NETWORK_PORT_DELETE [virNetworkPortDelete],
    411 DOMAIN_CHECKPOINT_CREATE_XML [virDomainCheckpointCreateXML],
    412 DOMAIN_CHECKPOINT_GET_XML_DESC,
    413 DOMAIN_LIST_ALL_CHECKPOINTS,
    414 DOMAIN_CHECKPOINT_LIST_ALL_CHILDREN,
    415 DOMAIN_CHECKPOINT_LOOKUP_BY_NAME,
    416 DOMAIN_CHECKPOINT_GET_PARENT,
    417 DOMAIN_CHECKPOINT_DELETE [virDomainCheckpointDelete],
    418 DOMAIN_GET_GUEST_INFO [virDomainGetGuestInfo],
    419 CONNECT_SET_IDENTITY [virConnectSetIdentity],
    420 DOMAIN_AGENT_SET_RESPONSE_TIMEOUT [virDomainAgentSetResponseTimeout],
    421 DOMAIN_BACKUP_BEGIN [virDomainBackupBegin],
    422 DOMAIN_BACKUP_GET_XML_DESC,
    423 DOMAIN_EVENT_MEMORY_FAILURE,
    424 DOMAIN_AUTHORIZED_SSH_KEYS_GET [virDomainAuthorizedSSHKeysGet],
    425 DOMAIN_AUTHORIZED_SSH_KEYS_SET [virDomainAuthorizedSSHKeysSet],
    426 DOMAIN_GET_MESSAGES,
    427 DOMAIN_START_DIRTY_RATE_CALC [virDomainStartDirtyRateCalc],
    428 NODE_DEVICE_DEFINE_XML [virNodeDeviceDefineXML],
    429 NODE_DEVICE_UNDEFINE [virNodeDeviceUndefine],
    430 NODE_DEVICE_CREATE [virNodeDeviceCreate],
    431 NWFILTER_DEFINE_XML_FLAGS [virNWFilterDefineXMLFlags],
    432 NETWORK_DEFINE_XML_FLAGS [virNetworkDefineXMLFlags],
    433 NODE_DEVICE_GET_AUTOSTART,
    434 NODE_DEVICE_SET_AUTOSTART [virNodeDeviceSetAutostart],
    435 NODE_DEVICE_IS_PERSISTENT,
    436 NODE_DEVICE_IS_ACTIVE,
    437 NETWORK_CREATE_XML_FLAGS [virNetworkCreateXMLFlags],
    438 DOMAIN_EVENT_MEMORY_DEVICE_SIZE_CHANGE,
    439 DOMAIN_SET_LAUNCH_SECURITY_STATE [virDomainSetLaunchSecurityState],
    440 DOMAIN_SAVE_PARAMS [virDomainSaveParams],
    441 DOMAIN_RESTORE_PARAMS [virDomainRestoreParams],
    442 DOMAIN_ABORT_JOB_FLAGS [virDomainAbortJobFlags],
    443 DOMAIN_FD_ASSOCIATE [virDomainFDAssociate],
    444 NETWORK_SET_METADATA [virNetworkSetMetadata],
    445 NETWORK_GET_METADATA,
    446 NETWORK_EVENT_CALLBACK_METADATA_CHANGE,
    447 NODE_DEVICE_UPDATE [virNodeDeviceUpdate],
    448 DOMAIN_GRAPHICS_RELOAD [virDomainGraphicsReload],
    449 DOMAIN_GET_AUTOSTART_ONCE,
    450 DOMAIN_SET_AUTOSTART_ONCE [virDomainSetAutostartOnce],
    451 DOMAIN_SET_THROTTLE_GROUP [virDomainSetThrottleGroup],
    452 DOMAIN_DEL_THROTTLE_GROUP [virDomainDelThrottleGroup],
    453 DOMAIN_EVENT_NIC_MAC_CHANGE,
}

procedures! {
    /// Program QEMU.
    QemuProcedure of PROGRAM_QEMU;
    1 DOMAIN_MONITOR_COMMAND [virDomainQemuMonitorCommand],
    2 DOMAIN_ATTACH [virDomainQemuAttach],
    3 DOMAIN_AGENT_COMMAND [virDomainQemuAgentCommand],
    4 CONNECT_DOMAIN_MONITOR_EVENT_REGISTER [virConnectDomainQemuMonitorEventRegister],
    5 CONNECT_DOMAIN_MONITOR_EVENT_DEREGISTER [virConnectDomainQemuMonitorEventDeregister],
    6 DOMAIN_MONITOR_EVENT,
    7 DOMAIN_MONITOR_COMMAND_WITH_FILES [virDomainQemuMonitorCommandWithFiles],
}

procedures! {
    /// Program KEEPALIVE.
    KeepaliveProcedure of PROGRAM_KEEPALIVE;
    1 PING,
    2 PONG,
}

impl Procedure {
    /// Served before the client has opened a connection.
    pub fn allowed_before_open(self) -> bool {
        matches!(
            self,
            Self::AUTH_LIST
                | Self::AUTH_SASL_INIT
                | Self::AUTH_SASL_START
                | Self::AUTH_SASL_STEP
                | Self::AUTH_POLKIT
                | Self::CONNECT_OPEN
                | Self::CONNECT_CLOSE
                | Self::CONNECT_SUPPORTS_FEATURE
        )
    }
}

const DOMAIN_XML_SECURE: u32 = 1;
const DOMAIN_XML_MIGRATABLE: u32 = 8;
const XML_SECURE: u32 = 1;
const VCPU_GUEST: u32 = 8;
const ADDRESSES_FROM_AGENT: u32 = 1;

/// The API function that refuses this call on a read-only connection because of its flags:
/// secrets in the XML, and questions to the guest's agent. Arguments that do not decode are
/// someone else's to refuse.
pub fn barred_by_flags(procedure: Procedure, payload: &[u8]) -> Option<&'static str> {
    let (barred, function) = match procedure {
        Procedure::DOMAIN_GET_XML_DESC => (
            DomainGetXmlDescArgs::from_bytes(payload).ok()?.flags
                & (DOMAIN_XML_SECURE | DOMAIN_XML_MIGRATABLE),
            "virDomainGetXMLDesc",
        ),
        Procedure::DOMAIN_SNAPSHOT_GET_XML_DESC => (
            DomainSnapshotGetXmlDescArgs::from_bytes(payload).ok()?.flags & XML_SECURE,
            "virDomainSnapshotGetXMLDesc",
        ),
        Procedure::DOMAIN_MANAGED_SAVE_GET_XML_DESC => (
            DomainManagedSaveGetXmlDescArgs::from_bytes(payload).ok()?.flags & XML_SECURE,
            "virDomainManagedSaveGetXMLDesc",
        ),
        Procedure::DOMAIN_GET_VCPUS_FLAGS => (
            DomainGetVcpusFlagsArgs::from_bytes(payload).ok()?.flags & VCPU_GUEST,
            "virDomainGetVcpusFlags",
        ),
        Procedure::DOMAIN_INTERFACE_ADDRESSES => (
            u32::from(
                DomainInterfaceAddressesArgs::from_bytes(payload).ok()?.source
                    == ADDRESSES_FROM_AGENT,
            ),
            "virDomainInterfaceAddresses",
        ),
        _ => return None,
    };
    (barred != 0).then_some(function)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        let numbers: Vec<u32> = Procedure::ALL.iter().map(|&p| p as u32).collect();
        assert_eq!(numbers, (1..=453).collect::<Vec<_>>());
    }

    /// Permissions of libvirt's access control that let nobody change or spy on anything.
    fn only_reads(permission: &str) -> bool {
        let (_, act) = permission.split_once(':').unwrap_or(("", permission));
        matches!(act, "none" | "getattr" | "read") || act.starts_with("search_")
    }

    /// Where the API's rule for read-only connections differs from the permissions.
    const MORE_IS_BARRED: [&str; 3] =
        ["DOMAIN_SET_SCHEDULER_PARAMETERS", "NODE_GET_SEV_INFO", "DOMAIN_GET_LAUNCH_SECURITY_INFO"];
    /// These only read, though they go with migration.
    const LESS_IS_BARRED: [&str; 2] =
        ["DOMAIN_MIGRATE_GET_COMPRESSION_CACHE", "DOMAIN_MIGRATE_GET_MAX_DOWNTIME"];

    #[test]
    fn what_is_barred_is_what_libvirts_permissions_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/permissions.txt");
        let text = std::fs::read_to_string(path).unwrap();
        let mut seen = 0;
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [program, number, name, permissions @ ..] = words.as_slice() else {
                panic!("{line}");
            };
            let number: u32 = number.parse().unwrap();
            let (known, barred) = if *program == "qemu" {
                let one = QemuProcedure::try_from(number).unwrap();
                (one.name(), one.barred_read_only())
            } else {
                let one = Procedure::try_from(number).unwrap();
                (one.name(), one.barred_read_only())
            };
            assert_eq!(known, *name);
            // What depends on a flag is `barred_by_flags`'s.
            let mut always = permissions.iter().filter(|one| !one.contains('?'));
            let must = !always.all(|one| only_reads(one));
            let expected =
                (must || MORE_IS_BARRED.contains(name)) && !LESS_IS_BARRED.contains(name);
            assert_eq!(barred.is_some(), expected, "{line}: {barred:?}");
            seen += 1;
        }
        assert_eq!(seen, Procedure::ALL.len() + QemuProcedure::ALL.len());
    }

    #[test]
    fn reading_is_allowed_and_writing_is_not() {
        assert_eq!(
            Procedure::DOMAIN_SNAPSHOT_CREATE_XML.barred_read_only(),
            Some("virDomainSnapshotCreateXML")
        );
        assert_eq!(Procedure::DOMAIN_LIST_ALL_SNAPSHOTS.barred_read_only(), None);
        assert_eq!(QemuProcedure::DOMAIN_MONITOR_EVENT.barred_read_only(), None);
    }
}
