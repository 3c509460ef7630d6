"""Which of several next hops the kernel takes for a flow: the same in every lab of a file, and not all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import testbed as api
from testbed.loading import load
from testbed.plan.lab import plan
from tests.conftest import Need

pytestmark = pytest.mark.kernel

LAB = """
name: spread
nodes:
  h: {}
  l: {router: {}, routes: [{to: default, via: [10.1.0.2, 10.2.0.2]}, {to: "::/0", via: ["fd01::2", "fd02::2"]}]}
  s1: {router: {}}
  s2: {router: {}}
links:
  - {ends: [h:eth0, l:h]}
  - {ends: [l:a, s1:a], addresses: [[10.1.0.1/24, "fd01::1/64"], [10.1.0.2/24, "fd01::2/64"]]}
  - {ends: [l:b, s2:a], addresses: [[10.2.0.1/24, "fd02::1/64"], [10.2.0.2/24, "fd02::2/64"]]}
"""


@pytest.mark.parametrize("to", ["10.9.0.1", "fd09::1"])
def test_flows_of_the_same_ports_take_the_same_way_in_every_lab_and_others_another(
    tmp_path: Path, name: str, need: Need, to: str
) -> None:
    need("ipv6", "multipath-seed")
    (tmp_path / "lab.yaml").write_text(LAB)
    made = plan(load(tmp_path / "lab.yaml"))
    rows = "".join(f"route get {to} ipproto tcp sport {10240 + n} dport 5201\n" for n in range(64))
    seen = []
    for _ in range(2):
        with api.up(made, name) as running:
            done = running.exec("l", ("ip", "-j", "-force", "-batch", "-"), input=rows.encode())
        seen.append([json.loads(row)[0]["dev"] for row in done.stdout.splitlines() if row.strip()])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 64
    assert 16 <= seen[0].count("a") <= 48
