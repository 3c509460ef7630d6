"""A process inside a lab that changes the shaping of links at the times of their traces.

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
from pathlib import Path
from typing import Any

from msgspec import Struct, convert
from msgspec.structs import replace

from testbed.drivers import tc
from testbed.linux import calls as linux
from testbed.linux import netlink, wire
from testbed.linux.wire import Message, Space


class Direction(Struct, frozen=True):
    """An interface that follows a trace: its shaping before the run, and rows of s, bit/s, s of delay, and loss."""

    node: str
    dev: str
    shape: tc.Shape
    rows: tuple[tuple[float, int | None, float | None, float | None], ...]


class Due(Struct, frozen=True, order=True):
    """The messages of a change, for one socket."""

    at: float
    n: int
    row: tuple[float | None, ...]
    messages: tuple[Message, ...]


class Open(Struct, frozen=True):
    """The socket of a node, and the indexes of its interfaces, by which requests are encoded."""

    route: socket.socket
    known: dict[str, int]

    def index(self, ifname: str) -> int:
        """Return the index of an interface."""
        return self.known[ifname]


def main(words: Sequence[str]) -> None:
    """Change links until their traces end, then wait for SIGTERM.

    The arguments are a JSON file with them, and one that is there as soon as the run has begun, with its clock.
    """
    followed = convert(json.loads(Path(words[0]).read_text()), tuple[Direction, ...])
    spaces = [_open(direction.node) for direction in followed]
    with suppress(OSError):  # which needs privileges: without them a busy machine makes it late, and the report says so
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    origin = _origin(Path(words[1]))
    with Path("trace.jsonl").open("a") as out:
        for due in merge(*(_changes(n, d, spaces[n]) for n, d in enumerate(followed))):
            time.sleep(max(0.0, origin + due.at - time.monotonic()))
            refused = netlink.transact(spaces[due.n].route, due.messages)
            row: dict[str, Any] = {"t": time.monotonic(), "at": due.at, "node": followed[due.n].node}
            row |= {"dev": followed[due.n].dev, **dict(zip(("rate", "delay", "loss"), due.row, strict=True))}
            out.write(json.dumps(row | ({"refused": str(refused[0])} if refused else {})) + "\n")
            out.flush()
            if refused:
                raise OSError(f"{followed[due.n].node}:{followed[due.n].dev} at {due.at:g} s: {refused[0]}")
    signal.pause()


def _origin(clock: Path) -> float:
    """Wait for the run to begin; return t = 0 on CLOCK_MONOTONIC."""
    while True:
        with suppress(FileNotFoundError, json.JSONDecodeError):
            return float(json.loads(clock.read_text())["monotonic"])
        time.sleep(0.001)


def _changes(n: int, direction: Direction, space: Any) -> Iterator[Due]:
    """Yield what changes a direction, encoded one change ahead of its time."""
    before = _chain(direction, (0.0, direction.shape.rate, None, None))
    for row in direction.rows:
        after = _chain(direction, row)
        if requests := tc.reshaped(before, after):
            yield Due(row[0], n, row[1:], tuple(_encoded(r, space) for r in requests))
        before = after


def _encoded(request: Any, space: Space) -> Message:
    message: Message = request.encode(space)
    return message


def _chain(direction: Direction, row: tuple[float, int | None, float | None, float | None]) -> tuple[tc.Shaper, ...]:
    _, rate, delay, loss = row
    told = {"rate": rate, "delay": delay, "loss": loss}
    shape = replace(direction.shape, **{k: v for k, v in told.items() if v is not None})
    return tc.driven(direction.dev, shape) if rate is not None else tc.shape(direction.dev, shape)


def _open(node: str) -> Open:
    fd = os.open(f"/run/netns/{node}", os.O_RDONLY)
    linux.setns(fd, linux.CLONE_NEWNET)
    os.close(fd)
    route = netlink.connect(wire.NETLINK_ROUTE)
    return Open(route, dict(netlink.links(route)))
