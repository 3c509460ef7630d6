"""Perform steps: every change of Linux starts here, in PID 1 of a sandbox, which has one thread.

Functions that wait are generators: they yield how long they may sleep, and the holder resumes them after that time, or
as soon as a process ends.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from testbed.drivers.link import LinkSet, NamespaceAdd
from testbed.errors import LabError
from testbed.lab import furniture
from testbed.lab.configure import configure
from testbed.lab.namespace import Namespace
from testbed.lab.processes import describe, spawn, tail
from testbed.lab.state import Lab, Say, Waiting, flush, note
from testbed.lab.stopping import kill
from testbed.lab.waits import wait
from testbed.results import written
from testbed.steps import LAB, Configure, Run, Spawn, Step, Wait, Write

_OWN_FILES = 32  # descriptors kept free for the rest of a lab


def begin(name: str, folder: Path) -> Lab:
    """Return a lab without nodes, in this process's sandbox."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    host = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    lab = Lab(name, home, host, folder, dict(os.environ, TMPDIR=f"{furniture.FOLDER}/tmp"))
    lab.nodes[LAB] = Namespace(LAB, home, lab.sockets, lab.nodes, lab.indexes)
    lab.nodes[LAB].mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    configure(lab, [Configure(LAB, LinkSet("lo", up=True))])
    lab.done.clear()
    return lab


def perform(lab: Lab, steps: Sequence[Step], say: Say) -> Waiting:
    """Perform all immediate steps in order, then wait for all Waits."""
    _room(lab, steps)
    at_once = [
        s for s in steps if (isinstance(s, Configure) and s.at is None) or (isinstance(s, Wait | Run) and s.inline)
    ]
    for _, some in groupby(at_once, type):
        group = list(some)
        configure(lab, [s for s in group if isinstance(s, Configure)])
        for command in (s for s in group if isinstance(s, Run)):
            yield from run(lab, command)
        yield from wait(lab, [s for s in group if isinstance(s, Wait)])
    for step in steps:
        if isinstance(step, Write):
            path = lab.folder / step.path
            with written(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(step.text)
            note(lab, step)
        elif isinstance(step, Run) and not step.inline:
            yield from run(lab, step)
        elif isinstance(step, Spawn) and step.at is None:
            spawn(lab, step)
            note(lab, step)
    waits = [s for s in steps if isinstance(s, Wait) and not s.inline]
    say({"performed": len(steps) - len(waits), "waiting": len(waits)})
    yield from wait(lab, waits)
    flush(lab)


def _room(lab: Lab, steps: Sequence[Step]) -> None:
    """Raise LabError, before anything is made, if there are more nodes than this process may open descriptors."""
    new = sum(isinstance(s, Configure) and isinstance(s.request, NamespaceAdd) for s in steps)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if new and (count := len(lab.nodes) - 1 + new) > limit - _OWN_FILES:
        raise LabError(
            f"lab {lab.name}: {count} nodes take a descriptor each, and {limit} is the most that a process may have "
            "here: `ulimit -Hn` shows the limit, root raises it (limits.conf(5), LimitNOFILE= of a service)"
        )


def run(lab: Lab, step: Run) -> Waiting:
    """Run a command of the plan to its end; raise LabError unless it exits with status 0 in time."""
    name = f"run-{sum(p.name.startswith('run-') for p in lab.processes)}"
    process = spawn(lab, Spawn(step.node, name, step.argv, may_end=True))
    deadline = process.began + step.within
    while process.status is None:
        if time.monotonic() > deadline:
            kill(process, signal.SIGKILL)
            raise LabError(f"{step}: it did not end within {step.within:g} s{tail(process.log)}")
        yield deadline - time.monotonic()
    if process.status:
        raise LabError(f"{step}: it ended with {describe(process.status)}{tail(process.log)}")
    note(lab, step)
