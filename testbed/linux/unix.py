"""Connections of abstract unix sockets, and the processes at their other ends."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple


class Peer(NamedTuple):
    """The process and user at the other end of a socket (SO_PEERCRED), as this namespace numbers them."""

    pid: int
    uid: int


def peer(connection: socket.socket) -> Peer:
    """Return the process at the other end, which listens or has connected."""
    pid, uid, _ = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid)


def dial(where: str, patience: float) -> socket.socket:
    """Connect to an abstract address; raise OSError if nobody listens, TimeoutError if nobody accepts in time.

    Later operations on this connection do not time out unless the caller sets that (settimeout).
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # The kernel waits so long for room in the backlog; a socket that does not block would not wait at all.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(patience), 0))
        connection.connect(where)
    except BaseException as e:
        connection.close()
        if isinstance(e, BlockingIOError):
            raise TimeoutError(f"nobody took the connection within {patience:g} s") from e
        raise
    return connection
