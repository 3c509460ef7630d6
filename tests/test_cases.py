"""What the cases of an experiment come to together: the exit status, and one JUnit file."""

from __future__ import annotations

from itertools import combinations_with_replacement
from pathlib import Path
from xml.etree import ElementTree

import pytest

from testbed.errors import BugError, CheckFailed, InputError, LabError, TestbedError, Unsupported
from testbed.language.experiment import Case
from testbed.language.topology import load
from testbed.report.report import Outcome as Judged
from testbed.report.report import Report
from testbed.runs import cases
from testbed.runs.case import Outcome

TOPOLOGY = load(Path(__file__).parent.parent / "topologies/two-hosts.yaml")
WORST_FIRST = (70, 3, 4, 2, 1, 0)


def ended(status: int, label: str = "") -> Outcome:
    """A case that alone would end with this exit status."""
    case, folder = Case(label, (), TOPOLOGY), Path("x")
    kinds: dict[int, type[TestbedError]] = {70: BugError, 4: Unsupported, 2: InputError}
    if status in kinds:
        return Outcome(case, None, None, kinds[status](f"status {status}\nmore"))
    checks = tuple(Judged("a.b", ">= 1", 0.0, "", ok) for ok in (True, status != 1))
    return Outcome(case, folder, Report(folder, TOPOLOGY, {}, checks, (), ("it failed\nso",) if status == 3 else ()))


@pytest.mark.parametrize("statuses", combinations_with_replacement(WORST_FIRST, 3))
def test_the_exit_status_of_all_is_the_worst_of_any(statuses: tuple[int, ...]) -> None:
    for order in (statuses, tuple(reversed(statuses))):
        error = cases.worst([ended(s) for s in order])
        assert (0 if error is None else error.exit_status) == statuses[0]


def test_what_is_said_names_how_many_and_the_first_in_one_line() -> None:
    error = cases.worst([ended(1, "a"), ended(4, "b"), ended(0), ended(4, "c")])
    assert isinstance(error, Unsupported)
    assert str(error) == "2 of 4 cases: two-hosts b: status 4"
    assert str(cases.worst([ended(3, "x"), ended(0)])).endswith(
        "1 of 2 cases: two-hosts x: 1 steps or workloads of the run failed: it failed"
    )
    lone = cases.worst([ended(4)])
    assert str(lone) == "status 4\nmore", "of one alone all is said"
    assert isinstance(cases.worst([ended(1)]), CheckFailed)
    assert cases.worst([]) is None


def test_a_case_without_results_is_in_the_junit_file_of_all() -> None:
    error = LabError("no \x1b space\nleft \x00")
    whole = ElementTree.fromstring(cases.junit([Outcome(Case("rate=1", (), TOPOLOGY), None, None, error)]))
    (suite,) = whole
    assert (whole.tag, suite.get("name"), suite.get("errors")) == ("testsuites", "two-hosts rate=1", "1")
    (found,) = suite.iter("error")
    assert (found.get("message"), found.text) == (r"no \x1b space", "no \\x1b space\nleft \\x00")


def test_the_junit_file_of_all_is_beside_the_runs_unless_there_are_none(tmp_path: Path) -> None:
    error = LabError("no space left")
    lost = Outcome(Case("rate=1", (), TOPOLOGY), None, None, error)
    cases.keep(tmp_path, [lost])
    assert list(tmp_path.iterdir()) == []
    folder = tmp_path / "two-hosts/1"
    folder.mkdir(parents=True)
    (folder / "junit.xml").write_text('<testsuite tests="1"><testcase name="x"/></testsuite>')
    done = Outcome(Case("rate=2", (), TOPOLOGY), folder, Report(folder, TOPOLOGY, {}, (), (), ()))
    cases.keep(tmp_path, [lost, done])
    suites = ElementTree.parse(tmp_path / "two-hosts/junit.xml").getroot()
    assert [suite.get("name") for suite in suites] == ["two-hosts rate=1", "two-hosts rate=2"]
    assert [case.get("classname") for case in suites.iter("testcase")] == [
        ".".join(("two-hosts", f"rate={n}")) for n in (1, 2)
    ]


def test_a_junit_file_that_can_not_be_written_hides_no_other_error(tmp_path: Path) -> None:
    (tmp_path / "two-hosts").write_text("no folder")
    (tmp_path / "junit.xml").write_text("<testsuite/>")
    good = Outcome(Case("", (), TOPOLOGY), tmp_path, Report(tmp_path, TOPOLOGY, {}, (), (), ()))
    with pytest.raises(LabError, match="the results can't be written"):
        cases.keep(tmp_path, [good])
    cases.keep(tmp_path, [good, ended(4)])
