"""The figures of MPTCP paths against what packets on the wire say: every path to 1 %, whoever owns an address."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Need, testbed

pytestmark = [pytest.mark.kernel, pytest.mark.quiet]  # bytes that go by while nobody looks are those of a busy machine

MOVING = """
name: moving
families: [ipv4]
nodes:
  phone:
    mptcp: {endpoints: [{interface: eth1}]}
    commands: [[ip, address, add, 192.0.2.7/28, dev, eth0]]
  server: {mptcp: {}}
links:
  - {ends: [phone:eth0, server:eth0], rate: 4mbit, addresses: [192.0.2.1/28, 192.0.2.2/28]}
  - {ends: [phone:eth1, server:eth1], rate: 3mbit, addresses: [198.51.100.1/28, 198.51.100.2/28]}
workloads:
  up: {iperf3: {from: phone, to: server, protocol: mptcp, seconds: 4, congestion: cubic}}
events:
  - {at: 1s, node: phone, command: [ip, mptcp, endpoint, add, 192.0.2.7, dev, eth0, subflow]}
  - {at: 1.5s, node: phone, endpoint: {interface: eth1}, action: remove}
  - {at: 1.5s, node: phone, address: {interface: eth1, remove: 198.51.100.1/28, add: 198.51.100.5/28}}
  - {at: 2s, node: phone, endpoint: {address: 198.51.100.5}}
duration: 8s
capture: [{interfaces: "phone:*", snaplen: 128}]
checks:
  - {metric: "phone.path.eth1/server:eth0.bytes_sent", min: 500000}
  - {metric: "phone.path.eth0/server:eth0.rtt_p50_ms", min: 0.1}
"""
DROPPING = """
name: dropping
families: [ipv4]
nodes:
  phone: {mptcp: {endpoints: [{interface: eth1}]}}
  server: {mptcp: {}}
links:
  - {ends: [phone:eth0, server:eth0], rate: 8mbit, queue: {discipline: pfifo, packets: 20}}
  - {ends: [phone:eth1, server:eth1], rate: 5mbit, queue: {discipline: bfifo, limit: 30kb}}
workloads:
  up: {iperf3: {from: phone, to: server, protocol: mptcp, seconds: 4, congestion: bbr}}
  down: {iperf3: {from: phone, to: server, protocol: mptcp, seconds: 4, at: 5s, reverse: true, congestion: cubic}}
duration: 12s
capture: [{interfaces: "phone:*", snaplen: 128}, {interfaces: "server:*", snaplen: 128}]
"""


def ran(text: str, tmp_path: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Run a file; return its folder and its metrics."""
    (tmp_path / "t.yaml").write_text(text)
    done = testbed("run", str(tmp_path / "t.yaml"), "--name", name, "--results", str(tmp_path / "r"))
    assert done.returncode == 0, done.stdout + done.stderr
    [folder] = tmp_path.glob("r/*/latest")
    return folder, json.loads((folder / "metrics.json").read_text())


def payload(file: Path) -> Counter[tuple[str, str]]:
    """Return the TCP payload in a capture by source and destination."""
    words = ("tshark", "-r", str(file), "-Y", "tcp", "-T", "fields", "-e", "ip.src", "-e", "ip.dst", "-e", "tcp.len")
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: Counter[tuple[str, str]] = Counter()
    for row in done.stdout.splitlines():
        source, to, length = row.split("\t")
        found[source, to] += int(length or 0)  # ICMP that quotes a packet has none
    return found


def paths(metrics: dict[str, Any], node: str, what: str) -> dict[str, float]:
    """Return one figure of every path of a node, by the name of the path."""
    ends = (f"{node}.path.", f".{what}")
    return {
        name.removeprefix(ends[0]).removesuffix(ends[1]): m["value"]
        for name, m in metrics.items()
        if name.startswith(ends[0]) and name.endswith(ends[1])
    }


def test_addresses_that_come_and_go_count_for_the_interface_that_has_them(
    tmp_path: Path, name: str, need: Need
) -> None:
    need("mptcp", "mptcp-diag", "tbf", "iperf3", "mptcpize", "dumpcap")
    folder, metrics = ran(MOVING, tmp_path, name)
    wire = {i: payload(folder / f"phone/{i}.pcapng") for i in ("eth0", "eth1")}
    hosts = {"eth0": ("192.0.2.1", "192.0.2.7"), "eth1": ("198.51.100.1", "198.51.100.5")}
    expected = {f"{i}/server:eth0": sum(wire[i][h, "192.0.2.2"] for h in own) for i, own in hosts.items()}
    assert min(wire["eth0"]["192.0.2.7", "192.0.2.2"], wire["eth1"]["198.51.100.5", "192.0.2.2"]) > 100_000
    looked = 4e6 / 8 * 0.1  # see the next test
    assert paths(metrics, "phone", "bytes_sent") == pytest.approx(expected, rel=0.01, abs=looked)
    assert sum(paths(metrics, "phone", "share_pct").values()) == pytest.approx(100)
    for i in hosts:  # which are sums over paths
        same = paths(metrics, "phone", "bytes_sent")[f"{i}/server:eth0"]
        assert metrics[f"phone.subflow.{i}.bytes_sent"]["value"] == same
    assert not [name for name in metrics if ".subflow.1" in name], "no figure has the name of an address"
    got = metrics["server.subflow.eth0.bytes_received"]["value"]
    assert got == pytest.approx(sum(expected.values()), rel=0.02, abs=looked)


def test_what_a_queue_of_the_sender_refuses_has_not_left(tmp_path: Path, name: str, need: Need) -> None:
    need("mptcp", "mptcp-diag", "tbf", "iperf3", "mptcpize", "dumpcap")
    folder, metrics = ran(DROPPING, tmp_path, name)
    assert metrics["phone.eth0.qdisc_drops"]["value"] > 0
    ends = {"eth0": ("10.0.1.1", "10.0.1.2"), "eth1": ("10.0.2.1", "10.0.1.2")}
    wire = {i: payload(folder / f"phone/{i}.pcapng") for i in ends}
    up = {f"{i}/server:eth0": wire[i][pair] for i, pair in ends.items()}
    # What a first subflow sent after the last look at it is missing where its host closes first: the kernel clears it.
    looked = 8e6 / 8 * 0.1
    assert paths(metrics, "phone", "bytes_sent") == pytest.approx(up, rel=0.01, abs=looked)
    # The server's subflows share its first address: the second path begins at another interface.
    sent = payload(folder / "server/eth0.pcapng") + payload(folder / "server/eth1.pcapng")
    down = {f"eth0/phone:{i}": sent[to, source] for i, (source, to) in ends.items()}
    assert paths(metrics, "server", "bytes_sent") == pytest.approx(down, rel=0.01, abs=looked)
    # At the handshake the path was empty; under load its queue is full.
    assert metrics["server.path.eth0/phone:eth0.rtt_p50_ms"]["value"] > 5
    assert metrics["server.path.eth0/phone:eth0.cwnd_p50_segments"]["value"] > 2
