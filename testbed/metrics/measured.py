"""A figure with its unit, and percentiles (pure)."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from testbed.metrics.table import PERCENTILES


class Measured(Struct, frozen=True):
    """A value with its unit; `series` has (seconds on the run's clock, value) pairs; a note qualifies it."""

    value: float
    unit: str
    series: tuple[tuple[float, float], ...] = ()
    note: str = ""

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
