"""The topology language: YAML text -> Topology, frozen and closed, with every error of the file at once."""

import re
from pathlib import Path as File
from typing import Annotated, Any, Literal

from msgspec import Struct
from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError

from testbed.drivers.tc import DISCIPLINES, DISTRIBUTIONS, GilbertElliott, Shape
from testbed.errors import InputError, Problem
from testbed.language.document import Document, get, parse, written
from testbed.language.explain import flatten, problems
from testbed.nodes.mptcp import Endpoint
from testbed.nodes.node import Node
from testbed.spec import Spec
from testbed.units import Address, Argv, Memory, Percentage, Rate, Size, Time
from testbed.workloads.command import Command
from testbed.workloads.iperf3 import Iperf3
from testbed.workloads.multicast import Multicast
from testbed.workloads.ping import Ping
from testbed.workloads.place import Workload

NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
Family = Literal["ipv4", "ipv6"]
Way = Literal["forward", "reverse"]
EXPERIMENT = ("topology", "matrix", "repeat", "seed")  # keys of a file beside those of a topology


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
        found = {
            k: getattr(self if getattr(own, k) is None else own, k) for k in Direction.model_fields if k != "queue"
        }
        if isinstance(found["loss"], Bursts):
            found["loss"] = GilbertElliott(**dict(found["loss"]))
        queue = own.queue or self.queue
        limit = (queue.limit if queue.discipline == "bfifo" else queue.packets) if queue else None
        return Shape(**found, queue=queue.discipline if queue else None, limit=limit)


class Link(Shaping):
    """An edge of the topology: two interfaces `node:interface`, their addresses, and its shaping."""

    name: str | None = Field(None, description="For events and --set; an end, node:interface, names a link as well")
    ends: tuple[str, str]
    addresses: tuple[Address | list[Address] | None, Address | list[Address] | None] | None = Field(
        None,
        description="address/length of each end, a list for several, null for none; planned when left out",
    )

    def stated(self, end: int) -> tuple[str, ...] | None:
        """Return the addresses that the author gave an end, None when all are left to the plan."""
        if self.addresses is None:
            return None
        given = self.addresses[end]
        return () if given is None else (given,) if isinstance(given, str) else tuple(given)


class Work(Spec):
    """One workload: exactly one kind."""

    iperf3: Iperf3 | None = None
    ping: Ping | None = None
    multicast: Multicast | None = None
    command: Command | None = None

    def kind(self) -> str:
        """Return the name of the kind, "" when there is none or several."""
        found = [k for k in type(self).model_fields if getattr(self, k) is not None]
        return found[0] if len(found) == 1 else ""

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

    at: Time
    link: str | None = None
    set: Shaping | None = None
    down: bool | None = None
    node: str | None = None
    command: Argv | None = None
    sysctl: dict[str, str | int] | None = None
    endpoint: Endpoint | None = Field(None, description="An MPTCP endpoint to add, remove or change (see action)")
    action: Literal["add", "remove", "set"] = "add"
    mlo_link: int | None = Field(None, description="Link ID of an access point: remove it, let it return, or set freq")
    remove: bool | None = Field(None, description="Announce the end of the mlo_link and end it; false: it returns")
    freq: int | None = Field(None, description="The mlo_link goes to this channel (MHz), announced in its beacons")
    rejoin: bool | None = Field(None, description="A station leaves and joins anew, with all of its links")
    address: Readdress | None = None
    restart: Literal["amt_relay", "amt_gateway"] | None = Field(
        None, description="An AMT role of the node loses its state, all tunnels, and begins anew"
    )


class Check(Spec):
    """An expectation: what a metric must be. `at` takes a sampled metric at that time of the run."""

    metric: str
    min: float | None = None
    max: float | None = None
    equals: float | None = None
    present: bool | None = None
    at: Time | None = None
    divide_by: str | None = Field(None, description="Compare metric / this other metric")


class Samples(Spec):
    """How often counters are read."""

    every: Time = 0.25


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
    routing: Literal["static", "none"] = Field("static", description="Plan shortest-path routes, or none")
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
    duration: Time | None = Field(None, description="Length of a run; otherwise until the last workload ends")

    def __hash__(self) -> int:
        return hash(self.name)  # pydantic's fails: some fields are mappings

    def seconds(self) -> float:
        """Return how long a run of this takes, as far as workloads and `duration` say."""
        ends = [w.at + w.seconds_long() for w in (x.workload() for x in self.workloads.values())]
        return max([*ends, self.duration or 0.0])


def load(path: str | File, overrides: tuple[str, ...] = (), base: File | None = None) -> Topology:
    """Read a topology, or the first case of an experiment (as `experiment.read`); InputError has every problem."""
    from testbed.language.experiment import (
        read,  # late: an experiment is more than a topology and is above this module
    )

    return read(path, overrides, base).cases[0].topology


class Written(Struct, frozen=True):
    """The names in a file, including those of faulty parts, and the doubts: parts whose faults may cause others.

    Doubts are sections (`links`, `nodes`, `workloads` ...) and single nodes (`nodes.NAME`).
    """

    nodes: tuple[str, ...]
    workloads: tuple[str, ...]
    doubt: frozenset[str] = frozenset()


class Built(Struct, frozen=True):
    """A document's data and the topology without faults that it states."""

    data: dict[str, Any]
    topology: Topology


def build(document: Document, like: Built | None = None) -> Topology:
    """Return the topology that a document states, or raise InputError with every problem in it.

    What it has in common with `like` (the same objects: another case of one experiment) is not judged again.
    """
    from testbed.rules.whole import faults  # late: it is above this module

    data = _fill(_reused(mapping(document), like) if like is not None else mapping(document))
    found: list[Problem] = []
    kept: dict[str, list[int]] = {}
    doubt: frozenset[str] = frozenset()
    try:
        topology = Topology.model_validate(data)
    except ValidationError as e:
        data = _fill(mapping(document))
        errors = e.errors(include_url=False)
        found += problems(document, Topology, errors, EXPERIMENT)
        if not isinstance(data.get("nodes"), dict):
            raise InputError(*found) from e  # without nodes nothing else can be judged
        sound, kept, doubt = _sound(data, [tuple(x["loc"]) for x in errors])
        try:
            topology = Topology.model_validate(sound)
        except ValidationError:
            raise InputError(*found) from e
    nodes, workloads = (tuple(data[k]) if isinstance(data.get(k), dict) else () for k in ("nodes", "workloads"))
    before = like.topology if like is not None and not found else None
    for path, message, hint in faults(topology, Written(nodes, workloads, doubt), before):
        if len(path) > 1 and path[0] in kept:
            path = (path[0], kept[str(path[0])][int(path[1])], *path[2:])
        # A word is blamed itself; of a mapping or a list, and where the author chose the key, that.
        key = path[-2:-1] == ("sysctl",) or not isinstance(get(data, path), str | int | float)
        found.append(document.at(path, key=key).problem(message, hint))
    if found:
        raise InputError(*found)
    return topology


def resolved(text: str, name: str) -> Topology:
    """Return the topology of a file that `effective` wrote, which is not judged again; InputError for another one."""
    document = parse(text, name)
    data = {k: v for k, v in mapping(document).items() if k not in EXPERIMENT}
    try:
        return Topology.model_validate(data)
    except ValidationError as e:
        raise InputError(*problems(document, Topology, e.errors(include_url=False), EXPERIMENT)) from e


def effective(data: dict[str, Any], seed: int) -> str:
    """Return the file of one case, with nothing left to resolve: it can be run by itself."""
    return written({**_fill(data), **({"seed": seed} if seed else {})})


_PARTS = ("nodes", "links", "workloads", "capture", "events", "checks")


def _reused(data: dict[str, Any], like: Built) -> dict[str, Any]:
    """Return the data with the models of `like` in place of what they were made of."""
    found = dict(data)
    for section in _PARTS:
        new, old, made = data.get(section), like.data.get(section), getattr(like.topology, section)
        if new is None:
            continue
        if new is old:
            found[section] = made
        elif isinstance(new, dict) and isinstance(old, dict):
            found[section] = {k: made[k] if k in old and v is old[k] else v for k, v in new.items()}
        elif isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
            found[section] = [made[n] if v is old[n] else v for n, v in enumerate(new)]
    return found


def mapping(document: Document) -> dict[str, Any]:
    """Return a document's data, or raise InputError when that is no mapping."""
    if isinstance(document.data, dict):
        return document.data
    mark = document.at(())
    if document.data is None:
        raise InputError(Problem("it is empty: a topology has at least `name:` and `nodes:`", mark.source.name))
    what = "a list" if isinstance(document.data, list) else "a text"
    message = f"a topology is a mapping, `key: value`, with at least `name` and `nodes`; this is {what}"
    raise InputError(mark.problem(message))


def _fill(data: dict[str, Any]) -> dict[str, Any]:
    """Return the data with empty nodes (`h1:`) as empty mappings."""
    nodes = data.get("nodes")
    if not isinstance(nodes, dict):
        return data
    # A role written without content (`router:`) is the role with its defaults.
    filled = {
        name: {}
        if node is None
        else {k: {} if v is None and k in _ROLES else v for k, v in node.items()}
        if isinstance(node, dict)
        else node
        for name, node in nodes.items()
    }
    return {**data, "nodes": filled}


_ROLES = [
    key
    for key, field in Node.model_fields.items()
    if any(isinstance(kind, type) and issubclass(kind, Spec) for kind in flatten(field.annotation))
]


def _sound(
    data: dict[str, Any], locations: list[tuple[Any, ...]]
) -> tuple[dict[str, Any], dict[str, list[int]], frozenset[str]]:
    """Return the data without what has errors, the original index of what is left in each list, and the doubts.

    What others refer to is kept as far as it goes: a node without its faulty roles, a link without its shaping.
    """
    bad: dict[str, dict[Any, set[Any]]] = {}
    for loc in locations:
        bad.setdefault(loc[0], {}).setdefault(loc[1] if len(loc) > 1 else None, set()).add(loc[2] if loc[2:] else None)
    sound: dict[str, Any] = {"name": "unnamed", "nodes": {}}
    kept: dict[str, list[int]] = {}
    doubt = {"nodes", "links", "workloads"} if set(bad) - set(Topology.model_fields) else set()
    for section, value in data.items():
        faulty = bad.get(section, {})
        if not faulty:
            sound[section] = value
        elif None in faulty:
            doubt.add(section)
        elif isinstance(value, dict) and section == "nodes":
            sound[section] = {name: _without(node, faulty.get(name, set())) for name, node in value.items()}
            unsure = {f"{section}.{name}" for name, keys in faulty.items() if keys - {"sysctl", "commands"}}
            doubt |= {section, *unsure} if unsure else set()
        elif isinstance(value, dict):
            sound[section] = {k: v for k, v in value.items() if k not in faulty}
            doubt.add(section)
        elif section == "links":
            whole = {n for n, keys in faulty.items() if keys & {None, "ends", "name"}}
            kept[section] = [n for n in range(len(value)) if n not in whole]
            sound[section] = [_without(value[n], faulty[n] | SHAPES if n in faulty else set()) for n in kept[section]]
            doubt |= {section} if whole else set()
        elif section in ("capture", "events", "checks"):
            kept[section] = [n for n in range(len(value)) if n not in faulty]
            sound[section] = [value[n] for n in kept[section]]
    return sound, kept, frozenset(doubt)


SHAPES = {*Direction.model_fields, "forward", "reverse"}


def _without(value: Any, keys: set[Any]) -> dict[str, Any]:
    return {k: v for k, v in value.items() if k not in keys} if isinstance(value, dict) else {}


def schema() -> dict[str, Any]:
    """Return the language as a JSON Schema (draft 2020-12) for editors."""
    found = Topology.model_json_schema(by_alias=True)
    experiment = {
        "topology": {"type": "string", "description": "The file that this experiment builds on"},
        "matrix": {
            "type": "object",
            "additionalProperties": {"type": "array"},
            "description": "Values of each --set path",
        },
        "repeat": {"type": "integer", "minimum": 1},
        "seed": {"type": "integer"},
    }
    found["properties"] |= experiment
    # An experiment takes `nodes` from its topology; a role or a node may be written without content.
    del found["required"]
    found["anyOf"] = [{"required": ["name", "nodes"]}, {"required": ["topology"]}]
    found["properties"]["nodes"]["additionalProperties"] = {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}
    for part in (found, *found["$defs"].values()):
        for value in part.get("properties", {}).values():
            if "pattern" in value and not isinstance(value.get("default"), str):
                value.pop("default", None)  # a quantity as it is held, not as it is written
    return {**found, "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "testbed topology"}


__all__ = ["Check", "Event", "Link", "Topology", "build", "load", "schema"]
