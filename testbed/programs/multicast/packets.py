"""The formats of multicast packets and of their records (pure).

All numbers are big-endian. A packet's UDP payload begins with PACKET and is padded with zeros. A receiver writes one
RECORD for each packet to `NODE/WORKLOAD.packets`, in the order of arrival. The source writes the time of each packet to
`NODE/WORKLOAD.sent` (SENT), in the order of their sequence numbers, which start at 0. Times are nanoseconds of
CLOCK_MONOTONIC, which cannot be set; times of arrival are the kernel's (SO_TIMESTAMPNS).
"""

from __future__ import annotations

import struct
from binascii import crc32

from msgspec import Struct

MAGIC = b"TBM2"  # 1 had times of CLOCK_REALTIME
PACKET = struct.Struct("!4sIQQ")  # magic, stream, sequence number, time when it was sent
RECORD = struct.Struct("!QI4sIQQ")  # time of arrival, bytes of UDP payload; then PACKET as it came
SENT = struct.Struct("!Q")


class Arrival(Struct, frozen=True):
    """One packet of a stream as it arrived."""

    received: int
    size: int
    sequence: int
    sent: int


def stream(workload: str) -> int:
    """Return the number that identifies the packets of a workload."""
    return crc32(workload.encode())


def arrivals(data: bytes, wanted: int) -> list[Arrival]:
    """Read the records of a stream, without packets of other streams and without a truncated record."""
    whole = memoryview(data)[: len(data) - len(data) % RECORD.size]
    return [
        Arrival(received, size, sequence, sent)
        for received, size, magic, number, sequence, sent in RECORD.iter_unpack(whole)
        if magic == MAGIC and number == wanted and size >= PACKET.size
    ]


def sent_times(data: bytes) -> list[int]:
    """Read the times at which packets were sent, in the order of their sequence numbers."""
    return [t for (t,) in SENT.iter_unpack(memoryview(data)[: len(data) - len(data) % SENT.size])]
