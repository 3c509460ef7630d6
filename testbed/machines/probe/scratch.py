"""A child process with namespaces of its own, in which the kernel is probed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from testbed import features
from testbed.errors import LabError
from testbed.features import Feature
from testbed.lab import sandbox
from testbed.linux import calls as linux
from testbed.linux import faults
from testbed.machines.probe import kernel

_SHORT = ""  # the name of no feature: nothing could be found out


def probe(wanted: Sequence[Feature]) -> dict[str, tuple[bool, str]]:
    """Return (present, how that is known) by name; in a child, because unshare(2) can't be undone."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        # Whatever happens, a child of somebody's process must never return into that somebody's code.
        try:
            os.close(read)
            os.write(write, json.dumps(_probe_all(wanted)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read()
    with suppress(ChildProcessError):  # a caller who ignores SIGCHLD
        os.waitpid(child, 0)
    if not said:
        raise LabError("the probe of this kernel's features died; `testbed doctor --fresh` shows it again")
    found = {name: (bool(present), str(known)) for name, (present, known) in json.loads(said).items()}
    if _SHORT in found:
        raise LabError(f"this kernel's features can't be probed: {found[_SHORT][1]}")
    return found


def _probe_all(wanted: Sequence[Feature]) -> dict[str, tuple[bool, str]]:
    uid, gid = os.geteuid(), os.getegid()
    try:
        linux.unshare(linux.CLONE_NEWNET | (linux.CLONE_NEWUSER if uid else 0))
        if uid:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as e:
        untried = dict.fromkeys((f.name for f in wanted), (False, f"{e}"))
        return {**untried, features.USERNS.name: (False, sandbox.why_none(e, uid))}
    found = {}
    for feature in wanted:
        try:
            found[feature.name] = (True, kernel.ask(feature))
        except OSError as e:
            if e.errno in faults.SHORT:
                return {_SHORT: (False, faults.words(e))}
            place = f"{e.filename}: " if e.filename else ""
            found[feature.name] = (False, f"{place}{e.strerror or e}")
        except LabError as e:
            found[feature.name] = (False, str(e))
    return found
