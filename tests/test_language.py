"""The language under arbitrary input: every file is a topology or an error of its author; plans are sound."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from msgspec import convert

from testbed import units
from testbed.errors import InputError, Problem, TestbedError
from testbed.language.document import Document, Mark, Source, get, rows_of
from testbed.language.experiment import Experiment
from testbed.language.overlay import merge, override
from testbed.language.parsing import parse
from testbed.loading import read
from testbed.metrics import nodes as metrics
from testbed.metrics import records, table
from testbed.plan.lab import Plan, plan
from testbed.plan.run import requires, run_steps
from testbed.programs.sampler import main as sampler
from tests.strategies import KEYS, Data, examples, mutants, places, scalars, topologies, values

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("language") / "lab.yaml"


def write(file: Path, data: Any) -> Path:
    file.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    return file


def judged(file: Path) -> Experiment | InputError:
    """What the file is; that anything else is raised is a bug, and so is a place that is not in the file."""
    try:
        return read(file)
    except InputError as e:
        found = e
    rows = ["", *rows_of(file.read_bytes().decode(errors="replace").removeprefix("\ufeff"))]
    assert found.problems
    for p in found.problems:
        assert p.message
        assert p.file == str(file)
        assert p.line == 0 or 1 <= p.column <= len(rows[p.line]) + 1
    return found


def planned(file: Path) -> list[Plan]:
    found = judged(file)
    return [plan(case.topology) for case in found.cases] if isinstance(found, Experiment) else []


def performed(file: Path) -> str:
    text = ""
    for made in planned(file):
        text += f"{made}{made.hosts}" + "".join(f"{step}\n" for step in run_steps(made))
        try:
            requires(made)
            made.requires()
        except TestbedError:
            continue
    return text


TOKENS = (
    *(
        "name: lab",
        "nodes:",
        "a",
        ": ",
        "- ",
        "\n",
        "\n  ",
        "{",
        "}",
        "[",
        "]",
        ",",
        "&x ",
        "*x",
        "<<: ",
        "|",
        ">",
        "\t",
    ),
    *('"', "'", "#", "---", "...", "? ", "!t ", "%", "@", "\\", "null", "0", "ä", "\x85", "\u2028", "\ufeff", "\x00"),
)


@examples(400)
@given(st.one_of(st.text(), st.lists(st.sampled_from(TOKENS), max_size=30).map("".join)))
@example("&a [*a]")
@example("? [a]\n: b\n? [c]\n: d\n")
@example("a: &x {b: 1}\n<<: [*x, *x, 5]\n")
@example("name: lab\nnodes: {}\nrepeat: 1e999\n")
def test_any_text_is_a_topology_or_an_error_of_its_author(file: Path, text: str) -> None:
    file.write_bytes(text.encode(errors="surrogatepass"))
    performed(file)


@examples(100)
@given(st.binary())
def test_any_bytes_are_a_topology_or_an_error_of_its_author(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    judged(file)


@examples(400)
@given(mutants())
def test_nearly_right_files_are_topologies_that_can_be_planned_or_errors(file: Path, data: Data) -> None:
    performed(write(file, data))


@examples(150)
@given(st.dictionaries(st.sampled_from(KEYS), values))
def test_the_keys_of_the_language_in_any_structure_are_a_topology_or_an_error(file: Path, data: Data) -> None:
    performed(write(file, {"name": "lab", "nodes": {"a": {}}, **data}))


@examples(100)
@given(
    topologies(), st.sampled_from(KEYS).flatmap(lambda k: st.sampled_from([k, f"links.0.{k}", f"nodes.a.{k}"])), values
)
def test_any_option_gives_a_topology_or_an_error_that_names_it(file: Path, data: Data, path: str, value: Any) -> None:
    write(file, data)
    assume(isinstance(judged(file), Experiment))
    option = f"{path}={json.dumps(value)}"
    found = _refused(file, option)
    assert all(p.file in (f"--set {option}", str(file)) for p in found)


def _refused(file: Path, option: str) -> tuple[Problem, ...]:
    try:
        read(file, (option,))
    except InputError as e:
        return e.problems
    return ()


@examples(80)
@given(topologies())
def test_the_same_file_gives_the_same_plan(file: Path, data: Data) -> None:
    assert performed(write(file, data)) == performed(file)


def test_a_plan_does_not_depend_on_the_order_of_sets() -> None:
    program = "import sys, testbed.cli.files as c\nfor f in sys.argv[1:]: c.plan(f)"
    files = [str(f) for f in sorted([*ROOT.glob("topologies/*.yaml"), *ROOT.glob("experiments/*.yaml")])]
    plans = {
        subprocess.run(
            (sys.executable, "-c", program, *files),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(plans) == 1


@examples(150)
@given(topologies())
def test_addresses_are_unique_and_a_segment_shares_one_network(file: Path, data: Data) -> None:
    for made in planned(write(file, data)):
        net = made.network
        interfaces = [i for found in net.interfaces.values() for i in found]
        macs = [i.mac for i in interfaces]
        assert len(set(macs)) == len(macs)
        assert all(int(mac[:2], 16) & 3 == 2 for mac in macs), "unicast and locally administered"
        hosts = [host for i in interfaces for host in i.hosts()]
        assert len(set(hosts)) == len(hosts)
        assert not [i for i in interfaces if i.port and i.addresses]
        for version in net.families:
            networks = [{i.network(version) for i in m if i.network(version)} for m in net.segments.values()]
            assert all(len(found) <= 1 for found in networks)
            flat = [ip_interface(n).network for found in networks for n in found]
            assert len(set(flat)) == len(flat), "two segments have two networks"
        for i in interfaces:
            assert all(ip_interface(a).ip != ip_interface(a).network.network_address for a in i.addresses)


@examples(60)
@given(
    st.integers(1, 999),
    st.sampled_from([("bit", 1), ("kbit", 10**3), ("mbit", 10**6), ("gbit", 10**9), ("kbps", 8000)]),
)
def test_a_rate_is_read_as_tc_reads_it(number: int, unit: tuple[str, int]) -> None:
    assume(8 <= number * unit[1] <= 10**12)
    assert units.rate(f"{number}{unit[0]}") == units.rate(f"{number} {unit[0].upper()}") == number * unit[1]
    assert units.rate(f"{number * unit[1]}bit") == number * unit[1]


@examples(60)
@given(st.integers(0, 86400 * 10**9))
def test_a_time_is_the_same_in_every_unit(ns: int) -> None:
    assert units.time(f"{ns}ns") == pytest.approx(ns * 1e-9, rel=1e-12)
    assert units.time(f"{ns // 1000}us") == pytest.approx(units.time(f"{ns // 1000}000ns"), rel=1e-12)
    assert units.time(f"{ns // 10**6}ms") == pytest.approx(units.time(f"{ns // 10**6}000us"), rel=1e-12)


@examples(60)
@given(st.integers(1, 2**32 - 1))
def test_a_size_counts_in_powers_of_two(number: int) -> None:
    assert units.size(f"{number}b") == number
    assume(number < 2**22)
    assert units.size(f"{number}kb") == number * 1024 == units.size(f"{number * 1024}b")


@examples(60)
@given(st.integers(0, 10000))
def test_a_percentage_is_a_hundredth(number: int) -> None:
    assert units.percentage(f"{number / 100:.2f}%") == pytest.approx(number / 10000)


@examples(60)
@given(st.sampled_from([units.rate, units.time, units.size, units.percentage]), scalars)
def test_a_quantity_without_a_unit_is_refused_in_words(read_unit: Any, value: Any) -> None:
    assume(not isinstance(value, str) or not any(c.isalpha() or c == "%" for c in value))
    with pytest.raises(ValueError, match=r"unit|negative"):
        read_unit(value)


# Several faults at once: the value at each place is wrong in its own way.

RIGHT: Data = {
    "name": "lab",
    "nodes": {
        "h": {"mptcp": {"limits": {"subflows": 2}, "endpoints": [{"interface": "eth0"}]}},
        "r": {"router": {}, "sysctl": {"net.ipv4.tcp_sack": 1}},
        "s": {"routes": [{"to": "default", "via": "10.9.0.1"}]},
    },
    "links": [
        {
            "name": "first",
            "ends": ["h:eth0", "r:eth0"],
            "rate": "9mbit",
            "delay": "5ms",
            "loss": {"p": "1%", "r": "9%"},
        },
        {"ends": ["r:eth1", "s:eth0"], "mtu": 1400, "addresses": ["10.9.0.1/24", "10.9.0.2/24"]},
    ],
    "workloads": {
        "bulk": {"iperf3": {"from": "h", "to": "s", "seconds": 5}},
        "rtt": {"ping": {"from": "h", "to": "s", "seconds": 5, "interval": "100ms"}},
    },
    "capture": [{"interfaces": "h:*", "snaplen": 100}, "s:eth0"],
    "events": [{"at": "1s", "link": "first", "set": {"delay": "9ms"}}, {"at": "2s", "node": "r", "command": ["true"]}],
    "checks": [{"metric": "bulk.goodput_mbps", "min": 1}, {"metric": "h.eth0.tx_mbps", "max": 9}],
    "samples": {"every": "1s"},
}
FAULTS: dict[tuple[Any, ...], Any] = {
    ("name",): "A Lab",
    ("nodes", "h", "mptcp", "limits", "subflows"): -1,
    ("nodes", "r", "sysctl", "net.ipv4.tcp_sack"): [1],
    ("links", 0, "rate"): 9,
    ("links", 0, "loss", "p"): "200%",
    ("links", 0, "ends", 0): "x:eth0",
    ("links", 1, "mtu"): 100,
    ("links", 1, "addresses", 0): "10.9.0.1",
    ("workloads", "bulk", "iperf3", "to"): "t",
    ("workloads", "rtt", "ping", "interval"): "5min",
    ("capture", 0, "snaplen"): 1,
    ("events", 0, "set", "delay"): "9min",
    ("events", 1, "node"): "q",
    ("checks", 0, "min"): "1mbit",
    ("samples", "every"): "1ns",
}
HIDDEN = {  # what may only follow from another fault, and is said when that is mended
    ("nodes", "h", "mptcp", "endpoints", 0, "interface"): "eth7",
    ("nodes", "s", "routes", 0, "via"): "10.8.0.1",
    ("capture", 1): "s:eth7",
    ("events", 0, "link"): "frist",
    ("events", 1, "at"): "99s",
    ("checks", 1, "metric"): "h.eth7.tx_mbps",
}


def spoilt(data: Any, wrong: dict[tuple[Any, ...], Any], path: tuple[Any, ...] = ()) -> Any:
    if path in wrong:
        return wrong[path]
    if isinstance(data, dict):
        return {k: spoilt(v, wrong, (*path, k)) for k, v in data.items()}
    return [spoilt(v, wrong, (*path, n)) for n, v in enumerate(data)] if isinstance(data, list) else data


def test_the_example_is_right(file: Path) -> None:
    assert planned(write(file, RIGHT))


@examples(150)
@given(st.sets(st.sampled_from([*FAULTS, *HIDDEN]), min_size=1))
def test_every_fault_is_said_and_none_that_is_not_there(file: Path, chosen: set[tuple[Any, ...]]) -> None:
    found = judged(write(file, spoilt(RIGHT, {p: {**FAULTS, **HIDDEN}[p] for p in chosen})))
    assert isinstance(found, InputError)
    said = {p.line for p in found.problems}
    document = parse(file.read_text(), "")
    lines = {path: document.at(path).line + 1 for path in chosen}
    assert said <= set(lines.values())
    assert said >= {line for path, line in lines.items() if path in FAULTS}
    assert said == set(lines.values()) or len(chosen) > 1


# Merging: each leaf of a tree says which file it is of and where.

trees: st.SearchStrategy[Data] = st.recursive(
    st.just({}), lambda inner: st.dictionaries(st.sampled_from("abc"), inner | st.lists(inner, max_size=2), max_size=3)
)


def labelled(data: Any, label: str, path: tuple[Any, ...] = ()) -> Any:
    """The tree with a leaf that tells its file and its path in place of everything empty."""
    if not data:
        return f"{label}:{'/'.join(map(str, path))}"
    if isinstance(data, list):
        return [labelled(v, label, (*path, n)) for n, v in enumerate(data)]
    return {k: labelled(v, label, (*path, k)) for k, v in data.items()}


@examples(200)
@given(trees, trees)
def test_a_merged_document_knows_the_file_and_place_of_every_value(low: Data, high: Data) -> None:
    under, over = (
        parse(json.dumps(labelled(tree, name) if tree else {}, indent=1), name)
        for tree, name in ((low, "under"), (high, "over"))
    )
    merged = merge(under, over)
    for path in places(merged.data):
        value, mark = get(merged.data, path), merged.at(path)
        if isinstance(value, str):
            assert mark.text == json.dumps(value)
            assert mark.source.name == value.partition(":")[0]
            assert value.endswith(":" + "/".join(map(str, path)))
        if path and isinstance(path[-1], str):
            assert merged.at(path, key=True).text == json.dumps(path[-1])
            assert merged.at(path, key=True).source is mark.source
        expected = get(over.data, path)
        assert value == expected or isinstance(value, dict) or expected is None


def test_what_an_alias_or_a_merge_key_brings_is_of_the_file_that_has_it() -> None:
    under = parse("a: {b: {c: 1}}\n", "under")
    over = parse("x: &x {b: {c: 2}}\na: *x\n", "over")
    assert merge(under, over).at(("a", "b", "c")).source.name == "over"
    over = parse("x: &x {b: {c: 2}}\na: {<<: *x}\n", "over")
    assert merge(under, over).at(("a", "b", "c")).source.name == "over"
    assert merge(under, over).at(("a", "b"), key=True).source.name == "over"


@examples(60)
@given(trees, st.data())
def test_an_option_changes_one_value_and_the_place_of_that(tree: Data, data: st.DataObject) -> None:
    document = parse(json.dumps(labelled(tree, "file") if tree else {}, indent=1), "file")
    inside = [p for p in places(document.data) if p]
    path = data.draw(st.sampled_from(inside or [("a",)]))
    option = Mark(Source("--set", ()), 0, 0)
    changed = override(document, ".".join(map(str, path)), Document({"new": 1}), option, option)
    assert get(changed.data, path) == {"new": 1}
    assert changed.at((*path, "new")).source.name == "--set"
    for other in inside:
        if other[: len(path)] != path and path[: len(other)] != other:
            assert get(changed.data, other) == get(document.data, other)
            assert changed.at(other) == document.at(other)


def test_the_language_knows_the_counters_that_samples_and_captures_give() -> None:
    counters = dict.fromkeys(sampler._COUNTERS, 0)
    qdisc = {"dev": "eth0", "drops": 0, "overlimits": 0}
    raw = [{"t": float(t), "interfaces": {"eth0": counters}, "qdiscs": [qdisc]} for t in range(2)]
    rows = convert(raw, list[records.Sample])
    found = {**metrics.interfaces("a", rows, 0.0), **metrics.captures("a", [_DUMPCAP])}
    assert {name.removeprefix("a.eth0.") for name in found} == set(table.names("interface"))
    usage = [records.Machine(1.0, 2.0, 0.5, 0.0, records.Softnet(0, 0))]
    assert {name.removeprefix("machine.") for name in metrics.machine(usage, 0.0)} == set(table.names("machine"))


_DUMPCAP = "Packets received/dropped on interface 'eth0': 5/0 (pcap:0/dumpcap:0/flushed:0/ps_ifdrop:0) (100.0%)"


def test_a_mean_is_the_same_whichever_python_adds() -> None:
    # Python 3.11 adds these to 9.99...98, and 3.12 to 10: `sum` compensates since then.
    rows = [records.Machine(float(n), float(n), 0.001, 0.0) for n in range(1, 101)]
    assert metrics.machine(rows, 0.0)["machine.cpu_mean_pct"].value == 0.1
