"""What a direction that follows a trace is at each time of a run, as its qdiscs are told (pure).

A class of htb sends a frame while it is not in debt, and is then in debt for the time that the frame takes at its
present rate (net/sched/sch_htb.c: htb_charge_class). At 1 kbit/s for 20 ms, that were 12 s. So it is told the rate at
which a frame that begins now ends when the trace lets it: through an outage, and with the rates after that. Whatever
the rates are, the bytes that left by any time are those of the trace, but for a frame.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from math import ceil, inf

from msgspec import Struct

from testbed.drivers.tc import FRAME
from testbed.language.topology import WAYS, Topology, Way
from testbed.language.traces import Point, Trace

_STEP = 0.01  # s: a frame that takes longer than that is looked at again meanwhile
_SLOWEST, _FASTEST = 8.0, 1e12  # bit/s, of htb


class Change(Struct, frozen=True):
    """What holds from a time on: s, bit/s, s, share; None is not of the trace."""

    t: float
    rate: int | None = None
    delay: float | None = None
    loss: float | None = None


class Followed(Struct, frozen=True):
    """A direction of a link (by number) that follows a trace, and what it is told when."""

    link: int
    way: Way
    changes: tuple[Change, ...]


def followed(topology: Topology, end: float) -> Iterator[Followed]:
    """Yield every direction that follows a trace, with the changes of a run that ends at a time."""
    for n, link in enumerate(topology.links):
        for way in WAYS:
            if (trace := link.followed(way)) is not None and trace.points:
                frame = 8 * max(FRAME, link.shape(way).frame)
                yield Followed(n, way, tuple(changes(trace, end, frame)))


def changes(trace: Trace, end: float, frame: int = 8 * FRAME) -> Iterator[Change]:
    """Yield what holds from each time on; `frame` is in bits."""
    points = list(unrolled(trace, end))
    rates = [(p[0], p[1]) for p in points if p[1] is not None]
    told = dict(_rates([(t, r) for t, r in rates if r is not None], end, frame)) if rates else {}
    others = {p[0]: p for p in points}
    last: Change | None = None
    delay = loss = None
    rate: int | None = None
    for t in sorted({*told, *others}):
        if t in others:
            delay, loss = others[t][2], others[t][3]
        rate = told.get(t, rate)
        now = Change(t, rate, delay, loss)
        if last is None or (now.rate, now.delay, now.loss) != (last.rate, last.delay, last.loss):
            yield now
            last = now


def unrolled(trace: Trace, end: float) -> Iterator[Point]:
    """Yield the points of a run: again and again with `loop`."""
    points = trace.points or ()
    turn = 0
    while True:
        for t, *values in points:
            at = round(t + turn * (trace.period or 0.0), 9)
            if at > 0 and at >= end:
                return
            yield (at, *values)  # type: ignore[misc]
        if not trace.loop or not trace.period:
            return
        turn += 1


class _Bits(Struct, frozen=True):
    """How many bits a trace lets through until each time; its last rate holds for ever."""

    times: tuple[float, ...]
    rates: tuple[float, ...]
    sums: tuple[float, ...]

    def until(self, t: float) -> float:
        """Return the bits until a time."""
        n = max(0, bisect_right(self.times, t) - 1)
        return self.sums[n] + (t - self.times[n]) * self.rates[n]

    def reached(self, bits: float) -> float:
        """Return when so many bits are through."""
        n = max(0, bisect_left(self.sums, bits) - 1)
        return self.times[n] + (bits - self.sums[n]) / self.rates[n] if self.rates[n] else inf


def _rates(points: Sequence[tuple[float, float]], end: float, frame: int) -> Iterator[tuple[float, int]]:
    """Yield the rates of htb, each from a time on, as if frames always waited.

    `free` is when the next frame can be sent, `sent` the bits of those before it. The rate is that at which the frames
    that are sent until the next look have taken their time when the trace has let them through: what one look is wrong
    by, the next one makes good.
    """
    times, rates = zip(*points, strict=True)
    sums = accumulate(((b - a) * r for (a, r), (b, _) in pairwise(points)), initial=0.0)
    bits = _Bits(times, rates, tuple(sums))
    free = sent = 0.0
    for t, until in pairwise([*_looks(points, end, frame), max(end, times[-1] + _STEP)]):
        if free >= until:  # no frame is sent, unless none was waiting before
            middle = (t + until) / 2
            yield t, _rate(frame, bits.reached(bits.until(middle) + frame) - middle)
            continue
        count = max(1, ceil((bits.until(until) - sent) / frame - 1e-9))
        if count > 1 and bits.reached(sent + count * frame) == inf:
            count -= 1  # a last outage: what is left of a frame never gets through
        rate = _rate(count * frame, bits.reached(sent + count * frame) - free)
        yield t, rate
        # The frames that begin before the next look; the last of them is in debt beyond it.
        begun = max(1, ceil((until - free) * rate / frame - 1e-9))
        sent, free = sent + begun * frame, free + begun * frame / rate


def _rate(bits: float, seconds: float) -> int:
    return round(max(_SLOWEST, min(bits / seconds, _FASTEST))) if seconds > 0 else round(_FASTEST)


def _looks(points: Sequence[tuple[float, float]], end: float, frame: int) -> Iterator[float]:
    """Yield when the rate is thought about: at each point, and more often where frames take long."""
    for (t, rate), (until, _) in pairwise([*points, (end, 0.0)]):
        pause = max(_STEP, frame / rate / 8) if rate else _STEP
        count = ceil((until - t) / pause - 1e-9) if not rate or frame / rate > _STEP else 1
        yield from (round(t + n * (until - t) / count, 9) for n in range(max(1, count)))
