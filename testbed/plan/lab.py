"""Topology -> steps: every name is decided here, and nothing is asked of the kernel (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from msgspec import Struct

from testbed import features
from testbed.drivers.bound import Bound
from testbed.drivers.facts import Addressed
from testbed.drivers.link import LinksUp, NamespaceAdd
from testbed.drivers.sysctl import SysctlSet
from testbed.features import Feature
from testbed.language.moments import driven, moments
from testbed.language.topology import Topology
from testbed.nodes import service
from testbed.nodes.node import rank
from testbed.plan import interfaces, links, tables, trees
from testbed.plan.assemble import network
from testbed.plan.multipath import several
from testbed.plan.network import Network
from testbed.steps import LAB, Configure, Request, Run, Step, Wait


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
        found += self.topology.requires.needed()
        found += [features.MULTIPATH_SEED] if several(self.network) else []
        if 6 in self.network.families and self.topology.links:
            found.append(features.IPV6)
        for name, node in self.topology.nodes.items():
            found += service.requires(node.services)
            for role in node.roles().values():
                found += (*role.requires(), *role.needs(self.network.place(name)))
        for bss in self.network.air:
            for n, freq in bss.freqs:
                [own] = self.network.named[bss.node, bss.ifname]
                where = ".".join(map(str, own.at)) + (f".mlo_links[{n}]" if bss.mlo else "")
                found.append(features.channel(bss.country, freq, where))
        kinds = {k for link in self.topology.links for shape in link.shapes() for k in shape.kinds()}
        for m in moments(self.topology) if self.topology.events else ():
            if m.new is not None and m.new is not m.old:
                kinds |= {k for shape in m.new.shapes() for k in shape.kinds()}
            kinds |= {"plug"} if m.event.remove is False else set()
        kinds |= {"htb"} if driven(self.topology) else set()
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
        *links.made(net),
        *interfaces.radios(net),
        *interfaces.configured(net),
        *interfaces.bridges(net),
        *_made(net),
        *tables.steps(net),
        *links.shaping(net),
        *late,
        *_multicast(net),
        *_commands(net),
        *(step for name, node in topology.nodes.items() for step in service.steps(name, node.services)),
        *links.waits(net),
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
    if 6 in net.families and any(interfaces.crowded(net, i) for i in net.interfaces[name]):
        # Each message that a node sends unasked goes to all the others: no router solicitations, whose answer nobody
        # needs, and reports of groups (RFC 3810) at once, while the bridge does not pass them on yet.
        yield Configure(name, SysctlSet("net.ipv6.conf.default.router_solicitations", "0"))
        yield Configure(name, SysctlSet("net.ipv6.conf.default.mldv2_unsolicited_report_interval", interfaces.REPORTS))
    if tables.shared(net, name):
        # Each address answers and asks by its own interface only (ip-sysctl), not by any on the segment.
        yield Configure(name, SysctlSet("net.ipv4.conf.all.arp_ignore", "1"))
        yield Configure(name, SysctlSet("net.ipv4.conf.all.arp_announce", "2"))
    if multicast or any(role.loose() for role in roles):
        # What comes by another way than it would leave by, as the way of multicast need not be the way back, would be
        # dropped by a strict reverse path filter, which a namespace may inherit from the host.
        yield Configure(name, SysctlSet("net.ipv4.conf.all.rp_filter", "0"))
        yield Configure(name, SysctlSet("net.ipv4.conf.default.rp_filter", "0"))
    for role in roles:
        yield from role.steps(place)
    for key, value in node.sysctl.items():
        yield Configure(name, SysctlSet(key, str(value)))


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


def _multicast(net: Network) -> Iterator[Step]:
    entries = trees.entries(net)
    for name, node in net.topology.nodes.items():
        for role in node.roles().values():
            yield from role.forward(net.place(name), entries.get(name, ()))


def _made(net: Network) -> Iterator[Step]:
    """Yield the commands that make interfaces, which routes and endpoints need, and the waits for these."""
    for name, node in net.topology.nodes.items():
        if node.interfaces:
            yield from (Run(name, argv, inline=True) for argv in node.commands)
            yield Wait(name, LinksUp(tuple(node.interfaces)), inline=True)
            addresses = tuple(a.partition("/")[0] for made in node.interfaces.values() for a in made.addresses)
            if addresses:
                yield Wait(name, Addressed(addresses), inline=True)


def _commands(net: Network) -> Iterator[Step]:
    for name, node in net.topology.nodes.items():
        for argv in node.commands if not node.interfaces else ():
            yield Run(name, argv)


def _hosts(net: Network) -> str:
    rows = []
    for name, mine in net.interfaces.items():
        named = False
        for i in mine:
            for host in i.hosts():
                rows.append(f"{host} {name}-{i.name}" + ("" if named else f" {name}"))
            named = named or bool(i.addresses)
    return "".join(f"{row}\n" for row in rows)
