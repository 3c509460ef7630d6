"""What the path managers of a run heard -> metrics: how many events of each kind, and when (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from testbed.drivers.mptcp_pm import Kind
from testbed.metrics.measured import Measured
from testbed.metrics.records import Noted
from testbed.metrics.table import unit


def events(node: str, rows: Sequence[Noted], origin: float) -> dict[str, Measured]:
    """Return the events since t = 0 of a node whose path manager wrote a log: those that did not happen are 0."""
    figures: dict[str, Measured] = {}
    for kind in get_args(Kind):
        times = [r.t - origin for r in rows if r.event == kind and r.t > origin]
        series = ((0.0, 0.0), *((t, float(n)) for n, t in enumerate(times, 1)))
        figures[f"{node}.mptcp.events.{kind}"] = Measured(float(len(times)), unit("events", kind), series)
        if times:
            name = f"{kind}_first_s"
            figures[f"{node}.mptcp.events.{name}"] = Measured(times[0], unit("events", name))
    return figures
