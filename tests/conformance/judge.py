"""Compares what was seen with what libvirt 11.3.0 did, and with the list of what may differ.

differences.toml: deliberate, each with the feature or the defect of libvirt that is the reason. An
entry covers only the parts of a case that it names: `outcome` (of a call), `state`, `snapshots`,
`disks`, `files`, ...
"""

import collections
import fnmatch
import re
import tomllib

PARTS = {"outcome", "state", "persistent", "snapshots", "current", "disks", "files", "chains", "played"}
REASON = re.compile(r"(?:[A-Z]\d?-\d\d|L\d-\d\d|S\d-\d\d|defect \d{1,2}(?: of libvirt 11\.3)?)\b.*")


def differences(case, outcomes):
    """(part, what) of every difference, in the order of the steps."""
    compared = [step for step in case["steps"] if "is" in step]
    found = []
    for index, step in enumerate(compared):
        if index >= len(outcomes):
            found.append(("played", f"step {index + 1} was not reached"))
            break
        ours, theirs = outcomes[index], step["is"]
        if isinstance(ours, str):
            found.append(("played", ours))
            break
        if step["do"] != "look":
            if ours != theirs:
                found.append(("outcome", f"{title(step)}: {shown(ours)}, libvirt: {shown(theirs)}"))
            continue
        for part in theirs:  # what could not be recorded is not there
            if ours.get(part) != theirs[part]:
                found.append((part, f"{part}: {ours.get(part)}, libvirt: {theirs[part]}"))
    return found


def title(step):
    words = [step["do"], step.get("name"), step.get("method"), step.get("flags")]
    return " ".join(word for word in words if word)


def shown(outcome):
    if outcome is None:
        return "ok"
    if isinstance(outcome, list):
        return f"error {outcome[0]} {outcome[1]}"
    return str(outcome.get("value")) if isinstance(outcome, dict) else str(outcome)


class Entry:
    """One line of the list: which cases, which parts, why."""

    def __init__(self, table):
        self.cases, self.parts = table["cases"], set(table["in"])
        self.what, self.reasons = table["what"], table.get("because", [])

    def covers(self, name):
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.cases)


class Differences:
    """The list, checked for entries that say too little or cover too much."""

    def __init__(self, directory, names):
        text = (directory / "differences.toml").read_text(encoding="utf-8")
        self.entries, self.complaints = [Entry(table) for table in tomllib.loads(text)["difference"]], []
        sizes = collections.Counter(name.split(".")[0] for name in names)
        for entry in self.entries:
            self.check(entry, names, sizes)

    def check(self, entry, names, sizes):
        for pattern in entry.cases:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                self.complaints.append(f"'{entry.what}' lists {pattern}, which is no case")
        covered = collections.Counter(name.split(".")[0] for name in names if entry.covers(name))
        for group, count in covered.items():
            if count == sizes[group] and count > 1:
                self.complaints.append(f"'{entry.what}' covers all of group {group}")
        if not entry.parts <= PARTS:
            self.complaints.append(f"'{entry.what}' names unknown parts {entry.parts - PARTS}")
        if not any(REASON.fullmatch(reason) for reason in entry.reasons):
            self.complaints.append(f"'{entry.what}' gives no feature and no defect as reason")


class Verdicts:
    """The count, case by case."""

    def __init__(self, listed):
        self.listed, self.count = listed, collections.Counter()

    def add(self, case, outcomes):
        """What to print about a case: nothing if all is as recorded or as listed."""
        found = differences(case, outcomes)
        entries = [entry for entry in self.listed.entries if entry.covers(case["id"])]
        needed = {part for part, _ in found}
        allowed = set().union(*(entry.parts for entry in entries))
        if not needed <= allowed:
            self.count["unexplained"] += 1
            return [f"UNEXPLAINED {case['id']}"] + [
                f"    {what}" for part, what in found if part not in allowed]
        if not found and entries:
            self.count["stale"] += 1
            return [f"STALE {case['id']}: listed as '{entries[0].what}', and no longer differs"]
        self.count["purpose" if found else "agree"] += 1
        return []

    def good(self):
        return not self.count["unexplained"] and not self.count["stale"]

    def line(self):
        stale = f", {self.count['stale']} listed without need" if self.count["stale"] else ""
        return (f"{self.count['agree']} agree, {self.count['purpose']} differ on purpose, "
                f"{self.count['unexplained']} unexplained{stale}")
