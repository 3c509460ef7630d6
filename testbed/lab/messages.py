"""Messages between processes of testbed: bytes with their length before them, and file descriptors beside them.

What the bytes say is in `asking` (a lab's holder) and `machines.asking` (a guest's keeper). This module needs the
standard library alone, for `testbed exec`.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

from testbed.errors import LabError

LONGEST = 100_000_000  # bytes of a message: half a million steps, more than a lab of 10 000 routers has
# What decoding JSON raises: msgspec's and json's errors and those of UTF-8 are ValueErrors.
BROKEN = (ValueError, RecursionError)
_HEAD = struct.Struct("=I")
_FD = array.array("i").itemsize
_PART = 1 << 18  # bytes of one recv
_RIGHTS = 8  # descriptors that are taken with one part; the kernel closes those beyond


class Line:
    """One end of a conversation; on a non-blocking socket it waits for nobody, however slow the other end is."""

    def __init__(self, connection: socket.socket, longest: int = LONGEST) -> None:
        """Take messages of at most `longest` bytes from this connection."""
        self.connection = connection
        self.longest = longest
        self.inbox = bytearray()  # the next message as far as it has come
        self.fds: list[int] = []  # what came with it
        self.outbox = bytearray()  # what could not be sent yet

    def receive(self) -> tuple[bytes, list[int]] | None:
        """Return the next message and its file descriptors, None when the rest of it is still to come.

        EOFError when the other end is gone, LabError for a message that is too long: nothing that follows it can be
        trusted to begin where a message does, so this conversation is over.
        """
        try:
            while (missing := self._missing()) > 0:
                part, rights, flags, _ = self.connection.recvmsg(
                    min(missing, _PART), socket.CMSG_SPACE(_RIGHTS * _FD), socket.MSG_CMSG_CLOEXEC
                )
                for _, _, packed in rights:
                    self.fds += array.array("i", packed[: len(packed) - len(packed) % _FD])
                if not part:
                    raise EOFError
                if flags & socket.MSG_CTRUNC or len(self.fds) > _RIGHTS:
                    raise LabError(f"file descriptors of a message are lost: more than {_RIGHTS}, or none was free")
                self.inbox += part
        except BlockingIOError:
            return None
        except ConnectionError as e:
            raise EOFError from e
        data, fds = bytes(self.inbox[_HEAD.size :]), self.fds
        self.inbox, self.fds = bytearray(), []
        return data, fds

    def _missing(self) -> int:
        """Return how many bytes the head lacks, or the message whose length it tells: never more is read."""
        if len(self.inbox) < _HEAD.size:
            return _HEAD.size - len(self.inbox)
        (length,) = _HEAD.unpack_from(self.inbox)
        if length > self.longest:
            raise LabError(f"a message that is too long: {length} bytes, and {self.longest} are the most")
        return _HEAD.size + int(length) - len(self.inbox)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message, with file descriptors; what a non-blocking socket does not take waits for `flush`."""
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
        close(self.fds)
        self.fds = []


def send(connection: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send one message, with file descriptors, on a blocking socket."""
    Line(connection).send(data, fds)


def receive(connection: socket.socket, longest: int = LONGEST) -> tuple[bytes, list[int]]:
    """Return the next message and its file descriptors from a blocking socket; EOFError when the other end is gone."""
    found = Line(connection, longest).receive()
    if found is None:  # a time-out of the socket's (SO_RCVTIMEO) ends a system call so
        raise TimeoutError
    return found


def close(fds: Sequence[int]) -> None:
    """Close descriptors that came with a message."""
    for fd in fds:
        os.close(fd)
