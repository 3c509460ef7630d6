"""What a command line is told of the one that asked for it goes through the environment as it is."""

from __future__ import annotations

import pytest

from testbed.lab import asker
from testbed.lab.asker import Asker


@pytest.mark.parametrize(
    "told",
    [Asker(), Asker(tied=True, at="@server"), Asker(file="/a/b.yaml", under="u.yaml", machine="microvm", spent=7.25)],
)
def test_what_is_told_is_what_is_read(told: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Asker(True, "x", "x", "x", "x", 1.0).variables():
        monkeypatch.delenv(name, raising=False)
    for name, value in told.variables().items():
        monkeypatch.setenv(name, value)
    assert asker.read() == told


@pytest.mark.parametrize("said", ["", "-3", "nan", "soon"])
def test_time_that_nobody_can_have_spent_counts_nothing(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_SPENT", said)
    assert asker.read().spent == 0
