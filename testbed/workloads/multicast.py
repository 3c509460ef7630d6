"""Workload `multicast`: one source, a group, and receivers that join it: (S,G) by default, or (*,G).

Terms are those of IGMPv3 (RFC 3376), MLDv2 (RFC 3810) and SSM (RFC 4607); the programs are in `programs/multicast/`.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, Any

from msgspec import Meta, Struct
from msgspec.structs import replace
from pydantic import BeforeValidator, Field

from testbed.drivers.facts import FileHas
from testbed.drivers.membership import Joined
from testbed.features import IPV6, Feature
from testbed.metrics import table
from testbed.metrics.measured import Measured
from testbed.metrics.reception import Listening, measure
from testbed.metrics.recorded import KIB, Count, Recorded
from testbed.programs.multicast.packets import PACKET, RECORD, SENT, arrivals, sent_times, stream
from testbed.spec import Spec
from testbed.steps import Spawn, Step, Wait
from testbed.units import Host, Moment, Rate, Size
from testbed.workloads.place import Expected, Task

LINGER = 1.0  # seconds that a timed receiver goes on listening after the source's end
HEADERS = {4: 28, 6: 48}  # bytes of IP and UDP
_PATIENCE = 30.0  # seconds that a program may take longer on an emulated processor
_ROOM = 10_000  # packets of other streams that a receiver may have received as well


class Sender(Struct, frozen=True):
    """The source's summary (`multicast.sender`); times in ns."""

    send_errors: Annotated[dict[str, Count], Meta(max_length=200)]
    skipped: Count
    late_max: Count


class Member(Struct, frozen=True):
    """A receiver's summary (`multicast.receiver`): times in ns of CLOCK_MONOTONIC, null if unknown."""

    joined: Count
    left: Count | None = None
    socket_drops: Count | None = None


def _receiver(value: Any) -> Any:
    return {"node": value} if isinstance(value, str) else value


class Receiver(Spec):
    """A member of the group; without `at` it joins before anything is sent, and stays to the end."""

    node: str
    interface: str | None = Field(None, description="Join on this interface; otherwise on that nearest to the source")
    at: Moment | None = Field(None, description="Join at this time of the run")
    seconds: Moment | None = Field(None, gt=0, description="Leave this long after `at`")
    any_source: bool = Field(False, description="Join (*,G), all sources, instead of (S,G)")


Receivers = tuple[Annotated[Receiver, BeforeValidator(_receiver, json_schema_input_type=str | Receiver)], ...]


class Multicast(Spec):
    """Numbered packets from one node to a group at a steady rate, and the nodes that receive them."""

    source: str
    receivers: Receivers = Field(min_length=1)
    group: Host
    rate: Rate = Field(description="Of UDP payload")
    seconds: Moment = Field(10, gt=0)
    at: Moment = 0.0
    size: Size = Field(1316, description="Bytes of UDP payload of each packet")
    ttl: int = Field(16, ge=1, le=255, description="TTL or hop limit")
    port: int | None = Field(None, ge=1, le=65535, description="UDP port; one of its own when left out")

    @property
    def version(self) -> int:
        """Return the IP version of the group."""
        return 6 if ":" in self.group else 4

    def seconds_long(self) -> float:
        """Return the time from `at` until the source and all timed receivers have ended."""
        return max(self.seconds, *(r.at + self.stay(r) - self.at for r in self.receivers if r.at is not None), 0.0)

    def stay(self, receiver: Receiver) -> float:
        """Return how long a timed receiver listens."""
        rest = self.at + self.seconds + LINGER - (receiver.at or 0.0)
        return receiver.seconds if receiver.seconds is not None else max(rest, LINGER)

    def ends(self) -> tuple[tuple[str, str], ...]:
        """Return (field, node) for the source; receivers are checked together with the way to them."""
        return (("source", self.source),)

    def faults(self) -> list[tuple[str, str]]:
        """Return (field, sentence) for each fault."""
        faults = [("group", text)] if (text := misfit(self.group)) else []
        if self.size < PACKET.size:
            faults.append(("size", f"a packet has at least {PACKET.size} bytes, for its number and time"))
        return faults

    def requires(self) -> tuple[Feature, ...]:
        """Return the features that it needs."""
        return (IPV6,) if self.version == 6 else ()

    def _port(self, task: Task) -> int:
        return self.port or task.port

    def _listeners(self, task: Task) -> Iterator[tuple[Receiver, Spawn, str, str]]:
        """Yield each receiver with its process, its interface and the source that it joins ("" for all)."""
        assert task.way is not None
        interfaces = dict(task.way.receivers)
        for r in self.receivers:
            ifname, source = interfaces[r.node], "" if r.any_source else task.way.source
            seconds = "" if r.at is None else f"{self.stay(r):g}"
            out = f"{r.node}/{task.name}"
            words = (f"group={self.group}", f"port={self._port(task)}", f"interface={ifname}", f"source={source}")
            argv = ("testbed.multicast.receiver", *words, f"seconds={seconds}", f"out={out}")
            within = None if r.at is None else self.stay(r) + _PATIENCE
            drain = f"{out}.packets" if r.at is None else ""
            name = f"{task.name}.receiver"
            yield r, Spawn(r.node, name, argv, at=r.at, within=within, drain=drain, forked=True), ifname, source

    def servers(self, task: Task) -> list[Step]:
        """Return the untimed receivers, and the waits for their memberships in the kernel."""
        steps: list[Step] = []
        for r, process, ifname, source in self._listeners(task):
            if r.at is None:
                joined = Joined(self.group, ifname, source)
                steps += [process, Wait(r.node, joined, process=process.name)]
                steps.append(Wait(r.node, FileHas(f"{r.node}/{task.name}.receiver.json"), process=process.name))
        return steps

    def clients(self, task: Task) -> list[Step]:
        """Return the source and the timed receivers."""
        assert task.way is not None
        words = (
            f"group={self.group}",
            f"port={self._port(task)}",
            f"interface={task.way.interface}",
            f"source={task.way.source}",
            f"stream={stream(task.name)}",
            f"interval={self.size * 8e9 / self.rate:.10g}",
            f"size={self.size}",
            f"seconds={self.seconds:g}",
            f"ttl={self.ttl}",
            f"out={self.source}/{task.name}",
        )
        argv = ("testbed.multicast.sender", *words)
        within = self.seconds + _PATIENCE
        sender = Spawn(self.source, f"{task.name}.sender", argv, at=self.at, within=within, forked=True)
        return [sender, *(process for r, process, _, _ in self._listeners(task) if r.at is not None)]

    def failure(self, name: str, folder: Recorded) -> str:
        """Return "": the programs report errors by their exit status."""
        return ""

    def metrics(self) -> tuple[str, ...]:
        """Return the names that `read` gives: of the source, and of each receiver after its node's name."""
        each = table.names("receiver")
        return (*table.names("multicast"), *(f"{r.node}.{key}" for r in self.receivers for key in each))

    def _sent(self, name: str, folder: Recorded) -> list[int] | None:
        """Return when each packet was sent (ns of CLOCK_MONOTONIC)."""
        file, lost = f"{self.source}/{name}.sent", f"the metrics of {name} are missing"
        count = int(self.seconds * self.rate / (8 * self.size)) + 2
        data = folder.data(file, count * SENT.size, lost)
        found = sent_times(data) if data is not None else None
        if found and not (folder.within(min(found) / 1e9) and folder.within(max(found) / 1e9)):
            folder.note(file, "a time in it is outside of the run", lost)
            return None
        return found

    def _said(self, name: str, folder: Recorded) -> Sender | None:
        return folder.value(f"{self.source}/{name}.sender.json", Sender, 64 * KIB, f"the metrics of {name} are missing")

    def _member(self, name: str, folder: Recorded, node: str) -> Member | None:
        lost = f"the metrics of {name}.{node} are missing"
        return folder.value(f"{node}/{name}.receiver.json", Member, 64 * KIB, lost)

    def read(self, name: str, folder: Recorded) -> dict[str, Measured]:
        """Return the metrics of the source and of each receiver."""
        if folder.origin is None:
            return {}
        said, sent = self._said(name, folder), self._sent(name, folder)
        if said is None or sent is None:
            return {}
        if folder.window is not None:
            return self._in_window(name, folder, sent)
        metrics = {
            "sent_packets": Measured(len(sent), "packet"),
            "send_errors": Measured(sum(said.send_errors.values()), "packet", note="refused by the source's kernel"),
            "late_max_ms": Measured(said.late_max / 1e6, "ms", note="the source's own lateness"),
            "skipped_packets": Measured(said.skipped, "packet", note="not sent, for the source was too late"),
        }
        for r in self.receivers:
            measured = self._received(name, folder, r, sent, round(folder.origin * 1e9))
            metrics |= {f"{r.node}.{key}": value for key, value in measured.items()}
        return metrics

    def _in_window(self, name: str, folder: Recorded, sent: list[int]) -> dict[str, Measured]:
        """Return the metrics of the packets that were sent in a part of the run."""
        origin = round((folder.origin or 0.0) * 1e9)
        inside = [n for n, t in enumerate(sent) if folder.inside((t - origin) / 1e9)]
        if not inside:
            return {}
        part = range(inside[0], inside[-1] + 1)
        metrics = {"sent_packets": Measured(len(part), "packet")}
        for r in self.receivers:
            measured = self._received(name, folder, r, sent, origin, part)
            metrics |= {f"{r.node}.{key}": value for key, value in measured.items()}
        return metrics

    def _received(
        self, name: str, folder: Recorded, receiver: Receiver, sent: list[int], origin: int, part: range | None = None
    ) -> dict[str, Measured]:
        """Return the metrics of one receiver, of all packets or of a part."""
        file, lost = f"{receiver.node}/{name}.packets", f"the metrics of {name}.{receiver.node} are missing"
        its = self._member(name, folder, receiver.node)
        data = folder.data(file, (4 * len(sent) + _ROOM) * RECORD.size, lost)
        if its is None or data is None:
            return {}
        got = arrivals(data, stream(name))
        times = [t for a in got for t in (a.received, a.sent)] + [its.joined, its.left or its.joined]
        if not (folder.within(min(times) / 1e9) and folder.within(max(times) / 1e9)):
            folder.note(file, "a time in it is outside of the run", lost)
            return {}
        if max((a.sequence for a in got), default=0) >= max(1, len(sent)):
            folder.note(file, "a packet in it was never sent", lost)
            return {}
        listening = Listening(its.joined, its.left, receiver.at is None, its.socket_drops)
        if part is not None:
            got = [replace(a, sequence=a.sequence - part.start) for a in got if a.sequence in part]
            sent = sent[part.start : part.stop]
        return measure(got, sent, listening, origin)

    def expectations(self, name: str, folder: Recorded) -> Iterator[Expected]:
        """Yield nothing: its metrics are what checks are of."""
        yield from ()

    def doubts(self, name: str, folder: Recorded) -> Iterator[tuple[float, str, str]]:
        """Yield doubts about figures that the programs limited: a full buffer, or a late source."""
        for r in self.receivers:
            its = self._member(name, folder, r.node)
            if its is not None and its.socket_drops:
                seen = f"{its.socket_drops} packets found the buffer of the receiving program full"
                yield float(its.socket_drops), f"the loss of {name}.{r.node}", seen
        said = self._said(name, folder)
        if said is not None and said.skipped:
            seen = f"{said.skipped} packets were not sent: the source was too late for them"
            yield float(said.skipped), f"the rate and gaps of {name}", seen


def misfit(group: str) -> str:
    """Return what is wrong with a group itself, "" if nothing is."""
    try:
        address = ip_address(group)
    except ValueError:
        return f"{group!r} is not an IP address: write a group such as 232.1.1.1 or ff3e::8000:1"
    if not address.is_multicast:
        return f"{group} is not a multicast address: use one of 224.0.0.0/4 or ff00::/8"
    if isinstance(address, IPv4Address):
        local = address.packed[:3] == bytes((224, 0, 0))  # RFC 5771 section 4
        return f"{group} is limited to one link (224.0.0.0/24): no router forwards it" if local else ""
    return _scoped(address, group)


def _scoped(address: IPv6Address, group: str) -> str:
    """RFC 4291 section 2.7: scopes 0 and 15 are reserved, 1 is the interface, 2 the link."""
    scope = address.packed[1] & 15
    if address.scope_id is not None or scope in (0, 1, 2, 15):
        return f"{group} has a scope that no router forwards (ffx0 to ffx2, ffxf): ff3e:: is global"
    return ""


def source_specific(group: str) -> bool:
    """Return whether a group is in the range for (S,G) only: 232/8 or ff3x::/32 (RFC 4607 section 1)."""
    packed = ip_address(group).packed
    return packed[0] == 232 if len(packed) == 4 else packed[0] == 0xFF and packed[1] >> 4 == 3 and not any(packed[2:4])
