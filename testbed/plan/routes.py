"""Planned routes: shortest ways over routers, and next hops merged into covering prefixes (pure).

A node's table of a family is a default route by its commonest next hop, and for every other hop the fewest prefixes
that cover all networks behind it and none behind another: what they cover besides are addresses that no network of
the lab has. No prefix lies within another, so when a link takes its routes with it, the default route is what is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from itertools import islice

from msgspec import Struct

from testbed.drivers.route import MAIN, RouteAdd, RuleAdd
from testbed.nodes.place import Interface
from testbed.plan.network import Graph, Network
from testbed.plan.prefixes import NONE, Known, known, merged
from testbed.steps import Configure, Step
from testbed.units import interface_of

_FIRST_TABLE = 100


class Hop(Struct, frozen=True):
    """The way from a node to a segment: out of its own interface `dev`, to a router on the link there."""

    dev: str
    segment: int
    router: str


def graphs(net: Network) -> dict[int, Graph]:
    """Return what packets of each family can pass."""
    four, six = _graph(net, 4), _graph(net, 6)
    return {4: four, 6: four if six == four else six}


def _graph(net: Network, version: int) -> Graph:
    routers: dict[int, list[str]] = {s: [] for s in net.segments}
    segments: dict[str, list[int]] = {}
    for s, members in net.segments.items():
        for i in members:
            if net.router(i.node) and i.host(version):
                routers[s].append(i.node)
                segments.setdefault(i.node, []).append(s)
    return Graph(
        {s: tuple(dict.fromkeys(found)) for s, found in routers.items()},
        {name: tuple(dict.fromkeys(found)) for name, found in segments.items()},
    )


def hops(joined: Graph, interfaces: Iterable[Interface], version: int) -> list[Hop]:
    """Return the next hops of a node by these interfaces, the one that wins among equally long ways first."""
    mine = [i for i in interfaces if not i.port and i.host(version)]
    return [Hop(i.name, i.segment, r) for i in mine for r in joined.routers[i.segment] if r != i.node]


def search(joined: Graph, first: Sequence[Hop], own: Iterable[int]) -> dict[int, int]:
    """Return the number of the hop that leads to each segment by the fewest routers, of several the first.

    Breadth first from all hops at once, without what lies behind a node's own segments. Routers are found in the
    order of their hops, so the one that comes to a segment first is of the hop that wins it.
    """
    found = dict.fromkeys(own, NONE)
    by = {hop.router: n for n, hop in reversed(list(enumerate(first)))}
    queue = list(dict.fromkeys(hop.router for hop in first))
    routers, segments = joined.routers, joined.segments
    for router in queue:  # which grows meanwhile
        n = by[router]
        for segment in segments[router]:
            if segment not in found:
                found[segment] = n
                for after in routers[segment]:
                    if after not in by:
                        by[after] = n
                        queue.append(after)
    return found


def table(
    net: Network, nets: Known, first: Sequence[Hop], found: dict[int, int], number: int = MAIN
) -> Iterator[RouteAdd]:
    """Yield a table: the commonest next hop, of several the one to the first segment, is the default route."""
    count = Counter(found.values())
    del count[NONE]
    if not count:
        return
    most = max(count.values())
    common = {n for n, times in count.items() if times == most}
    default = common.pop() if len(common) == 1 else next(n for s in net.segments if (n := found.get(s, NONE)) in common)
    via = {n: nets.via[first[n].segment, first[n].router] for n in count}
    yield RouteAdd("default", first[default].dev, via[default], number)
    if len(count) > 1:
        number_of: dict[int | None, int] = {s: n for s, n in found.items() if n != default}
        for to, n in merged(nets, [number_of.get(s, NONE) for s in nets.segments]):
            yield RouteAdd(to, first[n].dev, via[n], number)


def _found(joined: Graph, first: Sequence[Hop], own: set[int]) -> dict[int, int]:
    """Return what `search` finds; by an only router it is enough to know one segment that lies behind it."""
    return _behind(joined, first, own) if len({hop.router for hop in first}) == 1 else search(joined, first, own)


def _behind(joined: Graph, first: Sequence[Hop], own: set[int]) -> dict[int, int]:
    """Return a segment, if any, that the router of all hops is on and a node is not."""
    return dict.fromkeys(islice((s for s in joined.segments[first[0].router] if s not in own), 1), 0)


def routes(net: Network, node: str, every: Sequence[Known]) -> Iterator[RouteAdd]:
    """Yield the planned routes of a node."""
    own = {i.segment for i in net.interfaces[node] if not i.port}
    done: tuple[Graph, list[Hop], dict[int, int]] | None = None
    for nets in every:
        joined = net.graphs[nets.version]
        first = hops(joined, net.interfaces[node], nets.version)
        if done is None or done[0] is not joined or done[1] != first:  # mostly both families go the same way
            done = joined, first, _found(joined, first, own)
        yield from table(net, nets, first, done[2])


def source_routes(
    net: Network, node: str, joins: frozenset[str], every: Sequence[Known]
) -> Iterator[RuleAdd | RouteAdd]:
    """Yield, for an MPTCP host, one table an address, so that a subflow leaves by the interface of its address.

    `joins` are the addresses that open subflows. They reach everything by their own interface, also what another
    interface is connected to: the peer's first address, to which a subflow is joined (RFC 8684 section 3.2), is
    on the first path, and the join must not take that. The other addresses answer, by the interface that the
    destination is connected to, so that both directions of a subflow take one path. Without a router on the link
    the only other host there is the way to everything.
    """
    own = [i for i in net.interfaces[node] if i.addresses and not i.port]
    if len(own) < 2:
        return
    near = {i.segment for i in own}
    for n, interface in enumerate(own):
        number = _FIRST_TABLE + n
        for nets in every:
            version = nets.version
            hosts = [h for h in interface.hosts() if (":" in h) == (version == 6)]
            if not hosts:
                continue
            for host in hosts:
                yield RuleAdd(host, number)
            connected = [interface] if joins & set(hosts) else [interface, *(i for i in own if i != interface)]
            for i in connected:
                if i.network(version):
                    yield RouteAdd(i.network(version), i.name, table=number)
            joined = net.graphs[version]
            first = hops(joined, [interface], version)
            found = _behind(joined, first, near) if len(first) == 1 else {}
            if not found:  # or what lies behind segments of its own, which others lead to as well
                found = {s: h for s, h in search(joined, first, ()).items() if s not in near}
            others = [m for m in net.segments[interface.segment] if m.node != node and m.host(version)]
            if found:
                yield from table(net, nets, first, found, number)
            elif len(others) == 1:
                yield RouteAdd("default", interface.name, others[0].host(version), number)


def steps(net: Network) -> Iterator[Step]:
    """Yield the routes of every node, stated or planned."""
    static = net.topology.routing == "static"
    every = [known(net, version) for version in net.families] if static else []
    for name, node in net.topology.nodes.items():
        if node.routes:
            for route in node.routes:
                dev = _towards(net, name, route.via)
                yield Configure(name, RouteAdd(route.to, dev, route.via))
        else:
            for request in routes(net, name, every):
                yield Configure(name, request)
        for role in node.roles().values() if static else ():
            if (joins := role.joins(net.place(name))) is not None:
                for rule_or_route in source_routes(net, name, joins, every):
                    yield Configure(name, rule_or_route)


def _towards(net: Network, node: str, via: str) -> str:
    gateway = ip_address(via)
    pairs = [(i, a) for i in net.interfaces[node] for a in i.addresses]
    return next(i.name for i, a in pairs if gateway in interface_of(a).network)
