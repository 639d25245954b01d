//! Seeds of the target `session`: calls that clients were heard to make, in its words, and what
//! takes a domain through the states in which more of them can be done.

use std::path::Path;

use virtsnap_rpc::message::{PROGRAM_QEMU, PROGRAM_REMOTE};
use virtsnap_rpc::procedure::{Procedure, QemuProcedure};

use super::{Seeds, recorded, texts};

/// What stands before recorded calls, in turn.
const BEFORE: [&str; 3] = [
    "",
    "DOMAIN_CREATE vm\nDOMAIN_SNAPSHOT_CREATE_XML vm \"<domainsnapshot><name>s1</name>\
     </domainsnapshot>\" 0\n",
    "DOMAIN_SNAPSHOT_CREATE_XML vm \"<domainsnapshot><name>s1</name></domainsnapshot>\" 16\n\
     DOMAIN_SNAPSHOT_CREATE_XML vm \"<domainsnapshot><name>s2</name></domainsnapshot>\" 16\n\
     CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY 0 0\nDOMAIN_CREATE_WITH_FLAGS vm 1\n",
];

pub(super) fn all(fixtures: &Path) -> Seeds {
    let mut calls: Vec<String> = recorded(fixtures)
        .into_iter()
        .filter(|(kind, frame)| kind == "call" && frame.len() <= 2048)
        .filter_map(|(_, frame)| line(&frame))
        .filter(|line| !line.starts_with("CONNECT_OPEN") && !line.starts_with("CONNECT_CLOSE"))
        .collect();
    calls.dedup();
    let chunks = calls.chunks(14).zip(BEFORE.into_iter().cycle());
    let mut seeds: Seeds = chunks
        .map(|(calls, before)| format!("{before}{}", calls.join("\n")).into_bytes())
        .collect();
    seeds.extend(texts(SCRIPTS));
    seeds
}

/// The call of this frame. None: it has no name.
fn line(frame: &[u8]) -> Option<String> {
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"));
    let name = match word(4) {
        PROGRAM_REMOTE => Procedure::try_from(word(12)).ok()?.name().to_owned(),
        PROGRAM_QEMU => format!("QEMU_{}", QemuProcedure::try_from(word(12)).ok()?.name()),
        _ => return None,
    };
    let mut words = vec![name];
    let mut rest = &frame[28..];
    // What a call is about comes first: a domain, or a snapshot of it.
    let about = words[0].starts_with("DOMAIN_") || words[0].starts_with("QEMU_DOMAIN_");
    if about && let Some((name, after)) = string(rest) {
        if let Some((_, place)) = string(after).filter(|(_, place)| place.len() >= 20) {
            words.extend([format!("\"{name}\""), "vm".to_owned()]);
            rest = &place[20..];
        } else if after.len() >= 20 {
            words.push("vm".to_owned());
            rest = &after[20..];
        }
    } else if words[0] == "DOMAIN_LOOKUP_BY_UUID" {
        words.push("uuid".to_owned());
        rest = &rest[16..];
    }
    while let Some((&first, after)) = rest.split_first_chunk() {
        if let Some((text, after)) = string(rest) {
            words.push(format!("\"{text}\""));
            rest = after;
        } else {
            words.push(i32::from_be_bytes(first).to_string());
            rest = after;
        }
    }
    Some(words.join(" "))
}

/// A string that can stand between quotes in a line, and what comes after it.
fn string(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok().filter(|length| *length > 0)?;
    let padding = rest.get(length..length.checked_next_multiple_of(4)?)?;
    let text = std::str::from_utf8(&rest[..length]).ok()?;
    let is_text = text.chars().all(|c| c == '\n' || !c.is_control());
    // XML does not mind the other quotes, nor a space for the end of a line.
    let text = text.replace('"', "'").replace('\n', " ");
    (is_text && padding.iter().all(|&byte| byte == 0))
        .then(|| (text, &rest[length.next_multiple_of(4)..]))
}

const SCRIPTS: &[&str] = &[
    // Trees of snapshots, off and running, reverted to and deleted in every way.
    "DOMAIN_CREATE vm
DOMAIN_SNAPSHOT_CREATE_XML vm \"<domainsnapshot><name>a</name></domainsnapshot>\" 0
DOMAIN_SNAPSHOT_CREATE_XML vm \"<domainsnapshot><name>b</name><memory snapshot='external' file='/img/b.mem'/></domainsnapshot>\" 256
DOMAIN_SNAPSHOT_CREATE_XML vm \"<domainsnapshot><name>c</name></domainsnapshot>\" 80
DOMAIN_LIST_ALL_SNAPSHOTS vm 1 0
DOMAIN_SNAPSHOT_GET_XML_DESC \"b\" vm 1
DOMAIN_REVERT_TO_SNAPSHOT \"a\" vm 0
DOMAIN_SNAPSHOT_CREATE_XML vm \"<domainsnapshot><name>d</name></domainsnapshot>\" 16
DOMAIN_REVERT_TO_SNAPSHOT \"b\" vm 2
DOMAIN_SNAPSHOT_DELETE \"c\" vm 0
DOMAIN_REVERT_TO_SNAPSHOT \"d\" vm 4
restart
DOMAIN_SNAPSHOT_CURRENT vm 0
DOMAIN_SNAPSHOT_DELETE \"a\" vm 1",
    "DOMAIN_SNAPSHOT_CREATE_XML vm \"<domainsnapshot><name>a</name></domainsnapshot>\" 16
DOMAIN_SNAPSHOT_CREATE_XML vm \"<domainsnapshot><name>b</name></domainsnapshot>\" 0
DOMAIN_SNAPSHOT_CREATE_XML vm \"<domainsnapshot><name>c</name><disks><disk name='vda' snapshot='external'><source file='/img/c.qcow2'/></disk><disk name='vdb' snapshot='no'/></disks></domainsnapshot>\" 16
DOMAIN_SNAPSHOT_LIST_ALL_CHILDREN \"a\" vm 1 1
DOMAIN_SNAPSHOT_NUM_CHILDREN \"a\" vm 0
DOMAIN_SNAPSHOT_LIST_CHILDREN_NAMES \"a\" vm 10 0
DOMAIN_SNAPSHOT_GET_PARENT \"b\" vm 0
DOMAIN_SNAPSHOT_IS_CURRENT \"c\" vm 0
DOMAIN_SNAPSHOT_HAS_METADATA \"c\" vm 0
DOMAIN_SNAPSHOT_DELETE \"a\" vm 0
DOMAIN_SNAPSHOT_DELETE \"b\" vm 2
DOMAIN_RENAME vm 1 \"other\" 0
DOMAIN_UNDEFINE_FLAGS vm 2",
    // A record that a client brings.
    "DOMAIN_SNAPSHOT_CREATE_XML vm \"<domainsnapshot><name>a</name><state>shutoff</state><creationTime>1</creationTime><disks><disk name='vda' snapshot='internal'/></disks><domain type='qemu'><name>vm</name><uuid>11111111-2222-3333-4444-555555555555</uuid><memory>65536</memory><os><type>hvm</type></os><devices><disk type='file'><source file='/img/vda.qcow2'/><target dev='vda'/></disk></devices></domain></domainsnapshot>\" 3
DOMAIN_SNAPSHOT_CREATE_XML vm \"<domainsnapshot><name>b</name><parent><name>a</name></parent><state>disk-snapshot</state><creationTime>2</creationTime></domainsnapshot>\" 1
DOMAIN_SNAPSHOT_GET_XML_DESC \"a\" vm 1
ro DOMAIN_SNAPSHOT_GET_XML_DESC \"a\" vm 1
DOMAIN_REVERT_TO_SNAPSHOT \"a\" vm 8
DOMAIN_SNAPSHOT_DELETE \"a\" vm 6",
    // Life, and who hears of it.
    "CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY 0 1 vm
ro CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY 0 0
DOMAIN_CREATE_WITH_FLAGS vm 3
DOMAIN_RESUME vm
DOMAIN_SUSPEND vm
bg DOMAIN_RESUME vm
bg DOMAIN_REBOOT vm 0
bg DOMAIN_SHUTDOWN vm
DOMAIN_GET_STATE vm 0
DOMAIN_CREATE_XML \"<domain type='qemu'><name>t</name><memory>1024</memory><os><type>hvm</type></os></domain>\" 2
CONNECT_LIST_ALL_DOMAINS 1 0
leave
CONNECT_LIST_ALL_DOMAINS 1 3
CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY 0
CONNECT_GET_ALL_DOMAIN_STATS 0 0 0",
    // Readers, who may not.
    "ro DOMAIN_LOOKUP_BY_NAME \"vm\"
ro DOMAIN_GET_XML_DESC vm 1
ro DOMAIN_GET_XML_DESC vm 0
ro DOMAIN_CREATE vm
ro DOMAIN_DEFINE_XML \"<domain type='qemu'><name>x</name><memory>1024</memory><os><type>hvm</type></os></domain>\"
ro DOMAIN_SNAPSHOT_CREATE_XML vm \"<domainsnapshot/>\" 0
ro DOMAIN_SNAPSHOT_DELETE \"a\" vm 0
ro DOMAIN_UNDEFINE vm
ro STORAGE_VOL_DELETE \"/img\" \"vda.qcow2\" \"/img/vda.qcow2\" 0
ro QEMU_DOMAIN_MONITOR_COMMAND vm \"quit\" 1
ro DOMAIN_MANAGED_SAVE vm 0
ro DOMAIN_SET_AUTOSTART vm 1
ro leave
ro fresh
ro DOMAIN_UNDEFINE vm
ro CONNECT_OPEN 1 \"qemu:///system\" 1
ro CONNECT_OPEN 1 \"qemu:///system\" 0",
    // Saved, and back.
    "DOMAIN_CREATE vm
DOMAIN_MANAGED_SAVE vm 0
DOMAIN_HAS_MANAGED_SAVE_IMAGE vm 0
DOMAIN_MANAGED_SAVE_GET_XML_DESC vm 0
restart
DOMAIN_CREATE vm
DOMAIN_SAVE vm \"/img/saved\"
DOMAIN_SAVE_IMAGE_GET_XML_DESC \"/img/saved\" 0
DOMAIN_RESTORE \"/img/saved\"
DOMAIN_MANAGED_SAVE vm 4
DOMAIN_MANAGED_SAVE_REMOVE vm 0
DOMAIN_UNDEFINE_FLAGS vm 7",
    // Streams.
    "DOMAIN_CREATE vm
DOMAIN_OPEN_CONSOLE vm 0 0
data \"root\"
hole
data \"after\"
finish
finish
DOMAIN_OPEN_CHANNEL vm 1 \"org.qemu.guest_agent.0\" 1
data s60000
abort
data \"late\"
DOMAIN_OPEN_CONSOLE vm 0 2
leave",
    // Frames that are none, and a connection that is not open.
    "fresh
DOMAIN_CREATE vm
AUTH_LIST
CONNECT_SUPPORTS_FEATURE 10
CONNECT_OPEN 0 0
CONNECT_GET_URI
raw 0000001c 20008086 00000001 0000003c 00000000 00000009 00000000
CONNECT_CLOSE
raw 00000003
leave
raw 7fffffff
leave
bg DOMAIN_DEFINE_XML s500000
ro raw 0000002020008086000000010000003c000000040000000900000000 00000020
#453 0
#9999",
    // What a guest's agent says.
    "DOMAIN_CREATE vm
agent {\"return\":{}}
QEMU_DOMAIN_AGENT_COMMAND vm \"{'execute':'guest-ping'}\" -2 0
agent {\"return\":1795308894000000000}
DOMAIN_GET_TIME vm 0
agent {\"return\":[{\"name\":\"vda1\",\"mountpoint\":\"/\",\"type\":\"ext4\",\"disk\":[]}]}
DOMAIN_GET_FSINFO vm 0
agent {\"return\":2}
DOMAIN_FSFREEZE vm 0 0
DOMAIN_FSTHAW vm 1 \"/\" 0
DOMAIN_FSTRIM vm 1 \"/\" 0 0 0
agent {\"return\":{\"host-name\":\"guest\"}}
DOMAIN_GET_HOSTNAME vm 2",
    // Settings, live and not.
    "DOMAIN_SET_METADATA vm 0 1 \"told\" 0 0 0
DOMAIN_SET_METADATA vm 2 1 \"<p limit='3'/>\" 1 \"p\" 1 \"urn:p\" 2
DOMAIN_GET_METADATA vm 2 1 \"urn:p\" 0
DOMAIN_ATTACH_DEVICE_FLAGS vm \"<disk type='file' device='disk'><source file='/img/x.raw'/><target dev='vdc'/></disk>\" 2
DOMAIN_DETACH_DEVICE_FLAGS vm \"<disk type='file' device='disk'><target dev='vdc'/></disk>\" 2
DOMAIN_SET_VCPUS_FLAGS vm 1 2
DOMAIN_SET_MEMORY_FLAGS vm l32768 2
DOMAIN_CREATE vm
DOMAIN_UPDATE_DEVICE_FLAGS vm \"<graphics type='vnc' passwd='new'/>\" 1
DOMAIN_BLOCK_RESIZE vm \"vda\" l2048 0
DOMAIN_BLOCK_COMMIT vm \"vda\" 0 0 l0 4
DOMAIN_GET_BLOCK_JOB_INFO vm \"vda\" 0
DOMAIN_DEFINE_XML_FLAGS \"<domain type='qemu'><name>vm</name><uuid>11111111-2222-3333-4444-555555555555</uuid><memory>1024</memory><os><type>hvm</type></os></domain>\" 1
DOMAIN_UNDEFINE vm
DOMAIN_DESTROY vm",
];
