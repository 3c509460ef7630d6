"""A run in a lab that is up: start servers and captures, perform timed steps by one clock, and stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from testbed import results
from testbed.drivers.wpa_ctrl import Control
from testbed.errors import LabError
from testbed.lab.configure import configure
from testbed.lab.perform import perform
from testbed.lab.processes import describe, spawn, tail
from testbed.lab.state import Lab, Process, Say, Waiting, flush, note
from testbed.lab.stopping import drain, finish, kill, stop
from testbed.results import Folder
from testbed.steps import ORIGIN, Configure, Spawn, Step

_TICK, _LATE = 0.25, 0.1  # seconds: how often a run looks at the clock, and the delay that counts as late
_GRACE = 2.0  # seconds in which a process that took too long may write what it has


def play(lab: Lab, steps: Sequence[Step], folder: Path, seconds: float, say: Say) -> Waiting:
    """Perform the untimed steps, then each timed one at its time; finally stop all processes of the run.

    A run lasts until every timed process has ended, and at least `seconds`. It writes `run.json` into `folder`: the
    origin of its clock (t = 0 on CLOCK_MONOTONIC and CLOCK_REALTIME, in seconds), every timed step by its number among
    `steps` with the time at which it took effect, every process with its end, the failures, and `stalls`: when and for
    how long this process was not running when it should.
    """
    first, before = len(lab.processes), len(lab.done)
    failures: list[str] = []
    events: list[dict[str, object]] = []
    stalls: list[tuple[float, float]] = []
    origin = real = 0.0
    try:
        yield from perform(lab, [s for s in steps if getattr(s, "at", None) is None], say)
        origin, real = time.monotonic(), time.time()
        if any(isinstance(s, Spawn) and ORIGIN in s.argv for s in steps):
            results.write(Folder(folder), ORIGIN, {"monotonic": origin, "time": real})
        say({"started": real})
        numbered = [(n, s) for n, s in enumerate(steps) if getattr(s, "at", None) is not None]
        timed = sorted(numbered, key=_at)
        while timed and not _lost(lab.processes[first:]):
            now = time.monotonic() - origin
            if (wait := _at(timed[0]) - now) > 0:
                _overdue(lab.processes[first:])
                yield from _rest(min(wait, _patience(lab.processes[first:])), origin, stalls)
                continue
            due = [s for s in timed if _at(s) <= now]
            timed = timed[len(due) :]
            events += _happen(lab, due, origin, failures, say)
        while not _lost(lab.processes[first:]):
            clients = [p for p in lab.processes[first:] if p.status is None and _bounded(p)]
            left = origin + seconds - time.monotonic()
            if not clients and left <= 0:
                break
            _overdue(clients)
            yield from _rest(min(_patience(clients), left) if left > 0 else _patience(clients), origin, stalls)
    except BaseException as e:
        failures.append(str(e))
        raise
    finally:
        # However it ends: stop what loads the network first, so that captures can finish.
        yield from stop([p for p in lab.processes[first:] if _bounded(p)])
        yield from finish(lab.processes[first:])
        yield from drain(lab, lab.processes[first:])
        yield from stop(lab.processes[first:])
        failures += [text for p in lab.processes[first:] if (text := _fault(p))]
        # Processes of the lab outlive the run: one that has ended, even before, was not there for it.
        failures += [text for p in lab.processes[:first] if origin and (text := _fault(p))]
        summary = {
            "monotonic": origin,
            "time": real,
            "seconds": time.monotonic() - origin if origin else 0.0,
            "events": events,
            "stalls": stalls,
            "processes": [_ended(p, origin) for p in lab.processes[first:]],
            "failures": failures,
        }
        results.write(Folder(folder), "run.json", summary)
        del lab.processes[first:], lab.done[before:]
        flush(lab)
    return None


def _rest(seconds: float, origin: float, stalls: list[tuple[float, float]]) -> Waiting:
    """Wait, and record if that took longer than it should: what stops this process may stop others as well."""
    due = time.monotonic() + min(seconds, _TICK)
    yield min(seconds, _TICK)
    if (late := time.monotonic() - due) >= _LATE:
        stalls.append((due - origin, late))


def _happen(
    lab: Lab, due: Sequence[tuple[int, Step]], origin: float, failures: list[str], say: Say
) -> list[dict[str, object]]:
    """Perform the steps that are due, requests as a batch; return the number of each, and when it took effect.

    A refusal of Linux is a failure of the run, but the rest of the run is still performed.
    """
    events: list[dict[str, object]] = []
    groups: list[list[tuple[int, Step]]] = []
    asked = True
    for n, request in due:
        if not isinstance(request, Configure):
            continue
        # Go on after a daemon's refusal: a later step opens the gate that was closed for this one.
        before, asked = asked, isinstance(request.request, Control)
        if before or asked:
            groups.append([])
        groups[-1].append((n, request))
    groups += [[(n, s)] for n, s in due if isinstance(s, Spawn)]
    for group in groups:
        try:
            configure(lab, [s for _, s in group if isinstance(s, Configure)])
            for client in (s for _, s in group if isinstance(s, Spawn)):
                spawn(lab, client)
                note(lab, client)
        except LabError as e:
            failures.append(str(e))
            continue
        now = time.monotonic()
        for n, step in group:
            events.append({"t": now - origin, "n": n, "monotonic": now, "time": time.time(), "step": str(step)})
            say({"t": now - origin, "step": str(step)})
    return events


def _at(numbered: tuple[int, Step]) -> float:
    return float(getattr(numbered[1], "at", None) or 0.0)


def _bounded(process: Process) -> bool:
    return process.step is not None and process.step.at is not None


def _patience(processes: Sequence[Process]) -> float:
    ends = [
        p.overdue + _GRACE if p.overdue else p.began + p.step.within
        for p in processes
        if p.status is None and p.step and p.step.within is not None
    ]
    return max(0.0, min(ends, default=time.monotonic() + 1.0) - time.monotonic())


def _overdue(processes: Sequence[Process]) -> None:
    """Tell processes that take too long to end, by the signal at which they write what they have, then kill them."""
    now = time.monotonic()
    for p in processes:
        if p.status is not None or p.step is None or p.step.within is None:
            continue
        if not p.overdue and now > p.began + p.step.within:
            p.overdue = now
            kill(p, p.step.stop)
            kill(p, signal.SIGCONT)  # one that somebody stopped takes no other signal
        elif p.overdue and now > p.overdue + _GRACE:
            kill(p, signal.SIGKILL)


def _lost(processes: Sequence[Process]) -> bool:
    """Return whether a process that must live until the end of the run has ended: the rest would be worthless."""
    return any(_fault(p) for p in processes if p.status is not None and not _bounded(p))


def _fault(process: Process) -> str:
    """Return what is wrong with the end of a process, for example that nobody had stopped it.

    Being killed by somebody else is always a fault, even of a process that may end or that was being stopped.
    """
    if process.step is None or process.status is None:
        return ""
    late = process.step.within is not None and process.ended - process.began >= process.step.within
    if process.overdue:
        return f"[{process.node}] {process.name} did not end within {process.step.within:g} s{tail(process.log)}"
    if process.stopped and (process.status >= 0 or -process.status == process.stopped):
        return ""
    if process.status >= 0 and (process.step.may_end or (process.status == 0 and _bounded(process))):
        return ""
    why = f"did not end within {process.step.within:g} s" if late else f"ended with {describe(process.status)}"
    return f"[{process.node}] {process.name} {why}{tail(process.log)}"


def _ended(process: Process, origin: float) -> dict[str, object]:
    ended = process.ended or time.monotonic()
    status = process.status
    return {
        "node": process.node,
        "name": process.name,
        "began": process.began - origin,
        "ended": ended - origin,
        "status": status,
    }
