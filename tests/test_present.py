"""What is shown of links, images, events and large runs, from records made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.cli import present
from testbed.drivers.nl80211 import Bss, Link
from testbed.errors import LabError
from testbed.lab.look import Seen
from testbed.language.topology import Event, Topology
from testbed.machines.guest.image import Image
from testbed.metrics.measured import Measured
from testbed.report.effects import Effect, describe
from testbed.report.report import Report
from testbed.report.together import Outcome, Which

LAB = Topology.model_validate({"name": "l", "nodes": {"a": {}, "b": {}}, "links": [{"ends": ["a:e", "b:e"]}]})


def wlan(name: str, mld: bool, *heard: Bss) -> Seen:
    links = (Link(0, "02:00:00:00:00:01", 2412, 20), Link(1, "02:00:00:00:00:02", 0, 0))
    return Seen(
        name, "UP", 1500, "02:00:00:00:00:01", (), (), 0, 0, links=links if mld else links[:1], heard=heard, mld=mld
    )


def test_a_link_has_its_channel_and_what_a_station_hears_of_it() -> None:
    bss = Bss(0, "02:00:00:00:00:09", 2412, -30.0, 40, "")
    assert present.links([wlan("wlan0", True, bss), wlan("wlan1", False)]).splitlines() == [
        "  wlan0  mlo_link 0  2412 MHz    20 MHz wide  address 02:00:00:00:00:01"
        "  bssid 02:00:00:00:00:09  -30 dBm  beacon 40 ms ago",
        "  wlan0  mlo_link 1  not active               address 02:00:00:00:00:02",
        "  wlan1  link 0      2412 MHz    20 MHz wide  address 02:00:00:00:00:01",
    ]


def test_nothing_is_shown_of_interfaces_without_links() -> None:
    assert present.links([]) == ""


def test_a_star_marks_the_image_that_is_used() -> None:
    manifest = {"files": {"rootfs": {"bytes": 3 << 20}}, "packages": {"a": "1"}, "built": "today", "kernel": "6.18"}
    text = present.images([Image(Path("x"), "aa", manifest), Image(Path("y"), "bb", manifest)], "bb")
    assert text.splitlines() == [
        "   aa  today  6.18  1 packages  3 MiB",
        "*  bb  today  6.18  1 packages  3 MiB",
    ]


def test_a_case_without_results_is_its_error() -> None:
    lost = Outcome(Which("l", "rate=1"), None, None, LabError("no space left"))
    assert present.outcome(lost, "") == "l rate=1: error\n\nfailed: no space left"
    whole = Outcome(Which("l", ""), Path("x"), Report(Path("x"), LAB, {}, (), (), ()))
    assert present.outcome(whole, "x") == "l: no checks\n\nresults in x"


def test_a_run_of_many_workloads_fits_on_a_screen_with_the_same_columns_for_all() -> None:
    works = {f"w{n}": {"ping": {"from": "a", "to": "b"}} for n in range(12)}
    top = Topology.model_validate(
        {**LAB.model_dump(include={"name", "nodes"}), "links": [{"ends": ["a:e", "b:e"]}], "workloads": works}
    )
    keys = ("sent_packets", "received_packets", "loss_pct", "duplicate_packets", "rtt_min_ms", "rtt_p50_ms")
    metrics = {f"w{n}.{key}": Measured(n + 0.5, "") for n in range(12) for key in keys}
    del metrics["w3.rtt_p50_ms"]
    text = present.report(Report(Path("x"), top, metrics, (), (), ()), "x")
    assert "measured (metrics.json has all)" in text
    rows = text.splitlines()
    assert rows[2].split() == ["loss_pct", "rtt_p50_ms"]
    assert rows[3].split() == ["w0", "0.5", "0.5"]
    assert rows[6].split() == ["w3", "3.5", "-"]


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (Effect(1.0, "x", 1.0, 1.5), "took effect at 1.50 s"),
        (Effect(1.0, "x", 1.0, None), "not seen to take effect"),
        (Effect(1.0, "x", None, None), "not performed"),
    ],
)
def test_an_event_says_what_is_known_of_its_effect(effect: Effect, words: str) -> None:
    assert words in present.report(Report(Path("x"), LAB, {}, (), (), (), (effect,)), "x")


def test_of_many_receivers_those_that_lost_most_are_shown() -> None:
    nodes: dict[str, object] = {f"n{n}": {} for n in range(14)}
    links = [{"ends": [f"n{n}:e", f"s:e{n}"]} for n in range(14)]
    video = {"multicast": {"source": "s", "receivers": list(nodes), "group": "232.1.1.1", "rate": "1mbit"}}
    top = Topology.model_validate({"name": "l", "nodes": {**nodes, "s": {}}, "links": links, "workloads": {"v": video}})
    metrics = {f"v.n{n}.loss_pct": Measured(n, "%") for n in range(13)} | {"v.sent_packets": Measured(5, "packet")}
    rows = present.report(Report(Path("x"), top, metrics, (), (), ()), "x").splitlines()
    assert rows[2] == "v: 5 packets from s to 232.1.1.1"
    assert [row.split()[0] for row in rows[4:14]] == ["n13", *(f"n{n}" for n in range(12, 3, -1))], "nothing is worst"
    assert rows[14] == "  ... and 4 more receivers (metrics.json has all)"


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"link": "l", "down": True}, "link l: down"),
        ({"link": "l", "down": False}, "link l: up again"),
        ({"link": "l", "set": {"rate": "1mbit", "delay": "1ms"}}, "link l: delay changes, rate changes"),
        ({"node": "a", "mlo_link": 1, "freq": 5200}, "a: mlo_link 1 goes to 5200 MHz"),
        ({"node": "a", "mlo_link": 1, "remove": True}, "a: mlo_link 1 is removed"),
        ({"node": "a", "mlo_link": 1, "remove": False}, "a: mlo_link 1 returns"),
        ({"node": "a", "rejoin": True}, "a: joins again"),
        ({"node": "a", "restart": "amt_relay"}, "a: amt_relay restarts"),
        ({"node": "a", "address": {"interface": "e", "add": "10.0.0.1/8"}}, "a: e 10.0.0.1/8"),
        (
            {"node": "a", "address": {"interface": "e", "remove": "10.0.0.2/8", "add": "10.0.0.1/8"}},
            "a: e 10.0.0.2/8 -> 10.0.0.1/8",
        ),
        ({"node": "a", "endpoint": {"interface": "e"}, "action": "add"}, "a: endpoint e add"),
        ({"node": "a", "endpoint": {"address": "10.0.0.1"}, "action": "remove"}, "a: endpoint 10.0.0.1 remove"),
        ({"node": "a", "sysctl": {"net.ipv4.ip_forward": 1}}, "a: net.ipv4.ip_forward=1"),
        ({"node": "a", "command": ["echo", "x"]}, "a: echo x"),
    ],
)
def test_an_event_is_described_in_a_few_words(event: dict[str, object], words: str) -> None:
    assert describe(Event.model_validate({"at": "1s", **event})) == words
