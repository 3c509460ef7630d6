"""Topology -> steps: every name is decided here, and nothing is asked of the kernel (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from ipaddress import ip_address

from msgspec import Struct

from testbed import features
from testbed.drivers import tc
from testbed.drivers.bound import Bound
from testbed.drivers.hwsim import RadioAdd
from testbed.drivers.link import (
    MTU,
    AddressAdd,
    AutoAddressOff,
    BridgeAdd,
    LinkSet,
    LinksUp,
    NamespaceAdd,
    PortAdd,
    Silence,
    VethAdd,
)
from testbed.drivers.nl80211 import ChannelSet, CountrySet, FragmentationSet, WiphyMove, WlanAdd
from testbed.drivers.route import RouteAdd
from testbed.drivers.sysctl import SysctlSet
from testbed.features import Feature
from testbed.language.topology import Link, Topology
from testbed.nodes.node import rank
from testbed.nodes.place import Interface
from testbed.plan import routes as routing
from testbed.plan import trees
from testbed.plan.addresses import link_local, mac
from testbed.plan.assemble import network
from testbed.plan.network import Network, end_of
from testbed.steps import LAB, Configure, Request, Run, Step, Wait
from testbed.units import interface_of

_MANY = 64  # nodes on a segment, or ports of a bridge
_REPORTS = "20"  # ms: a whole number of ticks whatever a kernel has of them (100, 250, 300 or 1000 a second)


class Plan(Struct, frozen=True, dict=True):
    """What `up` performs: steps in order, and the lab's /etc/hosts."""

    name: str
    network: Network
    steps: tuple[Step, ...]
    hosts: str

    @property
    def topology(self) -> Topology:
        """Return the topology that this plan makes."""
        return self.network.topology

    @cached_property
    def requests(self) -> dict[str, list[tuple[int, Request]]]:
        """Return what each node's namespace is asked for, with the number of the step."""
        found: dict[str, list[tuple[int, Request]]] = {}
        for n, step in enumerate(self.steps):
            if isinstance(step, Configure):
                found.setdefault(step.node, []).append((n, step.request))
        return found

    def requires(self) -> tuple[Feature, ...]:
        """Return the features that the lab itself needs, without its workloads."""
        found: list[Feature] = [features.VETH] if self.topology.links else []
        if 6 in self.network.families and self.topology.links:
            found.append(features.IPV6)
        for node in self.topology.nodes.values():
            for role in node.roles().values():
                found += role.requires()
        for bss in self.network.air:
            for n, freq in bss.freqs:
                [own] = self.network.named[bss.node, bss.ifname]
                where = ".".join(map(str, own.at)) + (f".mlo_links[{n}]" if bss.mlo else "")
                found.append(features.channel(bss.country, freq, where))
        kinds = {k for link in self.topology.links for shape in link.shapes() for k in shape.kinds()}
        for event in self.topology.events:
            if event.set is not None:
                kinds |= {k for shape in event.set.shapes() for k in shape.kinds()}
            kinds |= {"plug"} if event.remove is False else set()
        found += [features.QDISCS[k] for k in sorted(kinds)]
        versions = {features.MROUTE: 4, features.MROUTE6: 6}
        return tuple(f for f in dict.fromkeys(found) if f not in versions or versions[f] in self.network.families)

    def bounds(self) -> tuple[Bound, ...]:
        """Return the bounds of the whole lab: none, or one of all that it states."""
        return _bounds(self.topology)

    def __str__(self) -> str:
        return "".join(f"{step}\n" for step in self.steps)


def outline(topology: Topology) -> Plan:
    """Return a plan without its steps: what it requires is known without them, in a third of the time."""
    return Plan(topology.name, network(topology), (), "")


def plan(topology: Topology) -> Plan:
    """Return the steps that make a topology; the same topology gives the same steps."""
    net = network(topology)
    order = sorted(net.interfaces, key=lambda name: max(map(rank, topology.nodes[name].roles()), default=0))
    routed = trees.members(net)
    roles = [step for name in order for step in _roles(net, name, name in routed)]
    early = [step for step in roles if _early(net, step)]
    late = [step for step in roles if not _early(net, step)]
    steps = (
        *(Configure(LAB, bound) for bound in _bounds(topology)),
        *_namespaces(net, early),
        *_links(net),
        *_radios(net),
        *_interfaces(net),
        *_bridges(net),
        *_routes(net),
        *_shaping(net),
        *late,
        *_multicast(net),
        *_commands(net),
        *_waits(net),
    )
    return Plan(topology.name, net, steps, _hosts(net))


def _bounds(topology: Topology) -> tuple[Bound, ...]:
    """Return the bounds of the whole lab, which come before anything that they count is made; none, or one."""
    bound = Bound(**dict(topology.resources))
    return (bound,) if bound.stated() else ()


def _roles(net: Network, name: str, multicast: bool) -> Iterator[Step]:
    node, place = net.topology.nodes[name], net.place(name)
    roles = tuple(node.started().values())
    for role in roles:
        yield from role.first(place)
    if 6 in net.families and any(_crowded(net, i) for i in net.interfaces[name]):
        # What a node says of its own accord goes to all the others: no question for routers, whose answer nobody
        # needs, and reports of groups (RFC 3810) at once, while the bridge does not pass them on yet.
        yield Configure(name, SysctlSet("net.ipv6.conf.default.router_solicitations", "0"))
        yield Configure(name, SysctlSet("net.ipv6.conf.default.mldv2_unsolicited_report_interval", _REPORTS))
    if multicast or any(role.loose() for role in roles):
        # What comes by another way than it would leave by, as the way of multicast need not be the way back, would be
        # dropped by a strict reverse path filter, which a namespace may inherit from the host.
        yield Configure(name, SysctlSet("net.ipv4.conf.all.rp_filter", "0"))
        yield Configure(name, SysctlSet("net.ipv4.conf.default.rp_filter", "0"))
    for role in roles:
        yield from role.steps(place)
    for key, value in node.sysctl.items():
        yield Configure(name, SysctlSet(key, str(value)))


def _crowded(net: Network, i: Interface) -> bool:
    """Say whether a frame to all that leaves by an interface has many receivers."""
    return i.kind == "veth" and not i.port and len(net.segments[i.segment]) > _MANY


def _early(net: Network, step: Step) -> bool:
    """Say whether a step is a parameter of the whole namespace: set as soon as that exists, while we are in it."""
    if not isinstance(step, Configure) or not isinstance(step.request, SysctlSet):
        return False
    names = {i.name for i in net.interfaces[step.node]}
    return names.isdisjoint(step.request.name.replace("/", ".").split("."))


def _namespaces(net: Network, early: list[Step]) -> Iterator[Step]:
    by_node: dict[str, list[Step]] = {}
    for step in early:
        by_node.setdefault(step.node, []).append(step)
    for name in net.interfaces:
        yield Configure(LAB, NamespaceAdd(name))
        yield from by_node.get(name, ())


def _links(net: Network) -> Iterator[Step]:
    taken = {i.mac for interfaces in net.interfaces.values() for i in interfaces}
    for name, switch in net.switches.items():
        own = next((i.mac for i in net.interfaces[name] if i.kind == "bridge"), "")
        address = own or mac(name, switch.name, taken)
        yield Configure(name, BridgeAdd(switch.name, address, switch.mcast_snooping, switch.stp))
    by_maker: dict[str, list[Step]] = {}
    ports: list[Step] = []
    for link in net.topology.links:
        near, far = _ends(net, link)
        pair = VethAdd(near.name, near.mac, far.node, far.name, far.mac, _master(net, near))
        by_maker.setdefault(near.node, []).append(Configure(near.node, pair))
        if far.port:
            ports.append(Configure(far.node, PortAdd(far.name, _master(net, far))))
    for steps in by_maker.values():
        yield from steps
    yield from ports


def _ends(net: Network, link: Link) -> tuple[Interface, Interface]:
    """Return both ends, first the one that makes the pair: a bridge port, so that it is born as one."""
    first, second = (_interface(net, text) for text in link.ends)
    return (second, first) if second.port and not first.port else (first, second)


def _interface(net: Network, text: str) -> Interface:
    return net.named[end_of(text)][0]


def _master(net: Network, interface: Interface) -> str:
    return net.switches[interface.node].name if interface.port else ""


def _radios(net: Network) -> Iterator[Step]:
    """Yield radios and their interfaces, and one monitor a channel that counts the frames on the medium.

    Radios are made in the lab's own namespace, for that decides who hears them, and then go to their nodes.
    """
    for country in dict.fromkeys(bss.country for bss in net.air):
        yield Configure(LAB, CountrySet(country))
    for name, node in net.topology.nodes.items():
        for i in net.interfaces[name]:
            if i.kind != "wlan":
                continue
            own = node.roles()[str(i.at[-1])].radio(net.place(name))
            assert own is not None
            radio = f"{name}-{i.name}"
            yield Configure(LAB, RadioAdd(radio, own.mlo))
            yield Configure(LAB, WiphyMove(radio, name))
            yield Configure(name, FragmentationSet(radio))
            yield Configure(name, WlanAdd(radio, i.name, own.mode, i.mac))
    for name, freq in net.ears.items():
        yield Configure(LAB, RadioAdd(name, mlo=False))
        yield Configure(LAB, WlanAdd(name, name, "monitor"))
        yield Configure(LAB, LinkSet(name, up=True))
        yield Configure(LAB, ChannelSet(name, freq))


def _interfaces(net: Network) -> Iterator[Step]:
    for name, interfaces in net.interfaces.items():
        yield Configure(name, LinkSet("lo", up=True))
        for i in interfaces:
            if i.kind == "wlan":
                yield from _wlan(net, i)
            if i.kind != "veth":
                continue
            if not i.port:
                yield from _enabled(net, i)
                yield Configure(name, AutoAddressOff(i.name))  # before an MTU below 1280 takes IPv6 off the interface
            if i.mtu != MTU:
                yield Configure(name, LinkSet(i.name, mtu=i.mtu))
            if i.port:
                continue
            for address in _addresses(i):
                yield Configure(name, address)
            yield Configure(name, LinkSet(i.name, up=True))
        for i in (i for i in interfaces if i.kind == "bridge"):
            yield from _enabled(net, i)
            yield Configure(name, AutoAddressOff(i.name))
            for address in _addresses(i):
                yield Configure(name, address)


def _bridges(net: Network) -> Iterator[Step]:
    """Yield bridges that come up, after all that they join: each port that comes to a running one costs more.

    A node reports the groups of its addresses as soon as it is up, a few times, _REPORTS and two ticks (20 ms) at
    most apart (net/ipv6/mcast.c: mld_ifc_start_work). A large bridge would copy each report to everybody, and what
    there is no room for in the processors' backlogs, first packets of others among it, would be lost.
    """
    bridges = [(name, switch.name) for name, switch in net.switches.items()]
    for name, bridge in bridges if 6 in net.families else ():
        if sum(i.port for i in net.interfaces[name]) > _MANY:
            yield Wait(name, Silence(bridge), steady=0.06, inline=True)
    for name, bridge in bridges:
        yield Configure(name, LinkSet(bridge, up=True))


def _enabled(net: Network, i: Interface) -> Iterator[Step]:
    """Yield IPv6 for an interface of a bridging node that is no port: there it is off unless said otherwise."""
    if i.node in net.switches and 6 in net.families:
        yield Configure(i.node, SysctlSet(f"net.ipv6.conf.{i.name.replace('.', '/')}.disable_ipv6", "0"))


def _wlan(net: Network, i: Interface) -> Iterator[Step]:
    """Yield a wireless interface that is up: hostapd and wpa_supplicant find it as they leave it.

    They may take it down and up again, and IPv6 addresses stay only if told so; the link-local one comes back by
    itself, without duplicate address detection, and nobody asks for routers.
    """
    if i.mtu != MTU:
        yield Configure(i.node, LinkSet(i.name, mtu=i.mtu))
    if not i.port:
        if 6 in net.families:
            yield from _enabled(net, i)
            conf = f"net.ipv6.conf.{i.name.replace('.', '/')}"
            for key, value in (("accept_dad", 0), ("router_solicitations", 0), ("keep_addr_on_down", 1)):
                yield Configure(i.node, SysctlSet(f"{conf}.{key}", str(value)))
        yield Configure(i.node, LinkSet(i.name, up=True))
        for address in i.addresses:
            yield Configure(i.node, AddressAdd(address, i.name))


def _addresses(interface: Interface) -> Iterator[AddressAdd]:
    if any(":" in a for a in interface.addresses):
        # Routers send neighbour solicitations from it (net/ipv6/ndisc.c: ndisc_send_ns).
        yield AddressAdd(link_local(interface.mac), interface.name)
    for address in interface.addresses:
        yield AddressAdd(address, interface.name)


def link_addresses(net: Network, node: str, ifname: str) -> list[AddressAdd]:
    """Return the IPv6 addresses of an interface, which the kernel drops with the link (addrconf.c)."""
    return [a for a in _addresses(_interface(net, f"{node}:{ifname}")) if ":" in a.address]


def _routes(net: Network) -> Iterator[Step]:
    static = net.topology.routing == "static"
    known = [routing.known(net, version) for version in net.families] if static else []
    for name, node in net.topology.nodes.items():
        if node.routes:
            for route in node.routes:
                dev = _towards(net, name, route.via)
                yield Configure(name, RouteAdd(route.to, dev, route.via))
        else:
            for request in routing.routes(net, name, known):
                yield Configure(name, request)
        for role in node.roles().values() if static else ():
            if (joins := role.joins(net.place(name))) is not None:
                for rule_or_route in routing.source_routes(net, name, joins, known):
                    yield Configure(name, rule_or_route)


def _towards(net: Network, node: str, via: str) -> str:
    gateway = ip_address(via)
    pairs = [(i, a) for i in net.interfaces[node] for a in i.addresses]
    return next(i.name for i, a in pairs if gateway in interface_of(a).network)


def _shaping(net: Network) -> Iterator[Step]:
    for link in net.topology.links:
        yield from shape(link)


def shape(link: Link) -> Iterator[Step]:
    """Yield both directions of a link as qdiscs, each at the end that sends."""
    for end, shape in link.directions():
        node, ifname = end_of(end)
        for qdisc in tc.shape(ifname, shape):
            yield Configure(node, qdisc)


def _multicast(net: Network) -> Iterator[Step]:
    entries = trees.entries(net)
    for name, node in net.topology.nodes.items():
        for role in node.roles().values():
            yield from role.forward(net.place(name), entries.get(name, ()))


def _commands(net: Network) -> Iterator[Step]:
    for name, node in net.topology.nodes.items():
        for argv in node.commands:
            yield Run(name, argv)


def _waits(net: Network) -> Iterator[Step]:
    """Await the ends that were up before their peer: the other ends had carrier when they came up.

    IPv6 needs the other ends as well: it begins to use an interface when that is operationally up (addrconf.c).
    """
    first: dict[str, list[str]] = {}
    order = {name: n for n, name in enumerate(net.interfaces)}
    for link in net.topology.links:
        near, far = _ends(net, link)
        early = near if near.port or order[near.node] <= order[far.node] else far
        for end in (near, far) if 6 in net.families else (early,):
            first.setdefault(end.node, []).append(end.name)
    for node, names in first.items():
        yield Wait(node, LinksUp(tuple(names)))


def _hosts(net: Network) -> str:
    rows = []
    for name, interfaces in net.interfaces.items():
        named = False
        for i in interfaces:
            for host in i.hosts():
                rows.append(f"{host} {name}-{i.name}" + ("" if named else f" {name}"))
            named = named or bool(i.addresses)
    return "".join(f"{row}\n" for row in rows)
