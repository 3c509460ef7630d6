"""Messages between a lab's holder and the programs that talk to it: a pickle with its length before it.

Both ends belong to one user (SO_PEERCRED is checked), who may run any command in the lab anyway.
"""

from __future__ import annotations

import array
import os
import pickle
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from msgspec import Struct, field

from testbed.errors import LabError

_HEAD = struct.Struct("=I")
_FD = array.array("i").itemsize
_LONGEST, _PART = 1 << 28, 1 << 18  # bytes of a message, and of one recv
# What pickle raises for bytes that are no pickle, or one of another version's classes.
_BROKEN = (pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError, KeyError, TypeError, ValueError)


class Line(Struct, eq=False):
    """One end of a conversation; on a non-blocking socket it waits for nobody, however slow the other end is."""

    connection: socket.socket
    inbox: bytearray = field(default_factory=bytearray)  # the next message as far as it has come
    fds: list[int] = field(default_factory=list)  # what came with it
    outbox: bytearray = field(default_factory=bytearray)  # what could not be sent yet

    def receive(self) -> tuple[Any, list[int]] | None:
        """Return the next message and its file descriptors, None when the rest of it is still to come.

        EOFError when the other end is gone, LabError for a message that can't be understood.
        """
        try:
            while (missing := self._missing()) > 0:
                part, rights, _, _ = self.connection.recvmsg(
                    min(missing, _PART), socket.CMSG_SPACE(8 * _FD), socket.MSG_CMSG_CLOEXEC
                )
                for _, _, packed in rights:
                    self.fds += array.array("i", packed[: len(packed) - len(packed) % _FD])
                if not part:
                    raise EOFError
                self.inbox += part
        except BlockingIOError:
            return None
        except ConnectionError as e:
            raise EOFError from e
        data, fds = self.inbox[_HEAD.size :], self.fds
        self.inbox, self.fds = bytearray(), []
        try:
            return pickle.loads(data), fds  # noqa: S301 (one user, see above)
        except _BROKEN as e:
            _close(fds)
            raise LabError(f"a message that can't be understood, perhaps of another version of testbed: {e}") from e

    def _missing(self) -> int:
        """Return how many bytes the head lacks, or the message whose length it tells: never more is read."""
        if len(self.inbox) < _HEAD.size:
            return _HEAD.size - len(self.inbox)
        (length,) = _HEAD.unpack_from(self.inbox)
        if length > _LONGEST:
            raise EOFError  # nothing that follows can be trusted to begin where a message does
        return _HEAD.size + int(length) - len(self.inbox)

    def send(self, message: object, fds: Sequence[int] = ()) -> None:
        """Send a message, with file descriptors; what a non-blocking socket does not take waits for `flush`."""
        data = pickle.dumps(message)
        self.outbox += _HEAD.pack(len(data)) + data
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            del self.outbox[: self.connection.sendmsg([self.outbox], rights)]
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as it goes."""
        with suppress(BlockingIOError):
            while self.outbox:
                del self.outbox[: self.connection.send(self.outbox)]

    def close(self) -> None:
        """Hang up."""
        self.connection.close()
        _close(self.fds)
        self.fds = []


def send(connection: socket.socket, message: object, fds: Sequence[int] = ()) -> None:
    """Send one message, with file descriptors, on a blocking socket."""
    Line(connection).send(message, fds)


def receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """Return the next message and its file descriptors from a blocking socket; EOFError when the other end is gone."""
    found = Line(connection).receive()
    assert found is not None, "the socket does not block"
    return found


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
