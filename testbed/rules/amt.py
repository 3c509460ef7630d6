"""What can't work between AMT gateways and relays: no way, too narrow links, ports that differ (pure)."""

from __future__ import annotations

from collections.abc import Iterator

from testbed.drivers.amt import HEADERS, LEAST_MTU
from testbed.language.document import Fault, Path
from testbed.nodes.amt_gateway import AmtGateway
from testbed.nodes.place import Tunnel
from testbed.plan import tunnels
from testbed.plan.network import Network

_IPV6_MTU = 1280  # RFC 8200 section 5


def faults(net: Network) -> Iterator[Fault]:
    """Yield what can't work between nodes."""
    for name, node in net.topology.nodes.items():
        if node.amt_gateway is not None:
            yield from _gateway_faults(net, name, node.amt_gateway)
        if node.amt_relay is not None:
            yield from _relay_faults(net, name)


def _gateway_faults(net: Network, name: str, role: AmtGateway) -> Iterator[Fault]:
    at: Path = ("nodes", name, "amt_gateway")
    end = tunnels.gateway(net, name)
    if isinstance(end, tuple):
        yield end
    elif end is not None:
        yield from _narrow(net, end, at)
        master = net.topology.nodes[name].bridge
        if master is not None and end.dev == master.name and any(i.port for i in tunnels.of(net, name, role.name)):
            yield at, f"{role.name} is a port of {end.dev}, which carries its tunnel: leave it out of `ports`", ""
    there = net.topology.nodes.get(tunnels.named(role))
    if there is None or there.amt_relay is None:
        return
    if role.relay_port != (port := there.amt_relay.port):
        yield (*at, "relay_port"), f"relay_port {role.relay_port} is not the port of {tunnels.named(role)}, {port}", ""
    own = net.topology.nodes[name].amt_relay
    if own is not None and own.port == role.relay_port:
        message = f"the node's gateway already uses UDP port {own.port}: every AMT interface needs a port of its own"
        yield ("nodes", name, "amt_relay"), message, "give this relay another `port`"


def _relay_faults(net: Network, name: str) -> Iterator[Fault]:
    at: Path = ("nodes", name, "amt_relay")
    node = net.topology.nodes[name]
    assert node.amt_relay is not None
    if node.router is None:
        yield at, "a relay must be a multicast router", "give the node `router: {multicast: true}`"
    gateways, end = net.relays[name].gateways, net.relays[name].end
    if isinstance(end, tuple):
        # Which interface it is, a gateway would tell that names no relay.
        yield from () if end[0] == at and any(_astray(net, n) for n in net.topology.nodes) else (end,)
    elif not any(list(_narrow(net, t, at)) for g in gateways for t in _mine(net, g)):
        yield from _narrow(net, end, at)
    if (count := len(gateways)) > (most := node.amt_relay.max_tunnels):
        who = ", ".join(gateways[:4]) + (", ..." if count > 4 else "")
        yield (*at, "max_tunnels"), f"{count} gateways have {name} as their relay ({who}), and it takes {most}", ""


def _astray(net: Network, name: str) -> bool:
    role = net.topology.nodes[name].amt_gateway
    there = net.topology.nodes.get(tunnels.named(role)) if role is not None else None
    return role is not None and (there is None or there.amt_relay is None or tunnels.named(role) == name)


def _mine(net: Network, gateway: str) -> list[Tunnel]:
    return [t for t in net.tunnels.get(gateway, ()) if t.discovery]


def _narrow(net: Network, end: Tunnel, at: Path) -> Iterator[Fault]:
    [stream] = tunnels.of(net, end.node, end.dev)
    inner = stream.mtu - HEADERS
    what = f"{end.dev} takes packets of {stream.mtu} bytes, of which {HEADERS} are the tunnel's headers"
    if stream.mtu < LEAST_MTU:
        yield at, f"{what}: an AMT interface needs at least {LEAST_MTU}", ""
    elif 6 in net.families and inner < _IPV6_MTU:
        hint = f"an mtu of at least {_IPV6_MTU + HEADERS}, or `families: [ipv4]`"
        yield at, f"{what}: {inner} are left, and IPv6 needs {_IPV6_MTU} (RFC 8200 section 5)", hint
