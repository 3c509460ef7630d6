"""A program that joins a multicast group on an interface and writes a record of each packet (format: `packets`).

Its arguments are `key=value`: group, port, interface, source (empty for all sources), seconds (empty: until SIGTERM),
and `out`, the prefix of its files' names.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import struct
import sys
import time

from testbed.programs.multicast.packets import PACKET

_HEAD = struct.Struct("!QI")  # time of arrival and size, before it
_TIMESPEC = struct.Struct("@ll")
_PAUSE = 0.01  # seconds: packets can be read in batches, since the kernel stamps each with its time of arrival
_FLUSH = 100_000_000  # ns: received packets are in the file after at most this time, so that a drain can see them
_BUFFER = 32 << 20
_CLOSE, _SET = (
    20_000,
    1_000_000,
)  # ns: the difference of two clocks read at once, and the smallest that counts as setting one
_WORD = (1 << 64) - 1
# include/uapi/asm-generic/socket.h
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
# include/uapi/linux/in.h and in6.h: MCAST_JOIN_GROUP etc. have the same number for both IP versions (RFC 3678)
_JOIN, _LEAVE, _JOIN_SOURCE, _LEAVE_SOURCE = 42, 45, 46, 47
_IP_MULTICAST_ALL, _IPV6_MULTICAST_ALL = 49, 29


def main(words: list[str]) -> None:
    """Receive until the time is over or SIGTERM arrives; `out`.receiver.json exists from the join on."""
    given = dict(word.split("=", 1) for word in words)
    family = socket.AF_INET6 if ":" in given["group"] else socket.AF_INET
    level = socket.IPPROTO_IPV6 if family == socket.AF_INET6 else socket.IPPROTO_IP
    sock = opened(family, level, given["group"], int(given["port"]))
    ending: list[int] = []

    def end(number: int, _: object) -> None:
        ending.append(number)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMESPEC.pack(0, 1))  # the read goes on, and ends

    signal.signal(signal.SIGTERM, end)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMESPEC.pack(0, 50_000))
    asked = membership(family, socket.if_nametoindex(given["interface"]), given["group"], given["source"])
    join, leave = (_JOIN_SOURCE, _LEAVE_SOURCE) if given["source"] else (_JOIN, _LEAVE)
    joined = time.monotonic_ns()
    sock.setsockopt(level, join, asked)
    tell(given["out"], joined, None, 0, None)
    until = time.monotonic_ns() + int(float(given["seconds"]) * 1e9) if given["seconds"] else None
    with open(f"{given['out']}.packets", "ab", buffering=0) as file:
        received = kept(sock, file, until, ending)
        left = time.monotonic_ns()
        sock.setsockopt(level, leave, asked)
        received += kept(sock, file, 0, [0])  # what came before that
    tell(given["out"], joined, left, received, drops(sock, family))


def opened(family: int, level: int, group: str, port: int) -> socket.socket:
    """Return a socket that has joined the group and gets each packet with its time of arrival."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    except PermissionError:  # only root of the initial user namespace may
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.setsockopt(level, _IPV6_MULTICAST_ALL if family == socket.AF_INET6 else _IP_MULTICAST_ALL, 0)
    sock.bind((group, port))
    return sock


def membership(family: int, index: int, group: str, source: str) -> bytes:
    """Return struct group_source_req of RFC 3678, or group_req without a source: "0P" aligns as the C compiler does."""
    return struct.pack("@I0P", index) + b"".join(address(family, text) for text in (group, source) if text)


def address(family: int, text: str) -> bytes:
    """Return struct sockaddr_storage of an address."""
    packed = socket.inet_pton(family, text)
    offsets = struct.pack("=HHI16sI", family, 0, 0, packed, 0) if len(packed) == 16 else struct.pack("=HH", family, 0)
    return (offsets if len(packed) == 16 else offsets + packed).ljust(128, b"\0")


def kept(sock: socket.socket, file: io.FileIO, until: int | None, ending: list[int]) -> int:
    """Write a record of each packet until a time of CLOCK_MONOTONIC or until `ending` is readable; count them.

    Pause between batches, so that packets do not cost a wake-up each. At the end, read what is still waiting.
    """
    header = bytearray(PACKET.size)  # kept as it came
    buffers, flags, pack = [header], socket.MSG_TRUNC, _HEAD.pack  # MSG_TRUNC: the size is that of the whole packet
    receive, unpack, space = sock.recvmsg_into, _TIMESPEC.unpack, socket.CMSG_SPACE(_TIMESPEC.size)
    now, rows, count, flushed = time.monotonic_ns, bytearray(), 0, time.monotonic_ns()
    before, last = ahead(), now()
    while True:
        begun = len(rows)
        over = bool(ending) or (until is not None and now() >= until)
        more = socket.MSG_DONTWAIT if over else 0
        try:
            while True:
                size, control, _, _ = receive(buffers, space, flags | more)
                seconds, nanoseconds = unpack(control[0][2])
                # This may be negative after a clock was set back, until that is noticed.
                rows += pack((seconds * 1_000_000_000 + nanoseconds - before) & _WORD, size)
                rows += header
                count += 1
                more = socket.MSG_DONTWAIT
        except BlockingIOError:
            pass
        this, after = now(), ahead()
        if abs(after - before) > _SET:
            mend(rows, begun, after - before, last, this)
            before = after
        last = this
        if rows and (over or now() - flushed >= _FLUSH):
            file.write(rows)
            rows, flushed = bytearray(), now()
        if over:
            return count
        if more:
            time.sleep(_PAUSE)


def ahead() -> int:
    """Return how far CLOCK_REALTIME is ahead of CLOCK_MONOTONIC, from the closest of several readings."""
    offsets = []
    for _ in range(5):
        first, real, second = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        offsets.append((second - first, real - (first + second) // 2))
        if second - first < _CLOSE:
            break
    return min(offsets)[1]


def mend(rows: bytearray, begin: int, step: int, since: int, until: int) -> None:
    """Correct the times of a batch in which CLOCK_REALTIME was set: find the packets that arrived after that."""
    for at in range(begin, len(rows), _HEAD.size + PACKET.size):
        came, size = _HEAD.unpack_from(rows, at)
        if not since <= came <= until:
            _HEAD.pack_into(rows, at, (came - step) & _WORD, size)


def drops(sock: socket.socket, family: int) -> int | None:
    """Count the packets that found the socket's buffer full (last column of /proc/net/udp, by inode)."""
    inode = str(os.fstat(sock.fileno()).st_ino)
    with open("/proc/self/net/udp6" if family == socket.AF_INET6 else "/proc/self/net/udp") as table:
        return next((int(row[-1]) for row in map(str.split, table) if row[9] == inode), None)


def tell(out: str, joined: int, left: int | None, received: int, dropped: int | None) -> None:
    """Write the summary: times are nanoseconds of CLOCK_MONOTONIC, null if not known yet."""
    said = {"joined": joined, "left": left, "packets": received, "socket_drops": dropped}
    with open(f"{out}.receiver.json", "w") as file:
        file.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
