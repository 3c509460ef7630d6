"""Workload iperf3: its command lines, and its figures from reports as iperf3 writes them."""

from __future__ import annotations

import pytest

from testbed.language.parsing import parse
from testbed.loading import build
from testbed.plan.lab import plan
from testbed.plan.run import run_steps
from testbed.steps import Spawn


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
