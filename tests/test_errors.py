"""What `testbed check` says of bad files: tests/errors/NAME.yaml has the fault, NAME.txt what a reader gets.

A first line `# --set PATH=VALUE` in such a file is an option of the command.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.kept import Say, compare, say

__all__ = ["say"]
ERRORS = Path(__file__).parent / "errors"
FILES = sorted(ERRORS.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_bad_file_is_refused_with_every_fault_at_its_place(
    file: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ERRORS)
    sets = re.findall(r"^# (--set) (.*)$", file.read_text(errors="replace"), re.M)
    status, out, err = say("check", *(word for pair in sets for word in pair), file.name)
    assert (status, out) == (2, "")
    compare(err, file.with_suffix(".txt"))


def test_every_kept_text_belongs_to_a_file() -> None:
    assert {f.stem for f in ERRORS.glob("*.txt")} == {f.stem for f in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_what_it_says_is_free_of_jargon(file: Path) -> None:
    said = "\n".join(row for row in file.with_suffix(".txt").read_text().splitlines() if not row.startswith(" "))
    assert not re.search(r"pydantic|dictionary|instance|tuple|boolean|integer|None\b|Input|Error|Traceback", said)


@pytest.mark.parametrize(
    "file", [f for f in FILES if not f.stem.startswith(("set-", "file-", "yaml-"))], ids=lambda f: f.stem
)
def test_every_caret_stands_under_something_that_is_written(file: Path) -> None:
    rows = file.with_suffix(".txt").read_text().splitlines()
    carets = [(rows[n - 1], row) for n, row in enumerate(rows) if re.fullmatch(r"\s*\^+", row)]
    assert carets
    for text, row in carets:
        marked = text[row.index("^") : row.rindex("^") + 1]
        assert marked, "the caret is beyond the end of its line"
        assert marked == marked.strip(" "), f"{marked!r}: the caret begins or ends beside a word"


def topology(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "lab.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_a_file_that_is_not_there_is_named(say: Say, tmp_path: Path) -> None:
    path = str(tmp_path / "lab.yaml")
    assert say("check", path) == (2, "", f"{path}: can't be read: No such file or directory\n")


def test_a_bridge_takes_1023_ports_and_no_more(say: Say, tmp_path: Path) -> None:
    def star(ports: int) -> str:
        hosts = "".join(f"  h{n}: {{}}\n" for n in range(ports))
        links = "".join(f"  - {{ends: [h{n}:eth0, sw:p{n}]}}\n" for n in range(ports))
        return f"name: star\nnodes:\n  sw: {{bridge: {{}}}}\n{hosts}links:\n{links}"

    assert say("check", topology(tmp_path, star(1023)))[0] == 0
    status, _, err = say("check", topology(tmp_path, star(1024)))
    assert status == 2
    assert ":3:8: sw has 1024 ports, but a Linux bridge takes at most 1023: use several bridges" in err


def test_aliases_can_not_nest_deeper_than_what_is_written(say: Say, tmp_path: Path) -> None:
    rows = ["name: lab", "nodes: {}", "x0: &x0 [[[[[[[[]]]]]]]]", *(f"x{n}: &x{n} [[*x{n - 1}]]" for n in range(1, 99))]
    status, _, err = say("check", topology(tmp_path, "\n".join(rows)))
    assert status == 2
    assert "nested more than 32 levels deep" in err


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("head", ["", "\ufeff"])
def test_the_line_ends_and_the_mark_of_other_systems_move_no_place(
    say: Say, tmp_path: Path, end: str, head: str
) -> None:
    text = head + end.join(("name: lab", "nodes:", "  ä: {}", '  b: {"rötär": {}, router: {}}', ""))
    _, _, err = say("check", topology(tmp_path, text))
    places = [row.removeprefix(f"{tmp_path}/lab.yaml:") for row in err.splitlines() if not row.startswith(" ")]
    assert [p.split(": ")[0] for p in places] == ["3:3", "4:7"]


def test_an_error_of_an_option_names_the_option(say: Say, tmp_path: Path) -> None:
    path = topology(tmp_path, "name: lab\nnodes:\n  a: {}\n")
    assert say("check", "--set", "nodes.a.router=5", path)[2] == (
        "--set nodes.a.router=5: `router` must be a mapping (`key: value`), not 5 (keys: multicast)\n"
    )


def test_a_terminal_is_safe_from_what_a_file_says(say: Say, tmp_path: Path) -> None:
    path = topology(tmp_path, 'name: "\\e[2J"\nnodes: {"\\e[31m": {}}\nlinks: [{ends: ["\\e[31m", "\\u202e:x"]}]\n')
    assert all(c.isprintable() or c == "\n" for c in say("check", path)[2])
    path = topology(tmp_path, "name: lab\x1b[2J\n")
    assert all(c.isprintable() or c == "\n" for c in say("check", path)[2])
