"""Links that follow a trace: how files are read, and what a class of htb that is told so lets through."""

from __future__ import annotations

import re
from bisect import bisect_right
from pathlib import Path
from random import Random

import pytest

from testbed.drivers.tc import FRAME
from testbed.errors import InputError
from testbed.language.moments import driven
from testbed.language.traces import Columns, Point, Trace, read
from testbed.loading import inlined, load
from testbed.plan.traces import changes

COLUMNS = {"time": {"column": "t", "unit": "s"}, "rate": {"column": "bw", "unit": "mbit"}}
CSV = Trace(file="x.csv", columns=Columns.model_validate(COLUMNS))


def trace(rates: list[float], step: float, loop: bool = False) -> Trace:
    points: tuple[Point, ...] = tuple((round(n * step, 9), r * 1e6, None, None) for n, r in enumerate(rates))
    return Trace(points=points, loop=loop, period=step * len(rates) if loop else None)


def let_through(told: Trace, end: float) -> float:
    """Bits that a class of htb lets through when frames always wait: each is in debt for its time at that rate."""
    rows = list(changes(told, end))
    times = [c.t for c in rows]
    now = bits = 0.0
    while now < end:
        rate = rows[bisect_right(times, now) - 1].rate
        assert rate is not None
        bits += 8 * FRAME
        now += 8 * FRAME / rate
    return bits


LTE = Random(3)
RATES = {
    "walk": [min(80.0, max(2.0, 20 * LTE.lognormvariate(0, 0.7))) for _ in range(600)],
    "outages": [0.0 if LTE.random() < 0.46 else LTE.uniform(1, 40) for _ in range(600)],
    "near zero": [0.001 if LTE.random() < 0.46 else LTE.uniform(1, 40) for _ in range(600)],
    "slow": [LTE.choice([0.05, 0.2, 1.0]) for _ in range(600)],
}


@pytest.mark.parametrize("step", [0.01, 0.02, 0.1, 1.0])
@pytest.mark.parametrize("kind", RATES)
def test_as_many_bits_get_through_as_the_trace_has_whatever_its_rates_and_outages(kind: str, step: float) -> None:
    count = min(600, int(12 / step))
    told = trace(RATES[kind][:count], step)
    wanted = sum(RATES[kind][:count]) * 1e6 * step
    assert let_through(told, count * step) == pytest.approx(wanted, rel=0.005, abs=3 * 8 * FRAME)


def test_an_outage_lets_one_frame_through_and_takes_its_bits_from_what_follows() -> None:
    told = trace([12.0, 0.0, 0.0, 0.0, 12.0, 12.0], 1.0)
    during = let_through(told, 4.0) - let_through(told, 1.0)
    assert during <= 8 * FRAME
    assert let_through(told, 6.0) == pytest.approx(36e6, abs=3 * 8 * FRAME)


def test_a_trace_that_loops_begins_again_and_one_that_does_not_keeps_its_last_value() -> None:
    again, once = trace([1.0, 3.0], 0.5, loop=True), trace([1.0, 3.0], 0.5)
    assert let_through(again, 4.0) == pytest.approx(8e6, abs=3 * 8 * FRAME)
    assert let_through(once, 4.0) == pytest.approx(0.5e6 + 3.5 * 3e6, abs=3 * 8 * FRAME)


def test_a_csv_file_has_units_and_its_first_row_is_the_begin() -> None:
    found = read(CSV, "t,bw,note\n1700000000,3,a\n\n1700000001,,b\n1700000002.5,0,c\n")
    assert found == {"points": [[0.0, 3e6, None, None], [1.0, 3e6, None, None], [2.5, 0.0, None, None]], "loop": False}


def test_a_csv_file_without_names_is_read_by_numbers() -> None:
    columns = {
        "time": {"column": 0, "unit": "ms"},
        "delay": {"column": 2, "unit": "ms"},
        "loss": {"column": 1, "unit": "%"},
    }
    found = read(Trace(file="x", columns=Columns.model_validate(columns)), "0,1,20\n500,50,30\n")
    assert found["points"] == [[0.0, None, 0.02, 0.01], [0.5, None, 0.03, 0.5]]


def test_a_mahimahi_file_lets_a_frame_through_for_each_line() -> None:
    lines = sorted(Random(1).choices(range(1, 2000), k=900))
    found = read(Trace(file="x", format="mahimahi"), "\n".join(map(str, [*lines, 2000])) + "\n")
    told = Trace(points=tuple(tuple(p) for p in found["points"]))
    assert sum(p[1] or 0 for p in told.points or ()) * 0.01 == pytest.approx(901 * 8 * FRAME)
    assert let_through(told, 2.0) == pytest.approx(901 * 8 * FRAME, rel=0.005, abs=3 * 8 * FRAME)


@pytest.mark.parametrize(
    ("told", "text", "wrong"),
    [
        (CSV, "t,bw\n0,x\n", "line 2: 'x' is not a number for `rate`"),
        (CSV, "t,bw\n1,1\n1,2\n", "line 3: its time is not after that of the row before it"),
        (CSV, "t,rate\n1,1\n", "it has no column 'bw' (there are: t, rate)"),
        (CSV, "t,bw\n", "it has no rows"),
        (CSV, "t,bw\n1,-1\n", "line 2: -1 mbit is outside of what `rate` can be"),
        (CSV.model_copy(update={"loop": True}), "t,bw\n1,1\n", "a trace of one row can't begin again"),
        (Trace(file="x"), "", "a CSV file needs `columns`"),
        (Trace(file="x", format="mahimahi"), "1\nb\n", "line 2: 'b' is not a time in ms"),
        (Trace(file="x", format="mahimahi"), "", "it has no packets"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(told: Trace, text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(wrong)}"):
        read(told, text)


LAB = """\
name: lab
families: [ipv4]
nodes: {a: {}, b: {}}
links:
  - name: l
    ends: [a:eth0, b:eth0]
    reverse:
      trace: {file: traces/x.csv, columns: {time: {column: t, unit: s}, rate: {column: bw, unit: mbit}}}
"""


def test_a_trace_is_found_from_the_folder_of_its_file_and_travels_in_it(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces/x.csv").write_text("t,bw\n0,3\n1,5\n")
    (tmp_path / "lab.yaml").write_text(LAB)
    topology = load(tmp_path / "lab.yaml")
    assert driven(topology) == {(0, "reverse")}
    assert topology.links[0].shape("reverse").rate == 3_000_000
    assert topology.links[0].shape("forward").rate is None
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "lab.yaml").write_text(inlined(LAB, tmp_path / "lab.yaml"))
    assert load(other / "lab.yaml") == topology


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("t,bw\n0,3\n")
    (tmp_path / "mine/traces").mkdir(parents=True)
    (tmp_path / "mine/traces/x.csv").symlink_to(tmp_path / "secret.csv")
    (tmp_path / "mine/lab.yaml").write_text(LAB)
    with pytest.raises(InputError, match="a link leads out of"):
        load(tmp_path / "mine/lab.yaml")
