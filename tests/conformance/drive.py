"""Plays one case of fixtures/conformance against a daemon, and says what came of each step.

A case is data: a set-up (state and kinds of disk) and steps. A step that has `is` is a call whose
outcome is compared; `look` compares everything that is seen; the others prepare something on the host.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import libvirt

import look

CREATE = {"REDEFINE": 1, "CURRENT": 2, "NO_METADATA": 4, "HALT": 8, "DISK_ONLY": 16, "REUSE_EXT": 32,
          "QUIESCE": 64, "ATOMIC": 128, "LIVE": 256, "VALIDATE": 512, "BOGUS20": 1 << 20}
REVERT = {"RUNNING": 1, "PAUSED": 2, "FORCE": 4, "RESET_NVRAM": 8, "BOGUS20": 1 << 20}
DELETE = {"CHILDREN": 1, "METADATA_ONLY": 2, "CHILDREN_ONLY": 4, "BOGUS20": 1 << 20}
LIST = {"ROOTS": 1, "DESCENDANTS": 1, "METADATA": 2, "LEAVES": 4, "NO_LEAVES": 8, "NO_METADATA": 16,
        "INACTIVE": 32, "ACTIVE": 64, "DISK_ONLY": 128, "INTERNAL": 256, "EXTERNAL": 512,
        "TOPOLOGICAL": 1024}
DOMAINS = {value: name for name, value in vars(libvirt).items() if name.startswith("VIR_FROM_")}


def bits(table, names):
    return sum({table[name] for name in names.split("|") if name})


def unnamed(value):
    """Objects as their names: what a client prints."""
    if isinstance(value, list):
        return sorted(unnamed(entry) for entry in value)
    return value.getName() if hasattr(value, "getName") else value


class Stage:
    """A directory with images, and the one domain of a case."""

    def __init__(self, uri, directory, number):
        libvirt.registerErrorHandler(lambda *_: None, None)
        self.connection = libvirt.open(uri)
        self.directory = os.path.join(directory, f"case{number}")
        self.name = f"conform{number}"
        self.uuid = f"11111111-2222-3333-4444-{number:012}"
        self.names = look.Names(self.directory, self.name, self.uuid)
        self.loops, self.images, self.kept, self.domain = [], [], {}, None

    def play(self, case):
        """One entry a compared step: None is ok, [code, domain] an error, a dict what is seen."""
        outcomes = []
        try:
            self.set_up(case["setup"])
            for step in case["steps"]:
                outcome = getattr(self, "do_" + step["do"].replace("-", "_"))(step)
                if "is" in step or step["do"] == "look":
                    outcomes.append(outcome)
        finally:
            self.clean()
        return outcomes

    # --- before and after

    def set_up(self, setup):
        self.clean()
        os.makedirs(self.directory)
        disks = "".join(self.disk(kind, f"vd{chr(97 + index)}") for index, kind in enumerate(setup["disks"]))
        devices = setup.get("devices", "")
        xml = (f"<domain type='qemu'><name>{self.name}</name><uuid>{self.uuid}</uuid>"
               f"<memory unit='MiB'>24</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os>"
               "<features><acpi/></features><cpu mode='custom' match='exact'><model>qemu64</model></cpu>"
               "<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>"
               f"<devices>{disks}{devices}<memballoon model='none'/></devices></domain>")
        state = setup["state"]
        paused = libvirt.VIR_DOMAIN_START_PAUSED
        if state in ("trans", "transpaused"):
            self.domain = self.connection.createXML(xml, paused if state == "transpaused" else 0)
            return
        self.domain = self.connection.defineXML(xml)
        if state != "off":
            self.domain.createWithFlags(paused if state == "paused" else 0)

    def disk(self, kind, target):
        """XML and image of one kind of disk that the cases name."""
        drives = {"cd": ("hdc", "cdrom", "ide"), "ecd": ("hdd", "cdrom", "ide"), "efd": ("fda", "floppy", "fdc")}
        target, device, bus = drives.get(kind, (target, "disk", "virtio"))
        raw = kind in ("raw", "cd", "ecd", "efd", "shareraw", "block") or kind.startswith("rawsnap-")
        extra = {"cd": "<readonly/>", "ecd": "<readonly/>", "ro": "<readonly/>", "shareraw": "<shareable/>",
                 "transient": "<transient/>"}.get(kind, "")
        attribute = f" snapshot='{kind.split('snap-')[1]}'" if "snap-" in kind else ""
        suffix = {"qcow2": ".qcow2", "raw": ".raw", "nosuffix": ""}.get(kind, ".img")
        path, source, type_ = os.path.join(self.directory, target + suffix), "file", "file"
        if kind == "cd":
            path = os.path.join(self.directory, "cd.iso")
            self.image(path, "raw", "1M")
        elif kind == "block":
            path, source, type_ = self.loop(os.path.join(self.directory, "loopfile"), "16M"), "dev", "block"
        elif kind == "chain":
            base = os.path.join(self.directory, "base.qcow2")
            self.image(base, "qcow2", "64M")
            self.image(path, "qcow2", "64M", base)
        elif kind not in ("ecd", "efd"):
            self.image(path, "raw" if raw else "qcow2", "16M" if raw else "64M")
        if kind not in drives:
            self.images.append(path)
        where = "" if kind in ("ecd", "efd") else f"<source {source}='{path}'/>"
        return (f"<disk type='{type_}' device='{device}'{attribute}><driver name='qemu' type='{'raw' if raw else 'qcow2'}'/>"
                f"{where}<target dev='{target}' bus='{bus}'/>{extra}</disk>")

    def clean(self):
        for name in (self.name,):
            try:
                domain = self.connection.lookupByName(name)
                if domain.isActive():
                    domain.destroy()
                domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                                     | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                                     | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
            except libvirt.libvirtError:
                pass
        for device in self.loops:
            subprocess.run(["losetup", "-d", device], check=False)
        shutil.rmtree(self.directory, ignore_errors=True)
        self.loops, self.images, self.kept = [], [], {}

    # --- what a case has on the host

    def path(self, text):
        text = text.replace("$DIR", self.directory).replace("$UUID", self.uuid)
        return text.replace("$LOOP", self.loops[-1]) if self.loops else text

    def image(self, path, format_, size, backing=None):
        below = ["-b", backing, "-F", "qcow2"] if backing else []
        subprocess.run(["qemu-img", "create", "-q", "-f", format_, *below, path, size], check=True)

    def loop(self, path, size):
        self.image(path, "raw", size)
        made = subprocess.run(["losetup", "-f", "--show", path], check=True, capture_output=True, text=True)
        self.loops.append(made.stdout.strip())
        return self.loops[-1]

    def do_image(self, step):
        backing = step.get("backing")
        self.image(self.path(step["path"]), step["format"], step["size"], backing and self.path(backing))

    def do_loop(self, step):
        self.loop(self.path(step["path"]), step["size"])

    def do_write(self, step):
        with open(self.path(step["path"]), "w", encoding="utf-8") as file:
            file.write(step["text"])

    def do_unlink(self, step):
        os.unlink(self.path(step["path"]))

    def do_forget(self, step):
        subprocess.run(["qemu-img", "snapshot", "-d", step["tag"], self.path(step["path"])], check=True)

    def do_goto(self, step):
        """Brings the domain to a state, from whichever it is in."""
        now, wanted = look.state(self.domain).split("/")[0], step["state"]
        if wanted == "off" and now != "shutoff":
            self.domain.destroy()
        elif wanted != "off" and now == "shutoff":
            self.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if wanted == "paused" else 0)
        elif wanted == "run" and now == "paused":
            self.domain.resume()
        elif wanted == "paused" and now == "running":
            self.domain.suspend()

    def do_kill(self, _):
        """The guest's process dies, as it did when the outcomes were recorded."""
        if not self.domain.isActive():
            return
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if b"qemu-system" in line.split(b"\0")[0] and f"{self.directory}/".encode() in line:
                os.kill(int(process.name), signal.SIGKILL)
        deadline = time.monotonic() + 20
        while self.domain.isActive() and time.monotonic() < deadline:
            time.sleep(0.02)

    def do_keep(self, step):
        """Keeps the XML of a snapshot, or of the domain as defined, to be edited and given back."""
        if "snapshot" in step:
            xml = self.snap(step["snapshot"]).getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
        else:
            xml = self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        self.kept[step.get("snapshot")] = xml

    def xml(self, step):
        if "xml" in step:
            return self.path(step["xml"])
        text = self.kept[step.get("kept")]
        for pattern, replacement, count in step.get("edit", []):
            text = re.sub(pattern, lambda _, new=replacement: self.path(new), text, count=count, flags=re.S)
        return text

    # --- the calls

    def attempt(self, call):
        """None or the value if it worked, [code, domain] if not."""
        try:
            value = unnamed(call())
        except libvirt.libvirtError as error:
            domain = error.get_error_domain()
            return [error.get_error_code(), DOMAINS.get(domain, str(domain))]
        if isinstance(value, str):
            return {"value": self.names.neutral(value)}
        return {"value": int(value)} if isinstance(value, (bool, int)) else {"value": value}

    def snap(self, name):
        return self.domain.snapshotLookupByName(name)

    def succeeded(self, call):
        outcome = self.attempt(call)
        return outcome if isinstance(outcome, list) else None

    def do_create(self, step):
        return self.succeeded(lambda: self.domain.snapshotCreateXML(self.xml(step), bits(CREATE, step["flags"])))

    def do_revert(self, step):
        return self.succeeded(
            lambda: self.domain.revertToSnapshot(self.snap(step["name"]), bits(REVERT, step["flags"])))

    def do_delete(self, step):
        return self.succeeded(lambda: self.snap(step["name"]).delete(bits(DELETE, step["flags"])))

    def do_define(self, step):
        def define():
            self.domain = self.connection.defineXML(self.xml(step))
        return self.succeeded(define)

    def do_list(self, step):
        flags = bits(LIST, step["flags"])
        if "from" in step:
            return self.attempt(lambda: self.snap(step["from"]).listAllChildren(flags))
        return self.attempt(lambda: self.domain.listAllSnapshots(flags))

    def do_count(self, step):
        return self.attempt(lambda: self.domain.snapshotNum(bits(LIST, step["flags"])))

    def do_mentions(self, step):
        """Which of some words an XML has."""
        def read():
            return self.snap(step["snapshot"]).getXMLDesc() if "snapshot" in step \
                else self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        return self.attempt(lambda: (lambda text: [word for word in step["words"] if word in text])(read()))

    def do_call(self, step):
        """Any other call of the API, by its name in the Python binding."""
        arguments = [self.path(each) if isinstance(each, str) else each for each in step["with"]]
        def call():
            target = {"domain": lambda: self.domain, "connection": lambda: self.connection,
                      "snapshot": lambda: self.snap(step["name"])}[step["on"]]()
            return getattr(target, step["method"])(*arguments)
        outcome = self.attempt(call)
        return outcome if step.get("value") or isinstance(outcome, list) else None

    def do_commit(self, _):
        """The active layer is committed into its base by a block job, behind the snapshots' back."""
        def commit():
            self.domain.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                job = self.domain.blockJobInfo("vda")
                if job and job["cur"] == job["end"]:
                    break
                time.sleep(0.05)
            self.domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        return self.succeeded(commit)

    def do_look(self, _):
        return look.everything(self.domain, self.directory, self.images, self.names)
