"""Broken inputs, as many as take some seconds: `make fuzz` tries more, and what it finds is tried again here."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.fuzz import found, parsers, paths

SEED = int(os.environ.get("TESTBED_SEED") or random.randrange(10**6))  # printed with a failure; set it to repeat


@pytest.mark.parametrize(
    ("parser", "data"), [pytest.param(w, d, id=path.name) for w, d, path in found.kept(parsers.KIND)]
)
def test_what_once_broke_a_parser_is_one_sentence_now(parser: str, data: bytes) -> None:
    assert parsers.wrong(parser, data) == ""


def test_a_parser_returns_or_says_in_one_sentence_that_it_can_not_read_what_a_kernel_says() -> None:
    chance, said = random.Random(SEED), parsers.answers()
    for _ in range(500):
        data = parsers.made(chance, said)
        assert {p: why for p in parsers.PARSERS if (why := parsers.wrong(p, data))} == {}, f"seed {SEED}: {data!r}"


def test_whatever_events_come_a_path_manager_commands_only_what_is_its_own_within_its_limits() -> None:
    chance = random.Random(SEED)
    events = paths.decoded(chance)
    for n in range(500):
        assert paths.sequence(chance, events) == "", f"seed {SEED}, sequence {n}"


def test_a_campaign_prints_its_seed_and_its_rate_and_ends_with_what_it_found() -> None:
    words = (sys.executable, "-m", "tests.fuzz", "parsers", "--n", "20", "--seed", "7", "--workers", "2")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert "parsers: seed 7: 10 inputs for " in done.stdout
    assert "parsers: seed 8: 10 inputs for " in done.stdout
    assert "parsers: 20 in " in done.stdout
    assert " a second, from seed 7: nothing wrong" in done.stdout
