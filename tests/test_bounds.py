"""What a check, a plan and an error cost grows as the file does, and what is too much is said in a sentence."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from testbed import units
from testbed.errors import SHOWN, InputError
from testbed.language import explain
from testbed.loading import read
from testbed.plan import assemble
from testbed.plan.lab import plan
from testbed.plan.run import run_steps
from testbed.rules import addresses
from tests.kept import Say, say

__all__ = ["say"]
PAIR = "name: lab\nnodes: {a: {}, b: {}}\nlinks: [{name: l, ends: [a:eth0, b:eth0], rate: 9mbit}]\n"


def nodes(count: int, content: str = "{}") -> str:
    return "name: lab\nnodes:\n" + "".join(f"  node{n}: {content}\n" for n in range(count))


def chain(count: int, name: str = "node", first: str = "") -> str:
    rows = "".join(f"  - {{ends: [{name}{n}:eth0, {name}{n + 1}:eth1]}}\n" for n in range(count - 1))
    return nodes(count) + "links:\n" + first + rows


def rows(section: str, row: str, count: int) -> str:
    return f"{section}:\n" + "".join(f"  - {row.replace('N', str(n))}\n" for n in range(count))


def flows(count: int) -> str:
    return "workloads:\n" + "".join(f"  w{n}: {{ping: {{from: node{n}, to: node{n + 1}}}}}\n" for n in range(count - 1))


def tunnels(count: int) -> str:
    """Return a lab of receivers behind AMT gateways, with a network each, and a source beyond their relay."""
    hosts, role = range(count), "{bridge: {ports: [eth1, amt0]}, amt_gateway: {discovery: relay}}"
    found = "name: lab\nnodes:\n  source: {}\n  relay: {router: {multicast: true}, amt_relay: {max_tunnels: 9999}}\n"
    found += "  hub: {router: {}}\n" + "".join(f"  node{n}: {role}\n  host{n}: {{}}\n" for n in hosts)
    found += "links:\n  - {ends: [source:eth0, relay:eth1]}\n  - {ends: [relay:eth0, hub:up]}\n"
    for n in hosts:
        found += f"  - {{ends: [node{n}:eth0, hub:p{n}]}}\n  - {{ends: [host{n}:eth0, node{n}:eth1]}}\n"
    flow = f"source: source, group: 232.1.1.1, rate: 1mbit, receivers: [{', '.join(f'host{n}' for n in hosts)}]"
    return f"{found}workloads: {{tv: {{multicast: {{{flow}}}}}}}\n"


# What a file of a size is, without faults or full of them.
GROWING: dict[str, Callable[[int], str]] = {
    "a chain": chain,
    "typos of nodes": lambda n: chain(n, "nod"),
    "unknown keys": lambda n: PAIR + "".join(f"key{k}: 1\n" for k in range(n)),
    "unknown keys of nodes": lambda n: nodes(n, "{rout: {}}"),
    "events of one link": lambda n: PAIR + "duration: 9s\n" + rows("events", "{at: 1s, link: l, set: {delay: Nms}}", n),
    "links that come up": lambda n: PAIR + "duration: 9s\n" + rows("events", "{at: 1s, link: l, down: false}", n),
    "commands as events": lambda n: PAIR + "duration: 9s\n" + rows("events", "{at: 1s, node: a, command: [x]}", n),
    "events of links that are not there": lambda n: chain(n) + rows("events", "{at: 1s, link: lN, down: true}", n),
    "new addresses": lambda n: (
        PAIR + "duration: 9s\n" + rows("events", "{at: 1s, node: a, address: {interface: eth0, add: fd00::N/64}}", n)
    ),
    "captures": lambda n: chain(n) + rows("capture", "node0:eth0", n),
    "captures of nothing": lambda n: chain(n) + rows("capture", "nodN:eth0", n),
    "checks": lambda n: chain(n) + rows("checks", "{metric: node0.eth0.tx_mbps, min: 1}", n),
    "checks of nothing": lambda n: chain(n) + rows("checks", "{metric: nodN.eth0.tx_mbps, min: 1}", n),
    "flows": lambda n: chain(n) + flows(n),
    "flows of nothing": lambda n: chain(n) + flows(n).replace("from: node", "from: nod"),
    "receivers behind tunnels": tunnels,
    "cases": lambda n: chain(9, first="  - {name: l, ends: [node0:l, node1:l], rate: 1mbit}\n") + matrix(n),
    "cases with a fault": lambda n: chain(9, "nod") + matrix(n),
}


def matrix(count: int) -> str:
    return f"matrix: {{links.0.rate: [{', '.join(f'{n + 1}mbit' for n in range(count))}]}}\n"


def calls(run: Callable[[], Any]) -> int:
    """Return how many functions are called until this has ended: work, the same on every machine. Nothing is kept."""
    for cached in (assemble.network, units.interface_of, addresses.wrong):
        cached.cache_clear()
    count = 0

    def called(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def worked(file: Path) -> None:
    try:
        made = plan(read(file).cases[0].topology)
    except InputError as e:
        str(e)
        return
    assert all(map(str, run_steps(made)))


@pytest.mark.parametrize("kind", GROWING)
def test_twice_as_much_in_a_file_is_twice_the_work(kind: str, tmp_path: Path) -> None:
    file, work = tmp_path / "lab.yaml", []
    for count in (9, 250, 500):  # first what is done once
        file.write_text(GROWING[kind](count))
        work.append(calls(partial(worked, file)))
    assert work[2] < 2.3 * work[1]


def test_what_an_experiment_lays_over_many_nodes_is_looked_at_once(tmp_path: Path) -> None:
    over, work = tmp_path / "over.yaml", []
    for count in (9, 200, 400):
        (tmp_path / "under.yaml").write_text(nodes(count, "{sysctl: {net.ipv4.tcp_sack: 0}}"))
        over.write_text("topology: under.yaml\n" + nodes(count, "{sysctl: {net.ipv4.tcp_sack: 1}}"))
        work.append(calls(partial(worked, over)))
        assert {n.sysctl["net.ipv4.tcp_sack"] for n in read(over).cases[0].topology.nodes.values()} == {1}
    assert work[2] < 2.3 * work[1]


def test_a_case_costs_what_differs_and_not_the_whole_network(tmp_path: Path) -> None:
    file, work = tmp_path / "lab.yaml", []
    for cases in (1, 1, 101):
        file.write_text(chain(200, first="  - {name: l, ends: [node0:l, node1:l], rate: 1mbit}\n") + matrix(cases))
        work.append(calls(partial(read, file)))
        assert len(read(file).cases) == cases
    assert work[2] - work[1] < 100 * work[1] / 10


def test_cases_are_judged_as_if_each_was_alone(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    for path, values, said in (
        ("links.l.rate", "9mbit, 7, 5mbit", "the rate 7 has no unit"),
        ("links.l.burst", "9kb, 9b", "a burst smaller than one frame"),
        ("links.l.mtu", "1500, 1000", "IPv6 requires an mtu of at least 1280"),
        ("links.l.name", "l, 'a:b'", "not a valid name of a link"),
        ("nodes.a.sysctl.net.ipv4.tcp_sack", "0, [1]", "must be a list of words"),
        ("nodes.a.router", "'', 5", "must be a mapping"),
        ("families", "ipv4, 5", "must be a list"),
        ("duration", "5s, 5q", "is not a unit for a time"),
    ):
        file.write_text(f"{PAIR}matrix: {{{path}: [{values}]}}\n")
        with pytest.raises(InputError, match=said):
            read(file)
    file.write_text(f"{PAIR}matrix: {{links.l.rate: [9mbit, 7mbit], links.l.delay: [1ms, 2ms]}}\n")
    cases = [case.topology for case in read(file).cases]
    assert [(c.links[0].rate, c.links[0].delay) for c in cases] == [(9e6, 1e-3), (9e6, 2e-3), (7e6, 1e-3), (7e6, 2e-3)]
    for case, rate, delay in zip(cases, (9, 9, 7, 7), (1, 2, 1, 2), strict=True):
        file.write_text(PAIR.replace("9mbit", f"{rate}mbit, delay: {delay}ms"))
        assert [case] == [c.topology for c in read(file).cases]


def test_more_cases_than_can_be_counted_are_too_many(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    for count, said in ((4, "10000 runs"), (13, "more than 10^12 runs"), (5000, "more than 10^12 runs")):
        values = "".join(f"  links.l.key{n}: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n" for n in range(count))
        file.write_text(f"{PAIR}matrix:\n{values}")
        with pytest.raises(InputError, match=re.escape(said) + ".* and at most 1000 are allowed"):
            read(file)


def test_a_report_reads_its_own_case_alone(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(f"{PAIR}repeat: 2\nmatrix: {{links.l.rate: [9mbit, 7mbit], links.l.delay: [1ms, 2ms]}}\n")
    wanted = read(file).cases[-1]
    found = read(file, only=wanted.settings).cases
    assert [c.topology for c in found] == [wanted.topology] * 2
    file.write_text(chain(9, first="  - {name: l, ends: [node0:l, node1:l], rate: 1mbit}\n") + matrix(100))
    whole, one = calls(partial(read, file)), calls(partial(read, file, only=("links.0.rate=50mbit",)))
    assert one < whole / 2


def test_of_very_many_problems_the_first_are_told_and_the_rest_is_counted(say: Say, tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(chain(300, "nod"))
    status, _, err = say("check", str(file))
    assert status == 2
    assert err.count(": there is no node") == SHOWN
    assert err.endswith(f"\nand {2 * 299 - SHOWN} more problems: mend these first, and check again\n")
    assert "'nod1' (did you mean 'node1'?)" in err


def test_a_line_of_any_length_is_shown_around_its_fault(say: Say, tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    many = ", ".join(f"n{n}: {{}}" for n in range(2000))
    file.write_text(f"name: lab\nnodes: {{{many}, bad: {{routr: {{}}}}, {many.replace('n', 'm')}}}\n")
    _, _, err = say("check", str(file))
    place, row, caret = err.splitlines()
    assert f"lab.yaml:2:{file.read_text().splitlines()[1].index('routr') + 1}: unknown key 'routr'" in place
    assert row.startswith("    ...")
    assert row.endswith("...")
    assert len(row) < 300
    assert row[caret.index("^") : caret.rindex("^") + 1] == "routr"


@pytest.mark.parametrize("size", [10**5, 10**6])
def test_a_name_of_any_length_is_cut_where_it_is_said(say: Say, tmp_path: Path, size: int) -> None:
    file = tmp_path / "lab.yaml"
    for text in (
        f"{PAIR}{'A' * size}: 1\n",
        f'{PAIR}? "{"A" * size}"\n: 1\n',
        f"{PAIR}checks: [{{metric: '{'a.' * (size // 2)}!', min: 1}}]\n",
        f"{PAIR}samples: {{every: {'9' * size}s}}\n",
        f"{PAIR}capture: ['{'*a' * (size // 2)}']\n",
        f"{PAIR}description: {'[' * size}{']' * size}\n",
        f"name: {'x' * size}\nnodes: {{}}\n",
    ):
        file.write_text(text)
        status, _, err = say("check", str(file))
        assert status == 2
        assert len(err) < 3000


def test_no_two_long_words_are_compared_letter_by_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def compare(word: str, *_: object) -> list[str]:
        compared.append(word)
        return []

    monkeypatch.setattr(explain, "get_close_matches", compare)
    many = explain.name_set(f"node{n}" for n in range(1000))
    assert explain.close("x" * 65, ["y"]) == ""
    assert [explain.close(w, many) for w in ("nod7", "node77", "noode7", "nxde7", "ndoe7")] == [
        *("node7", "node77", "node7", "node7", "node7")
    ]
    assert not compared


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (nodes(20_001), "2:1: `nodes` has at most 20000 items, and this has 20001"),
        (
            PAIR + "duration: 5s\n" + rows("events", "{at: 1s, link: l, down: true}", 10_001),
            "`events` has at most 10000",
        ),
        (PAIR + rows("capture", "a:eth0", 1001), "`capture` has at most 1000 items, and this has 1001"),
        (PAIR + rows("checks", "{metric: a.eth0.tx_mbps, min: 1}", 10_001), "`checks` has at most 10000 items"),
        (f"{PAIR}description: {'x' * 131_072}\n", "a text of 131072 bytes is too long: at most 131071"),
        (f"{PAIR}repeat: 10\nmatrix: {{links.l.rate: [{', '.join(['9mbit'] * 101)}]}}\n", "1010 runs"),
    ],
    ids=["nodes", "events", "capture", "checks", "text", "runs"],
)
def test_what_is_too_much_is_said_with_the_bound(text: str, said: str, say: Say, tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(text)
    status, _, err = say("check", str(file))
    assert status == 2
    assert said in err
    assert err.count("\n") == 3
