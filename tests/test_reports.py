"""Figures, verdict, JUnit and text of every recorded run are those that were written down, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from testbed.cli import present
from testbed.runs.again import again as report
from tests import kept
from tests.fuzz.report import RUNS

WRITTEN = RUNS.parent / "reports"
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


def test_no_report_is_kept_of_a_run_that_is_gone() -> None:
    assert sorted(folder.name for folder in WRITTEN.iterdir()) == names()
