"""The suite's own check of what it leaves behind: it finds what is its own, and blames nobody else's lab on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.conftest import SUITE, left, traces

_HOLDS = (
    "import socket; open('/proc/self/comm', 'w').write('testbed:leak'); s = socket.socket(socket.AF_UNIX)\n"
    "s.bind('\\0testbed/leak-{0}'); print('there', flush=True); input()"
)


@contextmanager
def holder(suite: str) -> Iterator[str]:
    """A process that looks like a lab's holder, of a suite; its process id."""
    words = (sys.executable, "-c", _HOLDS.format(suite))
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env={**os.environ, SUITE: suite}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        yield str(process.pid)
        process.kill()


def test_a_lab_of_this_suite_that_is_left_is_found_with_its_socket() -> None:
    before = traces("ours")
    with holder("ours") as pid:
        found = left(before, "ours", patience=0)
    assert found["process"] == [f"{pid} testbed:leak"]
    assert found["socket"] == ["@testbed/leak-ours"]
    assert found["netns"] == [os.readlink("/proc/self/ns/net")]


def test_a_lab_of_another_suite_is_none_of_ours() -> None:
    before = traces("ours")
    with holder("theirs"):
        assert left(before, "ours", patience=0) == {}
