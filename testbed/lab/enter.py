"""`testbed exec` and `shell`: run a command on this terminal in a node of a lab.

The command is our child, so that signals, job control and the terminal work as for any command. It gets its own mount
and UTS namespaces, by which the holder identifies everything that it starts, and ends that with this process, however
this ends. For the sake of a fast start, this only imports parts of the standard library.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from testbed import __version__
from testbed.errors import LabError, TestbedError
from testbed.lab import asker, furniture, reach
from testbed.lab.messages import receive, send
from testbed.linux import calls as linux
from testbed.linux import cgroups, unix

_LEAVING = 3.0  # s for the end of a command's remaining processes
_MARKS = ("uts", "mnt")


def enter(lab: str, node: str, argv: tuple[str, ...]) -> int:
    """Run a command in a node of a lab on this machine, on this terminal; return its exit status."""
    with reach.call(lab) as connection:
        connection.settimeout(reach.ANSWERS)
        holder, life = reach.holder(lab, connection)
        cwd = "/"
        with suppress(FileNotFoundError):  # a folder that was removed
            cwd = os.getcwd()
        own = os.open("/proc/self", os.O_PATH | os.O_CLOEXEC)  # the lab's /proc has no place for us
        groups = _inside(lab, node, holder, life.fileno(), connection)
        marks = [os.open(f"ns/{kind}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=own) for kind in _MARKS]
        # Before the command starts: if we are killed from now on, the holder knows what to end.
        _ask(lab, connection, {"verb": "enter", "node": node}, marks)
        with suppress(OSError):
            os.chdir(cwd)
        status = _run(argv, groups)
        # End the command's remaining processes; a holder that cannot do so now does it when this connection closes.
        with suppress(TestbedError, OSError):
            connection.settimeout(_LEAVING)
            _ask(lab, connection, {"verb": "leave"})
    return status


def end_with_parent() -> None:
    """Make the kernel send SIGTERM to this process when the one that started it ends."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:
        raise SystemExit(128 + signal.SIGTERM)  # it ended before that


def _ask(lab: str, connection: socket.socket, question: dict[str, object], fds: Sequence[int] = ()) -> Any:
    """Send a request (testbed.lab.asking); return the value of the holder's answer (testbed.lab.answers)."""
    try:
        send(connection, json.dumps({"version": __version__, **question}).encode(), fds)
        answer = json.loads(receive(connection)[0])
    except TimeoutError as e:
        raise reach.SilentError(reach.silent(lab, unix.peer(connection).pid)) from e
    except (EOFError, ConnectionError) as e:
        raise LabError(reach.ended(lab)) from e
    except ValueError as e:
        raise LabError(f"lab {lab}: an answer is not valid: {e} ({_this()})") from e
    if answer["kind"] == "error":
        unknown = answer["error"] == "NotUnderstoodError"
        raise LabError(answer["text"] + (f" ({_this()})" if unknown else ""))
    return answer["value"]


def _this() -> str:
    from testbed.lab import sources  # reading all of them takes longer than most commands

    return f"this is testbed {sources.version()}"


def _inside(lab: str, node: str, holder: int, life: int, connection: socket.socket) -> list[int]:
    """Enter the namespaces of a node, and return the descriptors of the lab's cgroups.

    `life` is the holder's pidfd: unlike its process ID, it never refers to another process.
    """
    spaces = linux.CLONE_NEWNS | linux.CLONE_NEWUTS | linux.CLONE_NEWPID | linux.CLONE_NEWNET
    try:
        groups = cgroups.doors(holder)
        if os.stat(f"/proc/{holder}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino:
            spaces |= linux.CLONE_NEWUSER
        linux.setns(life, spaces)
        if "/" in node or node in ("", ".", ".."):
            raise FileNotFoundError(node)
        linux.setns(os.open(f"/run/netns/{node}", os.O_RDONLY | os.O_CLOEXEC), linux.CLONE_NEWNET)
        linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWUTS)
        furniture.settle()
        linux.sethostname(node)
    except FileNotFoundError as e:
        nodes = _ask(lab, connection, {"verb": "status"})["nodes"]
        known = ", ".join(nodes[:12]) + (", ..." if len(nodes) > 12 else "")
        raise LabError(f"lab {lab}: there is no node {node} (nodes: {known})") from e
    except OSError as e:
        raise LabError(f"cannot enter the lab: {e} (has it just ended?)") from e
    return groups


def _run(argv: tuple[str, ...], groups: list[int]) -> int:
    """Run a command on this terminal, and pass signals on to it; return its exit status."""
    parent = os.pidfd_open(os.getpid())
    tied = asker.read().tied
    asker.untie(os.environ)
    terminal = -1
    with suppress(OSError):  # there may be none
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    in_front = terminal >= 0 and os.tcgetpgrp(terminal) == os.getpgrp()
    try:
        child = os.fork()
    except BlockingIOError as e:
        raise LabError("the lab has as many processes as its bound allows (resources.pids)") from e
    if child == 0:
        _become(argv, parent, groups)
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the terminal sends these to the child as well

    def pass_on(number: int, _: FrameType | None) -> None:
        os.kill(child, number)
        if tied:  # the caller has gone, and nobody would send a second signal
            signal.alarm(3)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if in_front:
        # A shell takes the terminal for its jobs, and cannot return it to our process group, which it does not see.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with suppress(OSError):
            os.tcsetpgrp(terminal, os.getpgrp())
    return status if status >= 0 else 128 - status


def _become(argv: tuple[str, ...], parent: int, groups: list[int]) -> NoReturn:
    try:
        for group in groups:
            with suppress(OSError):  # see `cgroups.doors`
                os.write(group, b"0")
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)  # drop the command line's handlers before execve()
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # kill -9 of the command line leaves nothing behind
        if select.select([parent], [], [], 0)[0]:
            os._exit(1)  # it came before that
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores these; a command would inherit that
        os.environ["PATH"] = ":".join(filter(None, (os.environ.get("PATH"), furniture.SYSTEM_PATH)))
        os.execvp(argv[0], argv)  # noqa: S606 (the user's own command)
    except (OSError, ValueError) as e:  # ValueError: the program is an empty word
        from testbed.plain import line

        why = e.strerror if isinstance(e, OSError) else "the first word of a command is the program, and it is empty"
        os.write(2, f"testbed: {line(argv[0])}: {why}\n".encode())
        os._exit(126 if isinstance(e, OSError) and e.errno != errno.ENOENT else 127)
    finally:
        os._exit(126)  # this is a child: it must not go on as the command line
