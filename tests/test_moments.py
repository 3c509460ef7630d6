"""When events happen: repeated, undone and gradual ones, and how the qdiscs of a link turn into others."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from testbed.drivers import tc
from testbed.drivers.tc import Shape
from testbed.language.moments import driven, moments
from testbed.language.parsing import parse
from testbed.language.topology import Topology
from testbed.loading import build
from testbed.plan.lab import plan
from testbed.plan.run import run_steps
from testbed.steps import Configure

LAB = """\
name: lab
families: [ipv4]
nodes: {a: {}, b: {}}
links: [{name: l, ends: [a:eth0, b:eth0]%s}]
duration: %s
events:
%s
"""


def lab(*events: str, link: str = "", seconds: str = "10s") -> Topology:
    rows = "\n".join(f"  - {{{e}}}" for e in events)
    return build(parse(LAB % (f", {link}" if link else "", seconds, rows), "lab.yaml"))


def steps(topology: Topology, node: str = "a") -> list[str]:
    """What happens at a node to its end of the link, in the order of time: time and command."""
    found = [s for s in run_steps(plan(topology)) if isinstance(s, Configure) and s.at is not None and s.node == node]
    return [f"{s.at:g} {s.request}".replace(" dev eth0", "") for s in sorted(found, key=lambda s: s.at or 0)]


def test_a_link_that_flaps_goes_down_every_two_seconds_until_the_run_ends_and_comes_up_after_half_a_second() -> None:
    found = steps(lab("at: 1s, every: 2s, link: l, down: true, for: 500ms", seconds="20s"))
    down = [f"{t} ip link set eth0 down" for t in range(1, 20, 2)]
    up = [f"{t}.5 ip link set eth0 up" for t in range(1, 20, 2)]
    assert found == [row for pair in zip(down, up, strict=True) for row in pair]


def test_what_happens_a_number_of_times_happens_as_often_and_no_more() -> None:
    found = steps(lab("at: 1s, every: 100ms, times: 3, link: l, set: {mtu: 1400}, for: 50ms"))
    assert [row.split()[0] for row in found] == ["1", "1.05", "1.1", "1.15", "1.2", "1.25"]
    assert [row.split()[-1] for row in found] == ["1400", "1500"] * 3


def test_what_is_undone_is_as_it_was_before_and_other_changes_stay() -> None:
    text = "at: 1s, link: l, set: {rate: 1mbit}, for: 2s"
    found = moments(lab(text, "at: 2s, link: l, set: {mtu: 1400}", link="rate: 5mbit, reverse: {rate: 2mbit}"))
    seen = [(m.event.at, m.new.shape("forward").rate, m.new.shape("reverse").rate, m.new.mtu) for m in found if m.new]
    assert seen == [
        (1.0, 1_000_000, 1_000_000, None),
        (2.0, 1_000_000, 1_000_000, 1400),
        (3.0, 5_000_000, 2_000_000, 1400),
    ]


def test_a_ramp_is_a_straight_line_to_the_value() -> None:
    found = moments(lab("at: 1s, link: l, ramp: 2s, set: {rate: 30mbit}", link="rate: 10mbit"))
    for m in found:
        assert m.new is not None
        assert m.new.shape("forward").rate == pytest.approx(10e6 + 10e6 * (m.event.at - 1), abs=1)
    assert found[-1].event.at == 3
    assert max(b.event.at - a.event.at for a, b in pairwise(found)) < 0.021


@pytest.mark.parametrize(
    ("link", "change", "wanted"),
    [
        ("rate: 5mbit", "rate: null", ["qdisc del root"]),
        ("rate: 5mbit, reverse: {rate: 1mbit}", "forward: {rate: null}", ["qdisc del root"]),
        ("rate: 5mbit", "forward: {rate: null}", ["qdisc del root"]),
        ("delay: 5ms", "delay: null", ["qdisc del root"]),
        ("loss: 5%", "loss: null", ["qdisc del root"]),
        ("delay: 5ms, rate: 5mbit", "rate: null", ["qdisc del parent 1:1", "qdisc replace root handle 1: netem"]),
        ("delay: 5ms, rate: 5mbit", "delay: null", ["qdisc del root", "qdisc replace root handle 2: tbf"]),
        ("queue: {limit: 64kb}", "queue: null", ["qdisc del root"]),
        ("rate: 5mbit, queue: fq_codel", "queue: null", ["qdisc del parent 2:1", "qdisc replace root handle 2: tbf"]),
        ("forward: {rate: 5mbit}", "forward: null", ["qdisc del root"]),
        ("rate: 5mbit", "delay: 5ms", ["qdisc replace root handle 1: netem", "qdisc replace parent 1:1 handle 2: tbf"]),
        ("rate: 5mbit", "rate: 6mbit", ["qdisc replace root handle 2: tbf"]),
        ("rate: 5mbit, delay: 5ms", "delay: 6ms", ["qdisc replace root handle 1: netem"]),
    ],
)
def test_null_removes_what_a_link_had_and_an_event_states_only_what_differs(
    link: str, change: str, wanted: list[str]
) -> None:
    found = steps(lab(f"at: 1s, link: l, set: {{{change}}}", link=link))
    assert [next(w for w in [*wanted, row] if row.removeprefix("1 tc ").startswith(w)) for row in found] == wanted


def test_a_rate_that_changes_within_100_ms_is_a_class_whose_bucket_is_not_refilled_and_others_stay_tbf() -> None:
    fast = lab(
        "at: 1s, link: l, set: {reverse: {rate: 2mbit}}",
        "at: 1100ms, link: l, set: {reverse: {rate: 3mbit}}",
        link="rate: 5mbit",
    )
    assert driven(fast) == {(0, "reverse")}
    assert steps(fast, "a") == []
    assert [row.split(" burst")[0] for row in steps(fast, "b")] == [
        "1 tc class replace parent 5: classid 5:1 htb rate 2000000bit",
        "1.1 tc class replace parent 5: classid 5:1 htb rate 3000000bit",
    ]
    slow = lab("at: 1s, link: l, set: {rate: 2mbit}", "at: 1200ms, link: l, set: {rate: 3mbit}", link="rate: 5mbit")
    assert driven(slow) == frozenset()


@pytest.mark.parametrize("limit", [None, 61440])
def test_a_limit_in_bytes_is_the_same_below_htb_as_in_tbf_and_frames_are_split_in_both(limit: int | None) -> None:
    want = Shape(rate=5_000_000, limit=limit)
    (plain,) = tc.shape("eth0", want)
    below = tc.driven("eth0", want)[-1]
    assert isinstance(below, tc.Qdisc)
    for q in (plain, below):
        assert isinstance(q.options, tc.Tbf)
        assert q.options.limit == (limit or tc.depth(5_000_000))
    assert isinstance(below.options, tc.Tbf)
    assert below.options.burst == tc.FRAME


Chain = Callable[[str, Shape], tuple[tc.Shaper, ...]]
SHAPES = [
    Shape(),
    Shape(rate=10**6),
    Shape(rate=10**6, queue="fq_codel"),
    Shape(delay=0.01),
    Shape(delay=0.01, rate=10**6),
    Shape(delay=0.01, rate=10**6, queue="pfifo", limit=10),
    Shape(delay=0.01, queue="pfifo", limit=10),
    Shape(limit=10_000),
]


@pytest.mark.parametrize("old", SHAPES, ids=str)
@pytest.mark.parametrize("new", SHAPES, ids=str)
@pytest.mark.parametrize("chain", [tc.shape, tc.driven])
def test_any_shaping_turns_into_any_other_as_the_kernel_replaces_and_deletes(
    old: Shape, new: Shape, chain: Chain
) -> None:
    """A replaced or deleted qdisc takes all below it along, and a handle is used once."""
    before, after = chain("eth0", old), chain("eth0", new)
    there = {s.parent: s for s in before}
    for request in tc.reshaped(before, after):
        if isinstance(request, tc.QdiscDel):
            assert there[request.added.parent].handle == request.added.handle
            _cut(there, request.added.parent)
            continue
        assert isinstance(request, tc.Qdisc | tc.HtbClass)
        if request.parent in there and there[request.parent].handle != request.handle:
            _cut(there, request.parent)
        others = {s.handle for parent, s in there.items() if parent != request.parent}
        assert request.handle not in others, f"{request}: a qdisc of that handle is elsewhere"
        there[request.parent] = request
    assert there == {s.parent: s for s in after}


def _cut(there: dict[int, tc.Shaper], parent: int) -> None:
    """Forget a qdisc and all below it."""
    gone = there.pop(parent, None)
    for below in [p for p in there if gone is not None and p >> 16 == gone.handle >> 16]:
        _cut(there, below)
