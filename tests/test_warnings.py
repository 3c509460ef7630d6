"""What `check` warns of: tests/warnings/NAME.yaml has what that name is about, NAME.txt what a reader gets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from testbed.loading import read
from testbed.rules.warnings import WARNINGS
from tests.kept import Say, compare, say

__all__ = ["say"]
ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "tests/warnings"
FILES = sorted(FOLDER.glob("*.yaml"))
PAGE = ROOT / "docs/troubleshooting.md"
_TABLE = re.compile(r"(<!-- warnings -->\n).*?(<!-- end -->\n)", re.DOTALL)


def name(file: Path) -> str:
    """The warning that a file is of: of several files, the part before the first dot."""
    return file.stem.partition(".")[0]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_warning_has_its_place_its_cure_and_its_name(file: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    status, out, err = say("check", file.name)
    assert (status, out.partition(": no errors, ")[2][:1] > "0") == (0, True)
    assert set(re.findall(r" \[([a-z0-9-]+)\]$", err, re.M)) == {name(file)}
    compare(err, file.with_suffix(".txt"))


def test_each_name_has_a_file_that_it_warns_of() -> None:
    assert {name(f) for f in FILES} == set(WARNINGS)
    assert {f.stem for f in FOLDER.glob("*.txt")} == {f.stem for f in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_file_silences_a_warning_by_its_name(file: Path, tmp_path: Path) -> None:
    silent = tmp_path / "silent.yaml"
    silent.write_text(f"{file.read_text()}\nsilence: {{{name(file)}: it is meant so}}\n")
    assert read(silent).warnings == ()


def test_what_ships_warns_of_nothing() -> None:
    files = [f for where in ("topologies", "experiments", "docs/examples") for f in (ROOT / where).glob("*.yaml")]
    assert len(files) > 30
    assert [w.warning() for f in files for w in read(f).warnings] == []


def test_strict_takes_warnings_for_errors(say: Say) -> None:
    file = str(FOLDER / "rate-in-bytes.yaml")
    for verb in (("check",), ("up", "--dry-run"), ("run",)):
        status, out, err = say(*verb, "--strict", file)
        assert (status, out) == (2, "")
        assert err.count(" [rate-in-bytes]\n") == 3
        assert ": warning: " not in err


def test_scripts_get_warnings_with_their_place(say: Say) -> None:
    file = str(FOLDER / "rate-in-bytes.yaml")
    status, out, err = say("check", "--json", file)
    assert (status, err) == (0, "")
    told: dict[str, Any] = json.loads(out)
    assert told["problems"] == []
    assert [(w["name"], w["file"], w["line"], w["column"]) for w in told["warnings"]] == [
        ("rate-in-bytes", file, 4, 49),
        ("rate-in-bytes", file, 6, 41),
        ("rate-in-bytes", file, 8, 39),
    ]
    status, out, _ = say("check", "--json", "--strict", file)
    assert status == 2
    assert json.loads(out)["problems"] == told["warnings"]


def test_a_value_of_a_matrix_is_warned_of_once_and_where_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "matrix.yaml"
    file.write_text(
        "name: lab\nnodes: {a: {}, b: {}}\nlinks:\n  - {name: l, ends: [a:eth0, b:eth0]}\n"
        "matrix:\n  links.l.rate: [1mbit, 1mbps]\n  links.l.mtu: [1400, 1500]\nrepeat: 2\n"
    )
    found = read(file)
    assert [(w.line, w.column) for w in found.warnings] == [(6, 25)]
    assert [case.warnings == found.warnings for case in found.cases] == [False] * 4 + [True] * 4


def test_the_page_has_the_table() -> None:
    rows = "".join(f"| `{n}` | {kind.means} | {kind.figures} |\n" for n, kind in WARNINGS.items())
    table = f"| name | what it is about | figures that it makes doubtful |\n|---|---|---|\n{rows}"
    made, there = _TABLE.subn(lambda m: f"{m[1]}\n{table}\n{m[2]}", PAGE.read_text())
    assert there == 1
    compare(made, PAGE)
