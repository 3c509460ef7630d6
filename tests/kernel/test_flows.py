"""Figures of flows against a second source: the counters of interfaces, and what tcpdump or dumpcap recorded."""

from __future__ import annotations

import json
import shutil
import subprocess
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


def first_data(file: Path, port: int) -> float:
    """Return when (CLOCK_REALTIME, seconds) the first packet with data of a flow passed: after iperf3's cookie."""
    shown = f"(tcp.port == {port} && tcp.len > 300) || (udp.port == {port} && udp.length > 100)"
    words = ("tshark", "-r", str(file), "-Y", shown, "-T", "fields", "-e", "frame.time_epoch")
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0])


LATE = """
nodes: {a: {}, r: {router: {}}, b: {}}
links:
  - {ends: [a:eth0, r:a], rate: 10mbit}
  - {ends: [r:b, b:eth0]}
workloads:
  late: {iperf3: {from: a, to: b, seconds: 2, at: 500ms, congestion: cubic}}
  datagrams: {iperf3: {from: a, to: b, seconds: 1, at: 6s, protocol: udp, rate: 1mbit}}
  back: {iperf3: {from: a, to: b, seconds: 1, at: 6s, reverse: true, congestion: cubic}}
events:
  - {at: 400ms, node: r, sysctl: {net.ipv4.ip_forward: 0}}
  - {at: 2s, node: r, sysctl: {net.ipv4.ip_forward: 1}}
capture: ["a:eth0", "b:eth0"]
"""


def test_a_flow_begins_with_its_first_data_and_not_when_it_was_to(tmp_path: Path, name: str, need: Need) -> None:
    need("iperf3", "tbf", "dumpcap")
    if not shutil.which("tshark"):
        pytest.skip("tshark is not here")
    found, folder = ran(tmp_path, LATE, name)
    origin = json.loads((folder / "run.json").read_text())["time"]
    for n, (flow, sender) in enumerate({"late": "a", "datagrams": "a", "back": "b"}.items()):
        began = first_data(folder / sender / "eth0.pcapng", 5201 + n) - origin
        assert found[f"{flow}.start_s"]["value"] == pytest.approx(began, abs=0.1), flow
        (first, *_) = found[f"{flow}.goodput_mbps"]["series"]
        assert first[0] == pytest.approx(began + 1, abs=0.15), f"{flow}: the end of its first second"
    assert found["late.start_s"]["value"] > 2, "its first packets were not forwarded"
    seen = json.loads((folder / "verdict.json").read_text())["validity"]
    assert [d for d in seen if d["what"] == "what late was to measure at a time"]


def test_what_was_measured_until_a_client_was_killed_is_kept(tmp_path: Path, name: str, need: Need) -> None:
    need("iperf3", "tbf")
    text = """
nodes: {a: {}, b: {}}
links:
  - {ends: [a:eth0, b:eth0], rate: 8mbit}
workloads:
  stream: {iperf3: {from: a, to: b, seconds: 4, congestion: cubic}}
  datagrams: {iperf3: {from: a, to: b, seconds: 4, protocol: udp, rate: 1mbit}}
events:
  - {at: 2s, node: a, command: [pkill, -KILL, -f, "iperf3 -c"]}
"""
    found, folder = ran(tmp_path, text, name, status=3)
    failures = json.loads((folder / "verdict.json").read_text())["failures"]
    assert [f for f in failures if "stream.client ended with signal SIGKILL" in f]
    for flow, rate in {"stream": 6.5, "datagrams": 1.0}.items():
        assert found[f"{flow}.seconds"]["value"] == pytest.approx(2, abs=0.4), flow
        assert found[f"{flow}.goodput_mbps"]["value"] == pytest.approx(rate, rel=0.2), flow
    assert found["datagrams.loss_pct"]["value"] < 5


def test_a_program_that_takes_too_long_may_write_what_it_has_even_if_it_was_stopped(tmp_path: Path, name: str) -> None:
    text = """
nodes: {a: {}}
workloads:
  slow:
    command:
      node: a
      argv: [bash, -c, "trap 'echo what it has; exit 0' TERM; kill -STOP $$; while :; do read -t 9 <> <(:); done"]
      seconds: 1
"""
    _, folder = ran(tmp_path, text, name, status=3)
    assert (folder / "a/slow.command.out").read_text() == "what it has\n"
    (failure,) = json.loads((folder / "verdict.json").read_text())["failures"]
    assert failure.startswith("[a] slow.command did not end within 1 s")


def test_the_first_ping_waits_for_no_neighbour(tmp_path: Path, name: str, need: Need) -> None:
    need("ping", "dumpcap")
    if not shutil.which("tshark"):
        pytest.skip("tshark is not here")
    text = """
nodes: {a: {}, r: {router: {}}, b: {}}
links: [{ends: [a:eth0, r:a]}, {ends: [r:b, b:eth0]}]
workloads:
  four: {ping: {from: a, to: b, seconds: 1}}
  six: {ping: {from: b, to: a, seconds: 1, family: ipv6}}
capture: ["*:*"]
"""
    file = tmp_path / "topology.yaml"
    file.write_text(f"name: flows\n{text}")
    done = testbed("run", str(file), "--name", name, "--results", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr + done.stdout
    folder = tmp_path / "results/flows/latest"
    assert json.loads((folder / "neighbours.json").read_text()) == []
    origin = json.loads((folder / "run.json").read_text())["time"]
    # requests for neighbours that nobody knows go to all; those that confirm one, seconds later, do not
    shown = f"frame.time_epoch > {origin} && eth.dst.ig == 1 && (arp.opcode == 1 || icmpv6.type == 135)"
    for capture in folder.rglob("*.pcapng"):
        asked = subprocess.run(["tshark", "-r", str(capture), "-Y", shown], capture_output=True, text=True, check=True)
        assert not asked.stdout, capture


WORDS = {
    "omitted": "omit: 1, seconds: 2",
    "marked": "dscp: ef, seconds: 2",
    "buffered": "window: 64kb, seconds: 2",
    "both": "bidir: true, seconds: 2, congestion: cubic",
    "datagrams": "bidir: true, seconds: 2, protocol: udp",
    "small": "mss: 500, seconds: 2, port: 6000",
    "bound": "bind: eth1, to_interface: eth1, interval: 500ms, seconds: 2s, options: [-N]",
}


def test_words_of_iperf3_do_what_they_say(tmp_path: Path, name: str, need: Need) -> None:
    need("iperf3", "dumpcap")
    if not shutil.which("tshark"):
        pytest.skip("tshark is not here")
    nodes = ", ".join(f"{n}-{end}: {{}}" for n in WORDS for end in "ab")
    links = "".join(f"  - {{ends: [{n}-a:{i}, {n}-b:{i}]}}\n" for n in WORDS for i in ("eth0", "eth1"))
    works = "".join(f"  {n}: {{iperf3: {{from: {n}-a, to: {n}-b, rate: 2mbit, {w}}}}}\n" for n, w in WORDS.items())
    captures = "[marked-a:eth0, small-a:eth0]"
    text = f"nodes: {{{nodes}}}\nlinks:\n{links}workloads:\n{works}capture: {captures}\n"
    found, folder = ran(tmp_path, text, name)
    value = {key: m["value"] for key, m in found.items()}

    def fields(node: str, shown: str, field: str) -> set[str]:
        words = ("tshark", "-r", str(folder / node / "eth0.pcapng"), "-Y", shown, "-T", "fields", "-e", field)
        return set(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())

    # what is omitted is on the wire, and not in the figures
    assert value["omitted.seconds"] == pytest.approx(2, abs=0.3)
    assert value["omitted-b.eth0.rx_bytes"] > 1.4 * value["omitted.received_bytes"]
    assert found["omitted.goodput_mbps"]["series"][0][0] == pytest.approx(value["omitted.start_s"] + 2, abs=0.2)
    assert fields("marked-a", "tcp.dstport == 5202 && tcp.len > 500", "ip.dsfield.dscp") == {"46"}
    said = json.loads((folder / "buffered-a/buffered.client.json").read_text())
    assert said["start"]["sndbuf_actual"] == 2 * 64 * 1024  # socket(7): the kernel doubles it
    for flow in ("both", "datagrams"):
        for way, sender in (("", "a"), ("reverse_", "b")):
            sent = value[f"{flow}-{sender}.eth0.tx_bytes"]
            assert value[f"{flow}.{way}received_bytes"] == pytest.approx(sent, rel=0.1), (flow, way)
            assert value[f"{flow}.{way}goodput_mbps"] == pytest.approx(2, rel=0.1), (flow, way)
    assert value["datagrams.reverse_loss_pct"] == 0
    longest = max(int(n) for n in fields("small-a", "tcp.dstport == 6000 && frame.len < 1500", "tcp.len"))
    assert longest <= 500
    assert value["bound-a.eth1.tx_bytes"] > 400_000 > 10_000 > value["bound-a.eth0.tx_bytes"]


def test_what_a_program_measures_is_a_metric_and_what_it_must_do_a_check(tmp_path: Path, name: str) -> None:
    text = """
nodes: {a: {}}
workloads:
  good:
    command:
      node: a
      argv: [sh, -c, 'echo "took 2.5 ms" > good.txt; echo ready; exit 3']
      metrics: {took_ms: {regex: "took ([0-9.]+) ms", unit: ms, better: lower, file: good.txt}}
      expect: {status: 3, stdout: "^ready$"}
  bad: {command: {node: a, argv: ["false"], expect: {}}}
"""
    found, folder = ran(tmp_path, text, name, status=1)
    assert found["good.took_ms"] == {"value": 2.5, "unit": "ms"}
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["verdict"] == "failed"
    assert {(c["metric"], c["passed"]) for c in verdict["checks"]} == {
        ("good exit status", True),
        ("good stdout", True),
        ("bad exit status", False),
    }
    assert 'name="bad exit status = 0"' in (folder / "junit.xml").read_text()


def test_checks_name_the_kernels_counters_windows_sums_and_lengths_of_time(
    tmp_path: Path, name: str, need: Need
) -> None:
    need("iperf3", "tbf")
    text = """
nodes: {a: {}, b: {}}
links: [{name: l, ends: [a:eth0, b:eth0], rate: 8mbit}]
workloads:
  f: {iperf3: {from: a, to: b, seconds: 6, congestion: cubic}}
  p: {ping: {from: a, to: b, seconds: 6}}
  n: {command: {node: b, at: 6s, seconds: 5, argv: [nstat, -asz, IpExtInOctets]}}
events: [{at: 3s, link: l, set: {rate: 4mbit}}]
checks:
  - {metric: f.goodput_mbps, window: [1s, 3s], min: 7, max: 8}
  - {metric: f.goodput_mbps, window: [4s, 6s], min: 3.4, max: 4}
  - {metric: f.goodput_mbps, min: 6.5, for: 2s}
  - {metric: p.sent_packets, window: [1s, 3s], min: 9, max: 11}
  - {metric: a.eth0.tx_bytes, window: [4s, 6s], min: 800000, max: 1100000}
  - {sum: [a.eth0.tx_bytes, a.eth0.rx_bytes], divide_by: [b.eth0.tx_bytes, b.eth0.rx_bytes], min: 0.99, max: 1.01}
  - {metric: b.IpExt.InOctets, min: 1000000}
  - {metric: a.TcpExt.NoSuchCounter, present: false}
"""
    found, folder = ran(tmp_path, text, name)
    assert all(c["passed"] for c in json.loads((folder / "verdict.json").read_text())["checks"])
    (row,) = [r for r in (folder / "b/n.command.out").read_text().splitlines() if r.startswith("IpExtInOctets")]
    assert found["b.IpExt.InOctets"]["value"] == pytest.approx(float(row.split()[1]), rel=0.1)


@pytest.mark.quiet
def test_a_transfer_of_a_size_takes_the_time_that_its_frames_take(tmp_path: Path, name: str, need: Need) -> None:
    need("tbf", "mptcp")
    flows = {
        "one": "bytes: 1mb",
        "back": "bytes: 1mb, reverse: true",
        "four": "bytes: 1mb, parallel: 4",
        "subflows": "bytes: 1mb, protocol: mptcp",
    }
    nodes = ", ".join(f"{n}-{end}: {{mptcp: {{}}}}" for n in flows for end in "ab")
    links = "".join(f"  - {{ends: [{n}-a:eth0, {n}-b:eth0], rate: 8mbit, queue: {{limit: 64kb}}}}\n" for n in flows)
    line = "  {0}: {{iperf3: {{from: {0}-a, to: {0}-b, congestion: cubic, {1}}}}}\n"
    works = "".join(line.format(n, w) for n, w in flows.items())
    found, _ = ran(tmp_path, f"nodes: {{{nodes}}}\nlinks:\n{links}workloads:\n{works}", name)
    value = {key: m["value"] for key, m in found.items()}
    for flow in flows:
        assert value[f"{flow}.received_bytes"] == 1 << 20
        receiver = f"{flow}-a" if flow == "back" else f"{flow}-b"
        frames = value[f"{receiver}.eth0.rx_bytes"] * 8 / 8e6  # seconds on the wire of all that arrived
        assert value[f"{flow}.completion_s"] == pytest.approx(frames, abs=0.15), flow


TRANSFERS = """
nodes: {a: {mptcp: {}}, b: {mptcp: {}}, c: {}}
links:
  - {name: ab, ends: [a:eth0, b:eth0], rate: 8mbit, queue: {limit: 64kb}}
  - {name: cb, ends: [c:eth0, b:eth1]}
workloads:
  up: {transfer: {from: a, to: b, protocol: mptcp, bytes: 500kb, connections: 4, congestion: cubic}}
  both: {transfer: {from: c, to: b, bidir: true, rate: 2mbit, seconds: 2}}
  asks: {transfer: {from: c, to: b, seconds: 2, messages: {request: 100b, response: 1kb, every: 50ms}}}
  half: {transfer: {from: a, to: b, at: 3s, bytes: 50kb, protocol: {from: mptcp, to: tcp}, fallback: require}}
  late: {transfer: {from: c, to: b, seconds: 4, at: 3s, patience: 1s, expect: {outcome: unfinished}}}
  dead: {transfer: {from: c, to: b, seconds: 1, at: 8s, patience: 0, expect: {outcome: unreachable}}}
events: [{at: 5.5s, link: cb, down: true}]
checks:
  - {metric: up.mptcp_connections, equals: 4}
  - {metric: half.tcp_connections, equals: 1}
  - {metric: up.goodput_mbps, for: 0.1s, min: 1}
"""


def test_transfers_do_what_their_words_say_and_end_with_a_name(tmp_path: Path, name: str, need: Need) -> None:
    need("tbf", "mptcp")
    found, folder = ran(tmp_path, TRANSFERS, name)
    value = {key: m["value"] for key, m in found.items()}
    assert value["up.received_bytes"] == 500 * 1024
    assert value["up.completion_s"] == value["up.seconds"] >= 500 * 1024 * 8 / 8e6 * 0.9
    assert value["up.tcp_connections"] == 0
    for key in ("both.received_bytes", "both.reverse_received_bytes"):  # a program that runs late sends less
        assert 0.4 < value[key] / (2e6 / 8 * 2) < 1.6, key
    assert value["asks.answers"] == pytest.approx(40, abs=2)
    assert 0 < value["asks.latency_p50_ms"] <= value["asks.latency_max_ms"]
    outcomes = {c["metric"]: c["passed"] for c in json.loads((folder / "verdict.json").read_text())["checks"]}
    assert outcomes["late outcome"]
    assert outcomes["dead outcome"]
    assert outcomes["half tcp_connections"]


FALLING = """
nodes: {a: {mptcp: {}}, s: {bridge: {}}, b: {mptcp: {}}}
links: [{ends: [a:eth0, s:a]}, {name: far, ends: [s:b, b:eth0]}]
workloads:
  known: {ping: {from: a, to: b, seconds: 0.2}}
  sent: {transfer: {from: a, to: b, at: 1s, protocol: mptcp, bytes: 100kb}}
  let: {transfer: {from: a, to: b, at: 1s, protocol: mptcp, bytes: 100kb, fallback: allow}}
  old: {iperf3: {from: a, to: b, at: 1s, protocol: mptcp, bytes: 100kb}}
  slow: {iperf3: {from: a, to: b, at: 1s, protocol: mptcp, seconds: 2, rate: 1mbit}}
  fine: {iperf3: {from: b, to: a, at: 11s, protocol: mptcp, seconds: 1, rate: 1mbit, fallback: forbid}}
events: [{at: 800ms, link: far, down: true, for: 6s}]  # SYNs at 1, 2 and 3 s are lost: the next have no MP_CAPABLE

"""


def test_a_flow_that_falls_back_to_tcp_is_a_failed_check_with_a_sentence(tmp_path: Path, name: str, need: Need) -> None:
    need("mptcp", "ping")
    found, folder = ran(tmp_path, FALLING, name, status=1)
    checks = {c["metric"]: c for c in json.loads((folder / "verdict.json").read_text())["checks"]}
    assert {key: c["passed"] for key, c in checks.items()} == {
        "sent tcp_connections": False,
        "old tcp_connections": False,
        "slow tcp_connections": False,
        "fine tcp_connections": True,
    }
    assert checks["sent tcp_connections"]["why"].startswith("1 of 1 connections fell back to TCP: a says that the one")
    assert [found[f"{flow}.tcp_connections"]["value"] for flow in ("sent", "let", "old")] == [1, 1, 1]
    assert checks["slow tcp_connections"]["why"].endswith("connections fell back to TCP, as b saw them")
    assert found["fine.mptcp_connections"]["value"] == 2  # of data and of control
