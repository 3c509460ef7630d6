"""What no single value shows: names that must exist, addresses that must fit, flows that must have a way (pure).

Every fault is (path in the file, sentence, hint). Links with a fault are left out of the planned network, so
that the rest of the file is judged all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_interface, ip_network
from itertools import pairwise

from testbed.addressing import Network, end_of, hops, network
from testbed.document import Path
from testbed.topology import NAME, NODE, Event, Link, Topology, Work, suggest

Fault = tuple[Path, str, str]
_SYSCTL = re.compile(r"net\.[A-Za-z0-9_./-]+")
_METRIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.[A-Za-z0-9_.%-]+")


def faults(topology: Topology, nodes: tuple[str, ...]) -> Iterator[Fault]:
    """Yield everything that does not fit together; `nodes` are all that the file names, faulty ones too."""
    if not NAME.fullmatch(topology.name):
        yield (
            ("name",),
            f"{topology.name!r} is no name of a lab: a-z, then a-z, 0-9 and -, at most 40 in all",
            "",
        )
    for name in nodes:
        if not NODE.fullmatch(name):
            yield ("nodes", name), f"{name!r} is no name of a node: letters, digits, _ . -, at most 32", ""
    found = list(_links(topology, nodes))
    yield from found
    bad = {path[1] for path, _, _ in found}
    index = [n for n in range(len(topology.links)) if n not in bad]
    sound = topology.model_copy(update={"links": tuple(topology.links[n] for n in index)})
    try:
        net = network(sound)
    except ValueError as e:
        yield ("links",), str(e), ""
        return
    for path, message, hint in _addresses(net):
        yield ("links", index[int(path[1])], *path[2:]), message, hint
    yield from _nodes(net)
    yield from _workloads(net, nodes)
    yield from _captures(net, nodes)
    yield from _events(topology, net, nodes)
    yield from _checks(topology, nodes)


def _links(topology: Topology, nodes: tuple[str, ...]) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    names: dict[str, int] = {}
    for n, link in enumerate(topology.links):
        at = ("links", n)
        if link.name is not None:
            if link.name in names:
                yield (
                    (*at, "name"),
                    f"a link named {link.name!r} is there already (links[{names[link.name]}])",
                    "",
                )
            names[link.name] = n
            if ":" in link.name or not link.name:
                yield (
                    (*at, "name"),
                    f"{link.name!r} is no name of a link: it may not have a colon or be empty",
                    "",
                )
        for e, text in enumerate(link.ends):
            place = (*at, "ends", e)
            node, colon, ifname = text.partition(":")
            if not colon:
                yield (
                    place,
                    f"{text!r} is no end of a link: write node:interface, such as {text or 'client'}:eth0",
                    "",
                )
                continue
            if node not in nodes:
                yield place, f"there is no node {node!r}", suggest(node, nodes) or _known(nodes)
            if problem := _ifname(ifname):
                yield place, problem, ""
            elif text in seen:
                yield place, f"{text} is an end already (links[{seen[text]}]): an interface has one link", ""
            seen[text] = n
        yield from _shaping(link, at)


def _ifname(name: str) -> str:
    """Say what is wrong with an interface name (net/core/dev.c: dev_valid_name)."""
    if len(name.encode()) > 15:
        return f"the interface name {name!r} has {len(name.encode())} bytes, and Linux takes at most 15"
    if name in ("", ".", "..", "lo", "all", "default") or re.search(r"[/:\s%]", name) or not name.isprintable():
        return f"{name!r} is no name of an interface" + (
            " here: the kernel uses it itself" if name in ("lo", "all", "default") else ""
        )
    return ""


def _shaping(link: Link | Event, at: Path) -> Iterator[Fault]:
    what = link if isinstance(link, Link) else link.set
    if what is None:
        return
    for key, part in (("", what), ("forward", what.forward), ("reverse", what.reverse)):
        if part is None:
            continue
        place = (*at, key) if key else at
        ways = [what.shape("forward"), what.shape("reverse")] if not key else [what.shape(key)]  # type: ignore[arg-type]
        if isinstance(link, Link):
            if part.jitter is not None and any(w.delay is None for w in ways):
                yield (*place, "jitter"), "jitter varies a delay: state `delay` as well", ""
            if part.reorder is not None and any(not w.delay for w in ways):
                yield (
                    (*place, "reorder"),
                    "reordering lets packets overtake delayed ones: state `delay` as well",
                    "",
                )
            if part.distribution is not None and any(w.jitter is None for w in ways):
                yield (
                    (*place, "distribution"),
                    "a distribution is that of the jitter: state `jitter` as well",
                    "",
                )
            if part.burst is not None and any(w.rate is None for w in ways):
                yield (*place, "burst"), "a burst belongs to a rate: state `rate` as well", ""
            mtu = what.mtu or 1500
            if part.burst is not None and part.burst < mtu + 14:
                yield (
                    (*place, "burst"),
                    f"a burst below one frame ({mtu + 14} bytes) lets no packet through",
                    "",
                )
        if part.queue is not None:
            if part.queue.discipline == "bfifo" and part.queue.packets is not None:
                yield (
                    (*place, "queue"),
                    "bfifo counts bytes: write `limit: 64kb`, or choose another discipline",
                    "",
                )
            if part.queue.discipline != "bfifo" and part.queue.limit is not None:
                yield (*place, "queue"), f"{part.queue.discipline} counts packets: write `packets: 1000`", ""


def _addresses(net: Network) -> Iterator[Fault]:
    owners: dict[str, str] = {}
    first: dict[tuple[int, int], str] = {}
    for n, link in enumerate(net.topology.links):
        subnets: list[list[str]] = []
        for e, text in enumerate(link.ends):
            node, ifname = end_of(text)
            interface = next(i for i in net.interfaces[node] if i.name == ifname)
            place = ("links", n, "addresses", e)
            mine = []
            for address in link.stated(e) or ():
                if problem := _address(address):
                    yield place, problem, ""
                    continue
                parsed = ip_interface(address)
                if interface.port:
                    yield (
                        place,
                        f"{text} is a port of a bridge and has no address: give it to the other end",
                        "",
                    )
                    continue
                if (other := owners.get(str(parsed.ip))) is not None:
                    yield place, f"{parsed.ip} is the address of {other} already", ""
                    continue
                owners[str(parsed.ip)] = text
                mine.append(str(parsed.network))
                known = first.setdefault((interface.segment, parsed.version), str(parsed.network))
                if known != str(parsed.network) and not subnets:
                    yield place, f"{address} is not on {known}, which this segment has already", ""
            subnets.append(mine)
        if subnets[0] and subnets[1] and not set(subnets[0]) & set(subnets[1]):
            where = " and ".join(f"{end} is on {found[0]}" for end, found in zip(link.ends, subnets, strict=True))
            yield ("links", n, "addresses"), f"{where}: the ends of a link share a network", ""
    yield from _overlaps(first)


def _overlaps(first: dict[tuple[int, int], str]) -> Iterator[Fault]:
    """Yield the segments whose network overlaps that of another; sorted, only neighbours can."""
    for version in (4, 6):
        spans = sorted((ip_network(text), segment) for (segment, v), text in first.items() if v == version)
        for (low, one), (high, two) in pairwise(spans):
            if int(high.network_address) <= int(low.broadcast_address):
                at, other = max(one, two), min(one, two)
                yield (
                    ("links", at, "addresses"),
                    f"{low} and {high} overlap: links[{other}] has one of them",
                    "",
                )


def _address(text: str) -> str:
    if "/" not in text:
        return f"{text!r} has no prefix length: write it as 192.0.2.1/24"
    try:
        parsed = ip_interface(text)
    except ValueError:
        return f"{text!r} is no IP address"
    if parsed.is_multicast or parsed.is_unspecified or parsed.is_loopback:
        return f"{parsed.ip} is no address of a host (multicast, unspecified or loopback)"
    short = parsed.network.prefixlen >= parsed.max_prefixlen - 1
    if not short and parsed.ip == parsed.network.network_address:
        return f"{parsed.ip} is the address of the network {parsed.network} itself"
    if not short and parsed.version == 4 and parsed.ip == parsed.network.broadcast_address:
        return f"{parsed.ip} is the broadcast address of {parsed.network}"
    return ""


def _nodes(net: Network) -> Iterator[Fault]:
    for name, node in net.topology.nodes.items():
        here = net.place(name)
        for field, role in node.roles().items():
            for path, message in role.faults(here):
                yield ("nodes", name, field, *path), message, ""
        for key in node.sysctl:
            if not _SYSCTL.fullmatch(key):
                yield (
                    ("nodes", name, "sysctl", key),
                    f"{key!r} is no parameter of a network namespace: these begin with net.",
                    "",
                )
        for n, route in enumerate(node.routes):
            if problem := _route(route.to, route.via, [a for i in here.interfaces for a in i.addresses]):
                yield ("nodes", name, "routes", n), problem, ""


def _route(to: str, via: str, own: list[str]) -> str:
    try:
        gateway = ip_address(via)
    except ValueError:
        return f"{via!r} is no IP address"
    try:
        if to != "default" and ip_network(to).version != gateway.version:
            return f"{to} and {via} are of different families"
    except ValueError as e:
        return f"{to!r} is no network: {e}"
    if not any(gateway in ip_interface(a).network for a in own):
        return f"{via} is not on a network of this node ({', '.join(own) or 'it has no address'})"
    return ""


def _workloads(net: Network, nodes: tuple[str, ...]) -> Iterator[Fault]:
    ways = hops(net) if net.topology.routing == "static" else None
    for name, work in net.topology.workloads.items():
        at = ("workloads", name)
        if not NODE.fullmatch(name) or "." in name:
            yield at, f"{name!r} is no name of a workload: letters, digits, _ and -", ""
        if not (kind := work.kind()):
            yield at, "a workload is exactly one of iperf3, ping, command", ""
            continue
        workload = work.workload()
        for field, message in workload.faults():
            yield (*at, kind, field), message, ""
        sound = True
        for field, node in workload.ends():
            if node not in nodes:
                sound = False
                yield (*at, kind, field), f"there is no node {node!r}", suggest(node, nodes) or _known(nodes)
        if sound and len(workload.ends()) == 2:
            yield from _flow(net, ways, work, (*at, kind))


def _flow(net: Network, ways: object, work: Work, at: Path) -> Iterator[Fault]:
    workload = work.workload()
    (_, source), (_, target) = workload.ends()
    if source == target:
        yield (*at, "to"), f"{source} is both ends: a flow goes from one node to another", ""
        return
    ifname = getattr(workload, "to_interface", None)
    if ifname is not None and net.place(target).interface(ifname) is None:
        names = [i.name for i in net.interfaces[target]]
        yield (
            (*at, "to_interface"),
            f"{target} has no interface {ifname!r}",
            suggest(ifname, names) or _known(names),
        )
        return
    wanted = {"ipv4": (4,), "ipv6": (6,), None: net.families}[getattr(workload, "family", None)]
    if not any(net.address(f"{target}:{ifname or ''}", v) and net.address(source, v) for v in wanted):
        lacking = target if not any(net.address(f"{target}:{ifname or ''}", v) for v in wanted) else source
        yield (*at, "to"), f"{lacking} has no {' or '.join(f'IPv{v}' for v in wanted)} address", ""
        return
    if not reachable(net, source, target):
        why = "no path of links, bridges and routers joins them"
        yield (
            (*at, "to"),
            f"{target} cannot be reached from {source}: {why}",
            "a node between them needs `router: {}` or `bridge: {}`",
        )


def reachable(net: Network, source: str, target: str) -> bool:
    """Say whether packets have a way between two nodes: shared segments, and routers between segments."""
    seen: set[int] = set()
    front = {i.segment for i in net.interfaces[source] if not i.port}
    goal = {i.segment for i in net.interfaces[target] if not i.port}
    while front:
        if front & goal:
            return True
        seen |= front
        routers = {
            m.node
            for s in front
            for m in net.segments.get(s, ())
            if net.router(m.node) or net.topology.nodes[m.node].routes
        }
        front = {i.segment for r in routers for i in net.interfaces[r] if not i.port} - seen
    return False


def _captures(net: Network, nodes: tuple[str, ...]) -> Iterator[Fault]:
    for n, capture in enumerate(net.topology.capture):
        at: Path = ("capture", n)
        if not captured(net, capture.interfaces):
            node, colon, _ = capture.interfaces.partition(":")
            if not colon:
                yield (
                    at,
                    f"{capture.interfaces!r} names no interface: write node:interface, or {node}:* for all of a node",
                    "",
                )
            elif not any(fnmatchcase(k, node) for k in nodes):
                yield at, f"no node is called {node!r}", suggest(node, nodes) or _known(nodes)
            else:
                names = [f"{i.node}:{i.name}" for k in net.interfaces for i in net.interfaces[k]]
                yield at, f"no interface matches {capture.interfaces!r}", suggest(capture.interfaces, names)


def captured(net: Network, pattern: str) -> list[tuple[str, str]]:
    """Return the (node, interface) pairs that a pattern matches."""
    pairs = [(i.node, i.name) for interfaces in net.interfaces.values() for i in interfaces]
    pairs += [(n, x.bridge.name) for n, x in net.topology.nodes.items() if x.bridge is not None]
    return [(n, i) for n, i in pairs if fnmatchcase(f"{n}:{i}", pattern)]


def _events(topology: Topology, net: Network, nodes: tuple[str, ...]) -> Iterator[Fault]:
    sound = all(w.kind() for w in topology.workloads.values())
    end = topology.seconds() if sound else None
    for n, event in enumerate(topology.events):
        at: Path = ("events", n)
        if end is not None and end == 0:
            yield at, "nothing runs: events need workloads, or a `duration`", ""
        elif end is not None and event.at >= end:
            yield (
                (*at, "at"),
                f"at {event.at:g} s the run is over: it ends at {end:g} s",
                "state a longer `duration`",
            )
        if (event.link is None) == (event.node is None):
            yield at, "an event happens either to a `link` or at a `node`", ""
        elif event.link is not None:
            yield from _link_event(topology, event, at)
        else:
            yield from _node_event(net, event, at, nodes)


def _link_event(topology: Topology, event: Event, at: Path) -> Iterator[Fault]:
    assert event.link is not None
    if link_index(topology, event.link) is None:
        names = [link.name for link in topology.links if link.name]
        ends = [end for link in topology.links for end in link.ends]
        yield (
            (*at, "link"),
            f"there is no link {event.link!r}",
            suggest(event.link, [*names, *ends]) or _known(names or ends),
        )
    if (event.set is None) == (event.down is None):
        yield (
            at,
            "an event of a link either sets something (`set: {delay: 80ms}`) or is `down: true` or `down: false`",
            "",
        )
    if event.command or event.sysctl or event.endpoint:
        yield at, "`command`, `sysctl` and `endpoint` happen at a `node`", ""
    yield from _shaping(event, (*at, "set"))


def link_index(topology: Topology, name: str) -> int | None:
    """Return the number of the link with a name, or with an end `node:interface`."""
    return next((n for n, link in enumerate(topology.links) if name == link.name or name in link.ends), None)


def _node_event(net: Network, event: Event, at: Path, nodes: tuple[str, ...]) -> Iterator[Fault]:
    assert event.node is not None
    if event.node not in nodes:
        yield (*at, "node"), f"there is no node {event.node!r}", suggest(event.node, nodes) or _known(nodes)
        return
    if sum(x is not None for x in (event.command, event.sysctl, event.endpoint)) != 1:
        yield at, "an event at a node is exactly one of `command`, `sysctl`, `endpoint`", ""
    if event.set is not None or event.down is not None:
        yield at, "`set` and `down` happen to a `link`", ""
    role = net.topology.nodes[event.node].mptcp
    if event.endpoint is None:
        return
    if role is None:
        yield (*at, "endpoint"), f"{event.node} has no role mptcp", ""
        return
    changed = role.model_copy(update={"endpoints": (event.endpoint,)})
    for path, message in changed.faults(net.place(event.node)):
        yield (*at, "endpoint", *path[2:]), message, ""


def _checks(topology: Topology, nodes: tuple[str, ...]) -> Iterator[Fault]:
    for n, check in enumerate(topology.checks):
        at: Path = ("checks", n)
        for field in ("metric", "divide_by"):
            metric = getattr(check, field)
            if metric is not None:
                yield from _metric(topology, nodes, metric, (*at, field))
        if all(v is None for v in (check.min, check.max, check.equals, check.present)):
            yield at, "a check states at least one of min, max, equals, present", ""
        if check.min is not None and check.max is not None and check.min > check.max:
            yield (*at, "min"), f"min {check.min:g} is above max {check.max:g}: nothing can pass", ""
        if check.present is not None and any(v is not None for v in (check.min, check.max, check.equals)):
            yield (*at, "present"), "present says all; a min, max or equals needs the metric anyway", ""


def _metric(topology: Topology, nodes: tuple[str, ...], metric: str, at: Path) -> Iterator[Fault]:
    if not _METRIC.fullmatch(metric):
        yield (
            at,
            f"{metric!r} is no metric: write workload.metric or node.metric, such as bulk.goodput_mbps",
            "",
        )
        return
    # A node's name may have dots, so the longest name that fits is the owner.
    owners = [o for o in (*topology.workloads, *nodes, "machine") if metric.startswith(f"{o}.")]
    if not owners:
        head = metric.partition(".")[0]
        known = [*topology.workloads, *nodes]
        yield at, f"no workload and no node is called {head!r}", suggest(head, known) or _known(known)
        return
    work = topology.workloads.get(max(owners, key=len))
    if work is not None and work.kind():
        rest = metric.removeprefix(f"{max(owners, key=len)}.")
        known = list(work.workload().metrics())
        if rest not in known:
            yield at, f"{work.kind()} has no metric {rest!r}", suggest(rest, known) or _known(known)


def _known(names: object) -> str:
    found = [str(n) for n in names] if isinstance(names, list | tuple) else []
    return f"there are: {', '.join(found[:8])}{', ...' if len(found) > 8 else ''}" if found else "there are none"
