"""One case of an experiment from beginning to end: folder, lab, run, end of the lab, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

from testbed import results
from testbed.errors import TestbedError
from testbed.features import Feature
from testbed.lab import asking, travel
from testbed.lab.control import RunningLab, Say
from testbed.language.experiment import Case, Experiment
from testbed.linux.faults import foreseen
from testbed.machines.probe import here
from testbed.metrics.records import Held
from testbed.plan import run as schedule
from testbed.plan.lab import Plan, outline, plan
from testbed.report.report import Report, report
from testbed.report.together import Outcome, Which
from testbed.results import Folder
from testbed.rules.warnings import WARNINGS
from testbed.runs import written
from testbed.runs.bring_up import up
from testbed.runs.invocation import Invocation, begin
from testbed.steps import Step

if TYPE_CHECKING:
    from testbed.machines.case import Begin, Performed

ABOUT = "about.json"  # what a machine says of itself to the one that asked for a case
_LONGEST = 50_000  # characters of an error in run.json
_NOT_BEGUN = {"monotonic": 0.0, "seconds": 0.0, "events": [], "processes": []}


def requires(experiment: Experiment) -> tuple[Feature, ...]:
    """Return what a machine must offer for every case of an experiment."""
    plans = (outline(case.topology) for case in experiment.cases)
    return tuple(dict.fromkeys(f for p in plans for f in (*p.requires(), *schedule.requires(p))))


def run(
    invocation: Invocation,
    number: int,
    name: str,
    say: Say,
    elsewhere: Callable[[Begin, Say], Performed] | None = None,
) -> Outcome:
    """Run a case in a lab of its own and return what came of it; the lab is gone afterwards, whatever happened.

    Whatever keeps it from its end, but for what ends this program, is its error; a workload or a step that failed
    during the run is in the report, as verdict `error`. With `elsewhere` another machine performs it, and gives its
    raw files alone.
    """
    case = invocation.experiment.cases[number]
    which = Which(case.topology.name, case.label, case.settings)
    made: list[Folder] = []
    try:
        with foreseen():
            if elsewhere is None:
                _run(invocation, number, name, say, made)
            else:
                _run_elsewhere(invocation, number, say, made, elsewhere)
            found = report(made[0].path)
            assert invocation.folder is not None
            results.point_latest(invocation.folder)
            return Outcome(which, made[0].path, found)
    except TestbedError as e:
        return _failed(which, made[0] if made and made[0].path.exists() else None, e)


def _run(invocation: Invocation, number: int, name: str, say: Say, made: list[Folder]) -> None:
    """Run a case; `made` gets its folder as soon as that is one of results."""
    case = invocation.experiment.cases[number]
    planned = plan(case.topology)
    needed = (*planned.requires(), *schedule.requires(planned))
    alone = len(invocation.experiment.cases) == 1
    if alone:  # where it can't be, nothing is made
        here.require(needed)
    facts = {**invocation.about, "began": time.time(), "tools": here.versions(needed)}
    texts, steps = written.texts(case, invocation.experiment.seed, planned)
    folder = _begin(invocation, number, texts, facts)
    made.append(folder)
    if not alone:
        here.require(needed)
    held = _perform(planned, steps, folder, name, say)
    facts |= {"ended": time.time(), "resources": to_builtins(held)}
    results.write(folder, "manifest.json", _manifest(invocation, case, facts))


def _run_elsewhere(
    invocation: Invocation,
    number: int,
    say: Say,
    made: list[Folder],
    elsewhere: Callable[[Begin, Say], Performed],
) -> None:
    """Have a case performed by another machine; `made` gets its folder, which is made here, when that has begun."""
    case = invocation.experiment.cases[number]
    facts: dict[str, Any] = {**invocation.about, "began": time.time()}
    texts, _ = written.texts(case, invocation.experiment.seed, plan(case.topology))

    def begin(about: Mapping[str, object]) -> Folder:
        facts.update(about)
        made.append(_begin(invocation, number, texts, facts))
        return made[0]

    folder, told = elsewhere(begin, say)
    facts |= {"ended": time.time(), **told}
    results.write(folder, "manifest.json", _manifest(invocation, case, facts))


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
    held = _perform(planned, schedule.run_steps(planned), Folder(folder), name, say)
    results.write(Folder(folder), ABOUT, facts | {"ended": time.time(), "resources": to_builtins(held)})


def _begin(invocation: Invocation, number: int, texts: Mapping[str, str], facts: Mapping[str, Any]) -> Folder:
    """Make the folder of a run. Its manifest makes it one of results: nothing slow is between the two."""
    experiment = invocation.experiment
    folder = begin(invocation, number)
    inputs = experiment.texts if len(experiment.cases) == 1 else {}  # those of several are in the folder of all
    results.fill(folder, {**inputs, **texts}, _manifest(invocation, experiment.cases[number], facts))
    return folder


def _manifest(invocation: Invocation, case: Case, facts: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("name", "message", "hint", "file", "line", "column")
    warned = [{**{k: getattr(w, k) for k in keys}, "figures": WARNINGS[w.name].figures} for w in case.warnings]
    more = {"warnings": warned, "repeats": sum(c.settings == case.settings for c in invocation.experiment.cases)}
    return results.manifest(invocation.overrides, case.settings, invocation.experiment.seed, **more, **facts)


def _failed(case: Which, folder: Folder | None, error: TestbedError) -> Outcome:
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


def _perform(planned: Plan, steps: tuple[Step, ...], folder: Folder, name: str, say: Say) -> dict[str, Held]:
    needed = schedule.requires(planned)
    with results.kernel_log(folder):
        lab = up(planned, name, say=say, folder=folder.path, requires=needed, about={"run": str(folder.path)})
        return _play(lab, steps, folder, planned.topology.duration or 0.0, say)


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
