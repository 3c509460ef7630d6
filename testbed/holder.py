"""PID 1 of a sandbox: listens for the command line, resumes what waits, reaps what ended."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed import __version__, netlink, sandbox, timeline
from testbed import lab as labs
from testbed.control import receive, send
from testbed.errors import LabError, TestbedError
from testbed.lab import Lab, Process
from testbed.steps import LAB, Step

Task = Generator[float, None, None]


@dataclass(slots=True)
class Job:
    """A request under way: resumed at `wake` or when a process ends."""

    connection: socket.socket
    task: Task
    wake: float = 0.0


@dataclass(slots=True)
class Holder:
    """The lab and who talks to it; the lab ends with its owner's connection until it is kept."""

    lab: Lab
    owner: socket.socket | None
    about: dict[str, object]
    jobs: list[Job] = field(default_factory=list)
    waiting: dict[int, tuple[socket.socket, Process]] = field(default_factory=dict)
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
        holder = Holder(lab, owner, {"version": __version__, "began": time.time(), **about})
        holder.jobs.append(Job(owner, _up(holder, owner, steps, steps, {}, hosts)))
        _loop(holder, listener)

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
            selector.register(holder.owner, selectors.EVENT_READ)
        while not holder.ending:
            sleep = min((job.wake for job in holder.jobs), default=None)
            ready = selector.select(None if sleep is None else max(0.0, sleep - time.monotonic()))
            stirred = False
            for key, _ in ready:
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    if sandbox.peer(connection).uid == os.geteuid():
                        selector.register(connection, selectors.EVENT_READ)
                    else:
                        connection.close()
                elif key.fileobj == wakeup:
                    numbers = os.read(wakeup, 4096)
                    stirred = True
                    _collect(holder)
                    if signal.SIGTERM in numbers:
                        return  # the host asks this process to end: everything in the sandbox ends with it
                elif isinstance(key.fileobj, socket.socket) and not _request(holder, key.fileobj):
                    selector.unregister(key.fileobj)
                    if not _closed(holder, key.fileobj):
                        return
            _resume(holder, stirred)


def _request(holder: Holder, connection: socket.socket) -> bool:
    """Take one request; False when the other end is gone."""
    try:
        (verb, arguments), fds = receive(connection)
    except EOFError:
        return False
    try:
        answer = (
            _exec(holder, connection, fds, *arguments)
            if verb == "exec"
            else _VERBS[verb](holder, connection, *arguments)
        )
        if isinstance(answer, Generator):
            holder.jobs.append(Job(connection, answer))
        elif answer is not _LATER:
            _answer(connection, "done", answer)
    except TestbedError as e:
        _answer(connection, "error", e)
    except OSError as e:
        _answer(connection, "error", LabError(f"lab {holder.lab.name}: {verb}: {e}"))
    finally:
        for fd in fds:
            os.close(fd)
    return True


def _closed(holder: Holder, connection: socket.socket) -> bool:
    """Forget a connection; False when it owned the lab, which then ends."""
    connection.close()
    holder.jobs = [job for job in holder.jobs if job.connection is not connection]
    for pid, (asker, process) in list(holder.waiting.items()):
        if asker is connection:
            labs.kill(process, signal.SIGKILL)
            del holder.waiting[pid]
    return connection is not holder.owner


def _resume(holder: Holder, stirred: bool) -> None:
    for job in list(holder.jobs):
        if not stirred and job.wake > time.monotonic():
            continue
        try:
            job.wake = time.monotonic() + next(job.task)
            continue
        except StopIteration:
            _answer(job.connection, "done", None)
        except TestbedError as e:
            _answer(job.connection, "error", e)
        except OSError as e:
            _answer(job.connection, "error", LabError(f"lab {holder.lab.name}: {e}"))
        holder.jobs.remove(job)


def _collect(holder: Holder) -> None:
    for pid, status in labs.reap(holder.lab).items():
        if pid in holder.waiting:
            connection, _ = holder.waiting.pop(pid)
            _answer(connection, "done", status)


def _answer(connection: socket.socket, kind: str, value: object) -> None:
    with suppress(OSError):
        send(connection, (kind, value))


def _up(
    holder: Holder,
    connection: socket.socket,
    steps: Sequence[Step],
    whole: Sequence[Step],
    about: Mapping[str, object],
    hosts: str,
) -> Task:
    """Perform steps, first of all or as a change of what stands; afterwards the lab is what `whole` makes."""
    with _busy(holder, "up"):
        if Path("/etc/hosts").exists():  # the sandbox's own, mounted over the host's
            Path("/etc/hosts").write_text(sandbox.LOCALHOST + hosts)
        # What others did in the nodes meanwhile is not known: look before an interface index is chosen.
        for here in holder.lab.nodes.values():
            here.stale = bool(holder.lab.done)
        yield from labs.perform(holder.lab, steps, lambda value: _answer(connection, "progress", value))
        holder.lab.done = list(whole)
        holder.about.update(about)


def _run(holder: Holder, connection: socket.socket, steps: Sequence[Step], folder: str) -> Task:
    with _busy(holder, "run"):
        yield from timeline.play(holder.lab, steps, Path(folder), lambda v: _answer(connection, "progress", v))


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
    connection: socket.socket,
    fds: list[int],
    node: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
) -> object:
    place = cwd if Path(cwd).is_dir() else "/"
    try:
        pid = labs.start(holder.lab, node, argv, env, place, fds)
    except OSError as e:
        raise LabError(f"[{node or LAB}] {argv[0]}: {e.strerror}") from e
    process = Process(node or LAB, argv[0], pid, Path(os.devnull), time.monotonic())
    holder.waiting[pid] = (connection, process)
    return _LATER


def _status(holder: Holder, *_: object) -> dict[str, Any]:
    lab = holder.lab
    return {
        **holder.about,
        "name": lab.name,
        "state": holder.busy or ("up" if holder.owner is None else "starting"),
        "nodes": [n for n in lab.nodes if n != LAB],
        "processes": [
            {"node": p.node, "name": p.name, "pid": p.pid, "status": p.status}
            for p in lab.processes
            if p.step is not None
        ],
    }


def _plan(holder: Holder, *_: object) -> list[Step]:
    return list(holder.lab.done)


def _look(holder: Holder, _: socket.socket, node: str) -> dict[str, list[bytes]]:
    """Return what the kernel says of a node's links and addresses, undecoded."""
    route = holder.lab.place(node).route
    return {name: netlink.dump(route, kind, bytes(size)) for name, (kind, size) in _TABLES.items()}


def _keep(holder: Holder, *_: object) -> None:
    holder.owner = None


def _down(holder: Holder, connection: socket.socket) -> Task:
    holder.jobs = [job for job in holder.jobs if job.connection is connection]  # a run under way ends with the lab
    yield from labs.stop(holder.lab.processes)
    holder.ending = True


_LATER = object()
_TABLES = {
    "links": (18, 16),
    "addresses": (22, 8),
    "qdiscs": (38, 20),
}  # RTM_GETLINK, RTM_GETADDR, RTM_GETQDISC
_VERBS: dict[str, Callable[..., object]] = {
    "change": _up,
    "run": _run,
    "status": _status,
    "plan": _plan,
    "look": _look,
    "keep": _keep,
    "down": _down,
}
