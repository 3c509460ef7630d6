"""Traffic shaping of one direction of a link, as qdisc requests (tc(8), tc-tbf(8), tc-netem(8), pkt_sched.h)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from testbed.linux import uapi, wire
from testbed.linux.wire import Message, Space, attr, nest, text, u32, u64
from testbed.steps import Request

ROOT = 0xFFFFFFFF
FRAME = 1514  # bytes of an Ethernet frame of MTU 1500 in a qdisc: without preamble and FCS
# handles 1: to 5:; a kind keeps its handle
_NETEM, _TBF, _LEAF, _GATE, _HTB = 0x10000, 0x20000, 0x30000, 0x40000, 0x50000
_LIMITS = {"fq": uapi.TCA_FQ_PLIMIT, "fq_codel": uapi.TCA_FQ_CODEL_LIMIT, "codel": uapi.TCA_CODEL_LIMIT}
_UNLIMITED = 10**12  # bit/s
DISTRIBUTIONS = ("uniform", "normal", "pareto", "paretonormal")


class GilbertElliott(Struct, frozen=True):
    """Loss in bursts: probabilities (0-1) good->bad, bad->good, loss in bad, loss in good."""

    p: float
    r: float
    bad: float = 1.0
    good: float = 0.0


class Shape(Struct, frozen=True):
    """The shaping of one direction of a link: bit/s, bytes, seconds and probabilities (0-1); None means not shaped."""

    rate: int | None = None
    burst: int | None = None
    delay: float | None = None
    jitter: float | None = None
    distribution: str | None = None
    loss: float | GilbertElliott | None = None
    duplicate: float | None = None
    corrupt: float | None = None
    reorder: float | None = None
    queue: str | None = None
    limit: int | None = None  # bytes for a fifo, packets for any other discipline
    frame: int = 0  # bytes of the longest frame, 0 for one of MTU 1500

    def netem(self) -> bool:
        """Return whether this needs the netem qdisc."""
        return any(
            v is not None for v in (self.delay, self.jitter, self.loss, self.duplicate, self.corrupt, self.reorder)
        )

    def kinds(self) -> frozenset[str]:
        """Return the qdiscs that this needs from the kernel."""
        kinds = {"netem"} if self.netem() else set()
        return frozenset(kinds | ({"tbf"} if self.rate else set()) | ({self.queue} if self.queue else set()))


class Qdisc(Request, frozen=True):
    """Add a qdisc, or change the one with its handle in place."""

    dev: str
    kind: str
    handle: int
    parent: int
    options: Options | None = None

    def __str__(self) -> str:
        where = "root" if self.parent == ROOT else f"parent {_id(self.parent)}"
        words = f" {self.options}" if self.options is not None else ""
        return f"tc qdisc replace dev {self.dev} {where} handle {self.handle >> 16:x}: {self.kind}{words}"

    def key(self) -> tuple[str, ...]:
        """Identify what this request overwrites."""
        return (self.dev, str(self.parent))

    def encode(self, space: Space) -> Message:
        """Encode."""
        head = uapi.TCMSG.pack(0, space.index(self.dev), self.handle, self.parent, 0)
        options = b"" if self.options is None else self.options.encode()
        flags = wire.NLM_F_CREATE | wire.NLM_F_REPLACE
        body = head + text(uapi.TCA_KIND, self.kind) + (attr(uapi.TCA_OPTIONS, options) if options else b"")
        return Message(uapi.RTM_NEWQDISC, flags, body)


class QdiscDel(Request, frozen=True):
    """Delete a qdisc: the interface's default replaces a root qdisc, a plain fifo any other."""

    added: Qdisc

    def __str__(self) -> str:
        words, _, _ = str(self.added).partition(f" handle {self.added.handle >> 16:x}:")
        return words.replace(" replace ", " del ", 1)

    def encode(self, space: Space) -> Message:
        """Encode."""
        q = self.added
        return Message(uapi.RTM_DELQDISC, 0, uapi.TCMSG.pack(0, space.index(q.dev), q.handle, q.parent, 0))


class Tbf(Struct, frozen=True, tag=True):
    """A token bucket: rate in bit/s, burst and limit in bytes; it splits GSO packets itself."""

    rate: int
    burst: int
    limit: int

    def __str__(self) -> str:
        return f"rate {self.rate}bit burst {self.burst}b limit {self.limit}b"

    def encode(self) -> bytes:
        """Encode; TCA_TBF_BURST gives the burst in bytes, not in clock ticks (sch_tbf.c)."""
        rate = max(1, self.rate // 8)
        # struct tc_tbf_qopt: struct tc_ratespec of the rate and of the peak rate, then limit, buffer and mtu
        spec = struct.pack("=BBHhHI", 0, uapi.TC_LINKLAYER_ETHERNET, 0, -1, 0, min(rate, 0xFFFFFFFF))
        parms = attr(uapi.TCA_TBF_PARMS, spec + bytes(12) + struct.pack("=III", self.limit, 0, 0))
        return parms + u32(uapi.TCA_TBF_BURST, self.burst) + (u64(uapi.TCA_TBF_RATE64, rate) if rate >> 32 else b"")


class Netem(Struct, frozen=True, tag=True):
    """Delay, jitter, loss, duplication, corruption and reordering of one direction; limit in packets."""

    shape: Shape
    limit: int

    def __str__(self) -> str:
        s = self.shape
        words = [f"limit {self.limit}"]
        if s.delay is not None or s.jitter is not None:
            words.append(f"delay {(s.delay or 0) * 1e3:g}ms" + (f" {s.jitter * 1e3:g}ms" if s.jitter else ""))
        if s.distribution and s.distribution != "uniform":
            words.append(f"distribution {s.distribution}")
        if isinstance(s.loss, GilbertElliott):
            g = s.loss
            words.append(
                "loss gemodel " + " ".join(f"{v:.6g}%" for v in (g.p * 100, g.r * 100, g.bad * 100, g.good * 100))
            )
        elif s.loss is not None:
            words.append(f"loss {s.loss * 100:g}%")
        for name in ("duplicate", "corrupt", "reorder"):
            if (value := getattr(s, name)) is not None:
                words.append(f"{name} {value * 100:g}%")
        return " ".join(words)

    def encode(self) -> bytes:
        """Encode struct tc_netem_qopt and its attributes (net/sched/sch_netem.c: netem_change)."""
        s = self.shape
        loss = 0 if isinstance(s.loss, GilbertElliott) else _probability(s.loss)
        gap = 1 if s.reorder is not None else 0  # a gap of 1 makes every packet a candidate for reordering
        options = struct.pack("=IIIIII", 0, self.limit, loss, gap, _probability(s.duplicate), 0)
        options += attr(uapi.TCA_NETEM_LATENCY64, struct.pack("=q", round((s.delay or 0) * 1e9)))
        options += attr(uapi.TCA_NETEM_JITTER64, struct.pack("=q", round((s.jitter or 0) * 1e9)))
        if s.reorder is not None:
            options += attr(uapi.TCA_NETEM_REORDER, struct.pack("=II", _probability(s.reorder), 0))
        if s.corrupt is not None:
            options += attr(uapi.TCA_NETEM_CORRUPT, struct.pack("=II", _probability(s.corrupt), 0))
        if isinstance(s.loss, GilbertElliott):
            # struct tc_netem_gemodel: h is the probability of no loss in the bad state, k1 of loss in the good one.
            g = s.loss
            model = struct.pack("=IIII", *map(_probability, (g.p, g.r, 1 - g.bad, g.good)))
            options += nest(uapi.TCA_NETEM_LOSS, attr(uapi.NETEM_LOSS_GE, model))
        if s.distribution and s.distribution != "uniform":
            options += attr(uapi.TCA_NETEM_DELAY_DIST, _table(s.distribution))
        return options


class Limit(Struct, frozen=True, tag=True):
    """A discipline with one option, its limit: bytes for bfifo, packets for the others (None: the default)."""

    kind: str
    value: int | None

    def __str__(self) -> str:
        return "" if self.value is None else f"limit {self.value}"

    def encode(self) -> bytes:
        """Encode."""
        if self.value is None:
            return b""
        if self.kind in ("bfifo", "pfifo"):
            return struct.pack("=I", self.value)  # struct tc_fifo_qopt
        if self.kind == "cake":
            return u32(uapi.TCA_CAKE_MEMORY, self.value * FRAME)  # bytes: cake has no limit in packets
        return u32(_LIMITS[self.kind], self.value)


class Plug(Struct, frozen=True, tag=True):
    """A gate (net/sched/sch_plug.c): closed, it holds all packets back; open, it releases them and delays none."""

    closed: bool
    limit: int = 1 << 20  # bytes

    def __str__(self) -> str:
        return "block" if self.closed else "release_indefinite"

    def encode(self) -> bytes:
        """Encode struct tc_plug_qopt; a new plug is closed, whatever its action."""
        action = uapi.TCQ_PLUG_BUFFER if self.closed else uapi.TCQ_PLUG_RELEASE_INDEFINITE
        return struct.pack("=iI", action, self.limit)


class Htb(Struct, frozen=True, tag=True):
    """A hierarchy of token buckets (struct tc_htb_glob), whose packets are those of its class `default`."""

    default: int = 0

    def __str__(self) -> str:
        return f"default {self.default}"

    def encode(self) -> bytes:
        """Encode: version 3, a quantum of rate / 10."""
        return attr(uapi.TCA_HTB_INIT, struct.pack("=IIIII", 3, 10, self.default, 0, 0))


class HtbClass(Request, frozen=True):
    """Add the class of an htb qdisc, or change its rate in place, which leaves its bucket as full as it was.

    tbf refills its bucket with each change (net/sched/sch_tbf.c: tbf_change); htb counts tokens in time, and keeps them
    (sch_htb.c: htb_change_class). A frame is sent while the bucket is not in debt, and its time is then taken out.
    """

    dev: str
    rate: int
    parent: int = _HTB
    handle: int = _HTB | 1

    def __str__(self) -> str:
        burst = _debt(self.rate)
        words = f"rate {self.rate}bit burst {burst}b cburst {burst}b quantum {FRAME}"
        return f"tc class replace dev {self.dev} parent {self.parent >> 16:x}: classid {_id(self.handle)} htb {words}"

    def key(self) -> tuple[str, ...]:
        """Identify what this request overwrites."""
        return (self.dev, str(self.handle))

    def encode(self, space: Space) -> Message:
        """Encode struct tc_htb_opt: rate and ceiling, buffers in ticks of 64 ns, quantum, level, priority."""
        rate = max(1, self.rate // 8)
        spec = struct.pack("=BBHhHI", 0, uapi.TC_LINKLAYER_ETHERNET, 0, -1, 0, min(rate, 0xFFFFFFFF))
        ticks = min(_debt(self.rate) * 10**9 // rate // 64, 0xFFFFFFFF)
        options = attr(uapi.TCA_HTB_PARMS, spec + spec + struct.pack("=IIIII", ticks, ticks, FRAME, 0, 0))
        if rate >> 32:
            options += u64(uapi.TCA_HTB_RATE64, rate) + u64(uapi.TCA_HTB_CEIL64, rate)
        head = uapi.TCMSG.pack(0, space.index(self.dev), self.handle, self.parent, 0)
        body = head + text(uapi.TCA_KIND, "htb") + attr(uapi.TCA_OPTIONS, options)
        return Message(uapi.RTM_NEWTCLASS, wire.NLM_F_CREATE, body)


Options: TypeAlias = Tbf | Netem | Limit | Plug | Htb
Shaper: TypeAlias = Qdisc | HtbClass  # what shapes a direction: a chain, the outermost first


def gate(dev: str, closed: bool) -> Qdisc:
    """Return the gate of an interface without shaping; it is made when it first closes."""
    return Qdisc(dev, "plug", _GATE, ROOT, Plug(closed))


DISCIPLINES = ("bfifo", "pfifo", "fq_codel", "codel", "fq", "cake")


def burst(rate: int) -> int:
    """Return the default bucket in bytes: 4 ms of the rate, to cover late timers, but at least ten frames."""
    return max(10 * FRAME, rate // 8 // 250)


def depth(rate: int) -> int:
    """Return the default queue in bytes: one burst, and 20 ms of the rate but at least a hundred frames."""
    return burst(rate) + max(100 * FRAME, rate // 8 // 50)


def shape(dev: str, want: Shape) -> tuple[Qdisc, ...]:
    """Return the qdiscs of one direction, outermost first: netem (1:), tbf (2:), the discipline (3:)."""
    qdiscs, parent = [], ROOT
    if want.netem():
        # netem drops what exceeds its limit: make room for all packets in flight, at the rate or at 10 Gbit/s.
        limit = max(1000, int(((want.delay or 0) + (want.jitter or 0) + 0.1) * (want.rate or 10**10) / 8 / 512))
        qdiscs.append(Qdisc(dev, "netem", _NETEM, parent, Netem(_only_netem(want), min(limit, 10**6))))
        parent = _NETEM | 1
    bytewise = want.queue in (None, "bfifo")
    if want.rate is not None:
        limit = want.limit if bytewise and want.limit is not None else depth(want.rate)
        bucket = want.burst or max(burst(want.rate), want.frame)
        qdiscs.append(Qdisc(dev, "tbf", _TBF, parent, Tbf(want.rate, bucket, limit)))
        parent = _TBF | 1
    if want.queue is not None and not (bytewise and want.rate is not None):
        qdiscs.append(Qdisc(dev, want.queue, _LEAF, parent, Limit(want.queue, want.limit)))
    elif want.limit is not None and want.rate is None:
        qdiscs.append(Qdisc(dev, "bfifo", _LEAF, parent, Limit("bfifo", want.limit)))
    return tuple(qdiscs)


def driven(dev: str, want: Shape) -> tuple[Shaper, ...]:
    """Return the same for a direction whose rate changes all the time: a class of htb (5:1) holds it.

    tbf stays below it for what htb does not do: it splits GSO packets, and counts its queue in bytes of frames. So TCP
    gets through a short queue, and a limit is the same under both.
    """
    found: list[Shaper] = []
    for q in shape(dev, want):
        if isinstance(q.options, Tbf):
            split = Tbf(_UNLIMITED, max(FRAME, want.frame), q.options.limit)
            found += [Qdisc(dev, "htb", _HTB, q.parent, Htb(1)), HtbClass(dev, q.options.rate)]
            found.append(replace(q, parent=_HTB | 1, options=split))
        else:
            found.append(q)
    return tuple(found)


def reshaped(before: Sequence[Shaper], after: Sequence[Shaper]) -> tuple[Request, ...]:
    """Return the requests that turn one chain of qdiscs into another: what is gone is deleted, what stays is changed.

    The queues of what stays keep their packets. A handle that moves within the chain is free again once the qdisc
    above its old place is gone.
    """
    places = [[(type(s), s.handle, s.parent) for s in chain] for chain in (before, after)]
    kept = next((n for n, (old, new) in enumerate(zip(*places, strict=False)) if old != new), min(map(len, places)))
    requests: list[Request] = []
    gone = before[kept] if kept < len(before) else None
    if isinstance(gone, Qdisc) and (kept == len(after) or after[kept].handle in {s.handle for s in before}):
        requests.append(QdiscDel(gone))
    stated = [new for old, new in zip(before[:kept], after[:kept], strict=True) if old != new]
    if gone is not None and kept == len(after) and after and isinstance(after[-1], Qdisc) and after[-1].kind == "tbf":
        # A tbf without its discipline drops everything (sch_tbf.c: tbf_graft), until its limit is stated again.
        stated = [*(s for s in stated if s != after[-1]), after[-1]]
    return (*requests, *stated, *after[kept:])


def _only_netem(want: Shape) -> Shape:
    return replace(want, rate=None, burst=None, queue=None, limit=None, frame=0)


def _id(number: int) -> str:
    return f"{number >> 16:x}:{number & 0xFFFF:x}"


def _debt(rate: int) -> int:
    """Return the bucket of an htb class in bytes: 4 ms of the rate, to cover late timers, but at least two frames."""
    return max(2 * FRAME, rate // 8 // 250)


def _probability(value: float | None) -> int:
    return round((value or 0) * 0xFFFFFFFF)


@lru_cache(maxsize=8)
def _table(name: str) -> bytes:
    """Tabulate a distribution's quantiles, scaled by 8192 (NETEM_DIST_SCALE), like the tables of tc(8)."""
    from statistics import NormalDist  # only when needed: it costs 5 ms, and few links have jitter

    size = 4096
    ranks = [(i + 0.5) / size for i in range(size)]
    normal = [NormalDist().inv_cdf(r) for r in ranks]
    # A Pareto distribution with exponent 3 has the mean 1.5; tc(8) stretches it by 4/3, and 16 bits cut it off at 4.
    pareto = [((1 - r) ** (-1 / 3) - 1.5) * 4 / 3 for r in ranks]
    mixed = [0.25 * n + 0.75 * p for n, p in zip(normal, pareto, strict=True)]
    chosen = {"normal": normal, "pareto": pareto, "paretonormal": mixed}[name]
    return struct.pack(f"={size}h", *(max(-32768, min(32767, round(v * 8192))) for v in chosen))
