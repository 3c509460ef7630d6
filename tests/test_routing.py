"""Planned routes: shortest ways, merged into prefixes that send every address of a lab where single routes would."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from ipaddress import ip_address, ip_network
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.drivers.route import MAIN, RouteAdd
from testbed.errors import InputError
from testbed.loading import load
from testbed.plan.lab import Plan, plan
from testbed.plan.prefixes import Known, merged
from testbed.steps import Configure
from tests import unmerged
from tests.strategies import Data, examples, topologies

WIDTH = {4: 32, 6: 128}


def main_tables(made: Plan) -> dict[tuple[str, int], unmerged.Table]:
    """The routes of the main table of each node and family, with connected networks."""
    net = made.network
    found: dict[tuple[str, int], unmerged.Table] = defaultdict(dict)
    for name, interfaces in net.interfaces.items():
        for i in (i for i in interfaces if not i.port):
            for a in i.addresses:
                network = ip_network(a, strict=False)
                found[name, network.version][str(network)] = "", i.name
    for step in made.steps:
        if isinstance(step, Configure) and isinstance(r := step.request, RouteAdd) and r.table == MAIN:
            to = {4: "0.0.0.0/0", 6: "::/0"}[r.version()] if r.to == "default" else r.to
            assert to not in found[step.node, r.version()], f"{step.node}: {to} twice"
            found[step.node, r.version()][to] = r.via, r.dev
    return found


def same_ways(made: Plan) -> None:
    """Every address of the lab goes where the routes that are not merged send it, from every node."""
    tables = main_tables(made)
    for version in made.network.families:
        every = unmerged.addresses(made.network, version)
        for name in made.network.interfaces:
            plain = unmerged.table(made.network, name, version)
            for a in every:
                ours, theirs = unmerged.chosen(tables[name, version], a), unmerged.chosen(plain, a)
                assert ours == theirs, f"{name} to {a}: {ours}, not {theirs}"


def chain(count: int) -> Data:
    links = [{"ends": [f"r{n}:e", f"r{n + 1}:w"]} for n in range(count - 1)]
    return {"name": "chain", "nodes": {f"r{n}": {"router": {}} for n in range(count)}, "links": links}


@st.composite
def taken(draw: st.DrawFn) -> tuple[Known, list[int]]:
    """Networks that do not overlap, near one another as those of a lab are, and the number of a hop for each."""
    version = draw(st.sampled_from([4, 6]))
    wanted = draw(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 6), st.integers(-1, 2)), max_size=24))
    found: dict[int, tuple[int, int]] = {}
    end = 0
    for base, bits, hop in sorted(wanted):
        first = base >> bits << bits
        if first >= end:
            found[first], end = (bits, hop), first + (1 << bits)
    base = int(ip_address("10.1.0.0" if version == 4 else "2001:db8::"))
    bases = tuple(base + b for b in found)
    lengths = tuple(WIDTH[version] - bits for bits, _ in found.values())
    return Known(version, {}, bases, lengths, (None,) * len(bases)), [hop for _, hop in found.values()]


@examples(500)
@given(taken())
def test_merged_routes_send_every_address_where_single_routes_do(case: tuple[Known, list[int]]) -> None:
    known, hops = case
    found = [(ip_network(text), hop) for text, hop in merged(known, hops)]
    assert len({n for n, _ in found}) == len(found) <= len([h for h in hops if h >= 0])
    for base, length, hop in zip(known.bases, known.lengths, hops, strict=True):
        for number in {base, base + (1 << (WIDTH[known.version] - length)) - 1}:
            # None lies in another, so the longest is the only one.
            assert [h for n, h in found if ip_address(number) in n] == ([hop] if hop >= 0 else [])
    # There are no fewer: what covers two of them covers a network of another hop as well.
    owner = {n: {b for b in known.bases if ip_address(b) in n} for n, _ in found}
    assert all(owner.values())
    for (one, hop), (other, same) in pairwise(found):
        if hop == same:
            both = one
            while not both.supernet_of(other):  # type: ignore[arg-type]
                both = both.supernet()
            assert {h for b, h in zip(known.bases, hops, strict=True) if ip_address(b) in both} != {hop}


@examples(150)
@given(data=topologies())
def test_planned_routes_are_shortest_ways_of_the_order_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: Data
) -> None:
    file = tmp_path_factory.getbasetemp() / "routes.yaml"
    file.write_text(json.dumps(data))
    try:
        topology = load(file)
    except InputError:
        return
    same_ways(plan(topology))


@pytest.mark.parametrize("file", sorted(Path(__file__).parent.parent.glob("topologies/*.yaml")), ids=lambda f: f.stem)
def test_routes_of_the_examples_are_shortest_ways(file: Path) -> None:
    same_ways(plan(load(file)))


def test_an_address_that_an_event_adds_between_merged_networks_keeps_its_way(tmp_path: Path) -> None:
    nodes: Data = {
        "west": {"router": {}},
        "here": {"router": {}},
        "east": {"router": {}},
        **{f"h{n}": {} for n in range(7)},
    }
    links: list[Data] = [
        {"ends": ["here:w", "west:e"], "addresses": [["10.0.0.1/24"], ["10.0.0.2/24"]]},
        {"ends": ["here:e", "east:w"], "addresses": [["10.9.0.1/24"], ["10.9.0.2/24"]]},
    ]
    # Behind `east` are 10.1.1.0/24 and 10.1.3.0/24, which 10.1.0.0/22 covers; more is behind `west`.
    for n, (router, third) in enumerate([*(("west", n) for n in range(5)), ("east", 1), ("east", 3)]):
        net = f"10.{int(router == 'east')}.{third + (router == 'west')}"
        links.append({"ends": [f"{router}:h{n}", f"h{n}:eth0"], "addresses": [[f"{net}.1/24"], [f"{net}.2/24"]]})
    data: Data = {"name": "lab", "families": ["ipv4"], "nodes": nodes, "links": links, "duration": "5s"}

    def ways(events: list[Data]) -> set[tuple[str, unmerged.Way]]:
        (tmp_path / "lab.yaml").write_text(json.dumps(data | {"events": events}))
        made = plan(load(tmp_path / "lab.yaml"))
        same_ways(made)
        return {(to, way) for to, way in main_tables(made)["here", 4].items() if way[0]}

    default, east = ("0.0.0.0/0", ("10.0.0.2", "w")), ("10.9.0.2", "e")
    assert ways([]) == {default, ("10.1.0.0/22", east)}
    moved = {"at": "1s", "node": "h0", "address": {"interface": "eth0", "add": "10.1.2.9/24"}}
    assert ways([moved]) == {default, ("10.1.1.0/24", east), ("10.1.3.0/24", east)}


def test_a_chain_of_five_hundred_routers_has_ten_routes_a_node_and_family(tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text(json.dumps(chain(500)))
    made = plan(load(tmp_path / "chain.yaml"))
    requests = [(s.node, s.request) for s in made.steps if isinstance(s, Configure)]
    count = Counter((node, r.version()) for node, r in requests if isinstance(r, RouteAdd))
    assert len(count) == 1000
    assert max(count.values()) <= 10
    tables, far = main_tables(made), made.network.interfaces
    for version in (4, 6):
        for name in ("r0", "r1", "r7", "r250", "r499"):
            mine = int(name[1:])
            for n, interfaces in enumerate(far.values()):
                for i in interfaces:
                    way = unmerged.chosen(tables[name, version], i.host(version))
                    assert way is not None
                    beside = abs(n - mine) <= 1 and way[0] == ""
                    assert beside or way[1] == ("e" if n > mine else "w") or n == mine
