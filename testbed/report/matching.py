"""Regular expressions of a file, each matched in a process of its own: one can take longer than anybody waits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from testbed.metrics.said import AbsentError

_PATIENCE = 1.0  # seconds of a processor that an expression may take
_START = 10.0  # seconds for a busy machine to give it these


def last(data: bytes, expression: str) -> str | None:
    """Return group 1 of the last match, all of it if the expression has no group, None without a match."""
    argv = [sys.executable, "-I", "-S", str(Path(__file__).with_name("match.py")), str(_PATIENCE), expression]
    try:
        done = subprocess.run(argv, input=data, capture_output=True, timeout=_PATIENCE + _START)
    except subprocess.TimeoutExpired as e:
        raise AbsentError(f"matching {expression!r} took longer than {_PATIENCE:g} s") from e
    if done.returncode not in (0, 1):
        raise AbsentError(f"matching {expression!r} took longer than {_PATIENCE:g} s")
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
