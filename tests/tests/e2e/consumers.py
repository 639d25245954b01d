#!/usr/bin/python3
"""The calls that management software makes, in its order and with its flags.

consumers.py URI CONSUMER GUEST DIRECTORY [CONSOLE SHELL]: GUEST is defined, and runs where its consumer
expects so. What it says is in CONSOLE; DIRECTORY is another host's if the port SHELL runs scripts there.
Each function is one consumer; what it comes from is in the feature table (K-01 to K-13).
"""

import os
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as tree

import libvirt

from connection import connect, refused, wait

# The flags, by the names that the consumers use.
globals().update({name: value for name, value in vars(libvirt).items() if name.startswith("VIR_")})

URI, CONSUMER, GUEST, DIRECTORY = sys.argv[1:5]
conn = connect(URI)
dom = conn.lookupByName(GUEST)


def path(name):
    return os.path.join(DIRECTORY, name)


CONSOLE, SHELL = sys.argv[5:7] if len(sys.argv) > 5 else (path(GUEST + ".console"), None)


def succeeds(script):
    """A line of the shell, where the files are."""
    if not SHELL:
        return subprocess.run(script, shell=True).returncode == 0
    with socket.create_connection(("127.0.0.1", int(SHELL))) as host:
        host.sendall(f"{script}\0".encode())
        answer = b"".join(iter(lambda: host.recv(4096), b""))
    assert answer in (b"\0" + b"0", b"\0" + b"1"), answer
    return answer.endswith(b"0")


def exists(file):
    return succeeds(f"[ -e '{file}' ]")


def said(word):
    """What follows the word in each line that begins with it."""
    text = open(CONSOLE, errors="replace").read()
    assert "MISMATCH" not in text, text
    lines = [line.split() for line in text[:text.rfind("\n") + 1].splitlines()]
    return [words[1] for words in lines if len(words) > 1 and words[0] == word]


def counts():
    return [int(count) for count in said("MATCH")]


def starts():
    """What the guest found on its first disk at each boot. One that was stopped between its writes to
    two disks left them one apart, and says so in a line of its own."""
    return [int(count) for count in said("START") if count.isdigit()]


def boots():
    return len(starts())


def count_on(steps=2):
    """Lets the guest go on; gives where it is."""
    before = len(counts())
    wait("the guest to count", lambda: len(counts()) >= before + steps)
    return counts()[-1]


def runs_from(first, last, call, *arguments):
    """After the call the guest goes on from between these counts, without a boot."""
    seen, booted = len(counts()), boots()
    call(*arguments)
    wait("the guest to count", lambda: len(counts()) >= seen + 2)
    # A line that was on its way when the guest was stopped may still come first.
    assert any(first <= n <= last + 1 for n in counts()[seen:seen + 2]), (first, last, counts()[seen:])
    assert boots() == booted, "it booted"


def boots_to(first, last, call, *arguments):
    """After the call the guest boots, and finds on its disk a number between these."""
    booted = boots()
    call(*arguments)
    wait("a boot", lambda: boots() > booted, 180)
    found = starts()[-1]
    assert first <= found <= last + 1, (first, last, found)


def disks():
    return tree.fromstring(dom.XMLDesc(0)).iter("disk")


def first_disk():
    return next(disks()).find("target").get("dev")


def source(target=None):
    target = target or first_disk()
    for disk in disks():
        if disk.find("target").get("dev") == target:
            return disk.find("source").get("file")
    raise AssertionError(target)


def chain(image):
    listed = subprocess.check_output(["qemu-img", "info", "-U", "--backing-chain", image], text=True)
    return sum(line.startswith("image: ") for line in listed.splitlines())


def xml(name, inside=""):
    return f"<domainsnapshot><name>{name}</name>{inside}</domainsnapshot>"


def names():
    return sorted(snapshot.getName() for snapshot in dom.listAllSnapshots(0))


def wait_for_job(disk):
    """Nova's way: there is no job any more, or it has come to its end."""
    def done():
        job = dom.blockJobInfo(disk, 0)
        return not job or (job["end"] != 0 and job["cur"] == job["end"])
    wait("the block job", done)


def virt_manager():
    """The snapshot page: every refresh, an internal snapshot, an external one with memory, one of a
    guest that is off, a changed description, revert with flags 0."""
    assert "<externalSnapshot/>" in conn.getCapabilities()

    def refresh():
        known = []
        for snapshot in dom.listAllSnapshots(0):
            text = snapshot.getXMLDesc(0)
            assert f"<name>{snapshot.getName()}</name>" in text
            known.append((snapshot.getName(), snapshot.isCurrent()))
        if dom.hasCurrentSnapshot():
            assert (dom.snapshotCurrent().getName(), 1) in known
        return sorted(known)

    def create(name, inside="", flags=0):
        refused(VIR_ERR_NO_DOMAIN_SNAPSHOT, dom.snapshotLookupByName, name)
        return dom.snapshotCreateXML(xml(name, f"<description>{name} it is</description>{inside}"), flags)

    disk = first_disk()
    first = count_on()
    create("snapshot1")
    assert refresh() == [("snapshot1", 1)]
    last = count_on(3)
    stream = conn.newStream(0)
    try:
        mime = dom.screenshot(stream, 0, 0)
        stream.recvAll(lambda s, data, opaque: opaque.append(data), [])
        stream.finish()
        assert mime.startswith("image/")
    except libvirt.libvirtError as error:
        # It shows a snapshot without a picture where the guest has no display.
        assert error.get_error_code() in (VIR_ERR_OPERATION_UNSUPPORTED, VIR_ERR_OPERATION_FAILED,
                                          VIR_ERR_NO_SUPPORT, VIR_ERR_OPERATION_INVALID,
                                          VIR_ERR_INVALID_ARG), error
    # A changed description is a REDEFINE of the whole.
    text = dom.snapshotLookupByName("snapshot1").getXMLDesc(0).replace("snapshot1 it is", "changed")
    dom.snapshotCreateXML(text, VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
    assert "changed" in dom.snapshotLookupByName("snapshot1").getXMLDesc(0)
    # Revert: it looks for saved memory, reverts, and then sets the clock if there is an agent.
    assert not dom.hasManagedSaveImage(0)
    runs_from(first, last, dom.revertToSnapshot, dom.snapshotLookupByName("snapshot1"), 0)
    try:
        dom.setTime({"seconds": 0, "nseconds": 0}, VIR_DOMAIN_TIME_SYNC)
    except libvirt.libvirtError:
        pass
    memory = path(f"{GUEST}-mem.snapshot2")
    first = count_on()
    create("snapshot2", f"<memory snapshot='external' file='{memory}'/>"
           f"<disks><disk name='{disk}' snapshot='external'/></disks>")
    last = count_on(3)
    assert exists(memory) and refresh() == [("snapshot1", 0), ("snapshot2", 1)]
    runs_from(first, last, dom.revertToSnapshot, dom.snapshotLookupByName("snapshot2"), 0)
    dom.destroy()
    create("snapshot3", f"<disks><disk name='{disk}' snapshot='external'/></disks>",
           VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
    dom.revertToSnapshot(dom.snapshotLookupByName("snapshot3"), 0)
    assert not dom.isActive()
    for name in ["snapshot3", "snapshot2"]:
        dom.snapshotLookupByName(name).delete(0)
    assert not exists(memory)
    assert refresh() == [("snapshot1", 1)]
    flags = VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    dom.undefineFlags(flags | VIR_DOMAIN_UNDEFINE_NVRAM)


def cockpit():
    """Its table of states and flags; a revert is tried with 0, and with FORCE when the user agrees."""
    def create(name, memory=None):
        inside = f"<description>{name}</description>"
        flags = 0
        if memory:
            inside += f"<memory snapshot='external' file='{memory}'/>"
        elif not dom.isActive():
            flags = VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        dom.snapshotCreateXML(xml(name, inside), flags)

    def state(name):
        text = dom.snapshotLookupByName(name).getXMLDesc(0)
        return text.split("<state>")[1].split("<")[0]

    def revert(name):
        snapshot = dom.snapshotLookupByName(name)
        try:
            dom.revertToSnapshot(snapshot, 0)
        except libvirt.libvirtError as error:
            assert error.get_error_code() == VIR_ERR_SNAPSHOT_REVERT_RISKY, error
            dom.revertToSnapshot(snapshot, VIR_DOMAIN_SNAPSHOT_REVERT_FORCE)

    expected = {}
    # Xen saves no memory of a guest that is paused.
    situations = ["running"] if conn.getType() == "Xen" else ["running", "paused"]
    for situation in situations:
        if situation == "paused":
            dom.suspend()
        for kind in ["internal", "external"]:
            memory = path(f"{situation}.mem") if kind == "external" else None
            create(f"{situation}-{kind}", memory)
            expected[f"{situation}-{kind}"] = situation
    dom.destroy()
    create("off")
    expected["off"] = "shutoff"
    assert names() == sorted(expected)
    for name, was in expected.items():
        assert state(name) == was, (name, state(name))
        assert dom.snapshotLookupByName(name).isCurrent(0) == (name == "off")
    after = {"running": VIR_DOMAIN_RUNNING, "paused": VIR_DOMAIN_PAUSED, "shutoff": VIR_DOMAIN_SHUTOFF}
    order = ["running-external", "paused-internal", "off", "paused-external", "running-internal"]
    for name in filter(expected.__contains__, order):
        revert(name)
        assert dom.state()[0] == after[expected[name]], (name, dom.state())
        assert dom.snapshotCurrent(0).getName() == name
    count_on()
    refused(VIR_ERR_NO_DOMAIN_SNAPSHOT, dom.snapshotLookupByName, "gone")
    for name in expected:
        dom.snapshotLookupByName(name).delete(0)
    assert names() == []


def overlay_for(base, name):
    """Cinder's volume on a share: its backing file is named relatively."""
    new = path(name)
    base = os.path.basename(base)
    assert succeeds(f"cd '{DIRECTORY}' && qemu-img create -q -f qcow2 -b '{base}' -F qcow2 '{new}'")
    return new


def nova():
    """volume_snapshot_create and _delete, of a file-based Cinder volume on vdb."""
    first = source("vdb")

    def create(new):
        inside = ("<disks><disk name='vdb' snapshot='external' type='file'>"
                  f"<source file='{new}'/></disk><disk name='vda' snapshot='no'/></disks>")
        flags = (VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
                 | VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT)
        text = f"<domainsnapshot>{inside}</domainsnapshot>"
        try:
            dom.snapshotCreateXML(text, flags | VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE)
            raise AssertionError("the guest has no agent")
        except libvirt.libvirtError:
            # "Unable to create quiesced VM snapshot, attempting again with quiescing disabled."
            assert source("vdb") == before and exists(new)
            dom.snapshotCreateXML(text, flags)

    before, made = first, []
    for name in ["volume.s1", "volume.s2", "volume.s3"]:
        new = overlay_for(before, name)
        create(new)
        assert source("vdb") == new and names() == []
        before = new
        made.append(new)
        count_on()
    assert chain(source("vdb")) == 4
    # The newest but one goes into what is below it: blockCommit of a middle layer.
    dom.blockCommit("vdb", first, made[0], 0, VIR_DOMAIN_BLOCK_COMMIT_RELATIVE)
    wait_for_job("vdb")
    assert chain(source("vdb")) == 3
    # The active one takes in what is below it: blockRebase, keeping the relative name.
    dom.blockRebase("vdb", first, 0, VIR_DOMAIN_BLOCK_REBASE_RELATIVE)
    wait_for_job("vdb")
    assert chain(source("vdb")) == 2
    info = subprocess.check_output(["qemu-img", "info", "-U", source("vdb")], text=True)
    assert f"backing file: {os.path.basename(first)} (" in info, info
    # The only snapshot goes: everything into the active layer.
    dom.blockRebase("vdb", None, 0, 0)
    wait_for_job("vdb")
    assert chain(source("vdb")) == 1
    assert all(exists(file) for file in made), "whose files they are, removes them"
    at = count_on()
    dom.destroy()
    boots_to(at, counts()[-1], dom.create)


def vdsm():
    """Freeze, snapshot onto prepared volumes without metadata, thaw; memory into a prepared volume,
    its job polled."""
    new = overlay_for(source(), "volume.v1")
    inside = ("<disks><disk name='vda' snapshot='external' type='file'>"
              f"<source file='{new}' type='file'/></disk></disks>")
    flags = VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT | VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    frozen = dom.fsFreeze()
    try:
        assert frozen == 1
        dom.snapshotCreateXML(f"<domainsnapshot>{inside}</domainsnapshot>",
                              flags | VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
    finally:
        assert dom.fsThaw() == 1
    assert source() == new and names() == []

    memory = path("memory.volume")
    open(memory, "wb").close()
    new = overlay_for(source(), "volume.v2")
    inside = (f"<memory snapshot='external' file='{memory}'/>"
              "<disks><disk name='vda' snapshot='external' type='file'>"
              f"<source file='{new}' type='file'/></disk></disks>")
    polled, over = [], threading.Event()

    def poll():
        other = libvirt.open(URI).lookupByName(GUEST)
        while not over.is_set():
            polled.append(other.jobStats()["type"])
            time.sleep(0.05)

    watcher = threading.Thread(target=poll)
    watcher.start()
    try:
        dom.snapshotCreateXML(f"<domainsnapshot>{inside}</domainsnapshot>", flags)
    finally:
        over.set()
        watcher.join()
    assert dom.jobStats()["type"] == VIR_DOMAIN_JOB_NONE
    assert dom.jobStats(VIR_DOMAIN_JOB_STATS_COMPLETED)["type"] == VIR_DOMAIN_JOB_COMPLETED
    assert VIR_DOMAIN_JOB_UNBOUNDED in polled, polled
    assert os.path.getsize(memory) > 1 << 20 and source() == new and names() == []


def vagrant():
    """snapshot save, restore and delete; save of a name that is there deletes it first."""
    def is_taken(name):
        try:
            dom.snapshotLookupByName(name)
            return True
        except libvirt.libvirtError as error:
            assert error.get_error_code() == VIR_ERR_NO_DOMAIN_SNAPSHOT
            return False

    def save(name):
        if is_taken(name):
            dom.snapshotLookupByName(name).delete(0)
        text = f"<description>Snapshot of vagrant sandbox {name}</description>"
        dom.snapshotCreateXML(xml(name, text), 0)

    def restore(name):
        dom.revertToSnapshot(dom.snapshotLookupByName(name), VIR_DOMAIN_SNAPSHOT_REVERT_FORCE)

    save("push_1")
    count_on()
    first = count_on()
    save("push_1")
    last = count_on(3)
    runs_from(first, last, restore, "push_1")
    assert [s.getName() for s in dom.listAllSnapshots()] == ["push_1"]
    dom.destroy()
    runs_from(first, last, restore, "push_1")
    dom.snapshotLookupByName("push_1").delete(0)
    assert not is_taken("push_1")


def cloudstack():
    """VM snapshots with memory, reverted by FORCE and RUNNING; disk-only ones of files."""
    first = count_on()
    memory = dom.snapshotCreateXML(xml("i-2-3-VM_VS_1", "<memory snapshot='internal'/>"), 0)
    last = count_on(3)
    force = VIR_DOMAIN_SNAPSHOT_REVERT_FORCE | VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING
    runs_from(first, last, dom.revertToSnapshot, memory, force)
    memory.delete(0)
    # Without memory it suspends, takes the disks, and resumes.
    dom.suspend()
    first = counts()[-1]
    disks = dom.snapshotCreateXML(xml("i-2-3-VM_VS_2"), VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
    dom.resume()
    count_on(3)
    boots_to(first, first + 1, dom.revertToSnapshot, disks, force)
    dom.destroy()
    disks.delete(0)
    dom.undefineFlags(VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)


def kubevirt():
    """Freeze and thaw around a storage snapshot; the planned disk-only snapshot leaves out the disk
    with cloud-init."""
    assert dom.fsFreeze() == 1 and dom.fsThaw() == 1
    dom.suspend()
    # What its freezer takes for "paused: nothing to freeze".
    refused(VIR_ERR_OPERATION_INVALID, dom.fsFreeze)
    dom.resume()
    flags = (VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
             | VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA | VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE)
    overlay, cloud_init = path("pvc-overlay.qcow2"), source("vdb")
    inside = (f"<disks><disk name='vda' snapshot='external'><source file='{overlay}'/></disk>"
              "<disk name='vdb' snapshot='no'/></disks>")
    dom.snapshotCreateXML(xml("vm-snapshot", inside), flags)
    assert source() == overlay and source("vdb") == cloud_init and names() == []


def backup():
    """An overlay without metadata, a copy of what it froze, and an active commit with a pivot when
    the event says that it is ready; or METADATA_ONLY right after."""
    events = []
    conn.domainEventRegisterAny(
        dom, VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2,
        lambda c, d, disk, kind, status, _: events.append((disk, kind, status)), None)
    base, overlay = source(), path("backup-overlay.qcow2")
    first = count_on()
    flags = (VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
             | VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA)
    inside = f"<disks><disk name='vda' snapshot='external'><source file='{overlay}'/></disk></disks>"
    dom.snapshotCreateXML(xml("backup", inside), flags)
    assert source() == overlay and names() == []
    copy = path("backup.qcow2")
    subprocess.check_call(["qemu-img", "convert", "-U", "-O", "qcow2", base, copy])
    last = count_on(3)
    commit = VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
    dom.blockCommit("vda", None, None, 0, commit)
    ready = ("vda", VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT, VIR_DOMAIN_BLOCK_JOB_READY)
    wait("the job to be ready", lambda: ready in events)
    dom.blockJobAbort("vda", VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    over = ("vda", VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT, VIR_DOMAIN_BLOCK_JOB_COMPLETED)
    wait("the pivot", lambda: over in events)
    assert source() == base and chain(base) == 1
    os.unlink(overlay)
    count_on()
    # The other way: with metadata, which goes at once; then the same commit.
    snapshot = dom.snapshotCreateXML(xml("other", inside), VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
    snapshot.delete(VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    assert source() == overlay and names() == [] and exists(overlay)
    events.clear()
    dom.blockCommit("vda", base, overlay, 0, VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    wait("the job to be ready", lambda: ready in events)
    dom.blockJobAbort("vda", VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    wait("the pivot", lambda: over in events)
    assert source() == base
    at = count_on()
    dom.destroy()
    boots_to(at, counts()[-1], dom.create)
    dom.destroy()
    # What was copied is the disk at the snapshot.
    os.replace(copy, base)
    boots_to(first, last, dom.create)


def test_lab():
    """A layer of its own making, recorded; the record taken away and put back as the current one."""
    dom.destroy()
    at = counts()[-1]
    new = overlay_for(source(), "lab.empty")
    inside = f"<disks><disk name='{first_disk()}' snapshot='external'><source file='{new}'/></disk></disks>"
    flags = VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
    snapshot = dom.snapshotCreateXML(xml("empty", inside), flags)
    assert source() == new
    record = snapshot.getXMLDesc(0)
    boots_to(at, at + 1, dom.create)
    count_on(3)
    dom.destroy()
    snapshot.delete(VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    assert names() == [] and exists(new)
    flags = VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
    snapshot = dom.snapshotCreateXML(record, flags)
    assert dom.snapshotCurrent().getName() == "empty"
    force = VIR_DOMAIN_SNAPSHOT_REVERT_FORCE | VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING
    boots_to(at, at + 1, dom.revertToSnapshot, snapshot, force)
    snapshot.delete(VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    assert names() == [] and exists(new), "it is the user's"


{
    function.__name__: function
    for function in [virt_manager, cockpit, nova, vdsm, vagrant, cloudstack, kubevirt, backup,
                     test_lab]
}[CONSUMER]()
conn.close()
print("all good")
