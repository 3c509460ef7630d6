"""Before a run: let the routers and hosts on the way of each ping find their neighbours (ARP, RFC 826; ND, RFC 4861).

The first packet over a link that nobody used waits for that, a round trip of each link, and would count as its RTT.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping

from msgspec import Struct

_ECHO = {4: (8, 0), 6: (128, 129)}  # types of request and reply (RFC 792, RFC 4443)
_AGAIN = 0.25  # seconds until a request is sent again


class Asking(Struct):
    """The sockets of a node by IP version, and the addresses that have not answered."""

    sockets: dict[int, socket.socket]
    targets: set[str]


def opened(targets: Iterable[str]) -> Asking:
    """Open sockets in this process's namespace."""
    asking = Asking({}, set(targets))
    for version in {_version(t) for t in asking.targets}:
        family, protocol = (socket.AF_INET, 1) if version == 4 else (socket.AF_INET6, 58)
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
        asking.sockets[version] = sock
    return asking


def find(nodes: Mapping[str, Asking], patience: float) -> dict[str, set[str]]:
    """Send echo requests until all are answered, for some seconds; return the addresses that were not, by node."""
    until, again = time.monotonic() + patience, 0.0
    heard = {sock.fileno(): (sock, asking) for asking in nodes.values() for sock in asking.sockets.values()}
    waiting = select.poll()  # select() knows no descriptor above 1023
    for fd in heard:
        waiting.register(fd, select.POLLIN)
    while (now := time.monotonic()) < until and any(asking.targets for asking in nodes.values()):
        if now >= again:
            again = now + _AGAIN
            for asking in nodes.values():
                for target in asking.targets:
                    _send(asking.sockets[_version(target)], target)
        for fd, _ in waiting.poll(max(0.0, min(until, again) - now) * 1000):
            sock, asking = heard[fd]
            asking.targets -= _answers(sock)
    for sock, _ in heard.values():
        sock.close()
    return {name: asking.targets for name, asking in nodes.items()}


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def _send(sock: socket.socket, target: str) -> None:
    kind, _ = _ECHO[_version(target)]
    try:
        sock.sendto(request(kind), (target, 0))
    except OSError:
        return  # no route, or no room: it counts as not answered


def request(kind: int) -> bytes:
    """Return an echo request; the kernel computes the checksum of ICMPv6 (RFC 3542 section 3.1)."""
    number = os.getpid() & 0xFFFF
    total = (kind << 8) + number
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", kind, 0, ~total & 0xFFFF, number, 0)


def _answers(sock: socket.socket) -> set[str]:
    """Return the addresses whose replies have come."""
    found: set[str] = set()
    version = 4 if sock.family == socket.AF_INET else 6
    number = struct.pack("!H", os.getpid() & 0xFFFF)
    while True:
        try:
            packet, sender = sock.recvfrom(2048)
        except OSError:  # nothing more, or an error that a router reported
            return found
        message = packet[(packet[0] & 15) * 4 :] if version == 4 else packet
        if len(message) >= 8 and message[0] == _ECHO[version][1] and message[4:6] == number:
            found.add(sender[0])
