"""The holder's handlers, one for each kind of request."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from testbed.drivers import nl80211
from testbed.errors import LabError, TestbedError
from testbed.lab import answers, asking, bounds, furniture, perform, processes, stopping, timeline, travel
from testbed.lab.answers import Progress
from testbed.lab.asked import Keep, Status
from testbed.lab.asking import Change, Down, Enter, Exec, Leave, Look, Plan, Question, Run
from testbed.lab.changes import standing
from testbed.lab.jobs import Holder, Task, busy, cancel, tell
from testbed.lab.messages import Line, close
from testbed.lab.state import Process
from testbed.linux import netlink, uapi
from testbed.steps import LAB, Step

LATER = object()
NEVER = 3600.0  # s
# The interval (s) at which a lab is checked for being full, the one after it was, and how many times in a row end it.
_LOOK, _SOON, _FULL = 0.3, 0.1, 4
_STREAMS, _MARKS = 3, 2  # descriptors sent along with `exec` and `enter`
_PATIENCE = 5.0  # s for the end of killed processes
_TABLES = {
    "links": (uapi.RTM_GETLINK, uapi.IFINFOMSG.size),
    "addresses": (uapi.RTM_GETADDR, uapi.IFADDRMSG.size),
    "qdiscs": (uapi.RTM_GETQDISC, uapi.TCMSG.size),
}


def up(
    holder: Holder,
    line: Line,
    steps: Sequence[Step],
    whole: Sequence[Step],
    about: Mapping[str, object],
    hosts: str,
) -> Task:
    """Perform the first steps of a lab, or a change of it; afterwards it is the lab that the steps `whole` make."""
    with busy(holder, "up"):
        furniture.write_hosts(hosts)
        # Commands may have made interfaces meanwhile: look before choosing an index.
        for space in holder.lab.nodes.values():
            space.stale = bool(holder.lab.done)
        try:
            yield from perform.perform(holder.lab, steps, lambda value: tell(line, Progress(value)))
        except TestbedError:
            holder.lab.done = standing(holder.lab.done)  # if a change fails half-way, the next one starts from here
            raise
        holder.lab.done = list(whole)
        holder.about.update(about)


def _run(holder: Holder, line: Line, steps: Sequence[Step], folder: str, seconds: float) -> Task:
    with busy(holder, "run"):
        yield from timeline.play(holder.lab, steps, Path(folder), seconds, lambda v: tell(line, Progress(v)))


def watch(holder: Holder) -> Task:
    """End a lab that cannot start processes any more: its figures are worthless, and it wastes processor time."""
    due, full = 0.0, 0
    while True:
        if "pids" not in holder.lab.held:
            yield NEVER
        elif (left := due - time.monotonic()) > 0:
            yield left
        else:
            full = full + 1 if processes.full() else max(0, full - 1)
            if full == _FULL:
                break
            due = time.monotonic() + (_SOON if full else _LOOK)
            yield _SOON if full else _LOOK
    told = LabError(
        f"lab {holder.lab.name}: it was ended because it had as many processes as its bound allows "
        f"(resources.pids: {holder.lab.held['pids'].bound}) and could not start another"
    )
    for waits in [*(job.line for job in holder.jobs), *(asker for asker, _, _ in holder.waiting.values())]:
        tell(waits, answers.failed(told))
    holder.ending = True


def do(holder: Holder, line: Line, question: Question, fds: list[int]) -> object:
    """Perform a request; return its answer, a task that will return it, or LATER if a process will."""
    lab = holder.lab
    match question:
        case Exec():
            return _exec(holder, line, fds, question)
        case Enter(node):
            lab.space(node)
            if len(fds) != _MARKS:
                raise LabError(f"lab {lab.name}: enter: {len(fds)} descriptors came instead of {_MARKS}")
            holder.entered[line] = [os.dup(fd) for fd in fds]
            return None
        case Leave():
            return end_marked(holder.entered.pop(line, []))
        case Change(perform, whole, about, hosts):
            made = asking.steps(lab.name, whole)
            return up(holder, line, asking.steps(lab.name, perform), made, about, hosts)
        case Run(steps, folder, seconds):
            return _run(holder, line, asking.steps(lab.name, steps), folder, seconds)
        case Status():
            return _status(holder)
        case Plan():
            return travel.encode(lab.done)
        case Look(node):
            return _look(holder, node)
        case Keep():
            holder.owner = None
            return None
        case Down():
            return _down(holder, line)


def _exec(holder: Holder, line: Line, fds: list[int], asked: Exec) -> object:
    if len(fds) != _STREAMS:
        raise LabError(f"lab {holder.lab.name}: exec: {len(fds)} descriptors came instead of {_STREAMS}")
    folder = next((p for p in asked.folders if os.path.isdir(p)), asked.folders[-1])
    env = dict(row.partition(b"=")[::2] for row in asked.env)
    program = os.fsdecode(asked.argv[0])
    mark = -1
    try:
        with processes.marked(holder.lab) as mark:
            pid = processes.start(holder.lab, asked.node, asked.argv, env, folder, fds)
    except OSError as e:
        close([mark] if mark >= 0 else [])
        # posix_spawn does not say what is missing: the command, or the folder to run it in
        raise LabError(f"[{asked.node or LAB}] {program} (in {os.fsdecode(folder)}): {e.strerror}") from e
    process = Process(asked.node or LAB, program, pid, Path(os.devnull), time.monotonic())
    holder.waiting[pid] = (line, process, mark)
    return LATER


def end_marked(marks: list[int]) -> Task:
    """Kill all processes in one of these namespaces, again until none is left, since they may be forking.

    The open descriptors keep the kernel from reusing the namespaces' numbers meanwhile.
    """
    wanted = {(found.st_dev, found.st_ino) for found in map(os.fstat, marks)}
    try:
        deadline = time.monotonic() + _PATIENCE
        while stopping.kill_those_in(wanted) and time.monotonic() < deadline:
            yield 0.003
    finally:
        close(marks)


def _status(holder: Holder) -> dict[str, Any]:
    lab = holder.lab
    return {
        **holder.about,
        "name": lab.name,
        "state": _state(holder),
        "nodes": [n for n in lab.nodes if n != LAB],
        "resources": to_builtins(bounds.felt(lab.held)),
        "processes": [
            {"node": p.node, "name": p.name, "pid": p.pid, "status": p.status}
            for p in lab.processes
            if p.step is not None
        ],
    }


def _state(holder: Holder) -> str:
    if holder.busy == "up":
        return "changing" if holder.owner is None else "starting"
    if holder.busy:
        return {"run": "running", "down": "going down"}[holder.busy]
    return "up" if holder.owner is None else "held"  # by the program that made it, and with which it ends


def _look(holder: Holder, node: str) -> dict[str, list[bytes]]:
    """Return the kernel's dumps of a node's links, addresses and radios, undecoded."""
    space = holder.lab.space(node)
    tables = {name: netlink.dump(space.route, kind, bytes(size)) for name, (kind, size) in _TABLES.items()}
    if nl80211.FAMILY in space.families:  # the lab has made or inspected a wireless interface in this node
        sock, family = space.generic(), space.family(nl80211.FAMILY)
        tables["wlans"] = netlink.dump(sock, family, nl80211.GET_INTERFACES)
        for index in (w.index for w in map(nl80211.parse_interface, tables["wlans"]) if w.station):
            tables[f"bss {index}"] = netlink.dump(sock, family, nl80211.get_scan(index))
    return tables


def _down(holder: Holder, line: Line) -> Task:
    """End the lab: first cancel all jobs and wait for their ends; a second `down` waits for the first."""
    for job in [j for j in holder.jobs if j.verb != "down"]:
        cancel(holder, job, "it is being taken down")
    while holder.busy:
        yield 1.0
    with busy(holder, "down"):
        yield from stopping.stop(holder.lab.processes)
        holder.ending = True
