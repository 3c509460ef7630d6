"""Samples and captures -> metrics of nodes and of the machine (pure, from what the raw files hold)."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import fsum
from typing import TypeVar

from testbed.metrics.measured import Measured
from testbed.metrics.recorded import Stamped
from testbed.metrics.records import Counters, Machine, Sample
from testbed.metrics.table import COUNTER, metric_of, unit

T = TypeVar("T", bound=Stamped)
Series = tuple[tuple[float, float], ...]
_CAPTURED = re.compile(
    r"Packets received/dropped on interface '(?P<dev>[^'\s]{1,15})': (?P<got>\d{1,18})/(?P<lost>\d{1,18})\b", re.ASCII
)
_RATES = (("rx_bytes", "rx_mbps"), ("tx_bytes", "tx_mbps"))
_QUEUE = ("drops", "overlimits")


def interfaces(node: str, rows: Sequence[Sample], origin: float) -> dict[str, Measured]:
    """Return every interface's counters since t = 0, and the rates between samples."""
    figures: dict[str, Measured] = {}
    during = since(rows, origin)
    if not during:
        return figures
    times = [r.t - origin for r in during]
    held = [queues(r) for r in during]
    queued = {dev for row in held for dev in row}
    for ifname, first in during[0].interfaces.items():
        seen = [(t, r.interfaces[ifname]) for t, r in zip(times, during, strict=True) if ifname in r.interfaces]
        for counter in Counters.__struct_fields__:
            began = getattr(first, counter)
            series = tuple((t, float(getattr(c, counter) - began)) for t, c in seen)
            figures[f"{node}.{ifname}.{counter}"] = Measured(series[-1][1], unit("interface", counter), series)
        for counter, rate in _RATES:
            total = figures[f"{node}.{ifname}.{counter}"].series
            pace = tuple((b[0], (b[1] - a[1]) * 8e-6 / (b[0] - a[0])) for a, b in pairwise(total) if b[0] > a[0])
            if pace:
                figures[f"{node}.{ifname}.{rate}"] = Measured(
                    max(v for _, v in pace),
                    unit("interface", rate),
                    pace,
                    "the highest between two samples",
                    (total[-1][0] - total[0][0]) / (len(total) - 1),
                )
        if ifname in queued:
            for n, name in enumerate(_QUEUE):
                sums = [row.get(ifname, _NONE)[n] for row in held]
                series = tuple((t, float(v - sums[0])) for t, v in zip(times, sums, strict=True))
                key = f"qdisc_{name}"
                figures[f"{node}.{ifname}.{key}"] = Measured(series[-1][1], unit("interface", key), series)
    return figures


_NONE = (0, 0)


def queues(row: Sample) -> dict[str, tuple[int, int]]:
    """Return the drops and overlimits of all queue disciplines of each interface."""
    figures: dict[str, tuple[int, int]] = {}
    for q in row.qdiscs:
        drops, overlimits = figures.get(q.dev, _NONE)
        figures[q.dev] = (drops + q.drops, overlimits + q.overlimits)
    return figures


def since(rows: Sequence[T], origin: float) -> Sequence[T]:
    """Return the samples of the run in the order of time, starting with the last one before t = 0."""
    return rows[max(0, bisect_right(rows, origin, key=lambda r: r.t) - 1) :]


def counted(node: str, rows: Sequence[Sample], origin: float) -> dict[str, Measured]:
    """Return the figures that the node's roles count; the table says which there are."""
    figures = {}
    during = since(rows, origin)
    for role, counters in during[0].roles.items() if during else ():
        for name, began in counters.items():
            seen = [(r.t - origin, r.roles[role][name]) for r in during if name in r.roles.get(role, {})]
            if (known := metric_of(role, name) or metric_of(role, COUNTER)) is not None:
                series = tuple((t, float(v - (0 if known.gauge else began))) for t, v in seen)
                value = max(v for _, v in series) if known.gauge else series[-1][1]
                figures[f"{node}.{role}.{name}"] = Measured(value, known.unit, series)
    return figures


def datagrams(rows: Sequence[Sample], origin: float) -> int:
    """Return how many datagrams found a socket's buffer full at a node that receives datagrams."""
    counts = [r.udp for r in since(rows, origin) if r.udp is not None]
    return max(0, counts[-1] - counts[0]) if counts else 0


def _growth(counts: Sequence[tuple[float, int]]) -> Series:
    """Return a counter's increase; nothing if it went back."""
    if any(b < a for (_, a), (_, b) in pairwise(counts)):
        return ()
    return tuple((t, float(n - counts[0][1])) for t, n in counts)


def captures(node: str, lines: Iterable[str]) -> dict[str, Measured]:
    """Return dumpcap's own count of the packets that it captured and dropped."""
    figures = {}
    for said in filter(None, map(_CAPTURED.search, lines)):
        for key, count in (("captured_packets", said["got"]), ("capture_drops", said["lost"])):
            figures[f"{node}.{said['dev']}.{key}"] = Measured(float(count), unit("interface", key))
    return figures


def machine(rows: Sequence[Machine], origin: float) -> dict[str, Measured]:
    """Return the CPU use of the whole machine during the run, and the drops of its queues of received packets."""
    during = [r for r in rows if r.t > origin]
    if not during:
        return {}
    cpu = [(r.t - origin, 100 * r.cpu) for r in during]
    # A single tick is too short to measure CPU use: take the busiest second of which at least half was sampled.
    busy: dict[int, float] = {}
    spent: dict[int, float] = {}
    for (before, _), (t, used) in pairwise([(0.0, 0.0), *cpu]):
        busy[int(t)] = busy.get(int(t), 0.0) + used * (t - before)
        spent[int(t)] = spent.get(int(t), 0.0) + t - before
    means = [busy[second] / spent[second] for second in busy if spent[second] >= 0.5] or [cpu[-1][1]]
    figures = {
        "machine.cpu_max_pct": Measured(
            max(means), unit("machine", "cpu_max_pct"), tuple(cpu), "busiest second, all CPUs"
        ),
        # A guest's Python (3.12 and later) sums floats differently; reports must be the same on both.
        "machine.cpu_mean_pct": Measured(fsum(v for _, v in cpu) / len(cpu), unit("machine", "cpu_mean_pct")),
        "machine.steal_pct": Measured(100 * max(r.steal for r in during), unit("machine", "steal_pct")),
    }
    seen = [(r.t - origin, r.softnet) for r in since(rows, origin) if r.softnet is not None]
    for name in ("dropped", "squeezed"):
        if series := _growth([(t, getattr(counts, name)) for t, counts in seen]):
            key, note = f"softnet_{name}", "all CPUs, everything on them"
            figures[f"machine.{key}"] = Measured(series[-1][1], unit("machine", key), series, note)
    return figures
