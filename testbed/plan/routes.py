"""Planned routes: shortest ways over routers, and next hops merged into covering prefixes (pure).

A node's table of a family is a default route by its commonest next hop, and for every other hop the fewest prefixes
that cover all networks behind it and none behind another: what they cover besides are addresses that no network of
the lab has. No prefix lies within another, so when a link takes its routes with it, the default route is what is left.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import groupby, islice

from msgspec import Struct

from testbed.drivers.route import MAIN, RouteAdd, RuleAdd
from testbed.nodes.place import Interface
from testbed.plan.network import Graph, Network

_FIRST_TABLE = 100
_BITS = {4: 32, 6: 128}
_NONE = -1  # in place of a hop's number: a destination of the default route


class Hop(Struct, frozen=True):
    """The way from a node to a segment: out of its own interface `dev`, to a router on the link there."""

    dev: str
    segment: int
    router: str


class Known(Struct, frozen=True):
    """The networks of a family as numbers, in the order of addresses; `segments` has None where no route leads.

    `via` is the address of each router on each segment.
    """

    version: int
    via: dict[tuple[int, str], str]
    bases: tuple[int, ...]
    lengths: tuple[int, ...]
    segments: tuple[int | None, ...]


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
    found = dict.fromkeys(own, _NONE)
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


def known(net: Network, version: int) -> Known:
    """Return the networks of a family, and hosts outside of them that events make: no two overlap."""
    found: dict[tuple[int, int], int | None] = {}
    for segment, members in net.segments.items():
        for i in members:
            for n, address in enumerate(a for a in i.addresses if (":" in a) == (version == 6)):
                # Routes lead to the first network of an interface, which is that of its segment.
                found.setdefault(_network(address), None if n else segment)
    order = sorted(found)
    for added in (e.address.add for e in net.topology.events if e.address is not None and e.address.add):
        if (":" in added) == (version == 6):
            host = _network(f"{added.partition('/')[0]}/{_BITS[version]}")
            at = bisect_right(order, host)
            if not at or host[0] >> (shift := _BITS[version] - order[at - 1][1]) != order[at - 1][0] >> shift:
                found[host] = None
    order = sorted(found)
    every = [i for members in net.segments.values() for i in members if net.router(i.node)]
    via = {(i.segment, i.node): i.host(version) for i in reversed(every) if i.host(version)}
    segments = tuple(found[key] for key in order)
    return Known(version, via, tuple(base for base, _ in order), tuple(length for _, length in order), segments)


def _network(address: str) -> tuple[int, int]:
    """Return the base and length of an address's network, as numbers: ipaddress takes ten times as long."""
    host, _, length = address.partition("/")
    value, shift = (int(IPv6Address(host)), 128) if ":" in host else (int(IPv4Address(host)), 32)
    shift -= int(length)
    return value >> shift << shift, int(length)


def merged(nets: Known, taken: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Yield the fewest prefixes, none within another, that give every network its hop; without those of no hop.

    `taken` is the number of the hop of each network.
    """
    ends: list[int] = []  # of the run of equal hops that each network is in
    for _, run in groupby(taken):
        count = len(list(run))
        ends += [len(ends) + count] * count
    bases = nets.bases
    parts = [(0, len(bases))] if bases else []
    while parts:
        low, high = parts.pop()
        if ends[low] < high:
            shift = (bases[low] ^ bases[high - 1]).bit_length() - 1
            middle = bisect_left(bases, bases[high - 1] >> shift << shift, low, high)
            parts += ((middle, high), (low, middle))
        elif taken[low] != _NONE:
            differ = (bases[low] ^ bases[high - 1]).bit_length()
            length = _BITS[nets.version] - differ if differ else nets.lengths[low]
            yield _text(bases[low] >> differ << differ, length, nets.version), taken[low]


@lru_cache(maxsize=1 << 16)
def _text(base: int, length: int, version: int) -> str:
    return str((IPv4Network if version == 4 else IPv6Network)((base, length)))


def table(
    net: Network, nets: Known, first: Sequence[Hop], found: dict[int, int], number: int = MAIN
) -> Iterator[RouteAdd]:
    """Yield a table: the commonest next hop, of several the one to the first segment, is the default route."""
    count = Counter(found.values())
    del count[_NONE]
    if not count:
        return
    most = max(count.values())
    common = {n for n, times in count.items() if times == most}
    default = (
        common.pop() if len(common) == 1 else next(n for s in net.segments if (n := found.get(s, _NONE)) in common)
    )
    via = {n: nets.via[first[n].segment, first[n].router] for n in count}
    yield RouteAdd("default", first[default].dev, via[default], number)
    if len(count) > 1:
        number_of: dict[int | None, int] = {s: n for s, n in found.items() if n != default}
        for to, n in merged(nets, [number_of.get(s, _NONE) for s in nets.segments]):
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
    place = {i.segment for i in own}
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
            found = _behind(joined, first, place) if len(first) == 1 else {}
            if not found:  # or what lies behind segments of its own, which others lead to as well
                found = {s: h for s, h in search(joined, first, ()).items() if s not in place}
            others = [m for m in net.segments[interface.segment] if m.node != node and m.host(version)]
            if found:
                yield from table(net, nets, first, found, number)
            elif len(others) == 1:
                yield RouteAdd("default", interface.name, others[0].host(version), number)
