"""The sockets of a transfer, and what their errors mean."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Mapping

from testbed.linux.uapi import IPPROTO_MPTCP
from testbed.programs.transfer.asked import Asked

# socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP) of kernels before 5.6, of those without CONFIG_MPTCP, and where the
# namespace says no (net/mptcp/protocol.c: mptcp_init_sock).
_UNSUPPORTED = {
    errno.EINVAL: "this kernel is older than MPTCP (Linux 5.6)",
    errno.EPROTONOSUPPORT: "this kernel was built without MPTCP (CONFIG_MPTCP)",
    errno.ENOPROTOOPT: "MPTCP is off in this node: net.mptcp.enabled is 0",
}
_OUTCOMES: Mapping[int | None, str] = {
    errno.ECONNREFUSED: "refused",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.EADDRNOTAVAIL: "unreachable",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ECONNABORTED: "reset",
    errno.ETIMEDOUT: "timed-out",
}


class UnsupportedError(Exception):
    """The kernel has no such sockets; the text says why."""


def outcome(number: int | None) -> str:
    """Return the name of what an error comes to."""
    return _OUTCOMES.get(number, "failed")


def sentence(error: OSError) -> str:
    """Return what an error says, with the name that the kernel's headers give it."""
    number = error.errno or 0
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"


def opened(asked: Asked, family: int) -> socket.socket:
    """Open a socket with the options that are asked for; UnsupportedError if the kernel has none of the protocol."""
    try:
        sock = socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP if asked.mptcp else 0)
    except OSError as e:
        if asked.mptcp and e.errno in _UNSUPPORTED:
            raise UnsupportedError(f"{_UNSUPPORTED[e.errno]} ({e.strerror})") from e
        raise
    if asked.congestion:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, asked.congestion.encode())
    if asked.window:
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, buffer, asked.window)
    if asked.mss:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, asked.mss)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setblocking(False)
    return sock


def connecting(asked: Asked, n: int) -> socket.socket:
    """Return a socket that is being connected; the error of one that fails at once is still to be asked for."""
    sock = opened(asked, socket.AF_INET6 if ":" in asked.connect else socket.AF_INET)
    address, _, dev = asked.bind.partition("%")
    if dev:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, dev.encode())
    if address or asked.source_port:
        sock.bind((address, asked.source_port + n if asked.source_port else 0))
    _lingering(sock, asked)
    if (number := sock.connect_ex((asked.connect, asked.port))) not in (0, errno.EINPROGRESS):
        raise OSError(number, errno.errorcode.get(number, ""))
    return sock


def listening(asked: Asked) -> socket.socket:
    """Return the socket of a server."""
    sock = opened(asked, socket.AF_INET6 if asked.family == 6 else socket.AF_INET)
    sock.bind((asked.bind, asked.port))
    sock.listen(asked.backlog)
    return sock


def unacknowledged(sock: socket.socket) -> int:
    """Return the bytes that were sent and not acknowledged (tcp(7), mptcp_ioctl: SIOCOUTQ)."""
    answer = bytearray(4)
    fcntl.ioctl(sock, termios.TIOCOUTQ, answer)
    return struct.unpack("i", answer)[0]  # type: ignore[no-any-return]


def _lingering(sock: socket.socket, asked: Asked) -> None:
    if asked.linger >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, asked.linger))
