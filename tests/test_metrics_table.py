"""One table has every figure of a run: its names and units are those of reports, messages and docs/metrics.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from testbed.metrics import table
from testbed.metrics.metric import PERCENTILES
from tests.kept import compare

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/metrics.md"
_PLACE = r"(<!-- metrics: {} -->\n).*?(\n<!-- end -->)"
REPORTS = ROOT / "tests/recorded/reports"


@pytest.mark.parametrize("run", sorted(f.parent.name for f in REPORTS.glob("*/metrics.json")))
def test_every_figure_of_a_recorded_run_is_in_the_table_with_its_unit(run: str) -> None:
    found = json.loads((REPORTS / run / "metrics.json").read_text())
    assert found
    rows = {name: table.find(name) for name in found}
    assert not [name for name, row in rows.items() if row is None]
    assert {name: row.unit for name, row in rows.items() if row} == {name: m["unit"] for name, m in found.items()}


def test_a_name_means_the_same_whatever_has_it() -> None:
    for row in table.TABLE:
        if row.name != table.COUNTER:
            other = table.find(f"x.{row.name}")
            assert other is not None
            assert (other.unit, other.better, other.ratio) == (row.unit, row.better, row.ratio), (row.of, row.name)


def test_a_row_belongs_to_an_owner_and_there_are_no_two_of_a_name() -> None:
    assert {row.of for row in table.TABLE} == set(table.OWNERS)
    assert len({(row.of, row.name) for row in table.TABLE}) == len(table.TABLE)


@pytest.mark.parametrize(
    ("protocol", "only"),
    [
        ("udp", {"loss_pct", "jitter_ms", "reorder_packets"}),
        ("tcp", {"retransmits", *(f"rtt_{p}_ms" for p in PERCENTILES)}),
        ("mptcp", {"mptcp_connections", "tcp_connections", *(f"rtt_{p}_ms" for p in PERCENTILES)}),
    ],
)
def test_a_flow_has_the_figures_of_its_protocol(protocol: str, only: set[str]) -> None:
    common = {"goodput_mbps", "received_bytes", "seconds", "start_s", "gap_s", "gap_at_s"}
    assert set(table.names("iperf3", protocol)) == common | only


@pytest.mark.parametrize("of", sorted(table.OWNERS))
def test_the_page_has_the_table(of: str) -> None:
    text = PAGE.read_text()
    made, there = re.subn(_PLACE.format(of), lambda m: m[1] + f"\n{table.markdown(of)}\n" + m[2], text, flags=re.S)
    assert there == 1, f"docs/metrics.md has no place for the table of {of}"
    compare(made, PAGE)


@pytest.mark.parametrize(
    ("name", "better", "ratio"),
    [
        ("bulk.goodput_mbps", "higher", True),
        ("bulk.loss_pct", "lower", False),
        ("video.phone.gap_s", "lower", False),
        ("phone.mptcp.MPTcpExtMPJoinSynRx", "", False),
        ("phone.wlan0.link0.tx_frames", "", True),
        ("phone.subflow.eth0.rtt_p50_ms", "lower", True),
    ],
)
def test_a_row_says_which_way_is_better_and_how_two_runs_compare(name: str, better: str, ratio: bool) -> None:
    row = table.find(name)
    assert row is not None
    assert (row.better, row.ratio) == (better, ratio)
