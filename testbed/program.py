"""The program around its verbs: signals, errors, exit statuses; and `exec`, which waits for none of their imports."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TYPE_CHECKING, NoReturn, TextIO

from testbed import control, sandbox
from testbed.errors import InputError, LabError, TestbedError

if TYPE_CHECKING:
    from testbed.machines.elsewhere import Elsewhere

GUESTS = "testbed-guest"  # the family of abstract sockets of guests


def script() -> NoReturn:
    """Be the program, and end without taking some hundred modules apart, which would cost 40 ms."""
    try:
        perform(lambda: _verb(sys.argv[1:])())
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: the caller closed it
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(status)


def _verb(words: Sequence[str]) -> Callable[[], object]:
    """Return what a command line asks for: `exec LAB NODE COMMAND` in its plain form is understood without typer."""
    match words:
        case ["exec", lab, node, *argv] if not any(w.startswith("-") for w in (lab, node)) and argv not in ([], ["--"]):
            return lambda: execute(lab, node, argv)
    from testbed import cli

    cli.narrow(*words[:1])
    return cli.app


def perform(verb: Callable[[], object]) -> NoReturn:
    """Run what a command line asks for; every error of ours ends with its own exit status and no traceback."""
    gc.set_threshold(200_000)  # a short life: collecting what imports and plans make costs as much as making it
    status: list[int] = []

    def interrupted(number: int, _: object) -> NoReturn:
        """End as a command does that a signal ends; a lab that is being made or run goes with us."""
        os.write(2, f"testbed: interrupted ({signal.Signals(number).name})\n".encode())
        status.append(128 + number)
        raise SystemExit(status[0])

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    if "TESTBED_TIED" in os.environ:
        sandbox.end_with_parent()
    try:
        with screens():
            _perform(verb)
    finally:
        # A library that it came up through may have made an error of its own of it: pydantic's validators do.
        if status:
            raise SystemExit(status[0])
    raise SystemExit(0)


def _perform(verb: Callable[[], object]) -> None:
    try:
        verb()
    except TestbedError as e:
        with suppress(BrokenPipeError):
            sys.stdout.flush()  # what was said before comes before, also where both streams are one file
        print(f"{e}" if isinstance(e, InputError) else f"testbed: {e}", file=sys.stderr)
        raise SystemExit(e.exit_status) from e
    except BrokenPipeError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of our output went away: nothing to say to it
        raise SystemExit(141) from e


class Screen(TextIOWrapper):
    """A standard stream on which everything is visible (`testbed.plain`), whoever prints: this program or a library."""

    def write(self, text: str) -> int:
        """Write text with what hides, or moves a cursor, spelt out."""
        from testbed.plain import shown  # late: `testbed exec` prints nothing

        super().write(shown(text))
        return len(text)


@contextmanager
def screens() -> Iterator[None]:
    """Let what is printed on the standard streams be seen; what is printed on one that the caller closed is not."""
    before = sys.stdout, sys.stderr
    while (null := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        pass  # it takes the number of a stream that is closed, which else the next file or socket would get
    os.close(null)
    sys.stdout, sys.stderr = made = [_screen(stream, fd) for fd, stream in enumerate(before, 1)]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for screen in made:
            with suppress(BrokenPipeError):
                screen.detach()  # its buffer belongs to the stream before, which is not to be closed


def _screen(stream: TextIO | None, fd: int) -> Screen:
    if stream is None:
        return Screen(BufferedWriter(FileIO(fd, "w", closefd=False)), "utf-8")
    with suppress(BrokenPipeError):
        stream.flush()
    return Screen(stream.buffer, stream.encoding, "backslashreplace", line_buffering=bool(stream.line_buffering))


def execute(lab: str, node: str, argv: Sequence[str]) -> NoReturn:
    """Run a command in a node, wherever its lab is; its exit status is this command's."""
    words = tuple(argv[1:] if argv[0] == "--" else argv)
    if (place := place_of(lab)) is not None:
        raise SystemExit(place.enter(("exec", place.lab, node, "--", *words)))
    enter(lab, node, words)


def enter(lab: str, node: str, argv: Sequence[str]) -> NoReturn:
    """Run a command in a node of a lab on this machine, on this terminal."""
    running = control.find(lab)
    nodes = running.status()["nodes"]
    if node not in nodes:
        known = ", ".join(nodes[:12]) + (", ..." if len(nodes) > 12 else "")
        raise LabError(f"lab {lab}: there is no node {node} (nodes: {known})")
    raise SystemExit(sandbox.enter(running.holder, running.life.fileno(), node, tuple(argv)))


def place_of(lab: str) -> Elsewhere | None:
    """Return the machine that a lab is on, None when that is this one."""
    if "@" not in lab and (lab in sandbox.names() or lab not in sandbox.names(GUESTS)):
        return None
    from testbed.machines import elsewhere

    return elsewhere.find(lab)
