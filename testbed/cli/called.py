"""The command line in a process of its own, for tests: it ends with them, and what it says is kept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from subprocess import CompletedProcess
from tempfile import TemporaryFile
from uuid import uuid4

from testbed.lab.asker import Asker

PATIENCE = 30.0  # seconds in which a command line that was told to end may take its lab along
_ROWS = 20  # of what the command line said, in the report of a test that failed
# A line on its input is an orderly end; the end of its input without one is that of whoever held it.
_LEASH = "import os, sys; os.read(0, 1) or os.execv(sys.argv[1], sys.argv[1:])"


def tidily(words: Sequence[str], name: str) -> CompletedProcess[str]:
    """Run a command line that makes a lab of this name; if the test is interrupted meanwhile, nothing of it is left."""
    try:
        return call(words)
    except BaseException:
        if is_up(name):  # it came up just then
            call(("down", name))
        raise


@contextmanager
def leashed(lab: str) -> Iterator[None]:
    """Have a lab taken down when this process ends without doing so itself (kill -9, a worker that crashed)."""
    argv = (sys.executable, "-S", "-c", _LEASH, sys.executable, "-P", "-m", "testbed", "down", lab)
    null = subprocess.DEVNULL
    # In a session of its own: the terminal's Ctrl-C is for us, who still have the lab to take down.
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True)
    try:
        yield
    finally:
        process.communicate(b"\n")


def call(words: Sequence[str], given: bytes = b"", timeout: float | None = None) -> CompletedProcess[str]:
    """Run the command line to its end, which comes early when this process or its patience ends."""
    argv = (
        sys.executable,
        "-P",
        "-m",
        "testbed",
        *words,
    )  # -P: a folder `testbed` here is the user's, not this package
    # An orphan is known by its parent being process 1: where this process is that one, nothing can outlive it.
    env = {**os.environ, **Asker(tied=os.getpid() != 1).variables()}
    with TemporaryFile() as stdin, TemporaryFile() as stdout, TemporaryFile() as stderr:
        # Files, not pipes: what a command leaves in the background would keep a pipe open.
        stdin.write(given)
        stdin.seek(0)
        process = subprocess.Popen(argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env)
        try:
            status = process.wait(timeout)
        except BaseException:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise
        texts = []
        for stream in (stdout, stderr):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    return CompletedProcess(tuple(words), status, *texts)


def unique_name(name: str) -> str:
    """Return a lab's name that begins with this one and that no other test, process or machine has."""
    return f"{name}-{uuid4().hex[:12]}"


def options(sets: Sequence[str]) -> Iterator[str]:
    """Yield the options that override values."""
    for assignment in sets:
        yield from ("--set", assignment)


def is_up(name: str) -> bool:
    """Say whether a lab of this name is up, here or in a guest."""
    from testbed.lab import reach

    return name in reach.names() or name in guests()


def guests() -> list[str]:
    """Return the names of the guests that are up."""
    from testbed.machines.guest import microvm

    return microvm.guests()


def rows_of(done: CompletedProcess[str]) -> list[str]:
    """Return the end of what the command line said."""
    return [f"$ testbed {' '.join(done.args)}", *done.stderr.splitlines()[-_ROWS:], f"(exit {done.returncode})"]


def words_of(done: CompletedProcess[str]) -> str:
    """Return what the command line said, without its name and without the times of its progress."""
    rows = [re.sub(r"^testbed: ", "", row) for row in done.stderr.splitlines()]
    return "\n".join(row for row in rows if not re.match(r"\s*(\[\d+/\d+\])?\s+\d+\.\d+ s  ", row))


def line_of(done: CompletedProcess[str]) -> str:
    """Return the same in one line, as the reason why a test is skipped."""
    return "; ".join(words_of(done).splitlines())
