"""Verbs on files: check, plan, schema."""

from __future__ import annotations

import json

from testbed.cli import present
from testbed.cli.inputs import planned
from testbed.cli.options import AsJson, File, Sets
from testbed.errors import InputError


def check(file: File, sets: Sets = None, as_json: AsJson = False) -> None:
    """Check a file and report all of its errors; nothing is created."""
    from testbed.loading import read

    try:
        cases = read(file, tuple(sets or ())).cases
    except InputError as e:
        if not as_json:
            raise
        keys = ("message", "file", "line", "column", "hint")
        print(json.dumps({"problems": [{k: getattr(p, k) for k in keys} for p in e.problems]}, indent=1))
        raise SystemExit(e.exit_status) from e
    top = cases[0].topology
    if as_json:
        print(
            json.dumps(
                {
                    "problems": [],
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
        print(f"{file}: {top.name}: {', '.join(size)}: no errors")


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
