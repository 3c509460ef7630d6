"""PID 1 of a sandbox: listens for the command line, resumes what waits, reaps what ended."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec import Struct, field, to_builtins

from testbed import __version__, bounds, netlink, sandbox, timeline
from testbed import lab as labs
from testbed.changes import standing
from testbed.drivers import nl80211
from testbed.errors import LabError, TestbedError
from testbed.lab import Lab, Process
from testbed.messages import Line
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
    waiting: dict[int, tuple[Line, Process]] = field(default_factory=dict)
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
        lab = labs.begin(name, Path(folder or sandbox.FOLDER))
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
        except BaseException:
            # A bug: the lab ends with it, but whoever waits for an answer is told.
            told = LabError(f"lab {name}: a bug in testbed: {traceback.format_exc()}")
            for waits in [*(job.line for job in holder.jobs), *(asker for asker, _ in holder.waiting.values())]:
                _answer(waits, "error", told)
            raise

    return body


def _loop(holder: Holder, listener: socket.socket) -> None:
    wakeup, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(wakeup, selectors.EVENT_READ)
        if holder.owner is not None:
            selector.register(holder.owner.connection, selectors.EVENT_READ, holder.owner)
        while not holder.ending:
            sleep = min((job.wake for job in holder.jobs), default=None)
            ready = selector.select(None if sleep is None else max(0.0, sleep - time.monotonic()))
            stirred = False
            for key, events in ready:
                if key.fileobj is listener:
                    with suppress(OSError):  # no descriptor is free: the lab must not end for that
                        connection, _ = listener.accept()
                        connection.setblocking(False)
                        line = Line(connection)
                        # What it asks for has mostly come with it.
                        if sandbox.peer(connection).uid == os.geteuid() and _serve(holder, line, selectors.EVENT_READ):
                            selector.register(connection, selectors.EVENT_READ, line)
                        else:
                            line.close()
                elif key.fileobj == wakeup:
                    numbers = os.read(wakeup, 4096)
                    stirred = True
                    _collect(holder)
                    if signal.SIGTERM in numbers:
                        return  # the host asks this process to end: everything in the sandbox ends with it
                elif not _serve(holder, key.data, events):
                    selector.unregister(key.fileobj)
                    if not _closed(holder, key.data):
                        return
            _resume(holder, stirred)
            for key in [k for k in selector.get_map().values() if isinstance(k.data, Line)]:
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if key.data.outbox else 0)
                if key.events != wanted:
                    selector.modify(key.fileobj, wanted, key.data)


def _serve(holder: Holder, line: Line, events: int) -> bool:
    """Send what waits and take a request; False when the other end is gone."""
    try:
        if events & selectors.EVENT_WRITE:
            line.flush()
        if events & selectors.EVENT_READ and (found := line.receive()) is not None:
            _request(holder, line, *found)
    except (EOFError, ConnectionError):
        return False
    except LabError as e:
        _answer(line, "error", e)
    return True


def _request(holder: Holder, line: Line, message: object, fds: list[int]) -> None:
    verb = "a request"
    try:
        match message:
            case (version, str(verb), tuple(arguments)) if verb in _VERBS and (version == __version__ or not arguments):
                if verb == "exec":
                    answer = _exec(holder, line, fds, *arguments)
                else:
                    answer = _VERBS[verb](holder, line, *arguments)
            case _:
                raise LabError(
                    f"lab {holder.lab.name}: it was made by testbed {__version__}, which does not understand this; "
                    f"`testbed down {holder.lab.name}` ends it"
                )
        if isinstance(answer, Generator):
            holder.jobs.append(Job(verb, line, answer))
        elif answer is not _LATER:
            _answer(line, "done", answer)
    except TestbedError as e:
        _answer(line, "error", e)
    except OSError as e:
        _answer(line, "error", LabError(f"lab {holder.lab.name}: {verb}: {e}"))
    finally:
        for fd in fds:
            os.close(fd)


def _closed(holder: Holder, line: Line) -> bool:
    """Forget a connection; False when it owned the lab, which then ends.

    What it asked for ends, each in its own way: a command is killed, a run stops what it started, while a change
    and `down` go on, for a lab that is half changed is of no use to anybody.
    """
    line.close()
    for pid, (asker, process) in list(holder.waiting.items()):
        if asker is line:
            labs.kill(process, signal.SIGKILL)
            del holder.waiting[pid]
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
        _answer(job.line, "done", None)
    except TestbedError as e:
        _answer(job.line, "error", e)
    except OSError as e:
        _answer(job.line, "error", LabError(f"lab {holder.lab.name}: {job.verb}: {e}"))
    holder.jobs.remove(job)
    for other in holder.jobs:
        other.wake = 0.0  # one may wait for the end of this


def _collect(holder: Holder) -> None:
    for pid, status in labs.reap(holder.lab).items():
        if pid in holder.waiting:
            line, _ = holder.waiting.pop(pid)
            _answer(line, "done", status)


def _answer(line: Line | None, kind: str, value: object) -> None:
    """Send an answer, or progress, which is dropped for one who does not read it."""
    if line is not None and not (kind == "progress" and line.outbox):
        with suppress(OSError):  # it is gone: the loop will see that
            line.send((kind, value))


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
        sandbox.write_hosts(hosts)
        # What others did in the nodes meanwhile is not known: look before an interface index is chosen.
        for here in holder.lab.nodes.values():
            here.stale = bool(holder.lab.done)
        try:
            yield from labs.perform(holder.lab, steps, lambda value: _answer(line, "progress", value))
        except TestbedError:
            holder.lab.done = standing(holder.lab.done)  # a change that failed half-way: the next begins here
            raise
        holder.lab.done = list(whole)
        holder.about.update(about)


def _run(holder: Holder, line: Line, steps: Sequence[Step], folder: str, seconds: float) -> Task:
    with _busy(holder, "run"):
        yield from timeline.play(holder.lab, steps, Path(folder), seconds, lambda v: _answer(line, "progress", v))


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
    for waits in [*(job.line for job in holder.jobs), *(asker for asker, _ in holder.waiting.values())]:
        _answer(waits, "error", told)
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


def _exec(
    holder: Holder,
    line: Line,
    fds: list[int],
    node: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    places: Sequence[str],
) -> object:
    place = next((p for p in places if os.path.isdir(p)), places[-1])
    try:
        pid = labs.start(holder.lab, node, argv, env, place, fds)
    except OSError as e:
        # posix_spawn does not say what it did not find: the command, or the folder to run it in
        raise LabError(f"[{node or LAB}] {argv[0]} (in {place}): {e.strerror}") from e
    process = Process(node or LAB, argv[0], pid, Path(os.devnull), time.monotonic())
    holder.waiting[pid] = (line, process)
    return _LATER


def _status(holder: Holder, *_: object) -> dict[str, Any]:
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


def _plan(holder: Holder, *_: object) -> list[Step]:
    return list(holder.lab.done)


def _look(holder: Holder, _: socket.socket, node: str) -> dict[str, list[bytes]]:
    """Return what the kernel says of a node's links, addresses and radios, undecoded."""
    here = holder.lab.place(node)
    found = {name: netlink.dump(here.route, kind, bytes(size)) for name, (kind, size) in _TABLES.items()}
    if nl80211.FAMILY in here.families:  # the lab has made a wireless interface here, or looked at one
        sock, family = here.generic(), here.family(nl80211.FAMILY)
        found["wlans"] = netlink.dump(sock, family, nl80211.GET_INTERFACES)
        for index in (w.index for w in map(nl80211.parse_interface, found["wlans"]) if w.station):
            found[f"bss {index}"] = netlink.dump(sock, family, nl80211.get_scan(index))
    return found


def _keep(holder: Holder, *_: object) -> None:
    holder.owner = None


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
_TABLES = {
    "links": (18, 16),
    "addresses": (22, 8),
    "qdiscs": (38, 20),
}  # RTM_GETLINK, RTM_GETADDR, RTM_GETQDISC
_VERBS: dict[str, Callable[..., object]] = {
    "exec": _exec,
    "change": _up,
    "run": _run,
    "status": _status,
    "plan": _plan,
    "look": _look,
    "keep": _keep,
    "down": _down,
}
