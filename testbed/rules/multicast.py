"""What does not fit together of a multicast workload: receivers, their joins, and the way to them (pure)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice

from testbed.drivers import amt
from testbed.language.document import Fault, Path
from testbed.language.explain import suggest
from testbed.nodes.place import Interface
from testbed.plan import trees
from testbed.plan.network import Network, Tree, path
from testbed.workloads.multicast import HEADERS, Multicast, Receiver, misfit, source_specific


def faults(net: Network, name: str, work: Multicast, nodes: Collection[str], certain: bool) -> Iterator[Fault]:
    """Yield (path, sentence, hint); without `certain` only what no fault of links or nodes can have brought about."""
    at: Path = ("workloads", name, "multicast")
    sound = not misfit(work.group)
    seen: set[str] = set()
    known = True
    for n, receiver in enumerate(work.receivers):
        where = (*at, "receivers", n)
        if receiver.node not in nodes:
            known = False
            names = ", ".join(islice(nodes, 8))
            hint = suggest(receiver.node, nodes) or f"there are: {names}"
            yield _node(where), f"there is no node {receiver.node!r}", hint
        elif receiver.node == work.source:
            yield _node(where), f"{work.source} is the source: it can't also be a receiver", ""
        elif receiver.node in seen:
            yield _node(where), f"{receiver.node} is already a receiver: a node has one receiver for each workload", ""
        seen.add(receiver.node)
        if receiver.seconds is not None and receiver.at is None:
            yield (*where, "seconds"), "`seconds` count from the time of the join: give `at` as well", ""
        if sound and receiver.any_source and source_specific(work.group):
            why = "which a host can't join for all sources (RFC 4607)"
            what = f"{work.group} is in the range of source-specific multicast, {why}"
            yield (*where, "any_source"), what, "use a group outside of 232.0.0.0/8 and ff3x::/32, or remove this"
    if sound and work.version not in net.families:
        yield (
            (*at, "group"),
            f"{work.group} is an IPv{work.version} group, and `families` does not include that version",
            "",
        )
    elif sound and known and certain:
        yield from _ways(net, net.trees.get(name), work, at)


def crowded(net: Network) -> Iterator[Fault]:
    """Yield gateways with more memberships than a tunnel keeps: the driver silently drops the rest.

    It counts each group of each host, also those that IPv6 itself joins (RFC 4291 section 2.7.1: one for each address
    but equal ends, here one link-local and one other).
    """
    ends = [(name, t.name) for name in net.topology.nodes for t in net.tunnels.get(name, ()) if t.discovery]
    joined = _joined(net) if ends else {}
    for name, ifname in ends:
        for at, segment in ((i.at, i.segment) for i in net.interfaces[name] if i.name == ifname):
            hosts = [i for i in net.segments.get(segment, ()) if i.host(6)]
            # What is joined there by receivers, and by the gateway for others.
            pairs = {(node or name, group) for node, group in joined.get(segment, ())}
            if (count := len(pairs) + 2 * len(hosts)) > amt.GROUPS:
                own = f", with {2 * len(hosts)} that IPv6 needs itself" if hosts else ""
                message = f"{count} memberships are behind this gateway{own}, and a tunnel keeps {amt.GROUPS}"
                yield at, message, "use more gateways, fewer groups or fewer receivers"


def _joined(net: Network) -> dict[int, set[tuple[str, str]]]:
    """Return (receiver, group) of what is joined in each segment; "" for receivers that are further away."""
    joined: dict[int, set[tuple[str, str]]] = {}
    for name, tree in net.trees.items():
        work = net.topology.workloads[name].multicast
        assert work is not None
        for node, end in tree.ends.items():
            for hop in path(tree.into, end.segment):
                joined.setdefault(hop.far, set()).add((node if end.segment == hop.far else "", work.group))
    return joined


def _node(where: Path) -> Path:
    """Return the path of a receiver's name; a short form, which is the name itself, is found by it as well."""
    return (*where, "node")


def _ways(net: Network, tree: Tree | None, work: Multicast, at: Path) -> Iterator[Fault]:
    if tree is None:
        hint = "it has no interface" if not net.interfaces[work.source] else ""
        yield (*at, "source"), f"{work.source} has no IPv{work.version} address", hint
        return
    for n, receiver in enumerate(work.receivers):
        if receiver.node not in tree.ends and receiver.node != work.source:
            yield from _unreached(net, work, receiver, (*at, "receivers", n))
    if work.ttl <= tree.depth:
        message = f"a ttl of {work.ttl} passes {work.ttl - 1} routers, and the path has {tree.depth}"
        yield (*at, "ttl"), message, f"give at least {tree.depth + 1}"
    mtu = min(i.mtu for i in _passed(net, tree))
    if work.size + HEADERS[work.version] > mtu:
        most = mtu - HEADERS[work.version]
        message = f"with the UDP and IPv{work.version} headers, this is more than the mtu of {mtu} on the path"
        yield (*at, "size"), message, f"give at most {most}b"


def _unreached(net: Network, work: Multicast, receiver: Receiver, where: Path) -> Iterator[Fault]:
    place = net.place(receiver.node)
    if receiver.interface is not None and place.interface(receiver.interface) is None:
        hint = suggest(receiver.interface, [i.name for i in place.interfaces])
        yield (*where, "interface"), place.lacks(receiver.interface), hint
    elif not any(trees.ends(net, receiver.node, work.version)):
        yield _node(where), f"{receiver.node} has no IPv{work.version} address", ""
    else:
        by = f"{receiver.node}:{receiver.interface}" if receiver.interface else receiver.node
        yield (_node(where), f"multicast from {work.source} has no way to {by}: {_why(net, work)}", _cure(net, work))


def _why(net: Network, work: Multicast) -> str:
    if work.source in net.multicast_routers:
        return "a router does not forward what it sends itself, so its packets stay on one link"
    return "no path of links, bridges and multicast routers"


def _cure(net: Network, work: Multicast) -> str:
    if work.source in net.multicast_routers:
        return f"let a host of its own, behind {work.source}, be the source"
    lacking = sorted(net.routers - net.multicast_routers)
    if not lacking:
        return ""
    few = ", ".join(lacking[:4]) + (", ..." if lacking[4:] else "")
    return f"routers on the way need `router: {{multicast: true}}`, also if other daemons route; without it: {few}"


def _passed(net: Network, tree: Tree) -> Iterator[Interface]:
    """Yield every interface on the way, ports of bridges too."""
    out, segments = {(hop.node, hop.oif) for hop in tree.into.values()}, tree.segments
    for interfaces in net.interfaces.values():
        yield from (i for i in interfaces if i.segment in segments or (i.node, i.name) in out)
