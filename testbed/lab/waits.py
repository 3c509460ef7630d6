"""Perform Waits: first those that only need time, then those with an urge."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from msgspec.structs import replace

from testbed.errors import LabError
from testbed.lab.configure import configure
from testbed.lab.probes import holds
from testbed.lab.processes import describe, tail
from testbed.lab.state import Lab, Waiting, note
from testbed.steps import Configure, Wait


def wait(lab: Lab, waits: Sequence[Wait]) -> Waiting:
    """Wait until every probe holds: first those that only need time, then those with an urge."""
    yield from _hold(lab, [s for s in waits if not s.urge])
    urged = [s for s in waits if s.urge]
    yield from _urge(lab, urged)
    # Check all of them again: a station may have been lost while others joined, and does not return by itself.
    yield from _urge(lab, [replace(s, urge=s.again) for s in urged if _unmet(lab, s)])


def _hold(lab: Lab, waits: Sequence[Wait]) -> Waiting:
    """Wait until probes hold; report the end of a process that one of them depends on at once."""
    began = time.monotonic()
    pending = list(waits)
    said: dict[Wait, tuple[str, float]] = {}  # a probe's text, and since when it is the same
    pause = 0.001
    while pending:
        seen = [(step, _unmet(lab, step)) for step in pending]
        now = time.monotonic()
        for step, unmet in seen:
            if said.get(step, ("", 0.0))[0] != unmet:
                said[step] = unmet, now
        pending = [s for s, unmet in seen if unmet and not (s.steady and now - said[s][1] >= s.steady)]
        for step, unmet in seen:
            if step in pending:
                _fail(lab, step, unmet, now - began)
            else:
                note(lab, step)
        if pending:
            yield pause
            pause = min(pause * 2, 0.05, *(s.steady / 2 for s in pending if s.steady))


def _urge(lab: Lab, waits: Sequence[Wait]) -> Waiting:
    """Start as many waits at once as there are processors; repeat the urge of those that do not hold in time."""
    queue, began, due = list(waits), dict[Wait, float](), dict[Wait, float]()
    while queue or due:
        while queue and len(due) < (os.cpu_count() or 1):
            step = queue.pop(0)
            began[step], due[step] = time.monotonic(), 0.0
        for step in list(due):
            now = time.monotonic()
            if not (unmet := _unmet(lab, step)):  # nothing to do in a lab that is already up
                note(lab, step)
                del due[step]
                continue
            _fail(lab, step, unmet, now - began[step])
            if now > due[step]:
                configure(lab, [Configure(step.node, r) for r in (step.again if due[step] else step.urge)])
                due[step] = now + step.every
        if due:
            yield 0.03


def _unmet(lab: Lab, step: Wait) -> str:
    return holds(step.probe, lab.space(step.node), lab.home, lab.folder)


def _fail(lab: Lab, step: Wait, unmet: str, elapsed: float) -> None:
    """Raise LabError if a wait is over its time, or its process has ended."""
    waited = [p for p in lab.processes if step.process and p.name == step.process and p.node == step.node]
    if unmet and waited and waited[-1].status is not None:
        dead = waited[-1]
        raise LabError(f"{step}: {dead.name} ended with {describe(dead.status)}{tail(dead.log)}")
    if unmet and elapsed > step.within:
        logs = tail(waited[-1].log) if waited else ""
        raise LabError(f"{step}: not after {elapsed:.1f} s: {unmet}{logs}")
