#!/usr/bin/python3
"""cockpit-machines' page of a machine: its calls to libvirt-dbus, and the signals it lives by.

cockpit.py BUS GUEST DIRECTORY: libvirt-dbus is on the bus; GUEST is defined and off. What the page
shows comes from signals alone, as there, and is held against the daemon's word after each act.
"""

import os
import sys
import time
import xml.etree.ElementTree as tree

from jeepney import DBusAddress, HeaderFields, MatchRule, MessageType, message_bus, new_method_call
from jeepney.io.blocking import open_dbus_connection

BUS, GUEST, DIRECTORY = sys.argv[1:4]
DISK_ONLY = 16
FORCE = 4
UNKNOWN_FLAG = 1 << 30
RUNNING, PAUSED, SHUTOFF = 1, 3, 5
# virDomainEventType, as far as the page looks.
AFTER = {2: RUNNING, 3: PAUSED, 4: RUNNING, 5: SHUTOFF}

bus = open_dbus_connection(bus=BUS)


class Refused(Exception):
    """An error reply: its name is the first argument, its words the second."""


def call(path, interface, method, signature=None, *arguments):
    address = DBusAddress(path, bus_name="org.libvirt", interface=interface)
    message = new_method_call(address, method, signature, arguments)
    reply = bus.send_and_get_reply(message, timeout=120)
    if reply.header.message_type == MessageType.error:
        raise Refused(reply.header.fields[HeaderFields.error_name], *reply.body)
    return reply.body[0] if reply.body else None


def connect(method, *arguments):
    return call("/org/libvirt/QEMU", "org.libvirt.Connect", method, *arguments)


def domain(method, *arguments):
    return call(machine, "org.libvirt.Domain", method, *arguments)


def of_snapshot(path, method, *arguments):
    return call(path, "org.libvirt.DomainSnapshot", method, *arguments)


def wait(what, attempt, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = attempt()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited in vain for {what}")


# -- the guest's own word

def console(word):
    file = os.path.join(DIRECTORY, GUEST + ".console")
    text = open(file, errors="replace").read() if os.path.exists(file) else ""
    assert "MISMATCH" not in text, text
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith(word + " ")]


def count_on(steps=2):
    before = len(console("MATCH"))
    wait("the guest to count", lambda: len(console("MATCH")) >= before + steps)
    return console("MATCH")[-1]


# -- the page

class Page:
    """What is shown of the machine: its state, which signals tell."""

    def __init__(self):
        self.events = []
        rules = [MatchRule(type="signal", interface="org.libvirt.Connect", member="DomainEvent"),
                 MatchRule(type="signal", interface="org.libvirt.Domain")]
        for rule in rules:
            reply = bus.send_and_get_reply(message_bus.AddMatch(rule), timeout=30)
            assert reply.header.message_type == MessageType.method_return, reply.body
        self.filters = [bus.filter(rule, bufsize=1000) for rule in rules]
        self.queues = [entered.__enter__() for entered in self.filters]
        self.state = domain("GetState", "u", 0)[0]

    def listen(self):
        """Takes in what has come, and what comes within a moment."""
        try:
            while True:
                bus.recv_messages(timeout=0.05)
        except TimeoutError:
            pass
        while self.queues[0]:
            path, event, detail = self.queues[0].popleft().body
            if path == machine:
                self.events.append((event, detail))
                self.state = AFTER.get(event, self.state)

    def shows(self, state):
        def agrees():
            self.listen()
            return self.state == state
        wait(f"the page to show {state}, and not {self.state} ({self.events})", agrees, 60)
        assert domain("GetState", "u", 0)[0] == state
        properties = call(machine, "org.freedesktop.DBus.Properties", "GetAll", "s",
                          "org.libvirt.Domain")
        shown = [properties[name][1] for name in ["Name", "Active", "Persistent"]]
        assert shown == [("s", GUEST), ("b", state != SHUTOFF), ("b", True)], properties

    def snapshots(self):
        """Of each: state, memory's file, parent; and which is the current one."""
        found, current = {}, []
        for path in domain("ListDomainSnapshots", "u", 0):
            read = tree.fromstring(of_snapshot(path, "GetXMLDesc", "u", 0))
            name = read.findtext("name")
            memory = read.find("memory")
            found[name] = (read.findtext("state"), memory.get("file"), read.findtext("parent/name"))
            assert read.findtext("description") == f"{name} <&>", name
            if of_snapshot(path, "IsCurrent", "u", 0):
                current.append(name)
        assert len(current) <= 1, current
        return found, current[0] if current else None


def create(name, external=False, memory=None):
    inside = f"<name>{name}</name><description>{name} &lt;&amp;&gt;</description>"
    if memory:
        inside += f'<memory snapshot="external" file="{memory}"/>'
    flags = DISK_ONLY if external and not memory else 0
    made = domain("SnapshotCreateXML", "su", f"<domainsnapshot>{inside}</domainsnapshot>", flags)
    assert made == domain("SnapshotLookupByName", "su", name, 0)
    assert made == domain("SnapshotCurrent", "u", 0)
    return made


def revert(name):
    path = domain("SnapshotLookupByName", "su", name, 0)
    try:
        of_snapshot(path, "Revert", "u", 0)
        return False
    except Refused as refusal:
        assert "revert requires force" in str(refusal), refusal
        of_snapshot(path, "Revert", "u", FORCE)
        return True


def refused(words, ask, *arguments):
    try:
        ask(*arguments)
    except Refused as refusal:
        assert refusal.args[0] == "org.libvirt.Error", refusal
        assert words in str(refusal), refusal
        return
    raise AssertionError(f"{arguments} should have been refused")


def is_ready():
    try:
        return connect("GetCapabilities")
    except Refused as refusal:
        assert "ServiceUnknown" in refusal.args[0], refusal
        return None


assert "<externalSnapshot" in wait("libvirt-dbus", is_ready, 30)
machine, = connect("ListDomains", "u", 0)
page = Page()
page.shows(SHUTOFF)
assert page.snapshots() == ({}, None)
refused("", domain, "SnapshotCurrent", "u", 0)
refused("", domain, "SnapshotLookupByName", "su", "nobody", 0)

# Each state with each kind that the page offers in it; what the guest had counted then.
was, state_of, counted = [], {}, {}


def take(name, state, seen, **how):
    create(name, **how)
    counted[name] = (seen, max(console("MATCH"), default=0))
    state_of[name] = state
    was.append(name)
    page.shows(state)
    found, current = page.snapshots()
    words = {RUNNING: "running", PAUSED: "paused", SHUTOFF: "shutoff"}
    parent = was[-2] if len(was) > 1 else None
    assert found[name] == (words[state], how.get("memory"), parent), (name, found)
    assert current == name and sorted(found) == sorted(was)


def goes_on(counts, first, last):
    """From one of these numbers on, by one each time, and for two at least."""
    runs = (counts[n:] for n, count in enumerate(counts[:-1]) if first <= count <= last)
    return any(run == list(range(run[0], run[0] + len(run))) for run in runs)


def memory_of(name):
    return os.path.join(DIRECTORY, name + ".mem")


take("off-internal", SHUTOFF, 0)
domain("Create", "u", 0)
page.shows(RUNNING)
take("running-internal", RUNNING, count_on())
take("running-external", RUNNING, count_on(), external=True, memory=memory_of("running-external"))
at = count_on()
domain("Suspend")
page.shows(PAUSED)
take("paused-internal", PAUSED, at)
take("paused-external", PAUSED, at, external=True, memory=memory_of("paused-external"))
domain("Resume")
page.shows(RUNNING)
at = count_on()
domain("Destroy", "u", 0)
page.shows(SHUTOFF)
take("off-external", SHUTOFF, at, external=True)

refused("", create, "off-external")
refused("", of_snapshot, domain("SnapshotCurrent", "u", 0), "Revert", "u", UNKNOWN_FLAG)
assert page.snapshots()[1] == "off-external"

for name in ["running-external", "paused-internal", "off-external", "paused-external",
             "running-internal", "off-internal", "running-external"]:
    first, last = counted[name]
    seen, starts = len(console("MATCH")), len(console("START"))
    assert not revert(name), name
    page.shows(state_of[name])
    assert page.snapshots()[1] == name
    if state_of[name] == SHUTOFF:
        # It boots, and what its disk says is of that time.
        domain("Create", "u", 0)
        page.shows(RUNNING)
        wait("a boot", lambda: len(console("START")) > starts)
        found = console("START")[-1]
        count_on()
    else:
        if state_of[name] == PAUSED:
            domain("Resume")
            page.shows(RUNNING)
        # What it said until it was reverted comes first.
        wait("the guest to go on", lambda: goes_on(console("MATCH")[seen:], first, last + 2))
        assert len(console("START")) == starts, f"{name}: it booted"
        continue
    # One more: the guest may have counted on between our look and the snapshot.
    assert first <= found <= last + 2, (name, first, last, found)

# A managed save stands against a revert without memory: the page asks, and then forces.
domain("ManagedSave", "u", 0)
page.shows(SHUTOFF)
assert revert("off-external"), "no force was asked for"
page.shows(SHUTOFF)
assert not domain("HasManagedSaveImage", "u", 0)

for name in list(was):
    path = domain("SnapshotLookupByName", "su", name, 0)
    of_snapshot(path, "Delete", "u", 0)
    was.remove(name)
    assert sorted(page.snapshots()[0]) == sorted(was)
assert not os.path.exists(memory_of("running-external"))
assert not os.path.exists(memory_of("paused-external"))
domain("Create", "u", 0)
page.shows(RUNNING)
count_on()
print("all good")
