"""What `testbed plan` prints for every file of the repository, kept in tests/golden."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kept import Say, compare, say

__all__ = ["say"]
ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("topologies/*.yaml"), *ROOT.glob("experiments/*.yaml")])


def name(file: Path) -> str:
    return f"{file.parent.name}-{file.stem}"


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_plan_is_the_one_that_is_kept(file: Path, say: Say) -> None:
    status, out, err = say("plan", str(file))
    assert (status, err) == (0, "")
    compare(out, ROOT / "tests/golden" / f"{name(file)}.plan.txt")


def test_every_kept_plan_belongs_to_a_file() -> None:
    kept = {f.name for f in (ROOT / "tests/golden").iterdir()}
    assert kept == {f"{name(file)}.plan.txt" for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=name)
def test_as_json_a_plan_has_the_same_steps(file: Path, say: Say) -> None:
    _, text, _ = say("plan", str(file))
    _, out, _ = say("plan", "--json", str(file))
    steps = json.loads(out)["steps"]
    assert [s["text"] for s in steps] == [row for row in text.splitlines() if row and row != "# run"]
    assert {s["phase"] for s in steps} <= {"up", "run"}
