"""Workload iperf3: its command lines, and its figures from reports as iperf3 writes them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from testbed.language.parsing import parse
from testbed.loading import build
from testbed.metrics.recorded import Recorded
from testbed.plan.lab import plan
from testbed.plan.run import run_steps
from testbed.steps import Spawn
from testbed.workloads.iperf3_report import Interval, Part, Said, Side, figures
from testbed.workloads.ping import Ping


def client(flow: str, links: str = "{ends: [a:eth0, b:eth0]}", events: str = "[]") -> list[str]:
    """Return the words of the client's command."""
    text = f"name: t\nnodes: {{a: {{}}, b: {{}}, r: {{router: {{}}}}}}\nlinks: [{links}]\nevents: {events}\n"
    made = plan(build(parse(f"{text}workloads:\n  f: {{iperf3: {{from: a, to: b{flow}}}}}\n", "t.yaml")))
    (found,) = [s.argv for s in run_steps(made) if isinstance(s, Spawn) and s.name == "f.client"]
    return list(found)


def option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


@pytest.mark.parametrize(
    ("flow", "stream"),
    [
        (", rate: 4mbit, parallel: 4", "1000000"),
        (", rate: 4mbit, parallel: 4, protocol: udp", "1000000"),
        (", rate: 64kbit", "64000"),
        (", rate: 8bit, parallel: 9", "1"),  # 0 would be no limit
    ],
)
def test_streams_together_offer_the_rate_of_the_flow(flow: str, stream: str) -> None:
    assert option(client(flow), "-b") == stream


WAY = "{ends: [a:eth0, r:a]}, {name: slow, ends: [r:b, b:eth0], rate: 8mbit, reverse: {rate: 1mbit}}"


@pytest.mark.parametrize(
    ("flow", "links", "events", "block"),
    [
        ("", "{ends: [a:eth0, b:eth0]}", "[]", None),  # iperf3's own, 128 kB
        (", rate: 64kbit", "{ends: [a:eth0, b:eth0]}", "[]", 80),
        (", rate: 1mbit, parallel: 2", "{ends: [a:eth0, b:eth0]}", "[]", 625),
        (", rate: 1mbit, length: 1kb", "{ends: [a:eth0, b:eth0]}", "[]", 1024),
        (", rate: 1mbit, protocol: udp", "{ends: [a:eth0, b:eth0]}", "[]", None),
        ("", WAY, "[]", 5000),  # half of what the link lets through, in tenths of a tenth of a second
        (", reverse: true", WAY, "[]", 625),
        (", rate: 100mbit", WAY, "[]", 5000),
        ("", WAY, "[{at: 1s, link: slow, set: {rate: 80kbit}}]", 50),
        ("", f"{WAY}, {{ends: [a:eth1, b:eth1], rate: 80mbit}}", "[]", 50000),  # the widest way
    ],
)
def test_an_interval_of_a_tenth_of_a_second_has_ten_blocks_or_more(
    flow: str, links: str, events: str, block: int | None
) -> None:
    assert option(client(flow, links, events), "-l") == (None if block is None else str(block))


@pytest.mark.parametrize("seconds", ["15", "15s", "15000ms"])
@pytest.mark.parametrize("at", ["7", "7s", "7.0"])
def test_a_length_of_time_is_in_seconds_with_or_without_a_unit(seconds: str, at: str) -> None:
    words = client(
        f", seconds: {seconds}, at: {at}", events=f"[{{at: {at}, node: a, sysctl: {{net.ipv4.tcp_sack: 0}}}}]"
    )
    assert option(words, "-t") == "15"


def reported(*rates: float, lost: int = 0, retransmits: int = 0) -> Said:
    """Return a report of intervals of 0.1 s with these rates (Mbit/s)."""
    parts = [
        Part(n / 10, (n + 1) / 10, round(rate * 1e6 / 80), lost_packets=lost, packets=10, retransmits=retransmits)
        for n, rate in enumerate(rates)
    ]
    return Said([Interval(p, streams=[p]) for p in parts])


def test_a_window_has_the_intervals_in_it_on_the_clock_of_the_run() -> None:
    """A flow that began at 2 s: 1 Mbit/s for a second, then 3."""
    said = reported(*[1.0] * 10, *[3.0] * 10, lost=1, retransmits=2)
    side = Side(said, began=2.0, seen=True)
    whole = figures("tcp", side, side, False, 0.1)
    assert whole["goodput_mbps"].value == pytest.approx(2)
    assert whole["start_s"].value == 2
    part = figures("tcp", side, side, False, 0.1, lambda t: 3 <= t <= 3.5)
    assert part["goodput_mbps"].value == pytest.approx(3)
    assert part["received_bytes"].value == pytest.approx(3e6 / 8 / 2)
    assert part["retransmits"].value == 10
    assert figures("udp", side, side, False, 0.1, lambda t: t > 3)["loss_pct"].value == 10
    assert figures("tcp", side, side, False, 0.1, lambda t: t > 9) == {}


def test_datagrams_that_came_late_are_lost_in_one_interval_and_found_in_the_next() -> None:
    """What iperf3 3.12 wrote where four datagrams of an interval came in the next one: -4 as 64 bits without a sign."""
    part = '{"start": %s, "end": %s, "bytes": 1000, "packets": 10, "lost_packets": %s, "sender": false}'
    rows = [part % row for row in ((0, 0.1, 4), (0.1, 0.2, 18446744073709551612))]
    text = "[" + ", ".join(f'{{"sum": {row}, "streams": [{row}]}}' for row in rows) + "]"
    said = Said(msgspec.json.decode(text, type=list[Interval]))
    side = Side(said, began=0.0, seen=True)
    assert figures("udp", side, side, False, 0.1)["loss_pct"].value == 0
    for wrong in ("9223372036854775808", "1" * 40, "-9223372036854775808"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(part % (0, 0.1, wrong), type=Part)


def test_a_window_of_a_ping_has_the_requests_that_were_sent_in_it(tmp_path: Path) -> None:
    """Ten requests a second from 1 s on; the third second's are lost, and those after it take 20 ms."""
    work = Ping.model_validate({"from": "a", "to": "b", "at": "1s", "seconds": 4, "interval": "100ms"})
    (tmp_path / "a").mkdir()
    rows = [
        f"[{1000 + 1 + n / 10 + ms / 1e3:.6f}] 64 bytes from 10.0.0.1: icmp_seq={n + 1} ttl=64 time={ms} ms"
        for n in range(40)
        if not 20 <= n < 30
        for ms in [20.0 if n >= 30 else 10.0]
    ]
    (tmp_path / "a/p.ping.txt").write_text("\n".join([*rows, "40 packets transmitted, 30 received, 25% packet loss"]))

    def within(begin: float, end: float) -> dict[str, float]:
        folder = Recorded(tmp_path, origin=5.0, real=1000.0, window=(begin, end))
        return {key: m.value for key, m in work.read("p", folder).items()}

    assert within(0.95, 2.95)["loss_pct"] == 0
    assert within(0.95, 2.95)["rtt_max_ms"] == 10
    assert within(2.95, 3.95)["loss_pct"] == 100
    assert within(1.95, 3.95)["loss_pct"] == 50
    assert within(3.95, 4.95)["rtt_min_ms"] == 20
    assert within(9, 10) == {}
