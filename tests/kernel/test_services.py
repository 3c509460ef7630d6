"""Programs that run as long as the lab, and interfaces that commands make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Need, testbed
from tests.kernel.test_flows import ran

pytestmark = [pytest.mark.kernel]

WWW = """
nodes:
  client: {}
  server:
    services:
      www: {argv: [python3, -u, -m, http.server, "80"], ready: {port: 80}}
      log: {argv: [sh, -c, "echo waiting; echo ready at last; exec sleep 1000"], ready: {regex: "^ready at"}}
links: [{ends: [client:eth0, server:eth0]}]
workloads:
  get:
    command:
      node: client
      argv: [python3, -c, "import urllib.request as u; print(u.urlopen('http://server/').status)"]
      seconds: 20
      expect: {stdout: "200"}
"""


def test_a_service_is_ready_before_a_run_and_its_output_is_kept(tmp_path: Path, name: str) -> None:
    _, folder = ran(tmp_path, WWW, name)
    assert "GET / HTTP/1.1" in (folder / "server/www.log").read_text()
    assert (folder / "server/log.log").read_text() == "waiting\nready at last\n"


def test_a_service_that_ends_during_a_run_makes_it_fail(tmp_path: Path, name: str) -> None:
    dying = WWW.replace("exec sleep 1000", "sleep 1").replace("seconds: 20", "at: 2s")
    _, folder = ran(tmp_path, dying, name, status=3)
    (failure,) = json.loads((folder / "verdict.json").read_text())["failures"]
    assert failure.startswith("[server] log ended with status 0")
    assert "log.log: ready at last" in failure


def test_a_service_lives_as_long_as_the_lab(tmp_path: Path, name: str) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(f"name: lab\nfamilies: [ipv4]\n{WWW}")
    assert testbed("up", str(file), "--name", name).returncode == 0
    get = ("python3", "-c", "import urllib.request as u; print(u.urlopen('http://server/').status)")
    done = testbed("exec", name, "client", "--", *get)
    assert (done.returncode, done.stdout) == (0, "200\n"), done.stderr
    assert testbed("up", str(file), "--name", name).returncode == 0, "nothing to change"
    assert testbed("down", name).returncode == 0


def test_a_service_that_never_gets_ready_is_a_sentence_with_its_log(tmp_path: Path, name: str) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("name: lab\nnodes: {a: {services: {x: {argv: [sh, -c, echo no], ready: {port: 80}}}}}\n")
    done = testbed("up", str(file), "--name", name)
    assert done.returncode == 3
    assert "serving on port 80" in done.stderr
    assert "x ended with status 0" in done.stderr
    assert "x.log: no" in done.stderr


MADE = """
nodes:
  client:
    mptcp: {endpoints: [{interface: vx}]}
    interfaces: {vx: {addresses: [192.168.14.2/24]}}
    commands:
      - [ip, link, add, vx, type, vxlan, id, "4", remote, 10.0.1.2, local, 10.0.1.1, dstport, "4789", dev, eth0]
      - [ip, addr, add, 192.168.14.2/24, dev, vx]
      - [ip, link, set, vx, up]
  server:
    mptcp: {}
    interfaces: {vx: {addresses: [192.168.14.1/24]}}
    commands:
      - [ip, link, add, vx, type, vxlan, id, "4", remote, 10.0.1.1, local, 10.0.1.2, dstport, "4789", dev, eth0]
      - [ip, addr, add, 192.168.14.1/24, dev, vx]
      - [ip, link, set, vx, up]
links: [{ends: [client:eth0, server:eth0], addresses: [10.0.1.1/24, 10.0.1.2/24], rate: 20mbit}]
workloads:
  bulk: {iperf3: {from: client, to: server, to_interface: vx, bind: vx, seconds: 2}}
  both: {iperf3: {from: client, to: server, protocol: mptcp, seconds: 2, at: 3s}}
  rtt: {ping: {from: client, to: server, to_interface: vx, seconds: 1, at: 5500ms}}
capture: ["client:vx"]
checks:
  - {metric: bulk.goodput_mbps, min: 3}
  - {metric: client.vx.tx_bytes, min: 500000}
  - {metric: client.vx.captured_packets, min: 100}
  - {metric: rtt.loss_pct, equals: 0}
"""


def test_an_interface_that_commands_make_is_one_of_the_node(tmp_path: Path, name: str, need: Need) -> None:
    need("mptcp", "mptcpize", "iperf3", "tbf", "dumpcap")
    found, folder = ran(tmp_path, MADE, name)
    assert all(c["passed"] for c in json.loads((folder / "verdict.json").read_text())["checks"])
    subflow = found["client.subflow.vx.bytes_acked"]["value"]
    assert subflow > 1e5, "a second subflow, by the endpoint on it"
    payload = subflow + found["bulk.received_bytes"]["value"]
    assert found["server.vx.rx_bytes"]["value"] == pytest.approx(payload * 1.04, rel=0.1), "the tunnel's own counters"


def test_an_interface_that_commands_do_not_make_is_said_by_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text('name: lab\nnodes: {a: {interfaces: {x0: {}}, commands: [["true"]]}}\n')
    done = testbed("up", str(file), "--name", name)
    assert done.returncode == 3
    assert "not up: x0" in done.stderr
