"""`testbed mptcp`: what a node's connections are, as the kernel and the path manager know them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import testbed as api
from testbed.lab.control import RunningLab
from testbed.loading import load
from tests.conftest import Need, testbed
from tests.kernel.connected import connected

pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("measure")]

_NEEDED = ("mptcp", "mptcp-diag", "mptcp-userspace-pm")
LAB = """name: verbs
families: [ipv4]
nodes:
  client: {mptcp: {path_manager: %s, endpoints: [{interface: eth1}]}}
  server: {mptcp: {path_manager: %s}}
links:
  - {ends: [client:eth0, server:eth0]}
  - {ends: [client:eth1, server:eth1]}
  - {ends: [client:eth2, server:eth2]}
"""
ANNOUNCES = "{rules: [{on: connection_established, if: {side: server}, do: {send_addr: {interface: eth2}}}]}"
# It knows of what is announced, and does nothing about it.
LISTENS = "{rules: [{on: subflow_closed, do: {remove_subflow: {interface: eth2}}}]}"


def made(tmp_path: Path, name: str, client: str, server: str) -> RunningLab:
    (tmp_path / "verbs.yaml").write_text(LAB % (client, server))
    return api.up(load(tmp_path / "verbs.yaml"), name)


def listed(what: str, lab: str, node: str) -> list[dict[str, Any]]:
    """Return what `testbed mptcp` lists as JSON."""
    done = testbed("mptcp", what, lab, node, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(row) for row in done.stdout.splitlines()]


def awaited(what: str, lab: str, node: str, count: int) -> list[dict[str, Any]]:
    """Return a list as soon as it has so many rows."""
    while len(rows := listed(what, lab, node)) < count:
        pass
    return rows


def test_connections_subflows_and_remote_address_ids_of_a_node_are_listed(
    tmp_path: Path, name: str, need: Need
) -> None:
    need(*_NEEDED)
    with made(tmp_path, name, "userspace", ANNOUNCES) as lab, connected(lab):
        flows = awaited("subflows", name, "client", 3)
        assert sorted((s["local"], s["remote"], s["local_id"], s["remote_id"]) for s in flows) == [
            ("10.0.1.1", "10.0.1.2", 0, 0),
            ("10.0.2.1", "10.0.1.2", 1, 0),
            ("10.0.3.1", "10.0.3.2", 102, 102),
        ]
        [own] = listed("connections", name, "client")
        assert (own["subflows"], own["side"], own["late"]) == (3, "client", False)
        assert own["kernel"] == "MPTCP_SUBFLOW_ATTR_TOKEN_LOC"
        seen = lab.exec("client", ("ss", "-Mnit")).stdout
        assert f"token:{own['connection_id']:x}" in seen, "the kernel's own list has it"
        rows = listed("addresses", name, "client")
        assert [(r["address_id"], r["address"]) for r in rows if r["what"] == "remote_address"] == [
            (0, "10.0.1.2"),
            (102, "10.0.3.2"),
        ]
        assert {(r["address_id"], r["address"]) for r in rows if r["what"] == "local_address"} == {
            (1, "10.0.2.1"),
            (102, "10.0.3.1"),
        }
        [other] = listed("connections", name, "server")
        assert (other["side"], other["local_port"], other["remote_port"]) == ("server", 5201, own["local_port"])
        told = testbed("mptcp", "connections", name, "client").stdout
        assert f"connection (MPTCP_SUBFLOW_ATTR_TOKEN_LOC) 10.0.1.1:{own['local_port']} > 10.0.1.2:5201" in told


def test_of_the_kernels_path_manager_endpoints_are_listed_and_what_was_announced_is_unknown(
    tmp_path: Path, name: str, need: Need
) -> None:
    need(*_NEEDED)
    with made(tmp_path, name, "kernel", "kernel") as lab, connected(lab):
        awaited("subflows", name, "client", 2)
        rows = listed("addresses", name, "client")
        assert [(r["address"], r["flags"]) for r in rows if r["what"] == "local_address"] == [("10.0.2.1", ["subflow"])]
        assert [r["address_id"] for r in rows if r["what"] == "remote_address"] == [0, "unknown"]


def test_an_address_that_was_announced_before_the_manager_began_is_unknown_and_not_absent(
    tmp_path: Path, name: str, need: Need
) -> None:
    need(*_NEEDED)
    with made(tmp_path, name, LISTENS, ANNOUNCES) as lab, connected(lab):
        # The manager heard of the address, and nothing has joined it: now it is killed, and another one starts.
        before = [r for r in awaited("addresses", name, "client", 2) if r["what"] == "remote_address"]
        assert [(r["address_id"], r["used"]) for r in before] == [(0, True), (102, False)]
        [manager] = [
            p["pid"] for p in lab.status()["processes"] if (p["node"], p["name"]) == ("client", "path-manager")
        ]
        lab.exec("client", ("kill", "-9", str(manager)))
        again = "from testbed.programs.mptcp.main import main; import sys; main(sys.argv[1:])"
        files = ("/run/testbed/client/path-manager.json", "/run/testbed/client/again.jsonl")
        words = (sys.executable, "-m", "testbed", "exec", name, "client", "--", sys.executable, "-c", again, *files)
        with subprocess.Popen(words) as late:
            while lab.exec("client", ("test", "-s", files[1])).returncode:
                assert late.poll() is None
            [own] = listed("connections", name, "client")
            assert (own["late"], own["side"]) == (True, "client")
            after = [r for r in listed("addresses", name, "client") if r["what"] == "remote_address"]
            assert [r["address_id"] for r in after] == [0, "unknown"]
            late.terminate()


def test_monitor_prints_events_and_commands_with_the_kernels_names_as_they_come(
    tmp_path: Path, name: str, need: Need
) -> None:
    need(*_NEEDED)
    with made(tmp_path, name, "userspace", "kernel") as lab:
        for node, expected in (
            ("client", {"MPTCP_EVENT_CREATED", "MPTCP_PM_CMD_SUBFLOW_CREATE", "MPTCP_EVENT_SUB_ESTABLISHED"}),
            ("server", {"MPTCP_EVENT_CREATED", "MPTCP_EVENT_ESTABLISHED", "MPTCP_EVENT_SUB_ESTABLISHED"}),
        ):
            words = (sys.executable, "-m", "testbed", "mptcp", "monitor", name, node, "--json")
            with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as monitor:
                assert monitor.stdout is not None
                assert "manager" in json.loads(monitor.stdout.readline()), "it says when it listens"
                with connected(lab):
                    seen: set[str] = set()
                    while not expected <= seen:
                        row = json.loads(monitor.stdout.readline())
                        seen.add(row.get("kernel", ""))
                        assert "event" in row or "command" in row
                monitor.send_signal(signal.SIGTERM)
                assert monitor.wait() == 143


def test_without_the_right_to_hear_events_a_sentence_says_which_right_is_missing(
    tmp_path: Path, name: str, need: Need
) -> None:
    need(*_NEEDED)
    with made(tmp_path, name, "kernel", "kernel") as lab:
        dropped = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")
        done = lab.exec("client", (*dropped, sys.executable, "-P", "-m", "testbed", "tell-mptcp", "monitor"))
        assert done.returncode == 3
        assert "CAP_NET_ADMIN" in done.stderr


def test_a_node_or_a_lab_that_is_not_there_is_said() -> None:
    done = testbed("mptcp", "subflows", "nosuchlab", "client")
    assert (done.returncode, "no such lab is up" in done.stderr) == (3, True)
