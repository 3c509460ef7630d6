"""Files of public reports that `check` alone judges come out as tests/cases/table.yaml says; `make cases` runs all."""

from __future__ import annotations

import re

import pytest

from tests.cases import FOLDER, Case, cases
from tests.kept import Say, say

__all__ = ["say"]
ROWS = cases()


@pytest.mark.parametrize("case", [c for c in ROWS if c.on == "check"], ids=lambda c: c.file)
def test_a_file_that_check_judges_comes_out_as_it_must(case: Case, say: Say) -> None:
    status, out, err = say("check", str(case.path))
    assert status == case.status, err
    assert re.search(case.says, out + err)
    assert not (case.not_says and re.search(case.not_says, out + err))


@pytest.mark.parametrize("case", [c for c in ROWS if c.on != "check"], ids=lambda c: c.file)
def test_a_file_that_is_run_has_no_errors(case: Case, say: Say) -> None:
    status, _, err = say("check", str(case.path))
    assert status == 0, err


def test_each_row_is_of_a_file_and_no_file_is_in_two() -> None:
    assert [c.file for c in ROWS if not c.path.is_file()] == []
    assert len({c.file for c in ROWS}) == len(ROWS)


def test_a_file_of_a_public_report_says_where_it_comes_from_and_what_must_come_out() -> None:
    for file in (FOLDER / "public").glob("*.yaml"):
        head = file.read_text()
        assert head.startswith("# source: "), file
        assert "# must come out: " in head, file
