"""Figures of flows against a second source: the counters of interfaces, and what tcpdump or dumpcap recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Need, testbed

pytestmark = [pytest.mark.kernel]


def ran(tmp_path: Path, text: str, name: str, status: int = 0) -> tuple[dict[str, Any], Path]:
    """Run a topology; return its metrics and its results folder."""
    file = tmp_path / "topology.yaml"
    file.write_text(f"name: flows\nfamilies: [ipv4]\n{text}")
    done = testbed("run", str(file), "--name", name, "--results", str(tmp_path / "results"))
    assert done.returncode == status, done.stderr + done.stdout
    folder = tmp_path / "results/flows/latest"
    return json.loads((folder / "metrics.json").read_text()), folder


@pytest.mark.quiet
def test_a_flow_offers_its_rate_whatever_its_protocol_and_streams(tmp_path: Path, name: str, need: Need) -> None:
    need("iperf3")
    flows = {
        "slow": "rate: 64kbit, congestion: cubic",
        "four": "rate: 4mbit, parallel: 4, congestion: cubic",
        "datagrams": "rate: 4mbit, parallel: 4, protocol: udp, length: 1448b",
    }
    nodes = ", ".join(f"{n}{end}: {{}}" for n in flows for end in "ab")
    links = "".join(f"  - {{ends: [{n}a:eth0, {n}b:eth0]}}\n" for n in flows)
    works = "".join(f"  {n}: {{iperf3: {{from: {n}a, to: {n}b, seconds: 3, {words}}}}}\n" for n, words in flows.items())
    found, _ = ran(tmp_path, f"nodes: {{{nodes}}}\nlinks:\n{links}workloads:\n{works}", name)
    offered = {"slow": 0.064, "four": 4.0, "datagrams": 4.0}
    headers = {"slow": 40 + 26, "four": 66, "datagrams": 42}  # bytes of a packet that are no payload
    for flow, rate in offered.items():
        assert found[f"{flow}.goodput_mbps"]["value"] == pytest.approx(rate, rel=0.02), flow
        wire, packets = (found[f"{flow}b.eth0.rx_{what}"]["value"] for what in ("bytes", "packets"))
        payload = wire - packets * headers[flow]
        assert payload == pytest.approx(found[f"{flow}.received_bytes"]["value"], rel=0.03, abs=3000), flow
