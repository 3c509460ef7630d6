"""The path manager in user space, on the kernel's own events: it does what the in-kernel one does, and more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import testbed as api
from testbed.loading import load
from tests.conftest import Need, testbed

pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("measure")]

_NEEDED = ("mptcp", "mptcp-diag", "mptcp-userspace-pm", "tbf", "iperf3", "mptcpize")
_LINKS = "\n".join(f"  - {{ends: [client:eth{n}, server:eth{n}], rate: 20mbit}}" for n in range(3))
LAB = f"""name: paths
families: [ipv4]
nodes:
  client: {{mptcp: {{path_manager: %s, endpoints: %s}}}}
  server: {{mptcp: {{path_manager: %s, endpoints: %s}}}}
links:
{_LINKS}
workloads: {{bulk: {{iperf3: {{from: client, to: server, protocol: mptcp, seconds: %s, congestion: cubic}}}}}}
events: [%s]
"""
# Timers and the application's own manner of closing decide these.
_NOISE = ("MPTCPRetrans", "DuplicateData", "MPCurrEstab", "OFO", "Wnd", "Fastclose", "MPRst", "Rcv")
_SIGNAL = "[{interface: eth1, flags: [signal]}]"
_BACKUP = "[{interface: eth1, flags: [subflow, backup]}]"
_MESH = "[{interface: eth1, flags: [subflow, fullmesh]}]"
_GONE = ("{interface: eth1}, action: remove", "remove_addr: {interface: eth1}", "remove_subflow: {interface: eth1}")


def run(tmp_path: Path, name: str, *words: str) -> Path:
    """Run a lab of two hosts with three cables, and return its folder."""
    (tmp_path / "paths.yaml").write_text(LAB % words)
    done = testbed("run", "paths.yaml", "--name", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return (tmp_path / "results/paths/latest").resolve()


def counted(folder: Path) -> dict[str, int]:
    """Return the MIB counters of both hosts that are not 0."""
    found: dict[str, int] = {}
    for node in ("client", "server"):
        last = json.loads((folder / node / "samples.jsonl").read_text().splitlines()[-1])["mib"]
        found |= {f"{node}.{k}": v for k, v in last.items() if v and not any(w in k for w in _NOISE)}
    return found


def told(folder: Path, node: str) -> list[dict[str, Any]]:
    """Return what the path manager of a node has heard and done."""
    return [json.loads(row) for row in (folder / node / "mptcp-events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("client", "server", "removed"),
    [
        ("[{interface: eth1}, {interface: eth2}]", "[]", False),
        ("[]", _SIGNAL, False),
        (_BACKUP, "[]", False),
        (_MESH, "[{interface: eth2, flags: [signal]}]", False),
        ("[{interface: eth1}]", "[]", True),
    ],
    ids=["subflows", "signal", "backup", "fullmesh", "remove"],
)
def test_by_default_it_leaves_the_counters_of_the_kernels_own(
    tmp_path: Path, name: str, need: Need, client: str, server: str, removed: bool
) -> None:
    need(*_NEEDED)
    kernel, addr, subflow = (
        f"{{at: 0.5s, node: client, {what}}}"
        for what in (f"endpoint: {_GONE[0]}", f"mptcp: {{{_GONE[1]}}}", f"mptcp: {{{_GONE[2]}}}")
    )
    ours = f"{addr}, {subflow}" if removed else ""
    found = {
        manager: counted(run(tmp_path, name, manager, client, manager, server, "1", event))
        for manager, event in (("kernel", kernel if removed else ""), ("userspace", ours))
    }
    assert found["userspace"] == found["kernel"]
    assert found["kernel"]["client.MPJoinSynAckRx"] >= 2, "a join of each of iperf3's connections"


def test_handover_moves_a_transfer_to_its_backup_when_its_interface_goes_down(
    tmp_path: Path, name: str, need: Need
) -> None:
    need(*_NEEDED)
    down = "{at: 0.7s, node: client, command: [ip, link, set, eth0, down]}"
    folder = run(tmp_path, name, "{policy: handover}", "[{interface: eth1}]", "kernel", "[]", "3", down)
    rows = told(folder, "client")
    gone = next(r for r in rows if r.get("interface") == "eth0")
    after = [r for r in rows if r["t"] >= gone["t"] and r.get("command")]
    assert [r["command"] for r in after[:2]] == ["set_backup", "remove_subflow"]
    assert not [r for r in after if r.get("error")]
    assert counted(folder)["server.MPPrioRx"] >= 1, "the peer was told"
    metrics = json.loads((folder / "metrics.json").read_text())
    late = [v for t, v in metrics["client.subflow.eth1.bytes_acked"]["series"] if t > 0.7]
    assert late[-1] > late[0], "eth1 carries the data"


def test_a_rule_joins_an_announced_address_as_a_backup(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    rule = "{rules: [{on: new_addr, if: {interface: eth1, side: client}, do: {add_subflow: {backup: true}}}]}"
    folder = run(tmp_path, name, rule, "[]", "kernel", "[{interface: eth1, flags: [signal]}]", "1", "")
    words = [r.get("event") or r.get("command") for r in told(folder, "client")]
    assert words.index("new_addr") < words.index("add_subflow") < words.index("new_subflow")
    assert counted(folder)["server.MPJoinSynBackupRx"] == 2, "one of each of iperf3's connections"
    kernels = {r["kernel"] for r in told(folder, "client") if "kernel" in r}
    assert {"MPTCP_EVENT_ANNOUNCED", "MPTCP_PM_CMD_SUBFLOW_CREATE", "MPTCP_EVENT_SUB_ESTABLISHED"} <= kernels


def test_events_are_figures_of_the_run_and_checks_may_name_them(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    text = LAB % ("userspace", "[{interface: eth1}]", "kernel", "[]", "1", "")
    checks = [
        "{metric: client.mptcp.events.new_subflow, equals: 2}",  # one of each of iperf3's connections
        "{metric: client.mptcp.events.addr_removed, equals: 0}",
        "{metric: client.mptcp.events.connection_established, at: 0, equals: 0}",
        "{metric: client.mptcp.events.new_connection_first_s, min: 0}",
    ]
    (tmp_path / "paths.yaml").write_text(text + "checks:\n" + "".join(f"  - {check}\n" for check in checks))
    done = testbed("run", "paths.yaml", "--name", name, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = (tmp_path / "results/paths/latest").resolve()
    metrics = json.loads((folder / "metrics.json").read_text())
    origin = json.loads((folder / "run.json").read_text())["monotonic"]
    [first, *_] = [r["t"] - origin for r in told(folder, "client") if r.get("event") == "new_subflow"]
    assert metrics["client.mptcp.events.new_subflow"]["series"][1] == [round(first, 3), 1]
    assert "server.mptcp.events.new_subflow" not in metrics, "nobody listened there"


def test_an_event_that_finds_no_connection_is_an_error_of_the_run(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    event = "{at: 0.3s, node: server, mptcp: {remove_addr: {interface: eth2}}}"
    (tmp_path / "paths.yaml").write_text(LAB % ("kernel", "[]", "userspace", "[]", "1", event))
    done = testbed("run", "paths.yaml", "--name", name, cwd=tmp_path)
    assert done.returncode == 3
    assert "address with id 102 not found" in done.stderr


_RECOVER = """
from testbed.linux import netlink, wire
from testbed.programs.mptcp.recovery import recover
from testbed.programs.mptcp.state import State
state = State()
recover(state, netlink.connect(wire.NETLINK_SOCK_DIAG))
for c in state.connections.values():
    print(c.server, c.late, len(c.subflows), sorted(s.local for s in c.subflows.values()))
"""


def test_a_manager_that_starts_late_finds_connections_subflows_and_sides(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    (tmp_path / "paths.yaml").write_text(LAB % ("userspace", "[{interface: eth1}]", "kernel", "[]", "1", ""))
    with api.up(load(tmp_path / "paths.yaml"), name):
        start = (sys.executable, "-m", "testbed", "exec", name)
        flow = ("mptcpize", "run", "iperf3")
        server = (*start, "server", *flow, "-s", "-1", "-i", "0.1", "--forceflush")
        with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as listener:
            assert listener.stdout is not None
            while "listening" not in listener.stdout.readline():
                assert listener.poll() is None
            with subprocess.Popen((*start, "client", *flow, "-c", "server", "-t", "60"), stdout=subprocess.DEVNULL):
                while "Bytes" not in listener.stdout.readline():  # the first of its rows with what arrived
                    assert listener.poll() is None
                for node, side in (("client", "False"), ("server", "True")):
                    code = (*start, node, "--", sys.executable, "-c", _RECOVER)
                    done = subprocess.run(code, capture_output=True, text=True, check=True)
                    assert done.stdout.splitlines(), "the connections of iperf3"
                    for row in done.stdout.splitlines():
                        assert row.startswith(f"{side} True 2 ['10.0.1."), row
                testbed("down", name)
