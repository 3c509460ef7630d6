"""Figures, verdict, JUnit and text of every recorded run are those that were written down, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from testbed.cli import present
from testbed.runs.again import again as report
from tests import kept
from tests.fuzz.report import RUNS
from tests.kept import say

__all__ = ["say"]
WRITTEN, SEVERAL = RUNS.parent / "reports", RUNS.parent / "several"
DERIVED = ("metrics.json", "verdict.json", "junit.xml")


def names() -> list[str]:
    return sorted(run.name for run in RUNS.iterdir())


@pytest.mark.parametrize("name", names())
def test_a_report_is_the_one_that_was_written_down(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RUNS / name, tmp_path / name))
    printed = present.report(report(folder), "FOLDER")
    for file in DERIVED:
        kept.compare((folder / file).read_text(), WRITTEN / name / file)
    kept.compare(f"{printed}\n", WRITTEN / name / "report.txt")


def test_what_several_runs_come_to_is_what_was_written_down(tmp_path: Path, say: kept.Say) -> None:
    folder = Path(shutil.copytree(SEVERAL, tmp_path / "several"))
    status, printed, _ = say("report", str(folder))
    assert status == 0
    for file in ("summary.json", "verdict.json", "junit.xml"):
        kept.compare((folder / file).read_text(), WRITTEN / "several" / file)
    kept.compare(printed.replace(str(folder), "FOLDER"), WRITTEN / "several" / "report.txt")


def test_no_report_is_kept_of_a_run_that_is_gone() -> None:
    assert sorted(folder.name for folder in WRITTEN.iterdir()) == sorted([*names(), "several"])
