"""One case of an experiment from beginning to end: folder, lab, run, end of the lab, report."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, to_builtins

from testbed import results
from testbed.errors import TestbedError
from testbed.faults import foreseen
from testbed.features import Feature
from testbed.lab import asking, travel
from testbed.lab.control import RunningLab, Say
from testbed.language.experiment import Case, Experiment
from testbed.machines.probe import here
from testbed.metrics.records import Held
from testbed.plan import run as schedule
from testbed.plan.lab import Plan, outline, plan
from testbed.report.report import Report, report
from testbed.results import Folder
from testbed.runs.bring_up import up
from testbed.steps import Step

if TYPE_CHECKING:
    from testbed.machines.case import Begin, Performed

ABOUT = "about.json"  # what a machine says of itself to the one that asked for a case
_LONGEST = 50_000  # characters of an error in run.json
_NOT_BEGUN = {"monotonic": 0.0, "seconds": 0.0, "events": [], "processes": []}


class Outcome(Struct, frozen=True):
    """What came of a case: its folder and report as far as there are any, and the error that ended it early."""

    case: Case
    folder: Path | None
    report: Report | None = None
    error: TestbedError | None = None


def requires(experiment: Experiment) -> tuple[Feature, ...]:
    """Return what a machine must offer for every case of an experiment."""
    plans = (outline(case.topology) for case in experiment.cases)
    return tuple(dict.fromkeys(f for p in plans for f in (*p.requires(), *schedule.requires(p))))


def run(
    experiment: Experiment,
    case: Case,
    root: Path,
    overrides: tuple[str, ...],
    name: str,
    say: Say,
    elsewhere: Callable[[Begin, Say], Performed] | None = None,
) -> Outcome:
    """Run a case in a lab of its own and return what came of it; the lab is gone afterwards, whatever happened.

    Whatever keeps it from its end, but for what ends this program, is its error; a workload or a step that failed
    during the run is in the report, as verdict `error`. With `elsewhere` another machine performs it, and gives its
    raw files alone.
    """
    made: list[Folder] = []
    try:
        with foreseen():
            if elsewhere is None:
                _run(experiment, case, root, overrides, name, say, made)
            else:
                _run_elsewhere(experiment, case, root, overrides, say, made, elsewhere)
            found = report(made[0].path)
            results.point_latest(made[0])
            return Outcome(case, made[0].path, found)
    except TestbedError as e:
        return _failed(case, made[0] if made and made[0].path.exists() else None, e)


def _run(
    experiment: Experiment,
    case: Case,
    root: Path,
    overrides: tuple[str, ...],
    name: str,
    say: Say,
    made: list[Folder],
) -> None:
    """Run a case; `made` gets its folder as soon as that is one of results."""
    planned = plan(case.topology)
    needed = (*planned.requires(), *schedule.requires(planned))
    alone = len(experiment.cases) == 1
    if alone:  # where it can't be, nothing is made
        here.require(needed)
    facts = {**_facts(experiment), "tools": here.versions(needed)}
    folder = _begin(experiment, case, planned, root, overrides, facts)
    made.append(folder)
    if not alone:
        here.require(needed)
    held = _perform(planned, case, folder, name, say)
    facts |= {"ended": time.time(), "resources": to_builtins(held)}
    results.write(folder, "manifest.json", results.manifest(overrides, case.settings, experiment.seed, **facts))


def _run_elsewhere(
    experiment: Experiment,
    case: Case,
    root: Path,
    overrides: tuple[str, ...],
    say: Say,
    made: list[Folder],
    elsewhere: Callable[[Begin, Say], Performed],
) -> None:
    """Have a case performed by another machine; `made` gets its folder, which is made here, when that has begun."""
    planned, facts = plan(case.topology), _facts(experiment)

    def begin(about: Mapping[str, object]) -> Folder:
        facts.update(about)
        made.append(_begin(experiment, case, planned, root, overrides, facts))
        return made[0]

    folder, told = elsewhere(begin, say)
    facts |= {"ended": time.time(), **told}
    results.write(folder, "manifest.json", results.manifest(overrides, case.settings, experiment.seed, **facts))


def perform(experiment: Experiment, number: int, folder: Path, name: str, say: Say) -> None:
    """Be the machine that performs a case: leave its raw files in a folder, and what is to be known of us."""
    case = experiment.cases[number]
    planned = plan(case.topology)
    needed = (*planned.requires(), *schedule.requires(planned))
    here.require(needed)
    with results.written(folder):
        folder.mkdir(parents=True, exist_ok=True)
    known = results.manifest((), (), 0, tools=here.versions(needed), began=time.time())
    facts = {k: known[k] for k in ("python", "kernel", "host", "tools", "began")}
    results.write(Folder(folder), ABOUT, facts)
    say({"began": True})
    held = _perform(planned, case, Folder(folder), name, say)
    results.write(Folder(folder), ABOUT, facts | {"ended": time.time(), "resources": to_builtins(held)})


def _facts(experiment: Experiment) -> dict[str, Any]:
    return {"git": here.commit(experiment.path.parent), "arguments": sys.argv[1:], "began": time.time()}


def _begin(
    experiment: Experiment,
    case: Case,
    planned: Plan,
    root: Path,
    overrides: tuple[str, ...],
    facts: Mapping[str, Any],
) -> Folder:
    """Make the folder of a run. Its manifest makes it one of results: nothing slow is between the two."""
    text = f"{planned}\n# run\n" + "".join(f"{s}\n" for s in schedule.run_steps(planned))
    folder = results.create(root.resolve(), case.topology.name, case.label, experiment.texts, text)
    with results.whole(folder):
        results.write(folder, "manifest.json", results.manifest(overrides, case.settings, experiment.seed, **facts))
    return folder


def _failed(case: Case, folder: Folder | None, error: TestbedError) -> Outcome:
    """Return what came of a case that did not come to its end; its folder says why."""
    found: Report | None = None
    if folder is not None:
        # The error itself says more than what can be said of its results.
        with suppress(TestbedError), foreseen():
            if not (folder.path / "run.json").exists():  # it had not begun
                why = [str(error)[:_LONGEST]]
                results.write(folder, "run.json", {**_NOT_BEGUN, "time": time.time(), "failures": why})
            found = report(folder.path)
    return Outcome(case, None if folder is None else folder.path, found, error)


def _perform(planned: Plan, case: Case, folder: Folder, name: str, say: Say) -> dict[str, Held]:
    needed = schedule.requires(planned)
    with results.kernel_log(folder):
        lab = up(planned, name, say=say, folder=folder.path, requires=needed, about={"run": str(folder.path)})
        return _play(lab, schedule.run_steps(planned), folder, case.topology.duration or 0.0, say)


def _play(lab: RunningLab, steps: tuple[Step, ...], folder: Folder, seconds: float, say: Say) -> dict[str, Held]:
    """Perform a run in a lab and take the lab down; return how its bounds held."""
    try:
        lab.ask(asking.Run(travel.encode(steps), str(folder.path), seconds), say=say)
        held = lab.bounds()
    except TestbedError:
        lab.down()
        raise
    except BaseException:
        lab.abandon()  # Ctrl-C
        raise
    lab.down()
    return held
