"""The command line on another machine: the same program there, reached by ssh, as if it ran here."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from testbed.errors import LabError
from testbed.machines import request
from testbed.machines.request import Request

_BROKEN = 255  # the exit status of ssh(1) itself


@dataclass(frozen=True, slots=True)
class Target:
    """A machine as ssh reaches it: the words before a command (ssh itself first), and the program there."""

    name: str
    words: tuple[str, ...]
    program: tuple[str, ...]


def call(target: Target, argv: Sequence[str], *, terminal: bool = False, out: int = 1) -> int:
    """Run a command line there on this process's streams and return its exit status.

    With a terminal, its keys are those of the far side. Without, a signal to this process ends ssh, and that the
    command.
    """
    group = None if terminal else 0  # the terminal's keys go to its foreground: ssh must not die of Ctrl-C by itself
    words = _words(target, argv, "-tt" if terminal else "-T")
    with subprocess.Popen(words, stdout=out, process_group=group) as process, _heard(lambda n: process.send_signal(n)):
        return _status(target, process.wait())


def ask(target: Target, asked: Request) -> int:
    """Run a command line there with the files that it reads and return its exit status; it gets our signals."""
    words = _words(target, ("serve-request",), "-T")
    with subprocess.Popen(words, stdin=subprocess.PIPE, process_group=0) as process:
        assert process.stdin is not None
        pipe = process.stdin.fileno()

        def tell(number: int) -> None:
            with suppress(BrokenPipeError):
                os.write(pipe, b"%d\n" % number)

        with suppress(BrokenPipeError):  # ssh ended: its status tells
            process.stdin.write(request.encode(asked))
            process.stdin.flush()
        with _heard(tell):
            status = process.wait()
        with suppress(BrokenPipeError):
            process.stdin.close()
    return _status(target, status)


def fetch(target: Target, token: str, root: Path) -> None:
    """Bring the results of a request here, into the folder that would hold them had they been made here."""
    words = _words(target, ("collect-request", token), "-T")
    root.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(words, stdout=subprocess.PIPE, process_group=0) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                archive.extractall(root, filter="data")
        except (tarfile.TarError, OSError) as e:
            raise LabError(f"machine {target.name}: its results could not be fetched: {e}") from e
    if process.returncode:
        raise LabError(f"machine {target.name}: its results could not be fetched: status {process.returncode}")


def version(target: Target) -> str:
    """Return the version of the program there; LabError, with what ssh or the machine says, when there is none."""
    words = _words(target, ("--version",), "-T")
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr or done.stdout).strip().splitlines()
        said = why[-1] if why else f"status {done.returncode}"
        raise LabError(f"machine {target.name}: {shlex.join(target.program)} does not run there: {said}")
    return done.stdout.strip().removeprefix("testbed ")


def _words(target: Target, argv: Sequence[str], tty: str) -> tuple[str, ...]:
    ssh, *options = target.words
    # What ssh passes on is one line for a shell. TIED: the command ends when the connection does.
    return (ssh, tty, *options, shlex.join(("env", f"{request.TIED}=1", *target.program, *argv)))


def _status(target: Target, status: int) -> int:
    if status == _BROKEN:
        raise LabError(f"machine {target.name}: the connection failed or broke; what ssh said is above")
    return status if status >= 0 else 128 - status


@contextmanager
def _heard(pass_on: Callable[[int], None]) -> Iterator[None]:
    """Pass signals on instead of dying of them: the other side decides what they mean."""

    def handler(number: int, _: FrameType | None) -> None:
        pass_on(number)

    before = {n: signal.signal(n, handler) for n in request.SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
