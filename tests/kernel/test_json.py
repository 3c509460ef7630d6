"""The JSON output of every command has the fields that docs/commands.md lists, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Need, testbed

pytestmark = pytest.mark.kernel

PAGE = (ROOT / "docs/commands.md").read_text()
LAB = ROOT / "topologies/bounded.yaml"
EVENT = ROOT / "docs/examples/quickstart.yaml"
_CASES = ("--set", "repeat=1", "--set", "matrix={links.cable.rate: [10mbit, 20mbit]}", "--set", "checks=[]")
QUICK = (*_CASES, "--set", "workloads={rtt: {ping: {from: client, to: server, seconds: 1}}}")


def listed(section: str, number: int = 0) -> dict[str, bool]:
    """Return the fields of a table of a section, each with whether it is always there."""
    text = re.split(r"^## ", PAGE, flags=re.M)
    body = next(part for part in text if part.startswith(f"testbed {section}\n"))
    table = re.findall(r"^\| JSON field.*?\n(?:\|.*\n)+", body, flags=re.M)[number]
    rows = [row.split("|") for row in table.splitlines()[2:]]
    return {name: "*optional*" not in row[-2] for row in rows for name in re.findall(r"`([^`]+)`", row[1])}


def paths(value: Any, here: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the path of every value, and whether it is a leaf."""
    yield here, not isinstance(value, dict | list)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, f"{here}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, f"{here}[]")


def differences(fields: dict[str, bool], *values: Any) -> list[str]:
    """Say which values are not listed, and which fields that are always there are missing."""
    forms = {f: re.compile(re.sub(r"\b[A-Z]{3,}\b", "[^/]+", re.escape(f))) for f in fields}
    found = {path: leaf for value in values for path, leaf in paths(value)}
    unlisted = [p for p, leaf in found.items() if leaf and not any(f.fullmatch(p) for f in forms.values())]
    missing = [f for f, always in fields.items() if always and not any(forms[f].fullmatch(p) for p in found)]
    return [*(f"not listed: {p}" for p in unlisted), *(f"missing: {f}" for f in missing)]


def said(*words: str, status: int = 0) -> Any:
    done = testbed(*words, "--json")
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def test_check_prints_the_fields_that_are_listed() -> None:
    values = (
        said("check", str(LAB)),
        said("check", str(LAB), "--set", "links.cable.rat=1mbit", status=2),
        said("check", str(LAB), "--set", "links.cable.rate=1mbps"),
    )
    assert differences(listed("check"), *values) == []


def test_plan_prints_the_fields_that_are_listed() -> None:
    assert differences(listed("plan"), said("plan", str(LAB))) == []


def test_up_and_status_print_the_fields_that_are_listed(name: str, need: Need) -> None:
    need("userns", "veth", "ipv6", "tbf")
    assert differences(listed("up"), said("up", str(LAB), "--name", name)) == []
    assert differences(listed("status"), said("status")) == []
    assert differences(listed("status", 1), said("status", name)) == []
    assert differences(listed("status", 2), said("status", name, "client")) == []


def test_run_and_report_print_the_fields_that_are_listed(name: str, need: Need, tmp_path: Path) -> None:
    need("userns", "veth", "ping")
    short = ("--set", "workloads.rtt.ping.seconds=1", "--set", "events.0.at=300ms", "--set", "events.1.at=600ms")
    failing = ("--set", "checks=[{metric: rtt.loss_pct, min: 101}]")
    ran = said("run", str(EVENT), "--name", name, "--results", str(tmp_path), *short, *failing, status=1)
    many = said("run", str(ROOT / "docs/examples/rates.yaml"), "--name", name, "--results", str(tmp_path), *QUICK)
    assert differences(listed("run"), ran, many) == []
    of_run = listed("run")
    fields = {
        f.removeprefix("[]."): of_run[f]
        for f in of_run
        if f not in ("[].case", "[].status", "[].error", "[].settings[]")
    }
    assert differences(fields, said("report", str(tmp_path / "quickstart/latest"), status=1)) == []


def test_init_prints_the_fields_that_are_listed(tmp_path: Path) -> None:
    values = said("init"), said("init", "two-hosts", str(tmp_path / "mine.yaml"))
    assert differences(listed("init"), *values) == []


def test_doctor_prints_the_fields_that_are_listed() -> None:
    assert differences(listed("doctor"), said("doctor")) == []


def test_machines_prints_the_fields_that_are_listed() -> None:
    assert differences(listed("machine"), said("machine", "ls")) == []


def test_images_prints_the_fields_that_are_listed() -> None:
    found = said("image", "ls")
    if not found:
        pytest.skip("no image was built: make machine")
    assert differences(listed("image"), found) == []
