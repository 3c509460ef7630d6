"""How one receiver got a stream of numbered packets: loss, order, delay, and the longest gap (pure).

Sources: RFC 4737 section 3.3 (reordering), RFC 3550 section 6.4.1 (jitter), RFC 7679 (one-way delay).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from msgspec import Struct

from testbed.metrics.measured import Measured, latencies
from testbed.programs.multicast.packets import Arrival

_SECOND = 1_000_000_000


class Listening(Struct, frozen=True):
    """When a receiver joined and left (ns; None if unknown), and how many packets found its socket's buffer full.

    An `early` one joined before anything was sent: packets that it missed at the start count as lost.
    """

    joined: int
    left: int | None
    early: bool
    drops: int | None


class Window(Struct, frozen=True):
    """The sequence numbers that should arrive, from `begin` up to but not including `end`, and when they were sent."""

    begin: int
    end: int
    since: int
    until: int


class Gap(Struct, frozen=True):
    """The longest time without a packet, in ns, its start, and the number of packets lost in it."""

    length: int
    began: int
    lost: int


def measure(got: Sequence[Arrival], sent: Sequence[int], its: Listening, origin: int) -> dict[str, Measured]:
    """Return the metrics of one receiver; `sent` has the times of all packets, `origin` is t = 0 (all in ns)."""
    figures = {} if its.drops is None else {"socket_drops": Measured(its.drops, "packet")}
    if not sent:
        return figures
    copies: dict[int, Arrival] = {}
    for a in got:
        copies.setdefault(a.sequence, a)
    firsts = list(copies.values())  # in order of arrival
    window = expected(firsts, sent, its)
    total = window.end - window.begin
    lost = total - len(firsts)
    gap = longest_gap(firsts, window)
    worst = longest_gap(firsts, window, by_loss=True)
    figures |= {
        "sent_packets": Measured(total, "packet", note="while it was to receive"),
        "received_packets": Measured(len(firsts), "packet"),
        "lost_packets": Measured(lost, "packet"),
        "loss_pct": Measured(100 * lost / total if total else 100.0, "%"),
        "reorder_packets": Measured(reordered(firsts), "packet", note="RFC 4737 section 3.3"),
        "duplicate_packets": Measured(len(got) - len(firsts), "packet"),
    }
    if total:
        figures["gap_s"] = Measured(gap.length / _SECOND, "s", note="longest time without a packet")
        figures["gap_at_s"] = Measured((gap.began - origin) / _SECOND, "s", note="when it began")
        figures["lost_outside_gap_packets"] = Measured(lost - worst.lost, "packet")
    if not firsts:
        return figures
    figures |= latencies(sorted((a.received - a.sent) / 1e6 for a in firsts), "delay")
    figures["jitter_ms"] = Measured(jitter(firsts) / 1e6, "ms", note="RFC 3550 section 6.4.1")
    figures["join_ms"] = Measured((firsts[0].received - max(its.joined, sent[0])) / 1e6, "ms")
    if (rate := goodput(firsts, window, origin)) is not None:
        figures["goodput_mbps"] = rate
    return figures


def expected(firsts: Sequence[Arrival], sent: Sequence[int], its: Listening) -> Window:
    """Return which packets should arrive.

    The first is the first that was sent; for a receiver that joined later, the first that arrived, since a join takes a
    while. The last is the last that could arrive before the receiver left, at the longest delay seen.
    """
    if not firsts:
        begin = 0 if its.early else bisect_left(sent, its.joined)
        end = len(sent) if its.left is None else max(begin, bisect_right(sent, its.left))
    else:
        numbers = [a.sequence for a in firsts]
        begin = 0 if its.early else min(numbers)
        slowest = max(a.received - a.sent for a in firsts)
        arrived = len(sent) if its.left is None else bisect_right(sent, its.left - slowest)
        end = max(arrived, max(numbers) + 1)
    if begin >= end:
        return Window(begin, begin, its.joined, its.joined)
    since = max(its.joined, sent[0]) if its.early or not firsts else firsts[0].received
    return Window(begin, end, since, sent[min(end, len(sent)) - 1])


def reordered(firsts: Sequence[Arrival]) -> int:
    """Count packets with a number below the highest one before them."""
    highest = accumulate((a.sequence for a in firsts), max)
    return sum(a.sequence < before for a, before in zip(firsts[1:], highest, strict=False))


def jitter(firsts: Sequence[Arrival]) -> float:
    """Return the smoothed difference between delays of successive packets, in order of arrival, in ns."""
    smoothed = 0.0
    for before, after in pairwise(firsts):
        change = (after.received - before.received) - (after.sent - before.sent)
        smoothed += (abs(change) - smoothed) / 16
    return smoothed


def longest_gap(firsts: Sequence[Arrival], window: Window, by_loss: bool = False) -> Gap:
    """Return the longest time without a packet while packets were sent: between two, before the first, after the last.

    If packets were lost, take the time in which most were lost: a short outage matters more than a long delay. Lost in
    it are the numbers above all earlier and below all later ones.
    """
    if not firsts:
        return Gap(max(0, window.until - window.since), window.since, window.end - window.begin)
    times = [window.since, *(a.received for a in firsts), window.until]
    below = [window.begin - 1, *accumulate((a.sequence for a in firsts), max)]
    above = [*list(accumulate((a.sequence for a in reversed(firsts)), min))[::-1], window.end]
    gaps = [
        Gap(max(0, times[n + 1] - times[n]), times[n], max(0, above[n] - below[n] - 1)) for n in range(len(times) - 1)
    ]
    return max(gaps, key=lambda g: (g.lost, g.length) if by_loss else (g.length, g.lost))


def goodput(firsts: Sequence[Arrival], window: Window, origin: int) -> Measured | None:
    """Return the rate of received payload over the time in which it was sent, and for every second of the run."""
    until = max(window.until, firsts[-1].received)
    if until <= window.since:
        return None
    by_second: dict[int, int] = {}
    for a in firsts:
        second = (a.received - origin) // _SECOND
        by_second[second] = by_second.get(second, 0) + a.size
    series = []
    for second in range((window.since - origin) // _SECOND, (until - origin) // _SECOND + 1):
        start, end = (max(window.since - origin, second * _SECOND), min(until - origin, (second + 1) * _SECOND))
        if end - start >= _SECOND // 2:  # the first and the last may be shorter
            series.append((end / _SECOND, by_second.get(second, 0) * 8e3 / (end - start)))
    total = sum(a.size for a in firsts)
    return Measured(total * 8e3 / (until - window.since), "Mbit/s", tuple(series), "UDP payload", 1.0)
