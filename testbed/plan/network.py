"""The planned network: interfaces with their addresses, segments, radios, tunnels, ways of multicast (data)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import translate
from functools import cached_property
from re import compile as compiled

from msgspec import Struct
from msgspec.structs import replace

from testbed.language.document import Fault
from testbed.language.moments import moments
from testbed.language.topology import Event, Topology
from testbed.nodes.place import Bss, Interface, Place, Tunnel
from testbed.nodes.role import Switch
from testbed.steps import AIR

WILD = compiled(r"[*?\[]")


class Graph(Struct, frozen=True, dict=True):
    """The routers of each segment, and the segments of each router, by interfaces that have addresses of a family."""

    routers: dict[int, tuple[str, ...]]
    segments: dict[str, tuple[int, ...]]

    @cached_property
    def parts(self) -> dict[int, int]:
        """Return for each segment one that stands for all that routers join it to."""
        found = {s: s for s in self.routers}
        for mine in self.segments.values():
            for s in mine[1:]:
                found[root(found, s)] = root(found, mine[0])
        return {s: root(found, s) for s in found}


class Relay(Struct, frozen=True):
    """A relay: the nodes whose gateways are to find it, its end of their tunnels, or what is wrong with that.

    `ways` has the interface by which planned routes lead to each segment of these nodes.
    """

    gateways: tuple[str, ...]
    ways: dict[int, str]
    end: Tunnel | Fault


class Hop(Struct, frozen=True):
    """A router that takes packets of segment `near` by `iif` can send them by `oif` into segment `far`."""

    node: str
    iif: str
    near: int
    oif: str
    far: int


class Spot(Struct, frozen=True):
    """An interface where packets can be sent or received."""

    node: str
    ifname: str
    segment: int


class Tree(Struct, frozen=True):
    """The way of a multicast workload: where its source sends, and the interface of each receiver that is reached.

    `host` is the address of the source. `into` has the hop that leads into each segment on the way, `depth` is the
    most routers before a receiver.
    """

    source: Spot
    host: str
    ends: dict[str, Spot]
    into: dict[int, Hop]
    depth: int

    @property
    def segments(self) -> frozenset[int]:
        """Return every segment that packets to receivers pass."""
        return frozenset((self.source.segment, *self.into))


class Network(Struct, frozen=True, dict=True):
    """What the plan adds to a topology; `assemble.network` fills it, and everything here only looks it up.

    A segment is what one broadcast reaches: links joined by bridges. `segments` are without ports of bridges, `graphs`
    are by family (4, 6), `relays` and `tunnels` by node, `trees` by workload.
    """

    topology: Topology
    interfaces: dict[str, tuple[Interface, ...]]
    segments: dict[int, tuple[Interface, ...]]
    air: tuple[Bss, ...] = ()
    graphs: dict[int, Graph] = {}
    relays: dict[str, Relay] = {}
    tunnels: dict[str, tuple[Tunnel, ...]] = {}
    trees: dict[str, Tree] = {}

    @cached_property
    def families(self) -> tuple[int, ...]:
        """Return the IP versions in use."""
        return families(self.topology)

    @cached_property
    def named(self) -> dict[tuple[str, str], tuple[Interface, ...]]:
        """Return interfaces by node and name; a name that a file gives twice is a fault that is still to be told."""
        found: dict[tuple[str, str], tuple[Interface, ...]] = {}
        for interfaces in self.interfaces.values():
            for i in interfaces:
                found[i.node, i.name] = (*found.get((i.node, i.name), ()), i)
        return found

    @cached_property
    def switches(self) -> dict[str, Switch]:
        """Return the Ethernet switches by the nodes that have one."""
        return {name: switch for name, node in self.topology.nodes.items() if (switch := node.switch()) is not None}

    @cached_property
    def routers(self) -> frozenset[str]:
        """Return the nodes that forward."""
        roles = {name: node.roles().values() for name, node in self.topology.nodes.items()}
        return frozenset(name for name, own in roles.items() if any(role.forwards() for role in own))

    @cached_property
    def multicast_routers(self) -> frozenset[str]:
        """Return the nodes that forward multicast."""
        roles = {name: node.roles().values() for name, node in self.topology.nodes.items()}
        return frozenset(name for name, own in roles.items() if any(role.routes_multicast() for role in own))

    @cached_property
    def devices(self) -> tuple[tuple[str, str], ...]:
        """Return (node, name) of every interface, then of bridges, then of what hears the medium, the lab's own."""
        found = [(i.node, i.name) for interfaces in self.interfaces.values() for i in interfaces]
        found += [(node, switch.name) for node, switch in self.switches.items()]
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
                mine = [root(found, i.segment) for i in interfaces if not i.port]
                found.update(dict.fromkeys(mine, min(mine, default=0)))
        return {segment: root(found, segment) for segment in found}

    @cached_property
    def happenings(self) -> dict[str, list[Event]]:
        """Return the events of each node in the order of time."""
        found: dict[str, list[Event]] = {name: [] for name in self.interfaces}
        for event in (m.event for m in moments(self.topology)) if self.topology.events else ():
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

    @cached_property
    def ears(self) -> dict[str, int]:
        """Return the lab's monitor interfaces, one for each frequency (MHz) that is used, also after an event."""
        moved = {event.freq for event in self.topology.events if event.freq is not None}
        used = {freq for bss in self.air for _, freq in bss.freqs}
        return {f"air{freq}": freq for freq in sorted(used | moved)} if used else {}

    def place(self, node: str) -> Place:
        """Return what a role may know of its node."""
        switch = self.switches[node].name if node in self.switches else ""
        stated = self.topology.nodes[node]
        forwards = any(role.forwards() for role in stated.roles().values())
        own = (self.tunnels.get(node, ()), stated.sysctl, stated.commands, forwards, self.topology.routing != "none")
        return Place(node, self.interfaces[node], self.families, self.air, switch, *own)

    def place_at(self, event: Event) -> Place:
        """Return what a role may know of the node of an event, when earlier events have changed its addresses."""
        assert event.node is not None
        return next(place for known, place in self.places[event.node, event.at] if known == event)

    def wireless(self, node: str) -> bool:
        """Say whether a node has a radio."""
        return any(i.kind == "wlan" for i in self.interfaces[node])

    def link_ids(self, node: str) -> dict[str, dict[int, int]]:
        """Return the planned links of each wireless interface of a node: link ids by frequency (MHz)."""
        place = self.place(node)
        radios = filter(None, (role.radio(place) for role in self.topology.nodes[node].roles().values()))
        return {radio.ifname: {freq: n for n, freq in radio.links} for radio in radios}

    def router(self, node: str) -> bool:
        """Say whether a node forwards."""
        return node in self.routers

    def leads(self, source: str, target: str) -> bool:
        """Say whether links and routers lead from a node to `node:interface`, whatever other ways that node has."""
        node, _, ifname = target.partition(":")
        mine = {self.joined[i.segment] for i in self.interfaces[source] if not i.port}
        return any(self.joined[i.segment] in mine for i in self.interfaces[node] if i.name == ifname and not i.port)

    def address(self, target: str, version: int | None = None) -> str:
        """Return an address of a node, or of `node:interface`; "" when it has none of that family."""
        node, _, ifname = target.partition(":")
        for v in (version,) if version else self.families:
            for i in self.interfaces[node]:
                if (not ifname or i.name == ifname) and (found := i.host(v)):
                    return found
        return ""

    def captured(self, pattern: str) -> list[tuple[str, str]]:
        """Return the (node, interface) pairs that a pattern matches."""
        node, colon, ifname = pattern.partition(":")
        if colon and not WILD.search(pattern):
            return [(node, ifname)] if ifname in self.devices_of.get(node, ()) else []
        whole = compiled(translate(pattern)).match
        some = self.devices if WILD.search(node) else [(node, i) for i in self.devices_of.get(node, ())]
        return [(n, i) for n, i in some if whole(f"{n}:{i}")]


def families(topology: Topology) -> tuple[int, ...]:
    """Return the IP versions in use."""
    return tuple({"ipv4": 4, "ipv6": 6}[f] for f in dict.fromkeys(topology.families))


def end_of(text: str) -> tuple[str, str]:
    """Split `node:interface`."""
    node, _, ifname = text.partition(":")
    return node, ifname


def path(into: Mapping[int, Hop], segment: int) -> Iterator[Hop]:
    """Yield the hops from a segment back to the source of a tree."""
    while (hop := into.get(segment)) is not None:
        yield hop
        segment = hop.near


def root(parent: dict[int, int], n: int) -> int:
    """Return what stands for a number (union-find, with halved paths)."""
    while parent[n] != n:
        parent[n] = parent[parent[n]]
        n = parent[n]
    return n


def _places(net: Network, node: str) -> Iterator[tuple[Event, Place]]:
    if not net.happenings[node]:
        return
    place = net.place(node)
    for event in net.happenings[node]:
        yield event, place
        if event.address is not None:
            interface, gone, new = event.address.interface, event.address.remove, event.address.add
            place = replace(
                place,
                interfaces=tuple(
                    replace(i, addresses=(*(a for a in i.addresses if a != gone), *filter(None, (new,))))
                    if i.name == interface
                    else i
                    for i in place.interfaces
                ),
            )
