"""What a program may ask the kernel about an MPTCP socket of its own, and the subflows below it.

MPTCP_FULL_INFO (Linux 6.5) has everything in one call; before, MPTCP_INFO, MPTCP_SUBFLOW_ADDRS and MPTCP_TCPINFO have.
Python's getsockopt() passes no buffer to the kernel, as three of these need. Source: include/uapi/linux/mptcp.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from contextlib import suppress

from msgspec import Struct

from testbed.linux import tcp_info
from testbed.linux.host import host

SOL_MPTCP, TCP_IS_MPTCP = 284, 43
MPTCP_INFO, MPTCP_TCPINFO, MPTCP_SUBFLOW_ADDRS, MPTCP_FULL_INFO = 1, 2, 3, 4
_DATA = struct.Struct("=4I")  # struct mptcp_subflow_data: its size, number of subflows, size of one (kernel, user)
_FULL = struct.Struct("=6I2Q")  # struct mptcp_full_info, whose last member is a struct mptcp_info
_ADDRS, _SUBFLOW, _TCP, _INFO = 256, 264, 280, 96  # bytes: two addresses, the same with an id, tcp_info, mptcp_info
_MOST = 64  # subflows that are read
_libc = ctypes.CDLL(None, use_errno=True)


class Subflow(Struct, frozen=True):
    """A subflow: its number in the connection (None before Linux 6.5), its ends, and what TCP counted."""

    id: int | None
    local: str
    local_port: int
    remote: str
    remote_port: int
    tcp: tcp_info.Figures


class Connection(Struct, frozen=True):
    """An MPTCP connection (struct mptcp_info) and its subflows; what this kernel does not tell is None."""

    token: int
    bytes_sent: int | None
    bytes_retrans: int | None
    bytes_received: int | None
    bytes_acked: int | None
    retransmits: int | None
    subflows_total: int | None
    subflows: tuple[Subflow, ...]


def is_mptcp(sock: socket.socket) -> bool:
    """Say whether a connected socket speaks MPTCP: it may have fallen back to TCP (RFC 8684 section 3.7)."""
    with suppress(OSError):
        return bool(sock.getsockopt(socket.IPPROTO_TCP, TCP_IS_MPTCP)) and _info(sock) is not None
    return _info(sock) is not None  # a kernel without TCP_IS_MPTCP


def connection(sock: socket.socket, whole: bool = True) -> Connection | None:
    """Return the state of a socket's connection, None for one that is no MPTCP (any more).

    `whole` is without effect on what it says: False asks with the three calls of kernels before 6.5.
    """
    if whole and (found := _full(sock)) is not None:
        return found
    if (info := _info(sock)) is None:
        return None
    ends, tcps = _each(sock, MPTCP_SUBFLOW_ADDRS, _ADDRS), _each(sock, MPTCP_TCPINFO, _TCP)
    return _connection(info, tuple(_subflow(None, a, t) for a, t in zip(ends, tcps, strict=False)))


def _info(sock: socket.socket) -> bytes | None:
    with suppress(OSError):  # EOPNOTSUPP: it fell back
        return sock.getsockopt(SOL_MPTCP, MPTCP_INFO, _INFO)
    return None


def _asked(sock: socket.socket, option: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Call getsockopt(2) with a buffer that says what is asked; return the bytes that it filled."""
    size = ctypes.c_uint32(len(buffer))
    if _libc.getsockopt(sock.fileno(), SOL_MPTCP, option, buffer, ctypes.byref(size)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return size.value


def _each(sock: socket.socket, option: int, size: int) -> list[bytes]:
    """Return the entry of each subflow."""
    buffer = ctypes.create_string_buffer(_DATA.pack(_DATA.size, 0, 0, size), _DATA.size + size * _MOST)
    with suppress(OSError):
        _asked(sock, option, buffer)
        _, number, _, used = _DATA.unpack_from(buffer)
        return [buffer.raw[_DATA.size + n * used :][:used] for n in range(min(number, _MOST))]
    return []


def _full(sock: socket.socket) -> Connection | None:
    ends, tcps = (ctypes.create_string_buffer(size * _MOST) for size in (_SUBFLOW, _TCP))
    head = _FULL.pack(0, _TCP, 0, _SUBFLOW, 0, _MOST, ctypes.addressof(ends), ctypes.addressof(tcps))
    buffer = ctypes.create_string_buffer(head, _FULL.size + _INFO)
    try:
        filled = _asked(sock, MPTCP_FULL_INFO, buffer)
    except OSError:
        return None
    _, tcp_size, _, end_size, number, *_ = _FULL.unpack_from(buffer)
    rows = []
    for n in range(min(number, _MOST)):
        end, tcp = ends.raw[n * end_size :][:end_size], tcps.raw[n * tcp_size :][:tcp_size]
        rows.append(_subflow(struct.unpack_from("=I", end)[0], end[8:], tcp))
    return _connection(buffer.raw[_FULL.size : filled], tuple(rows))


def _connection(info: bytes, subflows: tuple[Subflow, ...]) -> Connection:
    def number(layout: str, at: int) -> int | None:
        fits = at + struct.calcsize(layout) <= len(info)
        return int(struct.unpack_from(layout, info, at)[0]) if fits else None

    return Connection(
        token=number("=I", 12) or 0,
        retransmits=number("=I", 44),
        bytes_retrans=number("=Q", 48),
        bytes_sent=number("=Q", 56),
        bytes_received=number("=Q", 64),
        bytes_acked=number("=Q", 72),
        subflows_total=number("=B", 80),
        subflows=subflows,
    )


def _subflow(number: int | None, ends: bytes, tcp: bytes) -> Subflow:
    local, remote = _address(ends[:128]), _address(ends[128:256])
    return Subflow(number, *local, *remote, tcp_info.figures(tcp))


def _address(raw: bytes) -> tuple[str, int]:
    """Return address and port of a struct sockaddr_storage."""
    (family,) = struct.unpack_from("=H", raw)
    (port,) = struct.unpack_from("!H", raw, 2)
    return host(raw[8:24] if family == socket.AF_INET6 else raw[4:8]), port
