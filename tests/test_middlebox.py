"""What a middlebox's rules become: commands of nft, at the right interface, and in their window (no kernel)."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.loading import load
from testbed.plan.lab import plan
from testbed.plan.run import run_steps

LAB = """name: box
families: [ipv4]
nodes:
  a: {}
  m: {%s: {}, middlebox: {rules: [%s]}}
  b: {}
links:
  - {name: near, ends: [a:eth0, m:eth0]}
  - {name: far, ends: [m:eth1, b:eth0]}
duration: 9s
"""


def planned(tmp_path: Path, rule: str, kind: str = "router") -> list[str]:
    """The commands of nft that a rule becomes, those of a run last."""
    file = tmp_path / "box.yaml"
    file.write_text(LAB % (kind, rule))
    made = plan(load(file))
    return [str(step).removeprefix("[m] ") for step in (*made.steps, *run_steps(made)) if " nft " in str(step)]


# As nft 1.0.6 lists the rule of each, once the kernel has it.
@pytest.mark.parametrize(
    ("rule", "command"),
    [
        ("{action: count}", "counter name rule_1"),
        ("{match: {subtype: any}, action: count}", "meta l4proto tcp tcp option mptcp exists counter name rule_1"),
        (
            "{match: {subtype: mp_join, packet: syn}, action: drop, times: 3}",
            "meta l4proto tcp tcp flags & (syn | ack) == syn tcp option mptcp subtype 1 "
            "limit rate 1/week burst 3 packets counter name rule_1 drop",
        ),
        (
            "{match: {subtype: add_addr_echo}, action: drop}",
            "meta l4proto tcp tcp option @30,16,8 & 0xf1 == 0x31 counter name rule_1 drop",
        ),
        (
            "{match: {source: 10.0.1.0/24, protocol: udp, port: 53}, action: reject}",
            "meta l4proto udp ip saddr 10.0.1.0/24 udp dport 53 counter name rule_1 reject with icmpx admin-prohibited",
        ),
        (
            "{match: {protocol: tcp}, action: limit, rate: 8mbit}",
            "meta l4proto tcp limit rate over 1000000 bytes/second burst 65536 bytes counter name rule_1 drop",
        ),
        ("{link: far, action: firewall}", "ct state new,invalid counter name rule_1 drop"),
        ("{link: far, action: nat}", "counter name rule_1 masquerade"),
    ],
)
def test_a_rule_is_a_command_of_nft(tmp_path: Path, rule: str, command: str) -> None:
    assert planned(tmp_path, rule)[-1] == f"nft 'add rule inet middlebox rule_1 {command}'"


@pytest.mark.parametrize("kind", ["router", "bridge"])
@pytest.mark.parametrize(
    ("link", "direction", "ways"),
    [
        ("near", "forward", ["iifname eth0"]),  # from a to m: it comes in
        ("near", "reverse", ["oifname eth0"]),
        ("far", "forward", ["oifname eth1"]),
        ("m:eth1", "reverse", ["iifname eth1"]),
        ("b:eth0", "reverse", ["iifname eth1"]),
        ("near", None, ["iifname eth0", "oifname eth0"]),
    ],
)
def test_a_direction_is_one_of_the_link(
    tmp_path: Path, kind: str, link: str, direction: str | None, ways: list[str]
) -> None:
    way = f", direction: {direction}" if direction else ""
    _, chain, _ = planned(tmp_path, f"{{link: '{link}'{way}, action: drop}}", kind)
    found = [part.rpartition(" jump")[0].partition("FORWARD ")[2] for part in chain.split("; ") if "jump" in part]
    assert [part.replace('"', "") for part in found] == ways
    assert all((" bridge " if kind == "bridge" else " inet ") in part for part in chain.split("; "))


def test_a_rule_with_a_window_is_there_from_its_begin_to_its_end(tmp_path: Path) -> None:
    *_, begin, end = planned(tmp_path, "{name: cut, action: drop, window: [2s, 5s]}")
    assert begin == "nft 'add rule inet middlebox cut counter name cut drop'  @2s"
    assert end == "nft 'flush chain inet middlebox cut'  @5s"
