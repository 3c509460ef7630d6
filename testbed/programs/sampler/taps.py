"""When flows of iperf3 begin: a packet socket in a node waits for the byte that starts a test.

The server tells the client by one byte on the control connection, TEST_START, and both begin to count (iperf_api.h,
iperf_server_api.c: iperf_run_server). The kernel stamps the packet, so it does not matter when this process runs.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from ctypes import addressof, create_string_buffer

from msgspec import Struct

_ALL = 0x0003  # ETH_P_ALL (if_ether.h): also what this node sends
_SO_ATTACH_FILTER, _SO_TIMESTAMPNS = 26, 35  # asm-generic/socket.h
_START = 1  # TEST_START
_STATES = frozenset((_START, 2, 9, 10))  # with TEST_RUNNING, PARAM_EXCHANGE and CREATE_STREAMS: what is retransmitted
_MOST = 4  # bytes of payload
_STAMP = struct.Struct("@ll")
# Classic BPF (linux/filter.h): packets of TCP, over IPv4 or IPv6 without extension headers, with 1 to 4 bytes of data.
_DROP, _LENGTH, _IPV6 = 26, 24, 15  # places in it
_FILTER = (
    (0x30, 0, 0, 0),  # ldb [0]
    (0x74, 0, 0, 4),  # rsh #4
    (0x15, 0, _IPV6 - 3, 4),  # jeq #4
    (0x30, 0, 0, 9),  # ldb [9]: the protocol
    (0x15, 0, _DROP - 5, 6),  # jeq #6
    (0xB1, 0, 0, 0),  # ldxb 4*([0]&0xf)
    (0x50, 0, 0, 12),  # ldb [x + 12]: the data offset
    (0x54, 0, 0, 0xF0),  # and #0xf0
    (0x74, 0, 0, 2),  # rsh #2
    (0x02, 0, 0, 0),  # st M[0]
    (0x28, 0, 0, 2),  # ldh [2]: the total length
    (0x1C, 0, 0, 0),  # sub x
    (0x61, 0, 0, 0),  # ldx M[0]
    (0x1C, 0, 0, 0),  # sub x
    (0x05, 0, 0, _LENGTH - 15),  # ja
    (0x15, 0, _DROP - 16, 6),  # jeq #6
    (0x30, 0, 0, 6),  # ldb [6]: the next header
    (0x15, 0, _DROP - 18, 6),  # jeq #6
    (0x30, 0, 0, 52),  # ldb [52]: the data offset
    (0x54, 0, 0, 0xF0),  # and #0xf0
    (0x74, 0, 0, 2),  # rsh #2
    (0x07, 0, 0, 0),  # tax
    (0x28, 0, 0, 4),  # ldh [4]: the payload length
    (0x1C, 0, 0, 0),  # sub x
    (0x15, 1, 0, 0),  # jeq #0
    (0x25, 0, 1, _MOST),  # jgt
    (0x06, 0, 0, 0),  # ret #0
    (0x06, 0, 0, 256),  # ret #256
)


class Tap(Struct):
    """A node's packet socket, and the flows that have not begun, by the port of their server."""

    sock: socket.socket
    flows: dict[int, str]


def listen(flows: dict[int, str]) -> Tap:
    """Open a packet socket in this process's namespace."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.htons(_ALL))
    attach(sock)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.setblocking(False)
    return Tap(sock, flows)


def attach(sock: socket.socket) -> None:
    """Let a socket receive only what may tell that a test starts."""
    code = create_string_buffer(b"".join(struct.pack("=HBBI", *row) for row in _FILTER))
    program = struct.pack("@HP", len(_FILTER), addressof(code))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def begun(tap: Tap) -> Iterator[tuple[float, str]]:
    """Yield when (CLOCK_MONOTONIC, seconds) the flows began whose packets have come, and forget these flows."""
    ahead = time.time() - time.monotonic()
    with suppress(BlockingIOError):
        while tap.flows:
            packet, notes, _, _ = tap.sock.recvmsg(256, 128)
            stamps = [_STAMP.unpack_from(data) for _, kind, data in notes if kind == _SO_TIMESTAMPNS]
            if stamps and (name := tap.flows.pop(started(packet), "")):
                seconds, ns = stamps[0]
                yield seconds + ns / 1e9 - ahead, name


def started(packet: bytes) -> int:
    """Return the port of the server that says in an IP packet that a test starts, 0 when none does (pure)."""
    if len(packet) < 20 or packet[0] >> 4 not in (4, 6):
        return 0
    four = packet[0] >> 4 == 4
    segment = packet[(packet[0] & 15) * 4 :] if four else packet[40:]
    (total,) = struct.unpack_from("!H", packet, 2 if four else 4)
    segment = segment[: total - (packet[0] & 15) * 4 if four else total]
    if packet[9 if four else 6] != socket.IPPROTO_TCP or len(segment) < 20:
        return 0
    states = segment[(segment[12] >> 4) * 4 :]
    port = int.from_bytes(segment[:2], "big")
    return port if 0 < len(states) <= _MOST and _START in states and _STATES.issuperset(states) else 0
