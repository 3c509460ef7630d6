"""What tests of machines share: the guest's image, made when the cache has none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from uuid import uuid4

import pytest

from testbed.errors import Unsupported
from testbed.machines.guest import image
from tests.conftest import REQUIRED, ROOT, testbed

IN_A_GUEST = {"netem", "amt", "mlo"}  # what CI asks for and only a guest has everywhere


@pytest.fixture(scope="session")
def guests() -> None:
    """Skip, or fail where CI asks for what only a guest has, when this machine can't have guests."""
    try:
        image.find() or image.build(lambda text, fraction: None)
    except Unsupported as e:
        if REQUIRED & IN_A_GUEST:
            pytest.fail(f"TESTBED_REQUIRE={','.join(sorted(REQUIRED))} asks for guests: {e}")
        pytest.skip(str(e))


@dataclass(frozen=True)
class Run:
    """A run of an experiment in a guest that ended, and its results folder."""

    done: CompletedProcess[str]
    folder: Path

    @property
    def metrics(self) -> dict[str, float]:
        """The value of each metric."""
        return {k: m["value"] for k, m in json.loads((self.folder / "metrics.json").read_text()).items()}

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every timed step with the time that it took effect."""
        found: list[dict[str, Any]] = json.loads((self.folder / "run.json").read_text())["events"]
        return found

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return a file of JSON lines."""
        return [json.loads(row) for row in (self.folder / name).read_text().splitlines()]


@pytest.fixture(scope="session")
def ran(guests: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A function that runs one of our experiments as its page says to, once for all tests that look at it.

    An emulated processor that others share may be late: what did not hold is tried again, three times at most.
    """
    known: dict[str, Run] = {}
    root = tmp_path_factory.mktemp("ran")
    for name in ("topologies", "experiments"):
        shutil.copytree(ROOT / name, root / name)

    def run(name: str) -> Run:
        if name in known:
            return known[name]
        for _ in range(3):
            words = ("run", f"experiments/{name}.yaml", "--name", f"t{uuid4().hex[:10]}", "--machine", "microvm")
            done = testbed(*words, cwd=root, timeout=600)
            if done.returncode == 0:
                break
        assert done.returncode == 0, done.stdout + done.stderr
        known[name] = Run(done, (root / "results" / name / "latest").resolve())
        return known[name]

    return run
