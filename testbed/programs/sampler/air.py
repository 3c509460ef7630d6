"""Count data frames on one channel by transmitter and receiver, from the ring of a packet socket (packet(7)).

A monitor interface hears all frames that the lab's radios send on its channel, and none of other labs.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct

from msgspec import Struct, field

_SOL_PACKET, _RX_RING, _STATISTICS, _VERSION, _TPACKET_V2 = 263, 5, 6, 10, 1
_SO_ATTACH_FILTER = 26
_ETH_P_ALL = 3
_FRAME, _BLOCK, _BLOCKS = 256, 1 << 16, 32  # bytes: a ring of 2 MiB, of 8192 frames
_HEAD = struct.Struct("=IIIH")  # struct tpacket2_hdr: tp_status, tp_len, tp_snaplen, tp_mac
_TO_USER = 1
_KEEP = 96  # bytes of a frame: radiotap and the header
# Classic BPF (linux/filter.h): after the radiotap header, whose length is its third byte, a data frame with data
# (IEEE 802.11-2024 9.2.4.1: type 10, and the subtype's bit "no data" is clear).
_DATA = (
    (0x30, 0, 0, 2),  # ldb [2]
    (0x07, 0, 0, 0),  # tax
    (0x50, 0, 0, 0),  # ldb [x + 0]
    (0x54, 0, 0, 0x4C),  # and #0x4c
    (0x15, 0, 1, 0x08),  # jeq #0x08
    (0x06, 0, 0, _KEEP),  # ret: keep
    (0x06, 0, 0, 0),  # ret: drop
)


class Ear(Struct):
    """The ring of one channel (MHz): it counts frames and bytes by transmitter and receiver address (A2, A1)."""

    freq: int
    sock: socket.socket
    ring: mmap.mmap
    at: int = 0
    counts: dict[bytes, list[int]] = field(default_factory=dict)
    drops: int = 0

    def drain(self) -> None:
        """Count the frames since the last call; their lengths are those without radiotap."""
        ring, counts = self.ring, self.counts
        while True:
            status, length, _, offset = _HEAD.unpack_from(ring, self.at)
            if not status & _TO_USER:
                break
            start = self.at + offset
            header = ring[start + 2]  # of radiotap; it is shorter than 256 bytes
            addresses = ring[start + header + 4 : start + header + 16]
            row = counts.get(addresses)
            if row is None:
                row = counts[addresses] = [0, 0]
            row[0] += 1
            row[1] += length - header
            struct.pack_into("=I", ring, self.at, 0)
            self.at = (self.at + _FRAME) % (_BLOCK * _BLOCKS)
        self.drops += struct.unpack("=II", self.sock.getsockopt(_SOL_PACKET, _STATISTICS, 8))[1]

    def rows(self) -> list[tuple[int, str, str, int, int]]:
        """Return (MHz, transmitter, receiver, frames, bytes) since the start."""
        return [(self.freq, a[6:].hex(":"), a[:6].hex(":"), frames, size) for a, (frames, size) in self.counts.items()]


def hear(ifname: str, freq: int) -> Ear:
    """Open the ring of a monitor interface in the namespace that this process is in."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    program = b"".join(struct.pack("=HBBI", *row) for row in _DATA)
    kept = ctypes.create_string_buffer(program)  # struct sock_fprog points to it
    fprog = struct.pack("@HxxxxxxQ", len(_DATA), ctypes.addressof(kept))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
    sock.setsockopt(_SOL_PACKET, _VERSION, struct.pack("=I", _TPACKET_V2))
    frames = _BLOCK * _BLOCKS // _FRAME
    sock.setsockopt(_SOL_PACKET, _RX_RING, struct.pack("=IIII", _BLOCK, _BLOCKS, _FRAME, frames))
    ring = mmap.mmap(sock.fileno(), _BLOCK * _BLOCKS)
    sock.bind((ifname, _ETH_P_ALL))
    return Ear(freq, sock, ring)
