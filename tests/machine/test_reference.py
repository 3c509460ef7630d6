"""The main job: Wi-Fi MLO, MPTCP, AMT and multicast in one lab, with everything that happens to it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import testbed
from tests.machine.conftest import Run

pytestmark = [pytest.mark.machine, pytest.mark.quiet]


@pytest.fixture(scope="module")
def folder(ran: Callable[[str], Run]) -> Path:
    return ran("reference").folder


def test_every_check_holds_and_every_event_took_effect(folder: Path) -> None:
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["verdict"] == "passed"
    assert len(verdict["checks"]) > 10
    events = verdict["events"]
    assert [e["what"] for e in events if e["effect"] is None] == []
    removal = next(e for e in events if "is removed" in e["what"])
    assert 0.9 <= removal["effect"] - removal["performed"] <= 3, "ten beacons after it was announced"


def test_the_captures_tell_of_both_paths_the_tunnel_and_the_beacons(folder: Path) -> None:
    def seen(file: str, display: str) -> int:
        words = ("tshark", "-r", str(folder / file), "-Y", display)
        return len(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines())

    assert seen("phone/eth0.pcapng", "tcp.options.mptcp.subtype == 0") or seen(
        "phone/wlan0.pcapng", "tcp.options.mptcp.subtype == 0"
    ), "MP_CAPABLE"
    assert seen("phone/eth0.pcapng", "tcp.options.mptcp.subtype == 1") or seen(
        "phone/wlan0.pcapng", "tcp.options.mptcp.subtype == 1"
    ), "MP_JOIN"
    assert seen("edge/uplink.pcapng", "amt.type == 6") > 100
    for freq in (2412, 5180, 5975):
        assert seen(f"air{freq}.pcapng", "wlan.fc.type_subtype == 8") > 30


def test_the_summary_fits_one_screen(folder: Path) -> None:
    said = testbed("report", str(folder)).stdout
    doubts = json.loads((folder / "verdict.json").read_text())["validity"]  # as many as the machine gives reason for
    assert len(said.splitlines()) - len(doubts) <= 55
    for part in ("checks", "subflows by interface", "data frames by link", "video:", "events", "results in"):
        assert part in said
