"""Planned routes as one would write them by hand: a way of its own to every segment, by the longest prefix first."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address, ip_interface, ip_network

from testbed.plan.network import Network

Way = tuple[str, str]  # next hop ("" where the destination is on the link) and interface
Table = dict[str, Way]  # by network


def distances(net: Network, target: int, version: int) -> dict[str, int]:
    """How many segments each router is away from one."""
    found: dict[str, int] = {}
    front, seen, far = {target}, {target}, 0
    while front:
        near = {i.node for s in front for i in net.segments[s] if net.router(i.node) and i.host(version)} - found.keys()
        found |= dict.fromkeys(near, far)
        front = {i.segment for r in near for i in net.interfaces[r] if not i.port and i.host(version)} - seen
        seen |= front
        far += 1
    return found


def table(net: Network, node: str, version: int) -> Table:
    """Connected networks, and a route to each segment; to what has none, as the commonest one goes."""
    mine = [i for i in net.interfaces[node] if not i.port and i.host(version)]
    connected = {str(ip_interface(a).network): ("", i.name) for i in mine for a in i.addresses if _is(a, version)}
    if net.topology.nodes[node].routes:
        every = [(r.to, r.via[0]) for r in net.topology.nodes[node].routes or ()]
        stated = [(to, via) for to, via in every if ip_address(via).version == version]
        everything = "0.0.0.0/0" if version == 4 else "::/0"
        by = {to: next(i.name for i in mine if ip_address(via) in ip_network(i.network(version))) for to, via in stated}
        return {everything if to == "default" else to: (via, by[to]) for to, via in stated} | connected
    ways: dict[int, Way] = {}
    for target in net.segments:
        far = distances(net, target, version)
        on = [(i, r) for i in mine for r in net.segments[i.segment] if r.node in far and r.node != node]
        near = [(i, r) for i, r in on if r.host(version)]
        if near and target not in {i.segment for i in net.interfaces[node] if not i.port}:
            i, r = min(near, key=lambda pair: far[pair[1].node])
            ways[target] = r.host(version), i.name
    routes = {m.network(version): way for s, way in ways.items() for m in net.segments[s] if m.network(version)}
    if ways:
        routes["0.0.0.0/0" if version == 4 else "::/0"] = Counter(ways.values()).most_common(1)[0][0]
    return routes | connected


def _is(address: str, version: int) -> bool:
    return ip_interface(address).version == version


def chosen(routes: Table, address: str) -> Way | None:
    """Return what the longest prefix says."""
    to = ip_address(address)
    fits = [(network.prefixlen, way) for n, way in routes.items() if to in (network := ip_network(n))]
    return max(fits, key=lambda f: f[0])[1] if fits else None


def addresses(net: Network, version: int) -> list[str]:
    """Every address of the lab."""
    return [h for found in net.interfaces.values() for i in found for h in i.hosts() if (":" in h) == (version == 6)]
