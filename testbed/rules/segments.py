"""What is wrong with bridged segments, and with ways that are too long: frames that circle, or never arrive (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from testbed.drivers.link import MTU
from testbed.language.document import Fault
from testbed.language.moments import link_index, moments
from testbed.plan.network import Graph, Network, end_of

_TTL = 64  # of IPv4 (net.ipv4.ip_default_ttl) and IPv6 (hop_limit), RFC 1700 and RFC 8200
_TTLS = {4: "net.ipv4.ip_default_ttl", 6: "net.ipv6.conf.default.hop_limit"}


def faults(net: Network) -> Iterator[Fault]:
    """Yield (path, sentence, hint) for each fault; links are numbered as in the network."""
    yield from _loops(net)
    yield from _mtus(net)


def _loops(net: Network) -> Iterator[Fault]:
    """Yield each link that closes a loop of bridges of which none has a spanning tree."""
    parent = {name: name for name in net.switches}
    for n, link in enumerate(net.topology.links):
        ends = [end_of(text) for text in link.ends]
        if not all(node in net.switches and net.switches[node].takes(ifname) for node, ifname in ends):
            continue
        if any(net.switches[node].stp for node, _ in ends):
            continue
        one, other = (_top(parent, node) for node, _ in ends)
        if one == other:
            names = " and ".join(dict.fromkeys(node for node, _ in ends))
            what = f"this link closes a loop of bridges at {names}, and none in it has a spanning tree"
            cure = "give one of them `bridge: {stp: true}`, or leave the link out"
            yield ("links", n, "ends"), f"{what}: each frame to all would circle without end", cure
        parent[other] = one


def _top(parent: dict[str, str], name: str) -> str:
    while parent[name] != name:
        name = parent[name]
    return name


def _mtus(net: Network) -> Iterator[Fault]:
    """Yield the links of a bridged segment that take longer frames than another, at the start or after an event."""
    links: dict[int, list[int]] = {}
    now: dict[int, int] = {}
    for n, link in enumerate(net.topology.links):
        end = net.named[end_of(link.ends[0])][0]
        now[n] = end.mtu
        links.setdefault(end.segment, []).append(n)
    for found in links.values():
        for n, other in _wider(now, found):
            cure = f"give every link of the segment the same `mtu`, such as {now[other]}"
            yield ("links", n, "mtu"), _differ(net, now, n, other), cure
    of = {n: found for found in links.values() for n in found}
    for _, some in groupby(moments(net.topology) if net.topology.events else (), key=lambda m: m.event.at):
        changed: dict[int, int] = {}  # links by the event that changes them
        for m in some:
            named = m.event.link
            at = link_index(net.topology, named) if named is not None else None
            if at is not None and m.old is not None and m.new is not None and m.new.mtu != m.old.mtu:
                changed[m.n], now[at] = at, m.new.mtu or MTU
        for number, n in changed.items():
            if pair := next((pair for pair in _wider(now, of[n]) if n in pair), None):
                cure = "change the `mtu` of every link of the segment at that time"
                yield ("events", number, "set", "mtu"), _differ(net, now, *pair), cure


def _wider(now: Mapping[int, int], found: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the links of a segment that take longer frames than another, each with the narrowest."""
    narrow = min(found, key=lambda n: now[n])
    yield from ((n, narrow) for n in found if now[n] > now[narrow])


def _differ(net: Network, now: Mapping[int, int], wide: int, narrow: int) -> str:
    one, other = ("-".join(net.topology.links[n].ends) for n in (wide, narrow))
    sizes = f"{one} takes packets of {now[wide]} bytes, and {other} in the same segment of {now[narrow]}"
    return f"{sizes}: a bridge drops what is longer and tells nobody"


def too_far(net: Network, source: str, target: str, version: int) -> tuple[str, str]:
    """Return what is wrong with a way that has more routers than a packet may pass, and what to do; "" if nothing."""
    passed = _between(net, net.graphs[version], source, target)
    for node, other in ((source, target), (target, source)):
        own = net.topology.nodes[node].sysctl
        ttl = int(text) if (text := str(own.get(_TTLS[version], _TTL))).isdecimal() else _TTL
        if passed >= ttl:
            what = f"{passed} routers are between {node} and {other}, and packets of {node} pass {ttl - 1}"
            name = "TTL" if version == 4 else "hop limit"
            cure = f"give {node} `sysctl: {{{_TTLS[version]}: {min(255, passed + 1)}}}`" if passed < 255 else ""
            return f"{what} (the {name} is {ttl})", cure or "no packet passes more than 254 routers"
    return "", ""


def _between(net: Network, graph: Graph, source: str, target: str) -> int:
    """Return the number of routers on the shortest way between two nodes, 0 if there is none."""
    there = {i.segment for i in net.interfaces[target] if not i.port}
    front = {i.segment for i in net.interfaces[source] if not i.port}
    seen, passed, known = set(front), 0, {source, target}
    while front and not front & there:
        routers = {r for s in front for r in graph.routers.get(s, ()) if r not in known}
        known |= routers
        front = {s for r in routers for s in graph.segments[r]} - seen
        seen |= front
        passed += 1
    return passed if front else 0
