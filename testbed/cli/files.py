"""Verbs on files: check, plan, schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from testbed.cli import present
from testbed.cli.inputs import planned
from testbed.cli.options import AsJson, File, Sets
from testbed.errors import InputError

if TYPE_CHECKING:
    pass


def check(file: File, sets: Sets = None, as_json: AsJson = False) -> None:
    """Say whether a file is right: every error at once, nothing is created."""
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
    """Print exactly what `up`, and then `run`, would perform."""
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
    """Print the language as a JSON Schema, for editors."""
    from testbed.language.schema import schema as made

    print(json.dumps(made(), indent=1))
