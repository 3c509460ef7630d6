"""A row of the table of figures: what is measured, in which unit, and how."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

PERCENTILES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


class Metric(Struct, frozen=True):
    """One figure: what it belongs to (a key of OWNERS), its name there, its unit, and how it is measured.

    `better` is the direction in which a change is an improvement, "" where there is none. `when` names the protocols
    of a flow that have it, all when empty. Of a counter of a role the value is what was counted in the run, and of a
    `gauge` the highest that was sampled.
    """

    of: str
    name: str
    unit: str
    how: str
    better: Literal["higher", "lower", ""] = ""
    when: tuple[str, ...] = ()
    gauge: bool = False

    @property
    def ratio(self) -> bool:
        """Whether two runs are compared by their ratio; what is often 0, such as a loss, is by the difference."""
        return self.unit not in ("%", "", "packet", "segment", "count") and not self.name.startswith("gap")


def times(of: str, what: str, how: str, when: tuple[str, ...] = ()) -> Iterable[Metric]:
    """Yield a row for each percentile of a time in milliseconds."""
    for share in PERCENTILES:
        yield Metric(of, f"{what}_{share}_ms", "ms", how, "lower", when)
