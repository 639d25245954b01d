#!/usr/bin/python3
"""Operations on snapshots as jobs: watched, waited for, aborted.

jobs.py URI DOMAIN: the domain runs, with one qcow2.
"""

import os
import signal
import subprocess
import sys
import threading

import libvirt

from connection import connect, refused, wait

URI, NAME = sys.argv[1:3]
conn = connect(URI)
dom = conn.lookupByName(NAME)
completed = []
conn.domainEventRegisterAny(
    dom,
    libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
    lambda c, d, params, _: completed.append(params),
    None,
)
DISK_ONLY = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
OF_COMPLETED = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED
KEEP = libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED


def create(name, flags=DISK_ONLY, memory=""):
    return dom.snapshotCreateXML(f"<domainsnapshot><name>{name}</name>{memory}</domainsnapshot>", flags)


# 1. Nothing goes on; then each operation is told of when it is over.
assert dom.jobStats()["type"] == libvirt.VIR_DOMAIN_JOB_NONE
assert dom.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE
refused(libvirt.VIR_ERR_OPERATION_INVALID, dom.abortJob)
for operation, act in [
    (libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT, lambda: create("one")),
    (libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_DELETE, lambda: dom.snapshotLookupByName("one").delete()),
    (libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT, lambda: create("two", 0)),
    (libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_REVERT, lambda: dom.revertToSnapshot(dom.snapshotLookupByName("two"))),
]:
    act()
    params = wait("the event", lambda: completed and completed.pop())
    assert params["operation"] == operation, params
    for flags in [OF_COMPLETED | KEEP, OF_COMPLETED]:
        stats = dom.jobStats(flags)
        assert stats["type"] == libvirt.VIR_DOMAIN_JOB_COMPLETED, stats
        assert stats["operation"] == operation, stats
    assert dom.jobStats(OF_COMPLETED)["type"] == libvirt.VIR_DOMAIN_JOB_NONE, "told once"
dom.snapshotLookupByName("two").delete()

# 2. While one goes on (its QEMU does not answer): questions are answered, changes wait and give up.
pid = int(subprocess.check_output(["pgrep", "-f", "^[^ ]*qemu-system.*" + sys.argv[3]]).split()[0])
os.kill(pid, signal.SIGSTOP)
outcomes = []
thread = threading.Thread(target=lambda: outcomes.append(create("three")))
thread.start()
try:
    stats = wait("the job", lambda: (s := dom.jobStats())["type"] and s)
    assert stats["type"] == libvirt.VIR_DOMAIN_JOB_UNBOUNDED, stats
    assert stats["operation"] == libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT, stats
    assert dom.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_UNBOUNDED
    assert dom.isActive() and NAME in dom.XMLDesc() and dom.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    assert dom.snapshotNum() == 0
    refused(libvirt.VIR_ERR_OPERATION_INVALID, dom.abortJob)
    refused(libvirt.VIR_ERR_OPERATION_TIMEOUT, dom.setMetadata, 1, "title", None, None)
finally:
    os.kill(pid, signal.SIGCONT)
thread.join(60)
assert outcomes and dom.snapshotNum() == 1, outcomes
dom.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "title", None, None)
dom.snapshotLookupByName("three").delete()

# 3. Memory on its way to a file is aborted: nothing is left of it, and the guest runs on.
path = sys.argv[3] + "/memory"
seen, aborted = [], False
for _ in range(30):
    outcomes = []

    def save():
        try:
            create("four", libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE,
                   f"<memory snapshot='external' file='{path}'/>").delete()
            outcomes.append(0)
        except libvirt.libvirtError as error:
            outcomes.append(error.get_error_code())

    thread = threading.Thread(target=save)
    thread.start()
    while not outcomes and not aborted:
        stats = dom.jobStats()
        seen.append(stats.get("memory_total", 0))
        try:
            dom.abortJob()
            aborted = True
        except libvirt.libvirtError as error:
            assert error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID, error
    thread.join(60)
    if aborted:
        break
assert aborted, "no save was slow enough"
assert outcomes == [libvirt.VIR_ERR_OPERATION_ABORTED], outcomes
assert dom.snapshotNum() == 0 and not os.path.exists(path)
assert dom.state()[0] == libvirt.VIR_DOMAIN_RUNNING
completed.clear()
create("five", 0, f"<memory snapshot='external' file='{path}'/>")
params = wait("the event", lambda: completed and completed.pop())
assert params["memory_total"] > 50 << 20 and params["memory_processed"] > 0, params
print("all good")
