"""A link that follows a trace: what a file says of it, and the formats of such files, read into points (pure)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from testbed.spec import Spec
from testbed.units import Moment

# bytes of a packet that leaves at each time of a mahimahi trace: a frame of MTU 1500, as a qdisc counts it
_OPPORTUNITY = 1514
_BIN = 10  # ms
_MOST = 200_000  # points
_KEYS = ("rate", "delay", "loss")
_UNITS: dict[str, dict[str, float]] = {
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "rate": {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9},
    "delay": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "loss": {"%": 0.01},
}
_LARGEST = {"time": 86400.0 * 36500, "rate": 1e12, "delay": 86400.0, "loss": 1.0}
Unit = Literal["s", "ms", "us", "bit", "kbit", "mbit", "gbit", "%"]
Point = tuple[float, float | None, float | None, float | None]  # s, bit/s, s, share


class Column(Spec):
    """A column of a CSV file, by its name in the first row or by its number from 0, and its unit."""

    column: str | int = Field(description="Its name in the first row; a number, from 0, in a file without names")
    unit: Unit = Field(description="time: s, ms, us; rate: bit, kbit, mbit, gbit; delay: s, ms, us; loss: %")


class Columns(Spec):
    """The columns of a CSV file that count."""

    time: Column = Field(description="When a row begins to hold; the first row is t = 0 of the run")
    rate: Column | None = Field(None, description="0 is an outage")
    delay: Column | None = Field(None, description="One way, of this direction")
    loss: Column | None = Field(None, description="The share of packets that are lost")


class Trace(Spec):
    """A file whose rows say what a link or a direction is at each time of a run."""

    file: str | None = Field(None, description="Its path, from the folder of this file")
    format: Literal["csv", "mahimahi"] = Field("csv", description="mahimahi: a line for each packet that may leave, ms")
    columns: Columns | None = Field(None, description="Of a CSV file: which columns count, each with its unit")
    loop: bool = Field(False, description="Begin again after the end; otherwise the last value stays")
    points: tuple[Point, ...] | None = Field(
        None, max_length=_MOST, description="In place of a file: rows of s, bit/s, s of delay, share of loss"
    )
    period: Moment | None = Field(None, description="Of points with `loop`: the time after which they begin again")

    def states(self) -> tuple[str, ...]:
        """Return what the points have: rate, delay, loss."""
        return tuple(k for n, k in enumerate(_KEYS, start=1) if any(p[n] is not None for p in self.points or ()))

    def first(self, key: str) -> float | None:
        """Return the first value of a key."""
        n = _KEYS.index(key) + 1
        return next((p[n] for p in self.points or () if p[n] is not None), None)

    def highest(self) -> float:
        """Return the highest rate in bit/s."""
        return max((p[1] or 0.0 for p in self.points or ()), default=0.0)


def read(trace: Trace, text: str) -> dict[str, Any]:
    """Return what `trace` is with the points of its file; ValueError says what is wrong, with the line."""
    if trace.format == "mahimahi":
        points, period = _mahimahi(text)
    elif trace.columns is None:
        raise ValueError("a CSV file needs `columns`: which of them has the time, and which the rate, delay or loss")
    else:
        points = list(_csv(trace.columns, text))
        period = 2 * points[-1][0] - points[-2][0] if len(points) > 1 else 0.0
    if trace.loop and not period:
        raise ValueError("a trace of one row can't begin again: leave `loop` out")
    return {"points": [list(p) for p in points], "loop": trace.loop, **({"period": period} if trace.loop else {})}


def _csv(columns: Columns, text: str) -> Iterator[Point]:
    lines = enumerate(csv.reader(text.splitlines()), start=1)
    rows = [(n, row) for n, row in lines if any(cell.strip() for cell in row)]
    wanted = {key: column for key in ("time", *_KEYS) if (column := getattr(columns, key)) is not None}
    for key, column in wanted.items():
        if column.unit not in _UNITS[key]:
            raise ValueError(f"{column.unit!r} is not a unit for `{key}` ({', '.join(_UNITS[key])})")
    if len(wanted) == 1:
        raise ValueError("`columns` needs at least one of `rate`, `delay` and `loss` besides `time`")
    places = dict(_places(wanted, rows[0][1] if rows else ()))
    if not all(isinstance(column.column, int) for column in wanted.values()):
        rows = rows[1:]
    if not rows:
        raise ValueError("it has no rows")
    if len(rows) > _MOST:
        raise ValueError(f"it has {len(rows)} rows, and at most {_MOST} are read")
    values: dict[str, float | None] = dict.fromkeys(_KEYS)
    began, last = None, -1.0
    for n, row in rows:
        found = {key: _number(key, column.unit, row, places[key], n) for key, column in wanted.items()}
        if (t := found.pop("time")) is None:
            raise ValueError(f"line {n}: it has no time")
        began = t if began is None else began
        if t - began <= last:
            raise ValueError(f"line {n}: its time is not after that of the row before it")
        last = t - began
        values = values | {k: v for k, v in found.items() if v is not None}
        yield (round(last, 9), values["rate"], values["delay"], values["loss"])


def _places(wanted: dict[str, Column], head: Sequence[str]) -> Iterator[tuple[str, int]]:
    names = [cell.strip() for cell in head]
    for key, column in wanted.items():
        if isinstance(column.column, int):
            yield key, column.column
        elif column.column in names:
            yield key, names.index(column.column)
        else:
            raise ValueError(f"it has no column {column.column!r} (there are: {', '.join(names) or 'none'})")


def _number(key: str, unit: str, row: Sequence[str], place: int, line: int) -> float | None:
    text = row[place].strip() if 0 <= place < len(row) else ""
    if not text:
        return None  # as before
    try:
        value = float(text) * _UNITS[key][unit]
    except ValueError as e:
        raise ValueError(f"line {line}: {text[:40]!r} is not a number for `{key}`") from e
    if not 0 <= value <= _LARGEST[key]:
        raise ValueError(f"line {line}: {text[:40]} {unit} is outside of what `{key}` can be")
    return value


def _mahimahi(text: str) -> tuple[list[Point], float]:
    """Return rates of 10 ms each that let as many packets through as there are lines (mahimahi's mm-link(1))."""
    times: list[int] = []
    for n, row in enumerate(text.splitlines(), start=1):
        if not row.strip():
            continue
        if not row.strip().isdecimal() or len(row) > 12:
            raise ValueError(f"line {n}: {row[:40]!r} is not a time in ms")
        if times and int(row) < times[-1]:
            raise ValueError(f"line {n}: its time is before that of the line above it")
        times.append(int(row))
    if not times or not times[-1]:
        raise ValueError("it has no packets")
    count = -(-times[-1] // _BIN)
    if count > _MOST:
        raise ValueError(f"it is {times[-1] / 1000:g} s long, and at most {_MOST * _BIN / 1000:g} s are read")
    bins = [0] * count
    for t in times:
        bins[min(t // _BIN, count - 1)] += 1
    rates = [8000.0 * _OPPORTUNITY * packets / _BIN for packets in bins]
    return [(n * _BIN / 1000, rate, None, None) for n, rate in enumerate(rates)], count * _BIN / 1000
