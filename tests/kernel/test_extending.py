"""The page that shows how testbed is extended: its files and changes, in a copy of this checkout."""

from __future__ import annotations

import filecmp
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT, Need
from tests.test_docs import blocks, commands, explained, perform

pytestmark = pytest.mark.kernel
WORKLOAD, ROLE = (ROOT / "docs/extending.md").read_text().split("## A role\n")
PLACES = {"ttl.py": "testbed/drivers/ttl.py", "hops.py": "testbed/workloads/hops.py", "hops.yaml": "hops.yaml"}


def changed(text: str, body: str) -> str:
    """Return a file's text with a diff of the page: its lines come after the one that is shown above them."""
    for hunk in body.split("@@\n"):
        kept, added = ([r[1:] for r in hunk.splitlines(keepends=True) if r[0] == sign] for sign in " +")
        assert text.count("".join(kept)) == 1, kept
        text = text.replace("".join(kept), "".join(kept + added))
    return text


def differing(a: Path, b: Path) -> set[str]:
    files = {f.relative_to(top) for top in (a, b) for f in top.rglob("*") if f.is_file() and f.suffix != ".pyc"}
    same, _, _ = filecmp.cmpfiles(a, b, [str(f) for f in files], shallow=False)
    return {str(f) for f in files} - set(same)


def test_a_driver_and_a_workload_of_ones_own_are_two_files_and_a_few_lines(
    tmp_path: Path, need: Need, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("veth", "ping")
    tops = ("testbed", "tests", "topologies", "experiments", "docs")
    for top in tops:
        shutil.copytree(ROOT / top, tmp_path / top, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".venv"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, place in PLACES.items():
        shutil.copy(ROOT / "docs/examples/extending" / name, tmp_path / place)
    for mark, _, body in blocks(WORKLOAD):
        if mark.startswith("change: "):
            file = tmp_path / mark.removeprefix("change: ")
            file.write_text(changed(file.read_text(), body))
    layers = tmp_path / "tests/test_layers.py"
    rooms = {"drivers": "ttl", "workloads": "hops"}
    layers.write_text(
        re.sub(r'"(drivers|workloads)": "', lambda m: f"{m[0]}{rooms[m[1]]} ", layers.read_text(), count=2)
    )
    added = {PLACES["ttl.py"].removeprefix("testbed/"), PLACES["hops.py"].removeprefix("testbed/")}
    lines = {"language/topology.py", "metrics/table.py"}
    assert differing(ROOT / "testbed", tmp_path / "testbed") == added | lines
    assert differing(ROOT / "tests", tmp_path / "tests") == {"test_layers.py"}

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (shown,) = [body for mark, _, body in blocks(WORKLOAD) if "test_extending" in mark]
    found = list(commands(shown))
    faults = [explained(c, *result) for c, result in zip(found, perform(found, tmp_path), strict=True)]
    assert not any(faults), "\n\n".join(filter(None, faults))
