"""The rate that a class of htb is told at each look, so that what leaves is what a trace lets through (pure).

A class of htb sends a frame while it is not in debt, and is then in debt for the time that the frame takes at its
present rate (net/sched/sch_htb.c: htb_charge_class). At 1 kbit/s for 20 ms, that were 12 s. So it is told the rate at
which the frames that begin before the next look have taken their time when the trace has let them through: through an
outage, and with the rates after that. What has left is read at each look: what one look was wrong by, since frames
are shorter or the kernel was late, the next one makes good.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from math import ceil, inf

from msgspec import Struct

from testbed.drivers.tc import debt

_STEP = 0.01  # s: a frame that takes longer than that is looked at again meanwhile
_SOON = 0.001  # s: where a look comes later than the next one is due
_LATE = 0.02  # s at the highest rate, which frames that wait are given later when the kernel was late
_SLOWEST, _FASTEST = 8.0, 1e12  # bit/s, of htb


class Bits(Struct, frozen=True):
    """How many bits a trace lets through until each time; its last rate holds for ever."""

    times: tuple[float, ...]
    rates: tuple[float, ...]
    sums: tuple[float, ...]

    def rate(self, t: float) -> float:
        """Return the rate at a time."""
        return self.rates[max(0, bisect_right(self.times, t) - 1)]

    def until(self, t: float) -> float:
        """Return the bits until a time."""
        n = max(0, bisect_right(self.times, t) - 1)
        return self.sums[n] + (t - self.times[n]) * self.rates[n]

    def reached(self, bits: float) -> float:
        """Return when so many bits are through."""
        n = max(0, bisect_left(self.sums, bits) - 1)
        return self.times[n] + (bits - self.sums[n]) / self.rates[n] if self.rates[n] else inf


class Told(Struct, frozen=True):
    """What a class was told, and what is known of it since: bits that left, and when it is out of debt (s)."""

    rate: int
    sent: float = 0.0
    free: float = 0.0


class Left(Struct, frozen=True):
    """The bits that left a class since the last look, and whether something waits in it."""

    bits: float = 0.0
    waits: bool = False


def bits_of(points: Sequence[tuple[float, float]]) -> Bits:
    """Return the bits of a trace with these rates (bit/s), each from a time on."""
    times, rates = zip(*points, strict=True)
    sums = accumulate(((b - a) * r for (a, r), (b, _) in pairwise(points)), initial=0.0)
    return Bits(times, rates, tuple(sums))


def looks(points: Sequence[tuple[float, float]], end: float, frame: int) -> Iterator[float]:
    """Yield when the rate is thought about: at each point, and more often where a frame (bits) takes long."""
    for (t, rate), (until, _) in pairwise([*points, (max(end, points[-1][0] + _STEP), 0.0)]):
        pause = max(_STEP, frame / rate / 8) if rate else _STEP
        count = ceil((until - t) / pause - 1e-9) if not rate or frame / rate > _STEP else 1
        yield from (round(t + n * (until - t) / count, 9) for n in range(max(1, count)))


def told(trace: Bits, before: Told, left: Left, now: float, until: float, frame: int) -> Told:
    """Return what a class is told from now until the next look (s of the run); `frame` has the bits of the longest."""
    until = max(until, now + _SOON)
    sent, free = before.sent + left.bits, before.free + left.bits / before.rate
    if left.bits and left.waits:  # the last of them had begun: no more than its own time is left
        free = min(free, now + frame / before.rate)
    present = trace.rate(now)
    if left.waits and present:
        bucket = 8.0 * debt(round(present))
        sent = max(sent, trace.until(now) - max(bucket, _LATE * max(trace.rates)))
        free = max(free, now - bucket / present)
    elif not left.waits:  # what nobody asked for is lost
        sent, free = max(sent, trace.until(now)), max(free, now)
    if free >= until:  # no frame is sent, unless less is owed than is known here
        middle = (now + until) / 2
        return Told(_rate(frame, trace.reached(max(sent, trace.until(middle)) + frame) - middle), sent, free)
    due = trace.until(until) - sent
    if due < frame:  # one frame begins, and is in debt until the trace has let it through
        due, until = frame, max(until, trace.reached(sent + frame))
    return Told(_rate(due, until - free), sent, free)


def _rate(bits: float, seconds: float) -> int:
    return round(max(_SLOWEST, min(bits / seconds, _FASTEST)))
