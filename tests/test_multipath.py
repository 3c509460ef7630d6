"""Several next hops: planned for all shortest ways, or stated in one route or in several."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given

from testbed.drivers.route import NextHop, RouteAdd
from testbed.drivers.sysctl import SysctlSet
from testbed.errors import InputError
from testbed.language.parsing import parse
from testbed.loading import build
from testbed.plan.lab import Plan, plan
from testbed.steps import Configure
from tests import unmerged
from tests.strategies import Data, examples, topologies


def made(text: str) -> Plan:
    return plan(build(parse(text, "lab.yaml")))


def tables(made: Plan, version: int) -> dict[str, dict[str, set[tuple[str, str]]]]:
    """By node: the next hops (router, interface) of each network."""
    found: dict[str, dict[str, set[tuple[str, str]]]] = {}
    for step in made.steps:
        if isinstance(step, Configure) and isinstance(r := step.request, RouteAdd) and r.version() == version:
            to = {4: "0.0.0.0/0", 6: "::/0"}[version] if r.to == "default" else r.to
            found.setdefault(step.node, {})[to] = {(hop.via, hop.dev) for hop in r.hops()}
    return found


def shortest(made: Plan, node: str, target: int, version: int) -> set[tuple[str, str]]:
    """The next hops of a node that are nearest to a segment, by the distance of every router from it."""
    far = unmerged.distances(made.network, target, version)
    mine = [i for i in made.network.interfaces[node] if not i.port and i.host(version)]
    on = [
        (far[r.node], r.host(version), i.name)
        for i in mine
        for r in made.network.segments[i.segment]
        if r.node in far and r.node != node and r.host(version)
    ]
    return {(via, dev) for distance, via, dev in on if distance == min(d for d, _, _ in on)}


def tree(pods: int) -> Data:
    """A fat tree of routers: each pod has two at its edge and two above, and these are joined by four cores."""
    nodes: Data = {f"core{n}": {"router": {}} for n in range(4)}
    links: list[Data] = []
    for p in range(pods):
        nodes |= {f"{kind}{p}{n}": {"router": {}} for kind in ("agg", "edge") for n in range(2)} | {f"h{p}": {}}
        links += [{"ends": [f"edge{p}{e}:a{a}", f"agg{p}{a}:e{e}"]} for e in range(2) for a in range(2)]
        links += [{"ends": [f"agg{p}{a}:c{c}", f"core{2 * a + c}:p{p}"]} for a in range(2) for c in range(2)]
        links.append({"ends": [f"h{p}:eth0", f"edge{p}0:h"]})
    return {"name": "lab", "nodes": nodes, "links": links}


def test_hosts_of_a_fat_tree_have_four_ways_to_another_pod() -> None:
    made = plan(build(parse(json.dumps({**tree(3), "routing": "ecmp"}), "lab.yaml")))
    every_shortest_way(made)
    default = "0.0.0.0/0"
    assert [dev for _, dev in sorted(tables(made, 4)["agg00"][default], key=str)] == ["c0", "c1"]


@examples(100)
@given(topologies())
def test_every_address_has_all_of_its_shortest_ways_and_no_other(data: Data) -> None:
    try:
        topology = build(parse(json.dumps({**data, "routing": "ecmp"}), "lab.yaml"))
    except InputError:
        return
    every_shortest_way(plan(topology))


def every_shortest_way(made: Plan) -> None:
    for version in made.network.families:
        found = tables(made, version)
        for node, interfaces in made.network.interfaces.items():
            if made.topology.nodes[node].routes is not None or made.topology.nodes[node].mptcp is not None:
                continue
            own = {i.segment for i in interfaces if not i.port}
            for segment, members in made.network.segments.items():
                networks = {m.network(version) for m in members if m.network(version)}
                wanted = shortest(made, node, segment, version)
                if segment in own or not networks or not wanted:
                    continue
                to = ip_network(networks.pop())
                routes = [(ip_network(text), hops) for text, hops in found.get(node, {}).items()]
                fits = [(n.prefixlen, hops) for n, hops in routes if ip_address(to.network_address) in n]
                assert max(fits, key=lambda f: f[0])[1] == wanted, f"{node} to {to}"


STATED = """
name: stated
families: [ipv4]
nodes:
  l: {{router: {{}}, routes: {routes}}}
  s1: {{router: {{}}}}
  s2: {{router: {{}}}}
links:
  - {{ends: [l:a, s1:a], addresses: [10.1.0.1/24, 10.1.0.2/24]}}
  - {{ends: [l:b, s2:a], addresses: [10.2.0.1/24, 10.2.0.2/24]}}
"""
BOTH = RouteAdd("10.9.0.0/24", "a", "10.1.0.2", more=(NextHop("b", "10.2.0.2"),))


@pytest.mark.parametrize(
    ("routes", "wanted"),
    [
        ("[{to: 10.9.0.0/24, via: [10.1.0.2, 10.2.0.2]}]", [BOTH]),
        ("[{to: 10.9.0.0/24, via: 10.1.0.2}, {to: 10.9.0.0/24, via: 10.2.0.2}]", [BOTH]),
        (
            "[{to: 10.9.0.0/24, via: 10.1.0.2}, {to: 10.9.0.0/24, via: 10.2.0.2, metric: 10}]",
            [RouteAdd("10.9.0.0/24", "a", "10.1.0.2"), RouteAdd("10.9.0.0/24", "b", "10.2.0.2", metric=10)],
        ),
        ("[{to: 10.9.0.0/24, dev: b}]", [RouteAdd("10.9.0.0/24", "b")]),
        ("[{to: default, dev: b}]", [RouteAdd("0.0.0.0/0", "b")]),
        ("[]", []),
    ],
)
def test_one_destination_stated_twice_has_both_next_hops_and_an_empty_list_is_no_route(
    routes: str, wanted: list[RouteAdd]
) -> None:
    steps = made(STATED.format(routes=routes)).steps
    found = [s.request for s in steps if isinstance(s, Configure) and s.node == "l"]
    assert [r for r in found if isinstance(r, RouteAdd)] == wanted
    policy = any(isinstance(r, SysctlSet) and r.name == "net.ipv4.fib_multipath_hash_policy" for r in found)
    assert policy == any(r.more for r in wanted)


def test_routers_choose_by_seeds_of_their_own_which_are_the_same_each_time() -> None:
    text = (
        STATED.format(routes="[{to: 10.9.0.0/24, via: [10.1.0.2, 10.2.0.2]}]")
        .replace("s1: {router: {}}", "s1: {router: {}, routes: [{to: 10.8.0.0/24, via: [10.1.0.1, 10.1.0.1]}]}")
        .replace("via: [10.1.0.1, 10.1.0.1]", "via: [10.1.0.1, 10.1.0.3]")
    )
    seeds = [
        {
            s.node: s.request.value
            for s in made(text).steps
            if isinstance(s, Configure) and isinstance(s.request, SysctlSet) and s.request.name.endswith("hash_seed")
        }
        for _ in range(2)
    ]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0].values())) == 2
