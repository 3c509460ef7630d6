"""PID 1 of a sandbox: listens for the command line, resumes what waits, reaps what ended."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec import Struct, field, to_builtins

from testbed import __version__, faults
from testbed.drivers import nl80211
from testbed.errors import LabError, TestbedError
from testbed.lab import answers, asking, bounds, furniture, sandbox, timeline, travel
from testbed.lab import perform as labs
from testbed.lab.answers import Answer, Progress
from testbed.lab.asking import Change, Down, Enter, Exec, Keep, Leave, Look, Plan, Question, Run, Status
from testbed.lab.changes import standing
from testbed.lab.listening import Listening
from testbed.lab.messages import LONGEST, Line, close
from testbed.lab.perform import Lab, Process
from testbed.linux import netlink, uapi
from testbed.steps import LAB, Step

Task = Generator[float, None, None]


class Job(Struct, eq=False):
    """A request under way: resumed at `wake` or when a process ends; `line` is None when nobody waits for it."""

    verb: str
    line: Line | None
    task: Task
    wake: float = 0.0
    cancelled: bool = False


class Holder(Struct):
    """The lab and who talks to it; the lab ends with its owner's connection until it is kept."""

    lab: Lab
    owner: Line | None
    about: dict[str, object]
    jobs: list[Job] = field(default_factory=list)
    waiting: dict[int, tuple[Line, Process, int]] = field(default_factory=dict)
    entered: dict[Line, list[int]] = field(default_factory=dict)  # the namespaces of commands run from outside
    busy: str = ""
    ending: bool = False


def serve(
    name: str, hosts: str, steps: Sequence[Step], about: Mapping[str, object], folder: str = ""
) -> Callable[[socket.socket, socket.socket], None]:
    """Return the body of a sandbox: it makes the lab `name` from steps, tells the owner, and listens.

    `hosts` is its /etc/hosts, `about` what `status` tells of it; `folder` is that of a run's results, else the
    lab's files live and die with the sandbox.
    """

    def body(listener: socket.socket, owner: socket.socket) -> None:
        lab = labs.begin(name, Path(folder or furniture.FOLDER))
        if folder:
            lab.log = (lab.folder / "commands.log").open("a")
        owner.setblocking(False)
        line = Line(owner)
        holder = Holder(lab, line, {"version": __version__, "began": time.time(), **about})
        holder.jobs.append(Job("up", line, _up(holder, line, steps, steps, {}, hosts)))
        holder.jobs.append(Job("watch", None, _watch(holder)))
        try:
            _loop(holder, listener)
            labs.disconnect(lab)
            if not holder.ending:
                os._exit(sandbox.ABRUPT)
        except BaseException as e:
            # A bug: the lab ends with it, but whoever waits for an answer is told.
            told = faults.known(e)
            for waits in [*(job.line for job in holder.jobs), *(asker for asker, _, _ in holder.waiting.values())]:
                _answer(waits, answers.failed(told))
            raise

    return body


def _loop(holder: Holder, listener: socket.socket) -> None:
    wakeup, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    with selectors.DefaultSelector() as selector:
        listening = Listening(selector, listener, LONGEST, lambda line: _busy_with(holder, line))
        selector.register(wakeup, selectors.EVENT_READ)
        if holder.owner is not None:
            listening.add(holder.owner)
        while not holder.ending:
            waits = [job.wake - time.monotonic() for job in holder.jobs]
            if (left := listening.settle()) is not None:
                waits.append(left)
            ready = selector.select(max(0.0, min(*waits, _NEVER)) if waits else None)
            stirred = False
            for key, events in ready:
                if key.fileobj is listener:
                    line, gone = listening.accept()
                    if gone is not None:
                        _closed(holder, listening, gone)
                    # What it asks for has mostly come with it.
                    if line is not None and not _serve(holder, listening, line, selectors.EVENT_READ):
                        _closed(holder, listening, line)
                elif key.fileobj == wakeup:
                    numbers = os.read(wakeup, 4096)
                    stirred = True
                    _collect(holder)
                    if signal.SIGTERM in numbers:
                        return  # the host asks this process to end: everything in the sandbox ends with it
                elif key.data not in listening.lines or _serve(holder, listening, key.data, events):
                    pass  # one that had to go for another, or is well
                elif not _closed(holder, listening, key.data):
                    return
            _resume(holder, stirred)


def _busy_with(holder: Holder, line: Line) -> bool:
    """Say whether somebody waits at a connection for what is under way, or for the end of an answer."""
    asked = (job.line for job in holder.jobs), (asker for asker, _, _ in holder.waiting.values())
    if line.outbox or line is holder.owner or line in holder.entered:
        return True
    return any(line is other for found in asked for other in found)


def _serve(holder: Holder, listening: Listening, line: Line, events: int) -> bool:
    """Send what waits and take a request; False when the other end is gone, or not understood."""
    try:
        if events & selectors.EVENT_WRITE:
            line.flush()
        if events & selectors.EVENT_READ and (found := line.receive()) is not None:
            listening.heard(line)
            _request(holder, line, *found)
    except (EOFError, ConnectionError):
        return False
    except LabError as e:
        _answer(line, answers.failed(e))
        return False
    return True


def _request(holder: Holder, line: Line, data: bytes, fds: list[int]) -> None:
    verb = "a request"
    try:
        question = asking.decode(holder.lab.name, data)
        verb = type(question).__name__.lower()
        answer = _do(holder, line, question, fds)
        if isinstance(answer, Generator):
            holder.jobs.append(Job(verb, line, answer))
        elif answer is not _LATER:
            _answer(line, answers.done(answer))
    except asking.NotUnderstoodError:
        raise
    except TestbedError as e:
        _answer(line, answers.failed(e))
    except OSError as e:
        _answer(line, answers.failed(LabError(f"lab {holder.lab.name}: {verb}: {faults.words(e)}")))
    except _ODD as e:
        _answer(line, answers.failed(faults.known(e)))
    finally:
        close(fds)


def _closed(holder: Holder, listening: Listening, line: Line) -> bool:
    """Forget a connection; False when it owned the lab, which then ends.

    What it asked for ends, each in its own way: a command is killed, a run stops what it started, while a change
    and `down` go on, for a lab that is half changed is of no use to anybody.
    """
    listening.drop(line)
    for pid, (asker, process, mark) in list(holder.waiting.items()):
        if asker is line:
            labs.kill(process, signal.SIGKILL)
            holder.jobs.append(Job("leave", None, _end_marked([mark])))
            del holder.waiting[pid]
    if marks := holder.entered.pop(line, None):
        holder.jobs.append(Job("leave", None, _end_marked(marks)))
    for job in [j for j in holder.jobs if j.line is line]:
        job.line = None
        if job.verb == "run":
            _cancel(holder, job, "the program that asked for the run is gone")
    return line is not holder.owner


def _resume(holder: Holder, stirred: bool) -> None:
    for job in list(holder.jobs):
        if (stirred or job.wake <= time.monotonic()) and job in holder.jobs:
            _advance(holder, job, lambda task: next(task))


def _cancel(holder: Holder, job: Job, why: str) -> None:
    """Let a job end before its time: it goes on with what it does at its end, which may take a while."""
    if not job.cancelled:
        job.cancelled = True
        _advance(holder, job, lambda task: task.throw(LabError(f"lab {holder.lab.name}: {why}")))


def _advance(holder: Holder, job: Job, step: Callable[[Task], float]) -> None:
    try:
        job.wake = time.monotonic() + step(job.task)
        return
    except StopIteration:
        _answer(job.line, answers.done())
    except TestbedError as e:
        _answer(job.line, answers.failed(e))
    except OSError as e:
        _answer(job.line, answers.failed(LabError(f"lab {holder.lab.name}: {job.verb}: {faults.words(e)}")))
    except _ODD as e:
        _answer(job.line, answers.failed(faults.known(e)))
    holder.jobs.remove(job)
    for other in holder.jobs:
        other.wake = 0.0  # one may wait for the end of this


def _collect(holder: Holder) -> None:
    for pid, status in labs.reap(holder.lab).items():
        if pid in holder.waiting:
            line, _, mark = holder.waiting.pop(pid)
            close([mark])
            _answer(line, answers.done(status))


def _answer(line: Line | None, answer: Answer) -> None:
    """Send an answer, or progress, which is dropped for one who does not read it."""
    if line is not None and not (isinstance(answer, Progress) and line.outbox):
        with suppress(OSError):  # it is gone: the loop will see that
            line.send(answers.encode(answer))


def _up(
    holder: Holder,
    line: Line,
    steps: Sequence[Step],
    whole: Sequence[Step],
    about: Mapping[str, object],
    hosts: str,
) -> Task:
    """Perform steps, first of all or as a change of what stands; afterwards the lab is what `whole` makes."""
    with _busy(holder, "up"):
        furniture.write_hosts(hosts)
        # What others did in the nodes meanwhile is not known: look before an interface index is chosen.
        for here in holder.lab.nodes.values():
            here.stale = bool(holder.lab.done)
        try:
            yield from labs.perform(holder.lab, steps, lambda value: _answer(line, Progress(value)))
        except TestbedError:
            holder.lab.done = standing(holder.lab.done)  # a change that failed half-way: the next begins here
            raise
        holder.lab.done = list(whole)
        holder.about.update(about)


def _run(holder: Holder, line: Line, steps: Sequence[Step], folder: str, seconds: float) -> Task:
    with _busy(holder, "run"):
        yield from timeline.play(holder.lab, steps, Path(folder), seconds, lambda v: _answer(line, Progress(v)))


def _watch(holder: Holder) -> Task:
    """End a lab that can start no process any more: what it measures is worth nothing, and it burns processors."""
    due, found = 0.0, 0
    while True:
        if "pids" not in holder.lab.held:
            yield _NEVER
        elif (left := due - time.monotonic()) > 0:
            yield left
        else:
            found = found + 1 if labs.full() else max(0, found - 1)
            if found == _FULL:
                break
            due = time.monotonic() + (_SOON if found else _LOOK)
            yield _SOON if found else _LOOK
    told = LabError(
        f"lab {holder.lab.name}: it was ended, for it had as many processes as its bound allows "
        f"(resources.pids: {holder.lab.held['pids'].bound}) and could start no other"
    )
    for waits in [*(job.line for job in holder.jobs), *(asker for asker, _, _ in holder.waiting.values())]:
        _answer(waits, answers.failed(told))
    holder.ending = True


@contextmanager
def _busy(holder: Holder, what: str) -> Iterator[None]:
    if holder.busy:
        raise LabError(f"lab {holder.lab.name}: it is busy with `{holder.busy}`; try again when that is over")
    holder.busy = what
    try:
        yield
    finally:
        holder.busy = ""


def _do(holder: Holder, line: Line, question: Question, fds: list[int]) -> object:
    """Do what is asked and return the answer: a task that will have it, or _LATER when a process has it."""
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
            return _end_marked(holder.entered.pop(line, []))
        case Change(perform, whole, about, hosts):
            made = asking.steps(lab.name, whole)
            return _up(holder, line, asking.steps(lab.name, perform), made, about, hosts)
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
        with labs.marked(holder.lab) as mark:
            pid = labs.start(holder.lab, asked.node, asked.argv, env, place, fds)
    except OSError as e:
        close([mark] if mark >= 0 else [])
        # posix_spawn does not say what it did not find: the command, or the folder to run it in
        raise LabError(f"[{asked.node or LAB}] {program} (in {os.fsdecode(place)}): {e.strerror}") from e
    process = Process(asked.node or LAB, program, pid, Path(os.devnull), time.monotonic())
    holder.waiting[pid] = (line, process, mark)
    return _LATER


def _end_marked(marks: list[int]) -> Task:
    """Kill what has one of these namespaces, until nothing has: it may be forking while it is looked for.

    The descriptors keep the kernel from giving their numbers to others meanwhile.
    """
    wanted = {(found.st_dev, found.st_ino) for found in map(os.fstat, marks)}
    try:
        deadline = time.monotonic() + _PATIENCE
        while labs.kill_those_in(wanted) and time.monotonic() < deadline:
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
        _cancel(holder, job, "it is being taken down")
    while holder.busy:
        yield 1.0
    with _busy(holder, "down"):
        yield from labs.stop(holder.lab.processes)
        holder.ending = True


_LATER = object()
_NEVER = 3600.0  # s
# How often (s) is looked whether a lab is full, how often once it was, and how often in a row that ends it.
_LOOK, _SOON, _FULL = 0.3, 0.1, 4
_STREAMS, _MARKS = 3, 2  # descriptors that come with `exec` and `enter`
_PATIENCE = 5.0  # s for processes that were killed to end
# What code raises for values of the right type that nobody foresaw: the request fails then, and not the lab.
_ODD = (ValueError, TypeError, LookupError, OverflowError, struct.error)
_TABLES = {
    "links": (uapi.RTM_GETLINK, uapi.IFINFOMSG.size),
    "addresses": (uapi.RTM_GETADDR, uapi.IFADDRMSG.size),
    "qdiscs": (uapi.RTM_GETQDISC, uapi.TCMSG.size),
}
