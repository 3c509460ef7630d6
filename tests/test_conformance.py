"""The cases of `make conformance` are valid files, and say what must be counted (no kernel)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed.loading import load
from tests.conformance.__main__ import Case, expected, families, topology

CASES = [(name, case) for name, cases in families().items() for case in cases]


@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[f"{n}: {c['name']}" for n, c in CASES])
def test_a_case_is_a_valid_file(tmp_path: Path, case: Case) -> None:
    file = tmp_path / "case.json"
    file.write_text(json.dumps(topology(case)))
    assert len(load(file).checks) >= len(expected(case))


def test_cases_of_a_family_have_names_of_their_own() -> None:
    assert len({(name, case["name"]) for name, case in CASES}) == len(CASES)


def test_a_join_counts_at_both_ends_and_what_is_stated_comes_first() -> None:
    wanted = expected({"joins": 2, "announced": 1, "counters": {"server.MPJoinAckRx": 1}})
    assert (wanted["client.MPJoinSynTx"], wanted["client.MPJoinSynAckRx"], wanted["server.MPJoinSynRx"]) == (2, 2, 2)
    assert (wanted["server.MPJoinAckRx"], wanted["server.EchoAdd"], wanted["client.MPCapableDataFallback"]) == (1, 1, 0)
