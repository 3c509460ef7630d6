"""What the cases of an experiment come to together, and where their results are."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from hashlib import sha256
from itertools import combinations_with_replacement
from pathlib import Path
from xml.etree import ElementTree

import pytest

from testbed import results
from testbed.errors import BugError, CheckFailed, InputError, LabError, TestbedError, Unsupported
from testbed.language.experiment import label
from testbed.loading import load, read
from testbed.metrics.measured import Measured
from testbed.report import together
from testbed.report.judge import Outcome as Judged
from testbed.report.report import Report
from testbed.report.together import Outcome, Which
from testbed.runs import cases
from testbed.runs.invocation import Invocation, begin, invoked, places
from tests.kept import Say, say

__all__ = ["say"]

ROOT = Path(__file__).parent.parent
TOPOLOGY = load(ROOT / "topologies/two-hosts.yaml")
WORST_FIRST = (70, 3, 4, 2, 1, 0)


def ended(status: int, name: str = "") -> Outcome:
    """A case that alone would end with this exit status."""
    case, folder = Which("two-hosts", name), Path("x")
    kinds: dict[int, type[TestbedError]] = {70: BugError, 4: Unsupported, 2: InputError}
    if status in kinds:
        return Outcome(case, None, None, kinds[status](f"status {status}\nmore"))
    checks = tuple(Judged("a.b", ">= 1", 0.0, "", ok) for ok in (True, status != 1))
    return Outcome(case, folder, Report(folder, TOPOLOGY, {}, checks, (), ("it failed\nso",) if status == 3 else ()))


@pytest.mark.parametrize("statuses", combinations_with_replacement(WORST_FIRST, 3))
def test_the_exit_status_of_all_is_the_worst_of_any(statuses: tuple[int, ...]) -> None:
    for order in (statuses, tuple(reversed(statuses))):
        error = together.worst([ended(s) for s in order])
        assert (0 if error is None else error.exit_status) == statuses[0]


def test_what_is_said_names_how_many_and_the_first_in_one_line() -> None:
    error = together.worst([ended(1, "a"), ended(4, "b"), ended(0), ended(4, "c")])
    assert isinstance(error, Unsupported)
    assert str(error) == "2 of 4 cases: two-hosts b: status 4"
    assert str(together.worst([ended(3, "x"), ended(0)])).endswith(
        "1 of 2 cases: two-hosts x: 1 steps or workloads of the run failed: it failed"
    )
    lone = together.worst([ended(4)])
    assert str(lone) == "status 4\nmore", "of one alone all is said"
    assert isinstance(together.worst([ended(1)]), CheckFailed)
    assert together.worst([]) is None


def test_a_case_without_results_is_in_the_junit_file_of_all() -> None:
    error = LabError("no \x1b space\nleft \x00")
    whole = ElementTree.fromstring(together.junit([Outcome(Which("two-hosts", "rate=1"), None, None, error)]))
    (suite,) = whole
    assert (whole.tag, suite.get("name"), suite.get("errors")) == ("testsuites", "two-hosts rate=1", "1")
    (found,) = suite.iter("error")
    assert (found.get("message"), found.text) == (r"no \x1b space", "no \\x1b space\nleft \\x00")


# --- folders: one an invocation, and in that of several one for each run


@pytest.fixture
def several(tmp_path: Path) -> Invocation:
    file = tmp_path / "rates.yaml"
    file.write_text(
        f"name: rates\ntopology: {ROOT}/topologies/two-hosts.yaml\nrepeat: 2\n"
        "matrix: {links.cable.rate: [10mbit, 20mbit]}\n"
    )
    return invoked(read(file), tmp_path / "results", ())


def test_several_runs_are_in_one_folder_each_with_its_case_and_number(several: Invocation) -> None:
    made = [begin(several, n).path for n in range(4)]
    assert several.folder is not None
    top = several.folder.path
    assert [str(path.relative_to(top)) for path in made] == [
        f"runs/rate={rate}mbit/{n}" for rate in (10, 20) for n in (1, 2)
    ]
    assert {file.name for file in top.iterdir()} == {"experiment.yaml", "topology.yaml", "manifest.json", "runs"}
    manifest = json.loads((top / "manifest.json").read_text())
    assert (manifest["format"], manifest["name"]) == (1, "rates")
    assert manifest["inputs"] == {
        name: sha256((top / name).read_bytes()).hexdigest() for name in ("experiment.yaml", "topology.yaml")
    }
    assert manifest["runs"][3] == {
        "folder": "runs/rate=20mbit/2",
        "label": "rate=20mbit_2",
        "settings": ["links.cable.rate=20mbit"],
    }


def test_a_single_run_has_the_folder_of_the_invocation(tmp_path: Path) -> None:
    alone = invoked(read(ROOT / "topologies/two-hosts.yaml"), tmp_path, ())
    first, second = begin(alone, 0).path, begin(invoked(alone.experiment, tmp_path, ()), 0).path
    assert first.parent == second.parent == tmp_path / "two-hosts"
    assert re.fullmatch(r"\d{8}T\d{6}Z(\.1)?", second.name)
    assert first != second


def test_the_time_of_a_folder_is_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        before = datetime.now(UTC).replace(microsecond=0, tzinfo=None)
        name = results.create(tmp_path, "x").path.name
        assert before <= datetime.strptime(name[:15], "%Y%m%dT%H%M%S") <= datetime.now(UTC).replace(tzinfo=None)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_cases_whose_labels_are_alike_have_folders_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "alike.yaml"
    values = ["a/b", "a-b", "a b", "x" * 200 + "1", "x" * 200 + "2"]
    file.write_text(
        f"name: alike\ntopology: {ROOT}/topologies/two-hosts.yaml\nmatrix: {{description: {json.dumps(values)}}}\n"
    )
    made = places(read(file))
    assert len(set(made)) == 5
    assert made[:3] == ("runs/description=a-b/1", "runs/description=a-b.1/1", "runs/description=a-b.2/1")


def test_repeats_without_a_matrix_are_named_after_the_topology(tmp_path: Path) -> None:
    file = tmp_path / "again.yaml"
    file.write_text(f"name: again\ntopology: {ROOT}/topologies/two-hosts.yaml\nrepeat: 2\n")
    assert places(read(file)) == ("runs/again/1", "runs/again/2")


def test_what_several_come_to_is_in_their_folder_and_junit_beside_it(several: Invocation) -> None:
    error = LabError("no space left")
    lost = Outcome(Which("rates", "rate=10mbit_1", ("links.cable.rate=10mbit",)), None, None, error)
    cases.keep(several, [lost])
    assert not several.root.exists(), "no run has begun"
    folder = begin(several, 1).path
    (folder / "junit.xml").write_text('<testsuite tests="1"><testcase name="x"/></testsuite>')
    measured = {
        "bulk.goodput_mbps": Measured(9.5, "Mbit/s", ((0.0, 9.5),)),
        "client.eth0.rx_bytes": Measured(1, "byte"),
    }
    done = Outcome(Which("rates", "rate=10mbit_2"), folder, Report(folder, TOPOLOGY, measured, (), (), ()))
    cases.keep(several, [lost, done])
    assert several.folder is not None
    top = several.folder.path
    for file in (top / "junit.xml", top.parent / "junit.xml"):
        suites = ElementTree.parse(file).getroot()
        assert [suite.get("name") for suite in suites] == ["rates rate=10mbit_1", "rates rate=10mbit_2"]
    verdict = json.loads((top / "verdict.json").read_text())
    assert verdict["verdict"] == "error"
    assert [(r["folder"], r["verdict"], r["status"]) for r in verdict["runs"]] == [
        (None, "error", 3),
        ("runs/rate=10mbit/2", "no checks", 0),
    ]
    assert verdict["runs"][0]["settings"] == ["links.cable.rate=10mbit"]
    table = json.loads((top / "summary.json").read_text())
    assert [row["metrics"] for row in table] == [{}, {"bulk.goodput_mbps": 9.5}], "of workloads and checks"
    assert "ended" in json.loads((top / "manifest.json").read_text())


def test_what_can_not_be_written_hides_no_other_error(several: Invocation) -> None:
    folder = begin(several, 0).path
    (folder / "junit.xml").write_text("<testsuite/>")
    assert several.folder is not None
    (several.folder.path / "verdict.json").mkdir()
    good = Outcome(Which("rates"), folder, Report(folder, TOPOLOGY, {}, (), (), ()))
    with pytest.raises(LabError, match="the results can't be written"):
        cases.keep(several, [good])
    cases.keep(several, [good, ended(4)])


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (("links.cable.rate",), "rate=1"),
        (("links.wifi.rate", "links.lte.rate"), "wifi.rate=1_lte.rate=1"),
        (("links.wifi.rate", "links.wifi.delay"), "rate=1_delay=1"),
        (("links.wifi.rate", "links.wifi.forward.rate"), "wifi.rate=1_forward.rate=1"),
        (("rate", "links.wifi.rate"), "rate=1_wifi.rate=1"),
        (("links.0.rate", "links.10.rate"), "0.rate=1_10.rate=1"),
    ],
)
def test_a_case_is_named_by_as_much_of_its_keys_as_tells_them_apart(paths: tuple[str, ...], found: str) -> None:
    assert label(tuple((path, 0, 1) for path in paths)) == found


def test_plan_says_which_case_of_several_it_is_of(say: Say, tmp_path: Path) -> None:
    file = tmp_path / "several.yaml"
    file.write_text(
        "name: l\nnodes: {a: {}, b: {}}\nlinks: [{ends: [a:x, b:x]}]\nmatrix: {links.0.rate: [1mbit, 2mbit]}\n"
    )
    status, out, err = say("plan", str(file))
    assert (status, "tbf rate 1000000bit" in out) == (0, True)
    assert err == "testbed: the file has several cases, and this is the first: links.0.rate=1mbit\n"
    assert say("plan", str(file), "--set", "matrix={}", "--set", "repeat=3")[2] == "", "they are all the same"
