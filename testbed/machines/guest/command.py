"""A command in a guest, carried by ssh; its keeper passes signals on and ends it with this process."""

from __future__ import annotations

import os
import select
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from msgspec import Struct, field

from testbed.errors import LabError
from testbed.linux import calls as linux
from testbed.machines.guest import asking
from testbed.machines.guest.asking import Call, Ended, Signal
from testbed.machines.guest.booted import sources
from testbed.machines.guest.microvm import Guest, alive, connect, gone

_LAST_WORDS = 1.0  # s that a command has to end by itself when nobody reads what it writes
Hears = tuple[int, Callable[[bytes], None]]


def call(
    guest: Guest,
    argv: Sequence[str],
    *,
    cwd: str = "/root",
    env: Mapping[str, str] | None = None,
    streams: Sequence[int] = (0, 1, 2),
    tty: bool = False,
    hears: Hears | None = None,
) -> int:
    """Run a command in a guest on these streams; return its exit status, 128 + n for signal n.

    What comes from the descriptor of `hears` meanwhile is given to its function.

    `testbed` as the first word is the command line in the share `code`. SIGINT, SIGQUIT, SIGTERM and SIGHUP of this
    process are the command's, which also ends when this process is killed. LabError when the guest ends meanwhile,
    or the ssh that carries the command.
    """
    shared = alive(guest).shared
    name = uuid4().hex
    environment = dict(env or {})
    digest = "-"
    if code := guest.shares.get("code"):
        digest = sources(code)
        environment["PYTHONPATH"] = code.at
    words = ("exec", "/usr/sbin/testbed-call", name, digest, cwd, *(f"{k}={v}" for k, v in environment.items()))
    ssh = (*guest.ssh[:-1], "-tt" if tty else "-T", guest.ssh[-1], shlex.join((*words, "--", *argv)))
    with connect(guest.name) as connection, _Signals() as signals:
        child = subprocess.Popen(
            ssh,
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            # A terminal's Ctrl-C is for the command and not for ssh; with a terminal of its own ssh passes it on.
            start_new_session=not tty,
            preexec_fn=lambda: linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        try:
            asking.ask(connection, Call(name))  # the guest is told if this process goes away before the command
            status = _await(guest, child, connection, signals, name, -1 if tty else streams[1], hears)
            # An ssh whose shared connection breaks ends with 255, as many a command does.
            if status < 0 or (status == 255 and shared and not alive(guest).shared):
                how = f"ssh was killed by {signal.Signals(-status).name}" if status < 0 else "its ssh ended"
                raise LabError(f"guest {guest.name}: the connection to it broke ({how}), and what ran there with it")
            if child.poll() is not None:
                asking.ask(connection, Ended())
            return status
        finally:
            child.kill()
            child.wait()


def _await(
    guest: Guest,
    child: subprocess.Popen[bytes],
    connection: socket.socket,
    signals: _Signals,
    name: str,
    out: int,
    hears: Hears | None,
) -> int:
    """Return the exit status of ssh; when nobody reads `out` any more (-1: a terminal), the command gets a hangup."""
    ended = os.pidfd_open(child.pid)
    poll = select.poll()
    for source in (ended, connection.fileno(), signals.read, *([hears[0]] if hears is not None else [])):
        poll.register(source, select.POLLIN)
    if out >= 0:
        poll.register(out, 0)  # POLLERR or POLLHUP
    try:
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if hears is not None and hears[0] in ready:
                hears[1](os.read(hears[0], 1 << 16))
            if out in ready:
                # Dropbear does not pass on that its channel's other end takes no more, and so would write on and on.
                poll.unregister(out)
                if not select.select([ended], [], [], _LAST_WORDS)[0]:
                    return 128 + signal.SIGPIPE
            if connection.fileno() in ready:
                _hear(guest, connection)
            if signals.read in ready:
                for number in os.read(signals.read, 64):
                    asking.ask(connection, Signal(name, number))
            if ended in ready:
                status = child.wait()
                # 255 is the command's, or ssh's own: a guest that is ending is given time to say so.
                while status == 255 and select.select([connection], [], [], 2)[0]:
                    _hear(guest, connection)
                return status
    finally:
        os.close(ended)


def _hear(guest: Guest, connection: socket.socket) -> None:
    """Read a message of a keeper; LabError if it is the end of its guest."""
    try:
        asking.heard(connection)
    except EOFError:
        raise LabError(gone(guest)) from None


class _Signals(Struct):
    """A context in which signals to this process are bytes of a pipe, to be passed on to a command."""

    read: int = -1
    write: int = -1
    before: dict[int, Any] = field(default_factory=dict)
    wake: int = -1

    def __enter__(self) -> _Signals:
        self.read, self.write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
            self.before[number] = signal.signal(number, lambda *_: None)
        self.wake = signal.set_wakeup_fd(self.write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self.wake)
        for number, handler in self.before.items():
            signal.signal(number, handler)
        for fd in (self.read, self.write):
            os.close(fd)
