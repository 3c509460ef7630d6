"""A process inside a lab that changes the shaping of links as their traces say.

The clock is absolute: what comes late makes nothing after it late. What was told to the kernel, and when, is a line of
trace.jsonl: `t` is CLOCK_MONOTONIC in seconds, `at` the time of the run at which it was due.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from heapq import merge
from itertools import pairwise
from pathlib import Path
from typing import Any

from msgspec import Struct, convert
from msgspec.structs import replace

from testbed.drivers import tc
from testbed.linux import calls as linux
from testbed.linux import netlink, uapi, wire
from testbed.programs.replay import law

_Point = tuple[float, float | None, float | None, float | None]  # s of the run, bit/s, s of delay, share of loss


class Direction(Struct, frozen=True):
    """An interface that follows a trace: its shaping before the run, and the points of the trace."""

    node: str
    dev: str
    shape: tc.Shape
    points: tuple[_Point, ...]


class Asked(Struct, frozen=True):
    """What is replayed, in a run of so many seconds."""

    seconds: float
    directions: tuple[Direction, ...]


class Look(Struct, frozen=True, order=True):
    """When a direction is looked at, until when that holds, and the delay and loss of that time."""

    at: float
    n: int
    until: float
    delay: float | None
    loss: float | None


class Open(Struct, frozen=True):
    """The socket of a node, and the indexes of its interfaces, by which requests are encoded."""

    route: socket.socket
    known: dict[str, int]

    def index(self, ifname: str) -> int:
        """Return the index of an interface."""
        return self.known[ifname]


class Followed(Struct):
    """A direction as it is now: its shaping, what its class was told, and the bytes that left it."""

    direction: Direction
    space: Open
    trace: law.Bits | None
    shape: tc.Shape
    told: law.Told
    bytes: int = 0

    def turn(self, look: Look, now: float) -> dict[str, Any] | None:
        """Tell the kernel what holds from now on (s of the run); return that, or None where nothing changes."""
        wanted = {"delay": look.delay, "loss": look.loss}
        if self.trace is not None:
            sent, waiting = self._left()
            left = law.Left(8.0 * (sent - self.bytes), waiting > 0)
            self.told = law.told(self.trace, self.told, left, now, look.until, self._frame())
            self.bytes, wanted["rate"] = sent, self.told.rate
        shape = replace(self.direction.shape, **{k: v for k, v in wanted.items() if v is not None})
        requests: tuple[Any, ...] = tc.reshaped(self._chain(self.shape), self._chain(shape))
        self.shape = shape
        if not requests:
            return None
        refused = netlink.transact(self.space.route, [r.encode(self.space) for r in requests])
        row = {"node": self.direction.node, "dev": self.direction.dev, "rate": None, **wanted}
        return row | ({"refused": str(refused[0])} if refused else {})

    def start(self, now: float) -> None:
        """Begin: what left before the run does not count."""
        if self.trace is not None:
            self.bytes, self.told = self._left()[0], replace(self.told, free=now)

    def _left(self) -> tuple[int, int]:
        dump = tc.classes(self.space.index(self.direction.dev))
        return tc.parse_class(netlink.dump(self.space.route, uapi.RTM_GETTCLASS, dump)[0])

    def _chain(self, shape: tc.Shape) -> tuple[tc.Shaper, ...]:
        return (tc.driven if self.trace is not None else tc.shape)(self.direction.dev, shape)

    def _frame(self) -> int:
        return 8 * max(tc.FRAME, self.direction.shape.frame)


def main(words: Sequence[str]) -> None:
    """Change links until their traces end, then wait for SIGTERM.

    The arguments are a JSON file with them, and one that is there as soon as the run has begun, with its clock.
    """
    asked = convert(json.loads(Path(words[0]).read_text()), Asked)
    followed = [_followed(direction) for direction in asked.directions]
    with suppress(OSError):  # which needs privileges: without them a busy machine makes it late, and the report says so
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    origin = _origin(Path(words[1]))
    for each in followed:
        each.start(time.monotonic() - origin)
    with Path("trace.jsonl").open("a") as out:
        for look in merge(*(looks(n, d, asked.seconds) for n, d in enumerate(asked.directions))):
            time.sleep(max(0.0, origin + look.at - time.monotonic()))
            row = followed[look.n].turn(look, time.monotonic() - origin)
            if row is not None:
                out.write(json.dumps({"t": time.monotonic(), "at": look.at, **row}) + "\n")
                out.flush()
                if "refused" in row:
                    raise OSError(f"{row['node']}:{row['dev']} at {look.at:g} s: {row['refused']}")
    signal.pause()


def looks(n: int, direction: Direction, end: float) -> Iterator[Look]:
    """Yield when a direction is looked at: at each of its points, and where its rate is thought about."""
    values = {t: (delay, loss) for t, _, delay, loss in direction.points}
    rates = _rates(direction)
    frame = 8 * max(tc.FRAME, direction.shape.frame)
    times = sorted({*values, *(law.looks(rates, end, frame) if rates else ())})
    now = values[times[0]]
    for t, until in pairwise([*times, max(end, times[-1])]):
        now = values.get(t, now)
        yield Look(t, n, until, *now)


def _followed(direction: Direction) -> Followed:
    rates = _rates(direction)
    trace, first = law.bits_of(rates) if rates else None, law.Told(direction.shape.rate or 0)
    return Followed(direction, _open(direction.node), trace, direction.shape, first)


def _rates(direction: Direction) -> list[tuple[float, float]]:
    return [(t, rate) for t, rate, _, _ in direction.points if rate is not None]


def _origin(clock: Path) -> float:
    """Wait for the run to begin; return t = 0 on CLOCK_MONOTONIC."""
    while True:
        with suppress(FileNotFoundError, json.JSONDecodeError):
            return float(json.loads(clock.read_text())["monotonic"])
        time.sleep(0.001)


def _open(node: str) -> Open:
    fd = os.open(f"/run/netns/{node}", os.O_RDONLY)
    linux.setns(fd, linux.CLONE_NEWNET)
    os.close(fd)
    route = netlink.connect(wire.NETLINK_ROUTE)
    return Open(route, dict(netlink.links(route)))
