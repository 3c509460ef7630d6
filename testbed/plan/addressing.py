"""What the author left out: addresses and MACs, the same for the same file (pure)."""

from __future__ import annotations

from binascii import crc32
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property, lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network

from msgspec import Struct
from msgspec.structs import replace

from testbed.drivers import amt
from testbed.drivers.link import MTU
from testbed.language.topology import Event, Topology
from testbed.nodes.place import Bss, Interface, Kind, Place, Tunnel
from testbed.plan import tunnels
from testbed.plan.routes import Graph, graph
from testbed.units import interface_of

# RFC 1918 and RFC 3849: nothing that a lab's packets could be mistaken for outside of it.
_POOLS = {4: ip_network("10.0.0.0/8"), 6: ip_network("2001:db8::/32")}
_LINK_LOCAL = b"\xfe\x80" + bytes(6)
AIR = "air"  # stands for the medium where nodes are named
Net = IPv4Network | IPv6Network
At = tuple[str | int, ...]


class NoRoom(ValueError):
    """A network has no address left, or the pool no network; `at` is the end that wants it."""

    def __init__(self, message: str, at: tuple[str | int, ...]) -> None:
        """Take a sentence and the place in the file."""
        super().__init__(message)
        self.at = at


class End(Struct, frozen=True):
    """An interface as the file states it: its place there, what it is joined to, and its addresses (None: planned).

    Media are numbered: links in the order of the file, then BSSs, bridges that have addresses, AMT interfaces.
    """

    at: tuple[str | int, ...]
    node: str
    name: str
    kind: Kind
    medium: int
    mtu: int
    stated: tuple[str, ...] | None


class Network(Struct, frozen=True, dict=True):
    """Every interface with its addresses; a segment is what one broadcast reaches (links joined by bridges)."""

    topology: Topology
    interfaces: dict[str, tuple[Interface, ...]]

    @cached_property
    def families(self) -> tuple[int, ...]:
        """Return the IP versions in use."""
        return tuple({"ipv4": 4, "ipv6": 6}[f] for f in dict.fromkeys(self.topology.families))

    @cached_property
    def named(self) -> dict[tuple[str, str], tuple[Interface, ...]]:
        """Return interfaces by node and name; a name that a file gives twice is a fault that is still to be told."""
        found: dict[tuple[str, str], tuple[Interface, ...]] = {}
        for interfaces in self.interfaces.values():
            for i in interfaces:
                found[i.node, i.name] = (*found.get((i.node, i.name), ()), i)
        return found

    @cached_property
    def segments(self) -> dict[int, tuple[Interface, ...]]:
        """Return the interfaces that are not bridge ports, by segment."""
        found: dict[int, list[Interface]] = {}
        for interfaces in self.interfaces.values():
            for i in interfaces:
                if not i.port:
                    found.setdefault(i.segment, []).append(i)
        return {s: tuple(members) for s, members in found.items()}

    @cached_property
    def devices(self) -> tuple[tuple[str, str], ...]:
        """Return (node, name) of every interface, then of bridges, then of what hears the medium, the lab's own."""
        found = [(i.node, i.name) for interfaces in self.interfaces.values() for i in interfaces]
        found += [(n, x.bridge.name) for n, x in self.topology.nodes.items() if x.bridge is not None]
        return tuple(dict.fromkeys([*found, *((AIR, ear) for ear in self.ears)]))

    @cached_property
    def devices_of(self) -> dict[str, tuple[str, ...]]:
        """Return the names of every node's interfaces, in the same order."""
        found: dict[str, list[str]] = {}
        for node, name in self.devices:
            found.setdefault(node, []).append(name)
        return {node: tuple(names) for node, names in found.items()}

    @cached_property
    def owners(self) -> dict[str, Interface]:
        """Return the interfaces by their addresses."""
        return {host: i for every in self.interfaces.values() for i in every for host in i.hosts()}

    @cached_property
    def joined(self) -> dict[int, int]:
        """Return for each segment one that stands for all that packets from it can reach."""
        found = {i.segment: i.segment for every in self.interfaces.values() for i in every}
        for name, interfaces in self.interfaces.items():
            if self.router(name) or self.topology.nodes[name].routes:
                mine = [_root(found, i.segment) for i in interfaces if not i.port]
                found.update(dict.fromkeys(mine, min(mine, default=0)))
        return {segment: _root(found, segment) for segment in found}

    @cached_property
    def happenings(self) -> dict[str, list[Event]]:
        """Return the events of each node in the order of time."""
        found: dict[str, list[Event]] = {name: [] for name in self.interfaces}
        for event in sorted(self.topology.events, key=lambda e: e.at):
            if event.node in found:
                found[event.node].append(event)
        return found

    @cached_property
    def places(self) -> dict[tuple[str, float], list[tuple[Event, Place]]]:
        """Return events by node and time, each with what a role may know of its node, after earlier changes."""
        found: dict[tuple[str, float], list[tuple[Event, Place]]] = {}
        for name in self.interfaces:
            for event, place in _places(self, name):
                found.setdefault((name, event.at), []).append((event, place))
        return found

    def place(self, node: str) -> Place:
        """Return what a role may know of its node."""
        bridge = self.topology.nodes[node].bridge
        name = bridge.name if bridge is not None else ""
        return Place(node, self.interfaces[node], self.families, self.air, name, self.tunnels.get(node, ()))

    @cached_property
    def graphs(self) -> dict[int, Graph]:
        """Return what packets of each family can pass."""
        four, six = graph(self, 4), graph(self, 6)
        return {4: four, 6: four if six == four else six}

    @cached_property
    def relays(self) -> dict[str, tunnels.Relay]:
        """Return the AMT relays by their nodes."""
        return tunnels.relays(self)

    @cached_property
    def tunnels(self) -> dict[str, tuple[Tunnel, ...]]:
        """Return the ends of AMT tunnels of each node that has some."""
        return tunnels.planned(self)

    @cached_property
    def air(self) -> tuple[Bss, ...]:
        """Return what every access point offers."""
        taken = {i.mac for interfaces in self.interfaces.values() for i in interfaces}
        found = []
        for name, node in self.topology.nodes.items():
            if (ap := node.access_point) is not None:
                own = next(i for i in self.interfaces[name] if i.kind == "wlan" and i.name == ap.name)
                # Without MLO the interface's address is the BSSID.
                links = tuple(mac(name, f"{ap.name}.{n}", taken) for n, _ in ap.freqs()) if ap.mlo() else (own.mac,)
                events = [e for e in self.topology.events if e.node == name]
                moves = tuple((e.mlo_link, e.freq) for e in events if e.mlo_link is not None and e.freq is not None)
                found.append(replace(ap.bss(name, links), moves=moves))
        return tuple(found)

    @cached_property
    def ears(self) -> dict[str, int]:
        """Return the lab's monitor interfaces, one for each frequency (MHz) that is used, also after an event."""
        moved = {event.freq for event in self.topology.events if event.freq is not None}
        used = {freq for bss in self.air for _, freq in bss.freqs}
        return {f"air{freq}": freq for freq in sorted(used | moved)} if used else {}

    def wireless(self, node: str) -> bool:
        """Say whether a node has a radio."""
        return any(i.kind == "wlan" for i in self.interfaces[node])

    def router(self, node: str) -> bool:
        """Say whether a node forwards."""
        return self.topology.nodes[node].router is not None

    def address(self, target: str, version: int | None = None) -> str:
        """Return an address of a node, or of `node:interface`; "" when it has none of that family."""
        node, _, ifname = target.partition(":")
        for v in (version,) if version else self.families:
            for i in self.interfaces[node]:
                if (not ifname or i.name == ifname) and (found := i.host(v)):
                    return found
        return ""


def end_of(text: str) -> tuple[str, str]:
    """Split `node:interface`."""
    node, _, ifname = text.partition(":")
    return node, ifname


def mac(node: str, ifname: str, taken: set[str]) -> str:
    """Return a locally administered address made from the names: other nodes and links do not change it."""
    number = crc32(f"{node}:{ifname}".encode())
    while True:
        raw = f"{number & 0xFFFFFFFF:08x}"
        found = "02:00:" + ":".join(raw[n : n + 2] for n in (0, 2, 4, 6))
        if found not in taken:
            taken.add(found)
            return found
        number += 1


def link_local(address: str) -> str:
    """Return the link-local address of a MAC: modified EUI-64 (RFC 4291 appendix A)."""
    raw = bytes.fromhex(address.replace(":", ""))
    full = bytes((raw[0] ^ 2,)) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return f"{IPv6Address(_LINK_LOCAL + full)}/64"


def place_at(net: Network, event: Event) -> Place:
    """Return what a role may know of the node of an event, when earlier events have changed its addresses."""
    assert event.node is not None
    return next(place for known, place in net.places[event.node, event.at] if known == event)


def _places(net: Network, node: str) -> Iterator[tuple[Event, Place]]:
    if not net.happenings[node]:
        return
    here = net.place(node)
    for event in net.happenings[node]:
        yield event, here
        if event.address is not None:
            interface, gone, new = event.address.interface, event.address.remove, event.address.add
            here = replace(
                here,
                interfaces=tuple(
                    replace(i, addresses=(*(a for a in i.addresses if a != gone), *filter(None, (new,))))
                    if i.name == interface
                    else i
                    for i in here.interfaces
                ),
            )


def _root(parent: dict[int, int], n: int) -> int:
    """Return what stands for a number (union-find, with halved paths)."""
    while parent[n] != n:
        parent[n] = parent[parent[n]]
        n = parent[n]
    return n


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
    bare = Network(topology, {name: tuple(i) for name, i in made.items()})
    given = _addresses(bare, {(e.node, e.name) for e in found if e.stated is None})
    done = {
        name: tuple(replace(i, addresses=given.get((i.node, i.name), i.addresses)) for i in interfaces)
        for name, interfaces in bare.interfaces.items()
    }
    return _tunnelled(Network(topology, done))


def _tunnelled(net: Network) -> Network:
    """Return the network with AMT interfaces as narrow as what carries them, and bridges as their ports."""
    interfaces = dict(net.interfaces)
    for name, found in net.tunnels.items():
        streams = {i.name: i.mtu for i in interfaces[name] if i.kind != "amt"}
        inner = {t.name: streams[t.dev] - amt.HEADERS for t in found}
        mine = [replace(i, mtu=inner.get(i.name, i.mtu)) if i.kind == "amt" else i for i in interfaces[name]]
        least = min((i.mtu for i in mine if i.port), default=MTU)
        interfaces[name] = tuple(replace(i, mtu=min(i.mtu, least)) if i.kind == "bridge" else i for i in mine)
    return Network(net.topology, interfaces) if net.tunnels else net


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
            low, high = sorted((_root(parent, end.medium), _root(parent, first.setdefault(end.node, end.medium))))
            parent[high] = low
    return {n: _root(parent, n) for n in parent}


def _addresses(bare: Network, left_out: set[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Give every interface without stated addresses the next of its segment's network, in the order of the file."""
    left_out = {(i.node, i.name) for members in bare.segments.values() for i in members} & left_out
    stated = [interface_of(a) for members in bare.segments.values() for i in members for a in i.addresses]
    given: dict[tuple[str, str], list[str]] = {key: [] for key in left_out}
    for version in bare.families:
        used = [s.network for s in stated if s.version == version]
        take = _allocator(version, used)
        for _, members in sorted(bare.segments.items()):
            wanting = [i for i in members if (i.node, i.name) in left_out]
            own = [interface_of(a) for i in members for a in i.addresses if (":" in a) == (version == 6)]
            # A segment with stated addresses uses up its place in the pool all the same: to state the addresses of
            # one link changes those of no other.
            if own or not wanting:
                with suppress(NoRoom):
                    take(len(members), members[0].at)
            if not wanting:
                continue
            subnet = own[0].network if own else take(len(members), wanting[0].at)
            taken = {int(o.ip) for o in own}
            base = int(subnet.network_address)
            room = subnet.num_addresses - (2 if version == 4 else 1)
            host = 1
            for i in wanting:
                while base + host in taken:
                    host += 1
                if host > room:
                    raise NoRoom(f"{subnet} has no address left for {i.node}:{i.name}", i.at)
                given[i.node, i.name].append(f"{subnet[host]}/{subnet.prefixlen}")
                host += 1
    return {key: tuple(addresses) for key, addresses in given.items()}


def _allocator(version: int, used: list[Net]) -> Callable[[int, At], Net]:
    """Return a function from a number of members to the next free network of the pool.

    Each IPv4 network begins at a /24 of its own: 10.0.3.0/30 is the third segment, which a person can read.
    """
    pool = _POOLS[version]
    stride = 8 if version == 4 else 64
    ahead = sorted({(int(u.network_address), int(u.broadcast_address)) for u in used}, reverse=True)
    cursor = int(pool.network_address) + (1 << stride)

    def take(members: int, at: At) -> Net:
        nonlocal cursor
        bits = 64 if version == 6 else max(2, (members + 1).bit_length())
        size = 1 << max(stride, bits)
        while True:
            cursor = -(-cursor // size) * size
            if not ahead or ahead[-1][0] >= cursor + size:
                break  # the next network in use is further on
            cursor = max(cursor, ahead.pop()[1] + 1)
        if cursor + size - 1 > int(pool.broadcast_address):
            raise NoRoom(f"the pool {pool} has no network left: state addresses", at)
        found = ip_network((cursor, pool.max_prefixlen - bits))
        cursor += size
        return found

    return take
