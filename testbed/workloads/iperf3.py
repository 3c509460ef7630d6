"""Workload `iperf3`: a TCP, UDP or MPTCP flow with its own server and port (iperf3(1)).

For MPTCP, mptcpize(8) starts both sides: with iperf3's own --mptcp the control connection is plain TCP, and a test
whose control connection dies with its path never ends.
"""

from collections.abc import Iterator
from math import inf
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from testbed import features
from testbed.drivers.facts import Listening
from testbed.metrics import table
from testbed.metrics.measured import Measured
from testbed.metrics.recorded import KIB, Recorded
from testbed.spec import Spec
from testbed.steps import START, Spawn, Step, Wait
from testbed.units import Argument, Moment, Rate, Size, Word
from testbed.workloads.iperf3_report import Said, Side, figures, stalls
from testbed.workloads.place import Expected, Task, began_late
from testbed.workloads.transfer import LONGEST, Fallback, Protocols, Transfer

_DATAGRAM, _WRITE = 65507, 1 << 20  # bytes: the largest payload of UDP over IPv4, and MAX_BLOCKSIZE of iperf.h
_BLOCK, _SMALLEST, _BLOCKS = 128 * KIB, 16, 10  # bytes of iperf3's own block, of our smallest, and blocks an interval
_INTERVAL = 0.1  # seconds: the shortest interval of iperf3, and the resolution of gap_s
_CLASSES = ("be", "ef", "le", *(f"cs{n}" for n in range(8)), *(f"af{n}{m}" for n in range(1, 5) for m in range(1, 4)))


def _dscp(value: Any) -> Any:
    if (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 63) or value in _CLASSES:
        return str(value)
    raise ValueError(f"{value!r} is not a DSCP: write a number from 0 to 63, or one of {', '.join(_CLASSES)}")


Dscp = Annotated[
    str,
    BeforeValidator(_dscp),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0, "maximum": 63}, {"enum": list(_CLASSES)}]}),
]


class Iperf3(Spec):
    """One flow between two nodes for some seconds; with `reverse` it goes from `to` to `from`."""

    from_: str = Field(alias="from")
    to: str
    protocol: Literal["tcp", "udp", "mptcp"] = "tcp"
    seconds: Moment = Field(10, gt=0)
    bytes: Size | None = Field(
        None, description="Send so many instead of for a time, and measure `completion_s`; `seconds` then bounds it"
    )
    at: Moment = 0.0
    parallel: int = Field(1, ge=1, le=128, description="Streams; with MPTCP each is a connection of its own")
    rate: Rate | None = Field(
        None, description="What the sender offers, all streams together; needed for udp, a ceiling otherwise"
    )
    length: Size | None = Field(None, description="Bytes of one write or datagram")
    reverse: bool = False
    congestion: Word | None = Field(None, description="TCP congestion control algorithm")
    family: Literal["ipv4", "ipv6"] | None = None
    to_interface: str | None = Field(None, description="Connect to this interface's address of `to`")
    bidir: bool = Field(False, description="Both ends send, each at `rate`; what `to` sends has metrics `reverse_*`")
    omit: Moment = Field(0, le=60, description="Whole seconds before those that are measured, such as slow start")
    window: Size | None = Field(None, description="Bytes of the sockets' buffers, of which the kernel makes twice that")
    mss: int | None = Field(None, ge=88, le=9216, description="Maximum segment size of TCP and MPTCP (bytes)")
    dscp: Dscp | None = Field(None, description="Differentiated services: a number or a name such as ef (RFC 4594)")
    port: int | None = Field(None, ge=1, le=65535, description="Port of the server; one of its own when left out")
    bind: str | None = Field(None, description="Interface of `from`: send from its address, and by it unless mptcp")
    interval: Moment = Field(_INTERVAL, ge=0.1, le=60, description="What a row of the report and `gap_s` resolve")
    fallback: Fallback | None = Field(
        None, description="To TCP, of a flow of MPTCP: forbid (when left out), allow or require"
    )
    options: tuple[Argument, ...] = Field(
        (), max_length=100, description="More words for the client's iperf3, at your own risk"
    )

    def seconds_long(self) -> float:
        """Return the length of the test in seconds; iperf3 takes whole ones."""
        if self.bytes is not None and "seconds" not in self.model_fields_set:
            return LONGEST
        return float(self.seconds + self.omit)

    def ends(self) -> tuple[tuple[str, str], ...]:
        """Return (field, node) for every node that it names."""
        return (("from", self.from_), ("to", self.to))

    def faults(self) -> list[tuple[str, str]]:
        """Return (field, sentence) for each fault."""
        faults = []
        if self.protocol == "udp" and self.rate is None:
            faults.append(("protocol", "udp needs a `rate`: what the sender offers, such as rate: 5mbit"))
        if self.bytes is not None:
            beside = ("dscp", "length", "omit", "interval", "bidir", "options")
            stated = [field for field in beside if field in self.model_fields_set]
            faults += [(field, "leave this out with `bytes`, which testbed sends itself") for field in stated]
            if self.protocol == "udp":
                faults.append(("bytes", "nobody knows when all datagrams have come: write `seconds`"))
        elif self.seconds != int(self.seconds):
            below = int(self.seconds)
            cure = f"{below} or {below + 1}" if below else "1"
            faults.append(("seconds", f"iperf3 runs for whole seconds: write {cure}, not {self.seconds:g}"))
        if self.protocol == "udp" and self.congestion:
            faults.append(("congestion", "udp has no congestion control: leave this out"))
        if self.protocol == "udp" and self.mss is not None:
            faults.append(("mss", "udp has no segments: leave this out, `length` is the size of a datagram"))
        if self.fallback is not None and self.protocol != "mptcp":
            faults.append(("fallback", f"a flow of {self.protocol} has nothing to fall back from: leave this out"))
        if self.bidir and self.reverse:
            faults.append(("reverse", "with `bidir` both ends send: leave out one of the two"))
        if self.omit != int(self.omit):
            faults.append(("omit", f"iperf3 omits whole seconds: write {int(self.omit) + 1}, not {self.omit:g}"))
        most = _DATAGRAM if self.protocol == "udp" else _WRITE
        if self.length is not None and self.length > most:
            faults.append(("length", f"iperf3 sends at most {most} bytes at once over {self.protocol}"))
        return faults

    @property
    def speaks(self) -> str:
        """What both of its ends speak."""
        return self.protocol

    def requires(self) -> tuple[features.Feature, ...]:
        """Return the features that it needs."""
        if (transfer := self._transfer()) is not None:
            return transfer.requires()
        own = (features.congestion(self.congestion),) if self.congestion else ()
        if self.protocol == "mptcp":
            return (features.IPERF3, features.MPTCPIZE, features.MPTCP, *own)
        return (features.IPERF3, *own)

    def _wrapped(self, *argv: str) -> tuple[str, ...]:
        return ("mptcpize", "run", *argv) if self.protocol == "mptcp" else argv

    def listens(self, task: Task) -> int:
        """Return the port of the server."""
        return self.port or task.port

    def servers(self, task: Task) -> list[Step]:
        """Return the server, and the wait until it listens."""
        if (transfer := self._transfer()) is not None:
            return transfer.servers(task)
        port = self.listens(task)
        argv = self._wrapped("iperf3", "-s", "-1", "-J", "-i", f"{self.interval:g}", "-p", str(port))
        name = f"{task.name}.server"
        server = Spawn(self.to, name, argv, stdout=f"{self.to}/{name}.json", may_end=True)
        return [server, Wait(self.to, Listening(port), START, name)]

    def clients(self, task: Task) -> list[Step]:
        """Return the client, which is killed half a minute after the end of its test."""
        if (transfer := self._transfer()) is not None:
            return transfer.clients(task)
        target = task.target(self.from_, self.to, self.to_interface, self.family)
        words = ["iperf3", "-c", target, "-p", str(self.listens(task)), "-J", "-i", f"{self.interval:g}"]
        words += ["-t", str(int(self.seconds))]
        words += ["-P", str(self.parallel)] if self.parallel > 1 else []
        words += ["-u"] if self.protocol == "udp" else []
        # iperf3's -b is the rate of each stream, and 0 is no limit.
        words += ["-b", str(max(1, self.rate // self.parallel))] if self.rate is not None else []
        words += ["-l", str(length)] if (length := self._length(task)) is not None else []
        # Streams send from this port and those after it; with MPTCP that is the first subflow of each.
        words += ["--cport", str(task.source_port)] if task.source_port is not None else []
        words += ["-R"] if self.reverse else []
        words += ["--bidir"] if self.bidir else []
        words += ["-C", self.congestion] if self.congestion else []
        words += ["-O", str(int(self.omit))] if self.omit else []
        words += ["-w", str(self.window)] if self.window is not None else []
        words += ["-M", str(self.mss)] if self.mss is not None else []
        words += ["--dscp", str(self.dscp)] if self.dscp is not None else []
        if self.bind is not None:
            own = task.bound(self.from_, self.bind, self.to, target, by_interface=self.protocol != "mptcp")
            words += ["-B", own]
        words += self.options
        name = f"{task.name}.client"
        out = f"{self.from_}/{name}.json"
        within = self.seconds_long() + 30
        return [Spawn(self.from_, name, self._wrapped(*words), stdout=out, at=self.at, within=within)]

    def _transfer(self) -> Transfer | None:
        """Return the transfer that a flow of so many bytes is, None for one that takes a time."""
        if self.bytes is None or self.protocol == "udp":  # the second is a fault, and said
            return None
        same = (
            *("bytes", "at", "rate", "reverse", "congestion", "window", "mss", "family", "to_interface", "port"),
            *("bind", "fallback"),
        )
        words: dict[str, Any] = {key: getattr(self, key) for key in same}
        words |= {"from_": self.from_, "to": self.to, "connections": self.parallel}
        words |= {"protocol": Protocols(**{"from": self.protocol, "to": self.protocol}), "seconds": self.seconds_long()}
        return Transfer.model_construct(**words)

    def _length(self, task: Task) -> int | None:
        """Return the bytes of a write: iperf3 counts what arrives by whole ones, so an interval has many.

        Without a `rate`, two flows at once still have enough of them.
        """
        if self.length is not None or self.protocol == "udp":
            return self.length
        ends = (self.to, self.from_) if self.reverse else (self.from_, self.to)
        rate = min(self.rate or inf, (task.fastest(*ends) or inf) / 2)
        length = rate * self.interval / (8 * _BLOCKS * self.parallel)
        return max(_SMALLEST, int(length)) if length < _BLOCK else None

    def _sides(self, name: str, folder: Recorded) -> tuple[Side | None, Side | None]:
        """Return what client and server reported."""
        rows = (2 if self.bidir else 1) * (self.seconds_long() + 60) / self.interval
        most, lost = int(64 * KIB + rows * (1 + self.parallel) * KIB), f"the metrics of {name} are missing"
        found = []
        for node, end in ((self.from_, "client"), (self.to, "server")):
            said = folder.value(f"{node}/{name}.{end}.json", Said, most, lost)
            began = folder.began(node, name)
            seen = began is not None
            found.append(None if said is None else Side(said, began if began is not None else self.at, seen))
        return found[0], found[1]

    def failure(self, name: str, folder: Recorded) -> str:
        """Return iperf3's own error: with -J it exits with status 0 even if it failed."""
        if (transfer := self._transfer()) is not None:
            outcome, why = transfer.ended(name, folder) if folder.complete else ("completed", "")
            return f"[{self.from_}] {name}: {outcome}: {why}" if outcome != "completed" else ""
        client, server = self._sides(name, folder)
        if client is None or not client.said.error:
            return ""
        seconds = client.said.intervals[-1].sum.end if client.said.intervals else 0.0
        theirs = (server.said.error if server is not None else "") or "no error, or nothing"
        where = f"[{self.from_}] {name}: iperf3 says after {seconds:.1f} s"
        return f"{where}: {client.said.error}; its server [{self.to}] says: {theirs}"

    def metrics(self) -> tuple[str, ...]:
        """Return the names that `read` gives."""
        if (transfer := self._transfer()) is not None:
            return transfer.metrics()
        return table.names("iperf3", self.protocol) + (table.names("bidir", self.protocol) if self.bidir else ())

    def read(self, name: str, folder: Recorded) -> dict[str, Measured]:
        """Return the goodput that the receiver saw, and the loss and delay that the sender saw."""
        if (transfer := self._transfer()) is not None:
            return transfer.read(name, folder)
        client, server = self._sides(name, folder)
        sender, receiver = (server, client) if self.reverse else (client, server)
        if receiver is None:
            return {}
        part = folder.inside if folder.window is not None else None
        found = figures(self.protocol, receiver, sender, False, self.interval, part)
        if self.bidir and client is not None:
            back = figures(self.protocol, client, server, True, self.interval, part)
            found |= {f"reverse_{key}": value for key, value in back.items()}
        return found

    def expectations(self, name: str, folder: Recorded) -> Iterator[Expected]:
        """Yield that a flow of MPTCP was to stay one, if it did not."""
        if (transfer := self._transfer()) is not None and self.protocol == "mptcp" and folder.complete:
            yield from (e for e in transfer.expectations(name, folder) if not e.what.endswith("outcome"))

    def doubts(self, name: str, folder: Recorded) -> Iterator[tuple[float, str, str]]:
        """Yield a doubt if one of the two programs did not run for a while, and one if its data came late."""
        if (transfer := self._transfer()) is not None:
            yield from transfer.doubts(name, folder)
            return
        for node, end, side in zip((self.from_, self.to), ("client", "server"), self._sides(name, folder), strict=True):
            late = list(stalls(side, self.interval)) if side is not None else []
            if late:
                longest, began = max(late)
                often = f", and {len(late) - 1} times more" if len(late) > 1 else ""
                seen = f"its {end} in {node} did not run for {longest:.1f} s from {began:.1f} s on{often}"
                yield sum(length for length, _ in late), f"goodput, gap and RTT of {name}", seen
        yield from began_late(name, self.read(name, folder).get("start_s"), self.at)
