"""The MPTCP role on real sockets: aggregation, handover, backup, and a set-up that is verified."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import testbed as api
from testbed.loading import load
from tests.conftest import ROOT, Need, testbed
from tests.kernel.remains import remains, settled, tag

pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("measure")]  # one at a time: they measure

_NEEDED = ("mptcp", "mptcp-diag", "tbf", "iperf3", "mptcpize", "dumpcap")


def run(experiment: str, name: str, tmp_path: Path, *sets: str) -> tuple[int, dict[str, Any], Path]:
    """Run an experiment of this repository and return its exit status, its metrics and its folder."""
    words = [w for s in sets for w in ("--set", s)]
    file = str(ROOT / "experiments" / f"{experiment}.yaml")
    done = testbed("run", file, "--name", name, "--results", str(tmp_path), *words)
    assert done.returncode in (0, 1), done.stderr
    folder = tmp_path / experiment / "latest"
    return done.returncode, json.loads((folder / "metrics.json").read_text()), folder.resolve()


def tshark(file: Path, what: str) -> int:
    """Return how many packets of a capture match a display filter."""
    words = ("tshark", "-r", str(file), "-Y", what)
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return len(done.stdout.splitlines())


@pytest.mark.quiet
def test_two_paths_carry_nearly_twice_what_one_does(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    status, metrics, folder = run("mptcp-aggregation", name, tmp_path)
    assert status == 0, (folder / "verdict.json").read_text()
    assert metrics["bulk.goodput_mbps"]["value"] >= 0.90 * 100
    assert metrics["bulk.goodput_mbps"]["value"] >= 1.7 * metrics["plain.goodput_mbps"]["value"]
    assert metrics["client.mptcp.subflows"]["value"] == 2
    first, second = folder / "client/eth0.pcapng", folder / "client/eth1.pcapng"
    # Option subtypes of RFC 8684 section 3: MP_CAPABLE 0 on the first path, MP_JOIN 1 on the second.
    assert tshark(first, "tcp.options.mptcp.subtype == 0 && tcp.flags.syn == 1") >= 2
    assert tshark(second, "tcp.options.mptcp.subtype == 1 && tcp.flags.syn == 1") >= 2
    assert tshark(second, "tcp.options.mptcp.subtype == 0 && tcp.flags.syn == 1") == 0
    # Both subflows carried payload, and the samples say how much.
    shares = [metrics[f"client.subflow.{i}.bytes_acked"]["value"] for i in ("eth0", "eth1")]
    assert min(shares) > 0.4 * sum(shares)
    assert sum(shares) == pytest.approx(metrics["bulk.received_bytes"]["value"], rel=0.05)


def test_a_transfer_outlives_the_path_that_it_began_on(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    status, metrics, folder = run("mptcp-handover", name, tmp_path)
    assert status == 0, (folder / "verdict.json").read_text()
    gap = metrics["bulk.gap_s"]["value"]
    assert 0 <= gap <= 3
    run_json = json.loads((folder / "run.json").read_text())
    went_down = next(e["t"] for e in run_json["events"] if "wifi0 down" in e["step"])
    series = metrics["bulk.goodput_mbps"]["series"]
    after = [v for t, v in series if t > went_down + 3]
    assert len(after) >= 5
    assert min(after) > 5, "Mbit/s in every second after the handover"


def test_a_lab_that_is_taken_down_in_mid_transfer_leaves_no_namespace(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    file = tmp_path / "two.yaml"
    file.write_text(
        "name: across\nnodes: {a: {mptcp: {}}, r: {router: {}}, b: {mptcp: {}}}\n"
        "links:\n  - {ends: [a:eth0, r:a], rate: 50mbit}\n  - {ends: [r:b, b:eth0], rate: 50mbit}\n"
    )
    with api.up(load(file), name) as lab:
        tags = tag(lab)
        flow = ("mptcpize", "run", "iperf3")
        start = (sys.executable, "-m", "testbed", "exec", name)
        with subprocess.Popen(
            (*start, "b", *flow, "-s", "-1", "-i", "0.2", "--forceflush"), stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            while "listening" not in server.stdout.readline():
                assert server.poll() is None
            with subprocess.Popen((*start, "a", *flow, "-c", "b", "-t", "60"), stdout=subprocess.DEVNULL):
                while "Bytes" not in server.stdout.readline():  # the first of its rows with what arrived
                    assert server.poll() is None
                lab.down()
    found = settled(lambda: remains(name, tags))  # the kernel by itself would keep the connection for a minute
    assert not found


def test_a_backup_path_carries_no_payload_until_it_is_needed(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    status, metrics, folder = run("mptcp-backup", name, tmp_path)
    assert status == 0, (folder / "verdict.json").read_text()
    before = [v for t, v in metrics["client.subflow.eth1.bytes_sent"]["series"] if t < 4.9]
    assert len(before) > 10
    assert set(before) == {0}
    assert metrics["client.subflow.eth1.bytes_acked"]["value"] > 5_000_000


def test_an_endpoint_may_be_added_changed_and_removed_in_mid_run(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    file = tmp_path / "t.yaml"
    file.write_text(
        """
name: endpoints
nodes: {client: {mptcp: {}}, server: {mptcp: {}}}
links:
  - {ends: [client:eth0, server:eth0], rate: 20mbit}
  - {ends: [client:eth1, server:eth1], rate: 20mbit}
workloads: {bulk: {iperf3: {from: client, to: server, protocol: mptcp, seconds: 6, family: ipv4, congestion: cubic}}}
events:
  - {at: 1s, node: client, endpoint: {interface: eth1, flags: [subflow]}, action: add}
  - {at: 3s, node: client, endpoint: {interface: eth1, flags: [subflow, backup]}, action: set}
  - {at: 5s, node: client, endpoint: {interface: eth1, flags: [subflow]}, action: remove}
checks:
  - {metric: client.mptcp.subflows, at: 0.9s, equals: 1}
  - {metric: client.mptcp.subflows, at: 2.9s, equals: 2}
  - {metric: client.mptcp.subflows, at: 5.9s, equals: 1}
  - {metric: client.mptcp.MPPrioTx, min: 1}
  - {metric: client.mptcp.NoSuchCounter, equals: 0}
"""
    )
    done = testbed("run", str(file), "--name", name, "--results", str(tmp_path / "r"))
    verdict = json.loads((tmp_path / "r/endpoints/latest/verdict.json").read_text())
    assert [c["passed"] for c in verdict["checks"]] == [True, True, True, True, False], done.stdout + done.stderr
    assert "unsupported: this kernel has no such counter" in verdict["checks"][4]["why"]
    assert done.returncode == 1


def test_samples_have_the_addresses_that_a_host_has_at_that_time(tmp_path: Path, name: str, need: Need) -> None:
    need("mptcp", "mptcp-diag")
    file = tmp_path / "t.yaml"
    file.write_text(
        """
name: owners
nodes: {a: {mptcp: {}}, b: {}}
links: [{ends: [a:eth0, b:eth0], addresses: [192.0.2.1/24, 192.0.2.2/24]}]
events: [{at: 1s, node: a, address: {interface: eth0, remove: 192.0.2.1/24, add: 192.0.2.9/24}}]
duration: 2s
"""
    )
    done = testbed("run", str(file), "--name", name, "--results", str(tmp_path / "r"))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "r/owners/latest"
    rows = [json.loads(row) for row in (folder / "a/samples.jsonl").read_text().splitlines()]
    assert rows[0]["addresses"] == {"eth0": ["192.0.2.1"]}
    assert rows[-1]["addresses"] == {"eth0": ["192.0.2.9"]}
    first = json.loads((folder / "b/samples.jsonl").read_text().splitlines()[0])
    assert first["addresses"] == {"eth0": ["192.0.2.2"]}


def test_limits_endpoints_and_sysctls_are_what_the_kernel_reports(name: str, need: Need) -> None:
    need("mptcp")
    topology = load(ROOT / "topologies/mptcp-backup.yaml", ("nodes.client.mptcp.checksum_enabled=true",))
    with api.up(topology, name) as lab:
        assert lab.exec("client", ("ip", "mptcp", "limits")).stdout.split() == [
            "add_addr_accepted",
            "8",
            "subflows",
            "8",
        ]
        said = lab.exec("client", ("ip", "mptcp", "endpoint")).stdout
        assert "10.0.2.1 id 1 subflow backup dev eth1" in " ".join(said.split())
        assert lab.exec("client", ("sysctl", "-n", "net.mptcp.checksum_enabled")).stdout.strip() == "1"


def test_a_scheduler_that_the_kernel_does_not_have_is_refused_by_name(tmp_path: Path, name: str, need: Need) -> None:
    need("mptcp")
    file = str(ROOT / "topologies/mptcp-two-path.yaml")
    done = testbed("up", file, "--name", name, "--machine", "here", "--set", "nodes.client.mptcp.scheduler=bpf_rr")
    assert done.returncode == 4
    assert "feature mptcp-scheduler-bpf_rr (scheduler: bpf_rr): net.mptcp.scheduler refuses bpf_rr" in done.stderr
    assert testbed("status", name).returncode == 3, "and nothing is left"


def test_each_endpoint_of_an_event_has_an_id_of_its_own_and_the_right_one_is_removed(
    tmp_path: Path, name: str, need: Need
) -> None:
    need("mptcp", "mptcp-diag")
    (tmp_path / "t.yaml").write_text(
        """
name: ids
nodes: {a: {mptcp: {endpoints: [{interface: eth0}]}}, b: {mptcp: {}}}
links:
  - {ends: [a:eth0, b:eth0], addresses: [[192.0.2.1/28, "2001:db8:1::1/64"], null]}
  - {ends: [a:eth1, b:eth1], addresses: [[192.0.2.17/28, "2001:db8:2::1/64"], null]}
  - {ends: [a:eth2, b:eth2], addresses: [[192.0.2.33/28, "2001:db8:3::1/64"], null]}
workloads:
  added: {command: {node: a, argv: [ip, -j, mptcp, endpoint], at: 500ms}}
  removed: {command: {node: a, argv: [ip, -j, mptcp, endpoint], at: 1s}}
  again: {command: {node: a, argv: [ip, -j, mptcp, endpoint], at: 1.5s}}
events:
  - {at: 100ms, node: a, endpoint: {interface: eth1}}
  - {at: 200ms, node: a, endpoint: {interface: eth2}}
  - {at: 700ms, node: a, endpoint: {address: "2001:db8:2::1"}, action: remove}
  - {at: 800ms, node: a, address: {interface: eth2, remove: 192.0.2.33/28, add: 192.0.2.34/28}}
  - {at: 900ms, node: a, endpoint: {interface: eth2}, action: remove}
  - {at: 1.2s, node: a, endpoint: {address: "2001:db8:2::1"}}
duration: 2s
"""
    )
    done = testbed("run", str(tmp_path / "t.yaml"), "--name", name, "--results", str(tmp_path / "r"))
    assert done.returncode == 0, done.stderr

    def ids(work: str) -> dict[str, int]:
        rows = json.loads((tmp_path / f"r/ids/latest/a/{work}.command.out").read_text())
        return {row["address"]: row["id"] for row in rows}

    planned = {"192.0.2.1": 1, "2001:db8:1::1": 2, "192.0.2.17": 100, "2001:db8:2::1": 101}
    assert ids("added") == planned | {"192.0.2.33": 102, "2001:db8:3::1": 103}
    assert ids("removed") == {a: n for a, n in planned.items() if n != 101}
    assert ids("again") == planned, "an address keeps its ID"


MANY = """
name: many
families: [ipv4]
nodes: {a: {mptcp: {endpoints: [{interface: eth1}]}}, b: {mptcp: {}}}
links: [{ends: [a:eth0, b:eth0], rate: 100mbit}, {ends: [a:eth1, b:eth1], rate: 100mbit}]
workloads:
  all: {transfer: {from: a, to: b, protocol: mptcp, connections: 200, rate: 40mbit, seconds: 8, congestion: cubic}}
samples: {every: 500ms}
checks: [{metric: all.mptcp_connections, equals: 200}]
"""


def test_two_hundred_connections_with_two_subflows_each_are_all_accounted_for(
    tmp_path: Path, name: str, need: Need
) -> None:
    need("mptcp", "mptcp-diag", "tbf")
    (tmp_path / "t.yaml").write_text(MANY)
    done = testbed("run", str(tmp_path / "t.yaml"), "--name", name, "--results", str(tmp_path / "r"))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "r/many/latest"
    value = {key: m["value"] for key, m in json.loads((folder / "metrics.json").read_text()).items()}
    known = [json.loads(row) for row in (folder / "connections.jsonl").read_text().splitlines()]
    assert len(known) == 200
    assert {tuple(v["node"] for v in c["views"]) for c in known} == {("a", "b")}
    joins = {"a": value["a.mptcp.MPJoinSynAckRx"], "b": value["b.mptcp.MPJoinAckRx"]}
    assert joins == {"a": 200, "b": 200}
    for n, node in enumerate("ab"):  # the kernel's own counts of joins, and the connections
        assert sum(len(c["views"][n]["subflows"]) for c in known) == 200 + joins[node]
    # Each byte arrived on one subflow or another, some on both (RFC 8684 section 3.3.6). What a first subflow got after
    # the last look at it is missing: the kernel clears its counters, and looks at 400 subflows are rare.
    got = sum(s["bytes_received"] for c in known for s in c["views"][1]["subflows"])
    assert got == pytest.approx(value["all.received_bytes"], rel=0.2)


def test_a_path_says_when_it_was_opened_by_whom_and_that_it_is_a_backup(tmp_path: Path, name: str, need: Need) -> None:
    need("mptcp", "mptcp-diag", "tbf")
    (tmp_path / "t.yaml").write_text(
        "name: two\nfamilies: [ipv4]\nnodes: {a: {mptcp: {endpoints: [{interface: eth1, flags: [subflow, backup]}]}}, "
        "b: {mptcp: {}}}\nlinks: [{ends: [a:eth0, b:eth0], rate: 20mbit}, {ends: [a:eth1, b:eth1], rate: 20mbit}]\n"
        "workloads: {up: {transfer: {from: a, to: b, at: 1s, protocol: mptcp, seconds: 3, congestion: cubic}}}\n"
        "duration: 6s\n"
    )
    done = testbed("run", str(tmp_path / "t.yaml"), "--name", name, "--results", str(tmp_path / "r"))
    assert done.returncode == 0, done.stdout + done.stderr
    value = {k: m["value"] for k, m in json.loads((tmp_path / "r/two/latest/metrics.json").read_text()).items()}
    for node, other, here in (("a", "b:eth0", 1), ("b", "a:eth0", 0)):
        first = f"{node}.path.eth0/{other}"
        assert 0.9 < value[f"{first}.opened_at_s"] < value[f"{first}.closed_at_s"]
        assert (value[f"{first}.opened_here"], value[f"{first}.backup"]) == (here, 0)
    assert (value["a.path.eth1/b:eth0.backup"], value["b.path.eth0/a:eth1.backup"]) == (1, 1)
    assert "a.eth0/b:eth0  100.0 %" in done.stdout
    assert "by a" in done.stdout.partition("paths by sender")[2]
