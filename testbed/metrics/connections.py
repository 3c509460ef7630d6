"""MPTCP connections as both of their hosts saw them: one id for the two tokens, and every subflow (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct, field

from testbed.metrics.measured import Measured
from testbed.metrics.owners import Owners
from testbed.metrics.records import Sample, Subflow
from testbed.metrics.table import unit

ESTABLISHED = "ESTAB"
Ends = tuple[str, int, str, int]


class Line(Struct):
    """A subflow as one host saw it; times are seconds of the run, and what nobody saw is None."""

    path: str  # INTERFACE/PEER:INTERFACE
    local: str
    local_port: int
    remote: str
    remote_port: int
    opened_at: float | None = None
    closed_at: float | None = None
    opened_here: bool | None = None
    backup: bool = False
    bytes_sent: int = 0
    bytes_acked: int = 0
    bytes_received: int = 0
    retransmits: int = 0
    rtt_ms: float | None = None
    marks: list[tuple[float, float]] = field(default_factory=list)  # (time, 1 while it is a backup)


class View(Struct):
    """A connection as one host saw it."""

    node: str
    token: int
    subflows: dict[Ends, Line] = field(default_factory=dict)


class Connection(Struct, frozen=True):
    """A connection: its id in this run, and what its hosts saw of it; the one that opened it is the first."""

    id: str
    views: tuple[View, ...]

    @property
    def lines(self) -> Iterator[tuple[str, Line]]:
        """Every subflow of every view, with the node that saw it."""
        for view in self.views:
            for line in view.subflows.values():
                yield view.node, line


def connections(hosts: Mapping[str, Sequence[Sample]], origin: float, owners: Owners) -> list[Connection]:
    """Return the connections in the order in which they were first seen."""
    views: dict[tuple[str, int], View] = {}
    for node, rows in hosts.items():
        for row in rows:
            for s in (*row.subflows, *row.closed):
                view = views.setdefault((node, s.token), View(node, s.token))
                _saw(view, s, row.t, origin, owners)
    by_ends = {(node, ends): (node, token) for (node, token), view in views.items() for ends in view.subflows}
    found, taken = [], set[tuple[str, int]]()
    for key, view in views.items():
        if key in taken:
            continue
        pair = [view]
        for local, local_port, remote, remote_port in view.subflows:
            other = next(
                (
                    by_ends[n, (remote, remote_port, local, local_port)]
                    for n in hosts
                    if n != view.node and (n, (remote, remote_port, local, local_port)) in by_ends
                ),
                None,
            )
            if other is not None and other not in taken and other != key:
                pair.append(views[other])
                taken.add(other)
                break
        taken.add(key)
        first = sorted(pair, key=lambda v: not any(line.opened_here for line in [*v.subflows.values()][:1]))
        found.append(tuple(first))
    found.sort(key=lambda pair: min(line.opened_at or 0.0 for v in pair for line in v.subflows.values()))
    return [Connection(f"c{n + 1}", pair) for n, pair in enumerate(found)]


def _saw(view: View, s: Subflow, t: float, origin: float, owners: Owners) -> None:
    ends = (s.local, s.local_port, s.remote, s.remote_port)
    line = view.subflows.get(ends)
    if line is None:
        _, ifname = owners.at(s.local, t, view.node)
        path = f"{ifname or s.local}/{':'.join(filter(None, owners.at(s.remote, t))) or s.remote}"
        line = view.subflows[ends] = Line(path, *ends)
    if s.opened is not None:
        line.opened_at = round(s.opened - origin, 4)
    if s.closed is not None:
        line.closed_at = round(s.closed - origin, 4)
    line.opened_here = s.here if s.here is not None else line.opened_here
    if s.state == ESTABLISHED:
        line.backup = s.backup
        line.marks.append((t - origin, float(s.backup)))
    line.rtt_ms = s.rtt_ms or line.rtt_ms
    for name in ("bytes_sent", "bytes_acked", "bytes_received", "retransmits"):
        setattr(line, name, max(getattr(line, name), getattr(s, name)))


def figures(found: Sequence[Connection]) -> dict[str, Measured]:
    """Return of each path when it was opened and closed, by whom, how many subflows it had, and if it was a backup."""
    ways: dict[str, list[Line]] = {}
    for connection in found:
        for node, line in connection.lines:
            if line.opened_at is not None and ":" in line.path:
                ways.setdefault(f"{node}.path.{line.path}", []).append(line)
    metrics = {}
    for way, lines in ways.items():
        first = min(lines, key=lambda line: line.opened_at or 0.0)
        told: dict[str, float | None] = {
            "subflows": float(len(lines)),
            "opened_at_s": first.opened_at,
            "opened_here": None if first.opened_here is None else float(first.opened_here),
            "closed_at_s": _closed(lines),
        }
        for key, value in told.items():
            if value is not None:
                metrics[f"{way}.{key}"] = Measured(value, unit("path", key))
        if marks := sorted(mark for line in lines for mark in line.marks):
            metrics[f"{way}.backup"] = Measured(marks[-1][1], unit("path", "backup"), tuple(marks))
    return metrics


def _closed(lines: Sequence[Line]) -> float | None:
    closed = [line.closed_at for line in lines if line.closed_at is not None]
    return max(closed) if len(closed) == len(lines) else None


def rows(found: Sequence[Connection]) -> Iterator[dict[str, object]]:
    """Yield the lines of connections.jsonl."""
    for connection in found:
        opened = [line.opened_at for _, line in connection.lines if line.opened_at is not None]
        views = [
            {
                "node": view.node,
                "token": view.token,
                "subflows": [
                    {k: getattr(line, k) for k in Line.__struct_fields__ if k != "marks"}
                    for line in view.subflows.values()
                ],
            }
            for view in connection.views
        ]
        yield {"id": connection.id, "opened_at": min(opened, default=None), "views": views}
