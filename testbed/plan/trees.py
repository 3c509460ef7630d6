"""The paths of multicast packets from sources to receivers: shortest in segments and routers (pure).

A segment is what one multicast frame reaches. A multicast router joins segments: it takes packets from one and
passes them on to others. `hops` and `ends` yield all that there is to go by, so that a tunnel is one more hop, from the
interface by which its sending end hears the packets to a segment of its own, and one more end of the node behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from testbed.drivers.smcroute import Entry
from testbed.language.topology import Topology
from testbed.nodes.place import Tunnel
from testbed.plan.network import Hop, Network, Spot, Tree, path
from testbed.workloads.multicast import Multicast, Receiver, misfit
from testbed.workloads.place import Way


class Growth(Struct, frozen=True):
    """Where a source sends, the hop that leads into each segment, and each segment's number of routers before it."""

    source: Spot
    into: dict[int, Hop]
    depth: dict[int, int]


def planned(net: Network) -> dict[str, Tree]:
    """Return the tree of each multicast workload that has a source and a group."""
    found: dict[str, Tree] = {}
    every: dict[int, list[Hop]] = {}
    for name, work in _workloads(net.topology):
        if work.version in net.families and not misfit(work.group):
            if work.version not in every:
                every[work.version] = list(hops(net, work.version))
            if (tree := _find(net, work, every[work.version])) is not None:
                found[name] = tree
    return found


def hops(net: Network, version: int) -> Iterator[Hop]:
    """Yield the hops of multicast routers between interfaces with addresses of a family, and of relays into tunnels."""
    for name in (n for n in net.topology.nodes if n in net.multicast_routers):
        mine = [i for i in net.interfaces[name] if not i.port and i.host(version)]
        for near in (i for i in mine if i.name not in _carriers(net, name)):
            yield from (Hop(name, near.name, near.segment, far.name, far.segment) for far in mine if far != near)
        if (relay := net.relays.get(name)) is not None and isinstance(relay.end, Tunnel):
            # What it sends into its pseudo-interface comes out of that of every gateway that asked for it.
            far_ends = [t for g in relay.gateways for t in net.tunnels.get(g, ()) if t.discovery]
            segments = [i.segment for t in far_ends for i in net.interfaces[t.node] if i.name == t.name]
            yield from (Hop(name, near.name, near.segment, relay.end.name, s) for s in segments for near in mine)


def ends(net: Network, node: str, version: int) -> Iterator[Spot]:
    """Yield the interfaces where a node can send or receive packets of a family, in the order of the file."""
    for i in net.interfaces.get(node, ()):
        if not i.port and i.host(version):
            yield Spot(node, i.name, i.segment)


def _carriers(net: Network, node: str) -> frozenset[str]:
    """Return the interfaces that carry an AMT gateway's tunnel; multicast reaches it only through the tunnel."""
    return frozenset(t.dev for t in net.tunnels.get(node, ()) if t.discovery)


def grow(source: Spot, steps: Iterable[Hop]) -> Growth:
    """Return the shortest ways from a source into every segment (breadth first; of equal ones the first in `steps`).

    Hops of the source itself are left out: the kernel does not route packets that its own host sends.
    """
    leaving: dict[int, list[Hop]] = {}
    for hop in steps:
        if hop.node != source.node:
            leaving.setdefault(hop.near, []).append(hop)
    into: dict[int, Hop] = {}
    depth = {source.segment: 0}
    heard: dict[str, str] = {}  # a (S,G) route has one incoming interface
    front = [source.segment]
    while front:
        following = []
        for segment in front:
            for hop in leaving.get(segment, ()):
                if hop.far not in depth and heard.setdefault(hop.node, hop.iif) == hop.iif:
                    into[hop.far], depth[hop.far] = hop, depth[segment] + 1
                    following.append(hop.far)
        front = following
    return Growth(source, into, depth)


def _find(net: Network, work: Multicast, every: Sequence[Hop]) -> Tree | None:
    """Return the tree of a workload from the interface of the source that is nearest to most receivers.

    None if the source has no address of the group's family. Receivers that the tree does not reach are left out.
    """
    grown = [grow(end, every) for end in ends(net, work.source, work.version)]
    found = [(growth, dict(_reached(net, work, growth))) for growth in grown]
    best = min(found, key=lambda f: (-len(f[1]), sum(f[0].depth[spot.segment] for spot in f[1].values())), default=None)
    if best is None:
        return None
    growth, reached = best
    return Tree(
        growth.source,
        _host(net, growth.source, work.version),
        reached,
        {hop.far: hop for spot in reached.values() for hop in path(growth.into, spot.segment)},
        max((growth.depth[spot.segment] for spot in reached.values()), default=0),
    )


def _reached(net: Network, work: Multicast, growth: Growth) -> Iterator[tuple[str, Spot]]:
    for receiver in work.receivers:
        mine = [e for e in _wanted(net, receiver, work.version) if e.segment in growth.depth]
        if mine:
            yield receiver.node, min(mine, key=lambda e: growth.depth[e.segment])


def _wanted(net: Network, receiver: Receiver, version: int) -> Iterator[Spot]:
    if receiver.interface is not None:
        return (e for e in ends(net, receiver.node, version) if e.ifname == receiver.interface)
    return (e for e in ends(net, receiver.node, version) if e.ifname not in _carriers(net, receiver.node))


def way(tree: Tree) -> Way:
    """Return the interfaces where a source sends and its receivers listen."""
    return Way(tree.host, tree.source.ifname, tuple((node, spot.ifname) for node, spot in tree.ends.items()))


def _host(net: Network, spot: Spot, version: int) -> str:
    return next(i.host(version) for i in net.interfaces[spot.node] if i.name == spot.ifname)


def _workloads(topology: Topology) -> Iterator[tuple[str, Multicast]]:
    """Yield the multicast workloads of a topology."""
    yield from ((name, w.multicast) for name, w in topology.workloads.items() if w.multicast is not None)


def members(net: Network) -> frozenset[str]:
    """Return the nodes that take multicast from more than one interface: its routers, and some receivers."""
    receivers = {r.node for _, work in _workloads(net.topology) for r in work.receivers}
    return net.multicast_routers | {name for name in receivers if len(net.interfaces[name]) > 1}


def entries(net: Network) -> dict[str, tuple[Entry, ...]]:
    """Return the (S,G) routes of each multicast router; workloads with the same source and group share them."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for name, work in _workloads(net.topology):
        if (tree := net.trees.get(name)) is None:
            continue
        for hop in tree.into.values():
            oifs = found.setdefault((hop.node, tree.host, work.group, hop.iif), [])
            oifs += [hop.oif] if hop.oif not in oifs else []
    by_node: dict[str, list[Entry]] = {name: [] for name in net.topology.nodes}
    for (node, source, group, iif), oifs in found.items():
        by_node[node].append(Entry(source, group, iif, tuple(oifs)))
    return {node: tuple(rows) for node, rows in by_node.items() if rows}
