"""Rates on the wire, measured with iperf3: layer-2 bits a second in each direction by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Need, testbed

pytestmark = [pytest.mark.kernel, pytest.mark.quiet]

FRAME_TCP, PAYLOAD_TCP = 1514, 1448  # Ethernet header, IPv4, TCP with time stamps
FRAME_UDP, PAYLOAD_UDP = 1490, 1448


def measured(tmp_path: Path, text: str, name: str) -> dict[str, float]:
    """Run a topology and return its metrics' values."""
    file = tmp_path / "topology.yaml"
    file.write_text(text)
    done = testbed("run", str(file), "--name", name, "--results", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads((tmp_path / "results/shaped/latest/metrics.json").read_text())
    return {k: v["value"] for k, v in found.items()}


TOPOLOGY = """
name: shaped
nodes: {a: {}, b: {}}
links:
  - {ends: [a:eth0, b:eth0], %s}
workloads:
%s
"""


@pytest.mark.parametrize(
    ("link", "there", "back"), [("rate: 50mbit", 50, 50), ("forward: {rate: 50mbit}, reverse: {rate: 10mbit}", 50, 10)]
)
def test_tcp_gets_the_rate_of_each_direction(
    tmp_path: Path, name: str, need: Need, link: str, there: float, back: float
) -> None:
    need("tbf", "iperf3")
    # cubic, for the host's default may be a model-based algorithm that leaves some of a small buffer unused
    works = (
        "  there: {iperf3: {from: a, to: b, seconds: 5, congestion: cubic}}\n"
        "  back: {iperf3: {from: a, to: b, seconds: 5, at: 5s, reverse: true, congestion: cubic}}\n"
    )
    found = measured(tmp_path, TOPOLOGY % (link, works), name)
    for flow, rate in (("there", there), ("back", back)):
        bits = found[f"{flow}.goodput_mbps"] * FRAME_TCP / PAYLOAD_TCP
        assert bits == pytest.approx(rate, rel=0.03), f"{flow}: {bits:.2f} Mbit/s on the wire of {rate}"


def test_udp_gets_the_rate_of_each_direction_at_the_same_time(tmp_path: Path, name: str, need: Need) -> None:
    need("tbf", "iperf3")
    works = (
        "  there: {iperf3: {from: a, to: b, protocol: udp, rate: 60mbit, length: 1448b, seconds: 5}}\n"
        "  back: {iperf3: {from: b, to: a, protocol: udp, rate: 60mbit, length: 1448b, seconds: 5}}\n"
    )
    found = measured(tmp_path, TOPOLOGY % ("rate: 50mbit", works), name)
    assert set(found) >= {"a.eth0.qdisc_drops", "b.eth0.qdisc_drops"}
    for flow in ("there", "back"):
        bits = found[f"{flow}.goodput_mbps"] * FRAME_UDP / PAYLOAD_UDP
        assert bits == pytest.approx(50, rel=0.03), f"{flow}: {bits:.2f} Mbit/s on the wire"


def test_what_a_short_queue_cannot_hold_is_lost_and_counted(tmp_path: Path, name: str, need: Need) -> None:
    need("tbf", "iperf3")
    works = "  flood: {iperf3: {from: a, to: b, protocol: udp, rate: 60mbit, length: 1448b, seconds: 3}}\n"
    found = measured(tmp_path, TOPOLOGY % ("rate: 30mbit, queue: {limit: 32kb}", works), name)
    assert found["flood.goodput_mbps"] * FRAME_UDP / PAYLOAD_UDP == pytest.approx(30, rel=0.03)
    assert found["flood.loss_pct"] == pytest.approx(100 * (1 - 30 / 60 * PAYLOAD_UDP / FRAME_UDP), abs=4)
    # every packet that iperf3 missed is one that the qdisc says it dropped
    lost = found["flood.loss_pct"] / 100 * found["flood.received_bytes"] / 1448 / (1 - found["flood.loss_pct"] / 100)
    assert found["a.eth0.qdisc_drops"] == pytest.approx(lost, rel=0.02)
