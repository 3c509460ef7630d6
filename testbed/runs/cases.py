"""All cases of an experiment, one after the other: what keeps one from its end leaves the others alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

from testbed import results
from testbed.errors import LabError
from testbed.lab.control import Say
from testbed.language.experiment import Case
from testbed.report import together
from testbed.report.together import Outcome
from testbed.runs import case as runner
from testbed.runs.invocation import Invocation

if TYPE_CHECKING:
    from testbed.machines.case import Perform


def each(
    invocation: Invocation,
    name: str | None,
    shown_by: Callable[[int, Case], AbstractContextManager[Say]],
    perform: Perform | None = None,
) -> Iterator[Outcome]:
    """Run the cases, elsewhere with `perform`, and yield what came of each; `shown_by` shows how number n goes on."""
    for n, case in enumerate(invocation.experiment.cases):
        with shown_by(n, case) as say:
            elsewhere = partial(perform, n) if perform is not None else None
            found = runner.run(invocation, n, name or case.topology.name, say, elsewhere)
        yield found


def keep(invocation: Invocation, outcomes: Sequence[Outcome]) -> None:
    """Write what all cases come to: into the folder of several, and their JUnit file beside it."""
    if invocation.folder is None or not any(o.folder is not None for o in outcomes):
        return
    # What went wrong before says more.
    with suppress(LabError) if together.worst(outcomes) is not None else nullcontext():
        if invocation.whole is not None:
            together.keep(invocation.folder.path, outcomes)
            results.write(invocation.folder, "manifest.json", {**invocation.whole, "ended": time.time()})
        results.put(invocation.folder.path.parent / "junit.xml", together.junit(outcomes))
