"""Checks: which value of a series a time means, by closed forms."""

from __future__ import annotations

import pytest
from yaml import safe_load

from testbed.language.topology import Check
from testbed.metrics.measured import Measured
from testbed.report.judge import Known, across, judge

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
    assert judge(Check(metric="m.x", at=f"{at}s", equals=value), Known({"m.x": metric})).passed


def test_a_rate_has_no_value_long_after_its_flow() -> None:
    outcome = judge(Check(metric="m.x", at="15s", min=0), Known({"m.x": RATES}))
    assert not outcome.passed
    assert outcome.why == "m.x: no interval that ends at 15 s"


def seen(text: str, **metrics: Measured) -> tuple[float | None, bool, str]:
    """Return what comes of a check of metrics that are called m.NAME."""
    check = Check.model_validate(safe_load(text))
    outcome = judge(check, Known({f"m.{name}": m for name, m in metrics.items()}))
    return outcome.value, outcome.passed, outcome.why


@pytest.mark.parametrize(
    ("check", "value"),
    [
        ("{metric: m.rates, window: [4s, 8s], min: 0}", (5 + 6 + 7 + 8) / 4),  # the mean of four seconds
        ("{metric: m.rates, window: [4.5s, 6s], min: 0}", (0.5 * 5 + 6) / 1.5),
        ("{metric: m.counts, window: [2s, 4s], min: 0}", 8),  # what a counter grew by
        ("{metric: m.counts, window: [0s, 1s], min: 0}", 4),
        ("{metric: m.gauge, window: [2s, 4s], min: 0}", 3),  # the highest
        ("{sum: [m.rates, m.later], min: 0}", 10),
        ("{metric: m.counts, divide_by: [m.counts, m.more], min: 0}", 0.8),
        ("{sum: [m.counts, m.more], divide_by: m.more, at: 4s, min: 0}", None),
    ],
)
def test_windows_sums_and_shares_are_what_arithmetic_says(check: str, value: float | None) -> None:
    gauge = Measured(9.0, "subflow", ((0.0, 9.0), (1.0, 2.0), (2.5, 3.0), (3.0, 1.0), (5.0, 8.0)))
    more = Measured(10.0, "byte")
    found, passed, why = seen(check, rates=RATES, later=LATER, counts=COUNTS, gauge=gauge, more=more)
    assert found == (pytest.approx(value, rel=1e-4) if value is not None else None)
    assert passed == (value is not None)
    assert why == ("" if value is not None else "m.more: it has no series")


RISEN = Measured(8.0, "Mbit/s", tuple((n + 1.0, v) for n, v in enumerate((9, 9, 2, 8, 8, 8, 1, 9))), span=1.0)


@pytest.mark.parametrize(
    ("check", "longest", "passes"),
    [
        ("{metric: m.rate, min: 7, for: 3s}", 3, True),
        ("{metric: m.rate, min: 7, for: 3500ms}", 3, False),
        ("{metric: m.rate, max: 2, for: 1s}", 1, True),
        ("{metric: m.rate, min: 7, for: 2s, window: [0s, 3s]}", 2, True),
        ("{metric: m.rate, min: 7, for: 2s, window: [4.5s, 6s]}", 1.5, False),
    ],
)
def test_a_bound_that_must_hold_for_a_time_may_not_be_broken_meanwhile(
    check: str, longest: float, passes: bool
) -> None:
    value, passed, _ = seen(check, rate=RISEN)
    assert value == pytest.approx(longest)
    assert passed == passes


@pytest.mark.parametrize(
    ("repeats", "value"), [("median", 5.0), ("mean", 6.0), ("min", 1.0), ("max", 14.0), ("p95", 14.0)]
)
def test_repeats_of_a_case_are_judged_together(repeats: str, value: float) -> None:
    check = Check(metric="m.x", min=value, max=value, repeats=repeats)
    runs = [judge(check, Known({"m.x": Measured(v, "ms")}), 5) for v in (5.0, 1.0, 14.0, 4.0, 6.0)]
    assert all(o.passed for o in runs), "none fails for itself"
    whole = across(check, runs)
    assert (whole.value, whole.passed, whole.metric) == (value, True, f"{repeats} of m.x")
    assert not across(check, [*runs, judge(check, Known({}), 5)]).passed, "a run without a value"


def test_the_only_run_of_a_case_is_judged_for_itself() -> None:
    check = Check(metric="m.x", min=3, repeats="median")
    assert not judge(check, Known({"m.x": Measured(2.0, "ms")}), 1).passed
