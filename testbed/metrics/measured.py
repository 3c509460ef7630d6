"""A figure with its unit, and percentiles (pure)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from math import inf
from typing import Any

from msgspec import Struct

from testbed.metrics.metric import PERCENTILES

COUNTED = frozenset(("byte", "packet", "segment", "count", "frame", "join"))  # units of what only grows
_ROUND = 1e-3  # seconds by which times that mean the same may differ


class Measured(Struct, frozen=True):
    """A value with its unit; `series` has (seconds on the run's clock, value) pairs; a note qualifies it.

    A value of the series is that of the `span` seconds which end at its time, or of a moment where that is 0.
    """

    value: float
    unit: str
    series: tuple[tuple[float, float], ...] = ()
    note: str = ""
    span: float = 0.0

    def at(self, moment: float) -> float | None:
        """Return the value of the series at a time, None when there is none.

        A sample holds until the next one. A rate is that of the interval which ends nearest to the time: intervals
        begin with the flow, a few milliseconds after the second, and the time of none is exact.
        """
        if not self.span:
            n = bisect_right(self.series, moment + _ROUND, key=lambda pair: pair[0])
            return self.series[n - 1][1] if n else None
        ended, value = min(self.series, key=lambda pair: abs(pair[0] - moment), default=(inf, 0.0))
        return value if abs(ended - moment) <= self.span else None

    def spans(self) -> Iterator[tuple[float, float, float]]:
        """Yield (from, to, value) of the series: a sample holds until the next, a rate in the interval before."""
        if self.span:
            before = -inf
            for t, value in self.series:
                yield max(before, t - (self.span if before == -inf else 1.5 * self.span)), t, value
                before = t
        else:
            yield from ((t, after, v) for (t, v), (after, _) in pairwise(self.series))

    def within(self, begin: float, end: float) -> float | None:
        """Return the value in a part of the run: the mean of a rate, the growth of a counter, the highest of others."""
        if self.span:
            parts = [(min(stop, end) - max(start, begin), v) for start, stop, v in self.spans()]
            spent = sum(length for length, _ in parts if length > 0)
            return sum(length * v for length, v in parts if length > 0) / spent if spent else None
        if self.unit in COUNTED:
            first, last = self.at(begin), self.at(end)
            first = 0.0 if first is None and self.series and self.series[0][0] >= begin else first
            return None if first is None or last is None else last - first
        inside = [v for t, v in self.series if begin <= t <= end]
        return max(inside) if inside else self.at(begin)

    def plain(self) -> dict[str, Any]:
        """Return its entry in metrics.json."""
        row: dict[str, Any] = {"value": self.value, "unit": self.unit}
        if self.note:
            row["note"] = self.note
        if self.series:
            row["series"] = [[round(t, 3), v] for t, v in self.series]
        return row


def percentile(values: list[float], share: float) -> float:
    """Return the nearest-rank percentile (share from 0 to 1) of a list that is not empty."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * len(ordered) * 1000) // 1000) - 1))]


def latencies(values: list[float], what: str) -> dict[str, Measured]:
    """Return the usual percentiles of times in milliseconds as metrics `<what>_p50_ms` ..."""
    if not values:
        return {}
    return {f"{what}_{name}_ms": Measured(percentile(values, share), "ms") for name, share in PERCENTILES.items()}
