"""The topology language: the models of a file, frozen and closed."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from testbed.drivers.link import MTU
from testbed.drivers.tc import DISCIPLINES, DISTRIBUTIONS, FRAME, GilbertElliott, Shape, depth
from testbed.features import Feature, named, stated
from testbed.language.traces import Trace
from testbed.nodes.endpoint import Endpoint
from testbed.nodes.node import RESTARTING, Node
from testbed.nodes.path_manager import Doing
from testbed.spec import Spec
from testbed.units import Address, Argv, Memory, Moment, Percentage, Rate, Size, Time
from testbed.workloads.command import Command
from testbed.workloads.iperf3 import Iperf3
from testbed.workloads.multicast import Multicast
from testbed.workloads.ping import Ping
from testbed.workloads.place import Workload
from testbed.workloads.transfer import Transfer

NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
Family = Literal["ipv4", "ipv6"]
Way = Literal["forward", "reverse"]
WAYS: tuple[Way, Way] = ("forward", "reverse")


def _queue(value: Any) -> Any:
    return {"discipline": value} if isinstance(value, str) else value


def _capture(value: Any) -> Any:
    return {"interfaces": value} if isinstance(value, str) else value


class Bursts(Spec):
    """Loss in bursts (Gilbert-Elliott): chances to turn bad (p) and good (r) again, and of loss in each state."""

    p: Percentage
    r: Percentage
    bad: Percentage = 1.0
    good: Percentage = 0.0


def _kind_of_loss(value: Any) -> str:
    return "bursts" if isinstance(value, dict | Bursts) else "share"


Loss = Annotated[
    Annotated[Bursts, Tag("bursts")] | Annotated[Percentage, Tag("share")],
    Discriminator(_kind_of_loss),
]


Discipline = Literal[DISCIPLINES]  # type: ignore[valid-type]  # the driver's list is the source


class Queue(Spec):
    """What waits where the link is slower than the sender: a discipline, and its limit."""

    discipline: Discipline = "bfifo"
    limit: Size | None = Field(None, description="Bytes, for bfifo")
    packets: int | None = Field(None, ge=1, le=10**6, description="Packets, for every other discipline")


class Direction(Spec):
    """What happens to the packets of one direction of a link (tc(8))."""

    rate: Rate | None = None
    burst: Size | None = None
    delay: Time | None = None
    jitter: Time | None = None
    distribution: Literal[DISTRIBUTIONS] | None = None  # type: ignore[valid-type]
    loss: Loss | None = Field(None, description="A percentage, or a Gilbert-Elliott model {p, r, bad, good}")
    duplicate: Percentage | None = None
    corrupt: Percentage | None = None
    reorder: Percentage | None = None
    queue: Annotated[Queue, BeforeValidator(_queue, json_schema_input_type=Discipline | Queue)] | None = None
    trace: Trace | None = Field(None, description="Rate, delay and loss follow a file")

    def __eq__(self, other: object) -> bool:
        """Say whether both state the same: null removes what a link had, and what is left out does not."""
        return (
            super().__eq__(other) is True
            and isinstance(other, Direction)
            and self.model_fields_set == other.model_fields_set
        )

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, k) for k in type(self).model_fields), *sorted(self.model_fields_set)))


class Shaping(Direction):
    """Both directions at once, with what differs under `forward` (first end to second) and `reverse`."""

    mtu: int | None = Field(None, ge=68, le=65535)
    forward: Direction | None = None
    reverse: Direction | None = None

    def shape(self, way: Way) -> Shape:
        """Return what one direction does."""
        own = getattr(self, way)
        if own is None and self.model_fields_set.isdisjoint(Direction.model_fields):
            return Shape()
        own = own or Direction()
        # What a direction states is its own, also null: nothing of what holds for both.
        found = {k: getattr(own if k in own.model_fields_set else self, k) for k in Direction.model_fields}
        queue: Queue | None = found.pop("queue")
        found.pop("trace")
        trace = self.followed(way)
        if trace is not None:
            found |= {key: trace.first(key) for key in trace.states()}
            if "rate" in trace.states():
                # Before the run no frame may be charged at the rate of an outage: it would be in debt for a minute.
                found["rate"] = max(8, round(next((p[1] for p in trace.points or () if p[1]), 8.0)))
        if isinstance(found["loss"], Bursts):
            found["loss"] = GilbertElliott(**dict(found["loss"]))
        limit = (queue.limit if queue.discipline == "bfifo" else queue.packets) if queue else None
        if trace is not None and found["rate"] and limit is None and (queue is None or queue.discipline == "bfifo"):
            limit = depth(round(trace.highest()))  # that of the first rate may be short
        frame = self.mtu + FRAME - MTU if self.mtu is not None else 0
        return Shape(**found, queue=queue.discipline if queue else None, limit=limit, frame=frame)

    def followed(self, way: Way) -> Trace | None:
        """Return the trace that one direction follows."""
        own = getattr(self, way)
        trace: Trace | None = own.trace if own is not None and "trace" in own.model_fields_set else self.trace
        return trace

    def shapes(self) -> tuple[Shape, Shape]:
        """Return the shapes of both directions, forward first."""
        return self.shape("forward"), self.shape("reverse")


class Link(Shaping):
    """An edge of the topology: two interfaces `node:interface`, their addresses, and its shaping."""

    name: str | None = Field(None, description="For events and --set; an end, node:interface, names a link as well")
    ends: tuple[str, str]
    addresses: tuple[Address | list[Address] | None, Address | list[Address] | None] | None = Field(
        None,
        description="address/length of each end, a list for several, null for none; planned when left out",
    )

    macs: tuple[str | None, str | None] | None = Field(
        None, description="MAC address of each end, null for a planned one; planned from the names when left out"
    )

    def stated(self, end: int) -> tuple[str, ...] | None:
        """Return the addresses that the author gave an end, None when all are left to the plan."""
        if self.addresses is None:
            return None
        given = self.addresses[end]
        return () if given is None else (given,) if isinstance(given, str) else tuple(given)

    def directions(self) -> tuple[tuple[str, Shape], tuple[str, Shape]]:
        """Return both directions, forward first: the end that sends, and the shape of what it sends."""
        forward, reverse = self.shapes()
        return (self.ends[0], forward), (self.ends[1], reverse)


SHAPES = {*Direction.model_fields, *WAYS}


class Work(Spec):
    """One workload: exactly one kind."""

    iperf3: Iperf3 | None = None
    transfer: Transfer | None = None
    ping: Ping | None = None
    multicast: Multicast | None = None
    command: Command | None = None

    def kind(self) -> str:
        """Return the name of the kind, "" when there is none or several."""
        found = [k for k in type(self).model_fields if getattr(self, k) is not None]
        return found[0] if len(found) == 1 else ""

    def mptcp(self) -> Iperf3 | Transfer | None:
        """Return the flow if both of its ends are to speak MPTCP."""
        flow = self.iperf3 or self.transfer
        return flow if flow is not None and flow.speaks == "mptcp" else None

    def workload(self) -> Workload:
        """Return the workload itself."""
        found: Workload = getattr(self, self.kind())
        return found


class Capture(Spec):
    """Interfaces whose packets are recorded, as pcapng: `node:interface`, with * and ? as in a shell."""

    interfaces: str
    filter: str | None = Field(None, description="pcap-filter(7)")
    snaplen: int | None = Field(None, ge=14, le=262144, description="Bytes kept of each packet")


class Readdress(Spec):
    """Addresses that an interface loses and gets, in this order."""

    interface: str
    remove: Address | None = None
    add: Address | None = None


class Event(Spec):
    """Something that happens at a time of the run: to a link (`set`, `down`) or at a node."""

    at: Moment
    every: Moment | None = Field(None, description="It happens again after each such time, as often as `times` says")
    times: int | None = Field(None, ge=1, le=10_000, description="How often it happens; until the run ends if left out")
    for_: Moment | None = Field(None, alias="for", description="After this time, `down`, `set` or `remove` is undone")
    ramp: Moment | None = Field(None, description="What `set` changes reaches its value gradually, within this time")
    link: str | None = Field(None, description="The link that it happens to: its name, or one of its ends")
    set: Shaping | None = Field(None, description="What changes of the link; null removes it")
    down: bool | None = Field(None, description="The link goes down, or up again")
    node: str | None = Field(None, description="The node that it happens at")
    command: Argv | None = None
    sysctl: dict[str, str | int] | None = None
    endpoint: Endpoint | None = Field(None, description="An MPTCP endpoint to add, remove or change (see action)")
    action: Literal["add", "remove", "set", "flush"] = Field(
        "add", description="What happens to the endpoint; `flush`, without one, removes all endpoints of the node"
    )
    mptcp: Doing | None = Field(None, description="A command to the path manager of the node, which is in user space")
    mlo_link: int | None = Field(None, description="Link ID of an access point: remove it, let it return, or set freq")
    remove: bool | None = Field(None, description="Announce the end of the mlo_link and end it; false: it returns")
    freq: int | None = Field(None, description="The mlo_link goes to this channel (MHz), announced in its beacons")
    rejoin: bool | None = Field(None, description="A station leaves and joins again, with all of its links")
    address: Readdress | None = None
    restart: Literal[RESTARTING] | None = Field(  # type: ignore[valid-type]  # roles say whether they can
        None, description="A role of the node that loses its state and begins again"
    )


class Check(Spec):
    """An expectation: what a metric, or the sum of some, must be in the run, at a time, or in a part of the run."""

    metric: str = ""
    sum: tuple[str, ...] = Field((), max_length=1000, description="The sum of these, in place of `metric`")
    min: float | None = None
    max: float | None = None
    equals: float | None = None
    present: bool | None = None
    at: Moment | None = None
    window: tuple[Moment, Moment] | None = Field(None, description="In this part of the run alone: [4s, 8s]")
    for_: Moment | None = Field(None, alias="for", gt=0, description="The bounds hold that long without a break")
    repeats: Literal["each", "median", "mean", "min", "max", "p95"] = Field(
        "each", description="Of the repeats of a case: each must pass, or this of them all"
    )
    divide_by: str | tuple[str, ...] | None = Field(None, description="Divide by this other metric, or the sum of some")

    def metrics(self) -> tuple[str, ...]:
        """Return every metric that it names."""
        by = (self.divide_by,) if isinstance(self.divide_by, str) else self.divide_by or ()
        return (*((self.metric,) if self.metric else ()), *self.sum, *by)


class Samples(Spec):
    """How often counters are read."""

    every: Moment = 0.25


class Requires(Spec):
    """What the file needs beyond what its words imply; where that is missing, the run is skipped (exit status 4)."""

    kernel: str | None = Field(None, description="At least this version, such as >=6.12")
    features: tuple[str, ...] = Field((), description="Names of features, as `testbed doctor` shows them")
    counters: tuple[str, ...] = Field((), description="Counters of the kernel, such as TcpExt.TCPTimeouts")
    programs: tuple[str, ...] = Field((), description="Programs that `commands` and `command` run")

    def needed(self) -> tuple[Feature, ...]:
        """Return all of it as features."""
        found = [f for name in self.features if (f := named(name)) is not None]
        found += [stated("kernel", self.kernel)] if self.kernel is not None else []
        found += [stated("counters", name) for name in self.counters]
        found += [named(name) or stated("programs", name) for name in self.programs]
        return tuple(found)


class Resources(Spec):
    """What the whole lab may use of the machine at a time; what is left out has no bound."""

    memory: Memory | None = None
    pids: int | None = Field(None, ge=8, le=4_000_000, description="Processes and threads; a lab that needs more ends")
    cpu: float | None = Field(None, ge=0.05, le=4096, description="Processors, also parts of one: 1.5")


class Topology(Spec):
    """What the network is, what runs on it, what is recorded, what happens when, and what must hold."""

    name: str
    description: str = ""
    families: tuple[Family, ...] = Field(("ipv4", "ipv6"), min_length=1)
    routing: Literal["static", "ecmp", "none"] = Field(
        "static", description="Plan shortest-path routes: one (static) or all of the same length (ecmp); or none"
    )
    addressing: Literal["by_order", "by_name"] = Field(
        "by_order", description="Number segments in the order of the file, or by the names of their interfaces"
    )
    nodes: dict[str, Node] = Field(max_length=20_000)
    links: tuple[Link, ...] = Field((), max_length=50_000)
    workloads: dict[str, Work] = Field({}, max_length=10_000)
    capture: tuple[Annotated[Capture, BeforeValidator(_capture, json_schema_input_type=str | Capture)], ...] = Field(
        (), max_length=1000
    )
    samples: Samples = Samples()
    events: tuple[Event, ...] = Field((), max_length=10_000)
    checks: tuple[Check, ...] = Field((), max_length=10_000)
    resources: Resources = Resources()
    requires: Requires = Requires()
    silence: dict[str, str] = Field({}, max_length=100, description="Name of a warning of check -> why it is not given")
    duration: Moment | None = Field(None, description="Length of a run; otherwise until the last workload ends")

    def __hash__(self) -> int:
        return hash(self.name)  # pydantic's fails: some fields are mappings

    def seconds(self) -> float:
        """Return how long a run of this takes, as far as workloads and `duration` say."""
        ends = [w.at + w.seconds_long() for w in (x.workload() for x in self.workloads.values())]
        return max([*ends, self.duration or 0.0])
