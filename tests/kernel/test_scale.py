"""Large labs: they work as soon as they are up, and nobody in them speaks without need."""

from __future__ import annotations

import subprocess
from pathlib import Path
from resource import RLIMIT_NOFILE, setrlimit
from threading import Thread

import pytest

import testbed as api
from testbed.lab import control, reach
from testbed.loading import load
from tests.conftest import testbed

pytestmark = pytest.mark.kernel


def test_a_star_of_a_thousand_hosts_works_from_end_to_end(tmp_path: Path, name: str) -> None:
    size = 1000
    rows = ["name: star", "families: [ipv4]", "nodes:", "  s1: {bridge: {}}"]
    rows += [f"  h{n}: {{}}" for n in range(1, size + 1)]
    rows += ["links:", *(f"  - {{ends: [h{n}:eth0, s1:p{n}]}}" for n in range(1, size + 1))]
    file = tmp_path / "star.yaml"
    file.write_text("\n".join(rows))
    topology = load(file)
    with api.up(topology, name) as lab:
        done = lab.exec("h1", ("ping", "-c", "1", "-W", "5", f"h{size}"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(lab.exec("", ("ip", "netns")).stdout.splitlines()) == size + 1
        # With IPv6 not asked for, an idle switch port has sent nothing of its own: no router solicitation, no MLD.
        counted = lab.exec("h500", ("cat", "/proc/net/dev")).stdout
        eth0 = next(row.split() for row in counted.splitlines() if row.strip().startswith("eth0:"))
        assert int(eth0[10]) == 0


def test_hosts_of_a_large_bridge_answer_the_first_packet_of_both_families_and_hear_nothing_before(
    tmp_path: Path, name: str
) -> None:
    def write(size: int) -> Path:
        rows = ["name: star", "nodes:", "  s1: {bridge: {}}", *(f"  h{n}: {{}}" for n in range(size))]
        rows += ["links:", *(f"  - {{ends: [h{n}:eth0, s1:p{n}]}}" for n in range(size))]
        file = tmp_path / "star.yaml"
        file.write_text("\n".join(rows))
        return file

    size = 300
    assert testbed("up", str(write(size)), "--name", name).returncode == 0
    lab = control.find(name)
    for host in ("h0", "h150", f"h{size - 1}"):
        # Frames that came: what the 299 others say of their own accord, six each, would be told to all.
        counted = lab.exec(host, ("cat", "/proc/net/dev")).stdout
        assert next(row.split()[2] for row in counted.splitlines() if row.strip().startswith("eth0:")) == "0"
    for family in ("-6", "-4"):
        done = lab.exec("h0", ("ping", family, "-c", "1", "-W", "1", f"h{size - 1}"))
        assert done.returncode == 0, done.stdout + done.stderr
    # A bridge that is up is never silent: nobody waits for that.
    flood = Thread(target=lab.exec, args=("h1", ("ping", "-q", "-i", "0.002", "-w", "3", "h2")))
    flood.start()
    changed = testbed("up", str(write(size + 1)), "--name", name)
    assert changed.returncode == 0, changed.stderr
    assert lab.exec("h0", ("ping", "-6", "-c", "1", "-W", "1", f"h{size}")).returncode == 0
    flood.join()
    lab.down()


def test_a_lab_of_more_nodes_than_descriptors_is_refused_and_one_of_nearly_as_many_works(
    tmp_path: Path, name: str
) -> None:
    def write(count: int) -> Path:
        rows = ["name: many", "nodes:", *(f"  n{n}: {{}}" for n in range(count))]
        rows += ["links:", *(f"  - {{ends: [n{n}:e, n{n + 1}:w]}}" for n in range(count - 1))]
        file = tmp_path / "many.yaml"
        file.write_text("\n".join(rows))
        return file

    # A node takes one descriptor, and a second, for a socket, as long as there are any to spare.
    def limited(*words: str) -> subprocess.CompletedProcess[str]:
        return testbed(*words, preexec_fn=lambda: setrlimit(RLIMIT_NOFILE, (200, 200)))

    refused = limited("up", str(write(180)), "--name", name)
    assert refused.returncode == 3
    assert "180 nodes take a descriptor each, and 200 is the most" in refused.stderr
    assert name not in reach.names()
    assert limited("up", str(write(150)), "--name", name).returncode == 0
    lab = control.find(name)
    for node, other in (("n0", "n1"), ("n149", "n148-e"), ("n60", "n61")):
        done = lab.exec(node, ("ping", "-6", "-c", "1", "-W", "1", other))
        assert done.returncode == 0, done.stdout + done.stderr
