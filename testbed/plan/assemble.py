"""Topology -> Network: every interface with its addresses, then what follows from these (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial

from msgspec import Struct
from msgspec.structs import replace

from testbed.drivers import amt
from testbed.drivers.link import MTU
from testbed.language.document import Path
from testbed.language.topology import Topology
from testbed.nodes.place import MADE, Bss, Interface, Kind, Place
from testbed.nodes.role import Brought, Switch
from testbed.plan import addresses, routes, trees, tunnels
from testbed.plan.addresses import mac
from testbed.plan.network import Network, end_of, families, root


class End(Struct, frozen=True):
    """An interface as the file states it: its place there, what it is joined to, and its addresses (None: planned).

    Media are numbered: links in the order of the file, then those that several join (BSSs), bridges that have
    addresses, and what else roles bring.
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
    switches = {name: switch for name, node in topology.nodes.items() if (switch := node.switch()) is not None}
    segment = _segments(found, switches)
    # What is joined to a BSS takes no longer frames than that; a bridge takes what all of its ports do.
    caps: dict[int, int] = {}
    for end in found:
        if end.kind == "wlan":
            caps[segment[end.medium]] = min(caps.get(segment[end.medium], MTU), end.mtu)
    made: dict[str, list[Interface]] = {name: [] for name in topology.nodes}
    macs = ((link.ends[e], link.macs[e]) for link in topology.links if link.macs is not None for e in range(2))
    stated_macs = {end: address.lower() for end, address in macs if address is not None}
    taken = set(stated_macs.values())
    for end in found:
        mtu = min(end.mtu, caps.get(segment[end.medium], end.mtu))
        if end.kind == "bridge":
            mtu = min((i.mtu for i in made[end.node] if i.port), default=mtu)
        own = stated_macs.get(f"{end.node}:{end.name}") if end.kind == "veth" else None
        address = own or mac(end.node, end.name, taken)
        port = end.node in switches and switches[end.node].takes(end.name)
        stated = end.stated or ()
        link = topology.links[int(end.at[1])] if end.kind == "veth" else None
        words = (*((link.name,) if link.name else ()), *link.ends) if link is not None else ()
        made[end.node].append(
            Interface(end.node, end.name, address, mtu, end.at, segment[end.medium], stated, port, end.kind, words)
        )
    left_out = {(e.node, e.name) for e in found if e.stated is None}
    plan = addresses.by_name if topology.addressing == "by_name" else addresses.given
    given = plan(_members(made), left_out, families(topology))
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
    joining = Counter(own.medium for _, _, own in brought(topology) if own.medium and not own.makes)
    for name, node in topology.nodes.items():
        place = Place(name, interfaces[name], families(topology))
        for role in node.roles().values():
            if (bss := role.offers(place, partial(mac, name, taken=taken))) is not None:
                events = [e for e in topology.events if e.node == name]
                moves = tuple((e.mlo_link, e.freq) for e in events if e.mlo_link is not None and e.freq is not None)
                yield replace(bss, moves=moves, stations=joining[bss.ssid])


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
    """Yield every interface that has a place in the network: ends of links, then what roles bring."""
    for n, link in enumerate(topology.links):
        for e, text in enumerate(link.ends):
            yield End(("links", n, "ends", e), *end_of(text), "veth", n, link.mtu or MTU, link.stated(e))
    found = list(brought(topology))
    makers = [own for _, _, own in found if own.makes]
    media = {own.medium: len(topology.links) + n for n, own in reversed(list(enumerate(makers)))}
    mtu = {own.medium: own.mtu for own in makers}
    spare = len(topology.links) + len(makers)
    shared: dict[str, int] = {}  # networks of what commands make
    for name, role, own in sorted(found, key=lambda f: (not f[2].medium, f[2].kind != "bridge")):
        at: Path = ("nodes", name, role)
        if own.kind == MADE:
            number = shared.setdefault(own.medium, spare) if own.medium else spare
            yield End((*at, own.name), name, own.name, own.kind, number, own.mtu, own.stated)
            spare += number == spare
        elif own.medium in media:
            yield End(at, name, own.name, own.kind, media[own.medium], mtu[own.medium], own.stated)
        elif own.placed and not own.medium:
            yield End(at, name, own.name, own.kind, spare, own.mtu, own.stated)
            spare += 1


def brought(topology: Topology) -> Iterator[tuple[str, str, Brought]]:
    """Yield (node, role, interface) of every interface that a role brings."""
    for name, node in topology.nodes.items():
        yield from ((name, role, own) for role, own in node.brought())


def _segments(found: tuple[End, ...], switches: Mapping[str, Switch]) -> dict[int, int]:
    """Return the segment of each medium, its lowest: media that meet in a bridge are one."""
    parent = {end.medium: end.medium for end in found}

    first: dict[str, int] = {}
    for end in found:
        if end.kind == "bridge" or (end.node in switches and switches[end.node].takes(end.name)):
            low, high = sorted((root(parent, end.medium), root(parent, first.setdefault(end.node, end.medium))))
            parent[high] = low
    return {n: root(parent, n) for n in parent}
