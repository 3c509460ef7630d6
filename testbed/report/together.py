"""What several runs come to: the worst of them, one JUnit file, one verdict, and a table of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

from msgspec import Meta, Struct, field
from msgspec.structs import asdict

from testbed import results
from testbed.errors import BugError, CheckFailed, InputError, LabError, Problem, TestbedError, Unsupported
from testbed.metrics.recorded import MIB, Recorded
from testbed.plain import shown
from testbed.report.judge import Outcome as Judged
from testbed.report.judge import across as over
from testbed.report.report import LOST, Report, suite_of
from testbed.results import Folder

# The worst first: a mistake of ours says nothing of the lab, and only when all ran is a missed check a regression.
ORDER: tuple[type[TestbedError], ...] = (BugError, LabError, Unsupported, InputError, CheckFailed)
LACKING = Judged("", "", None, "", passed=False, why="the run did not come to its end")
_Text = Annotated[str, Meta(max_length=100_000)]


class Which(Struct, frozen=True):
    """Which run it is: the name of the topology, the label of the case ("" for the only one), what was set for it."""

    name: str
    label: str = ""
    settings: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Return what it is called."""
        return f"{self.name} {self.label}".strip()


class Outcome(Struct, frozen=True):
    """What came of a run: its folder and report as far as there are any, and the error that ended it early."""

    case: Which
    folder: Path | None
    report: Report | None = None
    error: TestbedError | None = None


class Row(Struct, frozen=True):
    """A run of several, as the manifest of all says it: where its folder is, its case and what was set for it."""

    folder: Annotated[str, Meta(pattern=r"\Aruns/(?!\.\.?/)[^/\x00]{1,255}/[0-9]{1,9}\Z")]
    label: _Text
    settings: Annotated[list[_Text], Meta(max_length=10_000)]


class _Several(Struct, frozen=True):
    name: _Text = ""
    runs: Annotated[list[Row], Meta(max_length=10_000)] = field(default_factory=list)


def rows(path: Path) -> tuple[str, list[Row]]:
    """Return the name of what runs in a results folder, and the runs if it is one of several."""
    folder = Recorded(path)
    found = folder.value("manifest.json", _Several, 16 * MIB, LOST)
    if found is None and folder.broken:
        raise InputError(Problem(folder.broken[0], str(path)))
    return (found.name, found.runs) if found is not None else ("", [])


def error(outcome: Outcome) -> TestbedError | None:
    """Return the error that a run is for whoever asked for it, None when nothing is wrong."""
    return missed(outcome.report) if outcome.error is None and outcome.report is not None else outcome.error


def missed(report: Report) -> TestbedError | None:
    """Return the error that a report is: something failed, or did not hold; None when nothing is wrong."""
    if failed := report.failures:
        return LabError(f"{len(failed)} steps or workloads of the run failed: {_first(failed[0])}")
    wrong = sum(not o.passed for o in report.outcomes)
    return CheckFailed(f"{wrong} of {len(report.outcomes)} checks failed") if wrong else None


def worst(outcomes: Sequence[Outcome]) -> TestbedError | None:
    """Return the error that the whole comes to: of the worst kind that any run has."""
    found = [(o, e) for o in outcomes if (e := error(o)) is not None]
    missed = [o for _, o in across(outcomes) if not o.passed]
    for kind in ORDER:
        some = [(o, e) for o, e in found if isinstance(e, kind)]
        if some and len(outcomes) == 1:
            return some[0][1]
        if some:
            first, why = some[0]
            return kind(f"{len(some)} of {len(outcomes)} cases: {first.case.title}: {_first(str(why))}")
    return CheckFailed(f"{len(missed)} checks over all repeats of a case failed") if missed else None


def across(outcomes: Sequence[Outcome]) -> list[tuple[Which, Judged]]:
    """Return what came of the checks over all repeats of each case; none of a case that ran once."""
    groups: dict[tuple[str, tuple[str, ...]], list[Outcome]] = {}
    for o in outcomes:
        groups.setdefault((o.case.name, o.case.settings), []).append(o)
    found = []
    for some in groups.values():
        reports = [o.report for o in some if o.report is not None]
        if len(some) < 2 or not reports:
            continue
        checks = reports[0].topology.checks
        for n, check in enumerate(checks):
            if check.repeats != "each":
                place = n - len(checks)  # what is expected of commands comes before the checks
                own = [r.outcomes[place] if len(r.outcomes) >= -place else LACKING for r in reports]
                own += [LACKING] * (len(some) - len(reports))
                found.append((Which(some[0].case.name, "", some[0].case.settings), over(check, own)))
    return found


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Return the worst verdict of any run; one without a report is an error."""
    found = {"error" if o.report is None else o.report.verdict for o in outcomes}
    found |= {"passed" if o.passed else "failed" for _, o in across(outcomes)}
    return next((v for v in ("error", "failed", "passed") if v in found), "no checks")


def summary(found: Outcome) -> dict[str, Any]:
    """Return what scripts are told of a run; `status` is the exit status that it alone would have had."""
    wrong = error(found)
    own = {
        "case": found.case.label,
        "settings": list(found.case.settings),
        "status": 0 if wrong is None else wrong.exit_status,
        "error": None if found.error is None else str(found.error),
        "metrics": _measured(found.report),
    }
    if found.report is not None:
        return {"name": found.report.topology.name, "folder": str(found.folder), **found.report.verdict_json(), **own}
    nothing = {"verdict": "error", "checks": [], "validity": [], "failures": [str(wrong)], "events": []}
    return {"name": found.case.name, "folder": None, **nothing, **own}


def junit(outcomes: Sequence[Outcome]) -> bytes:
    """Return one JUnit file of all runs: a suite each, as in the run's own folder."""
    whole = ElementTree.Element("testsuites")
    for outcome in outcomes:
        own = None if outcome.report is None or outcome.folder is None else outcome.folder / "junit.xml"
        suite = _lost(outcome) if own is None else ElementTree.fromstring(own.read_bytes())  # noqa: S314 (our own)
        suite.set("name", shown(outcome.case.title))
        for test in suite:
            test.set("classname", shown(outcome.case.title.replace(" ", ".")))
        whole.append(suite)
    if repeated := across(outcomes):
        whole.append(suite_of("all repeats", [(which.title, o) for which, o in repeated]))
    ElementTree.indent(whole)
    return bytes(ElementTree.tostring(whole, encoding="utf-8", xml_declaration=True))


def _lost(outcome: Outcome) -> ElementTree.Element:
    """Return the suite of a run that has no results."""
    why = str(outcome.error)
    suite = ElementTree.Element("testsuite", tests="1", failures="0", errors="1")
    failed = ElementTree.SubElement(ElementTree.SubElement(suite, "testcase", name="run 1"), "error")
    failed.set("message", shown(_first(why)))
    failed.text = shown(why)
    return suite


def keep(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write what several runs come to into the folder of all: junit.xml, verdict.json, summary.json."""
    results.put(folder / "junit.xml", junit(outcomes))
    told = [summary(o) for o in outcomes]
    runs = [
        {
            "folder": None if o.folder is None else str(o.folder.relative_to(folder)),
            **{key: t[key] for key in ("case", "settings", "verdict", "status", "error")},
        }
        for o, t in zip(outcomes, told, strict=True)
    ]
    repeated = [{"settings": list(which.settings), **asdict(o)} for which, o in across(outcomes)]
    whole = {"verdict": verdict(outcomes), "runs": runs} | ({"repeats": repeated} if repeated else {})
    results.write(Folder(folder), "verdict.json", whole)
    table = [{**run, "metrics": _measured(o.report)} for run, o in zip(runs, outcomes, strict=True)]
    text = ",\n".join(f" {results.json_text(row, None)}" for row in table)
    results.put(folder / "summary.json", f"[\n{text}\n]\n".encode())


def _measured(report: Report | None) -> Mapping[str, float]:
    """Return the value of each metric of the workloads and of the checks."""
    if report is None:
        return {}
    works = tuple(f"{name}." for name in report.topology.workloads)
    named = {name for c in report.topology.checks for name in c.metrics()}
    return {name: m.value for name, m in report.metrics.items() if name.startswith(works) or name in named}


def _first(text: str) -> str:
    return text.partition("\n")[0]
