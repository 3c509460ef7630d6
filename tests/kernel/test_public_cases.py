"""Files of public reports that run in a few seconds come out as tests/cases/table.yaml says; `make cases` runs all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases import Case, cases, perform

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("case", [c for c in cases() if c.on == "here" and c.quick], ids=lambda c: c.file)
def test_a_case_comes_out_as_it_must(case: Case, tmp_path: Path) -> None:
    good, seen = perform(case, tmp_path)
    assert good, f"must come out: {case.expected}; {seen}"
