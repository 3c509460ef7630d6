"""Programs that run as long as the lab, and interfaces that commands make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import testbed
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
