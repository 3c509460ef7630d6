"""Texts that are kept in files: a test compares, and `TESTBED_REWRITE=1 pytest ...` writes them again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.cli import app as cli

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """A function that runs the command line in this process: exit status, stdout, stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["testbed", *argv])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run


def compare(text: str, path: Path) -> None:
    if os.environ.get("TESTBED_REWRITE"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), "if this is what it should say, TESTBED_REWRITE=1 keeps it"
