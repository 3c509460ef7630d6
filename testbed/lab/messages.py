"""Messages between processes of testbed: a length, bytes, and file descriptors sent along.

Their content is defined in `lab.asking` (a lab's holder) and `machines.guest.asking` (a guest's keeper). For the sake
of `testbed exec`, this module only needs the standard library.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

from testbed.errors import LabError

LONGEST = 100_000_000  # bytes of a message: half a million steps, more than those of a lab of 10 000 routers
# Errors of decoding JSON: those of msgspec, json and UTF-8 are ValueErrors.
BROKEN = (ValueError, RecursionError)
_HEAD = struct.Struct("=I")
_FD = array.array("i").itemsize
_PART = 1 << 18  # bytes of one recv
_RIGHTS = 8  # descriptors accepted with one part; the kernel closes further ones


class Line:
    """One end of a conversation; on a non-blocking socket it never waits for the other end."""

    def __init__(self, connection: socket.socket, longest: int = LONGEST) -> None:
        """Accept messages of at most `longest` bytes from this connection."""
        self.connection = connection
        self.longest = longest
        self.inbox = bytearray()  # the part of the next message that has arrived
        self.fds: list[int] = []  # its descriptors
        self.outbox = bytearray()  # data still to be sent

    def receive(self) -> tuple[bytes, list[int]] | None:
        """Return the next message and its file descriptors, None if it is not complete yet.

        Raise EOFError if the other end has gone, LabError for a message that is too long: the start of the next one is
        then unknown, which ends the conversation.
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
        """Return how many bytes the header or the message still lacks, to read no further."""
        if len(self.inbox) < _HEAD.size:
            return _HEAD.size - len(self.inbox)
        (length,) = _HEAD.unpack_from(self.inbox)
        if length > self.longest:
            raise LabError(f"a message that is too long: {length} bytes, and {self.longest} are the most")
        return _HEAD.size + int(length) - len(self.inbox)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message with file descriptors; `flush` sends what a non-blocking socket did not take."""
        self.outbox += _HEAD.pack(len(data)) + data
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            del self.outbox[: self.connection.sendmsg([self.outbox], rights)]
        self.flush()

    def flush(self) -> None:
        """Send pending data, as far as the socket takes it."""
        with suppress(BlockingIOError):
            while self.outbox:
                del self.outbox[: self.connection.send(self.outbox)]

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()
        close(self.fds)
        self.fds = []


def send(connection: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send one message with file descriptors on a blocking socket."""
    Line(connection).send(data, fds)


def receive(connection: socket.socket, longest: int = LONGEST) -> tuple[bytes, list[int]]:
    """Receive a message with its descriptors on a blocking socket; raise EOFError if the other end has gone."""
    message = Line(connection, longest).receive()
    if message is None:  # a timeout of the socket (SO_RCVTIMEO) ends a system call like this
        raise TimeoutError
    return message


def close(fds: Sequence[int]) -> None:
    """Close descriptors that came with a message."""
    for fd in fds:
        os.close(fd)
