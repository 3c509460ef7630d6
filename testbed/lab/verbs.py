"""What a holder does for each request."""

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
from testbed.lab.asking import Change, Down, Enter, Exec, Keep, Leave, Look, Plan, Question, Run, Status
from testbed.lab.changes import standing
from testbed.lab.jobs import Holder, Task, busy, cancel, tell
from testbed.lab.messages import Line, close
from testbed.lab.state import Process
from testbed.linux import netlink, uapi
from testbed.steps import LAB, Step

LATER = object()
NEVER = 3600.0  # s
# How often (s) is looked whether a lab is full, how often once it was, and how often in a row that ends it.
_LOOK, _SOON, _FULL = 0.3, 0.1, 4
_STREAMS, _MARKS = 3, 2  # descriptors that come with `exec` and `enter`
_PATIENCE = 5.0  # s for processes that were killed to end
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
    """Perform steps, first of all or as a change of what stands; afterwards the lab is what `whole` makes."""
    with busy(holder, "up"):
        furniture.write_hosts(hosts)
        # What others did in the nodes meanwhile is not known: look before an interface index is chosen.
        for here in holder.lab.nodes.values():
            here.stale = bool(holder.lab.done)
        try:
            yield from perform.perform(holder.lab, steps, lambda value: tell(line, Progress(value)))
        except TestbedError:
            holder.lab.done = standing(holder.lab.done)  # a change that failed half-way: the next begins here
            raise
        holder.lab.done = list(whole)
        holder.about.update(about)


def _run(holder: Holder, line: Line, steps: Sequence[Step], folder: str, seconds: float) -> Task:
    with busy(holder, "run"):
        yield from timeline.play(holder.lab, steps, Path(folder), seconds, lambda v: tell(line, Progress(v)))


def watch(holder: Holder) -> Task:
    """End a lab that can start no process any more: what it measures is worth nothing, and it burns processors."""
    due, found = 0.0, 0
    while True:
        if "pids" not in holder.lab.held:
            yield NEVER
        elif (left := due - time.monotonic()) > 0:
            yield left
        else:
            found = found + 1 if processes.full() else max(0, found - 1)
            if found == _FULL:
                break
            due = time.monotonic() + (_SOON if found else _LOOK)
            yield _SOON if found else _LOOK
    told = LabError(
        f"lab {holder.lab.name}: it was ended, for it had as many processes as its bound allows "
        f"(resources.pids: {holder.lab.held['pids'].bound}) and could start no other"
    )
    for waits in [*(job.line for job in holder.jobs), *(asker for asker, _, _ in holder.waiting.values())]:
        tell(waits, answers.failed(told))
    holder.ending = True


def do(holder: Holder, line: Line, question: Question, fds: list[int]) -> object:
    """Do what is asked and return the answer: a task that will have it, or LATER when a process has it."""
    lab = holder.lab
    match question:
        case Exec():
            return _exec(holder, line, fds, question)
        case Enter(node):
            lab.place(node)
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
    place = next((p for p in asked.places if os.path.isdir(p)), asked.places[-1])
    env = dict(row.partition(b"=")[::2] for row in asked.env)
    program = os.fsdecode(asked.argv[0])
    mark = -1
    try:
        with processes.marked(holder.lab) as mark:
            pid = processes.start(holder.lab, asked.node, asked.argv, env, place, fds)
    except OSError as e:
        close([mark] if mark >= 0 else [])
        # posix_spawn does not say what it did not find: the command, or the folder to run it in
        raise LabError(f"[{asked.node or LAB}] {program} (in {os.fsdecode(place)}): {e.strerror}") from e
    process = Process(asked.node or LAB, program, pid, Path(os.devnull), time.monotonic())
    holder.waiting[pid] = (line, process, mark)
    return LATER


def end_marked(marks: list[int]) -> Task:
    """Kill what has one of these namespaces, until nothing has: it may be forking while it is looked for.

    The descriptors keep the kernel from giving their numbers to others meanwhile.
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
    return "up" if holder.owner is None else "held"  # by the program that made it, which it ends with


def _look(holder: Holder, node: str) -> dict[str, list[bytes]]:
    """Return what the kernel says of a node's links, addresses and radios, undecoded."""
    here = holder.lab.place(node)
    found = {name: netlink.dump(here.route, kind, bytes(size)) for name, (kind, size) in _TABLES.items()}
    if nl80211.FAMILY in here.families:  # the lab has made a wireless interface here, or looked at one
        sock, family = here.generic(), here.family(nl80211.FAMILY)
        found["wlans"] = netlink.dump(sock, family, nl80211.GET_INTERFACES)
        for index in (w.index for w in map(nl80211.parse_interface, found["wlans"]) if w.station):
            found[f"bss {index}"] = netlink.dump(sock, family, nl80211.get_scan(index))
    return found


def _down(holder: Holder, line: Line) -> Task:
    """End the lab: what is under way ends first, in its own way; of two that ask at once, one waits."""
    for job in [j for j in holder.jobs if j.verb != "down"]:
        cancel(holder, job, "it is being taken down")
    while holder.busy:
        yield 1.0
    with busy(holder, "down"):
        yield from stopping.stop(holder.lab.processes)
        holder.ending = True
