"""What a multicast packet carries, and what is kept of each that arrives (pure).

All numbers are big-endian. A packet's UDP payload begins with PACKET and is filled up with zeros. A receiver keeps one
RECORD a packet in `NODE/WORKLOAD.packets`, in the order of arrival; the source keeps the time of each packet that it
sent, in the order of their sequence numbers from 0 on, in `NODE/WORKLOAD.sent` (SENT). Times are nanoseconds of
CLOCK_MONOTONIC, which nobody can set; that of arrival is the kernel's (SO_TIMESTAMPNS), not the program's.
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
    """Return the number that tells the packets of one workload from those of others."""
    return crc32(workload.encode())


def arrivals(data: bytes, wanted: int) -> list[Arrival]:
    """Read the records of a stream; what other packets came, and a record that was cut off, are left out."""
    whole = memoryview(data)[: len(data) - len(data) % RECORD.size]
    return [
        Arrival(received, size, sequence, sent)
        for received, size, magic, number, sequence, sent in RECORD.iter_unpack(whole)
        if magic == MAGIC and number == wanted and size >= PACKET.size
    ]


def sent_times(data: bytes) -> list[int]:
    """Read the times when packets were sent, by sequence number."""
    return [t for (t,) in SENT.iter_unpack(memoryview(data)[: len(data) - len(data) % SENT.size])]
