"""Addresses that stay when a file grows, and MAC addresses that it states."""

from __future__ import annotations

import pytest

from testbed.errors import InputError
from testbed.language.parsing import parse
from testbed.loading import build
from testbed.plan.assemble import network
from testbed.plan.network import Network

LAB = """
name: lab
addressing: {how}
nodes: {{a: {{}}, r: {{router: {{}}}}, b: {{}}, sw: {{bridge: {{}}}}, c: {{}}, d: {{}}, e: {{}}}}
links:
{first}
  - {{ends: [a:eth0, r:eth0]}}
  - {{ends: [r:eth1, b:eth0]}}
  - {{ends: [r:eth2, sw:p0]}}
  - {{ends: [sw:p1, c:eth0]}}
{last}
"""
NEW = "  - {ends: [d:eth0, e:eth0]}"


def planned(how: str, first: str = "", last: str = "") -> Network:
    return network(build(parse(LAB.format(how=how, first=first, last=last), "lab.yaml")))


def addresses(net: Network) -> dict[tuple[str, str], tuple[str, ...]]:
    return {(i.node, i.name): i.addresses for own in net.interfaces.values() for i in own}


@pytest.mark.parametrize("where", ["first", "last"])
def test_addresses_by_name_stay_when_a_link_is_inserted(where: str) -> None:
    before, after = addresses(planned("by_name")), addresses(planned("by_name", **{where: NEW}))
    assert {key: after[key] for key in before} == before
    assert len(after) == len(before) + 2


def test_addresses_by_order_are_those_of_the_order_in_the_file() -> None:
    before, after = addresses(planned("by_order")), addresses(planned("by_order", first=NEW))
    assert after["a", "eth0"] != before["a", "eth0"]
    assert after["a", "eth0"][0].startswith("10.0.2.")


def test_no_two_segments_by_name_overlap_and_hosts_of_one_share_a_network() -> None:
    net = planned("by_name", first=NEW)
    for version in (4, 6):
        found = {s: {i.network(version) for i in members} for s, members in net.segments.items()}
        assert all(len(networks) == 1 for networks in found.values())
        assert len({n for networks in found.values() for n in networks}) == len(found)


MACS = """
name: lab
nodes: {{a: {{}}, b: {{}}, c: {{}}}}
links:
  - {{ends: [a:eth0, b:eth0], macs: {one}}}
  - {{ends: [b:eth1, c:eth0], macs: {other}}}
"""


def test_a_stated_mac_address_is_taken_and_null_is_a_planned_one() -> None:
    text = MACS.format(one='["02:00:00:00:00:0A", null]', other="[null, null]")
    net = network(build(parse(text, "lab.yaml")))
    plain = network(build(parse(text.replace('"02:00:00:00:00:0A"', "null"), "lab.yaml")))
    assert net.named["a", "eth0"][0].mac == "02:00:00:00:00:0a"
    assert net.named["b", "eth0"][0].mac == plain.named["b", "eth0"][0].mac


@pytest.mark.parametrize(
    ("one", "other", "wrong"),
    [
        ('["02:00:00:00:00", null]', "[null, null]", "is not a MAC address"),
        ('["03:00:00:00:00:01", null]', "[null, null]", "it is a group's"),
        ('["02:00:00:00:00:01", null]', '[null, "02:00:00:00:00:01"]', "already the address of a:eth0"),
    ],
)
def test_a_mac_address_that_can_not_be_is_an_error(one: str, other: str, wrong: str) -> None:
    with pytest.raises(InputError, match=wrong):
        build(parse(MACS.format(one=one, other=other), "lab.yaml"))
