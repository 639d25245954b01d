//! Networks, storage, node devices, secrets, filters and interfaces: the calls that clients of a
//! hypervisor make on the side. A driver that has none of these answers the lists emptily.

use super::calls;
use super::types::{
    InterfaceRef, NetworkRef, NodeDeviceRef, NwfilterRef, PoolRef, SecretRef, VolumeRef,
};
use crate::xdr::List;

calls! {
    CONNECT_LIST_NETWORKS: ConnectListNetworksArgs { max_names: i32 }
        -> ConnectListNetworksRet { names: List<String, 16384> };
    NETWORK_CREATE: NetworkCreateArgs { net: NetworkRef } -> ();
    NETWORK_GET_XML_DESC: NetworkGetXmlDescArgs { net: NetworkRef, flags: u32 }
        -> NetworkGetXmlDescRet { xml: String };
    NETWORK_GET_AUTOSTART: NetworkGetAutostartArgs { net: NetworkRef }
        -> NetworkGetAutostartRet { autostart: i32 };
    NETWORK_GET_BRIDGE_NAME: NetworkGetBridgeNameArgs { net: NetworkRef }
        -> NetworkGetBridgeNameRet { name: String };
    NETWORK_LOOKUP_BY_NAME: NetworkLookupByNameArgs { name: String }
        -> NetworkLookupByNameRet { net: NetworkRef };
    CONNECT_NUM_OF_NETWORKS: ConnectNumOfNetworksArgs {} -> ConnectNumOfNetworksRet { num: i32 };
    STORAGE_POOL_DEFINE_XML: StoragePoolDefineXmlArgs { xml: String, flags: u32 }
        -> StoragePoolDefineXmlRet { pool: PoolRef };
    STORAGE_POOL_CREATE: StoragePoolCreateArgs { pool: PoolRef, flags: u32 } -> ();
    STORAGE_POOL_BUILD: StoragePoolBuildArgs { pool: PoolRef, flags: u32 } -> ();
    STORAGE_POOL_REFRESH: StoragePoolRefreshArgs { pool: PoolRef, flags: u32 } -> ();
    STORAGE_POOL_LOOKUP_BY_NAME: StoragePoolLookupByNameArgs { name: String }
        -> StoragePoolLookupByNameRet { pool: PoolRef };
    STORAGE_POOL_LOOKUP_BY_VOLUME: StoragePoolLookupByVolumeArgs { vol: VolumeRef }
        -> StoragePoolLookupByVolumeRet { pool: PoolRef };
    STORAGE_POOL_GET_INFO: StoragePoolGetInfoArgs { pool: PoolRef }
        -> StoragePoolGetInfoRet { state: u8, capacity: u64, allocation: u64, available: u64 };
    STORAGE_POOL_GET_XML_DESC: StoragePoolGetXmlDescArgs { pool: PoolRef, flags: u32 }
        -> StoragePoolGetXmlDescRet { xml: String };
    STORAGE_POOL_GET_AUTOSTART: StoragePoolGetAutostartArgs { pool: PoolRef }
        -> StoragePoolGetAutostartRet { autostart: i32 };
    STORAGE_POOL_SET_AUTOSTART: StoragePoolSetAutostartArgs { pool: PoolRef, autostart: i32 }
        -> ();
    STORAGE_VOL_CREATE_XML: StorageVolCreateXmlArgs { pool: PoolRef, xml: String, flags: u32 }
        -> StorageVolCreateXmlRet { vol: VolumeRef };
    STORAGE_VOL_DELETE: StorageVolDeleteArgs { vol: VolumeRef, flags: u32 } -> ();
    STORAGE_VOL_LOOKUP_BY_NAME: StorageVolLookupByNameArgs { pool: PoolRef, name: String }
        -> StorageVolLookupByNameRet { vol: VolumeRef };
    STORAGE_VOL_LOOKUP_BY_PATH: StorageVolLookupByPathArgs { path: String }
        -> StorageVolLookupByPathRet { vol: VolumeRef };
    STORAGE_VOL_GET_INFO: StorageVolGetInfoArgs { vol: VolumeRef }
        -> StorageVolGetInfoRet { kind: i8, capacity: u64, allocation: u64 };
    STORAGE_VOL_GET_XML_DESC: StorageVolGetXmlDescArgs { vol: VolumeRef, flags: u32 }
        -> StorageVolGetXmlDescRet { xml: String };
    STORAGE_VOL_GET_PATH: StorageVolGetPathArgs { vol: VolumeRef }
        -> StorageVolGetPathRet { name: String };
    NODE_NUM_OF_DEVICES: NodeNumOfDevicesArgs { cap: Option<String>, flags: u32 }
        -> NodeNumOfDevicesRet { num: i32 };
    NODE_LIST_DEVICES: NodeListDevicesArgs { cap: Option<String>, max_names: i32, flags: u32 }
        -> NodeListDevicesRet { names: List<String, 65536> };
    NODE_DEVICE_GET_XML_DESC: NodeDeviceGetXmlDescArgs { name: String, flags: u32 }
        -> NodeDeviceGetXmlDescRet { xml: String };
    CONNECT_NUM_OF_INTERFACES: ConnectNumOfInterfacesArgs {}
        -> ConnectNumOfInterfacesRet { num: i32 };
    NETWORK_IS_ACTIVE: NetworkIsActiveArgs { net: NetworkRef }
        -> NetworkIsActiveRet { active: i32 };
    NETWORK_IS_PERSISTENT: NetworkIsPersistentArgs { net: NetworkRef }
        -> NetworkIsPersistentRet { persistent: i32 };
    STORAGE_POOL_IS_ACTIVE: StoragePoolIsActiveArgs { pool: PoolRef }
        -> StoragePoolIsActiveRet { active: i32 };
    STORAGE_POOL_IS_PERSISTENT: StoragePoolIsPersistentArgs { pool: PoolRef }
        -> StoragePoolIsPersistentRet { persistent: i32 };
    STORAGE_VOL_UPLOAD:
        StorageVolUploadArgs { vol: VolumeRef, offset: u64, length: u64, flags: u32 }
        -> ();
    STORAGE_VOL_DOWNLOAD:
        StorageVolDownloadArgs { vol: VolumeRef, offset: u64, length: u64, flags: u32 }
        -> ();
    CONNECT_LIST_ALL_STORAGE_POOLS: ConnectListAllStoragePoolsArgs { need_results: i32, flags: u32 }
        -> ConnectListAllStoragePoolsRet { pools: List<PoolRef, 16384>, ret: u32 };
    STORAGE_POOL_LIST_ALL_VOLUMES:
        StoragePoolListAllVolumesArgs { pool: PoolRef, need_results: i32, flags: u32 }
        -> StoragePoolListAllVolumesRet { vols: List<VolumeRef, 16384>, ret: u32 };
    CONNECT_LIST_ALL_NETWORKS: ConnectListAllNetworksArgs { need_results: i32, flags: u32 }
        -> ConnectListAllNetworksRet { nets: List<NetworkRef, 16384>, ret: u32 };
    CONNECT_LIST_ALL_INTERFACES: ConnectListAllInterfacesArgs { need_results: i32, flags: u32 }
        -> ConnectListAllInterfacesRet { ifaces: List<InterfaceRef, 16384>, ret: u32 };
    CONNECT_LIST_ALL_NODE_DEVICES: ConnectListAllNodeDevicesArgs { need_results: i32, flags: u32 }
        -> ConnectListAllNodeDevicesRet { devices: List<NodeDeviceRef, 65536>, ret: u32 };
    CONNECT_LIST_ALL_NWFILTERS: ConnectListAllNwfiltersArgs { need_results: i32, flags: u32 }
        -> ConnectListAllNwfiltersRet { filters: List<NwfilterRef, 16384>, ret: u32 };
    CONNECT_LIST_ALL_SECRETS: ConnectListAllSecretsArgs { need_results: i32, flags: u32 }
        -> ConnectListAllSecretsRet { secrets: List<SecretRef, 16384>, ret: u32 };
    NODE_DEVICE_IS_ACTIVE: NodeDeviceIsActiveArgs { name: String }
        -> NodeDeviceIsActiveRet { active: i32 };
}
