#!/usr/bin/python3
"""Drives a daemon through libvirt-python: every list call, events, a console stream, snapshots.

client.py URI DOMAIN.xml: the domain boots the test guest on one qcow2.
"""

import re
import sys

import libvirt

from connection import connect, refused, wait

URI, XML = sys.argv[1], open(sys.argv[2]).read()
conn = connect(URI)
assert conn.getType() == "QEMU" and conn.isAlive() and conn.getLibVersion() > 9000000
assert "<capabilities>" in conn.getCapabilities()
conn.setKeepAlive(5, 3)

# Every kind of list, on a daemon that has nothing yet.
for name in [
    "listAllDomains",
    "listDefinedDomains",
    "listDomainsID",
]:
    assert list(getattr(conn, name)()) == [], name
assert conn.numOfDomains() == 0 and conn.numOfDefinedDomains() == 0

seen = []
callback = conn.domainEventRegisterAny(
    None,
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
    lambda c, dom, event, detail, _: seen.append((dom.name(), event)),
    None,
)
dom = conn.defineXML(XML)
assert conn.listDefinedDomains() == ["py"] and not dom.isActive() and dom.isPersistent()
assert conn.lookupByUUIDString(dom.UUIDString()).name() == "py"
refused(libvirt.VIR_ERR_NO_DOMAIN, conn.lookupByName, "nobody")
refused(libvirt.VIR_ERR_OPERATION_INVALID, dom.suspend)
refused(libvirt.VIR_ERR_OPERATION_INVALID, dom.jobStats)
refused(libvirt.VIR_ERR_NO_SUPPORT, conn.numOfInterfaces)

dom.create()
assert dom.state()[0] == libvirt.VIR_DOMAIN_RUNNING and conn.listDomainsID() == [dom.ID()]
state, max_memory, memory, cpus, _ = dom.info()
assert (state, max_memory, memory, cpus) == (1, 96 * 1024, 96 * 1024, 1)

# What management software looks at beside that.
cpus = conn.getCPUMap()[0]
assert [len(pins) for pins in dom.vcpuPinInfo()] == [cpus] and len(dom.emulatorPinInfo()) == cpus
assert dom.ioThreadInfo() == [] and dom.diskErrors() == {} and not dom.hasManagedSaveImage()
assert dom.jobInfo()[0] == 0 and dom.controlInfo()[0] == 0 and len(dom.vcpus()[0]) == 1
assert all(free > 0 for free in conn.getCellsFreeMemory(0, 1))
portable = dom.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE)
assert "<alias" not in portable and " id=" not in portable.splitlines()[0], portable
URI_OF_OURS = "http://virtsnap.test/instance"
OURS = "<instance><flavor>small</flavor></instance>"
both = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
dom.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, OURS, "o", URI_OF_OURS, both)
for affect in [libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG]:
    assert "small" in dom.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, URI_OF_OURS, affect)

# The console as a stream, in both directions.
console = conn.newStream(libvirt.VIR_STREAM_NONBLOCK)
dom.openConsole(None, console, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
heard = bytearray()


def hear(stream, events, _):
    if events & libvirt.VIR_STREAM_EVENT_READABLE:
        data = stream.recv(4096)
        if isinstance(data, bytes):
            heard.extend(data)


console.eventAddCallback(libvirt.VIR_STREAM_EVENT_READABLE, hear, None)
wait("the guest to count", lambda: b"MATCH" in heard, 180)
console.send(b"say from python\n")
wait("an answer", lambda: b"SAID from python" in heard)
console.eventRemoveCallback()
console.abort()


def take(name, flags=0):
    return dom.snapshotCreateXML(f"<domainsnapshot><name>{name}</name></domainsnapshot>", flags)


one = take("one", libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
two = take("two")
assert dom.snapshotNum() == 2 and sorted(dom.snapshotListNames()) == ["one", "two"]
for flags, names in [
    (0, ["one", "two"]),
    (libvirt.VIR_DOMAIN_SNAPSHOT_LIST_ROOTS, ["one"]),
    (libvirt.VIR_DOMAIN_SNAPSHOT_LIST_LEAVES, ["two"]),
    (libvirt.VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL, ["two"]),
    (libvirt.VIR_DOMAIN_SNAPSHOT_LIST_EXTERNAL, ["one"]),
    (libvirt.VIR_DOMAIN_SNAPSHOT_LIST_ACTIVE, ["two"]),
    (libvirt.VIR_DOMAIN_SNAPSHOT_LIST_DISK_ONLY, ["one"]),
]:
    assert sorted(s.getName() for s in dom.listAllSnapshots(flags)) == names, flags
    assert sorted(dom.snapshotListNames(flags)) == names, flags
    assert dom.snapshotNum(flags) == len(names), flags
assert [s.getName() for s in one.listAllChildren()] == ["two"] == one.listChildrenNames()
assert one.numChildren() == 1 and two.getParent().getName() == "one"
assert dom.hasCurrentSnapshot() and dom.snapshotCurrent().getName() == "two" and two.isCurrent()
assert dom.snapshotLookupByName("one").hasMetadata()
assert re.search(r"<state>running</state>", two.getXMLDesc())
refused(libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT, dom.snapshotLookupByName, "nobody")
refused(libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT, one.getParent)
refused(libvirt.VIR_ERR_XML_DETAIL, dom.snapshotCreateXML, "<domainsnapshot/>x")

dom.suspend()
dom.revertToSnapshot(two)
assert dom.state()[0] == libvirt.VIR_DOMAIN_RUNNING
two.delete()
one.delete()
assert dom.listAllSnapshots() == [] and not dom.hasCurrentSnapshot()
refused(libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT, dom.snapshotCurrent)

dom.destroy()
dom.undefine()
ENDED = ("py", libvirt.VIR_DOMAIN_EVENT_UNDEFINED)
wait("the last event", lambda: ENDED in seen)
kinds = [event for _, event in seen]
for expected in [
    libvirt.VIR_DOMAIN_EVENT_DEFINED,
    libvirt.VIR_DOMAIN_EVENT_STARTED,
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED,
    libvirt.VIR_DOMAIN_EVENT_RESUMED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED,
]:
    assert expected in kinds, (expected, seen)
conn.domainEventDeregisterAny(callback)
conn.close()
print("all good")
