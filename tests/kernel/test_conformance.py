"""The runner of `make conformance`: a case passes by what both hosts count, and fails by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.__main__ import families, run
from tests.conftest import Need

pytestmark = pytest.mark.kernel


def test_a_case_passes_and_fails_by_what_is_counted(tmp_path: Path, name: str, need: Need) -> None:
    need("mptcp", "mptcp-diag")
    case = next(c for c in families()["signal_address"] if c["name"] == "beside a subflow")
    assert run(case, tmp_path, name).outcome == "passed"
    found = run({**case, "counters": {"client.MPJoinSynTx": 1}}, tmp_path, f"{name}-wrong")
    assert found.outcome == "failed"
    assert "client.mptcp.MPJoinSynTx" in found.why
    assert (Path(found.folder) / "client/samples.jsonl").exists(), "what was recorded is kept"
