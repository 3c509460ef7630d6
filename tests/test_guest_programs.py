"""The guest's C programs: what they decode, built with sanitizers and given what an attacker would."""

from __future__ import annotations

import random
import subprocess

import pytest

from testbed.machines.guest import recipe
from tests.fuzz import guest


def test_no_word_of_the_hosts_makes_a_program_of_the_guest_read_or_write_beyond_its_memory() -> None:
    seed = random.SystemRandom().getrandbits(32)
    try:
        assert guest.main(20_000, seed) == 140_000
    except subprocess.CalledProcessError as e:
        pytest.fail(f"seed {seed}: {e.stderr}")


@pytest.mark.parametrize("program", ["testbed-guest.c", "testbed-call.c"])
def test_the_guests_programs_compile_without_a_warning(program: str) -> None:
    words = ("cc", "-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", recipe.FOLDER / program)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
