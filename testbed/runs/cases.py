"""All cases of an experiment, one after the other: what keeps one from its end leaves the others alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from testbed import results
from testbed.errors import BugError, CheckFailed, InputError, LabError, TestbedError, Unsupported
from testbed.lab.control import Say
from testbed.language.experiment import Case, Experiment
from testbed.plain import shown
from testbed.report.report import Report
from testbed.runs import case as runner
from testbed.runs.case import Outcome

if TYPE_CHECKING:
    from testbed.machines.case import Perform

# The worst first: a mistake of ours says nothing of the lab, and only when all ran is a missed check a regression.
ORDER: tuple[type[TestbedError], ...] = (BugError, LabError, Unsupported, InputError, CheckFailed)


def each(
    experiment: Experiment,
    root: Path,
    overrides: tuple[str, ...],
    name: str | None,
    shown_by: Callable[[int, Case], AbstractContextManager[Say]],
    perform: Perform | None = None,
) -> Iterator[Outcome]:
    """Run the cases, elsewhere with `perform`, and yield what came of each; `shown_by` shows how number n goes on."""
    for n, case in enumerate(experiment.cases):
        with shown_by(n, case) as say:
            elsewhere = partial(perform, n) if perform is not None else None
            found = runner.run(experiment, case, root, overrides, name or case.topology.name, say, elsewhere)
        yield found


def error(outcome: Outcome) -> TestbedError | None:
    """Return the error that a case is for whoever asked for it, None when nothing is wrong."""
    return missed(outcome.report) if outcome.error is None and outcome.report is not None else outcome.error


def missed(report: Report) -> TestbedError | None:
    """Return the error that a report is: something failed, or did not hold; None when nothing is wrong."""
    if failed := report.failures:
        return LabError(f"{len(failed)} steps or workloads of the run failed: {_first(failed[0])}")
    wrong = sum(not o.passed for o in report.outcomes)
    return CheckFailed(f"{wrong} of {len(report.outcomes)} checks failed") if wrong else None


def worst(outcomes: Sequence[Outcome]) -> TestbedError | None:
    """Return the error that the whole comes to: of the worst kind that any case has."""
    found = [(o, e) for o in outcomes if (e := error(o)) is not None]
    for kind in ORDER:
        some = [(o, e) for o, e in found if isinstance(e, kind)]
        if some and len(outcomes) == 1:
            return some[0][1]
        if some:
            first, why = some[0]
            return kind(f"{len(some)} of {len(outcomes)} cases: {title(first)}: {_first(str(why))}")
    return None


def title(outcome: Outcome) -> str:
    """Return what a case is called."""
    return f"{outcome.case.topology.name} {outcome.case.label}".strip()


def junit(outcomes: Sequence[Outcome]) -> bytes:
    """Return one JUnit file of all cases: a suite each, as in the case's own folder."""
    whole = ElementTree.Element("testsuites")
    for outcome in outcomes:
        own = None if outcome.report is None or outcome.folder is None else outcome.folder / "junit.xml"
        suite = _lost(outcome) if own is None else ElementTree.fromstring(own.read_bytes())  # noqa: S314 (our own)
        suite.set("name", shown(title(outcome)))
        for test in suite:
            test.set("classname", shown(title(outcome).replace(" ", ".")))
        whole.append(suite)
    ElementTree.indent(whole)
    return bytes(ElementTree.tostring(whole, encoding="utf-8", xml_declaration=True))


def _lost(outcome: Outcome) -> ElementTree.Element:
    """Return the suite of a case that has no results."""
    why = str(outcome.error)
    suite = ElementTree.Element("testsuite", tests="1", failures="0", errors="1")
    failed = ElementTree.SubElement(ElementTree.SubElement(suite, "testcase", name="run 1"), "error")
    failed.set("message", shown(_first(why)))
    failed.text = shown(why)
    return suite


def keep(root: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the JUnit file of all cases beside the folders of the runs."""
    if any(o.folder is not None for o in outcomes):
        path = root / outcomes[0].case.topology.name / "junit.xml"
        # What went wrong before says more.
        with suppress(LabError) if worst(outcomes) is not None else nullcontext():
            results.put(path, junit(outcomes))


def _first(text: str) -> str:
    return text.partition("\n")[0]
