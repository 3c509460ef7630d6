"""Another local user, and a guest without QEMU, for tests of who may say what to a holder and a keeper."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from testbed.lab import furniture, reach, sandbox
from testbed.lab.messages import Line
from testbed.linux import unix
from testbed.machines.guest import asking, keeper, microvm
from testbed.machines.guest.console import opened
from testbed.machines.guest.microvm import Guest
from testbed.machines.guest.qemu import Boot, Size
from testbed.machines.guest.running import FOLDER, Keeper, Order, Talk
from testbed.machines.guest.starting import told

NOBODY = 65534
GUEST = reach.GUESTS


def as_other(body: Callable[[], object]) -> int:
    """Run something as another user, without any privilege, and return the exit status: 0 unless it raised."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            body()
            status = 0
        except BaseException:  # noqa: BLE001 (a child, which must not go on as the test)
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def frame(content: bytes) -> bytes:
    """Return a message as it travels."""
    return struct.pack("=I", len(content)) + content


class Evil:
    """A pickle of this runs a command where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"id > {self.marker}",)


def evil(marker: Path) -> bytes:
    """Return a message that is such a pickle."""
    return frame(pickle.dumps(Evil(marker)))


def connected(address: str) -> socket.socket:
    """Connect to an abstract address, as whoever this is."""
    connection = unix.dial(address, 5.0)
    connection.settimeout(10)
    return connection


def refused(address: str, sent: Sequence[bytes]) -> None:
    """Say something as somebody to whom nobody listens: no byte comes back, and the connection is closed."""
    for data in sent:
        with connected(address) as connection:
            try:
                connection.sendall(data)
                assert connection.recv(1) == b"", "nobody answers"
            except ConnectionError:
                pass  # closed before it was sent, or with what was sent unread


@contextmanager
def without_qemu(name: str, said: Sequence[bytes] = ()) -> Iterator[Guest]:
    """Yield a guest that is no more than its keeper: a process is its QEMU, another says what a guest may say."""

    def body(listener: socket.socket, owner: socket.socket) -> None:
        (qmp, qmp_there), (agent, there) = socket.socketpair(), socket.socketpair()
        for file in ("key", "ssh.log"):
            (FOLDER / file).touch()
        console, log = (opened(socket.socketpair()[0], FOLDER / name) for name in ("console", "qemu.log"))
        if (qemu := os.fork()) == 0:
            _guest(there, qmp_there, said)
        order = Order(name, Boot(Path("k"), Path("i"), Path("r"), "tcg"), Size(), {})
        talks = Talk(qmp, asking.QEMU), Talk(agent, asking.GUEST)
        made = Keeper(order, Line(owner), qemu, os.pidfd_open(qemu), *talks, console, log)
        asking.answer(Line(owner), told(made))
        keeper._watch(made, listener)

    def use(owner: socket.socket, life: FileIO) -> Guest:
        return microvm._guest(asking.told(asking.heard(owner)), life, "", owner)

    guest = sandbox.launch(name, body, use, GUEST, microvm._SPACES)
    try:
        eventually(Path(f"/proc/{guest.holder}/root{furniture.FOLDER}/said").exists)
        yield guest
    finally:
        microvm.stop(guest)


def _guest(agent: socket.socket, qmp: socket.socket, said: Sequence[bytes]) -> None:
    """Say it, in both conversations, and then only answer that this lives."""
    try:
        for data in said:
            agent.sendall(data)
            qmp.sendall(data)
        (FOLDER / "said").touch()
        while agent.recv(4096):
            agent.sendall(b'\n{"done": "ping"}\n')
    finally:
        os._exit(0)


def eventually(fact: Callable[[], bool], patience: float = 10.0) -> None:
    """Return when something holds."""
    deadline = time.monotonic() + patience
    while not fact():
        assert time.monotonic() < deadline
