"""What a run's folder says of the run before it begins: the case as a file of its own, and the plan (pure)."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.json import encode

from testbed.language.effective import effective
from testbed.language.experiment import Case
from testbed.language.topology import Topology
from testbed.metrics.records import Planned
from testbed.plan.lab import Plan
from testbed.plan.network import Network
from testbed.plan.run import numbered
from testbed.steps import Step

_HEAD = "# One case with everything resolved, as it was run: `testbed run` of this file runs it again.\n"


def texts(case: Case, seed: int, plan: Plan) -> tuple[dict[str, str], tuple[Step, ...]]:
    """Return the files that a run's folder begins with, by name, and the steps of the run."""
    steps, events = numbered(plan)
    times = {n: float(at) for n, s in enumerate(steps) if (at := getattr(s, "at", None)) is not None}
    found = {
        "effective.yaml": resolved(case, seed),
        "plan.txt": f"{plan}\n# run\n" + "".join(f"{s}\n" for s in steps),
        "plan.json": json(planned(plan.topology, plan.network, times, [list(numbers) for numbers in events])),
    }
    return found, steps


def resolved(case: Case, seed: int) -> str:
    """Return effective.yaml."""
    return _HEAD + effective(case.data, seed)


def planned(topology: Topology, net: Network, steps: dict[int, float], events: Sequence[list[int]]) -> Planned:
    """Return what a report needs of a plan: `steps` are times by number, `events` the numbers of each event's steps."""
    return Planned(
        {name: {i.name: list(i.hosts()) for i in own} for name, own in net.interfaces.items()},
        {name: net.link_ids(name) for name in topology.nodes if net.wireless(name)},
        list(dict.fromkeys(p for c in topology.capture for p in net.captured(c.interfaces))),
        bool(net.air),
        steps,
        list(events),
    )


def json(found: Planned) -> str:
    """Return plan.json."""
    return f"{encode(found).decode()}\n"
