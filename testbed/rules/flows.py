"""Flows that work and not as their protocol suggests: what the roles of both ends say (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from testbed.language.document import Path
from testbed.language.topology import Topology
from testbed.nodes.node import ROLES
from testbed.nodes.one_path import Flow
from testbed.plan.assemble import network
from testbed.plan.network import Network
from testbed.plan.run import reach
from testbed.plan.tables import leads, way_out

Found = tuple[str, Path, str, str]  # the name of a warning, and where, what and what to do


def faults(topology: Topology, name: str) -> Iterator[tuple[Path, str, str]]:
    """Yield (path, sentence, hint) of the warnings of a name."""
    yield from ((path, why, hint) for found, path, why, hint in _found(topology) if found == name)


@lru_cache(maxsize=1)
def _found(topology: Topology) -> tuple[Found, ...]:
    return tuple(_warned(topology))


def _warned(topology: Topology) -> Iterator[Found]:
    for name, work in topology.workloads.items():
        flow = work.iperf3 or work.transfer
        if flow is None or flow.speaks not in ROLES:
            continue
        at: Path = ("workloads", name, work.kind())
        net = network(topology)
        plain = [n for n in (flow.from_, flow.to) if flow.speaks not in topology.nodes[n].roles()]
        for node in plain:
            why = f"{node} is not {ROLES[flow.speaks].called}: the kernel's defaults hold there, and it has no figures"
            yield "mptcp-role", (*at, "protocol"), why, f"give the node `{flow.speaks}: {{}}`"
        for node in (flow.from_, flow.to):
            yield from ((kind, at, why, hint) for kind, why, hint in _off(topology, node))
        moving = {e.node for e in topology.events} & {flow.from_, flow.to}
        stated = any(topology.nodes[n].routes is not None for n in (flow.from_, flow.to))
        family = {"ipv4": 4, "ipv6": 6, None: None}[flow.family]
        to = reach(net, flow.from_, flow.to + (f":{flow.to_interface}" if flow.to_interface else ""), family)
        if plain or moving or stated or not to or topology.routing == "none":
            continue  # what events and stated routes come to is not known beforehand
        own, other = (topology.nodes[n].roles()[flow.speaks] for n in (flow.from_, flow.to))
        for kind, why, hint in own.warned(_flow(net, flow.from_, flow.to, to), other):
            yield kind, at, why, hint


_OFF, _USER = ("net.mptcp.enabled",), ("net.mptcp.pm_type", "net.mptcp.path_manager")


def _off(topology: Topology, node: str) -> Iterator[tuple[str, str, str]]:
    """Yield kernel parameters, of a node or of its events, with which MPTCP does not do what a flow is for."""
    given = [topology.nodes[node].sysctl, *(e.sysctl for e in topology.events if e.node == node and e.sysctl)]
    stated = [(key.replace("/", "."), str(value).strip()) for some in given for key, value in some.items()]
    for key, value in stated:
        if key in _OFF and value == "0":
            yield "mptcp-off", f"{key} is 0 at {node}: no program opens an MPTCP socket there", "leave it out"
        elif key in _USER and value in ("1", "userspace"):
            why = f"{key} leaves the paths of {node} to a program, and none is started"
            yield "mptcp-no-manager", why, "write `path_manager: userspace` instead"


def _flow(net: Network, client: str, server: str, to: str) -> Flow:
    hosts = [h for i in net.interfaces[server] for h in i.hosts()]
    mine = [i for i in net.interfaces[client] if i.addresses and not i.port]
    pairs = [(i.name, h) for i in mine for h in hosts if i.host(6 if ":" in h else 4)]
    led = frozenset((name, h) for name, h in pairs if leads(net, client, name, h))
    out = {h: way for h in hosts if (way := way_out(net, client, h))}
    return Flow(net.place(client), net.place(server), to, out, led)
