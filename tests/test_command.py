"""Workload command: the numbers in what a program wrote, and what was expected of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.metrics.recorded import Recorded
from testbed.metrics.said import AbsentError, captured, pointed
from testbed.report.matching import last
from testbed.workloads.command import Command

WRK = b"""  Latency Distribution
     50%    1.21ms
     99%    4.50ms
Requests/sec:   8123.45
Requests/sec:   9000.5
"""


def test_a_pointer_leads_through_objects_and_lists() -> None:
    data = b'{"latency": {"p99": 4.5}, "a/b": [10, {"m~n": 7}], "": 3}'
    assert pointed(data, "/latency/p99") == 4.5
    assert pointed(data, "/a~1b/1/m~0n") == 7, "RFC 6901 section 4"
    assert pointed(data, "/") == 3
    assert pointed(b"12", "") == 12


@pytest.mark.parametrize(
    ("data", "pointer", "why"),
    [
        (b'{"a": 1}', "/b", "there is nothing at /b"),
        (b"[1]", "/1", "there is nothing at /1"),
        (b'{"a": true}', "/a", "what is at /a is not a number"),
        (b'{"a": "1"}', "/a", "what is at /a is not a number"),
        (b'{"a": 1', "/a", "it is not valid JSON"),
        (b"", "/a", "it is not valid JSON"),
    ],
)
def test_what_is_not_there_has_a_reason(data: bytes, pointer: str, why: str) -> None:
    with pytest.raises(AbsentError, match=why):
        pointed(data, pointer)


def test_an_expression_gives_the_group_of_its_last_match() -> None:
    assert captured(WRK, r"^Requests/sec:\s+([\d.]+)", last) == 9000.5
    assert captured(WRK, r"99%\s+([\d.]+)ms", last) == 4.5
    assert last(WRK, "Latency .*") == "Latency Distribution"
    assert last(WRK, "Errors") is None
    with pytest.raises(AbsentError, match="is not a number"):
        captured(WRK, "(Latency)", last)


def test_an_expression_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(AbsentError, match="took longer than 1 s"):
        last(b"a" * 5000, "(a*)*b")


def test_metrics_and_expectations_are_read_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/get.command.out").write_bytes(WRK)
    (tmp_path / "out.json").write_text('{"p99": 4.5}')
    work = Command.model_validate(
        {
            "node": "a",
            "argv": ["wrk"],
            "metrics": {
                "rps": {"regex": r"sec:\s+([\d.]+)", "unit": "1/s", "better": "higher"},
                "p99_ms": {"json": "/p99", "unit": "ms", "file": "out.json"},
                "p50_ms": {"json": "/p50", "unit": "ms", "file": "out.json"},
            },
            "expect": {"status": 3, "stdout": "Socket errors"},
        }
    )
    folder = Recorded(tmp_path, origin=1.0, statuses={("a", "get.command"): 3}, search=last)
    found = work.read("get", folder)
    assert {name: (m.value, m.unit) for name, m in found.items()} == {"rps": (9000.5, "1/s"), "p99_ms": (4.5, "ms")}
    assert folder.absent == {"get.p50_ms": "out.json: there is nothing at /p50"}
    assert [what for _, what, _ in work.doubts("get", folder)] == ["get.p50_ms"]
    status, said = work.expectations("get", folder)
    assert (status.passed, status.value) == (True, 3)
    assert (said.passed, said.why) == (False, "nothing in its output matches")
    assert not folder.broken
