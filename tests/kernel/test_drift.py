"""A lab that somebody has changed by hand: `status` and `up` see it in the kernel, and `up` mends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Need, testbed

pytestmark = pytest.mark.kernel

LAB = """
name: drift
nodes: {a: {}, sw: {bridge: {}}, r: {router: {}}, b: {}}
links:
  - {ends: [a:eth0, sw:p0], rate: 20mbit}
  - {ends: [sw:p1, r:eth0]}
  - {ends: [r:eth1, b:eth0], mtu: 1400}
"""


@pytest.mark.parametrize(
    ("node", "command", "told"),
    [
        ("a", "ip link set eth0 down", "[a] ip link set eth0 up"),
        ("sw", "ip link set p1 down", "[sw] ip link set p1 up"),
        ("r", "ip link set eth1 mtu 1300", "[r] ip link set eth1 mtu 1400"),
        ("a", "ip addr flush dev eth0 scope global", "[a] ip addr add 10.0.1.1/30 dev eth0"),
        ("a", "tc qdisc del dev eth0 root", "[a] tc qdisc replace dev eth0 root handle 2: tbf"),
    ],
)
def test_what_was_changed_by_hand_is_shown_and_mended(
    tmp_path: Path, name: str, need: Need, node: str, command: str, told: str
) -> None:
    need("bridge", "tbf", "ipv6")
    file = tmp_path / "drift.yaml"
    file.write_text(LAB)
    try:
        assert testbed("up", str(file), "--name", name).returncode == 0
        assert json.loads(testbed("status", name, "--json").stdout)["drift"] == []
        assert testbed("exec", name, node, "--", *command.split()).returncode == 0
        assert any(row.startswith(told) for row in json.loads(testbed("status", name, "--json").stdout)["drift"])
        done = testbed("up", str(file), "--name", name)
        assert done.returncode == 0, done.stderr
        assert f"+ {told}" in done.stdout
        assert f"lab {name} changed in" in done.stdout
        assert json.loads(testbed("status", name, "--json").stdout)["drift"] == []
        for target in ("10.0.2.2", "2001:db8:0:2::2"):
            ping = testbed("exec", name, "a", "--", "ping", "-c", "1", "-W", "2", target)
            assert ping.returncode == 0, ping.stdout
        assert " unchanged in " in testbed("up", str(file), "--name", name).stdout
    finally:
        testbed("down", name)
