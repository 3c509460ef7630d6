"""Bounds of a lab in a guest, whose kernel has cgroup v2."""

from __future__ import annotations

import json

import pytest

from tests.conftest import ROOT, testbed

pytestmark = pytest.mark.machine


def test_in_a_guest_all_bounds_of_a_lab_are_enforced(guests: None, name: str) -> None:
    file, small = str(ROOT / "topologies/bounded.yaml"), ("--set", "resources.memory=100mb")
    done = testbed("up", file, "--name", name, *small, "--machine", "microvm", "--json")
    assert done.returncode == 0, done.stderr
    resources = json.loads(done.stdout)["resources"]
    assert {key: one["bound"] for key, one in resources.items()} == {"memory": "100mb", "pids": "100", "cpu": "1.5"}
    assert all("by" in one and "unenforced" not in one for one in resources.values()), resources
    said = testbed("exec", name, "client", "--", "cat", "/proc/self/cgroup").stdout
    assert f"/testbed-{name}-" in said
    hog = testbed("exec", name, "client", "--", "python3", "-c", "x = bytearray(300 << 20)")
    assert hog.returncode == 137, hog.stderr
    state = json.loads(testbed("status", name, "--json").stdout)
    assert state["resources"]["memory"]["killed"] >= 1
    assert testbed("exec", name, "client", "--", "ping", "-c1", "server").returncode == 0
    assert testbed("down", name).returncode == 0
