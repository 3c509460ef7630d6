"""Values that the language takes and that many people mean otherwise (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from testbed.language.document import Fault, Path
from testbed.language.topology import WAYS, Direction, Link, Shaping, Topology

_BYTES = re.compile(r"\s*([0-9.]+)\s*([kmgt]?)bps\s*", re.IGNORECASE)
_FRAME = 1514  # bytes of a frame of Ethernet
_KINDS = ("links", "workloads", "events")  # sections that have rates


def rates_in_bytes(data: Mapping[str, Any], like: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield rates in bytes per second, as in tc(8): elsewhere Mbps are megabits. What `like` shares is left out."""
    for section in _KINDS:
        for path, value in _rates(data.get(section), (section,), like.get(section)):
            if match := _BYTES.fullmatch(value):
                number, prefix = match[1], match[2].lower()
                bits = f"{8 * float(number):.12g}{prefix}bit"
                yield (
                    path,
                    f"{value} is {bits} here, in bytes per second as in tc(8), and not {number}{prefix}bit",
                    f"write {number}{prefix}bit or {bits}",
                )


def _rates(data: Any, path: Path, like: Any) -> Iterator[tuple[Path, str]]:
    """Yield the rates that are written in a part of a file, with their places, without those of the same objects."""
    if isinstance(data, dict):
        known = like if isinstance(like, dict) else {}
        pairs = [(key, value, known.get(key)) for key, value in data.items()]
    elif isinstance(data, list):
        rows = like if isinstance(like, list) and len(like) == len(data) else [None] * len(data)
        pairs = [(n, value, rows[n]) for n, value in enumerate(data)]
    else:
        return
    for key, value, old in pairs:
        if value is old:
            continue
        if key == "rate" and isinstance(value, str):
            yield (*path, key), value
        else:
            yield from _rates(value, (*path, key), old)


def floods(topology: Topology, like: Topology | None) -> Iterator[Fault]:
    """Yield bridges that are to snoop and hear no queries: Linux then floods (br_multicast.c: querier_exists)."""
    if like is not None and like.nodes == topology.nodes:
        return
    words = (word for node in topology.nodes.values() for argv in node.commands for word in argv)
    if any("querier" in word for word in words):
        return
    for name, node in topology.nodes.items():
        for field, role in node.roles().items():
            if (switch := role.switch()) is not None and switch.mcast_snooping:
                what = "a bridge that snoops floods every group to all ports until it hears the queries of a querier"
                query = f"[ip, link, set, {switch.name}, type, bridge, mcast_querier, '1']"
                yield (
                    ("nodes", name, field, "mcast_snooping"),
                    f"{what}, and there is none",
                    f"`commands: [{query}]` makes {name} one",
                )


def reordered(topology: Topology, like: Topology | None) -> Iterator[Fault]:
    """Yield jitter where TCP flows are: netem sends each packet when its own delay is over (sch_netem.c: tfifo)."""
    works = topology.workloads.values()
    if not any(w.transfer is not None or (w.iperf3 is not None and w.iperf3.protocol != "udp") for w in works):
        return
    for path, shaping in _shapings(topology, like):
        if shaping.jitter:
            what = "packets overtake each other where the delay varies, and TCP takes that for loss"
            yield (*path, "jitter"), what, "leave `jitter` out where only the delay matters"


def shallow(topology: Topology, like: Topology | None) -> Iterator[Fault]:
    """Yield queues that are shorter than one frame."""
    for path, shaping in _shapings(topology, like):
        queue = shaping.queue
        if queue is not None and queue.limit is not None and queue.limit < _FRAME:
            what = f"a queue of {queue.limit} bytes never takes a frame of {_FRAME}: flows of full packets stand still"
            yield (*path, "queue"), what, f"give at least {_FRAME}b"


def _shapings(topology: Topology, like: Topology | None) -> Iterator[tuple[Path, Direction]]:
    """Yield every shaping of links and events, and of one direction, with its place; none that `like` has."""
    links: list[Link | None] = [None] * len(topology.links)
    if like is not None and len(like.links) == len(topology.links):
        links = [*like.links]
    found: list[tuple[Path, Shaping]] = [
        (("links", n), link) for n, (link, old) in enumerate(zip(topology.links, links, strict=True)) if link is not old
    ]
    if like is None or like.events != topology.events:
        found += [(("events", n, "set"), e.set) for n, e in enumerate(topology.events) if e.set is not None]
    for path, shaping in found:
        yield path, shaping
        for way in WAYS:
            if (own := getattr(shaping, way)) is not None:
                yield (*path, way), own


def crawling(topology: Topology, like: Topology | None) -> Iterator[Fault]:
    """Yield rates at which one full frame takes more than a second: `100bit` where 100 Mbit/s is meant."""
    for path, shaping in _shapings(topology, like):
        if shaping.rate is not None and shaping.rate < 8 * _FRAME:
            what = f"at {shaping.rate} bit/s, one frame of {_FRAME} bytes takes {8 * _FRAME / shaping.rate:.3g} s"
            yield (*path, "rate"), what, "the units are bit, kbit, mbit and gbit"
