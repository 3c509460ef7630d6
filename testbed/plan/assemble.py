"""Topology -> Network: every interface with its addresses, then what follows from these (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from msgspec import Struct
from msgspec.structs import replace

from testbed.drivers import amt
from testbed.drivers.link import MTU
from testbed.language.document import Path
from testbed.language.topology import Topology
from testbed.nodes.place import Bss, Interface, Kind
from testbed.plan import addresses, routes, trees, tunnels
from testbed.plan.addresses import mac
from testbed.plan.network import Network, end_of, families, root


class End(Struct, frozen=True):
    """An interface as the file states it: its place there, what it is joined to, and its addresses (None: planned).

    Media are numbered: links in the order of the file, then BSSs, bridges that have addresses, AMT interfaces.
    """

    at: Path
    node: str
    name: str
    kind: Kind
    medium: int
    mtu: int
    stated: tuple[str, ...] | None


@lru_cache(maxsize=1)
def network(topology: Topology) -> Network:
    """Return the planned interfaces of a consistent topology; NoRoom when a segment does not fit."""
    found = tuple(ends(topology))
    segment = _segments(topology, found)
    # What is joined to a BSS takes no longer frames than that; a bridge takes what all of its ports do.
    caps: dict[int, int] = {}
    for end in found:
        if end.kind == "wlan":
            caps[segment[end.medium]] = min(caps.get(segment[end.medium], MTU), end.mtu)
    made: dict[str, list[Interface]] = {name: [] for name in topology.nodes}
    taken: set[str] = set()
    for end in found:
        mtu = min(end.mtu, caps.get(segment[end.medium], end.mtu))
        if end.kind == "bridge":
            mtu = min((i.mtu for i in made[end.node] if i.port), default=mtu)
        address = mac(end.node, end.name, taken)
        port = is_port(topology, end.node, end.name)
        stated = end.stated or ()
        made[end.node].append(
            Interface(end.node, end.name, address, mtu, end.at, segment[end.medium], stated, port, end.kind)
        )
    left_out = {(e.node, e.name) for e in found if e.stated is None}
    given = addresses.given(_members(made), left_out, families(topology))
    interfaces = {
        name: tuple(replace(i, addresses=given.get((i.node, i.name), i.addresses)) for i in mine)
        for name, mine in made.items()
    }
    net = Network(topology, interfaces, _members(interfaces), tuple(_air(topology, interfaces)))
    net = replace(net, graphs=routes.graphs(net))
    net = replace(net, relays=tunnels.relays(net))
    net = _tunnelled(replace(net, tunnels=tunnels.planned(net)))
    return replace(net, trees=trees.planned(net))


def _members(interfaces: Mapping[str, Iterable[Interface]]) -> dict[int, tuple[Interface, ...]]:
    """Return the interfaces that are not bridge ports, by segment."""
    found: dict[int, list[Interface]] = {}
    for mine in interfaces.values():
        for i in mine:
            if not i.port:
                found.setdefault(i.segment, []).append(i)
    return {s: tuple(members) for s, members in found.items()}


def _air(topology: Topology, interfaces: Mapping[str, tuple[Interface, ...]]) -> Iterator[Bss]:
    """Yield what every access point offers."""
    taken = {i.mac for mine in interfaces.values() for i in mine}
    for name, node in topology.nodes.items():
        if (ap := node.access_point) is not None:
            own = next(i for i in interfaces[name] if i.kind == "wlan" and i.name == ap.name)
            # Without MLO the interface's address is the BSSID.
            links = tuple(mac(name, f"{ap.name}.{n}", taken) for n, _ in ap.freqs()) if ap.mlo() else (own.mac,)
            events = [e for e in topology.events if e.node == name]
            moves = tuple((e.mlo_link, e.freq) for e in events if e.mlo_link is not None and e.freq is not None)
            yield replace(ap.bss(name, links), moves=moves)


def _tunnelled(net: Network) -> Network:
    """Return the network with AMT interfaces as narrow as what carries them, and bridges as their ports."""
    if not net.tunnels:
        return net
    interfaces = dict(net.interfaces)
    for name, found in net.tunnels.items():
        streams = {i.name: i.mtu for i in interfaces[name] if i.kind != "amt"}
        inner = {t.name: streams[t.dev] - amt.HEADERS for t in found}
        mine = [replace(i, mtu=inner.get(i.name, i.mtu)) if i.kind == "amt" else i for i in interfaces[name]]
        least = min((i.mtu for i in mine if i.port), default=MTU)
        interfaces[name] = tuple(replace(i, mtu=min(i.mtu, least)) if i.kind == "bridge" else i for i in mine)
    return replace(net, interfaces=interfaces, segments=_members(interfaces))


def ends(topology: Topology) -> Iterator[End]:
    """Yield every interface that has a place in the network: ends of links and tunnels, of radios, some bridges."""
    for n, link in enumerate(topology.links):
        for e, text in enumerate(link.ends):
            yield End(("links", n, "ends", e), *end_of(text), "veth", n, link.mtu or MTU, link.stated(e))
    aps = [(name, node.access_point) for name, node in topology.nodes.items() if node.access_point is not None]
    media = {ap.ssid: len(topology.links) + n for n, (_, ap) in reversed(list(enumerate(aps)))}
    mtu = {ap.ssid: ap.mtu() for _, ap in aps}
    spare = len(topology.links) + len(aps)
    for name, node in topology.nodes.items():
        for role, wlan in (("access_point", node.access_point), ("station", node.station)):
            if wlan is not None and wlan.ssid in media:
                at = ("nodes", name, role)
                yield End(at, name, wlan.name, "wlan", media[wlan.ssid], mtu[wlan.ssid], wlan.addresses)
    for name, node in topology.nodes.items():
        if (bridge := node.bridge) is not None and (node.router is not None or bridge.addresses is not None):
            yield End(("nodes", name, "bridge"), name, bridge.name, "bridge", spare, MTU, bridge.addresses)
            spare += 1
    for name, node in topology.nodes.items():
        # A relay's needs no address: nothing is sent from it but what is routed into it, and queries.
        own = () if node.amt_relay is None else (("amt_relay", node.amt_relay.name, ()),)
        for role, ifname, stated in (
            *own,
            *(() if (g := node.amt_gateway) is None else (("amt_gateway", g.name, g.addresses),)),
        ):
            yield End(("nodes", name, role), name, ifname, "amt", spare, MTU - amt.HEADERS, stated)
            spare += 1


def is_port(topology: Topology, node: str, ifname: str) -> bool:
    """Say whether an interface is a port of its node's bridge."""
    bridge = topology.nodes[node].bridge
    return bridge is not None and ifname != bridge.name and bridge.is_port(ifname)


def _segments(topology: Topology, found: tuple[End, ...]) -> dict[int, int]:
    """Return the segment of each medium, its lowest: media that meet in a bridge are one."""
    parent = {end.medium: end.medium for end in found}

    first: dict[str, int] = {}
    for end in found:
        bridge = topology.nodes[end.node].bridge
        if end.kind == "bridge" or (bridge is not None and is_port(topology, end.node, end.name)):
            low, high = sorted((root(parent, end.medium), root(parent, first.setdefault(end.node, end.medium))))
            parent[high] = low
    return {n: root(parent, n) for n in parent}
