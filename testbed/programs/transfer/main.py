"""One end of a transfer: it sends so many bytes, or receives until its peer has sent all, and reports as iperf3 does.

iperf3 -n ends a test when the last byte is in the sender's buffer, and drops what is still on its way.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from testbed.linux import uapi

_EVERY = 0.1  # seconds of an interval
_MOST = 1 << 18  # bytes that are received at once
_MPTCP = 262  # IPPROTO_MPTCP
_PACING = 47  # SO_MAX_PACING_RATE (asm-generic/socket.h)
_INFO = 256  # bytes of struct tcp_info that are read


class StopError(Exception):
    """The run wants this program to end."""


class Count(Struct):
    """What passed in each interval since `began` (CLOCK_MONOTONIC, seconds)."""

    began: float
    since: float
    bytes: int = 0
    resent: dict[int, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def due(self) -> float:
        """Return how long (s) the interval goes on."""
        return max(0.0, self.since + _EVERY - time.monotonic())

    def close(self, streams: Sequence[socket.socket], sends: bool) -> None:
        """End the interval."""
        now = time.monotonic()
        span = {"start": self.since - self.began, "end": now - self.began}
        rows = [{**span, "bytes": 0, "sender": sends, **self._info(n, s)} for n, s in enumerate(streams) if sends]
        self.rows.append({"sum": {**span, "bytes": self.bytes, "sender": sends}, "streams": rows})
        self.since, self.bytes = now, 0

    def _info(self, n: int, stream: socket.socket) -> dict[str, int]:
        """Return RTT (us) and new retransmits of a stream, of MPTCP of its first subflow."""
        with suppress(OSError, struct.error):
            info = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO)
            (rtt,), (total,) = (struct.unpack_from("=I", info, at) for at in (uapi.TCPI_RTT, uapi.TCPI_TOTAL_RETRANS))
            before, self.resent[n] = self.resent.get(n, 0), total
            return {"rtt": rtt, "retransmits": total - before}
        return {}


def main(words: Sequence[str]) -> None:
    """Transfer; words are KEY=VALUE: `port`, `parallel`, `family`, `mptcp`, `sends` (bytes), `out`, and of sockets."""
    asked = dict(word.split("=", 1) for word in words)
    signal.signal(signal.SIGTERM, _stop)
    sends = int(asked["sends"])
    error = ""
    count = Count(0.0, 0.0)
    streams: list[socket.socket] = []
    try:
        streams += _connected(asked) if asked.get("connect") else _accepted(asked)
        count = Count(*(time.monotonic(),) * 2)
        for stream in streams:
            stream.setblocking(False)
        _send(streams, sends, count) if sends else _receive(streams, count)
    except StopError:
        error = "it was told to end"
    except OSError as e:
        error = f"{e.strerror or e}"
    if count.began:
        count.close(streams, bool(sends))
    told = {"began": count.began, "intervals": count.rows, "error": error}
    Path(asked["out"]).write_text(f"{json.dumps(told)}\n")


def _stop(*_: object) -> None:
    raise StopError


def _socket(asked: dict[str, str], family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM, _MPTCP if asked["mptcp"] == "1" else 0)
    if congestion := asked.get("congestion"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    if window := int(asked.get("window", "0")):
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, buffer, window)
    if mss := int(asked.get("mss", "0")):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
    if rate := int(asked.get("rate", "0")):  # bytes a second
        sock.setsockopt(socket.SOL_SOCKET, _PACING, rate)
    return sock


def _connected(asked: dict[str, str]) -> list[socket.socket]:
    streams = []
    for n in range(int(asked["parallel"])):
        sock = _socket(asked, socket.AF_INET6 if ":" in asked["connect"] else socket.AF_INET)
        address, _, dev = asked.get("bind", "").partition("%")
        first = int(asked.get("from", "0"))
        if dev:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, dev.encode())
        if address or first:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, first + n if first else 0))
        sock.connect((asked["connect"], int(asked["port"])))
        streams.append(sock)
    return streams


def _accepted(asked: dict[str, str]) -> list[socket.socket]:
    with _socket(asked, socket.AF_INET6 if asked["family"] == "6" else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", int(asked["port"])))
        listener.listen(int(asked["parallel"]))
        return [listener.accept()[0] for _ in range(int(asked["parallel"]))]


def _send(streams: Sequence[socket.socket], total: int, count: Count) -> None:
    """Send all, and wait until each peer has closed: it has everything then."""
    waiting = select.poll()
    share, rest = divmod(total, len(streams))
    left = {s.fileno(): (s, share + (n < rest)) for n, s in enumerate(streams)}
    for fd in left:
        waiting.register(fd, select.POLLOUT)
    block = memoryview(bytes(_MOST))
    while left:
        for fd, _ in waiting.poll(count.due() * 1000):
            sock, size = left[fd]
            if size:
                with suppress(BlockingIOError):
                    sent = sock.send(block[:size])
                    count.bytes += sent
                    left[fd] = sock, size - sent
                if not left[fd][1]:
                    sock.shutdown(socket.SHUT_WR)
                    waiting.modify(fd, select.POLLIN)
            elif not sock.recv(1):
                waiting.unregister(fd)
                del left[fd]
        if not count.due():
            count.close(streams, sends=True)


def _receive(streams: Sequence[socket.socket], count: Count) -> None:
    """Receive until every peer has sent all."""
    waiting = select.poll()
    left = {s.fileno(): s for s in streams}
    for fd in left:
        waiting.register(fd, select.POLLIN)
    while left:
        for fd, _ in waiting.poll(count.due() * 1000):
            got = len(left[fd].recv(_MOST))
            count.bytes += got
            if not got:
                waiting.unregister(fd)
                left.pop(fd).shutdown(socket.SHUT_WR)
        if not count.due():
            count.close(streams, sends=False)


if __name__ == "__main__":
    main(sys.argv[1:])
