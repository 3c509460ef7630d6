"""Joins on their way in: seen before the kernel answers, decided one by one, or by rules while nobody decides."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import testbed as api
from testbed.lab.control import RunningLab
from testbed.loading import load
from tests.conftest import Need
from tests.kernel.connected import connected

pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("measure")]

_NEEDED = ("mptcp", "mptcp-diag", "mptcp-userspace-pm")
LAB = """name: joins
families: [ipv4]
nodes:
  client:
    mptcp:
      path_manager: userspace
      endpoints: [{interface: eth1}, {interface: eth2, flags: [subflow, backup]}]
  server: {mptcp: {path_manager: %s}}
links:
  - {ends: [client:eth0, server:eth0]}
  - {ends: [client:eth1, server:eth1]}
  - {ends: [client:eth2, server:eth2]}
"""
NO_ETH1 = "{on: join_attempt, if: {remote: 10.0.2.0/24}, do: {allow_join: {allow: false}}}"


def made(tmp_path: Path, name: str, server: str) -> RunningLab:
    (tmp_path / "joins.yaml").write_text(LAB % server)
    return api.up(load(tmp_path / "joins.yaml"), name)


def rows(lab: RunningLab, node: str) -> list[dict[str, Any]]:
    return [
        json.loads(r) for r in lab.exec(node, ("cat", f"/run/testbed/{node}/mptcp-events.jsonl")).stdout.splitlines()
    ]


def told(lab: RunningLab, node: str, count: int, **wanted: object) -> list[dict[str, Any]]:
    """Return the rows of a manager's log with these values, as soon as there are so many."""
    while len(found := [r for r in rows(lab, node) if wanted.items() <= r.items()]) < count:
        pass
    return found


def counted(lab: RunningLab, node: str, name: str) -> int:
    """Return a counter of the kernel's own."""
    lines = lab.exec(node, ("cat", "/proc/net/netstat")).stdout.splitlines()
    [names, values] = [line.split() for line in lines if line.startswith("MPTcpExt:")]
    return int(values[names.index(name)])


def settled(lab: RunningLab) -> None:
    """Wait until each of the client's two joins has come or failed."""
    while len([r for r in rows(lab, "client") if r.get("event") in ("new_subflow", "subflow_closed")]) < 2:
        pass


def test_each_join_is_told_before_the_kernel_answers_it_and_a_rule_decides_it(
    tmp_path: Path, name: str, need: Need
) -> None:
    need(*_NEEDED)
    with made(tmp_path, name, f"{{policy: default, rules: [{NO_ETH1}]}}") as lab, connected(lab) as peers:
        settled(lab)
        joins = told(lab, "server", 2, event="join_attempt")
        [begun] = told(lab, "server", 1, event="new_connection")
        assert {j["token"] for j in joins} == {begun["token"]}, "the token of this side"
        about = {(j["remote"], j["local"], j["local_port"], j["remote_id"], j["backup"]) for j in joins}
        assert about == {("10.0.2.1", "10.0.1.2", 5201, 1, False), ("10.0.3.1", "10.0.1.2", 5201, 2, True)}
        verdicts = {r["remote"]: r["allow"] for r in told(lab, "server", 2, command="allow_join")}
        assert verdicts == {"10.0.2.1": False, "10.0.3.1": True}
        [refused] = told(lab, "client", 1, event="subflow_closed", local="10.0.2.1")
        assert refused["error"] == 111, "ECONNREFUSED: it was answered with a reset"
        assert counted(lab, "server", "MPJoinSynRx") == 1, "the kernel has seen the other one alone"
        [came] = told(lab, "server", 1, event="new_subflow")
        [joined] = [j for j in joins if j["remote"] == came["remote"]]
        assert joined["t"] < came["t"]
        assert joined["remote_port"] == came["remote_port"]
        assert "NFQUEUE" in told(lab, "server", 1, manager="started")[0]["joins"]
        peers.exchange()


@pytest.mark.parametrize("unmanaged", ["deny", "allow"])
def test_while_the_manager_is_dead_joins_are_refused_or_let_in_as_the_file_says(
    tmp_path: Path, name: str, need: Need, unmanaged: str
) -> None:
    need(*_NEEDED)
    manager = f"{{unmanaged: {unmanaged}, rules: [{NO_ETH1}]}}"
    with made(tmp_path, name, manager) as lab:
        [pid] = [p["pid"] for p in lab.status()["processes"] if (p["node"], p["name"]) == ("server", "path-manager")]
        lab.exec("server", ("kill", "-9", str(pid)))
        with connected(lab) as peers:
            told(lab, "client", 2, command="add_subflow")
            while counted(lab, "client", "MPJoinSynTx") < 2:
                pass
            while unmanaged == "allow" and not counted(lab, "server", "MPJoinSynRx"):
                pass
            peers.exchange()
            if unmanaged == "deny":
                assert counted(lab, "server", "MPJoinSynRx") == 0


def test_the_default_of_a_namespace_refuses_joins_and_an_event_of_the_run_changes_it(
    tmp_path: Path, name: str, need: Need
) -> None:
    need(*_NEEDED)
    with made(tmp_path, name, "{joins: deny}") as lab:
        with connected(lab):
            settled(lab)
            assert {r["error"] for r in told(lab, "client", 2, event="subflow_closed")} == {111}
            assert len(told(lab, "server", 2, event="join_attempt", kernel="NFULNL_MSG_PACKET")) == 2
            assert counted(lab, "server", "MPJoinSynRx") == 0
        code = 'from testbed.programs.mptcp.asking import ask; print(ask(b\'{"command": "allow_join"}\'))'
        assert lab.exec("server", (sys.executable, "-c", code)).stdout == "OK\n"
        with connected(lab):
            told(lab, "client", 2, event="new_subflow")
            assert counted(lab, "server", "MPJoinSynRx") == 2


_STATIC = """
from testbed.linux import netlink
from testbed.drivers import joins
from testbed.programs.mptcp import admission
from testbed.programs.mptcp.state import Do, Rule, Settings, State
deny = Do("allow_join", allow=False)
rules = (
    Rule("join_attempt", Do("allow_join"), interface="eth0", from_backup=True),
    Rule("join_attempt", deny, remote="10.0.2.0/24"),
    Rule("join_attempt", deny, remote="10.0.3.0/24"),
)
how = Settings(interfaces={"eth0": ("10.0.1.2/30",), "eth2": ("2001:db8::1/64",)}, rules=rules)
print(netlink.batch(joins.rules(admission.static(State(), how)[0])))
"""


def test_where_nothing_is_asked_static_rules_decide_by_address_network_and_backup(
    tmp_path: Path, name: str, need: Need
) -> None:
    need(*_NEEDED)
    with made(tmp_path, name, "kernel") as lab:
        assert lab.exec("server", (sys.executable, "-c", _STATIC)).stdout == "None\n"
        with connected(lab):
            settled(lab)
            assert [r["local"] for r in told(lab, "client", 1, event="new_subflow")] == ["10.0.3.1"]
            assert [r["error"] for r in told(lab, "client", 1, event="subflow_closed")] == [111]
            assert counted(lab, "server", "MPJoinSynBackupRx") == 1
