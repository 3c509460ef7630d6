"""What is wrong with checks: metrics that do not exist, bounds that nothing can pass (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from testbed.language.document import Fault, Path
from testbed.language.explain import Names, name_set, suggest
from testbed.language.topology import Check, Topology
from testbed.metrics import table
from testbed.nodes.node import called, figured
from testbed.plan.network import Network
from testbed.rules.fault import Written, end_of_run, there_are
from testbed.rules.names import MACHINE

_NAME = 255  # characters of a metric's
_COUNTER = re.compile(r"[A-Za-z0-9]{1,64}")  # which there are, the kernel knows
_METRIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.[A-Za-z0-9_.%@+/:-]+")


def faults(topology: Topology, net: Network, written: Written, doubt: set[str]) -> Iterator[Fault]:
    """Yield (path, sentence, hint) for each fault."""
    end = end_of_run(topology, doubt)
    known = name_set((*written.workloads, *written.nodes))
    for n, check in enumerate(topology.checks):
        at: Path = ("checks", n)
        for path, metric in _named(check):
            yield from _metric(net, known, metric, (*at, *path), doubt)
        yield from _form(check, at, end)
        bounds = [v for v in (check.min, check.max, check.equals) if v is not None]
        if not bounds and check.present is None:
            yield at, "a check needs at least one of the keys min, max, equals, present", ""
        if check.min is not None and check.max is not None and check.min > check.max:
            yield (*at, "min"), f"min {check.min:g} is above max {check.max:g}: nothing can pass", ""
        if check.present is not None and bounds:
            yield (
                (*at, "present"),
                "min, max and equals require the metric anyway: remove `present`, or remove them",
                "",
            )
        if check.at is not None and end is not None and check.at > end:
            yield (*at, "at"), f"the run ends at {end:g} s, and this check is at {check.at:g} s", ""


def _named(check: Check) -> Iterator[tuple[Path, str]]:
    """Yield every metric of a check, and its place."""
    if check.metric:
        yield ("metric",), check.metric
    yield from ((("sum", n), name) for n, name in enumerate(check.sum))
    if isinstance(check.divide_by, str):
        yield ("divide_by",), check.divide_by
    else:
        yield from ((("divide_by", n), name) for n, name in enumerate(check.divide_by or ()))


def _form(check: Check, at: Path, end: float | None) -> Iterator[Fault]:
    """Yield what does not go together in a check."""
    if bool(check.metric) == bool(check.sum):
        yield at, "a check needs exactly one of the keys metric and sum", ""
    if check.present is not None and check.sum:
        yield (*at, "sum"), "`present` is of one metric: write `metric`", ""
    if check.window is not None:
        begin, stop = check.window
        if begin >= stop:
            yield (*at, "window"), f"the window ends at {stop:g} s, not after {begin:g} s, when it begins", ""
        elif end is not None and stop > end:
            yield (*at, "window"), f"the run ends at {end:g} s, and this window at {stop:g} s", ""
        if check.at is not None:
            yield (*at, "at"), "a check is at a time or in a window: leave out one of `at` and `window`", ""
    if check.for_ is not None:
        if not check.metric or check.divide_by or check.at is not None or check.present is not None:
            yield (*at, "for"), "`for` needs one `metric` with bounds, without `at`, `sum` and `divide_by`", ""
        if check.repeats != "each":
            yield (*at, "repeats"), "with `for`, each repeat is judged: leave out `repeats`", ""
        length = check.window[1] - check.window[0] if check.window is not None else end
        if length is not None and check.for_ > length:
            yield (*at, "for"), f"nothing can hold for {check.for_:g} s: there are {length:g} s", ""
    if check.repeats != "each" and check.present is not None:
        yield (*at, "repeats"), "`present` has no value of which there is a " + check.repeats, ""


def _metric(net: Network, known: Names, metric: str, at: Path, doubt: set[str]) -> Iterator[Fault]:
    if len(metric) > _NAME:
        yield at, f"the name of a metric has at most {_NAME} characters, and this has {len(metric)}", ""
        return
    if not _METRIC.fullmatch(metric):
        example = "bulk.goodput_mbps or client.eth0.tx_mbps"
        yield at, f"{metric!r} is not a metric: write workload.metric or node.interface.counter, such as {example}", ""
        return
    # A node's name may have dots, so the longest name that fits is the owner.
    parts = metric.split(".")
    heads = [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]
    owner = next((h for h in heads if h in known or h == MACHINE), "")
    if not owner:
        head = parts[0]
        yield at, f"there is no workload or node named {head!r}", suggest(head, known) or there_are(known)
        return
    rest = metric.removeprefix(f"{owner}.")
    work = net.topology.workloads.get(owner)
    if work is not None and work.kind():
        names = work.workload().metrics()
        if rest not in names:
            yield at, f"{work.kind()} has no metric {rest!r}", suggest(rest, names) or there_are(names)
    elif owner == MACHINE and rest not in (names := table.names("machine")):
        yield at, f"the machine has no metric {rest!r}", suggest(rest, names) or there_are(names)
    elif owner in net.topology.nodes and not doubt & {"links", f"nodes.{owner}"}:
        yield from _node_metric(net, owner, rest, at)


def _node_metric(net: Network, node: str, rest: str, at: Path) -> Iterator[Fault]:
    owner, _, figure = rest.partition(".")
    if owner in table.KERNEL:
        if not _COUNTER.fullmatch(figure):
            yield at, f"{figure!r} is not a counter: write the kernel's own name, as in {node}.TcpExt.TCPTimeouts", ""
        return
    role = figured(owner) if table.begins(owner) else ""
    known = table.names(owner if role else "interface")
    if role:
        if role not in net.topology.nodes[node].roles():
            yield at, f"{node} is not {called(role)}", f"give the node `{role}: {{}}`"
            return
        group, _, last = figure.partition(".")
        if last and table.OWNERS.get(group) == f"NODE.{owner}.{group}.":
            if last not in (known := table.names(group)):
                yield at, f"{role} has no metric {figure!r}", suggest(last, known) or there_are(known)
            return
        if not table.by_interface(owner):
            counts = net.topology.nodes[node].roles()[role].counts()
            if counts and figure not in counts:
                yield at, f"{role} has no metric {figure!r}", suggest(figure, list(counts)) or there_are(counts)
            elif figure not in known and table.COUNTER not in known:  # which counters there are, the kernel knows
                yield at, f"{role} has no metric {figure!r}", suggest(figure, known) or there_are(known)
            return
        rest = figure
    if owner == "path":
        yield from _path(net, node, rest, at)
        return
    ends = net.devices_of.get(node, ())
    ifname = max((i for i in ends if rest.startswith(f"{i}.")), key=len, default="")
    if not ifname:
        head = rest.partition(".")[0]
        yield at, f"{node} has no interface {head!r}", suggest(head, ends) or there_are(ends)
        return
    counter = rest.removeprefix(f"{ifname}.")
    if not role and any(i.kind == "wlan" and i.name == ifname for i in net.interfaces[node]):
        links = [f"link{n}.{w}" for n in net.link_ids(node)[ifname].values() for w in table.names("mlo_link")]
        station = any(role.rejoin(net.place(node)) for role in net.topology.nodes[node].roles().values())
        known = (*known, *(w for w in table.names("wlan") if station or w != "connects"), *links)
    if counter not in known:
        yield at, f"there is no counter {counter!r}", suggest(counter, known) or there_are(known)


def _path(net: Network, node: str, rest: str, at: Path) -> Iterator[Fault]:
    """Yield what is wrong with IFNAME/PEER:IFNAME.METRIC, a figure of a path."""
    way, _, figure = rest.rpartition(".")
    ifname, slash, far = way.partition("/")
    peer, colon, end = far.partition(":")
    if not (slash and colon):
        example = f"{node}.path.eth0/server:eth1.bytes_sent"
        yield at, f"{rest!r} is not a figure of a path: name both ends, as in {example}", ""
        return
    for owner, name in ((node, ifname), (peer, end)):
        if owner not in net.topology.nodes:
            nodes = list(net.topology.nodes)
            yield at, f"there is no node {owner!r}", suggest(owner, nodes) or there_are(nodes)
        elif name not in (ends := net.devices_of.get(owner, ())):
            yield at, f"{owner} has no interface {name!r}", suggest(name, ends) or there_are(ends)
    if figure not in (known := table.names("path")):
        yield at, f"a path has no metric {figure!r}", suggest(figure, known) or there_are(known)
