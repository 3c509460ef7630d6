"""A thousand nodes in one lab."""

from __future__ import annotations

from pathlib import Path

import pytest

import testbed as api
from testbed.topology import load

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
