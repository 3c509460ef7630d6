"""One check and what came of it: at a time, in a window, for a length of time, of several metrics or runs (pure)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from statistics import fmean, median

from msgspec import Struct

from testbed.language.topology import Check
from testbed.metrics import table
from testbed.metrics.measured import Measured, percentile

Window = tuple[float, float]
# The figures of a workload in a window of the run, by its name; a name that is no workload's has none.
Windowed = Callable[[str, Window], Mapping[str, Measured]]


class Outcome(Struct, frozen=True):
    """One check and what came of it; `value` is None when the metric was not measured, and `why` says so.

    What is judged over all repeats of a case passes in each.
    """

    metric: str
    expected: str
    value: float | None
    unit: str
    passed: bool
    why: str = ""


class Known(Struct, frozen=True):
    """What a run measured, why other figures are absent, and the figures of workloads in a window."""

    metrics: Mapping[str, Measured]
    absent: Mapping[str, str] = {}
    windowed: Windowed = lambda *_: {}
    works: frozenset[str] = frozenset()


class Found(Struct, frozen=True):
    """A value with its unit, or why there is none."""

    value: float | None
    unit: str = ""
    why: str = ""


def called(check: Check) -> str:
    """Return what a check is of."""
    by = [check.divide_by] if isinstance(check.divide_by, str) else list(check.divide_by or ())
    name = check.metric or " + ".join(check.sum)
    name += f" / {by[0] if len(by) == 1 else '(' + ' + '.join(by) + ')'}" if by else ""
    name += f" at {check.at:g} s" if check.at is not None else ""
    name += f" from {check.window[0]:g} to {check.window[1]:g} s" if check.window is not None else ""
    return f"{check.repeats} of {name}" if check.repeats != "each" else name


def expected(check: Check) -> str:
    """Return what a check expects."""
    bounds = (("=", check.equals), (">=", check.min), ("<=", check.max))
    text = " and ".join(f"{sign} {value:g}" for sign, value in bounds if value is not None)
    text = text or ("present" if check.present else "absent")
    return f"{text} for {check.for_:g} s" if check.for_ is not None else text


def judge(check: Check, known: Known, repeats: int = 1) -> Outcome:
    """Return what came of a check in one of `repeats` runs of a case."""
    name = called(check)
    if check.present is False:
        there = known.metrics.get(check.metric)
        value = None if there is None else there.value
        return Outcome(name, expected(check), value, "", there is None, "it is there" if there is not None else "")
    if check.for_ is not None:
        return _held(check, known)
    found = _divided(check, partial(_value, check, known))
    if found.value is None and check.repeats != "each" and repeats > 1:
        return Outcome(name, expected(check), None, found.unit, True, found.why)
    if found.value is None:
        return Outcome(name, expected(check), None, found.unit, False, found.why)
    if check.repeats != "each" and repeats > 1:
        return Outcome(name, expected(check), found.value, found.unit, True, f"judged over {repeats} runs")
    return Outcome(name, expected(check), found.value, found.unit, within(check, found.value))


def within(check: Check, value: float) -> bool:
    """Say whether a value is within a check's bounds."""
    low = check.min is None or value >= check.min
    high = check.max is None or value <= check.max
    return low and high and (check.equals is None or value == check.equals)


def across(check: Check, outcomes: Sequence[Outcome]) -> Outcome:
    """Return what came of a check over all repeats of a case; one without a value makes it fail."""
    name, bound = called(check), expected(check)
    values = [o.value for o in outcomes if o.value is not None]
    if len(values) < len(outcomes) or not values:
        why = next((o.why for o in outcomes if o.value is None), "there are no runs")
        return Outcome(name, bound, None, "", False, f"{len(outcomes) - len(values)} runs have no value: {why}")
    ways: dict[str, Callable[[list[float]], float]] = {
        "median": median,
        "mean": fmean,
        "min": min,
        "max": max,
        "p95": lambda v: percentile(v, 0.95),
    }
    value = ways[check.repeats](values)
    return Outcome(name, bound, value, outcomes[0].unit, within(check, value))


def _divided(check: Check, value: Callable[[str], Found]) -> Found:
    found = _summed([check.metric] if check.metric else check.sum, value)
    if found.value is None or check.divide_by is None:
        return found
    names = [check.divide_by] if isinstance(check.divide_by, str) else check.divide_by
    other = _summed(names, value)
    if other.value is None:
        return other
    if not other.value:
        return Found(None, "", f"{' + '.join(names)} is 0")
    share = found.value / other.value
    return Found(share) if isfinite(share) else Found(None, "", f"{called(check)} is not a finite number")


def _summed(names: Sequence[str], value: Callable[[str], Found]) -> Found:
    parts = [value(name) for name in names]
    if lacking := next((p for p in parts if p.value is None), None):
        return lacking
    total = sum(p.value for p in parts if p.value is not None)
    return Found(total, parts[0].unit) if isfinite(total) else Found(None, "", f"{names[0]} is not a finite number")


def _value(check: Check, known: Known, name: str) -> Found:
    """Return the value of one metric, at the time or in the window of a check."""
    work, _, key = name.partition(".")
    if check.window is not None and work in known.works:
        measured = known.windowed(work, check.window).get(key)
        if measured is not None:
            return Found(measured.value, measured.unit)
        if name in known.metrics:
            return Found(None, "", f"{name}: there is nothing to tell it by in this window")
    if (metric := known.metrics.get(name)) is None:
        what = "unsupported: this kernel has no such counter" if table.of_role(name) else "it was not measured"
        return Found(None, "", f"{name}: {what}: {known.absent[name]}" if name in known.absent else f"{name}: {what}")
    if check.window is not None:
        value = metric.within(*check.window)
        why = f"{name}: {'no value of its series is in the window' if metric.series else 'it has no series'}"
        return Found(value, metric.unit, why if value is None else "")
    if check.at is None:
        return Found(metric.value, metric.unit)
    if (value := metric.at(check.at)) is None:
        when = f"no interval that ends at {check.at:g} s" if metric.span else f"no sample at or before {check.at:g} s"
        return Found(None, metric.unit, f"{name}: {when if metric.series else 'it has no series'}")
    return Found(value, metric.unit)


def _held(check: Check, known: Known) -> Outcome:
    """Return how long the bounds held without a break."""
    name, bound = called(check), expected(check)
    metric = known.metrics.get(check.metric)
    if metric is None or not metric.series:
        found = _value(check, known, check.metric)
        return Outcome(name, bound, None, "s", False, found.why or f"{check.metric}: it has no series")
    begin, end = check.window or (0.0, metric.series[-1][0])
    longest = current = 0.0
    for start, stop, value in metric.spans():
        start, stop = max(start, begin), min(stop, end)
        if stop <= start:
            continue
        current = current + stop - start if within(check, value) else 0.0
        longest = max(longest, current)
    held = longest >= (check.for_ or 0.0) - 1e-3
    return Outcome(name, bound, longest, "s", held, "" if held else f"at most for {longest:.3g} s without a break")
