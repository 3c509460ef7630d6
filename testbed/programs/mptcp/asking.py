"""What other processes of a node ask its path manager: commands, what it knows, and to follow its log.

A question with a file descriptor is answered in that file; one without is a command (`Do`), which is answered by "OK"
or by the reason why it could not be done.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress

import msgspec

from testbed.drivers import mptcp_pm
from testbed.errors import LabError
from testbed.programs.mptcp import listing, log
from testbed.programs.mptcp.listing import Told
from testbed.programs.mptcp.state import Do, State

STATE, FOLLOW = b"state", b"follow"
_LONGEST = 4096  # bytes of a request
_PATIENCE = 15.0  # s


def listen() -> socket.socket:
    """Open the socket, at an abstract address, which is one of the network namespace."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    sock.bind(mptcp_pm.SOCKET)
    return sock


def answer(sock: socket.socket, state: State, to: log.Log, do: Callable[[Do], str]) -> None:
    """Answer all that was asked; only processes of this node reach the socket."""
    while True:
        try:
            data, fds, _, sender = socket.recv_fds(sock, _LONGEST, 1)
        except BlockingIOError:
            return
        said = "OK"
        if fds and data == STATE:
            log.give(fds.pop(), msgspec.json.encode(listing.told(state.connections.values())))
        elif fds and data == FOLLOW:
            to.follow(fds.pop())
        else:
            try:
                said = do(msgspec.json.decode(data, type=Do))
            except msgspec.MsgspecError as e:
                said = str(e)
        for fd in fds:
            os.close(fd)
        if sender:
            with suppress(OSError):  # it did not wait
                sock.sendto(said.encode(), sender)


def known() -> list[Told] | None:
    """Return what the path manager of this process's network namespace knows; None if there is no manager."""
    with open(os.memfd_create("state"), "r+b") as file:
        if not _asked(STATE, file.fileno()):
            return None
        file.seek(0)
        return msgspec.json.decode(file.read(), type=list[Told])


def follow() -> int | None:
    """Return a pipe with every further line of the manager's log; None if there is no manager."""
    end, start = os.pipe()
    try:
        if _asked(FOLLOW, start):
            return end
    finally:
        os.close(start)
    os.close(end)
    return None


def ask(what: bytes, *fds: int) -> str | None:
    """Return the answer of this network namespace's path manager; None if there is no manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_PATIENCE)
        sock.bind("")
        try:
            sock.connect(mptcp_pm.SOCKET)
        except ConnectionRefusedError:
            return None
        try:
            socket.send_fds(sock, [what], fds)
            return sock.recv(_LONGEST).decode(errors="replace")
        except OSError as e:
            raise LabError(f"the path manager of this node does not answer: {e.strerror or e}") from e


def _asked(what: bytes, fd: int) -> bool:
    said = ask(what, fd)
    if said not in ("OK", None):
        raise LabError(f"the path manager of this node answers: {said}")
    return said is not None
