"""What Linux takes as a command: one rule, whoever asks."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from testbed.words import MOST_ARGV, MOST_WORD, arguments


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "at least one word"),
        (("", "x"), "here it is empty"),
        (("echo", "a\0b"), "NUL"),
        (("echo", "\ud800"), "can be encoded"),
        (("echo", 5), "must be a text"),
        ("echo", "a list of words"),
        (("echo", "ä" * (MOST_WORD // 2 + 1)), "at most 131071 bytes"),
        (("echo", *["x" * MOST_WORD] * 9), "bytes in all"),
    ],
)
def test_a_command_that_linux_would_refuse_is_refused_with_a_sentence(words: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        arguments(words)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    "words", [("echo", ""), ("echo", "\x1b[31m\n\t"), ("echo", "\udcff"), ("echo", *["x" * MOST_WORD] * 7)]
)
def test_a_command_that_linux_takes_is_taken(words: tuple[str, ...]) -> None:
    assert len(arguments(words)) == len(words)
    assert subprocess.run(words, stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_the_longest_word_is_the_longest_that_linux_takes() -> None:
    assert subprocess.run(("true", "x" * MOST_WORD), check=False).returncode == 0
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run(("true", "x" * (MOST_WORD + 1)), check=False)
    assert MOST_ARGV < 2**21
