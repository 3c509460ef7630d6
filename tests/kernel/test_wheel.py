"""The wheel as its users have it: installed where nothing of this tree is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import ROOT, Need
from tests.test_wheel import built

pytestmark = pytest.mark.kernel


def test_a_topology_of_ones_own_begins_and_runs_with_the_wheel_alone(tmp_path: Path, need: Need) -> None:
    need("veth", "tbf", "iperf3", "ping")
    wheel, home = built("wheel", ROOT, tmp_path / "wheel"), tmp_path / "venv"
    subprocess.run((sys.executable, "-m", "venv", "--without-pip", home), check=True)
    # Libraries come from this environment, whose own `.pth` of the tree is not read there: no network is needed.
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (
        sys.executable,
        "-m",
        "pip",
        "--python",
        home / "bin/python",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
    )
    subprocess.run((*pip, wheel), check=True)
    work = tmp_path / "work"
    work.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def testbed(*words: str) -> str:
        argv = (str(home / "bin/testbed"), *words)
        return subprocess.run(argv, cwd=work, env=env, check=True, capture_output=True, text=True).stdout

    where = (home / "bin/python", "-c", "import testbed; print(testbed.__file__)")
    place = subprocess.run(where, cwd=work, env=env, check=True, capture_output=True, text=True).stdout
    assert Path(place.strip()).is_relative_to(home)
    assert "two-hosts" in testbed("init")
    testbed("init", "two-hosts", "mine.yaml")
    assert "no errors" in testbed("check", "mine.yaml")
    assert testbed("plan", "mine.yaml") == (ROOT / "tests/golden/topologies-two-hosts.plan.txt").read_text()
    words = (
        "--set",
        "workloads.bulk.iperf3.seconds=1",
        "--set",
        "workloads.rtt.ping.seconds=1",
        "--set",
        "checks=[{metric: rtt.loss_pct, max: 0}]",
    )
    (done,) = json.loads(testbed("run", "mine.yaml", "--machine", "here", "--json", *words))
    assert (done["verdict"], Path(work, done["folder"], "metrics.json").exists()) == ("passed", True)
