"""How fast packets can get from one node to another: the narrowest place of the widest way (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from math import inf

from testbed.plan.network import Network

_AIR = 20e6  # bit/s of a simulated radio, as far as its processor lets it: see docs/wifi.md

Ways = dict[str, list[tuple[str, float]]]  # by node: its neighbours, and how fast (bit/s) it sends to them


def ways(net: Network) -> Ways:
    """Return the neighbours of every node, with the lowest rate that the link has in that direction in the run."""
    found: Ways = {name: [] for name in net.topology.nodes}
    slower: dict[str | None, list[tuple[float, float]]] = {}
    for event in net.topology.events:
        if event.set is not None:
            forward, reverse = event.set.shapes()
            slower.setdefault(event.link, []).append((forward.rate or inf, reverse.rate or inf))
    for link in net.topology.links:
        changes = [pair for name in (link.name, *link.ends) if name is not None for pair in slower.get(name, ())]
        forward, reverse = link.shapes()
        rates = [(forward.rate or inf, reverse.rate or inf), *changes]
        one, other = (end.partition(":")[0] for end in link.ends)
        found[one].append((other, min(there for there, _ in rates)))
        found[other].append((one, min(back for _, back in rates)))
    for node, peer in _radios(net):
        found[node].append((peer, _AIR))
        found[peer].append((node, _AIR))
    return found


def _radios(net: Network) -> Iterator[tuple[str, str]]:
    """Yield (access point, station)."""
    for bss in net.air:
        own = net.named[bss.node, bss.ifname][0]
        members = net.segments.get(own.segment, ())
        yield from ((bss.node, i.node) for i in members if i.kind == "wlan" and i.node != bss.node)


def fastest(found: Ways, source: str, target: str) -> float | None:
    """Return the rate (bit/s) at which packets can get from one node to another, None where nothing limits it."""
    best = {source: inf}
    queue = [(-inf, source)]
    while queue:
        rate, node = heappop(queue)
        if node == target:
            return None if rate == -inf else -rate
        for peer, speed in found[node]:
            if (through := min(-rate, speed)) > best.get(peer, 0.0):
                best[peer] = through
                heappush(queue, (-through, peer))
    return None
