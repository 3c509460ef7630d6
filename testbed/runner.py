"""One case of an experiment from beginning to end: folder, lab, run, end of the lab, report."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from msgspec import to_builtins

from testbed import asking, results, schedule, travel
from testbed.control import RunningLab, Say
from testbed.errors import TestbedError
from testbed.experiment import Case, Experiment
from testbed.features import Feature
from testbed.machines import here
from testbed.plan import plan
from testbed.records import Held
from testbed.report import Report, report
from testbed.results import Folder
from testbed.start import up
from testbed.steps import Step


def requires(experiment: Experiment) -> tuple[Feature, ...]:
    """Return what a machine must offer for every case of an experiment."""
    plans = [plan(case.topology) for case in experiment.cases]
    return tuple(dict.fromkeys(f for p in plans for f in (*p.requires(), *schedule.requires(p))))


def run(experiment: Experiment, case: Case, root: Path, overrides: tuple[str, ...], name: str, say: Say) -> Report:
    """Run a case in a lab of its own and return its report; the lab is gone afterwards, whatever happened.

    Raise what `up` raises; a workload or a step that failed during the run is in the report, as verdict `error`.
    """
    planned = plan(case.topology)
    steps = schedule.run_steps(planned)
    needed = schedule.requires(planned)
    here.require((*planned.requires(), *needed))  # before a folder is made
    text = f"{planned}\n# run\n" + "".join(f"{s}\n" for s in steps)
    facts = {
        "tools": here.versions((*planned.requires(), *needed)),
        "git": here.commit(experiment.path.parent),
        "arguments": sys.argv[1:],
        "began": time.time(),
        **json.loads(os.environ.get("TESTBED_MACHINE", "{}")),  # what the machine that asked for this run knows better
    }
    # Its manifest makes a folder one of results: nothing slow is between the two.
    folder = results.create(root.resolve(), case.topology.name, case.label, experiment.texts, text)
    results.write(folder, "manifest.json", results.manifest(overrides, case.settings, experiment.seed, **facts))
    with results.kernel_log(folder):
        lab = up(planned, name, say=say, folder=folder.path, requires=needed, about={"run": str(folder.path)})
        held = _play(lab, steps, folder, case.topology.duration or 0.0, say)
    facts |= {"ended": time.time(), "resources": to_builtins(held)}
    results.write(folder, "manifest.json", results.manifest(overrides, case.settings, experiment.seed, **facts))
    found = report(folder.path)
    results.point_latest(folder)
    return found


def _play(lab: RunningLab, steps: tuple[Step, ...], folder: Folder, seconds: float, say: Say) -> dict[str, Held]:
    """Perform a run in a lab and take the lab down; return how its bounds held."""
    try:
        lab.ask(asking.Run(travel.encode(steps), str(folder.path), seconds), say=say)
        held = lab.bounds()
    except TestbedError:
        lab.down()
        with suppress(TestbedError):  # the error itself says more than what can be said of its results
            report(folder.path)
        raise
    except BaseException:
        lab.abandon()  # Ctrl-C
        raise
    lab.down()
    return held
