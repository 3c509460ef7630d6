"""Bridges in a ring: with a spanning tree the lab is up when the tree is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Need, testbed

pytestmark = pytest.mark.kernel

RING = """
name: ring
families: [ipv4]
nodes:
  h1: {}
  h2: {}
  s1: {bridge: {stp: true, forward_delay: 2s}}
  s2: {bridge: {stp: true, forward_delay: 2s}}
  s3: {bridge: {stp: true, forward_delay: 2s}}
links:
  - {ends: [h1:eth0, s1:h]}
  - {ends: [h2:eth0, s3:h]}
  - {ends: [s1:a, s3:a]}
  - {ends: [s1:b, s2:a]}
  - {ends: [s2:b, s3:b]}
workloads:
  p: {ping: {from: h1, to: h2, seconds: 1}}
  w1: {command: {node: s1, argv: &ports [bridge, -j, link, show]}}
  w2: {command: {node: s2, argv: *ports}}
  w3: {command: {node: s3, argv: *ports}}
checks:
  - {metric: p.loss_pct, equals: 0}
"""


def test_a_ring_of_bridges_forwards_from_the_first_packet_and_one_port_of_it_blocks(
    tmp_path: Path, name: str, need: Need
) -> None:
    need("bridge", "ping")
    file = tmp_path / "ring.yaml"
    file.write_text(RING)
    done = testbed("run", str(file), "--name", name, "--results", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr + done.stdout
    folder = (tmp_path / "results/ring/latest").resolve()
    states = [port["state"] for n in (1, 2, 3) for port in json.loads((folder / f"s{n}/w{n}.command.out").read_text())]
    assert sorted(states) == ["blocking"] + ["forwarding"] * 7
