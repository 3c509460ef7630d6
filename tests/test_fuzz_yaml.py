"""Broken files and options: those that were taken wrongly once, and some hundreds more of every run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fuzz import yaml

FOUND = sorted(yaml.FOUND.glob("*.yaml"))


@pytest.mark.parametrize("file", FOUND, ids=lambda f: f.stem)
def test_what_was_taken_wrongly_once_is_a_lab_or_an_error_of_its_author(file: Path, tmp_path: Path) -> None:
    for part in ("topologies", "experiments"):
        shutil.copytree(yaml.ROOT / part, tmp_path / part)
    copied = Path(shutil.copy(file, tmp_path / "experiments"))
    assert yaml.kept(copied).what in ("lab", "refused", "unsupported")


def test_some_hundreds_of_broken_files_are_labs_or_errors_of_their_authors() -> None:
    assert yaml.main(300, 20261128) == 0


def test_an_input_that_goes_wrong_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*_: object) -> None:
        raise KeyError("a mistake")

    monkeypatch.setattr(yaml, "plan", mistaken)
    monkeypatch.setattr(yaml, "FOUND", tmp_path / "found")
    assert yaml.main(60, 1) == 1
    assert (tmp_path / "found/000.yaml").exists()
    assert "KeyError" in yaml.kept(tmp_path / "found/000.yaml").what
