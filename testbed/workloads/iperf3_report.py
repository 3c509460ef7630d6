"""What iperf3 reports (-J) of a flow, and the figures in it (pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from testbed.metrics.measured import Measured, latencies
from testbed.metrics.recorded import Count, Real
from testbed.workloads.place import STALL

_Moment = Annotated[float, Meta(ge=0, le=1e6)]  # seconds since the test began
_COUNTS = 1 << 53
_Signed = Annotated[int, Meta(ge=-_COUNTS, le=_COUNTS)]
_Wrapped = Annotated[int, Meta(ge=-_COUNTS)]  # or its complement of 64 bits
_Jitter = Annotated[float, Meta(ge=0, le=1e9)]


class Part(Struct, frozen=True, gc=False):
    """An interval of one stream, or of all streams together; a datagram counts as lost until it arrives late."""

    start: _Moment
    end: _Moment
    bytes: Count
    omitted: bool = False
    retransmits: _Signed = 0
    rtt: Real = 0.0
    sender: bool = True
    lost_packets: _Wrapped = 0
    packets: _Signed = 0
    jitter_ms: _Jitter | None = None

    def __post_init__(self) -> None:
        """Refuse a count that is neither small nor the complement of a small one."""
        if not -_COUNTS <= self.lost <= _COUNTS:
            raise ValueError(f"lost_packets is {self.lost_packets}")

    @property
    def lost(self) -> int:
        """How many are lost; fewer than none where some of an interval before came late, which iperf3 wraps around."""
        return self.lost_packets - (1 << 64 if self.lost_packets > _COUNTS else 0)


class Interval(Struct, frozen=True):
    """An interval of iperf3's report, with `bidir` of both directions."""

    sum: Part
    sum_bidir_reverse: Part | None = None
    streams: list[Part] = []


class Sum(Struct, frozen=True):
    """iperf3's totals."""

    seconds: _Moment = 0.0
    lost_packets: _Signed = 0
    packets: _Signed = 0
    jitter_ms: _Jitter | None = None


class Udp(Struct, frozen=True):
    """The totals of a stream of datagrams."""

    out_of_order: _Signed = 0
    sender: bool = False


class Stream(Struct, frozen=True):
    """The totals of a stream."""

    udp: Udp | None = None


class End(Struct, frozen=True):
    """The end of iperf3's report; one that was killed wrote none, or an empty one."""

    sum: Sum | None = None
    sum_received: Sum | None = None
    sum_bidir_reverse: Sum | None = None
    sum_received_bidir_reverse: Sum | None = None
    streams: list[Stream] = []


class Said(Struct, frozen=True):
    """The parts of iperf3's report (-J) that are read; `error` is set if the test failed."""

    intervals: list[Interval] = []
    end: End = End()
    error: Annotated[str, Meta(max_length=10_000)] = ""


class Side(Struct, frozen=True):
    """One program of a flow: its report, and when its own clock began on the run's, `seen` or taken to be."""

    said: Said
    began: float
    seen: bool = False

    def rows(self, back: bool) -> list[Part]:
        """Return the intervals of a direction, after `began`: iperf3 begins again at 0 after what is omitted."""
        found: list[Part] = []
        shift = 0.0
        for part in (i.sum_bidir_reverse if back else i.sum for i in self.said.intervals):
            if part is not None and part.omitted:
                shift = part.end
            elif part is not None and shift:
                part = replace(part, start=shift + part.start, end=shift + part.end)
            found += [part] if part is not None else []
        return found


def figures(
    protocol: str,
    receiver: Side,
    sender: Side | None,
    back: bool,
    every: float,
    inside: Callable[[float], bool] | None = None,
) -> dict[str, Measured]:
    """Return what the receiver of a direction got, and what its sender saw; `back` is the second one of `bidir`.

    Of a part of the run, these are the intervals whose middle is `inside`.
    """
    rows = [r for r in receiver.rows(back) if not r.omitted and _within(receiver, r, inside)]
    end = receiver.said.end
    udp, tcp = (end.sum_bidir_reverse, end.sum_received_bidir_reverse) if back else (end.sum, end.sum_received)
    total = (udp if protocol == "udp" else tcp) or Sum()
    total = Sum() if inside is not None else total
    seconds = total.seconds or (rows[-1].end - rows[0].start if rows else 0.0)
    if not seconds:
        return {}
    received = sum(r.bytes for r in rows)
    series = tuple((receiver.began + end, rate) for end, rate in by_second(rows))
    metrics = {
        "goodput_mbps": Measured(received * 8 / 1e6 / seconds, "Mbit/s", series, span=1.0),
        "received_bytes": Measured(received, "byte"),
        "seconds": Measured(seconds, "s"),
    }
    length, began = gap(rows, every)
    metrics["gap_s"] = Measured(length, "s", note=f"longest time in which the receiver got nothing, to {every:g} s")
    metrics["gap_at_s"] = Measured(receiver.began + began, "s", note="when it began")
    sent = sender.rows(back) if sender is not None and sender.seen and inside is None else []
    if sender is not None and (first := next((r for r in sent if r.bytes), None)):
        metrics["start_s"] = Measured(sender.began + first.start, "s", note="when its first data left")
    if protocol == "udp":
        late = [s.udp for s in end.streams if s.udp is not None and not s.udp.sender and inside is None]
        return metrics | _datagrams(total, rows, late)
    if sender is None:
        return metrics
    kept = [i for i, r in zip(sender.said.intervals, sender.rows(back), strict=False) if _within(sender, r, inside)]
    streams = [s for i in kept for s in i.streams if s.sender and not s.omitted]
    note = "of the first subflow only" if protocol == "mptcp" else ""
    if protocol != "mptcp":  # TCP_INFO of an MPTCP socket tells of one subflow; the samples have all
        metrics["retransmits"] = Measured(sum(s.retransmits for s in streams), "segment")
    rtts = [s.rtt / 1e3 for s in streams if s.rtt]
    return metrics | {k: Measured(m.value, m.unit, note=note) for k, m in latencies(rtts, "rtt").items()}


def _within(side: Side, row: Part, inside: Callable[[float], bool] | None) -> bool:
    return inside is None or inside(side.began + (row.start + row.end) / 2)


def _datagrams(total: Sum, rows: Sequence[Part], streams: Sequence[Udp]) -> dict[str, Measured]:
    if total.packets:
        lost, packets, jitter = total.lost_packets, total.packets, total.jitter_ms
    else:  # no end: it was killed
        lost, packets = sum(r.lost for r in rows), sum(r.packets for r in rows)
        jitter = rows[-1].jitter_ms if rows else None
    metrics = {"loss_pct": Measured(100 * lost / packets if packets else 100.0, "%")}
    if jitter is not None:
        metrics["jitter_ms"] = Measured(jitter, "ms", note="RFC 3550 section 6.4.1")
    if streams:
        metrics["reorder_packets"] = Measured(sum(s.out_of_order for s in streams), "packet")
    return metrics


def by_second(rows: Sequence[Part]) -> list[tuple[float, float]]:
    """Join intervals to whole seconds of the flow; return the end and the rate (Mbit/s) of each second."""
    seconds: dict[int, list[Part]] = {}
    for row in rows:
        seconds.setdefault(int(row.start - rows[0].start + 1e-3), []).append(row)
    joined = []
    for group in seconds.values():
        start, end = group[0].start, group[-1].end
        if end - start >= 0.5:  # the last interval may be a few milliseconds long
            joined.append((end, sum(r.bytes for r in group) * 8 / 1e6 / (end - start)))
    return joined


def gap(rows: Sequence[Part], every: float) -> tuple[float, float]:
    """Return the length and the start of the longest time without a byte.

    A program that was stopped reports one long interval: all of it but the usual length counts as a gap.
    """
    best, began, current = 0.0, 0.0, None
    for row in rows:
        current = row.start if current is None else current
        stalled = row.end - row.start >= 2 * every
        end = row.end if not row.bytes else row.end - every if stalled else current
        if end - current > best:
            best, began = end - current, current
        if row.bytes:
            current = None
    return best, began


def stalls(side: Side, every: float) -> Iterator[tuple[float, float]]:
    """Yield (seconds, when) for each time in which a program did not run: it then reports one long interval."""
    for row in side.rows(back=False):
        if (late := row.end - row.start - every) >= STALL:
            yield late, side.began + row.start
