"""Hypothesis strategies: topologies that are right or nearly so, and structures of the language's own keys."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from testbed.language.document import get
from testbed.language.experiment import EXPERIMENT
from testbed.language.explain import fields_at
from testbed.language.topology import Topology

Data = dict[str, Any]
TIMES = int(os.environ.get("TESTBED_EXAMPLES", "0"))


def examples(count: int) -> settings:
    """The same examples in every run; TESTBED_EXAMPLES=20 takes twenty times as many, and others each time."""
    return settings(max_examples=count * (TIMES or 1), deadline=None, derandomize=not TIMES, database=None)


KEYS = sorted(
    {
        key
        for path in (
            (),
            ("nodes", "a"),
            *(("nodes", "a", role) for role in ("bridge", "router", "mptcp", "access_point", "station")),
            ("nodes", "a", "access_point", "security"),
            ("nodes", "a", "access_point", "mlo_links", 0),
            ("nodes", "a", "mptcp", "endpoints", 0),
            ("links", 0),
            ("links", 0, "queue"),
            ("links", 0, "loss"),
            ("workloads", "w"),
            *(("workloads", "w", kind) for kind in ("iperf3", "ping", "multicast", "command")),
            ("workloads", "w", "multicast", "receivers", 0),
            ("capture", 0),
            ("events", 0),
            ("checks", 0),
            ("samples",),
        )
        for key in fields_at(Topology, path)
    }
    | set(EXPERIMENT)
)
WORDS = ("a", "a:eth0", "default", "10.0.1.1/24", "10.0.1.2", "fd00::1/64", "20mbit", "15ms", "0.1%", "64kb", "*", "0b")
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 2**70),
    st.floats(),
    st.sampled_from([*KEYS, *WORDS]),
    st.text(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner),
    max_leaves=6,
)
rates = st.builds("{}{}".format, st.integers(8, 999), st.sampled_from(["kbit", "mbit", "gbit", "bps"]))
times = st.builds("{}{}".format, st.integers(0, 99), st.sampled_from(["us", "ms"]))
shares = st.builds("{}%".format, st.integers(0, 100))
shapes = st.fixed_dictionaries(
    {},
    optional={
        "rate": rates,
        "delay": times,
        "loss": shares | st.fixed_dictionaries({"p": shares, "r": shares}, optional={"bad": shares}),
        "duplicate": shares,
        "queue": st.sampled_from(["fq_codel", "fq", {"limit": "64kb"}, {"discipline": "codel", "packets": 9}]),
        "mtu": st.integers(1280, 9000),
        "forward": st.fixed_dictionaries({}, optional={"rate": rates, "delay": times}),
    },
)


def streams(names: list[str]) -> st.SearchStrategy[Data]:
    """A multicast workload from one of the nodes to others."""
    one = st.sampled_from([{"any_source": True}, {"at": "1s"}, {"at": "1s", "seconds": 2}, {"interface": "eth1"}])
    more = {"seconds": 5, "rate": "1mbit"}
    return st.builds(
        lambda order, first, group: {
            "multicast": {
                "source": order[0],
                "receivers": [{"node": order[1], **first} if first else order[1], *order[2:3]],
                "group": group,
                **more,
            }
        },
        st.permutations(names),
        st.none() | one,
        st.sampled_from(["232.1.1.1", "239.1.1.1", "ff3e::8000:1", "ff1e::1"]),
    )


LINKS = [{"link_id": n, "freq": freq} for n, freq in enumerate((2412, 5180, 5975))]
access_points = st.fixed_dictionaries(
    {"ssid": st.just("air")},
    optional={"country": st.sampled_from(["DE", "US"]), "beacon_int": st.integers(15, 1000)},
)
cells = st.builds(
    lambda common, kind: common | kind,
    access_points,
    st.sampled_from(
        [
            *({"mlo_links": LINKS[: n + 1]} for n in range(3)),
            {"mlo_links": LINKS, "security": {"akm": "sae-ext-key", "pairwise": "gcmp-256"}},
            {"freq": 2437, "security": {"akm": "open"}},
            {"freq": 6055, "addresses": ["10.8.0.1/24", "fd08::1/64"]},
        ]
    ),
)
ways: list[Data] = [{}, {}, {"mlo_links": [0]}, {"legacy_link": 0}, {"addresses": ["10.8.0.77/24"]}, {"name": "wlan1"}]
joined = st.sampled_from(ways).map(lambda more: {"ssid": "air", **more})


@st.composite
def topologies(draw: st.DrawFn) -> Data:
    names = draw(st.lists(st.sampled_from(["a", "b", "c", "r.1", "R_2", "sw"]), min_size=1, max_size=5, unique=True))
    limited: Data = {"router": None, "mptcp": {"limits": {"subflows": 2}}}
    roles: list[Data] = [
        {},
        {},
        {"router": {}},
        {"router": {"multicast": True}},
        {"bridge": {}},
        {"mptcp": {}},
        limited,
    ]
    nodes: dict[str, Data] = {name: dict(draw(st.sampled_from(roles))) for name in names}
    used = dict.fromkeys(names, 0)
    links: list[Data] = []
    pairs = st.tuples(st.sampled_from(names), st.sampled_from(names))
    for pair in draw(st.lists(pairs, max_size=6)) if len(names) > 1 else []:
        ends = []
        for name in pair:
            ends.append(f"{name}:eth{used[name]}")
            used[name] += 1
        links.append({"ends": ends, **draw(shapes)})
    for n in draw(st.sets(st.sampled_from(range(6)), max_size=2)) & set(range(len(links))):
        links[n] |= {"name": f"link{n}", "addresses": [f"10.{n}.9.1/24", [f"10.{n}.9.2/24", f"fd0{n}::2/64"]]}
    for name, node in nodes.items():
        if "mptcp" in node and used[name] and draw(st.booleans()):
            flags = draw(st.sampled_from([["subflow"], ["signal"], ["subflow", "backup"]]))
            node["mptcp"] = {"endpoints": [{"interface": "eth0", "flags": flags}]}
    if len(names) > 1 and draw(st.booleans()):
        cell, *others = draw(st.permutations(names))
        nodes[cell]["access_point"] = draw(cells)
        for name in others[: draw(st.integers(0, 2))]:
            nodes[name]["station"] = draw(joined)
    found: Data = {"name": "lab", "nodes": nodes, "links": links}
    if len(names) > 1 and draw(st.booleans()):
        kinds = st.sampled_from(["iperf3", "ping"])
        flow = st.permutations(names).map(lambda order: {"from": order[0], "to": order[1], "seconds": 5})
        work = st.builds(lambda kind, flow: {kind: flow}, kinds, flow) | streams(names)
        found["workloads"] = draw(st.dictionaries(st.sampled_from(["bulk", "voip"]), work, max_size=2))
    if links and found.get("workloads"):
        event = st.builds(
            lambda link, change: {"at": "1s", "link": link, **change},
            st.sampled_from([link["ends"][0] for link in links]),
            st.sampled_from([{"down": True}, {"set": {"delay": "5ms"}}, {"set": {"forward": {"rate": "1mbit"}}}]),
        )
        found["events"] = draw(st.lists(event, max_size=3))
        found["capture"] = draw(st.lists(st.sampled_from([*(link["ends"][0] for link in links), "*:eth0"]), max_size=2))
    if draw(st.booleans()):
        found["families"] = draw(st.sampled_from([["ipv4"], ["ipv6"], ["ipv6", "ipv4"]]))
    return found


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@st.composite
def mutants(draw: st.DrawFn) -> Data:
    data: Data = json.loads(json.dumps(draw(topologies())))
    for _ in range(draw(st.integers(1, 3))):
        inside = [p for p in places(data) if len(p) > 1]
        if not inside:
            break
        path = draw(st.sampled_from(inside))
        holder = get(data, path[:-1])
        match draw(st.sampled_from(["replace", "remove", "rename", "repeat"])):
            case "replace":
                holder[path[-1]] = draw(values)
            case "remove":
                del holder[path[-1]]
            case "rename" if isinstance(holder, dict):
                holder[draw(st.sampled_from(KEYS) | st.text(max_size=4))] = holder.pop(path[-1])
            case "repeat" if isinstance(holder, list):
                holder.append(holder[path[-1]])
    return data
