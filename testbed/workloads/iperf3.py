"""Workload `iperf3`: a TCP, UDP or MPTCP flow with its own server and port (iperf3(1)).

For MPTCP, mptcpize(8) starts both sides: with iperf3's own --mptcp the control connection is plain TCP, and a test
whose control connection dies with its path never ends.
"""

from collections.abc import Iterator, Sequence
from math import inf
from typing import Annotated, Literal

from msgspec import Meta, Struct
from pydantic import Field

from testbed import features
from testbed.drivers.facts import Listening
from testbed.metrics import table
from testbed.metrics.measured import Measured, latencies
from testbed.metrics.recorded import KIB, Count, Real, Recorded
from testbed.spec import Spec
from testbed.steps import START, Spawn, Step, Wait
from testbed.units import Rate, Size, Time, Word
from testbed.workloads.place import STALL, Task

_DATAGRAM, _WRITE = 65507, 1 << 20  # bytes: the largest payload of UDP over IPv4, and MAX_BLOCKSIZE of iperf.h
_BLOCK, _SMALLEST, _BLOCKS = 128 * KIB, 16, 10  # bytes of iperf3's own block, of our smallest, and blocks an interval
_INTERVAL = 0.1  # seconds: the shortest interval of iperf3, and the resolution of gap_s
_Moment = Annotated[float, Meta(ge=0, le=1e6)]  # seconds since the test began
_Signed = Annotated[int, Meta(ge=-(2**53), le=2**53)]


class Part(Struct, frozen=True, gc=False):
    """An interval of one stream, or of all streams together."""

    start: _Moment
    end: _Moment
    bytes: Count
    omitted: bool = False
    retransmits: _Signed = 0
    rtt: Real = 0.0


class Interval(Struct, frozen=True):
    """An interval of iperf3's report."""

    sum: Part
    streams: list[Part] = []


class Sum(Struct, frozen=True):
    """iperf3's totals; a datagram counts as lost until it arrives late."""

    seconds: _Moment = 0.0
    lost_packets: _Signed = 0
    packets: _Signed = 0
    jitter_ms: Annotated[float, Meta(ge=0, le=1e9)] | None = None


class Udp(Struct, frozen=True):
    """The totals of a stream of datagrams."""

    out_of_order: _Signed = 0


class Stream(Struct, frozen=True):
    """The totals of a stream."""

    udp: Udp | None = None


class End(Struct, frozen=True):
    """The end of iperf3's report."""

    sum: Sum | None = None
    sum_received: Sum | None = None
    streams: list[Stream] = []


class Said(Struct, frozen=True):
    """The parts of iperf3's report (-J) that are read; `error` is set if the test failed."""

    intervals: list[Interval] = []
    end: End = End()
    error: Annotated[str, Meta(max_length=10_000)] = ""


class Iperf3(Spec):
    """One flow between two nodes for some seconds; with `reverse` it goes from `to` to `from`."""

    from_: str = Field(alias="from")
    to: str
    protocol: Literal["tcp", "udp", "mptcp"] = "tcp"
    seconds: float = Field(10, gt=0, le=86400)
    at: Time = 0.0
    parallel: int = Field(1, ge=1, le=128, description="Streams; with MPTCP each is a connection of its own")
    rate: Rate | None = Field(
        None, description="What the sender offers, all streams together; needed for udp, a ceiling otherwise"
    )
    length: Size | None = Field(None, description="Bytes of one write or datagram")
    reverse: bool = False
    congestion: Word | None = Field(None, description="TCP congestion control algorithm")
    family: Literal["ipv4", "ipv6"] | None = None
    to_interface: str | None = Field(None, description="Connect to this interface's address of `to`")

    def seconds_long(self) -> float:
        """Return the length of the test in seconds; iperf3 takes whole ones."""
        return float(self.seconds)

    def ends(self) -> tuple[tuple[str, str], ...]:
        """Return (field, node) for every node that it names."""
        return (("from", self.from_), ("to", self.to))

    def faults(self) -> list[tuple[str, str]]:
        """Return (field, sentence) for each fault."""
        faults = []
        if self.protocol == "udp" and self.rate is None:
            faults.append(("protocol", "udp needs a `rate`: what the sender offers, such as rate: 5mbit"))
        if self.seconds != int(self.seconds):
            faults.append(("seconds", "iperf3 runs for whole seconds: write 5, not 5.5"))
        if self.protocol == "udp" and self.congestion:
            faults.append(("congestion", "udp has no congestion control: leave this out"))
        most = _DATAGRAM if self.protocol == "udp" else _WRITE
        if self.length is not None and self.length > most:
            faults.append(("length", f"iperf3 sends at most {most} bytes at once over {self.protocol}"))
        return faults

    def requires(self) -> tuple[features.Feature, ...]:
        """Return the features that it needs."""
        if self.protocol == "mptcp":
            return (features.IPERF3, features.MPTCPIZE, features.MPTCP)
        return (features.IPERF3,)

    def _wrapped(self, *argv: str) -> tuple[str, ...]:
        return ("mptcpize", "run", *argv) if self.protocol == "mptcp" else argv

    def servers(self, task: Task) -> list[Step]:
        """Return the server, and the wait until it listens."""
        argv = self._wrapped("iperf3", "-s", "-1", "-J", "-i", str(_INTERVAL), "-p", str(task.port))
        name = f"{task.name}.server"
        server = Spawn(self.to, name, argv, stdout=f"{self.to}/{name}.json", may_end=True)
        return [server, Wait(self.to, Listening(task.port), START, name)]

    def clients(self, task: Task) -> list[Step]:
        """Return the client, which is killed half a minute after the end of its test."""
        family = {"ipv4": 4, "ipv6": 6, None: None}[self.family]
        target = task.reach(self.from_, f"{self.to}:{self.to_interface}" if self.to_interface else self.to, family)
        words = [
            "iperf3",
            "-c",
            target,
            "-p",
            str(task.port),
            "-J",
            "-i",
            str(_INTERVAL),
            "-t",
            str(int(self.seconds)),
        ]
        words += ["-P", str(self.parallel)] if self.parallel > 1 else []
        words += ["-u"] if self.protocol == "udp" else []
        # iperf3's -b is the rate of each stream, and 0 is no limit.
        words += ["-b", str(max(1, self.rate // self.parallel))] if self.rate is not None else []
        words += ["-l", str(length)] if (length := self._length(task)) is not None else []
        words += ["-R"] if self.reverse else []
        words += ["-C", self.congestion] if self.congestion else []
        name = f"{task.name}.client"
        out = f"{self.from_}/{name}.json"
        within = self.seconds + 30
        return [Spawn(self.from_, name, self._wrapped(*words), stdout=out, at=self.at, within=within)]

    def _length(self, task: Task) -> int | None:
        """Return the bytes of a write: iperf3 counts what arrives by whole ones, so an interval has many.

        Without a `rate`, two flows at once still have enough of them.
        """
        if self.length is not None or self.protocol == "udp":
            return self.length
        ends = (self.to, self.from_) if self.reverse else (self.from_, self.to)
        rate = min(self.rate or inf, (task.fastest(*ends) or inf) / 2)
        length = rate * _INTERVAL / (8 * _BLOCKS * self.parallel)
        return max(_SMALLEST, int(length)) if length < _BLOCK else None

    def _said(self, name: str, folder: Recorded) -> tuple[Said | None, Said | None]:
        """Return the reports of the client and the server."""
        rows = (self.seconds + 60) / _INTERVAL
        most, lost = int(64 * KIB + rows * (1 + self.parallel) * KIB), f"the metrics of {name} are missing"
        client = folder.value(f"{self.from_}/{name}.client.json", Said, most, lost)
        return client, folder.value(f"{self.to}/{name}.server.json", Said, most, lost)

    def failure(self, name: str, folder: Recorded) -> str:
        """Return iperf3's own error: with -J it exits with status 0 even if it failed."""
        client, server = self._said(name, folder)
        if client is None or not client.error:
            return ""
        seconds = client.intervals[-1].sum.end if client.intervals else 0.0
        theirs = (server.error if server is not None else "") or "no error, or nothing"
        where = f"[{self.from_}] {name}: iperf3 says after {seconds:.1f} s"
        return f"{where}: {client.error}; its server [{self.to}] says: {theirs}"

    def metrics(self) -> tuple[str, ...]:
        """Return the names that `read` gives."""
        return table.names("iperf3", self.protocol)

    def read(self, name: str, folder: Recorded) -> dict[str, Measured]:
        """Return the goodput that the receiver saw, and the loss and delay that the sender saw."""
        client, server = self._said(name, folder)
        sender, receiver = (server, client) if self.reverse else (client, server)
        if receiver is None:
            return {}
        total = (receiver.end.sum if self.protocol == "udp" else receiver.end.sum_received) or Sum()
        if not total.seconds:
            return {}
        metrics: dict[str, Measured] = {}
        rows = [i.sum for i in receiver.intervals if not i.sum.omitted]
        series = tuple((self.at + end, rate) for end, rate in _by_second(rows))
        received = sum(r.bytes for r in rows)
        metrics["goodput_mbps"] = Measured(received * 8 / 1e6 / total.seconds, "Mbit/s", series, span=1.0)
        metrics["received_bytes"] = Measured(received, "byte")
        metrics["seconds"] = Measured(total.seconds, "s")
        length, began = _gap(rows)
        metrics["gap_s"] = Measured(length, "s", note="longest time in which the receiver got nothing, to 0.1 s")
        metrics["gap_at_s"] = Measured(self.at + began, "s", note="when it began")
        if self.protocol == "udp":
            lost, packets = float(total.lost_packets), float(total.packets)
            metrics["loss_pct"] = Measured(100 * lost / packets if packets else 100.0, "%")
            if total.jitter_ms is not None:
                metrics["jitter_ms"] = Measured(total.jitter_ms, "ms", note="RFC 3550 section 6.4.1")
            late = sum(s.udp.out_of_order for s in receiver.end.streams if s.udp is not None)
            metrics["reorder_packets"] = Measured(late, "packet")
            return metrics
        if sender is None:
            return metrics
        streams = [s for i in sender.intervals for s in i.streams]
        note = "of the first subflow only" if self.protocol == "mptcp" else ""
        if self.protocol != "mptcp":  # TCP_INFO of an MPTCP socket tells of one subflow; the samples have all
            metrics["retransmits"] = Measured(sum(s.retransmits for s in streams), "segment")
        rtts = [s.rtt / 1e3 for s in streams if s.rtt]
        metrics |= {k: Measured(m.value, m.unit, note=note) for k, m in latencies(rtts, "rtt").items()}
        return metrics

    def doubts(self, name: str, folder: Recorded) -> Iterator[tuple[float, str, str]]:
        """Yield a doubt if one of the two programs did not run for a while: it then reports one long interval."""
        sides = zip((self.from_, self.to), ("client", "server"), self._said(name, folder), strict=True)
        for node, side, said in sides:
            late = [(r.end - r.start - _INTERVAL, r.start) for r in (i.sum for i in said.intervals)] if said else []
            if late and max(late)[0] >= STALL:
                longest, began = max(late)
                stalls = [length for length, _ in late if length >= STALL]
                often = f", and {len(stalls) - 1} times more" if len(stalls) > 1 else ""
                seen = f"its {side} in {node} did not run for {longest:.1f} s from {self.at + began:.1f} s on{often}"
                yield sum(stalls), f"goodput, gap and RTT of {name}", seen


def _by_second(rows: Sequence[Part]) -> list[tuple[float, float]]:
    """Join intervals to whole seconds; return the end and the rate (Mbit/s) of each second."""
    seconds: dict[int, list[Part]] = {}
    for row in rows:
        seconds.setdefault(int(row.start + 1e-3), []).append(row)
    joined = []
    for group in seconds.values():
        start, end = group[0].start, group[-1].end
        if end - start >= 0.5:  # the last interval may be a few milliseconds long
            joined.append((end, sum(r.bytes for r in group) * 8 / 1e6 / (end - start)))
    return joined


def _gap(rows: Sequence[Part]) -> tuple[float, float]:
    """Return the length and the start of the longest time without a byte.

    A program that was stopped reports one long interval: all of it but the usual length counts as a gap.
    """
    best, began, current = 0.0, 0.0, None
    for row in rows:
        current = row.start if current is None else current
        stalled = row.end - row.start >= 2 * _INTERVAL
        end = row.end if not row.bytes else row.end - _INTERVAL if stalled else current
        if end - current > best:
            best, began = end - current, current
        if row.bytes:
            current = None
    return best, began
