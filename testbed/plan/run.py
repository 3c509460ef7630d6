"""What a run does in a lab that is up: captures, samples, servers, then workloads and events on one clock (pure)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial

from msgspec import to_builtins
from msgspec.structs import replace

from testbed import features
from testbed.drivers.facts import Capturing, FileHas
from testbed.features import Feature
from testbed.language.topology import WAYS, Topology
from testbed.metrics.table import KERNEL
from testbed.plan import speed, traces, trees
from testbed.plan.events import event_steps
from testbed.plan.lab import Plan
from testbed.plan.multipath import several
from testbed.plan.network import Network, end_of
from testbed.steps import AIR, LAB, ORIGIN, START, Spawn, Step, Wait, Write
from testbed.workloads.iperf3 import Iperf3
from testbed.workloads.ping import Ping
from testbed.workloads.place import FIRST_PORT, Task, Workload
from testbed.workloads.transfer import Transfer

_NETSTAT = "/proc/net/netstat"
_LEAST, _MOST = 1.0, 10.0  # seconds for neighbours to be found
_FIRST_SOURCE, _SOURCES, _FLOWS = 10240, 256, 88
_SIGINT = 2

Works = Sequence[tuple[str, Task, Workload]]  # the name of each, what it may know, and itself


def requires(plan: Plan) -> tuple[Feature, ...]:
    """Return the features that a run needs beyond its lab."""
    found = [f for w in plan.topology.workloads.values() for f in w.workload().requires()]
    found += [features.DUMPCAP] if plan.topology.capture else []
    return tuple(dict.fromkeys(found))


def run_steps(plan: Plan) -> tuple[Step, ...]:
    """Return the steps of a run."""
    return numbered(plan)[0]


def numbered(plan: Plan) -> tuple[tuple[Step, ...], tuple[range, ...]]:
    """Return the steps of a run, and for each event of the file the numbers of its steps among them."""
    works = list(tasks(plan))
    steps: list[Step] = [*_sampler(plan, works), *_captures(plan), *_replayed(plan), *_workloads(plan, works)]
    for name, node in plan.topology.nodes.items():
        steps += [step for role in node.roles().values() for step in role.during(plan.network.place(name))]
    events: list[range] = []
    for n in range(len(plan.topology.events)):
        began = len(steps)
        steps += event_steps(plan, n)
        events.append(range(began, len(steps)))
    return tuple(steps), tuple(events)


def _sampler(plan: Plan, works: Works) -> Iterator[Step]:
    flows = [w.iperf3 for w in plan.topology.workloads.values() if w.iperf3 is not None and w.iperf3.protocol == "udp"]
    udp = {f.from_ if f.reverse else f.to for f in flows}
    nodes = {
        name: [
            *(reader for role in node.roles().values() for reader in role.samples()),
            *(["wlan"] if plan.network.wireless(name) else []),
            *(["udp"] if name in udp else []),
        ]
        for name, node in plan.topology.nodes.items()
    }
    named = _named(plan.topology)
    counters = {n: found for n in plan.topology.nodes if (found := _counters(plan, n, named.get(n, {})))}
    asked = {
        "every": plan.topology.samples.every,
        "nodes": nodes,
        "air": plan.network.ears,
        "counters": counters,
        "flows": _flows(works),
        "neighbours": _pinged(works),
        "patience": _patience(plan.topology),
    }
    yield Write("sampler.json", json.dumps(asked) + "\n")
    yield Spawn(LAB, "sampler", ("testbed.sampler", "sampler.json"), forked=True)
    yield Wait(LAB, FileHas("machine.jsonl"), START, "sampler")


def _flows(works: Works) -> dict[str, dict[int, str]]:
    """Return the flows whose first packet is awaited at each node, by the port of their server."""
    found: dict[str, dict[int, str]] = {}
    for name, task, flow in works:
        if isinstance(flow, Iperf3) and flow.bytes is None:
            for _, node in flow.ends():
                found.setdefault(node, {})[flow.listens(task)] = name
    return found


def _pinged(works: Works) -> dict[str, dict[str, str]]:
    """Return the address that each ping asks, by the node that sends it."""
    found: dict[str, dict[str, str]] = {}
    for name, task, ping in works:
        if isinstance(ping, Ping):
            found.setdefault(ping.from_, {})[name] = ping.target(task)
    return found


def _patience(topology: Topology) -> float:
    """Return how long (s) neighbours may take to be found: some round trips over all links, one after another."""
    delays = sum(shape.delay or 0.0 for link in topology.links for shape in link.shapes())
    return min(_MOST, _LEAST + 3 * delays)


def _counters(plan: Plan, name: str, named: dict[str, list[str]]) -> dict[str, dict[str, tuple[str, str]]]:
    """Return the figures that the roles of a node have, by role and name: a file below /proc, and a field of it."""
    place, roles = plan.network.place(name), plan.topology.nodes[name].roles()
    found = {
        field: {key: (c.file, c.field) for key, c in role.counters(place).items()} for field, role in roles.items()
    }
    found |= {group: {key: (_NETSTAT, f"{group}.{key}") for key in keys} for group, keys in named.items()}
    return {field: counters for field, counters in found.items() if counters}


def _named(topology: Topology) -> dict[str, dict[str, list[str]]]:
    """Return the kernel's counters that checks name, by node and group."""
    found: dict[str, dict[str, list[str]]] = {}
    for metric in (name for check in topology.checks for name in check.metrics()):
        # A node's name may have dots, those of groups and counters have none.
        node, _, rest = metric.rpartition(".")[0].rpartition(".")
        if rest in KERNEL:
            found.setdefault(node, {}).setdefault(rest, []).append(metric.rpartition(".")[2])
    return found


def _replayed(plan: Plan) -> Iterator[Step]:
    """Yield what makes links follow their traces."""
    end = plan.topology.seconds()
    rows = []
    for f in traces.followed(plan.topology, end):
        link = plan.topology.links[f.link]
        node, dev = end_of(link.ends[WAYS.index(f.way)])
        told = [(c.t, c.rate, c.delay, c.loss) for c in f.changes]
        rows.append({"node": node, "dev": dev, "shape": to_builtins(link.shape(f.way)), "rows": told})
    if rows:
        yield Write("replay.json", json.dumps(rows) + "\n")
        yield Spawn(LAB, "replay", ("testbed.replay", "replay.json", ORIGIN), forked=True)


def _captures(plan: Plan) -> Iterator[Step]:
    seen = set()
    for capture in plan.topology.capture:
        for node, ifname in plan.network.captured(capture.interfaces):
            if (node, ifname) in seen:
                continue
            seen.add((node, ifname))
            # What is captured on the medium belongs to no node: its files are the lab's own.
            name, file = f"{ifname}.dumpcap", f"{ifname}.pcapng" if node == AIR else f"{node}/{ifname}.pcapng"
            words = ["dumpcap", "-q", "-i", ifname, "-w", file, "-B", "16"]
            words += ["-s", str(capture.snaplen)] if capture.snaplen is not None else []
            words += ["-f", capture.filter] if capture.filter is not None else []
            where, log = (LAB, f"{name}.log") if node == AIR else (node, f"{node}/{name}.log")
            # Beacons never end: a capture of the medium would never have drained.
            drain = "" if node == AIR else file
            yield Spawn(where, name, tuple(words), stop=_SIGINT, drain=drain)
            yield Wait(where, Capturing(ifname, log), START, name)


def _workloads(plan: Plan, works: Works) -> Iterator[Step]:
    for _, task, work in works:
        for step in (*work.servers(task), *work.clients(task)):
            # A frame goes its whole way through the simulated radios on the processor that sends it, and a second
            # processor that has one for the same radio spins until that is over (kernel/softirq.c:
            # tasklet_action_common). What fills links keeps to one: daemons, whose timers else come late, have others.
            pinned = bool(plan.network.air) and isinstance(work, Iperf3 | Transfer)
            yield replace(step, pinned=pinned) if isinstance(step, Spawn) else step


def tasks(plan: Plan) -> Iterator[tuple[str, Task, Workload]]:
    """Yield the name of each workload, what it may know, and itself."""
    ways = speed.ways(plan.network)
    spread, address = several(plan.network), partial(reach, plan.network)
    for n, (name, work) in enumerate(plan.topology.workloads.items()):
        way = trees.way(plan.network.trees[name]) if work.multicast is not None else None
        # Below the ports that the kernel chooses itself (ip_local_port_range), as many for each flow as it may need.
        source = _FIRST_SOURCE + _SOURCES * (n % _FLOWS) if spread else None
        task = Task(name, FIRST_PORT + n, address, way, partial(speed.fastest, ways), source)
        yield name, task, work.workload()


def reach(net: Network, source: str, target: str, family: int | None) -> str:
    """Return the address of `target` (a node, or node:interface) that is nearest to `source`."""
    node, _, ifname = target.partition(":")
    near = {i.segment for i in net.interfaces[source] if not i.port}
    for version in (family,) if family else net.families:
        if not net.address(source, version):
            continue
        mine = [i for i in net.interfaces[node] if i.host(version) and (not ifname or i.name == ifname)]
        for interface in sorted(mine, key=lambda i: (i.segment not in near, not net.leads(source, f"{node}:{i.name}"))):
            return interface.host(version)
    return ""
