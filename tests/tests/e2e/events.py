#!/usr/bin/python3
"""What is told of a domain's life while snapshots are made, reverted to and deleted.

events.py URI DOMAIN.xml BYSTANDER.xml KIND: prints one line of JSON for each case: its name, the events
as [type, detail] in the order they came, and the state and reason after it.
"""

import json
import sys
import threading
import time

import libvirt

from connection import connect

URI = sys.argv[1]
XML, BYSTANDER = (open(name).read() for name in sys.argv[2:4])
OFF, RUN, PAUSED = "off", "run", "paused"
REVERT = {
    "0": 0,
    "RUNNING": libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING,
    "PAUSED": libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED,
}
DISK_ONLY = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
HALT = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_HALT

conn = connect(URI)
told, marked = [], threading.Event()


def listener(_conn, dom, event, detail, _):
    if dom.name() == "bystander":
        if event == libvirt.VIR_DOMAIN_EVENT_UNDEFINED:
            marked.set()
    else:
        told.append([event, detail])


conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, listener, None)
dom = conn.defineXML(XML)


def flush():
    """Everything that was told before is here when what is told of another domain is."""
    marked.clear()
    conn.defineXML(BYSTANDER).undefine()
    assert marked.wait(60), "no events arrive"
    events, told[:] = list(told), []
    return events


def bring_to(state):
    if "libvirt-sock" in URI:
        time.sleep(1.1)  # libvirt names overlays by the second, and stumbles over its own.
    if dom.isActive():
        dom.destroy()
    if state != OFF:
        dom.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if state == PAUSED else 0)
    flush()


def case(name, act, *arguments):
    try:
        act(*arguments)
        outcome = "ok"
    except libvirt.libvirtError as error:
        outcome = f"error {error.get_error_code()}"
        print(error, file=sys.stderr)
    state = dom.state() if conn.listAllDomains() else None
    line = {"case": name, "outcome": outcome, "events": flush(), "state": state}
    print(json.dumps(line), flush=True)


def snapshot(name, flags=0, memory=""):
    xml = f"<domainsnapshot><name>{name}</name>{memory}</domainsnapshot>"
    return dom.snapshotCreateXML(xml, flags)


MEMORY = f"<memory snapshot='external' file='{sys.argv[2]}.memory'/>"
KINDS = {
    "internal-off": (OFF, 0, ""),
    "internal-run": (RUN, 0, ""),
    "internal-paused": (PAUSED, 0, ""),
    "disk-off": (OFF, DISK_ONLY, ""),
    "disk-run": (RUN, DISK_ONLY, ""),
    "memory-run": (RUN, 0, MEMORY),
    "memory-paused": (PAUSED, 0, MEMORY),
    "memory-live": (RUN, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE, MEMORY),
}


def snapshots_of(kind):
    state, flags, memory = KINDS[kind]
    bring_to(state)
    case(f"create {kind}", snapshot, kind, flags, memory)
    snap = dom.snapshotLookupByName(kind)
    for start in [OFF, RUN, PAUSED]:
        for word, bits in REVERT.items():
            bring_to(start)
            case(f"revert {kind} from {start} {word}", dom.revertToSnapshot, snap, bits)
    bring_to(state)
    case(f"delete {kind}", snap.delete)


def plain_life():
    case("start", dom.create)
    case("suspend", dom.suspend)
    case("resume", dom.resume)
    case("destroy", dom.destroy)
    case("start paused", dom.createWithFlags, libvirt.VIR_DOMAIN_START_PAUSED)
    kinds = [("internal", RUN, 0), ("internal", PAUSED, 0), ("disk", RUN, DISK_ONLY)]
    for kind, state, flags in kinds:
        bring_to(state)
        case(f"create {kind} from {state} halting", snapshot, f"{kind}-{state}", flags | HALT)
        bring_to(OFF)
        dom.snapshotLookupByName(f"{kind}-{state}").delete()
    case("rename", dom.rename, "other")


flush()
if sys.argv[4] == "life":
    plain_life()
else:
    snapshots_of(sys.argv[4])
bring_to(OFF)
case("undefine", dom.undefine)
