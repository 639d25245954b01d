"""What a domain, its snapshots and its images look like from outside, in a form that can be compared.

Paths are $DIR, default names and overlays named by the clock $EPOCH, loop devices $LOOP: so two runs
of one case give the same text. What libvirt leaves to chance (the order of siblings, node names,
addresses) is not in it.
"""

import json
import os
import re
import subprocess
import xml.etree.ElementTree as ET

import libvirt

STATES = ["nostate", "running", "blocked", "paused", "shutdown", "shutoff", "crashed", "pmsuspended"]


class Names:
    """Which names of this run stand for which of the recorded ones."""

    def __init__(self, directory, domain, uuid):
        self.pairs = [(directory, "$DIR"), (uuid, "$UUID"), (domain, "o")]

    def neutral(self, text):
        for mine, recorded in self.pairs:
            text = text.replace(mine, recorded)
        text = re.sub(r"/dev/loop\d+", "$LOOP", text)
        text = re.sub(r"(?<![\d.])1[789]\d{8}(?:[-.]\d+)?(?!\d)|\.1[789]\d{8}(?:-\d+)?\b",
                      lambda found: ".$EPOCH" if found.group().startswith(".") else "$EPOCH", text)
        return text


def disk(element):
    """`vda disk file qcow2 $DIR/vda.qcow2 readonly`: what matters of one disk of a domain."""
    target, source, driver = (element.find(name) for name in ("target", "source", "driver"))
    words = [target.get("dev", "?"), element.get("device", "disk"), element.get("type", "?")]
    words.append(driver.get("type", "raw") if driver is not None else "raw")
    words.append((source.get("file") or source.get("dev") or "-") if source is not None else "-")
    words += [flag for flag in ("readonly", "shareable", "transient") if element.find(flag) is not None]
    if element.get("snapshot"):
        words.append("snapshot=" + element.get("snapshot"))
    return " ".join(words)


def disks(xml):
    return [disk(found) for found in ET.fromstring(xml).iterfind("devices/disk")]


def files(xml):
    """The images that the disks name, without what is below them."""
    return {source.get("file") for source in ET.fromstring(xml).iterfind("devices/disk/source[@file]")}


def snapshot(xml):
    """The parts of a snapshot's XML that say what it holds and where."""
    root = ET.fromstring(xml)
    parts = {"state": root.findtext("state"), "description": root.findtext("description")}
    memory = root.find("memory")
    parts["memory"] = None if memory is None else " ".join(
        filter(None, [memory.get("snapshot"), memory.get("file")]))
    parts["disks"] = []
    for element in root.iterfind("disks/disk"):
        source, driver = element.find("source"), element.find("driver")
        words = [element.get("name"), element.get("snapshot", "?")]
        words.append(element.get("type", "") if element.get("snapshot") == "external" else "")
        words.append(driver.get("type", "") if driver is not None else "")
        words.append((source.get("file") or source.get("dev") or "") if source is not None else "")
        parts["disks"].append(" ".join(filter(None, words)))
    for kind in ("domain", "inactiveDomain"):
        nested = root.find(kind)
        if nested is not None:
            parts[kind] = [disk(found) for found in nested.iter("disk")]
    return {key: value for key, value in parts.items() if value is not None}


def chain(path):
    """`file format [tag, tag+memory]` of an image and of everything below it."""
    command = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", path]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode != 0:
        return "unreadable"
    return [layer(entry) for entry in json.loads(told.stdout)]


def layer(entry):
    tags = [tag["name"] + ("+memory" if tag["vm-state-size"] > 0 else "")
            for tag in entry.get("snapshots", [])]
    words = [entry["filename"], entry["format"]]
    if entry.get("full-backing-filename"):
        words.append("on " + entry.get("backing-filename-format", "probed"))
    return " ".join(words + (["[" + ", ".join(tags) + "]"] if tags else []))


def state(domain):
    try:
        name, reason = domain.state()
        return f"{STATES[name]}/{reason}"
    except libvirt.libvirtError:
        return "gone"


def parent(snap):
    try:
        return snap.getParent().getName()
    except libvirt.libvirtError:
        return None


def everything(domain, directory, images, names):
    """All of it, neutral."""
    seen = {"state": state(domain)}
    tops = set(images)
    if seen["state"] != "gone":
        seen["persistent"] = bool(domain.isPersistent())
        seen["snapshots"] = {}
        for snap in domain.listAllSnapshots(0):
            parts = snapshot(snap.getXMLDesc())
            seen["snapshots"][snap.getName()] = {"parent": parent(snap), **parts}
        seen["current"] = domain.snapshotCurrent().getName() if domain.hasCurrentSnapshot() else None
        kinds = {"inactive": libvirt.VIR_DOMAIN_XML_INACTIVE}
        if domain.isActive():
            kinds["live"] = 0
        xml = {kind: domain.XMLDesc(flag) for kind, flag in kinds.items()}
        seen["disks"] = {kind: disks(text) for kind, text in xml.items()}
        tops |= {path for text in xml.values() for path in files(text)}
    seen["files"] = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    seen["chains"] = {top: chain(top) for top in sorted(tops)}
    return json.loads(names.neutral(json.dumps(seen, ensure_ascii=False)))
