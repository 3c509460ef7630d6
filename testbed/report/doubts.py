"""Which figures of a run may be the machine's and not the lab's, the worst first (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from msgspec import Struct

from testbed.language.topology import Topology
from testbed.linux.kernel_log import frames_without_channel, kernel_faults
from testbed.metrics import bounds
from testbed.metrics.measured import Measured
from testbed.metrics.records import Air, Happened, Machine, Manifest, Replayed, Run
from testbed.nodes.node import Node
from testbed.report import one_path
from testbed.workloads.place import STALL

BUSY = 90.0  # per cent of all CPUs: above it a figure may be the host's and not the lab's
BEHIND = 0.01  # seconds by which a change of a trace may be late
STEP = 0.02  # seconds by which the clocks differ more than before: somebody has set one
_FAULTS = 3  # lines of the kernel that are shown
_PLACES = 3  # interfaces that a doubt names
_DROPS = {
    "qdisc_drops": " where no shaping was asked for",
    "rx_dropped": ", and by no queue of the interface",
    "tx_dropped": ", and by no queue of the interface",
}


class Doubt(Struct, frozen=True):
    """A figure that the host limited: what it affects, and what was seen."""

    what: str
    seen: str


class Seen(Struct, frozen=True):
    """What doubts are taken from.

    `udp` are datagrams that found a buffer full, by node; `works` the doubts of workloads: how bad, what they affect,
    what was seen. `steps` are the times of the plan's steps by number.
    """

    topology: Topology
    metrics: Mapping[str, Measured]
    manifest: Manifest
    run: Run
    machine: Sequence[Machine]
    air: Sequence[Air]
    udp: Mapping[str, int]
    works: Sequence[tuple[float, str, str]]
    kernel: Sequence[str]
    steps: Mapping[int, float] = {}
    replayed: Sequence[Replayed] = ()


Ranked = Iterator[tuple[float, str, str]]  # how bad, what it affects, what was seen


def doubts(seen: Seen) -> Iterator[Doubt]:
    """Yield all doubts: first what makes every figure doubtful, of one kind the worst first."""
    kinds: tuple[Iterable[tuple[float, str, str]], ...] = (
        _warned(seen.manifest),
        _kernel(seen),
        _still(seen),
        _clocks(seen),
        _late(seen.run.events, seen.steps),
        _behind(seen),
        _processors(seen),
        _bounds(seen),
        seen.works,
        one_path.doubts(seen.topology, seen.metrics),
        one_path.unanswered(seen.topology, seen.metrics),
        _queues(seen),
        _dropped(seen),
        _unmatched(seen),
        _missed(seen),
    )
    for kind in kinds:
        yield from (Doubt(what, text) for _, what, text in sorted(kind, key=lambda d: -d[0]))


def _warned(manifest: Manifest) -> Ranked:
    """Yield the warnings of the file that make figures doubtful."""
    for warning in manifest.warnings:
        if warning.figures:
            yield 0.0, warning.figures, f"the file: {warning.message} [{warning.name}]"


def shared(manifest: Manifest) -> bool:
    """Say whether others use that kernel as well: then its faults need not be of this run."""
    return manifest.machine != "microvm"


def _kernel(seen: Seen) -> Ranked:
    faults = kernel_faults(seen.kernel) if shared(seen.manifest) else []
    yield from ((0.0, "everything", f"the kernel says: {row}") for row in faults[:_FAULTS])
    if len(faults) > _FAULTS:
        yield -1.0, "everything", f"the kernel says more of this kind: {len(faults) - _FAULTS} lines of dmesg.log"


def _bounds(seen: Seen) -> Ranked:
    yield from ((0.0, what, text) for what, text in bounds.doubts(seen.manifest.resources))


def _still(seen: Seen) -> Ranked:
    """Yield when the sampler, the holder, or both at once did not run: then nothing on this machine may have."""
    every, origin = seen.topology.samples.every, seen.run.monotonic
    during = [r.t - origin for r in seen.machine if -every <= r.t - origin <= seen.run.seconds]
    gaps = [(a + every, b - a - every) for a, b in pairwise(during) if b - a - every >= STALL]
    held = [(t, length) for t, length in seen.run.stalls if length >= STALL]
    both = [gap for gap in gaps if _meets(gap, held)]
    kinds = (
        (both, "every rate, delay and gap", "the machine stood still: neither sampler nor holder ran"),
        ([g for g in gaps if g not in both], "counters and rates by the sample", "the sampler did not run"),
        ([h for h in held if not _meets(h, both)], "what begins or ends at a time", "the holder did not run"),
    )
    for n, (stalls, what, text) in enumerate(kinds):
        if stalls:
            began, longest = max(stalls, key=lambda s: s[1])
            total = sum(length for _, length in stalls)
            more = f" (and {len(stalls) - 1} times more, {total:.1f} s in all)" if stalls[1:] else ""
            yield float(-n), what, f"{text} for {longest:.1f} s from {began:.1f} s on{more}"


def _meets(stall: tuple[float, float], others: Iterable[tuple[float, float]]) -> bool:
    """Say whether one of the others was at the same time, for at least half a stall."""
    began, length = stall
    return any(min(began + length, t + n) - max(began, t) >= STALL / 2 for t, n in others)


def clock_steps(machine: Sequence[Machine], origin: float) -> list[tuple[float, float]]:
    """Return when CLOCK_REALTIME was set, and by how much (s): it then is otherwise ahead of CLOCK_MONOTONIC."""
    ahead = [(r.t - origin, r.time - r.t) for r in machine]
    return [(t, after - before) for (_, before), (t, after) in pairwise(ahead) if abs(after - before) > STEP]


def _clocks(seen: Seen) -> Ranked:
    for t, step in clock_steps(seen.machine, seen.run.monotonic):
        what = "times of captures and logs, and ping's RTT at that moment"
        way = "forward" if step > 0 else "back"
        yield abs(step), what, f"somebody set the clock {way} by {abs(step):.3g} s at {t:.1f} s"


def _late(events: Sequence[Happened], steps: Mapping[int, float]) -> Ranked:
    """Yield how late workloads and events began, if they did."""
    times = [(e.t - steps[e.n], e.step.rpartition("  @")[0] or e.step) for e in events if e.n in steps]
    late = [x for x in times if x[0] >= STALL]
    if late:
        worst, text = max(late)
        seen = f"{len(late)} of {len(times)} steps began late, most of all, {worst:.1f} s: {text:.80}"
        yield worst, "what begins at a time", seen


def _behind(seen: Seen) -> Ranked:
    """Yield how late links followed their traces, if they did."""
    by: dict[str, list[tuple[float, float]]] = {}
    for row in seen.replayed:
        by.setdefault(f"{row.node}.{row.dev}", []).append((row.t - seen.run.monotonic - row.at, row.at))
    for where, rows in by.items():
        late = [row for row in rows if row[0] > BEHIND]
        # At t = 0 the process itself has to begin.
        if len(late) > len(rows) / 100 or any(delay > 5 * BEHIND and at > 0.1 for delay, at in late):
            worst, at = max(late)
            text = f"{len(late)} of {len(rows)} changes of its trace came more than {BEHIND * 1e3:g} ms late"
            yield worst, f"flows through {where}", f"{text}, most of all, {worst * 1e3:.0f} ms, that at {at:g} s"


def _processors(seen: Seen) -> Ranked:
    cpu = seen.metrics.get("machine.cpu_max_pct")
    if cpu is not None and cpu.value > BUSY:
        yield cpu.value, "every rate and delay", f"the CPUs were {cpu.value:.0f} % busy in the busiest second"
    if seen.manifest.accelerator == "tcg":
        text = "the processor was emulated (TCG): what it limits is not the network"
        yield 0.0, "every rate and delay", text


def _queues(seen: Seen) -> Ranked:
    """Yield what the kernel itself dropped for want of time or room, wherever it was going."""
    lost = seen.metrics.get("machine.softnet_dropped")
    if lost is not None and lost.value:
        text = f"{lost.value:.0f} packets found the kernel's queue of received packets full (netdev_max_backlog)"
        yield lost.value, "every flow of the machine", text
    for node, drops in seen.udp.items():
        if drops:
            text = f"{drops} datagrams found the buffer of a receiving program full"
            yield float(drops), f"the loss of UDP flows to {node}", text


def _dropped(seen: Seen) -> Ranked:
    """Yield what was dropped that the file does not drop, by a queue or by the interface itself, where flows pass."""
    shaped, down, told = _shaped(seen.topology), _down(seen.topology), _excused(seen.topology)
    idle = _idle(seen.topology)
    found: dict[str, list[tuple[float, str]]] = {}
    for name, metric in seen.metrics.items():
        where, _, what = name.rpartition(".")
        if what not in _DROPS or not metric.value or name in told or where in down:
            continue
        if (what == "qdisc_drops" and where in shaped) or any(part in idle for part in _heads(where)):
            continue
        found.setdefault(what, []).append((metric.value, where))
    for what, places in found.items():
        places.sort(reverse=True)
        named = ", ".join(where for _, where in places[:_PLACES])
        rest = len(places) - _PLACES
        more = f" and {rest} more interface{'s' if rest > 1 else ''}" if rest > 0 else ""
        count, worst = sum(n for n, _ in places), places[0][0]
        most = f", most of them, {worst:.0f}, at the first" if places[1:] else ""
        yield worst, f"flows through {named}{more}", f"{count:.0f} packets dropped ({what}){_DROPS[what]}{most}"


def _unmatched(seen: Seen) -> Ranked:
    """Yield what a role was to count, and did not count once, unless a check says what it is to be."""
    checked = {name for check in seen.topology.checks for name in check.metrics()}
    for node, stated in seen.topology.nodes.items():
        for field, role in stated.roles().items():
            for name, what in role.counts().items():
                figure = f"{node}.{field}.{name}"
                counted = seen.metrics.get(figure)
                if counted is not None and not counted.value and figure not in checked:
                    yield 0.0, f"the effect of {figure}", f"no packet matched it ({what})"


def _heads(where: str) -> Iterator[str]:
    """Yield what may be the name of a node in NODE.INTERFACE, both of which may have dots, and the whole."""
    yield from (where[:n] for n, c in enumerate(where) if c == ".")
    yield where


def _idle(topology: Topology) -> set[str]:
    """Return the nodes, and the ends of links (node.interface), that no flow of a workload passes.

    Where no workload is stated, or a command may reach any node, there are none.
    """
    commands = (*(w.command for w in topology.workloads.values()), *(e.command for e in topology.events))
    if not topology.workloads or any(commands):
        return set()
    ends = {node for w in topology.workloads.values() for _, node in w.workload().ends()}
    idle = {name for name, node in topology.nodes.items() if name not in ends and not _forwards(node)}
    pairs = [(end, other) for link in topology.links for end, other in (link.ends, link.ends[::-1])]
    return idle | {end.replace(":", ".") for end, other in pairs if other.partition(":")[0] in idle}


def _forwards(node: Node) -> bool:
    """Say whether a node passes on what others send: a router, a bridge, an access point."""
    routes = any(role.forwards() for role in node.roles().values())
    return routes or node.switch() is not None or any(own.makes for _, own in node.brought())


def _missed(seen: Seen) -> Ranked:
    """Yield what captures and the monitors of channels missed."""
    for name, metric in seen.metrics.items():
        if name.endswith(".capture_drops") and metric.value:
            where = name.removesuffix(".capture_drops")
            yield metric.value, f"the capture of {where}", f"{metric.value:.0f} packets were not captured"
    if seen.air and seen.air[-1].drops:
        lost = seen.air[-1].drops
        yield float(lost), "frames by link", f"{lost} frames on the medium were not counted"
    if copies := frames_without_channel("\n".join(seen.kernel)):
        what = "group addressed frames of one link"
        text = f"the kernel warned of {copies} that hwsim dropped while that link was being stopped"
        yield float(copies), what, text


def _excused(topology: Topology) -> set[str]:
    """Return the counters that, as roles say, count something else."""
    restarted = any(e.restart for e in topology.events)
    roles = [(name, role) for name, node in topology.nodes.items() for role in node.roles().values()]
    return {f"{name}.{counter}" for name, role in roles for counter in role.excused(restarted)}


def _down(topology: Topology) -> set[str]:
    """Return the interfaces (node.interface) of links that events take down."""
    names = {e.link for e in topology.events if e.down is not None}
    links = [link for link in topology.links if link.name in names or names & set(link.ends)]
    return {end.replace(":", ".") for link in links for end in link.ends}


def _shaped(topology: Topology) -> set[str]:
    """Return the interfaces where queues may drop: by a rate, loss or queue of the link, or of an event."""
    changing = {e.link for e in topology.events if e.set is not None}
    found: set[str] = set()
    for link in topology.links:
        lossy = any(s.rate or s.loss or s.queue or s.limit for s in link.shapes())
        if lossy or link.name in changing or changing & set(link.ends):
            found |= {end.replace(":", ".") for end in link.ends}
    return found
