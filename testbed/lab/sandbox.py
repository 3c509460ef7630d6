"""The private namespaces of a lab and the holder process, their PID 1: when it ends, the kernel cleans up.

A lab's name is an abstract unix socket of its user, bound before anything else: the kernel keeps it unique and removes
it with the holder, so that no PID file, lock or socket file can be left behind.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from fcntl import F_DUPFD_CLOEXEC, fcntl
from io import FileIO
from pathlib import Path
from typing import NoReturn, TypeVar

from testbed.errors import LabError, TestbedError, Unsupported
from testbed.lab.ending import PATIENCE, await_end
from testbed.lab.furniture import SYSTEM_PATH, furnish
from testbed.lab.messages import Line, send
from testbed.lab.reach import FAMILY, WHAT, address, foreign, owner
from testbed.linux import calls as linux
from testbed.linux import faults
from testbed.linux.signals import signals_wait

T = TypeVar("T")
ABRUPT = 1  # the exit status of PID 1 after an end that was not orderly


def launch(
    name: str,
    serve: Callable[[socket.socket, socket.socket], None],
    use: Callable[[socket.socket, FileIO], T],
    family: str = FAMILY,
    spaces: int = linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWPID | linux.CLONE_NEWUTS,
    after: Callable[[bool], None] | None = None,
    keep: Sequence[int] = (),
    inside: Sequence[int] = (),
) -> T:
    """Make a sandbox whose PID 1 runs `serve(listener, owner)`; return the result of `use`.

    PID 1 inherits the descriptors `inside`, with the same numbers, and no others. `use` gets the owner's end of the
    connection, with whose end the sandbox ends unless `serve` decides otherwise, and a pidfd. A process outside the
    sandbox, with the descriptors `keep`, waits for its end and then calls `after`, with whether PID 1 ended with
    status 0. Raise LabError if a lab of that name exists, Unsupported if the kernel allows no namespaces. An error of
    `use`, or of a signal handler at any moment, is raised after nothing of the sandbox is left.
    """
    ours, theirs = socket.socketpair()
    line, child, life = Line(ours), 0, None
    # No `with` in place of `use`: a handler's exception can come between what a generator yields and the block.
    try:
        with signals_wait():  # no handler of ours runs in the child
            if (child := os.fork()) == 0:
                _never_return(theirs, lambda: _first(name, theirs, serve, family, spaces, after, keep, inside))
        theirs.close()
        _reap(child)
        first = select.poll()
        first.register(ours, select.POLLIN)
        first.poll()
        with signals_wait():  # take over the received descriptors before anything is raised
            life = _born(name, line)
        return use(ours, life)
    except BaseException:
        theirs.close()
        with suppress(OSError):  # it is gone already
            ours.shutdown(socket.SHUT_WR)  # a forked process may have a copy
        if child:
            _reap(child)
        # With this error only the end of the sandbox matters, and PATIENCE bounds that.
        with suppress(TestbedError, OSError):
            if child and life is None:
                ours.settimeout(PATIENCE)
                life = _born(name, line)
            if life is not None and not life.closed:
                await_end(name, life)
        ours.close()
        raise


def _born(name: str, line: Line) -> FileIO:
    """Return the pidfd that PID 1 sends in its first message, or raise the error that it sends instead."""
    try:
        found = line.receive()
    except EOFError as e:
        raise LabError(f"lab {name}: its holder process ended while it was being made (killed?)") from e
    assert found is not None, "the socket does not block"
    data, fds = found
    from testbed.lab import answers  # not at the top: `testbed exec` launches nothing, and must not wait for msgspec

    came = answers.decode(data)
    if isinstance(came, answers.Failed):
        answers.throw(came)
    if isinstance(came, answers.Born) and fds:
        return FileIO(fds[0])
    raise LabError(f"lab {name}: its holder process did not say that it is there")


def _reap(child: int) -> None:
    with suppress(ChildProcessError):  # already reaped, for example because the caller ignores SIGCHLD
        os.waitpid(child, 0)


def _never_return(owner: socket.socket, body: Callable[[], None]) -> NoReturn:
    """Run a forked child's function and exit: whatever happens, it must not go on with its parent's code."""
    gc.freeze()  # the parent's garbage must never be collected here: that would close our descriptors
    try:
        body()
    except (OSError, LabError, Unsupported) as e:
        _tell(owner, e if not isinstance(e, OSError) else LabError(f"the sandbox could not be made: {faults.words(e)}"))
    finally:
        if (fault := sys.exc_info()[1]) is not None:
            _tell(owner, faults.known(fault))
        # The kernel cleans up: skip Python's shutdown and the caller's atexit handlers.
        os._exit(0)


def _tell(owner: socket.socket, error: TestbedError) -> None:
    from testbed.lab import answers

    with suppress(OSError):
        send(owner, answers.encode(answers.failed(error)))


def _first(
    name: str,
    owner: socket.socket,
    serve: Callable[[socket.socket, socket.socket], None],
    family: str,
    spaces: int,
    after: Callable[[bool], None] | None,
    keep: Sequence[int],
    inside: Sequence[int],
) -> None:
    """Make the sandbox from a process without its caller's resources; stay if there is work after its end."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a caller may ignore it: see `program.perform`
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if after is not None and os.fork():
        return  # the launcher waits for this process, and a child after unshare(2) would be in the sandbox
    status = 0
    try:
        first = _unshared(name, owner, serve, family, spaces, inside)
        if after is not None:
            linux.prctl(linux.PR_SET_NAME, b"testbed-after")
            os.chdir("/")
            # This process must not keep the name or the caller's files open.
            for low, high in zip([-1, *sorted(keep)], [*sorted(keep), 1 << 20], strict=True):
                os.closerange(low + 1, high)
            status = os.waitpid(first, 0)[1]
    finally:
        if after is not None:
            after(status == 0)


def _unshared(
    name: str,
    owner: socket.socket,
    serve: Callable[[socket.socket, socket.socket], None],
    family: str,
    spaces: int,
    inside: Sequence[int],
) -> int:
    """Bind the name, unshare the host's namespaces, fork PID 1 and return its PID."""
    listener = _take(name, family)
    uid, gid = os.geteuid(), os.getegid()
    # Path lookups of `serve` must not depend on the caller's PATH: that of users in Debian lacks sbin.
    os.environ["PATH"] = ":".join(filter(None, (os.environ.get("PATH"), SYSTEM_PATH)))
    try:
        linux.unshare(spaces if uid == 0 else spaces | linux.CLONE_NEWUSER)
    except OSError as e:
        raise Unsupported(why_none(e, uid)) from e
    if uid != 0:
        # Without newuidmap(1), a process may map its own user and group only (user_namespaces(7)).
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    if (first := os.fork()) == 0:
        _never_return(owner, lambda: _second(name, listener, owner, serve, inside))
    return first


def _second(
    name: str,
    listener: socket.socket,
    owner: socket.socket,
    serve: Callable[[socket.socket, socket.socket], None],
    inside: Sequence[int],
) -> None:
    """Run as PID 1: close the caller's files, set up the mount namespace, and serve until the lab ends."""
    # Above the standard streams: a caller without these may have used their numbers.
    listener, owner = (socket.socket(fileno=fcntl(s, F_DUPFD_CLOEXEC, 3)) for s in (listener, owner))
    keep = sorted({listener.fileno(), owner.fileno(), *inside})
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for low, high in zip([2, *keep], [*keep, 1 << 20], strict=True):
        os.closerange(low + 1, high)
    os.chdir("/")  # the caller's folder may be removed
    own = os.pidfd_open(os.getpid())
    from testbed.lab import answers

    send(owner, answers.encode(answers.Born()), [own])
    os.close(own)
    linux.prctl(linux.PR_SET_NAME, f"testbed:{name}"[:15].encode())
    linux.sethostname(name)
    furnish()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    listener.listen(64)  # not earlier: SO_PEERCRED returns the process that called listen
    serve(listener, owner)


def _take(name: str, family: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(address(name, family))
    except OSError as e:
        if e.errno != errno.EADDRINUSE:
            raise
        if (uid := owner(name, family)) not in (None, os.geteuid()):
            raise LabError(foreign(WHAT.get(family, "lab"), name, uid)) from e
        raise LabError(
            f"lab {name}: there is one of this name already, or another `testbed` is making it at this moment; "
            f"`testbed status {name}` looks at it, `testbed down {name}` ends it, `--name` takes another name"
        ) from e
    return listener


_FORBIDDING = (
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "an AppArmor profile that allows userns"),
)


def why_none(error: OSError, uid: int) -> str:
    """Return why this process may not make namespaces, and what helps."""
    rows = []
    for path, bad, cure in _FORBIDDING if uid else ():
        with suppress(OSError):
            if Path(path).read_text().strip() == bad:
                rows.append(f"{path} is {bad}: {cure}")
    if error.errno == errno.ENOSPC and not rows:
        rows.append("as many as /proc/sys/user/max_*_namespaces allows are there")
    if uid == 0:
        why = "; ".join(rows) or "a container needs --privileged or CAP_SYS_ADMIN"
        return f"this process may not make namespaces: {error} ({why})"
    why = "; ".join(rows) or "the kernel gave no reason"
    return f"feature userns: this user may not make user namespaces: {error} ({why}; or run as root)"
