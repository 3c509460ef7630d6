"""A program that sends numbered packets to a multicast group at a steady rate (format: `packets`).

Its arguments are `key=value`: group, port, interface, source, stream, interval (ns), size, seconds, ttl, and `out`, the
prefix of its files' names.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import struct
import sys
import time
from array import array
from typing import Any

from testbed.programs.multicast.packets import MAGIC, PACKET

_TIMES = struct.Struct("!QQ")
_BEHIND = 50_000_000  # ns: packets that are later than this are skipped, not sent in a burst
_BUFFER = 4 << 20
_SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h


def main(words: list[str]) -> None:
    """Send until the time is over or SIGTERM arrives, then write `out`.sent and `out`.sender.json."""
    given = dict(word.split("=", 1) for word in words)
    # Send from one processor: each has its own queue (net/core/dev.c: enqueue_to_backlog), and packets in two queues
    # overtake each other. Not from the first of several: with radios, iperf3 keeps that one busy.
    allowed = sorted(os.sched_getaffinity(0))
    mine = allowed[1:] or allowed
    os.sched_setaffinity(0, {mine[int(given["port"]) % len(mine)]})
    sock = opened(given["group"], int(given["port"]), given["interface"], given["source"], int(given["ttl"]))
    payload = bytearray(int(given["size"]))
    PACKET.pack_into(payload, 0, MAGIC, int(given["stream"]), 0, 0)
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ending.append(number))
    times, said = paced(sock, payload, float(given["interval"]), int(float(given["seconds"]) * 1e9), ending)
    if sys.byteorder == "little":
        times.byteswap()
    with open(f"{given['out']}.sent", "wb") as file:
        times.tofile(file)
    with open(f"{given['out']}.sender.json", "w") as file:
        file.write(json.dumps(said) + "\n")


def opened(group: str, port: int, interface: str, source: str, ttl: int) -> socket.socket:
    """Return a socket whose packets leave by an interface, with that interface's address, and do not loop back."""
    index = socket.if_nametoindex(interface)
    if ":" in group:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        level, hops, loop = socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, socket.IPV6_MULTICAST_LOOP
        sock.setsockopt(level, socket.IPV6_MULTICAST_IF, index)
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        level, hops, loop = socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, socket.IP_MULTICAST_LOOP
        mreqn = struct.pack("=4s4si", bytes(4), bytes(4), index)  # ip(7): struct ip_mreqn
        sock.setsockopt(level, socket.IP_MULTICAST_IF, mreqn)
    sock.setsockopt(level, hops, ttl)
    sock.setsockopt(level, loop, 0)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
    except PermissionError:  # only root of the initial user namespace may
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    sock.bind((source, 0))
    sock.connect((group, port))
    return sock


def paced(
    sock: socket.socket, payload: bytearray, interval: float, length: int, ending: list[int]
) -> tuple[array[int], dict[str, Any]]:
    """Send one packet at each multiple of `interval` ns; absolute deadlines prevent drift.

    Return the time of each packet, and a summary. A packet that the kernel refuses gets no sequence number.
    """
    now, sleep, pack, send = time.monotonic_ns, time.sleep, _TIMES.pack_into, sock.send
    times = array("Q")
    refused: dict[str, int] = {}
    slot = skipped = latest = 0
    behind = max(1, int(_BEHIND / interval))
    start = now()
    while (due := int(slot * interval)) < length and not ending:
        late = now() - start - due
        if late < 0:
            sleep(-late / 1e9)
            late = now() - start - due
        if late > latest:
            latest = late
        if (missed := int(late / interval) - behind) > 0:
            slot += missed
            skipped += missed
        moment = now()
        pack(payload, 8, len(times), moment)
        try:
            send(payload)
            times.append(moment)
        except OSError as e:
            name = errno.errorcode.get(e.errno or 0, str(e.errno))
            refused[name] = refused.get(name, 0) + 1
        slot += 1
    said: dict[str, Any] = {"start": start, "end": now(), "sent": len(times), "send_errors": refused}
    return times, {**said, "skipped": skipped, "late_max": latest}


if __name__ == "__main__":
    main(sys.argv[1:])
