"""The topology language: YAML text -> Topology, frozen and closed, with every error of the file at once."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path as File
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, WithJsonSchema

from testbed.document import Document, Mark, Path, Source, get, merge, parse
from testbed.drivers.tc import DISCIPLINES, DISTRIBUTIONS, GilbertElliott, Shape
from testbed.errors import InputError, Problem
from testbed.nodes.mptcp import Endpoint
from testbed.nodes.node import Argv, Node
from testbed.spec import Spec
from testbed.units import Percentage, Rate, Size, Time, percentage
from testbed.workloads.command import Command
from testbed.workloads.iperf3 import Iperf3
from testbed.workloads.ping import Ping
from testbed.workloads.place import Workload

NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
Family = Literal["ipv4", "ipv6"]


def _queue(value: Any) -> Any:
    return {"discipline": value} if isinstance(value, str) else value


def _capture(value: Any) -> Any:
    return {"interfaces": value} if isinstance(value, str) else value


def _loss(value: Any) -> Any:
    if not isinstance(value, dict):
        return percentage(value)
    if unknown := set(value) - {"p", "r", "bad", "good"}:
        raise ValueError(f"unknown key {sorted(map(str, unknown))[0]!r}; a Gilbert-Elliott model has p, r, bad, good")
    if "p" not in value or "r" not in value:
        raise ValueError("a Gilbert-Elliott model needs p and r: {p: 1%, r: 20%, bad: 100%, good: 0%}")
    return GilbertElliott(**{k: percentage(v) for k, v in value.items()})


_PERCENT = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*%$"}
_LOSS = {
    "anyOf": [
        _PERCENT,
        {
            "type": "object",
            "properties": dict.fromkeys(("p", "r", "bad", "good"), _PERCENT),
            "required": ["p", "r"],
            "additionalProperties": False,
        },
    ]
}
Loss = Annotated[Any, BeforeValidator(_loss), WithJsonSchema(_LOSS)]


class Queue(Spec):
    """What waits where the link is slower than the sender: a discipline, and its limit."""

    discipline: Literal[DISCIPLINES] = "bfifo"  # type: ignore[valid-type]  # the driver's list is the source
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
    queue: Annotated[Queue, BeforeValidator(_queue, json_schema_input_type=str | Queue)] | None = None


class Shaping(Direction):
    """Both directions at once, with what differs under `forward` (first end to second) and `reverse`."""

    mtu: int | None = Field(None, ge=68, le=65535)
    forward: Direction | None = None
    reverse: Direction | None = None

    def shape(self, way: Literal["forward", "reverse"]) -> Shape:
        """Return what one direction does."""
        own = getattr(self, way) or Direction()
        keys = ("rate", "burst", "delay", "jitter", "distribution", "loss", "duplicate", "corrupt", "reorder")
        found = {k: getattr(self if getattr(own, k) is None else own, k) for k in keys}
        queue = own.queue or self.queue
        limit = (queue.limit if queue.discipline == "bfifo" else queue.packets) if queue else None
        return Shape(**found, queue=queue.discipline if queue else None, limit=limit)


class Link(Shaping):
    """An edge of the topology: two interfaces `node:interface`, their addresses, and its shaping."""

    name: str | None = Field(None, description="For events and --set; an end, node:interface, names a link as well")
    ends: tuple[str, str]
    addresses: tuple[str | list[str] | None, str | list[str] | None] | None = Field(
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

    every: Time = Field(0.25, ge=0.02, le=60)


class Topology(Spec):
    """What the network is, what runs on it, what is recorded, what happens when, and what must hold."""

    name: str
    description: str = ""
    families: tuple[Family, ...] = Field(("ipv4", "ipv6"), min_length=1)
    routing: Literal["static", "none"] = Field("static", description="Plan shortest-path routes, or none")
    nodes: dict[str, Node]
    links: tuple[Link, ...] = ()
    workloads: dict[str, Work] = Field({})
    capture: tuple[Annotated[Capture, BeforeValidator(_capture, json_schema_input_type=str | Capture)], ...] = ()
    samples: Samples = Samples()
    events: tuple[Event, ...] = ()
    checks: tuple[Check, ...] = ()
    duration: Time | None = Field(None, description="Length of a run; otherwise until the last workload ends")

    def seconds(self) -> float:
        """Return how long a run of this takes, as far as workloads and `duration` say."""
        ends = [w.at + w.seconds_long() for w in (x.workload() for x in self.workloads.values())]
        return max([*ends, self.duration or 0.0])


def load(path: str | File, overrides: tuple[str, ...] = ()) -> Topology:
    """Read a topology (or the first case of an experiment) from a file; InputError has every problem."""
    from testbed.experiment import (
        read,  # late: an experiment is more than a topology and is above this module
    )

    return read(path, overrides).cases[0].topology


def build(document: Document) -> Topology:
    """Return the topology that a document states, or raise InputError with every problem in it."""
    from testbed.consistency import faults

    found: list[Problem] = []
    if not isinstance(document.data, dict):
        raise InputError(document.at(()).problem("a topology is a mapping with `name` and `nodes`"))
    data = _fill(document.data)
    try:
        topology = Topology.model_validate(data)
        kept: dict[str, list[int]] = {}
    except ValidationError as e:
        errors = e.errors(include_url=False)
        found += _problems(document, errors)
        sound, kept = _prune(data, [tuple(x["loc"]) for x in errors])
        try:
            topology = Topology.model_validate(sound)
        except ValidationError:
            raise InputError(*found) from e
    raw = document.data.get("nodes")
    known = tuple(map(str, raw)) if isinstance(raw, dict) else ()
    for path, message, hint in faults(topology, known):
        if len(path) > 1 and isinstance(path[1], int) and path[0] in kept:
            path = (path[0], kept[str(path[0])][path[1]], *path[2:])
        key = not path or (isinstance(path[-1], str) and path[0] == "nodes" and len(path) == 2)
        found.append(document.at(path, key=key).problem(message, hint))
    if found:
        raise InputError(*found)
    return topology


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


_ROLES = ("bridge", "router", "mptcp")


def _prune(data: dict[str, Any], locations: list[tuple[Any, ...]]) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Return the data without the items that have errors, and the original index of what is left in each list."""
    bad = {loc[:2] for loc in locations}
    whole = {loc[0] for loc in locations if len(loc) == 1}
    sound: dict[str, Any] = {}
    kept: dict[str, list[int]] = {}
    for key, value in data.items():
        if key in whole:
            continue
        if isinstance(value, list) and any(b[0] == key for b in bad):
            kept[key] = [n for n in range(len(value)) if (key, n) not in bad]
            sound[key] = [value[n] for n in kept[key]]
        elif isinstance(value, dict) and any(b[0] == key for b in bad):
            # A node with a fault in it still exists for those who name it.
            empty: dict[str, Any] = {k: {} for k in value if (key, k) in bad} if key == "nodes" else {}
            sound[key] = {k: v for k, v in value.items() if (key, k) not in bad} | empty
        else:
            sound[key] = value
    sound.setdefault("name", "unnamed")
    sound.setdefault("nodes", {})
    return sound, kept


def _problems(document: Document, errors: Any) -> list[Problem]:
    found: dict[Path, Problem] = {}
    for error in errors:
        path, rest = _locate(document.data, tuple(error["loc"]))
        kind, context = error["type"], error.get("ctx", {})
        hint = ""
        if kind == "extra_forbidden":
            known = fields_at(Topology, path[:-1])
            mark, message = document.at(path, key=True), f"unknown key {path[-1]!r}"
            hint = suggest(str(path[-1]), known) or (f"known keys: {', '.join(known)}" if known else "")
        elif kind == "missing":
            mark, message = (
                document.at(path),
                f"the key {rest[0]!r} is missing" if rest else "a value is missing",
            )
        else:
            mark = document.at(path)
            message = str(context["error"]) if kind == "value_error" else _sentence(error, path)
            if kind == "literal_error":
                hint = suggest(str(error["input"]), re.findall(r"'([^']+)'", context["expected"]))
        found.setdefault(path if kind != "missing" else (*path, *rest), mark.problem(message, hint))
    return list(found.values())


def _sentence(error: Any, path: Path) -> str:
    words = str(error["msg"])
    words = words[0].lower() + words[1:]
    words = words.replace("input should", "it should")
    got = error["input"]
    shown = (
        repr(got) if isinstance(got, str | int | float | bool) or got is None else f"a {_KINDS.get(type(got), 'value')}"
    )
    where = ".".join(map(str, path)) or "the file"
    return f"{where}: {words}, not {shown}"


_KINDS: dict[type, str] = {dict: "mapping", list: "list"}


def _locate(data: Any, location: tuple[Any, ...]) -> tuple[Path, tuple[Any, ...]]:
    """Return the part of a pydantic location that is in the data, and the rest without union branches."""
    path: Path = ()
    rest: list[Any] = []
    for part in location:
        here = get(data, path)
        if not rest and (
            (isinstance(here, dict) and part in here)
            or (isinstance(here, list) and isinstance(part, int) and part < len(here))
        ):
            path = (*path, part)
        elif isinstance(part, str) and re.fullmatch(r"[a-z_0-9]+", part):
            rest.append(part)
    return path, tuple(rest)


def fields_at(model: Any, path: Path) -> list[str]:
    """Return the keys that the language knows at a path."""
    kinds = [model]
    for part in path:
        kinds = [deeper for kind in kinds for deeper in _below(kind, part)]
    return [
        f.alias or name
        for kind in kinds
        if isinstance(kind, type) and issubclass(kind, BaseModel)
        for name, f in kind.model_fields.items()
    ]


def _below(kind: Any, part: str | int) -> list[Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        found = [f.annotation for name, f in kind.model_fields.items() if (f.alias or name) == part]
    elif get_origin(kind) is dict:
        found = [get_args(kind)[1]]
    elif get_origin(kind) in (tuple, list):
        found = [a for a in get_args(kind) if a is not Ellipsis]
    else:
        found = []
    return [flat for f in found for flat in _flatten(f)]


def _flatten(kind: Any) -> list[Any]:
    if get_origin(kind) is Annotated:
        return _flatten(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [flat for arg in get_args(kind) if arg is not NoneType for flat in _flatten(arg)]
    return [kind]


def suggest(word: str, known: Any) -> str:
    """Return "did you mean ...?" when a known word is close, else ""."""
    close = get_close_matches(word, list(known), 1, 0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def override(document: Document, assignment: str) -> Document:
    """Return the document with one value set: `links.cable.loss=5%`; a list is indexed by name or number."""
    path_text, equals, text = assignment.partition("=")
    if not equals or not path_text:
        raise InputError(Problem(f"--set {assignment}: write --set path.to.key=value"))
    value = parse(text, f"--set {path_text}").data
    path: Path = ()
    for part in path_text.split("."):
        here = get(document.data, path)
        if isinstance(here, list):
            index = next(
                (n for n, item in enumerate(here) if isinstance(item, dict) and item.get("name") == part),
                None,
            )
            if index is None and part.isdigit() and int(part) < len(here):
                index = int(part)
            if index is None:
                names = (
                    ", ".join(str(i["name"]) for i in here if isinstance(i, dict) and "name" in i) or "none has a name"
                )
                raise InputError(
                    Problem(f"--set {assignment}: {'.'.join(map(str, path))} has no item {part!r} (names: {names})")
                )
            path = (*path, index)
        elif isinstance(here, dict) or here is None:
            path = (*path, part)
        else:
            raise InputError(
                Problem(f"--set {assignment}: {'.'.join(map(str, path))} is {here!r} and holds no {part!r}")
            )
    data = _replaced(document.data, path, value)
    mark = Mark(Source(f"--set {path_text}", (assignment,)), 0, len(path_text) + 1, max(1, len(text)))
    return Document(data, {**document.values, path: mark}, document.keys)


def _replaced(data: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    head, *rest = path
    if isinstance(data, list) and isinstance(head, int):
        return [_replaced(item, tuple(rest), value) if n == head else item for n, item in enumerate(data)]
    here = data if isinstance(data, dict) else {}
    return {**here, head: _replaced(here.get(head), tuple(rest), value)}


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
    return {**found, "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "testbed topology"}


__all__ = ["Check", "Event", "Link", "Topology", "build", "load", "merge", "override", "schema", "suggest"]
