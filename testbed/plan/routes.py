"""Planned routes: shortest ways over routers, and next hops merged into covering prefixes (pure).

A node's table of a family is a default route by its commonest next hop, and for every other hop the fewest prefixes
that cover all networks behind it and none behind another: what they cover besides are addresses that no network of
the lab has. No prefix lies within another, so when a link takes its routes with it, the default route is what is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from msgspec import Struct

from testbed.drivers.route import MAIN, RouteAdd
from testbed.nodes.place import Interface
from testbed.plan.network import Graph, Network
from testbed.plan.prefixes import NONE, Known, merged


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


def search(joined: Graph, first: Sequence[Hop], own: Iterable[int], without: str = "") -> dict[int, int]:
    """Return the number of the hop that leads to each segment by the fewest routers, of several the first.

    Breadth first from all hops at once, without what lies behind a node's own segments, or behind the router `without`.
    Routers are found in the order of their hops, so the one that comes to a segment first is of the hop that wins it.
    """
    found = dict.fromkeys(own, NONE)
    by = {without: NONE} | {hop.router: n for n, hop in reversed(list(enumerate(first)))}
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
    net: Network, nets: Known, first: Sequence[Hop], found: dict[int, int], number: int = MAIN, most: int | None = None
) -> Iterator[RouteAdd]:
    """Yield a table: the commonest next hop, of several the one to the first segment, is the default route.

    It is one of the first `most` hops if these are given, and there is none without one.
    """
    count = Counter(n for n in found.values() if n != NONE)
    able = {n: times for n, times in count.items() if most is None or n < most}
    highest = max(able.values(), default=0)
    common = {n for n, times in able.items() if times == highest}
    if len(common) > 1:
        common = {next(n for s in net.segments if (n := found.get(s, NONE)) in common)}
    default = common.pop() if common else NONE
    via = {n: nets.via[first[n].segment, first[n].router] for n in count}
    if default != NONE:
        yield RouteAdd("default", first[default].dev, via[default], number)
    if count.keys() - {default}:
        number_of: dict[int | None, int] = {s: n for s, n in found.items() if n != default}
        for to, n in merged(nets, [number_of.get(s, NONE) for s in nets.segments]):
            yield RouteAdd(to, first[n].dev, via[n], number)


def _found(joined: Graph, first: Sequence[Hop], own: set[int]) -> dict[int, int]:
    """Return what `search` finds; by an only router it is enough to know one segment that lies behind it."""
    return behind(joined, first, own) if len({hop.router for hop in first}) == 1 else search(joined, first, own)


def behind(joined: Graph, first: Sequence[Hop], own: set[int]) -> dict[int, int]:
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
