"""AMT tunnels: the interface and address of each gateway and relay, or why there is none (pure).

The tunnels are the kernel's: over IPv4, a relay has one stream interface, and answers from that address only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from testbed.language.document import Fault, Path
from testbed.language.explain import suggest
from testbed.nodes.amt_gateway import AmtGateway
from testbed.nodes.amt_relay import AmtRelay
from testbed.nodes.place import Interface, Place, Tunnel
from testbed.plan.network import Network, Relay
from testbed.plan.routes import hops, search
from testbed.units import interface_of


def relays(net: Network) -> dict[str, Relay]:
    """Return the relays by their nodes; each is examined once for all of its gateways."""
    asking: dict[str, list[str]] = {}
    for name, node in net.topology.nodes.items():
        if node.amt_gateway is not None:
            asking.setdefault(named(node.amt_gateway), []).append(name)
    found = {}
    for name, node in net.topology.nodes.items():
        if node.amt_relay is not None:
            mine = tuple(asking.get(name, ()))
            ways = _ways(net, name, {i.segment for g in mine for i in _usable(net, g)})
            found[name] = Relay(mine, ways, _relay(net, name, node.amt_relay, mine, ways))
    return found


def planned(net: Network) -> dict[str, tuple[Tunnel, ...]]:
    """Return the ends of tunnels by node, without those that can't work."""
    found: dict[str, tuple[Tunnel, ...]] = {}
    for name in net.topology.nodes:
        ends = [gateway(net, name), net.relays[name].end if name in net.relays else None]
        if mine := tuple(t for t in ends if isinstance(t, Tunnel)):
            found[name] = mine
    return found


def named(role: AmtGateway) -> str:
    """Return the node that a gateway names as its relay."""
    return role.discovery.partition(":")[0]


def _relay(net: Network, name: str, role: AmtRelay, gateways: tuple[str, ...], ways: dict[int, str]) -> Tunnel | Fault:
    """Return the end of a relay's tunnels, or what is wrong with it."""
    at: Path = ("nodes", name, "amt_relay")
    mine = _usable(net, name)
    if role.interface is not None:
        chosen = _chosen(net, name, role.interface, at)
        return chosen if isinstance(chosen, tuple) else _end(chosen, role.name)
    if not mine:
        return at, f"{name} has no interface with an IPv4 address, and the kernel's AMT tunnels are of IPv4", ""
    asked = [net.topology.nodes[g].amt_gateway for g in gateways]
    stated = {a.discovery.partition(":")[2] for a in asked if a is not None} & {i.name for i in mine}
    near = {i.name for g in gateways for i in _towards(net, name, _usable(net, g), ways)}
    for names in (stated, near, {i.name for i in mine}):
        if len(names) == 1:
            return _end(next(i for i in mine if i.name in names), role.name)
    several = " and ".join(sorted(near or {i.name for i in mine}))
    why = f"{'gateways are behind' if near else 'it has'} {several}, and a relay has one interface for its tunnels"
    return at, f"{name}: {why}", "give its `interface`"


def gateway(net: Network, name: str) -> Tunnel | Fault | None:
    """Return the end of a gateway's tunnel, what is wrong with it, or None if there is none or its relay is wrong."""
    role = net.topology.nodes[name].amt_gateway
    if role is None:
        return None
    at: Path = ("nodes", name, "amt_gateway")
    relay, _, ifname = role.discovery.partition(":")
    if relay not in net.topology.nodes:
        relays = [n for n, node in net.topology.nodes.items() if node.amt_relay is not None]
        known = f"relays are: {', '.join(relays[:8])}" if relays else "no node has `amt_relay: {}`"
        return (*at, "discovery"), f"there is no node {relay!r}", suggest(relay, net.topology.nodes) or known
    if relay == name:
        return (*at, "discovery"), f"{name} is this node itself: the relay of a gateway is another node", ""
    if net.topology.nodes[relay].amt_relay is None:
        return (*at, "discovery"), f"{relay} is not an AMT relay", "give that node `amt_relay: {}`"
    there = net.relays[relay]
    end = there.end
    if not isinstance(end, Tunnel):
        return None  # it is blamed there
    if ifname and ifname != end.dev:
        if not of(net, relay, ifname):
            return (*at, "discovery"), _lacks(net, relay, ifname), ""
        message = f"{relay} has its tunnels by {end.dev}, and answers a gateway from there only"
        return (*at, "discovery"), message, f"write {relay}:{end.dev}"
    [far] = of(net, relay, end.dev)
    found = _towards(net, name, [far])
    if role.interface is not None:
        chosen = _chosen(net, name, role.interface, at)
        if isinstance(chosen, tuple):
            return chosen
        if chosen.name not in {i.name for i in found}:
            message = f"{name} has no way to {relay} ({far.host(4)}) by {chosen.name}"
            return (*at, "interface"), message, f"it is {found[0].name}" if found else ""
        found = [chosen]
    if not _usable(net, name):
        return at, f"{name} has no interface with an IPv4 address, and the kernel's AMT tunnels are of IPv4", ""
    if not found:
        return (*at, "discovery"), f"{name} has no way to {relay} ({far.host(4)}): no link and no route leads there", ""
    if len(found) > 1:
        several = " and ".join(i.name for i in found)
        return at, f"{several} are both on a link to {relay}", "give the `interface` of the tunnel"
    if far.name not in {i.name for i in _towards(net, relay, found, there.ways)}:
        message = f"{relay} has no way back from {far.name} to {name} ({found[0].host(4)})"
        return (*at, "discovery"), message, ""
    return _end(found[0], role.name, far.host(4))


def _end(stream: Interface, name: str, discovery: str = "") -> Tunnel:
    return Tunnel(stream.node, name, stream.name, stream.host(4), discovery)


def _chosen(net: Network, node: str, ifname: str, at: Path) -> Interface | Fault:
    """Return the interface that the file chooses, or what is wrong with it."""
    found = of(net, node, ifname)
    if not found:
        return (*at, "interface"), _lacks(net, node, ifname), suggest(ifname, [i.name for i in _usable(net, node)])
    if found[0] not in _usable(net, node):
        why = "the kernel's AMT tunnels are of IPv4"
        return (*at, "interface"), f"{node}:{ifname} has no IPv4 address, and {why}", ""
    return found[0]


def _lacks(net: Network, node: str, ifname: str) -> str:
    return Place(node, net.interfaces[node], net.families).lacks(ifname)


def of(net: Network, node: str, ifname: str) -> list[Interface]:
    """Return the interfaces with a name; a tunnel only if there is no other one."""
    return [i for i in net.interfaces[node] if i.name == ifname and i.kind != "amt"] or [
        i for i in net.interfaces[node] if i.name == ifname
    ]


def _usable(net: Network, node: str) -> list[Interface]:
    """Return the interfaces that can carry a tunnel."""
    return [i for i in net.interfaces[node] if not i.port and i.kind != "amt" and i.host(4)]


def _towards(
    net: Network, node: str, targets: Iterable[Interface], ways: dict[int, str] | None = None
) -> list[Interface]:
    """Return the interfaces through which packets to these leave a node: on a common link, else by routes.

    `ways` are the planned ones, if they are already known.
    """
    mine, targets = _usable(net, node), list(targets)
    there = {t.segment for t in targets}
    if near := [i for i in mine if i.segment in there]:
        return near
    planned = _ways(net, node, there) if ways is None else ways
    return list(dict.fromkeys(i for t in targets for i in _routed(net, node, mine, t, planned)))


def _routed(
    net: Network, node: str, mine: list[Interface], target: Interface, ways: dict[int, str]
) -> Iterator[Interface]:
    if (stated := net.topology.nodes[node].routes) is not None:
        to = ip_address(target.host(4))
        hops_to = [(r.to, hop) for r in stated for hop in r.via]
        fits = [(length, via) for r, hop in hops_to if (length := _covers(r, to)) >= 0 and (via := _parsed(hop))]
        for _, via in sorted(fits, key=lambda f: -f[0])[:1]:
            yield from (i for i in mine if any(via in interface_of(a).network for a in i.addresses))
    elif target.segment in ways:
        yield next(i for i in mine if i.name == ways[target.segment])


def _ways(net: Network, node: str, segments: set[int]) -> dict[int, str]:
    """Return the interface through which a node's planned routes lead to each of these segments, if any do."""
    own = {i.segment for i in net.interfaces[node] if not i.port}
    if segments <= own or net.topology.nodes[node].routes is not None or net.topology.routing == "none":
        return {}
    first = hops(net.graphs[4], _usable(net, node), 4)
    found = search(net.graphs[4], first, own)
    return {s: first[n].dev for s in segments if (n := found.get(s, -1)) >= 0}


def _covers(network: str, address: IPv4Address | IPv6Address) -> int:
    """Return the prefix length of a network if it contains an address, -1 otherwise (or if it is not a network)."""
    try:
        found = ip_network("0.0.0.0/0" if network == "default" else network)
    except ValueError:
        return -1  # judged where it is written
    return found.prefixlen if address in found else -1


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
