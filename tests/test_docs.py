"""The documentation is tested: its commands run, its topologies are right, its links lead somewhere.

A comment before a fenced block says what is done with it; readers do not see it:

    <!-- run -->  or  <!-- run: mptcp tbf -->   a console block: each `$ ` command runs, in order, and needs features
    <!-- machine -->                            the same, where a guest may be booted (tests/machine/test_docs.py)
    <!-- check -->                              a yaml block: `testbed check` finds no error
    <!-- file: docs/examples/event.yaml -->     a yaml or python block: the content of that file
    <!-- change: testbed/metrics/table.py -->   a diff block: lines to add to that file (tests/kernel/test_extending.py)
    <!-- not run: why -->                       a console block that no test can run

A command ends with status 0, or with that of a following line `(exit 1)`. The lines shown below it are lines of its
real output, in that order; numbers and MAC addresses may differ. A line `...` stands for those left out, and one that
ends in ` ...` for a line that begins so.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from testbed import __version__, features
from testbed.language.schema import schema
from testbed.language.topology import Work
from testbed.loading import read
from tests.conftest import RACE, ROOT, Need

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {p.stem: p.read_text() for p in PAGES}
# The commands of one section follow each other; sections do not need each other.
SECTIONS = {
    f"{n}: {part.partition(chr(10))[0]}": part for n, t in TEXTS.items() for part in re.split(r"^## ", t, flags=re.M)
}
_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\]\((?P<to>[^)\s]+)\)")
_STATUS = re.compile(r"\(exit (\d+)\)")
_END = "\x1e"


@dataclass(frozen=True)
class Command:
    """A documented command, the lines that are shown of its output, and its exit status."""

    text: str
    shown: tuple[str, ...]
    status: int


def blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield (what its mark says, kind, content) of every fenced block."""
    for found in _BLOCK.finditer(text):
        yield found["mark"] or "", found["kind"], found["body"]


def marked(text: str, mark: str) -> list[tuple[str, str]]:
    """Return (the mark's argument, content) of the blocks with a mark."""
    pairs = [(m.partition(":"), body) for m, _, body in blocks(text)]
    return [(argument.strip(), body) for (word, _, argument), body in pairs if word == mark]


def commands(body: str) -> Iterator[Command]:
    """Yield the commands of a console block."""
    for part in re.split(r"^\$ ", body, flags=re.M)[1:]:
        text, *shown = part.splitlines()
        status = next((int(s[1]) for row in shown if (s := _STATUS.fullmatch(row))), 0)
        kept = tuple(r for r in shown if r.strip() not in ("", "...") and not _STATUS.fullmatch(r))
        yield Command(text, kept, status)


def plain(row: str) -> str:
    """Return a line of output without what differs from run to run: numbers, MAC addresses, the width of columns."""
    row = re.sub(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", "MAC", row)
    return " ".join(re.sub(r"\d+(\.\d+)?(e[+-]\d+)?", "#", row).split())


def same(shown: str, row: str) -> bool:
    """Say whether a line of output is the one that is shown."""
    if shown.endswith(" ..."):
        return plain(row).startswith(plain(shown.removesuffix(" ...")))
    return plain(shown) == plain(row)


def perform(
    found: list[Command], folder: Path, spaces: tuple[str, ...] = ("--net",), patience: float = 120
) -> list[tuple[str, int]]:
    """Run commands in order; return (output, exit status) of each.

    They have a process namespace of their own, and unless a guest is to be reached a network namespace: names of labs
    clash with nobody's, and whatever happens, nothing that they started outlives them.
    """
    script = "".join(f"( {c.text}\n) 2>&1 </dev/null; printf '{_END}%s{_END}' $?\n" for c in found)
    own = ("unshare", *spaces, "--pid", "--kill-child", "--mount-proc")
    words = (*own, *(("--map-current-user",) if os.geteuid() else ()), "bash", "-c", script)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    shell = {"LC_ALL": "C.UTF-8", "PYTHONUNBUFFERED": "", "COLUMNS": "100"}  # as in most
    env = {**os.environ, "PATH": path, **shell}
    for _ in range(5):
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=patience, check=False)
        if RACE not in done.stdout:
            break
    parts = done.stdout.split(_END)
    assert len(parts) == 2 * len(found) + 1, done.stderr
    return [(output, int(status)) for output, status in zip(parts[0::2], parts[1::2], strict=False)]


def explained(command: Command, output: str, status: int) -> str:
    """Return what is wrong with a command's result, "" when it is as documented."""
    if status != command.status:
        return f"$ {command.text}\nended with {status} instead of {command.status}:\n{output}"
    rows = iter(output.splitlines())
    for shown in command.shown:
        if not any(same(shown, row) for row in rows):
            return (
                f"$ {command.text}\nthis line is shown, and it is not in the output, or not there:\n{shown}\n\n{output}"
            )
    return ""


def measuring(section: str) -> object:
    """Return a section as a parameter: one that shows rates runs when nothing else does."""
    marks = [pytest.mark.quiet] if any("iperf3" in a for a, _ in marked(SECTIONS[section], "run")) else []
    return pytest.param(section, marks=marks, id=section)


@pytest.mark.kernel
@pytest.mark.parametrize("section", [measuring(s) for s, text in SECTIONS.items() if marked(text, "run")])
def test_commands_do_what_the_page_shows(section: str, tmp_path: Path, need: Need) -> None:
    marks = marked(SECTIONS[section], "run")
    need(*sorted({name for argument, _ in marks for name in argument.split()}))
    for name in ("topologies", "experiments", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    found = [c for _, body in marks for c in commands(body)]
    faults = [explained(c, *result) for c, result in zip(found, perform(found, tmp_path), strict=True)]
    assert not any(faults), "\n\n".join(filter(None, faults))


@pytest.mark.parametrize("page", TEXTS)
def test_topologies_shown_are_right(page: str, tmp_path: Path) -> None:
    for number, (_, body) in enumerate(marked(TEXTS[page], "check")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(body)
        read(file)
    for name, body in marked(TEXTS[page], "file"):
        rows = (ROOT / name).read_text().splitlines(keepends=True)
        assert "".join(r for r in rows if not r.startswith("# yaml-language-server")) == body, name


@pytest.mark.parametrize("file", sorted((ROOT / "docs/examples").glob("*.yaml")), ids=lambda f: f.stem)
def test_examples_are_right(file: Path) -> None:
    read(file)


def test_examples_of_modules_use_names_that_exist() -> None:
    files = sorted((ROOT / "docs/examples/extending").glob("*.py"))
    nodes = [n for f in files for n in ast.walk(ast.parse(f.read_text())) if isinstance(n, ast.ImportFrom)]
    used = [(str(n.module), name.name) for n in nodes for name in n.names if str(n.module).startswith("testbed")]
    own = {f.stem for f in files}
    missing = [
        (module, name)
        for module, name in used
        if not {module.rpartition(".")[2], name} & own
        and not (hasattr(import_module(module), name) or find_spec(f"{module}.{name}"))
    ]
    assert (missing, len(used) > 10) == ([], True)


@pytest.mark.parametrize("page", TEXTS)
def test_every_mark_is_one_that_is_known(page: str) -> None:
    for mark, kind, body in blocks(TEXTS[page]):
        word = mark.partition(":")[0]
        marks = {"console": ("run", "machine", "not run"), "yaml": ("", "check", "file"), "python": ("file",)}
        marks["diff"] = ("change",)
        assert word in marks.get(kind, ("",)), mark or body
        assert word != "not run" or mark.partition(":")[2].strip(), "it says why"
        assert kind != "console" or body.startswith("$ "), body


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for found in _LINK.finditer(text):
        to, _, anchor = found["to"].partition("#")
        if to.startswith(("http:", "https:", "mailto:")):
            continue
        target = (page.parent / to).resolve() if to else page
        assert target.exists(), found["to"]
        assert not anchor or anchor in anchors(target), found["to"]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "RELEASING.md", "SECURITY.md"])
def test_every_file_and_make_target_that_a_page_for_contributors_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    files = re.findall(r"(?:tests|testbed|docs|\.github|\.ci)/[\w./-]*\w", text)
    assert not [f for f in files if not (ROOT / f).exists()]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert not set(re.findall(r"(?:^\$ |`)make ([a-z-]+)", text, flags=re.M)) - set(targets)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def test_the_language_reference_has_every_key() -> None:
    page = (ROOT / "docs/topology.md").read_text()
    parts = [schema()["properties"], *(d.get("properties", {}) for d in schema()["$defs"].values())]
    missing = {key for part in parts for key in part if f"`{key}`" not in page}
    assert not missing


def test_the_metrics_page_has_every_metric_of_every_workload() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    made: dict[str, list[dict[str, object]]] = {
        "iperf3": [{"from": "a", "to": "b", "protocol": p, "rate": "1mbit"} for p in ("tcp", "udp", "mptcp")],
        "transfer": [
            {"from": "a", "to": "b", "protocol": "mptcp", "bidir": True},
            {"from": "a", "to": "b", "messages": {"request": "1kb", "response": "1kb"}},
        ],
        "ping": [{"from": "a", "to": "b"}],
        "multicast": [{"source": "a", "receivers": ["b"], "group": "232.1.1.1", "rate": "1mbit"}],
        "command": [{"node": "a", "argv": ["true"]}],
    }
    assert set(made) == set(Work.model_fields)
    for kind, examples in made.items():
        for example in examples:
            metrics = Work.model_validate({kind: example}).workload().metrics()
            assert not [m for m in metrics if f"`{m.removeprefix('b.')}`" not in page]


def test_the_design_names_every_room() -> None:
    page = (ROOT / "docs/design.md").read_text()
    rooms = [f.parent.name for f in (ROOT / "testbed").glob("*/__init__.py")]
    assert len(rooms) > 9
    assert not [room for room in rooms if f"| `{room}/` |" not in page]


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text()
    assert not [p.name for p in PAGES if p.stem not in ("README", "index") and f"{p.name})" not in index]


def test_every_example_is_in_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text()
    used = [m["topology"].removeprefix("../") for f in (ROOT / "experiments").glob("*.yaml") if (m := _keys(f))]
    found = [*ROOT.glob("topologies/*.yaml"), *ROOT.glob("experiments/*.yaml")]
    files = {f.relative_to(ROOT).as_posix() for f in found}
    assert sorted(name for name in files - set(used) if f"`{name}`" not in index) == []


def _keys(file: Path) -> dict[str, str]:
    return dict(re.findall(r"^(topology): (\S+)$", file.read_text(), flags=re.M))


def test_the_environment_page_has_exactly_the_variables_that_are_read() -> None:
    """Every TESTBED_* that a source of the program, its tests or its benchmarks has in it."""
    page = set(re.findall(r"`(_?TESTBED_[A-Z]+)`", (ROOT / "docs/environment.md").read_text()))
    files = [f for top in ("testbed", "tests", "benchmarks") for f in (ROOT / top).rglob("*") if f.is_file()]
    sources = [f for f in files if f.suffix in (".py", ".sh", ".c") or (f.suffix == "" and "provision" in f.parts)]
    assert len(sources) > 200
    read = {v for f in sources for v in re.findall(r"\b_?TESTBED_[A-Z]+\b", f.read_text()) if not v.endswith("_H")}
    assert page == read


def test_every_feature_is_explained() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    assert not [f.name for f in features.ALL if f"`{f.name}`" not in page]


def test_the_changelog_begins_with_this_version() -> None:
    found = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert found is not None
    assert found[1] == __version__


def test_the_vagrantfile_is_valid(tmp_path: Path) -> None:
    if shutil.which("vagrant") is None:
        pytest.skip("apt-get install vagrant")
    env = {**os.environ, "VAGRANT_HOME": str(tmp_path), "VAGRANT_CHECKPOINT_DISABLE": "1"}
    env |= {"VAGRANT_DOTFILE_PATH": str(tmp_path / "box")}
    words = ("vagrant", "validate", "--ignore-provider")  # CI has neither VirtualBox nor libvirt
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
