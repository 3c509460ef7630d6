"""The processes of a lab: PID 1 of the sandbox starts them in their nodes, and reaps them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from testbed.errors import LabError
from testbed.lab import furniture
from testbed.lab.forked import fork
from testbed.lab.namespace import Namespace
from testbed.lab.state import Lab, Process
from testbed.linux import calls as linux
from testbed.linux import netlink
from testbed.steps import LAB, Spawn

# Signals that this process or Python ignores; a command would inherit that.
_DEFAULT = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGPIPE,
    signal.SIGCHLD,
    signal.SIGXFSZ,
)


def spawn(lab: Lab, step: Spawn) -> Process:
    """Start a long-running process of the plan."""
    folder = lab.folder / step.node if step.node != LAB else lab.folder
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{step.name}.log"
    out = lab.folder / step.stdout if step.stdout else log
    files = [out, log] if step.stdout else [log]
    fds = [os.open("/dev/null", os.O_RDONLY)]
    fds += [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644) for path in files]
    try:
        streams = [fds[0], fds[1], fds[-1]]
        if step.forked:
            with _inside(lab, step.node):
                pid = fork(step.argv[0], step.argv[1:], str(lab.folder), streams)
        else:
            pid = start(lab, step.node, step.argv, lab.env, str(lab.folder), streams)
    except OSError as e:
        raise LabError(f"{step}: {e.strerror}: {step.argv[0]}") from e
    finally:
        for fd in fds:
            os.close(fd)
    if step.pinned:
        with suppress(ProcessLookupError):  # it has ended already
            os.sched_setaffinity(pid, {min(os.sched_getaffinity(0))})
    process = Process(step.node, step.name, pid, log, time.monotonic(), step)
    lab.processes.append(process)
    return process


def start(
    lab: Lab,
    node: str,
    argv: tuple[str, ...] | tuple[bytes, ...],
    env: Mapping[str, str] | Mapping[bytes, bytes],
    cwd: str | bytes,
    fds: Sequence[int],
) -> int:
    """Start a command in a node with these standard streams, in its own process group."""
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
    # setns around posix_spawn costs 30 us; a preexec_fn would cost 2 ms, because it needs fork instead of vfork.
    with _inside(lab, node or LAB):
        os.chdir(cwd)
        return os.posix_spawnp(
            argv[0],
            argv,
            env,
            file_actions=actions,
            setpgroup=0,
            setsigmask=(),
            setsigdef=_DEFAULT,
        )


def full() -> bool:
    """Return whether the lab has as many processes as its bound allows, so that none can be started."""
    try:
        os.posix_spawn("/", ("/",), {})  # not a program: everything but its execution succeeds
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def marked(lab: Lab) -> Iterator[int]:
    """Enter a new UTS namespace, which identifies everything started in it; yield a descriptor of it."""
    linux.unshare(linux.CLONE_NEWUTS)
    try:
        yield os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        linux.setns(lab.host, linux.CLONE_NEWUTS)


@contextmanager
def _inside(lab: Lab, node: str) -> Iterator[None]:
    space = lab.space(node)
    with netlink.inside(space.fd, lab.home), _own_sys(space, lab.space(LAB)):
        yield


@contextmanager
def _own_sys(space: Namespace, home: Namespace) -> Iterator[None]:
    """Enter the node's mount namespace, made for its first process, where /sys/class/net is the node's."""
    try:
        if space.mounts >= 0:
            linux.setns(space.mounts, linux.CLONE_NEWNS)
        else:
            linux.unshare(linux.CLONE_NEWNS)
            furniture.settle()
            space.mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        yield
    finally:
        linux.setns(home.mounts, linux.CLONE_NEWNS)  # which also leads back to the root directory


def reap(lab: Lab) -> dict[int, int]:
    """Reap all children that have ended, including orphans, since this is PID 1; return {PID: exit status}."""
    ended: dict[int, int] = {}
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    for process in lab.processes:
        if process.status is None and process.pid in ended:
            process.status, process.ended = ended[process.pid], time.monotonic()
    return ended


def describe(status: int | None) -> str:
    """Describe how a process ended."""
    if status is None:
        return "nothing yet"
    return f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"


def tail(log: Path, lines: int = 12) -> str:
    """Return the end of a log, indented, for an error message."""
    with suppress(OSError):
        rows = log.read_text(errors="replace").splitlines()[-lines:]
        return "".join(f"\n    {log.name}: {row}" for row in rows)
    return ""
