"""Steps that make links: pairs of interfaces, bridges with their ports, shaping, and waits for carrier (pure)."""

from __future__ import annotations

from collections.abc import Iterator

from testbed.drivers import tc
from testbed.drivers.link import FORWARD_DELAY, BridgeAdd, LinksUp, PortAdd, TreeStands, VethAdd
from testbed.language.moments import driven
from testbed.language.topology import WAYS, Link
from testbed.nodes.place import Interface
from testbed.plan.addresses import mac
from testbed.plan.network import Network, end_of
from testbed.steps import START, Configure, Step, Wait


def made(net: Network) -> Iterator[Step]:
    """Yield bridges, then the pairs of interfaces, and ports that are not born as ones."""
    taken = {i.mac for interfaces in net.interfaces.values() for i in interfaces}
    for name, switch in net.switches.items():
        own = next((i.mac for i in net.interfaces[name] if i.kind == "bridge"), "")
        address = own or mac(name, switch.name, taken)
        yield Configure(name, BridgeAdd(switch.name, address, switch.mcast_snooping, switch.stp, switch.forward_delay))
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
    first, second = (net.named[end_of(text)][0] for text in link.ends)
    return (second, first) if second.port and not first.port else (first, second)


def _master(net: Network, interface: Interface) -> str:
    return net.switches[interface.node].name if interface.port else ""


def shaping(net: Network) -> Iterator[Step]:
    """Yield the queue disciplines of every link."""
    fast = driven(net.topology)
    for n, link in enumerate(net.topology.links):
        for way, (end, shape) in zip(WAYS, link.directions(), strict=True):
            node, ifname = end_of(end)
            for shaper in tc.driven(ifname, shape) if (n, way) in fast else tc.shape(ifname, shape):
                yield Configure(node, shaper)


def waits(net: Network) -> Iterator[Step]:
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
    for node, switch in net.switches.items():
        if switch.stp:
            delay = switch.forward_delay if switch.forward_delay is not None else FORWARD_DELAY
            yield Wait(node, TreeStands(switch.name), 2 * delay + START)
