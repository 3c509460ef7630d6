"""The way of multicast packets from a source to its receivers: shortest paths of segments and routers (pure).

A segment is what one multicast frame reaches. A multicast router joins segments: it takes packets from one and
passes them on to others. `hops` and `ends` yield all that there is to go by, so that a tunnel is one more hop, from the
interface by which its sending end hears the packets to a segment of its own, and one more end of the node behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct

from testbed.drivers.smcroute import Entry
from testbed.language.topology import Topology
from testbed.plan.addressing import Network
from testbed.workloads.multicast import Multicast, Receiver
from testbed.workloads.place import Way


class Hop(Struct, frozen=True):
    """A router that takes packets of segment `near` by `iif` can send them by `oif` into segment `far`."""

    node: str
    iif: str
    near: int
    oif: str
    far: int


class End(Struct, frozen=True):
    """An interface where packets can be sent or received."""

    node: str
    ifname: str
    segment: int


class Tree(Struct, frozen=True):
    """Where a source sends, the hop that leads into each segment, and each segment's number of routers before it."""

    source: End
    into: dict[int, Hop]
    depth: dict[int, int]

    def path(self, segment: int) -> Iterator[Hop]:
        """Yield the hops from a segment back to the source."""
        while (hop := self.into.get(segment)) is not None:
            yield hop
            segment = hop.near


class Found(Struct, frozen=True):
    """The tree of a workload, and the interface of each receiver that it reaches."""

    tree: Tree
    ends: dict[str, End]

    @property
    def depth(self) -> int:
        """Return the most routers that lie between the source and a receiver."""
        return max((self.tree.depth[e.segment] for e in self.ends.values()), default=0)

    @property
    def hops(self) -> tuple[Hop, ...]:
        """Return every hop that leads to a receiver."""
        return tuple(dict.fromkeys(h for e in self.ends.values() for h in self.tree.path(e.segment)))

    @property
    def segments(self) -> frozenset[int]:
        """Return every segment that packets to receivers pass."""
        return frozenset((self.tree.source.segment, *(h.far for h in self.hops)))


def hops(net: Network, version: int) -> Iterator[Hop]:
    """Yield what multicast routers can do between interfaces with addresses of a family, and relays into tunnels."""
    for name, node in net.topology.nodes.items():
        if node.router is None or not node.router.multicast:
            continue
        mine = [i for i in net.interfaces[name] if not i.port and i.host(version)]
        for near in (i for i in mine if i.name not in _carriers(net, name)):
            yield from (Hop(name, near.name, near.segment, far.name, far.segment) for far in mine if far != near)
        if (relay := node.amt_relay) is not None:
            # What it sends into its pseudo-interface comes out of that of every gateway that asked for it.
            far_ends = [t for g in net.relays[name].gateways for t in net.tunnels.get(g, ()) if t.discovery]
            segments = [i.segment for t in far_ends for i in net.interfaces[t.node] if i.name == t.name]
            yield from (Hop(name, near.name, near.segment, relay.name, s) for s in segments for near in mine)


def ends(net: Network, node: str, version: int) -> Iterator[End]:
    """Yield where a node can send or receive packets of a family, in the order of the file."""
    for i in net.interfaces.get(node, ()):
        if not i.port and i.host(version):
            yield End(node, i.name, i.segment)


def _carriers(net: Network, node: str) -> frozenset[str]:
    """Return what carries the tunnel of an AMT gateway: multicast comes to it out of the tunnel."""
    return frozenset(t.dev for t in net.tunnels.get(node, ()) if t.discovery)


def grow(source: End, steps: Iterable[Hop]) -> Tree:
    """Return the shortest ways from a source into every segment (breadth first; of equal ones the first in `steps`).

    What the source itself could pass on is left out: the kernel does not route what its own host sends.
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
    return Tree(source, into, depth)


def find(net: Network, work: Multicast) -> Found | None:
    """Return the tree of a workload from the interface of the source that is nearest to most receivers.

    None when the source has no address of the group's family. Receivers that no tree reaches are left out.
    """
    version = work.version
    every = list(hops(net, version))
    trees = [grow(end, every) for end in ends(net, work.source, version)]
    found = [Found(tree, dict(_reached(net, work, tree))) for tree in trees]
    return min(found, key=lambda f: (-len(f.ends), sum(f.tree.depth[e.segment] for e in f.ends.values())), default=None)


def _reached(net: Network, work: Multicast, tree: Tree) -> Iterator[tuple[str, End]]:
    for receiver in work.receivers:
        mine = [e for e in _wanted(net, receiver, work.version) if e.segment in tree.depth]
        if mine:
            yield receiver.node, min(mine, key=lambda e: tree.depth[e.segment])


def _wanted(net: Network, receiver: Receiver, version: int) -> Iterator[End]:
    if receiver.interface is not None:
        return (e for e in ends(net, receiver.node, version) if e.ifname == receiver.interface)
    return (e for e in ends(net, receiver.node, version) if e.ifname not in _carriers(net, receiver.node))


def way(net: Network, work: Multicast) -> Way:
    """Return where a workload's source sends and its receivers listen; the topology is consistent."""
    found = find(net, work)
    assert found is not None, "a source has an address"
    source = found.tree.source
    return Way(
        _host(net, source, work.version), source.ifname, tuple((node, end.ifname) for node, end in found.ends.items())
    )


def _host(net: Network, end: End, version: int) -> str:
    return next(i.host(version) for i in net.interfaces[end.node] if i.name == end.ifname)


def workloads(topology: Topology) -> Iterator[Multicast]:
    """Yield the multicast workloads of a topology."""
    yield from (w.multicast for w in topology.workloads.values() if w.multicast is not None)


def members(net: Network) -> frozenset[str]:
    """Return the nodes where multicast comes in by more than one interface: routers of it, and some receivers."""
    routers = {name for name, node in net.topology.nodes.items() if node.router is not None and node.router.multicast}
    receivers = {r.node for work in workloads(net.topology) for r in work.receivers}
    return frozenset(routers | {name for name in receivers if len(net.interfaces[name]) > 1})


def entries(net: Network) -> dict[str, tuple[Entry, ...]]:
    """Return the (S,G) routes of each multicast router; workloads of one source and group share theirs."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for work in workloads(net.topology):
        if (tree := find(net, work)) is None:
            continue
        source = _host(net, tree.tree.source, work.version)
        for hop in tree.hops:
            oifs = found.setdefault((hop.node, source, work.group, hop.iif), [])
            oifs += [hop.oif] if hop.oif not in oifs else []
    by_node: dict[str, list[Entry]] = {name: [] for name in net.topology.nodes}
    for (node, source, group, iif), oifs in found.items():
        by_node[node].append(Entry(source, group, iif, tuple(oifs)))
    return {node: tuple(rows) for node, rows in by_node.items() if rows}
