"""The kernel sends packets where the routes that are not merged would: asked from every node about every address."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import pytest

import testbed as api
from testbed.loading import load
from testbed.plan.lab import plan
from tests import unmerged
from tests.conftest import Need
from tests.strategies import Data

pytestmark = pytest.mark.kernel

Pair = tuple[str, str]
NAMES = [f"r{n}" for n in range(9)]
SHAPES: dict[str, list[Pair]] = {
    "chain": list(pairwise(NAMES)),
    "tree": [(NAMES[(n - 1) // 2], NAMES[n]) for n in range(1, 9)],
    "ring": [*pairwise(NAMES), (NAMES[-1], NAMES[0])],
    "mesh": list(combinations(NAMES[:6], 2)),
}


def lab(pairs: list[Pair], more: Callable[[list[Data], dict[str, Data]], None]) -> Data:
    names = list(dict.fromkeys(n for pair in pairs for n in pair))
    nodes: dict[str, Data] = {n: {"router": {}} for n in names}
    links: list[Data] = [{"ends": [f"{a}:to-{b}", f"{b}:to-{a}"]} for a, b in pairs]
    for n in names[::2]:  # hosts behind some
        nodes[f"h{n}"] = {}
        links.append({"ends": [f"{n}:lan", f"h{n}:eth0"]})
    more(links, nodes)
    return {"name": "routes", "nodes": nodes, "links": links}


def planned(_: list[Data], __: dict[str, Data]) -> None:
    """All addresses are planned."""


def stated(links: list[Data], nodes: dict[str, Data]) -> None:
    """Some links have addresses of their author, far from the planned ones and between them; r0 has own routes."""
    lan = next(n for n, link in enumerate(links) if link["ends"][0] == "r0:lan")
    for n in sorted({*range(0, len(links), 3), lan}):
        near, far = (
            (f"10.0.{n + 1}.{{}}/29", f"2001:db8:0:{n + 1}::{{}}/80"),
            (f"10.{n + 1}.0.{{}}/16", f"fd00:{n}::{{}}/48"),
        )
        links[n]["addresses"] = [[a.format(e) for a in (near if n % 2 else far)] for e in (1, 2)]
    one, other = ([a.partition("/")[0] for a in links[n]["addresses"][1]] for n in (0, lan))
    nodes["r0"]["routes"] = [
        {"to": to, "via": via[":" in to]}
        for to, via in (
            *(("10.0.0.0/8", one), ("10.0.4.0/22", other), ("10.0.6.0/24", one), ("10.0.6.0/31", other)),
            *(("2001:db8::/32", one), ("2001:db8:0:4::/62", other), ("2001:db8:0:6::/64", one)),
        )
    ]
    nodes["r0"]["routes"] += [{"to": "default", "via": via} for via in other]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("more", [planned, stated], ids=lambda f: f.__name__)
def test_every_address_has_the_next_hop_of_the_routes_that_are_not_merged(
    tmp_path: Path, name: str, need: Need, shape: str, more: Callable[[list[Data], dict[str, Data]], None]
) -> None:
    need("veth", "ipv6")
    (tmp_path / "lab.yaml").write_text(json.dumps(lab(SHAPES[shape], more)))
    made = plan(load(tmp_path / "lab.yaml"))
    net = made.network
    asked = 0
    with api.up(made, name) as running:
        for node, interfaces in net.interfaces.items():
            for version in net.families:
                mine = {h for i in interfaces for h in i.hosts()}
                wanted = [a for a in unmerged.addresses(net, version) if a not in mine]
                rows = "".join(f"route get {a}\n" for a in wanted)
                done = running.exec(node, ("ip", "-j", "-force", "-batch", "-"), input=rows.encode())
                assert not done.stderr, f"{node}: {done.stderr}"
                found = [json.loads(row)[0] for row in done.stdout.splitlines() if row.strip()]
                plain = unmerged.table(net, node, version)
                told = {r["dst"]: (r.get("gateway", ""), r["dev"]) for r in found}
                assert told == {a: unmerged.chosen(plain, a) for a in wanted}
                asked += len(told)
    assert asked > 500
