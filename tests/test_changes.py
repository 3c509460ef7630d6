"""What turns a running lab into one of another plan: steps that undo, steps to perform, and what can't be done."""

from __future__ import annotations

import pytest

from testbed.drivers.link import AddressAdd, LinkSet
from testbed.drivers.mptcp import EndpointAdd
from testbed.drivers.route import RouteAdd
from testbed.drivers.tc import Limit, Qdisc, QdiscDel
from testbed.lab import changes
from testbed.lab.changes import Change
from testbed.language.parsing import parse
from testbed.loading import build
from testbed.plan.lab import Plan, plan
from testbed.steps import Configure, Delete, Request, Run, Step, Wait

LAB = """\
name: lab
nodes: {client: {mptcp: {endpoints: [{interface: eth1}]}}, r: {router: {}}, server: {mptcp: {}}, more: {}}
links:
  - {ends: [client:eth0, r:eth0], rate: 10mbit}
  - {ends: [client:eth1, r:eth1]}
  - {ends: [r:eth2, server:eth0]}
"""


def made(*edits: tuple[str, str]) -> Plan:
    text = LAB
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return plan(build(parse(text, "lab.yaml")))


def change(*edits: tuple[str, str]) -> Change:
    return changes.compare(made().steps, made(*edits).steps)


def performed(found: Change) -> list[str]:
    return [str(s) for s in found.perform if not isinstance(s, Wait)]


def test_the_same_plan_asks_only_whether_all_still_holds() -> None:
    found = change()
    assert (found.removed, found.added, found.refused, str(found)) == ((), (), (), "")
    assert found.perform
    assert all(isinstance(s, Wait) for s in found.perform)


def test_another_rate_overwrites_the_one_of_before_and_nothing_is_undone() -> None:
    found = change(("rate: 10mbit", "rate: 20mbit"))
    assert [str(s).split()[:7] for s in found.perform if not isinstance(s, Wait)] == [
        [f"[{node}]", "tc", "qdisc", "replace", "dev", "eth0", "root"] for node in ("client", "r")
    ]
    assert (
        str(found).splitlines()[0].startswith("- [client] tc qdisc replace dev eth0 root handle 2: tbf rate 10000000")
    )
    assert sum(row.startswith("+ ") for row in str(found).splitlines()) == 2


def test_a_rate_and_an_mtu_that_are_gone_leave_what_the_kernel_had() -> None:
    found = changes.compare(made(("rate: 10mbit", "rate: 10mbit, mtu: 1400")).steps, made((", rate: 10mbit", "")).steps)
    words = performed(found)
    assert "[client] tc qdisc del dev eth0 root" in words
    assert "[client] ip link set eth0 mtu 1500" in words
    assert not found.refused


def test_an_endpoint_that_is_gone_is_removed_and_the_waits_check_it() -> None:
    found = change(("{endpoints: [{interface: eth1}]}", "{}"))
    assert any(w.startswith("[client] ip mptcp endpoint del 10.0.2.1") for w in performed(found))
    assert any("endpoints none" in str(s) for s in found.perform if isinstance(s, Wait))
    assert not found.refused


def test_routes_that_the_kernel_drops_with_an_address_are_stated_again() -> None:
    wider = ("[r:eth2, server:eth0]", "[r:eth2, server:eth0], addresses: [10.0.3.1/29, 10.0.3.2/29]")
    found = change(wider)
    words = performed(found)
    gone, there = (f"[server] ip addr {what} dev eth0" for what in ("del 10.0.3.2/30", "add 10.0.3.2/29"))
    default = "[server] ip route add default via 10.0.3.1 dev eth0"
    assert default not in {str(s) for s in found.added}, "the plan has had it before"
    assert words.index(gone) < words.index(there) < words.index(default)


def test_nodes_and_links_that_are_new_come_in_place_and_those_that_are_gone_are_refused() -> None:
    link = (
        "  - {ends: [r:eth2, server:eth0]}\n",
        "  - {ends: [r:eth2, server:eth0]}\n  - {ends: [r:eth3, more:eth0]}\n",
    )
    assert change(link).refused == ()
    back = changes.compare(made(link).steps, made().steps)
    assert any(" type veth peer eth0 netns more" in str(s) for s in back.refused)


def test_a_command_can_not_be_taken_back() -> None:
    assert changes.compare([Run("a", ("true",))], []).refused == (Run("a", ("true",)),)


QDISC = Qdisc("eth0", "pfifo", 0x20000, 0xFFFFFFFF, Limit("pfifo", 10))


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([LinkSet("eth0", up=True), LinkSet("eth0", up=False)], [LinkSet("eth0", up=False)]),
        ([LinkSet("eth0", up=True), LinkSet("eth0", mtu=1400)], [LinkSet("eth0", up=True), LinkSet("eth0", mtu=1400)]),
        ([AddressAdd("10.0.0.1/8", "eth0"), Delete(AddressAdd("10.0.0.1/8", "eth0"))], []),
        ([QDISC, QdiscDel(QDISC)], []),
        ([Delete(RouteAdd("default", "eth0"))], []),
        ([EndpointAdd("10.0.0.1", 1, ("subflow",))], [EndpointAdd("10.0.0.1", 1, ("subflow",))]),
    ],
)
def test_of_steps_that_were_performed_stands_what_no_later_one_overwrote_or_took_away(
    steps: list[Request], left: list[Request]
) -> None:
    def of_a(requests: list[Request]) -> list[Step]:
        return [Configure("a", r) for r in requests]

    assert changes.standing(of_a(steps)) == of_a(left)
