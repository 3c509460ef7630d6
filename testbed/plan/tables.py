"""The routing tables of every node: the main one, and those of the addresses of an MPTCP host (pure).

Such a host has one table for each address, so that a subflow leaves by the interface of its address. An address that
opens subflows reaches everything by its own interface, also what another interface is connected to: the peer's first
address, to which a subflow is joined (RFC 8684 section 3.2), is on the first path, and the join must not take that. The
other addresses answer by the interface that the destination is connected to, so that both directions of a subflow take
one path. What an interface does not lead to, its addresses reach as all others do: a table without a default route
leaves that to the main table, and one with a default route states it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from testbed.drivers.route import RouteAdd, RuleAdd, Unreachable
from testbed.nodes.place import Interface
from testbed.plan.endpoints import opening
from testbed.plan.multipath import main, spread
from testbed.plan.network import Graph, Network
from testbed.plan.prefixes import Known, known
from testbed.plan.routes import Hop, behind, hops, search, table
from testbed.steps import Configure, Step

_FIRST_TABLE = 100
Requests = Iterator[RuleAdd | RouteAdd | Unreachable]


def steps(net: Network) -> Iterator[Step]:
    """Yield the routes of every node."""
    static = net.topology.routing != "none"
    every = [known(net, version) for version in net.families] if static else []
    for name, node in net.topology.nodes.items():
        own = [Configure(name, route) for route in main(net, name, every)]
        yield from own
        yield from spread(net, own)
        for role in node.roles().values() if static else ():
            if (joins := role.joins(net.place(name))) is not None:
                for request in by_source(net, name, joins | opening(net, name), every):
                    yield Configure(name, request)


class _Way(Struct, frozen=True):
    """What an interface of a host is to lead to: `own` are all that have addresses, `first` its own next hops."""

    net: Network
    nets: Known
    interface: Interface
    own: tuple[Interface, ...]
    first: tuple[Hop, ...]
    table: int

    @property
    def joined(self) -> Graph:
        return self.net.graphs[self.nets.version]

    @property
    def near(self) -> set[int]:
        """Return the segments that the host is on."""
        return {i.segment for i in self.own}

    def other_hops(self) -> list[Hop]:
        """Return the next hops by the host's other interfaces."""
        return [h for h in hops(self.joined, self.own, self.nets.version) if h.dev != self.interface.name]


def shared(net: Network, node: str) -> set[int]:
    """Return the segments that a node is on by several interfaces with addresses."""
    own = [i.segment for i in net.interfaces[node] if i.addresses and not i.port]
    return {s for s in own if own.count(s) > 1}


def by_source(net: Network, node: str, joins: frozenset[str], every: Sequence[Known]) -> Requests:
    """Yield the rules and tables of a host; `joins` are the addresses that open subflows."""
    own = tuple(i for i in net.interfaces[node] if i.addresses and not i.port)
    if len(own) < 2:
        return
    twice = shared(net, node)
    for n, interface in enumerate(own, start=_FIRST_TABLE):
        for nets in every:
            version = nets.version
            hosts = [h for h in interface.hosts() if (":" in h) == (version == 6)]
            for host in hosts:
                yield RuleAdd(host, n)
            if not hosts:
                continue
            first = tuple(hops(net.graphs[version], [interface], version))
            way = _Way(net, nets, interface, own, first, n)
            made = list(_table(way, bool(joins & set(hosts))))
            yield from made
            # When the link goes down its routes go with it, and no other interface on the segment may take over.
            for route in made if interface.segment in twice else ():
                if route.dev == interface.name:
                    yield Unreachable(route.to, n, version)


def _table(way: _Way, joining: bool) -> Iterator[RouteAdd]:
    version, dev = way.nets.version, way.interface.name
    yield RouteAdd(way.interface.network(version), dev, table=way.table)
    led, others = _led(way), _others(way)
    only = others[0] if len(others) == 1 and not way.first and _beyond(way, others[0]) else None
    done = {way.interface.segment}
    for i in way.own:
        if i.segment in done or not i.network(version):
            continue
        done.add(i.segment)
        if joining and i.segment in led:
            continue
        there = {m.node: m.host(version) for m in way.net.segments[i.segment] if m.node != i.node and m.host(version)}
        if joining and only is not None and set(there) == {only.node}:
            continue
        for m in others if joining else ():
            if m.node in there:
                length = 128 if version == 6 else 32
                yield RouteAdd(f"{there[m.node]}/{length}", dev, m.host(version), way.table)
        yield RouteAdd(i.network(version), i.name, table=way.table)
    yield from _far(way, led, only)


def _led(way: _Way) -> set[int]:
    """Return the segments that the routers on the interface's link lead to, without the host itself."""
    if not way.first:
        return set()
    if way.net.router(way.interface.node):
        return set(search(way.joined, way.first, (way.interface.segment,), way.interface.node))
    part = way.joined.parts[way.interface.segment]
    return {s for s, other in way.joined.parts.items() if other == part}


def _others(way: _Way) -> list[Interface]:
    """Return the interfaces of other nodes on the link."""
    members = way.net.segments[way.interface.segment]
    return [m for m in members if m.node != way.interface.node and m.host(way.nets.version)]


def _beyond(way: _Way, other: Interface) -> set[int]:
    """Return the segments that a neighbour is on besides this one."""
    mine = way.net.interfaces[other.node]
    return {i.segment for i in mine if not i.port and i.host(way.nets.version)} - {way.interface.segment}


def _far(way: _Way, led: set[int], only: Interface | None) -> Iterator[RouteAdd]:
    """Yield the routes to what the host is not connected to; without a router, the neighbour `only` may lead there.

    A default route would hide the ways that only other interfaces have: these are in the table as well.
    """
    elsewhere = way.other_hops()
    planned = way.net.topology.nodes[way.interface.node].routes is None
    beyond = _beyond(way, only) if only is not None else led
    rest: dict[int, int] = {}
    if planned and (way.first or only is not None) and any(h.segment not in led for h in elsewhere):
        found = search(way.joined, elsewhere, way.near)
        rest = {s: n for s, n in found.items() if s not in beyond and n >= 0}
    if way.first:
        found = behind(way.joined, way.first, way.near) if len(way.first) == 1 and not rest else {}
        if not found:
            led_to = search(way.joined, way.first, (way.interface.segment,), way.interface.node)
            found = {s: n for s, n in led_to.items() if s not in way.near} or led_to
        found |= {s: len(way.first) + n for s, n in rest.items()}
        yield from table(way.net, way.nets, (*way.first, *elsewhere), found, way.table, len(way.first))
    elif only is not None:
        yield RouteAdd("default", way.interface.name, only.host(way.nets.version), way.table)
        yield from table(way.net, way.nets, elsewhere, rest, way.table, 0)


def leads(net: Network, node: str, ifname: str, host: str) -> bool:
    """Say whether an interface of a node leads to an address by itself: by its link, or by routers on that."""
    target = net.owners[host]
    version = 6 if ":" in host else 4
    own = tuple(i for i in net.interfaces[node] if i.addresses and not i.port)
    interface = next(i for i in own if i.name == ifname)
    first = tuple(hops(net.graphs[version], [interface], version))
    way = _Way(net, Known(version, {}, (), (), ()), interface, own, first, 0)
    beside = any(m.node == target.node for m in _others(way))
    return beside or target.segment == interface.segment or target.segment in _led(way)


def way_out(net: Network, node: str, host: str) -> str:
    """Return the interface by which a node's planned main routes lead to an address, "" where none does."""
    target = net.owners[host]
    version = 6 if ":" in host else 4
    own = [i for i in net.interfaces[node] if not i.port and i.host(version)]
    if near := next((i.name for i in own if i.segment == target.segment), ""):
        return near
    first = hops(net.graphs[version], own, version)
    found = search(net.graphs[version], first, {i.segment for i in own})
    return first[n].dev if (n := found.get(target.segment, -1)) >= 0 else ""
