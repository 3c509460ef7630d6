"""What the kernel says of a TCP socket: struct tcp_info (include/uapi/linux/tcp.h)."""

from __future__ import annotations

import struct
from typing import TypedDict

from testbed.linux import uapi

SIZE = 248  # bytes that are read: up to tcpi_dsack_dups and what follows it


class Figures(TypedDict):
    """Times in milliseconds, counts in bytes and segments."""

    rtt_ms: float
    cwnd: int
    retransmits: int
    bytes_sent: int
    bytes_acked: int
    bytes_received: int
    mss: int
    unacked: int
    bytes_retrans: int
    dsack_dups: int


def figures(info: bytes) -> Figures:
    """Decode it; older kernels tell less, and what they do not tell is 0."""
    info = info.ljust(SIZE, b"\0")

    def word(at: int) -> int:
        (found,) = struct.unpack_from("=I", info, at)
        return int(found)

    def long(at: int) -> int:
        (found,) = struct.unpack_from("=Q", info, at)
        return int(found)

    return Figures(
        rtt_ms=word(uapi.TCPI_RTT) / 1e3,
        cwnd=word(uapi.TCPI_SND_CWND),
        retransmits=word(uapi.TCPI_TOTAL_RETRANS),
        bytes_sent=long(uapi.TCPI_BYTES_SENT),
        bytes_acked=long(uapi.TCPI_BYTES_ACKED),
        bytes_received=long(uapi.TCPI_BYTES_RECEIVED),
        mss=word(uapi.TCPI_SND_MSS),
        unacked=word(uapi.TCPI_UNACKED),
        bytes_retrans=long(uapi.TCPI_BYTES_RETRANS),
        dsack_dups=word(uapi.TCPI_DSACK_DUPS),
    )
