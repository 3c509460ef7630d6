"""What the command line shows, as text: columns, the report of a run, what is where (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testbed.machines.here import Finding
    from testbed.report import Outcome, Report

_ROWS = 30  # nodes that fit on one screen


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines with aligned columns."""
    widths = [max((len(r[n]) for r in rows if n < len(r)), default=0) for n in range(max(map(len, rows), default=0))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def where(found: Mapping[str, Iterable[tuple[str, str]]]) -> str:
    """Return the nodes with their interfaces and addresses; of a large lab the first ones."""
    rows = [(f"  {node}", "  ".join(f"{i} {a or '-'}" for i, a in interfaces)) for node, interfaces in found.items()]
    more = f"\n  ... and {len(rows) - _ROWS} more nodes (`--json` has all)" if len(rows) > _ROWS else ""
    return columns(rows[:_ROWS]) + more


def features(found: Iterable[Finding]) -> str:
    """Return a table of features: there or not, what for, how that is known, and how to get what is missing."""
    rows = []
    for f in found:
        known = f.known if f.present else f"{f.known}; {f.feature.cure}"
        rows.append(("yes" if f.present else "NO", f.feature.name, f.feature.purpose, known))
    return columns(rows)


def report(found: Report, place: str) -> str:
    """Return the outcome of a run; `place` is its results folder as the user would write it."""
    return "\n\n".join(_sections(found, place))


def _sections(found: Report, place: str) -> Iterator[str]:
    measured = []
    for name, work in found.topology.workloads.items():
        for key in work.workload().metrics():
            if (metric := found.metrics.get(f"{name}.{key}")) is not None:
                value = f"{metric.value:.3f}".rstrip("0").rstrip(".")
                measured.append((f"  {name}.{key}", value, metric.unit, metric.note))
    yield f"{found.topology.name}: {found.verdict}"
    if measured:
        yield f"measured\n{columns(measured)}"
    if found.outcomes:
        yield f"checks\n{columns([_check(o) for o in found.outcomes])}"
    if found.doubts:
        yield f"validity\n{columns([(f'  {d.what}', d.seen) for d in found.doubts])}"
    for failure in found.failures:
        yield f"failed: {failure}"
    yield f"results in {place}"


def _check(o: Outcome) -> tuple[str, ...]:
    value = "-" if o.value is None else f"{o.value:.6g} {o.unit}".strip()
    return ("  pass" if o.passed else "  FAIL", o.metric, o.expected, value, o.why)
