"""Results folder -> metrics.json, verdict.json, junit.xml: from the raw files alone, as often as one likes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from msgspec import Struct
from msgspec.structs import asdict

from testbed import metrics as derive
from testbed import results
from testbed.addressing import network
from testbed.consistency import AIR, link_ids
from testbed.effects import Effect, effects
from testbed.experiment import read
from testbed.machines.qemu import frames_without_channel, kernel_faults
from testbed.plan import plan
from testbed.results import Folder
from testbed.topology import Check, Topology
from testbed.wifi import metrics as links
from testbed.workloads.place import Measured

BUSY = 90.0  # per cent of all CPUs: above it a figure may be the host's and not the lab's


class Outcome(Struct, frozen=True):
    """One check and what came of it; `value` is None when the metric was not measured, and `why` says so."""

    metric: str
    expected: str
    value: float | None
    unit: str
    passed: bool
    why: str = ""


class Doubt(Struct, frozen=True):
    """A figure that the host limited: what it affects, and what was seen."""

    what: str
    seen: str


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

    @property
    def verdict(self) -> str:
        """Return `error` (the run itself failed), `failed`, `passed`, or `no checks`."""
        if self.failures:
            return "error"
        if not self.outcomes:
            return "no checks"
        return "passed" if all(o.passed for o in self.outcomes) else "failed"


def report(path: Path) -> Report:
    """Derive metrics, verdict and JUnit from a results folder and write them into it."""
    folder = Folder(path)
    manifest = folder.json("manifest.json")
    unfinished = {"monotonic": 0.0, "failures": ["the run did not end"]}
    run: dict[str, Any] = folder.json("run.json") if (path / "run.json").exists() else unfinished
    topology = _topology(folder, manifest)
    net = network(topology)
    metrics: dict[str, Measured] = {}
    failures = list(run["failures"])
    for name, work in topology.workloads.items():
        failures += filter(None, [work.workload().failure(name, path)])
        for key, value in work.workload().read(name, path).items():
            metrics[f"{name}.{key}"] = value
    origin = float(run["monotonic"])
    frames = list(folder.lines("air.jsonl"))
    samples = {name: list(folder.lines(f"{name}/samples.jsonl")) for name in topology.nodes}
    told = {name: list(folder.lines(f"{name}/wlan-events.jsonl")) for name in topology.nodes}
    for name, rows in samples.items():
        logs = [log.read_text(errors="replace") for log in sorted((path / name).glob("*.dumpcap.log"))]
        found = derive.interfaces(name, rows, origin) | derive.mptcp(net, name, rows, origin)
        metrics |= found | derive.captures(name, logs)
        if net.wireless(name):
            metrics |= links.wlans(link_ids(net, name), name, rows, told[name], frames, origin)
    logs = [log.read_text(errors="replace") for log in sorted(path.glob("*.dumpcap.log"))]
    metrics |= derive.captures(AIR, logs)
    metrics |= derive.machine(list(folder.lines("machine.jsonl")), origin)
    failures += [] if _shared(manifest) else [f"the guest's kernel says: {row}" for row in _kernel_faults(folder)]
    outcomes = tuple(_judge(check, metrics) for check in topology.checks)
    doubts = tuple(_doubts(topology, metrics, folder, manifest, frames))
    happened: tuple[Effect, ...] = ()
    if topology.events:  # a plan may take a while, and only events need it here
        happened = tuple(effects(plan(topology), run.get("events", ()), told, metrics, origin))
    seconds = float(run.get("seconds", 0.0))
    whole = Report(path, topology, metrics, outcomes, doubts, tuple(failures), happened, seconds)
    _write(folder, whole)
    return whole


def _topology(folder: Folder, manifest: dict[str, Any]) -> Topology:
    base = folder.path / "topology.yaml"
    experiment = folder.path / "experiment.yaml"
    overrides, settings = tuple(manifest["overrides"]), tuple(manifest["settings"])
    found = read(experiment, overrides, base) if experiment.exists() else read(base, overrides)
    return next(case.topology for case in found.cases if case.settings == settings)


def _judge(check: Check, metrics: dict[str, Measured]) -> Outcome:
    name = (
        check.metric
        + (f" / {check.divide_by}" if check.divide_by else "")
        + (f" at {check.at:g} s" if check.at is not None else "")
    )
    bounds = (("=", check.equals), (">=", check.min), ("<=", check.max))
    expected = " and ".join(f"{sign} {value:g}" for sign, value in bounds if value is not None)
    expected = expected or ("present" if check.present else "absent")
    if check.present is False:
        there = check.metric in metrics
        return Outcome(
            name,
            expected,
            metrics[check.metric].value if there else None,
            "",
            not there,
            "it is there" if there else "",
        )
    value, unit, why = _value(check.metric, check.at, metrics)
    if value is not None and check.divide_by is not None:
        other, _, why = _value(check.divide_by, check.at, metrics)
        value, unit = (value / other if other else None, "") if other is not None else (None, "")
        why = why or ("" if value is not None else f"{check.divide_by} is 0")
    if value is None:
        return Outcome(name, expected, None, unit, False, why)
    low = check.min is None or value >= check.min
    high = check.max is None or value <= check.max
    same = check.equals is None or value == check.equals
    return Outcome(name, expected, value, unit, low and high and same)


def _value(name: str, at: float | None, metrics: dict[str, Measured]) -> tuple[float | None, str, str]:
    if name not in metrics:
        what = "unsupported: this kernel has no such counter" if ".mptcp." in name else "it was not measured"
        return None, "", f"{name}: {what}"
    metric = metrics[name]
    if at is None:
        return metric.value, metric.unit, ""
    before = [v for t, v in metric.series if t <= at]
    if not before:
        return None, metric.unit, f"{name}: no sample at or before {at:g} s"
    return before[-1], metric.unit, ""


def _doubts(
    topology: Topology,
    metrics: dict[str, Measured],
    folder: Folder,
    manifest: dict[str, Any],
    frames: list[Any],
) -> Iterable[Doubt]:
    cpu = metrics.get("machine.cpu_max_pct")
    if cpu is not None and cpu.value > BUSY:
        yield Doubt("every rate and delay", f"the CPUs were {cpu.value:.0f} % busy in the busiest second")
    for name, metric in metrics.items():
        if name.endswith(".capture_drops") and metric.value:
            yield Doubt(
                f"the capture of {name.removesuffix('.capture_drops')}",
                f"{metric.value:.0f} packets were not captured",
            )
    for name, work in topology.workloads.items():
        if work.multicast is not None:
            yield from (Doubt(what, seen) for what, seen in work.multicast.doubts(name, metrics))
    if frames and frames[-1]["drops"]:
        yield Doubt("frames by link", f"{frames[-1]['drops']} frames on the medium were not counted")
    shaped, told = _shaped(topology), _told_as_drops(topology)
    for name, metric in metrics.items():
        where, _, what = name.rpartition(".")
        drops = what in ("qdisc_drops", "rx_dropped", "tx_dropped") and where not in shaped and name not in told
        if drops and metric.value:
            yield Doubt(
                f"flows through {where}",
                f"{metric.value:.0f} packets dropped ({what}) where no shaping was asked for",
            )
    if manifest["accelerator"] == "tcg":
        yield Doubt("every rate and delay", "the processor was emulated (TCG): what it limits is not the network")
    if copies := frames_without_channel(_kernel_log(folder)):
        what = "group addressed frames of one link"
        yield Doubt(what, f"the kernel warned of {copies} that hwsim dropped while that link was being stopped")
    for row in _kernel_faults(folder) if _shared(manifest) else ():
        yield Doubt("everything", f"the kernel says: {row}")


def _kernel_faults(folder: Folder) -> list[str]:
    return kernel_faults(_kernel_log(folder))


def _kernel_log(folder: Folder) -> str:
    log = folder.path / "dmesg.log"
    return log.read_text(errors="replace") if log.exists() else ""


def _shared(manifest: dict[str, Any]) -> bool:
    """Say whether others use that kernel as well: then its faults need not be of this run."""
    return bool(manifest["machine"] != "microvm")


def _told_as_drops(topology: Topology) -> set[str]:
    """Return counters that count something else: AMT's messages as they are sent (drivers/net/amt.c: amt_dev_xmit)."""
    roles = [(n, role) for n, node in topology.nodes.items() for role in (node.amt_gateway, node.amt_relay)]
    ways = ("tx", "rx") if any(e.restart for e in topology.events) else ("tx",)  # what comes after is not expected
    return {f"{name}.{role.name}.{way}_dropped" for name, role in roles if role is not None for way in ways}


def _shaped(topology: Topology) -> set[str]:
    """Return the interfaces (node.interface) where drops are part of what was asked for: by a rate, loss or queue."""
    changing = {e.link for e in topology.events if e.set is not None or e.down is not None}
    found: set[str] = set()
    for link in topology.links:
        ways = (link.shape("forward"), link.shape("reverse"))
        lossy = any(w.rate or w.loss or w.queue or w.limit for w in ways)
        if lossy or link.name in changing or changing & set(link.ends):
            found |= {end.replace(":", ".") for end in link.ends}
    return found


def _write(folder: Folder, found: Report) -> None:
    results.write(folder, "metrics.json", {name: m.plain() for name, m in found.metrics.items()})
    verdict = {
        "verdict": found.verdict,
        "checks": [asdict(o) for o in found.outcomes],
        "validity": [asdict(d) for d in found.doubts],
        "failures": list(found.failures),
        "events": [asdict(e) for e in found.events],
    }
    results.write(folder, "verdict.json", verdict)
    suite = ElementTree.Element(
        "testsuite", name=found.topology.name, tests=str(len(found.outcomes) + len(found.failures))
    )
    suite.set("failures", str(sum(not o.passed for o in found.outcomes)))
    suite.set("errors", str(len(found.failures)))
    for o in found.outcomes:
        case = ElementTree.SubElement(suite, "testcase", classname=found.topology.name, name=f"{o.metric} {o.expected}")
        if not o.passed:
            text = o.why or f"it is {o.value:g} {o.unit}".strip()
            ElementTree.SubElement(case, "failure", message=text)
    for n, failure in enumerate(found.failures):
        case = ElementTree.SubElement(suite, "testcase", classname=found.topology.name, name=f"run {n + 1}")
        ElementTree.SubElement(case, "error", message=failure.splitlines()[0]).text = failure
    ElementTree.indent(suite)
    junit = folder.path / "junit.xml"
    with results.written(junit):
        junit.write_bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))
