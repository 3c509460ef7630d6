"""What the two programs of a transfer wrote, and the figures in it (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

from testbed.metrics.measured import Measured, latencies
from testbed.metrics.recorded import KIB, Count, Real, Recorded, Seconds, Word
from testbed.workloads.place import STALL, Expected

OUTCOMES = (
    "completed",
    "refused",
    "unreachable",
    "unanswered",
    "reset",
    "timed-out",
    "incomplete",
    "unfinished",
    "unsupported",
    "nobody",
    "stopped",
    "killed",
    "failed",
)
EVERY = 0.05  # seconds of a line of progress
_LEAST = 0.04  # seconds of a point of a series
_Text = Annotated[str, Meta(max_length=10_000)]


class Progress(Struct, frozen=True, gc=False):
    """A line of NAME.END.progress.jsonl: what passed since `since`, the longest time without, and answers (ms)."""

    t: Seconds
    since: Seconds
    sent: Count
    got: Count
    gap: tuple[Real, Seconds] | None = None
    answers: list[Real] = []


class Tcp(Struct, frozen=True, gc=False):
    """What TCP counted of a connection or a subflow."""

    rtt_ms: Annotated[float, Meta(ge=0, le=1e9)]
    retransmits: Count
    bytes_sent: Count


class Subflow(Struct, frozen=True, gc=False):
    """A subflow of a connection."""

    tcp: Tcp


class State(Struct, frozen=True):
    """What the kernel said of an MPTCP connection."""

    token: Count
    bytes_sent: Count | None = None
    bytes_retrans: Count | None = None
    subflows: list[Subflow] = []


class Connection(Struct, frozen=True):
    """What an end said of a connection: at a look, and at its end."""

    n: Count
    mptcp: bool
    sent: Count = 0
    got: Count = 0
    state: State | None = None
    tcp: Tcp | None = None
    connected: Seconds = 0.0
    gone: Seconds = 0.0
    come: Seconds = 0.0
    ended: Seconds = 0.0
    was_mptcp: bool = False
    fallen: Seconds | None = None
    messages: Count = 0
    local: Annotated[list[Any], Meta(max_length=2)] = []
    remote: Annotated[list[Any], Meta(max_length=2)] = []
    outcome: Word = "unknown"
    error: _Text = ""


class Looked(Struct, frozen=True):
    """A line of NAME.END.sockets.jsonl."""

    t: Seconds
    connections: list[Connection]


class Final(Struct, frozen=True):
    """NAME.END.json, which the program writes at its end."""

    began: Seconds
    ended: Seconds
    outcome: Word
    error: _Text
    connections: list[Connection]


class End(Struct, frozen=True):
    """One end of a transfer; `final` is None if it was killed before it could write."""

    name: str
    node: str
    origin: float
    final: Final | None
    progress: list[Progress]
    looks: list[Looked]
    signal: int = 0  # that ended it


class Both(Struct, frozen=True):
    """Both ends."""

    client: End
    server: End


def both(name: str, folder: Recorded, nodes: tuple[str, str], connections: int, every: float, seconds: float) -> Both:
    """Read what both ends wrote."""
    found = []
    for node, end in zip(nodes, ("client", "server"), strict=True):
        place, lost = f"{node}/{name}.{end}", f"the metrics of {name} are missing"
        status = folder.statuses.get((node, f"{name}.{end}"), 0)
        missing = "" if status < 0 else lost  # one that was killed wrote no end
        final = folder.value(f"{place}.json", Final, 64 * KIB + connections * 32 * KIB, missing)
        line = 64 * KIB + 128 * connections
        progress = folder.rows(f"{place}.progress.jsonl", Progress, EVERY, line, "", 64)
        looks = folder.rows(f"{place}.sockets.jsonl", Looked, every, 64 * KIB + connections * 16 * KIB, "", 64)
        if final is not None and any(not _timely(c, folder) for c in final.connections):
            folder.note(f"{place}.json", "a time in it is outside of the run", lost)
            final = None
        found.append(End(end, node, folder.origin or 0.0, final, progress, looks, max(0, -status)))
    return Both(*found)


def _timely(c: Connection, folder: Recorded) -> bool:
    return all(folder.within(t) for t in (c.connected, c.gone, c.come, c.ended, c.fallen or 0.0) if t)


def figures(receiver: End, sender: End, total: int | None, folder: Recorded) -> dict[str, Measured]:
    """Return what the receiver of a direction got, and what its sender saw, in the window of the folder."""
    rows = [r for r in receiver.progress if folder.inside((r.t + r.since) / 2 - receiver.origin)]
    got = sum(r.got for r in rows)
    first, last = _first(sender), _last(receiver)
    metrics = {"received_bytes": Measured(got, "byte")} if rows else {}
    if first is None or last is None or not got:
        return metrics | _sender(sender, folder)
    begin, end = first, last
    if folder.window is not None:
        begin, end = max(first, receiver.origin + folder.window[0]), min(last, receiver.origin + folder.window[1])
    seconds = end - begin
    if seconds > 0:
        series = tuple(_series(rows, receiver.origin))
        metrics["goodput_mbps"] = Measured(got * 8e-6 / seconds, "Mbit/s", series, span=EVERY)
        metrics["seconds"] = Measured(seconds, "s")
    length, began = _gap(receiver, rows, first, last)
    metrics["gap_s"] = Measured(length, "s")
    metrics["gap_at_s"] = Measured(began - receiver.origin, "s", note="when it began")
    if folder.window is None:
        metrics["start_s"] = Measured(first - receiver.origin, "s", note="when its first data left")
        if total is not None and got >= total:
            metrics["completion_s"] = Measured(last - first, "s")
    return metrics | _sender(sender, folder)


def _first(end: End) -> float | None:
    """Return when the first byte left."""
    if end.final is not None:
        return min((c.gone for c in end.final.connections if c.gone), default=None)
    return next((r.since for r in end.progress if r.sent), None)


def _last(end: End) -> float | None:
    """Return when the last byte came."""
    if end.final is not None:
        return max((c.come for c in end.final.connections if c.come), default=None)
    return next((r.t for r in reversed(end.progress) if r.got), None)


def _series(rows: Sequence[Progress], origin: float) -> Iterator[tuple[float, float]]:
    """Yield the rate of each line, joined with the next where it is short."""
    since, got = 0.0, 0
    for row in rows:
        since, got = since or row.since, got + row.got
        if row.t - since >= _LEAST:
            yield row.t - origin, got * 8e-6 / (row.t - since)
            since, got = 0.0, 0


def _gap(end: End, rows: Sequence[Progress], first: float, last: float) -> tuple[float, float]:
    """Return the longest time without a byte, and its begin; after the last one, if not all had come."""
    found = [r.gap for r in rows if r.gap is not None]
    gaps = [(length - max(0.0, first - at), max(first, at)) for length, at in found]
    if end.final is not None and any(c.outcome not in ("completed", "stopped") for c in end.final.connections):
        gaps.append((end.final.ended - last, last))
    return max(gaps, default=(0.0, first))


def _sender(end: End, folder: Recorded) -> dict[str, Measured]:
    """Return RTT, retransmits and what went over another subflow again, as the sender's sockets say."""
    metrics: dict[str, Measured] = {}
    looks = [row for row in end.looks if folder.inside(row.t - end.origin)]
    tcps = [t for row in looks for c in row.connections for t in _tcps(c) if t.rtt_ms and t.bytes_sent]
    metrics |= latencies([t.rtt_ms for t in tcps], "rtt")
    if end.final is None or folder.window is not None:
        return metrics
    plain = [c.tcp.retransmits for c in end.final.connections if c.tcp is not None]
    if plain and not any(c.mptcp for c in end.final.connections):
        metrics["retransmits"] = Measured(sum(plain), "segment")
    told = [
        (c.state.bytes_sent, c.state.bytes_retrans)
        for c in end.final.connections
        if c.state is not None and c.state.bytes_sent is not None and c.state.bytes_retrans is not None
    ]
    sent, again = sum(s for s, _ in told), sum(r for _, r in told)
    if sent:
        metrics["reinjected_pct"] = Measured(100 * again / (sent + again), "%", note="of what it gave to subflows")
    return metrics


def _tcps(c: Connection) -> list[Tcp]:
    return [s.tcp for s in c.state.subflows] if c.state is not None else [c.tcp] if c.tcp is not None else []


def stalls(end: End) -> Iterator[tuple[float, float]]:
    """Yield (seconds, when) for each time in which a program did not run: one line of progress then takes long."""
    for row in end.progress:
        if (late := row.t - row.since - EVERY) >= STALL:
            yield late, row.since - end.origin


def answers(client: End, folder: Recorded) -> dict[str, Measured]:
    """Return how long answers took since their requests were due."""
    rows = [r for r in client.progress if folder.inside((r.t + r.since) / 2 - client.origin)]
    found = [ms for r in rows for ms in r.answers]
    metrics = {"answers": Measured(len(found), "count")} if rows else {}
    return metrics | latencies(found, "latency")


def connections(both: Both) -> dict[str, Measured]:
    """Return how many connections spoke MPTCP to their end, as both ends say, and how many TCP."""
    views = [end.final for end in (both.client, both.server) if end.final is not None and end.final.connections]
    if len(views) < 2:  # the only one that is known may be wrong: a middlebox can let one end fall back alone
        views = views[:1]
    if not views:
        return {}
    there = min(sum(c.connected > 0 for c in view.connections) for view in views)
    spoke = min(sum(c.was_mptcp and c.fallen is None for c in view.connections) for view in views)
    kinds = {"mptcp_connections": spoke, "tcp_connections": there - spoke}
    return {key: Measured(max(0, value), "connection") for key, value in kinds.items()}


def ended(both: Both) -> tuple[str, str]:
    """Return the name of what a transfer came to, and a sentence if it did not complete: that of the client first."""
    for end in (both.client, both.server):
        where = f"its {end.name} in {end.node}"
        if end.final is None:
            how = f"by signal {end.signal}" if end.signal else "or did not end"
            return "killed", f"{where} was killed {how}"
        if end.final.outcome != "completed":
            when = f"after {end.final.ended - end.final.began:.1f} s: " if end.final.began else ""
            name = end.final.outcome if end.final.outcome in OUTCOMES else "failed"
            return name, f"{where} says {when}{end.final.error or name}"
    return "completed", ""


def fallback(name: str, both: Both, stated: str | None, forbidden: bool) -> Iterator[Expected]:
    """Yield that connections were to stay MPTCP, or to fall back, and whether they did."""
    found = connections(both)
    if not found:
        return
    plain, spoke = (int(found[key].value) for key in ("tcp_connections", "mptcp_connections"))
    if stated == "require":
        why = f"{spoke} of {spoke + plain} connections spoke MPTCP to their end" if spoke else ""
        yield Expected(f"{name} tcp_connections", "fallback: require", float(plain), not spoke and plain > 0, why)
    elif forbidden and (stated is not None or plain):
        why = f"{plain} of {spoke + plain} connections fell back to TCP{_how(both)}" if plain else ""
        yield Expected(f"{name} tcp_connections", "fallback: forbid", float(plain), not plain, why)


def _how(both: Both) -> str:
    """Return when and at which end the first of them fell back."""
    for end in (both.client, both.server):
        for c in end.final.connections if end.final is not None else ():
            ends = " to ".join(f"{a[0]} port {a[1]}" for a in (c.local, c.remote) if len(a) == 2)
            if c.connected and not c.was_mptcp:
                return f": {end.node} says that the one from {ends} was TCP from its handshake on"
            if c.fallen is not None:
                return f": {end.node} says that the one from {ends} fell back at {c.fallen - end.origin:.2f} s"
    return ""
