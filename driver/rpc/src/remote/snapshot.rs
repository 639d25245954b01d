//! Snapshots: all sixteen procedures.

use super::calls;
use super::types::{DomainRef, SnapshotRef};
use crate::xdr::List;

calls! {
    DOMAIN_SNAPSHOT_CREATE_XML:
        DomainSnapshotCreateXmlArgs { dom: DomainRef, xml_desc: String, flags: u32 }
        -> DomainSnapshotCreateXmlRet { snap: SnapshotRef };
    DOMAIN_SNAPSHOT_GET_XML_DESC: DomainSnapshotGetXmlDescArgs { snap: SnapshotRef, flags: u32 }
        -> DomainSnapshotGetXmlDescRet { xml: String };
    DOMAIN_SNAPSHOT_NUM: DomainSnapshotNumArgs { dom: DomainRef, flags: u32 }
        -> DomainSnapshotNumRet { num: i32 };
    DOMAIN_SNAPSHOT_LIST_NAMES:
        DomainSnapshotListNamesArgs { dom: DomainRef, max_names: i32, flags: u32 }
        -> DomainSnapshotListNamesRet { names: List<String, 16384> };
    DOMAIN_SNAPSHOT_LOOKUP_BY_NAME:
        DomainSnapshotLookupByNameArgs { dom: DomainRef, name: String, flags: u32 }
        -> DomainSnapshotLookupByNameRet { snap: SnapshotRef };
    DOMAIN_HAS_CURRENT_SNAPSHOT: DomainHasCurrentSnapshotArgs { dom: DomainRef, flags: u32 }
        -> DomainHasCurrentSnapshotRet { result: i32 };
    DOMAIN_SNAPSHOT_CURRENT: DomainSnapshotCurrentArgs { dom: DomainRef, flags: u32 }
        -> DomainSnapshotCurrentRet { snap: SnapshotRef };
    DOMAIN_REVERT_TO_SNAPSHOT: DomainRevertToSnapshotArgs { snap: SnapshotRef, flags: u32 } -> ();
    DOMAIN_SNAPSHOT_DELETE: DomainSnapshotDeleteArgs { snap: SnapshotRef, flags: u32 } -> ();
    DOMAIN_SNAPSHOT_GET_PARENT: DomainSnapshotGetParentArgs { snap: SnapshotRef, flags: u32 }
        -> DomainSnapshotGetParentRet { snap: SnapshotRef };
    DOMAIN_SNAPSHOT_NUM_CHILDREN: DomainSnapshotNumChildrenArgs { snap: SnapshotRef, flags: u32 }
        -> DomainSnapshotNumChildrenRet { num: i32 };
    DOMAIN_SNAPSHOT_LIST_CHILDREN_NAMES:
        DomainSnapshotListChildrenNamesArgs { snap: SnapshotRef, max_names: i32, flags: u32 }
        -> DomainSnapshotListChildrenNamesRet { names: List<String, 16384> };
    DOMAIN_SNAPSHOT_IS_CURRENT: DomainSnapshotIsCurrentArgs { snap: SnapshotRef, flags: u32 }
        -> DomainSnapshotIsCurrentRet { current: i32 };
    DOMAIN_SNAPSHOT_HAS_METADATA: DomainSnapshotHasMetadataArgs { snap: SnapshotRef, flags: u32 }
        -> DomainSnapshotHasMetadataRet { metadata: i32 };
    DOMAIN_LIST_ALL_SNAPSHOTS:
        DomainListAllSnapshotsArgs { dom: DomainRef, need_results: i32, flags: u32 }
        -> DomainListAllSnapshotsRet { snapshots: List<SnapshotRef, 16384>, ret: i32 };
    DOMAIN_SNAPSHOT_LIST_ALL_CHILDREN:
        DomainSnapshotListAllChildrenArgs { snapshot: SnapshotRef, need_results: i32, flags: u32 }
        -> DomainSnapshotListAllChildrenRet { snapshots: List<SnapshotRef, 16384>, ret: i32 };
}
