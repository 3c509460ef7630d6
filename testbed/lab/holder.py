"""The holder, PID 1 of a sandbox: it takes requests, resumes waiting jobs, and reaps processes."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

from testbed import __version__
from testbed.errors import LabError, TestbedError
from testbed.lab import answers, asking, furniture, perform, processes, sandbox, sources, stopping
from testbed.lab.answers import NotUnderstoodError
from testbed.lab.jobs import ODD, Holder, Job, advance, cancel, tell
from testbed.lab.listening import Listening
from testbed.lab.messages import LONGEST, Line, close
from testbed.lab.verbs import LATER, NEVER, do, end_marked, up, watch
from testbed.linux import faults
from testbed.steps import Step


def serve(
    name: str, hosts: str, steps: Sequence[Step], about: Mapping[str, object], folder: str = ""
) -> Callable[[socket.socket, socket.socket], None]:
    """Return the main function of a sandbox: make the lab `name` from steps, answer the owner, and serve requests.

    `hosts` is the lab's /etc/hosts, `about` the rest of its status. The lab's files are in `folder`, that of a run's
    results; without it they end with the sandbox.
    """

    def body(listener: socket.socket, owner: socket.socket) -> None:
        lab = perform.begin(name, Path(folder or furniture.FOLDER))
        if folder:
            lab.log = (lab.folder / "commands.log").open("a")
        owner.setblocking(False)
        line = Line(owner)
        holder = Holder(lab, line, {"version": __version__, "began": time.time(), **about})
        holder.jobs.append(Job("up", line, up(holder, line, steps, steps, {}, hosts)))
        holder.jobs.append(Job("watch", None, watch(holder)))
        try:
            _loop(holder, listener)
            stopping.disconnect(lab)
            if not holder.ending:
                os._exit(sandbox.ABRUPT)
        except BaseException as e:
            # A bug: the lab ends, but first answer those who wait.
            told = faults.known(e)
            for waits in [*(job.line for job in holder.jobs), *(asker for asker, _, _ in holder.waiting.values())]:
                tell(waits, answers.failed(told))
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
            ready = selector.select(max(0.0, min(*waits, NEVER)) if waits else None)
            stirred = False
            for key, events in ready:
                if key.fileobj is listener:
                    line, gone = listening.accept()
                    if gone is not None:
                        _closed(holder, listening, gone)
                    # The first request has usually arrived with the connection.
                    if line is not None and not _serve(holder, listening, line, selectors.EVENT_READ):
                        _closed(holder, listening, line)
                elif key.fileobj == wakeup:
                    numbers = os.read(wakeup, 4096)
                    stirred = True
                    _collect(holder)
                    if signal.SIGTERM in numbers:
                        return  # SIGTERM from outside: end with everything in the sandbox
                elif key.data not in listening.lines or _serve(holder, listening, key.data, events):
                    pass  # one that had to go for another, or is well
                elif not _closed(holder, listening, key.data):
                    return
            _resume(holder, stirred)


def _busy_with(holder: Holder, line: Line) -> bool:
    """Return whether a connection waits for a job, or for the rest of an answer."""
    asked = (job.line for job in holder.jobs), (asker for asker, _, _ in holder.waiting.values())
    if line.outbox or line is holder.owner or line in holder.entered:
        return True
    return any(line is other for found in asked for other in found)


def _serve(holder: Holder, listening: Listening, line: Line, events: int) -> bool:
    """Send pending data and take a request; return False if the other end has gone or sent an invalid request."""
    try:
        if events & selectors.EVENT_WRITE:
            line.flush()
        if events & selectors.EVENT_READ and (found := line.receive()) is not None:
            listening.heard(line)
            _request(holder, line, *found)
    except (EOFError, ConnectionError):
        return False
    except LabError as e:
        tell(line, answers.failed(e))
        return False
    return True


def _request(holder: Holder, line: Line, data: bytes, fds: list[int]) -> None:
    verb = "a request"
    try:
        question = asking.decode(holder.lab.name, data)
        verb = type(question).__name__.lower()
        answer = do(holder, line, question, fds)
        if isinstance(answer, Generator):
            holder.jobs.append(Job(verb, line, answer))
        elif answer is not LATER:
            tell(line, answers.done(answer))
    except NotUnderstoodError as e:
        made = sources.started(float(str(holder.about["began"])))
        end = f"the lab was made by testbed {made}; `testbed down {holder.lab.name}` ends it"
        raise NotUnderstoodError(f"{e}; {end}") from e
    except TestbedError as e:
        tell(line, answers.failed(e))
    except OSError as e:
        tell(line, answers.failed(LabError(f"lab {holder.lab.name}: {verb}: {faults.words(e)}")))
    except ODD as e:
        tell(line, answers.failed(faults.known(e)))
    finally:
        close(fds)


def _closed(holder: Holder, listening: Listening, line: Line) -> bool:
    """Forget a connection; return False if it owned the lab, which then ends.

    Its jobs end, too: a command is killed, a run stops the processes that it started. A change and `down` go on, since
    half a change would leave a useless lab.
    """
    listening.drop(line)
    for pid, (asker, process, mark) in list(holder.waiting.items()):
        if asker is line:
            stopping.kill(process, signal.SIGKILL)
            holder.jobs.append(Job("leave", None, end_marked([mark])))
            del holder.waiting[pid]
    if marks := holder.entered.pop(line, None):
        holder.jobs.append(Job("leave", None, end_marked(marks)))
    for job in [j for j in holder.jobs if j.line is line]:
        job.line = None
        if job.verb == "run":
            cancel(holder, job, "the program that asked for the run is gone")
    return line is not holder.owner


def _resume(holder: Holder, stirred: bool) -> None:
    for job in list(holder.jobs):
        if (stirred or job.wake <= time.monotonic()) and job in holder.jobs:
            advance(holder, job, lambda task: next(task))


def _collect(holder: Holder) -> None:
    for pid, status in processes.reap(holder.lab).items():
        if pid in holder.waiting:
            line, _, mark = holder.waiting.pop(pid)
            close([mark])
            tell(line, answers.done(status))
