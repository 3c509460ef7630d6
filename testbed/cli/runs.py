"""Verbs on runs and their results: run, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from testbed.cli import present
from testbed.cli.declared import Argument, Option
from testbed.cli.inputs import assignments, checked, contents, machine_of, wanted
from testbed.cli.options import AsJson, Cpus, File, Kernel, MachineName, Memory, Modules, Name, Sets, Strict
from testbed.cli.progress import fraction, progress, say, tell

if TYPE_CHECKING:
    from testbed.machines.case import Perform
    from testbed.machines.choose import Choice
    from testbed.machines.lab_guest import Wanted
    from testbed.report.report import Report


def run(
    file: File,
    sets: Sets = None,
    name: Name = None,
    out: Annotated[Path, Option("--results", help="Folder for the results")] = Path("results"),
    machine: MachineName = "auto",
    cpus: Cpus = None,
    memory: Memory = None,
    kernel: Kernel = None,
    modules: Modules = None,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Bring a lab up, run its workloads and events, record everything, take it down, and report."""
    from testbed.language.experiment import Case
    from testbed.machines import choose
    from testbed.report import together
    from testbed.runs import bring_up as start
    from testbed.runs import case as runner
    from testbed.runs import cases
    from testbed.runs.invocation import invoked

    overrides = tuple(sets or ())
    machine = machine_of(machine, kernel, modules)
    experiment = checked(file, sets, strict)
    first = experiment.cases[0].topology.name
    start.permitted_name(name or first)
    # Which case lacks what is found out case by case: one that can't be here does not keep the others from it.
    choice = choose.choose(() if machine == choose.HERE else runner.requires(experiment), machine)
    many = len(experiment.cases)

    def shown_by(n: int, case: Case) -> AbstractContextManager[Callable[[dict[str, Any]], None]]:
        title = f"{case.topology.name} {case.label}".strip()
        return progress(title, case.topology.seconds(), f"[{n + 1}/{many}] " if many > 1 else "")

    invocation = invoked(experiment, out, overrides)
    found = []
    try:
        nodes = max(len(case.topology.nodes) for case in experiment.cases)
        needs = () if kernel is None else runner.requires(experiment)
        guest = None if choice.machine == choose.HERE else wanted(nodes, cpus, memory, kernel, modules, needs)
        with _performer(choice, machine, file, sets, name or first, guest) as perform:
            for outcome in cases.each(invocation, name, shown_by, perform):
                found.append(outcome)
                if not as_json and not (many == 1 and outcome.error is not None):  # of one alone the error says all
                    print(present.outcome(outcome, _short(outcome.folder) if outcome.folder is not None else ""))
    finally:  # Ctrl-C ends all: what was done is told
        if as_json:
            print(json.dumps([together.summary(o) for o in found], indent=1))
        cases.keep(invocation, found)
        if invocation.whole is not None and invocation.folder is not None and not as_json:
            print(present.several(found, together.verdict(found), _short(invocation.folder.path)))
    if (error := together.worst(found)) is not None:
        raise error


def report(
    folder: Annotated[Path, Argument(help="A results folder, such as results/NAME/latest")],
    as_json: AsJson = False,
) -> None:
    """Derive metrics, verdict and JUnit from a results folder again, and print them."""
    from testbed.report import together
    from testbed.runs import again

    if together.rows(folder)[1]:
        outcomes = []
        for outcome in again.each(folder):
            outcomes.append(outcome)
            if not as_json:
                print(present.outcome(outcome, _short(outcome.folder) if outcome.folder is not None else ""))
        together.keep(folder, outcomes)
        if as_json:
            print(json.dumps([together.summary(o) for o in outcomes], indent=1))
        else:
            print(present.several(outcomes, together.verdict(outcomes), _short(folder)))
        error = together.worst(outcomes)
    else:
        found = again.again(folder)
        if as_json:
            print(json.dumps(_derived(found), indent=1))
        else:
            print(present.report(found, _short(found.folder)))
        error = together.missed(found)
    if error is not None:
        raise error


@contextmanager
def _performer(
    choice: Choice,
    asked: str,
    file: Path,
    sets: list[str] | None,
    lab: str,
    guest: Wanted | None,
) -> Iterator[Perform | None]:
    """Yield what performs the cases of an experiment on another machine, None when that is this one."""
    if guest is None:
        yield None
        return
    from testbed.machines.cases import cases as on_machine
    from testbed.machines.errands import Errand

    tell(choice, asked)
    errand = Errand(choice, ("run-case", file, "--name", lab, *assignments(sets)), contents(file, sets))
    with on_machine(errand, lab, guest, say, fraction) as perform:
        yield perform


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)


def _derived(found: Report) -> dict[str, Any]:
    """Return what scripts are told of a report."""
    return {"name": found.topology.name, "folder": str(found.folder), **found.verdict_json()}
