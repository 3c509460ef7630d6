"""Multicast without a kernel: the form of packets and records, figures of a reception, trees, tables as they are."""

from __future__ import annotations

import struct
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.drivers import membership, smcroute
from testbed.drivers.membership import Joined
from testbed.drivers.smcroute import Entry, Forwarding
from testbed.language.parsing import parse
from testbed.loading import build
from testbed.metrics import table
from testbed.metrics.reception import Listening, measure
from testbed.metrics.recorded import Recorded
from testbed.plan import lab as plan
from testbed.plan import trees
from testbed.plan.assemble import network
from testbed.plan.network import Hop, Network, Spot, path
from testbed.programs.multicast import packets as records
from testbed.programs.multicast import receiver
from testbed.programs.multicast.packets import MAGIC, PACKET, RECORD, SENT, Arrival
from testbed.steps import Spawn, Wait, Write
from testbed.workloads.multicast import misfit, source_specific
from tests.strategies import examples

MS = 1_000_000
ORIGIN = 1_000_000 * MS  # t = 0 of a run, ns
EARLY = Listening(ORIGIN - 50 * MS, ORIGIN + 2000 * MS, True, 0)
NAME = st.text("abcdef", min_size=1, max_size=3)


# --- the form of packets and records


def test_the_receiver_and_the_reader_agree_on_the_form() -> None:
    assert receiver._HEAD.size + PACKET.size == RECORD.size == 36


@examples(100)
@given(st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 3, st.integers(PACKET.size, 2**32 - 1))), st.integers(0, 35))
def test_what_a_receiver_writes_is_what_is_read(rows: list[tuple[int, int, int, int]], cut: int) -> None:
    wanted = [Arrival(received, size, sequence, sent) for received, sequence, sent, size in rows]
    written = b"".join(
        receiver._HEAD.pack(a.received, a.size) + PACKET.pack(MAGIC, 7, a.sequence, a.sent) for a in wanted
    )
    assert records.arrivals(written + b"x" * cut, 7) == wanted, "a record that was cut off is left out"
    assert records.arrivals(written, 8) == [], "the packets of another stream"


def test_packets_of_others_are_left_out() -> None:
    ours = RECORD.pack(5, 100, MAGIC, 7, 1, 2)
    foreign = RECORD.pack(6, 100, b"VLC!", 7, 1, 2)
    short = RECORD.pack(6, 23, MAGIC, 7, 1, 2)  # shorter than a header: what is in the buffer is of the one before it
    assert records.arrivals(foreign + ours + short, 7) == [Arrival(5, 100, 1, 2)]


def test_streams_of_different_workloads_have_different_numbers() -> None:
    assert records.stream("video") == records.stream("video") != records.stream("video2")
    assert 0 <= records.stream("video") < 2**32


def test_memberships_have_the_layout_of_rfc_3678() -> None:
    request = receiver.membership(2, 5, "232.1.1.1", "10.0.0.1")
    start = struct.calcsize("@I0P")
    assert len(request) == start + 2 * 128
    assert struct.unpack_from("=I", request)[0] == 5
    assert request[start + 4 : start + 8] == bytes((232, 1, 1, 1))
    assert request[start + 132 : start + 136] == bytes((10, 0, 0, 1))
    assert len(receiver.membership(10, 5, "ff3e::1", "")) == start + 128


# --- figures, by hand: ten packets, one each 100 ms, of which each takes 5 ms


def sent(packets: int = 10) -> list[int]:
    return [ORIGIN + n * 100 * MS for n in range(packets)]


def arrived(*numbers: int, delay: int = 5) -> list[Arrival]:
    """The packets of these numbers, in this order; one that comes after a later one comes right after it."""
    found: list[Arrival] = []
    for n in numbers:
        due = ORIGIN + (n * 100 + delay) * MS
        found.append(Arrival(max(due, found[-1].received + MS) if found else due, 1000, n, ORIGIN + n * 100 * MS))
    return found


def figures(got: list[Arrival], its: Listening = EARLY, packets: int = 10) -> dict[str, float]:
    return {k: m.value for k, m in measure(got, sent(packets), its, ORIGIN).items()}


def test_all_packets_in_order() -> None:
    found = figures(arrived(*range(10)))
    assert tuple(sorted(found)) == tuple(sorted(table.names("receiver")))
    assert found == {
        "sent_packets": 10, "received_packets": 10, "lost_packets": 0, "loss_pct": 0, "lost_outside_gap_packets": 0,
        "reorder_packets": 0, "duplicate_packets": 0, "jitter_ms": 0, "join_ms": 5, "socket_drops": 0,
        "delay_min_ms": 5, "delay_p50_ms": 5, "delay_p90_ms": 5, "delay_p99_ms": 5, "delay_max_ms": 5,
        "gap_s": 0.1, "gap_at_s": 0.005,
        "goodput_mbps": pytest.approx(10 * 8000 / 0.905 / 1e6),
    }  # fmt: skip


def test_losses_within_the_longest_gap_and_outside_of_it() -> None:
    found = figures(arrived(0, 2, 3, 7, 8, 9))
    assert found["lost_packets"] == 4
    assert found["loss_pct"] == 40
    assert (found["gap_s"], found["gap_at_s"]) == (0.4, 0.305)
    assert found["lost_outside_gap_packets"] == 1, "number 1; 4, 5 and 6 are those of the gap"


def test_losses_at_the_beginning_count_for_who_had_joined() -> None:
    found = figures(arrived(*range(3, 10)))
    assert (found["sent_packets"], found["lost_packets"]) == (10, 3)
    assert (found["gap_s"], found["gap_at_s"], found["lost_outside_gap_packets"]) == (0.305, 0, 0)
    assert found["join_ms"] == 305, "from the first packet that was sent"


def test_losses_at_the_end_are_a_gap_too() -> None:
    found = figures(arrived(*range(6)))
    assert (found["lost_packets"], found["lost_outside_gap_packets"]) == (4, 0)
    assert found["gap_s"] == pytest.approx(0.395)
    assert found["gap_at_s"] == 0.505


def test_reordering_is_what_comes_below_the_highest_number() -> None:
    found = figures(arrived(0, 1, 4, 2, 3, 5, 6, 7, 9, 8))
    assert found["reorder_packets"] == 3, "2, 3 and 8"
    assert found["lost_packets"] == 0


def test_a_duplicate_is_neither_received_twice_nor_reordered() -> None:
    found = figures(arrived(0, 1, 1, 2, 0, *range(3, 10)))
    assert (found["received_packets"], found["duplicate_packets"], found["reorder_packets"]) == (10, 2, 0)


def test_jitter_is_that_of_rfc_3550() -> None:
    got = [Arrival(s + d * MS, 1000, n, s) for n, s, d in zip(count(), sent(3), (5, 21, 5), strict=False)]
    assert figures(got, packets=3)["jitter_ms"] == 1 + (16 - 1) / 16  # J = 16/16, then J += (16 - J) / 16


def test_who_joins_meanwhile_loses_nothing_before_its_first_packet_and_after_it_left() -> None:
    its = Listening(ORIGIN + 250 * MS, ORIGIN + 702 * MS, False, 0)
    found = figures(arrived(3, 4, 6), its)
    assert (found["sent_packets"], found["received_packets"], found["lost_packets"]) == (4, 3, 1)
    assert found["join_ms"] == 55
    assert (found["gap_s"], found["lost_outside_gap_packets"]) == (0.2, 0)


def test_a_packet_that_could_not_arrive_any_more_is_not_lost() -> None:
    # Number 7 was sent 3 ms before the leave, and packets take 5 ms.
    assert figures(arrived(3, 4, 5, 6), Listening(ORIGIN, ORIGIN + 703 * MS, False, 0))["lost_packets"] == 0
    assert figures(arrived(3, 4, 5, 6), Listening(ORIGIN, ORIGIN + 705 * MS, False, 0))["lost_packets"] == 1


def test_who_gets_nothing_lost_everything_that_was_sent_meanwhile() -> None:
    found = figures([], Listening(ORIGIN + 250 * MS, ORIGIN + 702 * MS, False, None))
    assert found == {
        "sent_packets": 5, "received_packets": 0, "lost_packets": 5, "loss_pct": 100, "lost_outside_gap_packets": 0,
        "reorder_packets": 0, "duplicate_packets": 0, "gap_s": pytest.approx(0.45), "gap_at_s": 0.25,
    }  # fmt: skip
    assert figures([])["loss_pct"] == 100
    assert figures([])["gap_s"] == 0.9


def test_a_receiver_that_was_there_when_nothing_was_sent_has_no_gap() -> None:
    found = figures([], Listening(ORIGIN + 5000 * MS, ORIGIN + 6000 * MS, False, 0))
    assert (found["sent_packets"], found["loss_pct"]) == (0, 100)
    assert "gap_s" not in found


def test_nothing_sent_measures_nothing() -> None:
    assert measure([], [], EARLY, ORIGIN).keys() == {"socket_drops"}


def test_goodput_by_the_second() -> None:
    got = arrived(*(n for n in range(30) if not 10 <= n < 15))
    series = measure(got, sent(30), Listening(ORIGIN, None, True, 0), ORIGIN)["goodput_mbps"].series
    assert [t for t, _ in series] == [1, 2, pytest.approx(2.905)]
    assert [v for _, v in series] == [pytest.approx(0.08), pytest.approx(0.04), pytest.approx(0.08 / 0.905)]


@examples(100)
@given(st.lists(st.integers(0, 29), max_size=60), st.booleans())
def test_whatever_arrives_the_figures_add_up(numbers: list[int], early: bool) -> None:
    found = figures(arrived(*numbers), Listening(ORIGIN, ORIGIN + 10_000 * MS, early, 0), packets=30)
    assert found["received_packets"] == len(set(numbers))
    assert found["duplicate_packets"] == len(numbers) - len(set(numbers))
    assert found["sent_packets"] == found["received_packets"] + found["lost_packets"]
    assert found["sent_packets"] == 30 if early or not numbers else 30 - min(numbers)
    assert 0 <= found["lost_outside_gap_packets"] <= found["lost_packets"]
    assert 0 <= found["reorder_packets"] <= max(0, found["received_packets"] - 1)
    assert found["gap_s"] >= 0


def test_sent_times_are_read_as_they_are_written() -> None:
    assert records.sent_times(SENT.pack(1) + SENT.pack(2**40) + b"cut") == [1, 2**40]


# --- groups


@pytest.mark.parametrize(
    ("group", "right", "source_only"),
    [
        ("232.0.0.1", True, True),
        ("233.0.0.1", True, False),
        ("239.255.255.255", True, False),
        ("224.0.1.0", True, False),
        ("224.0.0.251", False, False),
        ("10.0.0.1", False, False),
        ("ff3e::1", True, True),
        ("ff35::8000:1", True, True),
        ("ff3e:20::1", True, False),  # RFC 3306: made of a prefix
        ("ff1e::1", True, False),
        ("ff02::1", False, False),
        ("ff01::1", False, False),
        ("2001:db8::1", False, False),
    ],
)
def test_groups_that_routers_forward_and_those_of_one_source(group: str, right: bool, source_only: bool) -> None:
    assert (misfit(group) == "") is right
    if right:
        assert source_specific(group) is source_only


# --- trees


TREE = """
name: tree
nodes:
  s: {}
  core: {router: {multicast: true}}
  left: {router: {multicast: true}}
  right: {router: {multicast: true}}
  sw: {bridge: {}}
  a: {}
  b: {}
  c: {}
links:
  - {ends: [s:eth0, core:up]}
  - {ends: [core:l, left:up]}
  - {ends: [core:r, right:up]}
  - {ends: [left:a, a:eth0]}
  - {ends: [left:lan, sw:p0]}
  - {ends: [right:lan, sw:p1]}
  - {ends: [b:eth0, sw:p2]}
  - {ends: [right:c, c:eth0]}
workloads:
  v: {multicast: {source: s, receivers: [a, b], group: 232.1.1.1, rate: 1mbit}}
"""


def net(text: str) -> Network:
    return network(build(parse(text, "t.yaml")))


def test_routes_lead_to_receivers_and_nowhere_else() -> None:
    found = trees.entries(net(TREE))
    assert found == {
        "core": (Entry("10.0.1.1", "232.1.1.1", "up", ("l",)),),
        "left": (Entry("10.0.1.1", "232.1.1.1", "up", ("a", "lan")),),
    }, "two routers lead to the switch; one does it, or b would get each packet twice"


def test_workloads_of_one_source_and_group_share_their_routes() -> None:
    more = "  w: {multicast: {source: s, receivers: [c, a], group: 232.1.1.1, rate: 1mbit}}\n"
    found = trees.entries(net(TREE + more))
    assert found["core"] == (Entry("10.0.1.1", "232.1.1.1", "up", ("l", "r")),)
    assert found["right"] == (Entry("10.0.1.1", "232.1.1.1", "up", ("c",)),)


def test_families_have_routes_of_their_own() -> None:
    found = trees.entries(net(TREE.replace("232.1.1.1", '"ff3e::8000:1"')))
    assert found["core"] == (Entry("2001:db8:0:1::1", "ff3e::8000:1", "up", ("l",)),)


def test_a_source_sends_by_the_interface_that_leads_to_its_receivers() -> None:
    text = TREE.replace("links:\n", "links:\n  - {ends: [s:other, c:eth1]}\n")
    way = trees.way(net(text).trees["v"])
    assert (way.interface, way.source) == ("eth0", "10.0.2.1")
    assert way.receivers == (("a", "eth0"), ("b", "eth0"))


def test_a_receiver_joins_where_it_is_told_to_or_nearest_to_the_source() -> None:
    text = TREE.replace("links:\n", "links:\n  - {ends: [s:eth1, c:direct]}\n")
    near = text.replace("[a, b]", "[c]")
    assert trees.way(net(near).trees["v"]).receivers == (("c", "direct"),)
    told = text.replace("[a, b]", "[{node: c, interface: eth0}]")
    way = trees.way(net(told).trees["v"])
    assert (way.interface, way.receivers) == ("eth0", (("c", "eth0"),))


def test_a_tunnel_is_one_more_hop() -> None:
    """What a relay adds: from where it hears the packets, by its tunnel's interface, to a segment of its own."""
    tunnel = Hop("relay", "eth0", 1, "amt0", -1)
    tree = trees.grow(Spot("s", "eth0", 1), [tunnel, Hop("gateway", "amt0", -1, "lan", 2)])
    assert [h.node for h in path(tree.into, 2)] == ["gateway", "relay"]
    assert tree.depth == {1: 0, -1: 1, 2: 2}


def test_a_source_does_not_forward_what_it_sends() -> None:
    assert trees.grow(Spot("s", "eth0", 1), [Hop("s", "eth0", 1, "eth1", 2)]).depth == {1: 0}


HOPS = st.lists(st.builds(Hop, NAME, NAME, st.integers(0, 6), NAME, st.integers(0, 6)), max_size=25)


@examples(100)
@given(HOPS)
def test_a_tree_reaches_each_segment_once_by_a_shortest_way_with_one_way_into_each_router(hops: list[Hop]) -> None:
    tree = trees.grow(Spot("source", "eth0", 0), hops)
    assert set(tree.depth) == {0, *tree.into}
    for segment, hop in tree.into.items():
        assert hop.far == segment
        assert tree.depth[segment] == tree.depth[hop.near] + 1 == len(list(path(tree.into, segment)))
    incoming: dict[str, set[str]] = {}
    for hop in tree.into.values():
        incoming.setdefault(hop.node, set()).add(hop.iif)
    assert all(len(names) == 1 for names in incoming.values()), "a (S,G) route has one incoming interface"


def test_a_multicast_router_is_a_daemon_with_its_routes_that_is_awaited() -> None:
    made = plan.plan(net(TREE).topology)
    mine = [s for s in made.steps if s.node == "left" and isinstance(s, Write | Spawn | Wait)]
    write, spawn, wait = mine[:3]
    assert isinstance(write, Write)
    assert write.text == (
        "phyint up enable\nphyint a enable\nphyint lan enable\n"
        "mroute from up source 10.0.1.1 group 232.1.1.1 to a lan\n"
    )
    assert isinstance(spawn, Spawn)
    assert "smcroute-left" in spawn.argv
    assert isinstance(wait, Wait)
    assert wait.process == spawn.name
    assert wait.probe == Forwarding(("up", "a", "lan"), (Entry("10.0.1.1", "232.1.1.1", "up", ("a", "lan")),), (4, 6))
    assert {f.name for f in made.requires()} >= {"smcroute", "mroute", "mroute6"}


# --- what the kernel's tables say: as Linux 6.18 printed them (a little-endian machine)

VIFS = """Interface      BytesIn  PktsIn  BytesOut PktsOut Flags Local    Remote
 0 e0                0       0         0       0 00008 00000002 00000000
 1 e1                0       0         0       0 00008 00000003 00000000
"""
CACHE = """Group    Origin   Iif     Pkts    Bytes    Wrong Oifs
010101E8 0101000A 0          0        0        0  1:1
020101E8 0101000A 65535      3       90        0
"""
CACHE6 = """Group                            Origin                           Iif      Pkts  Bytes     Wrong  Oifs
ff3e:0000:0000:0000:0000:0000:0000:0001 2001:0db8:0000:0000:0000:0000:0000:0001 0          0        0        0  1:1
"""
IGMP = (
    "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n"
    "1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n"
    "2\te0        :     2      V3\n\t\t\t\t010101E8     1 0:00000000\t\t0\n\t\t\t\t010000E0     1 0:00000000\t\t0\n"
)
MCFILTER = (
    "Idx Device        MCA        SRC    INC    EXC\n"
    "  2     e0 0xe8010101 0x0a000101      1      0\n"
    "  2     e0 0xe8010102 0x0a000101      0      1\n"
)
IGMP6 = """1    lo              ff020000000000000000000000000001     1 0000000C 0
2    e0              ff3e0000000000000000000000000001     1 00000004 0
"""
MCFILTER6 = (
    "Idx Device                Multicast Address                   Source Address    INC    EXC\n"
    "  2     e0 ff3e0000000000000000000000000001 20010db8000000000000000000000001      1      0\n"
)


def test_routes_are_read_from_the_kernel_and_unresolved_ones_are_none() -> None:
    interfaces = smcroute.parse_interfaces(VIFS)
    assert interfaces == {0: "e0", 1: "e1"}
    assert smcroute.parse_cache(CACHE, interfaces) == (Entry("10.0.1.1", "232.1.1.1", "e0", ("e1",)),)
    assert smcroute.parse_cache(CACHE6, interfaces) == (Entry("2001:db8::1", "ff3e::1", "e0", ("e1",)),)


@pytest.mark.parametrize(
    ("wanted", "lacks"),
    [
        (Entry("10.0.1.1", "232.1.1.1", "e0", ("e1",)), False),
        (Entry("10.0.1.1", "232.1.1.1", "e1", ("e1",)), True),
        (Entry("10.0.1.1", "232.1.1.1", "e0", ("e1", "e0")), True),
        (Entry("10.0.1.2", "232.1.1.1", "e0", ("e1",)), True),
    ],
)
def test_a_route_is_there_with_exactly_its_interfaces_or_not(wanted: Entry, lacks: bool) -> None:
    interfaces = smcroute.parse_interfaces(VIFS)
    seen = [(4, interfaces, smcroute.parse_cache(CACHE, interfaces))]
    assert bool(smcroute.lacking(Forwarding(("e0", "e1"), (wanted,), (4,)), seen)) is lacks
    assert smcroute.lacking(Forwarding(("e2",), (), (4,)), seen) == "no IPv4 multicast interfaces: e2"


@pytest.mark.parametrize(
    ("joined", "lacks"),
    [
        (Joined("232.1.1.1", "e0", "10.0.1.1"), ""),
        (Joined("232.1.1.1", "e0"), ""),
        (Joined("232.1.1.1", "e0", "10.0.1.2"), "no such source in /proc/net/mcfilter"),
        (Joined("232.1.1.2", "e0", "10.0.1.1"), "no such group in /proc/net/igmp"),
    ],
)
def test_a_membership_is_there_or_not(joined: Joined, lacks: str) -> None:
    assert membership.lacking(joined, 2, IGMP, MCFILTER) == lacks
    assert membership.lacking(joined, 1, IGMP, MCFILTER) == "no such group in /proc/net/igmp"


def test_a_membership_of_ipv6_is_there() -> None:
    assert membership.lacking(Joined("ff3e::1", "e0", "2001:db8::1"), 2, IGMP6, MCFILTER6) == ""
    assert membership.lacking(Joined("ff3e::1", "e0", "2001:db8::2"), 2, IGMP6, MCFILTER6)


def test_an_interface_that_the_kernel_leaves_out_of_the_list_of_sources_says_nothing() -> None:
    empty = MCFILTER.splitlines()[0] + "\n"
    assert membership.lacking(Joined("232.1.1.1", "e0", "10.0.1.1"), 2, IGMP, empty) == ""


# --- what of a run is read


def test_a_run_without_its_files_measures_nothing(tmp_path: Path) -> None:
    assert net(TREE).topology.workloads["v"].workload().read("v", Recorded(tmp_path)) == {}


def test_many_receivers_are_few_lines() -> None:
    from testbed.cli import present
    from testbed.metrics.measured import Measured
    from testbed.report.report import Report

    hosts = "".join(f"  h{n}: {{}}\n" for n in range(50))
    links = "".join(f"  - {{ends: [sw:p{n}, h{n}:eth0]}}\n" for n in range(50))
    names = ", ".join(f"h{n}" for n in range(50))
    text = (
        f"name: many\nnodes:\n  s: {{}}\n  sw: {{bridge: {{}}}}\n{hosts}links:\n  - {{ends: [s:eth0, sw:up]}}\n{links}"
        f"workloads: {{v: {{multicast: {{source: s, receivers: [{names}], group: 232.1.1.1, rate: 1mbit}}}}}}\n"
    )
    metrics = {f"v.h{n}.loss_pct": Measured(float(n == 42), "%") for n in range(50)}
    shown = present.report(Report(Path(), net(text).topology, metrics, (), (), ()), "here").splitlines()
    assert len(shown) < 20
    assert shown[4].split()[0] == "h42", "who lost most comes first"
    assert any("40 more receivers" in row for row in shown)
