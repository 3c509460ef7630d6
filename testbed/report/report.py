"""Results folder -> metrics.json, verdict.json, junit.xml: from the raw files alone, as often as one likes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

from msgspec import Struct
from msgspec.structs import asdict, replace

from testbed import __version__, results
from testbed.errors import InputError, Problem
from testbed.language.effective import resolved
from testbed.language.topology import WAYS, Topology
from testbed.linux.kernel_log import kernel_faults
from testbed.metrics import connections, managed, paths
from testbed.metrics import nodes as derive
from testbed.metrics import wifi as links
from testbed.metrics.measured import Measured
from testbed.metrics.owners import owners
from testbed.metrics.recorded import KIB, MIB, Recorded
from testbed.metrics.records import Air, Format, Machine, Manifest, Noted, Planned, Replayed, Run, Sample, Told
from testbed.nodes.path_manager import EVENTS, JOINS
from testbed.plain import shown
from testbed.report import fallback
from testbed.report.doubts import Doubt, Seen, clock_steps, doubts, shared
from testbed.report.drift import drift
from testbed.report.effects import Effect, effects, missed
from testbed.report.judge import Known, Outcome, Window, judge
from testbed.report.matching import last
from testbed.results import FORMAT, Folder
from testbed.steps import AIR

T = TypeVar("T")
LOST = "without it there is no report"
_PATIENCE = 600.0  # seconds that a run may take longer than its workloads, events and `duration`
_FAULTS = 20  # of a guest's kernel, which are failures
_OTHERS, _RADIOS = 200, 16  # interfaces of a node that its own commands may make, and those of radios
_HEARD = 100_000  # events of MPTCP, and commands, that may come at once
_TOLD = 1000  # events of nl80211 that may come at once


class Report(Struct, frozen=True):
    """Everything derived from a results folder."""

    folder: Path
    topology: Topology
    metrics: dict[str, Measured]
    outcomes: tuple[Outcome, ...]
    doubts: tuple[Doubt, ...]
    failures: tuple[str, ...]
    events: tuple[Effect, ...] = ()
    seconds: float = 0.0
    time: float = 0.0  # t = 0 on CLOCK_REALTIME, 0 when it never came

    @property
    def verdict(self) -> str:
        """Return `error` (the run itself failed), `failed`, `passed`, or `no checks`."""
        if self.failures:
            return "error"
        if not self.outcomes:
            return "no checks"
        return "passed" if all(o.passed for o in self.outcomes) else "failed"

    def verdict_json(self) -> dict[str, Any]:
        """Return what verdict.json holds."""
        return {
            "verdict": self.verdict,
            "checks": [asdict(o) for o in self.outcomes],
            "validity": [asdict(d) for d in self.doubts],
            "failures": list(self.failures),
            "events": [asdict(e) for e in self.events],
        }


def report(path: Path, instead: Path | None = None) -> Report:
    """Derive metrics, verdict and JUnit from a results folder and write them into it.

    A file that is broken is a failure that says so, and what it has is left out; the rest is there. Files in the
    folder `instead` stand for those of the same name.
    """
    folder = Recorded(path, instead, search=last)
    manifest, topology, planned = _circumstances(folder)
    run, folder = _run(folder, topology)
    metrics: dict[str, Measured] = {}
    failures = list(run.failures)
    for name, work in topology.workloads.items():
        failures += filter(None, [work.workload().failure(name, folder)])
        metrics |= {f"{name}.{key}": value for key, value in work.workload().read(name, folder).items()}
    origin, every = run.monotonic, topology.samples.every
    air = (
        folder.rows("air.jsonl", Air, every, _line(topology, AIR), "frames by link are missing") if planned.air else []
    )
    told: dict[str, list[Told]] = {}
    hosts: dict[str, list[Sample]] = {}  # MPTCP's
    states: dict[str, list[Sample]] = {}  # at the beginning and at the end
    udp: dict[str, int] = {}
    for name in topology.nodes:
        rows = _samples(folder, topology, name, len(planned.interfaces.get(name, {})))
        metrics |= derive.interfaces(name, rows, origin)
        metrics |= derive.counted(name, rows, origin)
        states[name] = _states(folder, topology, name, rows)
        if any(r.mib is not None for r in rows[:1]):
            hosts[name] = rows
        udp[name] = derive.datagrams(rows, origin)
        if (wlans := planned.wlans.get(name)) is not None:
            told[name] = folder.rows(
                f"{name}/wlan-events.jsonl", Told, 0.0, 4 * KIB, f"events of {name} are missing", 1000
            )
            metrics |= links.wlans(wlans, name, rows, told[name], air, origin)
    owned, ends = owners(planned.interfaces, hosts), paths.endings(hosts.values())
    for name, rows in hosts.items():
        metrics |= paths.mptcp(name, rows, origin, owned, ends)
        if heard := folder.rows(f"{name}/{EVENTS}", Noted, 0.0, KIB, "", _HEARD):
            metrics |= managed.events(name, heard, origin)
    met = connections.connections(hosts, origin, owned) if run.monotonic else []
    metrics |= connections.figures(met)
    metrics |= fallback.figures(topology, hosts, met, origin)
    for node, ifname in planned.captured:
        log = f"{ifname}.dumpcap.log" if node == AIR else f"{node}/{ifname}.dumpcap.log"
        metrics |= derive.captures(node, folder.text(log, MIB, "what the capture missed is not known"))
    machine = folder.rows("machine.jsonl", Machine, every, KIB, "the metrics of the machine are missing")
    metrics |= derive.machine(machine, origin)
    kernel = folder.text("dmesg.log", 8 * MIB, "what the kernel said is missing")
    stepped = clock_steps(machine, origin)  # a clock that was set makes ping's times differ, and nothing else
    works = [
        found
        for name, work in topology.workloads.items()
        if work.ping is None or not stepped
        for found in work.workload().doubts(name, folder)
    ]
    for name in [name for name, m in metrics.items() if not _finite(m)]:
        del metrics[name]
        folder.note(name, "it is not a finite number", "this metric is missing")
    failures += folder.broken
    if not shared(manifest):
        failures += [f"the guest's kernel says: {row}" for row in kernel_faults(kernel)[:_FAULTS]]
    known = Known(metrics, folder.absent, cache(partial(_windowed, topology, folder)), frozenset(topology.workloads))
    expected = [e for name, work in topology.workloads.items() for e in work.workload().expectations(name, folder)]
    expected += fallback.expectations(topology, metrics) if run.monotonic else ()
    outcomes = (
        *(Outcome(e.what, e.expected, e.value, "", e.passed, e.why) for e in expected),
        *(judge(check, known, manifest.repeats) for check in topology.checks),
    )
    followed = sum(link.followed(way) is not None for link in topology.links for way in WAYS)
    lost = "how late links followed their traces is missing"
    replayed = folder.rows("trace.jsonl", Replayed, 0.001, KIB, lost, 1000 * followed) if followed else []
    seen = Seen(topology, metrics, manifest, run, machine, air, udp, works, kernel, planned.steps, replayed)
    happened = tuple(effects(topology, planned, run.events, told, metrics, origin))
    failures += missed(happened, run)
    unasked = (Doubt(f"joins to {name}", line) for name in hosts for line in folder.text(f"{name}/{JOINS}", KIB, ""))
    doubted = (*unasked, *(Doubt(what, text) for what, text in drift(topology, planned, states)), *doubts(seen))
    whole = Report(path, topology, metrics, outcomes, doubted, tuple(failures), happened, run.seconds, run.time)
    _write(Folder(path), whole)
    if hosts:
        lines = b"".join(results.json_text(row, None).encode() + b"\n" for row in connections.rows(met))
        results.put(path / "connections.jsonl", lines)
    return whole


def _windowed(topology: Topology, folder: Recorded, name: str, window: Window) -> Mapping[str, Measured]:
    """Return the figures of a workload in a part of the run."""
    return topology.workloads[name].workload().read(name, replace(folder, window=window))


def _circumstances(folder: Recorded) -> tuple[Manifest, Topology, Planned]:
    """Return what a folder is about; InputError when it does not say: without that nothing can be derived."""
    if (found := format_of(folder)) != FORMAT:
        raise InputError(Problem(f"its manifest.json is of format {found}, and not {FORMAT}", str(folder.path)))
    manifest = _needed(folder, "manifest.json", Manifest)
    text = folder.data("effective.yaml", 16 * MIB, LOST)
    if text is None:
        raise InputError(Problem(folder.broken[0] if folder.broken else no_results("effective.yaml"), str(folder.path)))
    topology = resolved(text.decode(errors="replace"), str(folder.path / "effective.yaml"))
    planned = _needed(folder, "plan.json", Planned)
    if len(planned.events) != len(topology.events):
        why = f"plan.json: it has {len(planned.events)} events, and effective.yaml {len(topology.events)}: {LOST}"
        raise InputError(Problem(why, str(folder.path)))
    return manifest, topology, planned


def format_of(folder: Recorded) -> int:
    """Return the format of a results folder, 0 for one without; InputError for one that is none, or of later times."""
    found = _needed(folder, "manifest.json", Format).format
    if found > FORMAT:
        why = f"its format is {found}, and this testbed ({__version__}) knows {FORMAT}: a later one has written it"
        raise InputError(Problem(why, str(folder.path), hint="report it with that version"))
    return found


def _needed(folder: Recorded, name: str, kind: type[T]) -> T:
    found = folder.value(name, kind, 16 * MIB, LOST)
    if found is None:
        why = folder.broken[0] if folder.broken else no_results(name)
        raise InputError(Problem(why, str(folder.path)))
    return found


def no_results(name: str) -> str:
    """Return what is wrong with a folder that lacks a file which every folder of results has."""
    return f"is not a results folder: it has no {name}"


def _samples(folder: Recorded, topology: Topology, name: str, planned: int) -> list[Sample]:
    """Return the samples of a node; each interface in them has metrics of its own, so there are not too many."""
    file, lost = f"{name}/samples.jsonl", f"the metrics of node {name} are missing"
    rows = folder.rows(file, Sample, topology.samples.every, _line(topology, name), lost)
    for kind, most in (("interfaces", planned + _OTHERS), ("wlans", planned + _RADIOS)):
        if any(len(getattr(row, kind) or ()) > most for row in rows):
            folder.note(file, f"there are more {kind} in it than {most}", lost)
            return []
    return rows


def _states(folder: Recorded, topology: Topology, name: str, rows: list[Sample]) -> list[Sample]:
    """Return the samples that have the whole state of a node: its first one, before t = 0, and its last."""
    found = [r for r in rows if r.up is not None]
    if not rows or rows[0] in found:
        return found
    first = folder.first(f"{name}/samples.jsonl", Sample, _line(topology, name))
    return [first, *found] if first is not None and first.up is not None else []


def _run(folder: Recorded, topology: Topology) -> tuple[Run, Recorded]:
    """Return what run.json says, and the folder with the times that its files may have."""
    lost = "everything that has a time is missing"
    run = folder.value("run.json", Run, longest_run(topology), lost)
    planned = max([topology.seconds(), *(e.at + 60 for e in topology.events)])  # a command may take a minute
    if run is not None and run.seconds > planned + _PATIENCE:
        folder.note("run.json", f"it says that a run of {planned:g} s took {run.seconds:g} s", lost)
        run = None
    if run is None:
        return Run(0.0, 0.0, failures=[] if folder.broken else ["the run did not end"]), folder
    began = run.monotonic > 0
    statuses = {(p.node, p.name): p.status for p in run.processes if p.status is not None}
    return run, replace(
        folder,
        origin=run.monotonic if began else None,
        seconds=run.seconds,
        complete=began and not run.failures,
        statuses=statuses,
        real=run.time,
    )


def longest_run(topology: Topology) -> int:
    """Return how many bytes of run.json may be expected."""
    return 4 * MIB + 16 * KIB * (len(topology.events) + 100 * len(topology.workloads) + len(topology.nodes))


def _line(topology: Topology, name: str) -> int:
    """Return how many bytes of a node's samples, or of those of the medium, a line may be expected to have."""
    wlans = sum(own.kind == "wlan" for node in topology.nodes.values() for _, own in node.brought())
    if name == AIR:
        return 8 * KIB + 4 * KIB * wlans
    ends = sum(end.partition(":")[0] == name for link in topology.links for end in link.ends)
    flows = [w.iperf3.parallel for w in topology.workloads.values() if w.iperf3 is not None]
    flows += [w.transfer.connections for w in topology.workloads.values() if w.transfer is not None]
    readers = sum(bool(role.samples()) for role in topology.nodes[name].roles().values())
    return 8 * KIB + KIB * ends + readers * (64 * KIB + 8 * KIB * sum(flows))


def _finite(metric: Measured) -> bool:
    return isfinite(metric.value) and isfinite(sum(v for _, v in metric.series))


def _write(folder: Folder, found: Report) -> None:
    rows = (f" {results.json_text(k)}: {results.json_text(m.plain(), None)}" for k, m in found.metrics.items())
    results.put(folder.path / "metrics.json", ("{\n" + ",\n".join(rows) + "\n}\n").encode())
    results.write(folder, "verdict.json", found.verdict_json())
    results.put(folder.path / "junit.xml", junit(found))


def junit(found: Report) -> bytes:
    """Return a report as JUnit's XML: a case for each check, and one for each failure, which is an error.

    XML 1.0 has no way to hold a control character, a surrogate or a noncharacter (section 2.2): they are spelt out.
    """
    name = found.topology.name
    suite = suite_of(name, [(name, o) for o in found.outcomes])
    for n, failure in enumerate(found.failures):
        case = ElementTree.SubElement(suite, "testcase")
        _set(case, classname=name, name=f"run {n + 1}")
        error = ElementTree.SubElement(case, "error")
        _set(error, message=failure.partition("\n")[0])
        error.text = shown(failure)
    _set(suite, tests=str(len(suite)), errors=str(len(found.failures)))
    if found.time:
        _set(suite, timestamp=datetime.fromtimestamp(found.time, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
        _set(suite, time=f"{found.seconds:.3f}")
        for case in suite:  # a run measures all its checks at once: readers add the times of cases up
            _set(case, time=f"{found.seconds / len(suite):.3f}")
    ElementTree.indent(suite)
    return bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))


def suite_of(name: str, outcomes: Sequence[tuple[str, Outcome]]) -> ElementTree.Element:
    """Return a suite of checks, each with the name of its class; what passed says its value."""
    suite = ElementTree.Element("testsuite")
    _set(suite, name=name, tests=str(len(outcomes)))
    _set(suite, failures=str(sum(not o.passed for _, o in outcomes)), errors="0")
    for classname, o in outcomes:
        case = ElementTree.SubElement(suite, "testcase")
        _set(case, classname=classname, name=f"{o.metric} {o.expected}")
        value = f"it is {o.value:g} {o.unit}".strip() if o.value is not None else ""
        if not o.passed:
            _set(ElementTree.SubElement(case, "failure"), message=o.why or value)
        if said := ": ".join(filter(None, (value, o.why))):
            ElementTree.SubElement(case, "system-out").text = shown(said)
    return suite


def _set(element: ElementTree.Element, **attributes: str) -> None:
    for name, text in attributes.items():
        element.set(name, shown(text))
