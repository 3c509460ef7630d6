"""What is wrong with workloads: nodes that are missing, and flows without a way (pure)."""

from __future__ import annotations

from collections.abc import Iterator

from testbed.language.document import Fault, Path
from testbed.language.explain import Names, suggest
from testbed.language.topology import NODE, Work
from testbed.plan.network import Network
from testbed.rules import multicast
from testbed.rules.fault import there_are
from testbed.rules.segments import too_far
from testbed.workloads.place import FIRST_PORT


def faults(net: Network, nodes: Names, doubt: set[str]) -> Iterator[Fault]:
    """Yield (path, sentence, hint) for each fault."""
    for name, work in net.topology.workloads.items():
        at = ("workloads", name)
        if not NODE.fullmatch(name) or "." in name:
            what = "a letter or digit, then letters, digits, _ and -, at most 32 in all"
            yield at, f"{name!r} is not a valid name of a workload: {what}", ""
        if not (kind := work.kind()):
            yield at, f"a workload needs exactly one of the keys {', '.join(Work.model_fields)}", ""
            continue
        workload = work.workload()
        for field, message in workload.faults():
            yield (*at, kind, field), message, ""
        unknown = [(field, node) for field, node in workload.ends() if node not in nodes]
        for field, node in unknown:
            yield (*at, kind, field), f"there is no node {node!r}", suggest(node, nodes) or there_are(nodes)
        if work.multicast is not None:
            certain = not unknown and not doubt & {"nodes", "links"}
            yield from multicast.faults(net, name, work.multicast, nodes, certain)
        elif not unknown and len(workload.ends()) == 2 and not doubt & {"nodes", "links"}:
            yield from _flow(net, work, (*at, kind))
    yield from _ports(net, doubt)


def _ports(net: Network, doubt: set[str]) -> Iterator[Fault]:
    """Yield flows whose servers would listen on one port of a node."""
    taken: dict[tuple[str, int], str] = {}
    for n, (name, work) in enumerate(net.topology.workloads.items()):
        flow = work.iperf3 or work.transfer
        if work.kind() and flow is not None and "workloads" not in doubt:
            port = flow.port or FIRST_PORT + n
            other = taken.setdefault((flow.to, port), name)
            if other != name:
                cure = "give one of them another `port`"
                field = name if flow.port is not None else other
                yield (
                    ("workloads", field, net.topology.workloads[field].kind(), "port"),
                    f"the servers of {other} and {name} would both listen on port {port} of {flow.to}",
                    cure,
                )


def _flow(net: Network, work: Work, at: Path) -> Iterator[Fault]:
    workload = work.workload()
    (_, source), (_, target) = workload.ends()
    if source == target:
        yield (*at, "to"), f"{source} is both ends: a flow needs two different nodes", ""
        return
    bound = getattr(workload, "bind", None)
    if bound is not None and net.place(source).interface(bound) is None:
        own = [i.name for i in net.place(source).interfaces]
        yield (*at, "bind"), net.place(source).lacks(bound), suggest(bound, own)
        return
    ifname = getattr(workload, "to_interface", None)
    place = net.place(target)
    if ifname is not None and place.interface(ifname) is None:
        yield (*at, "to_interface"), place.lacks(ifname), suggest(ifname, [i.name for i in place.interfaces])
        return
    for field, node in (("from", source), ("to", target)):
        if not net.interfaces[node]:
            yield (*at, field), f"{node} has no interface: no link ends there", ""
            return
    if bound is not None and not net.address(f"{source}:{bound}"):
        yield (*at, "bind"), f"{bound} of {source} has no address", ""
        return
    wanted = {"ipv4": (4,), "ipv6": (6,), None: net.families}[getattr(workload, "family", None)]
    end = f"{target}:{ifname or ''}"
    if not any(net.address(end, v) and net.address(source, v) for v in wanted):
        lacking = target if not any(net.address(end, v) for v in wanted) else source
        hint = "it is a bridge, whose ports have no addresses" if lacking in net.switches else ""
        yield (*at, "to"), f"{lacking} has no {' or '.join(f'IPv{v}' for v in wanted)} address", hint
        return
    if not reachable(net, source, target):
        why = "no path of links, bridges and routers joins them"
        cure = "a node between them needs `router: {}` or `bridge: {}`"
        yield (*at, "to"), f"{target} cannot be reached from {source}: {why}", cure
    elif ifname is not None and not net.leads(source, end):
        why = f"no routers join its segment with those of {source}, and {target} is not a router"
        cure = f"leave `to_interface` out, or give {target} `router: {{}}`"
        yield (*at, "to_interface"), f"{end} cannot be reached from {source}: {why}", cure
    else:
        version = next(v for v in wanted if net.address(end, v) and net.address(source, v))
        message, cure = too_far(net, source, target, version)
        if message:
            yield (*at, "to"), message, cure


def reachable(net: Network, source: str, target: str) -> bool:
    """Say whether packets have a way between two nodes: shared segments, and routers between segments."""
    mine, theirs = ({net.joined[i.segment] for i in net.interfaces[n] if not i.port} for n in (source, target))
    return not mine.isdisjoint(theirs)
