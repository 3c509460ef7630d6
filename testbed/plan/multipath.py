"""Several next hops at once (ECMP): planned for all shortest ways, or stated; and how flows are spread (pure)."""

from __future__ import annotations

from binascii import crc32
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address

from testbed.drivers.route import NextHop, RouteAdd
from testbed.drivers.sysctl import SysctlSet
from testbed.nodes.node import Route
from testbed.plan.network import Graph, Network
from testbed.plan.prefixes import NONE, Known, merged
from testbed.plan.routes import Hop, hops, routes
from testbed.steps import Configure, Step
from testbed.units import interface_of

_FIELDS = 0x37  # addresses, protocol and ports (ip_fib.h: FIB_MULTIPATH_HASH_FIELD_*)


def ways(joined: Graph, first: Sequence[Hop], own: Iterable[int]) -> dict[int, frozenset[int]]:
    """Return the numbers of all hops that lead to each segment by the fewest routers: none for a node's own.

    Breadth first and a distance at a time: a router that several hops reach at the same distance has all of them.
    """
    found: dict[int, frozenset[int]] = dict.fromkeys(own, frozenset())
    front: dict[str, frozenset[int]] = {}
    for n, hop in enumerate(first):
        front[hop.router] = front.get(hop.router, frozenset()) | {n}
    seen = set(front)
    while front:
        reached: dict[int, frozenset[int]] = {}
        for router, by in front.items():
            for segment in joined.segments[router]:
                if segment not in found:
                    reached[segment] = reached.get(segment, frozenset()) | by
        found |= reached
        front = {}
        for segment, by in reached.items():
            for after in joined.routers[segment]:
                if after not in seen:
                    front[after] = front.get(after, frozenset()) | by
        seen |= front.keys()
    return found


def main(net: Network, node: str, every: Sequence[Known]) -> Iterator[RouteAdd]:
    """Yield the routes of a node's main table, stated or planned."""
    if (given := net.topology.nodes[node].routes) is not None:
        yield from stated(net, node, given)
    elif net.topology.routing == "ecmp":
        yield from planned(net, node, every)
    else:
        yield from routes(net, node, every)


def planned(net: Network, node: str, every: Sequence[Known]) -> Iterator[RouteAdd]:
    """Yield the routes of a node's main table: the commonest set of next hops is the default route."""
    own = {i.segment for i in net.interfaces[node] if not i.port}
    for nets in every:
        first = hops(net.graphs[nets.version], net.interfaces[node], nets.version)
        found = {s: by for s, by in ways(net.graphs[nets.version], first, own).items() if by}
        if not found:
            continue
        sets = list(dict.fromkeys(found[s] for s in net.segments if s in found))
        via = [NextHop(hop.dev, nets.via[hop.segment, hop.router]) for hop in first]
        chosen = [tuple(via[n] for n in sorted(by)) for by in sets]
        default = sets.index(Counter(found.values()).most_common(1)[0][0])
        yield RouteAdd.by("default", chosen[default])
        number: dict[int | None, int] = {s: sets.index(by) for s, by in found.items() if sets.index(by) != default}
        for to, n in merged(nets, [number.get(s, NONE) for s in nets.segments]):
            yield RouteAdd.by(to, chosen[n])


def stated(net: Network, node: str, given: Sequence[Route]) -> Iterator[RouteAdd]:
    """Yield the routes that a file states for a node: those of one destination and metric are one."""
    found: dict[tuple[str, int, int | None], list[NextHop]] = {}
    for route in given:
        for hop in route.hops():
            version = 6 if ":" in (hop or route.to) else 4
            dev = route.dev or towards(net, node, hop)
            found.setdefault((route.to, version, route.metric), []).append(NextHop(dev, hop))
    for (to, version, metric), by in found.items():
        to = {4: "0.0.0.0/0", 6: "::/0"}[version] if to == "default" and not by[0].via else to
        yield RouteAdd.by(to, tuple(by), metric)


def towards(net: Network, node: str, via: str) -> str:
    """Return the interface of a node whose network has an address."""
    gateway = ip_address(via)
    pairs = [(i, a) for i in net.interfaces[node] for a in i.addresses]
    return next(i.name for i, a in pairs if gateway in interface_of(a).network)


def spread(net: Network, steps: Iterable[Step]) -> Iterator[Step]:
    """Yield, for each node with several next hops, what spreads flows by addresses and ports, always in the same way.

    Policy 1 (the same fields) takes the hash that a packet already has (net/ipv4/route.c: fib_multipath_hash), and
    between namespaces a packet keeps the random one of its socket: every router would choose alike, and each run
    otherwise. Policy 3 looks at the packet. Each node has a seed of its own: with one for all, those of the second
    stage would see only flows that the first has sent one way, and send all of them one way again.
    """
    several = [s.node for s in steps if isinstance(s, Configure) and isinstance(s.request, RouteAdd) and s.request.more]
    for node in dict.fromkeys(several):
        for version in net.families:
            yield Configure(node, SysctlSet(f"net.ipv{version}.fib_multipath_hash_fields", str(_FIELDS)))
            yield Configure(node, SysctlSet(f"net.ipv{version}.fib_multipath_hash_policy", "3"))
        seed = crc32(f"{net.topology.name}:{node}".encode()) or 1  # 0 is random (ip-sysctl.rst)
        yield Configure(node, SysctlSet("net.ipv4.fib_multipath_hash_seed", str(seed)))


def several(net: Network) -> bool:
    """Say whether any node has several next hops to one destination, as far as can be known without its routes."""
    if net.topology.routing == "ecmp":
        return True
    return any(len(r.hops()) > 1 for node in net.topology.nodes.values() for r in node.routes or ()) or any(
        len({(r.to, r.metric) for r in node.routes}) < len(node.routes)
        for node in net.topology.nodes.values()
        if node.routes
    )
