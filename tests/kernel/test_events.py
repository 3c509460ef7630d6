"""Events of links, by what the kernel itself says of qdiscs, carriers and bytes."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from tests.conftest import Need, testbed

pytestmark = pytest.mark.kernel


def run(tmp_path: Path, text: str, name: str) -> Path:
    """Run a topology named `events` and return its folder."""
    file = tmp_path / "topology.yaml"
    file.write_text(text)
    done = testbed("run", str(file), "--name", name, "--results", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr + done.stdout
    return (tmp_path / "results/events/latest").resolve()


REMOVED = """
name: events
families: [ipv4]
nodes: {a: {}, b: {}}
links: [{name: l, ends: [a:eth0, b:eth0], rate: 5mbit}]
duration: 900ms
workloads:
  one: {command: {node: a, argv: [tc, qdisc, show, dev, eth0]}}
  both: {command: {node: a, argv: [tc, qdisc, show, dev, eth0], at: 400ms}}
  back: {command: {node: a, argv: [tc, qdisc, show, dev, eth0], at: 800ms}}
  other: {command: {node: b, argv: [tc, qdisc, show, dev, eth0], at: 400ms}}
events:
  - {at: 200ms, link: l, set: {forward: {rate: null}}, for: 400ms}
  - {at: 300ms, link: l, set: {reverse: {rate: 3mbit}}}
"""


def test_a_rate_that_is_set_to_null_is_removed_and_one_of_a_while_comes_back(
    tmp_path: Path, name: str, need: Need
) -> None:
    need("tbf")
    folder = run(tmp_path, REMOVED, name)
    seen = {w: (folder / f"{w}.command.out").read_text() for w in ("a/one", "a/both", "a/back", "b/other")}
    assert "tbf 2: root refcnt 2 rate 5Mbit" in seen["a/one"]
    assert "tbf" not in seen["a/both"]
    assert "tbf 2: root refcnt 2 rate 5Mbit" in seen["a/back"]
    assert "tbf 2: root refcnt 2 rate 3Mbit" in seen["b/other"]
    events = json.loads((folder / "verdict.json").read_text())["events"]
    assert [e["at"] for e in events] == [0.2, 0.3, 0.6]
    assert all(e["performed"] is not None for e in events)


FLAP = """
name: events
nodes: {a: {}, b: {}}
links: [{name: l, ends: [a:eth0, b:eth0]}]
duration: 1s
workloads:
  before: {command: {node: a, argv: [cat, /sys/class/net/eth0/carrier_down_count]}}
  after: {command: {node: a, argv: [cat, /sys/class/net/eth0/carrier_down_count], at: 950ms}}
events: [{at: 100ms, every: 200ms, times: 4, link: l, down: true, for: 100ms}]
"""


def test_a_link_that_flaps_four_times_loses_its_carrier_four_times(tmp_path: Path, name: str) -> None:
    folder = run(tmp_path, FLAP, name)
    before, after = (int((folder / f"a/{when}.command.out").read_text()) for when in ("before", "after"))
    assert after - before == 4


@pytest.mark.quiet
def test_a_rate_that_changes_every_10_ms_lets_through_what_these_rates_make(
    tmp_path: Path, name: str, need: Need
) -> None:
    need("htb", "iperf3")
    draw, rates = Random(2), [20.0]
    for _ in range(399):
        rates.append(min(60.0, max(2.0, rates[-1] * draw.lognormvariate(0, 0.25))))
    events = "".join(f"  - {{at: {10 * n}ms, link: l, set: {{rate: {rates[n]:.3f}mbit}}}}\n" for n in range(1, 400))
    text = (
        "name: events\nfamilies: [ipv4]\nnodes: {a: {}, r: {router: {}}, b: {}}\n"
        "links:\n  - {ends: [a:eth0, r:eth0]}\n  - {name: l, ends: [r:eth1, b:eth0], rate: 20mbit}\n"
        "workloads:\n  u: {iperf3: {from: a, to: b, protocol: udp, rate: 70mbit, length: 1400b, seconds: 5}}\n"
    )
    folder = run(tmp_path, f"{text}events:\n{events}", name)
    found = json.loads((folder / "metrics.json").read_text())["b.eth0.rx_bytes"]["series"]
    seen = [(t, v) for t, v in found if 0.5 <= t <= 4]
    (first, before), (last, after) = seen[0], seen[-1]
    wanted = sum(rates[int(n / 10)] * 1e6 / 8 / 1000 for n in range(int(first * 1000), int(last * 1000)))
    assert after - before == pytest.approx(wanted, rel=0.01)


ECMP = """
name: events
nodes: {h: {}, l: {router: {}}, s1: {router: {}}, s2: {router: {}}, m: {router: {}}, d: {}, e: {}}
routing: ecmp
links:
  - {ends: [h:eth0, l:h]}
  - {name: up, ends: [l:a, s1:a]}
  - {name: low, ends: [l:b, s2:a]}
  - {ends: [s1:b, m:a]}
  - {ends: [s2:b, m:b]}
  - {ends: [m:d, d:eth0]}
  - {ends: [m:e, e:eth0]}
duration: 900ms
workloads:
  at0: {command: {node: l, argv: [sh, -c, &asked "ip -j route show default; ip -j -6 route show default"]}}
  at1: {command: {node: l, argv: [sh, -c, *asked], at: 200ms}}
  at2: {command: {node: l, argv: [sh, -c, *asked], at: 400ms}}
  at3: {command: {node: l, argv: [sh, -c, *asked], at: 600ms}}
  at4: {command: {node: l, argv: [sh, -c, *asked], at: 800ms}}
events:
  - {at: 100ms, link: up, down: true, for: 400ms}
  - {at: 300ms, link: low, down: true, for: 400ms}
"""


def test_next_hops_go_and_come_with_their_links(tmp_path: Path, name: str, need: Need) -> None:
    need("ipv6", "multipath-seed")
    folder = run(tmp_path, ECMP, name)
    seen = []
    for n in range(5):
        rows = (folder / f"l/at{n}.command.out").read_text().splitlines()
        alive = []
        for route in [route for row in rows for route in json.loads(row)]:
            hops = route.get("nexthops", [route])
            alive.append({h["dev"] for h in hops if not {"dead", "linkdown"} & set(h.get("flags", ()))})
        seen.append(alive)
    both, low, up = [{"a", "b"}] * 2, [{"b"}] * 2, [{"a"}] * 2
    assert seen[0] == both
    assert seen[1] == low
    assert [s for s in seen[2] if s] == []
    assert seen[3] == up
    assert seen[4] == both


@pytest.mark.quiet
def test_a_link_follows_its_trace_through_outages_to_three_per_cent(tmp_path: Path, name: str, need: Need) -> None:
    need("htb", "iperf3")
    draw = Random(3)
    rates = [0.0 if draw.random() < 0.4 else draw.uniform(2, 40) for _ in range(400)]
    (tmp_path / "lte.csv").write_text("t,bw\n" + "".join(f"{10 * n},{r}\n" for n, r in enumerate(rates)))
    text = (
        "name: events\nfamilies: [ipv4]\nnodes: {a: {}, r: {router: {}}, b: {}}\n"
        "links:\n  - {ends: [a:eth0, r:eth0]}\n  - name: l\n    ends: [r:eth1, b:eth0]\n    forward:\n"
        "      trace: {file: lte.csv, columns: {time: {column: t, unit: ms}, rate: {column: bw, unit: mbit}}}\n"
        "workloads:\n  u: {iperf3: {from: a, to: b, protocol: udp, rate: 60mbit, length: 1472b, seconds: 5}}\n"
    )
    folder = run(tmp_path, text, name)
    found = json.loads((folder / "metrics.json").read_text())["b.eth0.rx_bytes"]["series"]
    (first, before), *_, (last, after) = [(t, v) for t, v in found if 0.5 <= t <= 4]
    wanted = sum(rates[int(n / 10)] * 1e6 / 8 / 1000 for n in range(int(first * 1000), int(last * 1000)))
    # Each outage lets a frame out early and takes its time from what follows: 0.7 % less in all was seen.
    assert after - before == pytest.approx(wanted, rel=0.03)
    rows = [json.loads(row) for row in (folder / "trace.jsonl").read_text().splitlines()]
    assert [r["at"] for r in rows] == sorted(r["at"] for r in rows)
    assert {(r["node"], r["dev"]) for r in rows} == {("r", "eth1")}
