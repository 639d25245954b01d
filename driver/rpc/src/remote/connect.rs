//! The connection, the host and the lists of domains.

use super::calls;
use super::types::{DomainRef, DomainStatsRecord, NodeGetCpuStats, NodeGetMemoryStats, TypedParam};
use crate::xdr::{List, Opaque};

calls! {
    CONNECT_OPEN: ConnectOpenArgs { name: Option<String>, flags: u32 } -> ();
    CONNECT_CLOSE: ConnectCloseArgs {} -> ();
    CONNECT_SUPPORTS_FEATURE: ConnectSupportsFeatureArgs { feature: i32 }
        -> ConnectSupportsFeatureRet { supported: i32 };
    AUTH_LIST: AuthListArgs {} -> AuthListRet { types: List<i32, 20> };
    AUTH_POLKIT: AuthPolkitArgs {} -> AuthPolkitRet { complete: i32 };
    CONNECT_GET_URI: ConnectGetUriArgs {} -> ConnectGetUriRet { uri: String };
    CONNECT_REGISTER_CLOSE_CALLBACK: ConnectRegisterCloseCallbackArgs {} -> ();
    CONNECT_UNREGISTER_CLOSE_CALLBACK: ConnectUnregisterCloseCallbackArgs {} -> ();
    CONNECT_GET_TYPE: ConnectGetTypeArgs {} -> ConnectGetTypeRet { kind: String };
    CONNECT_GET_VERSION: ConnectGetVersionArgs {} -> ConnectGetVersionRet { hv_ver: u64 };
    CONNECT_GET_MAX_VCPUS: ConnectGetMaxVcpusArgs { kind: Option<String> }
        -> ConnectGetMaxVcpusRet { max_vcpus: i32 };
    NODE_GET_INFO: NodeGetInfoArgs {} -> NodeGetInfoRet {
        model: [i8; 32], memory: u64, cpus: i32, mhz: i32, nodes: i32, sockets: i32, cores: i32,
        threads: i32,
    };
    CONNECT_GET_CAPABILITIES: ConnectGetCapabilitiesArgs {}
        -> ConnectGetCapabilitiesRet { capabilities: String };
    CONNECT_LIST_DEFINED_DOMAINS: ConnectListDefinedDomainsArgs { max_names: i32 }
        -> ConnectListDefinedDomainsRet { names: List<String, 16384> };
    CONNECT_NUM_OF_DEFINED_DOMAINS: ConnectNumOfDefinedDomainsArgs {}
        -> ConnectNumOfDefinedDomainsRet { num: i32 };
    CONNECT_LIST_DOMAINS: ConnectListDomainsArgs { max_ids: i32 }
        -> ConnectListDomainsRet { ids: List<i32, 16384> };
    CONNECT_NUM_OF_DOMAINS: ConnectNumOfDomainsArgs {} -> ConnectNumOfDomainsRet { num: i32 };
    CONNECT_GET_HOSTNAME: ConnectGetHostnameArgs {} -> ConnectGetHostnameRet { hostname: String };
    NODE_GET_CELLS_FREE_MEMORY: NodeGetCellsFreeMemoryArgs { start_cell: i32, maxcells: i32 }
        -> NodeGetCellsFreeMemoryRet { cells: List<u64, 1024> };
    NODE_GET_FREE_MEMORY: NodeGetFreeMemoryArgs {} -> NodeGetFreeMemoryRet { free_mem: u64 };
    NODE_GET_SECURITY_MODEL: NodeGetSecurityModelArgs {}
        -> NodeGetSecurityModelRet { model: List<i8, 257>, doi: List<i8, 257> };
    CONNECT_DOMAIN_XML_TO_NATIVE:
        ConnectDomainXmlToNativeArgs { native_format: String, domain_xml: String, flags: u32 }
        -> ConnectDomainXmlToNativeRet { native_config: String };
    CONNECT_IS_SECURE: ConnectIsSecureArgs {} -> ConnectIsSecureRet { secure: i32 };
    CONNECT_GET_LIB_VERSION: ConnectGetLibVersionArgs {}
        -> ConnectGetLibVersionRet { lib_ver: u64 };
    CONNECT_GET_SYSINFO: ConnectGetSysinfoArgs { flags: u32 }
        -> ConnectGetSysinfoRet { sysinfo: String };
    NODE_GET_CPU_STATS: NodeGetCpuStatsArgs { cpu_num: i32, nparams: i32, flags: u32 }
        -> NodeGetCpuStatsRet { params: List<NodeGetCpuStats, 16>, nparams: i32 };
    NODE_GET_MEMORY_STATS: NodeGetMemoryStatsArgs { nparams: i32, cell_num: i32, flags: u32 }
        -> NodeGetMemoryStatsRet { params: List<NodeGetMemoryStats, 16>, nparams: i32 };
    CONNECT_LIST_ALL_DOMAINS: ConnectListAllDomainsArgs { need_results: i32, flags: u32 }
        -> ConnectListAllDomainsRet { domains: List<DomainRef, 16384>, ret: u32 };
    NODE_GET_MEMORY_PARAMETERS: NodeGetMemoryParametersArgs { nparams: i32, flags: u32 }
        -> NodeGetMemoryParametersRet { params: List<TypedParam, 64>, nparams: i32 };
    NODE_GET_CPU_MAP: NodeGetCpuMapArgs { need_map: i32, need_online: i32, flags: u32 }
        -> NodeGetCpuMapRet { cpumap: Opaque<2048>, online: u32, ret: i32 };
    CONNECT_GET_CPU_MODEL_NAMES:
        ConnectGetCpuModelNamesArgs { arch: String, need_results: i32, flags: u32 }
        -> ConnectGetCpuModelNamesRet { models: List<String, 8192>, ret: i32 };
    NODE_GET_FREE_PAGES: NodeGetFreePagesArgs {
        pages: List<u32, 1024>, start_cell: i32, cell_count: u32, flags: u32,
    } -> NodeGetFreePagesRet { counts: List<u64, 1024> };
    CONNECT_GET_DOMAIN_CAPABILITIES: ConnectGetDomainCapabilitiesArgs {
        emulatorbin: Option<String>, arch: Option<String>, machine: Option<String>, virt_type:
        Option<String>, flags: u32,
    } -> ConnectGetDomainCapabilitiesRet { capabilities: String };
    CONNECT_GET_ALL_DOMAIN_STATS:
        ConnectGetAllDomainStatsArgs { doms: List<DomainRef, 16384>, stats: u32, flags: u32 }
        -> ConnectGetAllDomainStatsRet { ret_stats: List<DomainStatsRecord, 16384> };
    NODE_ALLOC_PAGES: NodeAllocPagesArgs {
        page_sizes: List<u32, 1024>, page_counts: List<u64, 1024>, start_cell: i32, cell_count:
        u32, flags: u32,
    } -> NodeAllocPagesRet { ret: i32 };
    NODE_GET_SEV_INFO: NodeGetSevInfoArgs { nparams: i32, flags: u32 }
        -> NodeGetSevInfoRet { params: List<TypedParam, 64>, nparams: i32 };
}
