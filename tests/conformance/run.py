#!/usr/bin/python3
"""Plays the cases of fixtures/conformance against a running daemon, judges each, and sums up.

    run.py --uri URI --dir DIR [--sample N] [--only PATTERN] [--workers N] [--record FILE]

DIR is where images are made. --sample takes every N-th case only; --record also writes what was seen.
The last line is the verdict; the exit code is not 0 if anything is unexplained.
"""

import argparse
import fnmatch
import json
import multiprocessing
import os
import pathlib
import sys

import drive
import judge

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "fixtures/conformance"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--uri", required=True)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--sample", type=int, default=1)
    parser.add_argument("--only", default="*")
    parser.add_argument("--workers", type=int, default=max(2, os.cpu_count() or 2))
    parser.add_argument("--record")
    return parser.parse_args()


def cases():
    for file in sorted(FIXTURES.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def play(job):
    """In a worker: each has a domain and a directory of its own."""
    case, uri, directory = job
    number = multiprocessing.current_process()._identity[0]
    try:
        return case["id"], drive.Stage(uri, directory, number).play(case)
    except Exception as error:  # whatever stops a case is its result, not the end of the run
        return case["id"], [f"could not be played: {type(error).__name__}: {error}"]


def main():
    wanted = arguments()
    every = list(cases())
    listed = judge.Differences(FIXTURES, [case["id"] for case in every])
    chosen = [case for case in every[::wanted.sample] if fnmatch.fnmatchcase(case["id"], wanted.only)]
    print(f"conformance: {len(chosen)} of {len(every)} cases, {wanted.workers} at a time", flush=True)
    verdicts, seen = judge.Verdicts(listed), {}
    with multiprocessing.get_context("spawn").Pool(wanted.workers, maxtasksperchild=200) as pool:
        played = pool.imap(play, [(case, wanted.uri, wanted.dir) for case in chosen])
        for done, case in enumerate(chosen, 1):
            _, outcomes = played.next(timeout=300)
            seen[case["id"]] = outcomes
            for line in verdicts.add(case, outcomes):
                print(line, flush=True)
            if done % 100 == 0:
                print(f"conformance: {done} of {len(chosen)}", flush=True)
    if wanted.record:
        with open(wanted.record, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"id": name, "seen": what}) + "\n" for name, what in seen.items())
    for complaint in listed.complaints:
        print(f"conformance: {complaint}")
    print("conformance: " + verdicts.line())
    return 0 if verdicts.good() and not listed.complaints else 1


if __name__ == "__main__":
    sys.exit(main())
