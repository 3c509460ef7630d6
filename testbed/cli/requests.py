"""Verbs that another machine asks for; people do not see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from testbed.cli.declared import Argument, Option
from testbed.cli.inputs import under
from testbed.cli.options import File, Sets
from testbed.errors import TestbedError


def run_case(
    file: File,
    case: Annotated[int, Option("--case", min=0)],
    name: Annotated[str, Option("--name")],
    out: Annotated[Path, Option("--results")],
    sets: Sets = None,
) -> None:
    """Perform a case for the machine that asked for it, which makes the report; what is said is JSON for it."""
    from testbed.loading import read
    from testbed.runs import case as runner

    def say(value: dict[str, Any]) -> None:
        print(json.dumps(value), flush=True)

    try:
        runner.perform(read(file, tuple(sets or ()), under()), case, out.resolve(), name, say)
    except TestbedError as e:
        say({"failed": str(e), "status": e.exit_status})
        raise SystemExit(e.exit_status) from e


def serve_request() -> None:
    """Perform a command line that another machine sends on standard input."""
    from testbed.cli import program
    from testbed.machines.ssh import request

    raise SystemExit(request.serve(program.script))


def collect_request(token: Annotated[str, Argument()]) -> None:
    """Send the results of a request to the machine that sent it."""
    from testbed.machines.ssh import request

    request.collect(token)
