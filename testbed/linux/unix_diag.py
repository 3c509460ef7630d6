"""Which abstract unix sockets there are and whose they are: what another user has bound is nobody's lab.

Source: net/unix/diag.c. A kernel without it lists names alone (/proc/net/unix); who answers there is then asked.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

from testbed.linux import wire

_BY_FAMILY, _DONE, _ERROR = 20, 3, 2  # SOCK_DIAG_BY_FAMILY, NLMSG_DONE, NLMSG_ERROR
_BOUND = 1 << 7 | 1 << 10  # TCP_CLOSE and TCP_LISTEN: bound, and not a connection, which has the same name
_SHOW = 0x1 | 0x40  # UDIAG_SHOW_NAME, UDIAG_SHOW_UID
_NAME, _UID = 0, 7  # UNIX_DIAG_NAME, UNIX_DIAG_UID (Linux 5.3)
_MESSAGE = 16  # bytes of struct unix_diag_msg
_PATIENCE = 1.0  # s for one who has a name to take a connection


def owned(prefix: str) -> Iterator[tuple[str, int]]:
    """Yield (the rest of the name, uid) of every abstract stream socket that is bound to a name with this prefix."""
    try:
        yield from list(_asked(prefix.encode()))
    except OSError:
        yield from _listed(prefix)


def _asked(prefix: bytes) -> Iterator[tuple[str, int]]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, wire.NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(5)
        body = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, _BOUND, 0, _SHOW, 0, 0)
        sock.send(wire.header(len(body), _BY_FAMILY, wire.NLM_F_REQUEST | wire.NLM_F_DUMP, 1) + body)
        while True:
            for kind, _, _, content in wire.messages(sock.recv(1 << 18)):
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    number = -struct.unpack_from("=i", content)[0]
                    raise OSError(number, os.strerror(number))
                found = wire.attributes(content, _MESSAGE)
                if found.get(_NAME, b"").startswith(b"\0" + prefix) and content[1] == socket.SOCK_STREAM:
                    if _UID not in found:
                        raise OSError("this kernel does not tell whose a socket is")
                    name = found[_NAME][1 + len(prefix) :].decode(errors="replace")
                    yield name, struct.unpack("=I", found[_UID])[0]


def _listed(prefix: str) -> Iterator[tuple[str, int]]:
    from testbed.lab import sandbox

    with open("/proc/net/unix", errors="replace") as file:
        rows = [row.rstrip("\n").split(None, 7) for row in file]
    # Field 5 is the state: accepted connections carry the same address, only the bound socket is unconnected (01).
    for row in rows:
        if len(row) == 8 and row[5] == "01" and row[7].startswith(f"@{prefix}"):
            with suppress(OSError), sandbox.dial("\0" + row[7][1:], _PATIENCE) as connection:
                yield row[7][1 + len(prefix) :], sandbox.peer(connection).uid
