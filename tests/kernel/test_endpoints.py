"""Endpoints as the kernel takes them: IDs, addresses of any kind, flush, and limits, read back with ip-mptcp(8)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import testbed as api
from testbed.loading import load
from tests.conftest import Need, testbed

pytestmark = pytest.mark.kernel

HEAD = """name: endpoints
nodes:
  a: {mptcp: {limits: %s, endpoints: %s}}
  b: {mptcp: {%s}}
links:
  - {ends: [a:eth0, b:eth0]}
  - {ends: [a:eth1, b:eth1]}
"""
FLOW = """workloads: {bulk: {iperf3: {from: a, to: b, protocol: mptcp, family: ipv4, seconds: 2, rate: 2mbit}}}
events: [%s]
"""


def written(folder: Path, text: str) -> Path:
    """Write a file."""
    file = folder / "endpoints.yaml"
    file.write_text(text)
    return file


def shown(tmp_path: Path, name: str, limits: str, endpoints: str) -> tuple[list[str], str]:
    """Return what `ip mptcp` shows of the endpoints and the limits of a host."""
    with api.up(load(written(tmp_path, HEAD % (limits, endpoints, ""))), name):
        rows, most = (
            testbed("exec", name, "a", "--", "ip", "mptcp", what, "show").stdout for what in ("endpoint", "limits")
        )
    return [" ".join(row.split()) for row in rows.splitlines()], " ".join(most.split())


def test_the_kernel_has_the_endpoints_that_the_file_states(tmp_path: Path, name: str, need: Need) -> None:
    need("mptcp", "mptcp-diag")
    endpoints = (
        "[{address: 10.0.2.1, id: 250}, {address: '2001:db8:0:1::1', dev: false}, "
        "{address: 10.9.9.9, flags: [signal]}, {address: '::ffff:10.0.1.1', flags: [signal]}, "
        "{address: 'fe80::1', interface: eth1, flags: [signal]}]"
    )
    rows, limits = shown(tmp_path, name, "{subflows: 3, add_addr_accepted: 1}", endpoints)
    assert rows == [
        "2001:db8:0:1::1 id 1 subflow",
        "10.9.9.9 id 2 signal",
        "::ffff:10.0.1.1 id 3 signal dev eth0",
        "fe80::1 id 4 signal dev eth1",
        "10.0.2.1 id 250 subflow dev eth1",
    ]
    assert limits == "add_addr_accepted 1 subflows 3"


def test_limits_may_be_the_kernels_own(tmp_path: Path, name: str, need: Need) -> None:
    need("mptcp", "mptcp-diag")
    assert shown(tmp_path, name, "kernel", "[]") == ([], "add_addr_accepted 0 subflows 2")


@pytest.mark.parametrize(
    ("limits", "endpoints", "feature"),
    [
        ("{subflows: 9}", "[]", "mptcp-limits-9"),
        ("{}", f"[{', '.join(f'{{address: 192.0.2.{n}, flags: [signal]}}' for n in range(9))}]", "mptcp-endpoints-9"),
    ],
    ids=["limits", "endpoints"],
)
def test_more_than_eight_is_asked_of_the_kernel(
    tmp_path: Path, name: str, need: Need, limits: str, endpoints: str, feature: str
) -> None:
    need("mptcp", "mptcp-diag")
    done = testbed("up", str(written(tmp_path, HEAD % (limits, endpoints, ""))), "--name", name, "--machine", "here")
    if done.returncode == 0:  # Linux 7.2 and later
        shows = testbed("exec", name, "a", "--", "ip", "mptcp", "limits", "show").stdout
        rows = testbed("exec", name, "a", "--", "ip", "mptcp", "endpoint", "show").stdout.splitlines()
        assert "subflows 9" in shows or len(rows) == 9
        return
    assert done.returncode == 4
    assert feature in done.stderr
    assert "the path manager refuses" in done.stderr


def run(tmp_path: Path, name: str, text: str) -> dict[str, float]:
    """Run a file, and return its metrics."""
    done = testbed("run", str(written(tmp_path, text)), "--name", name, "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "endpoints/latest/metrics.json").read_text())
    return {key: row["value"] for key, row in metrics.items()}


def test_a_flush_ends_subflows_and_an_announced_address_is_withdrawn(tmp_path: Path, name: str, need: Need) -> None:
    need("mptcp", "mptcp-diag", "iperf3", "mptcpize")
    signal = "endpoints: [{address: 10.0.2.2, flags: [signal]}]"
    found = run(tmp_path, name, HEAD % ("{}", "[]", signal) + FLOW % "{at: 1s, node: b, action: flush}")
    # The control connection and the data connection of iperf3.
    assert found["b.mptcp.RmAddrTx"] == 2
    assert found["a.mptcp.RmAddr"] == 2
    assert found["a.mptcp.MPJoinSynAckRx"] == 2
    assert found["b.mptcp.RmSubflow"] == 2


def test_removing_id_0_ends_the_first_subflow_alone(tmp_path: Path, name: str, need: Need) -> None:
    need("mptcp", "mptcp-diag", "iperf3", "mptcpize")
    event = "{at: 1s, node: a, endpoint: {id: 0, address: 10.0.1.1}, action: remove}"
    found = run(tmp_path, name, HEAD % ("{}", "[{address: 10.0.2.1}]", "") + FLOW % event)
    assert found["a.mptcp.RmSubflow"] == 2
    assert found["b.mptcp.RmAddr"] == 2
    assert found["bulk.received_bytes"] > 300_000, "it went on"


def test_an_event_removes_an_endpoint_by_its_id(tmp_path: Path, name: str, need: Need) -> None:
    need("mptcp", "mptcp-diag", "iperf3", "mptcpize")
    event = "{at: 1s, node: a, endpoint: {id: 77}, action: remove}"
    found = run(tmp_path, name, HEAD % ("{}", "[{address: 10.0.2.1, id: 77}]", "") + FLOW % event)
    assert found["a.mptcp.RmSubflow"] == 2
    assert found["b.mptcp.RmAddr"] == 2


_LISTENS = (
    "import socket; s = socket.create_server(('10.0.1.2', 4000)); c = s.accept()[0]; c.sendall(c.recv(1)); s.accept()"
)
_ASKS = """import socket
s = socket.create_connection(('10.0.1.2', 4000)); s.sendall(b'x'); s.recv(1)
def joins():
    names, counts = (r.split() for r in open('/proc/net/netstat') if r.startswith('MPTcpExt'))
    return int(counts[names.index('MPJoinSynTx')])
while not joins(): pass
"""


def test_a_server_that_is_bound_to_one_address_is_why_joins_get_no_answer(
    tmp_path: Path, name: str, need: Need
) -> None:
    need("mptcp", "mptcp-diag", "mptcpize")
    server = json.dumps({"one": {"argv": ["python3", "-c", _LISTENS], "mptcp": "mptcpize", "ready": {"port": 4000}}})
    signal = "endpoints: [{address: 10.0.2.2, flags: [signal]}]"
    text = (HEAD % ("{}", "[]", signal)).replace("signal]}]}}", f"signal]}}]}}, services: {server}}}")
    asks = {"node": "a", "argv": ["python3", "-c", _ASKS], "mptcp": "mptcpize", "seconds": 20}
    file = written(tmp_path, f"{text}workloads: {json.dumps({'ask': {'command': asks}})}\n")
    done = testbed("run", str(file), "--name", name, "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "none of its 1 joins was answered: a server that listens on one address" in " ".join(done.stdout.split())


def test_a_command_is_made_to_speak_mptcp(tmp_path: Path, name: str, need: Need) -> None:
    need("mptcp", "mptcp-diag", "mptcpize")
    connect = "import socket, sys; s = socket.create_connection(('10.0.1.2', 4000)); s.sendall(b'x'); s.recv(1)"
    listen = "import socket; s = socket.create_server(('', 4000)); c = s.accept()[0]; c.sendall(c.recv(1)); s.accept()"
    program = f'[python3, -c, "{connect}"]'
    server = f'services: {{echo: {{argv: [python3, -c, "{listen}"], mptcp: mptcpize, ready: {{port: 4000}}}}}}'
    text = (HEAD % ("{}", "[]", "")).replace("b: {mptcp: {}}", f"b: {{mptcp: {{}}, {server}}}")
    works = f"workloads: {{ask: {{command: {{node: a, argv: {program}, mptcp: mptcpize, seconds: 20}}}}}}\n"
    found = run(tmp_path, name, text + works)
    assert found["a.mptcp.MPCapableSYNTX"] == 1
    assert found["b.mptcp.MPCapableACKRX"] == 1
