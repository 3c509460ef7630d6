"""Checks: which value of a series a time means, by closed forms."""

from __future__ import annotations

import pytest

from testbed.language.topology import Check
from testbed.metrics.measured import Measured
from testbed.report.report import _judge

# The rate is n in the second that ends at n; iperf3's own times are never round.
RATES = Measured(5.0, "Mbit/s", tuple((n + 0.000075, float(n)) for n in range(1, 11)), span=1.0)
# A flow whose handshake took a quarter of a second.
LATER = Measured(5.0, "Mbit/s", tuple((n + 0.25, float(n)) for n in range(1, 11)), span=1.0)
COUNTS = Measured(40.0, "byte", tuple((n * 0.25, float(n)) for n in range(41)))


@pytest.mark.parametrize(
    ("metric", "at", "value"),
    [
        (RATES, 4.0, 4),
        (RATES, 1.0, 1),
        (RATES, 10.0, 10),
        (LATER, 4.0, 4),
        (COUNTS, 4.0, 16),
        (COUNTS, 4.2, 16),
        (COUNTS, 3.9999, 16),
    ],
)
def test_a_check_at_a_time_takes_the_interval_that_ends_there(metric: Measured, at: float, value: float) -> None:
    assert _judge(Check(metric="m.x", at=f"{at}s", equals=value), {"m.x": metric}, {}).passed


def test_a_rate_has_no_value_long_after_its_flow() -> None:
    outcome = _judge(Check(metric="m.x", at="15s", min=0), {"m.x": RATES}, {})
    assert not outcome.passed
    assert outcome.why == "m.x: no interval that ends at 15 s"
