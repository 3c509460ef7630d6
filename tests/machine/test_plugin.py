"""Tests whose labs are elsewhere: in a guest, and on a machine that ssh reaches."""

from __future__ import annotations

import subprocess
import sys

import pytest

from testbed.machines.guest import microvm
from tests.conftest import ROOT
from tests.machine.test_ssh import Place, place, server, topology

__all__ = ["place", "server"]  # fixtures

pytest_plugins = ["pytester"]

REMOTE = """
import pytest

@pytest.mark.testbed_feature("veth", "ipv6", machine="server")
def test_it(lab):
    net = lab("short.yaml", machine="server")
    assert (net.machine, net.nodes) == ("server", ("a", "b"))
    assert net.exec("a", ["tr", "a-z", "A-Z"], input=b"loud").stdout == "LOUD"
    assert net.exec("b", ["sh", "-c", "exit 7"]).returncode == 7
    run = net.run()
    assert run.verdict == "passed"
    assert net.metrics["rtt.loss_pct"] == 0
    assert (run.folder / "a/rtt.ping.txt").exists(), "the results are here"

@pytest.mark.testbed_feature("mac80211_hwsim-mlo", machine="server")
def test_words(lab):
    lab("short.yaml", machine="server")
"""


@pytest.mark.machine
@pytest.mark.xdist_group("image")
def test_a_lab_in_a_guest_is_used_and_measured_as_one_here(pytester: pytest.Pytester, guests: None) -> None:
    pytester.makepyfile(
        f"""
        import os
        import pytest
        from pathlib import Path

        @pytest.mark.testbed_feature("netem", machine="microvm")
        def test_it(lab):
            net = lab("{ROOT}/topologies/netem-demo.yaml", machine="microvm")
            assert net.machine == "microvm"
            Path("guest").write_text(net.name)
            assert net.exec("client", ["uname", "-r"]).stdout.strip() != os.uname().release
            done = net.exec("client", ["ping", "-c", "3", "-i", "0.2", "-q", "far"])
            assert done.returncode == 0, done
            shortest = float(done.stdout.rpartition(" = ")[2].split("/")[0])
            assert shortest > 360, done.stdout  # 200 ms there and back, less jitter
            run = net.run(sets=["workloads.distance.ping.seconds=2"])
            assert 380 < run.metrics["distance.rtt_p50_ms"] < 440, run
            assert net.metrics == run.metrics
            assert (run.folder / "client/distance.ping.txt").exists()
        """
    )
    pytester.runpytest_subprocess("-rs").assert_outcomes(passed=1)
    assert pytester.path.joinpath("guest").read_text() not in microvm.guests()


@pytest.mark.kernel
@pytest.mark.xdist_group("ssh")
def test_a_lab_on_a_machine_that_ssh_reaches_is_used_and_measured_as_one_here(server: Place) -> None:
    topology(server)
    (server.work / "test_it.py").write_text(REMOTE)
    words = (
        "nsenter",
        f"--net=/proc/{server.sshd.pid}/ns/net",
        sys.executable,
        "-m",
        "pytest",
        "-ra",
        "-p",
        "no:cacheprovider",
    )
    folder = f"--basetemp={server.folder / 'base'}"
    done = subprocess.run(
        (*words, folder), cwd=server.work, env=server.env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout or "2 passed" in done.stdout, done.stdout
    assert "2 passed" in done.stdout or "feature mac80211_hwsim-mlo: " in done.stdout, done.stdout
    assert server.left() == []
