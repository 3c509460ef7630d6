"""Directions of links that follow a trace, and the points of the trace in a run (pure)."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from testbed.language.topology import WAYS, Topology, Way
from testbed.language.traces import Point, Trace


class Followed(Struct, frozen=True):
    """A direction of a link (by number) that follows a trace, and the points of the run."""

    link: int
    way: Way
    points: tuple[Point, ...]


def followed(topology: Topology, end: float) -> Iterator[Followed]:
    """Yield every direction that follows a trace, with the points of a run that ends at a time."""
    for n, link in enumerate(topology.links):
        for way in WAYS:
            if (trace := link.followed(way)) is not None and trace.points:
                yield Followed(n, way, tuple(unrolled(trace, end)))


def unrolled(trace: Trace, end: float) -> Iterator[Point]:
    """Yield the points of a run: again and again with `loop`."""
    points = trace.points or ()
    turn = 0
    while True:
        for t, *values in points:
            at = round(t + turn * (trace.period or 0.0), 9)
            if at > 0 and at >= end:
                return
            yield (at, *values)  # type: ignore[misc]
        if not trace.loop or not trace.period:
            return
        turn += 1
