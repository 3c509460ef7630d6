"""A role of one's own costs its file, its driver, a field and rows of the table: docs/extending.md shows one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Need
from tests.kernel.test_extending import ROLE, changed
from tests.test_docs import blocks, commands, explained, marked, perform

pytestmark = pytest.mark.kernel
EXAMPLE = ROOT / "docs/examples/extending"
NEW = {"testbed/nodes/fast_open.py", "testbed/drivers/tcp_metrics.py"}
CHANGED = {"testbed/nodes/node.py", "testbed/metrics/table.py"}
Testbed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package in a repository, and in it a role, a driver, a field and rows that were added."""
    tree = tmp_path_factory.mktemp("role")
    shutil.copytree(ROOT / "testbed", tree / "testbed", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    git(tree, "init", "--quiet")
    git(tree, "add", "--all")
    git(tree, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "as it was")
    shutil.copy(EXAMPLE / "fast_open.py", tree / "testbed/nodes")
    shutil.copy(EXAMPLE / "tcp_metrics.py", tree / "testbed/drivers")
    for place, body in marked(ROLE, "change"):
        file = tree / place
        file.write_text(changed(file.read_text(), body))
    shutil.copy(EXAMPLE / "fast-open.yaml", tree)
    return tree


def git(tree: Path, *words: str) -> str:
    return subprocess.run(("git", *words), cwd=tree, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def there(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Testbed:
    """The command line of that copy."""
    monkeypatch.setenv("PYTHONPATH", str(tree))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = (sys.executable, "-m", "testbed", *words)
        return subprocess.run(argv, cwd=tree, capture_output=True, text=True, timeout=120, check=False)

    return run


def variant(tree: Path, name: str, *changes: tuple[str, str]) -> str:
    """Write the example with some text of it changed."""
    text = (tree / "fast-open.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tree / name).write_text(text)
    return name


def test_nothing_else_of_testbed_is_changed(tree: Path) -> None:
    git(tree, "add", "--intent-to-add", "testbed")
    rows = git(tree, "diff", "--stat", "--", "testbed").splitlines()[:-1]
    assert {row.partition("|")[0].strip() for row in rows} == NEW | CHANGED
    assert git(tree, "diff", "--numstat", "testbed/nodes/node.py").split()[:2] == ["2", "0"]


def test_the_language_and_the_plan_have_the_role(there: Testbed) -> None:
    done = there("check", "fast-open.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    plan = there("plan", "fast-open.yaml").stdout.splitlines()
    assert "[client] sysctl -w net.ipv4.tcp_fastopen=3" in plan
    assert "[client] ip tcp_metrics flush all  @4s" in plan
    assert "FastOpen" in json.loads(there("schema").stdout)["$defs"]


def test_it_is_judged_at_its_place_and_a_typo_gets_a_suggestion(there: Testbed, tree: Path) -> None:
    links = "links:\n  - {ends: [client:eth0, server:eth0]}\n"
    done = there("check", variant(tree, "lacks.yaml", (links, "")))
    assert done.returncode == 2
    assert "lacks.yaml:3:12: client has no address, so no TCP connection can begin or end there" in done.stderr
    done = there("check", variant(tree, "typo.yaml", ("fast_open.opened", "fast_open.opend")))
    assert "client.fast_open.opend" in done.stderr
    assert "fast_open has no metric 'opend' (did you mean 'opened'?)" in done.stderr
    done = there("check", variant(tree, "other.yaml", ("client: {fast_open: {}}", "client: {}")))
    assert "client is not a host with TCP Fast Open (it has no `fast_open`)" in done.stderr
    assert "client is not a host with TCP Fast Open (give the node `fast_open: {}`)" in done.stderr


def test_a_lab_with_it_comes_up_and_goes_down(there: Testbed, name: str, need: Need) -> None:
    need("veth")
    assert there("up", "fast-open.yaml", "--machine", "here", "--name", name).returncode == 0
    assert there("exec", name, "client", "--", "cat", "/proc/sys/net/ipv4/tcp_fastopen").stdout == "3\n"
    assert there("down", name).returncode == 0


def test_a_run_restarts_it_and_checks_what_it_counted(there: Testbed, tree: Path, name: str, need: Need) -> None:
    need("veth")
    file = variant(tree, f"{name}.yaml", ("cookies, equals: 2}", "cookies, max: 1}"))
    done = there("run", file, "--machine", "here", "--name", name, "--results", str(tree / name))
    assert done.returncode == 1, done.stdout + done.stderr
    [verdict] = (tree / name).rglob("verdict.json")
    checks = json.loads(verdict.read_text())["checks"]
    assert [(c["metric"], c["value"], c["unit"], c["passed"]) for c in checks] == [
        ("server.fast_open.cookies", 2, "connection", False),
        ("server.fast_open.accepted", 1, "connection", True),
        ("client.fast_open.opened", 1, "connection", True),
    ]
    found = json.loads(verdict.with_name("metrics.json").read_text())["server.fast_open.cookies"]
    assert list(dict.fromkeys(v for _, v in found["series"])) == [0, 1, 2]


def test_the_checks_of_the_page_pass_and_all_that_it_shows_happens(there: Testbed, tree: Path, need: Need) -> None:
    need("veth")
    (shown,) = [body for mark, _, body in blocks(ROLE) if "test_role" in mark]
    found = list(commands(shown))
    faults = [explained(c, *result) for c, result in zip(found, perform(found, tree), strict=True)]
    assert not any(faults), "\n\n".join(filter(None, faults))
