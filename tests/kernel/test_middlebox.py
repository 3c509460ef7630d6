"""What a middlebox does to MPTCP, by the counters of both hosts (RFC 8684) and by what was captured beside it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import Need, testbed

pytestmark = pytest.mark.kernel

_NEEDED = ("mptcp", "mptcp-diag", "middlebox", "iperf3", "mptcpize")
LAB = """name: box
families: [ipv4]
nodes:
  a: {mptcp: {%s}}
  m: {%s, middlebox: {rules: [%s]}}
  b: {mptcp: {%s}}
links:
  - {name: first, ends: [a:eth0, m:eth0]}
  - {name: second, ends: [a:eth1, m:eth1]}
  - {name: out, ends: [m:eth2, b:eth0]}
"""
FLOW = "workloads: {bulk: {iperf3: {from: a, to: b, protocol: mptcp, seconds: 1, rate: 4mbit}}}\n"
SECOND = "endpoints: [{interface: eth1}]"
BRIDGE = LAB.replace("  - {name: second, ends: [a:eth1, m:eth1]}\n", "")


def run(tmp_path: Path, name: str, text: str) -> tuple[Mapping[str, float], str, Path]:
    """Run a file; return what was counted, the report, and the folder."""
    (tmp_path / "box.yaml").write_text(text)
    done = testbed("run", "box.yaml", "--name", name, cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    folder = (tmp_path / "results/box/latest").resolve()
    metrics = json.loads((folder / "metrics.json").read_text())
    return {key: row["value"] for key, row in metrics.items()}, done.stdout, folder


def routed(tmp_path: Path, name: str, rule: str, a: str = SECOND, b: str = "", more: str = FLOW) -> Mapping[str, float]:
    """Run a flow through a router with one rule; return what was counted."""
    return run(tmp_path, name, LAB % (a, "router: {}", rule, b) + more)[0]


def tshark(file: Path, what: str) -> list[str]:
    """Return the frames of a capture that match a display filter."""
    words = ("tshark", "-n", "-r", str(file), "-Y", what)
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


# RFC 8684, section 3.7: without the option on one of the first packets, both sides go on with plain TCP.
@pytest.mark.parametrize(
    ("match", "counted"),
    [
        ("{}", {"a.mptcp.MPCapableFallbackSYNACK": 2, "b.mptcp.MPCapableSYNRX": 0}),
        ("{packet: syn}", {"a.mptcp.MPCapableFallbackSYNACK": 2, "b.mptcp.MPCapableSYNRX": 0}),
        ("{packet: syn_ack}", {"a.mptcp.MPCapableFallbackSYNACK": 2, "b.mptcp.MPCapableFallbackACK": 2}),
        ("{packet: not_syn}", {"a.mptcp.MPCapableSYNACKRX": 2, "b.mptcp.MPCapableFallbackACK": 2}),
    ],
    ids=["all", "syn", "syn_ack", "not_syn"],
)
@pytest.mark.parametrize("kind", ["router", "bridge"])
def test_options_that_are_stripped_end_mptcp(
    tmp_path: Path, name: str, need: Need, kind: str, match: str, counted: dict[str, float]
) -> None:
    need(*_NEEDED, "middlebox-bridge")
    text = LAB if kind == "router" else BRIDGE
    rule = f"{{name: stripped, match: {match}, action: strip}}"
    found, _, _ = run(tmp_path, name, text % ("", f"{kind}: {{}}", rule, "") + FLOW)
    assert {key: found[key] for key in counted} == counted
    assert found["m.middlebox.stripped"] >= 2
    assert found["bulk.received_bytes"] > 0, "by plain TCP"


def test_the_first_join_that_is_stripped_counts_and_the_second_passes(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED, "dumpcap")
    rules = (
        "{name: joins, link: second, direction: forward, match: {subtype: mp_join, packet: syn}, action: count}, "
        "{link: second, direction: forward, match: {subtype: mp_join, packet: syn}, action: strip, times: 1}"
    )
    text = LAB % (SECOND, "router: {}", rules, "") + FLOW + "capture: ['m:eth1', 'm:eth2']\n"
    found, _, folder = run(tmp_path, name, text)
    joins = "tcp.option_kind == 30 && tcp.options.mptcp.subtype == 1 && tcp.flags.syn == 1 && tcp.flags.ack == 0"
    assert found["m.middlebox.joins"] == len(tshark(folder / "m/eth1.pcapng", joins)) == found["a.mptcp.MPJoinSynTx"]
    assert found["m.middlebox.rule_2"] == 1
    assert len(tshark(folder / "m/eth2.pcapng", joins)) == found["m.middlebox.joins"] - 1 == 1
    assert found["a.mptcp.MPJoinSynAckRx"] == found["b.mptcp.MPJoinSynRx"] == 1


def test_joins_that_are_dropped_get_no_answer(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    found = routed(tmp_path, name, "{name: gone, match: {subtype: mp_join, packet: syn}, action: drop}")
    assert found["b.mptcp.MPJoinSynRx"] == found["a.mptcp.MPJoinSynAckRx"] == 0
    assert found["m.middlebox.gone"] >= found["a.mptcp.MPJoinSynTx"] == 2, "a SYN may come again"


def test_joins_that_are_rejected_are_reset(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED, "dumpcap")
    rule = "{name: no, match: {subtype: mp_join, packet: syn}, action: reject}"
    text = LAB % (SECOND, "router: {}", rule, "") + FLOW + "capture: ['a:eth1']\n"
    found, _, folder = run(tmp_path, name, text)
    assert found["m.middlebox.no"] == found["a.mptcp.MPJoinSynTx"] == 2
    assert found["a.mptcp.MPJoinSynAckRx"] == 0
    assert len(tshark(folder / "a/eth1.pcapng", "tcp.flags.reset == 1 && ip.dst == 10.0.2.1")) == 2


def test_a_corrupt_byte_is_found_by_the_checksum_of_mptcp_alone(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    rule = "{name: bad, link: out, direction: forward, match: {subtype: dss}, action: corrupt, times: 1}"
    found = routed(tmp_path, name, rule, a="checksum_enabled: true")
    assert found["m.middlebox.bad"] == 1
    assert found["b.mptcp.DataCsumErr"] == found["b.mptcp.MPFailTx"] == found["a.mptcp.MPFailRx"] == 1


def test_an_announcement_without_echo_is_sent_again(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    rule = "{name: echoes, match: {subtype: add_addr_echo}, action: drop}"
    second = "endpoints: [{address: 10.9.9.9, flags: [signal]}], add_addr_timeout: 1"
    more = FLOW.replace("seconds: 1", "seconds: 3")
    found = routed(tmp_path, name, rule, a="limits: {add_addr_accepted: 0}", b=second, more=more)
    assert found["b.mptcp.EchoAdd"] == 0
    assert found["m.middlebox.echoes"] == found["a.mptcp.EchoAddTx"]
    assert found["b.mptcp.AddAddrTx"] > 2, "more than one of each of iperf3's connections"


def test_nat_hides_the_address_of_the_client(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED, "middlebox-nat", "dumpcap")
    rule = "{name: hidden, link: out, action: nat}"
    text = LAB % (SECOND, "router: {}", rule, "") + FLOW + "capture: ['b:eth0']\n"
    found, _, folder = run(tmp_path, name, text)
    syns = tshark(folder / "b/eth0.pcapng", "tcp.flags.syn == 1 && tcp.flags.ack == 0")
    assert len(syns) >= 4, "two connections, with a join each"
    assert all("10.0.3.1" in row for row in syns)
    assert found["m.middlebox.hidden"] == len(syns)
    assert found["b.mptcp.MPJoinAckRx"] == 2


def test_a_stateful_firewall_lets_answers_in_and_nothing_else(tmp_path: Path, name: str, need: Need) -> None:
    need("middlebox", "middlebox-nat", "ping")
    pings = (
        "workloads:\n  answered: {ping: {from: a, to: b, seconds: 1, interval: 100ms}}\n"
        "  asked: {ping: {from: b, to: a, seconds: 1, interval: 100ms}}\n"
    )
    rule = "{name: kept_out, link: out, action: firewall}"
    found = routed(tmp_path, name, rule, a="", more=pings)
    assert found["answered.loss_pct"] == 0
    assert found["asked.loss_pct"] == 100
    assert found["m.middlebox.kept_out"] >= 10


def test_what_is_above_a_limit_is_dropped(tmp_path: Path, name: str, need: Need) -> None:
    need("middlebox", "iperf3")
    flow = "workloads: {bulk: {iperf3: {from: a, to: b, protocol: udp, seconds: 2, rate: 8mbit}}}\n"
    rule = "{name: above, match: {protocol: udp}, action: limit, rate: 1mbit, burst: 20kb}"
    found = routed(tmp_path, name, rule, a="", more=flow)
    assert found["m.middlebox.above"] > 0
    assert 0 < found["bulk.goodput_mbps"] < 4
    assert found["bulk.loss_pct"] > 50


def test_a_rule_holds_in_its_window_and_one_that_matched_nothing_is_a_doubt(
    tmp_path: Path, name: str, need: Need
) -> None:
    need("middlebox", "ping")
    pings = "workloads: {p: {ping: {from: a, to: b, seconds: 3, interval: 100ms}}}\n"
    rules = (
        "{name: cut, link: first, direction: forward, action: drop, window: [1s, 2s]}, "
        "{name: never, match: {subtype: mp_fail}, action: drop}, {name: checked, match: {port: 9}, action: count}"
    )
    text = LAB % ("", "router: {}", rules, "") + pings + "checks: [{metric: m.middlebox.checked, equals: 0}]\n"
    found, out, _ = run(tmp_path, name, text)
    assert 0 < found["m.middlebox.cut"] < 30
    assert 0 < found["p.loss_pct"] < 100
    assert "no packet matched it (drop mp_fail)" in out
    assert out.count("no packet matched it") == 1
