"""Abstract unix sockets and their owners: a socket that another user has bound is not one of our labs.

Source: net/unix/diag.c. A kernel without it only lists names (/proc/net/unix): then connect to each to see who listens.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

from testbed.linux import uapi, unix, wire

_BOUND = 1 << uapi.TCP_CLOSE | 1 << uapi.TCP_LISTEN  # bound sockets; connections have the same name
_PATIENCE = 1.0  # s to wait for a connection to be accepted


def owned(prefix: str) -> Iterator[tuple[str, int]]:
    """Yield (rest of the name, uid) of every abstract stream socket that is bound to a name with this prefix."""
    try:
        yield from list(_asked(prefix.encode()))
    except OSError:
        yield from _listed(prefix)


def _asked(prefix: bytes) -> Iterator[tuple[str, int]]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, wire.NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(5)
        shown = uapi.UDIAG_SHOW_NAME | uapi.UDIAG_SHOW_UID
        body = uapi.UNIX_DIAG_REQ.pack(socket.AF_UNIX, 0, 0, _BOUND, 0, shown, 0, 0)
        sock.send(wire.header(len(body), uapi.SOCK_DIAG_BY_FAMILY, wire.NLM_F_REQUEST | wire.NLM_F_DUMP, 1) + body)
        while True:
            for kind, _, _, content in wire.messages(sock.recv(1 << 18)):
                if kind == uapi.NLMSG_DONE:
                    return
                if kind == uapi.NLMSG_ERROR:
                    number = -struct.unpack_from("=i", content)[0]
                    raise OSError(number, os.strerror(number))
                fields = wire.attributes(content, uapi.UNIX_DIAG_MSG.size)
                if fields.get(uapi.UNIX_DIAG_NAME, b"").startswith(b"\0" + prefix) and content[1] == socket.SOCK_STREAM:
                    if uapi.UNIX_DIAG_UID not in fields:  # before Linux 5.3
                        raise OSError("this kernel does not tell whose a socket is")
                    name = fields[uapi.UNIX_DIAG_NAME][1 + len(prefix) :].decode(errors="replace")
                    yield name, struct.unpack("=I", fields[uapi.UNIX_DIAG_UID])[0]


def _listed(prefix: str) -> Iterator[tuple[str, int]]:
    with open("/proc/net/unix", errors="replace") as file:
        rows = [row.rstrip("\n").split(None, 7) for row in file]
    # Accepted connections have the same name; field 5, the state, tells the bound socket: unconnected (01).
    for row in rows:
        if len(row) == 8 and row[5] == "01" and row[7].startswith(f"@{prefix}"):
            with suppress(OSError), unix.dial("\0" + row[7][1:], _PATIENCE) as connection:
                yield row[7][1 + len(prefix) :], unix.peer(connection).uid
