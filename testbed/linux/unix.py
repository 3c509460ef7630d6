"""Connections of abstract unix sockets, and who is at the other end."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple


class Peer(NamedTuple):
    """Who is at the other end of a socket: its process and user, as seen from here (SO_PEERCRED)."""

    pid: int
    uid: int


def peer(connection: socket.socket) -> Peer:
    """Return who listens at, or connected from, the other end."""
    pid, uid, _ = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid)


def dial(where: str, patience: float) -> socket.socket:
    """Connect to an abstract address; OSError when nobody listens, TimeoutError when nobody accepts in time.

    What comes next on this connection takes as long as it takes, or as its user says (settimeout).
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
