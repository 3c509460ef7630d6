"""Formats of a results folder: what format 1 holds runs again and is reported without a plan, older ones become it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.language import parsing, writing
from testbed.language.effective import effective, resolved
from testbed.language.experiment import Case
from testbed.loading import read
from testbed.plan.lab import plan
from testbed.plan.run import run_steps
from testbed.runs import older, written
from testbed.runs.again import again
from tests.conftest import ROOT
from tests.fuzz.report import RUNS
from tests.strategies import examples

FILES = sorted(p for d in ("topologies", "experiments", "docs/examples") for p in (ROOT / d).glob("*.yaml"))


def planned(case: Case) -> str:
    made = plan(case.topology)
    return f"{made}{[str(s) for s in run_steps(made)]}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_the_effective_file_of_a_case_is_that_case(file: Path, tmp_path: Path) -> None:
    found = read(file)
    for case in (found.cases[0], found.cases[-1]):
        path = tmp_path / "effective.yaml"
        path.write_text(written.resolved(case, found.seed))
        (again_,) = read(path).cases
        assert planned(again_) == planned(case)
        assert again_.topology == case.topology == resolved(path.read_text(), "x")
        assert read(path).seed == found.seed


def test_the_effective_file_names_no_other(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text((ROOT / "topologies/two-hosts.yaml").read_text())
    (tmp_path / "e.yaml").write_text("topology: base.yaml\nseed: 7\nmatrix: {links.cable.rate: [1mbit]}\n")
    found = read(tmp_path / "e.yaml", ("links.cable.mtu=1400",))
    text = written.resolved(found.cases[0], found.seed)
    data = parsing.parse(text, "x").data
    assert not {"topology", "matrix", "repeat"} & set(data)
    assert (data["seed"], data["links"][0]["rate"], data["links"][0]["mtu"]) == (7, "1mbit", 1400)


def test_an_effective_file_that_somebody_edited_wrongly_is_an_error_with_its_place() -> None:
    text = effective({"name": "x", "nodes": {"a": {"router": {}}}, "links": []}, 7)
    assert resolved(text, "effective.yaml").nodes["a"].router is not None
    with pytest.raises(InputError) as caught:
        resolved(text.replace("router", "roter"), "effective.yaml")
    line = text.splitlines().index(next(row for row in text.splitlines() if "router" in row)) + 1
    assert str(caught.value).startswith(f"effective.yaml:{line}:")
    assert "did you mean 'router'?" in str(caught.value)


def test_nodes_and_roles_without_content_stay() -> None:
    text = effective({"name": "x", "nodes": {"a": None, "b": {"router": None}}}, 0)
    assert parsing.parse(text, "x").data["nodes"] == {"a": {}, "b": {"router": {}}}


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**17), 10**18),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    st.sampled_from(
        ["1e5", "0o17", "no", "~", "1:30", ".5", "5.", "<<", "=", "0x1f", "2001-01-01", "a: b", "x\ny", "- "]
    ),
)


@given(
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab:~1", max_size=3), inner, max_size=4),
    )
)
@examples(200)
def test_what_is_written_is_what_is_read(data: Any) -> None:
    found = parsing.parse(writing.written({"x": data}), "x").data["x"]
    assert json.dumps(found) == json.dumps(data)


# --- reports plan nothing


@pytest.fixture
def current(tmp_path: Path) -> Path:
    """A recorded run in format 1."""
    folder = Path(shutil.copytree(RUNS / "events", tmp_path / "events"))
    (made := tmp_path / "made").mkdir()
    older.bring(folder, made)
    for file in made.iterdir():
        shutil.copyfile(file, folder / file.name)
    for name in ("topology.yaml", "experiment.yaml"):
        (folder / name).unlink(missing_ok=True)
    return folder


def test_a_report_plans_and_judges_nothing(current: Path) -> None:
    code = (
        "import sys; from testbed.cli.program import script\n"
        "sys.modules.update(dict.fromkeys(('testbed.plan', 'testbed.rules')))  # importing them is an error now\n"
        f"sys.argv = ['testbed', 'report', {str(current)!r}]; script()\n"
    )
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=False, timeout=60)
    assert "events: error\n" in done.stdout, done.stderr
    assert done.returncode == 3
    older_ = code.replace(str(current), str(RUNS / "events"))
    done = subprocess.run((sys.executable, "-c", older_), capture_output=True, text=True, check=False, timeout=60)
    assert "import of testbed.rules halted" in done.stderr, "a folder of before format 1 is planned again"


def test_a_folder_of_format_1_needs_nothing_but_its_own_files(current: Path) -> None:
    expected = (RUNS.parent / "reports/events/metrics.json").read_text()
    again(current)
    assert (current / "metrics.json").read_text() == expected


def test_an_older_folder_stays_as_it_is_but_for_what_is_derived(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RUNS / "matrix", tmp_path / "matrix"))
    before = {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    again(folder)
    after = {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert {k: v for k, v in after.items() if k in before} == before
    assert {str(k) for k in after if k not in before} == {"metrics.json", "verdict.json", "junit.xml"}


def test_a_folder_of_a_later_format_is_refused_with_a_sentence(current: Path) -> None:
    manifest = json.loads((current / "manifest.json").read_text())
    (current / "manifest.json").write_text(json.dumps({"format": 2, "machine": {"of": "another form"}}))
    with pytest.raises(
        InputError, match=r"its format is 2, and this testbed \(.*\) knows 1: a later one has written it"
    ):
        again(current)
    for wrong in (-1, "1", None, 1.5):
        (current / "manifest.json").write_text(json.dumps({**manifest, "format": wrong}))
        with pytest.raises(InputError, match=r"manifest\.json: not what a run writes"):
            again(current)


@pytest.mark.parametrize("name", ["effective.yaml", "plan.json"])
def test_a_file_that_a_report_can_not_do_without_is_named(current: Path, name: str) -> None:
    whole = (current / name).read_bytes()
    (current / name).unlink()
    with pytest.raises(InputError, match=rf"is not a results folder: it has no {name}"):
        again(current)
    (current / name).symlink_to("/etc/passwd")
    with pytest.raises(InputError, match=rf"{name}: not a regular file"):
        again(current)
    (current / name).unlink()
    (current / name).write_bytes(whole[:-40])
    with pytest.raises(InputError, match=name):
        again(current)


def test_a_plan_of_other_events_is_not_believed(current: Path) -> None:
    plan_ = json.loads((current / "plan.json").read_text())
    (current / "plan.json").write_text(json.dumps({**plan_, "events": plan_["events"][1:]}))
    with pytest.raises(InputError, match=r"plan\.json: it has 7 events, and effective\.yaml 8"):
        again(current)


# --- of several


@pytest.fixture
def several(current: Path, tmp_path: Path) -> Path:
    top = tmp_path / "several"
    rows = [{"folder": f"runs/a/{n}", "label": f"a_{n}", "settings": []} for n in (1, 2, 3)]
    for n in (1, 2):
        shutil.copytree(current, top / f"runs/a/{n}")
    (top / "manifest.json").write_text(json.dumps({"format": 1, "name": "events", "runs": rows}))
    return top


def test_a_report_of_several_reports_each_and_what_they_come_to(several: Path) -> None:
    done = subprocess.run(
        (sys.executable, "-m", "testbed", "report", str(several)), capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 3
    assert re.findall(r"^events a_\d: error$", done.stdout, flags=re.M) == [f"events a_{n}: error" for n in (1, 2, 3)]
    assert "events a_3: error\n\nfailed: runs/a/3: this run has left no results" in done.stdout
    verdict = json.loads((several / "verdict.json").read_text())
    assert [run["folder"] for run in verdict["runs"]] == ["runs/a/1", "runs/a/2", None]
    one = json.loads((several / "runs/a/2/verdict.json").read_text())
    assert one == json.loads((RUNS.parent / "reports/events/verdict.json").read_text())


def test_a_run_of_several_that_is_a_link_is_not_followed(several: Path, tmp_path: Path) -> None:
    shutil.move(several / "runs/a/2", tmp_path / "elsewhere")
    (several / "runs/a/2").symlink_to(tmp_path / "elsewhere")
    done = subprocess.run(
        (sys.executable, "-m", "testbed", "report", str(several)), capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert "a link leads to another folder" in done.stdout
    assert not (tmp_path / "elsewhere/metrics.json").exists()


@pytest.mark.parametrize("place", ["runs/../1", "../x/1", "/etc/a/1", "runs/a", "runs/./1", "runs/a/b", "runs/a/b/1"])
def test_a_run_outside_of_the_folder_of_several_is_refused(several: Path, place: str) -> None:
    rows = [{"folder": place, "label": "", "settings": []}]
    (several / "manifest.json").write_text(json.dumps({"format": 1, "name": "x", "runs": rows}))
    done = subprocess.run(
        (sys.executable, "-m", "testbed", "report", str(several)), capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert "manifest.json: not what a run writes" in done.stderr
