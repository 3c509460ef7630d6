"""Path managers in user space that are killed, deaf, foreign, or without rights: nothing is lost or mixed up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
LAB = """name: managers
families: [ipv4]
nodes:
  client: {mptcp: {path_manager: userspace, endpoints: [{interface: eth1}]}}
  server: {mptcp: {path_manager: kernel}}
links: [{ends: [client:eth0, server:eth0]}, {ends: [client:eth1, server:eth1]}]
"""
_MANY = 200  # connections


def made(tmp_path: Path, name: str) -> RunningLab:
    (tmp_path / "managers.yaml").write_text(LAB)
    return api.up(load(tmp_path / "managers.yaml"), name)


def manager(lab: RunningLab) -> str:
    [pid] = [str(p["pid"]) for p in lab.status()["processes"] if (p["node"], p["name"]) == ("client", "path-manager")]
    return pid


def rows(lab: RunningLab, file: str = "mptcp-events.jsonl") -> list[dict[str, Any]]:
    said = lab.exec("client", ("cat", f"/run/testbed/client/{file}")).stdout
    return [json.loads(row) for row in said.splitlines(keepends=True) if row.endswith("\n")]


@contextmanager
def started_again(lab: RunningLab, **other: object) -> Iterator[str]:
    """Have another path manager, in the place of one that was killed; its log is again.jsonl. Yield its process ID."""
    how = json.loads(lab.exec("client", ("cat", "/run/testbed/client/path-manager.json")).stdout)
    files = [f"/run/testbed/client/{f}" for f in ("again.json", "again.jsonl", "again.log")]
    assert not lab.exec("client", ("tee", files[0]), input=json.dumps({**how, **other}).encode()).returncode
    code = "import os, sys; from testbed.programs.mptcp.main import main; "
    code += "print(os.getpid(), flush=True); main(sys.argv[1:])"
    words = (sys.executable, "-m", "testbed", "exec", lab.name, "client", "--", sys.executable, "-c", code, *files)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = process.stdout.readline().strip()
        while not [r for r in rows(lab, "again.jsonl") if "manager" in r]:
            assert process.poll() is None
        yield pid
        process.terminate()


def listed(lab: RunningLab, what: str) -> list[dict[str, Any]]:
    done = testbed("mptcp", what, lab.name, "client", "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(row) for row in done.stdout.splitlines()]


def test_events_that_the_kernel_dropped_are_made_up_for_by_a_dump(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    with made(tmp_path, name) as lab:
        lab.exec("client", ("kill", "-9", manager(lab)))
        with started_again(lab, room=4096) as pid:
            lab.exec("client", ("kill", "-STOP", pid))
            with connected(lab, _MANY) as peers:
                lab.exec("client", ("kill", "-CONT", pid))
                while not (lost := [r for r in rows(lab, "again.jsonl") if r.get("manager") == "lost events"]):
                    pass
                assert len(lost[-1]["connections"]) == _MANY
                while len(flows := listed(lab, "subflows")) < 2 * _MANY:
                    pass
                known = {c["connection_id"]: c for c in listed(lab, "connections")}
                assert len(known) == _MANY
                assert {c["side"] for c in known.values()} == {"client"}
                assert {s["connection_id"] for s in flows if s["local"] == "10.0.2.1"} == known.keys(), "all joined"
                peers.exchange()


def test_a_manager_that_is_killed_and_started_again_loses_no_connection(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    with made(tmp_path, name) as lab, connected(lab, 20) as peers:
        while len(before := listed(lab, "subflows")) < 40:
            pass
        lab.exec("client", ("kill", "-9", manager(lab)))
        peers.exchange()
        with started_again(lab):
            ends = ("connection_id", "local", "local_port", "remote", "remote_port", "local_id", "remote_id")
            mine = [{tuple(s[e] for e in ends) for s in found} for found in (before, listed(lab, "subflows"))]
            assert mine[0] == mine[1]
            assert [(c["late"], c["subflows"]) for c in listed(lab, "connections")] == [(True, 2)] * 20
            assert not [r for r in rows(lab, "again.jsonl") if "command" in r], "nothing is missing"
            peers.exchange()


def test_a_manager_that_starts_late_opens_what_connections_lack(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    with made(tmp_path, name) as lab:
        lab.exec("client", ("kill", "-9", manager(lab)))
        with connected(lab, 3) as peers:
            assert len(listed(lab, "subflows")) == 3
            with started_again(lab):
                while len(listed(lab, "subflows")) < 6:
                    pass
                peers.exchange()


_COMMAND = """
import sys
from testbed.drivers import mptcp
from testbed.drivers.mptcp_pm import RemoveAddr
from testbed.linux import netlink, wire
with netlink.connect(wire.NETLINK_GENERIC) as sock:
    message = wire.Message(0, 0, RemoveAddr(int(sys.argv[1]), 9).body(), mptcp.FAMILY)
    print(netlink.transact(sock, [message], netlink.family(sock, mptcp.FAMILY))[0])
"""


def test_a_command_is_refused_for_a_connection_of_another_namespace_and_without_the_right_to_give_it(
    tmp_path: Path, name: str, need: Need
) -> None:
    need(*_NEEDED)
    with made(tmp_path, name) as lab, connected(lab):
        [own] = listed(lab, "connections")
        command = (sys.executable, "-c", _COMMAND, str(own["connection_id"]))
        assert "address with id 9 not found" in lab.exec("client", command).stdout, "here the kernel knows the token"
        assert "invalid token" in lab.exec("server", command).stdout
        dropped = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")
        assert "Operation not permitted" in lab.exec("client", (*dropped, *command)).stdout


def test_a_listener_in_another_namespace_is_found_and_is_the_reason_of_a_skip(
    tmp_path: Path, name: str, need: Need
) -> None:
    need(*_NEEDED)
    file = tmp_path / "unheard.yaml"
    file.write_text(LAB.replace("name: managers", "name: unheard") + "requires: {features: [mptcp-unheard]}\n")
    with made(tmp_path, name):
        done = testbed("up", str(file), "--machine", "here", "--name", f"{name}b")
        assert done.returncode == 4
        assert "a process listens to the events of MPTCP" in done.stderr


def test_a_manager_ends_with_its_signal(tmp_path: Path, name: str, need: Need) -> None:
    need(*_NEEDED)
    with made(tmp_path, name) as lab:
        lab.exec("client", ("kill", f"-{signal.SIGTERM.value}", manager(lab)))
        while [p for p in lab.status()["processes"] if p["name"] == "path-manager" and p["status"] is None]:
            pass
        assert [p["status"] for p in lab.status()["processes"] if p["name"] == "path-manager"] == [0]
