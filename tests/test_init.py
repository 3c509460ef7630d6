"""`testbed init`: examples as files of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed.cli import init
from tests.conftest import ROOT
from tests.kept import Say, say

__all__ = ["say"]


@pytest.mark.parametrize("template", init.names())
def test_a_template_alone_plans_the_same_lab_and_run_as_the_example(template: str, tmp_path: Path, say: Say) -> None:
    file = tmp_path / "mine.yaml"
    assert say("init", template, str(file))[::2] == (0, "")
    kept = [ROOT / f"tests/golden/{kind}-{template}.plan.txt" for kind in ("experiments", "topologies")]
    assert say("plan", str(file)) == (0, next(f for f in kept if f.exists()).read_text(), "")


def test_every_example_is_a_template_and_the_list_describes_each(say: Say) -> None:
    status, out, _ = say("init", "--json")
    listed = {t["name"]: t["description"] for t in json.loads(out)}
    assert (status, set(listed)) == (
        0,
        {f.stem for k in ("topologies", "experiments") for f in (ROOT / k).glob("*.yaml")},
    )
    assert all(listed.values())
    rows = say("init")[1].splitlines()
    assert [row.split()[0] for row in rows if not row.startswith(" ")] == sorted(listed)
    assert max(map(len, rows)) <= 110


def test_a_template_names_no_file_beside_the_example(say: Say) -> None:
    for template in init.names():
        assert "../" not in say("init", template, "-")[1]


def test_without_a_name_the_file_is_called_like_the_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: Say
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "two-hosts.yaml: a copy of two-hosts" in say("init", "two-hosts")[1]
    assert (tmp_path / "two-hosts.yaml").read_text() == say("init", "two-hosts", "-")[1]


def test_a_file_is_overwritten_by_force_alone(tmp_path: Path, say: Say) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    status, out, err = say("init", "tree", str(file))
    assert (status, out, file.read_text()) == (2, "", "mine")
    assert err == f"{file}: the file exists: choose another name, or overwrite it with --force\n"
    assert say("init", "tree", str(file), "--force")[0] == 0
    assert file.read_text().startswith("name: tree\n")


def test_a_template_that_does_not_exist_is_an_error_with_the_one_that_was_meant(say: Say) -> None:
    said = "'two-host' is not a template (did you mean 'two-hosts'?): `testbed init` lists them\n"
    assert say("init", "two-host") == (2, "", said)


def test_a_file_that_cant_be_written_is_an_error_that_says_why(tmp_path: Path, say: Say) -> None:
    said = f"{tmp_path}/no/mine.yaml: the file can't be written: No such file or directory\n"
    assert say("init", "tree", f"{tmp_path}/no/mine.yaml") == (2, "", said)
