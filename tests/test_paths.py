"""Figures of MPTCP paths from rows made by hand: who owned an address, what left, and flows on one path (no kernel)."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import convert

from testbed.language.topology import Topology
from testbed.metrics import paths
from testbed.metrics.measured import Measured
from testbed.metrics.owners import owners
from testbed.metrics.records import Sample
from testbed.report import one_path

ORIGIN = 100.0
PLANNED = {"phone": {"eth0": ["10.0.1.1"], "eth1": ["10.0.2.1"]}, "server": {"eth0": ["10.0.1.2"]}}
MSS = 1000


def subflow(local: str = "10.0.1.1", port: int = 5000, **more: object) -> dict[str, Any]:
    row: dict[str, Any] = {"token": 7, "local": local, "local_port": port, "remote": "10.0.1.2", "remote_port": 5201}
    row |= {"state": "ESTAB", "rtt_ms": 9.0, "bytes_sent": 0, "bytes_acked": 1, "bytes_received": 0, "retransmits": 0}
    return row | {"mss": MSS, "cwnd": 10} | more


def sample(t: float, *subflows: dict[str, Any], drops: int = 0, sent: int = 10**9, **more: object) -> Sample:
    counters = dict.fromkeys(("rx_packets", "tx_packets", "rx_bytes", "rx_errors", "tx_errors"), 0)
    counters |= {"rx_dropped": 0, "tx_dropped": 0, "tx_bytes": sent if t > 0 else 0}
    row = {"t": ORIGIN + t, "interfaces": {"eth0": counters, "eth1": counters}, "mib": {}, "subflows": subflows}
    return convert(row | {"qdiscs": [{"dev": "eth0", "drops": drops, "overlimits": 0}]} | more, Sample)


def found(*rows: Sample, peer: tuple[Sample, ...] = ()) -> dict[str, float]:
    every = {"phone": rows, "server": peer}
    known = owners(PLANNED, every)
    figures = paths.mptcp("phone", rows, ORIGIN, known, paths.endings(every.values()))
    return {name.removeprefix("phone."): m.value for name, m in figures.items()}


def test_a_path_has_the_interfaces_of_both_ends_and_a_share() -> None:
    figures = found(
        sample(-0.1),
        sample(1, subflow(bytes_sent=3000, bytes_acked=3001), subflow("10.0.2.1", bytes_sent=1000, bytes_acked=1001)),
    )
    assert figures["path.eth0/server:eth0.bytes_sent"] == 3000
    assert figures["path.eth1/server:eth0.share_pct"] == 25
    assert figures["subflow.eth1.bytes_sent"] == 1000


def test_an_address_counts_for_the_interface_that_has_it_then() -> None:
    first, second = {"eth0": ["10.0.1.1"], "eth1": ["10.9.0.9"]}, {"eth0": ["10.0.1.1", "10.9.0.9"]}
    figures = found(
        sample(-0.1, addresses=first),
        sample(1, subflow("10.9.0.9", bytes_sent=500, bytes_acked=501), addresses=first),
        sample(2, subflow("10.9.0.9", bytes_sent=800, bytes_acked=801), addresses=second),
        sample(3, subflow("10.9.0.9", bytes_sent=900, bytes_acked=901), addresses={"eth0": ["10.0.1.1"]}),
    )
    assert figures["subflow.eth1.bytes_sent"] == 500
    assert figures["subflow.eth0.bytes_sent"] == 400, "an address that is gone stays with its last interface"
    assert not [name for name in figures if "10.9" in name]


def test_a_side_that_sends_nothing_has_no_path_and_no_rtt() -> None:
    figures = found(sample(-0.1), sample(1, subflow(rtt_ms=1182.9)), sample(2, subflow(bytes_received=10**6)))
    assert not [name for name in figures if name.startswith("path.")]
    assert "subflow.eth0.rtt_p50_ms" not in figures, "there is only that of the handshake"
    assert figures["subflow.eth0.bytes_received"] == 10**6


def test_the_rtt_counts_when_something_was_acknowledged() -> None:
    flow: dict[str, Any] = {"bytes_sent": 5000, "bytes_acked": 5001}
    figures = found(
        sample(-0.1),
        sample(1, subflow(rtt_ms=30.0, **flow)),
        *(sample(2 + n, subflow(rtt_ms=999.0, **flow)) for n in range(5)),
    )
    assert figures["path.eth0/server:eth0.rtt_max_ms"] == 30


@pytest.mark.parametrize(
    ("flow", "drops", "left"),
    [
        # Ten segments were tried 9 times: the queue took 20, of which 15 are acknowledged and 5 are on the way.
        ({"bytes_sent": 90_000, "bytes_acked": 15_001, "unacked": 5, "bytes_retrans": 40_000}, 12, 20_000),
        # The network lost three, which were sent again: all have left.
        ({"bytes_sent": 23_000, "bytes_acked": 20_001, "bytes_retrans": 3000}, 0, 23_000),
        # A route was missing: new data was tried again and again.
        ({"bytes_sent": 50_000, "bytes_acked": 20_001, "bytes_retrans": 0}, 0, 20_000),
        # Two arrived twice, and a queue dropped some.
        ({"bytes_sent": 30_000, "bytes_acked": 20_001, "dsack_dups": 2, "bytes_retrans": 10_000}, 8, 22_000),
    ],
)
def test_bytes_that_were_refused_have_not_left(flow: dict[str, Any], drops: int, left: int) -> None:
    figures = found(sample(-0.1), sample(1, subflow(**flow), drops=drops))
    assert figures["path.eth0/server:eth0.bytes_sent"] == left


def test_a_subflow_that_ends_between_two_samples_has_its_last_bytes() -> None:
    end = subflow(state="7", bytes_sent=9000, bytes_acked=9001)
    figures = found(sample(-0.1), sample(1, subflow(bytes_sent=5000, unacked=5)), sample(2, closed=[end]))
    assert figures["path.eth0/server:eth0.bytes_sent"] == 9000
    # The first subflow of the side that closes has lost its counters; what its peer got has left.
    lost = subflow(bytes_sent=5000, bytes_acked=4001, unacked=1)
    got = {"local": "10.0.1.2", "local_port": 5201, "remote": "10.0.1.1", "remote_port": 5000, "bytes_received": 7000}
    peer = (sample(-0.1), sample(2, closed=[subflow() | got]))
    figures = found(sample(-0.1), sample(1, lost), sample(2, closed=[lost]), peer=peer)
    assert figures["path.eth0/server:eth0.bytes_sent"] == figures["subflow.eth0.bytes_acked"] == 7000


def test_only_established_subflows_are_counted() -> None:
    states = ("ESTAB", "ESTAB", "SYN_SENT", "FIN_WAIT1", "CLOSE_WAIT", "LAST_ACK")
    rows = [sample(1, *(subflow(port=5000 + n, state=s) for n, s in enumerate(states)))]
    assert found(sample(-0.1), *rows)["mptcp.subflows"] == 2


LAB = Topology.model_validate(
    {
        "name": "l",
        "nodes": {"phone": {"mptcp": {}}, "server": {"mptcp": {}}},
        "links": [{"ends": ["phone:eth0", "server:eth0"]}, {"ends": ["phone:eth1", "server:eth1"]}],
        "workloads": {"up": {"iperf3": {"from": "phone", "to": "server", "protocol": "mptcp"}}},
    }
)


def doubted(**figures: float) -> list[str]:
    names = {"eth0": "phone.subflow.eth0.bytes_acked", "eth1": "phone.subflow.eth1.bytes_acked"}
    names |= {"wire0": "phone.eth0.tx_bytes", "wire1": "phone.eth1.tx_bytes", "spare": "server.mptcp.MPJoinSynBackupRx"}
    metrics = {names[key]: Measured(value, "byte") for key, value in figures.items()}
    return [what for _, what, _ in one_path.doubts(LAB, metrics)]


def test_a_flow_that_used_one_of_two_interfaces_is_told_unless_the_other_is_a_reserve() -> None:
    wires = {"wire0": 1e7, "wire1": 1e7}
    assert doubted(eth0=5e6, eth1=4e6, **wires) == []
    assert doubted(eth0=5e6, eth1=400, **wires) == ["the rates of up"]
    assert doubted(eth0=5e6, eth1=400, spare=2, **wires) == []


def test_subflows_that_left_by_another_interface_are_told() -> None:
    assert doubted(eth0=5e6, eth1=4e6, wire0=42, wire1=9.5e6) == ["phone.subflow.eth0"]
