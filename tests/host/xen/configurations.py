#!/usr/bin/python3
"""Does the real libxl take our configurations as we mean them?

    tests/host/run.sh xen python3 tests/host/xen/configurations.py

Each fixtures/xen/defined/NAME.json goes into libxl_domain_config_from_json and comes back out of
libxl_domain_config_to_json.  libxl ignores a name that it does not know, and such a one does not
come back; nor does what is libxl's default.  So each member has to come back as it went in, or be
a default that is listed here.  A misspelt member shows that this would be seen.
"""

import ctypes
import glob
import json
import os
import sys

# Of the enumeration libxl_action_on_shutdown, and a disk that cannot be written.
DEFAULTS = {("on_poweroff", "destroy"), ("on_reboot", "destroy"), ("on_crash", "destroy"),
            ("readwrite", 0)}
# No less than a libxl_domain_config has.
ROOM = 1 << 16


def libxl():
    log = ctypes.CDLL("libxentoollog.so.1")
    log.xtl_createlogger_stdiostream.restype = ctypes.c_void_p
    stderr = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
    logger = ctypes.c_void_p(log.xtl_createlogger_stdiostream(stderr, 4, 0))
    library = ctypes.CDLL(os.path.basename(glob.glob("/usr/lib/*/libxenlight.so.4.*")[0]))
    library.libxl_domain_config_to_json.restype = ctypes.c_char_p
    context = ctypes.c_void_p()
    if library.libxl_ctx_alloc(ctypes.byref(context), 0, 0, logger) != 0:
        sys.exit("libxl gives no context: is this the host of flavour xen?")
    return library, context


def members(value, name="", path=""):
    if isinstance(value, dict):
        for key in value:
            yield from members(value[key], key, f"{path}/{key}")
    elif isinstance(value, list):
        for nth, each in enumerate(value):
            yield from members(each, name, f"{path}/{nth}")
    else:
        yield path, name, value


def lost(library, context, config):
    room = ctypes.create_string_buffer(ROOM)
    library.libxl_domain_config_init(room)
    status = library.libxl_domain_config_from_json(context, room, json.dumps(config).encode())
    if status != 0:
        return [f"refused: {status}"]
    back = json.loads(library.libxl_domain_config_to_json(context, room))
    kept = {path: value for path, _, value in members(back)}
    return [f"{path}: {value!r} came back as {kept.get(path)!r}"
            for path, name, value in members(config)
            if kept.get(path) != value and not (path not in kept and (name, value) in DEFAULTS)]


def main():
    library, context = libxl()
    here = os.path.dirname(os.path.abspath(__file__))
    files = sorted(glob.glob(f"{here}/../../../fixtures/xen/defined/*.json"))
    wrong = 0 if files else 1
    for file in files:
        with open(file, encoding="utf-8") as text:
            config = json.load(text)
        problems = lost(library, context, config)
        print(os.path.basename(file), "is taken whole" if not problems else problems)
        wrong += len(problems)
        config["b_info"]["max_vcpu"] = 3
        if not lost(library, context, config):
            print("a member that libxl does not know came back")
            wrong += 1
    sys.exit(1 if wrong else 0)


main()
