"""Labs that are disturbed at random moments, a few times each: `make fuzz` does so more often."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.kernel

SEED = os.environ.get("TESTBED_SEED") or str(random.randrange(10**6))  # printed with a failure; set it to repeat


@pytest.mark.parametrize(("kind", "count"), [("kill", 5), ("stop", 1), ("full", 4)])
def test_a_lab_that_is_disturbed_is_whole_or_gone_and_says_what_happened(kind: str, count: int) -> None:
    words = (sys.executable, "-m", "tests.fuzz", kind, "--n", str(count), "--seed", SEED)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"seed {SEED}: {done.stdout}{done.stderr}"
