"""Verbs on files: check, plan, schema."""

from __future__ import annotations

import json

from testbed.cli import present
from testbed.cli.inputs import checked, planned
from testbed.cli.options import AsJson, File, Sets, Strict
from testbed.errors import InputError, Problem


def check(file: File, sets: Sets = None, strict: Strict = False, as_json: AsJson = False) -> None:
    """Check a file and report all of its errors and warnings; nothing is created."""
    try:
        experiment = checked(file, sets, strict, aloud=not as_json)
    except InputError as e:
        if not as_json:
            raise
        print(json.dumps({"problems": list(map(_told, e.problems)), "warnings": []}, indent=1))
        raise SystemExit(e.exit_status) from e
    cases = experiment.cases
    top = cases[0].topology
    if as_json:
        print(
            json.dumps(
                {
                    "problems": [],
                    "warnings": list(map(_told, experiment.warnings)),
                    "name": top.name,
                    "nodes": len(top.nodes),
                    "links": len(top.links),
                    "runs": len(cases),
                }
            )
        )
    else:
        size = [
            present.count(len(top.nodes), "node"),
            present.count(len(top.links), "link"),
            present.count(len(top.workloads), "workload"),
        ]
        size += [present.count(len(cases), "run")] if len(cases) > 1 else []
        warned = len(experiment.warnings)
        told = f", {present.count(warned, 'warning')}" if warned else ""
        print(f"{file}: {top.name}: {', '.join(size)}: no errors{told}")


def _told(problem: Problem) -> dict[str, object]:
    """Return a problem for scripts; the name is that of a warning."""
    keys = ("message", "file", "line", "column", "hint", *(("name",) if problem.name else ()))
    return {key: getattr(problem, key) for key in keys}


def plan(file: File, sets: Sets = None, as_json: AsJson = False) -> None:
    """Print exactly what `up` would do, and what `run` would do after that."""
    from testbed.plan import run as schedule

    made = planned(file, sets)
    run = schedule.run_steps(made) if made.topology.workloads or made.topology.events or made.topology.capture else ()
    if as_json:
        kinds = [
            {"phase": p, "kind": type(s).__name__, "text": str(s)}
            for p, steps in (("up", made.steps), ("run", run))
            for s in steps
        ]
        print(json.dumps({"name": made.name, "steps": kinds}, indent=1))
        return
    print(made, end="")
    if run:
        print("\n# run")
        for step in run:
            print(step)


def schema() -> None:
    """Print the JSON Schema of the topology language, for editors."""
    from testbed.language.schema import schema as made

    print(json.dumps(made(), indent=1))
